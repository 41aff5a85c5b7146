//! The private folder in which the `zeromq` sockets meet the gate.
//!
//! Mode 0700, a name of its own for each run, a path short enough for a Unix socket. It is removed when it is dropped; what
//! a killed process left behind is removed at the next start of any node, known by a lock that nobody holds.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

const PREFIX: &str = "hubless-";
const LOCK: &str = "lock";
/// The longest path of a Unix socket on every platform, without the 0 at its end.
const PATH_BYTES_MAX: usize = 103;
/// What is younger may be about to be locked.
const STALE: Duration = Duration::from_secs(60);

/// A private folder.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes one below `XDG_RUNTIME_DIR` or the folder for temporary files.
    pub(crate) fn make() -> io::Result<Folder> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
        let parents = runtime.into_iter().chain([std::env::temp_dir(), PathBuf::from("/tmp")]);
        let mut last = io::Error::from(io::ErrorKind::InvalidFilename);
        for parent in parents.filter(|parent| parent.to_str().is_some()) {
            match Folder::make_in(&parent) {
                Ok(folder) => return Ok(folder),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn make_in(parent: &Path) -> io::Result<Folder> {
        remove_stale(parent);
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        let path = parent.join(format!("{PREFIX}{:016x}", u64::from_le_bytes(random)));
        // The longest name in it is the letter and the number of a socket.
        if path.as_os_str().len() + "/s18446744073709551615".len() > PATH_BYTES_MAX {
            return Err(io::ErrorKind::InvalidFilename.into());
        }
        DirBuilder::new().mode(0o700).create(&path)?;
        let lock = File::create_new(path.join(LOCK))?;
        lock.lock()?;
        Ok(Folder { path, _lock: lock })
    }

    /// The path of a socket in it: `kind` is one letter.
    pub(crate) fn socket(&self, kind: char, number: u64) -> PathBuf {
        self.path.join(format!("{kind}{number}"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed now is found stale by the next start.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The endpoint of a socket, as `zeromq` reads it.
pub(crate) fn endpoint(path: &Path) -> String {
    format!("ipc://{}", path.display())
}

fn remove_stale(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_str().is_some_and(|name| {
            name.strip_prefix(PREFIX)
                .is_some_and(|rest| rest.len() == 16 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
        });
        if is_ours && is_stale(&entry.path()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn is_stale(path: &Path) -> bool {
    let old = |path: &Path| -> io::Result<bool> {
        let age = SystemTime::now().duration_since(fs::symlink_metadata(path)?.modified()?);
        Ok(age.is_ok_and(|age| age > STALE))
    };
    old(path).unwrap_or(false) && File::open(path.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn folder_is_private_and_goes_away() {
        let parent = tempfile::tempdir().unwrap();
        let folder = Folder::make_in(parent.path()).unwrap();
        let mode = fs::metadata(&folder.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        File::create(folder.socket('s', 1)).unwrap();
        let path = folder.path.clone();
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn only_what_a_dead_process_left_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let living = Folder::make_in(parent.path()).unwrap();
        let dead = Folder::make_in(parent.path()).unwrap();
        let young = Folder::make_in(parent.path()).unwrap();
        let dead_path = dead.path.clone();
        dead._lock.unlock().unwrap();
        young._lock.unlock().unwrap();
        for path in [&living.path, &dead.path] {
            let old = SystemTime::now() - 2 * STALE;
            File::open(path).unwrap().set_modified(old).unwrap();
        }
        remove_stale(parent.path());
        assert!(living.path.exists() && young.path.exists() && !dead_path.exists());
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let long = parent.path().join("x".repeat(80));
        fs::create_dir(&long).unwrap();
        assert_eq!(Folder::make_in(&long).unwrap_err().kind(), io::ErrorKind::InvalidFilename);
        assert_eq!(fs::read_dir(&long).unwrap().count(), 0);
    }
}
