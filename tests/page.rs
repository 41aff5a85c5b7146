//! The page in a real browser, on two real nodes: `tests/web/page.mjs` types, reads, cuts the line and looks;
//! `tests/web/history.mjs` goes far back, searches, leaves and comes back, and moves from node to node in the middle of
//! traffic; `tests/web/tutorial.mjs` is there as those who come from the tutorial.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::soak::Claim;
use common::{Hubless, Place, eventually, one_at_a_time};
use serde_json::Value;

#[test]
fn two_browsers_chat_and_lose_nothing() {
    let mut claim = Claim::new("page: a typed text on the other node's page", 1);
    let said = on_two_nodes("page.mjs");
    let latency: Value = said.lines().find_map(|line| serde_json::from_str(line).ok()).expect("the page's latency");
    for key in ["count", "p50_ms", "max_ms"] {
        claim.measured(key, latency[key].clone());
    }
}

#[test]
fn a_page_goes_back_without_end_searches_and_moves_between_nodes_losing_nothing() {
    on_two_nodes("history.mjs");
}

#[test]
fn clients_of_the_tutorial_chat() {
    on_two_nodes("tutorial.mjs");
}

/// Runs a script of `tests/web` on the pages of two nodes, and answers what it says on stdout.
fn on_two_nodes(script: &str) -> String {
    let _alone = one_at_a_time();
    let options = ["--listen", "127.0.0.1:0", "--no-mdns", "--http", "127.0.0.1:0"];
    let one = Hubless::start(&Place::Here, &[&options[..], &["--name", "one"]].concat());
    let other =
        Hubless::start(&Place::Here, &[&options[..], &["--name", "other", "--connect", &one.listen()]].concat());
    eventually(Duration::from_secs(10), "both nodes are up to each other", || {
        [&one, &other].iter().all(|node| node.peers().iter().any(|peer| peer["state"] == "up"))
    });
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/web").join(script);
    let url = |node: &Hubless| format!("http://{}/", node.http());
    let command = Command::new("node").arg(path).args([url(&one), url(&other)]).stderr(Stdio::inherit()).output();
    let output = command.expect("node runs; `make setup` installs it");
    assert!(output.status.success(), "{script}");
    String::from_utf8(output.stdout).unwrap()
}
