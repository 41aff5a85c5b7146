//! What goes over the wire, byte for byte: golden bytes, and that no bytes at all do harm.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use data_encoding::HEXLOWER;
use proptest::collection::vec;
use proptest::prelude::*;

use hubless::id::{Epoch, Key, NodeId, NodeKey, Room, Run, RunHash, Seq};
use hubless::replica::Replica;
use hubless::replica::batch::{Batch, Draft, Via};
use hubless::replica::clock::{Hlc, Mono, Now};
use hubless::replica::event::Output;
use hubless::replica::message::{BUCKETS, Digest, Heartbeat, Hello, Holding, Mark, Message, Repair, Request};
use hubless::replica::ranges::RangeSet;
use hubless::wire::{self, WireError};

const EPOCH: Epoch = Epoch(0x0123_4567_89ab_cdef);

fn run(number: u8) -> Run {
    Run { node: NodeId([number; 32]), epoch: EPOCH }
}

/// The batch that a node of fixed name and time makes of fixed drafts.
fn batch() -> Batch {
    let now = Now { mono: Mono(0), wall_ms: 1_767_225_600_000 };
    let mut replica = Replica::new(now, NodeKey::from_bytes(&[1; 32]), EPOCH, "ada".into(), 0, 1_000_000, None);
    let mut data = Draft::new(Room::new("sensors.a").unwrap(), vec![0u8, 255]);
    (data.name, data.key, data.via) = (Some("probe".into()), Some(Key([7; 16])), Via::Amqp);
    replica.publish(now, vec![Draft::new(Room::lobby(), "hi"), data]);
    let Some(Output::Send { message: Message::Batch(batch), .. }) = replica.poll_output() else {
        panic!("nothing sent")
    };
    batch
}

fn topic(message: &Message) -> &'static [u8] {
    match message {
        Message::Batch(_) => b"chat",
        _ => b"mesh",
    }
}

/// One message of each kind.
fn kinds() -> Vec<(&'static str, Message)> {
    let held: RangeSet = [(Seq(1), Seq(9)), (Seq(300), Seq(70_000))].into_iter().collect();
    let volatile = RangeSet::of(Seq(400), Seq(70_000));
    vec![
        ("batch", Message::Batch(batch())),
        (
            "heartbeat",
            Message::Heartbeat(Heartbeat {
                sent: Seq(300),
                marks: vec![Mark {
                    run: RunHash(0x1122_3344_5566_7788),
                    floor: Seq(3),
                    held: held.clone(),
                    volatile: volatile.clone(),
                }],
                settled: 5,
                wall_ms: 1_767_225_600_000,
            }),
        ),
        (
            "hello",
            Message::Hello(Hello {
                name: "ada".into(),
                endpoints: vec!["10.0.0.1:47474".parse().unwrap(), "[fe80::1]:9".parse().unwrap()],
                hears: vec![RunHash(1)],
                knows: vec![(run(2), vec!["10.0.0.2:1".parse().unwrap()])],
                wall_ms: 1_767_225_600_000,
            }),
        ),
        ("goodbye", Message::Goodbye(Seq(251))),
        ("digest request", Message::DigestRequest(vec![RunHash(1), RunHash(u64::MAX)])),
        (
            "digest",
            Message::Digest(Digest {
                holdings: vec![Holding { run: run(2), floor: Seq(0), held, volatile, newest: Hlc::at(1), over: true }],
                all: true,
                same: 0x8000_0000_0000_0001,
                answers: 7,
            }),
        ),
        (
            "request",
            Message::Request(Request { origin: run(2), first: Seq(1), last: Seq(u64::MAX), bytes_max: 1_048_576 }),
        ),
        (
            "repair",
            Message::Repair(Repair {
                origin: run(1),
                first: Seq(1),
                from: Seq(1),
                through: Seq(2),
                batches: vec![(batch(), 1_767_225_600_001)],
            }),
        ),
        ("ping", Message::Ping(1)),
        ("pong", Message::Pong(u64::MAX)),
        ("compare", Message::Compare(Box::new(std::array::from_fn(|at| at as u64)))),
    ]
}

