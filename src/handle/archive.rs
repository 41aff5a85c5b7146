//! A log as one file: what `history export` writes and `history import` reads.
//!
//! `magic version mesh check`, then a record for each batch, then an end that counts them, so that a file that was cut is
//! noticed. Numbers are little-endian; a check is the first 8 bytes of the BLAKE3 hash of what it stands behind. Both ends
//! work on pieces, in memory bounded by one record.

use bytes::{Buf, BytesMut};

use super::Exported;
use crate::replica::batch::BATCH_BYTES_MAX;

/// How such a file begins.
pub const MAGIC: &[u8; 12] = b"hubless-log\n";
/// The version of the format that is written, and the newest that is read.
pub const ARCHIVE_VERSION: u8 = 1;
const CHECK_BYTES: usize = 8;
/// Length of the batch and time of its first arrival; of the end, zero and the number of records.
const RECORD_HEAD_BYTES: usize = 12;
/// Magic, version and length of the mesh name.
const HEAD_BYTES: usize = MAGIC.len() + 2;

/// A file that cannot be read on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// It is no such file.
    #[error("this is no exported history")]
    Foreign,
    /// A newer hubless wrote it.
    #[error("the file is of a newer version ({found}) than this hubless reads ({ARCHIVE_VERSION})")]
    Newer {
        /// Its version.
        found: u8,
    },
    /// Something in it was changed.
    #[error("the file is damaged at byte {at}")]
    Damaged {
        /// Where the record begins that is not as it was written.
        at: u64,
    },
    /// It ends too early.
    #[error("the file is cut: it ends at byte {at}, in the middle")]
    Cut {
        /// How long it is.
        at: u64,
    },
}

/// Writes such a file, piece by piece.
#[derive(Debug)]
pub struct ArchiveWriter {
    records: u64,
}

impl ArchiveWriter {
    /// Begins a file of what `mesh` said; of a long name the beginning is written.
    pub fn begin(mesh: &str, out: &mut Vec<u8>) -> ArchiveWriter {
        let start = out.len();
        let mesh = &mesh.as_bytes()[..mesh.len().min(usize::from(u8::MAX))];
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[ARCHIVE_VERSION, mesh.len() as u8]);
        out.extend_from_slice(mesh);
        seal(out, start);
        ArchiveWriter { records: 0 }
    }

    /// Writes a batch.
    pub fn record(&mut self, batch: &Exported, out: &mut Vec<u8>) {
        self.records += 1;
        let (start, bytes) = (out.len(), batch.bytes());
        // A batch is far smaller than 4 GiB.
        out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        out.extend_from_slice(&batch.arrived_ms().to_le_bytes());
        out.extend_from_slice(bytes);
        seal(out, start);
    }

    /// Ends the file.
    pub fn end(self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&0u32.to_le_bytes());
        out.extend_from_slice(&self.records.to_le_bytes());
        seal(out, start);
    }
}

fn seal(out: &mut Vec<u8>, start: usize) {
    let check = check(&out[start..]);
    out.extend_from_slice(&check);
}

fn check(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECK_BYTES]);
    check
}

/// Reads such a file, piece by piece. After an error it reads no further.
#[derive(Debug, Default)]
pub struct ArchiveReader {
    buffer: BytesMut,
    /// How much was read before what is in the buffer.
    at: u64,
    records: u64,
    part: Part,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Head,
    Records,
    End,
}

impl ArchiveReader {
    /// At the beginning of a file.
    pub fn new() -> ArchiveReader {
        ArchiveReader::default()
    }

    /// Takes the next piece of the file.
    pub fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// The next batch; none until more was pushed.
    ///
    /// # Errors
    /// [`ArchiveError`]; what was given before is sound.
    pub fn read(&mut self) -> Result<Option<Exported>, ArchiveError> {
        if self.part == Part::Head && !self.read_head()? {
            return Ok(None);
        }
        if self.part == Part::End {
            return if self.buffer.is_empty() { Ok(None) } else { Err(self.damaged()) };
        }
        let Some((len, number)) = self.record_head() else { return Ok(None) };
        if len > BATCH_BYTES_MAX {
            return Err(self.damaged());
        }
        let Some(mut record) = self.sealed(RECORD_HEAD_BYTES + len)? else { return Ok(None) };
        if len == 0 {
            self.part = Part::End;
            if number != self.records {
                return Err(self.damaged());
            }
            self.passed(RECORD_HEAD_BYTES + CHECK_BYTES);
            return self.read();
        }
        record.advance(RECORD_HEAD_BYTES);
        let batch = Exported::new(record.freeze(), number).map_err(|_| self.damaged())?;
        self.records += 1;
        self.passed(RECORD_HEAD_BYTES + len + CHECK_BYTES);
        Ok(Some(batch))
    }

    /// The file has no more pieces.
    ///
    /// # Errors
    /// [`ArchiveError::Cut`] if it should have; [`ArchiveError::Foreign`] if it is none.
    pub fn finish(&self) -> Result<(), ArchiveError> {
        match self.part {
            Part::End if self.buffer.is_empty() => Ok(()),
            Part::End => Err(self.damaged()),
            Part::Head if self.buffer.len() < MAGIC.len() => Err(ArchiveError::Foreign),
            Part::Head | Part::Records => Err(ArchiveError::Cut { at: self.at + self.buffer.len() as u64 }),
        }
    }

