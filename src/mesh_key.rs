//! The key that closes a mesh: who has it belongs to it, who has not reaches no parser.
//!
//! A file of keys holds an invite code a line, the first one that nodes dial with, then others that are let in, too: so keys
//! are changed one node after the other. A code is `HUBLESS1-` and base32 of the 32 bytes of the key and 4 of a checksum,
//! in groups; groups, spaces and capital letters are for people and mean nothing.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use data_encoding::BASE32_NOPAD;
use zeroize::Zeroize;

#[cfg(feature = "mdns")]
use crate::id::Run;

/// What a code begins with.
const PREFIX: &str = "HUBLESS1";
const KEY_BYTES: usize = 32;
const CHECK_BYTES: usize = 4;
const GROUP_CHARS: usize = 6;
/// A larger file is no file of keys.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Keys in one file; each more makes every handshake a little longer.
const KEYS_MAX: usize = 8;
#[cfg(feature = "mdns")]
const TAG_BYTES: usize = 16;

/// The secret of a mesh. It is shown only by [`MeshKey::code`].
#[derive(Clone, PartialEq, Eq)]
pub struct MeshKey([u8; KEY_BYTES]);

/// The keys of a node, the one it dials with first. Cheap to clone.
#[derive(Clone, Debug)]
pub struct KeyRing(Arc<[MeshKey]>);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// It is not an invite code.
    #[error("this is no invite code: it begins with HUBLESS1- and has 58 letters and digits after that")]
    NoCode,
    /// Something in the code was mistyped.
    #[error("a letter of this invite code is wrong")]
    Mistyped,
    /// Somebody else than its owner could read the file.
    #[error("{} can be read by others", .0.display())]
    Exposed(PathBuf),
    /// There is no key in the file, or there are too many.
    #[error("{} holds {count} keys, not 1 to 8", path.display())]
    Count {
        /// The file.
        path: PathBuf,
        /// How many it holds.
        count: usize,
    },
    /// A line of the file is no code.
    #[error("{}, line {line}: {source}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        source: Box<KeyError>,
    },
    /// The file is there already, and its keys may still be wanted.
    #[error("{} is there already", .0.display())]
    Exists(PathBuf),
    /// The system does not let it be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl MeshKey {
    /// A new one.
    ///
    /// # Errors
    /// What the system says of its random numbers.
    pub fn random() -> io::Result<MeshKey> {
        let mut key = [0; KEY_BYTES];
        getrandom::fill(&mut key)?;
        Ok(MeshKey(key))
    }

    /// The invite code: whoever has it can join, read and write.
    pub fn code(&self) -> String {
        let mut bytes = Vec::with_capacity(KEY_BYTES + CHECK_BYTES);
        bytes.extend_from_slice(&self.0);
        bytes.extend_from_slice(&self.check());
        let text = BASE32_NOPAD.encode(&bytes);
        bytes.zeroize();
        let mut code = PREFIX.to_string();
        for (at, letter) in text.chars().enumerate() {
            if at % GROUP_CHARS == 0 {
                code.push('-');
            }
            code.push(letter);
        }
        code
    }

    fn check(&self) -> [u8; CHECK_BYTES] {
        let mut check = [0; CHECK_BYTES];
        let hash = blake3::Hasher::new().update(b"hubless key\n").update(&self.0).finalize();
        check.copy_from_slice(&hash.as_bytes()[..CHECK_BYTES]);
        check
    }

    /// What the handshake of links is mixed with.
    pub(crate) fn secret(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// What a run that has this key says of itself in the open: it proves the key to those who have it, and tells others
    /// nothing. Hexadecimal.
    #[cfg(feature = "mdns")]
    pub(crate) fn tag(&self, mesh: &str, run: Run) -> String {
        let said = [b"hubless mdns\n", mesh.as_bytes(), b"\n", run.to_string().as_bytes()].concat();
        let hash = blake3::keyed_hash(&self.0, &said);
        data_encoding::HEXLOWER.encode(&hash.as_bytes()[..TAG_BYTES])
    }
}

