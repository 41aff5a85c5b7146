//! What each order means in rows: the state of the log in memory and the changes that wait for the next commit.
//!
//! Owns the origins (one [`OriginRow`] each, the same as on disk after every commit) and the totals. An order is applied to
//! both and to the changes; [`Log::commit`] makes them one atomic write and answers what to report. After an error nothing
//! here is worth anything: the log is opened anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use super::filter::KeyFilter;
use super::rows::{self, Durable, Extent, KeyRow, Numbered, OriginRow, RoomRow, SiteRow, Stamp, Totals, table};
use super::store::{Changes, Fault, Store, View, bad, read_extent, read_kept, record, stamp_of};
use crate::id::{Key, Room, Run, Seq};
use crate::replica::batch::Batch;
use crate::replica::clock::Hlc;
use crate::replica::control::{BRIDGES_MAX, Control, Progress};
use crate::replica::event::{Kept, OnDisk, Opened, Report, Span};
use crate::replica::keys::{Namesakes, Place, Standing};

/// How many batches one commit lets go of at most.
const EXPIRED_BATCHES_MAX: usize = 1000;
/// How many records one slice of retention looks at.
const LOOKED_AT_MAX: usize = 4000;
/// Batches without a number that are remembered beyond a commit.
const UNNUMBERED_MAX: usize = 4096;

/// What a disk has to take before it counts as working again: a small write may find room where the next one does not.
const PROBE_BYTES: usize = 1024 * 1024;

/// The log as the writer sees it.
pub(super) struct Log {
    pub store: Arc<Store>,
    origins: BTreeMap<Run, OriginRow>,
    totals: Totals,
    /// Bytes of all records.
    bytes: u64,
    /// No batch is due by age before this, in milliseconds since 1970; none if it is not known.
    next_due_ms: Option<u64>,
    /// Nothing is before these, so that traces of what has gone are not read again and again.
    oldest_key: Vec<u8>,
    oldest_number: u64,
    /// Batches that were appended and have no number yet: they get it most often at once, without being looked up. Others
    /// are on disk only.
    unnumbered: BTreeMap<(Run, Seq), Extent>,
    keys: Arc<KeyFilter>,
    pending: Pending,
}

/// What the next commit writes and what is reported then.
#[derive(Default)]
struct Pending {
    changes: Changes,
    bytes: usize,
    /// Rows that it changes, as they will be.
    keys: HashMap<Key, Option<KeyRow>>,
    rooms: HashMap<Room, RoomRow>,
    progress: HashMap<Arc<str>, Progress>,
    site: Option<SiteRow>,
    touched: BTreeSet<Run>,
    totals: bool,
    sync: bool,
    stored: Vec<Span>,
    expired: BTreeMap<Run, Hlc>,
}

/// What a slice of retention has come to.
pub(super) enum Walked {
    /// There is more: go on from here.
    On(Vec<u8>),
    /// That was all.
    Done,
}

/// When a batch has to go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    /// Now, if the clock is to be believed.
    pub wall_ms: Option<u64>,
    /// How old a batch may become.
    pub retain_ms: u64,
    /// How much all may take.
    pub retain_bytes: u64,
}

impl Log {
    /// Reads the state of the log that `store` opened, and notes that `run` writes it from now on.
    pub fn load(store: Arc<Store>, keys: Arc<KeyFilter>) -> Result<Log, Fault> {
        let mut log = Log {
            store,
            origins: BTreeMap::new(),
            totals: Totals::default(),
            bytes: 0,
            next_due_ms: None,
            oldest_key: vec![table::BATCH],
            oldest_number: 0,
            unnumbered: BTreeMap::new(),
            keys,
            pending: Pending::default(),
        };
        let store = log.store.clone();
        let view = store.view();
        if let Some(value) = view.get(&rows::named_key(table::META, Totals::NAME))? {
            log.totals = Totals::read(&value).ok_or_else(|| bad("totals"))?;
        }
        for row in view.rows(rows::below(&[table::ORIGIN])) {
            let (key, value) = row?;
            let origin = OriginRow::read(&key, &value).ok_or_else(|| bad("origin"))?;
            log.bytes += origin.bytes;
            log.origins.insert(origin.disk.run, origin);
        }
        if let Some(row) = view.rows(rows::below(&[table::ADMITTED])).next_back() {
            let (key, value) = row?;
            let (number, _) = Numbered::read(&key, &value).ok_or_else(|| bad("number"))?;
            log.totals.admitted = number.max(log.totals.admitted);
        }
        Ok(log)
    }

