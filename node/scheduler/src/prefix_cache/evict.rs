//! Making room: the least recently used cached tail is cut first, and what live
//! slots go through is never touched.

use quern_engine::{AdapterId, SeqId};

use super::{KvOp, Node, NodeIx, PrefixCache};

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

    pub(super) fn oldest_cached_leaf(&self) -> Option<NodeIx> {
        let leaves = self.slots.iter().flatten().filter(|slot| !slot.live).map(|slot| slot.node);
        let evictable = leaves.filter(|&node| {
            let at = &self.nodes[node];
            at.num_live == 0 && at.children.is_empty() && at.parent != node
        });
        evictable.min_by_key(|&node| self.nodes[node].last_used)
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