/// Version 1 of the wire, for ever. A line that no longer fits is a new version, not a new line.
const GOLDEN: &[(&str, &str)] = &[
    (
        "batch",
        "018a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5cefcdab8967452301010000000000000002\
         000000000000a8da769b0192456082dc5fd2ae6458e129ba295a561f450d4f8aaddf0ff4db83467253f4f900000000000000\
         0000000000000000000000000000000000000000000000000049ff82716bd33a50e663dc12a2f1ca0c3f083f44f8f6f12f65\
         c428dd738a1e3166cdb41c9181c33d755c82073fbfb9dc9168b49545ead22d95a77e09b9714d020361646101010707070707\
         0707070707070707070707056c6f6262790000000268690973656e736f72732e61010570726f62650201186170706c696361\
         74696f6e2f6f637465742d73747265616d0200ff",
    ),
    ("heartbeat", "0100fb2c0101fd887766554433221103020109fb2c01fc7011010001fb9001fc7011010005fd00a8da769b010000"),
    (
        "hello",
        "01010361646102000a000001fb72b901fe800000000000000000000000000001090101010202020202020202020202020202\
         020202020202020202020202020202020202fdefcdab896745230101000a00000201fd00a8da769b010000",
    ),
    ("goodbye", "0102fbfb00"),
    ("digest request", "01030201fdffffffffffffffff"),
    (
        "digest",
        "0104010202020202020202020202020202020202020202020202020202020202020202fdefcdab896745230100020109fb2c\
         01fc7011010001fb9001fc70110100fc000001000101fd010000000000008007",
    ),
    (
        "request",
        "01050202020202020202020202020202020202020202020202020202020202020202fdefcdab896745230101fdffffffffff\
         fffffffc00001000",
    ),
    (
        "repair",
        "01060101010101010101010101010101010101010101010101010101010101010101fdefcdab896745230101010201fb0e01\
         018a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5cefcdab8967452301010000000000000002\
         000000000000a8da769b0192456082dc5fd2ae6458e129ba295a561f450d4f8aaddf0ff4db83467253f4f900000000000000\
         0000000000000000000000000000000000000000000000000049ff82716bd33a50e663dc12a2f1ca0c3f083f44f8f6f12f65\
         c428dd738a1e3166cdb41c9181c33d755c82073fbfb9dc9168b49545ead22d95a77e09b9714d020361646101010707070707\
         0707070707070707070707056c6f6262790000000268690973656e736f72732e61010570726f62650201186170706c696361\
         74696f6e2f6f637465742d73747265616d0200fffd01a8da769b010000",
    ),
    ("ping", "010701"),
    ("pong", "0108fdffffffffffffffff"),
    (
        "compare",
        "010940000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e\
         2f303132333435363738393a3b3c3d3e3f",
    ),
];

#[test]
fn every_kind_of_message_has_its_golden_bytes() {
    for ((kind, message), (golden_kind, golden)) in kinds().into_iter().zip(GOLDEN) {
        assert_eq!(kind, *golden_kind);
        let bytes = wire::encode(&message);
        assert_eq!(HEXLOWER.encode(&bytes), *golden, "{kind}");
        assert_eq!(wire::decode(topic(&message), &bytes), Ok(message), "{kind}");
    }
    assert_eq!(kinds().len(), GOLDEN.len());
}

#[test]
fn a_message_of_another_version_length_or_topic_is_refused() {
    let body = wire::encode(&Message::Ping(1));
    let mut newer = body.to_vec();
    newer[0] = 2;
    assert_eq!(wire::decode(b"mesh", &newer.into()), Err(WireError::Version));
    assert_eq!(wire::decode(b"chatter", &body), Err(WireError::Topic));
    assert_eq!(wire::decode(b"mesh", &Bytes::new()), Err(WireError::Length));
    assert_eq!(wire::decode(b"mesh", &vec![1; wire::FRAME_BYTES_MAX + 1].into()), Err(WireError::Length));
    let mut longer = body.to_vec();
    longer.push(0);
    assert_eq!(wire::decode(b"mesh", &longer.into()), Err(WireError::Body));
}

fn runs() -> impl Strategy<Value = Run> {
    (any::<[u8; 32]>(), any::<u64>()).prop_map(|(node, epoch)| Run { node: NodeId(node), epoch: Epoch(epoch) })
}