    /// What the core is told of it.
    pub fn opened(&self) -> Opened {
        Opened {
            streams: self.origins.values().map(|origin| origin.disk.clone()).collect(),
            horizon: self.totals.horizon,
        }
    }

    /// Finds out whether the disk takes what is written.
    pub fn probe(&mut self) -> Result<(), Fault> {
        let key = rows::named_key(table::META, b"probe");
        self.store.commit(vec![(key.clone(), Some(vec![0; PROBE_BYTES]))], true)?;
        self.store.commit(vec![(key, None)], true)
    }

    /// The highest local number given.
    pub fn admitted(&self) -> u64 {
        self.totals.admitted
    }

    /// Whether there is anything to commit or to report.
    pub fn is_pending(&self) -> bool {
        let Pending { changes, touched, stored, expired, totals, .. } = &self.pending;
        !changes.is_empty() || !touched.is_empty() || !stored.is_empty() || !expired.is_empty() || *totals
    }

    /// How much waits for the commit.
    pub fn pending_bytes(&self) -> usize {
        self.pending.bytes
    }

    /// Keeps a batch. Answers whether it is one that contradicts what is there: it is dropped, and never reported.
    pub fn append(&mut self, kept: &Kept) -> Result<bool, Fault> {
        let batch = &kept.batch;
        let stamp = stamp_of(batch);
        let (run, first, last) = (stamp.run, batch.first(), batch.last());
        let floor = self.floor(run);
        if first <= floor {
            // The core is behind: it is told again what has gone.
            self.pending.expired.entry(run).or_default();
            return Ok(false);
        }
        let span = Span { run, first, last };
        if self.origins.get(&run).is_some_and(|origin| origin.disk.stored.touches(first, last)) {
            let known = self.extent(run, first)?;
            let same = known.is_some_and(|known| known.stamp == stamp && known.count == batch.count());
            if same {
                self.pending.sync = true;
                self.pending.stored.push(span);
            }
            return Ok(!same);
        }
        let record = record(kept);
        let extent = Extent { stamp, count: batch.count(), bytes: record.len() as u32 };
        let OriginRow { disk, bytes } = origin_of(&mut self.origins, run);
        disk.stored.insert(first, last);
        disk.settled.remove(first, last);
        disk.newest = disk.newest.max(batch.hlc_last());
        *bytes += record.len() as u64;
        self.bytes += record.len() as u64;
        self.next_due_ms = self.next_due_ms.map(|due| due.min(age_from(kept)));
        self.pending.bytes += record.len();
        let key = stamp.batch_key();
        if key < self.oldest_key {
            self.oldest_key.clone_from(&key);
        }
        self.put(key, record);
        self.put(stamp.seq_key(), extent.value());
        self.unnumbered.insert((run, first), extent);
        self.pending.touched.insert(run);
        self.index(batch)?;
        self.pending.stored.push(span);
        self.pending.sync = true;
        Ok(false)
    }

