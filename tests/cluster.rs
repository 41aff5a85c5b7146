//! Nodes in one process, through the crate's API: what an embedder relies on, and what peers that come and go, are slow or
//! speak nonsense must not change.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::raw::{self, Face, Raw};
use common::soak::{self, Claim};
use common::{eventually, one_at_a_time};
use hubless::config::{Listen, Seed};
use hubless::handle::{Begin, Handle, Query};
use hubless::id::{Epoch, NodeId, Run, Seq};
use hubless::replica::Replica;
use hubless::replica::batch::Batch;
use hubless::replica::clock::{Hlc, Mono, Now};
use hubless::replica::event::Output;
use hubless::replica::message::{Digest, Heartbeat, Holding, Message, Repair};
use hubless::replica::ranges::RangeSet;
use hubless::{
    Cursor, Delivery, Draft, Event, Filter, Gap, GapReason, Node, PAYLOAD_BYTES_MAX, PeerState, PublishError, Room,
    Stopped, Subscription,
};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);
const LOCALHOST: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[test]
fn publisher_goes_on_while_eight_peers_come_and_go_and_a_ninth_misses_nothing() {
    alone(async {
        let span = Duration::from_secs(if soak::wanted() { 60 } else { 5 });
        let mut claim = Claim::new("cluster: eight peers that come and go", 1);
        let publisher = node("publisher", &[]).await;
        let ninth = node("ninth", &[&publisher]).await;
        let mut heard = ninth.subscribe("lobby").await.unwrap();
        both_up(&publisher, &ninth).await;

        let churn = Churn::begin(&publisher);
        let reader = tokio::spawn(async move {
            let mut next = 0;
            loop {
                match text_of(heard.next().await) {
                    text if text == "end" => return next,
                    text => assert_eq!(text.trim_start().parse(), Ok(next)),
                }
                next += 1;
            }
        });
        let (started, mut said, mut longest) = (Instant::now(), 0, Duration::ZERO);
        while started.elapsed() < span {
            let drafts = (said..said + 256).map(|number| Draft::new(Room::lobby(), format!("{number:>64}"))).collect();
            let asked = Instant::now();
            publisher.publish_all(drafts).await.unwrap();
            longest = longest.max(asked.elapsed());
            said += 256;
        }
        let seconds = started.elapsed().as_secs_f64();
        let lives = churn.end();
        publisher.publish("lobby", "end").await.unwrap();
        let came: u64 = timeout(PATIENCE, reader).await.expect("the last message comes").unwrap();
        claim.measured("messages", said);
        claim.measured("messages_per_s", (said as f64 / seconds) as u64);
        claim.measured("lives", lives);
        claim.measured("longest_publish_ms", longest.as_millis() as u64);
        assert_eq!(came, said, "the steady peer has every message once");
        assert!(longest < Duration::from_secs(1), "publishing stood still for {longest:?}");
        assert!(lives as f64 > 50.0 * seconds, "only {lives} lives: that is no coming and going");

        // Those who have gone leave room for those who come.
        let newcomer = node("newcomer", &[&publisher]).await;
        both_up(&publisher, &newcomer).await;
        timeout(PATIENCE, newcomer.wait_for_peers(2)).await.expect("it finds the ninth through gossip").unwrap();
        let ghosts = || publisher.peers().iter().filter(|peer| peer.state == PeerState::OneWay).count();
        eventually(PATIENCE, "nobody who has gone is thought to be there", || ghosts() == 0);
    });
}

#[test]
fn peers_that_come_and_go_are_no_news() {
    alone(async {
        let node = node("a", &[]).await;
        let mut events = node.events();
        let churn = Churn::begin(&node);
        eventually(PATIENCE, "many have come and gone", || churn.lives() > 400);
        churn.end();
        eventually(PATIENCE, "all of them are known to have gone", || node.peers().is_empty());
        assert_eq!(events.try_recv().ok(), None, "nobody hears of those who were never heard");
    });
}

