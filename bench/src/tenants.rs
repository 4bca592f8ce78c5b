//! Tenants: who asks, where a workload spreads its requests over several callers.
//!
//! Who asks depends on the run's seed and the prompt's number alone, so that every server is asked the same.

use std::collections::BTreeMap;

use rand::SeedableRng as _;
use rand::distr::Distribution as _;
use rand::distr::weighted::WeightedIndex;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use crate::http::header;

/// One of the tables `[[tenants]]` of a workload.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// Name in tables, and in a trace's column `tenant`.
    pub name: String,
    /// How often it asks, next to the others' weights.
    #[serde(default = "one")]
    pub weight: f64,
    /// Its bearer token; the server's own otherwise.
    pub api_key: Option<String>,
    /// Headers of its requests.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

fn one() -> f64 {
    1.0
}

/// All tenants of a workload; at least one.
#[derive(Debug, Clone, PartialEq)]
pub struct Tenants {
    all: Vec<Tenant>,
    weights: WeightedIndex<f64>,
}

impl Tenants {
    /// Checks names and weights.
    ///
    /// # Errors
    /// The key at fault, and what is wrong with it.
    pub fn new(all: Vec<Tenant>) -> Result<Self, (&'static str, String)> {
        for (idx, tenant) in all.iter().enumerate() {
            if tenant.name.is_empty() || all[..idx].iter().any(|other| other.name == tenant.name) {
                return Err(("name", format!("{:?} is empty or given twice", tenant.name)));
            }
        }
        let headers = all.iter().flat_map(|tenant| &tenant.headers);
        for (name, value) in headers {
            header(name, value).map_err(|reason| ("headers", reason))?;
        }
        let weights = WeightedIndex::new(all.iter().map(|tenant| tenant.weight))
            .map_err(|error| ("weight", format!("the tenants' weights: {error}")))?;
        Ok(Self { all, weights })
    }

    /// The tenant that sends a prompt.
    pub fn of(&self, seed: u64, prompt_idx: u64) -> &Tenant {
        // A stream of its own: the prompts' other choices stay what they are.
        let mut random = ChaCha8Rng::seed_from_u64(seed.rotate_left(43));
        random.set_stream(prompt_idx);
        &self.all[self.weights.sample(&mut random)]
    }

    /// The tenant of a name.
    pub fn named(&self, name: &str) -> Option<&Tenant> {
        self.all.iter().find(|tenant| tenant.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str, weight: f64) -> Tenant {
        Tenant { name: name.to_owned(), weight, api_key: None, headers: BTreeMap::new() }
    }

    #[test]
    fn tenants_ask_as_often_as_their_weights_say() {
        let tenants = Tenants::new(vec![tenant("a", 3.0), tenant("b", 1.0)]).unwrap();
        let of_a = (0..10_000).filter(|idx| tenants.of(5, *idx).name == "a").count();
        assert!((7_300..7_700).contains(&of_a), "{of_a}");
        assert_eq!(tenants.of(5, 77), tenants.of(5, 77));
        assert_eq!(tenants.named("b"), Some(&tenant("b", 1.0)));
        assert_eq!(tenants.named("c"), None);
    }

    #[test]
    fn mistakes_name_their_key() {
        let key_of = |all: Vec<Tenant>| Tenants::new(all).unwrap_err().0;
        assert_eq!(key_of(vec![tenant("a", 1.0), tenant("a", 1.0)]), "name");
        assert_eq!(key_of(vec![tenant("", 1.0)]), "name");
        assert_eq!(key_of(vec![tenant("a", 0.0)]), "weight");
        assert_eq!(key_of(vec![tenant("a", -1.0)]), "weight");
        assert_eq!(key_of(vec![]), "weight");
        let headers = BTreeMap::from([("X Tenant".to_owned(), "a".to_owned())]);
        assert_eq!(key_of(vec![Tenant { headers, ..tenant("a", 1.0) }]), "headers");
    }
}