    /// Rooms and keys of a new batch.
    fn index(&mut self, batch: &Batch) -> Result<(), Fault> {
        let stamp = stamp_of(batch);
        let mut rooms: BTreeMap<Room, (u32, u64, Hlc)> = BTreeMap::new();
        let mut entries = batch.entries();
        while let Some(Ok(entry)) = entries.glance() {
            let place = || Place { hlc: entry.hlc(), id: entry.id() };
            let shown = match entry.key {
                None => true,
                Some(key) => self.name(key, place(), entry.room)?,
            };
            if entry.room.is_control()
                && let Some(control) = Control::parse(&entry.take_payload())
            {
                self.control(place(), control)?;
            }
            let counted = match rooms.get_mut(entry.room) {
                Some(counted) => counted,
                None => rooms.entry(entry.room.clone()).or_default(),
            };
            // Time grows along a batch.
            *counted = (counted.0 + 1, counted.1 + u64::from(shown), entry.hlc());
        }
        for (room, (all, messages, newest)) in rooms {
            self.put(stamp.room_key(&room), all.to_be_bytes().to_vec());
            let row = self.room(&room)?;
            row.messages += messages;
            row.newest = row.newest.max(newest);
        }
        Ok(())
    }

    /// Folds what a control entry says into the record that outlives it.
    fn control(&mut self, place: Place, control: Control) -> Result<(), Fault> {
        let store = self.store.clone();
        let view = store.view();
        match control {
            Control::Confirmed { ref bridge, .. } | Control::Begin { ref bridge, .. } => {
                let known = self.pending.progress.get(bridge).cloned();
                let mut progress = match known.map_or_else(|| view.progress(bridge), |known| Ok(Some(known)))? {
                    Some(progress) => progress,
                    None if view.bridges()? + self.pending.progress.len() < BRIDGES_MAX => Progress::default(),
                    None => return Ok(()),
                };
                let bridge = bridge.clone();
                if progress.take(place, control) {
                    self.pending.progress.insert(bridge, progress);
                }
            }
            Control::Site(word) => {
                let known = self.pending.site.clone();
                let known = known.map_or_else(|| view.site(), |known| Ok(Some(known)))?;
                if known.is_none_or(|known| place < known.place) {
                    self.pending.site = Some(SiteRow { place, word });
                }
            }
            Control::Role { .. } => {}
        }
        Ok(())
    }

    /// Takes an entry with a key; answers whether it is shown.
    fn name(&mut self, key: Key, place: Place, room: &Room) -> Result<bool, Fault> {
        let known = self.key(key)?;
        self.keys.add(key);
        let Some(mut row) = known else {
            self.pending.keys.insert(key, Some(KeyRow { namesakes: Namesakes::first(place), room: room.clone() }));
            return Ok(true);
        };
        let standing = row.namesakes.insert(place);
        if standing == Standing::ShownInstead {
            let before = row.room.clone();
            let counted = self.room(&before)?;
            counted.messages = counted.messages.saturating_sub(1);
        }
        if standing != Standing::Twin {
            row.room = room.clone();
        }
        self.pending.keys.insert(key, Some(row));
        Ok(standing != Standing::Twin)
    }

    /// Gives local numbers to the batches of `span` that have none.
    pub fn admit(&mut self, span: Span, late: bool) -> Result<(), Fault> {
        for extent in self.extents(span)? {
            let origin = &mut origin_of(&mut self.origins, span.run).disk;
            if origin.admitted.covers(extent.stamp.first, extent.last()) {
                continue;
            }
            origin.admitted.insert(extent.stamp.first, extent.last());
            self.unnumbered.remove(&(span.run, extent.stamp.first));
            self.totals.admitted += 1;
            self.pending.touched.insert(span.run);
            let numbered = Numbered { stamp: extent.stamp, count: extent.count, late };
            self.put(rows::number_key(self.totals.admitted), numbered.value());
        }
        Ok(())
    }

    /// Remembers what is missing for good.
    pub fn settle(&mut self, span: Span) {
        let origin = &mut origin_of(&mut self.origins, span.run).disk;
        let first = span.first.max(origin.floor.next());
        origin.settled.insert(first, span.last);
        origin.settled = origin.settled.without(&origin.stored);
        self.pending.touched.insert(span.run);
    }

    /// Drops the record of an origin of which nothing is left.
    pub fn forget(&mut self, run: Run, horizon: Hlc) {
        self.totals.horizon = self.totals.horizon.max(horizon);
        self.pending.totals = true;
        if self.origins.get(&run).is_some_and(|origin| origin.disk.stored.is_empty()) {
            self.origins.remove(&run);
            self.pending.touched.insert(run);
        }
    }

