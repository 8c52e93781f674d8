//! The command line: arguments in, exit code out. Data goes to stdout, everything else to stderr.

mod args;
mod output;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::compare::{self, ModelName, ModelsRequest};
use crate::doctor::{Bench, ExaminedModel};
use crate::embed::{InferenceSettings, SessionSettings};
use crate::error::{Error, first_of};
use crate::estimate::{self, Estimate};
use crate::executor::{Executor, Part};
use crate::export::Exported;
use crate::plan::{Plan, Pool};
use crate::run_folder::{OtherPlan, PLAN, RunFolder};
use crate::runtime::Device;
use crate::settings::{
    Assumptions, DEFAULT_MEMORY_LIMIT_BYTES, EmbedSettings, ModelRole, ModelSettings, ReadSettings, Settings,
};
use crate::setup::{self, Build};
use crate::storage::Storage;
use crate::{divide, select, write};
use crate::{doctor, export, inspect, pipeline, report, status, verify};

use args::{Args, Command, CompareArgs, PipelineArgs, StageArgs};
use output::{Output, diagnostic};

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    /// More rejections than allowed; all outputs are there.
    TooManyRejections = 3,
}

/// Runs the command that the arguments ask for.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // help and version are no errors
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            let _ = error.print();
            return ExitCode::from(exit as u8);
        }
    };
    start_logging(args.log_json);
    exit_130_when_interrupted();
    let exit = match run(args.command) {
        Ok(exit) => exit,
        Err(error) => {
            diagnostic(&error.message());
            if error.is_usage() { Exit::Usage } else { Exit::Failed }
        }
    };
    ExitCode::from(exit as u8)
}

fn run(command: Command) -> Result<Exit, Error> {
    match command {
        Command::Run(stage) => {
            let settings = settings_of(&stage.pipeline)?;
            let (run, executor) = open(&stage, &settings, Embedding::On(settings.device))?;
            explained(&run, pipeline::run(&run, &executor, &settings.inference()))?;
            finish(&run, &executor)
        }
        Command::Plan { pipeline, assume, json } => plan(&settings_of(&pipeline)?, assume.as_deref(), json),
        Command::Embed(stage) => {
            let settings = settings_of(&stage.pipeline)?;
            let (run, executor) = open(&stage, &settings, Embedding::On(settings.device))?;
            pipeline::embed(&run, &executor, &settings.inference())?;
            Ok(Exit::Done)
        }
        Command::Divide(stage) => stage_command(&stage, divide::run),
        Command::Select(stage) => stage_command(&stage, select::run),
        Command::Write(stage) => stage_command(&stage, write::run),
        Command::Report(stage) => {
            let (run, executor) = open(&stage, &settings_of(&stage.pipeline)?, Embedding::None)?;
            finish(&run, &executor)
        }
        Command::Round { run, learner, device, memory_limit_bytes } => {
            round(run, &learner, device, memory_limit_bytes)
        }
        Command::Status { run, json } => {
            let run = RunFolder::open(Storage::new(run))?;
            let status = status::Status::of(&run)?;
            Output::stdout().line(&if json { status.json() } else { status.text() })
        }
        Command::Verify { run } => {
            let run = RunFolder::open(Storage::new(run))?;
            let verified = verify::verify(&run)?;
            Output::stdout().line(&verified.text())?;
            match verified.damaged.len() + verified.unknown.len() {
                0 => Ok(Exit::Done),
                n_wrong => Err(Error::VerifyFailed { folder: run.run().root().to_owned(), n_wrong }),
            }
        }
        Command::Repair { run } => {
            let run = RunFolder::open(Storage::new(run))?;
            repair(&run)
        }
        Command::Clean { run } => {
            let run = RunFolder::open(Storage::new(run))?;
            Output::stdout().line(&verify::clean(&run)?)
        }
        Command::Inspect { path, key, json } => {
            let shown = inspect::inspect(&path, key.as_deref())?;
            Output::stdout().line(&if json { shown.json() } else { shown.text() })
        }
        Command::Compare(args) => compare(&args),
        Command::Export(args) => {
            let run = RunFolder::open(Storage::new(&args.run))?;
            let exported = export::export(&run, args.export()?, &args.folder)?;
            let Exported { n_samples, n_rows, n_files } = exported;
            let as_often = if n_rows > n_samples { format!(", {n_rows} times") } else { String::new() };
            diagnostic(&format!("{n_samples} samples{as_often} in {n_files} files"));
            Output::stdout().line(&args.folder.display().to_string())
        }
        Command::Setup { cuda, python } => {
            let library = setup::setup(if cuda { Build::Cuda } else { Build::Cpu }, &python)?;
            Output::stdout().line(&library.display().to_string())
        }
        Command::Doctor { model, bench, device } => {
            let bench = if bench { Bench::Full } else { Bench::Default };
            let model = model.as_ref().map(|name| ExaminedModel { name, device, bench });
            let (text, is_well) = doctor::examine(model);
            Output::stdout().line(&text)?;
            Ok(if is_well { Exit::Done } else { Exit::Failed })
        }
    }
}

