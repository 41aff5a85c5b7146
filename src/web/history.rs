//! What the API answers about the log as a whole: exports and imports, streamed, and the named cursors of this node.
//!
//! A stream is made no faster than its reader takes it and ends when its reader has gone. One that cannot go on breaks its
//! connection: it never looks complete.

use std::io;
use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::{Buf, Bytes};
use data_encoding::HEXLOWER_PERMISSIVE;
use futures_util::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::timeout;
use warp::http::{HeaderValue, StatusCode, header};
use warp::reply::{Reply, Response};

use super::api::{Answer, DISCARD_BYTES_MAX, Failure, json, objects, read_room, to_text};
use super::objects::time;
use crate::error::DurableError;
use crate::handle::archive::{ArchiveError, ArchiveReader, ArchiveWriter};
use crate::handle::{DurableSummary, Exported, Handle, HistoryHealth, Hlc, Imported, Query};

/// Messages of an export read in one go; what they take is bounded by the log, too.
const CHUNK_MESSAGES_MAX: usize = 1_024;
/// Pieces of a stream that wait to be written.
const PIECES_MAX: usize = 2;
/// Batches are imported when so many bytes of them have come.
const IMPORT_BYTES_MAX: usize = 1024 * 1024;
/// How long the next piece of an import may take.
const PIECE_WAIT: Duration = Duration::from_secs(30);

type Pieces = mpsc::Sender<io::Result<Bytes>>;

/// The query of `GET /api/v1/messages/export`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ExportQuery {
    room: Option<String>,
}

/// `GET /api/v1/messages/export`: every message of the log, oldest first, one JSON object a line.
pub(super) async fn messages(handle: &Handle, query: ExportQuery) -> Answer {
    let room = query.room.as_deref().map(read_room).transpose()?;
    let handle = handle.clone();
    Ok(streamed("application/x-ndjson", |pieces: Pieces| async move {
        let query = Query { room, limit: CHUNK_MESSAGES_MAX, ..Query::default() };
        let mut from = None;
        loop {
            let (messages, next) = handle.scan(query.clone(), from).await.map_err(io::Error::other)?;
            for part in messages.chunks(CHUNK_MESSAGES_MAX) {
                let mut lines = String::new();
                for object in objects(&handle, part).await.map_err(io::Error::other)? {
                    lines += &to_text(&object);
                    lines.push('\n');
                }
                if pieces.send(Ok(lines.into())).await.is_err() {
                    return Ok(());
                }
            }
            from = next;
            if from.is_none() {
                return Ok(());
            }
        }
    }))
}

/// `GET /` of the history service: an array of all texts, in the order in which they came.
pub(super) async fn texts(handle: &Handle) -> Answer {
    let handle = handle.clone();
    let query = Query { limit: CHUNK_MESSAGES_MAX, ..Query::default() };
    // A log that does not answer is told as such, not as a broken stream.
    let (mut messages, mut next) = handle.scan(query.clone(), None).await?;
    Ok(streamed("application/json", |pieces: Pieces| async move {
        let mut piece = String::from("[");
        let mut first = true;
        loop {
            for text in messages.iter().filter_map(|message| message.payload.text()) {
                if !std::mem::take(&mut first) {
                    piece.push(',');
                }
                piece += &to_text(&text);
            }
            if next.is_none() {
                piece += "]\n";
            }
            if pieces.send(Ok(std::mem::take(&mut piece).into())).await.is_err() || next.is_none() {
                return Ok(());
            }
            (messages, next) = handle.scan(query.clone(), next).await.map_err(io::Error::other)?;
        }
    }))
}

/// `GET /api/v1/history/export`: the log as a file that another node imports.
pub(super) async fn export(handle: &Handle) -> Answer {
    let handle = handle.clone();
    // A log that does not answer is told as such, not as a broken stream.
    let mut batches = handle.export(None).await?;
    Ok(streamed("application/octet-stream", |pieces: Pieces| async move {
        let mut piece = Vec::new();
        let mut writer = ArchiveWriter::begin(&handle.info().mesh, &mut piece);
        while let Some(last) = batches.last().map(Exported::place) {
            batches.iter().for_each(|batch| writer.record(batch, &mut piece));
            if pieces.send(Ok(std::mem::take(&mut piece).into())).await.is_err() {
                return Ok(());
            }
            batches = handle.export(Some(last)).await.map_err(io::Error::other)?;
        }
        writer.end(&mut piece);
        // A reader that has gone needs no end.
        let _ = pieces.send(Ok(piece.into())).await;
        Ok(())
    }))
}

