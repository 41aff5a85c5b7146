//! ZMTP 3 (RFC 23, and SUBSCRIBE, CANCEL, PING of RFC 37) as far as the gate needs it: greeting, commands, frame headers.
//!
//! Pure functions over bytes that anybody may have sent. Nothing here allocates by a length that was claimed, and nothing
//! panics, whatever the bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::limits;

/// The length of a greeting.
pub(crate) const GREETING_BYTES: usize = 64;
/// The longest frame header: flags and a length of 8 bytes.
pub(crate) const HEADER_BYTES_MAX: usize = 9;

/// A frame up to this length is written together with its header, a longer one from where it is.
const COPIED_BYTES_MAX: usize = 1024;
/// A message up to this length is copied out of the block that it was read in.
const ALONE_BYTES_MAX: usize = 16 * 1024;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// How a peer broke the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    /// Not a greeting of ZMTP 3 without security.
    #[error("a greeting that is none")]
    Greeting,
    /// Flags that mean nothing.
    #[error("a frame header that is none")]
    Header,
    /// A frame beyond the limit.
    #[error("a frame too long")]
    FrameLength,
    /// A message of too many frames, or of too few.
    #[error("a message with a wrong number of frames")]
    Parts,
    /// A command that does not parse, is too long, or has no place here.
    #[error("a command out of rules")]
    Command,
    /// A subscription that is none, is too long, or is one too many.
    #[error("a subscription out of rules")]
    Subscription,
    /// Not sealed with a key of this mesh, or changed on the way.
    #[error("bytes that no key of this mesh has sealed")]
    Sealed,
}

impl Broken {
    /// One word for metrics.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Broken::Greeting => "greeting",
            Broken::Header => "header",
            Broken::FrameLength => "frame_length",
            Broken::Parts => "parts",
            Broken::Command => "command",
            Broken::Subscription => "subscription",
            Broken::Sealed => "sealed",
        }
    }
}

/// What the ends of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Pub,
    Sub,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Role::Pub => "PUB",
            Role::Sub => "SUB",
        }
    }
}

/// Our greeting: version 3.0, mechanism NULL.
pub(crate) fn greeting() -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    (bytes[0], bytes[9], bytes[10]) = (0xff, 0x7f, 3);
    bytes[12..16].copy_from_slice(b"NULL");
    bytes
}

/// Checks what has come of a greeting so far, so that whoever speaks another protocol is known by the first byte.
pub(crate) fn check_greeting(bytes: &[u8]) -> Result<(), Broken> {
    let is = |at: usize, fits: fn(u8) -> bool| bytes.get(at).is_none_or(|byte| fits(*byte));
    let mechanism = bytes.get(12..32).is_none_or(|name| name.starts_with(b"NULL\0"));
    if is(0, |b| b == 0xff) && is(9, |b| b == 0x7f) && is(10, |b| b >= 3) && mechanism {
        Ok(())
    } else {
        Err(Broken::Greeting)
    }
}

/// A whole READY command, header included.
pub(crate) fn ready(role: Role, properties: &[(&str, &str)]) -> Bytes {
    let mut body = BytesMut::new();
    body.put_slice(b"\x05READY");
    for (name, value) in [("Socket-Type", role.name())].iter().chain(properties) {
        body.put_u8(name.len() as u8);
        body.put_slice(name.as_bytes());
        body.put_u32(value.len() as u32);
        body.put_slice(value.as_bytes());
    }
    command(&body)
}

/// A PONG for the context of a PING.
pub(crate) fn pong(context: &[u8]) -> Bytes {
    command(&[b"\x04PONG", context].concat())
}

fn command(body: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEADER_BYTES_MAX + body.len());
    put_header(&mut bytes, COMMAND, body.len());
    bytes.put_slice(body);
    bytes.freeze()
}

/// A message of one frame that subscribes (or no longer subscribes) `topic`, in the form of ZMTP 3.0.
pub(crate) fn subscription(wanted: bool, topic: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEADER_BYTES_MAX + 1 + topic.len());
    put_header(&mut bytes, 0, 1 + topic.len());
    bytes.put_u8(wanted.into());
    bytes.put_slice(topic);
    bytes.freeze()
}

/// Appends a message of one frame.
pub(crate) fn put_frame(bytes: &mut BytesMut, frame: &[u8]) {
    put_header(bytes, 0, frame.len());
    bytes.put_slice(frame);
}

fn put_header(bytes: &mut BytesMut, flags: u8, len: usize) {
    match u8::try_from(len) {
        Ok(len) => bytes.put_slice(&[flags, len]),
        Err(_) => {
            bytes.put_u8(flags | LONG);
            bytes.put_u64(len as u64);
        }
    }
}

