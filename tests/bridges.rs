//! Bridges with a real Redis and a real RabbitMQ, whose stock clients chat with the mesh: once, in order, whoever dies.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use common::brokers::{Certificate, Foreign, Redis};
use common::dice::Dice;
use common::load::{Poster, publish_each};
use common::log::same_logs;
use common::mesh::{Member, Mesh};
use common::rabbit::Rabbit;
use common::soak::{self, Claim};
use common::{Home, Hubless, Place, elapse, eventually, free_port, one_at_a_time, python};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);
/// Messages that are out beyond what another node knows to be confirmed.
const OUT_MAX: usize = 256;

#[test]
fn redis_clients_and_nodes_hear_each_other_once() {
    let _alone = one_at_a_time();
    let redis = Redis::start();
    let mesh = bridged(&["a", "b"], &["--redis", &redis.url()]);
    let clients = Foreign::start(&["redis", &redis.url()]);
    let texts = ["hello big world", "zażółć 🦀 \"quoted\"\n", "again", "again"];
    say_in_turn(&mesh, &texts);
    say(&mesh.0[1], "nodejs", "in a room");
    eventually(PATIENCE, "clients hear the mesh", || clients.heard().len() == 5);
    assert_eq!(clients.texts(""), [&texts[..], &["in a room"]].concat());
    let channels: Vec<_> = clients.heard().iter().map(|heard| heard["to"].clone()).collect();
    assert_eq!(
        json!(channels),
        json!(["chat_messages", "chat_messages", "chat_messages", "chat_messages", "chat.nodejs"])
    );

    // What clients say, equal to what the mesh has said or not, comes once each; what is no chat does no harm.
    clients.say("chat_messages", &["hello big world", "from 🦀 outside", "again", "again"]);
    clients.say("chat.nodejs", &["in a room"]);
    clients.say("chat.lobby", &["also the lobby"]);
    clients.publish(&json!({ "to": "chat_messages", "texts": [{ "hex": "ff00fe" }, "x".repeat(16 * 1024 * 1024)] }));
    clients.say("chat.No Room!", &["nowhere"]);
    clients.say("chat.~control", &["nowhere"]);
    clients.say("chatter", &["nowhere"]);
    clients.say("chat_messages", &["the last"]);
    let outside = ["hello big world", "from 🦀 outside", "again", "again", "also the lobby", "the last"];
    let expected: Vec<&str> = texts.iter().copied().chain(outside).collect();
    for node in &mesh.0 {
        eventually(PATIENCE, "nodes hear the clients", || lobby(node).len() == expected.len());
        assert_eq!(lobby(node), expected, "{}", node.name());
        assert_eq!(node.rooms(), BTreeMap::from([("lobby".into(), 10), ("nodejs".into(), 2)]), "no other room");
    }
    let (_, page) = mesh.0[0].request("GET", "/api/v1/messages?room=lobby&grep=outside", "");
    let said = &page["messages"][0];
    assert_eq!((&said["via"], &said["name"], &said["verified"]), (&"redis".into(), &"guest".into(), &false.into()));
    // What came in did not go out again, and nobody has anything to say of it twice.
    mesh.0[0].say("afterwards");
    eventually(PATIENCE, "it is heard", || clients.texts("afterwards").len() == 1);
    assert_eq!(clients.texts("from 🦀").len(), 1, "only what the client itself had said");
    let leader = &mesh.0[leader(&mesh)];
    assert_eq!(leader.metric("bridge_sent"), 6);
    assert_eq!(leader.metric("bridge_received"), 7);
}

#[test]
fn amqp_clients_and_nodes_hear_each_other_once() {
    let _alone = one_at_a_time();
    let rabbit = Rabbit::start();
    for kind in ["fanout", "topic", "direct"] {
        let exchange = if kind == "fanout" { "chat".to_string() } else { format!("chat-{kind}") };
        let options = ["--amqp", &rabbit.url(), "--amqp-exchange", &exchange, "--amqp-exchange-type", kind];
        let mesh = bridged(&["a", "b"], &options);
        let clients = Foreign::start(&["amqp", &rabbit.url(), &exchange, kind, &format!("foreign-{kind}")]);
        let texts = ["hello big world", "zażółć 🦀 \"quoted\"\n", "again", "again"];
        say_in_turn(&mesh, &texts);
        let id = say(&mesh.0[1], "nodejs", "in a room");
        eventually(PATIENCE, "clients hear the mesh", || clients.heard().len() == 5);
        assert_eq!(clients.texts(""), [&texts[..], &["in a room"]].concat(), "{kind}");
        let heard = clients.heard().pop().unwrap();
        let expected = json!({
            "text": "in a room", "to": "chat.nodejs", "id": id, "mode": 2, "kind": "text/plain; charset=utf-8", "app": "hubless",
        });
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(&heard[field], value, "{kind} {field}");
        }
        let headers = &heard["headers"];
        assert_eq!(headers["x-hubless-room"], "nodejs");
        assert_eq!((&headers["x-hubless-name"], &headers["x-hubless-mesh"]), (&"b".into(), &"default".into()));
        assert_eq!(headers["x-hubless-hops"], 1);
        assert!(headers["x-hubless-path"].as_str().unwrap().starts_with("default/"), "{headers}");

        // Without an id each delivery is a message; with one it is one, however often it comes.
        clients.say("chat", &["hello big world", "from 🦀 outside", "again", "again"]);
        clients
            .publish(&json!({ "to": "chat", "texts": ["named", "named", "of another text"], "ids": ["n", "n", "n"] }));
        clients.publish(&json!({ "to": "chat", "texts": [{ "hex": "ff00fe" }, "x".repeat(16 * 1024 * 1024)] }));
        clients.publish(&json!({ "to": "chat", "texts": ["odd"], "headers": { "x-hubless-room": 7, "x-hubless-path": [1], "x-hubless-name": "n".repeat(200) } }));
        clients.say("chat.nodejs", &["in a room"]);
        clients.say("chat", &["the last"]);
        let outside = ["hello big world", "from 🦀 outside", "again", "again", "named", "odd", "the last"];
        let expected: Vec<&str> = texts.iter().copied().chain(outside).collect();
        for node in &mesh.0 {
            eventually(PATIENCE, "nodes hear the clients", || lobby(node).len() == expected.len());
            assert_eq!(lobby(node), expected, "{kind} {}", node.name());
            assert_eq!(node.rooms(), BTreeMap::from([("lobby".into(), 11), ("nodejs".into(), 2)]), "{kind}");
        }
        mesh.0[0].say("afterwards");
        eventually(PATIENCE, "it is heard", || clients.texts("afterwards").len() == 1);
        assert_eq!(clients.texts("from 🦀").len(), 1, "only what the client itself had said");
        drained(&rabbit);
    }
}

