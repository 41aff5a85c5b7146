//! What a broker passes on from others, made fit for the AMQP library: it ends a connection at a short string that is not
//! UTF-8, and the process at a header that is nested too deeply. A broker checks neither, and gives such a message again and
//! again.
//!
//! Between the connection and the library, frames that speak of messages are looked through (AMQP 0-9-1, 4.2): bytes of short
//! strings that are not ASCII become `?` where the string is not UTF-8; headers that do not read, or are nested deeper than
//! [`DEPTH_MAX`], are left out, and so is everything of properties that do not read.

use std::io;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_rs::traits::Reactor;
use async_rs::{Tokio, TokioRuntime};
use bytes::BytesMut;
use lapin::tcp::{AMQPUriTcpExt, AsyncTcpStream};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

/// Tables and arrays within one another.
const DEPTH_MAX: u32 = 16;
/// A frame is at most so long, whatever was agreed.
const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Read at a time.
const CHUNK_BYTES: usize = 16 * 1024;
/// Type, channel and length; and the byte at the end.
const FRAME_HEADER_BYTES: usize = 7;
const FRAME_END_BYTES: usize = 1;
/// Class, weight, length of the body and flags of a content header.
const CONTENT_HEADER_BYTES: usize = 14;
/// Types of frames.
const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;
/// `basic.deliver`.
const DELIVER: [u8; 4] = [0, 60, 0, 60];

/// Connects through a sieve.
pub(super) async fn connect(uri: AMQPUri, properties: ConnectionProperties) -> lapin::Result<Connection> {
    let connect = async |uri: AMQPUri, runtime: TokioRuntime| {
        let broker = uri.connect_async(&runtime).await?;
        // The library takes nothing but a TCP connection.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let ours = Tokio::current().tcp_connect_addr(listener.local_addr()?).await?;
        let here = ours.get_ref().local_addr()?;
        let theirs = loop {
            // Whoever else calls meanwhile is not meant.
            let (theirs, from) = listener.accept().await?;
            if from == here {
                break theirs;
            }
        };
        theirs.set_nodelay(true)?;
        tokio::spawn(carry(Sieve { broker, raw: BytesMut::new(), clean: BytesMut::new() }, theirs));
        Ok(AsyncTcpStream::Plain(ours))
    };
    Connection::connector(uri, TokioRuntime::tokio_current(), connect, properties).await
}

/// Carries bytes both ways until one of the two ends.
async fn carry(sieve: Sieve, mut library: TcpStream) {
    let (mut from_broker, mut to_broker) = tokio::io::split(sieve);
    let (mut from_library, mut to_library) = library.split();
    tokio::select! {
        _ = tokio::io::copy(&mut from_broker, &mut to_library) => {}
        _ = tokio::io::copy(&mut from_library, &mut to_broker) => {}
    }
}

/// A connection to a broker whose frames are looked through.
struct Sieve {
    broker: AsyncTcpStream<<Tokio as Reactor>::TcpStream>,
    /// Read, and not looked through.
    raw: BytesMut,
    clean: BytesMut,
}

