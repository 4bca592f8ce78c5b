//! What must hold in the books at any time: tokens and slots add up along every
//! path. For tests and debug builds; it only reads.

use quern_engine::SeqId;

use super::{Node, PrefixCache};

impl PrefixCache {
    /// Checks that the books are consistent; for tests.
    ///
    /// # Panics
    /// When they are not.
    pub fn assert_consistent(&self) {
        let (mut used, mut live) = (0, 0);
        for (ix, node) in self.nodes.iter().enumerate().filter(|(ix, _)| !self.unused_nodes.contains(ix)) {
            let is_root = node.parent == ix;
            assert!(is_root || !node.tokens.is_empty(), "empty edge");
            assert!(is_root || node.num_slots > 0, "edge without a slot");
            used += node.tokens.len();
            live += if node.num_live > 0 { node.tokens.len() } else { 0 };
            let below = |count: fn(&Node) -> u32| -> u32 {
                node.children.iter().map(|&child| count(&self.nodes[child])).sum()
            };
            let ends_live = node.ends.iter().filter(|&&s| self.slot(s).live).count() as u32;
            assert_eq!(node.num_slots, below(|n| n.num_slots) + node.ends.len() as u32);
            assert_eq!(node.num_live, below(|n| n.num_live) + ends_live);
            for &child in &node.children {
                assert_eq!(self.nodes[child].parent, ix);
            }
        }
        assert_eq!((self.used, self.live), (used, live));
        assert!(self.used <= self.capacity, "more tokens than room");
        for (slot, state) in self.slots.iter().enumerate() {
            let free = self.free_slots.contains(&(slot as SeqId));
            assert_eq!(free, state.is_none());
            let Some(state) = state else { continue };
            assert!(self.nodes[state.node].ends.contains(&(slot as SeqId)));
            let (mut len, mut at) = (0, state.node);
            while self.nodes[at].parent != at {
                len += self.nodes[at].tokens.len();
                at = self.nodes[at].parent;
            }
            assert_eq!(len, state.len as usize);
        }
    }
}
