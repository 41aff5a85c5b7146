//! Two or three replicas by hand: each rule of the core as a short story.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::SocketAddr;

use hubless::id::{Epoch, Key, NodeId, NodeKey, Room, Run, Seq};
use hubless::replica::batch::{Batch, Draft};
use hubless::replica::clock::{Hlc, Mono, Now};
use hubless::replica::event::{Input, Missing, Notice, OnDisk, Opened, Order, Output, Report, Span, Timing, To};
use hubless::replica::liveness::{OVER_AFTER, Status};
use hubless::replica::log::{APPEND_BYTES_MAX, LOADS_MAX};
use hubless::replica::message::{Digest, Hello, Holding, Message, Repair, Request};
use hubless::replica::ranges::RangeSet;
use hubless::replica::{KnownKey, Replica, STREAMS_MAX, WINDOW_BYTES_MAX};
use hubless::wire;

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

/// What a replica did, in order.
#[derive(Debug, Clone, PartialEq)]
enum Did {
    Said(To, Message),
    Gave(String, Timing),
    Told(Notice),
}

/// Replicas around a table. A message is there at once, unless `lost` says otherwise.
struct Table {
    now: u64,
    nodes: Vec<Replica>,
    did: Vec<Vec<Did>>,
    /// What those with a log ordered of it; nothing is done of itself.
    orders: Vec<Option<Vec<Order>>>,
    /// Listener, speaker.
    hears: BTreeSet<(usize, usize)>,
    lost: fn(&Message) -> bool,
}

impl Table {
    fn new(nodes: usize) -> Table {
        let mut table = Table {
            now: 0,
            nodes: Vec::new(),
            did: Vec::new(),
            orders: Vec::new(),
            hears: BTreeSet::new(),
            lost: |_| false,
        };
        (0..nodes).for_each(|_| _ = table.join(WINDOW_BYTES_MAX));
        table
    }

    /// Everybody hears everybody, and knows it.
    fn met(nodes: usize) -> Table {
        let mut table = Table::new(nodes);
        for (a, b) in (0..nodes).flat_map(|a| (0..nodes).map(move |b| (a, b))) {
            if a != b {
                table.link(a, b);
            }
        }
        table.wait(200);
        table
    }

    fn join(&mut self, window_bytes: usize) -> usize {
        self.join_with(window_bytes, None)
    }

    fn join_with(&mut self, window_bytes: usize, log: Option<Opened>) -> usize {
        let index = self.nodes.len();
        let (key, name) = (NodeKey::from_bytes(&[index as u8 + 1; 32]), format!("node {index}").into());
        self.nodes.push(Replica::new(self.clock(), key, Epoch(7), name, 1, window_bytes, log.clone()));
        self.orders.push(log.map(|_| Vec::new()));
        self.did.push(Vec::new());
        index
    }

    fn clock(&self) -> Now {
        Now { mono: Mono(self.now), wall_ms: 1_800_000_000_000 + self.now }
    }

    fn run(&self, node: usize) -> Run {
        self.nodes[node].me()
    }

    fn link(&mut self, listener: usize, speaker: usize) {
        self.hears.insert((listener, speaker));
        let (hearing, speaking) = (self.run(listener), self.run(speaker));
        self.feed(speaker, Input::Called(hearing));
        let address = SocketAddr::from(([10, 0, 0, speaker as u8], 1));
        self.feed(listener, Input::LinkUp { run: speaking, address });
    }

    fn meet(&mut self, a: usize, b: usize) {
        self.link(a, b);
        self.link(b, a);
        self.wait(200);
    }

    /// Nobody hears `node` any more, and it hears nobody; none of them is told.
    fn vanish(&mut self, node: usize) {
        self.hears.retain(|(a, b)| *a != node && *b != node);
    }

    fn feed(&mut self, node: usize, input: Input) {
        let now = self.clock();
        self.nodes[node].handle(now, input);
        self.perform(node);
    }

    fn say(&mut self, node: usize, texts: &[&str]) -> hubless::replica::Published {
        let drafts = texts.iter().map(|text| Draft::new(Room::lobby(), *text)).collect();
        self.publish(node, drafts)
    }

