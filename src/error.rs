//! Why a run could not go on: what we were doing, with what, and what the user can do about it.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;

use parquet::errors::ParquetError;

use crate::divide::{CentroidsError, FitError};
use crate::embed::{ModelError, ModelKind};
use crate::export::ExportError;
use crate::npy::NpyError;
use crate::read::NoColumn;
use crate::run_folder::PLAN;
use crate::runtime::{DeviceError, pin};
use crate::select::CalibrationError;
use crate::settings::{ModelRole, SettingsError};
use crate::setup::SetupError;

/// A run that cannot go on. A bad sample is a [`Rejection`](crate::rejection::Rejection) instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use pipeline file `{path}`")]
    Settings { path: PathBuf, source: Box<SettingsError> },
    #[error("cannot use assumptions `{path}`")]
    Assumptions { path: PathBuf, source: Box<SettingsError> },
    #[error("cannot use shard pattern `{pattern}`")]
    ShardPattern { pattern: String },
    #[error("cannot read shards over `{scheme}`: `{pattern}`")]
    RemoteShards { pattern: String, scheme: String },
    #[error("cannot read samples from shard `{shard}`")]
    ShardColumns { shard: String, source: NoColumn },
    #[error("`{pattern}` names {n_files} files of embeddings, but the pool has {n_shards} shards")]
    VectorFiles { pattern: String, n_files: usize, n_shards: usize },
    #[error("embeddings `{path}` do not seem to be those of shard `{shard}`, which comes in their place")]
    VectorFileOfOther { path: PathBuf, shard: String },
    #[error("cannot use embeddings `{path}`")]
    Vectors { path: PathBuf, source: NpyError },
    #[error("embeddings `{path}` have {n_rows} rows, but shard `{shard}` has {n_samples} samples")]
    VectorRows { path: PathBuf, n_rows: u64, shard: String, n_samples: u64 },
    #[error("no file matches `{pattern}`")]
    NoShards { pattern: String },
    #[error("there is no shard `{path}`")]
    ShardMissing { path: PathBuf },
    #[error("`{path}` is a folder, and no shard")]
    ShardIsFolder { path: PathBuf },
    #[error("`{path}` lies in the place of a run's output, and no marker names it")]
    ForeignFile { path: PathBuf },
    #[error("`{folder}` is a run of another version of this program: its format is {format_version}")]
    FormatVersion { folder: PathBuf, format_version: u32 },
    #[error("shard `{path}` is named twice")]
    ShardTwice { path: PathBuf },
    #[error("shard `{path}` is not below the pool's root `{root}`")]
    ShardOutsideRoot { path: PathBuf, root: PathBuf },
    #[error("path `{path}` is not UTF-8")]
    PathNotUtf8 { path: PathBuf },
    #[error("shard `{path}` is not the one that the plan saw: its size or time of modification differs")]
    ShardChanged { path: PathBuf },
    #[error("model `{folder}` is not the one that the plan saw: a file that decides embeddings differs")]
    ModelChanged { folder: PathBuf },
    #[error("cannot read shard `{shard}`")]
    Shard { shard: String, source: io::Error },
    #[error("shard `{shard}` gave other samples than the first time")]
    NotReproduced { shard: String },
    #[error("a table names shard `{shard}`, which the plan does not")]
    UnknownShard { shard: String },
    #[error("cannot load model `{folder}`")]
    Model { folder: PathBuf, source: ModelError },
    #[error("model `{folder}`, the {model}, is of kind `{kind}`, but must be {wanted}")]
    ModelKind { model: ModelRole, folder: PathBuf, kind: ModelKind, wanted: &'static str },
    #[error("no file of model `{folder}`, the {model}, states its logit scale")]
    ScaleMissing {
        model: ModelRole,
        folder: PathBuf,
        /// The linear value that training began with, if a file says so.
        initial: Option<f64>,
    },
    #[error("model `{folder}`, the {model}, has no logit bias, which the sigmoid objective needs")]
    BiasMissing { model: ModelRole, folder: PathBuf },
    #[error("the precomputed embeddings of the {model} have no `{key}`, which the draw's loss needs")]
    PrecomputedLogit { model: ModelRole, key: &'static str },
    #[error("cannot find the ONNX Runtime library")]
    RuntimeMissing { searched: Vec<PathBuf> },
    #[error("cannot load the ONNX Runtime library `{path}`")]
    RuntimeLoad { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("cannot install ONNX Runtime")]
    Setup { source: Box<SetupError> },
    #[error("cannot use device `{device}`")]
    Device { device: String, source: Box<DeviceError> },
    #[error("cannot run the {tower} tower of model `{folder}`")]
    Inference { tower: &'static str, folder: PathBuf, source: ort::Error },
    #[error("{what} takes {needed_bytes} bytes, more than `memory_limit_bytes` = {limit_bytes} allows")]
    MemoryLimit { what: &'static str, needed_bytes: u64, limit_bytes: u64 },
    #[error("the disk of `{path}` has {free_bytes} bytes free, but the run needs about {needed_bytes}")]
    DiskSpace { path: PathBuf, needed_bytes: u64, free_bytes: u64 },
    #[error("`{folder}` holds the run of another plan")]
    OtherPlan { folder: PathBuf, differences: Vec<String> },
    #[error("store `{folder}` holds the samples of another pool, or read with other limits")]
    StoreOfAnotherPool { folder: PathBuf },
    #[error("store `{folder}` holds the samples of another shard `{shard}`, of the same size")]
    StoreOfAnotherShard { folder: PathBuf, shard: String },
    #[error("`{folder}` was given another plan by another run")]
    Replanned { folder: PathBuf },
    #[error("the runs `{left}` and `{right}` are of different pools")]
    OtherPool { left: PathBuf, right: PathBuf },
    #[error("`{folder}` is not a run folder: it has no `plan.json`")]
    NotARun { folder: PathBuf },
    #[error("`{folder}` is not a run folder, and no pool is named to compare two models on")]
    ComparedWithoutPool { folder: PathBuf },
    #[error("{} shards have no embeddings: {}", shards.len(), first_of(shards))]
    NotEmbedded { shards: Vec<String> },
    #[error("task {task} of `{stage}` is not committed")]
    NotCommitted { stage: String, task: usize },
    #[error(
        "{n_missing} tasks of `{stage}` are left to other parts, and none of them was committed for a while"
    )]
    OtherParts { stage: String, n_missing: usize },
    #[error("no sample could be embedded")]
    NothingEmbedded,
    #[error("cannot fit logit scale and bias of the {model} to the pool")]
    Calibrate { model: ModelRole, source: CalibrationError },
    #[error("there is no `models.expert_{cluster}` for cluster {cluster}")]
    ExpertMissing { cluster: u32 },
    #[error("there is no cluster {cluster} for `models.expert_{cluster}`")]
    ExpertWithoutCluster { cluster: u32 },
    #[error("`{folder}` is not complete, which a run must be before its next round")]
    RunIncomplete { folder: PathBuf },
    #[error("the run has no `models.learner`, whose next checkpoint a round scores with")]
    NoLearner,
    #[error("the run's clusters are of its learner's embeddings, which a new checkpoint changes")]
    DividedByLearner,
    #[error("the experts' embeddings differ in kind or width")]
    ExpertsDiffer,
    #[error("cannot use target embeddings `{path}`")]
    Targets { path: PathBuf, source: NpyError },
    #[error("no sample came to the draw")]
    NothingScored,
    #[error("cannot export the run")]
    Export { source: ExportError },
    #[error("cannot fit centroids")]
    Fit { source: FitError },
    #[error("cannot take the centroids of `{path}`")]
    Centroids { path: PathBuf, source: CentroidsError },
    #[error("two attempts at task {task} of `{stage}` gave different bytes")]
    Diverged { stage: String, task: usize },
    #[error("`{path}` is damaged: it is not what its marker says")]
    Damaged { path: PathBuf },
    #[error("`{path}` is not valid JSON of this format version")]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("`{path}`, line {line}, is not `shard,key`")]
    Planted { path: PathBuf, line: usize },
    #[error("cannot read file `{path}`")]
    ReadSetting { path: PathBuf, source: io::Error },
    #[error("cannot read `{path}`")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write `{path}`")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read Parquet file `{path}`")]
    ReadParquet { path: PathBuf, source: ParquetError },
    #[error("cannot write Parquet file `{path}`")]
    WriteParquet { path: PathBuf, source: ParquetError },
    #[error("`{path}` holds nothing that can be shown")]
    NothingToShow { path: PathBuf },
    #[error("no sample of `{path}` has the key `{key}`")]
    KeyMissing { path: PathBuf, key: String },
    #[error("{n_wrong} files of `{folder}` are damaged or named by no marker")]
    VerifyFailed { folder: PathBuf, n_wrong: usize },
}

/// Lines of a message about two plans.
const DIFFERENCES_SHOWN: usize = 20;

impl Error {
    /// The error, its causes and its hint, a line each.
    pub fn message(&self) -> String {
        let mut lines = vec![format!("error: {self}")];
        let mut cause = self.source();
        while let Some(source) = cause {
            lines.push(format!("  caused by: {source}"));
            cause = source.source();
        }
        lines.extend(self.hint().map(|hint| format!("hint: {hint}")));
        lines.join("\n")
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Settings { .. } => {
                "`pipelines/README.md` lists every table and key".to_owned()
            }
            Error::Assumptions { .. } => "`benches/billion.toml` is an example with every key".to_owned(),
            Error::ForeignFile { .. } => "move it away, or choose another folder".to_owned(),
            Error::FormatVersion { .. } => "choose another folder; it is read by the version that made it".to_owned(),
            Error::ExpertWithoutCluster { .. } => {
                "raise `divide.n_clusters`, or leave out the expert".to_owned()
            }
            Error::ShardIsFolder { path } => {
                format!("`{0}/*.tar` names the tars of a folder, `{0}/*.parquet` its tables", path.display())
            }
            Error::NothingToShow { .. } => {
                "shown are run folders, shards and Parquet files; `superbatch doctor --model FOLDER` shows a model".to_owned()
            }
            Error::ReadSetting { .. } => {
                "paths are relative to the current folder; those of a run to the folder that it was started in".to_owned()
            }
            Error::Json { path, .. } if path.ends_with(PLAN) => {
                "remove it; `superbatch run PIPELINE.toml -o RUN` makes it again and keeps what was done under it"
                    .to_owned()
            }
            Error::Json { .. } => {
                "`superbatch repair RUN` drops what cannot be read; the run makes it again".to_owned()
            }
            Error::Diverged { .. } => {
                "`superbatch repair RUN`, then run again on one kind of machine; if it comes back, report it"
                    .to_owned()
            }
            Error::NoShards { .. } | Error::ShardMissing { .. } => {
                "paths are relative to the current folder".to_owned()
            }
            Error::RemoteShards { .. } => {
                "only local files are read yet: copy the shards, or mount their store".to_owned()
            }
            Error::ShardColumns { .. } => {
                "name the column in `read.image_column` or `read.caption_column`; for rows without images set \
                 `read.samples = \"text\"`"
                    .to_owned()
            }
            Error::VectorFiles { .. } | Error::VectorFileOfOther { .. } | Error::VectorRows { .. } => {
                "each shard of the pool needs one file of each tower, with a row for every sample, in the order of \
                 the names"
                    .to_owned()
            }
            Error::ShardTwice { .. } => "take one of the patterns out of `read.shards`".to_owned(),
            Error::ModelChanged { .. } => "run with `--replan` to take the model as it is now".to_owned(),
            Error::ShardChanged { .. } => "run with `--replan` to take the shards as they are now".to_owned(),
            Error::Shard { .. } => "fetch the shard again, or take it out of `read.shards`".to_owned(),
            Error::ModelKind { .. } => {
                "`kind` in its `model.toml` says what of a folder is taken: \"pair\", \"image\", \"text\" or \
                 \"classifier\""
                    .to_owned()
            }
            Error::ScaleMissing { model, initial, .. } => {
                let initial = initial.map(|scale| {
                    format!(
                        "; the {scale:.4} that its configuration leads to is only what training began with"
                    )
                });
                format!(
                    "state `logit_scale` in its `model.toml`, the linear value, exp of what the checkpoint stores; or \
                     set `calibrate = true` in `[models.{model}]` to fit it to the pool{}",
                    initial.unwrap_or_default()
                )
            }
            Error::BiasMissing { model, .. } => format!(
                "set `calibrate = true` in `[models.{model}]` to fit it to the pool, or `objective = \"softmax\"` in \
                 `[select]`, or state `logit_bias` in its `model.toml`"
            ),
            Error::PrecomputedLogit { model, key } => format!(
                "state `{key}` in `precomputed` of `[models.{model}]`, or set `calibrate = true` there to fit it to the pool"
            ),
            Error::RuntimeMissing { searched } => {
                let places: Vec<String> = searched.iter().map(|path| path.display().to_string()).collect();
                format!(
                    "`superbatch setup` fetches it (or: pip install {}), or set `SUPERBATCH_ONNXRUNTIME` to its path; \
                     searched {}",
                    pin("onnxruntime").requirement,
                    places.join(", ")
                )
            }
            Error::RuntimeLoad { .. } => "version 1.24 or later is needed".to_owned(),
            Error::Setup { source } => source.hint(),
            Error::Device { source, .. } => source.hint(),
            Error::MemoryLimit { .. } => {
                "raise `memory_limit_bytes`, or lower `super_batch_size`, `batch_size` or `n_clusters`".to_owned()
            }
            Error::DiskSpace { .. } => "free some space, or choose another folder with `-o`".to_owned(),
            Error::OtherPlan { differences, .. } => format!(
                "use another folder, or `--replan` to keep the stages that are unchanged; it differs in\n  {}{}",
                differences[..differences.len().min(DIFFERENCES_SHOWN)].join("\n  "),
                match differences.len().saturating_sub(DIFFERENCES_SHOWN) {
                    0 => String::new(),
                    n_more => format!("\n  and {n_more} more"),
                }
            ),
            Error::Replanned { .. } => "only one run of a folder may `--replan` at a time; run again when it is done".to_owned(),
            Error::StoreOfAnotherPool { .. } | Error::StoreOfAnotherShard { .. } => "give each pool a `store` of its own".to_owned(),
            Error::OtherPool { .. } => {
                "runs are compared sample by sample: both need the same shards and the same `read.shards_per_task`"
                    .to_owned()
            }
            Error::DividedByLearner => {
                "divide by `reference` or by a `base` model in a run that is to have rounds".to_owned()
            }
            Error::RunIncomplete { .. } => "`superbatch run` goes on where it stopped".to_owned(),
            Error::ComparedWithoutPool { .. } => {
                "name the shards whose samples both models are to embed with `--pool SHARDS`".to_owned()
            }
            Error::NotARun { .. } => "`superbatch run PIPELINE.toml -o RUN` makes one".to_owned(),
            Error::NotEmbedded { .. } => {
                "`superbatch embed` or `run` goes on with them; shards that cannot be read may be left out with \
                 `read.failed_shards_max`"
                    .to_owned()
            }
            Error::NotCommitted { .. } => "`superbatch run` does every stage that is missing".to_owned(),
            Error::OtherParts { .. } => "start the other parts, or run without `--tasks`".to_owned(),
            Error::NothingEmbedded | Error::NothingScored => {
                "`rejection` in `samples/` and `embeddings/` says why a sample was left out; `read.bounds` and the steps before \
                 the draw may take out all"
                    .to_owned()
            }
            Error::ExpertMissing { .. } => {
                "every cluster of `divide.n_clusters` needs its expert; without experts `models.reference` stands for all"
                    .to_owned()
            }
            Error::Export { source } => return source.hint(),
            Error::Fit { .. } => "lower `divide.n_clusters`".to_owned(),
            Error::Centroids { .. } => {
                "`divide.centroids` takes the `divide/centroids.parquet` of a run with the same model; leave it out to \
                 fit centroids"
                    .to_owned()
            }
            Error::Damaged { .. } | Error::VerifyFailed { .. } => {
                "`superbatch repair RUN` drops damaged files and what was made from them; then run again"
                    .to_owned()
            }
            error if error.is_storage_full() => {
                "free some space; the run goes on where it stopped".to_owned()
            }
            Error::Model { source, .. } => return source.hint(),
            _ => return None,
        };
        Some(hint)
    }

    /// Whether trying again may help: input and output, never settings or damaged files.
    pub fn may_pass(&self) -> bool {
        match self {
            Error::Shard { .. } => true,
            Error::Read { source, .. } | Error::Write { source, .. } => !matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
            ),
            _ => false,
        }
    }

    /// Whether there was no room on the disk.
    fn is_storage_full(&self) -> bool {
        let io_error = match self {
            Error::Write { source, .. } => Some(source),
            Error::WriteParquet { source: ParquetError::External(source), .. } => source.downcast_ref(),
            _ => None,
        };
        io_error.is_some_and(|error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        })
    }

    /// Whether the settings are at fault, and not the run.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Error::Settings { .. }
                | Error::Assumptions { .. }
                | Error::ReadSetting { .. }
                | Error::Planted { .. }
                | Error::Fit { .. }
                | Error::Centroids { .. }
                | Error::ShardPattern { .. }
                | Error::NoShards { .. }
                | Error::VectorFiles { .. }
                | Error::VectorFileOfOther { .. }
                | Error::Vectors { .. }
                | Error::VectorRows { .. }
                | Error::RemoteShards { .. }
                | Error::ShardColumns { .. }
                | Error::ShardMissing { .. }
                | Error::ShardIsFolder { .. }
                | Error::ForeignFile { .. }
                | Error::FormatVersion { .. }
                | Error::ExpertWithoutCluster { .. }
                | Error::ShardTwice { .. }
                | Error::ShardOutsideRoot { .. }
                | Error::PathNotUtf8 { .. }
                | Error::Model { .. }
                | Error::ModelKind { .. }
                | Error::ScaleMissing { .. }
                | Error::BiasMissing { .. }
                | Error::PrecomputedLogit { .. }
                | Error::ExpertMissing { .. }
                | Error::ExpertsDiffer
                | Error::Export { .. }
                | Error::NoLearner
                | Error::DividedByLearner
                | Error::RunIncomplete { .. }
                | Error::Targets { .. }
                | Error::RuntimeMissing { .. }
                | Error::RuntimeLoad { .. }
                | Error::Device { .. }
                | Error::MemoryLimit { .. }
                | Error::DiskSpace { .. }
                | Error::OtherPlan { .. }
                | Error::StoreOfAnotherPool { .. }
                | Error::StoreOfAnotherShard { .. }
                | Error::OtherPool { .. }
                | Error::NotARun { .. }
                | Error::ComparedWithoutPool { .. }
                | Error::NothingToShow { .. }
                | Error::KeyMissing { .. }
        )
    }
}

/// The first names of a list that may be long.
pub fn first_of(shards: &[String]) -> String {
    let mut first: Vec<&str> = shards.iter().take(3).map(String::as_str).collect();
    if shards.len() > first.len() {
        first.push("…");
    }
    first.join(", ")
}
