//! Thousands of seeded meshes with faults; see `hubless::sim`.
//!
//! `SEEDS=n` (or `COUNT=n`) plays that many seeds instead of 2,000 (50,000 with `HUBLESS_SOAK=1`); `FIRST=n` begins there; `SEED=n` plays
//! one and shows what happened.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use hubless::replica::Mutant;
use hubless::sim::{self, Class, Report, Violation};

/// Each mutant must be found within so many seeds.
const MUTANT_SEEDS: u64 = 180;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")))
}

/// Plays `seeds` on all cores until `enough` says so; reports come in any order.
fn play_all(
    seeds: std::ops::Range<u64>,
    play: impl Fn(u64) -> Result<Report, Violation> + Sync,
    enough: impl Fn(&[Violation]) -> bool + Sync,
) -> (Vec<Report>, Vec<Violation>) {
    let next = AtomicU64::new(seeds.start);
    let done = Mutex::new((Vec::new(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, |cores| cores.get()) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let played = play(seed);
                    let mut done = done.lock().unwrap();
                    match played {
                        Ok(report) => done.0.push(report),
                        Err(violation) => done.1.push(violation),
                    }
                    if enough(&done.1) {
                        break;
                    }
                }
            });
        }
    });
    let (reports, mut violations) = done.into_inner().unwrap();
    violations.sort_by_key(|violation| violation.seed);
    (reports, violations)
}

/// Appends a line to the file that collects the results of long runs, if there is one.
fn soak(what: &str, count: u64, failures: usize, seed: u64, began: Instant) {
    let Ok(file) = std::env::var("HUBLESS_SOAK_FILE") else { return };
    let seconds = began.elapsed().as_secs_f64();
    let commit = std::env::var("HUBLESS_COMMIT").map_or("null".into(), |commit| format!(r#""{commit}""#));
    let line = format!(
        r#"{{"what":"{what}","count":{count},"failures":{failures},"seed":{seed},"seconds":{seconds:.1},"commit":{commit}}}"#
    );
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(file).unwrap();
    writeln!(file, "{line}").unwrap();
}

#[test]
fn one_seed() {
    let Some(seed) = number("SEED") else { return };
    match sim::run(seed) {
        Ok(report) => println!("{report:#?}"),
        Err(violation) => panic!("{violation}"),
    }
}

#[test]
fn the_invariants_hold_for_every_seed() {
    let began = Instant::now();
    let first = number("FIRST").unwrap_or(0);
    let soak_wanted = std::env::var("HUBLESS_SOAK").is_ok_and(|value| value == "1");
    let count = number("SEEDS").or(number("COUNT")).unwrap_or(if soak_wanted { 50_000 } else { 2_000 });
    let (reports, violations) = play_all(first..first + count, sim::run, |violations| violations.len() >= 20);
    let mut classes: BTreeMap<Class, BTreeMap<&str, u64>> = BTreeMap::new();
    for report in &reports {
        let sums = classes.entry(report.class).or_default();
        *sums.entry("seeds").or_default() += 1;
        *sums.entry("simulated_s").or_default() += report.simulated_ms / 1_000;
        for (name, count) in report.counts.list() {
            let sum = sums.entry(name).or_default();
            *sum = sum.saturating_add(count);
        }
    }
    for (class, sums) in &classes {
        let shown: Vec<String> =
            sums.iter().filter(|(_, sum)| **sum > 0).map(|(name, sum)| format!("{name} {sum}")).collect();
        println!("{class:?}: {}", shown.join(", "));
    }
    println!("{} seeds in {:.1} s, {} violations", reports.len(), began.elapsed().as_secs_f64(), violations.len());
    soak("simulation", reports.len() as u64 + violations.len() as u64, violations.len(), first, began);
    assert!(violations.is_empty(), "{}", violations.iter().map(|v| format!("{v}\n")).collect::<String>());
    let twins: u64 = reports.iter().map(|report| report.counts.twins).sum();
    assert!(count < 100 || twins > 0, "no key was used twice");
    // A single run allows for answers that were on their way when their source died; of all runs that is next to nothing.
    let sum = |name| classes.values().map(|sums| sums[name]).sum::<u64>();
    let (repaired, twice) = (sum("repaired_bytes"), sum("repaired_bytes_twice"));
    assert!(count < 100 || (repaired > 0 && twice < repaired / 20), "of {repaired} bytes {twice} were repaired again");
    for (class, sums) in &classes {
        for fault in faults(*class) {
            assert!(count < 100 || sums[fault] > 0, "{class:?} had no {fault}");
        }
    }
}

/// What has to happen in a class, or its seeds prove nothing.
fn faults(class: Class) -> &'static [&'static str] {
    match class {
        Class::Calm => &["published", "delivered"],
        Class::Loss => &["losses", "requests", "repaired_bytes"],
        Class::Scramble => &["duplicates", "reordered"],
        Class::Partition => &["partitions", "one_way", "repaired_bytes", "late"],
        Class::Crash => &["crashes", "goodbyes", "restarts"],
        Class::SmallWindow => &["evictions", "missing", "gaps"],
        Class::LateJoiner => &["joins", "repaired_bytes"],
        Class::Replay => &["replays"],
        Class::PowerCut => &["power_cuts", "lost_orders", "stored", "crashes"],
        Class::BackInTime => &["restores", "lost_disks", "clones"],
        Class::DiskTrouble => &["disk_failures", "quarantines", "loads"],
        Class::Retention => &["expired"],
        Class::Clocks => &["odd_clocks"],
        Class::Flood => &["floods", "link_drops"],
        Class::Hostile => &["lies"],
        Class::Mixed => {
            &["losses", "duplicates", "reordered", "partitions", "crashes", "restarts", "joins", "jumps", "replays"]
        }
    }
}

#[test]
fn equal_seeds_leave_equal_traces() {
    for seed in (0..Class::ALL.len() as u64).chain([100, 1_001]) {
        assert_eq!(sim::run(seed), sim::run(seed));
    }
}

/// The checks bite: each bug, planted in every node, breaks an invariant before long.
#[test]
fn every_planted_bug_is_found() {
    let mut missed = Vec::new();
    for mutant in Mutant::ALL {
        let began = Instant::now();
        let (reports, found) = play_all(
            0..number("MUTANT_SEEDS").unwrap_or(MUTANT_SEEDS),
            |seed| sim::run_planted(seed, mutant),
            |found| !found.is_empty(),
        );
        match found.first() {
            Some(Violation { seed, class, what, .. }) => println!("mutant {mutant:?}: seed {seed} ({class:?}): {what}"),
            None => missed.push(mutant),
        }
        soak(&format!("mutant {mutant:?}"), reports.len() as u64 + 1, found.is_empty().into(), 0, began);
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
