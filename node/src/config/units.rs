//! Durations and sizes as people write them: `250ms`, `8MiB`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A span of time: a whole number with `us`, `ms`, `s`, `m` or `h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A number of bytes: a whole number, alone or with `KiB`, `MiB` or `GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub usize);

const SPAN_UNITS: [(&str, u64); 5] =
    [("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)];
const BYTE_UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("", 1)];

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Span, String> {
        let what = "a duration such as 250ms, 30s, 5m or 1h";
        parse(text, &SPAN_UNITS, what).map(|us| Span(Duration::from_micros(us)))
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Bytes, String> {
        let what = "a size such as 65536, 64KiB, 8MiB or 1GiB";
        let bytes = parse(text, &BYTE_UNITS, what)?;
        usize::try_from(bytes).map(Bytes).map_err(|_| format!("{text} is too large"))
    }
}

/// A whole number times its unit.
fn parse(text: &str, units: &[(&str, u64)], what: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not {what}");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(wrong)?;
    number.checked_mul(*factor).ok_or_else(wrong)
}

/// In the largest unit that leaves a whole number.
fn show(f: &mut fmt::Formatter<'_>, number: u64, units: &[(&str, u64)]) -> fmt::Result {
    let fits = |factor: u64| number.is_multiple_of(factor) && (number > 0 || factor == 1);
    match units.iter().find(|(_, factor)| fits(*factor)) {
        Some((unit, factor)) => write!(f, "{}{unit}", number / factor),
        None => write!(f, "{number}"),
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() {
            return f.write_str("0ms");
        }
        show(f, u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX), &SPAN_UNITS)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.0 as u64, &BYTE_UNITS)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        // A bare number would have to guess its unit.
        deserializer.deserialize_str(Reader { what: "a duration such as 250ms, 30s, 5m or 1h", number: None })
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let number: fn(u64) -> Option<Bytes> = |bytes| usize::try_from(bytes).ok().map(Bytes);
        let what = "a size such as 65536, 64KiB, 8MiB or 1GiB";
        deserializer.deserialize_any(Reader { what, number: Some(number) })
    }
}

struct Reader<T> {
    what: &'static str,
    number: Option<fn(u64) -> Option<T>>,
}

impl<T: FromStr<Err = String>> Visitor<'_> for Reader<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        let value = u64::try_from(number).ok().zip(self.number).and_then(|(number, make)| make(number));
        value.ok_or_else(|| E::invalid_value(de::Unexpected::Signed(number), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read_alike() {
        for (text, ms) in
            [("0ms", 0), ("250ms", 250), ("30s", 30_000), ("90s", 90_000), ("5m", 300_000), ("1h", 3_600_000)]
        {
            assert_eq!(text.parse::<Span>(), Ok(Span(Duration::from_millis(ms))));
            assert_eq!(Span(Duration::from_millis(ms)).to_string(), text);
        }
        assert_eq!("500us".parse::<Span>(), Ok(Span(Duration::from_micros(500))));
        assert_eq!(Span(Duration::from_micros(1500)).to_string(), "1500us");
        for (text, bytes) in [("0", 0), ("100", 100), ("64KiB", 65_536), ("8MiB", 8 << 20), ("3GiB", 3 << 30)]
        {
            assert_eq!(text.parse::<Bytes>(), Ok(Bytes(bytes)));
            assert_eq!(Bytes(bytes).to_string(), text);
        }
        assert_eq!("8 MiB".parse::<Bytes>(), Ok(Bytes(8 << 20)));
    }

    #[test]
    fn what_has_no_unit_or_no_sense_is_refused() {
        for text in
            ["", "30", "s", "-1s", "1.5s", "30 days", "99999999999999999999s", "18446744073709551615h"]
        {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        for text in ["", "MiB", "8MB", "-1", "18446744073709551615GiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }
}
