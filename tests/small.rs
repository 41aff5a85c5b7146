//! What a node costs that has nothing to do: to start, to hold, and for each peer. `HUBLESS_SOAK`: a node with 100 peers.
#![cfg(all(feature = "cli", feature = "mdns"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::idle::{Shares, shares};
use common::soak::{self, Claim};
use common::{Home, Hubless, Lan, elapse, eventually};

const KIB: u64 = 1024;
/// Peers of a node whose idling is measured.
const PEERS: usize = 10;
/// How often in a second the threads of such a node are woken. It was 26 when each peer spoke at a time of its own.
const WAKES_MOST: f64 = 12.0;
/// Of those that are measured one after the other.
const STARTS: usize = 9;

#[test]
fn a_node_starts_soon_idles_cheaply_and_each_peer_takes_little() {
    let lan = Lan::new(1);
    let place = lan.place(0);
    let mut claim = Claim::new("small: a node with many peers", soak::count(2 * PEERS, 100));
    let mut starts: Vec<Duration> = (0..STARTS)
        .map(|_| {
            let (home, started) = (Home::new(), Instant::now());
            drop(Hubless::spawn(&place, &home, &[]).ready());
            started.elapsed()
        })
        .collect();
    starts.sort();
    let start = starts[STARTS / 2];
    claim.measured("start_ms", start.as_millis() as u64);

    let node = Hubless::spawn(&place, &Home::new(), &[]);
    node.ready();
    let alone = node.resident_bytes();
    claim.measured("resident_kib", alone / KIB);
    let peer = || Hubless::spawn(&place, &Home::new(), &["--no-history", "--no-http"]);
    let up = || node.peers().iter().filter(|peer| peer["state"] == "up").count();
    let mut peers: Vec<Hubless> = (0..PEERS).map(|_| peer()).collect();
    eventually(Duration::from_secs(20), "all peers are up", || up() == peers.len());
    elapse(Duration::from_secs(5)); // First dials and hellos are over.
    let Shares { most: cpu, wakes, yardstick } = shares(&[&node], Duration::from_secs(20));
    let few = node.resident_bytes();
    claim.measured("idle_cpu_percent", (cpu * 100.0).round() / 100.0);
    claim.measured("yardstick_cpu_percent", (yardstick * 100.0).round() / 100.0);
    claim.measured("wakes_per_s", wakes.round());
    claim.measured("resident_kib_10_peers", few / KIB);

    let all = soak::count(2 * PEERS, 100);
    // A few at a time: on two cores a hundred that start at once are a crowd of handshakes, not a mesh.
    while peers.len() < all {
        peers.extend((0..PEERS).map(|_| peer()));
        eventually(Duration::from_secs(60), "all peers are up", || up() == peers.len());
    }
    elapse(Duration::from_secs(10));
    let each = node.resident_bytes().saturating_sub(few) / (all - PEERS) as u64;
    claim.measured("kib_for_each_further_peer", each / KIB);
    let heard = node.listen_in();
    node.say("to all");
    eventually(Duration::from_secs(10), "it hears itself among many", || heard.times("to all") == 1);
    assert_eq!(up(), all, "somebody was lost");

    // In the small run, on whatever machine and beside whatever else, a little more than is claimed.
    let (cpu_most, resident_most, each_most) =
        if soak::wanted() { (0.3, 25 * 1024 * KIB, 64 * KIB) } else { (1.0, 30 * 1024 * KIB, 96 * KIB) };
    assert!(start <= Duration::from_millis(300), "from start to serving {start:?}: {starts:?}");
    assert!(alone.max(few) <= resident_most, "{} KiB, {} with 10 peers", alone / KIB, few / KIB);
    assert!(cpu <= cpu_most, "an idle node with 10 peers uses {cpu:.2} % of a core, a yardstick {yardstick:.2} %");
    assert!(wakes <= WAKES_MOST, "an idle node with 10 peers is woken {wakes:.1} times a second");
    assert!(each <= each_most, "each further peer takes {each} bytes");
}
