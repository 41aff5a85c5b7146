//! A TCP connection to a peer: bare in an open mesh, sealed by Noise in one that has a key.
//!
//! The handshake is `Noise_XXpsk0_25519_AESGCM_BLAKE2s`, or `…_ChaChaPoly_…` if the caller's processor has no instructions for
//! AES (Noise Protocol Framework, revision 34): whoever lacks the key fails at its first message, before anything of him is
//! parsed. Then each side signs the hash of the handshake with the key of its node, so that a name is proven for this one
//! connection: nothing recorded or reflected fits another. ZMTP goes on inside, its greeting included. A sealed mesh never
//! falls back to a bare line, and bare bytes mean nothing to it.
//!
//! ```text
//! record = length(2, big-endian) bytes       handshake message, or sealed: 16 bytes longer than what it holds
//! ```

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use snow::{Builder, HandshakeState, Keypair, TransportState};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use super::queue::read_now;
use super::zmtp::Broken;
use super::{ShakeError, limits};
use crate::id::{NodeId, NodeKey};
use crate::mesh_key::{KeyRing, MeshKey};

/// Several times as fast as the other where the processor has instructions for it, and as slow where it has none.
const AES: &str = "Noise_XXpsk0_25519_AESGCM_BLAKE2s";
const CHACHA: &str = "Noise_XXpsk0_25519_ChaChaPoly_BLAKE2s";
/// Both ends must mean the same protocol.
const PROLOGUE: &[u8] = b"hubless link 1";
/// Stands before what is signed, so that the signature of a link is one of nothing else.
const SIGNED_PREFIX: &[u8] = b"hubless link\n";
const HEAD_BYTES: usize = 2;
const TAG_BYTES: usize = 16;
/// The longest message of the handshake has 96 bytes.
const HANDSHAKE_BYTES_MAX: usize = 128;
/// What one record holds at most.
const RECORD_BYTES_MAX: usize = u16::MAX as usize - TAG_BYTES;
/// Sealed bytes that wait for TCP; while there are more, nothing is sealed.
const SEALED_BYTES_MAX: usize = 2 * RECORD_BYTES_MAX;

/// Which end of a connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// We have dialled.
    Caller,
    /// We were dialled.
    Called,
}

/// A connection through which ZMTP is spoken.
#[derive(Debug)]
pub(crate) struct Line {
    tcp: TcpStream,
    seal: Option<Box<Seal>>,
}

#[derive(Debug)]
struct Seal {
    noise: TransportState,
    /// From TCP, not opened yet.
    sealed_in: BytesMut,
    /// Opened and not read yet.
    opened: BytesMut,
    /// For TCP.
    sealed_out: BytesMut,
    /// What is to be sealed, gathered where it is in pieces.
    scratch: Vec<u8>,
    /// What the other end signed, and how.
    said: Vec<u8>,
    signature: [u8; 64],
}

impl Line {
    /// A connection that is not sealed.
    pub(crate) fn bare(tcp: TcpStream) -> Line {
        Line { tcp, seal: None }
    }

    /// Exchanges keys with the other end, if this mesh has one.
    pub(crate) async fn shake(
        tcp: TcpStream,
        end: End,
        keys: Option<&KeyRing>,
        node: &NodeKey,
    ) -> Result<Line, ShakeError> {
        let Some(keys) = keys else { return Ok(Line::bare(tcp)) };
        Line::seal(tcp, end, keys, node, if has_aes() { AES } else { CHACHA }).await
    }