#[test]
fn two_nodes_in_one_process_see_and_hear_each_other() {
    alone(async {
        let a = node("a", &[]).await;
        let mut events = a.events();
        let b = node("b", &[&a]).await;
        let (mut at_a, mut at_b) = (a.subscribe("lobby").await.unwrap(), b.subscribe("lobby").await.unwrap());
        both_up(&a, &b).await;
        match timeout(PATIENCE, events.recv()).await.expect("news").unwrap() {
            Event::PeerUp(peer) => {
                assert_eq!((peer.run, &*peer.name, peer.state), (b.info().run, "b", PeerState::Up));
            }
            other => panic!("{other:?}"),
        }
        let from_a = a.publish("lobby", "from a").await.unwrap();
        let from_b = b.publish("lobby", "from b").await.unwrap();
        for ear in [&mut at_a, &mut at_b] {
            let mut came = [message(ear).await, message(ear).await];
            came.sort_by_key(|message| message.payload.text() == Some("from b"));
            let [one, other] = came;
            assert_eq!((one.id, &*one.name, one.payload.text()), (from_a.id, "a", Some("from a")));
            assert_eq!((other.id, &*other.name, other.payload.text()), (from_b.id, "b", Some("from b")));
        }
        assert_eq!(timeout(PATIENCE, a.held_by(from_a.id, 1)).await.expect("b holds it"), Ok(1));
    });
}

#[test]
fn shutdown_says_goodbye_and_ends_everything() {
    alone(async {
        let (a, b) = pair().await;
        let (mut events, mut at_b) = (a.events(), b.subscribe("lobby").await.unwrap());
        let run = b.info().run;
        b.publish("lobby", "last words").await.unwrap();
        let stopping = Instant::now();
        b.shutdown().await;
        loop {
            match timeout(PATIENCE, events.recv()).await.expect("news").unwrap() {
                Event::PeerDown(peer) => break assert_eq!(peer.run, run),
                // B may have been up to the one before the other; ill it never was.
                other => assert!(matches!(other, Event::PeerUp(_)), "{other:?}"),
            }
        }
        // Silence alone would need 8 s.
        assert!(stopping.elapsed() < Duration::from_secs(2), "goodbye came after {:?}", stopping.elapsed());
        assert!(a.peers().iter().any(|peer| peer.run == run && peer.state == PeerState::Down));
        TcpListener::bind(b.info().listen).expect("the port is free as soon as it has stopped");
        assert_eq!(text_of(at_b.next().await), "last words");
        assert_eq!(at_b.next().await, None);
        assert_eq!(b.publish("lobby", "too late").await, Err(PublishError::Stopped));
        assert_eq!(b.wait_for_peers(1).await, Err(Stopped));
        b.shutdown().await;
    });
}

#[test]
fn dropping_the_last_handle_stops_the_node() {
    alone(async {
        let (a, b) = pair().await;
        let (listen, run) = (b.info().listen, b.info().run);
        let mut reader = b.subscribe("lobby").await.unwrap();
        let clone = b.clone();
        drop(b);
        clone.publish("lobby", "a clone is as good").await.unwrap();
        assert_eq!(message(&mut reader).await.payload.text(), Some("a clone is as good"));
        drop(clone);
        // A reader does not keep it alive.
        assert_eq!(timeout(PATIENCE, reader.next()).await.expect("the end"), None);
        eventually(PATIENCE, "the port is free", || TcpListener::bind(listen).is_ok());
        let down = || a.peers().iter().any(|peer| peer.run == run && peer.state == PeerState::Down);
        eventually(Duration::from_secs(2), "it said goodbye", down);
    });
}

#[test]
fn reader_of_a_prefix_gets_its_rooms_and_no_others() {
    alone(async {
        let (a, b) = pair().await;
        let (mut sensors, mut all) =
            (b.subscribe_prefix("sensors.").await.unwrap(), b.subscribe_prefix("").await.unwrap());
        let said = ["lobby", "sensors.attic", "sensors", "sensors2.x", "sensors.cellar.north"];
        for room in said {
            a.publish(room, room).await.unwrap();
        }
        for expected in ["sensors.attic", "sensors.cellar.north"] {
            assert_eq!(message(&mut sensors).await.room.as_str(), expected);
        }
        for expected in said {
            assert_eq!(message(&mut all).await.room.as_str(), expected);
        }
        assert!(matches!(a.subscribe("Not a room").await, Err(PublishError::Room(_))));
    });
}

