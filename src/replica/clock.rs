//! Time as the core sees it: passed in, never read.
//!
//! [`Mono`] drives timers; [`Hlc`], a hybrid logical clock (Kulkarni et al., 2014), orders entries for display.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// Monotonic milliseconds since the node started.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(pub u64);

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For timers.
    pub mono: Mono,
    /// For people: milliseconds since 1970 in UTC.
    pub wall_ms: u64,
}

/// A hybrid logical time: milliseconds since 1970 in the upper 48 bits, a counter in the lower 16.
/// The entries of a batch have the batch's time plus their index, so it grows along an origin.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hlc(pub u64);

impl Hlc {
    /// The earliest time within millisecond `wall_ms`.
    pub fn at(wall_ms: u64) -> Hlc {
        Hlc(wall_ms.min((1 << 48) - 1) << 16)
    }

    /// Milliseconds since 1970 in UTC.
    pub fn wall_ms(self) -> u64 {
        self.0 >> 16
    }

    /// The time `count` entries later.
    pub fn plus(self, count: u64) -> Hlc {
        Hlc(self.0.saturating_add(count))
    }
}

impl Add<Duration> for Mono {
    type Output = Mono;
    fn add(self, span: Duration) -> Mono {
        Mono(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl Sub for Mono {
    type Output = Duration;
    fn sub(self, earlier: Mono) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Debug for Mono {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}

impl fmt::Debug for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.wall_ms(), self.0 & 0xffff)
    }
}

/// Our clock: never behind what it gave out, pulled forward by peers a little ahead.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    last: Hlc,
}

/// A peer's time further ahead than this does not move our clock.
pub(crate) const AHEAD_MS_MAX: u64 = 60_000;
/// Nothing was said before this, 2026-01-01: a clock that shows an earlier time was never set.
pub const BUILD_MS: u64 = 1_767_225_600_000;

impl Clock {
    /// The time for the first of `count` entries; the next call answers a later one.
    pub fn tick(&mut self, now: Now, count: u64) -> Hlc {
        let first = self.last.plus(1).max(Hlc::at(now.wall_ms));
        self.last = first.plus(count.saturating_sub(1));
        first
    }

    /// Takes note of a time that a peer gave out.
    pub fn observe(&mut self, now: Now, hlc: Hlc) {
        if hlc > self.last && hlc.wall_ms() <= now.wall_ms.saturating_add(AHEAD_MS_MAX) {
            self.last = hlc;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_given_out_grows_though_the_wall_clock_steps_back() {
        let mut clock = Clock::default();
        let at = |wall_ms| Now { mono: Mono(0), wall_ms };
        let first = clock.tick(at(1_000), 3);
        assert_eq!(first.wall_ms(), 1_000);
        assert!(clock.tick(at(500), 1) > first.plus(2));
        clock.observe(at(500), Hlc::at(2_000));
        assert!(clock.tick(at(500), 1) > Hlc::at(2_000));
        clock.observe(at(500), Hlc::at(500 + AHEAD_MS_MAX + 1));
        assert!(clock.tick(at(500), 1) < Hlc::at(500 + AHEAD_MS_MAX));
    }
}
