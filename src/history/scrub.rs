//! Reads the whole log once after it is opened, in the background and in small slices, and tells of what does not fit.
//!
//! fjall loses what follows a flipped byte in a journal without a word, and a missing journal leaves a hole in the middle;
//! so every record is hashed here, and all rows that speak of it are held against it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Duration;

use super::Command;
use super::filter::KeyFilter;
use super::rows::{self, Durable, KeyRow, Numbered, OriginRow, RoomRow, SiteRow, Stamp, read_progress, table};
use super::store::{Fault, Store, View, bad, checked, guarded, read_extent, read_kept};
use crate::id::{Key, Run};
use crate::replica::batch::Batch;
use crate::replica::ranges::RangeSet;

/// How much is read at a stretch.
const SLICE_ROWS: usize = 500;
/// The same in bytes.
const SLICE_BYTES: usize = 2 * 1024 * 1024;
/// How long others have the disk then.
const PAUSE: Duration = Duration::from_millis(3);

/// Starts it; none if there is no thread to be had: it is done at the next opening then.
pub(super) fn start(store: Arc<Store>, keys: Arc<KeyFilter>, commands: Sender<Command>) -> Option<JoinHandle<()>> {
    let work = move || {
        let found = guarded(|| check(&store, &keys));
        match found {
            Ok(()) => store.set_checked(),
            Err(Fault::Damaged(what)) => _ = commands.send(Command::Damaged(store.generation, what)),
            Err(fault) => tracing::debug!("the history was not read to its end: {fault}"),
        }
    };
    std::thread::Builder::new().name("history-scrub".into()).spawn(work).ok()
}

/// Reads everything, and adds the keys that it finds; an error says what does not fit.
pub(super) fn check(store: &Store, keys: &KeyFilter) -> Result<(), Fault> {
    let view = store.view();
    let mut scrub = Scrub { view: &view, rows: 0, bytes: 0 };
    scrub.keys(keys)?;
    scrub.all()
}

/// One reading; counts what the current slice has taken.
struct Scrub<'a> {
    view: &'a View<'a>,
    rows: usize,
    bytes: usize,
}

