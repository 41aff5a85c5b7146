//! The roles of a run, for whoever can publish and receive bytes by topic: zenoh, Redis, NATS.
//!
//! As for libzmq, receivers give credit, so that nothing is lost and no broker fills up: a publisher stays at most a window
//! ahead of the slowest.

use std::collections::HashSet;
use std::error::Error;
use std::time::{Duration, Instant};

use crate::child::{order, tell};
use crate::cost::Cost;
use crate::workload::{self, BEGIN, Message, Pace, Phase, Plan, SILENCE, Tally, Trips, window};

pub type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const DATA: &str = "bench";
const PING: &str = "ping";
const ECHO: &str = "echo";
const CREDITS_PER_WINDOW: u64 = 8;

/// A connection of one system.
pub trait Client: Sized {
    /// Connects to `places`, or waits for those that are told its own, which is answered. What it `hears` begins to come.
    fn open(places: &[&str], hears: &[String]) -> Result<(Self, String)>;

    /// Says `bytes`, at [`Client::flush`] at the latest.
    fn publish(&mut self, topic: &str, bytes: &[u8]) -> Result;

    /// What was published before is on its way.
    fn flush(&mut self) -> Result;

    /// The next message, if it comes within `wait`.
    fn receive(&mut self, wait: Duration) -> Result<Option<impl AsRef<[u8]>>>;
}

fn credit(publisher: usize) -> String {
    format!("credit-{publisher}")
}

/// Publishes as planned; `place` is that of the broker or of the first publisher.
pub fn publisher<C: Client>(plan: &Plan, place: &str, number: u8) -> Result {
    let places: Vec<&str> = place.split(' ').filter(|place| !place.is_empty()).collect();
    let (mut client, own) = C::open(&places, &[credit(number.into())])?;
    let mut message = Message::new(plan.size);
    tell(&format!("ready {own}"));
    let go = std::thread::spawn(|| order("go"));
    while !go.is_finished() {
        client.publish(DATA, message.write(Phase::Hello, number.into()))?;
        client.flush()?;
        std::thread::sleep(Duration::from_millis(5));
    }
    let (window, part) = (window(plan), window(plan) / CREDITS_PER_WINDOW);
    let mut acknowledged = vec![0; plan.subscribers];
    let mut slowest = 0;
    let mut pace = Pace::new(plan, number);
    while let Some(phase) = pace.look() {
        while pace.taken + part > slowest + window {
            let from = client.receive(SILENCE)?.and_then(|from| from.as_ref().first().copied());
            acknowledged[usize::from(from.ok_or("no credit comes")?)] += part;
            slowest = acknowledged.iter().copied().min().unwrap_or(0);
        }
        for _ in 0..part.min(256) {
            client.publish(DATA, message.write(phase, pace.take()))?;
        }
        client.flush()?;
    }
    client.publish(DATA, message.write(Phase::End, pace.taken))?;
    client.flush()?;
    tell(&format!("sent {} {}", pace.taken, Cost::own()));
    order("end");
    Ok(())
}

/// Receives as planned.
pub fn subscriber<C: Client>(plan: &Plan, places: &str, number: u8) -> Result {
    let places: Vec<&str> = places.split(' ').collect();
    let (mut client, _) = C::open(&places, &[DATA.into()])?;
    let mut greeted = HashSet::new();
    while greeted.len() < plan.publishers {
        let hello = client.receive(SILENCE)?.ok_or("no publisher is heard")?;
        greeted.extend(workload::read(hello.as_ref()).map(|(_, publisher)| publisher));
    }
    tell("joined");
    let part = window(plan) / CREDITS_PER_WINDOW;
    let mut tally = Tally::new(plan);
    let mut taken = vec![0; plan.publishers];
    let mut begun = false;
    loop {
        let Some(message) = client.receive(SILENCE)? else {
            if begun {
                break;
            }
            continue;
        };
        let read = workload::read(message.as_ref());
        let Some((phase, of)) = read.filter(|(phase, _)| *phase != Phase::Hello) else { continue };
        begun = true;
        let all = tally.count(message.as_ref());
        drop(message);
        if all {
            break;
        }
        if phase != Phase::End {
            let publisher = (of % plan.publishers as u64) as usize;
            taken[publisher] += 1;
            if u64::is_multiple_of(taken[publisher], part) {
                client.publish(&credit(publisher), &[number])?;
                client.flush()?;
            }
        }
    }
    tell(&format!("heard {} {}", tally.report(), Cost::own()));
    Ok(())
}

/// Sends at a fixed rate and measures when each comes back.
pub fn pinger<C: Client>(plan: &Plan, place: &str) -> Result {
    let places: Vec<&str> = place.split(' ').filter(|place| !place.is_empty()).collect();
    let (mut client, own) = C::open(&places, &[ECHO.into()])?;
    let mut message = Message::new(plan.size);
    tell(&format!("ready {own}"));
    loop {
        client.publish(PING, message.write(Phase::Hello, 0))?;
        client.flush()?;
        if client.receive(Duration::from_millis(5))?.is_some() {
            break;
        }
    }
    order("go");
    let mut trips = Trips::new(plan);
    let mut next = 0;
    let mut due = Instant::now();
    let mut ends = due + Duration::from_secs(3600);
    loop {
        let now = Instant::now();
        if next < Trips::all(plan) && now >= due {
            due += BEGIN;
            for _ in 0..plan.trips_per_ms {
                trips.sent(next);
                client.publish(PING, message.write(Phase::Measured, next))?;
                next += 1;
            }
            client.flush()?;
            ends = now + Duration::from_millis(500);
        } else if now >= ends {
            break;
        }
        let until = if next < Trips::all(plan) { due } else { ends };
        let echo = client.receive(until.saturating_duration_since(Instant::now()).max(Duration::from_micros(1)))?;
        if let Some((Phase::Measured, number)) = echo.as_ref().and_then(|echo| workload::read(echo.as_ref())) {
            trips.back(number, Instant::now(), plan);
        }
    }
    tell(&format!("trips {}", trips.report()));
    Ok(())
}

/// Sends back what comes.
pub fn echoer<C: Client>(place: &str) -> Result {
    let places: Vec<&str> = place.split(' ').collect();
    let (mut client, _) = C::open(&places, &[PING.into()])?;
    tell("joined");
    loop {
        let Some(ping) = client.receive(SILENCE)? else { continue };
        let bytes = ping.as_ref().to_vec();
        drop(ping);
        client.publish(ECHO, &bytes)?;
        client.flush()?;
    }
}