    fn publish(&mut self, node: usize, drafts: Vec<Draft>) -> hubless::replica::Published {
        let now = self.clock();
        let published = self.nodes[node].publish(now, drafts);
        self.perform(node);
        published
    }

    fn perform(&mut self, node: usize) {
        while let Some(output) = self.nodes[node].poll_output() {
            match output {
                Output::Deliver { batch, how } => {
                    for entry in batch.entries().flatten() {
                        self.did[node].push(Did::Gave(entry.payload.text().unwrap_or("data").into(), how));
                    }
                }
                Output::Notify(notice) => self.did[node].push(Did::Told(notice)),
                Output::Log(order) => match &mut self.orders[node] {
                    Some(orders) => orders.push(order),
                    None => panic!("ordered without a log: {order:?}"),
                },
                Output::Send { to, message } => {
                    self.did[node].push(Did::Said(to, message.clone()));
                    if (self.lost)(&message) {
                        continue;
                    }
                    let from = self.run(node);
                    for listener in 0..self.nodes.len() {
                        let wanted = to == To::All || to == To::One(self.run(listener));
                        if wanted && self.hears.contains(&(listener, node)) {
                            let message = through_the_wire(&message, to);
                            self.feed(listener, Input::Message { from, message });
                        }
                    }
                }
            }
        }
    }

    /// Lets time pass, waking whoever wants to be woken.
    fn wait(&mut self, ms: u64) {
        let end = self.now + ms;
        loop {
            let due = |(index, node): (usize, &Replica)| (node.poll_timeout().unwrap().0, index);
            let (at, node) = self.nodes.iter().enumerate().map(due).min().unwrap();
            if at > end {
                break;
            }
            self.now = self.now.max(at);
            self.feed(node, Input::Timeout);
        }
        self.now = end;
    }

    fn status(&self, node: usize, of: usize) -> Status {
        self.nodes[node].known_peer(self.run(of)).map_or(Status::New, |peer| peer.status)
    }

    fn given(&self, node: usize) -> Vec<(&str, Timing)> {
        let gave = |did: &'_ Did| matches!(did, Did::Gave(..));
        self.did[node]
            .iter()
            .filter(|did| gave(did))
            .filter_map(|did| if let Did::Gave(text, how) = did { Some((&text[..], *how)) } else { None })
            .collect()
    }

    fn texts(&self, node: usize) -> Vec<&str> {
        self.given(node).into_iter().map(|(text, _)| text).collect()
    }

    fn gaps(&self, node: usize) -> Vec<(u64, Missing)> {
        let gap = |did: &Did| match did {
            Did::Told(Notice::Gap { missing, reason, .. }) => Some((*missing, *reason)),
            _ => None,
        };
        self.did[node].iter().filter_map(gap).collect()
    }

    /// What `node` wants to be kept, in order.
    fn appends(&self, node: usize) -> Vec<Span> {
        let span = |batch: &Batch| Span { run: batch.origin(), first: batch.first(), last: batch.last() };
        let append = |order: &Order| match order {
            Order::Append(kept) => Some(span(&kept.batch)),
            _ => None,
        };
        self.orders[node].iter().flatten().filter_map(append).collect()
    }

    fn requests(&self, node: usize) -> Vec<Run> {
        let asked = |did: &Did| match did {
            Did::Said(To::One(run), Message::Request(_)) => Some(*run),
            _ => None,
        };
        self.did[node].iter().filter_map(asked).collect()
    }
}

fn through_the_wire(message: &Message, to: To) -> Message {
    let topic = match (message, to) {
        (Message::Batch(_), _) => wire::TOPIC_CHAT.to_string(),
        (_, To::All) => wire::TOPIC_MESH.to_string(),
        (_, To::One(run)) => wire::topic_to(run),
    };
    let read = wire::decode(topic.as_bytes(), &wire::encode(message)).unwrap();
    assert_eq!(&read, message);
    read
}

fn is_batch(message: &Message) -> bool {
    matches!(message, Message::Batch(_))
}

