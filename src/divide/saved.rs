//! Centroids as a file: a run's own in `divide/centroids.parquet`, and those of another run that new shards are
//! assigned to.
//!
//! ```text
//! cluster   u32, 0, 1, …       centroid  unit vector, f32
//! level_1, level_2 …           u32, the cluster of each coarser level in which this one lies, the finest first
//! metadata: model_digest       the model digest of the embeddings that they were fitted on
//!           level_sizes        the clusters of each coarser level, as a JSON list
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, UInt32Type};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::Error;
use crate::matrix::{Matrix, dot};
use crate::plan::PlannedModel;
use crate::settings::{DivideSettings, EmbeddingDtype, ModelRole};
use crate::table::{self, Columns, Rows};

use super::tree::ClusterTree;

const MODEL_DIGEST: &str = "model_digest";
const LEVEL_SIZES: &str = "level_sizes";

/// How far from 1 the squared length of a centroid may be.
const LENGTH_TOLERANCE: f32 = 1e-3;

/// A file of centroids that the plan found fit for its run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedCentroids {
    pub path: PathBuf,
    /// Of the file's bytes.
    pub digest: Digest,
}

/// The centroids of a file, and the levels above them.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedCentroids {
    /// `[n_clusters, d]`, unit rows.
    pub rows: Matrix,
    pub tree: ClusterTree,
    /// The model whose embeddings they were fitted on.
    pub model_digest: String,
    /// Of the file's bytes.
    pub digest: Digest,
}

/// Why a file of centroids cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CentroidsError {
    #[error("it cannot be read")]
    Read { source: std::io::Error },
    #[error("it is no Parquet file that can be read")]
    Parquet { source: ParquetError },
    #[error("it has {size_bytes} bytes, more than a quarter of `memory_limit_bytes`")]
    TooLarge { size_bytes: u64 },
    #[error("it has no column `{column}` as a file of centroids has one")]
    Column { column: String },
    #[error("row {row} is not cluster {row} with a unit vector and a cluster on each level")]
    Row { row: usize },
    #[error("its metadata does not name the model digest that it was made with")]
    NoModelDigest,
    #[error("it was made with model digest `{made_with}`, but that of `models.{role}` is `{digest}`")]
    OtherModel { made_with: String, role: ModelRole, digest: Digest },
    #[error("its centroids have {found} dimensions, but embeddings of `models.{role}` have {expected}")]
    Dimension { found: usize, role: ModelRole, expected: usize },
    #[error("it has {found} centroids, but `divide.n_clusters` is {expected}")]
    NClusters { found: usize, expected: usize },
    #[error("its levels are {found:?}, but `divide.parent_levels` is {expected:?}")]
    Levels { found: Vec<usize>, expected: Vec<usize> },
    #[error("it is not the file that the plan saw")]
    Changed,
}

impl PlannedCentroids {
    /// Checks a file of centroids against the model that is clustered, and takes its numbers of clusters into the
    /// settings.
    ///
    /// # Errors
    ///
    /// A file that is not one of centroids, or one of another model; settings that contradict it.
    pub fn resolve(
        path: &Path,
        settings: &mut DivideSettings,
        model: &PlannedModel,
        memory_limit_bytes: u64,
    ) -> Result<PlannedCentroids, Error> {
        let centroids_error = |source| Error::Centroids { path: path.to_owned(), source };
        let saved = SavedCentroids::read(path, memory_limit_bytes / 4).map_err(centroids_error)?;
        saved.check(settings, model).map_err(centroids_error)?;
        settings.n_clusters = saved.rows.n_rows();
        settings.parent_levels = saved.tree.level_sizes().to_vec();
        let absolute = std::path::absolute(path);
        let path = absolute.map_err(|source| centroids_error(CentroidsError::Read { source }))?;
        Ok(PlannedCentroids { path, digest: saved.digest })
    }

    /// The centroids, as the plan saw them.
    pub fn read(&self) -> Result<SavedCentroids, Error> {
        // the plan has looked at its size
        let saved = SavedCentroids::read(&self.path, u64::MAX);
        let saved = saved.and_then(|saved| match saved.digest == self.digest {
            true => Ok(saved),
            false => Err(CentroidsError::Changed),
        });
        saved.map_err(|source| Error::Centroids { path: self.path.clone(), source })
    }
}

