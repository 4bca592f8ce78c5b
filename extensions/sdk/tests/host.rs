//! The node's side as native tests see it, settings, and what is saved.

use proptest::collection::vec;
use proptest::prelude::*;
use quern_policy_sdk::prelude::*;
use quern_policy_sdk::stand_in;
use quern_policy_sdk::wire::{Reader, Writer};

#[test]
fn series_count_set_and_observe() {
    let counter = metrics::Counter::define("c_total").unwrap();
    let gauge = metrics::Gauge::define("g").unwrap();
    let histogram = metrics::Histogram::define("h_us").unwrap();
    counter.add(2.0);
    counter.add(1.0);
    gauge.set(4.0);
    gauge.set(5.0);
    histogram.observe(100.0);
    metrics::Counter::default().add(1.0);
    let values = ["c_total", "g", "h_us", "none"].map(stand_in::metric);
    assert_eq!(values, [Some(3.0), Some(5.0), Some(1.0), None]);
}

#[test]
fn messages_keep_their_level() {
    log::warn(format_args!("{} of {}", 1, 2));
    assert_eq!(stand_in::logged(), [(log::Level::Warn, "1 of 2".to_string())]);
}

#[test]
fn all_mistakes_in_settings_are_told_together() {
    stand_in::set_config("a", "11");
    stand_in::set_config("b", "perhaps");
    stand_in::set_config("c", " 7 ");
    let mut settings = Settings::default();
    assert_eq!(settings.number("a", 3u32, 1..=10), 3);
    assert!(!settings.flag("b", false));
    assert_eq!(settings.number("c", 3u32, 1..=10), 7);
    let mistakes = settings.done().unwrap_err();
    assert!(mistakes.contains("a: '11'") && mistakes.contains("b: 'perhaps'"), "{mistakes}");
}

#[test]
fn the_store_has_limits() {
    assert_eq!(kv::set("k", b"v"), Ok(()));
    assert_eq!(kv::get("k").as_deref(), Some(&b"v"[..]));
    assert_eq!(kv::set("k", &vec![0; 1 << 20]), Err(kv::KvError::TooLarge));
    kv::delete("k");
    assert_eq!(kv::get("k"), None);
    let fits = (0..100).take_while(|n| kv::set(&n.to_string(), &[0; 60_000]).is_ok()).count();
    assert_eq!(fits, 17);
}

proptest! {
    #[test]
    fn what_was_written_is_read(numbers in vec(any::<u64>(), 0..8), name in ".{0,20}") {
        let mut writer = Writer::new(7);
        writer.name(&name);
        numbers.iter().for_each(|&number| writer.number(number));
        let bytes = writer.done();
        let mut reader = Reader::new(&bytes, 7).unwrap();
        prop_assert_eq!(reader.name(), Some(name.as_str()));
        for number in numbers {
            prop_assert_eq!(reader.number(), Some(number));
        }
        prop_assert!(reader.is_done());
        prop_assert!(Reader::new(&bytes, 8).is_none());
    }

    #[test]
    fn garbage_is_read_without_harm(bytes in vec(any::<u8>(), 0..64)) {
        if let Some(mut reader) = Reader::new(&bytes, 0) {
            while reader.name().is_some() {}
            reader.number();
        }
    }
}