#[test]
fn messages_that_break_amqp_stop_nobody() {
    let _alone = one_at_a_time();
    let rabbit = Rabbit::start();
    let mesh = bridged(&["a"], &["--amqp", &rabbit.url()]);
    let clients = Foreign::start(&["amqp", &rabbit.url(), "chat", "fanout", "foreign"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/amqp_hostile.py");
    let mut expected = Vec::new();
    for case in ["message-id", "content-type", "app-id", "routing-key", "header-name", "header-depth"] {
        let sent = python().arg(&script).args([&rabbit.url(), "chat", case]).output().unwrap();
        assert!(sent.status.success(), "{case}: {}", String::from_utf8_lossy(&sent.stderr));
        clients.say("chat", &[&format!("after {case}")]);
        expected.extend([case.to_string(), format!("after {case}")]);
        eventually(PATIENCE, case, || lobby(&mesh.0[0]) == expected);
    }
    // The stock client may have ended over them.
    eventually(PATIENCE, "all of it is acknowledged", || {
        let queues = rabbit.ctl(&["list_queues", "--no-table-headers", "name", "messages"]).unwrap();
        queues.lines().any(|queue| queue.starts_with("hubless.default.") && queue.ends_with("\t0"))
    });
}

#[test]
fn queues_are_named_bound_and_live_as_told() {
    let _alone = one_at_a_time();
    let rabbit = Rabbit::start();
    let queues = || rabbit.ctl(&["list_queues", "--no-table-headers", "name", "durable", "exclusive"]).unwrap();
    let clients = Foreign::start(&["amqp", &rabbit.url(), "chat", "topic", "foreign"]);
    let options = ["--amqp", &rabbit.url(), "--amqp-exchange-type", "topic"];
    // A queue of its own name for a mesh of a named site, which also gets what is no chat.
    let mesh = bridged(&["a"], &[&options[..], &["--site", "attic", "--amqp-bind", "alarms.#"]].concat());
    assert!(queues().contains("hubless.default.attic\ttrue\tfalse"), "{}", queues());
    // However much is logged, a password is not, neither as text nor as numbers.
    let refused = format!("amqp://guest:sesame@127.0.0.1:{}", rabbit.port);
    let mut check = mesh.0[0].command(&["check", "--amqp", &refused]);
    let output = check.env("RUST_LOG", "trace").output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    let numbers = format!("{:?}", "sesame".as_bytes());
    assert!(said.contains("FAILED") && said.contains("check its name, password"), "{said}");
    assert!(!mesh.0[0].stderr().contains("DEBUG"), "nor is anything that nobody asked for: {}", mesh.0[0].stderr());
    assert!(!said.contains("sesame") && !said.contains(numbers.trim_matches(['[', ']'])), "{said}");
    clients.say("alarms.fire", &["an alarm"]);
    clients.say("elsewhere", &["not for us"]);
    clients.say("chat.ops", &["in a room"]);
    eventually(PATIENCE, "what is bound comes", || mesh.0[0].messages() == 2);
    assert_eq!(lobby(&mesh.0[0]), ["an alarm"], "what names no room is said in the lobby");
    drop(mesh);
    // One that lives as long as its node.
    let mut live = Member::new("live").args(&[&options[..], &["--amqp-live", "--site", "live"]].concat());
    live.spawn(&[]);
    eventually(PATIENCE, "it is active", || state(&live) == "active");
    let exclusive = || queues().lines().filter(|line| line.ends_with("\tfalse\ttrue")).count();
    assert_eq!((exclusive(), queues().contains("hubless.default.live")), (1, false), "{}", queues());
    clients.say("chat", &["heard live"]);
    eventually(PATIENCE, "it is heard", || lobby(&live) == ["heard live"]);
    live.stop();
    eventually(PATIENCE, "the queue has gone", || exclusive() == 0);
    clients.say("chat", &["while nobody listened"]);
    live.spawn(&[]);
    eventually(PATIENCE, "it is active", || state(&live) == "active");
    clients.say("chat", &["heard again"]);
    eventually(PATIENCE, "it is heard", || lobby(&live) == ["heard live", "heard again"]);
}

#[test]
fn clients_of_redis_streams_and_nodes_hear_each_other_once() {
    let _alone = one_at_a_time();
    let redis = Redis::start();
    let clients = Foreign::start(&["streams", &redis.url()]);
    clients.say("chat_stream", &["before the bridge"]);
    let mesh = bridged(&["a", "b"], &["--redis", &redis.url(), "--redis-mode", "streams"]);
    let texts = ["hello big world", "zażółć 🦀 \"quoted\"\n", "again", "again"];
    say_in_turn(&mesh, &texts);
    let id = say(&mesh.0[1], "nodejs", "in a room");
    let from_mesh = || -> Vec<Value> { clients.heard().into_iter().filter(|heard| heard["id"].is_string()).collect() };
    eventually(PATIENCE, "clients hear the mesh", || from_mesh().len() == 5);
    let heard = from_mesh().pop().unwrap();
    assert_eq!(
        (&heard["to"], &heard["id"], &heard["text"]),
        (&"chat_stream.nodejs".into(), &id.into(), &"in a room".into())
    );
    assert_eq!((&heard["headers"]["name"], &heard["headers"]["hops"]), (&"b".into(), &"1".into()));
    assert!(heard["headers"]["path"].as_str().unwrap().starts_with("default/"), "{heard}");

    clients.say("chat_stream", &["hello big world", "from 🦀 outside", "again", "again"]);
    clients.publish(
        &json!({ "to": "chat_stream", "texts": ["named", "named", "of another text"], "ids": ["n", "n", "n"] }),
    );
    clients.publish(&json!({ "to": "chat_stream", "texts": [{ "hex": "ff00fe" }, "x".repeat(16 * 1024 * 1024)] }));
    clients.publish(&json!({ "to": "chat_stream", "texts": ["no message"], "field": "other" }));
    clients.say("chat_stream.No Room!", &["nowhere"]);
    // A room that is new is found.
    clients.say("chat_stream.fresh", &["in a new room"]);
    clients.say("chat_stream", &["the last"]);
    let outside = ["hello big world", "from 🦀 outside", "again", "again", "named", "the last"];
    let expected: Vec<&str> = texts.iter().copied().chain(outside).collect();
    for node in &mesh.0 {
        let rooms = BTreeMap::from([("fresh".into(), 1), ("lobby".into(), 10), ("nodejs".into(), 1)]);
        eventually(PATIENCE, "nodes hear the clients", || node.rooms() == rooms);
        assert_eq!(lobby(node), expected, "{}", node.name());
    }
    let (_, page) = mesh.0[0].request("GET", "/api/v1/messages?room=lobby&grep=outside", "");
    assert_eq!(page["messages"][0]["via"], "redis");
    mesh.0[0].say("afterwards");
    eventually(PATIENCE, "it is heard", || clients.texts("afterwards").len() == 1);
    assert_eq!(clients.texts("from 🦀").len(), 1, "only what the client itself had said");
    let left = redis.cli(&["XINFO", "GROUPS", "chat_stream"]);
    let pending = left.lines().skip_while(|line| *line != "pending").nth(1);
    assert_eq!(pending, Some("0"), "all is acknowledged: {left}");

    // Where a room's name is taken, that room alone is not sent.
    redis.cli(&["SET", "chat_stream.taken", "by something else"]);
    say(&mesh.0[0], "taken", "not taken");
    mesh.0[0].say("after that");
    eventually(PATIENCE, "the others are sent", || clients.texts("after that").len() == 1);
    let leader = &mesh.0[leader(&mesh)];
    eventually(PATIENCE, "it is counted", || leader.metric("bridge_refused") == 1);
}

#[test]
fn two_nodes_that_offer_a_bridge_double_nothing() {
    let _alone = one_at_a_time();
    let (redis, rabbit) = (Redis::start(), Rabbit::start());
    let exchange = Foreign::start(&["amqp", &rabbit.url(), "chat", "fanout", "foreign"]);
    both_ways("bridges: AMQP, two nodes", 0, &["--amqp", &rabbit.url()], &exchange, "chat");
    drained(&rabbit);
    let channels = Foreign::start(&["redis", &redis.url()]);
    both_ways("bridges: Redis channels, two nodes", 0, &["--redis", &redis.url()], &channels, "chat_messages");
    let streams = Foreign::start(&["streams", &redis.url()]);
    let options = ["--redis", &redis.url(), "--redis-mode", "streams"];
    both_ways("bridges: Redis streams, two nodes", 0, &options, &streams, "chat_stream");
}

#[test]
fn kill9_of_the_active_bridge_to_amqp_loses_nothing() {
    let _alone = one_at_a_time();
    let rabbit = Rabbit::start();
    let clients = Foreign::start(&["amqp", &rabbit.url(), "chat", "fanout", "foreign"]);
    let kills = soak::count(2, 10);
    both_ways("bridges: AMQP, the active node killed", kills, &["--amqp", &rabbit.url()], &clients, "chat");
    drained(&rabbit);
}

#[test]
fn kill9_of_the_active_bridge_to_redis_streams_loses_nothing() {
    let _alone = one_at_a_time();
    let redis = Redis::start();
    let clients = Foreign::start(&["streams", &redis.url()]);
    let options = ["--redis", &redis.url(), "--redis-mode", "streams"];
    let kills = soak::count(2, 10);
    both_ways("bridges: Redis streams, the active node killed", kills, &options, &clients, "chat_stream");
}

/// Many messages at once in both directions, at 2,000 a second at most, while the active node is killed again and again.
fn both_ways(what: &'static str, kills: usize, options: &[&str], clients: &Foreign, to: &str) {
    let count = soak::count(1_500, 10_000);
    let mut claim = Claim::new(what, kills.max(1));
    let mut dice = Dice::new();
    claim.seeded(dice.seed);
    let mut mesh = bridged(&["a", "b", "speaker"], options);
    let inward: Vec<String> = (0..count).map(|number| format!("inward {number}")).collect();
    let mut hand_over_ms = Vec::new();
    let speaker = mesh.0.pop().unwrap();
    std::thread::scope(|scope| {
        // At 2,000 messages a second, at most.
        let outward = scope.spawn(|| {
            let (mut poster, started) = (Poster::new(&speaker), Instant::now());
            for from in (0..count).step_by(50) {
                let due = Duration::from_secs_f64(from as f64 / 2_000.0);
                elapse(due.saturating_sub(started.elapsed()));
                let said: Vec<Value> = (from..count.min(from + 50))
                    .map(|number| json!({ "text": format!("outward {number}"), "client_id": format!("outward {number}") }))
                    .collect();
                assert!(poster.post_all(&said).unwrap().iter().all(|(status, _)| *status == 201));
            }
        });
        let others = scope.spawn(|| {
            for from in (0..count).step_by(50) {
                let texts = &inward[from..count.min(from + 50)];
                clients.publish(&json!({ "to": to, "texts": texts, "ids": texts }));
            }
        });
        let mut round = 0;
        while round < kills {
            elapse(Duration::from_millis(300 + dice.below(1_200)));
            let Some(killed) = (0..2).find(|at| state(&mesh.0[*at]) == "active") else { continue };
            mesh.0[killed].kill();
            let died = Instant::now();
            eventually(Duration::from_secs(10), "the other one leads", || state(&mesh.0[1 - killed]) == "active");
            hand_over_ms.push(died.elapsed().as_secs_f64() * 1_000.0);
            let seeds = [mesh.0[1 - killed].seed(), speaker.seed()];
            mesh.0[killed].spawn(&seeds);
            eventually(PATIENCE, "it is back", || state(&mesh.0[killed]) == "standing");
            round += 1;
        }
        outward.join().unwrap();
        others.join().unwrap();
    });
    mesh.0.push(speaker);
    let promised: BTreeSet<String> =
        (0..count).map(|number| format!("outward {number}")).chain(inward.clone()).collect();
    let (log, _) = same_logs(&mesh.running(), 2 * PATIENCE, &promised);
    assert_eq!(log.0.len(), 2 * count, "each once in each log");
    let wanted: BTreeSet<String> = (0..count).map(|number| format!("outward {number}")).collect();
    eventually(PATIENCE, "clients have all of it", || {
        BTreeSet::from_iter(clients.texts("outward")).len() == wanted.len()
    });
    assert_eq!(BTreeSet::from_iter(clients.texts("outward")), wanted);
    let mut ids: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for heard in clients.heard().iter().filter(|heard| heard["text"].as_str().unwrap().starts_with("outward")) {
        ids.entry(heard["text"].to_string()).or_default().insert(heard["id"].to_string());
    }
    assert!(ids.values().all(|ids| ids.len() == 1), "a double has the id of the first");
    let doubles = clients.texts("outward").len() - count;
    claim.measured("messages_each_way", count);
    claim.measured("doubles", doubles);
    if kills > 0 {
        claim.times_ms("hand_over_ms", hand_over_ms);
    }
    assert!(doubles <= kills * OUT_MAX, "{doubles} doubles");
}

#[test]
fn leaders_that_meet_do_not_send_what_the_other_has_sent() {
    let _alone = one_at_a_time();
    let redis = Redis::start();
    let url = redis.url();
    let options = ["--redis", &url, "--redis-mode", "streams", "--site", "attic"];
    let count = soak::count(300, 2_000);
    let mut claim = Claim::new("bridges: leaders that meet", 2 * count);
    // They know nothing of each other until somebody is where one of them looks.
    let (mut a, mut b, door) = (Member::new("a").args(&options), Member::new("b").args(&options), free_port());
    a.spawn(&[]);
    b.spawn(&[format!("127.0.0.1:{door}")]);
    for node in [&a, &b] {
        eventually(PATIENCE, "each leads", || state(node) == "active");
    }
    let sent = || redis.cli(&["XLEN", "chat_stream"]).trim().parse::<usize>().unwrap();
    for node in [&a, &b] {
        publish_each(node, count, |number| json!({ "text": format!("{} {number}", node.name()) }), |_| None::<()>);
    }
    eventually(PATIENCE, "each has sent its own", || sent() == 2 * count);
    forward(door, a.seed());
    let both = Mesh(vec![a, b]);
    both.all_up();
    for node in &both.0 {
        eventually(PATIENCE, "each has what the other said", || node.messages() == 2 * count as u64);
    }
    let leading = || both.0.iter().filter(|node| state(node) == "active").count();
    eventually(PATIENCE, "one of them leads", || leading() == 1);
    both.0.iter().for_each(|node| drop(node.say("together")));
    eventually(PATIENCE, "what is said afterwards is sent", || sent() >= 2 * count + 2);
    elapse(Duration::from_secs(3));
    claim.measured("doubled", sent() - 2 * count - 2);
    assert_eq!(sent(), 2 * count + 2, "nothing is sent twice");
}

#[test]
fn a_bridge_that_stands_still_is_replaced_and_does_not_go_on() {
    let _alone = one_at_a_time();
    let redis = Redis::start();
    let mesh = bridged(&["a", "b", "speaker"], &["--redis", &redis.url()]);
    let clients = Foreign::start(&["redis", &redis.url()]);
    let still = leader(&mesh);
    let other = (0..2).find(|at| *at != still).unwrap();
    let speaker = 2;
    (0..50).for_each(|number| _ = mesh.0[speaker].say(&format!("before {number}")));
    mesh.0[still].signal("STOP");
    let stopped = Instant::now();
    (0..50).for_each(|number| _ = mesh.0[speaker].say(&format!("during {number}")));
    let leads = || (0..3).any(|at| at != still && state(&mesh.0[at]) == "active");
    eventually(Duration::from_secs(11), "another one leads", leads);
    let mut claim = Claim::new("bridges: the active node stands still for 12 s", 1);
    claim.measured("hand_over_ms", stopped.elapsed().as_millis() as u64);
    elapse(Duration::from_secs(12).saturating_sub(stopped.elapsed()));
    mesh.0[still].signal("CONT");
    eventually(PATIENCE, "it stands again", || state(&mesh.0[still]) == "standing");
    assert!(leads(), "the other one leads still");
    (0..50).for_each(|number| _ = mesh.0[other].say(&format!("after {number}")));
    for part in ["before", "during", "after"] {
        eventually(PATIENCE, "all of it is heard", || BTreeSet::from_iter(clients.texts(part)).len() == 50);
        let expected: Vec<String> = (0..50).map(|number| format!("{part} {number}")).collect();
        let heard = clients.texts(part);
        claim.measured(part, heard.len());
        assert!(heard.len() <= 50 + OUT_MAX);
        if part == "after" {
            assert_eq!(heard, expected, "once and in order");
        }
    }
}

#[test]
fn broker_that_dies_again_and_again_loses_and_doubles_nothing_in_the_log() {
    let _alone = one_at_a_time();
    let (kills, count) = (soak::count(1, 5), soak::count(1_000, 10_000));
    let mut claim = Claim::new("bridges: RabbitMQ killed while messages pass", kills);
    let mut rabbit = Rabbit::start();
    let mesh = bridged(&["a", "b"], &["--amqp", &rabbit.url()]);
    let clients = Foreign::start(&["amqp", &rabbit.url(), "chat", "fanout", "foreign"]);
    let inward: Vec<String> = (0..count).map(|number| format!("inward {number}")).collect();
    let (chunk, steps) = (count.div_ceil(2 * kills), 2 * kills);
    for step in 0..steps {
        let range = (step * chunk).min(count)..((step + 1) * chunk).min(count);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let texts = &inward[range.clone()];
                clients.publish(&json!({ "to": "chat", "texts": texts, "ids": texts }));
            });
            scope.spawn(|| {
                publish_each(
                    &mesh.0[step % 2],
                    range.len(),
                    |at| json!({ "text": format!("outward {}", range.start + at) }),
                    Some,
                );
            });
            if step % 2 == 1 {
                elapse(Duration::from_millis(100));
                rabbit.kill();
                rabbit.start_again();
            }
        });
    }
    let promised: BTreeSet<String> =
        (0..count).map(|number| format!("outward {number}")).chain(inward.clone()).collect();
    let (log, _) = same_logs(&mesh.running(), 3 * PATIENCE, &promised);
    assert_eq!(log.0.len(), 2 * count, "each once in each log");
    eventually(2 * PATIENCE, "clients have all of it", || BTreeSet::from_iter(clients.texts("outward")).len() == count);
    claim.measured("messages_each_way", count);
    claim.measured("outward_doubles", clients.texts("outward").len() - count);
    drained(&rabbit);
}

