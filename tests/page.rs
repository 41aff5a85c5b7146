//! The page in a real browser, on two real nodes: `tests/web/page.mjs` types, reads, cuts the line and looks.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::process::Command;
use std::time::Duration;

use common::{Hubless, Place, eventually};

#[test]
fn two_browsers_chat_and_lose_nothing() {
    let options = ["--listen", "127.0.0.1:0", "--no-mdns", "--http", "127.0.0.1:0"];
    let one = Hubless::start(&Place::Here, &[&options[..], &["--name", "one"]].concat());
    let other =
        Hubless::start(&Place::Here, &[&options[..], &["--name", "other", "--connect", &one.listen()]].concat());
    eventually(Duration::from_secs(10), "both nodes are up to each other", || {
        [&one, &other].iter().all(|node| node.peers().iter().any(|peer| peer["state"] == "up"))
    });
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/web/page.mjs");
    let url = |node: &Hubless| format!("http://{}/", node.http());
    let status = Command::new("node").arg(script).args([url(&one), url(&other)]).status();
    assert!(status.expect("node runs; `make setup` installs it").success(), "the page in the browser");
}
