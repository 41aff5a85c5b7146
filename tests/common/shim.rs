//! A disk that is slow, fails or forgets, under a real process: `tests/shim/hubless_shim.c`, preloaded.
//!
//! Owns the switches that the shim reads and the platter that it writes. What a process finds at its start counts as synced;
//! from then on a power cut leaves what was synced. The C file says what is kept and what is not seen.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

const CHUNK_BYTES: usize = 64 * 1024;

/// What a call of the disk answers instead of doing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// The disk is broken.
    Io,
    /// The disk is full.
    NoSpace,
}

/// What a power cut leaves of entries of folders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entries {
    /// All of them: files made, renamed and removed are so at once, as on most file systems of today.
    Kept,
    /// Those at the last sync of their folder, which is all that POSIX promises.
    Synced,
}

/// The disk below one folder.
#[derive(Debug)]
pub struct Shim {
    root: PathBuf,
    own: TempDir,
}

impl Shim {
    /// For what is below `root`, which is made if it is missing.
    pub fn over(root: &Path) -> Shim {
        fs::create_dir_all(root).unwrap();
        let own = TempDir::with_prefix("hl-shim").expect("a temporary folder");
        fs::create_dir(own.path().join("switches")).unwrap();
        let shim = Shim { root: root.canonicalize().unwrap(), own };
        shim.settle();
        shim
    }

    /// What a process must have in its environment to run on this disk. With [`Shim::settle`] before it starts.
    pub fn env(&self) -> Vec<(&'static str, OsString)> {
        vec![
            ("LD_PRELOAD", library().into()),
            ("SHIM_ROOT", self.root.clone().into()),
            ("SHIM_DIR", self.switches().into()),
            ("SHIM_DISK", self.disk().into()),
        ]
    }

    /// How long a sync takes from now on.
    pub fn delay(&self, delay: Duration) {
        self.switch("delay_ms", (!delay.is_zero()).then(|| delay.as_millis().to_string()));
    }

    /// Whether a sync fails from now on, and how.
    pub fn fail_syncs(&self, how: Option<Errno>) {
        self.switch("sync_errno", how.map(word));
    }

    /// Whether a write fails from now on, and how.
    pub fn fail_writes(&self, how: Option<Errno>) {
        self.switch("write_errno", how.map(word));
    }

    /// Counts all that is there as synced. No process may use the folder meanwhile.
    pub fn settle(&self) {
        let disk = self.disk();
        // Nothing is there the first time.
        let _ = fs::remove_dir_all(&disk);
        fs::create_dir(&disk).unwrap();
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop() {
            let mut list = String::new();
            for (name, path, about) in entries(&folder) {
                list += &format!("{} {name}\n", key(&about));
                if about.is_dir() {
                    folders.push(path);
                } else if about.is_file() {
                    copy(&path, &disk.join(format!("f-{}", key(&about))));
                }
            }
            let about = fs::metadata(&folder).unwrap();
            fs::write(disk.join(format!("d-{}", key(&about))), list).unwrap();
        }
    }

    /// Puts the files back to what was synced. No process may use the folder meanwhile.
    pub fn cut_power(&self, entries: Entries) {
        match entries {
            Entries::Kept => self.forget_content(&self.root),
            Entries::Synced => {
                let now = self.inventory();
                let fresh = self.own.path().join("fresh");
                let root = key(&fs::metadata(&self.root).unwrap());
                fs::create_dir(&fresh).unwrap();
                self.restore(&root, &fresh, &now);
                empty(&self.root);
                for (name, path, about) in self::entries(&fresh) {
                    copy_tree(&path, &self.root.join(name), about.is_dir());
                }
                fs::remove_dir_all(&fresh).unwrap();
            }
        }
    }

    /// A file that was never synced is empty if its folder was synced since, else it is not there after.
    fn forget_content(&self, folder: &Path) {
        let folder_key = key(&fs::metadata(folder).unwrap());
        let list = fs::read_to_string(self.disk().join(format!("d-{folder_key}"))).unwrap_or_default();
        for (_, path, about) in entries(folder) {
            let key = key(&about);
            let synced = self.disk().join(format!("f-{key}"));
            if about.is_dir() {
                self.forget_content(&path);
            } else if about.is_file() && synced.exists() {
                copy(&synced, &path);
            } else if about.is_file() && list.lines().any(|line| line.split(' ').next() == Some(&key)) {
                File::create(&path).unwrap();
            } else {
                fs::remove_file(&path).unwrap();
            }
        }
    }

