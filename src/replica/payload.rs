//! What a message carries: text, or bytes with a content type.

use std::sync::Arc;

use bytes::Bytes;

/// What a message carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Chat: `text/plain` in UTF-8. Held as bytes that are known to be UTF-8.
    Text(Text),
    /// Anything else, with its content type.
    Data {
        /// The content type, at most [`NAME_BYTES_MAX`](super::batch::NAME_BYTES_MAX) bytes.
        mime: Arc<str>,
        /// The bytes.
        data: Bytes,
    },
}

/// A [`Payload`] where it lies in its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadRef<'a> {
    /// Chat: `text/plain`.
    Text(&'a str),
    /// Anything else, with its content type.
    Data {
        /// The content type.
        mime: &'a str,
        /// The bytes.
        data: &'a [u8],
    },
}

impl<'a> PayloadRef<'a> {
    /// The text, if it is text.
    pub fn text(&self) -> Option<&'a str> {
        match self {
            PayloadRef::Text(text) => Some(text),
            PayloadRef::Data { .. } => None,
        }
    }

    /// The bytes, whatever they are.
    pub fn bytes(&self) -> &'a [u8] {
        match self {
            PayloadRef::Text(text) => text.as_bytes(),
            PayloadRef::Data { data, .. } => data,
        }
    }
}

/// UTF-8 text that shares its bytes: with the batch it came in, or the buffer it was made from.
#[derive(Clone, PartialEq, Eq)]
pub struct Text(Bytes);

impl Text {
    /// `text`, which is a part of `bytes`.
    pub(super) fn of(bytes: &Bytes, text: &str) -> Text {
        Text(bytes.slice_ref(text.as_bytes()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        // Checked when it was made; a check again is cheaper than `unsafe`.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}

impl From<String> for Text {
    fn from(text: String) -> Text {
        Text(text.into())
    }
}

/// Shares the bytes: many texts of one buffer cost no allocation each.
impl TryFrom<Bytes> for Text {
    type Error = NotText;

    fn try_from(bytes: Bytes) -> Result<Text, NotText> {
        simdutf8::basic::from_utf8(&bytes).map_err(|_| NotText)?;
        Ok(Text(bytes))
    }
}

/// The bytes are not text in UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not text in UTF-8")]
pub struct NotText;

impl Payload {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Payload::Text(text) => text.0.len(),
            Payload::Data { data, .. } => data.len(),
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The text, if it is text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Payload::Text(text) => Some(text.as_str()),
            Payload::Data { .. } => None,
        }
    }

    /// The bytes, whatever they are.
    pub fn bytes(&self) -> &Bytes {
        match self {
            Payload::Text(text) => &text.0,
            Payload::Data { data, .. } => data,
        }
    }
}

impl From<&str> for Payload {
    fn from(text: &str) -> Payload {
        Payload::Text(Text(Bytes::copy_from_slice(text.as_bytes())))
    }
}

impl From<String> for Payload {
    fn from(text: String) -> Payload {
        Payload::Text(text.into())
    }
}

impl From<Text> for Payload {
    fn from(text: Text) -> Payload {
        Payload::Text(text)
    }
}

impl From<Bytes> for Payload {
    fn from(data: Bytes) -> Payload {
        Payload::Data { mime: "application/octet-stream".into(), data }
    }
}

impl From<Vec<u8>> for Payload {
    fn from(data: Vec<u8>) -> Payload {
        Bytes::from(data).into()
    }
}
