//! What a request must keep to count as goodput, and what share of requests must keep it.

use serde::Deserialize;

use crate::reply::Reply;

/// The table `[objective]` of a workload. At least one time is given; all that are given must be kept.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objective {
    /// Longest time to first token, in milliseconds from the intended time.
    pub ttft_ms: Option<f64>,
    /// Longest mean time between the tokens of one request, in milliseconds.
    pub tbt_ms: Option<f64>,
    /// Longest time to the end, in milliseconds from the intended time.
    pub e2e_ms: Option<f64>,
    /// Share of requests that must keep it for a rate to hold. With 0.95, a rate holds that keeps each time
    /// at its 95th percentile, all of them for the same requests.
    #[serde(default = "default_share")]
    pub share: f64,
}

fn default_share() -> f64 {
    0.95
}

impl Objective {
    /// Says which key is wrong, and why.
    pub(crate) fn validate(&self, is_streamed: bool) -> Result<(), (&'static str, String)> {
        let times = [("ttft_ms", self.ttft_ms), ("tbt_ms", self.tbt_ms), ("e2e_ms", self.e2e_ms)];
        if times.iter().all(|(_, ms)| ms.is_none()) {
            return Err(("ttft_ms", "give at least one of ttft_ms, tbt_ms and e2e_ms".to_owned()));
        }
        for (key, ms) in times {
            if ms.is_some_and(|ms| !ms.is_finite() || ms <= 0.0) {
                return Err((key, "must be a number of milliseconds above 0".to_owned()));
            }
            if ms.is_some() && key != "e2e_ms" && !is_streamed {
                return Err((key, "only a streamed answer shows this time; give e2e_ms".to_owned()));
            }
        }
        match self.share > 0.0 && self.share <= 1.0 {
            true => Ok(()),
            false => Err(("share", "must be above 0 and at most 1".to_owned())),
        }
    }

    /// Whether a request that ended well kept every time.
    pub fn is_kept(&self, reply: &Reply) -> bool {
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        let is_within = |limit: Option<f64>, time: Option<f64>| match (limit, time) {
            (Some(limit), Some(time)) => time <= limit,
            _ => true,
        };
        // An answer without content never had a first token; one of a single token has no time between tokens.
        let ttft = reply.time_to_first_token().map_or(f64::INFINITY, ms);
        is_within(self.ttft_ms, Some(ttft))
            && is_within(self.tbt_ms, reply.time_per_token().map(ms))
            && is_within(self.e2e_ms, Some(ms(reply.ended.duration_since(reply.intended))))
    }
}

impl std::fmt::Display for Objective {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let times =
            [("first token", self.ttft_ms), ("between tokens", self.tbt_ms), ("end to end", self.e2e_ms)];
        let told = times.iter().filter_map(|(name, ms)| ms.map(|ms| format!("{name} ≤ {ms} ms")));
        f.write_str(&told.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    fn objective(text: &str) -> Objective {
        toml::from_str(text).unwrap()
    }

    /// Three tokens after 100, 120 and 140 ms, the end after 150.
    fn reply() -> Reply {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut reply = Reply::new(start);
        (reply.deltas, reply.ended) = (vec![at(100), at(120), at(140)], at(150));
        reply
    }

    #[test]
    fn every_time_that_is_given_must_be_kept() {
        for good in ["ttft_ms = 100", "tbt_ms = 20", "e2e_ms = 150", "ttft_ms = 101\ntbt_ms = 21"] {
            assert!(objective(good).is_kept(&reply()), "{good}");
        }
        for bad in ["ttft_ms = 99", "tbt_ms = 19", "e2e_ms = 149", "ttft_ms = 500\ne2e_ms = 149"] {
            assert!(!objective(bad).is_kept(&reply()), "{bad}");
        }
    }

    #[test]
    fn an_answer_without_content_kept_no_time_to_first_token() {
        let mut empty = reply();
        empty.deltas.clear();
        assert!(!objective("ttft_ms = 1e9").is_kept(&empty));
        assert!(objective("tbt_ms = 1").is_kept(&empty));
    }

    #[test]
    fn mistakes_name_their_key() {
        let key_of = |text: &str, is_streamed| objective(text).validate(is_streamed).map_err(|(key, _)| key);
        assert_eq!(key_of("share = 0.9", true), Err("ttft_ms"));
        assert_eq!(key_of("tbt_ms = -1", true), Err("tbt_ms"));
        assert_eq!(key_of("tbt_ms = 1", false), Err("tbt_ms"));
        assert_eq!(key_of("e2e_ms = 1", false), Ok(()));
        assert_eq!(key_of("e2e_ms = 1\nshare = 0.0", true), Err("share"));
    }
}
