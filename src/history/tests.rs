//! The history on real folders: what goes in comes out, whatever happens to the files.

use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::id::{EntryId, Epoch, Key, NodeKey, Room, Run};
use crate::replica::batch::{Author, Batch, Draft, Entry};
use crate::replica::clock::Hlc;
use crate::replica::event::{Kept, Span};
use crate::replica::keys::Place;
use crate::replica::ranges::RangeSet;
use crate::replica::version::Cursor;

const DAY_MS: u64 = 24 * 3600 * 1000;
/// When the tests take place.
const NOW_MS: u64 = 20_000 * DAY_MS;

/// A history and what it has reported.
struct Desk {
    folder: PathBuf,
    history: History,
    reports: UnboundedReceiver<Report>,
    opened: Opened,
}

/// The keys are in the order of their numbers.
fn key_of(number: u64) -> NodeKey {
    static KEYS: LazyLock<Vec<NodeKey>> = LazyLock::new(|| {
        let mut keys: Vec<NodeKey> = (0..=u8::MAX).map(|byte| NodeKey::from_bytes(&[byte; NodeKey::LEN])).collect();
        keys.sort_by_key(NodeKey::node);
        keys
    });
    KEYS[number as usize].clone()
}

fn run(byte: u8) -> Run {
    key_of(byte.into()).run(Epoch(byte.into()))
}

fn options(folder: &Path) -> Options {
    Options { folder: folder.join("history"), fsync: Fsync::Group, retain_days: 30, retain_bytes: 1 << 30 }
}

fn desk_with(options: Options) -> Desk {
    let (out, reports) = unbounded_channel();
    let folder = options.folder.clone();
    let (history, opened) = History::open(options, Metrics::new(), out).unwrap();
    Desk { folder, history, reports, opened }
}

fn desk(folder: &Path) -> Desk {
    desk_with(options(folder))
}

fn said(text: &str) -> Draft {
    Draft::new(Room::lobby(), text)
}

/// A batch of `origin` from seq `first`, said `ms` after the start of the tests' day.
fn batch(origin: Run, first: u64, ms: u64, drafts: &[Draft]) -> Batch {
    let key = key_of(origin.epoch.0);
    Author { key: &key, origin, name: "ada", first: Seq(first), hlc: Hlc::at(NOW_MS + ms), previous: [0; 32] }
        .encode(drafts)
}

fn kept(batch: Batch) -> Kept {
    Kept { arrived_ms: batch.hlc().wall_ms(), batch }
}

fn span(run: Run, first: u64, last: u64) -> Span {
    Span { run, first: Seq(first), last: Seq(last) }
}

impl Desk {
    fn append(&self, batch: &Batch) {
        self.history.order(Order::Append(kept(batch.clone())));
    }

    fn next(&mut self) -> Report {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match self.reports.try_recv() {
                Ok(report) => return report,
                Err(_) if Instant::now() < deadline => std::thread::yield_now(),
                Err(error) => panic!("nothing was reported: {error}"),
            }
        }
    }

    /// Waits until all of these are stored, in whatever groups.
    fn stored(&mut self, mut spans: Vec<Span>) {
        while !spans.is_empty() {
            let Report::Stored(done) = self.next() else { continue };
            spans.retain(|span| !done.contains(span));
        }
    }

    fn keep(&mut self, batches: &[Batch]) {
        batches.iter().for_each(|batch| self.append(batch));
        self.stored(
            batches
                .iter()
                .map(|batch| Span { run: batch.origin(), first: batch.first(), last: batch.last() })
                .collect(),
        );
    }

    fn reopen(self) -> Desk {
        let options = Options { folder: self.folder.clone(), ..options(Path::new("")) };
        drop(self.history);
        desk_with(options)
    }

    fn texts(&self, want: &Want, limit: usize) -> Vec<String> {
        texts(&self.history.reader().newest(want, None, limit).unwrap())
    }
}

fn texts(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(|entry| entry.payload.text().unwrap().to_string()).collect()
}

