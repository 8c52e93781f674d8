//! `superbatch compare`: two runs, and two models on a pool, against what is computed here from the files themselves.

mod support;

use std::collections::BTreeSet;
use std::path::Path;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Float64Type;
use serde_json::Value;
use support::{Pipeline, error_of, ids, rows, superbatch, text};

fn compare(args: &[&str]) -> Value {
    let output = superbatch(["compare", "--json"]).args(args).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn kept(run: &Path) -> BTreeSet<(String, u64)> {
    ids(&rows(&run.join("curated"))).into_iter().collect()
}

#[test]
fn two_runs_share_what_both_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    Pipeline::embedded().with("seed=1").run(&one);
    Pipeline::embedded().with("seed=2").run(&two);
    let compared = compare(&[one.to_str().unwrap(), two.to_str().unwrap()]);
    let (kept_one, kept_two) = (kept(&one), kept(&two));
    let n_both = kept_one.intersection(&kept_two).count();
    assert_eq!(compared["kept"]["n_both"], n_both);
    assert_eq!(compared["kept"]["n_left"], kept_one.len());
    assert_eq!(compared["n_common"], rows(&one.join("select")).num_rows());
    let share = compared["kept"]["share"].as_f64().unwrap();
    assert!((share - n_both as f64 / kept_one.len().min(kept_two.len()) as f64).abs() < 1e-12);
    // the seed changes the draw and the clusters, and no score of a sample alone
    let correlations = &compared["rank_correlations"];
    assert_eq!(correlations["learnability"]["spearman"], 1.0);
    let learnability = rows(&one.join("select"));
    let learnability = learnability.column_by_name("learnability").unwrap();
    let learnability = arrow::compute::cast(learnability, &arrow::datatypes::DataType::Float64).unwrap();
    let n_scored = learnability.len() - learnability.as_primitive::<Float64Type>().null_count();
    assert_eq!(correlations["learnability"]["n"], n_scored);
    assert!(correlations["conditional_score"]["n"].as_u64().unwrap() <= n_both as u64);

    let other = folder.path().join("other");
    Pipeline::of_shards("fixtures/pool/shard-00003.tar").run(&other);
    let error = error_of(&mut superbatch([Path::new("compare"), &one, &other]), 2);
    assert!(error.contains("of different pools") && error.contains("hint: "), "{error}");
}

#[test]
fn two_models_are_compared_on_a_pool() {
    let models = ["fixtures/models/learner", "fixtures/models/reference"];
    let error = error_of(superbatch(["compare"]).args(models), 2);
    assert!(error.contains("`fixtures/models/learner` is not a run folder"), "{error}");
    assert!(error.contains("\nhint: ") && error.contains("`--pool SHARDS`"), "{error}");
}

#[test]
fn a_model_agrees_with_itself_and_less_with_another() {
    let (learner, reference) = ("fixtures/models/learner", "fixtures/models/reference");
    let pool = ["--pool", "fixtures/pool/shard-0000{0..1}.tar", "--samples", "150", "--device", "cpu"];
    let same = compare(&[&[learner, learner][..], &pool].concat());
    assert_eq!(same["n_samples"], 150);
    for cosines in ["image_cosines", "caption_cosines"] {
        let lowest = same[cosines]["min"].as_f64().unwrap();
        assert!((lowest - 1.0).abs() < 1e-5, "{lowest}");
    }
    assert_eq!(same["similarity_rank_correlation"], 1.0);
    assert_eq!((&same["top_fifth"]["n_both"], &same["top_fifth"]["share"]), (&30.into(), &1.0.into()));
    assert!(same["left"]["samples_per_sec"].as_f64().unwrap() > 0.0);

    let other = compare(&[&[learner, reference][..], &pool].concat());
    let correlation = other["similarity_rank_correlation"].as_f64().unwrap();
    // both were trained on the same kind of pairs
    assert!((0.05..0.95).contains(&correlation), "{correlation}");
    assert!(other["image_cosines"]["mean"].as_f64().unwrap() < 0.9);
    assert_ne!(other["left"]["digest"], other["right"]["digest"]);
}
