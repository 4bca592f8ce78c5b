//! Which tokens' key-value state the engine holds, and who shares it.
//!
//! A radix tree for each adapter. Every edge is a run of cells in the engine;
//! every slot (an engine's sequence number) is a path from a root. Paths that
//! were forked from each other share their beginning, so the tokens in the tree
//! are exactly the cells in use: the tree is the prefix cache and the account
//! of memory at once. Slots are live (a sequence is worked on) or cached (kept
//! for the next prompt that begins alike); live ones can be forked from too.
//!
//! The tree only keeps books: what the engine must do follows as [`KvOp`]s, in
//! order. It must not know sequences, requests or plans.
//!
//! The idea of a radix tree over prompts with eviction of the least recently
//! used leaf is SGLang's (Zheng et al., 2024, "SGLang: Efficient Execution of
//! Structured Language Model Programs").

mod check;
mod evict;

use std::collections::HashMap;

use quern_engine::{AdapterId, SeqId, TokenId};

/// What the engine must do for the books to be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvOp {
    /// Share the first `len` tokens of `from` with the empty `to`.
    Fork {
        /// Whose state is shared.
        from: SeqId,
        /// Who gets it.
        to: SeqId,
        /// How many tokens.
        len: u32,
    },
    /// Forget all of `seq` past `len` tokens.
    Truncate {
        /// Whose state is cut.
        seq: SeqId,
        /// What stays.
        len: u32,
    },
}

type NodeIx = usize;

/// A run of tokens that the same slots share.
#[derive(Debug, Default)]
struct Node {
    tokens: Vec<TokenId>,
    parent: NodeIx,
    children: Vec<NodeIx>,
    /// Slots that end at this node's end.
    ends: Vec<SeqId>,
    /// Slots whose path goes through this node, ends included.
    num_slots: u32,
    /// Of these, live ones.
    num_live: u32,
    /// Whether more than one sequence went on from here, or from below.
    shared: bool,
    last_used: u64,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    node: NodeIx,
    len: u32,
    live: bool,
}

/// The longest cached beginning of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    node: NodeIx,
    /// Tokens of `node` that match.
    within: usize,
    /// Tokens that match in all.
    pub len: usize,
}

/// See the module's text.
#[derive(Debug)]
pub struct PrefixCache {
    nodes: Vec<Node>,
    unused_nodes: Vec<NodeIx>,
    roots: HashMap<AdapterId, NodeIx>,
    slots: Vec<Option<Slot>>,
    free_slots: Vec<SeqId>,
    capacity: usize,
    used: usize,
    /// Tokens in nodes that a live slot goes through.
    live: usize,
    clock: u64,
}

impl PrefixCache {
    /// Empty books for an engine with room for `capacity` tokens in
    /// `max_sequences` sequences.
    #[must_use]
    pub fn new(capacity: usize, max_sequences: usize) -> PrefixCache {
        PrefixCache {
            nodes: Vec::new(),
            unused_nodes: Vec::new(),
            roots: HashMap::new(),
            slots: vec![None; max_sequences],
            free_slots: (0..max_sequences as SeqId).rev().collect(),
            capacity,
            used: 0,
            live: 0,
            clock: 0,
        }
    }

    /// Tokens that the engine has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens in use, shared ones once.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }

    /// Tokens that live slots hold, shared ones once.
    #[must_use]
    pub fn live(&self) -> usize {
        self.live
    }

    /// Tokens that are free or can be freed by eviction.
    #[must_use]
    pub fn available(&self) -> usize {
        self.capacity - self.live
    }

    /// Tokens that `slot` holds.
    #[must_use]
    pub fn len(&self, slot: SeqId) -> usize {
        self.slot(slot).len as usize
    }

    /// The longest beginning of `tokens` that some slot of `adapter` holds.
    #[must_use]
    pub fn find(&self, adapter: AdapterId, tokens: &[TokenId]) -> Option<Match> {
        let &root = self.roots.get(&adapter)?;
        let mut best = Match { node: root, within: 0, len: 0 };
        let mut open = vec![best];
        // Two slots may have computed the same tokens independently, so more
        // than one child can match in full.
        while let Some(at) = open.pop() {
            for &child in &self.nodes[at.node].children {
                let within = common_prefix(&self.nodes[child].tokens, &tokens[at.len..]);
                let found = Match { node: child, within, len: at.len + within };
                if found.len > best.len {
                    best = found;
                }
                if within > 0 && within == self.nodes[child].tokens.len() && found.len < tokens.len() {
                    open.push(found);
                }
            }
        }
        (best.len > 0).then_some(best)
    }

    /// How many of the first `len` tokens of a match live slots hold.
    #[must_use]
    pub fn shared_live(&self, found: Match, len: usize) -> usize {
        let (mut node, mut end) = (found.node, found.len);
        let mut start = end - found.within;
        // A live slot below makes everything above it live, so the first live
        // node on the way up tells.
        while self.nodes[node].num_live == 0 && start > 0 {
            node = self.nodes[node].parent;
            end = start;
            start -= self.nodes[node].tokens.len();
        }
        if self.nodes[node].num_live > 0 { end.min(len) } else { 0 }
    }

