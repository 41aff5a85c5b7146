//! One opened log: fjall behind a door that knows its failures, and the folder that it lives in.
//!
//! Owns how the folder is made (whole, or not at all), which errors mean damage and which will pass, and what a row that
//! cannot be read means. Never decides what to write.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::ops::RangeBounds;
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fjall::config::BlockSizePolicy;
use fjall::{
    AbstractTree, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, LsmError, PersistMode, Readable,
    Snapshot, UserKey, UserValue,
};

use super::rows::{self, Extent, FORMAT_VERSION, KeyRow, SiteRow, Stamp, table};
use crate::error::{HistoryError, StartError};
use crate::id::{EntryId, Key, Run, Seq};
use crate::replica::batch::{BATCH_BYTES_MAX, Batch, BatchError};
use crate::replica::control::Progress;
use crate::replica::event::Kept;

/// Blocks of the log kept in memory.
const CACHE_BYTES: u64 = 48 * 1024 * 1024;
/// What is written and not yet sorted into a table; four of these are in memory at most. Tests see tables earlier.
const MEMTABLE_BYTES: u64 = if cfg!(test) { 128 * 1024 } else { 16 * 1024 * 1024 };
/// How many of them may wait to be sorted.
const MEMTABLES_WAITING_MAX: usize = 3;
/// Values from this length on stay where they were first written: sorting copies only where they are.
const APART_BYTES_MIN: u32 = 4 * 1024;
/// Says, beside the rows, which version they have, so that a newer one is known without opening it.
const FORMAT_FILE: &str = "format";
/// Is there while the log is made.
const UNFINISHED_FILE: &str = "unfinished";
/// What fjall writes when a database is whole.
const FJALL_MARKER: (&str, &[u8]) = ("version", b"FJL\x03");
/// What fjall locks; it does not open a database that has lost it.
const FJALL_LOCK: &str = "lock";

/// Why the disk did not do what was asked.
#[derive(Debug)]
pub(super) enum Fault {
    /// What is there contradicts itself, or is not there.
    Damaged(String),
    /// The disk says that it cannot give it: damage of the medium, or a disk that fails for a while.
    Unreadable(String),
    /// No space is left.
    Full(String),
    /// It may work later.
    Failing(String),
    /// The user has no right to it.
    Denied(io::Error),
    /// Another process has it.
    Locked,
    /// It is of a newer version.
    Newer(u32),
    /// The log is being closed.
    Closing,
}

/// Where the database keeps what it writes beside its journals.
const KEYSPACES_FOLDER: &str = "keyspaces";

/// A log that is open.
pub(super) struct Store {
    database: Database,
    rows: Keyspace,
    /// Made with the log: local numbers and positions mean something only together with it.
    pub log: u64,
    /// Which opening of this process it is.
    pub generation: u64,
    closing: AtomicBool,
    checked: AtomicBool,
}

/// The log as it was at one moment.
pub(super) struct View<'a> {
    store: &'a Store,
    snapshot: Snapshot,
}

/// Rows that go to disk together or not at all; none takes the row away.
pub(super) type Changes = Vec<(Vec<u8>, Option<Vec<u8>>)>;

impl Store {
    /// Opens the log in `folder`, or makes one where there is none. A panic of fjall on damaged bytes counts as damage.
    pub fn open(folder: &Path, generation: u64) -> Result<Store, Fault> {
        let (database, rows, log) = if is_unmade(folder)? { create(folder)? } else { reopen(folder)? };
        // The database does not sync the folders in which it makes its own: a power cut would take them.
        for path in folder.ancestors().take(2).chain([&*folder.join(KEYSPACES_FOLDER)]) {
            File::open(path)?.sync_all()?;
        }
        Ok(Store::new(database, rows, log, generation))
    }

    fn new(database: Database, rows: Keyspace, log: u64, generation: u64) -> Store {
        Store { database, rows, log, generation, closing: AtomicBool::new(false), checked: AtomicBool::new(false) }
    }

