//! Reading the log: pages, scans, what a cursor does not cover, what local order gives next.
//!
//! Every call sees the log as it was when the call began, takes bounded memory, and may block on the disk. A call that finds
//! damage says so to the writer, which replaces the log; readers go on with the one that is open then.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use fjall::UserValue;

use super::rows::{self, Durable, Extent, Numbered, OriginRow, RoomRow, Stamp, table};
use super::store::{Fault, View, bad, guarded, read_kept};
use super::{Command, Shared, Want};
use crate::error::HistoryError;
use crate::id::{EntryId, Epoch, Key, NodeId, Room, Run, RunHash, Seq};
use crate::replica::batch::{BATCH_ENTRIES_MAX, Batch, Entry, FIRST_OFFSET};
use crate::replica::clock::Hlc;
use crate::replica::event::{Kept, Load};
use crate::replica::keys::{Namesakes, Place};
use crate::replica::ranges::RangeSet;
use crate::replica::version::Cursor;

/// An entry is at most so much later than the first one of its batch.
const BATCH_TICKS_MAX: u64 = BATCH_ENTRIES_MAX as u64 - 1;
/// Where the count of entries stands in a record: behind the time of arrival, the origin and the first seq.
const COUNT_OFFSET: usize = 8 + FIRST_OFFSET + 8;
/// How much one call of a scan looks through, found or not.
const SCANNED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Batches of one origin that are looked up at a time.
const AHEAD_MAX: usize = 32;
/// Rooms that are listed, those with the newest messages.
const ROOMS_MAX: usize = 4096;

