//! A seeded network of replicas: one number makes a mesh, its traffic, its faults, and what must hold in spite of them.
//!
//! The very [`Replica`](crate::replica::Replica) of a node runs here, through the bytes of [`crate::wire`], in virtual
//! time, without threads and I/O. [`run`] plays one seed to its end: a busy phase with the faults of the seed's
//! [`Class`], then peace, in which the mesh has to converge and fall silent. Equal seeds play equally, so a [`Violation`]
//! is a recipe to see it again.

mod check;
mod faults;
mod world;

use std::fmt;

#[cfg(feature = "mutants")]
use crate::replica::Mutant;
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
    /// All of it.
    Mixed,
}

impl Class {
    /// All classes; a seed's class is its remainder.
    pub const ALL: [Class; 9] = [
        Class::Calm,
        Class::Loss,
        Class::Scramble,
        Class::Partition,
        Class::Crash,
        Class::SmallWindow,
        Class::LateJoiner,
        Class::Replay,
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
}

impl Counts {
    /// Each count with its name.
    pub fn list(&self) -> [(&'static str, u64); 21] {
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

/// What a seed has in store, apart from the dice thrown on the way.
#[derive(Clone, Debug)]
struct Plan {
    seed: u64,
    class: Class,
    /// Nodes at the start, and those that come later.
    nodes: usize,
    joiners: usize,
    /// How long traffic and faults last.
    busy_ms: u64,
    window_bytes: usize,
    /// Bursts of drafts in all, drafts in one burst.
    bursts: u64,
    burst_max: u64,
    /// Per mille of messages.
    loss: u64,
    duplicate: u64,
    reorder: u64,
    /// How often each happens.
    lossy_spells: u64,
    partitions: u64,
    crashes: u64,
    jumps: u64,
    replays: u64,
    /// Largest delay of a message, and offset of a wall clock.
    delay_max_ms: u64,
    skew_max_ms: u64,
}

impl Plan {
    fn of(seed: u64) -> Plan {
        let class = Class::of(seed);
        let mut dice = Dice(seed ^ 0x5eed);
        let round = seed / Class::ALL.len() as u64;
        let mut plan = Plan {
            seed,
            class,
            nodes: dice.range(3, 7) as usize,
            joiners: 0,
            busy_ms: dice.range(5_000, 20_000),
            window_bytes: 64 * 1024 * 1024,
            bursts: dice.range(10, 50),
            burst_max: [1, 5, 30, 200][dice.below(4) as usize],
            loss: 0,
            duplicate: 0,
            reorder: 0,
            lossy_spells: 0,
            partitions: 0,
            crashes: 0,
            jumps: 0,
            replays: 0,
            delay_max_ms: [2, 20, 100][dice.below(3) as usize],
            skew_max_ms: [0, 5_000, 300_000][dice.below(3) as usize],
        };
        if round.is_multiple_of(8) {
            plan.nodes = dice.range(8, 12) as usize;
        }
        match class {
            Class::Calm => {
                if round % 32 == 1 {
                    (plan.nodes, plan.busy_ms) = (dice.range(20, 50) as usize, 5_000);
                }
            }
            Class::Loss => {
                plan.loss = [5, 30, 150, 300][dice.below(4) as usize];
                plan.lossy_spells = dice.range(1, 10);
            }
            Class::Scramble => (plan.duplicate, plan.reorder) = (dice.range(10, 200), dice.range(10, 200)),
            Class::Partition => {
                plan.partitions = dice.range(1, 4);
                plan.busy_ms = dice.range(10_000, 40_000);
            }
            Class::Crash => {
                plan.crashes = dice.range(1, 4);
                plan.busy_ms = dice.range(5_000, 40_000);
            }
            Class::SmallWindow => {
                plan.window_bytes = dice.range(2_000, 60_000) as usize;
                plan.bursts *= 2;
                plan.burst_max = plan.burst_max.max(5);
                plan.partitions = dice.below(3);
                plan.joiners = dice.below(3) as usize;
            }
            Class::LateJoiner => {
                plan.joiners = dice.range(1, 4) as usize;
                plan.bursts *= 2;
            }
            Class::Replay => {
                plan.replays = dice.range(20, 100);
                plan.window_bytes = [plan.window_bytes, 30_000][dice.below(2) as usize];
            }
            Class::Mixed => {
                plan.loss = dice.below(50);
                plan.lossy_spells = dice.below(3);
                (plan.duplicate, plan.reorder) = (dice.below(50), dice.below(50));
                plan.partitions = dice.range(1, 3);
                plan.crashes = dice.range(1, 3);
                plan.joiners = dice.below(3) as usize;
                plan.jumps = dice.below(4);
                plan.replays = dice.below(20);
                plan.window_bytes = [plan.window_bytes, 40_000][dice.below(2) as usize];
                plan.busy_ms = dice.range(10_000, 40_000);
            }
        }
        plan.jumps = plan.jumps.max(if matches!(class, Class::Calm) { 0 } else { dice.below(2) });
        plan
    }

    /// Whether messages may come twice or late enough to be asked for twice.
    fn repeats(&self) -> bool {
        self.duplicate + self.reorder + self.loss + self.lossy_spells + self.replays + self.partitions > 0
    }
}

/// A SplitMix64 sequence (Steele et al., 2014).
#[derive(Clone, Debug)]
struct Dice(u64);

impl Dice {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// One of `0..end`; 0 if there is none.
    fn below(&mut self, end: u64) -> u64 {
        self.draw() % end.max(1)
    }

    /// One of `first..=last`.
    fn range(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    fn chance(&mut self, per_mille: u64) -> bool {
        per_mille > 0 && self.below(1_000) < per_mille
    }
}

fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
