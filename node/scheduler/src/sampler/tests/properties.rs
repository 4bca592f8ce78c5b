//! Random rows and parameters: the kept sets and probabilities are the
//! reference's, and draws follow them.

use proptest::prelude::*;

use super::*;

fn logits() -> impl Strategy<Value = Vec<f32>> {
    let odd = prop_oneof![Just(f32::NAN), Just(f32::NEG_INFINITY), Just(0.0), Just(-0.0), Just(5.0)];
    let spread = (1..1500_usize, prop_oneof![Just(0.01_f32), Just(3.0), Just(20.0)], any::<u64>());
    let row = spread.prop_map(|(len, deviation, seed)| normal_logits(len, deviation, seed));
    (row, prop::collection::vec((any::<prop::sample::Index>(), odd), 0..20)).prop_map(|(mut row, changes)| {
        for (idx, value) in changes {
            let idx = idx.index(row.len());
            row[idx] = value;
        }
        row
    })
}

fn params() -> impl Strategy<Value = SamplingParams> {
    let temperature = prop_oneof![Just(0.2_f32), Just(0.7), Just(1.0), Just(2.0), Just(50.0)];
    let top_k = prop_oneof![Just(0_u32), 1..2000_u32, 1..50_u32];
    let top_p = prop_oneof![Just(1.0_f32), 0.0..1.0_f32, Just(0.999)];
    let min_p = prop_oneof![Just(0.0_f32), 0.0..1.0_f32, Just(0.05)];
    (temperature, top_k, top_p, min_p, any::<u64>()).prop_map(|(temperature, top_k, top_p, min_p, seed)| {
        SamplingParams { temperature, top_k, top_p, min_p, seed, ..SamplingParams::default() }
    })
}

/// Biases and penalties, with tokens of the prompt and the output.
type Changes = (Vec<(TokenId, f32)>, f32, f32, f32, Vec<TokenId>, Vec<TokenId>);

fn changes() -> impl Strategy<Value = Changes> {
    let token = || 0..1500_u32;
    let off_or = |value: f32, off: f32| prop_oneof![Just(off), Just(value)];
    (
        prop::collection::vec((token(), -5.0..5.0_f32), 0..8),
        off_or(1.3, 1.0),
        off_or(0.7, 0.0),
        off_or(0.4, 0.0),
        prop::collection::vec(token(), 0..40),
        prop::collection::vec(token(), 0..40),
    )
}

fn is_drawable(logits: &[f32]) -> bool {
    logits.iter().any(|&x| x > f32::NEG_INFINITY)
}

/// Every token that the reference keeps with room to spare is kept, nothing is
/// kept that it drops with room to spare, and probabilities agree.
fn check_distribution(sampler: &Sampler, reference: &Reference) -> Result<(), TestCaseError> {
    let params = &sampler.params;
    let (tight, wide) = (reference.kept(params, -1e-4), reference.kept(params, 1e-4));
    let found: BTreeMap<TokenId, f64> = sampler_distribution(sampler, reference).into_iter().collect();
    // What weighs less than e^-32 of the peak is pruned.
    for &(token, p) in tight.iter().filter(|&&(_, p)| p > 1e-13 * tight[0].1) {
        prop_assert!(found.contains_key(&token), "token {token} of probability {p} is lost");
    }
    for token in found.keys() {
        prop_assert!(wide.iter().any(|(t, _)| t == token), "token {token} should not be kept");
    }
    let sum: f64 = found.values().sum();
    prop_assert!((sum - 1.0).abs() < 1e-5, "probabilities sum to {sum}");
    // Among kept tokens, ratios are those of the full distribution.
    let all: BTreeMap<TokenId, f64> = reference.ranking.iter().copied().collect();
    let mass: f64 = found.keys().map(|token| all[token]).sum();
    for (token, p) in &found {
        let expected = all[token] / mass;
        prop_assert!((p - expected).abs() < 1e-5 + 1e-4 * expected, "token {token}: {p}, not {expected}");
    }
    Ok(())
}

