//! How often tests repeat their claims, and where they write what came of it.
//!
//! Small counts by default; `HUBLESS_SOAK=1` asks for the large ones, `COUNT` for any. With `HUBLESS_SOAK_FILE` each claim
//! appends a JSON line.

use std::io::Write;
use std::time::Instant;

use serde_json::{Value, json};

/// Whether the large counts are wanted.
pub fn wanted() -> bool {
    std::env::var("HUBLESS_SOAK").is_ok_and(|value| value == "1")
}

/// How often to repeat a claim.
pub fn count(small: usize, large: usize) -> usize {
    let asked = std::env::var("COUNT").ok().map(|count| count.parse().expect("COUNT is a number"));
    asked.unwrap_or(if wanted() { large } else { small })
}

/// One claim of a test; dropped while panicking it counts as failed.
#[derive(Debug)]
pub struct Claim {
    what: &'static str,
    count: usize,
    seed: Option<u64>,
    started: Instant,
    more: Value,
}

impl Claim {
    /// Begins to show that `what` holds `count` times.
    pub fn new(what: &'static str, count: usize) -> Claim {
        Claim { what, count, seed: None, started: Instant::now(), more: json!({}) }
    }

    /// The seed of its chance, for the line.
    pub fn seeded(&mut self, seed: u64) {
        self.seed = Some(seed);
    }

    /// What was measured, for the line.
    pub fn measured(&mut self, key: &str, value: impl Into<Value>) {
        self.more[key] = value.into();
    }

    /// The median and the worst of some times, for the line.
    pub fn times_ms(&mut self, key: &str, mut times_ms: Vec<f64>) -> (f64, f64) {
        times_ms.sort_by(f64::total_cmp);
        let tenths = |time: f64| (time * 10.0).round() / 10.0;
        let (median, worst) = (tenths(times_ms[times_ms.len() / 2]), tenths(times_ms[times_ms.len() - 1]));
        self.more[key] = json!({ "median": median, "worst": worst });
        (median, worst)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut line = json!({
            "what": self.what,
            "count": self.count,
            "failures": u8::from(std::thread::panicking()),
            "seed": self.seed,
            "seconds": self.started.elapsed().as_secs(),
            "commit": std::env::var("HUBLESS_COMMIT").ok(),
        });
        if let (Value::Object(line), Value::Object(more)) = (&mut line, self.more.take()) {
            line.extend(more);
        }
        println!("{line}");
        if let Ok(path) = std::env::var("HUBLESS_SOAK_FILE") {
            let file = std::fs::File::options().create(true).append(true).open(path);
            let written = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
            if let Err(error) = written {
                eprintln!("HUBLESS_SOAK_FILE: {error}");
            }
        }
    }
}

/// The time that 99 of 100 do not exceed.
#[track_caller]
pub fn p99(mut times_ms: Vec<f64>) -> f64 {
    assert!(!times_ms.is_empty(), "nothing was measured");
    times_ms.sort_by(f64::total_cmp);
    times_ms[(times_ms.len() * 99 / 100).min(times_ms.len() - 1)]
}
