//! Scoring labels: how likely each of some continuations is behind a prompt.
//!
//! Labels form a trie of tokens. The prompt is computed once, and its last logits give
//! the labels' first tokens. What remains are the paths from the root to each *tip*, a
//! node with children of which none has children: every node that must be computed lies
//! on one of them. One path at a time is computed behind the prompt in the sequence's own
//! slot, in whatever pieces a plan allows, so that each step makes progress. The others
//! are forks of the prompt that live for a single step (`assemble.rs` opens them,
//! `commit.rs` closes them), as many as the step has rows, outputs and slots for. So
//! between steps there is never more state than the prompt and part of one path, and a
//! paused sequence has lost nothing but that: what is known of nodes stays known.

use std::sync::Arc;

use quern_engine::{SeqId, TokenId};

use crate::sampler::log_probabilities;

/// A node's index; the root is 0, and parents come before their children.
pub(crate) type NodeIx = usize;

const ROOT: NodeIx = 0;

/// Labels as tokens, beginnings shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelTrie {
    nodes: Vec<Node>,
    /// The node at which each label ends.
    ends: Vec<NodeIx>,
    tips: Vec<NodeIx>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    token: TokenId,
    parent: NodeIx,
    depth: usize,
    children: Vec<NodeIx>,
}

impl LabelTrie {
    /// The trie of `labels`, each at least one token. Labels may begin alike, and one may
    /// be the beginning of another; where that is to count against it, its tokens should
    /// end with one that ends the answer. `None` when there is no label, or an empty one.
    #[must_use]
    pub fn new<L: AsRef<[TokenId]>>(labels: &[L]) -> Option<LabelTrie> {
        let root = Node { token: 0, parent: ROOT, depth: 0, children: Vec::new() };
        let mut trie = LabelTrie { nodes: vec![root], ends: Vec::new(), tips: Vec::new() };
        if labels.is_empty() || labels.iter().any(|label| label.as_ref().is_empty()) {
            return None;
        }
        for label in labels {
            let end = label.as_ref().iter().fold(ROOT, |node, &token| trie.child(node, token));
            trie.ends.push(end);
        }
        let is_inner = |&node: &NodeIx| !trie.nodes[node].children.is_empty();
        let is_tip = |&node: &NodeIx| is_inner(&node) && !trie.nodes[node].children.iter().any(is_inner);
        let tips = (0..trie.nodes.len()).filter(is_tip).collect();
        Some(LabelTrie { tips, ..trie })
    }

    /// How many labels there are.
    #[must_use]
    pub fn num_labels(&self) -> usize {
        self.ends.len()
    }

    /// The tokens of each label, in the order in which they were given.
    #[must_use]
    pub fn labels(&self) -> Vec<Vec<TokenId>> {
        let tokens = |&end: &NodeIx| self.path(end).into_iter().map(|node| self.nodes[node].token).collect();
        self.ends.iter().map(tokens).collect()
    }

    /// Tokens of the longest label.
    #[must_use]
    pub fn max_len(&self) -> usize {
        self.ends.iter().map(|&end| self.nodes[end].depth).max().unwrap_or(0)
    }

    /// Tokens that are computed behind the prompt at most, at once.
    #[must_use]
    pub fn max_depth(&self) -> usize {
        self.tips.iter().map(|&tip| self.nodes[tip].depth).max().unwrap_or(0)
    }

    fn child(&mut self, parent: NodeIx, token: TokenId) -> NodeIx {
        let known = self.nodes[parent].children.iter().find(|&&child| self.nodes[child].token == token);
        if let Some(&child) = known {
            return child;
        }
        let child = self.nodes.len();
        let depth = self.nodes[parent].depth + 1;
        self.nodes.push(Node { token, parent, depth, children: Vec::new() });
        self.nodes[parent].children.push(child);
        child
    }

    /// Nodes from the root, which is left out, to `last`.
    fn path(&self, last: NodeIx) -> Vec<NodeIx> {
        let mut path: Vec<NodeIx> = std::iter::successors(Some(last), |&node| Some(self.nodes[node].parent))
            .take(self.nodes[last].depth)
            .collect();
        path.reverse();
        path
    }
}

/// A token of a path, and the node whose logits it gives, if they are wanted.
pub(crate) type PathRow = (TokenId, Option<NodeIx>);

/// A path in a slot of its own, for one step.
#[derive(Debug)]
pub(crate) struct Branch {
    pub(crate) slot: SeqId,
    pub(crate) rows: Vec<PathRow>,
}

impl Branch {
    pub(crate) fn outputs(&self) -> impl Iterator<Item = NodeIx> {
        self.rows.iter().filter_map(|&(_, node)| node)
    }
}

