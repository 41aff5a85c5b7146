//! What a process has cost so far.

use std::fmt::{self, Display};
use std::str::FromStr;

/// The clock of `/proc`, in ticks a second, on every Linux of today.
const TICKS_PER_S: f64 = 100.0;

/// Processor time and memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Of all threads, in microseconds.
    pub cpu_us: f64,
    /// The most it ever held.
    pub rss_kib: u64,
}

impl Cost {
    /// Of this process.
    pub fn own() -> Cost {
        Cost::of("self")
    }

    /// Of a process by its id; nothing if it has gone.
    pub fn of(pid: impl Display) -> Cost {
        let read = |name| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let stat = read("stat");
        // The name of the program, in brackets, may hold anything.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
        let ticks: f64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
        let status = read("status");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB"));
        let rss_kib = peak.and_then(|kib| kib.trim().parse().ok()).unwrap_or_default();
        Cost { cpu_us: ticks / TICKS_PER_S * 1e6, rss_kib }
    }

    /// With another process of the same run: the processor time of both, the memory of the larger one.
    pub fn and(self, other: Cost) -> Cost {
        Cost { cpu_us: self.cpu_us + other.cpu_us, rss_kib: self.rss_kib.max(other.rss_kib) }
    }
}

impl Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.cpu_us, self.rss_kib)
    }
}

impl FromStr for Cost {
    type Err = String;
    fn from_str(text: &str) -> Result<Cost, String> {
        let words = text.split_once(' ').ok_or_else(|| format!("`{text}` is no cost"))?;
        let wrong = |error: &dyn Display| format!("`{text}`: {error}");
        Ok(Cost {
            cpu_us: words.0.parse().map_err(|error| wrong(&error))?,
            rss_kib: words.1.parse().map_err(|error| wrong(&error))?,
        })
    }
}
