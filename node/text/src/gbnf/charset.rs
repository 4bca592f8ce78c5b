//! Sets of characters as sorted ranges.

/// The last code point there is.
pub(super) const LAST: u32 = 0x10_FFFF;

/// A set of code points: inclusive ranges, ascending, neither touching nor empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct CharSet {
    ranges: Vec<(u32, u32)>,
}

impl CharSet {
    /// The set of all characters in `ranges`, which may overlap.
    pub(super) fn new(mut ranges: Vec<(u32, u32)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last);
                }
                _ => merged.push((first, last)),
            }
        }
        Self { ranges: merged }
    }

    pub(super) fn single(c: char) -> Self {
        Self::new(vec![(c.into(), c.into())])
    }

    pub(super) fn all() -> Self {
        Self::new(vec![(0, LAST)])
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(super) fn ranges(&self) -> &[(u32, u32)] {
        &self.ranges
    }

    /// Everything that is not in the set.
    pub(super) fn complement(&self) -> Self {
        let mut next = 0;
        let mut ranges = Vec::new();
        for &(first, last) in &self.ranges {
            if first > next {
                ranges.push((next, first - 1));
            }
            next = last + 1;
        }
        if next <= LAST {
            ranges.push((next, LAST));
        }
        Self { ranges }
    }

    pub(super) fn union(&self, other: &Self) -> Self {
        Self::new([self.ranges.as_slice(), other.ranges.as_slice()].concat())
    }

    pub(super) fn intersects(&self, other: &Self) -> bool {
        let (mut a, mut b) = (0, 0);
        while let (Some(left), Some(right)) = (self.ranges.get(a), other.ranges.get(b)) {
            if left.1 < right.0 {
                a += 1;
            } else if right.1 < left.0 {
                b += 1;
            } else {
                return true;
            }
        }
        false
    }
}
