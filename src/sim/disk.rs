//! The disk of a host: what is synced survives, what is not may be lost, and of that the newest first.
//!
//! It carries out the orders of a core as the history of a node does, one after the other, and refuses what no core may
//! order: something twice, something that was let go, a local number before its time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Dice;
use super::check::{Broken, Held};
use crate::id::{EntryId, Key, Run, Seq};
use crate::replica::batch::Batch;
use crate::replica::clock::Hlc;
use crate::replica::event::{Kept, Load, OnDisk, Opened, Order, Report, Span};
use crate::replica::keys::{Namesakes, Place};
use crate::replica::ranges::RangeSet;

/// How long and how much a log keeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retention {
    pub age_ms: u64,
    pub bytes: u64,
}

/// What stands on a disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    streams: BTreeMap<Run, Row>,
    horizon: Hlc,
    bytes: u64,
    by_age: BTreeSet<(Hlc, Run, Seq)>,
    keys: BTreeMap<Key, Namesakes>,
    /// A planted bug: every entry of a key is shown.
    shows_twins: bool,
    /// What this log has let go; not part of a log, but of what is known about it.
    gone: BTreeMap<Run, RangeSet>,
}

#[derive(Clone, Debug, Default)]
struct Row {
    floor: Seq,
    stored: RangeSet,
    admitted: RangeSet,
    settled: RangeSet,
    newest: Hlc,
    batches: BTreeMap<Seq, Kept>,
}

impl Rows {
    /// Carries out an order; answers what there is to report of it.
    fn apply(&mut self, order: &Order, retention: Retention) -> Result<Vec<Report>, Broken> {
        match order {
            Order::Append(kept) => self.append(kept),
            Order::Admit { span, late } => self.admit(*span, *late),
            Order::Settle(Span { run, first, last }) => {
                let row = self.streams.entry(*run).or_default();
                let holes = RangeSet::of(*first, *last).without(&row.stored);
                row.settled.union(&holes);
                Ok(Vec::new())
            }
            Order::Retain { wall_ms } => Ok(self.retain(*wall_ms, retention)),
            Order::Expire(run) => {
                let all = self.streams.get(run).and_then(|row| row.batches.last_key_value());
                let last = all.map(|(_, kept)| kept.batch.last());
                Ok(last.and_then(|last| self.expire(*run, last)).into_iter().collect())
            }
            Order::Forget { run, horizon } => {
                if self.streams.get(run).is_some_and(|row| !row.batches.is_empty()) {
                    return Err(format!("{run:?} is forgotten though something of it is there"));
                }
                self.streams.remove(run);
                self.horizon = self.horizon.max(*horizon);
                Ok(Vec::new())
            }
            Order::Load(_) => Ok(Vec::new()),
        }
    }

    fn append(&mut self, kept: &Kept) -> Result<Vec<Report>, Broken> {
        let batch = &kept.batch;
        let span = Span { run: batch.origin(), first: batch.first(), last: batch.last() };
        let row = self.streams.entry(span.run).or_default();
        let there = row.batches.get(&span.first).is_some_and(|there| there.batch == *batch);
        // What is below the floor by now was under way when it was let go.
        if !there && span.last > row.floor {
            if row.stored.touches(span.first, span.last) {
                return Err(format!("{batch:?} is appended over {:?}", row.stored));
            }
            row.batches.insert(span.first, kept.clone());
            row.stored.insert(span.first, span.last);
            row.settled.remove(span.first, span.last);
            row.newest = row.newest.max(batch.hlc_last());
            self.bytes += batch.bytes().len() as u64;
            self.by_age.insert((batch.hlc(), span.run, span.first));
            for (key, place) in keyed(batch) {
                let known = self.keys.get_mut(&key).map(|namesakes| namesakes.insert(place));
                if known.is_none() {
                    self.keys.insert(key, Namesakes::first(place));
                }
            }
        }
        Ok(vec![Report::Stored(vec![span])])
    }

