//! Shard patterns in, the sorted list of the pool's shards out.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::Error;
use crate::read::ShardFormat;
use crate::settings::ReadSettings;
use crate::storage::Storage;

/// More tasks than this in a stage make its bookkeeping slow.
const TASKS_MAX: usize = 100_000;

/// Of each end of a shard that its fingerprint is made of.
const FINGERPRINT_BYTES: u64 = 1 << 20;

/// The shards offered to a run, sorted by id, and how they are dealt out to tasks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Folder below which shard ids are paths.
    pub root: PathBuf,
    pub shards: Vec<Shard>,
    /// Task t covers the shards from t times this on.
    pub shards_per_task: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Path below the pool's root.
    pub id: String,
    pub size_bytes: u64,
    /// Time of modification, nanoseconds since 1970: checked when the shard is opened, part of no digest.
    pub modified_ns: u64,
    /// The Parquet file of the same name beside a tar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<SidecarFile>,
}

/// A file that adds to what a tar says of its samples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SidecarFile {
    /// Path below the pool's root.
    pub id: String,
    pub size_bytes: u64,
    pub modified_ns: u64,
}

impl Pool {
    /// Finds all shards of the patterns.
    ///
    /// # Errors
    ///
    /// A pattern that matches nothing, a named shard that is not there or is a folder, a shard that is named twice.
    pub fn find(settings: &ReadSettings) -> Result<Pool, Error> {
        let mut paths = Vec::new();
        for entry in &settings.shards {
            for pattern in listed(entry)? {
                paths.extend(expand(&pattern)?);
            }
        }
        paths.sort();
        // one file under two names would be two samples of everything
        let mut targets: Vec<PathBuf> = paths.iter().filter_map(|path| path.canonicalize().ok()).collect();
        targets.sort();
        if let Some(twice) = targets.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::ShardTwice { path: twice[0].clone() });
        }
        if paths.is_empty() {
            return Err(Error::NoShards { pattern: settings.shards.join(" ") });
        }
        let root = match &settings.root {
            Some(root) => absolute(root)?,
            None => common_folder(&paths),
        };
        let storage = Storage::new(&root);
        let mut shards = Vec::with_capacity(paths.len());
        for path in paths {
            let below = path.strip_prefix(&root);
            let below =
                below.map_err(|_| Error::ShardOutsideRoot { path: path.clone(), root: root.clone() })?;
            let id = below.to_str().ok_or_else(|| Error::PathNotUtf8 { path: path.clone() })?.to_owned();
            let (size_bytes, modified_ns) =
                storage.guard(&id)?.ok_or_else(|| Error::ShardMissing { path: path.clone() })?;
            if path.is_dir() {
                return Err(Error::ShardIsFolder { path });
            }
            let sidecar = if settings.sidecar { sidecar_of(&storage, &id)? } else { None };
            shards.push(Shard { id, size_bytes, modified_ns, sidecar });
        }
        // as text, so that the order is the same on every system
        shards.sort_by(|left, right| left.id.cmp(&right.id));
        let shards_per_task = settings.shards_per_task.unwrap_or(shards_per_task(shards.len()));
        Ok(Pool { root, shards, shards_per_task })
    }

    pub fn n_tasks(&self) -> usize {
        self.shards.len().div_ceil(self.shards_per_task)
    }

    /// The shards of one task.
    pub fn shards_of(&self, task: usize) -> &[Shard] {
        let start = task * self.shards_per_task;
        &self.shards[start..(start + self.shards_per_task).min(self.shards.len())]
    }

    /// The task of the shard at this position in the pool.
    pub fn task_of(&self, shard_idx: u32) -> usize {
        shard_idx as usize / self.shards_per_task
    }

    /// Position in the pool of a task's first shard.
    pub fn first_shard_idx(&self, task: usize) -> usize {
        task * self.shards_per_task
    }

    /// Tells a shard from another of its name and size: the digest of its first and its last MiB, and of its sidecar's.
    pub fn fingerprint(&self, shard: &Shard) -> Result<Digest, Error> {
        let storage = self.storage();
        let mut ends = Vec::new();
        let beside = shard.sidecar.iter().map(|beside| (&beside.id, beside.size_bytes));
        for (id, size_bytes) in std::iter::once((&shard.id, shard.size_bytes)).chain(beside) {
            let n_bytes = size_bytes.min(FINGERPRINT_BYTES);
            for offset in [0, size_bytes - n_bytes] {
                ends.extend_from_slice(&storage.read_range(id, offset, n_bytes)?);
            }
        }
        Ok(Digest::of_bytes(&ends))
    }

    pub fn storage(&self) -> Storage {
        Storage::new(&self.root)
    }

    pub fn size_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.size_bytes).sum()
    }
}