#[test]
fn two_that_link_are_up_at_once() {
    let mut table = Table::new(2);
    table.link(A, B);
    table.link(B, A);
    table.wait(30);
    assert_eq!((table.status(A, B), table.status(B, A)), (Status::Up, Status::Up));
}

#[test]
fn what_is_said_is_sent_before_it_is_delivered_and_delivered_once_everywhere() {
    let mut table = Table::met(3);
    table.did[A].clear();
    table.say(A, &["one", "two"]);
    table.wait(3_000);
    for node in [A, B, C] {
        assert_eq!(table.given(node), [("one", Timing::Live), ("two", Timing::Live)]);
    }
    assert!(matches!(&table.did[A][0], Did::Said(To::All, Message::Batch(_))));
    assert!(matches!(&table.did[A][1], Did::Gave(..)));
}

#[test]
fn the_number_of_holders_is_known_within_a_tenth_of_a_second() {
    let mut table = Table::met(3);
    let id = table.say(A, &["hi"]).first;
    assert_eq!(table.nodes[A].held_by(id), 0);
    table.wait(100);
    assert_eq!(table.nodes[A].held_by(id), 2);
}

#[test]
fn late_joiner_receives_full_history() {
    let mut table = Table::met(2);
    for part in 0..50 {
        table.say(A, &[&format!("{part} a"), &format!("{part} b")]);
    }
    table.wait(5_000);
    let late = table.join(WINDOW_BYTES_MAX);
    table.meet(A, late);
    assert_eq!(table.texts(late), table.texts(A));
    assert!(table.given(late).iter().all(|(_, how)| *how == Timing::History));
    assert_eq!(table.gaps(late), []);
}

#[test]
fn what_a_dead_author_said_comes_from_others() {
    let mut table = Table::met(2);
    table.say(A, &["last words"]);
    table.vanish(A);
    let late = table.join(WINDOW_BYTES_MAX);
    table.meet(B, late);
    assert_eq!(table.texts(late), ["last words"]);
}

#[test]
fn a_hole_is_repaired_within_one_beat() {
    let mut table = Table::met(2);
    table.say(A, &["one"]);
    table.lost = is_batch;
    table.say(A, &["two"]);
    table.lost = |_| false;
    table.say(A, &["three"]);
    table.wait(100);
    assert_eq!(table.given(B), [("one", Timing::Live), ("two", Timing::Live), ("three", Timing::Live)]);
    assert_eq!(table.gaps(B), []);
}

#[test]
fn a_lost_tail_shows_within_one_beat() {
    let mut table = Table::met(2);
    table.lost = is_batch;
    table.say(A, &["tail"]);
    table.lost = |_| false;
    table.wait(1_000);
    assert_eq!(table.given(B), [("tail", Timing::Live)]);
}

#[test]
fn a_tail_whose_first_beat_is_lost_too_shows_with_the_next() {
    let mut table = Table::met(2);
    table.lost = |_| true;
    table.say(A, &["tail"]);
    table.wait(100);
    table.lost = |_| false;
    table.wait(2_000);
    assert_eq!(table.given(B), [("tail", Timing::Live)]);
}

#[test]
fn a_reader_waits_half_a_second_for_what_is_missing_and_gets_it_late() {
    let mut table = Table::met(2);
    table.say(A, &["one"]);
    table.lost = |message| matches!(message, Message::Repair(_)) || is_batch(message);
    table.say(A, &["two"]);
    table.lost = |message| matches!(message, Message::Repair(_));
    table.say(A, &["three"]);
    table.wait(499);
    assert_eq!(table.texts(B), ["one"]);
    table.wait(1);
    assert_eq!(table.texts(B), ["one", "three"]);
    assert_eq!(table.gaps(B), [(1, Missing::Late)]);
    table.lost = |_| false;
    table.wait(3_000);
    assert_eq!(table.given(B)[2], ("two", Timing::Late));
}

