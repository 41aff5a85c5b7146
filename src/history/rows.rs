//! What stands on disk: the keys and values of every row, and nothing about who writes them when.
//!
//! All rows are in one keyspace, so that a journal that lost its tail is consistent over all of them. The first byte of a
//! key says which table it belongs to; numbers are big-endian, so that rows are in the order of what they name.
//!
//! ```text
//! B hlc run first            → arrived_ms, the batch's bytes     the record, in time order
//! S run first                → hlc count bytes                   by origin and seq
//! A number                   → run first hlc count late          local order
//! R room 0 hlc run first     → count                             batches that hold entries of a room
//! M room                     → messages newest                   what a room holds
//! K key                      → the smallest place, whether it is there, how many are there, its room
//! V run                      → checked: floor newest bytes stored admitted settled
//! D name                     → checked: a durable cursor
//! P name                     → checked: how far a bridge has come; without a name: the word of the site
//! X name                     → checked: version and log id; totals
//! ```

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::id::{EntryId, Epoch, Key, NodeId, Room, Run, Seq};
use crate::replica::clock::Hlc;
use crate::replica::control::Progress;
use crate::replica::event::OnDisk;
use crate::replica::keys::{Namesakes, Place};
use crate::replica::ranges::RangeSet;

/// The version of all this. A history of a higher one is not touched.
pub(super) const FORMAT_VERSION: u32 = 1;

/// The tables, by the first byte of their keys.
pub(super) mod table {
    pub const BATCH: u8 = b'B';
    pub const SEQ: u8 = b'S';
    pub const ADMITTED: u8 = b'A';
    pub const ROOM_BATCH: u8 = b'R';
    pub const ROOM: u8 = b'M';
    pub const KEY: u8 = b'K';
    pub const ORIGIN: u8 = b'V';
    pub const DURABLE: u8 = b'D';
    pub const PROGRESS: u8 = b'P';
    pub const META: u8 = b'X';
}

/// Where a batch stands in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp {
    pub hlc: Hlc,
    pub run: Run,
    pub first: Seq,
}

/// What is known of a batch without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub stamp: Stamp,
    pub count: u32,
    pub bytes: u32,
}

/// A batch in local order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Numbered {
    pub stamp: Stamp,
    pub count: u32,
    pub late: bool,
}

/// Entries of one key, and the room of the smallest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyRow {
    pub namesakes: Namesakes,
    pub room: Room,
}

/// How many messages a room holds, twins left out, and the time of the newest ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RoomRow {
    pub messages: u64,
    pub newest: Hlc,
}

/// What is known of an origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OriginRow {
    pub disk: OnDisk,
    /// Bytes of its records.
    pub bytes: u64,
}

/// What is true of the log as a whole; written when something is let go, so that appends need not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// The newest time that was let go.
    pub horizon: Hlc,
    /// The highest local number given when this was written; those given later stand in their rows.
    pub admitted: u64,
}

/// A named cursor as the log keeps it: in full, by run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Durable {
    /// Its name.
    pub name: String,
    /// What was acknowledged, beyond what `position` says, with the newest time of it.
    pub covered: BTreeMap<Run, (RangeSet, Hlc)>,
    /// All local numbers below this are covered.
    pub position: u64,
    /// The log in which the numbers count; in any other they mean nothing.
    pub log: u64,
    /// When it was last acknowledged, in milliseconds since 1970.
    pub acked_ms: u64,
}

impl Stamp {
    pub fn batch_key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(57);
        key.push(table::BATCH);
        self.put(&mut key);
        key
    }

    pub fn room_key(&self, room: &Room) -> Vec<u8> {
        let mut key = room_prefix(room);
        self.put(&mut key);
        key
    }

    pub fn seq_key(&self) -> Vec<u8> {
        seq_key(self.run, self.first)
    }

    /// From a key of table B, or of table R without its room.
    pub fn read(bytes: &[u8]) -> Option<Stamp> {
        let mut fields = Fields(bytes);
        let stamp = fields.stamp()?;
        fields.end().then_some(stamp)
    }

    fn put(&self, key: &mut Vec<u8>) {
        key.extend_from_slice(&self.hlc.0.to_be_bytes());
        put_run(key, self.run);
        key.extend_from_slice(&self.first.0.to_be_bytes());
    }
}