/// The properties of a READY command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Properties<'a>(&'a [u8]);

impl<'a> Properties<'a> {
    /// Reads the body of a READY command.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Properties<'a>, Broken> {
        let mut rest = body.strip_prefix(b"\x05READY").ok_or(Broken::Command)?;
        let properties = Properties(rest);
        while !rest.is_empty() {
            (_, rest) = property(rest).ok_or(Broken::Command)?;
        }
        Ok(properties)
    }

    /// The value of `name`, which is matched whatever its case, if it is text.
    pub(crate) fn get(&self, name: &str) -> Option<&'a str> {
        let mut rest = self.0;
        while let Some(((found, value), after)) = property(rest) {
            if found.eq_ignore_ascii_case(name.as_bytes()) {
                return std::str::from_utf8(value).ok();
            }
            rest = after;
        }
        None
    }
}

type Property<'a> = (&'a [u8], &'a [u8]);

fn property(bytes: &[u8]) -> Option<(Property<'_>, &[u8])> {
    let (name_len, rest) = bytes.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*name_len))?;
    let (value_len, rest) = rest.split_first_chunk::<4>()?;
    let (value, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*value_len)).ok()?)?;
    Some(((name, value), rest))
}

/// What a command other than READY wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command<'a> {
    Subscribe(&'a [u8]),
    Cancel(&'a [u8]),
    /// With the context that the PONG is to carry.
    Ping(&'a [u8]),
    Pong,
}

impl<'a> Command<'a> {
    /// Reads the body of a command.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Command<'a>, Broken> {
        let (name_len, rest) = body.split_first().ok_or(Broken::Command)?;
        let (name, rest) = rest.split_at_checked(usize::from(*name_len)).ok_or(Broken::Command)?;
        match name {
            b"SUBSCRIBE" => Ok(Command::Subscribe(rest)),
            b"CANCEL" => Ok(Command::Cancel(rest)),
            // Two bytes of time to live, at most 16 of context.
            b"PING" if (2..=18).contains(&rest.len()) => Ok(Command::Ping(&rest[2..])),
            b"PONG" => Ok(Command::Pong),
            _ => Err(Broken::Command),
        }
    }
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// A command instead of a part of a message.
    pub(crate) command: bool,
    /// Another frame of this message follows.
    pub(crate) more: bool,
    /// The length of the body.
    pub(crate) len: usize,
    /// The length of the header itself.
    pub(crate) bytes: usize,
}

impl Header {
    /// The header at the front of `input`; none: it is not complete yet. A body beyond the limits is an error at once.
    pub(crate) fn parse(input: &[u8]) -> Result<Option<Header>, Broken> {
        let Some((&flags, rest)) = input.split_first() else { return Ok(None) };
        if flags & !(MORE | LONG | COMMAND) != 0 || flags & (MORE | COMMAND) == MORE | COMMAND {
            return Err(Broken::Header);
        }
        let (len, bytes) = if flags & LONG == 0 {
            let Some(len) = rest.first() else { return Ok(None) };
            (u64::from(*len), 2)
        } else {
            let Some(len) = rest.first_chunk::<8>() else { return Ok(None) };
            (u64::from_be_bytes(*len), HEADER_BYTES_MAX)
        };
        let command = flags & COMMAND != 0;
        let (max, error) = if command {
            (limits::COMMAND_BYTES_MAX, Broken::Command)
        } else {
            (limits::FRAME_BYTES_MAX, Broken::FrameLength)
        };
        match usize::try_from(len) {
            Ok(len) if len <= max => Ok(Some(Header { command, more: flags & MORE != 0, len, bytes })),
            _ => Err(error),
        }
    }
}

/// A message: one frame, or two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) first: Bytes,
    pub(crate) second: Option<Bytes>,
}

impl Parts {
    /// Its length, headers aside.
    pub(crate) fn len(&self) -> usize {
        self.first.len() + self.second.as_ref().map_or(0, Bytes::len)
    }

    /// A short message in memory of its own: a slice would keep the whole block that it was read in, for as long as the
    /// message is kept. A long one is most of its block, or lies in it with others of its kind.
    pub(crate) fn alone(self) -> Parts {
        if self.len() > ALONE_BYTES_MAX {
            return self;
        }
        let mut bytes = BytesMut::with_capacity(self.len());
        bytes.put_slice(&self.first);
        bytes.put_slice(self.second.as_deref().unwrap_or_default());
        let mut second = bytes.freeze();
        let first = second.split_to(self.first.len());
        Parts { first, second: self.second.map(|_| second) }
    }

