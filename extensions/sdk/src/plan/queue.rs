//! Rows by their keys, when only the first few are wanted.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Rows that are found by looking through all keys before a heap is made of the
/// rest: most steps start nobody or a few, and a heap only pays when many start.
const LOOKED_UP: u32 = 3;

/// See the module's text. Of equal keys the smaller row comes first.
#[derive(Debug)]
pub(super) enum Queue<K> {
    /// Rows in no order, and how often all were looked through.
    Unsorted(Vec<(K, u32)>, u32),
    Heap(BinaryHeap<Reverse<(K, u32)>>),
}

impl<K: Ord> Default for Queue<K> {
    fn default() -> Self {
        Queue::Unsorted(Vec::new(), 0)
    }
}

impl<K: Ord> Queue<K> {
    pub(super) fn new(num_rows: usize, key: impl Fn(usize) -> K) -> Queue<K> {
        Queue::Unsorted((0..num_rows).map(|row| (key(row), row as u32)).collect(), 0)
    }

    /// Takes the first row, if its key is smaller than `before`.
    pub(super) fn pop_before(&mut self, before: Option<&K>) -> Option<usize> {
        let is_next = |key: &K| before.is_none_or(|before| key < before);
        match self {
            Queue::Unsorted(rows, looked) if *looked < LOOKED_UP => {
                *looked += 1;
                let first = (0..rows.len()).min_by(|&a, &b| rows[a].cmp(&rows[b]))?;
                if is_next(&rows[first].0) { Some(rows.swap_remove(first).1 as usize) } else { None }
            }
            Queue::Unsorted(rows, _) => {
                *self = Queue::Heap(std::mem::take(rows).into_iter().map(Reverse).collect());
                self.pop_before(before)
            }
            Queue::Heap(rows) => {
                let Reverse((key, _)) = rows.peek()?;
                if is_next(key) { rows.pop().map(|Reverse((_, row))| row as usize) } else { None }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_in_order_whether_few_are_taken_or_all() {
        let keys = [5, 3, 9, 3, 7, 1, 9, 0, 2, 5];
        let mut queue = Queue::new(keys.len(), |row| keys[row]);
        let mut sorted: Vec<usize> = (0..keys.len()).collect();
        sorted.sort_by_key(|&row| (keys[row], row));
        for &row in &sorted {
            assert_eq!(queue.pop_before(Some(&keys[row])), None, "not before its own key");
            assert_eq!(queue.pop_before(None), Some(row));
        }
        assert_eq!(queue.pop_before(None), None);
    }
}
