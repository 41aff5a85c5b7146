//! The token that opens the page and the API to others than this machine.
//!
//! Owns the secret and its file. It is shown only by [`WebToken::reveal`], for a link that its reader may open.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::BASE32_NOPAD;

const SECRET_BYTES: usize = 16;
/// Shorter ones can be guessed, longer ones do not fit into a header.
const CHARS: std::ops::RangeInclusive<usize> = 16..=256;

/// A secret word: whoever has it may use the page and the API as one who sits at this machine. Cheap to clone.
#[derive(Clone)]
pub struct WebToken(Arc<str>);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Somebody else than its owner could read the file.
    #[error("{} can be read by others", .0.display())]
    Exposed(PathBuf),
    /// What is in the file is no token.
    #[error("{} holds no token: 16 to 256 letters, digits, `-`, `_` or `.`", .0.display())]
    NoToken(PathBuf),
    /// The system does not let it be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl WebToken {
    /// A new one, of 128 random bits.
    ///
    /// # Errors
    /// What the system says of its random numbers.
    pub fn random() -> io::Result<WebToken> {
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret)?;
        Ok(WebToken(BASE32_NOPAD.encode(&secret).to_ascii_lowercase().into()))
    }

    /// The one in the file at `path`; where there is none, a new one is written there, readable by its owner only.
    ///
    /// # Errors
    /// [`TokenError`]: also when others than its owner could read it.
    pub fn read_or_make(path: &Path) -> Result<WebToken, TokenError> {
        let wrong = |source| TokenError::File { path: path.into(), source };
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let token = WebToken::random().map_err(wrong)?;
                token.write(path).map_err(wrong)?;
                return Ok(token);
            }
            file => file.map_err(wrong)?,
        };
        if file.metadata().map_err(wrong)?.mode() & 0o077 != 0 {
            return Err(TokenError::Exposed(path.into()));
        }
        let mut text = String::new();
        // A little more than the longest, so that a longer one is seen as such.
        Read::by_ref(&mut file).take(2 * *CHARS.end() as u64).read_to_string(&mut text).map_err(wrong)?;
        let token = text.trim();
        let plain = token.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if !plain || !CHARS.contains(&token.len()) {
            return Err(TokenError::NoToken(path.into()));
        }
        Ok(WebToken(token.into()))
    }

    /// By rename, so that a power cut leaves a whole token or none.
    fn write(&self, path: &Path) -> io::Result<()> {
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        writeln!(file, "{}", self.0)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)
    }

    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What a browser is given in its place: it opens this node and says nothing of the token.
    pub(super) fn cookie(&self) -> String {
        let key = blake3::derive_key("hubless 2026-11-28 web cookie", self.0.as_bytes());
        BASE32_NOPAD.encode(&key).to_ascii_lowercase()
    }

    /// Whether somebody was given that.
    pub(super) fn is_cookie(&self, said: &str) -> bool {
        blake3::hash(said.as_bytes()) == blake3::hash(self.cookie().as_bytes())
    }

    /// Whether somebody said it; how long this takes says nothing of how much was right.
    pub(super) fn is(&self, said: &str) -> bool {
        // Hashes are compared in constant time.
        blake3::hash(said.as_bytes()) == blake3::hash(self.0.as_bytes())
    }
}

impl fmt::Debug for WebToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebToken(***)")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_stays_in_its_file_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let made = WebToken::read_or_make(&path).unwrap();
        assert_eq!(made.reveal().len(), 26);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let read = WebToken::read_or_make(&path).unwrap();
        assert!(read.is(made.reveal()) && !read.is("") && !read.is(&made.reveal()[1..]));
        assert!(!format!("{made:?}").contains(made.reveal()));

        for (text, fits) in [("0123456789abcdef\n", true), ("short", false), ("", false), ("with a space in it", false)]
        {
            std::fs::write(&path, text).unwrap();
            assert_eq!(WebToken::read_or_make(&path).is_ok(), fits, "{text}");
        }
        std::fs::write(&path, "x".repeat(257)).unwrap();
        assert!(matches!(WebToken::read_or_make(&path), Err(TokenError::NoToken(_))));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(WebToken::read_or_make(&path), Err(TokenError::Exposed(_))));
        assert!(matches!(WebToken::read_or_make(&folder.path().join("no/token")), Err(TokenError::File { .. })));
    }
}
