//! A seeded network of replicas: one number makes a mesh, its traffic, its faults, and what must hold in spite of them.
//!
//! The very [`Replica`](crate::replica::Replica) of a node runs here, through the bytes of [`crate::wire`], in virtual
//! time, without threads and I/O. [`run`] plays one seed to its end: a busy phase with the faults of the seed's
//! [`Class`], then peace, in which the mesh has to converge and fall silent. Equal seeds play equally, so a [`Violation`]
//! is a recipe to see it again.

mod check;
#[cfg(test)]
mod crowd;
mod disk;
mod end;
mod faults;
mod hostile;
mod links;
mod plan;
mod scale;
mod store;
mod world;

use std::fmt;

#[cfg(feature = "mutants")]
use crate::replica::Mutant;
use plan::{Dice, Plan, mix};
pub use scale::{Phase, Scale, Sort, TALK_LEAD_MS, Traffic, gossip, scale};
use world::World;

/// Which faults a seed is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// No faults; now and then a crowd of up to 50 nodes.
    Calm,
    /// Single messages and runs of messages are lost on links that stay up.
    Loss,
    /// Messages come twice and overtake each other.
    Scramble,
    /// Groups of nodes do not reach each other for a while, both ways or one way.
    Partition,
    /// Nodes die, with and without a sign, say goodbye, and come back as new runs.
    Crash,
    /// Windows hold a small part of what is said.
    SmallWindow,
    /// Nodes come when much has been said.
    LateJoiner,
    /// Old frames come again.
    Replay,
    /// The power fails, for one host or all at once, at any step; what was not synced is lost.
    PowerCut,
    /// Disks go back in time or are lost, and are copied to a second host of the same name.
    BackInTime,
    /// Disks are slow, fail for a while, or are found damaged and filled anew.
    DiskTrouble,
    /// Logs keep little, by age and by bytes.
    Retention,
    /// Clocks show 1970, 40 days too much, or step.
    Clocks,
    /// One host says far more than others, over links that carry little.
    Flood,
    /// A host contradicts itself, claims what is not so, and says what nobody asked for.
    Hostile,
    /// Most of it.
    Mixed,
}

impl Class {
    /// All classes; a seed's class is its remainder.
    pub const ALL: [Class; 16] = [
        Class::Calm,
        Class::Loss,
        Class::Scramble,
        Class::Partition,
        Class::Crash,
        Class::SmallWindow,
        Class::LateJoiner,
        Class::Replay,
        Class::PowerCut,
        Class::BackInTime,
        Class::DiskTrouble,
        Class::Retention,
        Class::Clocks,
        Class::Flood,
        Class::Hostile,
        Class::Mixed,
    ];

    /// The class of a seed.
    pub fn of(seed: u64) -> Class {
        Class::ALL[(seed % Class::ALL.len() as u64) as usize]
    }
}

/// What happened, good and bad, while a seed was played.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages that arrived.
    pub messages: u64,
    /// Entries published.
    pub published: u64,
    /// Entries handed to readers.
    pub delivered: u64,
    /// Of these, after a gap.
    pub late: u64,
    /// Messages lost on links that stayed up.
    pub losses: u64,
    /// Messages that came twice.
    pub duplicates: u64,
    /// Messages that may have been overtaken.
    pub reordered: u64,
    /// Partitions.
    pub partitions: u64,
    /// Of these, one way only.
    pub one_way: u64,
    /// Nodes that died without goodbye.
    pub crashes: u64,
    /// Nodes that left with goodbye.
    pub goodbyes: u64,
    /// Nodes that came back.
    pub restarts: u64,
    /// Nodes that came later than the first ones.
    pub joins: u64,
    /// Steps of wall clocks.
    pub jumps: u64,
    /// Old frames injected.
    pub replays: u64,
    /// Streams of which a window had to let something go.
    pub evictions: u64,
    /// Gaps told to readers.
    pub gaps: u64,
    /// Entries declared missing for good.
    pub missing: u64,
    /// Requests sent.
    pub requests: u64,
    /// Bytes of batches that came in repairs.
    pub repaired_bytes: u64,
    /// Of these, of batches that were there already.
    pub repaired_bytes_twice: u64,
    /// Power cuts of all hosts at once.
    pub power_cuts: u64,
    /// Orders that a disk had not synced when its host died.
    pub lost_orders: u64,
    /// Batches that logs kept.
    pub stored: u64,
    /// Reads of logs for peers.
    pub loads: u64,
    /// Disks that went back in time.
    pub restores: u64,
    /// Disks that were lost.
    pub lost_disks: u64,
    /// Hosts started with the copy of another's disk.
    pub clones: u64,
    /// Disks that failed for a while.
    pub disk_failures: u64,
    /// Logs that were found damaged.
    pub quarantines: u64,
    /// Entries that logs let go.
    pub expired: u64,
    /// Entries settled as missing for good in logs.
    pub settled: u64,
    /// Stretches admitted late.
    pub lates: u64,
    /// Clocks that were far off.
    pub odd_clocks: u64,
    /// Bursts of a host that floods.
    pub floods: u64,
    /// Messages that a link had no room for.
    pub link_drops: u64,
    /// Messages made up by hostile hosts.
    pub lies: u64,
    /// Entries whose key another one had.
    pub twins: u64,
}

