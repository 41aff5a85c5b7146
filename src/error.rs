//! What can go wrong for a user of the crate: small enums, each variant saying what state the node is in now.

use std::io;
use std::path::PathBuf;

use crate::id::ParseError;

/// A node did not start; nothing of it runs.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process has the address.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address asked for.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// A seed, an interface or a name that cannot be meant.
    #[error("{0}")]
    Config(String),
    /// A running node has the data folder.
    #[error("the data folder {} is in use by process {pid}", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
        /// The process, 0 if it did not leave its number.
        pid: u32,
    },
    /// The data folder cannot be made, read or written.
    #[error("the data folder {}: {source}", path.display())]
    DataDir {
        /// The folder or the file in it.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The history was written by a newer hubless; nothing of it was touched.
    #[error("the history in {} is of a newer version ({found}) than this hubless reads ({known})", path.display())]
    NewerHistory {
        /// Its folder.
        path: PathBuf,
        /// The version of its format.
        found: u32,
        /// The newest format that is known here.
        known: u32,
    },
    /// The operating system gave no thread, no random numbers or no socket folder.
    #[error("{what}: {source}")]
    System {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

/// A message was not published; the node goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Larger than [`PAYLOAD_BYTES_MAX`](crate::PAYLOAD_BYTES_MAX).
    #[error("{bytes} bytes are too many: a message has at most {max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// A display name or content type beyond its length.
    #[error("the {0} is too long")]
    TooLong(&'static str),
    /// The room is out of rules.
    #[error(transparent)]
    Room(#[from] ParseError),
    /// The client id was used for another message.
    #[error("this client id was used for another message")]
    KeyReused,
    /// The disk is full: the message was not kept. The node goes on for its peers.
    #[error("the disk is full: nothing is published until there is room")]
    DiskFull,
    /// The disk does not take what is written: the message was not kept. The node goes on for its peers.
    #[error("the history cannot be written: nothing is published until it can")]
    DiskFailing,
    /// The node has stopped.
    #[error("the node has stopped")]
    Stopped,
}

/// A durable subscriber was not opened, or not moved on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurableError {
    /// The name is empty, too long, or has control characters.
    #[error("a durable name is 1 to 64 bytes without control characters")]
    Name,
    /// This node keeps no history, so it keeps no cursors.
    #[error("this node keeps no history, so it has no durable cursors")]
    NoHistory,
    /// The history could not be read or written; nothing was lost.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// Another holder took the name, or it was removed: this one moves it no more.
    #[error("another holder took this durable cursor, or it was removed")]
    Replaced,
    /// The node has stopped.
    #[error("the node has stopped")]
    Stopped,
}

/// The node has stopped; nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node has stopped")]
pub struct Stopped;

impl From<Stopped> for PublishError {
    fn from(_: Stopped) -> PublishError {
        PublishError::Stopped
    }
}

/// The history could not answer; the node goes on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// It is closed: there is none, its disk is failing, or it is being opened anew. Ask again later.
    #[error("the history is not open")]
    Closed,
    /// The disk did not give what is on it; it is tried again with the next question.
    #[error("the history cannot be read: {0}")]
    Read(String),
    /// What is on disk contradicts itself. The history is moved aside, a new one is begun and refilled by peers.
    #[error("the history is damaged: {0}")]
    Damaged(String),
}