    /// Whether what stands in the folder now is a folder, by its key.
    fn inventory(&self) -> BTreeMap<String, bool> {
        let (mut found, mut folders) = (BTreeMap::new(), vec![self.root.clone()]);
        while let Some(folder) = folders.pop() {
            for (_, path, about) in entries(&folder) {
                found.insert(key(&about), about.is_dir());
                folders.extend(about.is_dir().then_some(path));
            }
        }
        found
    }

    /// A folder as it was synced; a listed file that was never synced itself is empty.
    fn restore(&self, folder: &str, into: &Path, now: &BTreeMap<String, bool>) {
        let list = fs::read_to_string(self.disk().join(format!("d-{folder}"))).unwrap_or_default();
        for line in list.lines() {
            let (key, name) = line.split_once(' ').expect("a key and a name");
            let path = into.join(name);
            let synced = self.disk().join(format!("f-{key}"));
            if self.disk().join(format!("d-{key}")).exists() || now.get(key) == Some(&true) {
                fs::create_dir(&path).unwrap();
                self.restore(key, &path, now);
            } else if synced.exists() {
                copy(&synced, &path);
            } else {
                File::create(&path).unwrap();
            }
        }
    }

    fn switches(&self) -> PathBuf {
        self.own.path().join("switches")
    }

    fn disk(&self) -> PathBuf {
        self.own.path().join("disk")
    }

    fn switch(&self, name: &str, value: Option<String>) {
        let path = self.switches().join(name);
        match value {
            // By rename, because a process may read it at any moment.
            Some(value) => {
                let fresh = self.own.path().join(name);
                fs::write(&fresh, value).unwrap();
                fs::rename(fresh, path).unwrap();
            }
            None => match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => panic!("{name}: {error}"),
                _ => {}
            },
        }
    }
}

/// What gives a process a wrong time of day; to be added to its environment.
pub fn clock_env(offset_ms: i64) -> Vec<(&'static str, OsString)> {
    vec![("LD_PRELOAD", library().into()), ("SHIM_CLOCK_OFFSET_MS", offset_ms.to_string().into())]
}

/// A copy of a folder as any tool makes one, also while a process writes there: what vanishes meanwhile is left out, and so
/// are sockets.
pub fn copy_tree(from: &Path, to: &Path, is_dir: bool) {
    if !is_dir {
        copy(from, to);
        return;
    }
    fs::create_dir_all(to).unwrap();
    for (name, path, about) in entries(from) {
        if about.is_dir() || about.is_file() {
            copy_tree(&path, &to.join(name), about.is_dir());
        }
    }
}

/// Removes all that is in a folder.
pub fn empty(folder: &Path) {
    for (_, path, about) in entries(folder) {
        if about.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }
}

/// The shim, built once for each test program.
fn library() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim/hubless_shim.c");
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hubless_shim.so");
        // Several test programs may do this at once.
        let fresh = library.with_extension(std::process::id().to_string());
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"]);
        let output = cc.arg(&fresh).arg(source).arg("-ldl").output().expect("cc runs; `make setup` installs it");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::rename(fresh, &library).unwrap();
        library
    };
    BUILT.get_or_init(build).clone()
}

fn word(errno: Errno) -> String {
    match errno {
        Errno::Io => "EIO".into(),
        Errno::NoSpace => "ENOSPC".into(),
    }
}

/// As the shim makes it: inode and time of birth, so that an inode used again is another file.
fn key(about: &fs::Metadata) -> String {
    let born = about.created().ok().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    format!("{}-{}", about.ino(), born.unwrap_or_default().as_nanos())
}

/// Name, path and nature of what is in a folder now.
fn entries(folder: &Path) -> Vec<(String, PathBuf, fs::Metadata)> {
    let found = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let read = |entry: io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        let about = fs::symlink_metadata(entry.path()).ok()?;
        Some((entry.file_name().into_string().expect("names are UTF-8"), entry.path(), about))
    };
    found.filter_map(read).collect()
}

/// Copies content and length; zeros stay holes, because logs are allocated far ahead.
fn copy(from: &Path, to: &Path) {
    let mut source = match File::open(from) {
        Err(error) if error.kind() == ErrorKind::NotFound => return,
        opened => opened.unwrap(),
    };
    let mut target = File::create(to).unwrap();
    target.set_permissions(source.metadata().unwrap().permissions()).unwrap();
    let (mut chunk, mut len) = (vec![0; CHUNK_BYTES], 0);
    loop {
        let got = source.read(&mut chunk).unwrap();
        if got == 0 {
            break;
        }
        if chunk[..got].iter().any(|byte| *byte != 0) {
            target.seek(SeekFrom::Start(len)).unwrap();
            target.write_all(&chunk[..got]).unwrap();
        }
        len += got as u64;
    }
    target.set_len(len).unwrap();
}