#[test]
fn slow_reader_is_told_how_many_it_missed_while_another_gets_all() {
    alone(async {
        const COUNT: u64 = 1_000; // Twice what a reader's queue holds.
        let (a, b) = pair().await;
        let mut slow = b.subscribe("lobby").await.unwrap();
        let mut quick = b.subscribe("lobby").await.unwrap();
        let quick = tokio::spawn(async move {
            for number in 0..COUNT {
                assert!(text_of(quick.next().await).starts_with(&format!("{number} ")));
            }
        });
        for number in 0..COUNT {
            a.publish("lobby", format!("{number} {}", "x".repeat(64 * 1024))).await.unwrap();
            // What is of another room is not counted.
            a.publish("elsewhere", "y").await.unwrap();
        }
        timeout(PATIENCE, quick).await.expect("the quick reader has all").unwrap();
        let mut came = 0;
        let missing = loop {
            match slow.next().await.unwrap() {
                Delivery::Message(message) => {
                    assert!(message.payload.text().unwrap().starts_with(&format!("{came} ")));
                    came += 1;
                }
                Delivery::Gap(Gap { missing, reason }) => {
                    assert_eq!(reason, GapReason::Slow);
                    break missing;
                }
            }
        };
        assert!(came > 0 && missing > 0);
        assert_eq!(came + missing, COUNT);
        a.publish("lobby", "now it reads").await.unwrap();
        assert_eq!(text_of(slow.next().await), "now it reads");
    });
}

#[test]
fn payload_beyond_the_limit_is_refused_and_one_at_the_limit_arrives() {
    alone(async {
        let (a, b) = pair().await;
        let mut at_b = b.subscribe("lobby").await.unwrap();
        let refused = a.publish("lobby", vec![7; PAYLOAD_BYTES_MAX + 1]).await;
        assert_eq!(refused, Err(PublishError::TooLarge { bytes: PAYLOAD_BYTES_MAX + 1, max: PAYLOAD_BYTES_MAX }));
        let lobby = |bytes: usize| Draft::new(Room::lobby(), vec![7; bytes]);
        assert!(a.publish_all(vec![lobby(1), lobby(PAYLOAD_BYTES_MAX + 1)]).await.is_err());
        a.publish("lobby", vec![8; PAYLOAD_BYTES_MAX]).await.unwrap();
        assert_eq!(message(&mut at_b).await.payload.bytes()[..], vec![8; PAYLOAD_BYTES_MAX]);
    });
}

#[test]
fn reader_that_takes_its_cursor_from_node_to_node_loses_and_doubles_nothing() {
    alone(async {
        const COUNT: usize = 3_000;
        let (a, b) = pair().await;
        let mut reader = a.subscribe("lobby").await.unwrap();
        let writers = [&a, &b].map(|node| {
            let node = node.clone();
            tokio::spawn(async move {
                for number in 0..COUNT {
                    let text = format!("{} {number}", node.info().name);
                    // Batches of several entries: a cursor stands within them, too.
                    let elsewhere = Draft::new("elsewhere".try_into().unwrap(), "y");
                    node.publish_all(vec![elsewhere, Draft::new(Room::lobby(), text)]).await.unwrap();
                }
            })
        });
        let mut next = std::collections::HashMap::from([("a", 0), ("b", 0)]);
        let mut nodes = [&b, &a].into_iter().cycle();
        for read in 1..=2 * COUNT {
            let came = message(&mut reader).await;
            let (name, number) = came.payload.text().unwrap().split_once(' ').unwrap();
            let expected = next.get_mut(name).unwrap();
            assert_eq!(number.parse(), Ok(*expected), "of {name}, as message {read}");
            *expected += 1;
            if read % 97 == 0 {
                let cursor: Cursor = reader.cursor().to_string().parse().unwrap();
                reader = nodes.next().unwrap().resume(Filter::Room(Room::lobby()), cursor).await.unwrap();
            }
        }
        for writer in writers {
            writer.await.unwrap();
        }
        for node in [&a, &b] {
            node.publish("lobby", "nothing more").await.unwrap();
            assert_eq!(message(&mut reader).await.payload.text(), Some("nothing more"));
        }
    });
}