/// Reads the history. Cheap to clone, used from any thread that may block; it does not keep the history open.
#[derive(Clone, Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    commands: Sender<Command>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, commands: Sender<Command>) -> Reader {
        Reader { shared, commands }
    }

    fn read<T>(&self, ask: impl FnOnce(&View<'_>) -> Result<T, Fault>) -> Result<T, HistoryError> {
        let store = self.shared.current().ok_or(HistoryError::Closed)?;
        let answer = guarded(|| ask(&store.view()));
        answer.map_err(|fault| {
            if let Fault::Damaged(what) = &fault {
                // A writer that has ended needs not know.
                let _ = self.commands.send(Command::Damaged(store.generation, what.clone()));
            }
            fault.into()
        })
    }

    /// The newest entries that are wanted, those before `before`, oldest first, twins left out.
    ///
    /// # Errors
    /// [`HistoryError`], as everything here.
    pub fn newest(&self, want: &Want, before: Option<Place>, limit: usize) -> Result<Vec<Entry>, HistoryError> {
        self.read(|view| {
            // The newest first.
            let mut found: Vec<Entry> = Vec::new();
            let upper = before.map_or(want.until(), |before| before.hlc.min(want.until()));
            let lower = Hlc(want.since().0.saturating_sub(BATCH_TICKS_MAX));
            for record in batches(view, want.room.as_ref(), lower, upper).rev() {
                let record = record?;
                let lowest = found.last().map_or(Hlc::default(), |entry| entry.hlc);
                let full = found.len() >= limit;
                if limit == 0 || (full && record.stamp.hlc.plus(BATCH_TICKS_MAX) < lowest) {
                    break;
                }
                if full && record.hlc_last() < lowest {
                    continue;
                }
                let batch = record.batch()?;
                let in_time = |entry: &Entry| before.is_none_or(|before| Place::of(entry) < before);
                // The newest first: of a large batch most are too old.
                for entry in batch.entries().flatten().rev().filter(|entry| in_time(entry) && want.takes(entry)) {
                    let place = Place::of(&entry);
                    let at = found.partition_point(|newer| Place::of(newer) > place);
                    if at >= limit {
                        break;
                    }
                    if is_shown(view, &entry)? {
                        found.insert(at, entry);
                        found.truncate(limit);
                    }
                }
                view.check_open()?;
            }
            found.reverse();
            Ok(found)
        })
    }

    /// The entries that are wanted after `from`, oldest first, twins left out: at most `limit`, and of at most
    /// `bytes_max` of payload, but at least one. Goes on from the place answered; none: that was all. May answer nothing
    /// and a place, after having looked through much.
    ///
    /// # Errors
    /// [`HistoryError`], as everything here.
    pub fn scan(
        &self,
        want: &Want,
        from: Option<Place>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<(Vec<Entry>, Option<Place>), HistoryError> {
        self.read(|view| {
            let mut chunk = Chunk { entries: Vec::new(), bytes: 0, limit: limit.max(1), bytes_max };
            // Later ones of a batch may be said after the first of the next.
            let mut waiting: BTreeMap<Place, Entry> = BTreeMap::new();
            let start = from.map_or(Hlc::default(), |from| from.hlc).max(want.since());
            let mut looked_at = 0;
            let lower = Hlc(start.0.saturating_sub(BATCH_TICKS_MAX));
            for record in batches(view, want.room.as_ref(), lower, want.until()) {
                let batch = record?.batch()?;
                if let Some(last) = chunk.take(&mut waiting, batch.hlc()) {
                    return Ok((chunk.entries, Some(last)));
                }
                if looked_at >= SCANNED_BYTES_MAX && batch.hlc() > start.plus(1) {
                    return Ok((chunk.entries, Some(before(batch.hlc()))));
                }
                looked_at += batch.bytes().len();
                for entry in batch.entries().flatten() {
                    let place = Place::of(&entry);
                    if from.is_none_or(|from| from < place) && want.takes(&entry) && is_shown(view, &entry)? {
                        waiting.insert(place, entry);
                    }
                }
                view.check_open()?;
            }
            let last = chunk.take(&mut waiting, Hlc(u64::MAX));
            Ok((chunk.entries, last))
        })
    }

    /// Batches that `cursor` does not wholly cover, in the order of (time, origin, seq), and whether there are more. At
    /// most `limit`, and of at most `bytes_max`, but at least one. Twins are in them, and so is what the cursor covers of
    /// them; so are all texts, whatever [`Want::grep`] says.
    ///
    /// # Errors
    /// [`HistoryError`], as everything here.
    pub fn uncovered(
        &self,
        cursor: &Cursor,
        want: &Want,
        limit: usize,
        bytes_max: usize,
    ) -> Result<(Vec<Batch>, bool), HistoryError> {
        self.read(|view| {
            let mut walks = BinaryHeap::new();
            for row in view.rows(rows::below(&[table::ORIGIN])) {
                let (key, value) = row?;
                let origin = OriginRow::read(&key, &value).ok_or_else(|| bad("origin"))?.disk;
                let hash = origin.run.hash();
                let missing = cursor.missing(hash, &origin.stored);
                let listed = cursor.lists(hash);
                if missing.is_empty() || (!listed && cursor.covers(hash, origin.stored.top(), origin.newest)) {
                    continue;
                }
                let mut walk = Walk { run: origin.run, hash, listed, missing, ahead: VecDeque::new() };
                walks.extend(walk.head(view, cursor)?.map(|stamp| Reverse((stamp, walk))));
            }
            let (mut found, mut bytes) = (Vec::new(), 0);
            while let Some(Reverse((stamp, mut walk))) = walks.pop() {
                let Some(extent) = walk.ahead.pop_front() else { continue };
                let too_early = extent.hlc_last() < want.since();
                let too_late = stamp.hlc > want.until();
                let wanted = match &want.room {
                    Some(room) => view.has(&stamp.room_key(room))?,
                    None => true,
                };
                if wanted && !too_early && !too_late {
                    bytes += extent.bytes as usize;
                    if !found.is_empty() && (found.len() >= limit || bytes > bytes_max) {
                        return Ok((found, true));
                    }
                    found.push(view.kept(&stamp)?.batch);
                }
                walks.extend(walk.head(view, cursor)?.map(|stamp| Reverse((stamp, walk))));
                view.check_open()?;
            }
            Ok((found, false))
        })
    }

    /// What is stored or let go of each origin, with the newest time of it; with a cursor, only as far as it covers that.
    ///
    /// # Errors
    /// [`HistoryError`], as everything here.
    pub fn vector(&self, cursor: Option<&Cursor>) -> Result<BTreeMap<Run, (RangeSet, Hlc)>, HistoryError> {
        self.read(|view| {
            let mut vector = BTreeMap::new();
            for row in view.rows(rows::below(&[table::ORIGIN])) {
                let (key, value) = row?;
                let origin = OriginRow::read(&key, &value).ok_or_else(|| bad("origin"))?.disk;
                let hash = origin.run.hash();
                let mut seqs = origin.stored.clone();
                if let Some(cursor) = cursor {
                    let all = !cursor.lists(hash) && cursor.covers(hash, origin.stored.top(), origin.newest);
                    seqs = if all { seqs } else { seqs.without(&cursor.missing(hash, &origin.stored)) };
                }
                seqs.insert(Seq(1), origin.floor);
                if !seqs.is_empty() {
                    vector.insert(origin.run, (seqs, origin.newest));
                }
            }
            Ok(vector)
        })
    }

    /// The place of the smallest entry with this key; it may have expired.
    ///
    /// # Errors
    /// [`HistoryError`], as everything here.
    pub fn find(&self, key: Key) -> Result<Option<Place>, HistoryError> {
        self.read(|view| Ok(view.key_row(key)?.map(|row| row.namesakes.smallest)))
    }

    /// Whether the log may hold an entry with this key: false is certain, and cost no look at the disk.
    pub fn may_hold(&self, key: Key) -> bool {
        self.shared.keys.may_hold(key)
    }

    /// The entry of this name, be it a twin or not.
    ///
    /// # Errors
    /// [`HistoryError`], as everything here.
    pub fn entry(&self, id: EntryId) -> Result<Option<Entry>, HistoryError> {
        let batch = self.batch_of(id)?;
        Ok(batch.and_then(|batch| batch.entries().flatten().find(|entry| entry.id == id)))
    }

    /// The batch that holds this entry.
    ///
    /// # Errors
    /// [`HistoryError`], as everything here.
    pub fn batch_of(&self, id: EntryId) -> Result<Option<Batch>, HistoryError> {
        self.read(|view| {
            Ok(view.extent_of(id)?.map(|extent| view.kept(&extent.stamp)).transpose()?.map(|kept| kept.batch))
        })
    }

    /// The entries with this key, as far as they are remembered; none if there is none.
    ///
    /// # Errors
    /// [`HistoryError`], as everything here.
    pub fn namesakes(&self, key: Key) -> Result<Option<Namesakes>, HistoryError> {
        self.read(|view| Ok(view.key_row(key)?.map(|row| row.namesakes)))
    }

    /// Whether the entry `id` with this key counts as covered, because another one with its key is. A twin of which none is
    /// covered is given all the same: it may be long until the smaller one comes to this reader, which is not given that then.
    ///
    /// # Errors
    /// [`HistoryError`], as everything here.
    pub fn hides(&self, key: Key, id: EntryId, covered: &Cursor) -> Result<bool, HistoryError> {
        let given = |other: Place| covered.covers(other.id.run.hash(), other.id.seq, other.hlc);
        Ok(self.namesakes(key)?.is_some_and(|known| known.beside(id).any(given)))
    }

    /// How far a bridge has come; none if it has not begun anywhere that is known here.
    ///
    /// # Errors
    /// [`HistoryError`], as everything here.
    #[cfg(any(feature = "amqp", feature = "redis"))]
    pub fn progress(&self, bridge: &str) -> Result<Option<crate::replica::control::Progress>, HistoryError> {
        self.read(|view| view.progress(bridge))
    }

    /// The word that tells this mesh from others of its name.
    ///
    /// # Errors
    /// [`HistoryError`], as everything here.
    #[cfg(any(feature = "amqp", feature = "redis"))]
    pub fn site(&self) -> Result<Option<Arc<str>>, HistoryError> {
        self.read(|view| Ok(view.site()?.map(|site| site.word)))
    }

    /// Rooms with messages, how many they hold without twins, and the time of the newest: the 4,096 newest rooms.
    ///
    /// # Errors
    /// [`HistoryError`], as everything here.
    pub fn rooms(&self) -> Result<Vec<(Room, u64, Hlc)>, HistoryError> {
        self.read(|view| {
            let mut newest = BTreeMap::new();
            for row in view.rows(rows::below(&[table::ROOM])) {
                let (key, value) = row?;
                let name = std::str::from_utf8(&key[1..]).ok().and_then(|name| Room::of_entry(name).ok());
                let (room, row) = name.zip(RoomRow::read(&value)).ok_or_else(|| bad("room"))?;
                if room.is_control() {
                    continue;
                }
                newest.insert((row.newest, room), row.messages);
                if newest.len() > ROOMS_MAX {
                    newest.pop_first();
                }
                view.check_open()?;
            }
            let mut rooms: Vec<_> = newest.into_iter().map(|((last, room), count)| (room, count, last)).collect();
            rooms.sort();
            Ok(rooms)
        })
    }

    /// Batches in local order from number `from` on, each with its number and whether it is late. At most `limit`, and of
    /// at most `bytes_max`, but at least one. Numbers of what has expired are left out.
    ///
    /// # Errors
    /// [`HistoryError`], as everything here.
    pub fn admitted(&self, from: u64, limit: usize, bytes_max: usize) -> Result<Vec<(u64, Batch, bool)>, HistoryError> {
        self.read(|view| {
            let (mut found, mut bytes) = (Vec::new(), 0);
            for row in view.rows((Bound::Included(rows::number_key(from)), Bound::Excluded(vec![table::ADMITTED + 1])))
            {
                let (key, value) = row?;
                let (number, Numbered { stamp, late, .. }) =
                    Numbered::read(&key, &value).ok_or_else(|| bad("number"))?;
                view.check_open()?;
                if !view.has(&stamp.seq_key())? {
                    continue;
                }
                let batch = view.kept(&stamp)?.batch;
                bytes += batch.bytes().len();
                if !found.is_empty() && (found.len() >= limit || bytes > bytes_max) {
                    break;
                }
                found.push((number, batch, late));
            }
            Ok(found)
        })
    }

    /// The durable cursors of this log.
    ///
    /// # Errors
    /// [`HistoryError`], as everything here.
    pub fn durables(&self) -> Result<Vec<Durable>, HistoryError> {
        self.read(|view| {
            let durable = |row: Result<(fjall::UserKey, fjall::UserValue), Fault>| {
                let (key, value) = row?;
                Durable::read(&key, &value).ok_or_else(|| bad("durable"))
            };
            view.rows(rows::below(&[table::DURABLE])).map(durable).collect()
        })
    }

    /// The durable cursor of this name.
    ///
    /// # Errors
    /// [`HistoryError`], as everything here.
    pub fn durable(&self, name: &str) -> Result<Option<Durable>, HistoryError> {
        let key = rows::named_key(table::DURABLE, name.as_bytes());
        self.read(|view| {
            view.get(&key)?.map(|value| Durable::read(&key, &value).ok_or_else(|| bad("durable"))).transpose()
        })
    }

    /// The id of the log that is open: local numbers and positions mean something only together with it.
    ///
    /// # Errors
    /// [`HistoryError`], as everything here.
    pub fn log(&self) -> Result<u64, HistoryError> {
        self.read(|view| Ok(view.log()))
    }

    /// All batches in time order, as they are kept, from the one after `from`, which is the place of the first entry of
    /// the last batch given. At most of `bytes_max`, but at least one.
    ///
    /// # Errors
    /// [`HistoryError`], as everything here.
    pub fn export(&self, from: Option<Place>, bytes_max: usize) -> Result<Vec<Kept>, HistoryError> {
        self.read(|view| {
            let from = from.map(|place| Stamp { hlc: place.hlc, run: place.id.run, first: place.id.seq }.batch_key());
            let start = from.map_or(Bound::Included(vec![table::BATCH]), Bound::Excluded);
            let (mut found, mut bytes) = (Vec::new(), 0);
            for row in view.rows((start, Bound::Excluded(vec![table::BATCH + 1]))) {
                let (key, value) = row?;
                bytes += value.len();
                if !found.is_empty() && bytes > bytes_max {
                    break;
                }
                let stamp = Stamp::read(&key[1..]).ok_or_else(|| bad("batch"))?;
                found.push(read_kept(&stamp, value)?);
            }
            Ok(found)
        })
    }

    /// What a peer asked for, and how far the answer goes.
    pub(super) fn load(&self, load: &Load) -> Result<(Vec<Kept>, Seq), HistoryError> {
        self.read(|view| {
            let (mut found, mut bytes) = (Vec::new(), 0);
            for extent in view.extents(load.span.run, load.span.first, load.span.last)? {
                let extent = extent?;
                if bytes >= load.bytes_max as usize {
                    return Ok((found, super::before(extent.stamp.first)));
                }
                let kept = view.kept(&extent.stamp)?;
                bytes += kept.batch.bytes().len();
                found.push(kept);
            }
            Ok((found, load.span.last))
        })
    }

    #[cfg(test)]
    pub(super) fn is_checked(&self) -> bool {
        self.shared.current().is_some_and(|store| store.is_checked())
    }

    pub(super) fn holds(&self, stamp: &Stamp) -> Result<bool, HistoryError> {
        self.read(|view| view.has(&stamp.seq_key()))
    }
}

/// Batches in time order, of a room or of all, whose first entry is said between `lower` and `upper`.
fn batches<'v>(
    view: &'v View<'v>,
    room: Option<&Room>,
    lower: Hlc,
    upper: Hlc,
) -> Box<dyn DoubleEndedIterator<Item = Result<Record, Fault>> + 'v> {
    let prefix = room.map_or_else(|| vec![table::BATCH], rows::room_prefix);
    let at = prefix.len();
    let bound = |hlc: Hlc| [&prefix[..], &hlc.0.to_be_bytes()].concat();
    let (_, end) = rows::below(&prefix);
    let end = upper.0.checked_add(1).map_or(end, |next| Bound::Excluded(bound(Hlc(next))));
    let range = (Bound::Included(bound(lower)), end);
    let stamp = move |key: &[u8]| key.get(at..).and_then(Stamp::read).ok_or_else(|| bad("batch"));
    if lower > upper {
        return Box::new(std::iter::empty());
    }
    match room {
        None => Box::new(view.rows(range).map(move |row| {
            let (key, value) = row?;
            Ok(Record { stamp: stamp(&key)?, value })
        })),
        Some(_) => Box::new(view.keys(range).map(move |key| {
            let stamp = stamp(&key?)?;
            let value = view.get(&stamp.batch_key())?.ok_or_else(|| bad("room"))?;
            Ok(Record { stamp, value })
        })),
    }
}

