//! hubless beside its peers, in turn and round-robin, as `make bench-peers` runs them: `target/bench/results.json`, a table and
//! a chart.
//!
//! A row is what is done, a size and a system. Ratios are of each repetition by itself, and the median of these is told: what
//! moves the machine moves both.

use std::error::Error;
use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::child::System;
use crate::workload::Plan;
use crate::{FLOOR, Flow, Outcome, flow, median, table, trip};

const SIZES: [usize; 3] = [64, 1024, 16 * 1024];
const SYSTEMS: [System; 5] = [System::Hubless, System::Libzmq, System::Zenoh, System::Redis, System::Nats];

/// Round trips begun each millisecond where there are many.
const BUSY_TRIPS_PER_MS: u64 = 100;

/// One line of results.
struct Row {
    plan: Plan,
    system: System,
    /// One of each repetition.
    flows: Vec<Flow>,
    trips: Vec<(f64, f64)>,
    /// As many, of [`BUSY_TRIPS_PER_MS`].
    busy_trips: Vec<(f64, f64)>,
}

impl Row {
    /// `PUBS-SUBS open|keyed nolog|log`.
    fn what(&self) -> String {
        let Plan { publishers, subscribers, keyed, log, .. } = self.plan;
        let (keyed, log) = (if keyed { "keyed" } else { "open" }, if log { "log" } else { "nolog" });
        format!("{publishers}-{subscribers} {keyed} {log}")
    }

    fn median(&self, value: impl Fn(&Flow) -> f64) -> f64 {
        median(self.flows.iter().map(value))
    }

    /// Of each repetition, beside that of libzmq.
    fn ratio(&self, rows: &[Row]) -> Option<f64> {
        let Plan { size, publishers, subscribers, .. } = self.plan;
        let beside = rows.iter().find(|row| {
            let plan = &row.plan;
            row.system == System::Libzmq
                && (plan.size, plan.publishers, plan.subscribers) == (size, publishers, subscribers)
        })?;
        Some(median(self.flows.iter().zip(&beside.flows).map(|(flow, other)| flow.rate / other.rate)))
    }

    fn json(&self, rows: &[Row]) -> Value {
        let rounded = |value: f64| (value.is_finite()).then(|| (value * 100.0).round() / 100.0);
        let trips = |trips: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| rounded(median(trips.iter().map(of)));
        json!({
            "what": self.what(),
            "size": self.plan.size,
            "subs": self.plan.subscribers,
            "peer": self.system.name(),
            "per_s": self.median(|flow| flow.rate).round(),
            "ratio_to_libzmq": self.ratio(rows).and_then(rounded),
            "lost": self.flows.iter().map(|flow| flow.lost + flow.doubled).sum::<u64>(),
            "p50_us": trips(&self.trips, |(p50, _)| *p50),
            "p99_us": trips(&self.trips, |(_, p99)| *p99),
            "busy_p50_us": trips(&self.busy_trips, |(p50, _)| *p50),
            "busy_p99_us": trips(&self.busy_trips, |(_, p99)| *p99),
            "cpu_us_per_msg": rounded(self.median(|flow| flow.cost.cpu_us / flow.sent as f64)),
            "rss_mib": rounded(self.median(|flow| flow.cost.rss_kib as f64 / 1024.0)),
        })
    }
}

/// All rows, those that everybody has first.
fn rows(seconds: u64) -> Vec<Row> {
    let plan = |size, (publishers, subscribers), keyed, log| Plan {
        size,
        publishers,
        subscribers,
        rooms: 1,
        in_flight: 0,
        trips_per_ms: 1,
        keyed,
        log,
        // By then windows and buffers are full, and what follows is what goes on.
        warm_ms: 1_000,
        run_ms: seconds * 1_000,
    };
    let mut rows = Vec::new();
    let mut add = |plan: Plan, systems: &[System]| {
        rows.extend(systems.iter().map(|system| Row {
            plan,
            system: *system,
            flows: Vec::new(),
            trips: Vec::new(),
            busy_trips: Vec::new(),
        }));
    };
    for size in SIZES {
        for shape in [(1, 1), (1, 4), (4, 1)] {
            add(plan(size, shape, false, false), &SYSTEMS);
        }
    }
    for size in SIZES {
        for shape in [(1, 1), (1, 4), (4, 1)] {
            for (keyed, log) in [(true, false), (false, true), (true, true)] {
                add(plan(size, shape, keyed, log), &[System::Hubless]);
            }
        }
    }
    rows
}

