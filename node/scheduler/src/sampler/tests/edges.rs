//! Values at the borders of what is allowed, and past them.

use super::*;

fn warm() -> SamplingParams {
    SamplingParams { temperature: 1.0, seed: 11, ..SamplingParams::default() }
}

fn draw(params: &SamplingParams, logits: &[f32]) -> Option<TokenId> {
    sampler(params).sample(logits, 0, None).ok().map(|sampled| sampled.token)
}

#[test]
fn rows_without_a_token_fail() {
    for params in [SamplingParams::default(), warm()] {
        for row in [vec![], vec![f32::NEG_INFINITY; 700], vec![f32::NAN; 3]] {
            assert_eq!(draw(&params, &row), None);
        }
    }
}

#[test]
fn an_infinite_logit_is_certain() {
    let mut row = vec![1.0; 900];
    (row[500], row[501], row[2]) = (f32::INFINITY, f32::INFINITY, f32::NAN);
    for params in [SamplingParams::default(), warm(), SamplingParams { top_p: 0.5, ..warm() }] {
        assert_eq!(draw(&params, &row), Some(500));
    }
    let sampled = Sampler::new(warm(), &[], Some(3)).sample(&row, 0, None).unwrap();
    let logprobs = sampled.logprobs.unwrap();
    assert!((logprobs.logprob - 0.5_f32.ln()).abs() < 1e-6);
    assert_eq!(logprobs.top[2], (0, f32::NEG_INFINITY));
}

#[test]
fn filters_at_their_ends() {
    let row = normal_logits(1000, 2.0, 1);
    let best = draw(&SamplingParams::default(), &row);
    let all = distribution(&sampler(&warm()), &row);
    for off in [
        SamplingParams { top_k: 1000, ..warm() },
        SamplingParams { top_k: u32::MAX, ..warm() },
        SamplingParams { top_p: 1.5, ..warm() },
        SamplingParams { top_p: f32::NAN, ..warm() },
        SamplingParams { min_p: -1.0, ..warm() },
    ] {
        assert_eq!(distribution(&sampler(&off), &row), all, "{off:?}");
    }
    for one in [
        SamplingParams { top_k: 1, ..warm() },
        SamplingParams { top_p: 0.0, ..warm() },
        SamplingParams { top_p: 1e-9, ..warm() },
        SamplingParams { min_p: 1.0, ..warm() },
        SamplingParams { min_p: 7.0, ..warm() },
        SamplingParams { temperature: 1e-6, ..warm() },
        SamplingParams { temperature: 1e-45, ..warm() },
        SamplingParams { temperature: -1.0, ..warm() },
        SamplingParams { temperature: f32::NAN, ..warm() },
    ] {
        assert_eq!(draw(&one, &row), best, "{one:?}");
    }
}

#[test]
fn ties_go_to_lower_tokens() {
    let row = vec![2.5; 1000];
    let kept = |params: SamplingParams| distribution(&sampler(&params), &row).len();
    assert_eq!(kept(SamplingParams { top_k: 7, ..warm() }), 7);
    assert_eq!(kept(SamplingParams { top_k: 700, ..warm() }), 700);
    assert_eq!(kept(SamplingParams { top_p: 0.2501, ..warm() }), 251);
    assert_eq!(kept(SamplingParams { min_p: 1.0, ..warm() }), 1000);
    let seven = distribution(&sampler(&SamplingParams { top_k: 7, ..warm() }), &row);
    assert!(seven.iter().map(|&(token, _)| token).eq(0..7));
}

#[test]
fn a_huge_temperature_makes_all_finite_tokens_alike() {
    let mut row = normal_logits(600, 3.0, 2);
    (row[5], row[6], row[7]) = (f32::NEG_INFINITY, f32::NAN, f32::MIN);
    for temperature in [1e30, f32::INFINITY] {
        for (top_k, top_p) in [(0, 1.0), (599, 1.0), (0, 0.9999)] {
            let params = SamplingParams { temperature, top_k, top_p, ..warm() };
            let kept = distribution(&sampler(&params), &row);
            assert!(kept.len() >= 597 && kept.iter().all(|&(token, _)| token != 5 && token != 6));
            assert!(kept.iter().all(|&(_, p)| (p - 1.0 / kept.len() as f64).abs() < 1e-6));
        }
    }
}