/// A record as it stands on disk.
struct Record {
    stamp: Stamp,
    value: UserValue,
}

impl Record {
    /// The time of its last entry by the count in its header, which nobody has checked.
    fn hlc_last(&self) -> Hlc {
        let count = self.value.get(COUNT_OFFSET..).and_then(|bytes| bytes.first_chunk::<4>());
        self.stamp.hlc.plus(count.map_or(0, |count| u64::from(u32::from_le_bytes(*count)).saturating_sub(1)))
    }

    fn batch(self) -> Result<Batch, Fault> {
        read_kept(&self.stamp, self.value).map(|kept| kept.batch)
    }
}

fn is_shown(view: &View<'_>, entry: &Entry) -> Result<bool, Fault> {
    match entry.key {
        None => Ok(true),
        Some(key) => Ok(view.key_row(key)?.is_none_or(|row| row.namesakes.shows(entry.id))),
    }
}

/// The last place that can be before `hlc`.
fn before(hlc: Hlc) -> Place {
    let run = Run { node: NodeId([u8::MAX; 32]), epoch: Epoch(u64::MAX) };
    Place { hlc: Hlc(hlc.0.saturating_sub(1)), id: EntryId { run, seq: Seq(u64::MAX) } }
}

/// What one call of a scan answers.
struct Chunk {
    entries: Vec<Entry>,
    bytes: usize,
    limit: usize,
    bytes_max: usize,
}

