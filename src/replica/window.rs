//! The newest batches in memory, within a bound in bytes; the oldest by time leave first.

use std::collections::{BTreeSet, HashMap};

use super::batch::Batch;
use super::clock::Hlc;
use crate::id::{EntryId, Key, Run, Seq};

/// What a batch costs besides its bytes.
const OVERHEAD_BYTES: usize = 256;

#[derive(Debug)]
pub(crate) struct Window {
    bytes_max: usize,
    bytes: usize,
    order: BTreeSet<(Hlc, Run, Seq)>,
    keys: HashMap<Key, EntryId>,
}

impl Window {
    pub fn new(bytes_max: usize) -> Window {
        Window { bytes_max, bytes: 0, order: BTreeSet::new(), keys: HashMap::new() }
    }

    pub fn insert(&mut self, batch: &Batch) {
        self.bytes += batch.bytes().len() + OVERHEAD_BYTES;
        self.order.insert((batch.hlc(), batch.origin(), batch.first()));
        for (id, key) in batch.keys().unwrap_or_default() {
            self.keys.entry(key).or_insert(id);
        }
    }

    pub fn remove(&mut self, batch: &Batch) {
        self.bytes -= batch.bytes().len() + OVERHEAD_BYTES;
        self.order.remove(&(batch.hlc(), batch.origin(), batch.first()));
        for (id, key) in batch.keys().unwrap_or_default() {
            if self.keys.get(&key) == Some(&id) {
                self.keys.remove(&key);
            }
        }
    }

    /// The batch that has to leave, while there are too many bytes; never the last one.
    pub fn surplus(&self) -> Option<(Run, Seq)> {
        let oldest = self.order.first().filter(|_| self.bytes > self.bytes_max && self.order.len() > 1)?;
        Some((oldest.1, oldest.2))
    }

    /// The entry with this key.
    pub fn find(&self, key: &Key) -> Option<EntryId> {
        self.keys.get(key).copied()
    }

    /// The batches, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (Run, Seq)> + '_ {
        self.order.iter().map(|(_, run, first)| (*run, *first))
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn len(&self) -> usize {
        self.order.len()
    }
}