/// What stands between the letter and the first [`Stamp`] of a room.
pub(super) fn room_prefix(room: &Room) -> Vec<u8> {
    let mut key = Vec::with_capacity(room.as_str().len() + 58);
    key.push(table::ROOM_BATCH);
    key.extend_from_slice(room.as_str().as_bytes());
    key.push(0);
    key
}

pub(super) fn seq_key(run: Run, first: Seq) -> Vec<u8> {
    let mut key = run_key(table::SEQ, run);
    key.extend_from_slice(&first.0.to_be_bytes());
    key
}

pub(super) fn run_key(table: u8, run: Run) -> Vec<u8> {
    let mut key = Vec::with_capacity(49);
    key.push(table);
    put_run(&mut key, run);
    key
}

pub(super) fn number_key(number: u64) -> Vec<u8> {
    let mut key = vec![table::ADMITTED];
    key.extend_from_slice(&number.to_be_bytes());
    key
}

pub(super) fn named_key(table: u8, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + name.len());
    key.push(table);
    key.extend_from_slice(name);
    key
}

/// All rows whose keys begin with `prefix`.
pub(super) fn below(prefix: &[u8]) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    let mut end = prefix.to_vec();
    // No prefix of ours is all ones: its first byte is a letter.
    while end.last() == Some(&u8::MAX) {
        end.pop();
    }
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    (Bound::Included(prefix.to_vec()), Bound::Excluded(end))
}

impl Extent {
    pub fn last(&self) -> Seq {
        Seq(self.stamp.first.0.saturating_add(u64::from(self.count)).saturating_sub(1))
    }

    pub fn hlc_last(&self) -> Hlc {
        self.stamp.hlc.plus(u64::from(self.count).saturating_sub(1))
    }

    pub fn value(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(16);
        value.extend_from_slice(&self.stamp.hlc.0.to_be_bytes());
        value.extend_from_slice(&self.count.to_be_bytes());
        value.extend_from_slice(&self.bytes.to_be_bytes());
        value
    }

    /// From a row of table S.
    pub fn read(key: &[u8], value: &[u8]) -> Option<Extent> {
        let mut fields = Fields(key.get(1..)?);
        let (run, first) = (fields.run()?, Seq(fields.u64()?));
        let mut rest = Fields(value);
        let (hlc, count, bytes) = (Hlc(rest.u64()?), rest.u32()?, rest.u32()?);
        (fields.end() && rest.end() && count > 0).then_some(Extent { stamp: Stamp { hlc, run, first }, count, bytes })
    }
}

impl Numbered {
    pub fn last(&self) -> Seq {
        Seq(self.stamp.first.0.saturating_add(u64::from(self.count)).saturating_sub(1))
    }

    pub fn value(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(61);
        put_run(&mut value, self.stamp.run);
        value.extend_from_slice(&self.stamp.first.0.to_be_bytes());
        value.extend_from_slice(&self.stamp.hlc.0.to_be_bytes());
        value.extend_from_slice(&self.count.to_be_bytes());
        value.push(u8::from(self.late));
        value
    }

    /// From a row of table A.
    pub fn read(key: &[u8], value: &[u8]) -> Option<(u64, Numbered)> {
        let mut fields = Fields(value);
        let (run, first, hlc) = (fields.run()?, Seq(fields.u64()?), Hlc(fields.u64()?));
        let (count, late) = (fields.u32()?, fields.flag()?);
        let mut number = Fields(key.get(1..)?);
        let named = number.u64()?;
        let whole = fields.end() && number.end();
        whole.then_some((named, Numbered { stamp: Stamp { hlc, run, first }, count, late }))
    }
}