#[test]
fn what_a_mesh_says_while_redis_is_down_is_sent_afterwards_in_order() {
    let _alone = one_at_a_time();
    let (down, count) = (soak::count(6, 30), soak::count(500, 5_000));
    let mut claim = Claim::new("bridges: Redis down while the mesh writes", count);
    claim.measured("down_s", down);
    let mut redis = Redis::start();
    let mesh = bridged(&["a", "b"], &["--redis", &redis.url()]);
    redis.kill();
    let killed = Instant::now();
    eventually(PATIENCE, "it is noticed", || mesh.0.iter().all(|node| state(node) == "connecting"));
    let (said, _) = publish_each(&mesh.0[0], count, |number| json!({ "text": format!("meanwhile {number}") }), Some);
    assert_eq!(said.len(), count);
    elapse(Duration::from_secs(down as u64).saturating_sub(killed.elapsed()));
    // Clients are there before the bridge: it does not know the password until there is none.
    redis.start_again(&["--requirepass", "first"]);
    let url = format!("redis://:first@127.0.0.1:{}", redis.port);
    let clients = Foreign::start(&["redis", &url]);
    redis.cli(&["-a", "first", "CONFIG", "SET", "requirepass", ""]);
    eventually(2 * PATIENCE, "all of it is sent", || clients.texts("meanwhile").len() == count);
    assert!(clients.texts("meanwhile") == said_texts(&mesh.0[0], "meanwhile"), "in the order of the log");
    eventually(PATIENCE, "that it was late is told", || {
        mesh.0.iter().any(|node| node.stderr().contains("sends what was said "))
    });
}

