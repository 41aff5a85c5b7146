//! Throughput, loss and round trip of hubless, side by side with libzmq, as a Markdown table.
//!
//! Each run is made of separate processes on this machine; the systems take turns within one repetition, since a machine's
//! hour moves numbers more than most changes do. A repetition in which libzmq does not reach [`FLOOR`] is void: the machine
//! was busy. Exit code 1 when hubless lost or doubled a message, or every repetition was void.
//!
//! `hubless-bench [--repeat N] [--seconds N] [--only hubless|libzmq]`, `hubless-bench peers` for more rows and a file of
//! results, `hubless-bench durable` for the log, `hubless-bench bridges` for bridges to brokers of its own, or `hubless-bench
//! sockets` for the WebSockets of one node.

mod bridges;
mod broker;
mod child;
mod cost;
mod durable;
mod libzmq;
mod nats_peer;
mod node;
mod peers;
mod pubsub;
mod redis_peer;
mod sockets;
mod table;
mod workload;
mod zenoh_peer;

use std::error::Error;
use std::process::ExitCode;

use broker::Broker;
use child::{Child, System};
use cost::Cost;
use nats_peer::Nats;
use pubsub::Client;
use redis_peer::Redis;
use workload::{Heard, Plan};
use zenoh_peer::Zenoh;

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
        publishers: 1,
        subscribers,
        rooms: 1,
        in_flight: 0,
        trips_per_ms: 1,
        keyed: false,
        log: false,
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
        Row { trips: true, ..row("round trip, 64 B, 100,000/s", Plan { trips_per_ms: 100, ..plan(64, 1) }) },
    ]
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["durable"] => durable::run(),
        ["bridges"] => bridges::run(),
        ["sockets", ref words @ ..] => sockets::run(words),
        ["peers", ref words @ ..] => peers::run(words),
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
                let outcome = if row.trips { trip(system, &row.plan)? } else { flow(system, &row.plan)?.into() };
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

/// What a run as fast as it goes measured.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    /// Messages a second at each subscriber.
    rate: f64,
    sent: u64,
    /// Over all subscribers.
    lost: u64,
    doubled: u64,
    /// Of all processes.
    cost: Cost,
}

impl From<Flow> for Outcome {
    fn from(Flow { rate, lost, doubled, .. }: Flow) -> Outcome {
        Outcome::Flow { rate, lost, doubled }
    }
}

/// Some publishers, some subscribers, as fast as it goes.
fn flow(system: System, plan: &Plan) -> Result<Flow, Box<dyn Error>> {
    let words = plan.to_string();
    let (broker, folder) = (Broker::start(system)?, tempfile::tempdir()?);
    let mut publishers: Vec<Child> = Vec::new();
    let mut places: Vec<String> = broker.iter().map(|broker| broker.place.clone()).collect();
    for number in 0..plan.publishers {
        let first = places.first().map_or("", String::as_str);
        let publisher = Child::start(system, "publisher", &[&words, first, &number.to_string()], folder.path())?;
        places.push(publisher.hear("ready ")?);
        publishers.push(publisher);
    }
    let places = places.join(" ");
    let subscriber =
        |number: usize| Child::start(system, "subscriber", &[&words, &places, &number.to_string()], folder.path());
    let subscribers = (0..plan.subscribers).map(subscriber).collect::<Result<Vec<_>, _>>()?;
    for subscriber in &subscribers {
        subscriber.hear("joined")?;
    }
    for publisher in &mut publishers {
        publisher.order("go")?;
    }
    let mut flow = Flow::default();
    for publisher in &publishers {
        let said = publisher.hear("sent ")?;
        let (sent, cost) = said.split_once(' ').ok_or("no cost")?;
        flow.sent += sent.parse::<u64>()?;
        flow.cost = flow.cost.and(cost.parse()?);
    }
    for subscriber in &subscribers {
        let said = subscriber.hear("heard ")?;
        let (at, _) = said.match_indices(' ').nth(2).ok_or("no cost")?;
        let heard: Heard = said[..at].parse()?;
        flow.rate += heard.rate / plan.subscribers as f64;
        flow.lost += flow.sent - heard.distinct;
        flow.doubled += heard.doubled;
        flow.cost = flow.cost.and(said[at + 1..].parse()?);
    }
    flow.cost = flow.cost.and(broker.map(|broker| broker.cost()).unwrap_or_default());
    for publisher in &mut publishers {
        publisher.order("end")?;
    }
    Ok(flow)
}

/// The one in the middle.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// There and back at a fixed rate.
fn trip(system: System, plan: &Plan) -> Result<Outcome, Box<dyn Error>> {
    let words = plan.to_string();
    let (broker, folder) = (Broker::start(system)?, tempfile::tempdir()?);
    let place = broker.as_ref().map_or("", |broker| &broker.place);
    let mut pinger = Child::start(system, "pinger", &[&words, place], folder.path())?;
    let place = pinger.hear("ready ")?;
    let echoer = Child::start(system, "echoer", &[&words, &place], folder.path())?;
    echoer.hear("joined")?;
    pinger.order("go")?;
    let report = pinger.hear("trips ")?;
    let numbers = report.split(' ').map(str::parse).collect::<Result<Vec<f64>, _>>()?;
    let [back, p50_us, p99_us] = numbers[..] else { return Err(format!("`{report}` is no report").into()) };
    let lost = (plan.run_ms * plan.trips_per_ms).saturating_sub(back as u64);
    Ok(Outcome::Trip { p50_us, p99_us, lost })
}

fn be_child(system: &str, role: &str, words: &[&str]) -> Result<(), Box<dyn Error>> {
    let peer = |done: pubsub::Result| done.map_err(|error| error as Box<dyn Error>);
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    if role == "page" {
        return peer(runtime()?.block_on(sockets::page()));
    }
    let plan: Plan = words.first().ok_or("no plan")?.parse()?;
    let place = words.get(1).copied().unwrap_or_default();
    let number: u8 = words.get(2).map_or(Ok(0), |number| number.parse())?;
    match system {
        "libzmq" => {
            return Ok(match role {
                "publisher" => libzmq::publisher(&plan, number),
                "subscriber" => libzmq::subscriber(&plan, place, number),
                "pinger" => libzmq::pinger(&plan),
                _ => libzmq::echoer(place),
            }?);
        }
        "zenoh" => return peer(be_client::<Zenoh>(role, &plan, place, number)),
        "redis" => return peer(be_client::<Redis>(role, &plan, place, number)),
        "nats" => return peer(be_client::<Nats>(role, &plan, place, number)),
        _ => {}
    }
    let done = runtime()?.block_on(async {
        match role {
            "publisher" => node::publisher(&plan, place, number).await,
            "subscriber" => node::subscriber(&plan, place, number).await,
            "pinger" => node::pinger(&plan).await,
            _ => node::echoer(&plan, place).await,
        }
    });
    done.map_err(|error| error as Box<dyn Error>)
}

fn be_client<C: Client>(role: &str, plan: &Plan, place: &str, number: u8) -> pubsub::Result {
    match role {
        "publisher" => pubsub::publisher::<C>(plan, place, number),
        "subscriber" => pubsub::subscriber::<C>(plan, place, number),
        "pinger" => pubsub::pinger::<C>(plan, place),
        _ => pubsub::echoer::<C>(place),
    }
}

/// A port of loopback that nobody has at this moment.
fn free_port() -> u16 {
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    free.map(|address| address.port()).unwrap_or_default()
}