fn plan(settings: &Settings, assume: Option<&Path>, json: bool) -> Result<Exit, Error> {
    let (plan, estimate) = match assume {
        None => {
            let plan = Plan::new(settings, settings.device)?;
            let estimate = Estimate::measured(&plan, settings)?;
            (plan, estimate)
        }
        Some(path) => {
            let plan = Plan::for_elsewhere(settings)?;
            let assumed = Assumptions::load(path, plan.models.iter().map(|(role, _)| role))?;
            let width_of = |role| assumed.models.get(role).expect("checked with the file").embedding_dim;
            let plan = plan.with_widths(settings, width_of)?;
            let estimate = Estimate::assumed(&plan, settings, &assumed);
            (plan, Some(estimate))
        }
    };
    let estimate = estimate.as_ref();
    let said = if json { estimate::json(estimate, &plan) } else { estimate::text(estimate, &plan) };
    Output::stdout().line(&said)
}

/// Repairs a run and then its rounds, which read what is the run's.
fn repair(run: &RunFolder) -> Result<Exit, Error> {
    let base = run.run_of_round()?;
    let base = base.as_ref().unwrap_or(run);
    let mut output = Output::stdout();
    output.line(&verify::repair(base)?)?;
    for round in base.rounds()? {
        output.line(&format!("round {}: {}", round.plan().round, verify::repair(&round)?))?;
    }
    Ok(Exit::Done)
}

fn compare(args: &CompareArgs) -> Result<Exit, Error> {
    let (json, text) = if args.pool.is_empty() {
        let open = |run: &str| match RunFolder::open(Storage::new(run)) {
            Err(Error::NotARun { folder }) => Err(Error::ComparedWithoutPool { folder }),
            opened => opened,
        };
        let compared = compare::compare_runs(&open(&args.left)?, &open(&args.right)?)?;
        (serde_json::to_string_pretty(&compared), compared.text())
    } else {
        let read = ReadSettings::of_shards(&args.pool);
        let Ok(left) = args.left.parse();
        let Ok(right) = args.right.parse();
        let compared = compare::compare_models(&ModelsRequest {
            left: &left,
            right: &right,
            pool: &Pool::find(&read)?,
            read: &read,
            n_samples: args.samples,
            inference: InferenceSettings {
                device: args.device,
                sessions: None,
                memory_limit_bytes: DEFAULT_MEMORY_LIMIT_BYTES,
            },
            n_threads: std::thread::available_parallelism().map_or(1, usize::from),
            inference_batch_size: EmbedSettings::default().inference_batch_size,
        })?;
        (serde_json::to_string_pretty(&compared), compared.text())
    };
    Output::stdout().line(&if args.json {
        json.expect("a comparison is representable as JSON")
    } else {
        text
    })
}

fn round(run: PathBuf, learner: &str, device: Device, memory_limit_bytes: u64) -> Result<Exit, Error> {
    let Ok(ModelName { folder, variant }) = learner.parse();
    let run = RunFolder::open(Storage::new(run))?;
    // the round after a round is the next of the run that both belong to
    let base = match run.run_of_round()? {
        Some(base) => base,
        None => run,
    };
    let former = base.plan().models.get(ModelRole::Learner).ok_or(Error::NoLearner)?;
    let learner = ModelSettings { folder, variant, precomputed: None, ..former.settings() };
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let session = SessionSettings { place: device.places()?[0], n_threads };
    let run = pipeline::open_round(&base, &learner, &session, memory_limit_bytes)?;
    let executor = Executor { part: Part::WHOLE, n_threads, memory_limit_bytes, wait: Duration::ZERO };
    let inference = InferenceSettings { device, sessions: None, memory_limit_bytes };
    explained(&run, pipeline::run(&run, &executor, &inference))?;
    finish(&run, &executor)
}

fn stage_command(
    stage: &StageArgs,
    work: impl Fn(&RunFolder, &Executor) -> Result<(), Error>,
) -> Result<Exit, Error> {
    let (run, executor) = open(stage, &settings_of(&stage.pipeline)?, Embedding::None)?;
    explained(&run, work(&run, &executor))?;
    Ok(Exit::Done)
}

/// Where no sample is left, says what took them out.
fn explained(run: &RunFolder, done: Result<(), Error>) -> Result<(), Error> {
    if matches!(done, Err(Error::NothingEmbedded | Error::NothingScored)) {
        // a fault of what is counted must not hide this one
        for (cause, n) in report::taken_out(run).unwrap_or_default() {
            diagnostic(&format!("{n} taken out by `{cause}`"));
        }
    }
    done
}

fn settings_of(args: &PipelineArgs) -> Result<Settings, Error> {
    Settings::load(&args.pipeline, &args.set)
}

