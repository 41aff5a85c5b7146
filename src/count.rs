//! What a message goes through, one operation at a time, for `tests/instructions.rs`, which counts what each takes.
//!
//! An operation is made ready, done a few times, and then done again where it is counted: in `counted` and nowhere else.
#![allow(clippy::expect_used, reason = "only a test calls it, and that fails by panicking")]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use futures_util::FutureExt;

use crate::history;
use crate::id::{Epoch, NodeKey, Room, Run, Seq};
use crate::replica::Replica;
use crate::replica::batch::{Author, BODY_BYTES_MAX, Batch, Draft};
use crate::replica::clock::{Hlc, Mono, Now};
use crate::replica::event::{Input, Kept, Opened, Order, Output, Report, Span};
use crate::replica::message::Message;
use crate::replica::version::Cursor;
use crate::subscription::{self, DeliveryRef, Filter, Item};
use crate::wire;

/// How the messages of a batch look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// What it is called.
    pub name: &'static str,
    /// Messages in a batch.
    pub messages: usize,
    /// Bytes in a message.
    pub bytes: usize,
}

impl Shape {
    /// As many messages of this length as a batch holds.
    const fn full(name: &'static str, bytes: usize) -> Shape {
        // Their other fields are counted with less than 32 bytes when a batch is filled.
        Shape { name, messages: BODY_BYTES_MAX / (bytes + 32), bytes }
    }

    fn drafts(self) -> Vec<Draft> {
        let room = Room::lobby();
        (0..self.messages).map(|_| Draft::new(room.clone(), "x".repeat(self.bytes))).collect()
    }
}

/// A batch full of small messages, as a busy author makes it.
pub const FULL: Shape = Shape::full("full", 64);
/// A small message alone, as one makes it who now and then says something.
pub const SINGLE: Shape = Shape { name: "single", messages: 1, bytes: 64 };
/// A batch full of messages of 16 KiB.
pub const LARGE: Shape = Shape::full("16 KiB", 16 * 1024);

/// Messages that a reader takes at once.
const TOGETHER_MAX: usize = 256;

/// One thing that is done with a batch.
#[derive(Clone, Copy)]
pub struct Operation {
    /// What it is called.
    pub name: &'static str,
    /// Makes so many of them ready; a folder is there for what writes.
    ready: fn(Shape, usize, &Path) -> Step,
}

/// Does it once more, with the next batch.
type Step = Box<dyn FnMut()>;

/// All of them, in the order of a message's life.
pub const OPERATIONS: &[Operation] = &[
    Operation { name: "publish", ready: publish },
    Operation { name: "encode", ready: encode },
    Operation { name: "decode", ready: decode },
    Operation { name: "take", ready: take },
    Operation { name: "dedup", ready: dedup },
    Operation { name: "deliver", ready: deliver },
    Operation { name: "visit", ready: visit },
    Operation { name: "append", ready: append },
];

/// What counts is what is done in here: its name is known to the test.
#[inline(never)]
fn counted(step: &mut dyn FnMut(), times: usize) {
    for _ in 0..times {
        step();
    }
}

impl Operation {
    /// Does it `times` times where it is counted; before, so often that nothing is made for the first time any more and
    /// that the window is full.
    pub fn run(&self, shape: Shape, times: usize, folder: &Path) {
        let before = 2 + WINDOW_BYTES / (shape.messages * shape.bytes + 256);
        let mut step = (self.ready)(shape, before + times, folder);
        (0..before).for_each(|_| step());
        counted(&mut step, times);
    }
}

/// Small, so that it is full soon and each batch drives out another one.
const WINDOW_BYTES: usize = 16 * 1024;
const NOW: Now = Now { mono: Mono(1), wall_ms: 1_800_000_000_000 };

/// Drafts become batches, which are kept, sent and delivered, and reported as stored.
fn publish(shape: Shape, times: usize, _: &Path) -> Step {
    let mut replica = replica();
    let mut rounds = (0..times).map(|_| shape.drafts()).collect::<Vec<_>>().into_iter();
    Box::new(move || {
        let drafts = rounds.next().expect("it was made ready");
        black_box(replica.publish(NOW, drafts));
        perform(&mut replica);
    })
}

/// A batch becomes the body of a frame.
fn encode(shape: Shape, _: usize, _: &Path) -> Step {
    let message = Message::Batch(batches(shape, 1).remove(0));
    Box::new(move || drop(black_box(wire::encode(black_box(&message)))))
}

/// The body of a frame becomes a batch whose hash and author were checked.
fn decode(shape: Shape, _: usize, _: &Path) -> Step {
    let body = batches(shape, 1).remove(0).bytes().clone();
    Box::new(move || drop(black_box(wire::decode(wire::TOPIC_CHAT.as_bytes(), &body).expect("it is sound"))))
}