/// Shards of a task where the settings do not say.
pub fn shards_per_task(n_shards: usize) -> usize {
    n_shards.div_ceil(TASKS_MAX)
}

fn sidecar_of(storage: &Storage, shard: &str) -> Result<Option<SidecarFile>, Error> {
    let Some(id) = ShardFormat::sidecar_of(shard) else { return Ok(None) };
    let guard = storage.guard(&id)?;
    Ok(guard.map(|(size_bytes, modified_ns)| SidecarFile { id, size_bytes, modified_ns }))
}

/// The patterns that an entry of the settings stands for: those in the file after an `@`, a line each, or itself.
fn listed(entry: &str) -> Result<Vec<String>, Error> {
    let Some(path) = entry.strip_prefix('@') else { return Ok(vec![entry.to_owned()]) };
    let text =
        std::fs::read_to_string(path).map_err(|source| Error::ReadSetting { path: path.into(), source })?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

/// The absolute paths of one pattern: braces first, as the webdataset tools write them, then globs.
pub(super) fn expand(pattern: &str) -> Result<Vec<PathBuf>, Error> {
    let pattern = pattern.strip_prefix("file://").unwrap_or(pattern);
    if let Some((scheme, _)) = pattern.split_once("://") {
        return Err(Error::RemoteShards { pattern: pattern.to_owned(), scheme: scheme.to_owned() });
    }
    let expanded = webdataset::braceexpand::braceexpand(pattern)
        .map_err(|_| Error::ShardPattern { pattern: pattern.to_owned() })?;
    let mut paths = Vec::new();
    for path in expanded {
        if !path.contains(['*', '?', '[']) {
            paths.push(absolute(Path::new(&path))?);
            continue;
        }
        let matches = glob::glob(&path).map_err(|_| Error::ShardPattern { pattern: pattern.to_owned() })?;
        let n_before = paths.len();
        for found in matches {
            let found = found.map_err(|e| Error::Read { path: e.path().to_owned(), source: e.into() })?;
            paths.push(absolute(&found)?);
        }
        if paths.len() == n_before {
            return Err(Error::NoShards { pattern: path });
        }
    }
    Ok(paths)
}

/// The path made absolute. Links are not followed: a link's name, not its target's, says what the shard is.
fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// The longest folder that holds all of the sorted paths.
pub(super) fn common_folder(paths: &[PathBuf]) -> PathBuf {
    let first = paths[0].parent().expect("a file has a folder");
    let last = paths[paths.len() - 1].parent().expect("a file has a folder");
    first.components().zip(last.components()).take_while(|(l, r)| l == r).map(|(l, _)| l).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool_of(patterns: &[&str]) -> Result<Pool, Error> {
        let settings = serde_json::from_value(serde_json::json!({ "shards": patterns })).unwrap();
        Pool::find(&settings)
    }

    #[test]
    fn the_order_of_the_list_changes_nothing_and_mistakes_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        for name in ["a/00.tar", "a/01.tar", "b/00.tar"] {
            std::fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            std::fs::write(root.join(name), name).unwrap();
        }
        let at = |pattern: &str| format!("{}/{pattern}", root.display());
        let pool = pool_of(&[&at("b/*.tar"), &at("a/{00..01}.tar")]).unwrap();
        let ids: Vec<&str> = pool.shards.iter().map(|shard| shard.id.as_str()).collect();
        assert_eq!(ids, ["a/00.tar", "a/01.tar", "b/00.tar"]);
        assert_eq!(pool, pool_of(&[&at("a/0?.tar"), &at("b/00.tar")]).unwrap());
        assert!(matches!(pool_of(&[&at("a/{00..02}.tar")]), Err(Error::ShardMissing { .. })));
        assert!(matches!(pool_of(&[&at("c/*.tar")]), Err(Error::NoShards { .. })));
        assert!(matches!(pool_of(&[&at("a/*.tar"), &at("a/00.tar")]), Err(Error::ShardTwice { .. })));
        std::os::unix::fs::symlink(root.join("a/00.tar"), root.join("a/02.tar")).unwrap();
        assert!(matches!(pool_of(&[&at("a/*.tar")]), Err(Error::ShardTwice { .. })));
        assert!(matches!(pool_of(&[]), Err(Error::NoShards { .. })));
        assert!(matches!(pool_of(&[&at("a")]), Err(Error::ShardIsFolder { .. })));
    }
}
