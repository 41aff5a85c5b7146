//! Which keys the log does not hold, without asking the disk: most keys are new, and the database makes its readers wait
//! for as long as its own writing takes to be synced.
//!
//! A Bloom filter: it may take a new key for a known one, never the other way round. Whoever writes adds; keys that were
//! there before are added by the scrub, and until that has seen them all every key counts as known. Nothing is ever taken
//! out, so a log that lost its keys only costs more questions.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::id::Key;

/// 2 MiB. With a million keys one in 400 new ones counts as known, with four million one in six.
const BITS: usize = 1 << 24;

#[derive(Debug)]
pub(super) struct KeyFilter {
    words: Box<[AtomicU64]>,
    complete: AtomicBool,
}

impl KeyFilter {
    pub fn new() -> KeyFilter {
        KeyFilter { words: (0..BITS / 64).map(|_| AtomicU64::new(0)).collect(), complete: AtomicBool::new(false) }
    }

    pub fn add(&self, key: Key) {
        for (word, bit) in places(key) {
            self.words[word].fetch_or(bit, Relaxed);
        }
    }

    /// All keys of the log were added.
    pub fn set_complete(&self) {
        self.complete.store(true, Relaxed);
    }

    /// False: the log does not hold it.
    pub fn may_hold(&self, key: Key) -> bool {
        !self.complete.load(Relaxed) || places(key).all(|(word, bit)| self.words[word].load(Relaxed) & bit != 0)
    }
}

/// Keys are hashes already, so their own bits say where.
fn places(key: Key) -> impl Iterator<Item = (usize, u64)> {
    let (parts, _) = key.0.as_chunks::<4>();
    let places: Vec<usize> = parts.iter().map(|part| u32::from_le_bytes(*part) as usize % BITS).collect();
    places.into_iter().map(|place| (place / 64, 1 << (place % 64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> Key {
        let mut key = [0; 16];
        key.copy_from_slice(&blake3::hash(&number.to_le_bytes()).as_bytes()[..16]);
        Key(key)
    }

    #[test]
    fn a_key_that_was_added_is_never_taken_for_a_new_one_and_few_new_ones_for_known_ones() {
        let filter = KeyFilter::new();
        assert!(filter.may_hold(key(0)), "as long as it does not know all");
        (0..500_000).for_each(|number| filter.add(key(number)));
        filter.set_complete();
        assert!((0..500_000).all(|number| filter.may_hold(key(number))));
        let mistaken = (500_000..600_000).filter(|number| filter.may_hold(key(*number))).count();
        assert!(mistaken < 100, "{mistaken} of 100,000");
    }
}
