//! Histories that were moved aside because they are damaged, and what is brought back from them.
//!
//! Owns the names `history.damaged-N`, how many are kept, the mark that one has been looked through, and the thread that
//! does it. Also makes a log that failed fit to be opened again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fjall::UserValue;
use tokio::sync::mpsc::UnboundedSender;

use super::read::Reader;
use super::rows::{self, Stamp, table};
use super::store::{Fault, Store, View, beside, checked, guarded, read_extent, read_kept};
use crate::replica::batch::Batch;
use crate::replica::event::{Kept, Report};

/// How many histories that were moved aside are kept.
const ASIDE_MAX: usize = 3;
/// Batches are found in portions of this size.
const PORTION_BYTES: usize = 4 * 1024 * 1024;
/// How long a portion may take to be stored until the next one is found anyway.
const PORTION_WITHIN: Duration = Duration::from_secs(1);
/// After so many rows in one table that do not read, the rest of it is given up.
const BAD_ROWS_MAX: usize = 1000;
/// In a folder that was moved aside: how often it was begun to be looked through, or `done`.
const MARK: &str = "imported";
/// A folder that takes the process down with it is not tried for ever.
const TRIES_MAX: u32 = 3;

/// A thread that looks through histories that were moved aside.
pub(super) struct Salvage {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

impl Salvage {
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends it; it begins again at the next start.
    pub fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
    }
}

/// Whether the disk on which `folder` is takes what is written to it.
pub(super) fn takes_writes(folder: &Path) -> bool {
    let path = beside(folder, "probe");
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(&[7; 4096])?;
        file.sync_all()
    });
    // What could not be made needs not go.
    let _ = fs::remove_file(&path);
    written.is_ok()
}

/// Moves a damaged history out of the way, and deletes the oldest ones that were moved before.
pub(super) fn move_aside(folder: &Path) -> Result<PathBuf, Fault> {
    let mut numbers = numbers(folder)?;
    let next = numbers.last().map_or(1, |last| last + 1);
    numbers.truncate((numbers.len() + 1).saturating_sub(ASIDE_MAX));
    for number in numbers {
        // One that stays takes space, nothing else.
        let _ = fs::remove_dir_all(aside(folder, number));
    }
    let to = aside(folder, next);
    fs::rename(folder, &to).map_err(|error| Fault::from(error).of_writing())?;
    if let Some(parent) = folder.parent() {
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(|error| Fault::from(error).of_writing())?;
    }
    Ok(to)
}

fn aside(folder: &Path, number: u32) -> PathBuf {
    beside(folder, &format!("damaged-{number}"))
}