#[test]
fn who_was_given_one_of_two_entries_with_one_key_is_never_given_the_other() {
    alone(async {
        let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let begin = async |at: usize, seeds| {
            let builder = Node::builder().mesh(MESH).name(["a", "b"][at]).listen(Listen::At(LOCALHOST)).mdns(false);
            builder.seeds(seeds).data_dir(Some(homes[at].path().into())).start().await.unwrap()
        };
        // Apart, each is told the same message; both have readers that are given it.
        let apart = [begin(0, Vec::new()).await, begin(1, Vec::new()).await];
        let key = Some(hubless::id::Key([7; 16]));
        let mut cursors = Vec::new();
        for node in &apart {
            let name = &node.info().name;
            let draft = |text: String, key| Draft { key, ..Draft::new(Room::lobby(), text) };
            node.publish_with(draft("twice".into(), key)).await.unwrap();
            node.publish_with(draft(format!("of {name}"), None)).await.unwrap();
            let mut durable = node.durable("d", Filter::Room(Room::lobby()), Begin::Start).await.unwrap();
            let mut reader = node.resume(Filter::Room(Room::lobby()), Cursor::new()).await.unwrap();
            for text in ["twice", &format!("of {name}")] {
                let (message, mark) = timeout(PATIENCE, durable.next()).await.unwrap().unwrap().unwrap();
                assert_eq!(message.payload.text(), Some(text));
                durable.ack(mark).await.unwrap();
                assert_eq!(text_of(timeout(PATIENCE, reader.next()).await.unwrap()), text);
            }
            cursors.push(reader.cursor());
        }
        for node in apart {
            node.shutdown().await;
        }
        let a = begin(0, Vec::new()).await;
        let b = begin(1, vec![seed(a.info().listen)]).await;
        both_up(&a, &b).await;
        for (node, others, cursor) in [(&a, "of b", &cursors[0]), (&b, "of a", &cursors[1])] {
            eventually_texts(node, &["twice", others], 3).await;
            node.publish("lobby", "the end").await.unwrap();
            let after = Query { after: Some(cursor.clone()), limit: 100, ..Query::default() };
            assert!(!texts(node, after).await.contains(&"twice".to_owned()), "by a page");
            let mut reader = node.resume(Filter::Room(Room::lobby()), cursor.clone()).await.unwrap();
            let mut durable = node.durable("d", Filter::Room(Room::lobby()), Begin::Start).await.unwrap();
            for came in [others, "the end"] {
                assert_eq!(text_of(timeout(PATIENCE, reader.next()).await.unwrap()), came);
                let (message, mark) = timeout(PATIENCE, durable.next()).await.unwrap().unwrap().unwrap();
                assert_eq!(message.payload.text(), Some(came));
                durable.ack(mark).await.unwrap();
            }
        }
    });
}

/// The node shows these texts, among so many.
async fn eventually_texts(node: &Handle, wanted: &[&str], count: usize) {
    let begun = Instant::now();
    loop {
        let shown = texts(node, Query { limit: 100, ..Query::default() }).await;
        if shown.len() >= count && wanted.iter().all(|text| shown.iter().any(|shown| shown == text)) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{shown:?}");
        tokio::task::yield_now().await;
    }
}

