//! Making room: which cached tail is wanted least. What live slots go through is never
//! touched.
//!
//! Ends of prompts are rarely asked for again, their beginnings often: of what was
//! never reused the least recently used goes first, and what was reused only where it
//! takes more than its share. That is segmented LRU (Karedla, Love and Wherry, 1994,
//! "Caching Strategies to Improve Disk System Performance") on a tree's leaves.

use quern_engine::{AdapterId, SeqId};

use super::{KvOp, Node, NodeIx, PrefixCache};

/// What reused beginnings may take of all that is cached, in quarters. The rest lets new
/// ones live long enough to be reused.
const REUSED_QUARTERS: usize = 3;

impl PrefixCache {
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

    /// A request goes on from `node`: whatever nobody else is at work on was reused.
    pub(super) fn note_reuse(&mut self, mut node: NodeIx) {
        while self.nodes[node].parent != node {
            self.nodes[node].is_reused |= self.nodes[node].num_live == 0;
            node = self.nodes[node].parent;
        }
    }

    pub(super) fn least_wanted_leaf(&self) -> Option<NodeIx> {
        let leaves = self.slots.iter().flatten().filter(|slot| !slot.live).map(|slot| slot.node);
        let evictable = leaves.filter(|&node| {
            let at = &self.nodes[node];
            at.num_live == 0 && at.children.is_empty() && at.parent != node
        });
        let idle = self.nodes.iter().filter(|node| node.is_reused && node.num_live == 0);
        let reused: usize = idle.map(|node| node.tokens.len()).sum();
        let over = reused * 4 > (self.used - self.live) * REUSED_QUARTERS;
        evictable.min_by_key(|&node| (self.nodes[node].is_reused != over, self.nodes[node].last_used))
    }

    /// Of these cached slots the one whose end loses least.
    pub(super) fn least_wanted_slot(&self, slots: impl Iterator<Item = SeqId>) -> Option<SeqId> {
        let slots: Vec<(SeqId, bool)> = slots.map(|slot| (slot, self.alone_holds_reused(slot))).collect();
        let reused = slots.iter().filter(|(_, holds)| *holds).count();
        let over = reused * 4 > slots.len() * REUSED_QUARTERS;
        let age = |slot: SeqId| self.nodes[self.slot(slot).node].last_used;
        slots.into_iter().min_by_key(|&(slot, holds)| (holds != over, age(slot))).map(|(slot, _)| slot)
    }

    /// Whether a reused beginning goes with this slot.
    fn alone_holds_reused(&self, slot: SeqId) -> bool {
        let mut node = self.slot(slot).node;
        while self.nodes[node].parent != node && self.nodes[node].num_slots == 1 {
            if self.nodes[node].is_reused {
                return true;
            }
            node = self.nodes[node].parent;
        }
        false
    }

    /// Takes up to `wanted` tokens off the end of a leaf without live slots.
    pub(super) fn cut_leaf(&mut self, leaf: NodeIx, wanted: usize, ops: &mut Vec<KvOp>) {
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
