//! A stored shard in, its samples out, whichever format it has.

use std::fs::File;
use std::io::{self, Read};

use super::columns::{ColumnNames, NoColumn};
use super::decompress::{decompress, is_plain};
use super::group::{ReadSample, Samples};
use super::label::SampleKind;
use super::limits::Limits;
use super::sidecar::Sidecar;
use super::stored_file::StoredFile;
use super::table_shard::TableSamples;

/// What kind of file a shard is; its name says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardFormat {
    /// `.tar`, compressed or not, and everything that is nothing else.
    Tar,
    Parquet,
}

impl ShardFormat {
    pub fn of(shard: &str) -> ShardFormat {
        let extension = shard.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
        match extension.as_deref() {
            Some("parquet" | "pq") => ShardFormat::Parquet,
            _ => ShardFormat::Tar,
        }
    }

    /// The name of the Parquet file that would lie beside a tar of this name: `a/00.tar` has `a/00.parquet`.
    pub fn sidecar_of(shard: &str) -> Option<String> {
        let name = shard.to_ascii_lowercase();
        let endings = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd", ".tzst"];
        let ending = endings.into_iter().find(|ending| name.ends_with(ending))?;
        Some(format!("{}.parquet", &shard[..shard.len() - ending.len()]))
    }
}

/// How shards are read.
#[derive(Clone, Debug, Default)]
pub struct ReadRules {
    pub kind: SampleKind,
    pub limits: Limits,
    pub columns: ColumnNames,
}

/// The samples of a shard, in its order.
pub enum ShardSamples {
    Tar(Box<Samples<Box<dyn Read + Send>>>),
    Parquet(Box<TableSamples>),
}

/// Why a shard's samples cannot be read at all.
#[derive(Debug)]
pub enum ShardError {
    Read(io::Error),
    NoColumn(NoColumn),
}

impl ShardSamples {
    /// Opens a shard by its name, with the file beside it if there is one.
    pub fn open(
        name: &str,
        file: File,
        sidecar: Option<File>,
        rules: &ReadRules,
    ) -> Result<ShardSamples, ShardError> {
        let limits = rules.limits.clone();
        match ShardFormat::of(name) {
            ShardFormat::Tar => {
                let sidecar = match sidecar {
                    Some(file) => StoredFile::new(file).and_then(|file| Sidecar::read(file, &rules.columns)),
                    None => Ok(Sidecar::default()),
                };
                let reader = decompress(name, file).map_err(ShardError::Read)?;
                let samples = Samples::new(reader, limits, is_plain(name)).of_kind(rules.kind.clone());
                let sidecar = sidecar.map_err(ShardError::Read)?;
                Ok(ShardSamples::Tar(Box::new(samples.with_sidecar(sidecar))))
            }
            ShardFormat::Parquet => {
                let file = StoredFile::new(file).map_err(ShardError::Read)?;
                let samples = TableSamples::open(file, &rules.columns, rules.kind.clone(), limits);
                let samples = samples.map_err(ShardError::NoColumn)?.map_err(ShardError::Read)?;
                Ok(ShardSamples::Parquet(Box::new(samples)))
            }
        }
    }
}

impl Iterator for ShardSamples {
    type Item = io::Result<ReadSample>;

    fn next(&mut self) -> Option<io::Result<ReadSample>> {
        match self {
            ShardSamples::Tar(samples) => samples.next(),
            ShardSamples::Parquet(samples) => samples.next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_the_format_and_the_file_beside_it() {
        assert_eq!(ShardFormat::of("a/0.Parquet"), ShardFormat::Parquet);
        assert_eq!(ShardFormat::of("a.parquet/0.tar.gz"), ShardFormat::Tar);
        assert_eq!(ShardFormat::sidecar_of("a/0.tar").as_deref(), Some("a/0.parquet"));
        assert_eq!(ShardFormat::sidecar_of("a/0.TAR.zst").as_deref(), Some("a/0.parquet"));
        assert_eq!(ShardFormat::sidecar_of("a/0.parquet"), None);
    }
}