/// Whether a command embeds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Embedding {
    On(Device),
    None,
}

/// Plans, checks and opens a run folder; prints the plan. Models are opened on the device where the command runs them; one
/// that runs none takes what the folder's plan says of them.
fn open(
    stage: &StageArgs,
    settings: &Settings,
    embedding: Embedding,
) -> Result<(RunFolder, Executor), Error> {
    let storage = Storage::new(&stage.output);
    let plan = match (embedding, RunFolder::open(storage.clone())) {
        (Embedding::On(device), _) => Plan::new(settings, device)?,
        (Embedding::None, Ok(run)) if !stage.replan => Plan::with_models_of(settings, run.plan())?,
        (Embedding::None, Ok(_) | Err(Error::NotARun { .. })) => Plan::new(settings, Device::Cpu)?,
        (Embedding::None, Err(error)) => return Err(error),
    };
    // a run that goes on has used its room already
    if storage.size_bytes(PLAN)?.is_none() {
        let estimate = Estimate::of(&plan, settings);
        if let Some(estimate) = &estimate {
            estimate.check_disk(&plan, &storage)?;
        }
        diagnostic(&estimate::text(estimate.as_ref(), &plan));
    }
    let other_plan = if stage.replan { OtherPlan::Replace } else { OtherPlan::Refuse };
    let run = RunFolder::create(storage, plan, other_plan)?;
    let n_threads = settings.n_threads();
    // the kernels' threads; a second call in one process finds it set already
    let _ = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build_global();
    let executor = Executor {
        part: stage.tasks.unwrap_or(Part::WHOLE),
        n_threads,
        memory_limit_bytes: settings.memory_limit_bytes,
        wait: Duration::from_secs(stage.wait_secs),
    };
    Ok((run, executor))
}

/// Writes the report and says where everything is.
fn finish(run: &RunFolder, executor: &Executor) -> Result<Exit, Error> {
    let report = report::run(run, executor)?;
    let mut output = Output::stdout();
    for path in report::output_paths(run)? {
        output.line(&path)?;
    }
    if !report.broken_shards.is_empty() {
        diagnostic(&format!(
            "shards break off, and what follows could not be read or counted: {}",
            first_of(&report.broken_shards)
        ));
    }
    let draws = match report.select.n_draws {
        n_draws if n_draws > report.counts.kept => format!(", in {n_draws} draws"),
        _ => String::new(),
    };
    diagnostic(&format!("{}{draws}", report.counts.sentence()));
    if report.counts.kept == 0 {
        diagnostic("nothing was kept");
    }
    if let Some(planted) = report.planted.as_ref().filter(|planted| planted.n_planted < planted.n_listed) {
        diagnostic(&format!(
            "{} of {} planted samples were scored: the others were rejected, or are not in the pool, whose shards are \
             named by their paths below {}",
            planted.n_planted,
            planted.n_listed,
            run.plan().pool.root.display()
        ));
    }
    let ratio_max = run.plan().read.rejection_ratio_max;
    let shard_ratio_max = run.plan().read.rejection_ratio_max_shard;
    if report.rejection_ratio > ratio_max || report.rejection_ratio_max_of_shards > shard_ratio_max {
        diagnostic(&format!(
            "too many rejections: {:.3} of the pool (at most {ratio_max}), {:.3} of the worst shard (at most \
             {shard_ratio_max}), {}; all outputs are kept",
            report.rejection_ratio,
            report.rejection_ratio_max_of_shards,
            report.worst_shard.as_deref().unwrap_or("none")
        ));
        return Ok(Exit::TooManyRejections);
    }
    Ok(Exit::Done)
}

/// An interrupt ends the process at once: what is not committed is done again by the next run.
fn exit_130_when_interrupted() {
    extern "C" fn exit(_signal: libc::c_int) {
        const MESSAGE: &[u8] =
            b"\ninterrupted: what was committed stays, and the same command goes on from there\n";
        // SAFETY: `write` and `_exit` may be called in a signal handler; the message lives as long as the program
        unsafe {
            libc::write(libc::STDERR_FILENO, MESSAGE.as_ptr().cast(), MESSAGE.len());
            libc::_exit(130)
        }
    }
    // SAFETY: the handler has the type that `signal` wants and calls nothing but `write` and `_exit`
    unsafe { libc::signal(libc::SIGINT, exit as extern "C" fn(libc::c_int) as libc::sighandler_t) };
}

/// Warnings on a terminal, where bars show the rest; every stage otherwise. `RUST_LOG` overrides.
fn start_logging(is_json: bool) {
    let is_terminal = std::io::stderr().is_terminal();
    let default = if is_terminal { "warn" } else { "info" };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        // a closed stderr ends no run
        .log_internal_errors(false)
        .with_ansi(is_terminal && std::env::var_os("NO_COLOR").is_none());
    if is_json { logs.json().init() } else { logs.init() }
}