#[test]
fn a_repair_goes_on_elsewhere_when_its_source_dies() {
    let mut table = Table::met(3);
    table.hears.remove(&(C, A));
    for _ in 0..20 {
        table.say(A, &["word"]);
    }
    table.lost = |message| matches!(message, Message::Repair(_));
    table.link(C, A);
    table.wait(100);
    assert!(!table.requests(C).is_empty());
    // Whoever was asked falls silent; the other one has it, too.
    let asked = if *table.requests(C).last().unwrap() == table.run(A) { A } else { B };
    table.lost = |_| false;
    table.vanish(asked);
    let run = table.run(asked);
    table.feed(C, Input::LinkDown(run));
    table.wait(3_000);
    assert_eq!(table.texts(C).len(), 20);
}

#[test]
fn goodbye_makes_down_at_once() {
    let mut table = Table::met(2);
    table.feed(A, Input::Stop);
    assert_eq!(table.status(B, A), Status::Down);
}

#[test]
fn suspect_then_down_by_silence() {
    let mut table = Table::met(2);
    table.vanish(A);
    table.wait(2_000);
    assert_eq!(table.status(B, A), Status::Up);
    table.wait(2_000);
    assert_eq!(table.status(B, A), Status::Suspect);
    table.wait(6_000);
    assert_eq!(table.status(B, A), Status::Down);
}

#[test]
fn a_host_that_refuses_is_down_at_once_when_its_link_broke() {
    let mut table = Table::met(2);
    let run = table.run(A);
    table.feed(B, Input::Refused(run));
    assert_eq!(table.status(B, A), Status::Up, "its link is alive");
    table.vanish(A);
    table.feed(B, Input::LinkDown(run));
    table.feed(B, Input::Refused(run));
    assert_eq!(table.status(B, A), Status::Down);
}

#[test]
fn both_are_up_again_soon_after_a_silence_in_which_no_connection_broke() {
    for one_way in [false, true] {
        let mut table = Table::met(2);
        table.hears.remove(&(B, A));
        if !one_way {
            table.hears.remove(&(A, B));
        }
        table.wait(60_000);
        table.say(A, &["meanwhile"]);
        assert_eq!(table.status(B, A), Status::Down);
        table.hears.extend([(A, B), (B, A)]);
        table.wait(2_000);
        assert_eq!((table.status(A, B), table.status(B, A)), (Status::Up, Status::Up), "one way: {one_way}");
        assert_eq!(table.texts(B), ["meanwhile"]);
    }
}

#[test]
fn one_way_peer_is_never_asked() {
    let mut table = Table::new(2);
    table.say(A, &["before"]);
    table.link(B, A);
    table.wait(60_000);
    assert_eq!((table.status(B, A), table.requests(B).len()), (Status::OneWay, 0));
    table.say(A, &["now"]);
    table.wait(1_000);
    assert_eq!(table.texts(B), ["now"]);
    table.link(A, B);
    table.wait(1_000);
    assert_eq!(table.status(B, A), Status::Up);
    assert_eq!(table.texts(B), ["now", "before"]);
}

#[test]
fn retried_key_is_one_message() {
    let mut table = Table::met(2);
    let draft = |text: &str| Draft { key: Some(Key::of_client_id("c1")), ..Draft::new(Room::lobby(), text) };
    let first = table.publish(A, vec![draft("hi"), draft("hi"), draft("ho")]);
    let id = first.first;
    assert_eq!((first.count, &first.known[..]), (1, &[(1, KnownKey::Same(id)), (2, KnownKey::Other(id))][..]));
    // On another node, too.
    let again = table.publish(B, vec![draft("hi"), draft("ho")]);
    assert_eq!((again.count, &again.known[..]), (0, &[(0, KnownKey::Same(id)), (1, KnownKey::Other(id))][..]));
    table.wait(1_000);
    assert_eq!((table.texts(A), table.texts(B)), (vec!["hi"], vec!["hi"]));
}

