//! A file in, ranges of its bytes for the Parquet reader out; remembers whether the disk failed or the file lied.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

/// A file that is read in ranges. No range reaches past its end, so that no size that the file states is allocated before
/// it is known to be true.
#[derive(Clone)]
pub(crate) struct StoredFile {
    file: Arc<File>,
    n_bytes: u64,
    fault: Arc<Mutex<Option<io::Error>>>,
}

impl StoredFile {
    pub fn new(file: File) -> io::Result<StoredFile> {
        let n_bytes = file.metadata()?.len();
        Ok(StoredFile { file: Arc::new(file), n_bytes, fault: Arc::default() })
    }

    /// The error of a read that failed, which the Parquet reader passes on as a text only.
    pub fn take_fault(&self) -> Option<io::Error> {
        self.fault.lock().expect("no thread panics with the lock").take()
    }
}

impl Length for StoredFile {
    fn len(&self) -> u64 {
        self.n_bytes
    }
}

impl ChunkReader for StoredFile {
    type T = BufReader<Range>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<BufReader<Range>> {
        Ok(BufReader::new(Range { stored: self.clone(), position: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.n_bytes) {
            return Err(ParquetError::EOF(format!("{length} bytes from {start} on are not in the file")));
        }
        let mut bytes = vec![0; length];
        Range { stored: self.clone(), position: start }.read_exact(&mut bytes)?;
        Ok(bytes.into())
    }
}

/// The bytes of a file from a position on.
pub(crate) struct Range {
    stored: StoredFile,
    position: u64,
}

impl Read for Range {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.stored.file.read_at(buffer, self.position) {
            Ok(n) => {
                self.position += n as u64;
                Ok(n)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let text = io::Error::new(error.kind(), error.to_string());
                *self.stored.fault.lock().expect("no thread panics with the lock") = Some(error);
                Err(text)
            }
        }
    }
}