#[test]
fn what_goes_in_comes_out_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = desk(folder.path());
    assert_eq!(desk.opened, Opened::default());
    let batches = [
        batch(run(1), 1, 10, &[said("a"), said("b")]),
        batch(run(2), 1, 5, &[said("c")]),
        batch(run(1), 3, 20, &[said(&"d".repeat(10_000))]),
    ];
    desk.keep(&batches);
    desk.history.order(Order::Admit { span: span(run(1), 1, 3), late: false });
    desk.history.order(Order::Settle(span(run(2), 2, 4)));
    let mut desk = desk.reopen();
    let streams = &desk.opened.streams;
    assert_eq!(streams.len(), 2);
    assert_eq!(streams[0].stored, RangeSet::of(Seq(1), Seq(3)));
    assert_eq!(streams[0].admitted, streams[0].stored);
    assert_eq!(streams[1].settled, RangeSet::of(Seq(2), Seq(4)));
    assert_eq!(streams[0].newest, batches[2].hlc());
    let load = Load { to: run(3), span: span(run(1), 1, 9), bytes_max: 1 << 20 };
    desk.history.order(Order::Load(load));
    let Report::Loaded { batches: found, through, .. } = desk.next() else { panic!("not loaded") };
    assert_eq!(found, [kept(batches[0].clone()), kept(batches[2].clone())]);
    assert_eq!(through, Seq(9));
    let d = "d".repeat(10_000);
    assert_eq!(desk.texts(&Want::default(), 10), ["c", "a", "b", &d]);
    assert_eq!(desk.texts(&Want::default(), 2), ["b", &d]);
    let numbers = desk.history.reader().admitted(1, 10, 1 << 20).unwrap();
    assert_eq!(numbers, [(1, batches[0].clone(), false), (2, batches[2].clone(), false)]);
}

/// Ten batches of one message each, a minute apart, admitted.
fn ten(desk: &mut Desk, origin: Run) -> Vec<Batch> {
    let batches: Vec<Batch> =
        (1..=10).map(|seq| batch(origin, seq, seq * 60_000, &[said(&format!("message {seq}"))])).collect();
    desk.keep(&batches);
    desk.history.order(Order::Admit { span: span(origin, 1, 10), late: false });
    batches
}

#[test]
fn nothing_is_written_twice_and_nothing_overlaps() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = desk(folder.path());
    let one = batch(run(1), 1, 10, &[said("a"), said("b")]);
    let overlapping = batch(run(1), 2, 11, &[said("x"), said("y")]);
    desk.keep(std::slice::from_ref(&one));
    desk.append(&one);
    desk.append(&overlapping);
    let after = batch(run(1), 5, 12, &[said("z")]);
    desk.keep(&[after]);
    assert_eq!(desk.texts(&Want::default(), 10), ["a", "b", "z"]);
    assert_eq!(desk.history.reader().rooms().unwrap()[0].1, 3);
    let stored: RangeSet = [(Seq(1), Seq(2)), (Seq(5), Seq(5))].into_iter().collect();
    assert_eq!(desk.reopen().opened.streams[0].stored, stored);
}

#[test]
fn what_turns_up_after_all_is_admitted_late() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = desk(folder.path());
    let (first, second) = (batch(run(1), 1, 10, &[said("a")]), batch(run(1), 2, 20, &[said("b")]));
    desk.keep(std::slice::from_ref(&second));
    desk.history.order(Order::Settle(span(run(1), 1, 1)));
    desk.history.order(Order::Admit { span: span(run(1), 2, 2), late: false });
    desk.keep(std::slice::from_ref(&first));
    desk.history.order(Order::Admit { span: span(run(1), 1, 2), late: true });
    let mut desk = desk.reopen();
    assert_eq!(desk.opened.streams[0].settled, RangeSet::new());
    let numbers = desk.history.reader().admitted(1, 10, 1 << 20).unwrap();
    assert_eq!(numbers, [(1, second, false), (2, first, true)]);
    assert_eq!(*desk.history.admitted().borrow(), 2);
    // Numbers go on after a restart.
    desk.keep(&[batch(run(1), 3, 30, &[said("c")])]);
    desk.history.order(Order::Admit { span: span(run(1), 3, 3), late: false });
    let desk = desk.reopen();
    assert_eq!(desk.history.reader().admitted(3, 10, 1 << 20).unwrap()[0].0, 3);
}

#[test]
fn a_load_is_cut_at_its_bytes_and_says_how_far_it_goes() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = desk(folder.path());
    let batches = ten(&mut desk, run(1));
    let load = Load { to: run(3), span: span(run(1), 2, 10), bytes_max: 2 * batches[0].bytes().len() as u32 };
    desk.history.order(Order::Load(load));
    let Report::Loaded { batches: found, through, .. } = desk.next() else { panic!("not loaded") };
    assert_eq!((found.len(), found[0].batch.first(), through), (2, Seq(2), Seq(3)));
}

