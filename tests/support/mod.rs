//! What the tests of the command share: a small pool, its settings, runs of the binary, and looks into run folders.
//!
//! Embedding takes nearly all the time of a run, so tests share one store of the small pool where they can.

#![allow(dead_code, reason = "each test crate takes what it needs")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{Float16Type, Float32Type, UInt64Type};
use assert_cmd::assert::OutputAssertExt;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

pub const BINARY: &str = env!("CARGO_BIN_EXE_superbatch");

/// Folders of a run whose bytes depend on the embeddings and the settings alone.
pub const DETERMINISTIC: [&str; 3] = ["curated", "select", "divide"];

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A command of `superbatch`, run in the repository's root with nothing on stdin.
pub fn superbatch<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(BINARY);
    command.current_dir(root()).args(args).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// A pipeline file and what is set beside it.
#[derive(Clone)]
pub struct Pipeline {
    pub file: PathBuf,
    pub sets: Vec<String>,
}

impl Pipeline {
    /// The quick start on these shards, with groups, clusters and output shards so small that every stage has tasks
    /// enough to be interrupted and dealt out.
    pub fn of_shards(shards: &str) -> Pipeline {
        let pipeline = Pipeline { file: root().join("pipelines/quickstart.toml"), sets: Vec::new() };
        pipeline
            .with(&format!("read.shards=['{shards}']"))
            .with("select.super_batches_per_group=1")
            .with("select.step.0.super_batch_size=60")
            .with("divide.n_clusters=4")
            .with("write.shard_bytes=60000")
    }

    /// Three shards of the fixtures.
    pub fn small() -> Pipeline {
        Pipeline::of_shards("fixtures/pool/shard-0000{0..2}.tar")
    }

    /// Three shards whose embeddings are in a store already.
    pub fn embedded() -> Pipeline {
        Pipeline::small().with_store(embedded_store())
    }

    pub fn with(&self, assignment: &str) -> Pipeline {
        let mut pipeline = self.clone();
        pipeline.sets.push(assignment.to_owned());
        pipeline
    }

    pub fn with_store(&self, store: &Path) -> Pipeline {
        self.with(&format!("store='{}'", store.display()))
    }

    /// `superbatch STAGE` into a run folder.
    pub fn command(&self, stage: &str, run: &Path) -> Command {
        let mut command = superbatch([stage]);
        command.arg(&self.file).arg("-o").arg(run);
        command.args(self.sets.iter().flat_map(|set| ["--set", set]));
        command
    }

    /// Runs all stages, which must succeed.
    #[track_caller]
    pub fn run(&self, run: &Path) {
        self.command("run", run).assert().success();
    }
}

/// A store with the embeddings of [`Pipeline::small`], made once a test binary.
pub fn embedded_store() -> &'static Path {
    static STORE: OnceLock<PathBuf> = OnceLock::new();
    STORE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(env!("CARGO_CRATE_NAME"));
        let _ = fs::remove_dir_all(&folder);
        let store = folder.join("store");
        let run = folder.join("run");
        Pipeline::small().with_store(&store).command("embed", &run).assert().success();
        store
    })
}

/// The names, below the folder, of all files in it, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, prefix: &str, names: &mut Vec<String>) {
        for member in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = format!("{prefix}{}", member.file_name().to_string_lossy());
            match member.path().is_dir() {
                true => walk(&member.path(), &format!("{name}/"), names),
                false => names.push(name),
            }
        }
    }
    let mut all = Vec::new();
    walk(folder, "", &mut all);
    all.sort();
    all
}

/// Every file below a folder with its bytes, but for what a killed attempt left unfinished.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = names(folder).into_iter().filter(|name| !is_unfinished(name));
    names.map(|name| (name.clone(), fs::read(folder.join(name)).unwrap())).collect()
}

pub fn is_unfinished(name: &str) -> bool {
    name.rsplit('/').next().unwrap().starts_with(".unfinished-")
}

/// Fails unless these folders of two runs hold the same files, and something.
#[track_caller]
pub fn assert_same_bytes(left: &Path, right: &Path, folders: &[&str]) {
    for folder in folders {
        let (left, right) = (files(&left.join(folder)), files(&right.join(folder)));
        assert!(!left.is_empty(), "`{folder}` is empty");
        assert_eq!(left.keys().collect::<Vec<_>>(), right.keys().collect::<Vec<_>>(), "files of `{folder}`");
        for (name, bytes) in left {
            assert!(bytes == right[&name], "`{folder}/{name}` differs");
        }
    }
}

