//! The core, driven by bytes: each says what happens next, and what a peer says that may be anything.
//!
//! Peers have real keys, so that what they sign is taken; what they claim is not true.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

use super::{batch, key};
use crate::id::{Epoch, NodeKey, Room, Run, Seq};
use crate::replica::batch::Draft;
use crate::replica::clock::{Hlc, Mono, Now};
use crate::replica::event::{Input, Kept, Opened, Order, Output, Report, Span};
use crate::replica::message::{Digest, Heartbeat, Hello, Holding, Mark, Message, Repair, Request};
use crate::replica::ranges::RangeSet;
use crate::replica::{Replica, WINDOW_BYTES_MAX};
use crate::wire;

const START_MS: u64 = 1_800_000_000_000;
/// What the core may want done because of one thing that happened.
const OUTPUTS_MAX: usize = 20_000;
const PEERS: u8 = 3;

/// Bytes as decisions; after the last one everything is 0.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// A number that is small, or of those at the ends of what there is.
    fn number(&mut self) -> u64 {
        match self.byte() {
            250 => u64::MAX,
            251 => u64::MAX - u64::from(self.byte()),
            252 => 1 << (self.byte() % 64),
            253 => u64::from(self.byte()) << 8 | u64::from(self.byte()),
            small => small.into(),
        }
    }

    fn seq(&mut self) -> Seq {
        Seq(self.number())
    }

    fn held(&mut self) -> RangeSet {
        let mut held = RangeSet::new();
        for _ in 0..self.byte() % 5 {
            let first = self.number().max(1);
            held.insert(Seq(first), Seq(first.saturating_add(self.number())));
        }
        held
    }

    fn time(&mut self) -> Hlc {
        match self.byte() % 5 {
            0 => Hlc(self.number()),
            1 => Hlc(u64::MAX - self.number()),
            2 => Hlc::at(START_MS.saturating_add(self.number().saturating_mul(100_000))),
            3 => Hlc::at(START_MS - 100_000 * u64::from(self.byte())),
            _ => Hlc::at(START_MS + self.number() % 1_000),
        }
    }
}

struct Stage {
    replica: Replica,
    now: Now,
    keys: Vec<NodeKey>,
    /// What the log was told and has not reported.
    appends: VecDeque<Span>,
    is_open: bool,
    delivered: BTreeSet<(Run, Seq)>,
}

/// Plays what the bytes say.
pub(super) fn play(bytes: &[u8]) {
    let now = Now { mono: Mono(1_000), wall_ms: START_MS };
    let opened = Some(Opened::default());
    let replica = Replica::new(now, key(0), Epoch(1), "me".into(), 7, WINDOW_BYTES_MAX, opened);
    let keys = (1..=PEERS).map(key).collect();
    let mut stage = Stage { replica, now, keys, appends: VecDeque::new(), is_open: true, delivered: BTreeSet::new() };
    let mut script = Script(bytes);
    stage.drain();
    while !script.0.is_empty() {
        stage.step(&mut script);
        stage.drain();
    }
    // It comes to rest: however it was left, its timers do not run wild.
    for _ in 0..200 {
        let Some(next) = stage.replica.poll_timeout() else { break };
        stage.pass(next - stage.now.mono);
        stage.replica.handle(stage.now, Input::Timeout);
        stage.drain();
        assert!(stage.replica.poll_timeout().is_none_or(|later| later > stage.now.mono), "a timer that never ends");
    }
}

impl Stage {
    fn step(&mut self, script: &mut Script<'_>) {
        let peer = script.byte() % PEERS;
        let run = self.keys[usize::from(peer)].run(Epoch(u64::from(script.byte() % 3)));
        let input = match script.byte() % 20 {
            0 => Input::LinkUp { run, address: ([10, 0, 0, peer], 47474).into() },
            1 => Input::LinkDown(run),
            2 => Input::Called(run),
            3 => Input::Left(run),
            4 => Input::Refused(run),
            5 => {
                self.pass(std::time::Duration::from_millis(script.number().min(100_000)));
                Input::Timeout
            }
            6 => return self.publish(script),
            7 if self.is_open => {
                let count = usize::from(script.byte()).min(self.appends.len());
                Input::Log(Report::Stored(self.appends.drain(..count).collect()))
            }
            8 if self.is_open => {
                (self.is_open, _) = (false, self.appends.clear());
                Input::Log(Report::Closed)
            }
            8 => {
                self.is_open = true;
                Input::Log(Report::Opened(Opened::default()))
            }
            9 => {
                // Whatever a frame holds; most often nothing that decodes.
                let len = usize::from(script.byte()).min(script.0.len());
                let (body, rest) = script.0.split_at(len);
                script.0 = rest;
                let Ok(message) = wire::decode(b"mesh", &Bytes::copy_from_slice(body)) else { return };
                Input::Message { from: run, message }
            }
            _ => Input::Message { from: run, message: self.message(run, script) },
        };
        self.replica.handle(self.now, input);
    }

    fn pass(&mut self, span: std::time::Duration) {
        let ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        self.now = Now { mono: self.now.mono + span, wall_ms: self.now.wall_ms + ms };
    }

    fn publish(&mut self, script: &mut Script<'_>) {
        let text = "x".repeat(script.byte().into());
        let drafts = (0..1 + script.byte() % 4).map(|_| Draft::new(Room::lobby(), text.as_str())).collect();
        self.replica.publish(self.now, drafts);
    }

