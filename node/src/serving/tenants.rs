//! Names of tenants, interned: the scheduler and its policies compare numbers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use quern_scheduler::request::NameIx;

/// Names beyond this share one number: clients choose them, and memory is not
/// theirs to take.
const MAX_NAMES: usize = 65_536;

/// Bytes of a name that tell it from others.
const MAX_NAME_BYTES: usize = 128;

/// Gives each name a number from 1; 0 is "none".
#[derive(Debug, Default)]
pub struct Tenants {
    names: Mutex<Names>,
}

#[derive(Debug, Default)]
struct Names {
    numbers: HashMap<Arc<str>, NameIx>,
    /// Name `n` has number `n + 1`.
    names: Vec<Arc<str>>,
}

impl Tenants {
    /// The number of a name, the same each time.
    #[must_use]
    pub fn intern(&self, name: &str) -> NameIx {
        if name.is_empty() {
            return 0;
        }
        let name = cut(name);
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&number) = names.numbers.get(name) {
            return number;
        }
        let number = NameIx::try_from(names.names.len() + 1).unwrap_or(NameIx::MAX);
        if names.names.len() < MAX_NAMES {
            let name: Arc<str> = name.into();
            names.numbers.insert(Arc::clone(&name), number);
            names.names.push(name);
        }
        number
    }

    /// The name of a number; `None` for "none", and for all that share the last one.
    #[must_use]
    pub fn name(&self, number: NameIx) -> Option<Arc<str>> {
        let idx = (number as usize).checked_sub(1)?;
        self.names.lock().unwrap_or_else(PoisonError::into_inner).names.get(idx).cloned()
    }
}

/// The name's beginning, cut between two characters.
fn cut(name: &str) -> &str {
    let ends = name.char_indices().map(|(at, c)| at + c.len_utf8());
    let end = ends.take_while(|&end| end <= MAX_NAME_BYTES).last();
    &name[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_numbered_once_and_bounded() {
        let tenants = Tenants::default();
        assert_eq!(tenants.intern(""), 0);
        let alice = tenants.intern("alice");
        assert_ne!(alice, 0);
        assert_ne!(tenants.intern("bob"), alice);
        assert_eq!(tenants.intern("alice"), alice);
        assert_eq!(tenants.name(alice).as_deref(), Some("alice"));
        assert_eq!((tenants.name(0), tenants.name(99)), (None, None));
        for idx in 0..MAX_NAMES {
            let _ = tenants.intern(&format!("tenant {idx}"));
        }
        assert_eq!(tenants.intern("late"), tenants.intern("later"), "beyond the bound all are one");
        let long = "é".repeat(MAX_NAME_BYTES);
        assert_eq!(tenants.intern(&long), tenants.intern(&format!("{long}é")));
    }
}
