//! A tenant gets its rate and its burst, no more and no less.

use proptest::collection::vec;
use proptest::prelude::*;
use quern_policy_sdk::prelude::*;
use quern_policy_sdk::stand_in;
use quern_policy_token_bucket::TokenBucket;

fn policy(settings: &[(&str, &str)]) -> TokenBucket {
    stand_in::reset();
    settings.iter().for_each(|(key, value)| stand_in::set_config(key, value));
    let mut policy = TokenBucket::default();
    policy.init(None).expect("the settings make sense");
    policy
}

const RATES: &[(&str, &str)] = &[("tokens-per-s", "100"), ("burst-tokens", "1000")];

fn ask(policy: &mut TokenBucket, tenant: &str, tokens: u32, now_us: u64) -> Decision {
    let request = Request {
        tenant: tenant.into(),
        prompt_tokens: tokens / 2,
        max_new: tokens - tokens / 2,
        priority: 7,
        adapter: Some("a".into()),
        ..Request::default()
    };
    let load = NodeLoad { now_us, ..NodeLoad::default() };
    policy.decide(&request, &load).expect("it failed").expect("it had no opinion")
}

fn is_accepted(decision: &Decision) -> bool {
    matches!(decision, Decision::Accept(_))
}

proptest! {
    #[test]
    fn nobody_gets_more_than_burst_and_rate(asks in vec((0..2_000_000u64, 1..900u32), 1..80)) {
        let mut policy = policy(RATES);
        let (mut now_us, mut granted) = (0, 0);
        for (pause_us, tokens) in asks {
            now_us += pause_us;
            if is_accepted(&ask(&mut policy, "t", tokens, now_us)) {
                granted += u64::from(tokens);
            }
            prop_assert!(granted <= 1000 + now_us / 10_000 + 1);
        }
    }

    #[test]
    fn whoever_comes_back_when_told_is_accepted(asks in vec((0..3_000_000u64, 1..1000u32), 1..40)) {
        let mut policy = policy(RATES);
        let mut now_us = 0;
        for (pause_us, tokens) in asks {
            now_us += pause_us;
            if let Decision::Reject(refusal) = ask(&mut policy, "t", tokens, now_us) {
                now_us += 1000 * u64::from(refusal.retry_after_ms.unwrap());
                prop_assert!(is_accepted(&ask(&mut policy, "t", tokens, now_us)));
            }
        }
    }

    #[test]
    fn garbage_from_save_is_survived(saved in vec(any::<u8>(), 0..80)) {
        let mut policy = TokenBucket::default();
        prop_assert!(policy.init(Some(&saved)).is_ok());
        ask(&mut policy, "t", 10, 5);
    }
}

#[test]
fn a_request_is_granted_as_it_was_asked() {
    let Decision::Accept(grant) = ask(&mut policy(RATES), "t", 10, 0) else { panic!("refused") };
    assert_eq!(grant, Grant { priority: 7, max_new: 5, adapter: Some("a".into()) });
}

#[test]
fn tenants_do_not_share_a_bucket() {
    let mut policy = policy(RATES);
    assert!(is_accepted(&ask(&mut policy, "one", 1000, 0)));
    assert!(!is_accepted(&ask(&mut policy, "one", 1000, 0)));
    assert!(is_accepted(&ask(&mut policy, "two", 1000, 0)));
    assert_eq!(stand_in::metric("token_bucket_refused_total"), Some(1.0));
}

#[test]
fn one_tenant_can_be_set_apart() {
    let settings = [RATES, &[("tenant.big.burst-tokens", "50000"), ("tenant.banned.tokens-per-s", "0")]];
    let mut policy = policy(&settings.concat());
    assert!(is_accepted(&ask(&mut policy, "big", 40_000, 0)));
    let Decision::Reject(refusal) = ask(&mut policy, "banned", 1, 0) else { panic!("accepted") };
    assert_eq!((refusal.reason, refusal.retry_after_ms), (Reason::Quota, None));
}

#[test]
fn a_request_larger_than_the_bucket_takes_a_full_one() {
    let mut policy = policy(RATES);
    assert!(is_accepted(&ask(&mut policy, "t", 5000, 0)));
    assert!(!is_accepted(&ask(&mut policy, "t", 5000, 9_000_000)));
    assert!(is_accepted(&ask(&mut policy, "t", 5000, 10_000_000)));
}

#[test]
fn many_tenants_take_bounded_memory() {
    let mut policy = policy(RATES);
    ask(&mut policy, "spender", 1000, 0);
    for n in 0..10_000 {
        ask(&mut policy, &format!("tenant-{n}"), 1, 0);
    }
    assert!(policy.save().len() < 4200 * 40);
    // Forgetting the emptiest bucket would be a way to get a new one.
    assert!(!is_accepted(&ask(&mut policy, "spender", 1000, 0)));
}

#[test]
fn buckets_outlive_an_instance() {
    let mut before = policy(RATES);
    ask(&mut before, "t", 1000, 0);
    let mut after = policy(RATES);
    after.init(Some(&before.save())).unwrap();
    assert!(!is_accepted(&ask(&mut after, "t", 1000, 0)));
}