impl RoomRow {
    pub fn value(&self) -> Vec<u8> {
        [self.messages.to_be_bytes(), self.newest.0.to_be_bytes()].concat()
    }

    pub fn read(value: &[u8]) -> Option<RoomRow> {
        let mut fields = Fields(value);
        let row = RoomRow { messages: fields.u64()?, newest: Hlc(fields.u64()?) };
        fields.end().then_some(row)
    }
}

impl KeyRow {
    pub fn key(key: Key) -> Vec<u8> {
        named_key(table::KEY, &key.0)
    }

    pub fn value(&self) -> Vec<u8> {
        let Namesakes { smallest, smallest_lives, living, others } = &self.namesakes;
        let mut value = Vec::with_capacity(62 + self.room.as_str().len() + others.len() * 56);
        put_place(&mut value, smallest);
        value.push(u8::from(*smallest_lives));
        value.extend_from_slice(&living.to_be_bytes());
        value.extend_from_slice(self.room.as_str().as_bytes());
        if !others.is_empty() {
            // No room has a byte of zero in its name.
            value.push(0);
            others.iter().for_each(|other| put_place(&mut value, other));
        }
        value
    }

    pub fn read(value: &[u8]) -> Option<KeyRow> {
        let mut fields = Fields(value);
        let smallest = fields.place()?;
        let (smallest_lives, living) = (fields.flag()?, fields.u32()?);
        let room_ends = fields.0.iter().position(|byte| *byte == 0).unwrap_or(fields.0.len());
        let room = Room::of_entry(std::str::from_utf8(&fields.0[..room_ends]).ok()?).ok()?;
        let mut rest = Fields(fields.0.get(room_ends + 1..).unwrap_or_default());
        let mut others = Vec::new();
        while !rest.end() {
            others.push(rest.place()?);
        }
        Some(KeyRow { namesakes: Namesakes { smallest, smallest_lives, living, others }, room })
    }
}

impl OriginRow {
    pub fn value(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(84);
        for number in [self.disk.floor.0, self.disk.newest.0, self.bytes] {
            value.extend_from_slice(&number.to_be_bytes());
        }
        for set in [&self.disk.stored, &self.disk.admitted, &self.disk.settled] {
            put_ranges(&mut value, set);
        }
        seal(value)
    }

    /// From a row of table V.
    pub fn read(key: &[u8], value: &[u8]) -> Option<OriginRow> {
        let mut name = Fields(key.get(1..)?);
        let run = name.run()?;
        let mut fields = Fields(open(value)?);
        let (floor, newest, bytes) = (Seq(fields.u64()?), Hlc(fields.u64()?), fields.u64()?);
        let (stored, admitted, settled) = (fields.ranges()?, fields.ranges()?, fields.ranges()?);
        let disk = OnDisk { run, floor, stored, admitted, settled, newest };
        (name.end() && fields.end()).then_some(OriginRow { disk, bytes })
    }
}

impl Totals {
    pub const NAME: &'static [u8] = b"totals";

    pub fn value(&self) -> Vec<u8> {
        seal([self.horizon.0.to_be_bytes(), self.admitted.to_be_bytes()].concat())
    }

    pub fn read(value: &[u8]) -> Option<Totals> {
        let mut fields = Fields(open(value)?);
        let totals = Totals { horizon: Hlc(fields.u64()?), admitted: fields.u64()? };
        fields.end().then_some(totals)
    }
}

/// The version of the format and the id of the log, made with it.
pub(super) const BIRTH_NAME: &[u8] = b"birth";

pub(super) fn birth_value(log: u64) -> Vec<u8> {
    seal([&FORMAT_VERSION.to_be_bytes()[..], &log.to_be_bytes()].concat())
}

pub(super) fn read_birth(value: &[u8]) -> Option<(u32, u64)> {
    let mut fields = Fields(open(value)?);
    let birth = (fields.u32()?, fields.u64()?);
    fields.end().then_some(birth)
}