#[test]
fn what_is_too_old_goes_in_the_order_of_its_origin() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = desk(folder.path());
    let batches = ten(&mut desk, run(1));
    // Its first entry arrived late: it is not due, and what follows it waits.
    let waiting = [batch(run(2), 1, 60_000, &[said("w")]), batch(run(2), 2, 61_000, &[said("x")])];
    desk.history.order(Order::Append(Kept { batch: waiting[0].clone(), arrived_ms: NOW_MS + 9 * DAY_MS }));
    desk.append(&waiting[1]);
    desk.stored(vec![span(run(2), 1, 1), span(run(2), 2, 2)]);
    desk.history.order(Order::Retain { wall_ms: None });
    desk.history.order(Order::Retain { wall_ms: Some(NOW_MS + 30 * DAY_MS) });
    desk.history.order(Order::Retain { wall_ms: Some(NOW_MS + 30 * DAY_MS + 5 * 60_000 + 1) });
    let expired = desk.next();
    assert_eq!(expired, Report::Expired { run: run(1), floor: Seq(5), newest: batches[4].hlc() });
    let desk = desk.reopen();
    assert_eq!(desk.opened.horizon, batches[4].hlc());
    let origin = &desk.opened.streams[0];
    assert_eq!((origin.floor, &origin.stored), (Seq(5), &RangeSet::of(Seq(6), Seq(10))));
    assert_eq!(origin.admitted, origin.stored);
    assert_eq!(desk.opened.streams[1].stored, RangeSet::of(Seq(1), Seq(2)));
    let rooms = desk.history.reader().rooms().unwrap();
    assert_eq!(rooms, [(Room::lobby(), 7, batches[9].hlc())]);
    assert_eq!(desk.history.reader().admitted(1, 1, 1).unwrap()[0].0, 6);
    // What has gone does not come back.
    desk.append(&batches[2]);
    let mut desk = desk;
    assert!(matches!(desk.next(), Report::Expired { floor: Seq(5), .. }));
    assert_eq!(desk.reopen().opened.streams[0].stored, RangeSet::of(Seq(6), Seq(10)));
}

#[test]
fn the_oldest_goes_when_there_is_too_much() {
    let folder = tempfile::tempdir().unwrap();
    let record = (batch(run(1), 1, 0, &[said("message 1")]).bytes().len() + 8) as u64;
    let mut desk = desk_with(Options { retain_bytes: 4 * record + 10, ..options(folder.path()) });
    ten(&mut desk, run(1));
    desk.history.order(Order::Retain { wall_ms: None });
    assert!(matches!(desk.next(), Report::Expired { floor: Seq(6), .. }));
    assert_eq!(desk.texts(&Want::default(), 99).len(), 4);
    desk.history.order(Order::Expire(run(1)));
    assert!(matches!(desk.next(), Report::Expired { floor: Seq(10), .. }));
    assert_eq!((desk.texts(&Want::default(), 9).len(), desk.history.reader().rooms().unwrap().len()), (0, 0));
    desk.history.order(Order::Forget { run: run(1), horizon: Hlc::default() });
    assert_eq!(desk.reopen().opened.streams, []);
}

#[test]
fn retention_of_many_goes_on_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = desk(folder.path());
    let batches: Vec<Batch> = (1..=3_500).map(|seq| batch(run(1), seq, seq, &[said("m")])).collect();
    desk.keep(&batches);
    desk.history.order(Order::Admit { span: span(run(1), 1, 3_500), late: false });
    desk.history.order(Order::Retain { wall_ms: Some(NOW_MS + 31 * DAY_MS) });
    while !matches!(desk.next(), Report::Expired { floor: Seq(3_500), .. }) {}
    let desk = desk.reopen();
    assert_eq!(desk.opened.streams[0].stored, RangeSet::new());
    assert_eq!(desk.history.reader().admitted(0, 9, 99).unwrap(), []);
}

