//! The one door to shards and run files: stream, read, write whole, create if absent, list, remove.
//!
//! A file appears under its name complete or not at all: it is written under a hidden temporary name beside it,
//! synced, renamed, and its folder synced. Paths are relative to a root and use `/`, so that an object store can
//! stand where a folder stands.

use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::Error;

/// What the name of every unfinished file starts with; `clean` removes them.
pub const UNFINISHED_PREFIX: &str = ".unfinished-";

/// A folder that holds shards or a run.
#[derive(Clone, Debug)]
pub struct Storage {
    root: PathBuf,
}

/// A committed file, as its marker names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Path below the root.
    pub name: String,
    pub size_bytes: u64,
    pub digest: Digest,
}

impl Storage {
    pub fn new(root: impl Into<PathBuf>) -> Storage {
        Storage { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn path(&self, name: &str) -> PathBuf {
        // joined with nothing a file would get a slash at its end
        if name.is_empty() { self.root.clone() } else { self.root.join(name) }
    }

    /// Opens a file to be read from its start to its end.
    pub fn stream(&self, name: &str) -> Result<File, Error> {
        let path = self.path(name);
        File::open(&path).map_err(|source| Error::Read { path, source })
    }

    /// Reads a whole file.
    pub fn read(&self, name: &str) -> Result<Bytes, Error> {
        let path = self.path(name);
        fs::read(&path).map(Bytes::from).map_err(|source| Error::Read { path, source })
    }

    /// Reads a whole file, or nothing where there is none.
    pub fn read_if_present(&self, name: &str) -> Result<Option<Bytes>, Error> {
        let path = self.path(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(Bytes::from(bytes))),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Read { path, source }),
        }
    }

    /// Reads the bytes from `offset` on.
    pub fn read_range(&self, name: &str, offset: u64, size_bytes: u64) -> Result<Bytes, Error> {
        use std::os::unix::fs::FileExt;
        let path = self.path(name);
        let read = || {
            let mut bytes = vec![0; size_bytes as usize];
            File::open(&path)?.read_exact_at(&mut bytes, offset)?;
            Ok(Bytes::from(bytes))
        };
        read().map_err(|source| Error::Read { path: path.clone(), source })
    }

    /// Reads a whole file that a marker names, and checks it against the marker.
    pub fn read_recorded(&self, record: &FileRecord) -> Result<Bytes, Error> {
        let bytes = self.read(&record.name)?;
        if bytes.len() as u64 != record.size_bytes || Digest::of_bytes(&bytes) != record.digest {
            return Err(Error::Damaged { path: self.path(&record.name) });
        }
        Ok(bytes)
    }

    /// The digest of a file's bytes as they are now, read in pieces.
    pub fn digest(&self, name: &str) -> Result<Digest, Error> {
        let mut file = self.stream(name)?;
        let mut hasher = blake3::Hasher::new();
        let mut piece = vec![0; 1 << 20];
        loop {
            match file.read(&mut piece) {
                Ok(0) => return Ok(Digest::from_hash(&hasher.finalize())),
                Ok(n) => drop(hasher.update(&piece[..n])),
                Err(source) => return Err(Error::Read { path: self.path(name), source }),
            }
        }
    }

    /// Locks a file, which is made if there is none, against others who do, as long as the handle lives; waits while another
    /// has it. Where the file system knows no locks, all get it.
    pub fn lock(&self, name: &str) -> Result<File, Error> {
        let file = self.lock_file(name)?;
        let _ = file.lock();
        Ok(file)
    }

