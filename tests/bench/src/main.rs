//! Throughput, loss and round trip of hubless, side by side with libzmq, as a Markdown table.
//!
//! Each run is made of separate processes on this machine; the systems take turns within one repetition, since a machine's
//! hour moves numbers more than most changes do. A repetition in which libzmq does not reach [`FLOOR`] is void: the machine
//! was busy. Exit code 1 when hubless lost or doubled a message, or every repetition was void.
//!
//! `hubless-bench [--repeat N] [--seconds N] [--only hubless|libzmq]`, `hubless-bench durable` for the log, or
//! `hubless-bench bridges` for bridges to brokers of its own.

mod bridges;
mod child;
mod durable;
mod libzmq;
mod node;
mod table;
mod workload;

use std::error::Error;
use std::process::ExitCode;

use child::{Child, System};
use workload::{Heard, Plan};

/// Messages a second that libzmq must reach at 64 B, 1→1.
const FLOOR: f64 = 2e6;

/// What one run measured.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// Messages a second at each subscriber, and what went wrong over all of them.
    Flow { rate: f64, lost: u64, doubled: u64 },
    /// Microseconds, and how many never came back.
    Trip { p50_us: f64, p99_us: f64, lost: u64 },
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub title: &'static str,
    pub plan: Plan,
    pub trips: bool,
    /// What libzmq has nothing like.
    pub hubless_only: bool,
    /// The row of hubless that it is compared with, and what that is.
    pub beside: Option<(usize, &'static str)>,
}