#[test]
fn what_a_mesh_says_while_rabbitmq_is_down_is_sent_afterwards_in_order() {
    let _alone = one_at_a_time();
    let (down, count) = (soak::count(1, 30), soak::count(500, 5_000));
    let mut claim = Claim::new("bridges: RabbitMQ down while the mesh writes", count);
    claim.measured("down_s", down);
    let mut rabbit = Rabbit::start();
    let mesh = bridged(&["a", "b"], &["--amqp", &rabbit.url()]);
    let clients = Foreign::start(&["amqp", &rabbit.url(), "chat", "fanout", "foreign"]);
    rabbit.kill();
    let killed = Instant::now();
    eventually(PATIENCE, "it is noticed", || mesh.0.iter().all(|node| state(node) == "connecting"));
    let (said, _) = publish_each(&mesh.0[0], count, |number| json!({ "text": format!("meanwhile {number}") }), Some);
    assert_eq!(said.len(), count);
    elapse(Duration::from_secs(down as u64).saturating_sub(killed.elapsed()));
    rabbit.start_again();
    eventually(2 * PATIENCE, "all of it is sent", || clients.texts("meanwhile").len() == count);
    assert!(clients.texts("meanwhile") == said_texts(&mesh.0[0], "meanwhile"), "in the order of the log");
}

