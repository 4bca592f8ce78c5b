//! What a worker has cached, as far as can be known from what it was sent.
//!
//! The prefix cache is the step thread's own, so that the way in keeps a view of
//! it: the blocks of the prompts that went to a worker, each block hashed with
//! all tokens before it and the adapter, so that equal hashes mean equal
//! prefixes. The view is an approximation. It forgets the oldest blocks at about
//! the number of tokens that the worker has room for, while the worker may have
//! thrown some away before, and it knows nothing of answers. Being wrong costs a
//! prefill, never an answer. Routers in front of whole servers keep the same
//! kind of view (the cache-aware ones of SGLang and vLLM: a tree of prompts for
//! each server, made of what was sent there).

use std::collections::HashSet;

use quern_engine::{AdapterId, TokenId};

/// Tokens in a block: what is shared is known to this many tokens.
pub(super) const BLOCK_TOKENS: usize = 16;

/// Blocks of a prompt that are looked at; a longer one is known by its beginning.
const MAX_BLOCKS: usize = 1024;

/// The hash of each whole block of a prompt, with all before it.
pub(super) fn blocks(adapter: AdapterId, prompt: &[TokenId]) -> Vec<u64> {
    let mut hash = mix(u64::from(adapter.0).wrapping_add(0x517c_c1b7_2722_0a95));
    let blocks = prompt.chunks_exact(BLOCK_TOKENS).take(MAX_BLOCKS);
    let hashes = blocks.map(|block| {
        hash = block.iter().fold(hash, |hash, &token| mix(hash ^ u64::from(token)));
        hash
    });
    hashes.collect()
}

fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word ^ (word >> 29)
}

/// The view of one worker. Half of it is forgotten at a time: what is used again
/// moves to the young half, and when that is full it becomes the old one.
#[derive(Debug)]
pub(super) struct Prefixes {
    young: HashSet<u64>,
    old: HashSet<u64>,
    /// Blocks in a half.
    max_half: usize,
}

impl Prefixes {
    /// An empty view of a worker with room for so many tokens.
    pub(super) fn new(kv_capacity: usize) -> Prefixes {
        let max_half = (kv_capacity / BLOCK_TOKENS / 2).max(1);
        Prefixes { young: HashSet::new(), old: HashSet::new(), max_half }
    }

    /// Tokens at a prompt's beginning that the worker should have.
    pub(super) fn cached_tokens(&self, blocks: &[u64]) -> usize {
        let known = |block: &&u64| self.young.contains(block) || self.old.contains(block);
        blocks.iter().take_while(known).count() * BLOCK_TOKENS
    }

    /// The worker was sent a prompt with these blocks.
    pub(super) fn note(&mut self, blocks: &[u64]) {
        for &block in blocks {
            if self.young.len() == self.max_half {
                self.old = std::mem::take(&mut self.young);
            }
            self.young.insert(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_common_beginning_counts_in_whole_blocks() {
        let prompt: Vec<u32> = (0..100).collect();
        let mut prefixes = Prefixes::new(4096);
        prefixes.note(&blocks(AdapterId::BASE, &prompt));
        let cached = |adapter, prompt: &[u32]| prefixes.cached_tokens(&blocks(adapter, prompt));
        assert_eq!(cached(AdapterId::BASE, &prompt), 96);
        assert_eq!(cached(AdapterId::BASE, &prompt[..50]), 48);
        let mut other = prompt.clone();
        other[40] = 7;
        assert_eq!(cached(AdapterId::BASE, &other), 32);
        assert_eq!(cached(AdapterId(1), &prompt), 0, "an adapter's state is its own");
        assert_eq!(cached(AdapterId::BASE, &prompt[1..]), 0, "a prefix begins at the beginning");
    }

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let mut prefixes = Prefixes::new(64 * BLOCK_TOKENS);
        let prompt = |number: u32| -> Vec<u64> {
            let tokens: Vec<u32> = (0..4 * BLOCK_TOKENS as u32).map(|token| token + number * 1000).collect();
            blocks(AdapterId::BASE, &tokens)
        };
        for number in 1..1000 {
            prefixes.note(&prompt(0));
            prefixes.note(&prompt(number));
            assert!(prefixes.young.len() + prefixes.old.len() <= 64);
            assert_eq!(prefixes.cached_tokens(&prompt(0)), 4 * BLOCK_TOKENS);
        }
        assert_eq!(prefixes.cached_tokens(&prompt(1)), 0, "long ago");
    }
}