impl Durable {
    pub(super) fn value(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(28 + self.covered.len() * 72);
        for number in [self.position, self.log, self.acked_ms] {
            value.extend_from_slice(&number.to_be_bytes());
        }
        for (run, (seqs, newest)) in &self.covered {
            put_run(&mut value, *run);
            value.extend_from_slice(&newest.0.to_be_bytes());
            put_ranges(&mut value, seqs);
        }
        seal(value)
    }

    /// From a row of table D.
    pub(super) fn read(key: &[u8], value: &[u8]) -> Option<Durable> {
        let name = std::str::from_utf8(key.get(1..)?).ok()?.to_string();
        let mut fields = Fields(open(value)?);
        let (position, log, acked_ms) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let mut covered = BTreeMap::new();
        while !fields.end() {
            let (run, newest) = (fields.run()?, Hlc(fields.u64()?));
            covered.insert(run, (fields.ranges()?, newest));
        }
        Some(Durable { name, covered, position, log, acked_ms })
    }
}

pub(super) fn progress_value(progress: &Progress) -> Vec<u8> {
    seal(progress.to_bytes())
}

pub(super) fn read_progress(value: &[u8]) -> Option<Progress> {
    Progress::from_bytes(open(value)?)
}

/// The word of the site, and the entry that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SiteRow {
    pub place: Place,
    pub word: Arc<str>,
}

impl SiteRow {
    pub fn value(&self) -> Vec<u8> {
        let mut value = Vec::new();
        put_place(&mut value, &self.place);
        value.extend_from_slice(self.word.as_bytes());
        seal(value)
    }

    pub fn read(value: &[u8]) -> Option<SiteRow> {
        let mut fields = Fields(open(value)?);
        let place = fields.place()?;
        Some(SiteRow { place, word: std::str::from_utf8(fields.0).ok()?.into() })
    }
}

/// Version and checksum before a value that is not of fixed length and decides what is on disk.
fn seal(value: Vec<u8>) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(9 + value.len());
    sealed.push(FORMAT_VERSION as u8);
    sealed.extend_from_slice(&blake3::hash(&value).as_bytes()[..8]);
    sealed.extend_from_slice(&value);
    sealed
}

fn open(sealed: &[u8]) -> Option<&[u8]> {
    let (head, value) = sealed.split_at_checked(9)?;
    (u32::from(head[0]) == FORMAT_VERSION && head[1..] == blake3::hash(value).as_bytes()[..8]).then_some(value)
}

fn put_run(bytes: &mut Vec<u8>, run: Run) {
    bytes.extend_from_slice(&run.node.0);
    bytes.extend_from_slice(&run.epoch.0.to_be_bytes());
}

fn put_place(bytes: &mut Vec<u8>, place: &Place) {
    bytes.extend_from_slice(&place.hlc.0.to_be_bytes());
    put_run(bytes, place.id.run);
    bytes.extend_from_slice(&place.id.seq.0.to_be_bytes());
}

fn put_ranges(bytes: &mut Vec<u8>, set: &RangeSet) {
    bytes.extend_from_slice(&(set.ranges_len() as u32).to_be_bytes());
    for (first, last) in set.iter() {
        bytes.extend_from_slice(&first.0.to_be_bytes());
        bytes.extend_from_slice(&last.0.to_be_bytes());
    }
}