    pub fn save_durable(&mut self, durable: &Durable) {
        self.put(rows::named_key(table::DURABLE, durable.name.as_bytes()), durable.value());
        self.pending.sync = true;
    }

    pub fn remove_durable(&mut self, name: &str) {
        self.pending.changes.push((rows::named_key(table::DURABLE, name.as_bytes()), None));
        self.pending.sync = true;
    }

    /// The newest entry stored of `run`.
    pub fn stored_top(&self, run: Run) -> Seq {
        self.origins.get(&run).map_or(Seq(0), |origin| origin.disk.stored.top())
    }

    /// Everything of `run` up to here was let go.
    fn floor(&self, run: Run) -> Seq {
        self.origins.get(&run).map_or(Seq(0), |origin| origin.disk.floor)
    }

    /// Lets go of the batches of `run` up to `through`, as many as one commit takes; answers whether more are left. Nothing
    /// else may be pending.
    pub fn expire(&mut self, run: Run, through: Seq) -> Result<bool, Fault> {
        let store = self.store.clone();
        let view = store.view();
        self.pending.expired.entry(run).or_default();
        let floor = self.floor(run);
        let mut more = false;
        if floor < through {
            let range = rows::seq_key(run, floor.next())..=rows::seq_key(run, through);
            for (count, row) in view.rows(range).enumerate() {
                more = count == EXPIRED_BATCHES_MAX;
                if more {
                    break;
                }
                let (key, value) = row?;
                self.let_go(&view.kept(&read_extent(&key, &value)?.stamp)?)?;
            }
        }
        self.drop_numbers(&view)?;
        Ok(more)
    }

    /// Lets go of what is due, in time order from `from`, as much as one commit takes. Nothing else may be pending.
    pub fn retain(&mut self, due: Due, from: Option<Vec<u8>>) -> Result<Walked, Fault> {
        if from.is_none() {
            let by_age = due.wall_ms.is_some_and(|wall_ms| {
                self.next_due_ms.is_none_or(|next| next.saturating_add(due.retain_ms) < wall_ms)
            });
            if !by_age && self.bytes <= due.retain_bytes {
                return Ok(Walked::Done);
            }
            self.next_due_ms = Some(u64::MAX);
        }
        let store = self.store.clone();
        let view = store.view();
        let begins = from.as_ref().is_none_or(|from| *from == self.oldest_key);
        let start = from.map_or_else(|| Bound::Included(self.oldest_key.clone()), Bound::Excluded);
        let too_old = |from_ms: u64| due.wall_ms.is_some_and(|now_ms| from_ms.saturating_add(due.retain_ms) < now_ms);
        let (mut looked_at, mut gone) = (0, 0);
        let mut walked = Walked::Done;
        let mut oldest_stays = None;
        for row in view.rows((start, Bound::Excluded(vec![table::BATCH + 1]))) {
            let (key, value) = row?;
            let stamp = Stamp::read(&key[1..]).ok_or_else(|| bad("batch"))?;
            let too_much = self.bytes > due.retain_bytes;
            if !too_old(stamp.hlc.wall_ms()) && !too_much {
                self.see_due(stamp.hlc.wall_ms());
                oldest_stays.get_or_insert(key.to_vec());
                break; // What follows is younger still.
            }
            let kept = read_kept(&stamp, value)?;
            // Later entries of an origin never go before earlier ones.
            let oldest = self.origins.get(&stamp.run).and_then(|origin| origin.disk.stored.iter().next());
            let oldest = oldest.is_some_and(|(first, _)| first == stamp.first);
            if oldest && (too_much || too_old(age_from(&kept))) {
                self.let_go(&kept)?;
                gone += 1;
            } else {
                self.see_due(age_from(&kept));
                oldest_stays.get_or_insert(key.to_vec());
            }
            looked_at += 1;
            if looked_at == LOOKED_AT_MAX || gone == EXPIRED_BATCHES_MAX {
                walked = Walked::On(key.to_vec());
                break;
            }
        }
        if let (Walked::On(key), None) = (&walked, &oldest_stays) {
            oldest_stays = Some(key.clone());
        }
        if let Some(key) = oldest_stays.filter(|_| begins) {
            self.oldest_key = key;
        }
        self.drop_numbers(&view)?;
        Ok(walked)
    }