#[test]
fn what_nobody_has_is_reported_lost_once_and_given_late_when_it_turns_up() {
    let mut table = Table::met(3);
    table.hears.remove(&(B, A));
    table.say(A, &["one"]);
    table.hears.insert((B, A));
    table.wait(1_000);
    table.hears.remove(&(C, A));
    table.vanish(C);
    // Only C hears the second one, over a link that B has not.
    table.hears.remove(&(B, A));
    table.hears.insert((C, A));
    table.say(A, &["two"]);
    table.vanish(C);
    table.lost = |message| matches!(message, Message::Repair(_));
    table.hears.insert((B, A));
    table.say(A, &["three"]);
    table.feed(A, Input::Stop);
    table.vanish(A);
    table.lost = |_| false;
    table.wait(30_000);
    assert_eq!(table.texts(B), ["one", "three"]);
    assert_eq!(table.gaps(B), [(1, Missing::Late), (1, Missing::Lost)]);
    table.wait(60_000);
    assert_eq!(table.gaps(B).len(), 2);
    table.meet(B, C);
    table.wait(2_000);
    assert_eq!(table.given(B)[2], ("two", Timing::Late));
}

#[test]
fn what_left_every_window_is_reported_expired() {
    let mut table = Table::new(0);
    let small = table.join(3_000);
    let other = table.join(3_000);
    table.meet(small, other);
    table.say(small, &["first"]);
    table.wait(1_000);
    let cut = table.hears.clone();
    table.hears.clear();
    let texts: Vec<String> = (0..40).map(|n| format!("{n}").repeat(20)).collect();
    for text in &texts {
        table.say(small, &[text]);
    }
    table.wait(20_000);
    table.hears = cut;
    table.wait(30_000);
    let got = table.texts(other).len() as u64 - 1;
    let expired: u64 =
        table.gaps(other).iter().filter(|(_, reason)| *reason == Missing::Expired).map(|(missing, _)| missing).sum();
    assert!(got > 0 && got < 40, "{got}");
    assert_eq!(got + expired, 40);
}

#[test]
fn hearsay_of_an_end_does_not_outlast_the_word_of_the_run_itself() {
    let mut table = Table::met(3);
    table.say(A, &["hi"]);
    table.wait(1_000);
    let others: Vec<(usize, usize)> = table.hears.iter().copied().filter(|(a, b)| *a != A && *b != A).collect();
    let all = std::mem::replace(&mut table.hears, others.into_iter().collect());
    table.wait(OVER_AFTER.as_millis() as u64 + 20_000);
    assert_eq!(table.status(B, A), Status::Down);
    table.hears = all;
    table.wait(5_000);
    for (listener, speaker) in [(A, B), (B, A), (A, C), (C, A)] {
        assert_eq!(table.status(listener, speaker), Status::Up, "{speaker} for {listener}");
    }
    table.say(A, &["again"]);
    assert_eq!(table.texts(C), ["hi", "again"]);
}

#[test]
fn an_old_frame_changes_nothing() {
    let mut table = Table::met(2);
    table.say(A, &["one"]);
    table.wait(100);
    let Some(Did::Said(_, old)) = table.did[A].iter().find(|did| matches!(did, Did::Said(_, Message::Batch(_)))) else {
        panic!("nothing said");
    };
    let (old, from) = (old.clone(), table.run(A));
    table.say(A, &["two"]);
    let Message::Batch(batch) = old.clone() else { panic!("{old:?}") };
    let repair = Message::Repair(Repair {
        origin: from,
        first: Seq(1),
        from: Seq(1),
        through: Seq(1),
        batches: vec![(batch.clone(), 0)],
    });
    let (given, window) = (table.texts(B).len(), table.nodes[B].window_size());
    for message in [old, repair] {
        table.feed(B, Input::Message { from, message });
    }
    assert_eq!((table.texts(B).len(), table.nodes[B].window_size()), (given, window));
    assert_eq!(table.nodes[B].counters().duplicates, 2);
}

#[test]
fn another_body_for_an_id_that_is_known_is_refused() {
    let mut table = Table::met(2);
    table.say(A, &["truth"]);
    let mut liar = Table::new(1);
    liar.say(A, &["another"]);
    let Some(Did::Said(_, lie)) = liar.did[A].first() else { panic!("nothing said") };
    let from = table.run(A);
    assert_eq!(from, liar.run(A));
    table.feed(B, Input::Message { from, message: lie.clone() });
    assert_eq!((table.texts(B), table.nodes[B].counters().conflicts), (vec!["truth"], 1));
}