/// An answer that `write` makes as it is read; an error breaks the connection.
fn streamed<W>(mime: &'static str, write: impl FnOnce(Pieces) -> W) -> Response
where
    W: Future<Output = io::Result<()>> + Send + 'static,
{
    let (pieces, taken) = mpsc::channel(PIECES_MAX);
    let writing = write(pieces.clone());
    tokio::spawn(async move {
        if let Err(error) = writing.await {
            tracing::warn!(%error, "an export was broken off");
            // Its reader may have gone.
            let _ = pieces.send(Err(error)).await;
        }
    });
    let body = stream::unfold(taken, async |mut taken| taken.recv().await.map(|piece| (piece, taken)));
    let mut response = warp::reply::stream(body).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(mime));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// `POST /api/v1/history/import`: takes a file that a log exported. What came before damage is kept.
pub(super) async fn import(handle: &Handle, body: impl Stream<Item = Result<impl Buf, warp::Error>>) -> Answer {
    #[derive(Serialize)]
    struct Body {
        new: u64,
        known: u64,
        refused: u64,
    }
    let mut body = pin!(body);
    if handle.history_health() == HistoryHealth::None {
        discard(body).await;
        return Err(DurableError::NoHistory.into());
    }
    let mut reader = ArchiveReader::new();
    let (mut batches, mut bytes, mut sum) = (Vec::new(), 0, Imported::default());
    let failed = loop {
        let piece = match timeout(PIECE_WAIT, body.next()).await {
            Ok(Some(Ok(piece))) => piece,
            Ok(None) => break reader.finish().err().map(|error| damaged(&error)),
            Ok(Some(Err(error))) => break Some(Failure::malformed(error.to_string())),
            Err(_) => break Some(Failure::new(StatusCode::REQUEST_TIMEOUT, "too_slow", "the file took too long")),
        };
        push(&mut reader, piece);
        let failed = loop {
            match reader.read() {
                Ok(Some(batch)) => {
                    bytes += batch.bytes().len();
                    batches.push(batch);
                }
                Ok(None) => break None,
                Err(error) => break Some(damaged(&error)),
            }
        };
        if failed.is_some() {
            break failed;
        }
        if bytes >= IMPORT_BYTES_MAX {
            bytes = 0;
            add(&mut sum, take_in(handle, std::mem::take(&mut batches)).await?);
        }
    };
    if !batches.is_empty() {
        add(&mut sum, take_in(handle, batches).await?);
    }
    if failed.is_some() {
        discard(body).await;
    }
    let Imported { new, known, refused } = sum;
    match failed {
        None => Ok(json(StatusCode::OK, &Body { new, known, refused })),
        Some(failure) => {
            let kept = new + known;
            let message =
                format!("{}; what came before it is kept: {kept} messages, {new} of them new", failure.message);
            Err(Failure { message, ..failure })
        }
    }
}

/// Reads some of what is left of a body and throws it away, so that its sender gets to hear the answer.
async fn discard(mut body: Pin<&mut impl Stream<Item = Result<impl Buf, warp::Error>>>) {
    let mut bytes = 0;
    while let Ok(Some(Ok(piece))) = timeout(PIECE_WAIT, body.next()).await {
        bytes += piece.remaining();
        if bytes > DISCARD_BYTES_MAX {
            return;
        }
    }
}

fn push(reader: &mut ArchiveReader, mut piece: impl Buf) {
    while piece.has_remaining() {
        let len = piece.chunk().len();
        reader.push(piece.chunk());
        piece.advance(len);
    }
}

fn add(sum: &mut Imported, Imported { new, known, refused }: Imported) {
    sum.new += new;
    sum.known += known;
    sum.refused += refused;
}

/// Imports batches; the disk may not take them.
async fn take_in(handle: &Handle, batches: Vec<Exported>) -> Result<Imported, Failure> {
    let full = || Failure::new(StatusCode::INSUFFICIENT_STORAGE, "disk_full", "the disk is full; import again later");
    let failing = || {
        Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "disk_failing",
            "the history cannot be written; import again later",
        )
    };
    // Nobody answers for a disk that takes nothing.
    let refused = |health| match health {
        HistoryHealth::Full => Some(full()),
        HistoryHealth::Failing => Some(failing()),
        HistoryHealth::Working | HistoryHealth::None => None,
    };
    if let Some(failure) = refused(handle.history_health()) {
        return Err(failure);
    }
    match handle.import(batches).await {
        Ok(imported) => Ok(imported),
        Err(error) => Err(refused(handle.history_health()).unwrap_or_else(|| error.into())),
    }
}

