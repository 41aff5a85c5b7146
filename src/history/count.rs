//! The log without its threads, so that what a commit takes can be counted. Not for use.

use std::path::Path;
use std::sync::Arc;

use super::filter::KeyFilter;
use super::log::Log;
use super::store::Store;
use crate::error::HistoryError;
use crate::replica::event::{Kept, Span};

/// A log that its caller writes.
pub(crate) struct Bare(Log);

impl Bare {
    /// Makes a log in `folder`, which is empty.
    pub fn open(folder: &Path) -> Result<Bare, HistoryError> {
        let store = Arc::new(Store::open(folder, 1)?);
        Ok(Bare(Log::load(store, Arc::new(KeyFilter::new()))?))
    }

    /// Commits a batch, as the writer does with `Fsync::Always`; its number waits for the next commit.
    pub fn keep(&mut self, kept: Kept) -> Result<(), HistoryError> {
        let Kept { batch, .. } = &kept;
        let span = Span { run: batch.origin(), first: batch.first(), last: batch.last() };
        self.0.append(&kept)?;
        self.0.commit(true)?;
        Ok(self.0.admit(span, false)?)
    }
}
