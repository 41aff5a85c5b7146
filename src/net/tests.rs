//! Whole nodes' LAN sides against each other, and against hostile peers, on loopback.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::gate::zmtp::{self, Role};
use super::*;
use crate::aside::Aside;
use crate::id::{Epoch, NodeId, NodeKey, Room, Seq};
use crate::mesh_key::{KeyRing, MeshKey};
use crate::metrics::Reason;
use crate::replica::batch::{Author, Draft};
use crate::replica::clock::Hlc;
use crate::wire::{self, TOPIC_CHAT, TOPIC_MESH, WIRE_VERSION};

const DEADLINE: Duration = Duration::from_secs(60);

struct Node {
    net: Net,
    events: mpsc::Receiver<NetEvent>,
    metrics: Metrics,
    run: Run,
    links: u64,
}

impl Node {
    async fn start(number: u8) -> Node {
        Node::start_as(number, "lab", 256).await
    }

    async fn start_as(number: u8, mesh: &str, events: usize) -> Node {
        Node::start_with(number, mesh, None, events).await
    }

    async fn start_with(number: u8, mesh: &str, mesh_keys: Option<KeyRing>, events: usize) -> Node {
        let (metrics, (sender, events)) = (Metrics::new(), mpsc::channel(events));
        let options = options(number, mesh, mesh_keys).await;
        let run = options.run;
        let net = Net::start(options, metrics.clone(), sender).await.unwrap();
        Node { net, events, metrics, run, links: 0 }
    }

    fn dial(&mut self, address: SocketAddr) -> LinkId {
        self.links += 1;
        let link = LinkId(self.links);
        self.net.dial(link, address);
        link
    }