#[test]
fn a_bridge_that_is_new_to_a_mesh_sends_nothing_of_what_was_said_before() {
    let _alone = one_at_a_time();
    let count = soak::count(2_000, 100_000);
    let mut claim = Claim::new("bridges: new to a mesh with messages", count);
    let redis = Redis::start();
    let clients = Foreign::start(&["redis", &redis.url()]);
    let mut mesh = Mesh::of(&["a", "b"]);
    publish_each(&mesh.0[0], count, |number| json!({ "text": format!("long ago {number}") }), Some);
    mesh.0.push(Member::new("bridge").args(&["--redis", &redis.url()]));
    mesh.start_again(&[2]);
    eventually(4 * PATIENCE, "it leads", || state(&mesh.0[2]) == "active");
    mesh.0[0].say("from now on");
    eventually(PATIENCE, "that is sent", || clients.texts("from now on").len() == 1);
    assert_eq!(clients.texts("").len(), 1, "and nothing else");
    claim.measured("sent", 0);
    // One that begins with the first message sends all there is; it is another bridge by its channels.
    let options = ["--redis", &redis.url(), "--redis-channel", "all", "--bridge-from", "start"];
    let mut all = Member::new("all").args(&options);
    all.spawn(&mesh.seeds());
    eventually(4 * PATIENCE, "all of it is sent", || {
        state(&all) == "active" && all.metric("bridge_sent") == count as u64 + 1
    });
}

