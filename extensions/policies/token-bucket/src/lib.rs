//! A bucket of tokens for each tenant.
//!
//! A request costs its prompt's tokens and the new ones that it may ask for. Each
//! tenant's bucket fills at `tokens-per-s` up to `burst-tokens`; a request that
//! finds too little is refused with the time after which it would find enough. One
//! that costs more than a full bucket takes all of a full one, so that long
//! requests are rare but not impossible. `tenant.NAME.tokens-per-s` and
//! `tenant.NAME.burst-tokens` set one tenant apart; a rate of 0 shuts it out.
#![deny(missing_docs)]

use std::collections::BTreeMap;

use quern_policy_sdk::prelude::*;
use quern_policy_sdk::wire::{Reader, Writer};

/// What `save` writes: this policy's first format.
const FORMAT: u32 = 0x7462_6b01;

/// Tenants whose buckets are kept; the fullest are forgotten, for a new bucket is
/// full.
const MAX_BUCKETS: usize = 4096;

/// A bucket counts millionths of a token, so that slow rates add up too.
const MICRO: u64 = 1_000_000;

/// How fast a bucket fills, and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rate {
    tokens_per_s: u64,
    burst_tokens: u64,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// In millionths of a token.
    level: u64,
    filled_us: u64,
    rate: Rate,
}

/// See the module's text.
#[derive(Debug)]
pub struct TokenBucket {
    rate: Rate,
    buckets: BTreeMap<String, Bucket>,
    refused: metrics::Counter,
}

impl Default for TokenBucket {
    fn default() -> Self {
        let rate = Rate { tokens_per_s: 1000, burst_tokens: 20_000 };
        TokenBucket { rate, buckets: BTreeMap::new(), refused: metrics::Counter::default() }
    }
}

impl Policy for TokenBucket {
    fn init(&mut self, saved: Option<&[u8]>) -> Result<(), String> {
        self.rate = read_rate("", self.rate)?;
        self.refused = metrics::Counter::define("token_bucket_refused_total")?;
        if let Some(saved) = saved {
            self.restore(saved);
        }
        Ok(())
    }

    fn save(&self) -> Vec<u8> {
        let mut saved = Writer::new(FORMAT);
        for (tenant, bucket) in &self.buckets {
            saved.name(tenant);
            saved.number(bucket.level);
            saved.number(bucket.filled_us);
        }
        saved.done()
    }
}

fn read_rate(prefix: &str, default: Rate) -> Result<Rate, String> {
    let mut settings = Settings::default();
    let rate = Rate {
        tokens_per_s: settings.number(
            &format!("{prefix}tokens-per-s"),
            default.tokens_per_s,
            0..=1_000_000_000,
        ),
        burst_tokens: settings.number(
            &format!("{prefix}burst-tokens"),
            default.burst_tokens,
            1..=1_000_000_000,
        ),
    };
    settings.done()?;
    Ok(rate)
}

impl AdmissionPolicy for TokenBucket {
    fn decide(&mut self, request: &Request, load: &NodeLoad) -> Answer<Decision> {
        let bucket = self.bucket(&request.tenant, load.now_us)?;
        let tokens = u64::from(request.prompt_tokens) + u64::from(request.max_new);
        let decision = match bucket.take(tokens) {
            Ok(()) => Decision::Accept(Grant::unchanged(request)),
            Err(retry_after_ms) => {
                self.refused.add(1.0);
                Decision::Reject(refusal(retry_after_ms, tokens))
            }
        };
        Ok(Some(decision))
    }
}

fn refusal(retry_after_ms: Option<u32>, tokens: u64) -> Refusal {
    let message = match retry_after_ms {
        Some(ms) => {
            let seconds = ms.div_ceil(1000);
            format!("this request may take {tokens} tokens; your quota allows that in {seconds} s")
        }
        None => "your quota allows no requests".into(),
    };
    Refusal { reason: Reason::Quota, retry_after_ms, message }
}

impl TokenBucket {
    /// A tenant's bucket, filled up to now.
    fn bucket(&mut self, tenant: &str, now_us: u64) -> Result<&mut Bucket, String> {
        if !self.buckets.contains_key(tenant) {
            let rate = read_rate(&format!("tenant.{tenant}."), self.rate)?;
            if self.buckets.len() >= MAX_BUCKETS {
                self.forget_fullest(now_us);
            }
            let level = rate.burst_tokens * MICRO;
            self.buckets.insert(tenant.into(), Bucket { level, filled_us: now_us, rate });
        }
        let bucket = self.buckets.get_mut(tenant).expect("it was there or was just put there");
        bucket.fill(now_us);
        Ok(bucket)
    }

    /// Forgets all that are full by now, or else the fullest one.
    fn forget_fullest(&mut self, now_us: u64) {
        let missing = |bucket: &Bucket| {
            let mut bucket = *bucket;
            bucket.fill(now_us);
            bucket.rate.burst_tokens * MICRO - bucket.level
        };
        let least = self.buckets.values().map(missing).min().unwrap_or(0);
        let fullest = self.buckets.iter().find(|(_, bucket)| missing(bucket) == least);
        let Some(fullest) = fullest.map(|(tenant, _)| tenant.clone()) else { return };
        self.buckets.remove(&fullest);
        self.buckets.retain(|_, bucket| missing(bucket) > 0);
    }

    /// Takes over what was saved, as far as it can be read.
    fn restore(&mut self, saved: &[u8]) {
        let Some(mut saved) = Reader::new(saved, FORMAT) else { return };
        while let (Some(tenant), Some(level), Some(filled_us)) =
            (saved.name(), saved.number(), saved.number())
        {
            if self.buckets.len() >= MAX_BUCKETS {
                return;
            }
            // The rate may have changed since.
            let Ok(rate) = read_rate(&format!("tenant.{tenant}."), self.rate) else { continue };
            let level = level.min(rate.burst_tokens * MICRO);
            self.buckets.insert(tenant.into(), Bucket { level, filled_us, rate });
        }
    }
}

impl Bucket {
    fn fill(&mut self, now_us: u64) {
        // A clock that went back belongs to another node process.
        let passed_us = now_us.saturating_sub(self.filled_us);
        let gained = passed_us.saturating_mul(self.rate.tokens_per_s);
        self.level = self.level.saturating_add(gained).min(self.rate.burst_tokens * MICRO);
        self.filled_us = now_us;
    }

    /// Takes tokens out, or says after how many milliseconds they would be there;
    /// none is never.
    fn take(&mut self, tokens: u64) -> Result<(), Option<u32>> {
        if self.rate.tokens_per_s == 0 {
            return Err(None);
        }
        let cost = tokens.min(self.rate.burst_tokens) * MICRO;
        if self.level >= cost {
            self.level -= cost;
            return Ok(());
        }
        let wait_ms = (cost - self.level).div_ceil(self.rate.tokens_per_s).div_ceil(1000);
        Err(Some(u32::try_from(wait_ms).unwrap_or(u32::MAX)))
    }
}

export_policy!(TokenBucket: admission);
