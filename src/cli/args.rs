//! Raw arguments, as clap reads them.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::executor::Part;

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
    /// Checks everything and does nothing: shards, models, sizes, memory, disk.
    Plan {
        #[command(flatten)]
        pipeline: PipelineArgs,
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
    /// Shows what of a run is done.
    Status {
        run: PathBuf,
        #[arg(long)]
        json: bool,
    },
    /// Reads every committed file again and checks it against its marker.
    Verify { run: PathBuf },
    /// Drops the markers of damaged files and of all that was made from them.
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
    /// Shows what this machine offers: runtime library, devices, threads; with a model, whether it runs.
    Doctor {
        /// A model folder to load and run once.
        #[arg(long)]
        model: Option<PathBuf>,
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
