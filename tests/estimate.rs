//! What `superbatch plan` says before a run, beside what the run then does.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
use assert_cmd::assert::OutputAssertExt;
use parquet::arrow::ArrowWriter;
use serde_json::Value;

mod support;

use support::{Pipeline, embedded_store, names, superbatch, text};

const ARCHITECTURE: &str = include_str!("../ARCHITECTURE.md");

/// The estimate of `superbatch plan --json`.
fn estimate(pipeline: &Pipeline) -> Value {
    let mut command = superbatch(["plan", "--json"]);
    command.arg(&pipeline.file).args(pipeline.sets.iter().flat_map(|set| ["--set", set]));
    let output = command.assert().success().get_output().stdout.clone();
    let mut json: Value = serde_json::from_slice(&output).unwrap();
    json["estimate"].take()
}

fn stage<'a>(estimate: &'a Value, name: &str) -> &'a Value {
    let stages = estimate["stages"].as_array().unwrap();
    stages.iter().find(|stage| stage["stage"] == name).unwrap()
}

#[test]
fn the_paper_plan_is_what_the_command_prints() {
    let paper = ARCHITECTURE.split("```\n$ superbatch plan ").nth(1).expect("the command and what it prints");
    let (command, printed) = paper.split("```").next().unwrap().split_once("\n\n").unwrap();
    let arguments = command.split_whitespace().filter(|word| *word != "\\");
    let output = superbatch(["plan"]).args(arguments).assert().success().get_output().stdout.clone();
    assert_eq!(String::from_utf8(output).unwrap(), printed);
}

/// Runs the pipeline, and holds each stage's files against its estimate, which is returned.
#[track_caller]
fn check_files(pipeline: &Pipeline) -> Value {
    let folder = tempfile::tempdir().unwrap();
    pipeline.run(folder.path());
    let estimate = estimate(pipeline);
    let all: Vec<String> = names(folder.path())
        .into_iter()
        .filter(|name| !name.starts_with("_done/") && !name.starts_with("plan"))
        .collect();
    let is_of = |name: &str, stage: &str| {
        let folders: &[&str] = match stage {
            "divide" => &["divide/", "_exchange/divide."],
            "select" => &["select/", "draws/", "_exchange/select."],
            "write" => &["curated/", "stats/", "_exchange/write."],
            _ => &["report."],
        };
        folders.iter().any(|folder| name.starts_with(folder))
    };
    for name in ["divide", "select", "write", "report"] {
        let n_files = all.iter().filter(|file| is_of(file, name)).count();
        assert_eq!(stage(&estimate, name)["n_files"], n_files, "{name}: {all:?}");
    }
    estimate
}

/// With all that is kept in one shard.
fn in_one_shard() -> Pipeline {
    Pipeline::embedded().with("write.shard_bytes=1000000000")
}

#[test]
fn files_are_those_of_the_run() {
    let estimate = check_files(&in_one_shard());
    let embedded = names(embedded_store());
    let n_files = embedded.iter().filter(|name| !name.starts_with("_done/")).count();
    assert_eq!(stage(&estimate, "embed")["n_files"], n_files, "{embedded:?}");
    let pool_bytes = estimate["pool_bytes"].as_u64().unwrap();
    assert_eq!(stage(&estimate, "embed")["read_bytes"], pool_bytes);
    assert!(stage(&estimate, "write")["read_bytes"].as_u64().unwrap() > pool_bytes);
    let without_images = check_files(&in_one_shard().with("write.images=false"));
    assert!(stage(&without_images, "write")["read_bytes"].as_u64().unwrap() < pool_bytes);
}

#[test]
fn files_of_several_passes_within_clusters_are_those_of_the_run() {
    let within = in_one_shard()
        .with("divide.n_clusters=2")
        .with("select.super_batches_per_group=16")
        .with("select.step.0.super_batches=within_clusters")
        .with("select.step.0.n_passes=2");
    check_files(&within);
}

#[test]
fn files_of_filters_are_those_of_the_run() {
    let neg_clip = "{ method = 'neg_clip_loss', batch_size = 20, keep = { filter_ratio = 0.1 } }";
    let top = "{ method = 'top', by = 'learnability', filter_ratio = 0.5 }";
    check_files(&in_one_shard().with(&format!("select.step=[{neg_clip}, {top}]")));
    let semdedup = Pipeline { file: "pipelines/semdedup.toml".into(), sets: in_one_shard().sets };
    let is_of_draw = |set: &str| set.starts_with("select.step.") || set.starts_with("store=");
    let sets = semdedup.sets.iter().filter(|set| !is_of_draw(set)).cloned().collect();
    let semdedup = Pipeline { sets, ..semdedup };
    check_files(&semdedup.with("select.step.3.super_batch_size=60").with("read.shards_per_task=2"));
}

