//! libFuzzer drives the target that `FUZZ` names, with or without the last word of its corpus.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use hubless::fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ").unwrap_or_default();
    let target = TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        panic!("FUZZ is one of {}", names.join(", "))
    });
    // What is sound is where it begins.
    if let Some(corpus) = std::env::var_os("FUZZ_CORPUS").map(PathBuf::from) {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(corpus.join(format!("seed-{number}")), seed).expect("the corpus can be written");
        }
    }
    target
});

fuzz_target!(init: { LazyLock::force(&TARGET); }, |bytes: &[u8]| (TARGET.play)(bytes));