/// A peer's batch is taken: kept, delivered, and reported as stored.
fn take(shape: Shape, times: usize, _: &Path) -> Step {
    let mut replica = replica();
    let mut batches = batches(shape, times).into_iter();
    Box::new(move || {
        hear(&mut replica, batches.next().expect("it was made ready"));
        perform(&mut replica);
    })
}

/// A peer's batch comes again.
fn dedup(shape: Shape, _: usize, _: &Path) -> Step {
    let mut replica = replica();
    let batch = batches(shape, 1).remove(0);
    hear(&mut replica, batch.clone());
    perform(&mut replica);
    Box::new(move || {
        hear(&mut replica, batch.clone());
        assert_eq!(replica.poll_output(), None);
    })
}

/// A batch is put into a reader's queue, and the reader takes its messages, many at a time, until there is none; `next_many`.
fn deliver(shape: Shape, times: usize, _: &Path) -> Step {
    let filter = Filter::Room(Room::lobby());
    let (feed, mut reader) = subscription::queue(filter, false, Cursor::new(), Vec::new(), Arc::default(), None);
    let mut batches = batches(shape, times).into_iter();
    let mut taken = Vec::with_capacity(TOGETHER_MAX);
    Box::new(move || {
        let batch = batches.next().expect("it was made ready");
        feed.put(Item::Batch { batch, late: false });
        let mut given = 0;
        while let Some(count) = reader.next_many(&mut taken, TOGETHER_MAX).now_or_never() {
            given += count;
            taken.drain(..).for_each(|delivery| drop(black_box(delivery)));
        }
        assert_eq!(given, shape.messages);
    })
}

/// The same, but messages are only looked at.
fn visit(shape: Shape, times: usize, _: &Path) -> Step {
    let filter = Filter::Room(Room::lobby());
    let (feed, mut reader) = subscription::queue(filter, false, Cursor::new(), Vec::new(), Arc::default(), None);
    let mut batches = batches(shape, times).into_iter();
    Box::new(move || {
        let batch = batches.next().expect("it was made ready");
        feed.put(Item::Batch { batch, late: false });
        let mut given = 0;
        let look = |delivery: DeliveryRef<'_>| {
            black_box(&delivery);
        };
        while let Some(count) = reader.visit(TOGETHER_MAX, look).now_or_never() {
            given += count;
        }
        assert_eq!(given, shape.messages);
    })
}

/// A batch is committed to the log, and gets its local number with the next commit.
fn append(shape: Shape, times: usize, folder: &Path) -> Step {
    let mut log = history::count::Bare::open(folder).expect("the log opens");
    let mut batches = batches(shape, times).into_iter();
    Box::new(move || {
        let batch = batches.next().expect("it was made ready");
        log.keep(Kept { batch, arrived_ms: NOW.wall_ms }).expect("the disk takes it");
    })
}

fn key(number: u8) -> (NodeKey, Run) {
    let key = NodeKey::from_bytes(&[number; NodeKey::LEN]);
    let run = key.run(Epoch(1));
    (key, run)
}

/// A node with a log, which is empty.
fn replica() -> Replica {
    Replica::new(NOW, key(1).0, Epoch(1), "ada".into(), 1, WINDOW_BYTES, Some(Opened::default()))
}

/// Batches of a peer, one after the other.
fn batches(shape: Shape, times: usize) -> Vec<Batch> {
    let (key, origin) = key(2);
    let drafts = shape.drafts();
    let (mut first, mut previous) = (Seq(1), [0; 32]);
    let next = |_| {
        let hlc = Hlc::at(NOW.wall_ms).plus(first.0);
        let batch = Author { key: &key, origin, name: "grace", first, hlc, previous }.encode(&drafts);
        assert_eq!(batch.count() as usize, shape.messages);
        (first, previous) = (batch.last().next(), batch.body_hash());
        batch
    };
    (0..times).map(next).collect()
}

fn hear(replica: &mut Replica, batch: Batch) {
    let from = batch.origin();
    replica.handle(NOW, Input::Message { from, message: Message::Batch(batch) });
}

/// Takes what a replica wants done, and reports as stored what it wants kept.
fn perform(replica: &mut Replica) {
    let mut stored = Vec::new();
    while let Some(output) = replica.poll_output() {
        if let Output::Log(Order::Append(Kept { batch, .. })) = &output {
            stored.push(Span { run: batch.origin(), first: batch.first(), last: batch.last() });
        }
        black_box(&output);
    }
    assert!(!stored.is_empty(), "nothing new was taken");
    replica.handle(NOW, Input::Log(Report::Stored(stored)));
    while let Some(output) = replica.poll_output() {
        black_box(&output);
    }
}
