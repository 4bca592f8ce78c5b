//! Making room: which cached tail goes first, the least recently used; what live
//! slots go through is never touched. Whether a tail that goes is kept elsewhere is
//! for the caller to say.

use quern_engine::{AdapterId, SeqId, TokenId};

use super::{KvOp, Node, NodeIx, PrefixCache, Slot};

/// The end of a cached slot, which nobody else shares or ever did.
#[derive(Debug)]
pub(crate) struct Tail {
    leaf: NodeIx,
    /// Whose end it is.
    pub(crate) slot: SeqId,
    /// What all of the slot's state was computed with.
    pub(crate) adapter: AdapterId,
    /// All tokens of the slot.
    pub(crate) tokens: Vec<TokenId>,
    /// How many of them, at the end, are the tail.
    pub(crate) len: usize,
}

impl PrefixCache {
    /// Frees `wanted` tokens by cutting cached tails, least recently used
    /// first. Whether that much is free in the end.
    pub fn make_room(&mut self, wanted: usize, ops: &mut Vec<KvOp>) -> bool {
        while self.capacity - self.used < wanted {
            let missing = wanted - (self.capacity - self.used);
            let Some(leaf) = self.oldest_cached_leaf() else { return false };
            self.cut_leaf(leaf, missing, ops);
        }
        true
    }

    /// Cuts cached tails, least recently used first, until at most `max` tokens
    /// are held by nobody who runs.
    pub fn keep_cached(&mut self, max: usize, ops: &mut Vec<KvOp>) {
        while let excess @ 1.. = (self.used() - self.live()).saturating_sub(max) {
            let Some(leaf) = self.oldest_cached_leaf() else { return };
            self.cut_leaf(leaf, excess, ops);
        }
    }

    /// Forgets every cached slot.
    pub fn clear_cached(&mut self, ops: &mut Vec<KvOp>) {
        for slot in 0..self.slots.len() as SeqId {
            if self.slots[slot as usize].is_some_and(|s| !s.live) {
                self.close(slot, ops);
            }
        }
    }

    /// The least recently used tail, while more than `max` tokens are kept in such that
    /// nobody shared.
    pub(crate) fn excess_tail(&self, max: usize) -> Option<Tail> {
        // All that is cached is a bound, and known: on most steps there is nothing to look for.
        if self.used - self.live <= max {
            return None;
        }
        let unshared = || self.cached_leaves().filter(|(_, slot)| !self.nodes[slot.node].shared);
        let held: usize = unshared().map(|(_, slot)| self.nodes[slot.node].tokens.len()).sum();
        if held <= max {
            return None;
        }
        let (slot, &Slot { node: leaf, .. }) =
            unshared().min_by_key(|(_, slot)| self.nodes[slot.node].last_used)?;
        let root = self.root_of(leaf);
        let (&adapter, _) = self.roots.iter().find(|&(_, &other)| other == root)?;
        Some(Tail { leaf, slot, adapter, tokens: self.path(leaf), len: self.nodes[leaf].tokens.len() })
    }

    /// Forgets a tail that was just found.
    pub(crate) fn cut_tail(&mut self, tail: &Tail, ops: &mut Vec<KvOp>) {
        self.cut_leaf(tail.leaf, tail.len, ops);
    }

    /// Leaves a tail that was just found where it is, as if it were shared.
    pub(crate) fn spare_tail(&mut self, tail: &Tail) {
        self.mark_shared(tail.leaf);
    }

    /// The tokens from the root to the end of a node.
    fn path(&self, mut node: NodeIx) -> Vec<TokenId> {
        let mut runs = Vec::new();
        while self.nodes[node].parent != node {
            runs.push(self.nodes[node].tokens.as_slice());
            node = self.nodes[node].parent;
        }
        runs.reverse();
        runs.concat()
    }

    /// The adapters that there is, or was, state of.
    pub fn adapters(&self) -> impl Iterator<Item = AdapterId> {
        self.roots.keys().copied()
    }

    /// Forgets all cached state of an adapter. Whether nothing of it is left: live
    /// slots stay.
    pub fn forget_adapter(&mut self, adapter: AdapterId, ops: &mut Vec<KvOp>) -> bool {
        let Some(&root) = self.roots.get(&adapter) else { return true };
        for slot in 0..self.slots.len() as SeqId {
            let is_cached = self.slots[slot as usize].filter(|s| !s.live);
            if is_cached.is_some_and(|s| self.root_of(s.node) == root) {
                self.close(slot, ops);
            }
        }
        let is_empty = self.nodes[root].num_slots == 0;
        if is_empty {
            self.roots.remove(&adapter);
            self.nodes[root] = Node::default();
            self.unused_nodes.push(root);
        }
        is_empty
    }

    fn root_of(&self, mut node: NodeIx) -> NodeIx {
        while self.nodes[node].parent != node {
            node = self.nodes[node].parent;
        }
        node
    }

    fn oldest_cached_leaf(&self) -> Option<NodeIx> {
        self.cached_leaves().map(|(_, slot)| slot.node).min_by_key(|&node| self.nodes[node].last_used)
    }

    /// Slots that end where no live one goes through and nothing goes on.
    fn cached_leaves(&self) -> impl Iterator<Item = (SeqId, &Slot)> {
        let slots =
            self.slots.iter().enumerate().filter_map(|(ix, slot)| Some((ix as SeqId, slot.as_ref()?)));
        slots.filter(|(_, slot)| {
            let at = &self.nodes[slot.node];
            !slot.live && at.num_live == 0 && at.children.is_empty() && at.parent != slot.node
        })
    }

    /// Takes up to `wanted` tokens off the end of a leaf without live slots.
    fn cut_leaf(&mut self, leaf: NodeIx, wanted: usize, ops: &mut Vec<KvOp>) {
        let node = &mut self.nodes[leaf];
        let parent = node.parent;
        let cut = wanted.min(node.tokens.len());
        let kept = node.tokens.len() - cut;
        if kept > 0 {
            node.tokens.truncate(kept);
            self.used -= cut;
            for slot in self.nodes[leaf].ends.clone() {
                self.slot_mut(slot).len -= cut as u32;
                ops.push(KvOp::Truncate { seq: slot, len: self.slot(slot).len });
            }
            return;
        }
        let parent_is_root = self.nodes[parent].parent == parent;
        let slots = std::mem::take(&mut self.nodes[leaf].ends);
        for slot in slots {
            self.nodes[leaf].num_slots -= 1;
            let len = {
                let state = self.slot_mut(slot);
                state.node = parent;
                state.len -= cut as u32;
                state.len
            };
            self.nodes[parent].ends.push(slot);
            ops.push(KvOp::Truncate { seq: slot, len });
        }
        self.prune(leaf);
        if parent_is_root {
            for slot in self.nodes[parent].ends.clone() {
                if !self.slot(slot).live {
                    self.close(slot, ops);
                }
            }
        } else {
            self.drop_redundant(parent, ops);
        }
    }
}