impl SavedCentroids {
    /// Reads and checks a file of centroids of at most so many bytes.
    pub fn read(path: &Path, size_bytes_max: u64) -> Result<SavedCentroids, CentroidsError> {
        let metadata = fs::metadata(path).map_err(|source| CentroidsError::Read { source })?;
        if metadata.len() > size_bytes_max {
            return Err(CentroidsError::TooLarge { size_bytes: metadata.len() });
        }
        let bytes = Bytes::from(fs::read(path).map_err(|source| CentroidsError::Read { source })?);
        let digest = Digest::of_bytes(&bytes);
        let parquet = |source| CentroidsError::Parquet { source };
        let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(parquet)?;
        let (model_digest, level_sizes) = described(&builder)?;
        check_columns(&builder, &level_sizes, size_bytes_max)?;
        let batch = table::read_batches(builder, &[]).map_err(parquet)?;
        check_rows(&batch, &level_sizes)?;
        let rows = Rows(&batch).embeddings("centroid").0;
        let tree = tree_of(&batch, &level_sizes);
        Ok(SavedCentroids { rows, tree, model_digest, digest })
    }

    fn check(&self, settings: &DivideSettings, model: &PlannedModel) -> Result<(), CentroidsError> {
        let role = settings.model;
        let (found, expected) = (self.rows.n_cols(), model.embedding_dim);
        if found != expected {
            return Err(CentroidsError::Dimension { found, role, expected });
        }
        if self.model_digest != model.digest.as_str() {
            let made_with = self.model_digest.clone();
            return Err(CentroidsError::OtherModel { made_with, role, digest: model.digest.clone() });
        }
        let absent = DivideSettings::default();
        let (found, expected) = (self.rows.n_rows(), settings.n_clusters);
        if expected != absent.n_clusters && expected != found {
            return Err(CentroidsError::NClusters { found, expected });
        }
        let (found, expected) = (self.tree.level_sizes(), &settings.parent_levels);
        if *expected != absent.parent_levels && expected != found {
            return Err(CentroidsError::Levels { found: found.to_vec(), expected: expected.clone() });
        }
        Ok(())
    }
}