    /// Opens what is left of a log that was moved aside, whatever it says of itself; without its journals if need be.
    pub fn open_damaged(folder: &Path) -> Result<Store, Fault> {
        fs::write(folder.join(FJALL_MARKER.0), FJALL_MARKER.1)?;
        let open = || {
            let (database, rows) = open_fjall(folder)?;
            Ok(Store::new(database, rows, 0, 0))
        };
        guarded(open).or_else(|_| {
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "jnl") {
                    fs::rename(&path, path.with_extension("unread"))?;
                    // fjall numbers its writes from what it finds only beside a journal, be it an empty one.
                    File::create(&path)?;
                }
            }
            guarded(open)
        })
    }

    /// The log as it is now.
    pub fn view(&self) -> View<'_> {
        View { store: self, snapshot: self.database.snapshot() }
    }

    /// Writes `changes`; with `sync` they are on disk when this returns, else with the operating system.
    pub fn commit(&self, changes: Changes, sync: bool) -> Result<(), Fault> {
        self.wait_for_room()?;
        let mode = if sync { PersistMode::SyncData } else { PersistMode::Buffer };
        let mut batch = self.database.batch().durability(Some(mode));
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(&self.rows, key, value),
                None => batch.remove(&self.rows, key),
            }
        }
        batch.commit().map_err(|error| Fault::from(error).of_writing())
    }

    /// What was written before is on disk when this returns.
    pub fn sync(&self) -> Result<(), Fault> {
        self.database.persist(PersistMode::SyncData).map_err(|error| Fault::from(error).of_writing())
    }

    /// fjall waits for its own workers inside a commit, for ever if they have died of an error; so it is waited for here,
    /// where that is noticed.
    fn wait_for_room(&self) -> Result<(), Fault> {
        while self.rows.sealed_memtable_count() >= MEMTABLES_WAITING_MAX || self.rows.tree.l0_run_count() >= 18 {
            self.database.persist(PersistMode::Buffer).map_err(|error| Fault::from(error).of_writing())?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Writes all that came back from the journal into tables, so that nothing depends on pages of a journal whose fsync
    /// has failed: the system may hold them in memory and never write them.
    pub fn settle_journal(&self) -> Result<(), Fault> {
        self.rows.rotate_memtable().map_err(|error| Fault::from(error).of_writing())?;
        while self.rows.sealed_memtable_count() > 0 {
            self.database.persist(PersistMode::Buffer).map_err(|error| Fault::from(error).of_writing())?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Whoever reads at length looks here now and then.
    pub fn check_open(&self) -> Result<(), Fault> {
        if self.closing.load(Ordering::Relaxed) { Err(Fault::Closing) } else { Ok(()) }
    }

    /// It was read to its end and fits together.
    pub fn set_checked(&self) {
        self.checked.store(true, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub fn is_checked(&self) -> bool {
        self.checked.load(Ordering::Relaxed)
    }

    /// Asks everybody who reads to end.
    pub fn begin_close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store {:016x} #{}", self.log, self.generation)
    }
}

impl View<'_> {
    /// Whether the log stays open; see [`Store::check_open`].
    pub fn check_open(&self) -> Result<(), Fault> {
        self.store.check_open()
    }

    /// The id of the log.
    pub fn log(&self) -> u64 {
        self.store.log
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<UserValue>, Fault> {
        Ok(self.snapshot.get(&self.store.rows, key)?)
    }

    pub fn has(&self, key: &[u8]) -> Result<bool, Fault> {
        Ok(self.snapshot.contains_key(&self.store.rows, key)?)
    }

    /// Rows in order, with their values.
    pub fn rows(
        &self,
        range: impl RangeBounds<Vec<u8>>,
    ) -> impl DoubleEndedIterator<Item = Result<(UserKey, UserValue), Fault>> {
        self.snapshot.range(&self.store.rows, range).map(|row| Ok(row.into_inner()?))
    }

    /// Keys in order; values that stand apart are not read.
    pub fn keys(&self, range: impl RangeBounds<Vec<u8>>) -> impl DoubleEndedIterator<Item = Result<UserKey, Fault>> {
        self.snapshot.range(&self.store.rows, range).map(|row| Ok(row.key()?))
    }

    /// The batches of `run` of which any entry is within `first..=last`, in order.
    pub fn extents(
        &self,
        run: Run,
        first: Seq,
        last: Seq,
    ) -> Result<impl Iterator<Item = Result<Extent, Fault>>, Fault> {
        // The one that holds `first` may begin before it; mostly it does not, and then nothing is searched backwards,
        // where an origin may have left the traces of much that has gone.
        let start = if self.has(&rows::seq_key(run, first))? {
            first
        } else {
            let before = self.rows(rows::run_key(table::SEQ, run)..=rows::seq_key(run, first)).next_back();
            let before = before.transpose()?.map(|(key, value)| read_extent(&key, &value)).transpose()?;
            before.filter(|extent| extent.last() >= first).map_or(first, |extent| extent.stamp.first)
        };
        let range = rows::seq_key(run, start)..=rows::seq_key(run, last.max(start));
        let wanted = first <= last;
        Ok(self.rows(range).take_while(move |_| wanted).map(|row| {
            let (key, value) = row?;
            read_extent(&key, &value)
        }))
    }

    /// The batch that holds `id`.
    pub fn extent_of(&self, id: EntryId) -> Result<Option<Extent>, Fault> {
        self.extents(id.run, id.seq, id.seq)?.next().transpose()
    }

    /// The record of a batch that is spoken of elsewhere.
    pub fn kept(&self, stamp: &Stamp) -> Result<Kept, Fault> {
        let value = self.get(&stamp.batch_key())?;
        let value = value.ok_or_else(|| Fault::Damaged(format!("the record of {stamp:?} is not there")))?;
        read_kept(stamp, value)
    }

    /// How far a bridge has come.
    pub fn progress(&self, bridge: &str) -> Result<Option<Progress>, Fault> {
        let value = self.get(&rows::named_key(table::PROGRESS, bridge.as_bytes()))?;
        value.map(|value| rows::read_progress(&value).ok_or_else(|| bad("progress"))).transpose()
    }

    /// How many bridges there is progress of.
    pub fn bridges(&self) -> Result<usize, Fault> {
        let named = |row: &Result<(UserKey, UserValue), Fault>| row.as_ref().map_or(true, |(key, _)| key.len() > 1);
        let rows = self.rows(rows::below(&[table::PROGRESS])).filter(named);
        rows.map(|row| row.map(drop)).try_fold(0, |count, row| row.map(|()| count + 1))
    }

    /// The word of the site.
    pub fn site(&self) -> Result<Option<SiteRow>, Fault> {
        let value = self.get(&rows::named_key(table::PROGRESS, b""))?;
        value.map(|value| SiteRow::read(&value).ok_or_else(|| bad("site"))).transpose()
    }

    pub fn key_row(&self, key: Key) -> Result<Option<KeyRow>, Fault> {
        let value = self.get(&KeyRow::key(key))?;
        value.map(|value| KeyRow::read(&value).ok_or_else(|| bad("key"))).transpose()
    }
}

pub(super) fn read_extent(key: &[u8], value: &[u8]) -> Result<Extent, Fault> {
    Extent::read(key, value).ok_or_else(|| bad("seq"))
}

/// A record as table B holds it.
pub(super) fn record(kept: &Kept) -> Vec<u8> {
    let bytes = kept.batch.bytes();
    let mut value = Vec::with_capacity(8 + bytes.len());
    value.extend_from_slice(&kept.arrived_ms.to_be_bytes());
    value.extend_from_slice(bytes);
    value
}

/// Reads a record and checks that it is the batch that its key names. Its body was hashed before it was kept, and the
/// database has checksums of what it reads; whoever looks for damage hashes it again.
pub(super) fn read_kept(stamp: &Stamp, value: UserValue) -> Result<Kept, Fault> {
    let wrong = |what: &dyn std::fmt::Display| Fault::Damaged(format!("the record of {stamp:?}: {what}"));
    let (arrived, bytes) = value.split_first_chunk::<8>().ok_or_else(|| wrong(&"too short"))?;
    let arrived_ms = u64::from_be_bytes(*arrived);
    if bytes.len() > BATCH_BYTES_MAX {
        return Err(wrong(&"too long"));
    }
    // What does not stand apart is a slice of its block, and would keep all of that.
    let apart = value.len() >= APART_BYTES_MIN as usize;
    let bytes = if apart { Bytes::from(value).slice(8..) } else { Bytes::copy_from_slice(bytes) };
    let batch = Batch::checked_before(bytes).map_err(|error| wrong(&error))?;
    if stamp_of(&batch) != *stamp {
        return Err(wrong(&"another batch"));
    }
    Ok(Kept { batch, arrived_ms })
}

pub(super) fn stamp_of(batch: &Batch) -> Stamp {
    Stamp { hlc: batch.hlc(), run: batch.origin(), first: batch.first() }
}

/// A record that was checked again.
pub(super) fn checked(kept: Kept, check: fn(&Batch) -> Result<(), BatchError>) -> Result<Kept, Fault> {
    match check(&kept.batch) {
        Ok(()) => Ok(kept),
        Err(error) => Err(Fault::Damaged(format!("the record of {:?}: {error}", stamp_of(&kept.batch)))),
    }
}

/// A row of `table` that does not read.
pub(super) fn bad(table: &str) -> Fault {
    Fault::Damaged(format!("a {table} row that does not read"))
}

/// Runs `work`; a panic in it counts as damage, for fjall panics on some damaged bytes.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Err(Fault::Damaged(format!("panicked: {}", text.unwrap_or("without a word"))))
    })
}

/// fjall with the options of this log. The caller guards against panics.
fn open_fjall(folder: &Path) -> Result<(Database, Keyspace), Fault> {
    // Of several workers the first asks itself again and again, as fast as it can, while another one sorts.
    let database = Database::builder(folder).cache_size(CACHE_BYTES).worker_threads(1).open()?;
    let rows = database.keyspace("log", || {
        KeyspaceCreateOptions::default()
            .max_memtable_size(MEMTABLE_BYTES)
            .data_block_size_policy(BlockSizePolicy::all(8 * 1024))
            .with_kv_separation(Some(KvSeparationOptions::default().separation_threshold(APART_BYTES_MIN)))
    })?;
    Ok((database, rows))
}

/// Makes the folder of a log that is new, not the log; answers whether it is.
pub(super) fn claim(folder: &Path) -> Result<bool, Fault> {
    let new = is_unmade(folder)?;
    if new {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        File::create(folder.join(UNFINISHED_FILE))?;
    }
    Ok(new)
}

/// A folder without anything in it is as good as none, and so is one whose making was cut short: nothing was kept there.
fn is_unmade(folder: &Path) -> Result<bool, Fault> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().transpose()?.is_none() || folder.join(UNFINISHED_FILE).try_exists()?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Makes an empty log. It is used as it was made: a journal that was opened again grows with each write, and its syncs take
/// a third longer than those of one that was made with its full length.
fn create(folder: &Path) -> Result<(Database, Keyspace, u64), Fault> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    File::create(folder.join(UNFINISHED_FILE))?;
    // It reaches the disk before whatever else is made here.
    File::open(folder)?.sync_all()?;
    let mut log = [0; 8];
    getrandom::fill(&mut log).map_err(|error| Fault::Failing(error.to_string()))?;
    let log = u64::from_be_bytes(log);
    let (database, rows) = guarded(|| {
        let (database, rows) = open_fjall(folder)?;
        rows.insert(rows::named_key(table::META, rows::BIRTH_NAME), rows::birth_value(log))?;
        database.persist(PersistMode::SyncAll)?;
        Ok((database, rows))
    })
    .map_err(Fault::of_writing)?;
    write_format(folder)?;
    fs::remove_file(folder.join(UNFINISHED_FILE))?;
    Ok((database, rows, log))
}