    fn see_due(&mut self, from_ms: u64) {
        self.next_due_ms = self.next_due_ms.map(|due| due.min(from_ms));
    }

    /// Takes away all rows of a batch but its number, and raises the floor.
    fn let_go(&mut self, kept: &Kept) -> Result<(), Fault> {
        let batch = &kept.batch;
        let stamp = stamp_of(batch);
        let record_bytes = 8 + batch.bytes().len() as u64;
        let OriginRow { disk, bytes } = origin_of(&mut self.origins, stamp.run);
        disk.floor = disk.floor.max(batch.last());
        for set in [&mut disk.stored, &mut disk.admitted, &mut disk.settled] {
            set.remove(Seq(0), disk.floor);
        }
        *bytes = bytes.saturating_sub(record_bytes);
        self.bytes = self.bytes.saturating_sub(record_bytes);
        self.totals.horizon = self.totals.horizon.max(batch.hlc_last());
        self.pending.totals = true;
        self.pending.touched.insert(stamp.run);
        let newest = self.pending.expired.entry(stamp.run).or_default();
        *newest = batch.hlc_last().max(*newest);
        self.unnumbered.remove(&(stamp.run, stamp.first));
        self.pending.changes.extend([(stamp.batch_key(), None), (stamp.seq_key(), None)]);
        let mut rooms: BTreeMap<Room, u64> = BTreeMap::new();
        let mut entries = batch.entries();
        while let Some(Ok(entry)) = entries.glance() {
            let shown = match entry.key {
                None => true,
                Some(key) => self.unname(key, Place { hlc: entry.hlc(), id: entry.id() })?,
            };
            match rooms.get_mut(entry.room) {
                Some(messages) => *messages += u64::from(shown),
                None => drop(rooms.insert(entry.room.clone(), shown.into())),
            }
        }
        for (room, messages) in rooms {
            self.pending.changes.push((stamp.room_key(&room), None));
            let row = self.room(&room)?;
            row.messages = row.messages.saturating_sub(messages);
        }
        Ok(())
    }

    /// Lets go of an entry with a key; answers whether it was shown.
    fn unname(&mut self, key: Key, place: Place) -> Result<bool, Fault> {
        let mut row = self.key(key)?.ok_or_else(|| Fault::Damaged("a key is not known".into()))?;
        let shown = row.namesakes.expire(place);
        self.pending.keys.insert(key, (row.namesakes.living > 0).then_some(row));
        Ok(shown)
    }

    /// Numbers of batches that have gone, the lowest ones: what remains among the others is skipped by who reads.
    fn drop_numbers(&mut self, view: &View<'_>) -> Result<(), Fault> {
        let range = (Bound::Included(rows::number_key(self.oldest_number)), Bound::Excluded(vec![table::ADMITTED + 1]));
        for row in view.rows(range).take(LOOKED_AT_MAX) {
            let (key, value) = row?;
            let (number, numbered) = Numbered::read(&key, &value).ok_or_else(|| bad("number"))?;
            let gone = self.origins.get(&numbered.stamp.run).is_none_or(|origin| numbered.last() <= origin.disk.floor);
            if !gone {
                break;
            }
            self.oldest_number = number + 1;
            self.pending.totals = true;
            self.pending.changes.push((key.to_vec(), None));
        }
        Ok(())
    }