#[test]
fn of_entries_with_one_key_the_smallest_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = desk(folder.path());
    let key = Key([7; 16]);
    let keyed = |text: &str| Draft { key: Some(key), ..said(text) };
    let (late, early) = (batch(run(1), 1, 20, &[keyed("late")]), batch(run(2), 1, 10, &[keyed("early"), said("more")]));
    desk.keep(std::slice::from_ref(&late));
    assert_eq!(desk.texts(&Want::default(), 9), ["late"]);
    desk.keep(std::slice::from_ref(&early));
    assert_eq!(desk.texts(&Want::default(), 9), ["early", "more"]);
    let mut desk = desk.reopen();
    let reader = desk.history.reader();
    let id = EntryId { run: run(2), seq: Seq(1) };
    assert_eq!(reader.find(key).unwrap(), Some(Place { hlc: early.hlc(), id }));
    assert_eq!(reader.rooms().unwrap()[0].1, 2);
    let (twin, mut given) = (EntryId { run: run(1), ..id }, Cursor::new());
    let hides = |id, given: &Cursor| reader.hides(key, id, given).unwrap();
    assert!(!hides(id, &given) && !hides(twin, &given));
    // Who was given one of them is not given the other.
    given.add(run(1).hash(), Seq(1), Seq(1), late.hlc());
    assert!(hides(id, &given) && !hides(twin, &given));
    let mut given = Cursor::new();
    given.add(run(2).hash(), Seq(1), Seq(1), early.hlc());
    assert!(!hides(id, &given) && hides(twin, &given));
    // A twin stays a twin when the smaller one has expired, and the key goes with the last of them.
    desk.history.order(Order::Expire(run(2)));
    assert!(matches!(desk.next(), Report::Expired { .. }));
    assert_eq!(desk.texts(&Want::default(), 9), Vec::<String>::new());
    desk.history.order(Order::Expire(run(1)));
    assert!(matches!(desk.next(), Report::Expired { .. }));
    assert_eq!(desk.history.reader().find(key).unwrap(), None);
}

#[test]
fn pages_and_scans_agree_whatever_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = desk(folder.path());
    let there = |text: &str| Draft { room: Room::new("there").unwrap(), ..said(text) };
    // Two origins in the same millisecond: their entries mix in time.
    let batches = [
        batch(run(1), 1, 5, &[said("a1"), there("a2"), said("a3"), said("A4")]),
        batch(run(2), 1, 5, &[said("b1"), said("b2"), there("b3")]),
        batch(run(2), 4, 9, &[there("b4"), said("b5")]),
    ];
    desk.keep(&batches);
    let reader = desk.history.reader();
    let all = ["a1", "b1", "a2", "b2", "a3", "b3", "A4", "b4", "b5"];
    let room = Room::new("there").ok();
    for (want, expected) in [
        (Want::default(), &all[..]),
        (Want { room, ..Want::default() }, &["a2", "b3", "b4"]),
        (Want { grep: Some("a".into()), ..Want::default() }, &["a1", "a2", "a3", "A4"]),
        (Want { since_ms: Some(NOW_MS + 9), ..Want::default() }, &["b4", "b5"]),
        (Want { until_ms: Some(NOW_MS + 8), ..Want::default() }, &all[..7]),
    ] {
        for limit in 1..=10 {
            let (mut up, mut from) = (Vec::new(), None);
            loop {
                let (entries, next) = reader.scan(&want, from, limit, 1 << 20).unwrap();
                up.extend(texts(&entries));
                from = next;
                if from.is_none() {
                    break;
                }
            }
            assert_eq!(up, expected, "{want:?} {limit}");
            let (mut down, mut before) = (Vec::new(), None);
            loop {
                let entries = reader.newest(&want, before, limit).unwrap();
                let Some(first) = entries.first() else { break };
                before = Some(Place::of(first));
                down.splice(0..0, texts(&entries));
            }
            assert_eq!(down, expected, "{want:?} {limit}");
        }
    }
}