/// Opens a log that was made before.
fn reopen(folder: &Path) -> Result<(Database, Keyspace, u64), Fault> {
    let version = check_format(folder)?;
    let (database, rows, log) = guarded(|| {
        let (database, rows) = open_fjall(folder)?;
        let birth = rows.get(rows::named_key(table::META, rows::BIRTH_NAME))?;
        let birth = birth.ok_or_else(|| Fault::Damaged("the log does not say what it is".into()))?;
        let (found, log) = rows::read_birth(&birth).ok_or_else(|| bad("birth"))?;
        if found > FORMAT_VERSION {
            return Err(Fault::Newer(found));
        }
        Ok((database, rows, log))
    })?;
    if version.is_none() {
        write_format(folder)?;
    }
    Ok((database, rows, log))
}

/// `DIR/history` with `word` is `DIR/history.word`.
pub(super) fn beside(folder: &Path, word: &str) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!("{name}.{word}"))
}

fn format_line(version: u32) -> String {
    let line = format!("hubless history {version}");
    format!("{line} {}\n", &blake3::hash(line.as_bytes()).to_hex()[..16])
}

fn write_format(folder: &Path) -> Result<(), Fault> {
    let fresh = folder.join("format.new");
    let mut file = File::create(&fresh)?;
    file.write_all(format_line(FORMAT_VERSION).as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, folder.join(FORMAT_FILE))?;
    Ok(File::open(folder)?.sync_all()?)
}

