//! A protobuf file in, its fields one after another out, without reading what is passed over.
//!
//! The bytes are foreign: every length is checked against the message that it stands in, and nothing is allocated for
//! more bytes than a caller allows.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

/// Why a graph file is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("cannot read it")]
    Read(#[from] io::Error),
    #[error("it is no protobuf: {0}")]
    Malformed(&'static str),
    #[error("its {what} are more than {max}")]
    TooMany { what: &'static str, max: u64 },
}

/// Where a message lies in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: u64,
    pub end: u64,
}

impl Span {
    pub fn len(self) -> u64 {
        self.end - self.start
    }
}

/// What a field holds; a message, text or packed numbers are a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    Varint(u64),
    Fixed32(u32),
    Fixed64(u64),
    Bytes(Span),
}

impl Value {
    /// The span of a message, text or bytes.
    pub fn span(self) -> Result<Span, WireError> {
        match self {
            Value::Bytes(span) => Ok(span),
            _ => Err(WireError::Malformed("a number stands where a message should")),
        }
    }

    /// The whole number, as protobuf's `int32`, `int64` and enums are written.
    pub fn integer(self) -> Result<i64, WireError> {
        match self {
            Value::Varint(value) => Ok(value as i64),
            _ => Err(WireError::Malformed("something else stands where a whole number should")),
        }
    }
}

/// A protobuf file that is read forwards, with jumps.
pub struct Wire {
    reader: BufReader<File>,
    position: u64,
    size: u64,
}

impl Wire {
    pub fn open(path: &Path) -> Result<Wire, WireError> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        Ok(Wire { reader: BufReader::new(file), position: 0, size })
    }

    /// The whole file as one message.
    pub fn all(&self) -> Span {
        Span { start: 0, end: self.size }
    }

    /// The next field of a message, its number first, from `at` on; `at` moves behind it.
    pub fn field(&mut self, message: Span, at: &mut u64) -> Result<Option<(u32, Value)>, WireError> {
        if *at >= message.end {
            return Ok(None);
        }
        self.seek(*at)?;
        let key = self.varint(message.end)?;
        let number =
            u32::try_from(key >> 3).map_err(|_| WireError::Malformed("a field number is too large"))?;
        if number == 0 {
            return Err(WireError::Malformed("a field has the number 0"));
        }
        let value = match key & 7 {
            0 => Value::Varint(self.varint(message.end)?),
            1 => Value::Fixed64(u64::from_le_bytes(self.array(message.end)?)),
            2 => {
                let length = self.varint(message.end)?;
                let start = self.position;
                let end = start.checked_add(length).filter(|&end| end <= message.end);
                let end = end.ok_or(WireError::Malformed("a field is longer than what it stands in"))?;
                *at = end;
                return Ok(Some((number, Value::Bytes(Span { start, end }))));
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.array(message.end)?)),
            _ => return Err(WireError::Malformed("a field has a type that there is not")),
        };
        *at = self.position;
        Ok(Some((number, value)))
    }

    /// The bytes of a span that may hold so many at most.
    pub fn bytes(&mut self, span: Span, what: &'static str, bytes_max: u64) -> Result<Vec<u8>, WireError> {
        if span.len() > bytes_max {
            return Err(WireError::TooMany { what, max: bytes_max });
        }
        self.seek(span.start)?;
        let mut bytes = vec![0; span.len() as usize];
        self.reader.read_exact(&mut bytes)?;
        self.position = span.end;
        Ok(bytes)
    }

    /// The text of a span.
    pub fn text(&mut self, span: Span, bytes_max: u64) -> Result<String, WireError> {
        let bytes = self.bytes(span, "bytes of a name", bytes_max)?;
        String::from_utf8(bytes).map_err(|_| WireError::Malformed("a name is not UTF-8"))
    }

    /// Calls `take` with each of the packed varints of a span.
    pub fn packed(&mut self, span: Span, mut take: impl FnMut(u64)) -> Result<(), WireError> {
        self.seek(span.start)?;
        while self.position < span.end {
            take(self.varint(span.end)?);
        }
        Ok(())
    }

    fn seek(&mut self, position: u64) -> Result<(), WireError> {
        // sizes of files fit in i64
        self.reader.seek_relative(position as i64 - self.position as i64)?;
        self.position = position;
        Ok(())
    }

    fn varint(&mut self, end: u64) -> Result<u64, WireError> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let [byte] = self.array(end)?;
            // the tenth byte holds one bit
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(WireError::Malformed("a number is longer than 64 bits"))
    }

    fn array<const N: usize>(&mut self, end: u64) -> Result<[u8; N], WireError> {
        if self.position + N as u64 > end {
            return Err(WireError::Malformed("a message ends in the middle of a field"));
        }
        let mut bytes = [0; N];
        // the file may have been cut since its size was taken
        if self.reader.fill_buf()?.is_empty() {
            return Err(WireError::Malformed("the file ends in the middle of a field"));
        }
        self.reader.read_exact(&mut bytes)?;
        self.position += N as u64;
        Ok(bytes)
    }
}
