//! Memory: the peers of last time and the port this node had, in the data folder.
//!
//! `peers` has a line `NODE ADDRESS… LAST_SEEN_MS` for each of at most [`PEERS_MAX`] peers, the last seen first; `port`
//! has a number. Both are written by rename, so a crash leaves the old file. They are hints: what cannot be read is passed
//! over, and losing them costs nothing but time.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::ladder::{ADDRESSES_MAX, PEERS_MAX};
use super::{Candidate, is_dialable};
use crate::handle::FoundBy;
use crate::id::NodeId;

/// A file that is larger is not ours.
const BYTES_MAX: u64 = 1 << 20;

/// The peers of last time, and of now.
#[derive(Debug)]
pub(crate) struct Memory {
    folder: PathBuf,
    peers: Vec<Remembered>,
    changed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Remembered {
    node: NodeId,
    addresses: Vec<SocketAddr>,
    /// Milliseconds since 1970.
    last_seen_ms: u64,
}

impl Memory {
    /// What the data folder remembers; nothing if there is nothing to be read. Reads one small file.
    pub(crate) fn load(folder: &Path) -> Memory {
        let mut peers: Vec<Remembered> = Vec::new();
        for peer in read(&folder.join("peers")).lines().filter_map(parse) {
            if peers.len() < PEERS_MAX && peers.iter().all(|known| known.node != peer.node) {
                peers.push(peer);
            }
        }
        Memory { folder: folder.into(), peers, changed: false }
    }

    /// Whom to look for, the last seen first.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = Candidate> {
        self.peers.iter().map(|peer| Candidate {
            addresses: peer.addresses.clone(),
            run: None,
            found_by: FoundBy::Memory,
            mesh: None,
            version: None,
            strange_key: false,
        })
    }

    /// `node` is linked and reached at these addresses. The peer longest unseen makes room.
    pub(crate) fn saw(&mut self, node: NodeId, addresses: &[SocketAddr], now_ms: u64) {
        let addresses: Vec<_> = addresses.iter().copied().filter(|a| is_dialable(*a)).take(ADDRESSES_MAX).collect();
        if addresses.is_empty() {
            return;
        }
        self.peers.retain(|peer| peer.node != node);
        self.peers.insert(0, Remembered { node, addresses, last_seen_ms: now_ms });
        self.peers.truncate(PEERS_MAX);
        self.changed = true;
    }

    /// Writes down what has changed since the last time.
    ///
    /// # Errors
    /// The file cannot be written; the old one is there, and the next call tries again.
    pub(crate) async fn save(&mut self) -> io::Result<()> {
        if self.changed {
            let text: String = self.peers.iter().map(Remembered::line).collect();
            write(&self.folder, "peers", text).await?;
            self.changed = false;
        }
        Ok(())
    }
}

/// The port that a node with this data folder had last.
pub(crate) fn load_port(folder: &Path) -> Option<u16> {
    read(&folder.join("port")).trim().parse().ok().filter(|port| *port > 0)
}

/// Writes down the port of now.
///
/// # Errors
/// The file cannot be written; the old one is there.
pub(crate) async fn save_port(folder: &Path, port: u16) -> io::Result<()> {
    write(folder, "port", format!("{port}\n")).await
}

impl Remembered {
    fn line(&self) -> String {
        let addresses: String = self.addresses.iter().map(|address| format!(" {address}")).collect();
        format!("{}{addresses} {}\n", self.node, self.last_seen_ms)
    }
}

fn parse(line: &str) -> Option<Remembered> {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    let last_seen_ms = words.pop()?.parse().ok()?;
    let (node, addresses) = words.split_first()?;
    let addresses: Vec<SocketAddr> = addresses
        .iter()
        .filter_map(|address| address.parse().ok())
        .filter(|a| is_dialable(*a))
        .take(ADDRESSES_MAX)
        .collect();
    let node = node.parse().ok()?;
    (!addresses.is_empty()).then_some(Remembered { node, addresses, last_seen_ms })
}

fn read(path: &Path) -> String {
    let small = std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() <= BYTES_MAX);
    let bytes = if small { std::fs::read(path).unwrap_or_default() } else { Vec::new() };
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn write(folder: &Path, name: &str, text: String) -> io::Result<()> {
    let new = folder.join(format!("{name}.new"));
    tokio::fs::write(&new, text).await?;
    tokio::fs::rename(&new, folder.join(name)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 47474))
    }

    fn addresses(memory: &Memory) -> Vec<Vec<SocketAddr>> {
        memory.candidates().map(|candidate| candidate.addresses).collect()
    }

    #[tokio::test]
    async fn peers_and_port_are_remembered_the_last_seen_first() {
        let folder = tempfile::tempdir().unwrap();
        let mut memory = Memory::load(folder.path());
        assert_eq!((addresses(&memory), load_port(folder.path())), (vec![], None));
        memory.saw(NodeId([1; 32]), &[at(1), "[fd00::1]:5".parse().unwrap()], 10);
        memory.saw(NodeId([2; 32]), &[at(2)], 20);
        memory.saw(NodeId([1; 32]), &[at(3)], 30);
        memory.save().await.unwrap();
        save_port(folder.path(), 4711).await.unwrap();
        let again = Memory::load(folder.path());
        assert_eq!(again.peers, memory.peers);
        assert_eq!(addresses(&again), [vec![at(3)], vec![at(2)]]);
        assert_eq!(load_port(folder.path()), Some(4711));
    }

    #[test]
    fn garbage_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let good = Remembered { node: NodeId([7; 32]), addresses: vec![at(1)], last_seen_ms: 5 };
        let node = good.node;
        let mut bytes =
            format!("\n\u{0}\nhello\n{node}\n{node} 5\n{node} nowhere 5\n{node} 0.0.0.0:1 5\n{node} 10.0.0.1:1 x\n")
                .into_bytes();
        bytes.extend([0xff, 0xfe, b'\n']);
        bytes.extend(format!("{node} what {} 5\n{node} {} 6", at(1), at(2)).bytes());
        std::fs::write(folder.path().join("peers"), bytes).unwrap();
        std::fs::write(folder.path().join("port"), "0").unwrap();
        assert_eq!(Memory::load(folder.path()).peers, [good]);
        assert_eq!(load_port(folder.path()), None);
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let mut memory = Memory::load(folder.path());
        for n in 0..300u16 {
            let mut node = [0; 32];
            node[..2].copy_from_slice(&n.to_le_bytes());
            memory.saw(NodeId(node), &(1..20).map(at).collect::<Vec<_>>(), n.into());
        }
        memory.save().await.unwrap();
        let again = Memory::load(folder.path());
        assert_eq!((again.peers.len(), again.peers[0].last_seen_ms), (PEERS_MAX, 299));
        assert!(again.peers.iter().all(|peer| peer.addresses.len() == ADDRESSES_MAX));
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_is_an_error_and_no_loss() {
        let folder = tempfile::tempdir().unwrap();
        let mut memory = Memory::load(&folder.path().join("missing"));
        memory.saw(NodeId([1; 32]), &[at(1)], 1);
        assert!(memory.save().await.is_err());
        std::fs::create_dir(folder.path().join("missing")).unwrap();
        memory.save().await.unwrap();
        assert_eq!(addresses(&Memory::load(&folder.path().join("missing"))).len(), 1);
    }
}
