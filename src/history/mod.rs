//! The disk: every batch as it came over the wire, and the rows that find it again.
//!
//! One thread writes: it owns the log, takes [`Order`]s one after the other, puts all that waits into one atomic commit and
//! reports after its fsync. A second thread answers loads, so that a slow fsync does not delay a repair. Any thread may read
//! through a [`Reader`]. A disk that fails closes the log, which is tried again every second; a log that contradicts itself
//! is moved aside, a new one is begun, and what still verifies of the old one is found in the background.
//!
//! What is promised: nothing is reported as stored that a power cut could take (unless told [`Fsync::Os`]); all rows
//! that speak of a batch come and go with it; a history of a newer version is not touched; memory stays bounded however long
//! the log is.

mod aside;
mod ask;
#[cfg(feature = "count")]
pub(crate) mod count;
mod filter;
mod log;
mod read;
mod rows;
mod scrub;
mod store;
#[cfg(test)]
mod tests;
mod want;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{oneshot, watch};

use crate::config::Fsync;
use crate::error::{HistoryError, StartError};
use crate::id::Seq;
use crate::metrics::Metrics;
use crate::replica::event::{Load, Opened, Order, Report};
use filter::KeyFilter;
use store::Store;
use writer::Writer;

pub(crate) use ask::{Chunk, LogHandle, Numbered};
pub use read::Reader;
pub use rows::Durable;
pub use want::Want;

/// How and where a history is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its folder, `DIR/history`. A damaged one is moved to `DIR/history.damaged-N`. The caller holds the lock of `DIR`.
    pub folder: PathBuf,
    /// When a batch counts as stored.
    pub fsync: Fsync,
    /// Batches older than this are let go, in days.
    pub retain_days: u32,
    /// The oldest batches are let go while all take more than this.
    pub retain_bytes: u64,
}

/// Whether the disk takes what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// It does.
    Working,
    /// There is no space left.
    Full,
    /// It gives errors; it is tried again every second.
    Failing,
}

/// A history that is open. Dropping it ends what was ordered, syncs, and joins its threads.
#[derive(Debug)]
pub struct History {
    commands: Sender<Command>,
    loads: Option<Sender<Load>>,
    reader: Reader,
    keeper: Keeper,
    health: watch::Receiver<Health>,
    admitted: watch::Receiver<u64>,
    threads: Vec<JoinHandle<()>>,
}

/// Keeps durable cursors. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Keeper {
    commands: Sender<Command>,
}

/// What the writer is told.
#[derive(Debug)]
enum Command {
    Order(Order),
    SaveDurable(Durable, oneshot::Sender<Result<(), HistoryError>>),
    RemoveDurable(String, oneshot::Sender<Result<(), HistoryError>>),
    /// Somebody found damage in the log of this generation.
    Damaged(u64, String),
    Close,
}

/// What threads of one history share: the log that is open now, if any, and the keys of all that were open.
#[derive(Debug)]
struct Shared {
    store: RwLock<Option<Arc<Store>>>,
    /// Set once the log was opened or made for the first time, or could not be: until then, readers wait.
    begun: OnceLock<()>,
    keys: Arc<KeyFilter>,
    generation: AtomicU64,
}