/// What is known of the labels, and what is to be computed next.
#[derive(Debug)]
pub(crate) struct Scoring {
    trie: Arc<LabelTrie>,
    /// Logarithm of `Score::skip_below`.
    margin: f32,
    /// Log-probability of each node's tokens, or of as many of them as are known: nothing
    /// behind is likelier.
    bounds: Vec<f32>,
    /// Whether a node's logits have been seen.
    seen: Vec<bool>,
    /// What the sequence's own tokens hold behind the prompt.
    path: Vec<NodeIx>,
    /// Tips of the other paths to compute, best first.
    others: Vec<NodeIx>,
}

impl Scoring {
    pub(crate) fn new(trie: Arc<LabelTrie>, skip_below: f32) -> Scoring {
        let num_nodes = trie.nodes.len();
        Scoring {
            margin: skip_below.ln(),
            bounds: vec![0.0; num_nodes],
            seen: vec![false; num_nodes],
            path: Vec::new(),
            others: Vec::new(),
            trie,
        }
    }

    /// See [`LabelTrie::max_depth`].
    pub(crate) fn max_depth(&self) -> usize {
        self.trie.max_depth()
    }

    /// Whether the prompt's last logits have been seen.
    pub(crate) fn knows_prompt(&self) -> bool {
        self.seen[ROOT]
    }

    /// The node whose logits the token at `idx` behind the prompt gives, if they are
    /// wanted; `None` asks for the prompt's last token.
    pub(crate) fn wants(&self, idx: Option<usize>) -> Option<NodeIx> {
        let node = idx.map_or(ROOT, |idx| self.path[idx]);
        (!self.seen[node]).then_some(node)
    }

    /// Rows of the paths that are not the sequence's own.
    pub(crate) fn num_other_rows(&self) -> usize {
        self.others.iter().map(|&tip| self.trie.nodes[tip].depth).sum()
    }

    /// The rows of each of the other paths, best first.
    pub(crate) fn others(&self) -> Vec<Vec<PathRow>> {
        let row = |node: NodeIx| (self.trie.nodes[node].token, (!self.seen[node]).then_some(node));
        let rows = |&tip: &NodeIx| self.trie.path(tip).into_iter().map(row).collect();
        self.others.iter().map(rows).collect()
    }

    /// Takes in the logits behind a node.
    pub(crate) fn see(&mut self, node: NodeIx, logits: &[f32]) {
        let trie = Arc::clone(&self.trie);
        let children = &trie.nodes[node].children;
        let tokens = children.iter().map(|&child| trie.nodes[child].token);
        for (&child, logprob) in children.iter().zip(log_probabilities(logits, tokens)) {
            self.bounds[child] = self.bounds[node] + logprob;
        }
        self.seen[node] = true;
    }

    /// Brings bounds and remaining paths up to date after [`Scoring::see`]. Whether all
    /// labels are known that need to be.
    pub(crate) fn settle(&mut self) -> bool {
        for node in 1..self.bounds.len() {
            let parent = self.trie.nodes[node].parent;
            if !self.seen[parent] {
                self.bounds[node] = self.bounds[parent];
            }
        }
        let needed = self.needed();
        let mut is_needed = vec![false; self.bounds.len()];
        needed.iter().for_each(|&tip| is_needed[tip] = true);
        self.others.retain(|&tip| is_needed[tip]);
        needed.is_empty()
    }

    /// Chooses the path to compute behind the prompt, and gives its tokens.
    pub(crate) fn choose_path(&mut self) -> Vec<TokenId> {
        let needed = self.needed();
        let (own, others) = match needed.split_first() {
            Some((&own, others)) => (self.trie.path(own), others.to_vec()),
            None => (Vec::new(), Vec::new()),
        };
        (self.path, self.others) = (own, others);
        self.path.iter().map(|&node| self.trie.nodes[node].token).collect()
    }

    /// The log-probability of each label; of those that were skipped, its bound.
    pub(crate) fn scores(&self) -> Vec<f32> {
        self.trie.ends.iter().map(|&end| self.bounds[end]).collect()
    }

