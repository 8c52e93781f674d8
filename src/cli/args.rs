//! Raw arguments, as clap reads them.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::compare::ModelName;
use crate::error::Error;
use crate::executor::Part;
use crate::export::{Export, ExportError, SHARD_BYTES};
use crate::runtime::Device;
use crate::settings::{DEFAULT_MEMORY_LIMIT_BYTES, ModelRole};

/// Curates image-text pools: keeps the part of a pool that teaches.
///
/// Exit codes: 0 done, 1 run failed, 2 usage or configuration, 3 too many rejections, 130 interrupted.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
pub struct Args {
    /// Write logs as JSON, a line each.
    #[arg(long, global = true)]
    pub log_json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Does every stage of a pipeline; goes on where an earlier run stopped.
    Run(StageArgs),
    /// Checks everything and does nothing: shards, models, sizes, memory, disk; bytes, operations and seconds of each stage.
    Plan {
        #[command(flatten)]
        pipeline: PipelineArgs,
        /// Take the size of the pool and the speed of models and nodes from a file, such as `benches/billion.toml`.
        #[arg(long, value_name = "FILE")]
        assume: Option<PathBuf>,
        #[arg(long)]
        json: bool,
    },
    /// Reads the shards and embeds their samples with every model.
    Embed(StageArgs),
    /// Clusters the pool and measures how hard each sample's negatives are.
    Divide(StageArgs),
    /// Scores and draws.
    Select(StageArgs),
    /// Writes the curated shards and the statistics.
    Write(StageArgs),
    /// Writes the report.
    Report(StageArgs),
    /// Scores and selects anew with the next checkpoint of the learner, into RUN/rounds/NNN.
    ///
    /// Clusters and the embeddings of every other model are kept; the report compares the rounds. Each round draws with
    /// noise of its own, so even the same checkpoint keeps other samples.
    Round {
        run: PathBuf,
        /// The folder of the new checkpoint, or a folder and one of its exports: `models/a@fp16`.
        #[arg(long, value_name = "DIR")]
        learner: String,
        /// Where models run, as `device` in a pipeline file.
        #[arg(long, default_value = "auto")]
        device: Device,
        /// As in a pipeline file.
        #[arg(long, default_value_t = DEFAULT_MEMORY_LIMIT_BYTES)]
        memory_limit_bytes: u64,
    },
    /// Shows what of a run is done, and its rounds.
    Status {
        run: PathBuf,
        #[arg(long)]
        json: bool,
    },
    /// Reads every committed file again and checks it against its marker.
    Verify { run: PathBuf },
    /// Drops what cannot be read, the markers of damaged files and of all that was made from them.
    Repair { run: PathBuf },
    /// Drops what no later stage needs and what an interrupted run left.
    Clean { run: PathBuf },
    /// Shows what a tar, a Parquet file or a run holds, or why a sample was kept.
    Inspect {
        path: PathBuf,
        /// The sample with this key.
        #[arg(long)]
        key: Option<String>,
        #[arg(long)]
        json: bool,
    },
    /// Fetches the pinned ONNX Runtime library with pip, for an installed binary.
    Setup {
        /// The build with CUDA, and the libraries of CUDA that are missing.
        #[arg(long)]
        cuda: bool,
        /// The Python interpreter whose pip fetches.
        #[arg(long, default_value = "python3")]
        python: String,
    },
    /// Compares two runs of one pool, or, with --pool, two models on its samples.
    ///
    /// A model is a folder, or a folder and one of its exports: `models/a@fp16`.
    Compare(CompareArgs),
    /// Writes the kept samples of a finished run as another tool reads them, into a folder that is empty or not there yet.
    Export(ExportArgs),
    /// Shows what this machine offers: runtime library, GPUs, threads; with a model, whether and how fast it runs.
    Doctor {
        /// A model to load and time: a folder, or a folder and one of its exports, `models/a@fp16`.
        #[arg(long)]
        model: Option<ModelName>,
        /// Time the model with several sessions, threads and rows at once, and suggest settings.
        #[arg(long, requires = "model")]
        bench: bool,
        /// Where the model runs, as `device` in a pipeline file.
        #[arg(long, default_value = "auto", requires = "model")]
        device: Device,
    },
}