fn sampler_distribution(sampler: &Sampler, reference: &Reference) -> Vec<(TokenId, f64)> {
    // The reference's edited logits, fed to a sampler without edits, and the
    // raw ones, fed to one with them, must agree; see `edits_agree`.
    let logits: Vec<f32> = reference.logits.iter().map(|&x| x as f32).collect();
    distribution(sampler, &logits)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn filters_keep_what_the_reference_keeps(logits in logits(), params in params()) {
        prop_assume!(is_drawable(&logits));
        let reference = Reference::new(&logits, &params, &[], &[]);
        check_distribution(&sampler(&params), &reference)?;
    }

    #[test]
    fn edits_agree(logits in logits(), changes in changes(), mut params in params()) {
        let (bias, repetition, presence, frequency, prompt, output) = changes;
        let inside = |token: &TokenId| (*token as usize) < logits.len();
        let prompt: Vec<TokenId> = prompt.into_iter().filter(inside).collect();
        let output: Vec<TokenId> = output.into_iter().filter(inside).collect();
        params.logit_bias = bias.into_iter().filter(|(token, _)| inside(token)).collect();
        params.repetition_penalty = repetition;
        params.presence_penalty = presence;
        params.frequency_penalty = frequency;
        let mut sampler = Sampler::new(params.clone(), &prompt, None);
        output.iter().for_each(|&token| sampler.history.remember(token));

        let mut edits = Edits::default();
        let row = sampler.edit(&mut edits, &logits, None).expect("no constraint is there to fail");
        let reference = Reference::new(&logits, &params, &prompt, &output);
        let edited = (0..row.num_blocks()).flat_map(|block| row.block(block));
        for (token, (&found, &expected)) in edited.zip(&reference.logits).enumerate() {
            let found = if found.is_nan() { f32::NEG_INFINITY } else { found };
            let is_same = f64::from(found) == expected || (f64::from(found) - expected).abs() < 1e-4;
            prop_assert!(is_same, "token {token}: {found}, not {expected}");
        }
    }

    #[test]
    fn greedy_takes_the_lowest_of_the_largest(logits in logits()) {
        let params = SamplingParams::default();
        let mut expected: Option<usize> = None;
        for (idx, &logit) in logits.iter().enumerate() {
            if logit > expected.map_or(f32::NEG_INFINITY, |best| logits[best]) {
                expected = Some(idx);
            }
        }
        let found = sampler(&params).sample(&logits, 0, None);
        prop_assert_eq!(found.ok().map(|s| s.token as usize), expected);
    }

    #[test]
    fn draws_invert_the_distribution(logits in logits(), params in params(), position in any::<u64>()) {
        prop_assume!(is_drawable(&logits));
        let mut sampler = sampler(&params);
        let target = sampler.uniform(position);
        let drawn = sampler.sample(&logits, position, None).expect("a token is left").token;
        // The token's share of [0, 1), in order of tokens, holds the random number.
        let kept = distribution(&sampler, &logits);
        let below: f64 = kept.iter().take_while(|&&(token, _)| token < drawn).map(|&(_, p)| p).sum();
        let p = kept.iter().find(|&&(token, _)| token == drawn).map_or(0.0, |&(_, p)| p);
        prop_assert!(p > 0.0);
        prop_assert!(below - 1e-4 <= target && target <= below + p + 1e-4, "{target} in {below} + {p}");
    }

    #[test]
    fn engines_are_asked_for_the_same_draws(logits in logits(), params in params(), position in any::<u32>()) {
        let mut sampler = sampler(&params);
        let draw = sampler.draw().expect("nothing is asked for that only the sampler can do");
        let within = quern_engine::draw::drawn(&logits, draw, position, None, 1e-5);
        let found = sampler.sample(&logits, position.into(), None).ok().map(|sampled| sampled.token);
        prop_assert_eq!(found.is_some(), within.is_some());
        if let (Some(token), Some(within)) = (found, within) {
            prop_assert!(within.contains(&token), "{} is not in {:?}", token, within);
        }
    }

    #[test]
    fn logprobs_are_the_models_own(logits in logits(), count in 0..30_u8, params in params()) {
        prop_assume!(is_drawable(&logits));
        let params = SamplingParams { logit_bias: vec![(0, 3.0)], ..params };
        let raw = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
        let reference = Reference::new(&logits, &raw, &[], &[]);
        let mut sampler = Sampler::new(params, &[], Some(count));
        let Ok(sampled) = sampler.sample(&logits, 3, None) else { return Ok(()) };
        let logprobs = sampled.logprobs.expect("they were asked for");
        let expected = |token| {
            let found = reference.ranking.iter().find(|&&(t, _)| t == token);
            found.map_or(f64::NEG_INFINITY, |&(_, p)| p.ln())
        };
        let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let check = |token: TokenId, found: f32| {
            let expected = expected(token);
            // Exponentials underflow in the reference, where only its own error is left.
            let is_same = expected < -700.0 || (f64::from(found) - expected).abs() < 1e-4 + 1e-6 * max.abs();
            prop_assert!(is_same, "token {token}: {found}, not {expected}");
            Ok(())
        };
        check(sampled.token, logprobs.logprob)?;
        let likeliest: Vec<TokenId> = reference.ranking.iter().take(count.into()).map(|&(t, _)| t).collect();
        prop_assert_eq!(logprobs.top.iter().map(|&(t, _)| t).collect::<Vec<_>>(), likeliest);
        for &(token, logprob) in &logprobs.top {
            check(token, logprob)?;
        }
    }

    #[test]
    fn seed_and_position_decide(logits in logits(), params in params(), positions in prop::collection::vec(any::<u64>(), 2)) {
        prop_assume!(is_drawable(&logits));
        let draw = |sampler: &mut Sampler, position| sampler.sample(&logits, position, None).map(|s| s.token);
        let mut forward = sampler(&params);
        let (first, second) = (draw(&mut forward, positions[0]), draw(&mut forward, positions[1]));
        let mut backward = sampler(&params);
        prop_assert_eq!(draw(&mut backward, positions[1]), second);
        prop_assert_eq!(draw(&mut backward.clone(), positions[0]), first);
    }
}

