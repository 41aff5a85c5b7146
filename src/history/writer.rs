//! The thread that writes: takes orders, commits in groups, tells what is on disk, and brings the log back when it fails.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{oneshot, watch};

use super::aside::{self, Salvage};
use super::log::{Due, Log, Walked};
use super::read::Reader;
use super::store::{self, Fault, Store, guarded};
use super::{Command, Health, Options, Shared, scrub};
use crate::config::Fsync;
use crate::error::{HistoryError, StartError};
use crate::id::{Run, Seq};
use crate::metrics::Metrics;
use crate::replica::event::{Opened, Order, Report};

/// A commit is closed when it holds this much.
const COMMIT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A log that could not be read so often in a row, on a disk that takes writes, is damaged.
const UNREADABLE_TIMES: u32 = 5;
/// How often a log that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// With [`Fsync::Os`], how long something may wait for its fsync.
const SYNC_WITHIN: Duration = Duration::from_secs(1);
/// How long readers may take to let go of a log that is closed.
const READERS_END_WITHIN: Duration = Duration::from_secs(30);

/// What the thread owns.
pub(super) struct Writer {
    options: Options,
    metrics: Metrics,
    shared: Arc<Shared>,
    commands: Sender<Command>,
    reports: UnboundedSender<Report>,
    health: watch::Sender<Health>,
    admitted: watch::Sender<u64>,
    log: Option<Log>,
    /// Set while there is no log.
    retry_at: Option<Instant>,
    /// How often in a row the log could not be read when it was opened again.
    unreadable: u32,
    /// With [`Fsync::Os`]: when the first write after the last fsync was made.
    unsynced_since: Option<Instant>,
    /// Retention under way: with what, and from where it goes on.
    walk: Option<(Due, Option<Vec<u8>>)>,
    /// Retention that begins when that is over.
    walk_next: Option<Due>,
    /// Origins to be let go of, up to what was stored when that was ordered.
    expiring: Vec<(Run, Seq)>,
    answers: Vec<oneshot::Sender<Result<(), HistoryError>>>,
    scrub: Option<JoinHandle<()>>,
    salvage: Option<Salvage>,
}

impl Writer {
    pub fn new(
        options: Options,
        metrics: Metrics,
        shared: Arc<Shared>,
        commands: Sender<Command>,
        reports: UnboundedSender<Report>,
        health: watch::Sender<Health>,
        admitted: watch::Sender<u64>,
    ) -> Writer {
        Writer {
            options,
            metrics,
            shared,
            commands,
            reports,
            health,
            admitted,
            log: None,
            retry_at: None,
            unreadable: 0,
            unsynced_since: None,
            walk: None,
            walk_next: None,
            expiring: Vec::new(),
            answers: Vec::new(),
            scrub: None,
            salvage: None,
        }
    }

    /// Opens the log for the first time, if it is not new.
    pub fn start(&mut self) -> Result<Opened, StartError> {
        let folder = self.options.folder.clone();
        let cannot = |fault: Fault| {
            let text = fault.to_string();
            fault
                .at_start(&folder)
                .unwrap_or_else(|| StartError::DataDir { path: folder.clone(), source: std::io::Error::other(text) })
        };
        let opened = store::claim(&folder).and_then(|new| if new { Ok(Opened::default()) } else { self.open(false) });
        match opened {
            Ok(opened) => Ok(opened),
            Err(Fault::Unreadable(_)) if !aside::takes_writes(&self.options.folder) => {
                self.note_failing(&Fault::Failing("the disk gives errors".into()));
                Ok(Opened::default())
            }
            Err(Fault::Damaged(what) | Fault::Unreadable(what)) => {
                self.move_aside(&what).map_err(cannot)?;
                self.open(false).map_err(cannot)
            }
            Err(fault @ (Fault::Full(_) | Fault::Failing(_))) => {
                self.note_failing(&fault);
                Ok(Opened::default())
            }
            Err(fault) => Err(cannot(fault)),
        }
    }

    /// Makes the log if it is new; readers need not wait for it any more.
    pub fn begin(&mut self) {
        if self.log.is_none()
            && self.retry_at.is_none()
            && let Err(fault) = self.open(false)
        {
            self.note_failing(&fault);
        }
        // Nobody else sets this.
        let _ = self.shared.begun.set(());
    }

    /// Works until it is told to close.
    pub fn run(mut self, inbox: &Receiver<Command>) {
        self.look_after_what_is_aside();
        let mut closing = false;
        while !closing {
            let first = match self.wait(inbox) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            for command in first.into_iter().chain(std::iter::from_fn(|| inbox.try_recv().ok())) {
                closing |= matches!(command, Command::Close);
                self.take(command);
                if self.log.as_ref().is_some_and(|log| log.pending_bytes() >= COMMIT_BYTES_MAX) {
                    self.commit();
                }
            }
            self.commit();
            self.go_on();
            self.sync_if_due(closing);
        }
        self.end();
    }