fn rows(seconds: u64) -> Vec<Row> {
    let plan = |size, subscribers| Plan {
        size,
        subscribers,
        rooms: 1,
        in_flight: 0,
        keyed: false,
        warm_ms: 500,
        run_ms: seconds * 1_000,
    };
    let row = |title, plan| Row { title, plan, trips: false, hubless_only: false, beside: None };
    let beside = |title, plan, other, what| Row { hubless_only: true, beside: Some((other, what)), ..row(title, plan) };
    vec![
        row("64 B, 1→1", plan(64, 1)),
        row("64 B, 1→4", plan(64, 4)),
        row("1 KiB, 1→1", plan(1024, 1)),
        row("1 KiB, 1→4", plan(1024, 4)),
        row("16 KiB, 1→1", plan(16 * 1024, 1)),
        row("16 KiB, 1→4", plan(16 * 1024, 4)),
        // A room is a field, so many must cost what one does.
        beside("64 B, 1→1, 16 rooms in turns", Plan { rooms: 16, ..plan(64, 1) }, 0, "one room"),
        beside("64 B, 1→1, keyed", Plan { keyed: true, ..plan(64, 1) }, 0, "open"),
        beside("16 KiB, 1→1, keyed", Plan { keyed: true, ..plan(16 * 1024, 1) }, 4, "open"),
        Row {
            hubless_only: true,
            ..row("64 B, 1→1, a call each, 512 at once", Plan { in_flight: 512, ..plan(64, 1) })
        },
        Row { trips: true, ..row("round trip, 64 B, 1,000/s", plan(64, 1)) },
    ]
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["durable"] => durable::run(),
        ["bridges"] => bridges::run(),
        ["child", system, role, ref words @ ..] => be_child(system, role, words).map(|()| true),
        _ => compare(&words),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(words: &[&str]) -> Result<bool, Box<dyn Error>> {
    let (mut repeat, mut seconds, mut systems) = (3, 3, vec![System::Hubless, System::Libzmq]);
    for option in words.chunks(2) {
        match option {
            ["--repeat", number] => repeat = number.parse()?,
            ["--seconds", number] => seconds = number.parse()?,
            ["--only", "hubless"] => systems = vec![System::Hubless],
            ["--only", "libzmq"] => systems = vec![System::Libzmq],
            _ => return Err("usage: hubless-bench [--repeat N] [--seconds N] [--only hubless|libzmq]".into()),
        }
    }
    let rows = rows(seconds);
    let mut results = table::Results::default();
    for repetition in 0..repeat {
        for (number, row) in rows.iter().enumerate() {
            // Whoever goes first finds a cooler machine.
            systems.reverse();
            for system in systems.iter().copied().filter(|system| !row.hubless_only || *system == System::Hubless) {
                let outcome = if row.trips { trip(system, &row.plan)? } else { flow(system, &row.plan)? };
                eprintln!(
                    "{}/{repeat}  {:<36} {:<8} {}",
                    repetition + 1,
                    row.title,
                    system.name(),
                    table::show(&outcome)
                );
                results.add(repetition, number, system, outcome);
            }
        }
    }
    println!("{}", results.markdown(&rows, repeat, FLOOR));
    Ok(results.is_sound(repeat, FLOOR))
}

/// One publisher, some subscribers, as fast as it goes.
fn flow(system: System, plan: &Plan) -> Result<Outcome, Box<dyn Error>> {
    let words = plan.to_string();
    let mut publisher = Child::start(system, "publisher", &[&words])?;
    let place = publisher.hear("ready ")?;
    let subscriber = |number: usize| Child::start(system, "subscriber", &[&words, &place, &number.to_string()]);
    let subscribers = (0..plan.subscribers).map(subscriber).collect::<Result<Vec<_>, _>>()?;
    for subscriber in &subscribers {
        subscriber.hear("joined")?;
    }
    publisher.order("go")?;
    let sent: u64 = publisher.hear("sent ")?.parse()?;
    let mut outcome = (0.0, 0, 0);
    for subscriber in &subscribers {
        let heard: Heard = subscriber.hear("heard ")?.parse()?;
        outcome.0 += heard.rate / plan.subscribers as f64;
        outcome.1 += sent - heard.distinct;
        outcome.2 += heard.doubled;
    }
    publisher.order("end")?;
    let (rate, lost, doubled) = outcome;
    Ok(Outcome::Flow { rate, lost, doubled })
}

/// There and back at a fixed rate.
fn trip(system: System, plan: &Plan) -> Result<Outcome, Box<dyn Error>> {
    let words = plan.to_string();
    let mut pinger = Child::start(system, "pinger", &[&words])?;
    let place = pinger.hear("ready ")?;
    let echoer = Child::start(system, "echoer", &[&words, &place])?;
    echoer.hear("joined")?;
    pinger.order("go")?;
    let report = pinger.hear("trips ")?;
    let numbers = report.split(' ').map(str::parse).collect::<Result<Vec<f64>, _>>()?;
    let [back, p50_us, p99_us] = numbers[..] else { return Err(format!("`{report}` is no report").into()) };
    let lost = (plan.run_ms * workload::TRIPS_PER_S / 1_000).saturating_sub(back as u64);
    Ok(Outcome::Trip { p50_us, p99_us, lost })
}

fn be_child(system: &str, role: &str, words: &[&str]) -> Result<(), Box<dyn Error>> {
    let plan: Plan = words.first().ok_or("no plan")?.parse()?;
    let place = words.get(1).copied().unwrap_or_default();
    let number: u8 = words.get(2).map_or(Ok(0), |number| number.parse())?;
    if system == System::Libzmq.name() {
        return Ok(match role {
            "publisher" => libzmq::publisher(&plan),
            "subscriber" => libzmq::subscriber(&plan, place, number),
            "pinger" => libzmq::pinger(&plan),
            _ => libzmq::echoer(place),
        }?);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = runtime.block_on(async {
        match role {
            "publisher" => node::publisher(&plan).await,
            "subscriber" => node::subscriber(&plan, place, number).await,
            "pinger" => node::pinger(&plan).await,
            _ => node::echoer(place).await,
        }
    });
    done.map_err(|error| error as Box<dyn Error>)
}