#[test]
fn extreme_logits_do_not_overflow() {
    let row = [f32::MAX, f32::MIN, 0.0, f32::MAX];
    for params in [warm(), SamplingParams { top_k: 3, ..warm() }, SamplingParams { top_p: 0.9, ..warm() }] {
        let kept = distribution(&sampler(&params), &row);
        assert!(kept.iter().map(|&(token, _)| token).eq([0, 3]), "{kept:?}");
    }
}

#[test]
fn penalties_count_what_was_drawn() {
    let params = SamplingParams { frequency_penalty: 1.0, ..SamplingParams::default() };
    let mut sampler = sampler(&params);
    let drawn: Vec<TokenId> =
        (0..5).map(|pos| sampler.sample(&[5.0, 4.5, 0.0], pos, None).unwrap().token).collect();
    assert_eq!(drawn, [0, 1, 0, 1, 0]);
}

#[test]
fn biases_ban_force_and_ignore_what_is_not_there() {
    let row = normal_logits(2000, 1.0, 4);
    let best = draw(&SamplingParams::default(), &row).unwrap();
    let with = |logit_bias| SamplingParams { logit_bias, ..SamplingParams::default() };
    assert_ne!(draw(&with(vec![(best, f32::NEG_INFINITY)]), &row), Some(best));
    assert_eq!(draw(&with(vec![(1999, 60.0), (1999, 40.0), (3, 99.0)]), &row), Some(1999));
    assert_eq!(draw(&with(vec![(2000, 100.0), (u32::MAX, 100.0)]), &row), Some(best));
}

/// Allows the tokens of one residue class.
#[derive(Clone)]
struct EveryNth(usize, usize);

impl Constraint for EveryNth {
    fn mask(&mut self, mask: &mut [u32]) -> Result<(), ConstraintError> {
        if self.0 == 0 {
            return Err(ConstraintError("stuck".into()));
        }
        mask.fill(0);
        let allowed = (self.1..mask.len() * 32).step_by(self.0);
        allowed.for_each(|token| mask[token / 32] |= 1 << (token % 32));
        Ok(())
    }
    fn accept(&mut self, _token: TokenId) -> Result<(), ConstraintError> {
        Err(ConstraintError("the sampler does not accept".into()))
    }
    fn is_finished(&self) -> bool {
        false
    }
    fn clone_box(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

#[test]
fn constraints_mask_and_leave_no_trace() {
    let row = normal_logits(1500, 3.0, 8);
    for params in [SamplingParams::default(), warm(), SamplingParams { top_p: 0.9, ..warm() }] {
        let mut sampler = sampler(&params);
        for position in 0..50 {
            let sampled = sampler.sample(&row, position, Some(&mut EveryNth(7, 3))).unwrap();
            assert_eq!(sampled.token % 7, 3);
        }
        assert_eq!(sampler.sample(&row, 9, None).ok().map(|s| s.token), {
            let mut fresh = Sampler::new(params.clone(), &[], None);
            fresh.sample(&row, 9, None).ok().map(|s| s.token)
        });
        let stuck = sampler.sample(&row, 0, Some(&mut EveryNth(0, 0)));
        assert_eq!(stuck, Err(ConstraintError("stuck".into())));
        assert!(sampler.sample(&row, 0, Some(&mut EveryNth(5000, 4999))).is_err());
    }
}

#[test]
fn the_draft_helper_gives_the_peak_and_its_probability() {
    let row = normal_logits(5000, 3.0, 3);
    let raw = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    let (token, p) = Reference::new(&row, &raw, &[], &[]).ranking[0];
    let (found, probability) = most_likely(&row).unwrap();
    assert_eq!(found, token);
    assert!((f64::from(probability) - p).abs() < 1e-6);
    assert_eq!(most_likely(&[f32::NAN, f32::NEG_INFINITY]), None);
}