#[test]
fn what_a_cursor_does_not_cover_comes_in_the_order_of_time() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = desk(folder.path());
    let (one, two) = (ten(&mut desk, run(1)), ten(&mut desk, run(2)));
    let reader = desk.history.reader();
    let mut cursor = Cursor::new();
    let mut expected: Vec<Batch> = one.iter().chain(&two).cloned().collect();
    expected.sort_by_key(|batch| (batch.hlc(), batch.origin(), batch.first()));
    assert_eq!(reader.uncovered(&cursor, &Want::default(), 99, 1 << 20).unwrap(), (expected.clone(), false));
    let (some, more) = reader.uncovered(&cursor, &Want::default(), 7, 1 << 20).unwrap();
    assert!(some == expected[..7] && more);
    for batch in one[..4].iter().chain(&one[6..]) {
        cursor.add(run(1).hash(), batch.first(), batch.last(), batch.hlc());
    }
    expected.retain(|batch| batch.origin() == run(2) || one[4..6].contains(batch));
    assert_eq!(reader.uncovered(&cursor, &Want::default(), 99, 1 << 20).unwrap(), (expected, false));
    let elsewhere = Want { room: Room::new("elsewhere").ok(), ..Want::default() };
    assert_eq!(reader.uncovered(&cursor, &elsewhere, 99, 1 << 20).unwrap(), (vec![], false));
}

#[test]
fn durable_cursors_are_kept_until_they_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let desk = desk(folder.path());
    let keeper = desk.history.keeper();
    let log = desk.history.reader().log().unwrap();
    let durable = Durable { name: "mirror".into(), position: 7, log, acked_ms: NOW_MS, ..Durable::default() };
    keeper.save_durable(durable.clone()).blocking_recv().unwrap().unwrap();
    let desk = desk.reopen();
    assert_eq!(desk.history.reader().durable("mirror").unwrap(), Some(durable.clone()));
    assert_eq!(desk.history.reader().durables().unwrap(), [durable]);
    assert_eq!(desk.history.reader().log().unwrap(), log);
    desk.history.keeper().remove_durable("mirror").blocking_recv().unwrap().unwrap();
    assert_eq!(desk.history.reader().durable("mirror").unwrap(), None);
    let reader = desk.history.reader();
    desk.history.close();
    assert_eq!(reader.durable("mirror"), Err(HistoryError::Closed));
}

#[test]
fn everything_is_exported_in_chunks() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = desk(folder.path());
    let batches = ten(&mut desk, run(1));
    let (mut found, mut from) = (Vec::new(), None);
    loop {
        let chunk = desk.history.reader().export(from, 700).unwrap();
        let Some(last) = chunk.last().map(|kept| kept.batch.clone()) else { break };
        from = Some(Place { hlc: last.hlc(), id: EntryId { run: last.origin(), seq: last.first() } });
        found.extend(chunk.into_iter().map(|kept| kept.batch));
    }
    assert_eq!(found, batches);
}

/// Every file below `folder`, with its bytes.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &to) } else { _ = std::fs::copy(&path, &to).unwrap() }
    }
}

#[derive(Clone, Copy, Debug)]
enum Blow {
    FlipEarly,
    FlipMiddle,
    ZeroPage,
    Truncate,
    Delete,
}

impl Blow {
    const ALL: [Blow; 5] = [Blow::FlipEarly, Blow::FlipMiddle, Blow::ZeroPage, Blow::Truncate, Blow::Delete];

    fn strike(self, path: &Path) {
        let mut bytes = std::fs::read(path).unwrap();
        // A journal is made longer than what is in it.
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let middle = used / 2;
        match self {
            Blow::FlipEarly => bytes.iter_mut().take(used).skip(10).take(1).for_each(|byte| *byte ^= 16),
            Blow::FlipMiddle => bytes.iter_mut().skip(middle).take(1).for_each(|byte| *byte ^= 16),
            Blow::ZeroPage => {
                bytes.iter_mut().take(used).skip(middle / 4096 * 4096).take(4096).for_each(|byte| *byte = 0)
            }
            Blow::Truncate => bytes.truncate(middle),
            Blow::Delete => return std::fs::remove_file(path).unwrap(),
        }
        std::fs::write(path, bytes).unwrap();
    }
}