#[test]
fn two_sites_see_each_other_once() {
    let _alone = one_at_a_time();
    let count = soak::count(500, 5_000);
    let mut claim = Claim::new("bridges: two meshes of one name, two bridges each", count);
    let (rabbit, redis) = (Rabbit::start(), Redis::start());
    // Over both at once, two bridges to each on either side.
    let options = ["--amqp", &rabbit.url(), "--redis", &redis.url(), "--redis-mode", "streams"];
    let sites = [bridged(&["a", "b"], &options), bridged(&["c", "d"], &options)];
    std::thread::scope(|scope| {
        for (site, mesh) in ["north", "south"].iter().zip(&sites) {
            scope.spawn(move || {
                publish_each(&mesh.0[1], count, |number| json!({ "text": format!("{site} {number}") }), Some)
            });
        }
    });
    let promised: BTreeSet<String> =
        ["north", "south"].iter().flat_map(|site| (0..count).map(move |number| format!("{site} {number}"))).collect();
    for mesh in &sites {
        let (log, _) = same_logs(&mesh.running(), 2 * PATIENCE, &promised);
        assert_eq!(log.0.len(), 2 * count, "each once");
    }
    drained(&rabbit);
    for mesh in &sites {
        let (log, _) = same_logs(&mesh.running(), PATIENCE, &promised);
        assert_eq!(log.0.len(), 2 * count, "nothing goes round");
    }
    claim.measured("each_way", count);
}

