//! A node's folder: whose it is while the node lives, and who the node is.
//!
//! Owns `DIR/lock`, held by one living process and naming it, and `DIR/identity`, the 32 secret bytes behind the NodeId,
//! made at the first start and never changed after. Whatever is made here is readable by its owner only.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::StartError;
use crate::id::NodeKey;

/// Read and written by the owner, by nobody else.
const FILE_MODE: u32 = 0o600;
/// The same for a folder.
const FOLDER_MODE: u32 = 0o700;

/// A data folder that is ours until this is dropped.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    /// The lock goes with the file, so a killed process leaves none behind.
    _lock: File,
}

impl DataDir {
    /// Makes the folder where it is missing, and takes its lock.
    ///
    /// # Errors
    /// [`StartError::Locked`] if a living process has it, [`StartError::DataDir`].
    pub fn open(path: &Path) -> Result<DataDir, StartError> {
        let broken = |path: &Path| {
            let path = path.to_path_buf();
            move |source| StartError::DataDir { path, source }
        };
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path).map_err(broken(path))?;
        let lock_path = path.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
        let mut lock = options.open(&lock_path).map_err(broken(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StartError::Locked { path: path.into(), pid: pid_in(&mut lock) });
            }
            Err(TryLockError::Error(source)) => return Err(StartError::DataDir { path: lock_path, source }),
        }
        write_pid(&mut lock).map_err(broken(&lock_path))?;
        Ok(DataDir { path: path.into(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The node's key, made if there is none yet. A key file that others may read is closed to them.
    ///
    /// # Errors
    /// [`StartError::DataDir`]; a damaged key file is never replaced, for it may still be wanted.
    pub fn identity(&self) -> Result<NodeKey, StartError> {
        let path = self.path.join("identity");
        match read_identity(&path) {
            Ok(secret) => Ok(NodeKey::from_bytes(&secret)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_identity(&path).map_err(|source| StartError::DataDir { path, source })
            }
            Err(source) => Err(StartError::DataDir { path, source }),
        }
    }

    /// By rename, so that a power cut leaves a whole key or none.
    fn make_identity(&self, path: &Path) -> io::Result<NodeKey> {
        let mut secret = [0; NodeKey::LEN];
        getrandom::fill(&mut secret)?;
        let fresh = self.path.join("identity.new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&fresh)?;
        file.write_all(&secret)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        File::open(&self.path)?.sync_all()?;
        Ok(NodeKey::from_bytes(&secret))
    }
}

fn read_identity(path: &Path) -> io::Result<[u8; NodeKey::LEN]> {
    let file = File::open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "others could read this node's key; now only its owner can");
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    }
    let mut bytes = Vec::new();
    file.take(NodeKey::LEN as u64 + 1).read_to_end(&mut bytes)?;
    let wrong = |bytes: Vec<u8>| {
        let message = format!("a key has {} bytes, this file {}", NodeKey::LEN, bytes.len());
        io::Error::new(io::ErrorKind::InvalidData, message)
    };
    bytes.try_into().map_err(wrong)
}

/// The process that holds the lock; 0 if it has not left its number yet.
fn pid_in(lock: &mut File) -> u32 {
    let mut text = String::new();
    // What cannot be read is as good as not there.
    let _ = lock.take(16).read_to_string(&mut text);
    text.trim().parse().unwrap_or(0)
}

fn write_pid(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_folder_has_one_owner_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("mesh/name");
        let first = DataDir::open(&path).unwrap();
        let Err(StartError::Locked { pid, .. }) = DataDir::open(&path) else { panic!("opened twice") };
        assert_eq!(pid, std::process::id());
        drop(first);
        assert!(DataDir::open(&path).is_ok());
    }

    #[test]
    fn the_identity_stays_the_same() {
        let root = tempfile::tempdir().unwrap();
        let first = DataDir::open(root.path()).unwrap().identity().unwrap().node();
        assert_eq!(DataDir::open(root.path()).unwrap().identity().unwrap().node(), first);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(DataDir::open(other.path()).unwrap().identity().unwrap().node(), first);
    }

    #[test]
    fn nobody_else_may_read_what_is_made_here() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("node");
        let folder = DataDir::open(&path).unwrap();
        folder.identity().unwrap();
        assert_eq!(mode(folder.path()), 0o700);
        assert_eq!(mode(&path.join("lock")), 0o600);
        let identity = path.join("identity");
        assert_eq!(mode(&identity), 0o600);
        std::fs::set_permissions(&identity, Permissions::from_mode(0o644)).unwrap();
        folder.identity().unwrap();
        assert_eq!(mode(&identity), 0o600);
    }

    #[test]
    fn a_damaged_identity_is_an_error_and_stays_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let folder = DataDir::open(root.path()).unwrap();
        for damaged in [&b"short"[..], &[7; 33]] {
            std::fs::write(root.path().join("identity"), damaged).unwrap();
            assert!(matches!(folder.identity(), Err(StartError::DataDir { .. })));
            assert_eq!(std::fs::read(root.path().join("identity")).unwrap(), damaged);
        }
    }
}