fn range_sets() -> impl Strategy<Value = RangeSet> {
    let range = (any::<u64>(), 0u64..1_000).prop_map(|(first, len)| (Seq(first), Seq(first.saturating_add(len))));
    vec(range, 0..6).prop_map(|ranges| ranges.into_iter().collect())
}

fn messages() -> impl Strategy<Value = Message> {
    let seq = || any::<u64>().prop_map(Seq);
    let hashes = || vec(any::<u64>().prop_map(RunHash), 0..9);
    let addresses = || vec(any::<std::net::SocketAddr>().prop_map(plain_address), 0..4);
    let mark = (any::<u64>(), seq(), range_sets(), range_sets()).prop_map(|(run, floor, held, volatile)| Mark {
        run: RunHash(run),
        floor,
        held,
        volatile,
    });
    let holding = (runs(), seq(), range_sets(), range_sets(), any::<u64>(), any::<bool>()).prop_map(
        |(run, floor, held, volatile, newest, over)| Holding { run, floor, held, volatile, newest: Hlc(newest), over },
    );
    prop_oneof![
        (seq(), vec(mark, 0..9), any::<u64>(), any::<u64>()).prop_map(|(sent, marks, settled, wall_ms)| {
            Message::Heartbeat(Heartbeat { sent, marks, settled, wall_ms })
        }),
        (".{0,40}", addresses(), hashes(), vec((runs(), addresses()), 0..5), any::<u64>()).prop_map(
            |(name, endpoints, hears, knows, wall_ms)| {
                Message::Hello(Hello { name: name.into(), endpoints, hears, knows, wall_ms })
            }
        ),
        seq().prop_map(Message::Goodbye),
        hashes().prop_map(Message::DigestRequest),
        (vec(holding, 0..9), any::<bool>(), any::<u64>(), any::<u64>())
            .prop_map(|(holdings, all, same, answers)| { Message::Digest(Digest { holdings, all, same, answers }) }),
        (runs(), seq(), seq(), any::<u32>()).prop_map(|(origin, first, last, bytes_max)| Message::Request(Request {
            origin,
            first,
            last,
            bytes_max
        })),
        (runs(), seq(), seq(), seq(), vec(any::<u64>().prop_map(|arrived_ms| (batch(), arrived_ms)), 0..4)).prop_map(
            |(origin, first, from, through, batches)| Message::Repair(Repair { origin, first, from, through, batches })
        ),
        vec(any::<u64>(), BUCKETS).prop_map(|hashes| Message::Compare(Box::new(hashes.try_into().unwrap()))),
        any::<u64>().prop_map(Message::Ping),
        any::<u64>().prop_map(Message::Pong),
    ]
}

/// Flow labels and scopes mean nothing to another host and do not travel.
fn plain_address(address: std::net::SocketAddr) -> std::net::SocketAddr {
    std::net::SocketAddr::new(address.ip(), address.port())
}

/// Hands bytes to everything that reads bytes.
fn read(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    for topic in [&b"chat"[..], b"mesh", b"to.x", b""] {
        if let Ok(Message::Batch(batch)) = wire::decode(topic, &bytes) {
            let _ = (batch.keys(), batch.entries().count());
        }
    }
    if let Ok(batch) = Batch::parse(bytes) {
        let _ = (batch.keys(), batch.entries().count());
    }
}

proptest! {
    #[test]
    fn what_is_encoded_is_read_back(message in messages()) {
        let bytes = wire::encode(&message);
        prop_assert_eq!(wire::decode(topic(&message), &bytes), Ok(message));
    }

    #[test]
    fn no_bytes_do_harm(mut bytes in vec(any::<u8>(), 0..400), version in any::<bool>()) {
        if let (Some(first), true) = (bytes.first_mut(), version) {
            *first = wire::WIRE_VERSION;
        }
        read(&bytes);
    }

    #[test]
    fn no_message_that_was_tampered_with_does_harm(
        message in messages(),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = wire::encode(&message).to_vec();
        for (at, with) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= with;
        }
        read(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        read(&bytes);
    }

    #[test]
    fn no_batch_that_was_tampered_with_does_harm(at in any::<prop::sample::Index>(), with in 1u8..) {
        let mut bytes = wire::encode(&Message::Batch(batch())).to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= with;
        read(&bytes);
    }
}
