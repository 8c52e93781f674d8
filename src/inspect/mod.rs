//! A tar, a Parquet file or a run folder in; what it holds, or all that is known of one of its samples, out.
//!
//! What is shown is foreign text, so that control characters are shown as escapes. Text shows the first samples;
//! JSON shows all of a tar's.

mod row;
mod grid;
mod tar_file;
mod parquet_file;
mod run;
mod story;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Serialize;

use crate::error::Error;
use crate::run_folder::RunFolder;
use crate::storage::Storage;

use parquet_file::{ParquetFile, ParquetRows};
use run::Run;
use story::Stories;
use tar_file::Tar;

/// What was found.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Shown {
    Tar(Tar),
    Parquet(ParquetFile),
    ParquetRows(ParquetRows),
    Run(Run),
    Samples(Stories),
}

impl Shown {
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("what is shown is representable as JSON")
    }

    pub fn text(&self) -> String {
        match self {
            Shown::Tar(tar) => tar.text(),
            Shown::Parquet(file) => file.text(),
            Shown::ParquetRows(rows) => rows.text(),
            Shown::Run(run) => run.text(),
            Shown::Samples(stories) => stories.text(),
        }
    }
}

/// Shows a tar (plain, `.gz`, `.zst`), a Parquet file or a run folder; with a key, its samples of that key.
///
/// # Errors
///
/// [`Error::NothingToShow`] for anything else, [`Error::KeyMissing`] for a key that no sample has.
pub fn inspect(path: &Path, key: Option<&str>) -> Result<Shown, Error> {
    if path.is_dir() {
        let run = RunFolder::open(Storage::new(path)).map_err(|error| match error {
            Error::NotARun { folder } => Error::NothingToShow { path: folder },
            error => error,
        })?;
        return Ok(match key {
            None => Shown::Run(Run::read(&run)?),
            Some(key) => Shown::Samples(Stories::read(&run, key)?),
        });
    }
    let read_error = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read_error)?;
    if is_parquet(&file).map_err(read_error)? {
        return Ok(match key {
            None => Shown::Parquet(ParquetFile::read(path, file)?),
            Some(key) => Shown::ParquetRows(ParquetRows::read(path, file, key)?),
        });
    }
    Tar::read(path, file, key).map(Shown::Tar)
}

/// Whether a file begins as Parquet does; it is left at its start.
fn is_parquet(mut file: &File) -> io::Result<bool> {
    use std::io::Seek;
    let mut magic = Vec::with_capacity(4);
    file.take(4).read_to_end(&mut magic)?;
    file.rewind()?;
    Ok(magic == b"PAR1")
}

#[cfg(test)]
mod tests;