    /// Waits for a command, or until something is due.
    fn wait(&self, inbox: &Receiver<Command>) -> Result<Command, RecvTimeoutError> {
        if self.walk.is_some() || self.walk_next.is_some() || !self.expiring.is_empty() {
            return inbox.recv_timeout(Duration::ZERO);
        }
        match self.retry_at.or(self.unsynced_since.map(|since| since + SYNC_WITHIN)) {
            Some(at) => inbox.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Close => {}
            Command::Damaged(generation, what) => {
                if self.log.as_ref().is_some_and(|log| log.store.generation == generation) {
                    self.fail(Fault::Damaged(what));
                }
            }
            Command::SaveDurable(durable, answer) => self.answer_with(answer, |log| log.save_durable(&durable)),
            Command::RemoveDurable(name, answer) => self.answer_with(answer, |log| log.remove_durable(&name)),
            Command::Order(order) => self.carry_out(order),
        }
    }

    fn answer_with(&mut self, answer: oneshot::Sender<Result<(), HistoryError>>, change: impl FnOnce(&mut Log)) {
        match &mut self.log {
            Some(log) => {
                change(log);
                self.answers.push(answer);
            }
            None => _ = answer.send(Err(HistoryError::Closed)),
        }
    }

    fn carry_out(&mut self, order: Order) {
        let alone = self.options.fsync == Fsync::Always && matches!(order, Order::Append(_));
        match self.apply(order) {
            Ok(()) if alone => self.commit(),
            Ok(()) => {}
            Err(fault) => self.fail(fault),
        }
    }

    /// Without a log, orders are dropped: the core gives them again when it is told what is there.
    fn apply(&mut self, order: Order) -> Result<(), Fault> {
        let Some(log) = &mut self.log else { return Ok(()) };
        match order {
            Order::Append(kept) => {
                if guarded(|| log.append(&kept))? {
                    self.metrics.conflicts.inc();
                    tracing::warn!(batch = ?kept.batch, "a batch that overlaps another one on disk is dropped");
                }
            }
            Order::Admit { span, late } => guarded(|| log.admit(span, late))?,
            Order::Settle(span) => log.settle(span),
            Order::Forget { run, horizon } => log.forget(run, horizon),
            Order::Expire(run) => self.expiring.push((run, log.stored_top(run))),
            Order::Retain { wall_ms } => {
                let retain_ms = u64::from(self.options.retain_days) * 24 * 3600 * 1000;
                let wall_ms = wall_ms.or(self.walk_next.and_then(|due| due.wall_ms));
                self.walk_next = Some(Due { wall_ms, retain_ms, retain_bytes: self.options.retain_bytes });
            }
            Order::Load(_) => {}
        }
        Ok(())
    }

    /// One step of what takes several commits.
    fn go_on(&mut self) {
        if let (Some(log), Some((run, through))) = (&mut self.log, self.expiring.last().copied()) {
            match guarded(|| log.expire(run, through)) {
                Ok(true) => {}
                Ok(false) => _ = self.expiring.pop(),
                Err(fault) => return self.fail(fault),
            }
            return self.commit();
        }
        self.walk = self.walk.take().or_else(|| Some((self.walk_next.take()?, None)));
        if let (Some(log), Some((due, from))) = (&mut self.log, self.walk.take()) {
            match guarded(|| log.retain(due, from)) {
                Ok(Walked::On(from)) => self.walk = Some((due, Some(from))),
                Ok(Walked::Done) => {}
                Err(fault) => return self.fail(fault),
            }
            return self.commit();
        }
        if self.retry_at.is_some_and(|at| at <= Instant::now()) {
            self.reopen();
        }
    }

    fn commit(&mut self) {
        let Some(log) = self.log.as_mut().filter(|log| log.is_pending()) else { return };
        let os = self.options.fsync == Fsync::Os;
        match guarded(|| log.commit(!os)) {
            Ok(reports) => {
                self.admitted.send_if_modified(|number| std::mem::replace(number, log.admitted()) != *number);
                if os {
                    self.unsynced_since.get_or_insert_with(Instant::now);
                }
                for report in reports {
                    let _ = self.reports.send(report);
                }
                for answer in self.answers.drain(..) {
                    let _ = answer.send(Ok(()));
                }
            }
            Err(fault) => self.fail(fault),
        }
    }

    fn sync_if_due(&mut self, closing: bool) {
        let due = closing || self.unsynced_since.is_some_and(|since| since.elapsed() >= SYNC_WITHIN);
        if let Some(log) = self.log.as_ref().filter(|_| due) {
            self.unsynced_since = None;
            if let Err(fault) = guarded(|| log.store.sync()) {
                self.fail(fault);
            }
        }
    }