/// The version that the folder says it has, if it says so credibly: a newer one is refused, before anything is opened.
fn check_format(folder: &Path) -> Result<Option<u32>, Fault> {
    let text = match fs::read(folder.join(FORMAT_FILE)) {
        Ok(bytes) => String::from_utf8(bytes).unwrap_or_default(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error.into()),
    };
    let named = text.split(' ').nth(2).and_then(|word| word.parse::<u32>().ok());
    let version = named.filter(|version| text == format_line(*version));
    if let Some(newer) = version.filter(|version| *version > FORMAT_VERSION) {
        return Err(Fault::Newer(newer));
    }
    let marker = match fs::read(folder.join(FJALL_MARKER.0)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        marker => marker?,
    };
    if marker != FJALL_MARKER.1 {
        // Without the marker, fjall would begin a new database on top of this one.
        if version.is_none() {
            return Err(Fault::Damaged("nothing says what this folder is".into()));
        }
        fs::write(folder.join(FJALL_MARKER.0), FJALL_MARKER.1)?;
    }
    OpenOptions::new().append(true).create(true).open(folder.join(FJALL_LOCK))?;
    Ok(version)
}

impl Fault {
    /// Whatever fails in writing is no damage: the disk may take it later.
    pub fn of_writing(self) -> Fault {
        match self {
            Fault::Damaged(what) | Fault::Unreadable(what) => Fault::Failing(what),
            Fault::Denied(error) => Fault::Failing(error.to_string()),
            other => other,
        }
    }