#[test]
fn a_large_vocabulary_agrees_with_the_reference() {
    let mut rows = vec![normal_logits(151_936, 3.0, 5), normal_logits(151_936, 0.05, 6)];
    let mut peaked = normal_logits(151_936, 3.0, 7);
    for idx in 0..5 {
        peaked[idx * 7919 + 11] = 22.0 + 0.7 * idx as f32;
    }
    rows.push(peaked);
    let base = SamplingParams { temperature: 0.8, ..SamplingParams::default() };
    for logits in &rows {
        for params in [
            base.clone(),
            SamplingParams { top_p: 0.9, ..base.clone() },
            SamplingParams { top_p: 0.5, min_p: 0.02, ..base.clone() },
            SamplingParams { top_k: 40, top_p: 0.9, ..base.clone() },
            SamplingParams { top_k: 3000, ..base.clone() },
            SamplingParams { top_k: 20_000, top_p: 0.7, ..base.clone() },
            SamplingParams { min_p: 0.1, ..base.clone() },
        ] {
            let reference = Reference::new(logits, &params, &[], &[]);
            let found = distribution(&sampler(&params), logits);
            let expected = reference.kept(&params, 0.0);
            // The least likely are pruned where nothing else limits the set.
            let floor = 1e-13 * expected[0].1;
            let count = |kept: &[(TokenId, f64)]| kept.iter().filter(|&&(_, p)| p > floor).count();
            let few = count(&reference.kept(&params, -1e-5));
            let many = count(&reference.kept(&params, 1e-5));
            let num_found = count(&found);
            assert!((few..=many).contains(&num_found), "{params:?}: {num_found} of {few} to {many}");
            let expected: BTreeMap<TokenId, f64> = expected.into_iter().collect();
            let distance: f64 =
                found.iter().map(|(token, p)| (p - expected.get(token).unwrap_or(&0.0)).abs()).sum();
            assert!(distance < 1e-4, "{params:?}: {distance}");
        }
    }
}

#[test]
fn draws_are_distributed_as_they_should_be() {
    let logits = normal_logits(300, 1.5, 9);
    let num_draws = 40_000;
    for (top_k, top_p) in [(0, 1.0), (25, 1.0), (0, 0.8)] {
        let params = SamplingParams { temperature: 0.9, top_k, top_p, seed: 3, ..SamplingParams::default() };
        let mut sampler = sampler(&params);
        let mut counts = BTreeMap::new();
        for position in 0..num_draws {
            let token = sampler.sample(&logits, position, None).expect("a token is left").token;
            *counts.entry(token).or_insert(0_u32) += 1;
        }
        let kept = Reference::new(&logits, &params, &[], &[]).kept(&params, 0.0);
        assert_eq!(counts.values().sum::<u32>(), num_draws as u32);
        assert!(counts.keys().all(|token| kept.iter().any(|(t, _)| t == token)));
        // Pearson's statistic has the mean `kept - 1` and twice that as variance.
        let statistic: f64 = kept
            .iter()
            .map(|(token, p)| {
                let expected = p * num_draws as f64;
                (f64::from(counts.get(token).copied().unwrap_or(0)) - expected).powi(2) / expected
            })
            .sum();
        let freedom = (kept.len() - 1) as f64;
        assert!((statistic - freedom).abs() < 5.0 * (2.0 * freedom).sqrt(), "{statistic} for {freedom}");
    }
}