#[test]
fn nonsense_of_a_peer_is_counted_and_dropped_and_harms_nobody() {
    alone(async {
        let listener = TcpListener::bind(LOCALHOST).unwrap();
        let address = listener.local_addr().unwrap();
        let a = start("a", vec![seed(address)]).await;
        let mut at_a = a.subscribe_prefix("").await.unwrap();
        let face = Face { run: raw::run(1), mesh: MESH, port: address.port() };
        let mut peer = Raw::answer(listener.accept().unwrap().0, &face).unwrap();
        eventually(PATIENCE, "it is dialled, found to be there, and heard", || {
            peer.say(b"mesh", &[hubless::wire::WIRE_VERSION, 0, 0, 0, 0, 0]).unwrap(); // A heartbeat without news.
            a.peers().iter().any(|shown| shown.run == face.run)
        });

        let version = hubless::wire::WIRE_VERSION;
        let large = vec![version; 300 * 1024];
        for (topic, body, reason) in [
            (&b"chat"[..], &[version, 1, 2, 3][..], "batch"),
            (b"chat", &large, "batch"),
            (b"chatter", b"hi", "version"),
            (b"chat", b"", "length"),
            (b"chat", &[version + 1], "batch"),
            (b"mesh", &[version + 1], "version"),
            (b"mesh", &[version, 0xff, 0xff], "body"),
            (b"mesh", &[version, 8, 0, 0], "body"),
            (b"to.somebody", &[version], "topic"),
        ] {
            let before = malformed(&a, reason);
            peer.say(topic, body).unwrap();
            eventually(PATIENCE, &format!("{topic:?} is counted as {reason}"), || malformed(&a, reason) == before + 1);
        }
        // The link stood all this; a frame beyond the limit ends it.
        let cut = r#"hubless_cut_total{reason="malformed"} 1"#;
        assert!(!a.metrics().encode().contains(cut));
        peer.write(&[2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).unwrap();
        eventually(PATIENCE, "the connection is cut", || a.metrics().encode().contains(cut));
        assert_eq!(malformed(&a, "frame_length"), 1);
        assert!(peer.read_until(Instant::now() + PATIENCE).is_err());

        let b = node("b", &[&a]).await;
        both_up(&a, &b).await;
        b.publish("lobby", "sense").await.unwrap();
        assert_eq!(text_of(at_a.next().await), "sense");
    });
}

#[test]
fn what_its_author_never_signed_is_refused_and_its_bearer_cut() {
    alone(async {
        let listener = TcpListener::bind(LOCALHOST).unwrap();
        let address = listener.local_addr().unwrap();
        let a = start("a", vec![seed(address)]).await;
        let b = node("b", &[&a]).await;
        both_up(&a, &b).await;
        let mut at_a = a.subscribe_prefix("").await.unwrap();
        let member = b.info().run;
        // What one run says, signed by another's key, for each way in which words reach a node.
        let forged = |claimed: Run, first: u64| {
            let bytes = said(9, first);
            let mut forged = bytes.to_vec();
            forged[1..33].copy_from_slice(&claimed.node.0);
            forged[33..41].copy_from_slice(&claimed.epoch.0.to_le_bytes());
            forged
        };
        let repair = |origin: Run, batch: Vec<u8>| {
            let batch = Batch::checked_before(batch.into()).unwrap();
            let (first, through) = (Seq(1), Seq(9));
            let repair = Repair { origin, first, from: first, through, batches: vec![(batch, 0)] };
            hubless::wire::encode(&Message::Repair(repair)).to_vec()
        };
        let me = raw::run(9);
        let mut changed = said(9, 1).to_vec();
        changed[70] ^= 1; // In the hash of the body.
        let mut unsigned = said(9, 1).to_vec();
        unsigned[125..189].fill(0);
        let mut beyond = said(9, 1).to_vec();
        beyond[41..49].fill(0xff);
        let to_a = hubless::wire::topic_to(a.info().run);
        let to_a = to_a.as_bytes();
        for (what, topic, body, reason) in [
            ("a member's next words", to_a, repair(member, forged(member, 1)), "signature"),
            ("own words in another's name", &b"chat"[..], forged(raw::run(8), 1), "signature"),
            ("unsigned", b"chat", unsigned.clone(), "signature"),
            ("unsigned, passed on", to_a, repair(me, unsigned), "signature"),
            ("changed", b"chat", changed, "batch"),
            ("a seq beyond the last", b"chat", beyond, "batch"),
        ] {
            let before = malformed(&a, reason);
            let mut peer =
                Raw::answer(listener.accept().unwrap().0, &Face { run: me, mesh: MESH, port: address.port() }).unwrap();
            eventually(PATIENCE, &format!("{what}: it is counted"), || {
                let beat = hubless::wire::encode(&Message::Heartbeat(Heartbeat::default()));
                // It may have been cut already.
                let _ = peer.say(b"mesh", &beat).and_then(|()| peer.say(topic, &body));
                malformed(&a, reason) > before
            });
            if reason == "signature" {
                assert!(peer.read_until(Instant::now() + PATIENCE).is_err(), "{what}: the link is not cut");
            }
        }
        b.publish("lobby", "mine").await.unwrap();
        assert_eq!(text_of(at_a.next().await), "mine");
    });
}

#[test]
fn a_member_of_very_many_lives_and_of_times_that_cannot_be_is_bounded() {
    /// The most lives of one node that are taken in a day.
    const LIVES_MAX: u64 = 1_024;
    let lives = soak::count(5_000, 1_000_000) as u64;
    let mut claim = Claim::new("cluster: lives of one node, and a clock in 2099", lives as usize);
    alone(async {
        let listener = TcpListener::bind(LOCALHOST).unwrap();
        let address = listener.local_addr().unwrap();
        let a = start("a", vec![seed(address)]).await;
        let b = node("b", &[&a]).await;
        both_up(&a, &b).await;
        let mut at_a = a.subscribe_prefix("").await.unwrap();
        let mut at_b = b.subscribe_prefix("").await.unwrap();
        let me = raw::run(9);
        let mut peer =
            Raw::answer(listener.accept().unwrap().0, &Face { run: me, mesh: MESH, port: address.port() }).unwrap();
        let beat = hubless::wire::encode(&Message::Heartbeat(Heartbeat { wall_ms: now_ms(), ..Heartbeat::default() }));
        eventually(PATIENCE, "it is heard", || {
            peer.say(b"mesh", &beat).unwrap();
            a.peers().iter().any(|shown| shown.run == me)
        });

        // 2099, and the last moment that can be written.
        let refused = || counted(&a, "refused_total");
        for (seq, wall_ms) in [(1, 4_070_908_800_000), (2, u64::MAX)] {
            let before = refused();
            peer.say(b"chat", &signed(9, me.epoch, wall_ms, seq)).unwrap();
            eventually(PATIENCE, "an entry of another age is refused", || refused() > before);
        }

        let before = resident_bytes();
        let to_a = hubless::wire::topic_to(a.info().run);
        let tell =
            |peer: &mut Raw, message: Message| peer.say(to_a.as_bytes(), &hubless::wire::encode(&message)).unwrap();
        for first in (0..lives).step_by(200) {
            let run = |epoch| Run { node: me.node, epoch: Epoch(epoch) };
            let holding = |epoch| Holding {
                run: run(1_000 + epoch),
                floor: Seq(0),
                held: RangeSet::of(Seq(1), Seq(1)),
                volatile: RangeSet::new(),
                newest: Hlc::at(now_ms()),
                over: epoch % 2 == 0,
            };
            let epochs = first..lives.min(first + 200);
            let holdings = epochs.clone().map(holding).collect();
            tell(&mut peer, Message::Digest(Digest { holdings, all: true, same: 0, answers: 0 }));
            for epoch in epochs {
                let origin = run(1_000 + epoch);
                let batch = Batch::parse(signed(9, origin.epoch, now_ms(), 1)).unwrap();
                let (first, through) = (Seq(1), Seq(1));
                tell(
                    &mut peer,
                    Message::Repair(Repair { origin, first, from: first, through, batches: vec![(batch, 0)] }),
                );
            }
            if first % 50_000 == 0 {
                let text = format!("meanwhile {first}");
                b.publish("lobby", text.as_str()).await.unwrap();
                eventually_heard(&mut at_b, &text).await;
                eventually_heard(&mut at_a, &text).await;
            }
        }
        eventually(PATIENCE, "all but so many lives are refused", || refused() + LIVES_MAX >= lives);
        let grown = resident_bytes().saturating_sub(before);
        claim.measured("refused", refused());
        claim.measured("grew_mib", grown >> 20);
        assert!(grown <= 64 << 20, "the nodes grew by {} MiB", grown >> 20);
        a.publish("lobby", "the last word").await.unwrap();
        eventually_heard(&mut at_b, "the last word").await;
        assert!(a.peers().iter().any(|peer| peer.run == b.info().run && peer.state == PeerState::Up));
    });
}

/// Takes what comes until this text does.
async fn eventually_heard(reader: &mut Subscription, text: &str) {
    let heard = async {
        while let Some(delivery) = reader.next().await {
            if matches!(&delivery, Delivery::Message(message) if message.payload.text() == Some(text)) {
                return;
            }
        }
        panic!("the reader has ended");
    };
    timeout(PATIENCE, heard).await.unwrap_or_else(|_| panic!("{text} is not heard"));
}

/// What this process has in memory.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// The batch of one message that [`raw::run`] signs.
fn said(number: u64, first: u64) -> bytes::Bytes {
    signed(number, raw::run(number).epoch, now_ms(), first)
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// The same in another life of that node, at another time.
fn signed(number: u64, epoch: Epoch, wall_ms: u64, first: u64) -> bytes::Bytes {
    let now = Now { mono: Mono(0), wall_ms };
    let mut author = Replica::new(now, raw::key(number), epoch, "raw".into(), 1, 1 << 20, None);
    for seq in 1..=first {
        author.publish(now, vec![Draft::new(Room::lobby(), format!("said {seq}"))]);
    }
    std::iter::from_fn(|| author.poll_output())
        .filter_map(|output| match output {
            Output::Send { message: Message::Batch(batch), .. } => Some(batch.bytes().clone()),
            _ => None,
        })
        .last()
        .unwrap()
}

const MESH: &str = "cluster";

/// Runs a test while no other one of this program does.
fn alone(test: impl Future<Output = ()>) {
    let _alone = one_at_a_time();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test);
}

/// A node on loopback that knows these.
async fn node(name: &str, seeds: &[&Handle]) -> Handle {
    start(name, seeds.iter().map(|node| seed(node.info().listen)).collect()).await
}

async fn start(name: &str, seeds: Vec<Seed>) -> Handle {
    let builder = Node::builder().mesh(MESH).name(name).listen(Listen::At(LOCALHOST)).mdns(false);
    builder.seeds(seeds).start().await.unwrap()
}

fn seed(address: SocketAddr) -> Seed {
    Seed { host: address.ip().to_string(), port: address.port() }
}

/// Two nodes that are up to each other.
async fn pair() -> (Handle, Handle) {
    let a = node("a", &[]).await;
    let b = node("b", &[&a]).await;
    both_up(&a, &b).await;
    (a, b)
}

async fn both_up(a: &Handle, b: &Handle) {
    for (node, peer) in [(a, b), (b, a)] {
        timeout(PATIENCE, node.wait_for_peers(1)).await.expect("a peer comes up").unwrap();
        let run = peer.info().run;
        let up = || node.peers().iter().any(|peer| peer.run == run && peer.state == PeerState::Up);
        eventually(PATIENCE, "the peer is up", up);
    }
}

async fn message(reader: &mut Subscription) -> hubless::Message {
    match timeout(PATIENCE, reader.next()).await.expect("a message comes") {
        Some(Delivery::Message(message)) => message,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn text_of(delivery: Option<Delivery>) -> String {
    match delivery {
        Some(Delivery::Message(message)) => message.payload.text().unwrap().to_owned(),
        other => panic!("{other:?}"),
    }
}

async fn texts(node: &Handle, query: Query) -> Vec<String> {
    let page = node.messages(query).await.unwrap();
    page.messages.iter().map(|message| message.payload.text().unwrap().to_owned()).collect()
}

/// What a counter shows, as Prometheus would see it.
fn counted(node: &Handle, name: &str) -> u64 {
    let text = node.metrics().encode();
    let value = text.lines().find_map(|line| line.strip_prefix("hubless_")?.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(0, |count| count.parse().unwrap())
}

/// How many malformed messages were counted for this reason, as Prometheus would see it.
fn malformed(node: &Handle, reason: &str) -> u64 {
    let begin = format!(r#"hubless_malformed_total{{reason="{reason}"}} "#);
    let text = node.metrics().encode();
    text.lines().find_map(|line| line.strip_prefix(&begin)).map_or(0, |count| count.parse().unwrap())
}

/// Eight peers that call a node, subscribe all that a node does, read for 10 ms, and come again as somebody else.
struct Churn {
    stop: std::sync::Arc<Lives>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Lives {
    stopped: AtomicBool,
    count: AtomicU64,
}

impl Churn {
    fn begin(node: &Handle) -> Churn {
        let (address, stop) = (node.info().listen, std::sync::Arc::<Lives>::default());
        let threads = (1..=8).map(|peer| {
            let lives = stop.clone();
            std::thread::spawn(move || {
                // Bound, and not listened on: whoever dials back is refused.
                let door = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                door.bind(&LOCALHOST.into()).unwrap();
                let port = door.local_addr().unwrap().as_socket().unwrap().port();
                for life in 1.. {
                    if lives.stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    let run = Run { node: NodeId([peer; 32]), epoch: Epoch(life) };
                    let end = Instant::now() + Duration::from_millis(10);
                    let mut caller = Raw::call(address, &Face { run, mesh: MESH, port }).expect("a handshake");
                    for topic in ["chat", "mesh", &hubless::wire::topic_to(run)] {
                        caller.subscribe(topic).expect("it takes subscriptions");
                    }
                    caller.read_until(end).expect("the node does not hang up");
                    lives.count.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        Churn { stop: stop.clone(), threads: threads.collect() }
    }

    /// Lives that are over.
    fn lives(&self) -> u64 {
        self.stop.count.load(Ordering::Relaxed)
    }

    /// Ends it and answers the lives there were.
    fn end(mut self) -> u64 {
        self.stop.stopped.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a peer that came and went was treated well");
        }
        self.lives()
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.stop.stopped.store(true, Ordering::Relaxed);
    }
}