/// Rows whose captions take far more than what is guessed of a tar that is not read to its end.
fn write_table(path: &Path, n_rows: usize) {
    let image = std::fs::read("fixtures/pool/shard-00000.tar").unwrap()[..600].to_vec();
    let captions = (0..n_rows).map(|row| {
        let word = |idx: usize| (row * 7919 + idx * 104_729).to_string();
        (0..1_000).map(word).collect::<Vec<_>>().join(" ")
    });
    let columns: [(&str, ArrayRef); 2] = [
        ("image", Arc::new(BinaryArray::from_iter_values((0..n_rows).map(|_| &image)))),
        ("caption", Arc::new(StringArray::from_iter_values(captions))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn rows_of_parquet_are_counted_by_footers() {
    let folder = tempfile::tempdir().unwrap();
    for shard in 0..2 {
        write_table(&folder.path().join(format!("{shard}.parquet")), 1_500);
    }
    let shards = format!("read.shards=['{}/*.parquet']", folder.path().display());
    let n_samples = estimate(&Pipeline::small().with(&shards))["n_samples"].as_u64().unwrap();
    assert!((2_990..=3_010).contains(&n_samples), "{n_samples} for 3000");
}

/// The estimate's lines for people.
fn said(pipeline: &Pipeline) -> String {
    let mut command = superbatch(["plan"]);
    command.arg(&pipeline.file).args(pipeline.sets.iter().flat_map(|set| ["--set", set]));
    text(&command.assert().success().get_output().stdout)
}

#[test]
fn a_pool_of_which_nothing_can_be_counted_has_no_estimate() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.parquet"), "no table at all".repeat(10_000)).unwrap();
    let pipeline = Pipeline::small().with(&format!("read.shards=['{}/*.parquet']", folder.path().display()));
    assert_eq!(estimate(&pipeline), Value::Null);
    let said = said(&pipeline);
    assert!(said.starts_with("pool      1 shard, ") && said.contains(", samples unknown: "), "{said}");
    assert!(said.contains("\nlearner   ") && !said.contains("disk"), "{said}");
}

#[test]
fn samples_that_cannot_be_decoded_tell_nothing_of_the_rate() {
    let folder = tempfile::tempdir().unwrap();
    let mut tar = tar::Builder::new(File::create(folder.path().join("a.tar")).unwrap());
    for sample in 0..100 {
        let mut header = tar::Header::new_gnu();
        header.set_size(9);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("{sample:03}.txt"), &b"a caption"[..]).unwrap();
    }
    tar.finish().unwrap();
    let pipeline = Pipeline::small().with(&format!("read.shards=['{}/*.tar']", folder.path().display()));
    let rejected = estimate(&pipeline);
    assert_eq!(rejected["rates"]["node"]["decode_samples_per_sec"], Value::Null);
    assert_eq!(stage(&rejected, "embed")["time"], Value::Null);
    assert!(said(&pipeline).contains("decoding unknown"));
    std::fs::copy("fixtures/pool/shard-00000.tar", folder.path().join("b.tar")).unwrap();
    let rate = estimate(&pipeline)["rates"]["node"]["decode_samples_per_sec"].as_f64().unwrap();
    // no core decodes a picture in less than ten microseconds
    assert!((1.0..1e5).contains(&rate), "{rate}");
}

#[test]
fn more_clusters_than_samples_are_told() {
    let says = |n_clusters: usize| {
        let mut command = superbatch(["plan"]);
        let pipeline = Pipeline::small().with(&format!("divide.n_clusters={n_clusters}"));
        command.arg(&pipeline.file).args(pipeline.sets.iter().flat_map(|set| ["--set", set]));
        let output = command.assert().success().get_output().stderr.clone();
        String::from_utf8(output).unwrap().contains("more clusters than the pool has samples")
    };
    assert!(says(100_000));
    assert!(!says(10));
}

#[test]
fn a_file_of_assumptions_has_every_model() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("assumed.toml");
    let text = include_str!("../benches/billion.toml").replace("[models.reference]", "[models.base]");
    std::fs::write(&file, text).unwrap();
    let mut command = superbatch(["plan", "pipelines/jest.toml", "--assume"]);
    let output = command.arg(&file).assert().code(2).get_output().stderr.clone();
    let said = String::from_utf8(output).unwrap();
    assert!(
        said.contains("error: cannot use assumptions `")
            && said.contains("`--assume` needs `models.reference`"),
        "{said}"
    );
}