    fn admit(&mut self, Span { run, first, last }: Span, late: bool) -> Result<Vec<Report>, Broken> {
        let row = self.streams.entry(run).or_default();
        let mut known = row.stored.clone();
        known.insert(Seq(1), row.floor);
        if !known.covers(first, last) {
            return Err(format!("{first:?} to {last:?} of {run:?} are admitted, stored are {:?}", row.stored));
        }
        // What was let go meanwhile needs no number.
        let first = first.max(row.floor.next());
        if first > last {
            return Ok(Vec::new());
        }
        if row.admitted.touches(first, last) {
            return Err(format!("{first:?} to {last:?} of {run:?} are admitted twice: {:?}", row.admitted));
        }
        if !late && first < row.admitted.top() {
            return Err(format!("{first:?} of {run:?} is admitted after {:?}", row.admitted.top()));
        }
        known.union(&row.settled);
        let holes = known.missing(Seq(1), first);
        if !holes.is_empty() {
            return Err(format!("{first:?} of {run:?} is admitted beyond {holes:?}"));
        }
        row.admitted.insert(first, last);
        Ok(Vec::new())
    }

    fn retain(&mut self, wall_ms: Option<u64>, retention: Retention) -> Vec<Report> {
        let mut floors: BTreeMap<Run, Seq> = BTreeMap::new();
        let mut bytes = self.bytes;
        for &(_, run, first) in &self.by_age {
            let Some(row) = self.streams.get(&run) else { continue };
            let from = floors.get(&run).map_or(Seq(0), |floor| floor.next());
            let Some((_, kept)) = row.batches.range(from..).next().filter(|(lowest, _)| **lowest == first) else {
                continue;
            };
            let age_from = kept.arrived_ms.max(kept.batch.hlc().wall_ms());
            let old = wall_ms.is_some_and(|wall| age_from.saturating_add(retention.age_ms) < wall);
            if old || bytes > retention.bytes {
                bytes -= kept.batch.bytes().len() as u64;
                floors.insert(run, kept.batch.last());
            }
        }
        floors.into_iter().filter_map(|(run, floor)| self.expire(run, floor)).collect()
    }

    fn expire(&mut self, run: Run, floor: Seq) -> Option<Report> {
        let row = self.streams.get_mut(&run)?;
        let rest = row.batches.split_off(&floor.next());
        let mut newest = Hlc::default();
        for (first, kept) in std::mem::replace(&mut row.batches, rest) {
            let batch = kept.batch;
            newest = newest.max(batch.hlc_last());
            self.bytes -= batch.bytes().len() as u64;
            self.by_age.remove(&(batch.hlc(), run, first));
            for (key, place) in keyed(&batch) {
                let Some(namesakes) = self.keys.get_mut(&key) else { continue };
                namesakes.expire(place);
                if namesakes.living == 0 {
                    self.keys.remove(&key);
                }
            }
            self.gone.entry(run).or_default().insert(first, batch.last());
        }
        row.floor = row.floor.max(floor);
        for set in [&mut row.stored, &mut row.admitted, &mut row.settled] {
            set.remove(Seq(0), floor);
        }
        self.horizon = self.horizon.max(newest);
        Some(Report::Expired { run, floor, newest })
    }

    pub fn opened(&self) -> Opened {
        let on_disk = |(run, row): (&Run, &Row)| OnDisk {
            run: *run,
            floor: row.floor,
            stored: row.stored.clone(),
            admitted: row.admitted.clone(),
            settled: row.settled.clone(),
            newest: row.newest,
        };
        Opened { streams: self.streams.iter().map(on_disk).collect(), horizon: self.horizon }
    }

    fn load(&self, load: Load) -> (Vec<Kept>, Seq) {
        let Load { span: Span { run, first, last }, bytes_max, .. } = load;
        let mut batches = Vec::new();
        let (mut through, mut bytes) = (last, 0);
        let all = self.streams.get(&run).into_iter().flat_map(|row| row.batches.range(..=last));
        for (_, kept) in all.filter(|(_, kept)| kept.batch.last() >= first) {
            if bytes >= bytes_max as usize {
                through = Seq(kept.batch.first().0 - 1);
                break;
            }
            bytes += kept.batch.bytes().len();
            batches.push(kept.clone());
        }
        (batches, through)
    }

    /// What is there of an origin.
    pub fn stored(&self, run: Run) -> RangeSet {
        self.streams.get(&run).map(|row| row.stored.clone()).unwrap_or_default()
    }

    /// What is there of an origin, or was let go by this log.
    pub fn had(&self, run: Run) -> RangeSet {
        let mut had = self.stored(run);
        if let Some(gone) = self.gone.get(&run) {
            had.union(gone);
        }
        had
    }

    /// By origin: what is there, what of it has local numbers, up to where everything was let go.
    pub fn list(&self) -> impl Iterator<Item = (Run, &RangeSet, &RangeSet, Seq)> {
        self.streams.iter().map(|(run, row)| (*run, &row.stored, &row.admitted, row.floor))
    }