#[test]
fn nobody_speaks_live_for_another() {
    let mut table = Table::met(3);
    let mut elsewhere = Table::new(1);
    elsewhere.say(A, &["stolen"]);
    let Some(Did::Said(_, message)) = elsewhere.did[A].first() else { panic!("nothing said") };
    let from = table.run(C);
    table.feed(B, Input::Message { from, message: message.clone() });
    assert!(table.texts(B).is_empty());
}

#[test]
fn a_stream_that_was_forgotten_is_not_taken_again() {
    let mut table = Table::met(2);
    let from = table.run(A);
    let mut dead = Table::new(1);
    dead.nodes[0] =
        Replica::new(table.clock(), NodeKey::from_bytes(&[99; 32]), Epoch(1), "dead".into(), 1, 1_000_000, None);
    dead.say(A, &["old"]);
    let Some(Did::Said(_, Message::Batch(old))) = dead.did[A].first() else { panic!("nothing said") };
    let repair = |batch: &Batch| {
        let (origin, first, through) = (batch.origin(), batch.first(), batch.last());
        Message::Repair(Repair { origin, first, from: first, through, batches: vec![(batch.clone(), 0)] })
    };
    let told = |run: Run, newest: Hlc| {
        let held = RangeSet::of(Seq(1), Seq(1));
        Message::Digest(Digest {
            holdings: vec![Holding { run, floor: Seq(0), held, volatile: RangeSet::new(), newest, over: false }],
            all: false,
            same: 0,
            answers: 0,
        })
    };
    let small = table.join(1);
    table.meet(A, small);
    let hear = |table: &mut Table, message: Message| table.feed(small, Input::Message { from, message });
    hear(&mut table, repair(old));
    assert_eq!(table.texts(small), ["old"]);
    // Its window holds one batch: the next one makes it bare, and after five minutes it may be forgotten.
    table.say(A, &["new"]);
    table.wait(OVER_AFTER.as_millis() as u64 + 1_000);
    for number in 0..STREAMS_MAX as u64 {
        let run = Run { node: NodeId([100; 32]), epoch: Epoch(number) };
        hear(&mut table, told(run, Hlc::at(1)));
    }
    assert!(table.nodes[small].counters().refused > 0);
    hear(&mut table, told(old.origin(), old.hlc_last()));
    hear(&mut table, repair(old));
    assert_eq!(table.texts(small), ["old", "new"]);
}

#[test]
fn what_was_said_without_a_clock_and_let_go_does_not_come_back() {
    let mut table = Table::met(1);
    // A node that was in 1970; what it said has no age, so it is never refused as old.
    let now = Now { mono: Mono(0), wall_ms: 5_000 };
    let mut dead = Replica::new(now, NodeKey::from_bytes(&[99; 32]), Epoch(1), "dead".into(), 1, 1_000_000, None);
    dead.publish(now, vec![Draft::new(Room::lobby(), "old")]);
    let said = std::iter::from_fn(|| dead.poll_output()).find_map(|output| match output {
        Output::Send { message: Message::Batch(batch), .. } => Some(batch),
        _ => None,
    });
    let old = said.unwrap();
    let gone = OnDisk {
        run: old.origin(),
        floor: Seq(1),
        stored: RangeSet::new(),
        admitted: RangeSet::new(),
        settled: RangeSet::new(),
        newest: old.hlc_last(),
    };
    let horizon = Hlc::at(table.clock().wall_ms);
    table.join_with(WINDOW_BYTES_MAX, Some(Opened { streams: vec![gone], horizon }));
    table.meet(A, B);
    table.wait(OVER_AFTER.as_millis() as u64 + 120_000);
    let (origin, first, through) = (old.origin(), old.first(), old.last());
    let repair = Repair { origin, first, from: first, through, batches: vec![(old, 0)] };
    let from = table.run(A);
    table.feed(B, Input::Message { from, message: Message::Repair(repair) });
    let orders = table.orders[B].as_ref().unwrap();
    assert!(orders.iter().any(|order| matches!(order, Order::Retain { .. })), "retention was looked at");
    assert!(!orders.iter().any(|order| matches!(order, Order::Forget { .. } | Order::Append(_))), "{orders:?}");
    assert_eq!(table.texts(B), Vec::<String>::new());
}