fn damaged(error: &ArchiveError) -> Failure {
    let code = match error {
        ArchiveError::Newer { .. } => "newer_import",
        ArchiveError::Foreign | ArchiveError::Damaged { .. } | ArchiveError::Cut { .. } => "corrupt_import",
    };
    Failure::new(StatusCode::BAD_REQUEST, code, error.to_string())
}

/// `GET /api/v1/durables`.
pub(super) async fn durables(handle: &Handle) -> Answer {
    #[derive(Serialize)]
    struct DurableObject {
        name: String,
        /// When something was last acknowledged; null if nothing ever was.
        acked: Option<String>,
        /// Batches in the log behind it, at most.
        behind: u64,
        /// Whether somebody holds it now.
        held: bool,
    }
    let object = |DurableSummary { name, acked_ms, behind, held }| {
        let acked = (acked_ms > 0).then(|| time(Hlc::at(acked_ms)));
        DurableObject { name, acked, behind, held }
    };
    let durables: Vec<DurableObject> = handle.durables().await?.into_iter().map(object).collect();
    Ok(json(StatusCode::OK, &durables))
}

/// `DELETE /api/v1/durables/NAME`: forgets a named cursor and closes whoever holds it.
pub(super) async fn remove_durable(handle: &Handle, name: &str) -> Answer {
    let name = unescape(name).ok_or_else(|| Failure::malformed("the name is not written as in a URL"))?;
    if !handle.remove_durable(&name).await? {
        return Err(Failure::new(StatusCode::NOT_FOUND, "not_found", "there is no durable cursor of this name"));
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// A part of a path as it was meant (RFC 3986 section 2.1).
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                HEXLOWER_PERMISSIVE.decode(&digits).ok()?.first().copied()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use hyper::body::Body as _;
    use tokio::sync::oneshot;

    use super::*;

    async fn next_piece(response: &mut Response) -> Option<Result<Bytes, warp::Error>> {
        let frame = std::future::poll_fn(|cx| Pin::new(response.body_mut()).poll_frame(cx)).await?;
        Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
    }

    #[tokio::test]
    async fn a_stream_is_made_as_it_is_read_and_ends_with_its_reader() {
        let (ended, end) = oneshot::channel();
        let mut response = streamed("text/plain", |pieces| async move {
            let mut made = 0;
            while pieces.send(Ok(Bytes::from_static(b"x"))).await.is_ok() {
                made += 1;
            }
            ended.send(made).map_err(|_| io::Error::other("nobody asks"))
        });
        for _ in 0..10 {
            assert_eq!(next_piece(&mut response).await.unwrap().unwrap(), "x");
        }
        drop(response);
        let made = timeout(Duration::from_secs(10), end).await.expect("it ends").unwrap();
        assert!(made <= 10 + PIECES_MAX, "{made}");
    }

    #[tokio::test]
    async fn a_stream_that_cannot_go_on_does_not_look_complete() {
        let mut response = streamed("text/plain", |pieces| async move {
            let _ = pieces.send(Ok(Bytes::from_static(b"half"))).await;
            Err(io::Error::other("the disk"))
        });
        assert_eq!(next_piece(&mut response).await.unwrap().unwrap(), "half");
        assert!(next_piece(&mut response).await.unwrap().is_err());
    }

    #[test]
    fn a_name_in_a_path_is_read_as_it_was_meant() {
        assert_eq!(unescape("indexer").as_deref(), Some("indexer"));
        assert_eq!(unescape("a%20b%2Fc%c3%bc").as_deref(), Some("a b/cü"));
        for bad in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(unescape(bad), None, "{bad}");
        }
    }
}
