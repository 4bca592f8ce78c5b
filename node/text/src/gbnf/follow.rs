//! Which lexemes may follow each other, and which may stand in each other's
//! place: the classical FIRST and FOLLOW sets.

use super::lexemes::{Grammar, Part};
use std::collections::{BTreeMap, HashSet};

/// A set of lexeme numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    fn insert(&mut self, idx: usize) {
        if self.0.len() <= idx / 64 {
            self.0.resize(idx / 64 + 1, 0);
        }
        self.0[idx / 64] |= 1 << (idx % 64);
    }

    /// Adds all of `other`; whether anything was new.
    fn add(&mut self, other: &Bits) -> bool {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        let mut changed = false;
        for (word, more) in self.0.iter_mut().zip(&other.0) {
            changed |= *more & !*word != 0;
            *word |= more;
        }
        changed
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        let words = self.0.iter().enumerate();
        words.flat_map(|(at, word)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| at * 64 + bit)
        })
    }
}

/// For every lexeme.
#[derive(Debug)]
pub(super) struct Follow {
    /// The lexemes that may come next after it.
    pub(super) after: Vec<Bits>,
    /// The lexemes that may come where it may, itself included.
    pub(super) beside: Vec<Bits>,
}

pub(super) fn compute(grammar: &Grammar) -> Follow {
    let mut sets = Sets {
        firsts: grammar.rules.keys().map(|number| (*number, (false, Bits::default()))).collect(),
        follows: BTreeMap::new(),
        after: vec![Bits::default(); grammar.lexemes.len()],
        changed: true,
    };
    while std::mem::take(&mut sets.changed) {
        for (number, body) in &grammar.rules {
            let (matches_empty, first) = sets.first(body);
            let known = sets.firsts.get_mut(number).expect("every rule has an entry");
            sets.changed |= known.0 != matches_empty || known.1.add(&first);
            known.0 = matches_empty;
        }
    }
    sets.changed = true;
    while std::mem::take(&mut sets.changed) {
        sets.visit(&grammar.start, &Bits::default());
        for (number, body) in &grammar.rules {
            let follow = sets.follows.get(number).cloned().unwrap_or_default();
            sets.visit(body, &follow);
        }
    }
    let places: HashSet<Bits> = sets.after.iter().cloned().chain([sets.first(&grammar.start).1]).collect();
    let mut beside = vec![Bits::default(); grammar.lexemes.len()];
    for place in &places {
        for idx in place.iter() {
            beside[idx].add(place);
        }
    }
    Follow { after: sets.after, beside }
}

struct Sets {
    /// Of every rule: whether it may be empty, and what it may begin with.
    firsts: BTreeMap<usize, (bool, Bits)>,
    follows: BTreeMap<usize, Bits>,
    after: Vec<Bits>,
    changed: bool,
}

impl Sets {
    /// Whether the part may be empty, and the lexemes that it may begin with.
    fn first(&self, part: &Part) -> (bool, Bits) {
        match part {
            Part::Lexeme(idx) => {
                let mut bits = Bits::default();
                bits.insert(*idx);
                (false, bits)
            }
            Part::Seq(items) => {
                let mut bits = Bits::default();
                for item in items {
                    let (matches_empty, first) = self.first(item);
                    bits.add(&first);
                    if !matches_empty {
                        return (false, bits);
                    }
                }
                (true, bits)
            }
            Part::Alt(items) => {
                let mut any_empty = false;
                let mut bits = Bits::default();
                for item in items {
                    let (matches_empty, first) = self.first(item);
                    any_empty |= matches_empty;
                    bits.add(&first);
                }
                (any_empty, bits)
            }
            Part::Repeat(inner, min, _) => {
                let (matches_empty, first) = self.first(inner);
                (matches_empty || *min == 0, first)
            }
            Part::Rule(number) => self.firsts[number].clone(),
        }
    }

    /// Notes what follows the lexemes and rules in `part`, given what follows it.
    fn visit(&mut self, part: &Part, follow: &Bits) {
        match part {
            Part::Lexeme(idx) => self.changed |= self.after[*idx].add(follow),
            Part::Seq(items) => {
                let mut follow = follow.clone();
                for item in items.iter().rev() {
                    self.visit(item, &follow);
                    let (matches_empty, mut first) = self.first(item);
                    if matches_empty {
                        first.add(&follow);
                    }
                    follow = first;
                }
            }
            Part::Alt(items) => items.iter().for_each(|item| self.visit(item, follow)),
            Part::Repeat(inner, _, max) => {
                let mut follow = follow.clone();
                if *max != Some(1) {
                    follow.add(&self.first(inner).1);
                }
                self.visit(inner, &follow);
            }
            Part::Rule(number) => {
                self.changed |= self.follows.entry(*number).or_default().add(follow);
            }
        }
    }
}
