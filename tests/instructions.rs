//! How many instructions each message takes, from draft to disk and reader: a guard that no noise of a machine fools.
//!
//! valgrind counts them, in a process of its own for each operation, and only within `hubless::count::counted`: neither
//! start-up nor what is made ready counts, nor what other threads do. The limits are those of `--profile fast`
//! (`make instructions` prints the table) on x86-64 with AVX2, of which BLAKE3 and Ed25519 make use; elsewhere all is
//! counted and nothing limited.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use hubless::count::{FULL, LARGE, OPERATIONS, SINGLE, Shape};

/// Instructions for each message at most: a tenth more than was measured, which stands behind, as incremental builds differ
/// from others by up to a twentieth; less where less held before. Whoever makes something quicker lowers its limit.
const LIMITS: &[(&str, Shape, f64)] = &[
    ("publish", FULL, 830.0),       // 752.52
    ("publish", SINGLE, 332_000.0), // 302291.82
    ("publish", LARGE, 75_500.0),   // 68628.84
    ("encode", FULL, 0.04),         // 0.02
    ("encode", SINGLE, 96.0),       // 91.05
    ("decode", FULL, 283.0),        // 257.27
    ("decode", SINGLE, 403_600.0),  // 366951.05
    ("decode", LARGE, 59_200.0),    // 53801.54
    ("take", FULL, 3.1),            // 2.85
    ("take", SINGLE, 18_300.0),     // 16755.73
    ("dedup", FULL, 0.73),          // 0.66
    ("dedup", SINGLE, 3980.0),      // 3618.05
    ("deliver", FULL, 840.0),       // 761.18
    ("deliver", SINGLE, 6330.0),    // 6201.96
    ("deliver", LARGE, 9290.0),     // 9148.28
    ("visit", FULL, 450.0),         // 411.74
    ("append", FULL, 880.0),        // 797.43
    ("append", SINGLE, 59_600.0),   // 54224.9
    ("append", LARGE, 90_200.0),    // 82017.88
];

/// Tells a process that it is one whose instructions are counted: the place of its operation in [`LIMITS`].
const COUNTED: &str = "HUBLESS_COUNTED";

#[test]
fn no_message_takes_more_instructions_than_it_did() {
    if let Ok(place) = std::env::var(COUNTED) {
        return run(place.parse().unwrap());
    }
    let started = Instant::now();
    let limited = has_avx2();
    let mut over = Vec::new();
    println!("{:<9}{:<8}{:>12}{:>12}", "", "", "counted", "limit");
    for (place, (operation, shape, limit)) in LIMITS.iter().enumerate() {
        let (counted, file) = count(place);
        println!("{operation:<9}{:<8}{counted:>12.2}{limit:>12.2}", shape.name);
        if limited && counted > *limit {
            over.push(format!(
                "{operation}, {}: {counted:.2} instructions for each message, the limit is {limit:.2}. They go where \
                 `callgrind_annotate --inclusive=yes {}` says.",
                shape.name,
                file.display()
            ));
        }
    }
    println!("in {:.1} s{}", started.elapsed().as_secs_f64(), if limited { "" } else { ", not limited without AVX2" });
    assert!(over.is_empty(), "limits of --profile fast are passed:\n{}", over.join("\n"));
}

/// Has valgrind count one operation, in this very test, run once more; answers how many it is for each message, and where
/// valgrind has written what went where.
fn count(place: usize) -> (f64, PathBuf) {
    let (operation, shape, _) = LIMITS[place];
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("instructions");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join(format!("{operation}-{}.out", shape.name.replace(' ', "")));
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--quiet", "--tool=callgrind", "--toggle-collect=hubless::count::counted*"]);
    valgrind.arg(format!("--callgrind-out-file={}", file.display())).arg(std::env::current_exe().unwrap());
    valgrind.args(["--exact", "no_message_takes_more_instructions_than_it_did"]).env(COUNTED, place.to_string());
    let output = valgrind.output().expect("valgrind runs; `make setup` installs it");
    assert!(output.status.success(), "{operation}, {}: {output:?}", shape.name);
    let written = std::fs::read_to_string(&file).unwrap();
    let total = written.lines().find_map(|line| line.strip_prefix("totals: ")).expect("callgrind writes totals");
    let total: f64 = total.trim().parse().unwrap();
    assert!(total > 0.0, "{operation}, {}: nothing was counted; is `hubless::count::counted` there?", shape.name);
    (total / (times(shape) * shape.messages) as f64, file)
}

fn run(place: usize) {
    let (name, shape, _) = LIMITS[place];
    let operation = OPERATIONS.iter().find(|operation| operation.name == name).expect("there is such an operation");
    operation.run(shape, times(shape), tempfile::tempdir().unwrap().path());
}

/// How many batches are counted: of small ones so many that what happens now and then has its share.
fn times(shape: Shape) -> usize {
    if shape == SINGLE { 256 } else { 16 }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    std::is_x86_feature_detected!("avx2")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}