    /// The next event that `wanted` gives something for.
    async fn next<T>(&mut self, mut wanted: impl FnMut(NetEvent) -> Option<T>) -> T {
        let found = async {
            loop {
                let event = self.events.recv().await.expect("the node has ended");
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
        };
        timeout(DEADLINE, found).await.expect("the event does not come")
    }

    async fn failed(&mut self) -> DialError {
        self.next(|event| match event {
            NetEvent::DialFailed { error, .. } => Some(error),
            _ => None,
        })
        .await
    }

    async fn message(&mut self) -> Message {
        self.next(|event| match event {
            NetEvent::Message { message, .. } => Some(message),
            _ => None,
        })
        .await
    }

    /// Makes `self` hear `other`, until a message has come through.
    async fn hear(&mut self, other: &mut Node) -> LinkId {
        let link = self.dial(other.net.listen());
        let say = async {
            loop {
                other.net.send(TOPIC_MESH, ping(0)).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            Message::Ping(0) = self.message() => {}
            () = say => {}
        }
        link
    }

    fn malformed(&self, reason: &'static str) -> u64 {
        self.metrics.malformed.get_or_create(&Reason { reason }).get()
    }

    /// Sends entries of about `bytes` each with the seqs of `range`, as fast as flow allows.
    async fn publish(&mut self, range: std::ops::Range<u64>, bytes: usize) {
        for seq in range {
            while self.net.flow() == Flow::Wait {
                self.net.flow_changed().await;
            }
            self.net.send(TOPIC_CHAT, batch(self.run, seq, bytes)).await;
        }
    }

    /// Takes entries until `last` came; all from the first one on came once and in order.
    async fn take_entries(&mut self, first: u64, last: u64) {
        for seq in first..=last {
            let came = self
                .next(|event| match event {
                    NetEvent::Message { message: Message::Batch(batch), .. } => Some(batch.first()),
                    NetEvent::LinkDown { .. } => panic!("the link went down"),
                    _ => None,
                })
                .await;
            assert_eq!(came, Seq(seq));
        }
    }
}

fn ping(number: u64) -> Bytes {
    wire::encode(&Message::Ping(number))
}

async fn options(number: u8, mesh: &str, mesh_keys: Option<KeyRing>) -> NetOptions {
    let key = key_of(number.into());
    let run = key.run(Epoch(number.into()));
    let listener = bind(Listen::At((Ipv4Addr::LOCALHOST, 0).into()), None).await.unwrap();
    NetOptions { run, key, mesh: mesh.into(), mesh_keys, listener, voice: Begun::new(), aside: Aside::new().unwrap() }
}

/// The key of the node whose epoch this is.
fn key_of(epoch: u64) -> NodeKey {
    NodeKey::from_bytes(&[epoch as u8; NodeKey::LEN])
}

fn batch(origin: Run, seq: u64, bytes: usize) -> Bytes {
    let key = key_of(origin.epoch.0);
    let author = Author { key: &key, origin, name: "ada", first: Seq(seq), hlc: Hlc::at(1_000), previous: [0; 32] };
    let draft = Draft::new(Room::lobby(), "x".repeat(bytes));
    wire::encode(&Message::Batch(author.encode(&[draft])))
}

/// Waits for a condition that no event tells.
async fn eventually(mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, wait).await.expect("it never comes true");
}

/// READY of a node that is none of ours.
fn ready(role: Role, number: u8) -> Bytes {
    let run = Run { node: NodeId([number; 32]), epoch: Epoch(1) };
    let (run, version) = (run.to_string(), WIRE_VERSION.to_string());
    let properties =
        [("Hubless-Run", &*run), ("Hubless-Mesh", "lab"), ("Hubless-Port", "9"), ("Hubless-Version", &*version)];
    zmtp::ready(role, &properties)
}

/// A raw connection to `node` that is through the handshake.
async fn raw(node: &Node, number: u8) -> TcpStream {
    let mut stream = TcpStream::connect(node.net.listen()).await.unwrap();
    stream.write_all(&[&zmtp::greeting()[..], &ready(Role::Sub, number)].concat()).await.unwrap();
    let mut greeting = [0; zmtp::GREETING_BYTES];
    stream.read_exact(&mut greeting).await.unwrap();
    let mut head = [0; 2];
    stream.read_exact(&mut head).await.unwrap();
    let mut body = vec![0; head[1].into()];
    stream.read_exact(&mut body).await.unwrap();
    stream
}

#[tokio::test]
async fn two_nodes_hear_each_other() {
    let (mut a, mut b) = (Node::start(1).await, Node::start(2).await);
    let link = a.dial(b.net.listen());
    let run = a.next(|event| match event {
        NetEvent::LinkUp { link: up, run, address } => Some((up, run, address)),
        _ => None,
    });
    assert_eq!(run.await, (link, b.run, b.net.listen()));
    let called = b.next(|event| match event {
        NetEvent::Called { run, address } => Some((run, address)),
        _ => None,
    });
    let (run, address) = called.await;
    assert_eq!((run, address), (a.run, a.net.listen()));
    b.hear(&mut a).await;
    a.hear(&mut b).await;

    a.net.send(&wire::topic_to(b.run), ping(1)).await;
    a.net.send(&wire::topic_to(Run { epoch: Epoch(9), ..b.run }), ping(2)).await;
    a.net.send(TOPIC_CHAT, batch(a.run, 1, 10)).await;
    a.net.send(TOPIC_MESH, ping(3)).await;
    let mut came = Vec::new();
    while came.len() < 3 {
        match b.message().await {
            Message::Ping(0) => {}
            Message::Batch(batch) => came.push(batch.first().0 + 100),
            Message::Ping(number) => came.push(number),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(came, [1, 101, 3]);

    a.net.close().await;
    let (mut down, mut left) = (false, false);
    while !(down && left) {
        match b.next(Some).await {
            NetEvent::LinkDown { run, .. } => down = run == a.run,
            NetEvent::Left { run } => left = run == a.run,
            _ => {}
        }
    }
    b.net.close().await;
}

#[tokio::test]
async fn what_was_said_before_closing_still_arrives() {
    for _ in 0..20 {
        let (mut a, mut b) = (Node::start(1).await, Node::start(2).await);
        b.hear(&mut a).await;
        for number in 1..=200 {
            a.net.send(TOPIC_MESH, ping(number)).await;
        }
        let closing = tokio::time::Instant::now();
        a.net.close().await;
        assert!(closing.elapsed() < Duration::from_millis(900));
        let mut last = 0;
        let down = |event| match event {
            NetEvent::Message { message: Message::Ping(number), .. } => {
                assert!(number == 0 || number == last + 1);
                last = number;
                None
            }
            NetEvent::LinkDown { .. } => Some(()),
            _ => None,
        };
        b.next(down).await;
        assert_eq!(last, 200);
    }
}

#[tokio::test]
async fn closing_leaves_nothing_behind() {
    let mut a = Node::start(1).await;
    let mut b = Node::start(2).await;
    b.hear(&mut a).await;
    let path = a.net.around.folder.socket('p', 0);
    let address = a.net.listen();
    assert!(path.exists());
    a.net.close().await;
    assert!(!path.parent().unwrap().exists());
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_dead_port_is_refused_at_once() {
    let mut a = Node::start(1).await;
    let dead = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        listener.local_addr().unwrap()
    };
    let start = tokio::time::Instant::now();
    a.dial(dead);
    assert_eq!(a.failed().await, DialError::Refused);
    assert!(start.elapsed() < Duration::from_millis(500));
}

#[tokio::test]
async fn a_mute_target_is_given_up() {
    let mut a = Node::start(1).await;
    let mute = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    a.dial(mute.local_addr().unwrap());
    assert_eq!(a.failed().await, DialError::Unreachable);
}

#[tokio::test]
async fn who_speaks_something_else_is_a_stranger() {
    let mut a = Node::start(1).await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    for banner in [&b"SSH-2.0-x\r\n"[..], &[&zmtp::greeting()[..], &zmtp::ready(Role::Pub, &[])].concat()] {
        a.dial(listener.local_addr().unwrap());
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(banner).await.unwrap();
        assert_eq!(a.failed().await, DialError::Stranger);
    }
}

#[tokio::test]
async fn a_gate_that_died_is_noticed() {
    let node = Node::start(1).await;
    assert!(node.net.is_alive());
    node.net.gate.kill();
    while node.net.is_alive() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn nodes_of_two_meshes_are_kept_apart_and_both_know() {
    let (mut a, mut b) = (Node::start(1).await, Node::start_as(2, "den", 256).await);
    a.dial(b.net.listen());
    assert_eq!(a.failed().await, DialError::Apart(Apart::Mesh("den".into()), Some(b.run)));
    let apart = b.next(|event| match event {
        NetEvent::Apart { address, reason, .. } => Some((address, reason)),
        _ => None,
    });
    assert_eq!(apart.await, (a.net.listen(), Apart::Mesh("lab".into())));
}

#[tokio::test]
async fn a_node_recognises_itself() {
    let mut a = Node::start(1).await;
    a.dial(a.net.listen());
    assert_eq!(a.failed().await, DialError::Itself);
}

#[tokio::test]
async fn the_default_port_gives_way() {
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let first = bind(Listen::Default, None).await.unwrap();
    let free = bind(Listen::Default, None).await.unwrap();
    assert_ne!(port(&first), port(&free));
    let was = port(&free);
    drop(free);
    // Whoever had the default port may have left meanwhile.
    let last = port(&bind(Listen::Default, Some(was)).await.unwrap());
    assert!(last == was || last == crate::config::PORT_DEFAULT, "{last}");
    let taken = bind(Listen::At(first.local_addr().unwrap()), None).await;
    assert!(matches!(taken.err(), Some(StartError::Bind { .. })));
}

#[tokio::test]
async fn nodes_of_one_key_talk_and_nobody_else_is_let_in() {
    let (ours, other) = (KeyRing::of(MeshKey::random().unwrap()), KeyRing::of(MeshKey::random().unwrap()));
    let mut a = Node::start_with(1, "lab", Some(ours.clone()), 256).await;
    let mut b = Node::start_with(2, "lab", Some(ours), 256).await;
    b.hear(&mut a).await;
    a.net.send(TOPIC_CHAT, batch(a.run, 1, 200 * 1024)).await;
    assert!(matches!(b.message().await, Message::Batch(_)));

    let mut stranger = Node::start_with(3, "lab", Some(other), 256).await;
    let mut open = Node::start(4).await;
    stranger.dial(a.net.listen());
    assert_eq!(stranger.failed().await, DialError::Unreachable);
    open.dial(a.net.listen());
    assert_eq!(open.failed().await, DialError::Unreachable);
    a.dial(open.net.listen());
    assert_eq!(a.failed().await, DialError::Apart(Apart::Key, None));
    a.dial(stranger.net.listen());
    assert_eq!(a.failed().await, DialError::Unreachable);
    let cut = |node: &Node, reason| node.metrics.cut.get_or_create(&Reason { reason }).get();
    assert_eq!((cut(&a, "key"), cut(&stranger, "key"), cut(&open, "stranger")), (2, 1, 1));
}

#[tokio::test]
async fn hanging_up_ends_the_link_and_the_peer_hears_of_it() {
    let (mut a, mut b) = (Node::start(1).await, Node::start(2).await);
    let link = b.hear(&mut a).await;
    b.net.hang_up(link);
    let down = b.next(|event| match event {
        NetEvent::LinkDown { link, .. } => Some(link),
        _ => None,
    });
    assert_eq!(down.await, link);
    a.next(|event| matches!(event, NetEvent::Left { run } if run == b.run).then_some(())).await;
}

#[tokio::test]
async fn a_peer_with_two_connections_leaves_with_the_last() {
    let (mut a, mut b) = (Node::start(1).await, Node::start(2).await);
    let first = b.hear(&mut a).await;
    let second = b.hear(&mut a).await;
    b.net.hang_up(first);
    b.next(|event| matches!(event, NetEvent::LinkDown { .. }).then_some(())).await;
    eventually(|| a.net.feeds.count() == 1).await;
    assert!(std::iter::from_fn(|| a.events.try_recv().ok()).all(|event| !matches!(event, NetEvent::Left { .. })));
    b.net.hang_up(second);
    a.next(|event| matches!(event, NetEvent::Left { .. }).then_some(())).await;
}

#[tokio::test]
async fn hostile_packets_leave_the_node_alive() {
    let mut a = Node::start(1).await;
    let mut open = Vec::new();
    for flags in [2, 6] {
        for length in [1_u64 << 38, 1 << 63, u64::MAX, 8 << 30] {
            let mut stream = TcpStream::connect(a.net.listen()).await.unwrap();
            let packet = [&zmtp::greeting()[..], &[flags], &length.to_be_bytes()].concat();
            assert_eq!(packet.len(), 73);
            stream.write_all(&packet).await.unwrap();
            open.push(stream);
        }
    }
    for stream in &mut open {
        // Our greeting and READY, then the end.
        let mut rest = Vec::new();
        let _ = timeout(DEADLINE, stream.read_to_end(&mut rest)).await.unwrap();
    }
    let mut b = Node::start(2).await;
    b.hear(&mut a).await;
}

#[tokio::test]
async fn callers_out_of_rules_are_cut_and_counted() {
    let a = Node::start(1).await;
    let long = [&[0_u8, 130, 1][..], &[b'x'; 129]].concat();
    let many: Vec<u8> = (0..65_u8).flat_map(|topic| [0, 2, 1, topic]).collect();
    let huge = [&[2_u8][..], &(1_u64 << 38).to_be_bytes()].concat();
    for (reason, bytes) in [
        ("subscription", &long[..]),
        ("subscription", &many),
        ("subscription", &[0, 1, 7]),
        ("subscription", &[1, 1, 1]),
        ("frame_length", &huge),
        ("command", &[4, 6, 5, b'E', b'R', b'R', b'O', b'R']),
        ("header", &[0x80, 0]),
    ] {
        let before = a.malformed(reason);
        let mut stream = raw(&a, 3).await;
        stream.write_all(bytes).await.unwrap();
        let _ = timeout(DEADLINE, stream.read_to_end(&mut Vec::new())).await.unwrap();
        assert_eq!(a.malformed(reason), before + 1, "{bytes:?}");
    }
}

#[tokio::test]
async fn newer_subscriptions_are_understood_and_pings_answered() {
    let mut a = Node::start(1).await;
    let mut stream = raw(&a, 3).await;
    stream.write_all(b"\x04\x0e\x09SUBSCRIBEmesh\x04\x0a\x04PING\0\0ctx").await.unwrap();
    let mut pong = [0; 10];
    timeout(DEADLINE, stream.read_exact(&mut pong)).await.unwrap().unwrap();
    assert_eq!(&pong, b"\x04\x08\x04PONGctx");
    let said = ping(7);
    let wanted = [&b"\x01\x04mesh\x00"[..], &[said.len() as u8], &said].concat();
    let mut came = vec![0; wanted.len()];
    let say = async {
        loop {
            a.net.send(TOPIC_MESH, said.clone()).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        read = timeout(DEADLINE, stream.read_exact(&mut came)) => drop(read.unwrap().unwrap()),
        () = say => {}
    }
    assert_eq!(came, wanted);
}

#[tokio::test]
async fn a_hostile_publisher_is_cut_and_malformed_messages_are_dropped() {
    let mut a = Node::start(1).await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let huge = [&b"\x01\x04mesh\x02"[..], &(1_u64 << 38).to_be_bytes()].concat();
    for (reason, bytes) in [
        ("frame_length", &huge[..]),
        ("parts", b"\x01\x01a\x01\x01b\x01\x01c"),
        ("command", b"\x04\x06\x05ERROR"),
        ("header", b"\xff"),
    ] {
        a.dial(listener.local_addr().unwrap());
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&[&zmtp::greeting()[..], &ready(Role::Pub, 3)].concat()).await.unwrap();
        // One frame instead of two, a topic that is not ours, a body that is none; then one in order.
        stream.write_all(b"\0\x04mesh\x01\x04to.x\0\x01x\x01\x04mesh\0\x02\x01\xff").await.unwrap();
        let good = ping(5);
        stream.write_all(&[&b"\x01\x04mesh\0"[..], &[good.len() as u8], &good].concat()).await.unwrap();
        assert_eq!(a.message().await, Message::Ping(5));
        stream.write_all(bytes).await.unwrap();
        a.next(|event| matches!(event, NetEvent::LinkDown { .. }).then_some(())).await;
        eventually(|| a.malformed(reason) == 1).await;
    }
    assert_eq!((a.malformed("topic"), a.malformed("body")), (8, 4));
}

#[tokio::test]
async fn much_arrives_complete_and_in_order_when_flow_is_respected() {
    const COUNT: u64 = 3200;
    let (mut a, mut b) = (Node::start(1).await, Node::start(2).await);
    b.hear(&mut a).await;
    tokio::join!(a.publish(1..COUNT + 1, 63 * 1024), b.take_entries(1, COUNT));
    assert_eq!(a.net.dropped(b.run), 0);
}

#[tokio::test]
async fn who_stops_reading_is_cut_and_hurts_nobody() {
    const COUNT: u64 = 1600;
    let (mut a, mut b) = (Node::start(1).await, Node::start(2).await);
    let mut c = Node::start_as(3, "lab", 1).await;
    b.hear(&mut a).await;
    c.hear(&mut a).await;
    tokio::join!(a.publish(1..COUNT + 1, 63 * 1024), b.take_entries(1, COUNT));
    let cut = a.next(|event| match event {
        NetEvent::Cut { run, bytes } => Some((run, bytes)),
        _ => None,
    });
    let (run, bytes) = cut.await;
    assert_eq!(run, c.run);
    assert!(bytes > limits::QUEUE_BYTES_MAX as u64 && bytes < limits::QUEUE_BYTES_MAX as u64 + (1 << 20), "{bytes}");
    assert_eq!((a.net.dropped(c.run), a.net.dropped(b.run)), (bytes, 0));
}

#[tokio::test]
async fn a_peer_that_reads_slowly_but_reads_holds_publishing_back() {
    const COUNT: u64 = 600;
    let mut a = Node::start(1).await;
    let mut b = Node::start_as(2, "lab", 1).await;
    b.hear(&mut a).await;
    eventually(|| a.net.feeds.settled() == 1).await;
    let run = b.run;
    let take = async {
        let mut pause = tokio::time::interval(Duration::from_millis(2));
        for seq in 1..=COUNT {
            pause.tick().await;
            b.take_entries(seq, seq).await;
        }
    };
    tokio::join!(a.publish(1..COUNT + 1, 63 * 1024), take);
    assert_eq!(a.net.dropped(run), 0);
}

/// Eight links at a time to `address`, hung up 10 ms after the first is up, for 2 s; gives how many came up.
#[tokio::main(flavor = "current_thread")]
async fn come_and_go(address: SocketAddr) -> u32 {
    let mut c = Node::start(3).await;
    let end = tokio::time::Instant::now() + Duration::from_secs(2);
    let mut ups = 0;
    while tokio::time::Instant::now() < end {
        let links: Vec<LinkId> = (0..8).map(|_| c.dial(address)).collect();
        let is_up = |event| matches!(event, NetEvent::LinkUp { .. }).then_some(());
        c.next(is_up).await;
        ups += 1;
        let _ = timeout(Duration::from_millis(10), async {
            loop {
                c.next(is_up).await;
                ups += 1;
            }
        })
        .await;
        for link in links {
            c.net.hang_up(link);
        }
    }
    ups
}

#[tokio::test]
async fn peers_that_come_and_go_do_not_hurt_a_steady_one() {
    let (mut a, mut b) = (Node::start(1).await, Node::start(2).await);
    b.hear(&mut a).await;
    let address = a.net.listen();
    let mut churn = tokio::task::spawn_blocking(move || come_and_go(address));
    let publish = async {
        let mut seq = 0;
        let ups = loop {
            a.publish(seq + 1..seq + 11, 1000).await;
            seq += 10;
            while a.events.try_recv().is_ok() {}
            tokio::select! {
                biased;
                ups = &mut churn => break ups.unwrap(),
                () = std::future::ready(()) => {}
            }
        };
        a.publish(seq + 1..seq + 2, 63 * 1024).await;
        (seq + 1, ups)
    };
    let take = async {
        let mut seq = 0;
        loop {
            let (first, large) = b
                .next(|event| match event {
                    NetEvent::Message { message: Message::Batch(batch), .. } => {
                        Some((batch.first().0, batch.bytes().len() > 10_000))
                    }
                    NetEvent::LinkDown { .. } => panic!("the link went down"),
                    _ => None,
                })
                .await;
            seq += 1;
            assert_eq!(first, seq);
            if large {
                return seq;
            }
        }
    };
    let ((sent, ups), came) = tokio::join!(publish, take);
    assert_eq!(sent, came);
    assert!(ups >= 8, "only {ups} links came up");
    eventually(|| a.net.feeds.count() == 1).await;
}

#[tokio::test]
async fn a_publisher_that_fell_silent_is_made_anew() {
    let (mut a, mut b) = (Node::start(1).await, Node::start(2).await);
    b.hear(&mut a).await;
    a.net.publisher.deafen();
    a.net.send(TOPIC_MESH, ping(1)).await;
    assert_eq!(a.metrics.publisher_restarts.get(), 1);
    b.next(|event| matches!(event, NetEvent::LinkDown { .. }).then_some(())).await;
    b.hear(&mut a).await;
    a.net.send(TOPIC_MESH, ping(2)).await;
    assert_eq!(a.metrics.publisher_restarts.get(), 1);
}