impl FromStr for MeshKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<MeshKey, KeyError> {
        let text: String = text.chars().filter(|c| !c.is_whitespace() && *c != '-').collect();
        let text = text.to_ascii_uppercase();
        let code = text.strip_prefix(PREFIX).ok_or(KeyError::NoCode)?;
        let mut bytes = BASE32_NOPAD.decode(code.as_bytes()).map_err(|error| match error.kind {
            data_encoding::DecodeKind::Length => KeyError::NoCode,
            _ => KeyError::Mistyped,
        })?;
        let (Some(key), KEY_BYTES_AND_CHECK) = (bytes.first_chunk::<KEY_BYTES>(), bytes.len()) else {
            return Err(KeyError::NoCode);
        };
        let key = MeshKey(*key);
        let right = key.check() == bytes[KEY_BYTES..];
        bytes.zeroize();
        right.then_some(key).ok_or(KeyError::Mistyped)
    }
}

const KEY_BYTES_AND_CHECK: usize = KEY_BYTES + CHECK_BYTES;

impl Drop for MeshKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for MeshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MeshKey(***)")
    }
}

impl KeyRing {
    /// A ring of one key.
    pub fn of(key: MeshKey) -> KeyRing {
        KeyRing([key].into())
    }

    /// Reads a file of keys: an invite code a line, the one to dial with first. Lines that begin with `#` are passed over.
    ///
    /// # Errors
    /// [`KeyError`]: also when others than its owner could read it.
    pub fn read(path: &Path) -> Result<KeyRing, KeyError> {
        let wrong = |source| KeyError::File { path: path.into(), source };
        let mut file = File::open(path).map_err(wrong)?;
        let about = file.metadata().map_err(wrong)?;
        if about.is_file() && about.mode() & 0o077 != 0 {
            return Err(KeyError::Exposed(path.into()));
        }
        let mut text = String::new();
        Read::by_ref(&mut file).take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(wrong)?;
        let mut keys = Vec::new();
        for (line, said) in text.lines().enumerate() {
            let said = said.trim();
            if said.is_empty() || said.starts_with('#') {
                continue;
            }
            let key = said.parse().map_err(|source: KeyError| KeyError::Line {
                path: path.into(),
                line: line + 1,
                source: Box::new(source),
            })?;
            keys.push(key);
        }
        text.zeroize();
        if keys.is_empty() || keys.len() > KEYS_MAX {
            return Err(KeyError::Count { path: path.into(), count: keys.len() });
        }
        Ok(KeyRing(keys.into()))
    }

    /// Writes a new file that only its owner can read, whole or not at all.
    ///
    /// # Errors
    /// [`KeyError::Exists`]: a file that is there is never written over; [`KeyError::File`].
    pub fn write_new(&self, path: &Path) -> Result<(), KeyError> {
        self.write(path, |fresh| match std::fs::hard_link(fresh, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(KeyError::Exists(path.into())),
            Err(source) => Err(KeyError::File { path: path.into(), source }),
            Ok(()) => {
                // It stays under its other name.
                let _ = std::fs::remove_file(fresh);
                Ok(())
            }
        })
    }

    /// Writes the file anew, which must be one of keys, with another key in front or at the end.
    ///
    /// # Errors
    /// [`KeyError`]; the file is as it was.
    pub fn add(path: &Path, key: MeshKey, first: bool) -> Result<KeyRing, KeyError> {
        let ring = KeyRing::read(path)?;
        let mut keys: Vec<MeshKey> = ring.0.iter().filter(|other| **other != key).cloned().collect();
        keys.insert(if first { 0 } else { keys.len() }, key);
        if keys.len() > KEYS_MAX {
            return Err(KeyError::Count { path: path.into(), count: keys.len() });
        }
        let ring = KeyRing(keys.into());
        let replace =
            |fresh: &Path| std::fs::rename(fresh, path).map_err(|source| KeyError::File { path: path.into(), source });
        ring.write(path, replace)?;
        Ok(ring)
    }

