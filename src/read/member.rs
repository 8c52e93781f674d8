//! A tar's bytes in, its regular members out: headers, long names and sizes, nothing of samples.
//!
//! The header fields are read by crate `tar`; the walk is ours, since `tar::Archive` borrows itself (so it
//! cannot stand in an iterator) and reads long-name and pax records of any size into memory. Where the two
//! could differ, this walk does as Python's `tarfile` does in stream mode: the archive ends at its first zero
//! block or at its last byte.

use std::io::{self, Read};

use tar::{EntryType, Header};

use super::decompress::is_corrupt;

const BLOCK_BYTES: u64 = 512;

/// A long-name or pax record over this size breaks the shard. Linux paths end at 4 KiB; pax records of
/// writers that store extended attributes stay well below.
const RECORD_BYTES_MAX: u64 = 1 << 20;

/// Why no further member can be read.
#[derive(Debug)]
pub(super) enum MemberError {
    /// The bytes are not, or no longer, a tar: a property of the shard.
    Broken,
    /// The bytes could not be fetched: a property of this attempt.
    Read(io::Error),
}

impl From<io::Error> for MemberError {
    fn from(error: io::Error) -> MemberError {
        if is_corrupt(&error) { MemberError::Broken } else { MemberError::Read(error) }
    }
}

/// A regular member whose header was read and whose data come next.
#[derive(Debug)]
pub(super) struct Member {
    pub path: String,
    /// Where its data begin, in bytes from the start of the tar.
    pub offset: u64,
    pub size: u64,
}

/// The members of a tar, one after another.
pub(super) struct Members<R> {
    reader: R,
    /// Bytes read so far.
    position: u64,
    /// Data of the current member that were not read yet, and the padding after them.
    unread: u64,
    padding: u64,
    is_empty: bool,
}

