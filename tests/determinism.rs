//! Same seed, other threads, order of shards or inference batch: the same run. And every way to draw and to write.

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, UInt64Type};
use parquet::file::reader::{FileReader, SerializedFileReader};
use support::{
    DETERMINISTIC, Pipeline, assert_same_bytes, assert_verified, embedded_store, embeddings, ids, json,
    names, rows, status,
};

/// `round-half-even(n·(1 − 0.8))` of the samples that were not rejected, by exact integers: METHODS §3.
fn kept_of(run: &Path) -> u64 {
    let n = rows(&run.join("select")).num_rows() as u64;
    let (quotient, rest) = (n / 5, n % 5);
    quotient + u64::from(2 * rest > 5)
}

/// Fails unless the run kept what its filter ratio says, everywhere where it is counted.
#[track_caller]
fn assert_kept(run: &Path) {
    let kept = kept_of(run);
    let curated = rows(&run.join("curated"));
    assert_eq!(curated.num_rows() as u64, kept);
    let mut distinct = ids(&curated);
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len() as u64, kept, "each kept sample once");
    let report = json(&run.join("report.json"));
    assert_eq!(report["counts"]["kept"], kept);
    let stats = names(&run.join("stats")).into_iter().map(|name| json(&run.join("stats").join(name)));
    assert_eq!(stats.map(|stats| stats["kept"].as_u64().unwrap()).sum::<u64>(), kept);
}

/// Fails unless output shards are numbered from 0 on without a gap.
#[track_caller]
fn assert_dense(run: &Path, n_shards_min: usize) {
    let curated = names(&run.join("curated"));
    let expected: Vec<String> = (0..curated.len()).map(|idx| format!("{idx:05}.parquet")).collect();
    assert_eq!(curated, expected);
    assert!(curated.len() >= n_shards_min, "{curated:?}");
}

#[test]
fn threads_change_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    Pipeline::embedded().with("threads=1").run(&one);
    Pipeline::embedded().with("threads=2").run(&two);
    assert_same_bytes(&one, &two, &DETERMINISTIC);
    assert_same_bytes(&one, &two, &["stats"]);
    assert_eq!(fs::read(one.join("report.json")).unwrap(), fs::read(two.join("report.json")).unwrap());
    assert_kept(&one);
    assert_verified(&one);
}

#[test]
fn the_order_of_the_shards_changes_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    let (sorted, mixed) = (folder.path().join("sorted"), folder.path().join("mixed"));
    Pipeline::embedded().run(&sorted);
    let order = [2, 0, 1].map(|idx| format!("'fixtures/pool/shard-0000{idx}.tar'")).join(",");
    Pipeline::embedded().with(&format!("read.shards=[{order}]")).run(&mixed);
    assert_same_bytes(&sorted, &mixed, &DETERMINISTIC);
}

#[test]
fn the_seed_changes_what_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    Pipeline::embedded().with("seed=1").run(&one);
    Pipeline::embedded().with("seed=2").run(&two);
    assert_ne!(ids(&rows(&one.join("curated"))), ids(&rows(&two.join("curated"))));
    assert_kept(&two);
}

#[test]
fn inference_batches_change_no_direction() {
    let folder = tempfile::tempdir().unwrap();
    let mut runs = Vec::new();
    for batch_size in [64, 7, 1] {
        let run = folder.path().join(format!("batch-{batch_size}"));
        let pipeline = Pipeline::of_shards("fixtures/pool/shard-00003.tar");
        pipeline.with(&format!("embed.inference_batch_size={batch_size}")).run(&run);
        let plan = json(&run.join("plan.json"));
        let embedded = ["learner", "reference"].map(|role| {
            let digest = plan["models"][role]["digest"].as_str().unwrap();
            rows(&run.join("embeddings").join(digest))
        });
        assert_kept(&run);
        runs.push((batch_size, embedded, json(&run.join("report.json"))["counts"].clone()));
    }
    let (_, first, counts) = &runs[0];
    for (batch_size, embedded, other_counts) in &runs[1..] {
        assert_eq!(counts, other_counts, "counts with inference batches of {batch_size}");
        for (left, right) in first.iter().zip(embedded) {
            assert_eq!(ids(left), ids(right));
            for tower in ["image_embedding", "text_embedding"] {
                for (left, right) in embeddings(left, tower).iter().zip(&embeddings(right, tower)) {
                    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                    let cosine = dot(left, right) / (dot(left, left) * dot(right, right)).sqrt();
                    assert!(cosine >= 0.9999, "{tower}, inference batches of {batch_size}: {cosine}");
                }
            }
        }
    }
}