    /// Writes what is pending, synced if it has to be and `sync` allows it, and answers what to report.
    pub fn commit(&mut self, sync: bool) -> Result<Vec<Report>, Fault> {
        let mut pending = std::mem::take(&mut self.pending);
        let changes = &mut pending.changes;
        for run in &pending.touched {
            changes.push((rows::run_key(table::ORIGIN, *run), self.origins.get(run).map(OriginRow::value)));
        }
        changes.extend(pending.keys.iter().map(|(key, row)| (KeyRow::key(*key), row.as_ref().map(KeyRow::value))));
        for (bridge, progress) in &pending.progress {
            let key = rows::named_key(table::PROGRESS, bridge.as_bytes());
            changes.push((key, Some(rows::progress_value(progress))));
        }
        if let Some(site) = &pending.site {
            changes.push((rows::named_key(table::PROGRESS, b""), Some(site.value())));
        }
        for (room, row) in &pending.rooms {
            let value = (row.messages > 0).then(|| row.value());
            changes.push((rows::named_key(table::ROOM, room.as_str().as_bytes()), value));
        }
        if pending.totals {
            changes.push((rows::named_key(table::META, Totals::NAME), Some(self.totals.value())));
        }
        if !pending.changes.is_empty() {
            self.store.commit(pending.changes, sync && pending.sync)?;
        }
        if self.unnumbered.len() > UNNUMBERED_MAX {
            self.unnumbered.clear();
        }
        let mut reports = Vec::new();
        if !pending.stored.is_empty() {
            reports.push(Report::Stored(pending.stored));
        }
        for (run, newest) in pending.expired {
            let floor = self.floor(run);
            reports.push(Report::Expired { run, floor, newest });
        }
        Ok(reports)
    }

    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.pending.changes.push((key, Some(value)));
    }

    /// The batch of `run` that begins at `first`, be it on disk or about to be.
    fn extent(&self, run: Run, first: Seq) -> Result<Option<Extent>, Fault> {
        if let Some(extent) = self.unnumbered.get(&(run, first)) {
            return Ok(Some(*extent));
        }
        let key = rows::seq_key(run, first);
        self.store.view().get(&key)?.map(|value| read_extent(&key, &value)).transpose()
    }

    /// The batches that begin within `span`, on disk or about to be, in order.
    fn extents(&self, span: Span) -> Result<Vec<Extent>, Fault> {
        let Span { run, first, last } = span;
        let mut found = BTreeMap::new();
        let mut next = first;
        for (_, extent) in self.unnumbered.range((run, first)..=(run, last.max(first))) {
            if extent.stamp.first == next {
                next = extent.last().next();
            }
            found.insert(extent.stamp.first, *extent);
        }
        if next <= last {
            let view = self.store.view();
            for row in view.rows(rows::seq_key(run, next)..=rows::seq_key(run, last)) {
                let (key, value) = row?;
                let extent = read_extent(&key, &value)?;
                found.insert(extent.stamp.first, extent);
            }
        }
        Ok(found.into_values().collect())
    }

    fn key(&self, key: Key) -> Result<Option<KeyRow>, Fault> {
        match self.pending.keys.get(&key) {
            Some(row) => Ok(row.clone()),
            None if !self.keys.may_hold(key) => Ok(None),
            None => self.store.view().key_row(key),
        }
    }

    fn room(&mut self, room: &Room) -> Result<&mut RoomRow, Fault> {
        if !self.pending.rooms.contains_key(room) {
            let value = self.store.view().get(&rows::named_key(table::ROOM, room.as_str().as_bytes()))?;
            let row = value.map(|value| RoomRow::read(&value).ok_or_else(|| bad("room"))).transpose()?;
            self.pending.rooms.insert(room.clone(), row.unwrap_or_default());
        }
        Ok(self.pending.rooms.entry(room.clone()).or_default())
    }
}

fn origin_of(origins: &mut BTreeMap<Run, OriginRow>, run: Run) -> &mut OriginRow {
    let none = || OnDisk {
        run,
        floor: Seq(0),
        stored: Default::default(),
        admitted: Default::default(),
        settled: Default::default(),
        newest: Hlc::default(),
    };
    origins.entry(run).or_insert_with(|| OriginRow { disk: none(), bytes: 0 })
}

/// When the age of a batch begins.
fn age_from(kept: &Kept) -> u64 {
    kept.batch.hlc().wall_ms().max(kept.arrived_ms)
}