impl AsyncRead for Sieve {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Sieve { broker, raw, clean } = &mut *self;
        while clean.is_empty() {
            let known = raw.len();
            raw.resize(known + CHUNK_BYTES, 0);
            let read = futures_io::AsyncRead::poll_read(Pin::new(&mut *broker), cx, &mut raw[known..]);
            raw.truncate(known + if let Poll::Ready(Ok(read)) = &read { *read } else { 0 });
            if std::task::ready!(read)? == 0 {
                // Half a frame at the end is the library's to judge.
                std::mem::swap(raw, clean);
                break;
            }
            pass(raw, clean)?;
        }
        let count = clean.len().min(into.remaining());
        into.put_slice(&clean.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Sieve {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        futures_io::AsyncWrite::poll_write(Pin::new(&mut self.broker), cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        futures_io::AsyncWrite::poll_flush(Pin::new(&mut self.broker), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        futures_io::AsyncWrite::poll_close(Pin::new(&mut self.broker), cx)
    }
}

/// Moves whole frames from `raw` to `clean`.
fn pass(raw: &mut BytesMut, clean: &mut BytesMut) -> io::Result<()> {
    while let Some(header) = raw.first_chunk::<FRAME_HEADER_BYTES>() {
        let [kind, _, _, len @ ..] = *header;
        // What a broker says that speaks another version.
        if kind == b'A' {
            clean.unsplit(raw.split());
            break;
        }
        let len = u32::from_be_bytes(len) as usize;
        if len > FRAME_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame of the broker is too long"));
        }
        if raw.len() < FRAME_HEADER_BYTES + len + FRAME_END_BYTES {
            raw.reserve(len);
            break;
        }
        let mut frame = raw.split_to(FRAME_HEADER_BYTES + len + FRAME_END_BYTES);
        let (begin, end) = (FRAME_HEADER_BYTES, FRAME_HEADER_BYTES + len);
        match kind {
            METHOD if frame[begin..end].starts_with(&DELIVER) => {
                let names = &mut frame[begin + DELIVER.len()..end];
                if let Some(rest) = short_string(names)
                    && let Some(rest) = rest.get_mut(9..)
                    && let Some(rest) = short_string(rest)
                {
                    short_string(rest);
                }
            }
            CONTENT_HEADER => {
                let kept = properties(&mut frame[begin..end]);
                if kept < len {
                    let end_mark = frame[end];
                    frame.truncate(begin + kept);
                    frame.extend_from_slice(&[end_mark]);
                    frame[begin - 4..begin].copy_from_slice(&(kept as u32).to_be_bytes());
                }
            }
            _ => {}
        }
        clean.unsplit(frame);
    }
    Ok(())
}

/// Makes a content header fit; answers how much of it is left.
fn properties(header: &mut [u8]) -> usize {
    if header.len() < CONTENT_HEADER_BYTES {
        return header.len();
    }
    let flags = u16::from_be_bytes([header[12], header[13]]);
    let total = header.len();
    let mut without = flags;
    let mut kept = total;
    let mut at = CONTENT_HEADER_BYTES;
    // Content type and encoding, headers, delivery mode, priority, correlation id, reply-to, expiration, message id, time,
    // type, user, application, cluster: by falling bits of the flags.
    for (bit, kind) in (2..16).rev().zip("ssT11sssst".chars().chain("ssss".chars())) {
        if flags & (1 << bit) == 0 {
            continue;
        }
        let left = at..kept;
        let len = match kind {
            's' => short_string(&mut header[left.clone()]).map(|rest| left.len() - rest.len()),
            '1' => Some(1),
            't' => Some(8),
            _ => {
                let len = header[left.clone()].first_chunk().map(|len| 4 + u32::from_be_bytes(*len) as usize);
                let len = len.filter(|len| *len <= left.len());
                if let Some(len) = len
                    && !table(&mut header[at + 4..at + len], 0)
                {
                    // Without the headers.
                    header.copy_within(at + len..kept, at);
                    (kept, without) = (kept - len, without & !(1 << bit));
                    continue;
                }
                len
            }
        };
        match len.filter(|len| *len <= kept - at) {
            Some(len) => at += len,
            None => {
                (kept, without) = (CONTENT_HEADER_BYTES, 0);
                break;
            }
        }
    }
    header[12..14].copy_from_slice(&without.to_be_bytes());
    kept
}

/// Makes a short string fit; answers what is behind it.
fn short_string(bytes: &mut [u8]) -> Option<&mut [u8]> {
    let (len, rest) = bytes.split_first_mut()?;
    let (text, rest) = rest.split_at_mut_checked(usize::from(*len))?;
    if std::str::from_utf8(text).is_err() {
        text.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
    }
    Some(rest)
}

/// Whether a table reads; its names are made fit.
fn table(mut fields: &mut [u8], depth: u32) -> bool {
    while !fields.is_empty() {
        match short_string(fields).and_then(|rest| value(rest, depth)) {
            Some(rest) => fields = rest,
            None => return false,
        }
    }
    true
}

/// What is behind a value; none if it does not read.
fn value(bytes: &mut [u8], depth: u32) -> Option<&mut [u8]> {
    let (kind, rest) = bytes.split_first_mut()?;
    let fixed = match *kind {
        b'V' => 0,
        b't' | b'b' | b'B' => 1,
        b's' | b'U' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'D' => 5,
        b'L' | b'l' | b'd' | b'T' => 8,
        b'S' | b'x' | b'A' | b'F' => {
            let (len, rest) = rest.split_first_chunk_mut::<4>()?;
            let (mut inside, rest) = rest.split_at_mut_checked(u32::from_be_bytes(*len) as usize)?;
            match *kind {
                b'A' | b'F' if depth == DEPTH_MAX => return None,
                b'F' if !table(inside, depth + 1) => return None,
                b'A' => {
                    while !inside.is_empty() {
                        inside = value(inside, depth + 1)?;
                    }
                }
                _ => {}
            }
            return Some(rest);
        }
        _ => return None,
    };
    rest.split_at_mut_checked(fixed).map(|(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let len = (payload.len() as u32).to_be_bytes();
        [&[kind, 0, 1], &len[..], payload, &[0xce]].concat()
    }

    /// What becomes of bytes that come in pieces.
    fn sieved(bytes: &[u8], piece: usize) -> Vec<u8> {
        let (mut raw, mut clean) = (BytesMut::new(), BytesMut::new());
        for piece in bytes.chunks(piece) {
            raw.extend_from_slice(piece);
            pass(&mut raw, &mut clean).unwrap();
        }
        assert!(raw.is_empty());
        clean.to_vec()
    }

    fn content(flags: u16, properties: &[u8]) -> Vec<u8> {
        frame(CONTENT_HEADER, &[&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5], &flags.to_be_bytes()[..], properties].concat())
    }

    fn long(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
    }

    #[test]
    fn what_reads_passes_unchanged_in_whatever_pieces_it_comes() {
        let headers = long(
            &[
                &b"\x01a"[..],
                b"S\0\0\0\x02\xff\xfe",
                b"\x01bI\0\0\0\x07",
                b"\x01cF",
                &long(b"\x01dt\x01\x01eA\0\0\0\x02V")[..14],
            ]
            .concat(),
        );
        let properties =
            [&b"\x0atext/plain"[..], &headers, &[2], "\x06grüß".as_bytes(), b"\0\0\0\0\0\0\0\x09"].concat();
        let all = [
            frame(METHOD, b"\0\x0a\0\x0a whatever \xff"),
            frame(METHOD, b"\0\x3c\0\x3c\x03tag\0\0\0\0\0\0\0\x01\0\x04chat\x09chat.room"),
            frame(3, b"body \xff"),
            frame(8, b""),
        ]
        .concat();
        for piece in [1, 3, 7, 1000] {
            assert_eq!(sieved(&all, piece), all, "{piece}");
        }
        // The nested table above is cut short, so these headers do not read; without them the rest does.
        let cut = content(1 << 15 | 1 << 13 | 1 << 12 | 1 << 7 | 1 << 6, &properties);
        let without = [&b"\x0atext/plain"[..], &[2], "\x06grüß".as_bytes(), b"\0\0\0\0\0\0\0\x09"].concat();
        assert_eq!(sieved(&cut, 5), content(1 << 15 | 1 << 12 | 1 << 7 | 1 << 6, &without));
        let whole = content(1 << 13 | 1 << 7, &[&long(b"\x01cF\0\0\0\x04\x01dt\x01")[..], b"\x02id"].concat());
        assert_eq!(sieved(&whole, 2), whole);
        assert_eq!(sieved(b"AMQP\0\0\x09\x01", 100), b"AMQP\0\0\x09\x01");
    }

    #[test]
    fn strings_that_are_not_utf_8_are_made_so() {
        let bad = frame(METHOD, b"\0\x3c\0\x3c\x01t\0\0\0\0\0\0\0\x01\0\x04chat\x02\xff\xfe");
        assert_eq!(sieved(&bad, 9), frame(METHOD, b"\0\x3c\0\x3c\x01t\0\0\0\0\0\0\0\x01\0\x04chat\x02??"));
        let bad = content(1 << 13 | 1 << 7, &[&long(b"\x02\xffxV")[..], b"\x03i\xffd"].concat());
        assert_eq!(sieved(&bad, 9), content(1 << 13 | 1 << 7, &[&long(b"\x02?xV")[..], b"\x03i?d"].concat()));
    }

    #[test]
    fn headers_that_are_nested_deeply_are_left_out() {
        let nested = |depth| (0..depth).fold(Vec::new(), |inside: Vec<u8>, _| [b"A".to_vec(), long(&inside)].concat());
        for (depth, kept) in [(DEPTH_MAX, true), (DEPTH_MAX + 1, false), (20_000, false)] {
            let headers = long(&[b"\x01x".to_vec(), nested(depth)].concat());
            let all = content(1 << 13 | 1 << 7, &[headers, b"\x02id".to_vec()].concat());
            let expected = if kept { all.clone() } else { content(1 << 7, b"\x02id") };
            assert_eq!(sieved(&all, 4096), expected, "{depth}");
        }
    }

    #[test]
    fn properties_that_do_not_read_are_left_out() {
        for bad in [&b"\x05abc"[..], b"", &long(b"")[..3]] {
            assert_eq!(sieved(&content(1 << 13, bad), 100), content(0, b""), "{bad:?}");
        }
        assert_eq!(sieved(&content(1 << 6, b"\0"), 100), content(0, b""));
    }

    proptest::proptest! {
        #[test]
        fn any_header_is_made_one_that_stays_as_it_is(flags: u16, bytes in proptest::collection::vec(0_u8..20, 0..200)) {
            let once = sieved(&content(flags, &bytes), 64);
            proptest::prop_assert_eq!(sieved(&once, 64), once);
        }
    }
}