    /// Closes a log that failed; a damaged one is replaced at once. Health is told before the reports that follow from it.
    fn fail(&mut self, fault: Fault) {
        self.close_log();
        let opened = match fault {
            Fault::Damaged(what) => self.move_aside(&what).and_then(|()| self.open(false)),
            fault => Err(fault),
        };
        if let Err(fault) = &opened {
            self.note_failing(fault);
        }
        let _ = self.reports.send(Report::Closed);
        if let Ok(opened) = opened {
            let _ = self.reports.send(Report::Opened(opened));
            self.look_after_what_is_aside();
        }
    }

    fn note_failing(&mut self, fault: &Fault) {
        let health = if matches!(fault, Fault::Full(_)) { Health::Full } else { Health::Failing };
        if self.health.send_replace(health) != health {
            tracing::error!(folder = %self.options.folder.display(), "the history is not written: {fault}");
        }
        self.retry_at = Some(Instant::now() + RETRY);
    }

    fn reopen(&mut self) {
        let opened = match self.open(true) {
            Err(Fault::Unreadable(what)) => {
                self.unreadable += 1;
                // A disk that takes what is written, and again and again does not give what is there.
                let damaged = self.unreadable >= UNREADABLE_TIMES && aside::takes_writes(&self.options.folder);
                Err(if damaged { Fault::Damaged(what) } else { Fault::Unreadable(what) })
            }
            opened => opened,
        };
        let opened = match opened {
            Err(Fault::Damaged(what)) => self.move_aside(&what).and_then(|()| self.open(false)),
            opened => opened,
        };
        match opened {
            Ok(opened) => {
                tracing::info!("the history is written again");
                self.unreadable = 0;
                let _ = self.reports.send(Report::Opened(opened));
                self.look_after_what_is_aside();
            }
            Err(fault) => self.note_failing(&fault),
        }
    }

    /// Opens the log; `after_failure` first makes sure that what is there is on disk and that it takes more.
    fn open(&mut self, after_failure: bool) -> Result<Opened, Fault> {
        let folder = self.options.folder.clone();
        if after_failure {
            aside::renew(&folder)?;
        }
        let store = Arc::new(Store::open(&folder, self.shared.next_generation())?);
        let log = guarded(|| Log::load(store.clone(), self.shared.keys.clone()));
        let opened = log.and_then(|mut log| {
            let opened = log.opened();
            if after_failure {
                log.probe()?;
            }
            log.commit(true)?;
            self.admitted.send_replace(log.admitted());
            self.log = Some(log);
            Ok(opened)
        });
        if opened.is_err() {
            release(store);
            return opened;
        }
        self.shared.replace(Some(store.clone()));
        self.scrub = scrub::start(store, self.shared.keys.clone(), self.commands.clone());
        self.retry_at = None;
        self.health.send_replace(Health::Working);
        opened
    }

    /// Lets go of the log, and waits until nobody has it any more: its workers write where the next one will be.
    fn close_log(&mut self) {
        let log = self.log.take();
        (self.walk, self.walk_next) = (None, None);
        self.expiring.clear();
        self.unsynced_since = None;
        for answer in self.answers.drain(..) {
            let _ = answer.send(Err(HistoryError::Closed));
        }
        let store = self.shared.replace(None);
        drop(log);
        if let Some(store) = store {
            store.begin_close();
            if let Some(scrub) = self.scrub.take() {
                let _ = scrub.join();
            }
            release(store);
        }
    }

    fn move_aside(&mut self, what: &str) -> Result<(), Fault> {
        let folder = &self.options.folder;
        let to = aside::move_aside(folder)?;
        tracing::warn!(folder = %folder.display(), to = %to.display(), "the history is damaged ({what}); it was moved aside and a new one is begun");
        Ok(())
    }

    /// Imports what still verifies of histories moved aside, now or in an earlier life.
    fn look_after_what_is_aside(&mut self) {
        if self.salvage.as_ref().is_some_and(|salvage| !salvage.is_over()) {
            return;
        }
        let reader = Reader::new(self.shared.clone(), self.commands.clone());
        self.salvage = aside::start(&self.options.folder, reader, self.reports.clone());
    }

    fn end(mut self) {
        if let Some(salvage) = self.salvage.take() {
            salvage.end();
        }
        self.close_log();
    }
}

/// Waits for readers to let go of `store` and drops it.
fn release(mut store: Arc<Store>) {
    let deadline = Instant::now() + READERS_END_WITHIN;
    loop {
        match Arc::try_unwrap(store) {
            Ok(last) => return drop(last),
            Err(shared) if Instant::now() < deadline => store = shared,
            Err(_) => return tracing::error!("a reader of the history does not end"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
