//! Chance that can be had again: SplitMix64 from a seed that each claim names.

use std::ops::Range;
use std::time::SystemTime;

/// A sequence of numbers.
#[derive(Clone, Debug)]
pub struct Dice {
    /// What it began with.
    pub seed: u64,
    state: u64,
}

impl Dice {
    /// From `HUBLESS_SEED`, else from the time.
    pub fn new() -> Dice {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let given = std::env::var("HUBLESS_SEED").ok().map(|seed| seed.parse().expect("HUBLESS_SEED is a number"));
        let seed = given.unwrap_or(since.as_micros() as u64);
        Dice { seed, state: seed }
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// In this range.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

impl Default for Dice {
    fn default() -> Dice {
        Dice::new()
    }
}