/// Reads fields from the front; none where the bytes end too early or say the impossible.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.array::<1>()? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }

    fn run(&mut self) -> Option<Run> {
        Some(Run { node: NodeId(self.array()?), epoch: Epoch(self.u64()?) })
    }

    fn place(&mut self) -> Option<Place> {
        Some(Place { hlc: Hlc(self.u64()?), id: EntryId { run: self.run()?, seq: Seq(self.u64()?) } })
    }

    fn stamp(&mut self) -> Option<Stamp> {
        Some(Stamp { hlc: Hlc(self.u64()?), run: self.run()?, first: Seq(self.u64()?) })
    }

    fn ranges(&mut self) -> Option<RangeSet> {
        let count = self.u32()?;
        let mut set = RangeSet::new();
        for _ in 0..count {
            let (first, last) = (self.u64()?, self.u64()?);
            if first > last {
                return None;
            }
            set.insert(Seq(first), Seq(last));
        }
        Some(set)
    }

    fn end(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(byte: u8) -> Run {
        Run { node: NodeId([byte; 32]), epoch: Epoch(u64::from(byte)) }
    }

    #[test]
    fn rows_read_what_they_wrote_and_nothing_cut_or_longer() {
        let stamp = Stamp { hlc: Hlc::at(5), run: run(7), first: Seq(3) };
        assert_eq!(Stamp::read(&stamp.batch_key()[1..]), Some(stamp));
        let extent = Extent { stamp, count: 4, bytes: 99 };
        assert_eq!(Extent::read(&stamp.seq_key(), &extent.value()), Some(extent));
        let numbered = Numbered { stamp, count: 4, late: true };
        assert_eq!(Numbered::read(&number_key(8), &numbered.value()), Some((8, numbered)));
        let place = Place { hlc: Hlc::at(5), id: EntryId { run: run(7), seq: Seq(3) } };
        let mut named = KeyRow { namesakes: Namesakes::first(place), room: Room::lobby() };
        assert_eq!(KeyRow::read(&named.value()).as_ref(), Some(&named));
        named.namesakes.insert(Place { hlc: Hlc::at(4), ..place });
        named.namesakes.insert(Place { hlc: Hlc::at(6), ..place });
        assert_eq!(KeyRow::read(&named.value()).as_ref(), Some(&named));
        assert_eq!(KeyRow::read(&named.value()[..named.value().len() - 1]), None);
        for len in 0..16 {
            assert_eq!(Extent::read(&stamp.seq_key(), &extent.value()[..len]), None);
        }
        assert_eq!(Extent::read(&stamp.seq_key(), &[extent.value(), vec![0]].concat()), None);
    }

    #[test]
    fn any_flipped_bit_in_a_checked_row_is_noticed() {
        let ranges = RangeSet::of(Seq(2), Seq(9));
        let disk = OnDisk {
            run: run(7),
            floor: Seq(1),
            stored: ranges.clone(),
            admitted: ranges.clone(),
            settled: RangeSet::new(),
            newest: Hlc::at(6),
        };
        let origin = OriginRow { disk, bytes: 77 };
        let (key, value) = (run_key(table::ORIGIN, origin.disk.run), origin.value());
        assert_eq!(OriginRow::read(&key, &value), Some(origin));
        for at in 0..value.len() {
            let mut bad = value.clone();
            bad[at] ^= 4;
            assert_eq!(OriginRow::read(&key, &bad), None, "byte {at}");
        }
        let totals = Totals { horizon: Hlc::at(3), admitted: 9 };
        assert_eq!(Totals::read(&totals.value()), Some(totals));
        let covered = BTreeMap::from([(run(1), (ranges, Hlc::at(3)))]);
        let durable = Durable { name: "d".into(), covered, position: 4, log: 5, acked_ms: 6 };
        assert_eq!(Durable::read(&named_key(table::DURABLE, b"d"), &durable.value()), Some(durable));
    }

    #[test]
    fn keys_are_in_the_order_of_what_they_name() {
        let stamp = |ms, byte, first| Stamp { hlc: Hlc::at(ms), run: run(byte), first: Seq(first) };
        let ordered = [stamp(1, 9, 300), stamp(2, 1, 1), stamp(2, 1, 256), stamp(2, 2, 1)];
        assert!(ordered.is_sorted() && ordered.iter().map(Stamp::batch_key).is_sorted());
        assert!(number_key(255) < number_key(256));
    }
}