    /// Exchanges keys; the caller in the words of `suite`, the called in those of his caller.
    async fn seal(tcp: TcpStream, end: End, keys: &KeyRing, node: &NodeKey, suite: &str) -> Result<Line, ShakeError> {
        let mut talk = Talk { tcp };
        let noise = match end {
            End::Caller => {
                let mut noise = begin(end, suite, keys.first(), &pair()?)?;
                talk.say(&mut noise).await?;
                let heard = talk.hear().await?;
                open(&mut noise, &heard)?;
                talk.say(&mut noise).await?;
                noise
            }
            End::Called => {
                let heard = talk.hear().await?;
                let pair = pair()?;
                // Whichever key and suite the caller has: none of a handshake is kept where it does not fit.
                let with = |suite, key| {
                    let mut noise = begin(end, suite, key, &pair).ok()?;
                    open(&mut noise, &heard).is_ok().then_some(noise)
                };
                let any = |key| [AES, CHACHA].into_iter().find_map(|suite| with(suite, key));
                let mut noise = keys.iter().find_map(any).ok_or(Broken::Sealed)?;
                talk.say(&mut noise).await?;
                let heard = talk.hear().await?;
                open(&mut noise, &heard)?;
                noise
            }
        };
        let hash = noise.get_handshake_hash().to_vec();
        let seal = Seal {
            noise: noise.into_transport_mode().map_err(|_| Broken::Sealed)?,
            sealed_in: BytesMut::new(),
            opened: BytesMut::new(),
            sealed_out: BytesMut::new(),
            scratch: Vec::new(),
            said: said(end.other(), &hash),
            signature: [0; 64],
        };
        let mut line = Line { tcp: talk.tcp, seal: Some(Box::new(seal)) };
        line.write_all(&node.sign(&said(end, &hash))).await?;
        line.flush().await?;
        let mut signature = [0; 64];
        line.read_exact(&mut signature).await?;
        if let Some(seal) = &mut line.seal {
            seal.signature = signature;
        }
        Ok(line)
    }

    /// Whether the other end has proven to be `node`. On a bare line everybody is believed.
    pub(crate) fn proves(&self, node: NodeId) -> bool {
        self.seal.as_ref().is_none_or(|seal| node.has_signed(&seal.said, &seal.signature))
    }

    /// Resolves when something may be read. Cancel safe.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match &self.seal {
            Some(seal) if !seal.opened.is_empty() => Ok(()),
            _ => self.tcp.readable().await,
        }
    }

    /// Resolves when something may be written. Cancel safe.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.tcp.writable().await
    }

    /// Whether sealed bytes wait for [`Line::writable`] and [`Line::push`].
    pub(crate) fn is_pending(&self) -> bool {
        self.seal.as_ref().is_some_and(|seal| !seal.sealed_out.is_empty())
    }

    /// Reads what is there, and appends it to `bytes`.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if somebody changed what the other end sealed; else what TCP says.
    pub(crate) fn try_read_buf(&mut self, bytes: &mut BytesMut) -> io::Result<usize> {
        let Line { tcp, seal } = self;
        let Some(seal) = seal else { return read_now(tcp, bytes) };
        if seal.opened.is_empty() {
            seal.fill(tcp, bytes)
        } else {
            let opened = seal.opened.split();
            bytes.extend_from_slice(&opened);
            Ok(opened.len())
        }
    }

    /// Takes of `slices` what can be written or sealed now.
    pub(crate) fn try_write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let Line { tcp, seal } = self;
        let Some(seal) = seal else { return tcp.try_write_vectored(slices) };
        seal.push(tcp)?;
        if seal.sealed_out.len() >= SEALED_BYTES_MAX {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let taken = seal.close(slices)?;
        seal.push(tcp)?;
        Ok(taken)
    }

    /// Writes sealed bytes that wait, as far as TCP takes them.
    pub(crate) fn push(&mut self) -> io::Result<()> {
        match &mut self.seal {
            Some(seal) => seal.push(&self.tcp),
            None => Ok(()),
        }
    }
}

