//! Bytes between two sockets: [`Intake`] reads them, [`Queue`] holds them until they can be written.
//!
//! What is queued is not copied; what was read only where it would not fit into its block.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::limits::READ_BYTES;

/// A buffer to read into, whose reads grow while they are filled.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) bytes: BytesMut,
    room: usize,
    /// What is missing of a long frame.
    missing: usize,
}

impl Intake {
    pub(crate) fn new() -> Intake {
        Intake { bytes: BytesMut::new(), room: READ_BYTES.0, missing: 0 }
    }

    /// So many bytes are missing of what has begun, at most a frame. A long frame that does not fit is read into a block of its
    /// own, to its end and not beyond, so that it is passed on as it lies there and holds nothing else. What of the block was
    /// not read is memory that nothing touched.
    pub(crate) fn lacks(&mut self, missing: usize) {
        let long = missing >= READ_BYTES.0 || self.missing > 0;
        self.missing = if long { missing } else { 0 };
        let spare = self.bytes.capacity() - self.bytes.len();
        if self.missing > spare {
            self.make_room(self.missing);
            self.room = READ_BYTES.0;
        }
    }

    /// Moves what there is into a block with room for exactly so many bytes more.
    fn make_room(&mut self, room: usize) {
        let mut block = BytesMut::with_capacity(self.bytes.len() + room);
        block.extend_from_slice(&self.bytes);
        self.bytes = block;
    }

    /// Reads once by `read`, which appends to the buffer; gives the bytes read, 0 at the end of the stream, none when
    /// nothing is there.
    pub(crate) fn read(&mut self, read: impl FnOnce(&mut BytesMut) -> io::Result<usize>) -> io::Result<Option<usize>> {
        // Small reads share a block until it is nearly used up; else each would hold a whole one while it is queued.
        if self.missing == 0 && self.bytes.capacity() - self.bytes.len() < self.room / 4 {
            self.make_room(self.room);
        }
        let room = self.bytes.capacity() - self.bytes.len();
        match read(&mut self.bytes) {
            Ok(bytes) => {
                if self.missing > 0 {
                    self.missing = self.missing.saturating_sub(bytes);
                } else if bytes == room {
                    self.room = (self.room * 2).min(READ_BYTES.1);
                } else if bytes < self.room / 8 {
                    self.room = (self.room / 2).max(READ_BYTES.0);
                }
                Ok(Some(bytes))
            }
            Err(error) if is_transient(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lets go of a block in which nothing is left, unless the next read is likely to fill much of it: a connection that is
    /// idle holds none.
    pub(crate) fn rest(&mut self) {
        if self.bytes.is_empty() && self.room == READ_BYTES.0 {
            self.bytes = BytesMut::new();
        }
    }
}

/// Reads once what there is. Other than `try_read_buf` it takes note when that was all, so nobody reads again only to be
/// told so.
pub(crate) fn read_now(from: &mut (impl AsyncRead + Unpin), bytes: &mut BytesMut) -> io::Result<usize> {
    from.read_buf(bytes).now_or_never().unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))
}

/// Chunks in the order in which they are to be written.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl Queue {
    pub(crate) fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.bytes += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// Bytes in it.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Writes what can be written at once by `write`; gives the bytes written.
    pub(crate) fn write(&mut self, mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>) -> io::Result<usize> {
        let mut total = 0;
        while !self.is_empty() {
            let mut slices = [IoSlice::new(&[]); 16];
            for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
                *slice = IoSlice::new(chunk);
            }
            let count = self.chunks.len().min(slices.len());
            match write(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => {
                    total += bytes;
                    self.forget(bytes);
                }
                Err(error) if is_transient(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }

    fn forget(&mut self, mut bytes: usize) {
        self.bytes -= bytes;
        while let Some(front) = self.chunks.front_mut() {
            if front.len() > bytes {
                front.advance(bytes);
                return;
            }
            bytes -= front.len();
            self.chunks.pop_front();
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_gives_bytes_in_order_however_few_are_taken() {
        let mut queue = Queue::default();
        let wanted: Vec<u8> = (0..200).collect();
        for chunk in wanted.chunks(7) {
            queue.push(Bytes::copy_from_slice(chunk));
        }
        queue.push(Bytes::new());
        let mut written = Vec::new();
        for take in 1.. {
            if queue.is_empty() {
                break;
            }
            let mut calls = 0;
            let done = queue.write(|slices| {
                calls += 1;
                if calls > 1 {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
                let bytes = all.len().min(take);
                written.extend_from_slice(&all[..bytes]);
                Ok(bytes)
            });
            assert!(done.unwrap() <= take);
            assert_eq!(queue.bytes(), wanted.len() - written.len());
        }
        assert_eq!(written, wanted);
    }

    #[test]
    fn a_long_frame_is_read_into_a_block_of_its_own() {
        let mut intake = Intake::new();
        let read = |intake: &mut Intake, most: usize| {
            let fill = |bytes: &mut BytesMut| {
                let count = most.min(bytes.capacity() - bytes.len());
                bytes.extend_from_slice(&[7; 1 << 20][..count]);
                Ok(count)
            };
            intake.read(fill).unwrap().unwrap()
        };
        assert!(read(&mut intake, 100) == 100);
        intake.lacks(300_000);
        assert_eq!(read(&mut intake, 250_000), 250_000);
        intake.lacks(50_000);
        assert_eq!(read(&mut intake, 1 << 20), 50_000, "not beyond its end");
        let frame = intake.bytes.split().freeze();
        intake.lacks(1);
        assert!(read(&mut intake, 1 << 20) <= READ_BYTES.0, "what follows is small again");
        assert_eq!(frame.len(), 300_100);
    }

    #[test]
    fn intake_tells_the_end_from_nothing_there() {
        let mut intake = Intake::new();
        assert_eq!(intake.read(|_| Err(io::ErrorKind::WouldBlock.into())).unwrap(), None);
        assert_eq!(intake.read(|_| Ok(0)).unwrap(), Some(0));
        assert!(intake.read(|_| Err(io::ErrorKind::ConnectionReset.into())).is_err());
    }

    #[test]
    fn queued_small_reads_share_their_memory() {
        let mut intake = Intake::new();
        let mut blocks = std::collections::HashSet::new();
        let mut queue = Vec::new();
        for _ in 0..1000 {
            intake
                .read(|bytes| {
                    bytes.extend_from_slice(&[1; 100]);
                    Ok(100)
                })
                .unwrap();
            let chunk = intake.bytes.split().freeze();
            blocks.insert(chunk.as_ptr() as usize / (16 * 1024));
            queue.push(chunk);
        }
        assert!(blocks.len() < 20, "{} blocks", blocks.len());
    }
}
