//! The history on real folders: what goes in comes out, whatever happens to the files.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::id::{Epoch, NodeId, Room};
use crate::replica::batch::{Author, Batch, Draft, Entry};
use crate::replica::event::{Kept, Span};
use crate::replica::ranges::RangeSet;

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

fn run(byte: u8) -> Run {
    Run { node: NodeId([byte; 32]), epoch: Epoch(u64::from(byte)) }
}

fn options(folder: &Path) -> Options {
    Options {
        folder: folder.join("history"),
        fsync: Fsync::Group,
        retain_days: 30,
        retain_bytes: 1 << 30,
        run: run(99),
    }
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
    Author { origin, name: "ada", first: Seq(first), hlc: Hlc::at(NOW_MS + ms), previous: [0; 32] }.encode(drafts)
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
    assert_eq!(desk.history.before().run, Some(run(99)));
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