    fn write(&self, path: &Path, settle: impl FnOnce(&Path) -> Result<(), KeyError>) -> Result<(), KeyError> {
        let wrong = |source| KeyError::File { path: path.into(), source };
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(format!(".new-{}", std::process::id()));
        let fresh = PathBuf::from(fresh);
        let mut text: String = self.0.iter().map(|key| key.code() + "\n").collect();
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        let done = write().map_err(wrong).and_then(|()| settle(&fresh));
        text.zeroize();
        if done.is_err() {
            // What was not settled is of no use.
            let _ = std::fs::remove_file(&fresh);
        }
        done
    }

    /// The key to dial with.
    pub fn first(&self) -> &MeshKey {
        &self.0[0]
    }

    /// All of them, the one to dial with first.
    pub fn iter(&self) -> impl Iterator<Item = &MeshKey> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn key(byte: u8) -> MeshKey {
        MeshKey([byte; KEY_BYTES])
    }

    #[test]
    fn a_code_is_read_however_people_write_it_and_any_wrong_letter_is_noticed() {
        let code = MeshKey::random().unwrap().code();
        let key: MeshKey = code.parse().unwrap();
        assert_eq!(key.code(), code);
        assert_eq!(code.len(), PREFIX.len() + 10 + 58);
        let spoken = code.to_lowercase().replace('-', " ");
        assert_eq!(spoken.parse::<MeshKey>().unwrap(), key);
        for (at, letter) in code.char_indices().skip(PREFIX.len() + 1).filter(|(_, letter)| *letter != '-') {
            let other = if letter == 'A' { "B" } else { "A" };
            let mut wrong = code.clone();
            wrong.replace_range(at..at + 1, other);
            assert!(matches!(wrong.parse::<MeshKey>(), Err(KeyError::Mistyped)), "{at}");
        }
        for bad in ["", "HUBLESS1-", &code[..code.len() - 1], &code[8..], "HUBLESS2-AAAA"] {
            assert!(bad.parse::<MeshKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_of_keys_is_its_owners_alone_and_never_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mesh.key");
        KeyRing::of(key(1)).write_new(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(*KeyRing::read(&path).unwrap().first(), key(1));
        assert!(matches!(KeyRing::of(key(2)).write_new(&path), Err(KeyError::Exists(_))));
        assert_eq!(*KeyRing::read(&path).unwrap().first(), key(1));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(KeyRing::read(&path), Err(KeyError::Exposed(_))));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn keys_are_added_behind_or_in_front() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mesh.key");
        KeyRing::of(key(1)).write_new(&path).unwrap();
        KeyRing::add(&path, key(2), false).unwrap();
        let ring = KeyRing::add(&path, key(3), true).unwrap();
        assert!(ring.iter().eq(&[key(3), key(1), key(2)]));
        assert!(KeyRing::add(&path, key(1), true).unwrap().iter().eq(&[key(1), key(3), key(2)]));
        assert!(KeyRing::read(&path).unwrap().iter().eq(&[key(1), key(3), key(2)]));
    }

    #[test]
    fn what_is_no_file_of_keys_is_named_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mesh.key");
        for (text, says) in [
            ("# nothing\n\n", "holds 0 keys"),
            (&*format!("# ours\n{}\nhello\n", key(1).code()), "line 3: this is no invite code"),
            (&*(key(1).code() + "\n").repeat(9), "holds 9 keys"),
        ] {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            let error = KeyRing::read(&path).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[cfg(feature = "mdns")]
    #[test]
    fn a_tag_tells_those_who_have_the_key_and_nobody_else() {
        let run = |epoch| crate::id::NodeKey::from_bytes(&[1; 32]).run(crate::id::Epoch(epoch));
        let tag = key(1).tag("lab", run(1));
        assert_eq!(tag, key(1).tag("lab", run(1)));
        for other in [key(2).tag("lab", run(1)), key(1).tag("den", run(1)), key(1).tag("lab", run(2))] {
            assert_ne!(tag, other);
        }
        assert!(!format!("{:?}", KeyRing::of(key(1))).contains("01"));
    }
}