#[test]
fn trouble_with_a_broker_is_told_with_what_to_do_and_without_passwords() {
    let redis = Redis::start();
    redis.cli(&["CONFIG", "SET", "requirepass", "sesame-1"]);
    let home = Home::new();
    let check = |args: &[&str]| {
        let output = home.hubless(&Place::Here, &[&["check"], args].concat()).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let place = format!("127.0.0.1:{}", redis.port);
    let (code, said) = check(&["--redis", &format!("redis://{place}")]);
    assert!(code == 1 && said.contains(&place) && said.contains("put the password into the URL"), "{said}");
    let (code, said) = check(&["--redis", &format!("redis://:wrong-secret@{place}")]);
    assert!(code == 1 && said.contains("check the user and the password") && !said.contains("wrong-secret"), "{said}");
    let (code, said) = check(&["--redis", &format!("redis://:sesame-1@{place}")]);
    assert!(code == 0 && said.contains("Redis ") && !said.contains("sesame-1"), "{said}");
    for url in ["redis:/oops-secret@x", "http://oops-secret@x", "rediss://u:oops-secret@["] {
        for command in ["check", "run"] {
            let output = home.hubless(&Place::Here, &[command, "--redis", url]).output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(said.starts_with("error: --redis: ") && !said.contains("oops-secret"), "{said}");
        }
    }
    let (code, said) = check(&[]);
    assert!(code == 2 && said.contains("--redis"), "{said}");
    let output = home.hubless(&Place::Here, &["run", "--no-history", "--redis", "redis://x"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));

    // A node whose broker refuses it says so once, and serves.
    let mut node = Member::new("refused").args(&["--redis", &format!("redis://:wrong-secret@{place}")]);
    node.spawn(&[]);
    eventually(PATIENCE, "the trouble is told", || node.get("/readyz")["bridges"][0]["trouble"].is_string());
    let ready = node.get("/readyz");
    assert!(ready["ready"] == true && ready["bridges"][0]["trouble"].as_str().unwrap().contains("password"), "{ready}");
    node.say("served all the same");
    eventually(PATIENCE, "it is told in the terminal", || node.stderr().contains("check the user and the password"));
    assert!(!node.stderr().contains("wrong-secret") && !ready.to_string().contains("wrong-secret"));
    // Right after the password is put right it works.
    redis.cli(&["-a", "sesame-1", "CONFIG", "SET", "requirepass", "wrong-secret"]);
    eventually(2 * PATIENCE, "it leads", || state(&node) == "active");
    node.stop();
}

#[test]
fn brokers_are_spoken_to_through_tls_and_checked() {
    let _alone = one_at_a_time();
    let certificate = Certificate::new();
    let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| certificate.path(name));
    let (redis_port, amqp_port) = (free_port(), free_port());
    let mut redis = Redis::start();
    redis.kill();
    let port = redis_port.to_string();
    redis.start_again(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "no",
    ]);
    let rabbit = Rabbit::start_with(&format!(
        "listeners.ssl.default = 127.0.0.1:{amqp_port}\nssl_options.cacertfile = {ca}\nssl_options.certfile = {cert}\n\
         ssl_options.keyfile = {key}\nssl_options.verify = verify_none\n"
    ));
    let (rediss, amqps) =
        (format!("rediss://127.0.0.1:{redis_port}"), format!("amqps://guest:guest@127.0.0.1:{amqp_port}"));
    let home = Home::new();
    let check = |args: &[&str], trusted: Option<&str>| {
        let mut command = home.hubless(&Place::Here, &[&["check"], args].concat());
        command.envs(trusted.map(|trusted| ("SSL_CERT_FILE", trusted)));
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    // Whose certificate nobody vouches for is not spoken to; nor is one that does not speak TLS.
    let plain_redis = format!("rediss://127.0.0.1:{}", redis.port);
    let plain_amqp = format!("amqps://guest:guest@127.0.0.1:{}", rabbit.port);
    for (args, trusted) in [
        (["--redis", &rediss], None),
        (["--amqp", &amqps], None),
        (["--redis", &plain_redis], Some(&*ca)),
        (["--amqp", &plain_amqp], Some(&*ca)),
    ] {
        let (code, said) = check(&args, trusted);
        assert!(code == 1 && said.contains("FAILED: "), "{args:?}: {said}");
        assert!(!said.contains("guest:guest"), "{said}");
    }
    for args in [["--redis", &rediss], ["--amqp", &amqps]] {
        let (code, said) = check(&args, Some(&ca));
        assert_eq!(code, 0, "{args:?}: {said}");
    }
    let mut node = Member::new("tls").args(&["--redis", &rediss, "--amqp", &amqps]);
    node = node.env(vec![("SSL_CERT_FILE", ca.into())]);
    node.spawn(&[]);
    let active = || node.get("/api/v1/bridges").as_array().unwrap().iter().filter(|b| b["state"] == "active").count();
    eventually(PATIENCE, "both bridges are active", || active() == 2);
    let (redis_clients, amqp_clients) = (
        Foreign::start(&["redis", &redis.url()]),
        Foreign::start(&["amqp", &rabbit.url(), "chat", "fanout", "foreign"]),
    );
    node.say("sealed on its way");
    for clients in [&redis_clients, &amqp_clients] {
        eventually(PATIENCE, "it is heard", || clients.texts("sealed").len() == 1);
    }
    redis_clients.say("chat_messages", &["back over channels"]);
    amqp_clients.say("chat", &["back over the exchange"]);
    eventually(PATIENCE, "both answers came", || lobby(&node).len() == 3);
    node.stop();
}