/// Fails unless `verify` finds the run whole, and no file in the product's folder that no marker names.
#[track_caller]
pub fn assert_verified(run: &Path) {
    let verified = superbatch([Path::new("verify"), run]).assert().success();
    let text = text(&verified.get_output().stdout);
    assert!(text.contains(" 0 damaged") && !text.contains("named by no marker"), "{text}");
}

/// What a command says when it cannot go on: the exit code, and the text from `error:` on.
#[track_caller]
pub fn error_of(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    let start = stderr.lines().position(|line| line.starts_with("error: "));
    let start = start.unwrap_or_else(|| panic!("no line begins with `error: `:\n{stderr}"));
    let lines: Vec<&str> = stderr.lines().skip(start).collect();
    assert_eq!(lines.iter().filter(|line| line.starts_with("error: ")).count(), 1, "one error:\n{stderr}");
    lines.join("\n")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub fn stdout(output: &Output) -> String {
    text(&output.stdout)
}

/// One JSON file.
pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        .unwrap()
}

/// `status --json` by stage: done, done by this plan, tasks.
#[track_caller]
pub fn status(run: &Path) -> BTreeMap<String, (u64, u64, Option<u64>)> {
    let output = superbatch([Path::new("status"), run, Path::new("--json")]).assert().success();
    let status: Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
    let stages = status["stages"].as_array().unwrap().iter().map(|stage| {
        let count = |key: &str| stage[key].as_u64();
        let counts = (count("n_done").unwrap(), count("n_done_by_this_plan").unwrap(), count("n_tasks"));
        (stage["stage"].as_str().unwrap().to_owned(), counts)
    });
    stages.collect()
}

/// The rows of every Parquet file in a folder, in the order of their names.
pub fn rows(folder: &Path) -> RecordBatch {
    let mut batches = Vec::new();
    for name in names(folder).iter().filter(|name| name.ends_with(".parquet")) {
        let file = fs::File::open(folder.join(name)).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
        batches.extend(reader.map(Result::unwrap));
    }
    // files say in their schema's metadata how they were made; the rows are what is compared
    let schema = arrow::datatypes::Schema::new(batches[0].schema().fields().clone());
    let batches = batches.into_iter().map(|batch| batch.with_schema(schema.clone().into()).unwrap());
    concat_batches(&schema.clone().into(), &batches.collect::<Vec<_>>()).unwrap()
}

/// Shard and position of each row.
pub fn ids(rows: &RecordBatch) -> Vec<(String, u64)> {
    let shards = rows.column_by_name("shard").unwrap().as_string::<i32>();
    let idxs = rows.column_by_name("sample_idx").unwrap().as_primitive::<UInt64Type>();
    shards.iter().zip(idxs.values()).map(|(shard, &idx)| (shard.unwrap().to_owned(), idx)).collect()
}

/// A column of `FixedSizeList<f16>`, a vector a row.
pub fn embeddings(rows: &RecordBatch, column: &str) -> Vec<Vec<f64>> {
    let lists = rows.column_by_name(column).unwrap().as_fixed_size_list();
    let values = |row: usize| {
        let row = lists.value(row);
        row.as_primitive::<Float16Type>().values().iter().map(|value| value.to_f64()).collect()
    };
    (0..lists.len()).map(values).collect()
}

/// A column of `FixedSizeList<f32>`, a vector a row.
pub fn embeddings_f32(rows: &RecordBatch, column: &str) -> Vec<Vec<f64>> {
    let lists = rows.column_by_name(column).unwrap().as_fixed_size_list();
    let values = |row: usize| {
        let row = lists.value(row);
        row.as_primitive::<Float32Type>().values().iter().map(|value| f64::from(*value)).collect()
    };
    (0..lists.len()).map(values).collect()
}

/// Copies a folder and all below it.
pub fn copy_folder(from: &Path, to: &Path) {
    for name in names(from) {
        let target = to.join(&name);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(from.join(&name), target).unwrap();
    }
}

/// Numbers that look random and are the same in every run of the tests.
pub struct Seeded(pub u64);

impl Seeded {
    /// From 0 to `n − 1`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}