    /// Every batch, by origin and seq.
    pub fn batches(&self) -> impl Iterator<Item = &Kept> {
        self.streams.values().flat_map(|row| row.batches.values())
    }

    /// The entry that is shown of each key.
    pub fn shown(&self) -> Result<BTreeMap<Key, EntryId>, Broken> {
        let mut shown = BTreeMap::new();
        for (key, Place { id, .. }) in self.batches().flat_map(|kept| keyed(&kept.batch)) {
            if !self.shows_twins && !self.keys.get(&key).is_some_and(|namesakes| namesakes.shows(id)) {
                continue;
            }
            if let Some(other) = shown.insert(key, id) {
                return Err(format!("{id:?} and {other:?} are shown, and are one message"));
            }
        }
        Ok(shown)
    }

    /// Whether an entry was let go by retention.
    pub fn has_let_go(&self, id: EntryId) -> bool {
        self.streams.get(&id.run).is_some_and(|row| id.seq <= row.floor)
    }

    /// How many keys have more than one entry.
    pub fn twins(&self) -> u64 {
        self.keys.values().filter(|namesakes| namesakes.living > 1).count() as u64
    }

    /// A part of it, as it may be left when much of it is damaged, and the rest.
    fn damaged(&self, dice: &mut Dice) -> (Rows, Vec<Kept>) {
        let mut left = Rows::default();
        let mut rest = Vec::new();
        let keep = [0, 500, 900][dice.below(3) as usize];
        let everything = Retention { age_ms: u64::MAX, bytes: u64::MAX };
        for kept in self.batches() {
            if dice.chance(keep) {
                // It was there, so it is no batch that a disk refuses.
                let _ = left.apply(&Order::Append(kept.clone()), everything);
            } else {
                rest.push(kept.clone());
            }
        }
        rest.sort_by_key(|kept| kept.batch.hlc());
        (left, rest)
    }
}

/// A disk, and the thread before it.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub synced: Rows,
    /// `synced` with the orders of `tail` carried out.
    ordered: Rows,
    tail: VecDeque<Order>,
    /// How many orders of `tail` the sync under way covers.
    syncing: usize,
    pub retention: Retention,
    /// How long a sync takes.
    pub sync_ms: (u64, u64),
    pub open: bool,
    /// Grows with each opening: what was under way in an earlier one is void.
    pub session: u64,
    /// What the core of this life was told to be gone.
    told_gone: BTreeMap<Run, RangeSet>,
    /// What was ever on it, by origin.
    pub ever: BTreeMap<Run, RangeSet>,
    /// What its node reported as durable to whoever published it, and the disk has not lost by a fault of its own.
    pub durable: BTreeMap<Run, RangeSet>,
    /// Earlier states of it.
    earlier: Vec<Rows>,
}

impl Disk {
    pub fn new(retention: Retention, sync_ms: (u64, u64)) -> Disk {
        Disk {
            synced: Rows::default(),
            ordered: Rows::default(),
            tail: VecDeque::new(),
            syncing: 0,
            retention,
            sync_ms,
            open: true,
            session: 0,
            told_gone: BTreeMap::new(),
            ever: BTreeMap::new(),
            durable: BTreeMap::new(),
            earlier: Vec::new(),
        }
    }

    /// Plants the bug that twins are shown.
    #[cfg(feature = "mutants")]
    pub fn show_twins(&mut self) {
        self.synced.shows_twins = true;
    }

    /// Takes an order; true if a sync has to begin for it.
    pub fn order(&mut self, order: Order) -> Result<bool, Broken> {
        if !self.open {
            return Ok(false);
        }
        if let Order::Append(Kept { batch, .. }) = &order
            && self.told_gone.get(&batch.origin()).is_some_and(|gone| gone.touches(batch.first(), batch.last()))
        {
            return Err(format!("{batch:?} was let go and is appended again"));
        }
        self.ordered.apply(&order, self.retention)?;
        self.tail.push_back(order);
        if self.syncing > 0 {
            return Ok(false);
        }
        self.syncing = self.tail.len();
        Ok(true)
    }