    /// As it stands on the wire, in two chunks: headers and what is short, and the last frame if that is long, uncopied.
    pub(crate) fn chunks(&self) -> [Bytes; 2] {
        let (first, last) = match &self.second {
            Some(second) => (Some(&self.first), second),
            None => (None, &self.first),
        };
        let copied = if last.len() <= COPIED_BYTES_MAX { last.len() } else { 0 };
        let mut head = BytesMut::with_capacity(2 * HEADER_BYTES_MAX + first.map_or(0, Bytes::len) + copied);
        if let Some(first) = first {
            put_header(&mut head, MORE, first.len());
            head.put_slice(first);
        }
        put_header(&mut head, 0, last.len());
        head.put_slice(&last[..copied]);
        [head.freeze(), last.slice(copied..)]
    }
}

/// Cuts a stream of frames into messages and commands. Each header is checked as soon as it is there.
#[derive(Debug, Default)]
pub(crate) struct Cutter {
    /// The first frame of a message whose second is still to come.
    first: Option<Bytes>,
}

/// What stood at the front of the input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    Message(Parts),
    /// The body of a command between messages.
    Command(Bytes),
    /// The beginning of something, of which so many bytes at least are missing: at most a frame.
    Part(usize),
}

impl Cutter {
    /// Takes what is whole from the front of `input`, whose memory it shares.
    pub(crate) fn cut(&mut self, input: &mut BytesMut) -> Result<Cut, Broken> {
        loop {
            let Some(header) = Header::parse(input)? else { return Ok(Cut::Part(1)) };
            match self.first {
                Some(_) if header.command => return Err(Broken::Command),
                Some(_) if header.more => return Err(Broken::Parts),
                _ => {}
            }
            let missing = (header.bytes + header.len).saturating_sub(input.len());
            if missing > 0 {
                return Ok(Cut::Part(missing));
            }
            input.advance(header.bytes);
            let frame = input.split_to(header.len).freeze();
            match self.first.take() {
                _ if header.command => return Ok(Cut::Command(frame)),
                None if header.more => self.first = Some(frame),
                None => return Ok(Cut::Message(Parts { first: frame, second: None })),
                Some(first) => return Ok(Cut::Message(Parts { first, second: Some(frame) })),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        put_header(&mut bytes, flags, body.len());
        bytes.put_slice(body);
        bytes.to_vec()
    }

    /// Cuts `input`, which comes in pieces of `piece` bytes, and gives the messages as they stand on the wire.
    fn relay(input: &[u8], piece: usize) -> Result<Vec<u8>, Broken> {
        let (mut cutter, mut held, mut passed) = (Cutter::default(), BytesMut::new(), Vec::new());
        for bytes in input.chunks(piece) {
            held.extend_from_slice(bytes);
            loop {
                match cutter.cut(&mut held)? {
                    Cut::Message(parts) => parts.chunks().iter().for_each(|chunk| passed.extend_from_slice(chunk)),
                    Cut::Command(_) => {}
                    Cut::Part(missing) => {
                        assert!(missing > 0 && held.len() + missing <= HEADER_BYTES_MAX + limits::FRAME_BYTES_MAX);
                        break;
                    }
                }
            }
        }
        Ok(passed)
    }

    #[test]
    fn own_greeting_passes_and_others_do_not() {
        check_greeting(&greeting()).unwrap();
        for (at, byte) in [(0, 0), (9, 0), (10, 2), (12, b'C'), (16, b'X')] {
            let mut bytes = greeting();
            bytes[at] = byte;
            assert_eq!(check_greeting(&bytes), Err(Broken::Greeting), "byte {at}");
        }
        assert_eq!(check_greeting(b"GET / HTTP/1.1"), Err(Broken::Greeting));
        check_greeting(&greeting()[..5]).unwrap();
    }

    #[test]
    fn ready_gives_its_properties_back() {
        let bytes = ready(Role::Sub, &[("Hubless-Mesh", "lab"), ("Hubless-Run", &"r".repeat(300))]);
        let header = Header::parse(&bytes).unwrap().unwrap();
        assert!(header.command && header.bytes + header.len == bytes.len());
        let properties = Properties::parse(&bytes[header.bytes..]).unwrap();
        assert_eq!(properties.get("socket-type"), Some("SUB"));
        assert_eq!(properties.get("Hubless-Mesh"), Some("lab"));
        assert_eq!(properties.get("Hubless-Run").map(str::len), Some(300));
        assert_eq!(properties.get("Identity"), None);
    }

    #[test]
    fn truncated_ready_is_refused() {
        let bytes = ready(Role::Pub, &[("Hubless-Mesh", "lab")]);
        let whole = &bytes[2..];
        let borders = [6, 6 + 1 + 11 + 4 + 3];
        for end in (0..whole.len()).filter(|end| !borders.contains(end)) {
            assert_eq!(Properties::parse(&whole[..end]).err(), Some(Broken::Command), "{end}");
        }
        assert!(Properties::parse(b"\x05READY\x01a\xff\xff\xff\xffx").is_err());
    }

    #[test]
    fn lengths_beyond_the_limit_are_refused_before_a_byte_of_the_body() {
        for bit in 0..64 {
            for len in [1_u64 << bit, (1_u64 << bit) - 1, (1_u64 << bit) + 1, u64::MAX - (1_u64 << bit), u64::MAX] {
                for (flags, max) in [(LONG, limits::FRAME_BYTES_MAX), (LONG | COMMAND, limits::COMMAND_BYTES_MAX)] {
                    let input = [&[flags][..], &len.to_be_bytes()].concat();
                    let fits = usize::try_from(len).is_ok_and(|len| len <= max);
                    assert_eq!(Header::parse(&input).is_ok(), fits, "{len}");
                    for end in 0..input.len() {
                        assert_eq!(Header::parse(&input[..end]), Ok(None), "{len} cut at {end}");
                    }
                }
            }
        }
    }

    #[test]
    fn only_known_flags_pass() {
        for flags in 0..=u8::MAX {
            let fits = matches!(flags, 0..=4 | 6);
            assert_eq!(Header::parse(&[flags, 0, 0, 0, 0, 0, 0, 0, 0]).is_ok(), fits, "{flags}");
        }
    }

    #[test]
    fn messages_pass_and_commands_are_taken_out_however_they_are_cut() {
        let long = frame(0, &[7; COPIED_BYTES_MAX + 1]);
        let message = [frame(MORE, b"chat"), frame(0, &[7; 300]), long, frame(MORE, b""), frame(0, b"")].concat();
        let input = [&message[..], &frame(COMMAND, b"\x04PING\0\0ctx"), &message].concat();
        for chunk in 1..input.len() {
            assert_eq!(relay(&input, chunk).unwrap(), [&message[..], &message].concat(), "{chunk}");
        }
    }

    #[test]
    fn a_message_alone_is_the_same_message() {
        for length in [0, 1, ALONE_BYTES_MAX - 4, ALONE_BYTES_MAX] {
            let (first, body) = (Bytes::from_static(b"chat"), Bytes::from(vec![7; length]));
            for second in [None, Some(body.clone())] {
                let parts = Parts { first: first.clone(), second };
                assert_eq!(parts.clone().alone(), parts);
            }
            let copied = Parts { first: first.clone(), second: Some(body.clone()) }.alone();
            let same = copied.second.is_some_and(|second| second.as_ptr() == body.as_ptr());
            assert_eq!(same, length == ALONE_BYTES_MAX);
        }
    }

    #[test]
    fn endless_messages_and_commands_inside_messages_are_refused() {
        let part = frame(MORE, b"x");
        assert_eq!(relay(&[&part[..], &part].concat(), 5), Err(Broken::Parts));
        assert_eq!(relay(&[&part[..], &frame(COMMAND, b"\x04PONG")].concat(), 5), Err(Broken::Command));
    }

    #[test]
    fn commands_are_read() {
        assert_eq!(Command::parse(b"\x09SUBSCRIBEchat"), Ok(Command::Subscribe(b"chat")));
        assert_eq!(Command::parse(b"\x06CANCELchat"), Ok(Command::Cancel(b"chat")));
        assert_eq!(Command::parse(b"\x04PING\x00\x0actx"), Ok(Command::Ping(b"ctx")));
        assert_eq!(Command::parse(b"\x04PONGctx"), Ok(Command::Pong));
        assert_eq!(pong(b"ctx")[..], b"\x04\x08\x04PONGctx"[..]);
        for bad in [&b""[..], b"\x04PING", b"\x04PING\0\0aaaaaaaaaaaaaaaaa", b"\x05ERROR", b"\xffx"] {
            assert_eq!(Command::parse(bad), Err(Broken::Command));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(input in proptest::collection::vec(any::<u8>(), 0..2000), chunk in 1_usize..100) {
            let _ = relay(&input, chunk);
            let _ = Properties::parse(&input).map(|p| p.get("Hubless-Run"));
            let _ = Command::parse(&input);
            let _ = check_greeting(&input);
        }

        #[test]
        fn a_mutated_ready_never_panics(at in 0_usize..60, byte: u8, cut in 0_usize..60) {
            let mut bytes = ready(Role::Pub, &[("Hubless-Mesh", "lab"), ("Hubless-Port", "1")])[2..].to_vec();
            let len = bytes.len();
            bytes[at % len] = byte;
            bytes.truncate(len - cut % len);
            let _ = Properties::parse(&bytes).map(|p| p.get("Hubless-Mesh"));
        }
    }
}
