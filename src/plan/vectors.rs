//! Settings of precomputed embeddings in, which file holds those of each shard out.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::embed::ModelKind;
use crate::error::Error;
use crate::npy::{NpyError, with_array};
use crate::settings::PrecomputedSettings;
use crate::storage::Storage;

use super::pool::{Pool, common_folder, expand};

/// Embeddings that were made before, a row for each sample of a shard, rejected ones included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedVectors {
    pub settings: PrecomputedSettings,
    pub image: Option<VectorFiles>,
    pub text: Option<VectorFiles>,
}

/// The files of one tower, one for each shard of the pool, in its order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VectorFiles {
    pub files: Vec<VectorFile>,
    /// The array in each file, where the files are `.npz`.
    pub array: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VectorFile {
    pub path: PathBuf,
    pub size_bytes: u64,
    /// Checked when the file is opened; part of the model digest, since the values are not read before they are used.
    pub modified_ns: u64,
}

impl PlannedVectors {
    /// Finds the files of both towers.
    ///
    /// # Errors
    ///
    /// More or fewer files than shards, or one whose name says that it belongs to another shard.
    pub(super) fn find(settings: &PrecomputedSettings, pool: &Pool) -> Result<PlannedVectors, Error> {
        let of = |tower: &Option<String>| match (tower, &settings.npz) {
            (Some(array), Some(pattern)) => VectorFiles::find(pattern, Some(array.clone()), pool).map(Some),
            (Some(pattern), None) => VectorFiles::find(pattern, None, pool).map(Some),
            (None, _) => Ok(None),
        };
        let (image, text) = (of(&settings.image)?, of(&settings.text)?);
        Ok(PlannedVectors { settings: settings.clone(), image, text })
    }

    pub fn kind(&self) -> ModelKind {
        match (&self.image, &self.text) {
            (Some(_), None) => ModelKind::Image,
            (None, _) => ModelKind::Text,
            (Some(_), Some(_)) => ModelKind::Pair,
        }
    }

    fn towers(&self) -> impl Iterator<Item = &VectorFiles> {
        self.image.iter().chain(&self.text)
    }

    /// Values of an embedding, the same for both towers, by the files of the first shard.
    pub(super) fn width(&self) -> Result<usize, Error> {
        let mut widths = Vec::new();
        for tower in self.towers() {
            let file = &tower.files[0];
            let width = file.read(tower.array.as_deref(), |rows| Ok(rows.n_cols()))?;
            if widths.first().is_some_and(|first| *first != width) {
                let source = NpyError::Width { found: width, expected: widths[0] };
                return Err(Error::Vectors { path: file.path.clone(), source });
            }
            widths.push(width);
        }
        Ok(widths[0])
    }

    /// The folder that holds them all.
    pub(super) fn folder(&self) -> PathBuf {
        let mut paths: Vec<PathBuf> =
            self.towers().flat_map(|tower| &tower.files).map(|file| file.path.clone()).collect();
        paths.sort();
        common_folder(&paths)
    }

    /// Paths, sizes, times of modification and arrays: what changes when the embeddings do.
    pub(super) fn description(&self) -> serde_json::Value {
        let files = |tower: &VectorFiles| -> Vec<(PathBuf, u64, u64)> {
            tower.files.iter().map(|file| (file.path.clone(), file.size_bytes, file.modified_ns)).collect()
        };
        let towers = [&self.image, &self.text];
        serde_json::json!(towers.map(|tower| tower.as_ref().map(|tower| (files(tower), &tower.array))))
    }
}

impl VectorFiles {
    fn find(pattern: &str, array: Option<String>, pool: &Pool) -> Result<VectorFiles, Error> {
        let mut paths = expand(pattern)?;
        // as text, as shards are: by component, `a/0` would come before `a-b/0`
        paths.sort_by(|left, right| left.as_os_str().cmp(right.as_os_str()));
        if paths.len() != pool.shards.len() {
            let (n_files, n_shards) = (paths.len(), pool.shards.len());
            return Err(Error::VectorFiles { pattern: pattern.to_owned(), n_files, n_shards });
        }
        let mut files = Vec::with_capacity(paths.len());
        for (path, shard) in paths.into_iter().zip(&pool.shards) {
            if !is_of_shard(&path, Path::new(&shard.id)) {
                return Err(Error::VectorFileOfOther { path, shard: shard.id.clone() });
            }
            let guard = Storage::new(&path).guard("")?;
            let (size_bytes, modified_ns) =
                guard.ok_or_else(|| Error::ShardMissing { path: path.clone() })?;
            files.push(VectorFile { path, size_bytes, modified_ns });
        }
        Ok(VectorFiles { files, array })
    }
}

impl VectorFile {
    /// Reads the file's rows, if it is still the one that the plan saw.
    pub fn read<T>(
        &self,
        array: Option<&str>,
        read: impl FnOnce(&mut crate::npy::Rows<&mut dyn std::io::Read>) -> Result<T, NpyError>,
    ) -> Result<T, Error> {
        if Storage::new(&self.path).guard("")? != Some((self.size_bytes, self.modified_ns)) {
            return Err(Error::ShardChanged { path: self.path.clone() });
        }
        let file =
            File::open(&self.path).map_err(|source| Error::Read { path: self.path.clone(), source })?;
        let fault = |source| Error::Vectors { path: self.path.clone(), source };
        with_array(BufReader::new(file), array, read).map_err(fault)
    }
}

/// Whether the names do not say that a file belongs to another shard: the stems are equal, or end in the same number, or
/// one of them in none. `img_emb_0012.npy` belongs to `metadata_0012.parquet`.
fn is_of_shard(file: &Path, shard: &Path) -> bool {
    let stem = |path: &Path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.split('.').next().unwrap_or_default().to_owned()
    };
    let number = |stem: &str| -> String {
        let digits = stem.chars().rev().take_while(char::is_ascii_digit);
        digits.collect::<Vec<_>>().into_iter().rev().skip_while(|digit| *digit == '0').collect()
    };
    let (file, shard) = (stem(file), stem(shard));
    let has_number = |stem: &str| stem.ends_with(|letter: char| letter.is_ascii_digit());
    file == shard || !has_number(&file) || !has_number(&shard) || number(&file) == number(&shard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_which_shard_a_file_belongs_to() {
        let is_of = |file: &str, shard: &str| is_of_shard(Path::new(file), Path::new(shard));
        assert!(is_of("img_emb/img_emb_0012.npy", "metadata/metadata_0012.parquet"));
        assert!(is_of("img_emb_7.npy", "metadata_007.parquet"));
        assert!(is_of("0a1b.npz", "0a1b.parquet"));
        assert!(is_of("image.npy", "00000.parquet"));
        assert!(!is_of("img_emb_10.npy", "metadata_2.parquet"));
    }
}
