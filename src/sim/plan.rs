//! What a seed has in store, apart from the dice thrown on the way.

use super::Class;
use super::disk::Retention;

/// Everything, for ever.
const KEEP_ALL: Retention = Retention { age_ms: 400 * 24 * 3_600_000, bytes: u64::MAX };
/// 40 days.
const FAR_MS: i64 = 40 * 24 * 3_600_000;

/// What a seed has in store.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub seed: u64,
    pub class: Class,
    /// Nodes at the start, those that come later, copies of others, and those that lie.
    pub nodes: usize,
    pub joiners: usize,
    pub clones: usize,
    pub hostiles: usize,
    /// Per mille of the hosts that have a disk.
    pub disks: u64,
    pub retention: Retention,
    /// How long a sync takes at least and at most, in milliseconds, and an answer of the disk at most.
    pub sync_ms: (u64, u64),
    pub read_ms_max: u64,
    /// How long traffic and faults last.
    pub busy_ms: u64,
    pub window_bytes: usize,
    /// Bursts of drafts in all, drafts in one burst.
    pub bursts: u64,
    pub burst_max: u64,
    /// Bursts of one host that says far more than others, and how many drafts in each.
    pub floods: u64,
    pub flood_max: u64,
    /// What is on its way over a link at most, and what it carries in a millisecond.
    pub link_bytes_max: usize,
    pub link_bytes_per_ms: u64,
    /// Per mille of messages.
    pub loss: u64,
    pub duplicate: u64,
    pub reorder: u64,
    /// How often each happens.
    pub lossy_spells: u64,
    pub partitions: u64,
    pub crashes: u64,
    pub power_cuts: u64,
    pub snapshots: u64,
    pub disk_failures: u64,
    pub quarantines: u64,
    pub jumps: u64,
    pub replays: u64,
    pub lies: u64,
    /// Per mille of the restarts with a disk that went back in time, or with an empty one.
    pub restores: u64,
    pub lost_disks: u64,
    /// Largest delay of a message, and offset of a wall clock.
    pub delay_max_ms: u64,
    pub skew_max_ms: u64,
    /// Offsets of the wall clocks of the first hosts; `None` is 1970.
    pub clocks: Vec<Option<i64>>,
}

impl Plan {
    pub fn of(seed: u64) -> Plan {
        let class = Class::of(seed);
        let mut dice = Dice(seed ^ 0x5eed);
        let round = seed / Class::ALL.len() as u64;
        let mut plan = Plan {
            seed,
            class,
            nodes: dice.range(3, 7) as usize,
            joiners: 0,
            clones: 0,
            hostiles: 0,
            disks: if dice.chance(250) { 0 } else { [1_000, 800][dice.below(2) as usize] },
            retention: KEEP_ALL,
            sync_ms: [(1, 5), (5, 50), (1, 300)][dice.below(3) as usize],
            read_ms_max: [1, 20, 200][dice.below(3) as usize],
            busy_ms: dice.range(5_000, 20_000),
            window_bytes: 64 * 1024 * 1024,
            bursts: dice.range(10, 50),
            burst_max: [1, 5, 30, 200][dice.below(4) as usize],
            floods: 0,
            flood_max: 0,
            link_bytes_max: usize::MAX / 2,
            link_bytes_per_ms: u64::MAX,
            loss: 0,
            duplicate: 0,
            reorder: 0,
            lossy_spells: 0,
            partitions: 0,
            crashes: 0,
            power_cuts: 0,
            snapshots: 0,
            disk_failures: 0,
            quarantines: 0,
            jumps: 0,
            replays: 0,
            lies: 0,
            restores: 0,
            lost_disks: 0,
            delay_max_ms: [2, 20, 100][dice.below(3) as usize],
            skew_max_ms: [0, 5_000, 300_000][dice.below(3) as usize],
            clocks: Vec::new(),
        };
        if round.is_multiple_of(8) {
            plan.nodes = dice.range(8, 12) as usize;
        }
        plan.befall(round, &mut dice);
        plan.jumps = plan.jumps.max(if matches!(class, Class::Calm) { 0 } else { dice.below(2) });
        plan
    }