/// What records before a member say about it.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<R: Read> Members<R> {
    pub fn new(reader: R) -> Members<R> {
        Members { reader, position: 0, unread: 0, padding: 0, is_empty: true }
    }

    /// The next regular member; skips what is left of the current one. Directories, links, devices and sparse
    /// files are passed over.
    pub fn next(&mut self) -> Result<Option<Member>, MemberError> {
        let mut extensions = Extensions::default();
        let mut is_extended = false;
        loop {
            self.finish_member()?;
            let Some(block) = self.header_block()? else {
                // a record that describes a member which never comes
                return if is_extended { Err(MemberError::Broken) } else { Ok(None) };
            };
            let header = Header::from_byte_slice(&block);
            let size = header.entry_size().map_err(|_| MemberError::Broken)?;
            let kind = header.entry_type();
            match kind {
                EntryType::GNULongName | EntryType::XHeader => {
                    let record = self.record(size)?;
                    match kind {
                        EntryType::GNULongName => extensions.path = Some(until_nul(record)),
                        _ => extensions.read_pax(&record)?,
                    }
                    is_extended = true;
                    continue;
                }
                EntryType::GNULongLink => is_extended = true,
                _ => {}
            }
            // A record's own data are never resized by a pax record before it; a member's are.
            let is_record = matches!(kind, EntryType::GNULongLink | EntryType::XGlobalHeader);
            let size = if is_record { size } else { extensions.size.unwrap_or(size) };
            self.begin_data(size)?;
            if is_record {
                continue;
            }
            if kind.is_gnu_sparse() {
                self.skip_sparse_map(header)?;
            }
            if matches!(kind, EntryType::Regular | EntryType::Continuous) && !is_directory(header) {
                let path = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
                let path = String::from_utf8_lossy(&path).into_owned();
                return Ok(Some(Member { path, offset: self.position, size }));
            }
            extensions = Extensions::default();
            is_extended = false;
        }
    }

    /// Reads the data of the member that [`next`](Members::next) gave. Memory grows with the bytes that
    /// arrive, not with the size that the header claims.
    pub fn data(&mut self) -> Result<Vec<u8>, MemberError> {
        let mut data = Vec::with_capacity(self.unread.min(RECORD_BYTES_MAX) as usize);
        let n_read = (&mut self.reader).take(self.unread).read_to_end(&mut data)? as u64;
        self.position += n_read;
        self.unread -= n_read;
        if self.unread > 0 { Err(MemberError::Broken) } else { Ok(data) }
    }

    fn record(&mut self, size: u64) -> Result<Vec<u8>, MemberError> {
        if size > RECORD_BYTES_MAX {
            return Err(MemberError::Broken);
        }
        self.begin_data(size)?;
        self.data()
    }

    fn begin_data(&mut self, size: u64) -> Result<(), MemberError> {
        let end = size.checked_next_multiple_of(BLOCK_BYTES).ok_or(MemberError::Broken)?;
        self.position.checked_add(end).ok_or(MemberError::Broken)?;
        self.unread = size;
        self.padding = end - size;
        Ok(())
    }

    /// Skips the rest of the current member. Data that end early break the shard; padding that is cut off
    /// after complete data does not: the next header is then simply not there.
    fn finish_member(&mut self) -> Result<(), MemberError> {
        let n_unread = std::mem::take(&mut self.unread);
        let n_padding = std::mem::take(&mut self.padding);
        if self.skip(n_unread)? < n_unread {
            return Err(MemberError::Broken);
        }
        self.skip(n_padding)?;
        Ok(())
    }

    fn skip(&mut self, n_bytes: u64) -> Result<u64, MemberError> {
        let n_skipped = io::copy(&mut (&mut self.reader).take(n_bytes), &mut io::sink())?;
        self.position += n_skipped;
        Ok(n_skipped)
    }

    /// A block whose checksum is right, or nothing at the end of the archive.
    fn header_block(&mut self) -> Result<Option<[u8; 512]>, MemberError> {
        let Some(block) = self.block()? else {
            // A file without a single byte is no tar; a tar may end after a member.
            return if self.is_empty { Err(MemberError::Broken) } else { Ok(None) };
        };
        self.is_empty = false;
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(i, &b)| if (148..156).contains(&i) { 32 } else { u32::from(b) })
            .sum();
        match Header::from_byte_slice(&block).cksum() {
            Ok(stated) if stated == sum => Ok(Some(block)),
            _ => Err(MemberError::Broken),
        }
    }

    fn block(&mut self) -> Result<Option<[u8; 512]>, MemberError> {
        let mut block = [0; BLOCK_BYTES as usize];
        let mut n_read = 0;
        while n_read < block.len() {
            match self.reader.read(&mut block[n_read..]) {
                Ok(0) => break,
                Ok(n) => n_read += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.position += n_read as u64;
        match n_read as u64 {
            0 => Ok(None),
            BLOCK_BYTES => Ok(Some(block)),
            _ => Err(MemberError::Broken),
        }
    }

    /// Passes over the blocks that continue a sparse file's map; they stand before its data and are not in
    /// its size.
    fn skip_sparse_map(&mut self, header: &Header) -> Result<(), MemberError> {
        let mut is_continued = header.as_gnu().is_some_and(|gnu| gnu.is_extended());
        while is_continued {
            let block = self.block()?.ok_or(MemberError::Broken)?;
            is_continued = block[504] == 1; // `isextended` of a GNU sparse continuation block
        }
        Ok(())
    }
}

impl Extensions {
    /// Reads pax records `<length> <keyword>=<value>\n`, where the length counts the whole record; values may
    /// hold newlines, which is why the records are not split at them.
    fn read_pax(&mut self, mut records: &[u8]) -> Result<(), MemberError> {
        while records.first().is_some_and(|&byte| byte != 0) {
            let (record, rest) = split_pax_record(records).ok_or(MemberError::Broken)?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or(MemberError::Broken)?;
            let value = &record[equals + 1..];
            match &record[..equals] {
                b"path" => self.path = Some(value.to_vec()),
                b"size" => {
                    let digits = std::str::from_utf8(value).map_err(|_| MemberError::Broken)?;
                    self.size = Some(digits.parse().map_err(|_| MemberError::Broken)?);
                }
                _ => {}
            }
            records = rest;
        }
        Ok(())
    }
}

/// `keyword=value` of the first record, and the records after it.
fn split_pax_record(records: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = records.iter().position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
    let record = records.get(..length)?;
    let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
    Some((body, &records[length..]))
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len()));
    bytes
}

/// Old tars mark a directory by a regular entry whose name ends in a slash.
fn is_directory(header: &Header) -> bool {
    header.path_bytes().ends_with(b"/")
}
