//! What stands for the history in a build without the feature `history`: nothing can be opened, so nothing can be asked.

mod ask;
mod want;

use std::collections::BTreeMap;
use std::path::PathBuf;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{oneshot, watch};

use crate::config::Fsync;
use crate::error::{HistoryError, StartError};
use crate::id::{EntryId, Key, Room, Run};
use crate::metrics::Metrics;
use crate::replica::batch::{Batch, Entry};
use crate::replica::clock::Hlc;
use crate::replica::event::{Kept, Opened, Order, Report};
use crate::replica::keys::{Namesakes, Place};
use crate::replica::ranges::RangeSet;
use crate::replica::version::Cursor;

pub(crate) use ask::{Chunk, LogHandle, Numbered};
pub(crate) use want::Want;

#[derive(Clone, Debug)]
#[expect(dead_code, reason = "nothing is opened with them")]
pub(crate) struct Options {
    pub folder: PathBuf,
    pub fsync: Fsync,
    pub retain_days: u32,
    pub retain_bytes: u64,
}

/// Whether the disk takes what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(dead_code, reason = "no disk, no health")]
pub(crate) enum Health {
    Working,
    Full,
    Failing,
}

/// A named cursor.
#[derive(Clone, Debug)]
pub(crate) struct Durable {
    pub name: String,
    pub covered: BTreeMap<Run, (RangeSet, Hlc)>,
    pub position: u64,
    pub log: u64,
    pub acked_ms: u64,
}

/// A history that cannot be.
#[derive(Debug)]
pub(crate) struct History(());

/// Reads nothing.
#[derive(Clone, Debug)]
pub(crate) struct Reader(());

/// Keeps nothing.
#[derive(Clone, Debug)]
pub(crate) struct Keeper(());

impl History {
    pub fn open(options: Options, _: Metrics, _: UnboundedSender<Report>) -> Result<(History, Opened), StartError> {
        let Options { folder, fsync: _, retain_days: _, retain_bytes: _ } = options;
        Err(StartError::Config(format!("this build keeps no history, so there is none in {}", folder.display())))
    }

    pub fn order(&self, _: Order) {}

    pub fn reader(&self) -> Reader {
        Reader(())
    }

    pub fn keeper(&self) -> Keeper {
        Keeper(())
    }

    pub fn health(&self) -> watch::Receiver<Health> {
        watch::channel(Health::Failing).1
    }

    pub fn admitted(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }

    pub fn close(self) {}
}

impl Keeper {
    pub fn save_durable(&self, _: Durable) -> oneshot::Receiver<Result<(), HistoryError>> {
        oneshot::channel().1
    }

    pub fn remove_durable(&self, _: &str) -> oneshot::Receiver<Result<(), HistoryError>> {
        oneshot::channel().1
    }
}

impl Reader {
    pub fn newest(&self, _: &Want, _: Option<Place>, _: usize) -> Result<Vec<Entry>, HistoryError> {
        Err(HistoryError::Closed)
    }

    pub fn scan(
        &self,
        _: &Want,
        _: Option<Place>,
        _: usize,
        _: usize,
    ) -> Result<(Vec<Entry>, Option<Place>), HistoryError> {
        Err(HistoryError::Closed)
    }

    pub fn uncovered(&self, _: &Cursor, _: &Want, _: usize, _: usize) -> Result<(Vec<Batch>, bool), HistoryError> {
        Err(HistoryError::Closed)
    }

    pub fn vector(&self, _: Option<&Cursor>) -> Result<BTreeMap<Run, (RangeSet, Hlc)>, HistoryError> {
        Err(HistoryError::Closed)
    }

    pub fn find(&self, _: Key) -> Result<Option<Place>, HistoryError> {
        Err(HistoryError::Closed)
    }

    pub fn may_hold(&self, _: Key) -> bool {
        true
    }

    pub fn entry(&self, _: EntryId) -> Result<Option<Entry>, HistoryError> {
        Err(HistoryError::Closed)
    }

    pub fn namesakes(&self, _: Key) -> Result<Option<Namesakes>, HistoryError> {
        Err(HistoryError::Closed)
    }

    pub fn hides(&self, _: Key, _: EntryId, _: &Cursor) -> Result<bool, HistoryError> {
        Err(HistoryError::Closed)
    }

    pub fn rooms(&self) -> Result<Vec<(Room, u64, Hlc)>, HistoryError> {
        Err(HistoryError::Closed)
    }

    pub fn admitted(&self, _: u64, _: usize, _: usize) -> Result<Vec<(u64, Batch, bool)>, HistoryError> {
        Err(HistoryError::Closed)
    }

    pub fn durables(&self) -> Result<Vec<Durable>, HistoryError> {
        Err(HistoryError::Closed)
    }

    pub fn durable(&self, _: &str) -> Result<Option<Durable>, HistoryError> {
        Err(HistoryError::Closed)
    }

    pub fn log(&self) -> Result<u64, HistoryError> {
        Err(HistoryError::Closed)
    }

    pub fn export(&self, _: Option<Place>, _: usize) -> Result<Vec<Kept>, HistoryError> {
        Err(HistoryError::Closed)
    }
}