    /// What the class brings.
    fn befall(&mut self, round: u64, dice: &mut Dice) {
        let plan = self;
        match plan.class {
            Class::Calm => {
                if round % 40 == 1 {
                    (plan.nodes, plan.busy_ms) = (dice.range(20, 50) as usize, 3_000);
                    (plan.bursts, plan.burst_max) = (10, plan.burst_max.min(5));
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
                plan.disks = [0, plan.disks][dice.below(2) as usize];
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
            Class::PowerCut => {
                plan.disks = 1_000;
                plan.power_cuts = dice.range(1, 3);
                plan.crashes = dice.range(1, 6);
                plan.sync_ms = [(1, 300), (50, 3_000), (300, 300)][dice.below(3) as usize];
                plan.busy_ms = dice.range(5_000, 30_000);
            }
            Class::BackInTime => {
                plan.disks = 1_000;
                plan.snapshots = dice.range(2, 6);
                plan.crashes = dice.range(2, 5);
                (plan.restores, plan.lost_disks) = (dice.range(200, 700), dice.below(300));
                plan.clones = dice.below(3) as usize;
                plan.busy_ms = dice.range(10_000, 40_000);
            }
            Class::DiskTrouble => {
                plan.disks = 900;
                plan.disk_failures = dice.below(4);
                plan.quarantines = dice.below(3) + u64::from(plan.disk_failures == 0);
                plan.sync_ms = [(1, 300), (500, 5_000)][dice.below(2) as usize];
                plan.read_ms_max = [20, 700][dice.below(2) as usize];
                plan.window_bytes = [plan.window_bytes, 40_000][dice.below(2) as usize];
                plan.crashes = dice.below(2);
                plan.busy_ms = dice.range(5_000, 40_000);
            }
            Class::Retention => {
                plan.disks = 800;
                plan.retention = match dice.below(3) {
                    0 => Retention { age_ms: dice.range(3_000, 30_000), ..plan.retention },
                    1 => Retention { bytes: dice.range(2_000, 100_000), ..plan.retention },
                    _ => Retention { age_ms: dice.range(5_000, 60_000), bytes: dice.range(5_000, 300_000) },
                };
                plan.busy_ms = dice.range(20_000, 60_000);
                plan.bursts *= 2;
                plan.crashes = dice.below(3);
                plan.partitions = dice.below(2);
                plan.joiners = dice.below(3) as usize;
            }
            Class::Clocks => {
                plan.disks = 1_000;
                let odd = [None, Some(FAR_MS), Some(-FAR_MS), Some(90_000), Some(-7_200_000)];
                plan.clocks = (0..dice.range(1, 2)).map(|_| odd[dice.below(5) as usize]).collect();
                plan.jumps = dice.below(3);
                plan.crashes = dice.range(1, 3);
                plan.joiners = dice.below(2) as usize;
                if dice.chance(500) {
                    plan.retention = Retention { age_ms: dice.range(10_000, 120_000), bytes: u64::MAX };
                }
                plan.busy_ms = dice.range(15_000, 40_000);
            }
            Class::Flood => {
                plan.floods = dice.range(20, 60);
                plan.flood_max = dice.range(50, 300);
                plan.link_bytes_max = dice.range(64, 512) as usize * 1024;
                plan.link_bytes_per_ms = dice.range(2, 40) * 100;
                plan.window_bytes = [plan.window_bytes, 500_000][dice.below(2) as usize];
                plan.burst_max = plan.burst_max.min(30);
            }
            Class::Hostile => {
                plan.hostiles = dice.range(1, 2) as usize;
                plan.lies = dice.range(5, 25);
                plan.crashes = dice.below(2);
                plan.window_bytes = [plan.window_bytes, 60_000][dice.below(2) as usize];
            }
            Class::Mixed => {
                plan.loss = dice.below(50);
                plan.lossy_spells = dice.below(3);
                (plan.duplicate, plan.reorder) = (dice.below(50), dice.below(50));
                plan.partitions = dice.range(1, 3);
                plan.crashes = dice.range(1, 3);
                plan.power_cuts = dice.below(2);
                plan.quarantines = dice.below(2);
                plan.disk_failures = dice.below(2);
                plan.snapshots = dice.below(3);
                plan.restores = [0, 300][dice.below(2) as usize];
                plan.clones = dice.below(2) as usize;
                plan.joiners = dice.below(3) as usize;
                plan.jumps = dice.below(4);
                plan.replays = dice.below(20);
                plan.window_bytes = [plan.window_bytes, 40_000][dice.below(2) as usize];
                plan.busy_ms = dice.range(10_000, 40_000);
            }
        }
    }

    pub fn hosts(&self) -> usize {
        self.nodes + self.joiners + self.clones + self.hostiles
    }

    /// Whether logs let something go.
    pub fn retains(&self) -> bool {
        self.retention.age_ms != KEEP_ALL.age_ms || self.retention.bytes != KEEP_ALL.bytes
    }

    /// Whether messages may come twice or late enough to be asked for twice.
    pub fn repeats(&self) -> bool {
        let scrambled = self.duplicate + self.reorder + self.loss + self.lossy_spells + self.replays + self.partitions;
        scrambled + self.floods + self.lies > 0 || self.read_ms_max > 500
    }
}

/// A SplitMix64 sequence (Steele et al., 2014).
#[derive(Clone, Debug)]
pub(super) struct Dice(pub u64);

impl Dice {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// One of `0..end`; 0 if there is none.
    pub fn below(&mut self, end: u64) -> u64 {
        self.draw() % end.max(1)
    }

    /// One of `first..=last`.
    pub fn range(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    pub fn chance(&mut self, per_mille: u64) -> bool {
        per_mille > 0 && self.below(1_000) < per_mille
    }
}

pub(super) fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
