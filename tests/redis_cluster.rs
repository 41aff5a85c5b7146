//! Bridges with a Redis that is more than one server: a Cluster, and a primary that Sentinel replaces.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::brokers::Redis;
use common::{Home, Hubless, Place, eventually, free_port, one_at_a_time};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn streams_of_a_cluster_are_found_whichever_server_is_named() {
    let _alone = one_at_a_time();
    let servers = Redis::cluster(3);
    let cli = |args: &[&str]| servers[0].cli(&[&["-c"], args].concat());
    let dead = free_port();
    for (round, server) in servers.iter().enumerate() {
        // Two of the three have to name the third; the first host of the URL is not there.
        let url = format!("redis://127.0.0.1:{dead},127.0.0.1:{}", server.port);
        let node = active(&["--redis", &url, "--redis-mode", "streams", "--redis-stream", "{chat}"]);
        say(&node, "lobby", &format!("lobby {round}"));
        say(&node, "nodejs", &format!("nodejs {round}"));
        eventually(PATIENCE, "both came", || {
            cli(&["XRANGE", "{chat}", "-", "+"]).contains(&format!("lobby {round}"))
                && cli(&["XRANGE", "{chat}.nodejs", "-", "+"]).contains(&format!("nodejs {round}"))
        });
        cli(&["XADD", "{chat}", "*", "message", &format!("from outside {round}")]);
        cli(&["XADD", &format!("{{chat}}.new{round}"), "*", "message", "into a new room"]);
        eventually(PATIENCE, "what others say is heard, once", || {
            texts(&node, "lobby").iter().filter(|text| **text == format!("from outside {round}")).count() == 1
                && texts(&node, &format!("new{round}")) == ["into a new room"]
        });
        node.stop();
    }
    // Each was a mesh of its own, to which what was there before is nothing new.
    assert_eq!(cli(&["XLEN", "{chat}"]).trim(), "6");

    let url = format!("redis://127.0.0.1:{}", servers[0].port);
    let check = Home::new().hubless(&Place::Here, &["check", "--redis", &url, "--redis-mode", "streams"]).output();
    let check = check.unwrap();
    let said = String::from_utf8([check.stdout, check.stderr].concat()).unwrap();
    assert!(check.status.code() == Some(1) && said.contains("--redis-stream '{chat_stream}'"), "{said}");
}

#[test]
fn channels_of_a_cluster_work_with_any_of_its_servers() {
    let _alone = one_at_a_time();
    let servers = Redis::cluster(3);
    let node = active(&["--redis", &format!("redis://127.0.0.1:{}", servers[1].port)]);
    for (number, server) in servers.iter().enumerate() {
        server.cli(&["PUBLISH", "chat_messages", &format!("said at {number}")]);
        eventually(PATIENCE, "it is heard", || texts(&node, "lobby").len() == number + 1);
    }
    node.stop();
}

#[test]
fn primary_that_sentinel_replaces_is_followed() {
    let _alone = one_at_a_time();
    let mut primary = Redis::start();
    let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &primary.port.to_string()]);
    eventually(PATIENCE, "the replica follows", || replica.cli(&["INFO", "replication"]).contains("link_status:up"));
    let sentinel = Redis::sentinel(primary.port);
    eventually(PATIENCE, "Sentinel knows both", || {
        sentinel.cli(&["SENTINEL", "replicas", "main"]).contains(&replica.port.to_string())
    });
    // The first of the Sentinels is not there.
    let url = format!("redis+sentinel://127.0.0.1:{},127.0.0.1:{}/main", free_port(), sentinel.port);
    let node = active(&["--redis", &url, "--redis-mode", "streams"]);
    say(&node, "lobby", "to the first");
    // Redis itself loses what a primary had confirmed and no replica had.
    let at_replica = |text: &str| replica.cli(&["XRANGE", "chat_stream", "-", "+"]).contains(text);
    eventually(PATIENCE, "the replica has it", || at_replica("to the first"));
    primary.kill();
    say(&node, "lobby", "meanwhile");
    eventually(2 * PATIENCE, "the new primary has it", || at_replica("meanwhile"));
    assert_eq!(replica.cli(&["XLEN", "chat_stream"]).trim(), "2", "nothing is doubled");
    assert!(replica.cli(&["ROLE"]).starts_with("master"));
    replica.cli(&["XADD", "chat_stream", "*", "message", "from outside"]);
    eventually(PATIENCE, "what others say there is heard", || texts(&node, "lobby").len() == 3);
    node.stop();
}

/// A node whose bridge is active.
fn active(options: &[&str]) -> Hubless {
    let node = Hubless::spawn(&Place::Here, &Home::new(), &[&["--no-mdns", "--no-http"], options].concat());
    node.ready();
    eventually(PATIENCE, "the bridge is active", || node.get("/readyz")["bridges"][0]["state"] == "active");
    node
}

fn say(node: &Hubless, room: &str, text: &str) {
    let (status, answer) = node.request("POST", "/api/v1/messages", &json!({ "room": room, "text": text }).to_string());
    assert_eq!(status, 201, "{answer}");
}

fn texts(node: &Hubless, room: &str) -> Vec<String> {
    let page = node.get(&format!("/api/v1/messages?room={room}&limit=1000"));
    let text = |message: &serde_json::Value| message["text"].as_str().unwrap().to_string();
    page["messages"].as_array().map_or(Vec::new(), |messages| messages.iter().map(text).collect())
}