    /// What a start says that ends here; none where it can go on.
    pub fn at_start(&self, folder: &Path) -> Option<StartError> {
        let path = folder.to_path_buf();
        Some(match self {
            Fault::Denied(error) => {
                StartError::DataDir { path, source: io::Error::new(error.kind(), error.to_string()) }
            }
            Fault::Locked => StartError::Locked { path, pid: 0 },
            Fault::Newer(found) => StartError::NewerHistory { path, found: *found, known: FORMAT_VERSION },
            Fault::Damaged(_) | Fault::Unreadable(_) | Fault::Full(_) | Fault::Failing(_) | Fault::Closing => {
                return None;
            }
        })
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        use io::ErrorKind::{
            FileTooLarge, OutOfMemory, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull,
        };
        match error.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => Fault::Full(error.to_string()),
            PermissionDenied | ReadOnlyFilesystem => Fault::Denied(error),
            OutOfMemory => Fault::Failing(error.to_string()),
            // EIO on Linux and macOS.
            _ if error.raw_os_error() == Some(5) => Fault::Unreadable(error.to_string()),
            // ENFILE and EMFILE on Linux and macOS: no more files may be open.
            _ if matches!(error.raw_os_error(), Some(23 | 24)) => Fault::Failing(error.to_string()),
            _ => Fault::Damaged(error.to_string()),
        }
    }
}

impl From<fjall::Error> for Fault {
    fn from(error: fjall::Error) -> Fault {
        match error {
            fjall::Error::Io(error) | fjall::Error::Storage(LsmError::Io(error)) => error.into(),
            fjall::Error::Locked => Fault::Locked,
            fjall::Error::Poisoned => Fault::Failing("an earlier write has failed".into()),
            other => Fault::Damaged(other.to_string()),
        }
    }
}

impl From<Fault> for HistoryError {
    fn from(fault: Fault) -> HistoryError {
        match fault {
            Fault::Damaged(what) => HistoryError::Damaged(what),
            Fault::Unreadable(what) | Fault::Full(what) | Fault::Failing(what) => HistoryError::Read(what),
            Fault::Denied(error) => HistoryError::Read(error.to_string()),
            Fault::Locked | Fault::Newer(_) | Fault::Closing => HistoryError::Closed,
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Damaged(what) | Fault::Unreadable(what) | Fault::Full(what) | Fault::Failing(what) => {
                f.write_str(what)
            }
            Fault::Denied(error) => error.fmt(f),
            Fault::Locked => f.write_str("another process has it"),
            Fault::Newer(version) => write!(f, "of the newer version {version}"),
            Fault::Closing => f.write_str("closing"),
        }
    }
}