impl History {
    /// Opens the history in a folder, or makes one; orders are answered through `reports`. What is damaged is moved aside.
    ///
    /// Blocks for as long as the journal takes to be read: about a second. A history that is new is known to be empty, and is
    /// made while its first orders wait. If the disk is full, what is answered is empty and an [`Report::Opened`] follows
    /// when it is not.
    ///
    /// # Errors
    /// [`StartError::NewerHistory`], [`StartError::DataDir`] without rights or if a damaged history cannot be moved,
    /// [`StartError::Locked`], [`StartError::System`].
    pub fn open(
        options: Options,
        metrics: Metrics,
        reports: UnboundedSender<Report>,
    ) -> Result<(History, Opened), StartError> {
        let (commands, inbox) = channel();
        let (health_out, health) = watch::channel(Health::Working);
        let (admitted_out, admitted) = watch::channel(0);
        let shared = Arc::new(Shared {
            store: RwLock::new(None),
            begun: OnceLock::new(),
            keys: Arc::new(KeyFilter::new()),
            generation: AtomicU64::new(0),
        });
        let reader = Reader::new(shared.clone(), commands.clone());
        let mut writer =
            Writer::new(options, metrics, shared, commands.clone(), reports.clone(), health_out, admitted_out);
        let opened = writer.start()?;
        let mut threads = vec![spawn("history", move || {
            writer.begin();
            writer.run(&inbox);
        })?];
        let (loads, questions) = channel();
        let answering = reader.clone();
        threads.push(spawn("history-read", move || answer_loads(&answering, &questions, &reports))?);
        let keeper = Keeper { commands: commands.clone() };
        Ok((History { commands, loads: Some(loads), reader, keeper, health, admitted, threads }, opened))
    }

    /// Has something done. Never blocks; the caller bounds how much is under way.
    pub fn order(&self, order: Order) {
        // Both threads live as long as this.
        match (order, &self.loads) {
            (Order::Load(load), Some(loads)) => _ = loads.send(load),
            (order, _) => _ = self.commands.send(Command::Order(order)),
        }
    }

    /// Reads, from any thread that may block.
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// Keeps durable cursors.
    pub fn keeper(&self) -> Keeper {
        self.keeper.clone()
    }

    /// Whether the disk works, and every change of that.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// The highest local number given, and every change of it.
    pub fn admitted(&self) -> watch::Receiver<u64> {
        self.admitted.clone()
    }

    /// Whether the log that is open has been read once to its end and all of it fits together.
    #[cfg(test)]
    pub fn is_checked(&self) -> bool {
        self.reader.is_checked()
    }

    /// Does all that was ordered, syncs, and ends.
    pub fn close(self) {
        drop(self);
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.loads = None;
        let _ = self.commands.send(Command::Close);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the history had panicked");
            }
        }
    }
}

impl Keeper {
    /// Keeps a durable cursor; answered once it is as safe as a stored batch.
    pub fn save_durable(&self, durable: Durable) -> oneshot::Receiver<Result<(), HistoryError>> {
        self.tell(|answer| Command::SaveDurable(durable, answer))
    }

    /// Forgets a durable cursor, whether there is one or not.
    pub fn remove_durable(&self, name: &str) -> oneshot::Receiver<Result<(), HistoryError>> {
        self.tell(|answer| Command::RemoveDurable(name.into(), answer))
    }

    fn tell(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<(), HistoryError>>) -> Command,
    ) -> oneshot::Receiver<Result<(), HistoryError>> {
        let (answer, answered) = oneshot::channel();
        // A writer that has ended drops the answer, which says so.
        let _ = self.commands.send(command(answer));
        answered
    }
}

impl Shared {
    fn current(&self) -> Option<Arc<Store>> {
        self.begun.wait();
        self.store.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, store: Option<Arc<Store>>) -> Option<Arc<Store>> {
        std::mem::replace(&mut *self.store.write().unwrap_or_else(PoisonError::into_inner), store)
    }

    fn next_generation(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::Relaxed) + 1
    }
}

fn spawn(name: &'static str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(work);
    thread.map_err(|source| StartError::System { what: "cannot start a thread of the history", source })
}

fn answer_loads(reader: &Reader, questions: &Receiver<Load>, reports: &UnboundedSender<Report>) {
    while let Ok(load) = questions.recv() {
        let (batches, through) = reader.load(&load).unwrap_or_else(|_| (Vec::new(), before(load.span.first)));
        let _ = reports.send(Report::Loaded { load, batches, through });
    }
}

/// The place before `seq`: how far an answer goes that says nothing.
fn before(seq: Seq) -> Seq {
    Seq(seq.0.saturating_sub(1))
}