/// Centroids and their tree as a table, and what the file says of itself.
pub fn centroids_table(
    rows: &Matrix,
    tree: &ClusterTree,
    model_digest: &Digest,
) -> (RecordBatch, [(&'static str, String); 2]) {
    let n_clusters = rows.n_rows();
    let mut columns = Columns::default();
    columns.u32("cluster", (0..n_clusters as u32).map(Some)).embeddings(
        "centroid",
        rows,
        &vec![true; n_clusters],
        EmbeddingDtype::F32,
    );
    let ancestors: Vec<Vec<u32>> =
        (0..n_clusters as u32).map(|cluster| tree.ancestors(cluster).collect()).collect();
    for level in 0..tree.level_sizes().len() {
        columns.u32(&level_column(level), ancestors.iter().map(|above| Some(above[level])));
    }
    let level_sizes = serde_json::to_string(tree.level_sizes()).expect("numbers are JSON");
    (columns.build(), [(MODEL_DIGEST, model_digest.to_string()), (LEVEL_SIZES, level_sizes)])
}

/// The tree that the level columns of a table tell.
pub fn tree_of(batch: &RecordBatch, level_sizes: &[usize]) -> ClusterTree {
    let n_clusters = batch.num_rows();
    let mut tree = ClusterTree::flat(n_clusters);
    let mut below: Vec<u32> = (0..n_clusters as u32).collect();
    for (level, &n_above) in level_sizes.iter().enumerate() {
        let above = Rows(batch).u32(&level_column(level)).values();
        // an empty cluster has no row to name its parent: any will do
        let mut parents = vec![0; tree.n_clusters(level)];
        for (below, above) in below.iter().zip(above) {
            parents[*below as usize] = *above;
        }
        tree.push_level(n_above, parents);
        below = above.to_vec();
    }
    tree
}

fn level_column(level: usize) -> String {
    format!("level_{}", level + 1)
}

/// The model digest and the sizes of the levels, from the metadata.
fn described(
    builder: &ParquetRecordBatchReaderBuilder<Bytes>,
) -> Result<(String, Vec<usize>), CentroidsError> {
    let entries = builder.metadata().file_metadata().key_value_metadata();
    let value = |key: &str| {
        let entry = entries.into_iter().flatten().find(|entry| entry.key == key);
        entry.and_then(|entry| entry.value.clone())
    };
    let model_digest = value(MODEL_DIGEST).ok_or(CentroidsError::NoModelDigest)?;
    let level_sizes = value(LEVEL_SIZES).map_or(Some(Vec::new()), |text| serde_json::from_str(&text).ok());
    let level_sizes = level_sizes.ok_or_else(|| CentroidsError::Column { column: level_column(0) })?;
    Ok((model_digest, level_sizes))
}

/// Checks types and sizes before anything is decoded.
fn check_columns(
    builder: &ParquetRecordBatchReaderBuilder<Bytes>,
    level_sizes: &[usize],
    size_bytes_max: u64,
) -> Result<(), CentroidsError> {
    let of_type = |column: &str, is_type: fn(&DataType) -> bool| {
        let field = builder.schema().field_with_name(column).ok();
        match field.filter(|field| is_type(field.data_type())) {
            Some(field) => Ok(field),
            None => Err(CentroidsError::Column { column: column.to_owned() }),
        }
    };
    let is_u32 = |dtype: &DataType| *dtype == DataType::UInt32;
    of_type("cluster", is_u32)?;
    for level in 0..level_sizes.len() {
        of_type(&level_column(level), is_u32)?;
    }
    let centroid = of_type("centroid", |dtype| {
        matches!(dtype, DataType::FixedSizeList(item, dim)
            if *dim > 0 && matches!(item.data_type(), DataType::Float16 | DataType::Float32))
    })?;
    let DataType::FixedSizeList(_, dim) = centroid.data_type() else { unreachable!("checked above") };
    let n_rows = builder.metadata().file_metadata().num_rows().max(0) as u64;
    match n_rows.saturating_mul(*dim as u64).saturating_mul(4) {
        _ if n_rows == 0 => Err(CentroidsError::Row { row: 0 }),
        size_bytes if size_bytes > size_bytes_max => Err(CentroidsError::TooLarge { size_bytes }),
        // no level has more clusters than the finest
        _ if level_sizes.iter().any(|size| *size as u64 > n_rows) => {
            Err(CentroidsError::Column { column: LEVEL_SIZES.to_owned() })
        }
        _ => Ok(()),
    }
}

/// Checks every value: the rest of the run takes them as they are.
fn check_rows(batch: &RecordBatch, level_sizes: &[usize]) -> Result<(), CentroidsError> {
    let list = batch["centroid"].as_fixed_size_list();
    let is_full = list.null_count() == 0 && list.values().null_count() == 0;
    let rows = if is_full { Rows(batch).embeddings("centroid").0 } else { Matrix::default() };
    let u32s = |column: &str| batch[column].as_primitive::<UInt32Type>();
    let levels: Vec<_> = (0..level_sizes.len()).map(|level| u32s(&level_column(level))).collect();
    // the cluster of the level above that each cluster of a level was said to lie in
    let mut parents: Vec<Vec<Option<u32>>> = level_sizes.iter().map(|size| vec![None; *size]).collect();
    for row in 0..batch.num_rows() {
        let cluster = u32s("cluster");
        let mut is_sound = is_full && cluster.is_valid(row) && cluster.value(row) as usize == row;
        for (level, column) in levels.iter().enumerate() {
            is_sound &= column.is_valid(row) && (column.value(row) as usize) < level_sizes[level];
            if is_sound && let Some(above) = levels.get(level + 1) {
                let parent = parents[level][column.value(row) as usize].get_or_insert(above.value(row));
                is_sound &= *parent == above.value(row);
            }
        }
        // NaN is not within it either
        let is_unit = (dot(rows.row(row), rows.row(row)) - 1.0).abs() < LENGTH_TOLERANCE;
        if !(is_sound && is_unit) {
            return Err(CentroidsError::Row { row });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Storage;

    fn tree() -> ClusterTree {
        let mut tree = ClusterTree::flat(4);
        tree.push_level(3, vec![2, 0, 2, 0]);
        tree.push_level(1, vec![0; 3]);
        tree
    }

    fn rows() -> Matrix {
        Matrix::new(vec![1.0, 0.0, 0.6, 0.8, 0.0, -1.0, -0.8, 0.6], 2)
    }

    /// Writes a table as a file of centroids and reads it back.
    fn written(
        table: &RecordBatch,
        description: &[(&'static str, String)],
    ) -> Result<SavedCentroids, CentroidsError> {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::new(folder.path());
        table::write(&storage, "centroids.parquet", table, description).unwrap();
        SavedCentroids::read(&folder.path().join("centroids.parquet"), 1 << 20)
    }

    #[test]
    fn what_is_written_is_read() {
        let digest = Digest::of_bytes(b"a model");
        let (table, description) = centroids_table(&rows(), &tree(), &digest);
        let saved = written(&table, &description).unwrap();
        assert_eq!((saved.rows, saved.model_digest), (rows(), digest.to_string()));
        // cluster 1 of the first level is empty; its parent may be any
        assert_eq!(saved.tree, tree());
        let (table, description) = centroids_table(&rows(), &ClusterTree::flat(4), &digest);
        assert_eq!(written(&table, &description).unwrap().tree, ClusterTree::flat(4));
    }

    #[test]
    fn what_is_no_table_of_centroids_is_refused() {
        let digest = Digest::of_bytes(b"a model");
        let message = |table: &RecordBatch, description: &[(&'static str, String)]| {
            written(table, description).unwrap_err().to_string()
        };
        let (table, description) = centroids_table(&rows(), &tree(), &digest);
        assert!(message(&table, &description[1..]).contains("model digest"));
        let three_levels = [description[0].clone(), (LEVEL_SIZES, "[3, 1, 1]".to_owned())];
        assert!(message(&table, &three_levels).contains("`level_3`"));
        let too_many = [description[0].clone(), (LEVEL_SIZES, "[9223372036854775807, 1]".to_owned())];
        assert!(message(&table, &too_many).contains(LEVEL_SIZES));
        let too_few = [description[0].clone(), (LEVEL_SIZES, "[2, 1]".to_owned())];
        assert!(message(&table, &too_few).contains("row 0"));

        let without = |column: &str| {
            let kept = (0..table.num_columns()).filter(|idx| table.schema().field(*idx).name() != column);
            table.project(&kept.collect::<Vec<_>>()).unwrap()
        };
        for column in ["cluster", "centroid", "level_1"] {
            assert!(message(&without(column), &description).contains(&format!("`{column}`")));
        }
        assert!(message(&table.slice(1, 3), &description).contains("row 0"), "clusters not from 0 on");
        assert!(message(&table.slice(0, 0), &description).contains("row 0"), "no clusters");

        let mut not_unit = rows();
        not_unit.row_mut(2)[0] = f32::NAN;
        let (table, description) = centroids_table(&not_unit, &tree(), &digest);
        assert!(message(&table, &description).contains("row 2"));
    }

    #[test]
    fn two_parents_of_one_cluster_are_refused() {
        let digest = Digest::of_bytes(b"a model");
        let (_, description) = centroids_table(&rows(), &tree(), &digest);
        let mut columns = Columns::default();
        columns
            .u32("cluster", (0..4).map(Some))
            .embeddings("centroid", &rows(), &[true; 4], EmbeddingDtype::F32)
            .u32("level_1", [2, 0, 2, 0].map(Some))
            .u32("level_2", [0, 0, 1, 0].map(Some));
        let description = [description[0].clone(), (LEVEL_SIZES, "[3, 2]".to_owned())];
        let error = written(&columns.build(), &description).unwrap_err();
        assert!(matches!(error, CentroidsError::Row { row: 2 }), "{error}");
    }

    #[test]
    fn a_file_that_changed_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (table, description) = centroids_table(&rows(), &tree(), &Digest::of_bytes(b"a model"));
        let storage = Storage::new(folder.path());
        let file = table::write(&storage, "centroids.parquet", &table, &description).unwrap();
        let path = folder.path().join("centroids.parquet");
        let planned = PlannedCentroids { path: path.clone(), digest: file.digest };
        assert_eq!(planned.read().unwrap().rows, rows());
        table::write(&storage, "centroids.parquet", &table, &description[..1]).unwrap();
        let error = planned.read().unwrap_err();
        assert!(matches!(error, Error::Centroids { source: CentroidsError::Changed, .. }), "{error}");
        let error = SavedCentroids::read(&path, 10).unwrap_err();
        assert!(matches!(error, CentroidsError::TooLarge { .. }), "{error}");
    }
}