/// Runs all of it, or the rows that have all the words of `--only`; answers whether hubless lost and doubled nothing.
pub fn run(words: &[&str]) -> Result<bool, Box<dyn Error>> {
    let (mut repeat, mut seconds, mut only) = (5, 2, "");
    for option in words.chunks(2) {
        match option {
            ["--repeat", number] => repeat = number.parse()?,
            ["--seconds", number] => seconds = number.parse()?,
            ["--only", words] => only = words,
            _ => return Err("usage: hubless-bench peers [--repeat N] [--seconds N] [--only 'hubless 1-4 64']".into()),
        }
    }
    let mut rows = rows(seconds);
    rows.retain(|row| {
        let name = format!("{} {} {}", row.what(), row.plan.size, row.system.name());
        only.split(' ').all(|word| word.is_empty() || name.split(' ').any(|other| other == word))
    });
    let all = rows.len() * repeat;
    for repetition in 0..repeat {
        let mut order: Vec<usize> = (0..rows.len()).collect();
        if repetition % 2 == 1 {
            // Whoever goes first finds a cooler machine.
            order.reverse();
        }
        for (done, number) in order.into_iter().enumerate() {
            let row = &mut rows[number];
            let flow = flow(row.system, &row.plan)?;
            let done = repetition * (all / repeat) + done + 1;
            let what = format!("{} {} B", row.what(), row.plan.size);
            eprintln!(
                "{done}/{all}  {what:<28} {:<8} {:>10.0}/s, {:>7.2} us, lost {}",
                row.system.name(),
                flow.rate,
                flow.cost.cpu_us / flow.sent as f64,
                flow.lost + flow.doubled
            );
            row.flows.push(flow);
            let Plan { size: 64, publishers: 1, subscribers: 1, .. } = row.plan else { continue };
            for (trips_per_ms, trips) in [(1, &mut row.trips), (BUSY_TRIPS_PER_MS, &mut row.busy_trips)] {
                let outcome = trip(row.system, &Plan { trips_per_ms, ..row.plan })?;
                eprintln!("    {trips_per_ms} each ms there and back: {}", table::show(&outcome));
                if let Outcome::Trip { p50_us, p99_us, lost } = outcome {
                    trips.push((p50_us, p99_us));
                    if let Some(flow) = row.flows.last_mut() {
                        flow.lost += lost;
                    }
                }
            }
        }
    }
    let libzmq = |row: &&Row| row.system == System::Libzmq && row.plan.size == 64 && row.plan.subscribers == 1;
    if let Some(row) = rows.iter().find(libzmq).filter(|row| row.median(|flow| flow.rate) < FLOOR) {
        eprintln!("libzmq was at {:.0}/s, below {FLOOR:.0}: the machine was busy", row.median(|flow| flow.rate));
    }
    let results: Vec<Value> = rows.iter().map(|row| row.json(&rows)).collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/bench");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("results.json"), serde_json::to_string_pretty(&results)?)?;
    let table = markdown(&results, repeat);
    std::fs::write(folder.join("results.md"), &table)?;
    std::fs::write(folder.join("results.svg"), chart(&results))?;
    println!("{table}");
    let kept = |row: &Row| row.system != System::Hubless || row.flows.iter().all(|flow| flow.lost + flow.doubled == 0);
    Ok(rows.iter().all(kept))
}

fn markdown(results: &[Value], repeat: usize) -> String {
    let mut text = String::from(
        "| what | bytes | system | messages/s | beside libzmq | lost | round trip p50 / p99 µs | at 100,000/s | CPU µs/message | MiB |\n|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in results {
        let number = |key: &str| row[key].as_f64().map_or("—".into(), |value| format!("{value}"));
        let trips = |p50, p99| {
            if row[p50].is_null() { "—".into() } else { format!("{} / {}", number(p50), number(p99)) }
        };
        let (trips, busy) = (trips("p50_us", "p99_us"), trips("busy_p50_us", "busy_p99_us"));
        let word = |key: &str| row[key].as_str().unwrap_or_default().to_string();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {trips} | {busy} | {} | {} |",
            word("what"),
            row["size"],
            word("peer"),
            number("per_s"),
            number("ratio_to_libzmq"),
            row["lost"],
            number("cpu_us_per_msg"),
            number("rss_mib"),
        );
    }
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let _ = writeln!(text, "\nMedians of {repeat} repetitions, in turn, on {cores} cores; each process by itself.");
    text
}

/// Bars: how hubless stands beside libzmq, which is the line at 1.
fn chart(results: &[Value]) -> String {
    const BAR: f64 = 18.0;
    const UNIT: f64 = 160.0;
    let rows: Vec<(String, f64)> = results
        .iter()
        .filter(|row| row["peer"] == System::Hubless.name())
        .filter_map(|row| {
            let label = format!("{}, {} B", row["what"].as_str()?, row["size"]);
            Some((label, row["ratio_to_libzmq"].as_f64()?))
        })
        .collect();
    let height = BAR * rows.len() as f64 + 40.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"10\" y=\"16\">messages a second beside libzmq (the line is libzmq)</text>\n",
    );
    for (number, (label, ratio)) in rows.iter().enumerate() {
        let y = 28.0 + BAR * number as f64;
        let width = (ratio * UNIT).min(600.0);
        let _ = writeln!(
            svg,
            "<text x=\"10\" y=\"{}\">{label}</text><rect x=\"200\" y=\"{y}\" width=\"{width:.0}\" height=\"{}\" fill=\"#3b6ea5\"/>\
             <text x=\"{:.0}\" y=\"{}\">{ratio:.2}</text>",
            y + BAR - 6.0,
            BAR - 4.0,
            205.0 + width,
            y + BAR - 6.0,
        );
    }
    let x = 200.0 + UNIT;
    let _ = writeln!(svg, "<line x1=\"{x}\" x2=\"{x}\" y1=\"24\" y2=\"{}\" stroke=\"#c33\"/>\n</svg>", height - 10.0);
    svg
}
