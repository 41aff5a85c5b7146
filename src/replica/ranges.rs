//! Sets of seqs as sorted, disjoint, non-adjacent ranges: nearly always one.

use crate::id::Seq;

/// A set of [`Seq`]s. Every operation costs at most the number of its ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// Inclusive ends, ascending, with at least one seq missing between two of them.
    ranges: Vec<(u64, u64)>,
}

impl RangeSet {
    /// The empty set.
    pub fn new() -> RangeSet {
        RangeSet::default()
    }

    /// The set of `first..=last`; empty if `first > last`.
    pub fn of(first: Seq, last: Seq) -> RangeSet {
        let mut set = RangeSet::new();
        set.insert(first, last);
        set
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many ranges it takes to write it down.
    pub fn ranges_len(&self) -> usize {
        self.ranges.len()
    }

    /// How many seqs it holds.
    pub fn count(&self) -> u64 {
        self.ranges.iter().fold(0, |sum: u64, (first, last)| sum.saturating_add((last - first).saturating_add(1)))
    }

    /// The ranges, ascending, both ends inclusive.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (Seq, Seq)> + '_ {
        self.ranges.iter().map(|&(first, last)| (Seq(first), Seq(last)))
    }

    /// The largest seq held, 0 if none.
    pub fn top(&self) -> Seq {
        Seq(self.ranges.last().map_or(0, |range| range.1))
    }

    /// The smallest seq held, 0 if none.
    pub fn bottom(&self) -> Seq {
        Seq(self.ranges.first().map_or(0, |range| range.0))
    }

    /// Whether `seq` is held.
    pub fn contains(&self, seq: Seq) -> bool {
        self.covers(seq, seq)
    }

    /// Whether all of `first..=last` is held; true if `first > last`.
    pub fn covers(&self, first: Seq, last: Seq) -> bool {
        if first > last {
            return true;
        }
        let at = self.ranges.partition_point(|range| range.1 < first.0);
        self.ranges.get(at).is_some_and(|range| range.0 <= first.0 && last.0 <= range.1)
    }

    /// The range that holds `seq`.
    pub fn range_of(&self, seq: Seq) -> Option<(Seq, Seq)> {
        let at = self.ranges.partition_point(|range| range.1 < seq.0);
        self.ranges.get(at).filter(|range| range.0 <= seq.0).map(|&(first, last)| (Seq(first), Seq(last)))
    }

    /// Whether any of `first..=last` is held.
    pub fn touches(&self, first: Seq, last: Seq) -> bool {
        let at = self.ranges.partition_point(|range| range.1 < first.0);
        first <= last && self.ranges.get(at).is_some_and(|range| range.0 <= last.0)
    }

    /// Adds `first..=last`; nothing if `first > last`.
    pub fn insert(&mut self, first: Seq, last: Seq) {
        if first > last {
            return;
        }
        let (mut first, mut last) = (first.0, last.0);
        // Those that overlap or adjoin are swallowed.
        let from = self.ranges.partition_point(|range| range.1.saturating_add(1) < first);
        let to = self.ranges.partition_point(|range| range.0 <= last.saturating_add(1));
        if from < to {
            first = first.min(self.ranges[from].0);
            last = last.max(self.ranges[to - 1].1);
        }
        self.ranges.splice(from..to, [(first, last)]);
    }

    /// Takes `first..=last` out; nothing if `first > last`.
    pub fn remove(&mut self, first: Seq, last: Seq) {
        if first > last {
            return;
        }
        let from = self.ranges.partition_point(|range| range.1 < first.0);
        let to = self.ranges.partition_point(|range| range.0 <= last.0);
        if from >= to {
            return;
        }
        let head = (self.ranges[from].0, first.0 - u64::from(first.0 > 0));
        let tail = (last.0.saturating_add(1), self.ranges[to - 1].1);
        let keep_head = (self.ranges[from].0 < first.0).then_some(head);
        let keep_tail = (self.ranges[to - 1].1 > last.0).then_some(tail);
        self.ranges.splice(from..to, keep_head.into_iter().chain(keep_tail));
    }