#[derive(clap::Args)]
pub struct PipelineArgs {
    /// The pipeline file.
    pub pipeline: PathBuf,
    /// Sets one value of the pipeline file, as in `--set select.step.0.filter_ratio=0.5`.
    #[arg(long, value_name = "TABLE.KEY=VALUE")]
    pub set: Vec<String>,
}

#[derive(clap::Args)]
pub struct StageArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// The run folder.
    #[arg(short, long, value_name = "RUN")]
    pub output: PathBuf,
    /// Accept settings other than the run folder's: redo what they change, keep the rest.
    #[arg(long)]
    pub replan: bool,
    /// Do only this part of each stage's tasks, for job arrays: those with remainder I by N.
    #[arg(long, value_name = "I/N")]
    pub tasks: Option<Part>,
    /// With `--tasks`: how long to wait for other parts without any of their tasks being committed.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub wait_secs: u64,
}

#[derive(clap::Args)]
pub struct ExportArgs {
    /// The run folder.
    pub run: PathBuf,
    /// What is written.
    #[arg(long)]
    pub to: ExportFormat,
    /// The folder that is written.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// With `webdataset` and `clusters`: a tar ends with the sub-batch in which it reaches this size; 512 MiB if not given.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..=1 << 50))]
    pub shard_bytes: Option<u64>,
    /// With `clip-retrieval`: whose embeddings; `reference` if not given.
    #[arg(long, value_name = "NAME")]
    pub model: Option<ModelRole>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum ExportFormat {
    /// `subset.npy`: the sorted uids, for DataComp's resharder.
    Datacomp,
    /// Tars with the original images, in curated order.
    Webdataset,
    /// Embeddings as `.npy` and the columns as Parquet.
    ClipRetrieval,
    /// A folder of tars for each cluster.
    Clusters,
}

impl ExportArgs {
    /// What the arguments ask for.
    pub fn export(&self) -> Result<Export, Error> {
        let shard_bytes = self.shard_bytes.unwrap_or(SHARD_BYTES);
        let model = self.model.unwrap_or(ModelRole::Reference);
        let (export, format) = match self.to {
            ExportFormat::Datacomp => (Export::DataComp, "datacomp"),
            ExportFormat::Webdataset => (Export::WebDataset { shard_bytes }, "webdataset"),
            ExportFormat::ClipRetrieval => (Export::ClipRetrieval { model }, "clip-retrieval"),
            ExportFormat::Clusters => (Export::Clusters { shard_bytes }, "clusters"),
        };
        let cuts = matches!(self.to, ExportFormat::Webdataset | ExportFormat::Clusters);
        let embeds = matches!(self.to, ExportFormat::ClipRetrieval);
        let stray = [
            ("--shard-bytes", self.shard_bytes.is_some() && !cuts),
            ("--model", self.model.is_some() && !embeds),
        ];
        match stray.into_iter().find(|(_, is_stray)| *is_stray) {
            Some((option, _)) => Err(ExportError::Option { option, format }.into()),
            None => Ok(export),
        }
    }
}

#[derive(clap::Args)]
pub struct CompareArgs {
    /// A run folder or a model.
    pub left: String,
    /// Another of the same kind.
    pub right: String,
    /// Shards to compare two models on; more than one pattern may be given.
    #[arg(long, value_name = "SHARDS")]
    pub pool: Vec<String>,
    /// Samples of the pool that both models embed at most.
    #[arg(long, default_value_t = 1000, value_name = "N", requires = "pool")]
    pub samples: usize,
    /// Where the models run, as `device` in a pipeline file.
    #[arg(long, default_value = "auto", requires = "pool")]
    pub device: Device,
    #[arg(long)]
    pub json: bool,
}
