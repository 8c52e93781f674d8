//! A finished run in; its kept samples in the form that another tool reads, out.
//!
//! ```text
//! datacomp         subset.npy                                          uids, for DataComp's resharder
//! webdataset       00000.tar … sizes.json                              the samples in curated order
//! clip-retrieval   img_emb/ text_emb/ metadata/                        embeddings of one model, and the columns
//! clusters         cluster_00000/00000.tar … clusters.json             a folder of tars a cluster, for its expert
//! ```
//!
//! The folder must be empty or absent. Its files get their names when all are written, so an export that was stopped leaves
//! nothing that looks finished, and can be started again.

mod folder;
mod kept;
mod images;
mod tars;
mod datacomp;
mod webdataset;
mod clip_retrieval;
mod clusters;

use std::path::Path;

use crate::error::Error;
use crate::run_folder::RunFolder;
use crate::settings::ModelRole;

use folder::ExportFolder;
use kept::Kept;

pub use tars::SHARD_BYTES;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Export {
    DataComp,
    /// Tars are cut at this many bytes.
    WebDataset {
        shard_bytes: u64,
    },
    /// The embeddings of this model.
    ClipRetrieval {
        model: ModelRole,
    },
    /// Tars are cut at this many bytes.
    Clusters {
        shard_bytes: u64,
    },
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Kept samples; one that was kept more than once is one.
    pub n_samples: u64,
    /// Rows or groups of members that stand for them: as many, but in DataComp's subset one a draw.
    pub n_rows: u64,
    /// Files with samples.
    pub n_files: u64,
}

/// Why a run cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("folder `{folder}` is not empty")]
    NotEmpty { folder: std::path::PathBuf },
    #[error("the run kept no sample")]
    NothingKept,
    #[error("{n_missing} of {n_kept} kept samples have no `uid` of 32 hexadecimal digits")]
    UidsMissing { n_missing: u64, n_kept: u64 },
    #[error("the run has no clusters")]
    NoClusters,
    #[error("the pool has no images")]
    NoImages,
    #[error("`models.{model}` is a classifier, which gives losses of classes and no embeddings")]
    Classifier { model: ModelRole },
    #[error("the run has no embeddings of all samples under `models.{model}`")]
    NoEmbeddings { model: ModelRole },
    #[error("the run holds no images, and shard `{shard}` is no plain tar in which they can be found again")]
    ImagesLost { shard: String },
    #[error("`{option}` has no meaning for `--to {format}`")]
    Option { option: &'static str, format: &'static str },
}

impl ExportError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            ExportError::NotEmpty { .. } => "name a folder that is empty or not there yet",
            ExportError::UidsMissing { .. } => {
                "DataComp names samples by the field `uid` of their JSON members; `--to webdataset` needs none"
            }
            ExportError::NoClusters => "a `[divide]` table in the pipeline file makes them",
            ExportError::NoImages => "`--to datacomp` and `--to clip-retrieval` need none",
            ExportError::NoEmbeddings { .. } => "`--model` takes `learner`, `reference` or `base`",
            ExportError::ImagesLost { .. } => "run again with `write.images = true` and `--replan`",
            ExportError::Classifier { .. } => "`--to webdataset` takes the images and labels of any run",
            ExportError::NothingKept | ExportError::Option { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

impl From<ExportError> for Error {
    fn from(source: ExportError) -> Error {
        Error::Export { source }
    }
}

/// Writes the kept samples of a run into a folder.
///
/// # Memory
///
/// One curated shard; `datacomp` 16 bytes a draw; `clip-retrieval` a gibibyte of embeddings.
///
/// # Errors
///
/// A run whose curated shards are not all committed, a folder that is not empty, and what [`ExportError`] says.
pub fn export(run: &RunFolder, export: Export, folder: &Path) -> Result<Exported, Error> {
    let kept = Kept::of(run)?;
    let folder = ExportFolder::open(folder)?;
    let exported = match export {
        Export::DataComp => datacomp::export(&kept, folder.storage())?,
        Export::WebDataset { shard_bytes } => webdataset::export(&kept, folder.storage(), shard_bytes)?,
        Export::ClipRetrieval { model } => clip_retrieval::export(&kept, folder.storage(), model)?,
        Export::Clusters { shard_bytes } => clusters::export(&kept, folder.storage(), shard_bytes)?,
    };
    folder.finish()?;
    Ok(exported)
}
