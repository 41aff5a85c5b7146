//! Bugs that can be planted in a replica, to prove that the simulator finds them.
//!
//! Without the feature `mutants` nothing can be planted, and the compiler drops the bugs.

use super::Replica;

/// Bugs that can be planted (feature `mutants`); the simulator has to find each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// A gap is given up without a word.
    HoleSkippedSilently,
    /// What was seen before is delivered again.
    OldFrameAccepted,
    /// A request to a peer that died stays out for ever.
    DeadSourceForgotten,
    /// Nothing ever leaves the window.
    StashUnbounded,
    /// Digests are asked for at every beat.
    DigestOnEveryBeat,
    /// A goodbye is not believed.
    GoodbyeIgnored,
    /// Peers that do not hear us are asked, too.
    OneWayPeerAsked,
    /// A repair sends batches with new borders.
    BatchRecutOnRepair,
    /// What is below a peer's floor is taken for held by it.
    FloorTreatedAsHeld,
    /// An entry counts as stored as soon as the log was told to keep it.
    AckBeforeSync,
    /// What was sent is advertised as if it were on disk.
    SentAdvertised,
    /// What retention let go is taken again.
    ExpiredReadmitted,
    /// Local numbers are given beyond a hole.
    HoleAdmitted,
    /// A node that comes back takes the epoch it had; planted in what starts the replica.
    EpochReused,
    /// Of two entries with one key both are shown; planted in what keeps the log.
    TwinShown,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 15] = [
        Mutant::HoleSkippedSilently,
        Mutant::OldFrameAccepted,
        Mutant::DeadSourceForgotten,
        Mutant::StashUnbounded,
        Mutant::DigestOnEveryBeat,
        Mutant::GoodbyeIgnored,
        Mutant::OneWayPeerAsked,
        Mutant::BatchRecutOnRepair,
        Mutant::FloorTreatedAsHeld,
        Mutant::AckBeforeSync,
        Mutant::SentAdvertised,
        Mutant::ExpiredReadmitted,
        Mutant::HoleAdmitted,
        Mutant::EpochReused,
        Mutant::TwinShown,
    ];
}

impl Replica {
    #[cfg(feature = "mutants")]
    pub(super) fn bug(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    #[cfg(not(feature = "mutants"))]
    pub(super) fn bug(&self, _: Mutant) -> bool {
        false
    }

    /// Plants a bug, to prove that the simulator finds it.
    #[cfg(feature = "mutants")]
    pub fn plant(&mut self, mutant: Mutant) {
        self.mutant = Some(mutant);
    }
}