#[test]
fn rows_stand_in_the_order_that_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (drawn, sorted) = (folder.path().join("drawn"), folder.path().join("sorted"));
    Pipeline::embedded().run(&drawn);
    Pipeline::embedded().with("write.order=shard").run(&sorted);
    for run in [&drawn, &sorted] {
        assert_kept(run);
        assert_dense(run, 3);
        assert_verified(run);
    }
    let by_draw = rows(&drawn.join("curated"));
    let super_batches = by_draw.column_by_name("super_batch").unwrap().as_primitive::<UInt64Type>();
    let ranks = by_draw.column_by_name("draw_rank").unwrap().as_primitive::<arrow::datatypes::UInt32Type>();
    let places: Vec<_> = super_batches.values().iter().zip(ranks.values()).collect();
    assert!(places.is_sorted(), "super-batch by super-batch, in the order of the draw");
    let by_shard = ids(&rows(&sorted.join("curated")));
    assert!(by_shard.is_sorted(), "as in the pool");
    let mut same = ids(&by_draw);
    same.sort();
    assert_eq!(same, by_shard, "the order changes nothing of what is kept");
}

#[test]
fn images_are_the_original_bytes_or_absent() {
    let folder = tempfile::tempdir().unwrap();
    let (with, without) = (folder.path().join("with"), folder.path().join("without"));
    Pipeline::embedded().run(&with);
    Pipeline::embedded().with("write.images=false").run(&without);
    let of_hugging_face = |run: &Path| {
        let reader =
            SerializedFileReader::new(File::open(run.join("curated/00000.parquet")).unwrap()).unwrap();
        let entries = reader.metadata().file_metadata().key_value_metadata().unwrap().clone();
        entries.into_iter().any(|entry| entry.key == "huggingface")
    };
    assert!(of_hugging_face(&with) && !of_hugging_face(&without));
    assert_kept(&without);
    let (kept, kept_without) = (rows(&with.join("curated")), rows(&without.join("curated")));
    assert_eq!(ids(&kept), ids(&kept_without));
    assert!(kept_without.column_by_name("image").is_none());

    let tars: BTreeMap<String, Vec<u8>> = ids(&kept)
        .into_iter()
        .map(|(shard, _)| {
            (shard.clone(), fs::read(support::root().join("fixtures/pool").join(shard)).unwrap())
        })
        .collect();
    let number = |column: &str, row| {
        kept.column_by_name(column).unwrap().as_primitive::<UInt64Type>().value(row) as usize
    };
    let images = kept.column_by_name("image").unwrap().as_struct().column(0).as_binary::<i32>();
    for (row, (shard, _)) in ids(&kept).iter().enumerate() {
        let (offset, size) = (number("image_offset", row), number("image_size", row));
        assert_eq!(images.value(row), &tars[shard][offset..offset + size], "row {row}");
    }
}

#[test]
fn super_batches_within_clusters_keep_the_exact_count() {
    let folder = tempfile::tempdir().unwrap();
    let within = Pipeline::embedded().with("select.step.0.super_batches=within_clusters");
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    within.with("threads=1").run(&one);
    within.with("threads=2").run(&two);
    assert_same_bytes(&one, &two, &DETERMINISTIC);
    assert_kept(&one);
    assert_verified(&one);
    let (n_done, _, n_tasks) = status(&one)["select.deal"];
    assert_eq!((n_done, n_tasks), (3, Some(3)));
}

#[test]
fn the_random_control_keeps_the_same_count() {
    let folder = tempfile::tempdir().unwrap();
    let quickstart = fs::read_to_string(support::root().join("pipelines/quickstart.toml")).unwrap();
    let (before, _) = quickstart.split_once("[[select.step]]").unwrap();
    let step = "[[select.step]]\nmethod = \"random\"\nfilter_ratio = 0.8\nsuper_batch_size = 60\n";
    let file = folder.path().join("random.toml");
    fs::write(&file, format!("{before}{step}")).unwrap();
    for super_batches in ["over_pool", "within_clusters"] {
        let run = folder.path().join(super_batches);
        let pipeline = Pipeline { file: file.clone(), ..Pipeline::embedded() };
        pipeline.with(&format!("select.step.0.super_batches={super_batches}")).run(&run);
        assert_kept(&run);
        assert_verified(&run);
        assert_eq!(json(&run.join("report.json"))["method"], "random");
    }
}

#[test]
fn equal_models_have_nothing_to_teach_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let n_models = || fs::read_dir(embedded_store().join("embeddings")).unwrap().count();
    let n_before = n_models();
    Pipeline::embedded().with("models.learner.folder=fixtures/models/reference").run(&run);
    assert_eq!(n_models(), n_before, "the reference is embedded already");
    assert_kept(&run);
    let selected = rows(&run.join("select"));
    for column in ["learnability", "score"] {
        let values = selected.column_by_name(column).unwrap().as_primitive::<Float64Type>();
        assert_eq!(values.null_count(), 0);
        assert!(values.values().iter().all(|&value| value == 0.0), "{column}");
    }
    let learnt = json(&run.join("report.json"))["select"]["batch_learnability"].as_f64();
    assert_eq!(learnt, Some(0.0));
}