impl Seal {
    /// Reads TCP once and opens all records that are complete into `bytes`.
    fn fill(&mut self, tcp: &mut TcpStream, bytes: &mut BytesMut) -> io::Result<usize> {
        // The rest of a record that has begun, at one go.
        let begun =
            self.sealed_in.first_chunk::<HEAD_BYTES>().map(|head| HEAD_BYTES + usize::from(u16::from_be_bytes(*head)));
        let missing = begun.unwrap_or_default().saturating_sub(self.sealed_in.len());
        self.sealed_in.reserve(missing.max(limits::READ_BYTES.0));
        if read_now(tcp, &mut self.sealed_in)? == 0 {
            return Ok(0);
        }
        let before = bytes.len();
        while let Some(head) = self.sealed_in.first_chunk::<HEAD_BYTES>() {
            let len = usize::from(u16::from_be_bytes(*head));
            // An empty record says nothing, and could be repeated for ever.
            if len <= TAG_BYTES {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if self.sealed_in.len() < HEAD_BYTES + len {
                break;
            }
            let at = bytes.len();
            bytes.resize(at + len, 0);
            let record = &self.sealed_in[HEAD_BYTES..HEAD_BYTES + len];
            let opened = self.noise.read_message(record, &mut bytes[at..]);
            let opened = opened.map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            bytes.truncate(at + opened);
            self.sealed_in.advance(HEAD_BYTES + len);
        }
        match bytes.len() - before {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            opened => Ok(opened),
        }
    }

    /// Seals the front of `slices` as one record; answers how much of them that is.
    fn close(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let said = match slices {
            [first, rest @ ..] if rest.is_empty() || first.len() >= RECORD_BYTES_MAX => {
                &first[..first.len().min(RECORD_BYTES_MAX)]
            }
            _ => {
                self.scratch.clear();
                for slice in slices {
                    let room = RECORD_BYTES_MAX - self.scratch.len();
                    self.scratch.extend_from_slice(&slice[..slice.len().min(room)]);
                }
                &self.scratch
            }
        };
        let len = said.len() + TAG_BYTES;
        let at = self.sealed_out.len();
        self.sealed_out.resize(at + HEAD_BYTES + len, 0);
        let head = u16::try_from(len).map_err(io::Error::other)?;
        self.sealed_out[at..at + HEAD_BYTES].copy_from_slice(&head.to_be_bytes());
        let sealed = self.noise.write_message(said, &mut self.sealed_out[at + HEAD_BYTES..]);
        sealed.map_err(io::Error::other)?;
        Ok(said.len())
    }

    fn push(&mut self, tcp: &TcpStream) -> io::Result<()> {
        while !self.sealed_out.is_empty() {
            match tcp.try_write(&self.sealed_out) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => self.sealed_out.advance(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Line { tcp, seal } = self.get_mut();
        let Some(seal) = seal else { return Pin::new(tcp).poll_read(cx, buf) };
        while seal.opened.is_empty() {
            ready!(tcp.poll_read_ready(cx))?;
            let mut opened = BytesMut::new();
            match seal.fill(tcp, &mut opened) {
                Ok(0) => return Poll::Ready(Ok(())),
                Ok(_) => seal.opened = opened,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let bytes = seal.opened.len().min(buf.remaining());
        buf.put_slice(&seal.opened.split_to(bytes));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let line = self.get_mut();
        loop {
            ready!(line.tcp.poll_write_ready(cx))?;
            match line.try_write_vectored(&[IoSlice::new(bytes)]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let line = self.get_mut();
        while line.is_pending() {
            ready!(line.tcp.poll_write_ready(cx))?;
            line.push()?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}

impl End {
    fn other(self) -> End {
        match self {
            End::Caller => End::Called,
            End::Called => End::Caller,
        }
    }
}

/// The messages of a handshake.
struct Talk {
    tcp: TcpStream,
}

impl Talk {
    async fn say(&mut self, noise: &mut HandshakeState) -> Result<(), ShakeError> {
        let mut record = [0; HEAD_BYTES + HANDSHAKE_BYTES_MAX];
        let len = noise.write_message(&[], &mut record[HEAD_BYTES..]).map_err(|_| Broken::Sealed)?;
        record[..HEAD_BYTES].copy_from_slice(&(len as u16).to_be_bytes());
        Ok(self.tcp.write_all(&record[..HEAD_BYTES + len]).await?)
    }

    async fn hear(&mut self) -> Result<Vec<u8>, ShakeError> {
        let len = usize::from(self.tcp.read_u16().await?);
        // The greeting of somebody who has no key looks like a very long record.
        if len > HANDSHAKE_BYTES_MAX {
            return Err(Broken::Sealed.into());
        }
        let mut record = vec![0; len];
        self.tcp.read_exact(&mut record).await?;
        Ok(record)
    }
}

fn builder(suite: &str) -> Result<Builder<'static>, snow::Error> {
    Ok(Builder::new(suite.parse()?))
}

/// Keys for one connection only: names are proven by signatures.
fn pair() -> Result<Keypair, Broken> {
    builder(AES).and_then(|builder| builder.generate_keypair()).map_err(|_| Broken::Sealed)
}

fn begin(end: End, suite: &str, key: &MeshKey, pair: &Keypair) -> Result<HandshakeState, Broken> {
    let begin = || {
        let builder = builder(suite)?.prologue(PROLOGUE)?.local_private_key(&pair.private)?.psk(0, key.secret())?;
        match end {
            End::Caller => builder.build_initiator(),
            End::Called => builder.build_responder(),
        }
    };
    begin().map_err(|_: snow::Error| Broken::Sealed)
}

/// Whether this processor has instructions for AES and for the sum that goes with it.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

fn open(noise: &mut HandshakeState, record: &[u8]) -> Result<(), Broken> {
    noise.read_message(record, &mut [0; HANDSHAKE_BYTES_MAX]).map(drop).map_err(|_| Broken::Sealed)
}

/// What `end` of the connection with this handshake signs.
fn said(end: End, hash: &[u8]) -> Vec<u8> {
    let end: &[u8] = match end {
        End::Caller => b"caller\n",
        End::Called => b"called\n",
    };
    [SIGNED_PREFIX, end, hash].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::time::Duration;
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let caller = TcpStream::connect(listener.local_addr().unwrap());
        let (caller, called) = tokio::join!(caller, listener.accept());
        (caller.unwrap(), called.unwrap().0)
    }

    fn key() -> KeyRing {
        KeyRing::of(MeshKey::random().unwrap())
    }

    fn node(byte: u8) -> NodeKey {
        NodeKey::from_bytes(&[byte; NodeKey::LEN])
    }

    async fn lines(keys: &KeyRing, suite: &str) -> (Line, Line) {
        let (caller, called) = pair().await;
        let (one, two) = (node(1), node(2));
        let caller = Line::seal(caller, End::Caller, keys, &one, suite);
        let called = Line::shake(called, End::Called, Some(keys), &two);
        let (caller, called) = tokio::join!(caller, called);
        (caller.unwrap(), called.unwrap())
    }

    #[tokio::test]
    async fn what_goes_in_comes_out_whatever_its_size_and_names_are_proven() {
        for suite in [AES, CHACHA] {
            let (mut caller, mut called) = lines(&key(), suite).await;
            assert!(caller.proves(node(2).node()) && called.proves(node(1).node()));
            assert!(!caller.proves(node(1).node()) && !called.proves(node(3).node()));
            for size in [1, 100, RECORD_BYTES_MAX - 1, RECORD_BYTES_MAX, RECORD_BYTES_MAX + 1, 3_000_000] {
                let said: Vec<u8> = (0..size).map(|at| (at * 7 % 251) as u8).collect();
                let mut heard = vec![0; size];
                let say = async {
                    caller.write_all(&said).await.unwrap();
                    caller.flush().await.unwrap();
                };
                tokio::join!(say, async { called.read_exact(&mut heard).await.unwrap() });
                assert!(heard == said, "{size}");
                std::mem::swap(&mut caller, &mut called);
            }
        }
    }

    #[tokio::test]
    async fn another_key_an_older_one_and_none() {
        let (caller, called) = pair().await;
        let (ours, other) = (key(), key());
        let (one, two) = (node(1), node(2));
        let call = Line::shake(caller, End::Caller, Some(&other), &one);
        let (call, answer) =
            tokio::join!(call, async { Line::shake(called, End::Called, Some(&ours), &two).await.map(drop) });
        assert!(matches!(answer, Err(ShakeError::Broken(Broken::Sealed))));
        assert!(matches!(call, Err(ShakeError::Gone)));

        let (mut caller, called) = pair().await;
        caller.write_all(&super::super::zmtp::greeting()).await.unwrap();
        let answer = Line::shake(called, End::Called, Some(&ours), &two).await;
        assert!(matches!(answer, Err(ShakeError::Broken(Broken::Sealed))));

        // While keys are changed, those who dial with the old one are let in, too.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        ours.write_new(&path).unwrap();
        let both = KeyRing::add(&path, other.first().clone(), true).unwrap();
        let (caller, called) = pair().await;
        let call = Line::shake(caller, End::Caller, Some(&ours), &one);
        let (call, answer) = tokio::join!(call, Line::shake(called, End::Called, Some(&both), &two));
        assert!(call.is_ok() && answer.is_ok());
    }

    /// Bytes of a caller that went to one node, said to another connection of the same node.
    #[tokio::test]
    async fn nothing_that_was_recorded_reflected_or_changed_is_accepted() {
        let keys = key();
        let (one, two) = (node(1), node(2));
        // In the middle: what the caller says is written down, and changed at one byte.
        let through = async |flip: Option<usize>| {
            let ((caller, mut near), (mut far, called)) = (pair().await, pair().await);
            let (call, answer) = (
                Line::shake(caller, End::Caller, Some(&keys), &one),
                Line::shake(called, End::Called, Some(&keys), &two),
            );
            let relay = async move {
                let (mut said, mut there, mut back) = (Vec::new(), [0; 4096], [0; 4096]);
                loop {
                    tokio::select! {
                        read = near.read(&mut there) => {
                            let Ok(bytes @ 1..) = read else { return said };
                            for byte in &mut there[..bytes] {
                                let at = said.len();
                                said.push(*byte);
                                *byte ^= u8::from(flip == Some(at));
                            }
                            if far.write_all(&there[..bytes]).await.is_err() {
                                return said;
                            }
                        }
                        read = far.read(&mut back) => {
                            let Ok(bytes @ 1..) = read else { return said };
                            if near.write_all(&back[..bytes]).await.is_err() {
                                return said;
                            }
                        }
                    }
                }
            };
            let ends = async {
                let (call, answer) = tokio::join!(call, answer);
                // Whoever was refused lets go; who was accepted is let go of here.
                (call.is_ok(), answer.is_ok_and(|line| line.proves(one.node())))
            };
            let (said, accepted) = tokio::join!(relay, ends);
            (said, accepted)
        };
        let (said, accepted) = through(None).await;
        assert_eq!(accepted, (true, true));
        for flip in 0..said.len() {
            // With another length it would wait until the handshake's time is over.
            let waits = tokio::time::timeout(Duration::from_millis(300), through(Some(flip))).await;
            assert!(waits.is_err() || waits.is_ok_and(|(_, (_, accepted))| !accepted), "byte {flip}");
        }
        let (mut again, called) = pair().await;
        again.write_all(&said).await.unwrap();
        again.shutdown().await.unwrap();
        assert!(Line::shake(called, End::Called, Some(&keys), &two).await.is_err());
        // A mirror: the caller gets its own words back.
        let (caller, mut mirror) = pair().await;
        let call = Line::shake(caller, End::Caller, Some(&keys), &one);
        let reflect = async move {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = mirror.read(&mut bytes).await {
                if mirror.write_all(&bytes[..read]).await.is_err() {
                    return;
                }
            }
        };
        let (call, ()) = tokio::join!(async { call.await.is_ok() }, reflect);
        assert!(!call);
    }

    #[tokio::test]
    async fn a_changed_record_ends_the_line() {
        let mut heard = [0; 6];
        for suite in [AES, CHACHA] {
            let (mut caller, mut called) = lines(&key(), suite).await;
            caller.write_all(b"before").await.unwrap();
            caller.flush().await.unwrap();
            called.read_exact(&mut heard).await.unwrap();
            let Some(seal) = &mut caller.seal else { panic!("it is sealed") };
            seal.close(&[IoSlice::new(b"changed")]).unwrap();
            seal.sealed_out[HEAD_BYTES + 3] ^= 1;
            caller.flush().await.unwrap();
            let error = called.read_exact(&mut heard).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        for record in [&[0, 0][..], &[0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
            let (mut caller, mut called) = lines(&key(), AES).await;
            caller.tcp.write_all(record).await.unwrap();
            let error = called.read_exact(&mut heard).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
