//! The connection of a socket in its two halves: what is heard goes through the library, what is said does not.
//!
//! A frame of a server is not masked, so its bytes are the same for all clients: what was encoded once is written to each of
//! them as it is, without a copy. What the library itself answers (pongs, the close) is put between our frames.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use futures_util::task::AtomicWaker;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf, split};
use tokio::time::timeout;

use super::End;

/// Pieces that are handed to the system at once.
const PIECES_MAX: usize = 16;
/// Answers of the library that wait to be written, in bytes; while they are so many, pings are not answered.
const REPLIES_BYTES_MAX: usize = 16 * 1024;
/// Of RFC 6455 section 5.2, whole messages.
const TEXT: u8 = 0x81;
const PING: u8 = 0x89;

type Io = TokioIo<Upgraded>;

/// Both halves of a connection.
pub(super) fn halves(upgraded: Upgraded) -> (Ear, Mouth) {
    let (read, write) = split(TokioIo::new(upgraded));
    let replies = Arc::<Replies>::default();
    (Ear { read, replies: replies.clone() }, Mouth { write, queue: VecDeque::new(), replies })
}

/// What the library reads from, and writes its answers to.
pub(super) struct Ear {
    read: ReadHalf<Io>,
    replies: Arc<Replies>,
}

/// What the library wants written.
#[derive(Debug, Default)]
struct Replies {
    bytes: Mutex<Vec<u8>>,
    writer: AtomicWaker,
}

/// Where frames are written.
pub(super) struct Mouth {
    write: WriteHalf<Io>,
    /// Whole frames, but for the first piece, a part of which may be written.
    queue: VecDeque<Bytes>,
    replies: Arc<Replies>,
}

impl Mouth {
    /// Puts a text behind what waits to be written.
    pub fn text(&mut self, text: &str) {
        let mut frame = Vec::with_capacity(text.len() + 10);
        put_text(&mut frame, text);
        self.frames(frame.into());
    }

    /// Puts frames behind what waits to be written.
    pub fn frames(&mut self, frames: Bytes) {
        if !frames.is_empty() {
            self.queue.push_back(frames);
        }
    }

    pub fn ping(&mut self) {
        self.frames(Bytes::from_static(&[PING, 0]));
    }

    /// Bytes that wait to be written.
    pub fn waiting(&self) -> usize {
        self.queue.iter().map(Bytes::len).sum()
    }

    /// Forgets what waits, but for what was begun.
    pub fn forget(&mut self) {
        self.queue.truncate(1);
    }

    /// Ends when the library wants something written. Cancellation safe.
    pub async fn replies(&mut self) {
        let waits = |cx: &mut Context<'_>| {
            self.replies.writer.register(cx.waker());
            if self.replies.lock().is_empty() { Poll::Pending } else { Poll::Ready(()) }
        };
        poll_fn(waits).await;
    }

    /// Writes all that waits, to a client that takes something of it within `stuck` again and again. What is left when
    /// this is dropped is written by the next one.
    pub async fn flush(&mut self, stuck: Duration) -> Result<(), End> {
        let replies = std::mem::take(&mut *self.replies.lock());
        self.frames(replies.into());
        while !self.queue.is_empty() {
            let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
            let count = self.queue.len().min(PIECES_MAX);
            for (piece, frames) in pieces.iter_mut().zip(&self.queue) {
                *piece = IoSlice::new(frames);
            }
            let written = timeout(stuck, self.write.write_vectored(&pieces[..count])).await;
            match written {
                Ok(Ok(0) | Err(_)) => return Err(End::Gone),
                Ok(Ok(bytes)) => self.written(bytes),
                Err(_) => return Err(End::Stuck),
            }
        }
        if self.queue.capacity() > PIECES_MAX {
            self.queue = VecDeque::new();
        }
        Ok(())
    }

    fn written(&mut self, mut bytes: usize) {
        while let Some(first) = self.queue.front_mut() {
            let step = bytes.min(first.len());
            first.advance(step);
            bytes -= step;
            if !first.is_empty() {
                break;
            }
            self.queue.pop_front();
        }
    }

    /// Says that nothing more is written.
    pub async fn shutdown(&mut self) {
        // Whoever has gone need not be told.
        let _ = self.write.shutdown().await;
    }
}

/// Appends a text frame.
pub(super) fn put_text(frames: &mut Vec<u8>, text: &str) {
    frames.push(TEXT);
    match text.len() {
        length @ 0..=125 => frames.push(length as u8),
        length @ 126..=0xffff => {
            frames.push(126);
            frames.put_u16(length as u16);
        }
        length => {
            frames.push(127);
            frames.put_u64(length as u64);
        }
    }
    frames.extend_from_slice(text.as_bytes());
}

impl Replies {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for Ear {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Ear {
    /// Takes all or nothing, so frames stay whole. What is not taken the library offers again when it reads on.
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut replies = self.replies.lock();
        if replies.len() > REPLIES_BYTES_MAX {
            return Poll::Pending;
        }
        replies.extend_from_slice(bytes);
        drop(replies);
        self.replies.writer.wake();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_frame_has_the_shortest_length() {
        let frame = |length: usize| {
            let mut frame = Vec::new();
            put_text(&mut frame, &"x".repeat(length));
            assert!(frame.ends_with(b"x"));
            frame[..frame.len() - length].to_vec()
        };
        assert_eq!((frame(1), frame(125)), (vec![0x81, 1], vec![0x81, 125]));
        assert_eq!((frame(126), frame(0xffff)), (vec![0x81, 126, 0, 126], vec![0x81, 126, 0xff, 0xff]));
        assert_eq!(frame(0x1_0000), [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }
}