impl Counts {
    /// Each count with its name.
    pub fn list(&self) -> [(&'static str, u64); 38] {
        let Counts {
            messages,
            published,
            delivered,
            late,
            losses,
            duplicates,
            reordered,
            partitions,
            one_way,
            crashes,
            goodbyes,
            restarts,
            joins,
            jumps,
            replays,
            evictions,
            gaps,
            missing,
            requests,
            repaired_bytes,
            repaired_bytes_twice,
            power_cuts,
            lost_orders,
            stored,
            loads,
            restores,
            lost_disks,
            clones,
            disk_failures,
            quarantines,
            expired,
            settled,
            lates,
            odd_clocks,
            floods,
            link_drops,
            lies,
            twins,
        } = *self;
        [
            ("messages", messages),
            ("published", published),
            ("delivered", delivered),
            ("late", late),
            ("losses", losses),
            ("duplicates", duplicates),
            ("reordered", reordered),
            ("partitions", partitions),
            ("one_way", one_way),
            ("crashes", crashes),
            ("goodbyes", goodbyes),
            ("restarts", restarts),
            ("joins", joins),
            ("jumps", jumps),
            ("replays", replays),
            ("evictions", evictions),
            ("gaps", gaps),
            ("missing", missing),
            ("requests", requests),
            ("repaired_bytes", repaired_bytes),
            ("repaired_bytes_twice", repaired_bytes_twice),
            ("power_cuts", power_cuts),
            ("lost_orders", lost_orders),
            ("stored", stored),
            ("loads", loads),
            ("restores", restores),
            ("lost_disks", lost_disks),
            ("clones", clones),
            ("disk_failures", disk_failures),
            ("quarantines", quarantines),
            ("expired", expired),
            ("settled", settled),
            ("lates", lates),
            ("odd_clocks", odd_clocks),
            ("floods", floods),
            ("link_drops", link_drops),
            ("lies", lies),
            ("twins", twins),
        ]
    }
}

/// A seed that was played to its end, all invariants intact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Its class.
    pub class: Class,
    /// What happened.
    pub counts: Counts,
    /// A hash over everything that every replica put out, and when.
    pub trace: u64,
    /// How long it took in virtual time.
    pub simulated_ms: u64,
}

/// An invariant that broke. Shown, it says how to see it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The seed.
    pub seed: u64,
    /// Its class.
    pub class: Class,
    /// When, in virtual time.
    pub at_ms: u64,
    /// What broke.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { seed, class, at_ms, what } = self;
        write!(
            f,
            "seed {seed} ({class:?}) at {at_ms} ms: {what}\n  again: SEED={seed} cargo test --no-default-features \
             --features sim,mutants --test simulation one_seed -- --nocapture"
        )
    }
}

impl std::error::Error for Violation {}

/// Plays one seed.
///
/// # Errors
/// The first invariant that broke.
pub fn run(seed: u64) -> Result<Report, Violation> {
    play(World::new(seed, Plan::of(seed)))
}

/// Plays one seed with a bug planted in every replica.
///
/// # Errors
/// The first invariant that broke, as it should.
#[cfg(feature = "mutants")]
pub fn run_planted(seed: u64, mutant: Mutant) -> Result<Report, Violation> {
    let mut world = World::new(seed, Plan::of(seed));
    world.plant(mutant);
    play(world)
}

fn play(mut world: World) -> Result<Report, Violation> {
    let (seed, class) = (world.plan.seed, world.plan.class);
    match world.play() {
        Ok(()) => Ok(Report { seed, class, counts: world.counts, trace: world.trace, simulated_ms: world.now }),
        Err(what) => Err(Violation { seed, class, at_ms: world.now, what }),
    }
}