#[test]
fn a_word_after_a_goodbye_harms_nobody() {
    let mut table = Table::met(2);
    let from = table.run(A);
    let hello = Hello { name: "a".into(), endpoints: Vec::new(), hears: Vec::new(), knows: Vec::new(), wall_ms: 1 };
    for message in [Message::Goodbye(Seq(0)), Message::Hello(hello.clone()), Message::Hello(hello)] {
        table.feed(B, Input::Message { from, message });
    }
    assert_ne!(table.nodes[B].peers().find(|(run, _)| *run == from).map(|(_, peer)| peer.status), Some(Status::Up));
}

#[test]
fn what_was_too_much_for_the_disk_is_appended_from_the_window_when_there_is_room() {
    let mut table = Table::new(0);
    let window = 4 * APPEND_BYTES_MAX;
    table.join(window);
    table.join_with(window, Some(Opened::default()));
    table.meet(A, B);
    let payload = vec![7; 250 * 1024];
    let count = APPEND_BYTES_MAX / payload.len() + 40;
    for _ in 0..count {
        table.publish(A, vec![Draft::new(Room::lobby(), payload.clone())]);
    }
    let mut reported = 0;
    let first = table.appends(B);
    assert!(first.len() < count && table.nodes[B].appending_bytes() <= APPEND_BYTES_MAX, "{} appended", first.len());
    assert_eq!(table.given(B).len(), count);
    while reported < table.appends(B).len() {
        let stored = table.appends(B)[reported..].iter().take(50).copied().collect::<Vec<_>>();
        reported += stored.len();
        table.feed(B, Input::Log(Report::Stored(stored)));
    }
    table.wait(1_500);
    let mut appended: Vec<Seq> = table.appends(B).iter().map(|span| span.first).collect();
    appended.sort_unstable();
    assert_eq!(appended, (1..=count as u64).map(Seq).collect::<Vec<_>>());
    assert_eq!((table.requests(B), table.nodes[B].appending_bytes()), (vec![], 0));
}

#[test]
fn what_the_log_refuses_or_lets_go_under_way_is_not_waited_for() {
    let mut table = Table::new(1);
    table.join_with(WINDOW_BYTES_MAX, Some(Opened::default()));
    table.meet(A, B);
    for text in ["one", "two", "three"] {
        table.say(A, &[text]);
    }
    let spans = table.appends(B);
    assert_eq!(spans.len(), 3);
    // The history dropped the second.
    table.feed(B, Input::Log(Report::Stored(vec![spans[0], spans[2]])));
    assert_eq!((table.nodes[B].appending_bytes(), table.nodes[B].counters().conflicts), (0, 1));
    let admitted = |order: &Order| matches!(order, Order::Admit { span, .. } if span.last == Seq(3));
    assert!(table.orders[B].iter().flatten().any(admitted), "{:?}", table.orders[B]);
    table.say(A, &["four"]);
    assert!(table.nodes[B].appending_bytes() > 0);
    let (run, newest) = (table.run(A), Hlc::at(table.clock().wall_ms));
    table.feed(B, Input::Log(Report::Expired { run, floor: Seq(4), newest }));
    assert_eq!(table.nodes[B].appending_bytes(), 0);
    table.wait(30_000);
    assert_eq!((table.requests(B), table.appends(B).len()), (vec![], 4));
}