    /// Opens a live slot that shares the first `len` tokens of a match (which
    /// must still hold), or an empty one. `None` when every slot is live.
    pub fn open(
        &mut self,
        adapter: AdapterId,
        found: Option<(Match, usize)>,
        ops: &mut Vec<KvOp>,
    ) -> Option<SeqId> {
        self.clock += 1;
        let node = match found {
            Some((found, len)) => {
                debug_assert!(len <= found.len && len > 0);
                self.node_ending_at(found, len)
            }
            None => self.root(adapter),
        };
        let len = found.map_or(0, |(_, len)| len as u32);
        let from = (len > 0).then(|| self.holder(node));
        // The path is made live first, so that finding a slot cannot evict it.
        self.add_to_path(node, true);
        let slot = match (self.take_slot(from, ops), from) {
            (Some(slot), Some(from)) => {
                ops.push(KvOp::Fork { from, to: slot, len });
                slot
            }
            (Some(slot), None) => slot,
            // Only the slot that holds the prefix is left: it is taken over.
            (None, Some(from)) if !self.slot(from).live => {
                self.forget(from);
                ops.push(KvOp::Truncate { seq: from, len });
                self.free_slots.pop().expect("it was just given back")
            }
            (None, _) => {
                self.remove_from_path(node, true);
                return None;
            }
        };
        self.slots[slot as usize] = Some(Slot { node, len, live: true });
        self.nodes[node].ends.push(slot);
        self.drop_redundant(node, ops);
        Some(slot)
    }

    /// Records that the engine now holds `tokens` after what `slot` held.
    pub fn append(&mut self, slot: SeqId, tokens: &[TokenId]) {
        if tokens.is_empty() {
            return;
        }
        let Slot { node, live, .. } = *self.slot(slot);
        let is_root = self.nodes[node].parent == node;
        let private = !is_root && self.nodes[node].num_slots == 1;
        if private {
            self.nodes[node].tokens.extend_from_slice(tokens);
            self.nodes[node].last_used = self.clock;
        } else {
            let child = self.add_node(Node {
                tokens: tokens.to_vec(),
                parent: node,
                num_slots: 1,
                num_live: u32::from(live),
                last_used: self.clock,
                ends: vec![slot],
                ..Node::default()
            });
            self.nodes[node].children.push(child);
            if self.nodes[node].children.len() > 1 {
                self.mark_shared(node);
            }
            self.nodes[node].ends.retain(|&s| s != slot);
            self.slot_mut(slot).node = child;
        }
        self.slot_mut(slot).len += tokens.len() as u32;
        self.used += tokens.len();
        self.live += if live { tokens.len() } else { 0 };
    }

    /// Ends a slot's live time. With `keep`, its tokens stay for later prompts.
    pub fn release(&mut self, slot: SeqId, keep: bool, ops: &mut Vec<KvOp>) {
        self.clock += 1;
        let Slot { node, .. } = *self.slot(slot);
        self.touch(node);
        self.remove_from_path(node, true);
        self.add_to_path(node, false);
        self.slot_mut(slot).live = false;
        let is_root = self.nodes[node].parent == node;
        if !keep || is_root {
            self.close(slot, ops);
        } else {
            self.drop_redundant(node, ops);
        }
    }

    /// Forgets what a live slot holds past its first `len` tokens, of which there is at
    /// least one.
    pub fn cut(&mut self, slot: SeqId, len: usize, ops: &mut Vec<KvOp>) {
        let Slot { node, len: have, live } = *self.slot(slot);
        if have as usize <= len {
            return;
        }
        debug_assert!(live && len > 0);
        let all = Match { node, within: self.nodes[node].tokens.len(), len: have as usize };
        let target = self.node_ending_at(all, len);
        // Splitting may have moved the slot's end.
        let old = self.slot(slot).node;
        self.add_to_path(target, live);
        self.remove_from_path(old, live);
        self.nodes[old].ends.retain(|&s| s != slot);
        self.prune(old);
        self.nodes[target].ends.push(slot);
        *self.slot_mut(slot) = Slot { node: target, len: len as u32, live };
        ops.push(KvOp::Truncate { seq: slot, len: len as u32 });
        self.drop_redundant(target, ops);
    }

    fn slot(&self, slot: SeqId) -> &Slot {
        self.slots[slot as usize].as_ref().expect("only open slots are named")
    }

    fn slot_mut(&mut self, slot: SeqId) -> &mut Slot {
        self.slots[slot as usize].as_mut().expect("only open slots are named")
    }

    fn root(&mut self, adapter: AdapterId) -> NodeIx {
        if let Some(&root) = self.roots.get(&adapter) {
            return root;
        }
        let root = self.add_node(Node::default());
        self.nodes[root].parent = root;
        self.roots.insert(adapter, root);
        root
    }

