//! What comes from outside, given to what reads it: the targets of the fuzzer and of its smoke test.
//!
//! Each target takes any bytes and panics when something does not hold that must hold whatever they are. The first inputs
//! are made here from what is sound, so they never fall behind the formats.

mod replica;

use bytes::{Bytes, BytesMut};

use crate::handle::Exported;
use crate::handle::archive::{ArchiveReader, ArchiveWriter};
use crate::id::{Epoch, NodeKey, Room, Run, Seq};
use crate::net::gate::{limits, zmtp};
use crate::replica::batch::{Author, Batch, Draft};
use crate::replica::clock::Hlc;
use crate::replica::event::Kept;
use crate::replica::message::{Digest, Heartbeat, Hello, Holding, Mark, Message, Repair, Request};
use crate::replica::ranges::RangeSet;
use crate::wire;

/// One reader of what comes from outside.
#[derive(Clone, Copy)]
pub struct Target {
    /// What it is called.
    pub name: &'static str,
    /// Reads these bytes; panics if it does so wrongly.
    pub play: fn(&[u8]),
    /// What to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "gate", play: gate, seeds: gate_seeds },
    Target { name: "wire", play: wire_message, seeds: wire_seeds },
    Target { name: "replica", play: replica::play, seeds: replica::seeds },
    #[cfg(feature = "mdns")]
    Target { name: "txt", play: crate::net::discovery::mdns::fuzz, seeds: txt_seeds },
    #[cfg(feature = "web")]
    Target { name: "socket", play: crate::web::fuzz, seeds: socket_seeds },
    Target { name: "import", play: import, seeds: import_seeds },
];

/// The gate passes on the same bytes however they are cut, never holds much, and reads no command beyond its end.
fn gate(bytes: &[u8]) {
    // Greeting and commands stand at the front of what a connection says.
    let _ = zmtp::check_greeting(bytes);
    command(bytes);
    assert_eq!(relay(bytes, 1), relay(bytes, bytes.len().max(1)));
}

fn command(body: &[u8]) {
    if let Ok(properties) = zmtp::Properties::parse(body) {
        let longest = ["Socket-Type", "Identity", "Hubless-Run", "Hubless-Mesh", "Hubless-Port"]
            .iter()
            .filter_map(|name| properties.get(name))
            .map(str::len)
            .max();
        assert!(longest.is_none_or(|longest| longest < body.len()));
    }
    if let Ok(zmtp::Command::Ping(context)) = zmtp::Command::parse(body) {
        assert!(context.len() <= 16 && zmtp::pong(context).len() < limits::COMMAND_BYTES_MAX);
    }
}

/// What passes of a stream that comes in such pieces, and why no more does.
fn relay(input: &[u8], piece: usize) -> (Vec<zmtp::Parts>, Option<zmtp::Broken>) {
    let (mut cutter, mut held, mut passed) = (zmtp::Cutter::default(), BytesMut::new(), Vec::new());
    for bytes in input.chunks(piece) {
        held.extend_from_slice(bytes);
        loop {
            match cutter.cut(&mut held) {
                Ok(zmtp::Cut::Message(parts)) => passed.push(parts),
                Ok(zmtp::Cut::Command(body)) => command(&body),
                Ok(zmtp::Cut::Part(missing)) => {
                    let most = zmtp::HEADER_BYTES_MAX + limits::FRAME_BYTES_MAX;
                    assert!(missing > 0 && held.len() + missing <= most, "{} bytes are held", held.len());
                    break;
                }
                Err(broken) => return (passed, Some(broken)),
            }
        }
    }
    (passed, None)
}

/// What decodes is what is encoded again, and fits into a frame.
fn wire_message(bytes: &[u8]) {
    let Some((topic, body)) = bytes.split_first() else { return };
    let topic = match topic % 3 {
        0 => "chat".to_string(),
        1 => "mesh".into(),
        _ => wire::topic_to(key(1).run(Epoch(1))),
    };
    let Ok(message) = wire::decode(topic.as_bytes(), &Bytes::copy_from_slice(body)) else { return };
    let again = wire::encode(&message);
    assert!(again.len() <= wire::FRAME_BYTES_MAX);
    assert_eq!(wire::decode(topic.as_bytes(), &again), Ok(message));
}

/// A file gives the same records however it is read, and what it gives is sound.
fn import(bytes: &[u8]) {
    let read = |piece: usize| {
        let (mut reader, mut records) = (ArchiveReader::new(), Vec::new());
        for bytes in bytes.chunks(piece) {
            reader.push(bytes);
            loop {
                match reader.read() {
                    Ok(Some(record)) => records.push(record.bytes().clone()),
                    Ok(None) => break,
                    Err(error) => return (records, Some(error.to_string())),
                }
            }
        }
        (records, reader.finish().err().map(|error| error.to_string()))
    };
    let (records, error) = read(bytes.len().max(1));
    assert_eq!(read(1).0, records);
    for record in &records {
        if let Ok(batch) = Batch::parse(record.clone()) {
            assert!(batch.entries().count() <= batch.count() as usize);
        }
    }
    assert!(error.is_some() || !records.is_empty() || bytes.len() < 64);
}