    /// [`Storage::lock`] without waiting: nothing where another has it.
    pub fn try_lock(&self, name: &str) -> Result<Option<File>, Error> {
        let file = self.lock_file(name)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Ok(None),
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Some(file)),
        }
    }

    fn lock_file(&self, name: &str) -> Result<File, Error> {
        let path = self.path(name);
        let folder = path.parent().expect("a name below a root has a folder");
        let open = || {
            fs::create_dir_all(folder)?;
            File::options().create(true).append(true).open(&path)
        };
        open().map_err(|source| Error::Write { path: path.clone(), source })
    }

    /// The size of a file, or nothing where there is none.
    pub fn size_bytes(&self, name: &str) -> Result<Option<u64>, Error> {
        Ok(self.metadata(name)?.map(|metadata| metadata.len()))
    }

    /// The size of a file, and its time of modification in nanoseconds since 1970.
    pub fn guard(&self, name: &str) -> Result<Option<(u64, u64)>, Error> {
        Ok(self.metadata(name)?.map(|metadata| {
            let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            (metadata.len(), modified.map_or(0, |since| since.as_nanos() as u64))
        }))
    }

    fn metadata(&self, name: &str) -> Result<Option<fs::Metadata>, Error> {
        let path = self.path(name);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Read { path, source }),
        }
    }

    /// Starts a file; nothing is seen under `name` before [`PendingFile::commit`].
    pub fn create(&self, name: &str) -> Result<PendingFile, Error> {
        let path = self.path(name);
        let folder = path.parent().expect("a name below a root has a folder").to_owned();
        let write_error = |source| Error::Write { path: path.clone(), source };
        fs::create_dir_all(&folder).map_err(write_error)?;
        // random, since processes on several machines may write into one folder
        let unfinished = folder.join(format!("{UNFINISHED_PREFIX}{}", attempt()));
        let file = File::create_new(&unfinished).map_err(write_error)?;
        Ok(PendingFile {
            name: name.to_owned(),
            path,
            unfinished,
            file: BufWriter::with_capacity(1 << 20, file),
            hasher: blake3::Hasher::new(),
            size_bytes: 0,
        })
    }

    /// Writes a whole file, in place of one of that name.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<FileRecord, Error> {
        let mut file = self.create(name)?;
        file.write_all(bytes).map_err(|source| Error::Write { path: self.path(name), source })?;
        file.commit()
    }

    /// Writes a whole file unless there is one of that name; says whether it did.
    pub fn create_if_absent(&self, name: &str, bytes: &[u8]) -> Result<bool, Error> {
        let mut file = self.create(name)?;
        file.write_all(bytes).map_err(|source| Error::Write { path: self.path(name), source })?;
        file.commit_if_absent()
    }

    /// The names of the finished files directly in a folder, sorted; none where there is no folder.
    pub fn list(&self, folder: &str) -> Result<Vec<String>, Error> {
        let path = self.path(folder);
        let list = || -> io::Result<Vec<String>> {
            let mut names = Vec::new();
            for member in fs::read_dir(&path)? {
                let member = member?;
                let name = member.file_name().to_string_lossy().into_owned();
                if member.file_type()?.is_file() && !name.starts_with(UNFINISHED_PREFIX) {
                    names.push(name);
                }
            }
            names.sort();
            Ok(names)
        };
        match list() {
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            listed => listed.map_err(|source| Error::Read { path: path.clone(), source }),
        }
    }

    /// The names of all files below a folder, unfinished ones too, sorted.
    pub fn list_all(&self, folder: &str) -> Result<Vec<String>, Error> {
        let path = self.path(folder);
        let read_error = |source| Error::Read { path: path.clone(), source };
        let members = match fs::read_dir(&path) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            members => members.map_err(read_error)?,
        };
        let mut names = Vec::new();
        for member in members {
            let member = member.map_err(read_error)?;
            let name = join(folder, &member.file_name().to_string_lossy());
            if member.file_type().map_err(read_error)?.is_dir() {
                names.extend(self.list_all(&name)?);
            } else {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Removes a file if it is there.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Write { path, source }),
            _ => Ok(()),
        }
    }
}

/// A text that no other attempt at writing has, on this machine or another.
pub fn attempt() -> String {
    format!("{:016x}", RandomState::new().hash_one(std::process::id()))
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// A file that is being written, with the digest of what was written so far; dropped, it leaves nothing.
#[derive(Debug)]
pub struct PendingFile {
    name: String,
    path: PathBuf,
    unfinished: PathBuf,
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    size_bytes: u64,
}

impl PendingFile {
    /// Gives the file its name, in place of one that has it.
    pub fn commit(mut self) -> Result<FileRecord, Error> {
        self.sync().and_then(|()| fs::rename(&self.unfinished, &self.path)).map_err(|e| self.error(e))?;
        self.sync_folder()?;
        Ok(FileRecord { name: self.name.clone(), size_bytes: self.size_bytes, digest: self.digest() })
    }

    /// Path below the root of the name that it will have.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Of what was written so far.
    pub fn digest(&self) -> Digest {
        Digest::from_hash(&self.hasher.finalize())
    }

    /// Gives the file its name unless one has it; says whether it did.
    pub fn commit_if_absent(mut self) -> Result<bool, Error> {
        match self.sync().and_then(|()| fs::hard_link(&self.unfinished, &self.path)) {
            Ok(()) => self.sync_folder().map(|()| true),
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(source) => Err(self.error(source)),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_all()
    }

    fn sync_folder(&self) -> Result<(), Error> {
        let folder = self.path.parent().expect("a name below a root has a folder");
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|source| self.error(source))
    }

    fn error(&self, source: io::Error) -> Error {
        Error::Write { path: self.path.clone(), source }
    }
}

impl Write for PendingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.size_bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        // after a rename there is nothing under this name; after a failure it must not stay
        let _ = fs::remove_file(&self.unfinished);
    }
}
