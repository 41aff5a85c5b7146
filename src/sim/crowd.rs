//! A crowd of throw-away nodes, fed to one replica with a disk: what they leave behind fills nothing up.

use std::net::SocketAddr;
use std::time::Instant;

use super::disk::{Disk, Retention};
use crate::id::{Epoch, NodeKey, Room, Run, Seq};
use crate::replica::batch::{Author, Batch, Draft};
use crate::replica::clock::{BUILD_MS, Hlc, Mono, Now};
use crate::replica::event::{Input, Order, Output};
use crate::replica::message::{Digest, Heartbeat, Hello, Holding, Message, Repair};
use crate::replica::ranges::RangeSet;
use crate::replica::{RUNS_PER_DAY_MAX, Replica, STREAMS_MAX, WINDOW_BYTES_MAX};

const START_MS: u64 = BUILD_MS + 1_000_000;
/// Things remembered at most: some tables have a row for each stream.
const REMEMBERED_MAX: usize = 8 * STREAMS_MAX;

/// A replica, its disk, and one peer that tells it of others.
struct House {
    at_ms: u64,
    replica: Replica,
    disk: Disk,
    peer: Run,
}

impl House {
    fn new() -> House {
        let peer = key_of(200_000).run(Epoch(1));
        let everything = Retention { age_ms: u64::MAX, bytes: u64::MAX };
        let mut disk = Disk::new(everything, (1, 1));
        let (now, opened) = (Now { mono: Mono(0), wall_ms: START_MS }, disk.reopen());
        let replica = Replica::new(now, key_of(0), Epoch(1), "node".into(), 1, WINDOW_BYTES_MAX, Some(opened));
        let me = replica.me();
        let mut house = House { at_ms: 0, replica, disk, peer };
        house.feed(Input::Called(peer));
        house.feed(Input::LinkUp { run: peer, address: SocketAddr::from(([10, 0, 0, 2], 1)) });
        let hears = vec![me.hash()];
        house.hear(Message::Hello(Hello { hears, wall_ms: START_MS, ..Hello::default() }));
        house
    }

    fn hear(&mut self, message: Message) {
        self.feed(Input::Message { from: self.peer, message });
    }

    /// Hands something in and does what is wanted, until nothing more is.
    fn feed(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            self.replica.handle(Now { mono: Mono(self.at_ms), wall_ms: START_MS + self.at_ms }, input);
            while let Some(output) = self.replica.poll_output() {
                match output {
                    Output::Send { message: Message::Request(request), .. } => {
                        let batch = said(request.origin);
                        let (origin, first, through) = (request.origin, request.first, request.last);
                        let batches = vec![(batch, 0)];
                        let repair = Repair { origin, first, from: first, through, batches };
                        inputs.push(Input::Message { from: self.peer, message: Message::Repair(repair) });
                    }
                    Output::Log(Order::Load(_)) => panic!("nobody asked for anything"),
                    Output::Log(order) => _ = self.disk.order(order).unwrap(),
                    _ => {}
                }
            }
            let mut more = true;
            while more {
                let (reports, goes_on) = self.disk.synced();
                inputs.extend(reports.into_iter().rev().map(Input::Log));
                more = goes_on;
            }
        }
        let (streams, _, _, bytes) = self.replica.size();
        assert!(streams <= STREAMS_MAX, "{streams} streams");
        assert!(bytes <= WINDOW_BYTES_MAX + 1024, "{bytes} bytes in the window");
    }

    /// The peer tells of runs that it holds and that are over, a hundred at once, and time goes on.
    fn tell(&mut self, runs: impl Iterator<Item = Run>) {
        let runs: Vec<Run> = runs.collect();
        for some in runs.chunks(100) {
            let holding = |run: &Run| Holding {
                run: *run,
                floor: Seq(0),
                held: RangeSet::of(Seq(1), Seq(1)),
                volatile: RangeSet::new(),
                newest: said(*run).hlc_last(),
                over: true,
            };
            let holdings = some.iter().map(holding).collect();
            self.hear(Message::Digest(Digest { holdings, all: false, same: 0, answers: 0 }));
            for _ in 0..4 {
                self.at_ms += 25;
                self.feed(Input::Timeout);
            }
            self.hear(Message::Heartbeat(Heartbeat { wall_ms: START_MS + self.at_ms, ..Heartbeat::default() }));
            let remembered = self.replica.remembered();
            assert!(remembered <= REMEMBERED_MAX, "{remembered} things are remembered");
        }
        // What is still asked for comes.
        for _ in 0..100 {
            self.at_ms += 50;
            self.feed(Input::Timeout);
        }
    }
}

/// The only words of a throw-away node.
fn said(origin: Run) -> Batch {
    let key = key_of(origin.epoch.0);
    let hlc = Hlc::at(START_MS + origin.epoch.0 % AGAIN);
    let author = Author { key: &key, origin, name: "", first: Seq(1), hlc, previous: [0; 32] };
    author.encode(&[Draft::new(Room::lobby(), "hello")])
}

/// From this number on it is one node that comes back and back, before that each is another.
const AGAIN: u64 = 1_000_000;

fn key_of(number: u64) -> NodeKey {
    let mut secret = [7; NodeKey::LEN];
    secret[..8].copy_from_slice(&number.min(AGAIN).to_be_bytes());
    NodeKey::from_bytes(&secret)
}

fn throw_away(number: u64) -> Run {
    key_of(number).run(Epoch(number))
}

#[test]
fn a_hundred_thousand_throw_away_nodes_fill_nothing_up() {
    let began = Instant::now();
    let mut house = House::new();
    house.tell((1..=100_000).map(throw_away));
    let counters = house.replica.counters();
    // Whoever came last is here, and as many before it as there is room for.
    let stored = |number: u64| !house.disk.synced.stored(throw_away(number)).is_empty();
    let there = (1..=100_000).filter(|number| stored(*number)).count();
    let oldest = (1..=100_000).find(|number| stored(*number)).unwrap();
    assert!((STREAMS_MAX - 2_048..=STREAMS_MAX).contains(&there), "{there} of the throw-away nodes are in the log");
    assert!(oldest + 2_048 > 100_000 - STREAMS_MAX as u64, "{oldest} is the oldest");
    // A few were named, and forgotten again before anything of them came.
    assert!(counters.received > 98_000 && counters.refused == 0, "{counters:?}");
    assert_eq!(counters.let_go, counters.received - there as u64, "{counters:?}");
    assert!(house.disk.synced.list().count() <= STREAMS_MAX, "the log forgets what the core forgot");
    println!("100,000 runs in {:.1} s, {there} of them kept", began.elapsed().as_secs_f64());
}

#[test]
fn a_node_has_so_many_new_runs_a_day() {
    let mut house = House::new();
    house.tell((AGAIN + 1..=AGAIN + 2_000).map(throw_away));
    let counters = house.replica.counters();
    assert_eq!(counters.received, u64::from(RUNS_PER_DAY_MAX), "{counters:?}");
    assert!(counters.refused >= 2_000 - u64::from(RUNS_PER_DAY_MAX), "{counters:?}");
}