/// The numbers in use, ascending.
fn numbers(folder: &Path) -> Result<Vec<u32>, Fault> {
    let prefix = beside(folder, "damaged-");
    let prefix = prefix.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder.parent().unwrap_or(Path::new(".")))? {
        let name = entry?.file_name();
        numbers.extend(name.to_string_lossy().strip_prefix(&prefix).and_then(|rest| rest.parse::<u32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Makes a log whose last write or fsync failed fit to be opened: all that its journals hold goes into tables, and the
/// journals are emptied. After a failed fsync the system may have pages of a journal in memory that never reach the disk,
/// and after a power cut nothing behind them would be read.
pub(super) fn renew(folder: &Path) -> Result<(), Fault> {
    if !folder.exists() {
        return Ok(());
    }
    let store = Store::open(folder, 0)?;
    guarded(|| store.settle_journal())?;
    drop(store);
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "jnl") {
            let emptied = OpenOptions::new().write(true).open(path).and_then(|journal| {
                journal.set_len(0)?;
                journal.sync_all()
            });
            emptied.map_err(|error| Fault::from(error).of_writing())?;
        }
    }
    Ok(())
}

/// Starts to look through what was moved aside and not looked through yet; none if there is nothing.
pub(super) fn start(folder: &Path, reader: Reader, reports: UnboundedSender<Report>) -> Option<Salvage> {
    let folders: Vec<PathBuf> = numbers(folder).ok()?.into_iter().map(|number| aside(folder, number)).collect();
    let mut wanted: Vec<PathBuf> = folders.into_iter().filter(|folder| tries(folder) < TRIES_MAX).collect();
    wanted.reverse(); // What was moved last is what is missed most.
    if wanted.is_empty() {
        return None;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let work = move || {
        let mut search = Search { reader, reports, stop: stopped, portion: Vec::new(), bytes: 0, found: 0 };
        for folder in wanted {
            mark(&folder, &(tries(&folder) + 1).to_string());
            search.found = 0;
            let done = guarded(|| search.all(&folder));
            if search.stopped() {
                return mark(&folder, &tries(&folder).saturating_sub(1).to_string());
            }
            mark(&folder, "done");
            let (folder, found) = (folder.display(), search.found);
            match done {
                Ok(()) => tracing::info!(%folder, batches = found, "a history moved aside was looked through"),
                Err(fault) => tracing::warn!(%folder, batches = found, "a history moved aside is given up: {fault}"),
            }
        }
    };
    let thread = std::thread::Builder::new().name("history-aside".into()).spawn(work).ok()?;
    Some(Salvage { thread, stop })
}

fn tries(folder: &Path) -> u32 {
    match fs::read_to_string(folder.join(MARK)) {
        Ok(text) => text.trim().parse().unwrap_or(TRIES_MAX),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(_) => TRIES_MAX,
    }
}

/// A mark that cannot be made costs another search, nothing else.
fn mark(folder: &Path, text: &str) {
    let _ = fs::write(folder.join(MARK), text);
}

/// One look through one folder.
struct Search {
    reader: Reader,
    reports: UnboundedSender<Report>,
    stop: Arc<AtomicBool>,
    portion: Vec<Kept>,
    bytes: usize,
    found: u64,
}

/// Peers take only what its author signed.
fn verified(kept: Kept) -> Result<Kept, Fault> {
    checked(kept, Batch::check)
}

impl Search {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// By seq first: a table block that is lost then hides only what is in it. Then what is known by time alone.
    fn all(&mut self, folder: &Path) -> Result<(), Fault> {
        let store = Store::open_damaged(folder)?;
        let view = store.view();
        let mut bad = 0;
        for row in view.rows(rows::below(&[table::SEQ])) {
            let stamp = row.and_then(|(key, value)| read_extent(&key, &value)).map(|extent| extent.stamp);
            let kept = stamp.and_then(|stamp| {
                if self.wants(&stamp) { view.kept(&stamp).and_then(verified).map(Some) } else { Ok(None) }
            });
            self.look(kept, &mut bad);
            if bad > BAD_ROWS_MAX || self.stopped() {
                break;
            }
        }
        bad = 0;
        for row in view.rows(rows::below(&[table::BATCH])) {
            let kept = row.and_then(|(key, value)| self.unknown(&view, &key, value));
            self.look(kept, &mut bad);
            if bad > BAD_ROWS_MAX || self.stopped() {
                break;
            }
        }
        self.hand_over();
        Ok(())
    }

    fn unknown(&self, view: &View<'_>, key: &[u8], value: UserValue) -> Result<Option<Kept>, Fault> {
        let stamp = Stamp::read(&key[1..]).ok_or_else(|| super::store::bad("batch"))?;
        let known = view.has(&stamp.seq_key()).unwrap_or(false);
        if known || !self.wants(&stamp) { Ok(None) } else { read_kept(&stamp, value).and_then(verified).map(Some) }
    }

    /// What has come back from peers meanwhile is not needed again.
    fn wants(&self, stamp: &Stamp) -> bool {
        !self.reader.holds(stamp).unwrap_or(false)
    }

    fn look(&mut self, kept: Result<Option<Kept>, Fault>, bad: &mut usize) {
        match kept {
            Ok(None) => {}
            Ok(Some(kept)) => {
                self.bytes += kept.batch.bytes().len();
                self.portion.push(kept);
                if self.bytes >= PORTION_BYTES {
                    self.hand_over();
                }
            }
            Err(_) => *bad += 1,
        }
    }

    /// Tells the core, and waits for it to have them stored, so that what is under way stays bounded.
    fn hand_over(&mut self) {
        let portion = std::mem::take(&mut self.portion);
        self.bytes = 0;
        self.found += portion.len() as u64;
        let Some(last) = portion.last().map(|kept| super::store::stamp_of(&kept.batch)) else { return };
        let _ = self.reports.send(Report::Found(portion));
        let deadline = Instant::now() + PORTION_WITHIN;
        while !self.stopped() && self.wants(&last) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