    /// The sync under way is done: what there is to report, and whether another begins.
    pub fn synced(&mut self) -> (Vec<Report>, bool) {
        let mut spans = Vec::new();
        let mut reports = Vec::new();
        for order in self.tail.drain(..self.syncing.min(self.tail.len())) {
            for report in self.synced.apply(&order, self.retention).unwrap_or_default() {
                match report {
                    Report::Stored(stored) => spans.extend(stored),
                    Report::Expired { run, floor, .. } => {
                        self.told_gone.entry(run).or_default().insert(Seq(1), floor);
                        // What was stored before is reported before.
                        reports.extend((!spans.is_empty()).then(|| Report::Stored(std::mem::take(&mut spans))));
                        reports.push(report);
                    }
                    _ => reports.push(report),
                }
            }
        }
        for Span { run, first, last } in &spans {
            self.ever.entry(*run).or_default().insert(*first, *last);
        }
        for report in &reports {
            if let Report::Stored(spans) = report {
                for Span { run, first, last } in spans {
                    self.ever.entry(*run).or_default().insert(*first, *last);
                }
            }
        }
        reports.extend((!spans.is_empty()).then_some(Report::Stored(spans)));
        self.syncing = self.tail.len();
        (reports, self.syncing > 0)
    }

    pub fn load(&self, load: Load) -> Report {
        let (batches, through) = self.synced.load(load);
        Report::Loaded { load, batches, through }
    }

    /// The power fails, or the process dies: what is not synced is there up to some order, or not at all. What was
    /// reported as durable has to be there. Answers how many orders were lost.
    pub fn crash(&mut self, dice: &mut Dice) -> Result<u64, Broken> {
        let kept = dice.below(self.tail.len() as u64 + 1) as usize;
        let lost = (self.tail.len() - kept) as u64;
        for order in self.tail.drain(..).take(kept) {
            // Refused before if it was to be refused.
            let _ = self.synced.apply(&order, self.retention);
        }
        self.close();
        self.check_durable()?;
        Ok(lost)
    }

    /// Entries that were durable survive.
    pub fn check_durable(&self) -> Held {
        for (run, durable) in &self.durable {
            let lost = durable.without(&self.synced.had(*run));
            if !lost.is_empty() {
                return Err(format!("{lost:?} of {run:?} were durable and are not there any more"));
            }
        }
        Ok(())
    }

    fn close(&mut self) {
        self.tail.clear();
        self.syncing = 0;
        self.open = false;
        self.session += 1;
    }

    /// Opens it, at a start or again: what is there.
    pub fn reopen(&mut self) -> Opened {
        self.close();
        self.open = true;
        self.ordered = self.synced.clone();
        for (run, stored, ..) in self.synced.list() {
            self.ever.entry(run).or_default().union(stored);
        }
        self.told_gone = self.synced.gone.clone();
        for (run, _, _, floor) in self.synced.list() {
            self.told_gone.entry(run).or_default().insert(Seq(1), floor);
        }
        self.synced.opened()
    }

    /// Remembers what is there, to come back to it.
    pub fn snapshot(&mut self) {
        self.earlier.push(self.synced.clone());
    }

    /// Goes back to an earlier state, or to none at all.
    pub fn go_back(&mut self, dice: &mut Dice, lost: bool) {
        let at = dice.below(self.earlier.len() as u64) as usize;
        let earlier = self.earlier.get(at).filter(|_| !lost).cloned().unwrap_or_default();
        self.tampered(earlier);
    }

    /// Another disk with the same on it.
    pub fn copy(&self) -> Disk {
        let mut copy = Disk::new(self.retention, self.sync_ms);
        copy.synced = self.synced.clone();
        copy
    }

    /// Whether an entry was ever on it.
    pub fn had_ever(&self, run: Run, seq: Seq) -> bool {
        self.ever.get(&run).is_some_and(|ever| ever.contains(seq))
    }

    /// Fails to write: what was not synced is there in part.
    pub fn fail(&mut self, dice: &mut Dice) -> Held {
        self.crash(dice).map(drop)
    }

    /// Is found damaged and set up anew, empty or with a part of what was there; answers the rest, oldest first.
    pub fn quarantine(&mut self, dice: &mut Dice) -> Vec<Kept> {
        let (left, rest) = self.synced.damaged(dice);
        self.close();
        self.tampered(left);
        rest
    }

    fn tampered(&mut self, rows: Rows) {
        self.synced = rows;
        self.durable.clear();
    }
}

/// The entries of a batch that have a key.
fn keyed(batch: &Batch) -> impl Iterator<Item = (Key, Place)> + use<> {
    let (hlc, first) = (batch.hlc(), batch.first());
    let place = move |id: EntryId| Place { hlc: hlc.plus(id.seq.0 - first.0), id };
    batch.keys().unwrap_or_default().into_iter().map(move |(id, key)| (key, place(id)))
}
