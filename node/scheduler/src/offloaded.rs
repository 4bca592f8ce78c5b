//! State of finished sequences that was moved from the engine to host memory.
//!
//! A tail of the prefix cache that nobody shared yet may still be the beginning of
//! the next turn of a conversation. Where it would only lie in every row's way, it
//! is kept here instead: copied back, it costs a small part of computing it again.
//! The least recently put aside goes first. `commit.rs` brings state here when
//! sequences end, `assemble.rs` takes it back when they start. This file must not know
//! engines, slots or plans.

use std::collections::VecDeque;

use quern_engine::{AdapterId, TokenId};

use crate::prefix_cache::common_prefix;

/// Fewer tokens are computed again sooner than copied there and back.
pub(crate) const WORTH_COPYING: usize = 32;

/// State in host memory that a sequence may begin with.
pub(crate) struct Saved {
    /// As the engine gave it.
    pub(crate) state: Vec<u8>,
    /// Tokens in it.
    pub(crate) held: usize,
    /// How many of these, from the first on, are the sequence's.
    pub(crate) len: usize,
}

/// See the module's text.
#[derive(Default)]
pub(crate) struct Offloaded {
    /// Oldest first.
    states: VecDeque<State>,
    bytes: usize,
    /// Of one token, in the state that was put in last.
    bytes_per_token: usize,
}

struct State {
    adapter: AdapterId,
    tokens: Vec<TokenId>,
    bytes: Vec<u8>,
}

impl Offloaded {
    /// Bytes of all states.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the state of so many tokens takes at most `room` bytes, going by the one
    /// before; the first one is believed to.
    pub(crate) fn fits(&self, num_tokens: usize, room: usize) -> bool {
        num_tokens * self.bytes_per_token <= room
    }

    /// Takes the state of `tokens` in, in place of those of their beginnings.
    pub(crate) fn put(&mut self, adapter: AdapterId, tokens: Vec<TokenId>, bytes: Vec<u8>) {
        self.drop_where(|other| other.adapter == adapter && tokens.starts_with(&other.tokens));
        self.bytes += bytes.len();
        self.bytes_per_token = bytes.len() / tokens.len().max(1);
        self.states.push_back(State { adapter, tokens, bytes });
    }

    /// How many of the first `tokens` some state has, if that is worth a copy to one
    /// who has the first `beyond` already.
    pub(crate) fn find(&self, adapter: AdapterId, tokens: &[TokenId], beyond: usize) -> Option<usize> {
        self.longest(adapter, tokens, beyond).map(|(_, len)| len)
    }

    /// Gives away the state that [`Offloaded::find`] tells of.
    pub(crate) fn take(&mut self, adapter: AdapterId, tokens: &[TokenId], beyond: usize) -> Option<Saved> {
        let (ix, len) = self.longest(adapter, tokens, beyond)?;
        let State { tokens, bytes, .. } = self.states.remove(ix)?;
        self.bytes -= bytes.len();
        Some(Saved { state: bytes, held: tokens.len(), len })
    }

    fn longest(&self, adapter: AdapterId, tokens: &[TokenId], beyond: usize) -> Option<(usize, usize)> {
        let least = beyond + WORTH_COPYING;
        if tokens.len() < least {
            return None;
        }
        let states = self.states.iter().enumerate().filter(|(_, state)| state.adapter == adapter);
        let lens = states.map(|(ix, state)| (ix, common_prefix(&state.tokens, tokens)));
        lens.max_by_key(|&(_, len)| len).filter(|&(_, len)| len >= least)
    }

    /// Forgets the oldest until all take at most `max` bytes.
    pub(crate) fn shrink(&mut self, max: usize) {
        while self.bytes > max {
            let Some(oldest) = self.states.pop_front() else { return };
            self.bytes -= oldest.bytes.len();
        }
    }

    /// Forgets the states of adapters that are not there any more.
    pub(crate) fn keep_adapters(&mut self, is_offered: impl Fn(AdapterId) -> bool) {
        self.drop_where(|state| !is_offered(state.adapter));
    }

    fn drop_where(&mut self, is_dropped: impl Fn(&State) -> bool) {
        self.states.retain(|state| !is_dropped(state));
        self.bytes = self.states.iter().map(|state| state.bytes.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(from: u32, len: u32) -> Vec<TokenId> {
        (from..from + len).collect()
    }

    #[test]
    fn the_longest_beginning_is_given_away_once() {
        let (adapter, mut states) = (AdapterId(1), Offloaded::default());
        states.put(adapter, [tokens(0, 40), tokens(800, 5)].concat(), vec![0; 45]);
        states.put(adapter, [tokens(0, 50), tokens(900, 50)].concat(), vec![0; 100]);
        assert_eq!(states.bytes(), 145, "neither is the beginning of the other");
        let wanted = tokens(0, 80);
        assert_eq!(states.find(adapter, &wanted, 0), Some(50));
        assert_eq!(states.find(adapter, &wanted, 20), None, "30 more tokens are not worth a copy");
        assert_eq!(states.find(AdapterId::BASE, &wanted, 0), None);
        let saved = states.take(adapter, &wanted, 0).unwrap();
        assert_eq!((saved.held, saved.len, saved.state.len()), (100, 50, 100));
        assert_eq!(states.find(adapter, &wanted, 0), Some(40));
        assert_eq!(states.bytes(), 45);
    }

    #[test]
    fn a_longer_state_takes_the_place_of_its_beginning() {
        let mut states = Offloaded::default();
        states.put(AdapterId(1), tokens(0, 40), vec![0; 40]);
        states.put(AdapterId(2), tokens(0, 60), vec![0; 60]);
        states.put(AdapterId(1), tokens(0, 50), vec![0; 50]);
        assert_eq!(states.bytes(), 110);
        states.keep_adapters(|id| id == AdapterId(1));
        assert_eq!(states.bytes(), 50);
    }

    #[test]
    fn the_oldest_make_room() {
        let mut states = Offloaded::default();
        for from in [0, 1000, 2000] {
            states.put(AdapterId::BASE, tokens(from, 40), vec![0; 40]);
        }
        assert!(states.fits(85, 85) && !states.fits(86, 85));
        states.shrink(85);
        assert_eq!(states.bytes(), 80);
        assert_eq!(states.find(AdapterId::BASE, &tokens(0, 40), 0), None);
        assert_eq!(states.find(AdapterId::BASE, &tokens(2000, 40), 0), Some(40));
        states.shrink(0);
        assert_eq!(states.bytes(), 0);
    }
}