    /// A run that may be the peer's, another's, an earlier one or our own.
    fn any_run(&mut self, script: &mut Script<'_>) -> Run {
        match script.byte() % 6 {
            0 => self.replica.me(),
            1 => key(script.byte()).run(Epoch(script.number())),
            number => self.keys[usize::from(number % PEERS)].run(Epoch(u64::from(script.byte() % 3))),
        }
    }

    fn message(&mut self, from: Run, script: &mut Script<'_>) -> Message {
        match script.byte() % 10 {
            0 | 1 => {
                let author = self.keys.iter().find(|key| key.node() == from.node).cloned().unwrap_or_else(|| key(1));
                Message::Batch(self.made(&author, from, script))
            }
            2 => {
                let author = self.keys[usize::from(script.byte() % PEERS)].clone();
                let origin = author.run(Epoch(u64::from(script.byte() % 3)));
                let batches: Vec<(crate::replica::batch::Batch, u64)> =
                    (0..script.byte() % 4).map(|_| (self.made(&author, origin, script), script.number())).collect();
                let (first, through) = (script.seq(), script.seq());
                Message::Repair(Repair { origin, first, from: first, through, batches })
            }
            3 => {
                let marks = (0..script.byte() % 6)
                    .map(|_| Mark {
                        run: self.any_run(script).hash(),
                        floor: script.seq(),
                        held: script.held(),
                        volatile: script.held(),
                    })
                    .collect();
                let wall_ms = script.time().wall_ms();
                Message::Heartbeat(Heartbeat { sent: script.seq(), marks, settled: script.number(), wall_ms })
            }
            4 => Message::Digest(Digest {
                holdings: (0..script.byte() % 6)
                    .map(|_| Holding {
                        run: self.any_run(script),
                        floor: script.seq(),
                        held: script.held(),
                        volatile: script.held(),
                        newest: script.time(),
                        over: script.byte() % 2 == 1,
                    })
                    .collect(),
                all: script.byte() % 2 == 1,
                same: script.number(),
                answers: script.number(),
            }),
            5 => {
                let me = self.replica.me().hash();
                Message::Hello(Hello {
                    name: "peer".into(),
                    endpoints: vec![([10, 0, 0, script.byte()], 1).into()],
                    hears: if script.byte() % 2 == 1 { vec![me] } else { Vec::new() },
                    knows: vec![(self.any_run(script), Vec::new())],
                    wall_ms: script.time().wall_ms(),
                })
            }
            6 => Message::Request(Request {
                origin: self.any_run(script),
                first: script.seq(),
                last: script.seq(),
                bytes_max: script.number() as u32,
            }),
            7 => Message::Goodbye(script.seq()),
            8 => Message::DigestRequest((0..script.byte() % 4).map(|_| self.any_run(script).hash()).collect()),
            _ => Message::Compare(Box::new([script.number(); 64])),
        }
    }

    fn made(&mut self, author: &NodeKey, origin: Run, script: &mut Script<'_>) -> crate::replica::batch::Batch {
        // A batch never reaches beyond the last seq: what does is no batch.
        let texts = &["a", "b", "c"][..1 + usize::from(script.byte() % 3)];
        let first = Seq(script.number().clamp(1, u64::MAX - 4));
        batch(author, origin, first, script.time(), texts)
    }

    fn drain(&mut self) {
        let mut count = 0;
        while let Some(output) = self.replica.poll_output() {
            count += 1;
            assert!(count <= OUTPUTS_MAX, "too much is wanted at once");
            match output {
                Output::Log(Order::Append(Kept { batch, .. })) if self.is_open => {
                    self.appends.push_back(Span { run: batch.origin(), first: batch.first(), last: batch.last() })
                }
                Output::Deliver { batch, .. } => {
                    for entry in batch.entries().flatten() {
                        let fresh = self.delivered.insert((entry.id.run, entry.id.seq));
                        assert!(fresh, "{:?} is delivered twice", entry.id);
                    }
                }
                Output::Send { message, .. } => {
                    assert!(wire::encode(&message).len() <= wire::FRAME_BYTES_MAX);
                }
                Output::Log(_) | Output::Notify(_) => {}
            }
        }
        assert!(self.replica.window_size().0 <= WINDOW_BYTES_MAX);
    }
}

/// A peer that comes, says something, is asked, answers, and goes.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let from = |op: u8, rest: &[u8]| [&[0, 1, op], rest].concat();
    let up = [from(0, &[]), from(2, &[])].concat();
    let hello = from(10, &[5, 9, 1, 2, 1, 0, 4, 0]);
    let said = from(10, &[0, 2, 1, 4, 0]);
    let later = from(10, &[0, 1, 9, 4, 5]);
    let beat = from(10, &[3, 1, 2, 1, 0, 1, 1, 20, 0, 20, 0, 4, 0]);
    let repair = from(10, &[2, 0, 1, 1, 2, 4, 4, 0, 5, 1, 9]);
    let (wait, stored) = (from(5, &[253, 4, 0]), from(7, &[9]));
    vec![
        [&up[..], &hello, &said, &stored, &wait].concat(),
        [&up[..], &hello, &said, &later, &wait, &repair, &stored, &wait].concat(),
        [&up[..], &beat, &wait, &from(6, &[5, 2]), &stored, &from(8, &[]), &from(8, &[]), &from(1, &[])].concat(),
        [&up[..], &from(10, &[4, 1, 2, 1, 0, 1, 1, 200, 0, 4, 1, 1, 0, 0]), &from(10, &[6, 0, 1, 9, 100])].concat(),
    ]
}
