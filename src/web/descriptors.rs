//! File descriptors: every browser takes one, and so do the log and every peer.

use std::os::fd::{AsFd, AsRawFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit of open file descriptors of this process to the most that it may have. For a program that serves very
/// many browsers, at its start; where the system does not let it, the limit stays what it is.
pub fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // Nothing is broken without it: who comes when they run short is told to come again.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Whether fewer than `spare` are left, by one that was just made: the system gives out the lowest that is free.
pub(super) fn run_short(made: &impl AsFd, spare: u64) -> bool {
    let used = u64::try_from(made.as_fd().as_raw_fd()).unwrap_or(0);
    getrlimit(Resource::Nofile).current.is_some_and(|limit| used.saturating_add(spare) >= limit)
}