#[test]
fn damage_of_any_kind_in_any_file_heals_unattended() {
    let origin = tempfile::tempdir().unwrap();
    let mut desk = desk(origin.path());
    let mut batches: Vec<Batch> = (1..=20).map(|seq| batch(run(1), seq, seq, &[said(&"small ".repeat(50))])).collect();
    batches.extend((21..=60).map(|seq| batch(run(1), seq, seq, &[said(&format!("{seq} ").repeat(5_000))])));
    // Some batches after the last table was made are in the journal only.
    batches.extend((61..=80).map(|seq| batch(run(2), seq, seq, &[said("last")])));
    for portion in batches.chunks(7) {
        desk.keep(portion);
        for batch in portion {
            let span = Span { run: batch.origin(), first: batch.first(), last: batch.last() };
            desk.history.order(Order::Admit { span, late: false });
        }
    }
    desk.history.close();
    let expected: Vec<Batch> = batches.clone();
    let names: Vec<PathBuf> = files(&origin.path().join("history")).into_iter().map(|(path, _)| path).collect();
    assert!(names.len() > 8, "{names:?}");
    let (mut noticed, mut found) = (0, 0);
    for name in &names {
        for blow in Blow::ALL {
            let folder = tempfile::tempdir().unwrap();
            copy(origin.path(), folder.path());
            let file = folder.path().join(name.strip_prefix(origin.path()).unwrap());
            blow.strike(&file);
            let (moved, came_back) = heal(folder.path(), &expected);
            noticed += usize::from(moved);
            found += came_back;
        }
    }
    assert!(noticed > names.len() && found > 10 * names.len(), "{noticed} noticed, {found} found");
}

/// Does what a core with peers would do until the log is whole: takes what is found, then lets peers send everything.
/// Answers whether the log was moved aside, and how many batches came back from there.
fn heal(folder: &Path, expected: &[Batch]) -> (bool, usize) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut found = 0;
    let mut peers_answer = false;
    loop {
        let mut desk = desk(folder);
        let whole = |desk: &Desk| {
            let there = desk.history.reader().export(None, usize::MAX).unwrap_or_default();
            there.len() == expected.len() && there.iter().zip(expected).all(|(kept, batch)| kept.batch == *batch)
        };
        if peers_answer {
            expected.iter().for_each(|batch| desk.append(batch));
        }
        let mut done = false;
        while !(done && (whole(&desk) || !peers_answer)) {
            match desk.reports.try_recv() {
                Ok(Report::Opened(_)) if peers_answer => expected.iter().for_each(|batch| desk.append(batch)),
                Ok(Report::Found(batches)) => {
                    found += batches.len();
                    batches.into_iter().for_each(|kept| desk.history.order(Order::Append(kept)));
                }
                Ok(_) => {}
                Err(_) => std::thread::yield_now(),
            }
            assert!(Instant::now() < deadline, "it does not heal");
            done = desk.history.is_checked() && all_looked_through(folder) && desk.reports.is_empty();
        }
        desk.history.close();
        if std::mem::replace(&mut peers_answer, true) {
            break;
        }
    }
    let store = Store::open(&folder.join("history"), 0).unwrap();
    scrub::check(&store, &KeyFilter::new()).unwrap();
    (folder.join("history.damaged-1").exists(), found)
}

/// Whether nothing more is to be expected from what was moved aside.
fn all_looked_through(folder: &Path) -> bool {
    (1..9)
        .map(|number| folder.join(format!("history.damaged-{number}")))
        .all(|aside| !aside.exists() || std::fs::read(aside.join("imported")).is_ok_and(|mark| mark == b"done"))
}

#[test]
fn a_newer_version_is_refused_and_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = desk(folder.path());
    ten(&mut desk, run(1));
    let history = desk.folder.clone();
    desk.history.close();
    let line = "hubless history 2";
    let sum = &blake3::hash(line.as_bytes()).to_hex()[..16];
    std::fs::write(history.join("format"), format!("{line} {sum}\n")).unwrap();
    let before = files(folder.path());
    let (out, _reports) = unbounded_channel();
    let refused = History::open(options(folder.path()), Metrics::new(), out).unwrap_err();
    assert!(matches!(refused, StartError::NewerHistory { found: 2, known: 1, .. }), "{refused}");
    assert!(files(folder.path()) == before);
}

#[test]
fn a_log_whose_making_was_cut_short_is_made_anew() {
    for missing in 0.. {
        let folder = tempfile::tempdir().unwrap();
        let made = desk(folder.path());
        let history = made.folder.clone();
        made.history.close();
        let files = files(&history);
        assert!(files.len() >= 5, "{files:?}");
        let Some((path, _)) = files.get(missing) else { break };
        // What the power left; the mark goes last.
        std::fs::remove_file(path).unwrap();
        std::fs::write(history.join("unfinished"), "").unwrap();
        let mut again = desk(folder.path());
        ten(&mut again, run(1));
        again.history.close();
        let again = desk(folder.path());
        assert_eq!(again.opened.streams.len(), 1);
        again.history.close();
        let beside: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(beside, ["history"], "nothing was moved aside");
    }
}