#[test]
fn bare_texts_go_no_further_than_one_bridge_unless_told_and_never_round() {
    let _alone = one_at_a_time();
    let (redis, rabbit) = (Redis::start(), Rabbit::start());
    let options = ["--redis", &redis.url(), "--amqp", &rabbit.url()];
    // Two meshes that share a server and a broker: what goes round would double without end.
    let sites = [bridged(&["a", "b"], &options), bridged(&["c", "d"], &options)];
    let exchange = Foreign::start(&["amqp", &rabbit.url(), "chat", "fanout", "foreign"]);
    let channels = Foreign::start(&["redis", &redis.url()]);
    channels.say("chat_messages", &["bare"]);
    exchange.publish(&json!({ "to": "chat", "texts": ["named"], "ids": ["named"] }));
    sites[0].0[0].say("from a mesh");
    sites[0].0[0].say("the last");
    for mesh in &sites {
        for node in &mesh.0 {
            // What a mesh says comes over both ways: with its id over AMQP, as bare text over Redis.
            eventually(PATIENCE, "all of it has come", || lobby(node).iter().any(|text| text == "the last"));
            let times = |text: &str| lobby(node).iter().filter(|said| *said == text).count();
            eventually(PATIENCE, "what the clients said has come", || times("bare") == 1 && times("named") == 1);
            assert!(times("from a mesh") <= 2);
        }
    }
    assert_eq!(exchange.texts("bare").len(), 0, "bare texts stay on the bridge on which they came");
    let before: Vec<usize> = sites.iter().map(|mesh| lobby(&mesh.0[0]).len()).collect();
    elapse(Duration::from_secs(1));
    let after: Vec<usize> = sites.iter().map(|mesh| lobby(&mesh.0[0]).len()).collect();
    assert_eq!(before, after, "nothing goes round");
    drop(sites);
    let relaying = bridged(&["e", "f"], &[&options[..], &["--relay"]].concat());
    channels.say("chat_messages", &["bare and relayed"]);
    eventually(PATIENCE, "it is relayed", || exchange.texts("bare and relayed").len() == 1);
    // What would come back comes before what is said later.
    channels.say("chat_messages", &["said later"]);
    eventually(PATIENCE, "that is relayed, too", || exchange.texts("said later").len() == 1);
    eventually(PATIENCE, "and is heard where it was said", || channels.texts("said later").len() == 1);
    assert_eq!(channels.texts("bare and relayed").len(), 1, "not back to the channels");
    drop(relaying);
}

/// Carries what comes to a port of loopback to `target`, from now on.
fn forward(port: u16, target: String) {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    std::thread::spawn(move || {
        for caller in listener.incoming().map_while(Result::ok) {
            let Ok(callee) = TcpStream::connect(&target) else { continue };
            for (mut from, mut to) in [(caller.try_clone().unwrap(), callee.try_clone().unwrap()), (callee, caller)] {
                std::thread::spawn(move || {
                    // Either end may go at any time.
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
}

/// Nodes that offer a bridge, up to each other, one of them active.
fn bridged(names: &[&str], options: &[&str]) -> Mesh {
    let member = |name: &&str| Member::new(name).args(if *name == "speaker" { &[] } else { options });
    let mesh = Mesh::start(names.iter().map(member).collect());
    leader(&mesh);
    mesh
}

/// Which one is active; waits until one is, of each bridge.
#[track_caller]
fn leader(mesh: &Mesh) -> usize {
    let active = |bridge: usize| -> Vec<usize> {
        let is_active = |at: &usize| mesh.0[*at].get("/readyz")["bridges"][bridge]["state"] == "active";
        (0..mesh.0.len()).filter(is_active).collect()
    };
    let bridges = mesh.0[0].get("/readyz")["bridges"].as_array().unwrap().len().max(1);
    for bridge in 0..bridges {
        eventually(PATIENCE, "a node is active", || !active(bridge).is_empty());
        assert_eq!(active(bridge).len(), 1, "one of them");
    }
    active(0)[0]
}

/// What the node's only bridge does.
fn state(node: &Hubless) -> String {
    node.get("/readyz")["bridges"][0]["state"].as_str().unwrap_or_default().to_string()
}

/// Each says one after the other, once all have the one before: nothing else orders what two authors say.
fn say_in_turn(mesh: &Mesh, texts: &[&str]) {
    for (text, author) in texts.iter().zip(mesh.0.iter().cycle()) {
        author.say(text);
        for node in &mesh.0 {
            eventually(PATIENCE, "it is heard", || lobby(node).iter().any(|heard| heard == text));
        }
    }
}

/// The texts of the lobby.
fn lobby(node: &Hubless) -> Vec<String> {
    let page = node.get("/api/v1/messages?room=lobby&limit=1000");
    page["messages"].as_array().unwrap().iter().map(|message| message["text"].as_str().unwrap().to_string()).collect()
}

/// The texts that begin so, in the order of the log.
fn said_texts(node: &Hubless, prefix: &str) -> Vec<String> {
    let mut texts = Vec::new();
    node.export(|message| {
        texts.extend(message["text"].as_str().filter(|text| text.starts_with(prefix)).map(String::from))
    });
    texts
}

/// Says something in a room, and answers its id.
fn say(node: &Hubless, room: &str, text: &str) -> String {
    let (status, answer) = node.request("POST", "/api/v1/messages", &json!({ "room": room, "text": text }).to_string());
    assert_eq!(status, 201, "{answer}");
    answer["id"].as_str().unwrap().to_string()
}

/// Waits until nothing is left in any queue, given and not acknowledged included.
#[track_caller]
fn drained(rabbit: &Rabbit) {
    eventually(2 * PATIENCE, "the queues are empty", || {
        let queues = rabbit.ctl(&["list_queues", "--no-table-headers", "messages"]).unwrap();
        queues.lines().all(|left| left.trim() == "0")
    });
}