impl Chunk {
    /// Takes what waits and is before `hlc`; if not all of it fits, the place of the last that did.
    fn take(&mut self, waiting: &mut BTreeMap<Place, Entry>, hlc: Hlc) -> Option<Place> {
        while let Some(next) = waiting.first_entry().filter(|next| next.key().hlc < hlc) {
            let bytes = self.bytes + next.get().payload.len();
            if let Some(last) = self.entries.last()
                && (self.entries.len() >= self.limit || bytes > self.bytes_max)
            {
                return Some(Place::of(last));
            }
            self.bytes = bytes;
            self.entries.push(next.remove());
        }
        None
    }
}

/// One origin on the way through what a cursor does not cover.
struct Walk {
    run: Run,
    hash: RunHash,
    /// Whether the cursor names the origin; else it covers by time.
    listed: bool,
    missing: RangeSet,
    ahead: VecDeque<Extent>,
}

impl Walk {
    /// The next batch, looked up together with some that follow it.
    fn head(&mut self, view: &View<'_>, cursor: &Cursor) -> Result<Option<Stamp>, Fault> {
        while self.ahead.is_empty() {
            let Some((first, last)) = self.missing.iter().next() else { return Ok(None) };
            let mut through = last;
            for extent in view.extents(self.run, first, last)? {
                let extent = extent?;
                if self.listed || !cursor.covers(self.hash, extent.last(), extent.hlc_last()) {
                    self.ahead.push_back(extent);
                }
                if self.ahead.len() == AHEAD_MAX {
                    through = extent.last();
                    break;
                }
            }
            self.missing.remove(first, through);
        }
        Ok(self.ahead.front().map(|extent| extent.stamp))
    }
}

/// In the heap only the stamps count; no two walks have the same.
impl PartialEq for Walk {
    fn eq(&self, other: &Walk) -> bool {
        self.run == other.run
    }
}
impl Eq for Walk {}
impl PartialOrd for Walk {
    fn partial_cmp(&self, other: &Walk) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Walk {
    fn cmp(&self, other: &Walk) -> std::cmp::Ordering {
        self.run.cmp(&other.run)
    }
}