    fn read_head(&mut self) -> Result<bool, ArchiveError> {
        let begun = self.buffer.len().min(MAGIC.len());
        if self.buffer[..begun] != MAGIC[..begun] {
            return Err(ArchiveError::Foreign);
        }
        match self.buffer.get(MAGIC.len()) {
            Some(0) => return Err(self.damaged()),
            Some(&found) if found > ARCHIVE_VERSION => return Err(ArchiveError::Newer { found }),
            _ => {}
        }
        let Some(&mesh_len) = self.buffer.get(HEAD_BYTES - 1) else { return Ok(false) };
        let len = HEAD_BYTES + usize::from(mesh_len);
        if self.sealed(len)?.is_none() {
            return Ok(false);
        }
        self.passed(len + CHECK_BYTES);
        self.part = Part::Records;
        Ok(true)
    }

    fn record_head(&self) -> Option<(usize, u64)> {
        let mut head = self.buffer.get(..RECORD_HEAD_BYTES)?;
        Some((head.get_u32_le() as usize, head.get_u64_le()))
    }

    /// The next `len` bytes, if they and their check are there.
    fn sealed(&self, len: usize) -> Result<Option<BytesMut>, ArchiveError> {
        let Some(sealed) = self.buffer.get(..len + CHECK_BYTES) else { return Ok(None) };
        let (bytes, seal) = sealed.split_at(len);
        if check(bytes) != *seal { Err(self.damaged()) } else { Ok(Some(bytes.into())) }
    }

    fn passed(&mut self, len: usize) {
        self.buffer.advance(len);
        self.at += len as u64;
    }

    fn damaged(&self) -> ArchiveError {
        ArchiveError::Damaged { at: self.at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Epoch, NodeKey, Room, Seq};
    use crate::replica::batch::{Author, Draft};
    use crate::replica::clock::Hlc;
    use crate::replica::event::Kept;

    fn batch(seq: u64) -> Exported {
        let key = NodeKey::from_bytes(&[1; 32]);
        let origin = key.run(Epoch(1));
        let author = Author { key: &key, origin, name: "ada", first: Seq(seq), hlc: Hlc::at(seq), previous: [0; 32] };
        Exported(Kept { batch: author.encode(&[Draft::new(Room::lobby(), "hi")]), arrived_ms: 1_769_860_800_123 })
    }

    fn file(batches: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = ArchiveWriter::begin("lab", &mut out);
        (1..=batches).for_each(|seq| writer.record(&batch(seq), &mut out));
        writer.end(&mut out);
        out
    }

    fn read(file: &[u8], piece: usize) -> (Vec<Exported>, Result<(), ArchiveError>) {
        let (mut reader, mut found) = (ArchiveReader::new(), Vec::new());
        for piece in file.chunks(piece) {
            reader.push(piece);
            loop {
                match reader.read() {
                    Ok(Some(batch)) => found.push(batch),
                    Ok(None) => break,
                    Err(error) => return (found, Err(error)),
                }
            }
        }
        (found, reader.finish())
    }

    #[test]
    fn what_is_written_is_read_in_whatever_pieces_it_comes() {
        let file = file(3);
        for piece in [1, 7, 100, file.len()] {
            assert_eq!(read(&file, piece), (vec![batch(1), batch(2), batch(3)], Ok(())), "{piece}");
        }
        assert_eq!(read(&self::file(0), 5), (vec![], Ok(())));
    }

    #[test]
    fn the_bytes_stay_what_they_are() {
        let file = file(1);
        assert_eq!(&file[..17], b"hubless-log\n\x01\x03lab");
        let len = batch(1).bytes().len();
        assert_eq!(file[25..29], (len as u32).to_le_bytes());
        assert_eq!(file[29..37], 1_769_860_800_123u64.to_le_bytes());
        assert_eq!(file[37..37 + len], **batch(1).bytes());
        assert_eq!(file[37 + len + 8..37 + len + 20], [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(file.len(), 37 + len + 8 + 20);
        assert_eq!(blake3::hash(&file).to_hex()[..16], *"b093361efbef8684");
    }

    #[test]
    fn a_flipped_bit_is_noticed_wherever_it_is_and_what_was_before_it_is_given() {
        let file = file(2);
        let first = 25 + RECORD_HEAD_BYTES + batch(1).bytes().len() + CHECK_BYTES;
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 1 << (at % 8);
            let (found, done) = read(&damaged, 64);
            assert!(done.is_err(), "byte {at}");
            assert!(found.iter().zip([batch(1), batch(2)]).all(|(found, sound)| *found == sound), "byte {at}");
            assert!(at < first || !found.is_empty(), "byte {at}");
            if (25..first).contains(&at) && !matches!(at, 25..29) {
                assert_eq!(done, Err(ArchiveError::Damaged { at: 25 }), "byte {at}");
            }
        }
    }

    #[test]
    fn a_file_that_is_cut_or_goes_on_is_noticed() {
        let file = file(2);
        for len in 0..file.len() {
            let expected = if len < MAGIC.len() { ArchiveError::Foreign } else { ArchiveError::Cut { at: len as u64 } };
            assert_eq!(read(&file[..len], 64).1, Err(expected), "{len}");
        }
        let longer = [&file[..], b"\n"].concat();
        assert_eq!(read(&longer, 64).1, Err(ArchiveError::Damaged { at: file.len() as u64 }));
    }

    #[test]
    fn other_files_and_newer_ones_are_named() {
        assert_eq!(read(b"{\"messages\":[]}", 4), (vec![], Err(ArchiveError::Foreign)));
        let mut newer = file(1);
        newer[12] = 2;
        assert_eq!(read(&newer, 64), (vec![], Err(ArchiveError::Newer { found: 2 })));
        let mut long = file(1);
        long[25..29].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(read(&long, 64), (vec![], Err(ArchiveError::Damaged { at: 25 })));
    }
}