impl Scrub<'_> {
    fn all(mut self) -> Result<(), Fault> {
        let mut origins = self.origins()?;
        let count = self.seqs(&origins)?;
        let records = self.records()?;
        if records != count {
            return Err(Fault::Damaged(format!("{count} batches are known and {records} are there")));
        }
        self.numbers(&mut origins)?;
        self.rest()
    }

    /// Keys come first: as long as not all are known, publishes with a key ask the disk.
    fn keys(&mut self, keys: &KeyFilter) -> Result<(), Fault> {
        for row in self.view.rows(rows::below(&[table::KEY])) {
            let (key, value) = row?;
            self.pace(value.len())?;
            let name = key.get(1..).and_then(|name| name.try_into().ok()).map(Key);
            match name.filter(|_| KeyRow::read(&value).is_some()) {
                Some(key) => keys.add(key),
                None => return Err(bad("key")),
            }
        }
        keys.set_complete();
        Ok(())
    }

    fn origins(&mut self) -> Result<BTreeMap<Run, OriginRow>, Fault> {
        let mut origins = BTreeMap::new();
        for row in self.view.rows(rows::below(&[table::ORIGIN])) {
            let (key, value) = row?;
            self.pace(value.len())?;
            let origin = OriginRow::read(&key, &value).ok_or_else(|| bad("origin"))?;
            origins.insert(origin.disk.run, origin);
        }
        Ok(origins)
    }

    /// What is stored of each origin is what its batches hold; answers how many there are.
    fn seqs(&mut self, origins: &BTreeMap<Run, OriginRow>) -> Result<u64, Fault> {
        let mut found: BTreeMap<Run, (RangeSet, u64)> = BTreeMap::new();
        let mut count = 0;
        for row in self.view.rows(rows::below(&[table::SEQ])) {
            let (key, value) = row?;
            self.pace(value.len())?;
            let extent = read_extent(&key, &value)?;
            let (stored, bytes) = found.entry(extent.stamp.run).or_default();
            stored.insert(extent.stamp.first, extent.last());
            *bytes += u64::from(extent.bytes);
            count += 1;
        }
        for OriginRow { disk, bytes } in origins.values() {
            if found.remove(&disk.run).unwrap_or_default() != (disk.stored.clone(), *bytes) {
                return Err(Fault::Damaged(format!("what is stored of {:?} is not what is said", disk.run)));
            }
        }
        match found.keys().next() {
            Some(run) => Err(Fault::Damaged(format!("batches of {run:?} are there that nothing speaks of"))),
            None => Ok(count),
        }
    }

    /// Every record is whole, and known by seq and by its rooms.
    fn records(&mut self) -> Result<u64, Fault> {
        let mut count = 0;
        for row in self.view.rows(rows::below(&[table::BATCH])) {
            let (key, value) = row?;
            self.pace(value.len())?;
            let stamp = Stamp::read(&key[1..]).ok_or_else(|| bad("batch"))?;
            let bytes = value.len();
            let kept = checked(read_kept(&stamp, value)?, Batch::check_body)?;
            let by_seq = stamp.seq_key();
            let extent = self.view.get(&by_seq)?.map(|value| read_extent(&by_seq, &value)).transpose()?;
            let fits = extent.is_some_and(|extent| {
                extent.stamp == stamp && extent.count == kept.batch.count() && extent.bytes as usize == bytes
            });
            if !fits {
                return Err(Fault::Damaged(format!("the record of {stamp:?} is not known by its seq")));
            }
            if let Some(Ok(entry)) = kept.batch.entries().next()
                && !self.view.has(&stamp.room_key(&entry.room))?
            {
                return Err(Fault::Damaged(format!("the record of {stamp:?} is not known in its room")));
            }
            count += 1;
        }
        Ok(count)
    }

    /// What has numbers is what is said to have them; what has gone may have them still.
    fn numbers(&mut self, origins: &mut BTreeMap<Run, OriginRow>) -> Result<(), Fault> {
        for row in self.view.rows(rows::below(&[table::ADMITTED])) {
            let (key, value) = row?;
            self.pace(value.len())?;
            let (number, numbered) = Numbered::read(&key, &value).ok_or_else(|| bad("number"))?;
            let (first, last) = (numbered.stamp.first, numbered.last());
            let Some(OriginRow { disk, .. }) = origins.get_mut(&numbered.stamp.run) else { continue };
            if last <= disk.floor {
                continue;
            }
            if !disk.admitted.covers(first, last) {
                return Err(Fault::Damaged(format!("number {number} was never given, or twice")));
            }
            disk.admitted.remove(first, last);
        }
        match origins.values().find(|origin| !origin.disk.admitted.is_empty()) {
            Some(origin) => Err(Fault::Damaged(format!("entries of {:?} have lost their numbers", origin.disk.run))),
            None => Ok(()),
        }
    }

    /// Rows that have nothing to be held against.
    fn rest(&mut self) -> Result<(), Fault> {
        for row in self.view.rows(rows::below(&[table::ROOM_BATCH])) {
            let (key, value) = row?;
            self.pace(value.len())?;
            let at = key.iter().position(|byte| *byte == 0).unwrap_or(key.len());
            let stamp = key.get(at + 1..).and_then(Stamp::read).ok_or_else(|| bad("room batch"))?;
            if value.len() != 4 || !self.view.has(&stamp.seq_key())? {
                return Err(Fault::Damaged(format!("a room speaks of {stamp:?}, which is not there")));
            }
        }
        for (table, reads) in [
            (table::ROOM, (|_: &[u8], value: &[u8]| RoomRow::read(value).is_some()) as fn(&[u8], &[u8]) -> bool),
            (table::DURABLE, |key, value| Durable::read(key, value).is_some()),
            (table::PROGRESS, |key, value| match key.len() {
                1 => SiteRow::read(value).is_some(),
                _ => read_progress(value).is_some(),
            }),
        ] {
            for row in self.view.rows(rows::below(&[table])) {
                let (key, value) = row?;
                self.pace(value.len())?;
                if !reads(&key, &value) {
                    return Err(bad(&char::from(table).to_string()));
                }
            }
        }
        Ok(())
    }

    /// Lets others have the disk after each slice.
    fn pace(&mut self, bytes: usize) -> Result<(), Fault> {
        self.rows += 1;
        self.bytes += bytes;
        if self.rows >= SLICE_ROWS || self.bytes >= SLICE_BYTES {
            (self.rows, self.bytes) = (0, 0);
            std::thread::sleep(PAUSE);
            self.view.check_open()?;
        }
        Ok(())
    }
}