fn key(number: u8) -> NodeKey {
    NodeKey::from_bytes(&[number; NodeKey::LEN])
}

fn batch(author: &NodeKey, origin: Run, first: Seq, hlc: Hlc, texts: &[&str]) -> Batch {
    let drafts: Vec<Draft> = texts.iter().map(|text| Draft::new(Room::lobby(), *text)).collect();
    Author { key: author, origin, name: "ada", first, hlc, previous: [0; 32] }.encode(&drafts)
}

fn gate_seeds() -> Vec<Vec<u8>> {
    let ready = zmtp::ready(zmtp::Role::Sub, &[("Hubless-Run", "x"), ("Hubless-Mesh", "lab"), ("Hubless-Port", "1")]);
    let frame = |flags: u8, body: &[u8]| [&[flags, body.len() as u8], body].concat();
    vec![
        zmtp::greeting().to_vec(),
        ready.to_vec(),
        ready[2..].to_vec(),
        zmtp::subscription(true, b"chat").to_vec(),
        [frame(0, b"\x01chat"), frame(4, b"\x04PING\0\x0acontext"), frame(4, b"\x09SUBSCRIBEmesh")].concat(),
        [frame(1, b"chat"), frame(0, &[7; 200]), frame(2, &[0; 8])].concat(),
        b"\x02\x00\x00\x00\x00\x00\x00\x01\x00".to_vec(),
        b"\x02\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
    ]
}

fn wire_seeds() -> Vec<Vec<u8>> {
    let (ada, bob) = (key(1).run(Epoch(1)), key(2).run(Epoch(2)));
    let said = batch(&key(1), ada, Seq(1), Hlc::at(1), &["hello", "world"]);
    let held = RangeSet::from_iter([(Seq(1), Seq(2)), (Seq(5), Seq(9))]);
    let mark = Mark { run: ada.hash(), floor: Seq(0), held: held.clone(), volatile: RangeSet::default() };
    let holding =
        Holding { run: ada, floor: Seq(3), held, volatile: RangeSet::default(), newest: Hlc::at(9), over: false };
    let address = ([127, 0, 0, 1], 4711).into();
    let messages = [
        (0, Message::Batch(said.clone())),
        (1, Message::Heartbeat(Heartbeat { sent: Seq(7), marks: vec![mark], settled: 9, wall_ms: 1 })),
        (
            1,
            Message::Hello(Hello {
                name: "ada".into(),
                endpoints: vec![address],
                hears: vec![bob.hash()],
                knows: vec![(bob, vec![address])],
                wall_ms: 5,
            }),
        ),
        (1, Message::Goodbye(Seq(7))),
        (2, Message::DigestRequest(vec![ada.hash()])),
        (2, Message::Digest(Digest { holdings: vec![holding], all: true, same: 1, answers: 2 })),
        (2, Message::Request(Request { origin: ada, first: Seq(1), last: Seq(9), bytes_max: 100 })),
        (
            2,
            Message::Repair(Repair {
                origin: ada,
                first: Seq(1),
                from: Seq(1),
                through: Seq(2),
                batches: vec![(said, 5)],
            }),
        ),
        (2, Message::Ping(7)),
        (2, Message::Pong(7)),
        (2, Message::Compare(Box::new([3; 64]))),
    ];
    messages.iter().map(|(topic, message)| [&[*topic][..], &wire::encode(message)].concat()).collect()
}

fn import_seeds() -> Vec<Vec<u8>> {
    let ada = key(1).run(Epoch(1));
    let file = |records: u64| {
        let mut out = Vec::new();
        let mut writer = ArchiveWriter::begin("lab", &mut out);
        for number in 0..records {
            let batch = batch(&key(1), ada, Seq(1 + number), Hlc::at(number), &["hello"]);
            writer.record(&Exported(Kept { batch, arrived_ms: 1 }), &mut out);
        }
        writer.end(&mut out);
        out
    };
    vec![file(0), file(1), file(3)]
}

#[cfg(feature = "mdns")]
fn txt_seeds() -> Vec<Vec<u8>> {
    let run = key(1).run(Epoch(1));
    let version = wire::WIRE_VERSION;
    vec![
        format!("v={version}\nm=lab\nr={run}").into_bytes(),
        format!("v={version}\nk=00112233445566778899aabbccddeeff\nr={run}").into_bytes(),
        b"v=\nm=\nr=\nk=".to_vec(),
    ]
}

#[cfg(feature = "web")]
fn socket_seeds() -> Vec<Vec<u8>> {
    [
        r#"{"type":"hello","name":"ada","after":"AAAA","burst":9}"#,
        r#"{"type":"send","client_id":"1","room":"lobby","text":"hi"}"#,
        r#"{"type":"send","room":"a.b","content_type":"image/png","data":"AAECAw=="}"#,
        r#"{"type":"ack","cursor":"AAAA"}"#,
        r#"{"type":"ping"}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