    fn add_node(&mut self, node: Node) -> NodeIx {
        if let Some(ix) = self.unused_nodes.pop() {
            self.nodes[ix] = node;
            return ix;
        }
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// The node that ends `len` tokens from the root on the path to `found`,
    /// split off where needed.
    fn node_ending_at(&mut self, found: Match, len: usize) -> NodeIx {
        let (mut node, mut start) = (found.node, found.len - found.within);
        while start >= len {
            node = self.nodes[node].parent;
            start -= self.nodes[node].tokens.len();
        }
        self.split(node, len - start);
        node
    }

    /// Cuts a node after its first `at` tokens; the node keeps the beginning.
    fn split(&mut self, node: NodeIx, at: usize) {
        if at == self.nodes[node].tokens.len() {
            return;
        }
        let head = &mut self.nodes[node];
        let tail = Node {
            tokens: head.tokens.split_off(at),
            parent: node,
            children: std::mem::take(&mut head.children),
            ends: std::mem::take(&mut head.ends),
            num_slots: head.num_slots,
            num_live: head.num_live,
            shared: head.shared,
            last_used: head.last_used,
        };
        let tail = self.add_node(tail);
        self.nodes[node].children.push(tail);
        for child in self.nodes[tail].children.clone() {
            self.nodes[child].parent = tail;
        }
        for slot in self.nodes[tail].ends.clone() {
            self.slot_mut(slot).node = tail;
        }
    }

    /// Any slot whose path goes through `node`.
    fn holder(&self, mut node: NodeIx) -> SeqId {
        loop {
            let at = &self.nodes[node];
            if let Some(&slot) = at.ends.first() {
                return slot;
            }
            node = at.children[0];
        }
    }

    fn touch(&mut self, mut node: NodeIx) {
        loop {
            self.nodes[node].last_used = self.clock;
            if self.nodes[node].parent == node {
                return;
            }
            node = self.nodes[node].parent;
        }
    }

    fn mark_shared(&mut self, mut node: NodeIx) {
        while !std::mem::replace(&mut self.nodes[node].shared, true) {
            node = self.nodes[node].parent;
        }
    }

    fn add_to_path(&mut self, mut node: NodeIx, live: bool) {
        loop {
            let at = &mut self.nodes[node];
            at.num_slots += 1;
            if live {
                at.num_live += 1;
                self.live += if at.num_live == 1 { at.tokens.len() } else { 0 };
                at.last_used = self.clock;
            }
            if at.parent == node {
                return;
            }
            node = at.parent;
        }
    }

    /// Takes one slot off the path. A node left without any stays until
    /// [`PrefixCache::prune`], because callers may put another slot there.
    fn remove_from_path(&mut self, mut node: NodeIx, live: bool) {
        loop {
            let at = &mut self.nodes[node];
            at.num_slots -= 1;
            if live {
                at.num_live -= 1;
                self.live -= if at.num_live == 0 { at.tokens.len() } else { 0 };
            }
            if at.parent == node {
                return;
            }
            node = at.parent;
        }
    }

    fn prune(&mut self, mut node: NodeIx) {
        while self.nodes[node].num_slots == 0 && self.nodes[node].parent != node {
            let parent = self.nodes[node].parent;
            self.used -= self.nodes[node].tokens.len();
            self.nodes[parent].children.retain(|&child| child != node);
            self.nodes[node] = Node::default();
            self.unused_nodes.push(node);
            node = parent;
        }
    }

    /// Gives a cached slot back to the free ones, in the engine too.
    fn close(&mut self, slot: SeqId, ops: &mut Vec<KvOp>) {
        if self.slot(slot).len > 0 {
            ops.push(KvOp::Truncate { seq: slot, len: 0 });
        }
        self.forget(slot);
    }

    /// Gives a cached slot back to the free ones, in the books alone.
    fn forget(&mut self, slot: SeqId) {
        let Slot { node, live, .. } = *self.slot(slot);
        debug_assert!(!live);
        self.remove_from_path(node, false);
        self.nodes[node].ends.retain(|&s| s != slot);
        self.prune(node);
        self.slots[slot as usize] = None;
        self.free_slots.push(slot);
    }

    /// A cached slot that ends where another goes on keeps nothing alive.
    fn drop_redundant(&mut self, node: NodeIx, ops: &mut Vec<KvOp>) {
        for slot in self.nodes[node].ends.clone() {
            if self.nodes[node].num_slots > 1 && !self.slot(slot).live {
                self.close(slot, ops);
            }
        }
    }

    /// A free slot, if need be by closing the oldest cached one but `spared`.
    fn take_slot(&mut self, spared: Option<SeqId>, ops: &mut Vec<KvOp>) -> Option<SeqId> {
        if self.free_slots.is_empty() {
            let cached =
                |&s: &SeqId| Some(s) != spared && self.slots[s as usize].is_some_and(|slot| !slot.live);
            let age = |&s: &SeqId| self.nodes[self.slot(s).node].last_used;
            let oldest = (0..self.slots.len() as SeqId).filter(cached).min_by_key(age)?;
            self.close(oldest, ops);
        }
        self.free_slots.pop()
    }
}

/// Length of the common beginning of two runs of tokens.
#[must_use]
pub fn common_prefix(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}
