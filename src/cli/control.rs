//! The control socket: where commands on this machine reach a running node.
//!
//! `DIR/control.sock`, mode 0600, in the node's data folder. A socket's path must be short (104 bytes on macOS), so where it
//! would not be, the socket stands in a private folder elsewhere, and `DIR/control.path` says where.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hubless::Handle;
use hubless::web::Web;

const SOCKET: &str = "control.sock";
const POINTER: &str = "control.path";
/// In a private folder: by it, the next start of any node knows whether somebody uses the folder, and removes it if not.
const LOCK: &str = "lock";
/// What every system takes for the path of a socket, in bytes.
const PATH_BYTES_MAX: usize = 100;

/// An open control socket; [`Control::close`] removes it.
#[derive(Debug)]
pub struct Control {
    web: Web,
    socket: PathBuf,
    /// Made for this socket, goes with it.
    folder: Option<PrivateFolder>,
    pointer: Option<PathBuf>,
}

#[derive(Debug)]
struct PrivateFolder {
    path: PathBuf,
    _lock: File,
}

impl Control {
    /// Opens the control socket of the node that holds the lock of `data_dir`, or, without one, a socket that only the
    /// caller knows of.
    pub async fn open(handle: Handle, data_dir: Option<&Path>) -> io::Result<Control> {
        let near = data_dir.map(|folder| folder.join(SOCKET));
        let pointer = data_dir.map(|folder| folder.join(POINTER));
        // What a killed node left behind: the lock is ours, so nobody listens there.
        for stale in near.iter().chain(&pointer) {
            remove(stale)?;
        }
        let (socket, folder) = match near.filter(|path| path.as_os_str().len() <= PATH_BYTES_MAX) {
            Some(socket) => (socket, None),
            None => {
                let folder = private_folder()?;
                (folder.path.join(SOCKET), Some(folder))
            }
        };
        let pointer = pointer.filter(|_| folder.is_some());
        let web = Web::serve_unix(handle, &socket).await?;
        if let Some(pointer) = &pointer {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(pointer)?;
            file.write_all(socket.as_os_str().as_encoded_bytes())?;
        }
        Ok(Control { web, socket, folder, pointer })
    }

    /// Where it stands.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Closes it and removes its files.
    pub async fn close(self) {
        let Control { web, socket, folder, pointer } = self;
        web.close().await;
        // What cannot be removed is removed at the next start.
        let _ = remove(&socket);
        let _ = pointer.map(|pointer| remove(&pointer));
        let _ = folder.map(|folder| std::fs::remove_dir_all(folder.path));
    }
}

/// Where the node of `data_dir` would have its control socket. Whether anybody listens there is not known.
pub fn find(data_dir: &Path) -> Option<PathBuf> {
    let near = data_dir.join(SOCKET);
    if near.exists() {
        return Some(near);
    }
    let socket = PathBuf::from(std::fs::read_to_string(data_dir.join(POINTER)).ok()?);
    socket.exists().then_some(socket)
}

fn remove(file: &Path) -> io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A new folder that only its owner may enter, with a name that nobody guesses and a path short enough for a socket.
fn private_folder() -> io::Result<PrivateFolder> {
    let mut random = [0; 8];
    getrandom::fill(&mut random)?;
    let name = format!("hubless-{:016x}", u64::from_le_bytes(random));
    let places =
        [std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from), Some(std::env::temp_dir()), Some("/tmp".into())];
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for place in places.into_iter().flatten().filter(|place| place.is_absolute()) {
        let path = place.join(&name);
        if path.join(SOCKET).as_os_str().len() > PATH_BYTES_MAX {
            continue;
        }
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {
                let lock = File::create_new(path.join(LOCK))?;
                lock.lock()?;
                return Ok(PrivateFolder { path, _lock: lock });
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}
