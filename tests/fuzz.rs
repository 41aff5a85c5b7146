//! A smoke of each target of the fuzzer: what it begins with, what was once found, and changes of these.
//!
//! `COUNT=n` changes n times. `make fuzz` searches on, guided by what it reaches. What it finds is kept in
//! `tests/fuzz/found/TARGET/`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use common::dice::Dice;
use common::soak::{self, Claim};
use hubless::fuzz::{TARGETS, Target};

/// An input does not grow beyond this.
const BYTES_MAX: usize = 8 * 1024;

fn found(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/found").join(target.name);
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Changes bytes as damage, accidents and attackers do.
fn change(dice: &mut Dice, known: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = dice.pick(known).clone();
    for _ in 0..dice.within(1..8) {
        let at = dice.below(bytes.len() as u64 + 1) as usize;
        let to = (at + dice.within(1..32) as usize).min(bytes.len());
        match dice.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            1 if at < bytes.len() => bytes[at] = *dice.pick(&[0, 1, 0x7f, 0x80, 250, 251, 252, 253, 0xff]),
            2 => drop(bytes.drain(at..to)),
            3 => bytes.splice(at..at, (at..to).map(|_| dice.below(256) as u8).collect::<Vec<_>>()).for_each(drop),
            4 => bytes.extend_from_within(at..to),
            5 => bytes.truncate(at),
            _ => {
                let other = dice.pick(known);
                let from = dice.below(other.len() as u64 + 1) as usize;
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes.truncate(BYTES_MAX);
    bytes
}

#[test]
fn no_bytes_do_what_must_not_happen() {
    let count = soak::count(20_000, 2_000_000);
    let mut claim = Claim::new("fuzz: changed inputs of each target", count);
    let mut dice = Dice::new();
    claim.seeded(dice.seed);
    for target in TARGETS {
        let mut known = (target.seeds)();
        known.extend(found(target));
        known.iter().for_each(|bytes| (target.play)(bytes));
        for _ in 0..count {
            let bytes = change(&mut dice, &known);
            let played = std::panic::catch_unwind(|| (target.play)(&bytes));
            assert!(played.is_ok(), "{}: seed {}, {}", target.name, dice.seed, hex(&bytes));
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
