//! The log as handles use it: questions that block, asked from where nothing may block.

use tokio::sync::watch;

use super::{Health, Keeper, Reader, Want};
use crate::aside::Aside;
use crate::error::HistoryError;
use crate::id::{EntryId, Seq};
use crate::replica::batch::{Batch, Entry};
use crate::replica::keys::Place;
use crate::replica::version::Cursor;

/// The reading end of the log. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct LogHandle {
    pub reader: Reader,
    /// Named cursors are kept through this.
    pub keeper: Keeper,
    pub health: watch::Receiver<Health>,
    /// The highest local number given.
    pub admitted: watch::Receiver<u64>,
    /// Grows with each group that reached the disk.
    pub commits: watch::Receiver<u64>,
    aside: Aside,
}

/// A batch in local order.
#[derive(Debug)]
pub(crate) struct Numbered {
    pub number: u64,
    pub batch: Batch,
    /// Entries of its origin that follow it had numbers before.
    pub late: bool,
    /// The entries in it that have others with their key, and these.
    pub namesakes: Vec<(Seq, Vec<EntryId>)>,
}

/// Batches from the log, in time order.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// Each with the entries in it that are not to be given.
    pub batches: Vec<(Batch, Vec<Seq>)>,
    /// Whether there are more.
    pub more: bool,
}

/// Bytes of batches read in one go.
const CHUNK_BYTES_MAX: usize = 1024 * 1024;
/// Batches read in one go.
const CHUNK_BATCHES_MAX: usize = 4096;

impl LogHandle {
    pub fn new(
        reader: Reader,
        keeper: Keeper,
        health: watch::Receiver<Health>,
        admitted: watch::Receiver<u64>,
        commits: watch::Receiver<u64>,
        aside: Aside,
    ) -> LogHandle {
        LogHandle { reader, keeper, health, admitted, commits, aside }
    }

    /// Reads the log on a thread of its own.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, HistoryError> + Send + 'static,
    ) -> Result<T, HistoryError> {
        let reader = self.reader.clone();
        self.aside.run(move || read(&reader)).await.unwrap_or(Err(HistoryError::Closed))
    }

    /// The next batches that `covered` does not cover.
    pub async fn uncovered(&self, covered: Cursor) -> Result<Chunk, HistoryError> {
        self.read(move |reader| {
            let (batches, more) = reader.uncovered(&covered, &Want::default(), CHUNK_BATCHES_MAX, CHUNK_BYTES_MAX)?;
            let hidden = |batch: Batch| hidden(reader, &batch, &covered).map(|hidden| (batch, hidden));
            Ok(Chunk { batches: batches.into_iter().map(hidden).collect::<Result<_, _>>()?, more })
        })
        .await
    }

    /// The next batches by local number, from `number` on.
    pub async fn admitted_from(&self, number: u64) -> Result<Vec<Numbered>, HistoryError> {
        self.read(move |reader| {
            let batches = reader.admitted(number, CHUNK_BATCHES_MAX, CHUNK_BYTES_MAX)?;
            let numbered = |(number, batch, late)| {
                let namesakes = namesakes(reader, &batch)?;
                Ok(Numbered { number, batch, late, namesakes })
            };
            batches.into_iter().map(numbered).collect()
        })
        .await
    }

    /// Messages after a place, ascending, and where to go on.
    pub async fn scan(
        &self,
        want: Want,
        from: Option<Place>,
        limit: usize,
    ) -> Result<(Vec<Entry>, Option<Place>), HistoryError> {
        self.read(move |reader| reader.scan(&want, from, limit, CHUNK_BYTES_MAX)).await
    }
}

/// The entries of a batch that count as covered, because another one with their key is.
fn hidden(reader: &Reader, batch: &Batch, covered: &Cursor) -> Result<Vec<Seq>, HistoryError> {
    let mut hidden = Vec::new();
    for (id, key) in batch.keys().unwrap_or_default() {
        if reader.hides(key, id, covered)? {
            hidden.push(id.seq);
        }
    }
    Ok(hidden)
}

/// The entries of a batch that have others with their key.
fn namesakes(reader: &Reader, batch: &Batch) -> Result<Vec<(Seq, Vec<EntryId>)>, HistoryError> {
    let mut found = Vec::new();
    for (id, key) in batch.keys().unwrap_or_default() {
        let beside: Vec<EntryId> =
            reader.namesakes(key)?.iter().flat_map(|known| known.beside(id)).map(|place| place.id).collect();
        if !beside.is_empty() {
            found.push((id.seq, beside));
        }
    }
    Ok(found)
}