    /// Adds all of `other`.
    pub fn union(&mut self, other: &RangeSet) {
        for (first, last) in other.iter() {
            self.insert(first, last);
        }
    }

    /// What of `first..=last` is not held, ascending.
    pub fn missing(&self, first: Seq, last: Seq) -> Vec<(Seq, Seq)> {
        let mut missing = Vec::new();
        let mut next = first.0;
        let at = self.ranges.partition_point(|range| range.1 < first.0);
        for &(start, end) in &self.ranges[at..] {
            if start > last.0 {
                break;
            }
            if start > next {
                missing.push((Seq(next), Seq(start - 1)));
            }
            if end >= last.0 {
                return missing;
            }
            next = end + 1;
        }
        if next <= last.0 {
            missing.push((Seq(next), last));
        }
        missing
    }

    /// What of `first..=last` is held.
    pub fn within(&self, first: Seq, last: Seq) -> RangeSet {
        let mut within = self.clone();
        if first > Seq(0) {
            within.remove(Seq(0), Seq(first.0 - 1));
        }
        if last < Seq(u64::MAX) {
            within.remove(last.next(), Seq(u64::MAX));
        }
        within
    }

    /// What of this set `other` does not hold.
    pub fn without(&self, other: &RangeSet) -> RangeSet {
        let mut rest = self.clone();
        for (first, last) in other.iter() {
            rest.remove(first, last);
        }
        rest
    }
}

impl FromIterator<(Seq, Seq)> for RangeSet {
    fn from_iter<I: IntoIterator<Item = (Seq, Seq)>>(ranges: I) -> RangeSet {
        let mut set = RangeSet::new();
        for (first, last) in ranges {
            set.insert(first, last);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Whatever is done to it, it is the set that a plain set of numbers would be, in the fewest ranges.
        #[test]
        fn behaves_like_a_set_of_numbers(steps in prop::collection::vec((any::<bool>(), 0u64..40, 0u64..12), 0..40)) {
            let mut ranges = RangeSet::new();
            let mut plain = BTreeSet::new();
            for (add, first, len) in steps {
                let last = first + len;
                if add {
                    ranges.insert(Seq(first), Seq(last));
                    plain.extend(first..=last);
                } else {
                    ranges.remove(Seq(first), Seq(last));
                    plain.retain(|seq| !(first..=last).contains(seq));
                }
                let held: Vec<u64> = ranges.iter().flat_map(|(first, last)| first.0..=last.0).collect();
                prop_assert_eq!(&held, &plain.iter().copied().collect::<Vec<_>>());
                prop_assert!(ranges.iter().zip(ranges.iter().skip(1)).all(|(a, b)| a.1.0 + 1 < b.0.0));
                prop_assert_eq!(ranges.count(), plain.len() as u64);
                for (first, last) in [(0, 60), (5, 9), (7, 7)] {
                    let missing: Vec<u64> = ranges.missing(Seq(first), Seq(last)).iter().flat_map(|(a, b)| a.0..=b.0).collect();
                    prop_assert_eq!(&missing, &(first..=last).filter(|seq| !plain.contains(seq)).collect::<Vec<_>>());
                    prop_assert_eq!(ranges.covers(Seq(first), Seq(last)), missing.is_empty());
                    prop_assert_eq!(ranges.touches(Seq(first), Seq(last)), plain.range(first..=last).next().is_some());
                    let around = ranges.range_of(Seq(first));
                    prop_assert_eq!(around.is_some(), plain.contains(&first));
                    prop_assert!(around.is_none_or(|(a, b)| a.0 <= first && first <= b.0 && !plain.contains(&(b.0 + 1))));
                }
            }
        }
    }

    #[test]
    fn the_ends_of_the_number_line_are_safe() {
        let mut set = RangeSet::of(Seq(u64::MAX), Seq(u64::MAX));
        set.insert(Seq(0), Seq(u64::MAX - 1));
        assert_eq!((set.ranges_len(), set.count()), (1, u64::MAX));
        set.remove(Seq(0), Seq(0));
        set.remove(Seq(u64::MAX), Seq(u64::MAX));
        assert_eq!(set, RangeSet::of(Seq(1), Seq(u64::MAX - 1)));
    }
}