    /// Tips of paths with a node that must be seen, the likeliest first.
    ///
    /// The likeliest label is no likelier in the end than the largest bound, so whatever
    /// is within the margin of that has to be seen in any case; and once nothing else is,
    /// the largest bound is a label's own.
    fn needed(&self) -> Vec<NodeIx> {
        let best = self.trie.ends.iter().map(|&end| self.bounds[end]).fold(f32::NEG_INFINITY, f32::max);
        let least = best + self.margin;
        let mut needed: Vec<(f32, NodeIx)> = Vec::new();
        for &tip in self.trie.tips.iter().filter(|&&tip| tip != ROOT) {
            let unseen = self.trie.path(tip).into_iter().find(|&node| !self.seen[node]);
            let bound = unseen.map(|node| self.bounds[node]).filter(|&bound| bound >= least);
            needed.extend(bound.map(|bound| (bound, tip)));
        }
        needed.sort_by(|one, other| other.0.total_cmp(&one.0));
        needed.into_iter().map(|(_, tip)| tip).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row of ten logits in which these tokens have these probabilities.
    fn row(likely: &[(usize, f32)]) -> Vec<f32> {
        let rest: f32 = 1.0 - likely.iter().map(|(_, p)| p).sum::<f32>();
        let mut row = vec![(rest / (10 - likely.len()) as f32).ln(); 10];
        likely.iter().for_each(|&(token, p)| row[token] = p.ln());
        row
    }

    fn scoring(labels: &[&[u32]], skip_below: f32) -> Scoring {
        Scoring::new(Arc::new(LabelTrie::new(labels).unwrap()), skip_below)
    }

    fn probabilities(scoring: &Scoring) -> Vec<f32> {
        scoring.scores().into_iter().map(f32::exp).collect()
    }

    #[test]
    fn a_trie_shares_beginnings() {
        let trie = LabelTrie::new(&[&[1u32, 2, 3][..], &[1, 2, 4], &[1, 2], &[5], &[6, 7]]).unwrap();
        assert_eq!((trie.num_labels(), trie.max_depth()), (5, 2));
        let tips: Vec<Vec<u32>> = trie
            .tips
            .iter()
            .map(|&tip| trie.path(tip).into_iter().map(|node| trie.nodes[node].token).collect())
            .collect();
        assert_eq!(tips, [vec![1, 2], vec![6]]);
        assert_eq!(LabelTrie::new::<&[u32]>(&[]), None);
        assert_eq!(LabelTrie::new(&[&[1u32][..], &[]]), None);
        assert_eq!(LabelTrie::new(&[[1u32], [2]]).unwrap().max_depth(), 0);
    }

    #[test]
    fn labels_of_one_token_are_known_with_the_prompt() {
        let mut scoring = scoring(&[&[1], &[2]], 0.0);
        scoring.see(ROOT, &row(&[(1, 0.5), (2, 0.25)]));
        assert!(scoring.settle());
        let found = probabilities(&scoring);
        assert!((found[0] - 0.5).abs() < 1e-5 && (found[1] - 0.25).abs() < 1e-5, "{found:?}");
    }

    #[test]
    fn unlikely_labels_are_skipped_and_keep_their_bound() {
        let mut scoring = scoring(&[&[1, 3], &[2, 3], &[4, 3]], 0.1);
        scoring.see(ROOT, &row(&[(1, 0.6), (2, 0.3), (4, 0.01)]));
        assert!(!scoring.settle());
        assert_eq!(scoring.choose_path(), [1]);
        assert_eq!(scoring.num_other_rows(), 1);
        scoring.see(scoring.path[0], &row(&[(3, 0.9)]));
        assert!(!scoring.settle(), "the second may be as likely as half of the first");
        assert_eq!(scoring.choose_path(), [2]);
        scoring.see(scoring.path[0], &row(&[(3, 0.5)]));
        assert!(scoring.settle());
        let found = probabilities(&scoring);
        for (found, wanted) in found.into_iter().zip([0.54, 0.15, 0.01]) {
            assert!((found - wanted).abs() < 1e-4, "{found} {wanted}");
        }
    }

    #[test]
    fn a_label_that_was_skipped_is_seen_where_the_best_disappoints() {
        let mut scoring = scoring(&[&[1, 3], &[2, 3]], 0.1);
        scoring.see(ROOT, &row(&[(1, 0.9), (2, 0.05)]));
        assert!(!scoring.settle());
        assert_eq!((scoring.choose_path(), scoring.num_other_rows()), (vec![1], 0));
        scoring.see(scoring.path[0], &row(&[(3, 0.1)]));
        assert!(!scoring.settle());
        assert_eq!(scoring.choose_path(), [2]);
    }

    #[test]
    fn impossible_labels_are_scored_too() {
        let mut scoring = scoring(&[&[1, 3], &[2, 3]], 0.0);
        scoring.see(ROOT, &[f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY, 0.0]);
        assert!(!scoring.settle());
        assert_eq!(scoring.choose_path().len() + scoring.num_other_rows(), 2);
        let other = scoring.others()[0][0].1.unwrap();
        scoring.see(scoring.path[0], &row(&[(3, 0.5)]));
        scoring.see(other, &row(&[(3, 0.5)]));
        assert!(scoring.settle());
        assert_eq!(scoring.scores(), [f32::NEG_INFINITY; 2]);
    }
}
