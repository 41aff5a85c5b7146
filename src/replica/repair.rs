//! What was asked for and has not come yet.
//!
//! One request out for each range; a request that brings nothing within its time-out is given up, and its range is asked
//! of another peer after a back-off with jitter.

use std::collections::BTreeMap;
use std::time::Duration;

use super::clock::Mono;
use crate::id::{Run, Seq};

/// A request asks for at most so many bytes.
pub const REQUEST_BYTES_MAX: u32 = 1024 * 1024;
/// Requests out to one peer.
pub const REQUESTS_PER_PEER_MAX: usize = 2;
/// Requests out in all.
pub const REQUESTS_MAX: usize = 16;
/// A request that brought nothing for so long is given up.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
const BACKOFF_MS_MIN: u64 = 100;
const BACKOFF_MS_MAX: u64 = 2_000;

/// A request on its way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Flight {
    pub source: Run,
    pub origin: Run,
    pub first: Seq,
    pub last: Seq,
    pub bytes: u64,
    pub deadline: Mono,
}

#[derive(Debug, Default)]
pub(crate) struct Repairs {
    pub flights: Vec<Flight>,
    /// Origins whose repair failed: how often, when to try again, and who failed last.
    backoff: BTreeMap<Run, (u32, Mono, Run)>,
}

impl Repairs {
    /// What of `first..=last` of `origin` is not asked for yet: the first such stretch.
    pub fn unasked(&self, origin: Run, first: Seq, last: Seq) -> Option<(Seq, Seq)> {
        let mut out = super::ranges::RangeSet::new();
        for flight in self.flights.iter().filter(|flight| flight.origin == origin) {
            out.insert(flight.first, flight.last);
        }
        out.missing(first, last).first().copied()
    }

    /// How many requests are out to `source`.
    pub fn load(&self, source: Run) -> usize {
        self.flights.iter().filter(|flight| flight.source == source).count()
    }

    /// Whether `origin` may be asked for by now; else when.
    pub fn not_before(&self, origin: Run, now: Mono) -> Option<Mono> {
        self.backoff.get(&origin).map(|(_, at, _)| *at).filter(|at| *at > now)
    }

    /// Who failed last to send of `origin`.
    pub fn failed_last(&self, origin: Run) -> Option<Run> {
        self.backoff.get(&origin).map(|(_, _, source)| *source)
    }

    /// Takes note of an answer; true if the request it belongs to is done by it.
    pub fn answered(
        &mut self,
        now: Mono,
        source: Run,
        origin: Run,
        first: Seq,
        through: Seq,
        bytes: u64,
    ) -> Option<Flight> {
        let at = self.flights.iter().position(|f| (f.source, f.origin, f.first) == (source, origin, first))?;
        let flight = &mut self.flights[at];
        flight.bytes += bytes;
        flight.deadline = now + REQUEST_TIMEOUT;
        self.backoff.remove(&origin);
        let done = through >= flight.last || flight.bytes >= u64::from(REQUEST_BYTES_MAX);
        let progress = *flight;
        if done {
            self.flights.swap_remove(at);
        }
        Some(progress)
    }

    /// Gives up requests whose time is over, and those to `gone`.
    pub fn give_up(&mut self, now: Mono, gone: Option<Run>, jitter: u64) {
        let backoff = &mut self.backoff;
        self.flights.retain(|flight| {
            let keep = flight.deadline > now && Some(flight.source) != gone;
            if !keep {
                let entry = backoff.entry(flight.origin).or_insert((0, now, flight.source));
                let wait = (BACKOFF_MS_MIN << entry.0.min(8)).min(BACKOFF_MS_MAX);
                // A source that has gone says nothing of the others: ask them at once.
                let wait = if gone.is_some() { 0 } else { wait / 2 + jitter % (wait / 2 + 1) };
                *entry = (entry.0 + 1, now + Duration::from_millis(wait), flight.source);
            }
            keep
        });
        if backoff.len() > 4096 {
            backoff.clear();
        }
    }

    /// The next deadline or retry after `now`.
    pub fn deadline(&self, now: Mono) -> Option<Mono> {
        let flights = self.flights.iter().map(|flight| flight.deadline);
        flights.chain(self.backoff.values().map(|(_, at, _)| *at).filter(|at| *at > now)).min()
    }
}
