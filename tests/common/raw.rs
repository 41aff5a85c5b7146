//! A peer made of bytes: ZMTP 3.0 (RFC 23) with the READY that nodes exchange, for what no node of ours would do.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use hubless::id::{Epoch, NodeKey, Run};
use hubless::wire::WIRE_VERSION;

const PATIENCE: Duration = Duration::from_secs(10);
const GREETING_BYTES: usize = 64;
const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Who such a peer says it is.
#[derive(Clone, Copy, Debug)]
pub struct Face<'a> {
    /// This life of it.
    pub run: Run,
    /// Its mesh.
    pub mesh: &'a str,
    /// Where it says that it listens.
    pub port: u16,
}

/// A run that no node has: one for each number.
pub fn run(number: u64) -> Run {
    key(number).run(Epoch(number))
}

/// What proves the name of that run.
pub fn key(number: u64) -> NodeKey {
    let mut secret = [0x5a; NodeKey::LEN];
    secret[..8].copy_from_slice(&number.to_be_bytes());
    NodeKey::from_bytes(&secret)
}

/// A connection that is through the handshake.
#[derive(Debug)]
pub struct Raw(TcpStream);

impl Raw {
    /// Calls a node as one that wants to hear it.
    pub fn call(address: SocketAddr, face: &Face<'_>) -> io::Result<Raw> {
        Raw::shake(TcpStream::connect(address)?, "SUB", face)
    }

    /// Answers a node that has called, as one that it wants to hear.
    pub fn answer(stream: TcpStream, face: &Face<'_>) -> io::Result<Raw> {
        Raw::shake(stream, "PUB", face)
    }

    fn shake(mut stream: TcpStream, role: &str, face: &Face<'_>) -> io::Result<Raw> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        stream.write_all(&Raw::opening(role, face))?;
        let mut theirs = [0; GREETING_BYTES + 2];
        stream.read_exact(&mut theirs)?;
        let [.., flags, len] = theirs;
        assert_eq!(flags, COMMAND, "a short READY follows the greeting");
        stream.read_exact(&mut vec![0; len.into()])?;
        Ok(Raw(stream))
    }

    /// What it says first: greeting and READY.
    pub fn opening(role: &str, face: &Face<'_>) -> Vec<u8> {
        let mut hello = vec![0; GREETING_BYTES];
        (hello[0], hello[9], hello[10]) = (0xff, 0x7f, 3);
        hello[12..16].copy_from_slice(b"NULL");
        let Face { run, mesh, port } = face;
        let mut ready = b"\x05READY".to_vec();
        for (name, value) in [
            ("Socket-Type", role),
            ("Hubless-Run", &run.to_string()),
            ("Hubless-Mesh", mesh),
            ("Hubless-Port", &port.to_string()),
            ("Hubless-Version", &WIRE_VERSION.to_string()),
        ] {
            ready.push(name.len() as u8);
            ready.extend_from_slice(name.as_bytes());
            ready.extend_from_slice(&(value.len() as u32).to_be_bytes());
            ready.extend_from_slice(value.as_bytes());
        }
        hello.extend(frame(COMMAND, &ready));
        hello
    }

    /// Subscribes a topic.
    pub fn subscribe(&mut self, topic: &str) -> io::Result<()> {
        self.0.write_all(&frame(0, &[b"\x01", topic.as_bytes()].concat()))
    }

    /// Says a message of two frames.
    pub fn say(&mut self, topic: &[u8], body: &[u8]) -> io::Result<()> {
        self.0.write_all(&[frame(MORE, topic), frame(0, body)].concat())
    }

    /// Says these very bytes.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// Reads whatever comes until then; answers how many bytes came. An error if the other end closes before.
    pub fn read_until(&mut self, end: Instant) -> io::Result<usize> {
        let (mut bytes, mut buffer) = (0, vec![0; 64 * 1024]);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(bytes);
            }
            self.0.set_read_timeout(Some(left))?;
            match self.0.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(more) => bytes += more,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// A frame with its header.
pub fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    match u8::try_from(body.len()) {
        Ok(len) => [&[flags, len], body].concat(),
        Err(_) => [&[flags | LONG], &(body.len() as u64).to_be_bytes()[..], body].concat(),
    }
}