#[test]
fn a_log_that_was_opened_again_is_read_for_peers_again() {
    let mut table = Table::new(1);
    let run = Run { node: NodeId([77; 32]), epoch: Epoch(1) };
    let stored = RangeSet::of(Seq(1), Seq(9));
    let (admitted, settled, newest) = (stored.clone(), RangeSet::new(), Hlc::at(1_799_000_000_000));
    let stream = OnDisk { run, floor: Seq(0), stored, admitted, settled, newest };
    let opened = Opened { streams: vec![stream], horizon: Hlc::default() };
    table.join_with(WINDOW_BYTES_MAX, Some(opened.clone()));
    table.meet(A, B);
    let loads = |table: &Table| {
        table.orders[B]
            .iter()
            .flatten()
            .filter(|order| matches!(order, Order::Load(load) if load.span.run == run))
            .count()
    };
    let ask = |table: &mut Table| {
        let message = Message::Request(Request { origin: run, first: Seq(1), last: Seq(9), bytes_max: 1 << 20 });
        let from = table.run(A);
        table.feed(B, Input::Message { from, message });
    };
    (0..2 * LOADS_MAX).for_each(|_| ask(&mut table));
    assert_eq!(loads(&table), LOADS_MAX);
    table.feed(B, Input::Log(Report::Closed));
    table.feed(B, Input::Log(Report::Opened(opened)));
    ask(&mut table);
    assert_eq!(loads(&table), LOADS_MAX + 1);
}

#[test]
fn what_is_below_more_holes_than_a_mark_has_room_for_is_asked_for() {
    let run = Run { node: NodeId([77; 32]), epoch: Epoch(1) };
    // Every tenth entry is missing for good.
    let opened = |lacks: Option<Seq>| {
        let mut stored: RangeSet = (0..60).map(|at| (Seq(at * 10 + 1), Seq(at * 10 + 9))).collect();
        lacks.into_iter().for_each(|seq| stored.remove(seq, seq));
        let settled = RangeSet::of(Seq(1), Seq(600)).without(&stored);
        let (admitted, newest) = (stored.clone(), Hlc::at(1_799_000_000_000));
        let stream = OnDisk { run, floor: Seq(0), stored, admitted, settled, newest };
        Some(Opened { streams: vec![stream], horizon: Hlc::default() })
    };
    for seq in [Seq(5), Seq(305), Seq(595)] {
        let asked = |table: &Table| {
            let asks = |did: &Did| match did {
                Did::Said(_, Message::Request(asks)) => (asks.origin, asks.first, asks.last) == (run, seq, seq),
                _ => false,
            };
            table.did[C].iter().any(asks)
        };
        for turns_up in [false, true] {
            let mut table = Table::new(1);
            table.join_with(WINDOW_BYTES_MAX, opened(turns_up.then_some(seq)));
            table.join_with(WINDOW_BYTES_MAX, opened(Some(seq)));
            table.meet(B, C);
            table.wait(20_000);
            assert_eq!(asked(&table), !turns_up, "{seq:?}");
            // While the stream goes on, only marks tell of it.
            for more in (601..=660).filter(|_| turns_up).map(Seq) {
                let stored = |seq: Seq| Span { run, first: seq, last: seq };
                let turned_up = Some(stored(seq)).filter(|_| more == Seq(630));
                assert!(more > Seq(630) || !asked(&table));
                table.feed(B, Input::Log(Report::Stored([stored(more)].into_iter().chain(turned_up).collect())));
                table.feed(C, Input::Log(Report::Stored(vec![stored(more)])));
                table.wait(500);
            }
            assert!(asked(&table), "{seq:?}");
        }
    }
}

#[test]
fn holes_below_a_floor_that_retention_raises_are_reported_once() {
    let mut table = Table::new(1);
    table.join_with(WINDOW_BYTES_MAX, Some(Opened::default()));
    table.meet(A, B);
    table.say(A, &["one"]);
    table.lost = is_batch;
    table.say(A, &["two"]);
    table.vanish(A);
    table.lost = |_| false;
    let (run, newest) = (table.run(A), Hlc::at(table.clock().wall_ms));
    for _ in 0..2 {
        table.feed(B, Input::Log(Report::Expired { run, floor: Seq(2), newest }));
    }
    assert_eq!(table.gaps(B), [(1, Missing::Expired)]);
    assert_eq!(table.nodes[B].counters().missing, 1);
}
