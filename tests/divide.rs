//! The divide stage on fixture shards: levels, other ways to fit, and the centroids of another run.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::UInt32Type;
use assert_cmd::assert::OutputAssertExt;
use superbatch::divide::read_tree;
use superbatch::run_folder::RunFolder;
use superbatch::storage::Storage;
use support::{Pipeline, embeddings_f32, error_of, json, names, root, rows};

/// Twelve clusters in four in two, by k-means∥ and mini-batches.
fn levelled() -> Pipeline {
    Pipeline::embedded()
        .with("divide.n_clusters=12")
        .with("divide.parent_levels=[4, 2]")
        .with("divide.seeding=k_means_parallel")
        .with("divide.fit=mini_batch")
        .with("divide.mini_batch_size=64")
}

fn divided(pipeline: &Pipeline, run: &Path) -> PathBuf {
    pipeline.command("divide", run).assert().success();
    run.join("divide/centroids.parquet")
}

/// The rows of the files that hold one for each sample.
fn samples(run: &Path) -> RecordBatch {
    let folder = run.join("samples_of_divide");
    fs::create_dir_all(&folder).unwrap();
    for name in
        names(&run.join("divide")).iter().filter(|name| name.starts_with(|c: char| c.is_ascii_digit()))
    {
        fs::copy(run.join("divide").join(name), folder.join(name)).unwrap();
    }
    rows(&folder)
}

fn u32s(rows: &RecordBatch, column: &str) -> Vec<u32> {
    rows.column_by_name(column).unwrap().as_primitive::<UInt32Type>().values().to_vec()
}

fn centroids(run: &Path) -> RecordBatch {
    let folder = run.join("centroids_of_divide");
    fs::create_dir_all(&folder).unwrap();
    fs::copy(run.join("divide/centroids.parquet"), folder.join("centroids.parquet")).unwrap();
    rows(&folder)
}

#[test]
fn levels_stand_beside_the_centroids() {
    let folder = tempfile::tempdir().unwrap();
    divided(&levelled(), folder.path());
    let table = centroids(folder.path());
    let [cluster, level_1, level_2] = ["cluster", "level_1", "level_2"].map(|column| u32s(&table, column));
    assert_eq!(cluster, (0..12).collect::<Vec<_>>());
    let tree = read_tree(&RunFolder::open(Storage::new(folder.path())).unwrap()).unwrap();
    assert_eq!((tree.n_levels(), tree.level_sizes()), (3, &[4, 2][..]));
    for cluster in 0..12 {
        let above = [level_1[cluster], level_2[cluster]];
        assert_eq!(tree.ancestors(cluster as u32).collect::<Vec<_>>(), above);
        // nearer to the mean direction of its own cluster above than to that of any other
        let vectors = embeddings_f32(&table, "centroid");
        let similarity = |above: u32| {
            let members = (0..12).filter(|member| level_1[*member] == above);
            let mut sum = vec![0.0; vectors[0].len()];
            for member in members {
                sum.iter_mut().zip(&vectors[member]).for_each(|(sum, value)| *sum += value);
            }
            let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
            sum.iter().zip(&vectors[cluster]).map(|(sum, value)| sum * value / length).sum::<f64>()
        };
        let own = similarity(above[0]);
        for other in (0..4).filter(|other| level_1.contains(other)) {
            assert!(similarity(other) <= own + 1e-6, "cluster {cluster} lies in {}, not {other}", above[0]);
        }
    }
}

#[test]
fn centroids_of_another_run_divide_new_shards() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let saved = divided(&levelled(), &first);
    // other settings of the fit: none of them matters
    let taking = Pipeline::embedded().with("divide.n_clusters=10").with("seed=9");
    let taking = taking.with(&format!("divide.centroids='{}'", saved.display()));
    divided(&taking, &second);
    assert_eq!(centroids(&first), centroids(&second));
    let [of_first, of_second] = [&first, &second].map(|run| samples(run));
    for column in ["shard", "sample_idx", "cluster", "centroid_similarity", "centroid_margin"] {
        assert_eq!(of_first.column_by_name(column), of_second.column_by_name(column), "{column}");
    }
    let plan = json(&second.join("plan.json"));
    assert_eq!((&plan["divide"]["n_clusters"], &plan["divide"]["parent_levels"][0]), (&12.into(), &4.into()));
    let marker = json(&second.join("_done/divide.fit/00000.json"));
    assert_eq!(marker["counts"]["source"], "taken");

    // where the file lies is no part of the run, what it holds is
    let moved = folder.path().join("moved.parquet");
    fs::copy(&saved, &moved).unwrap();
    let taking = taking.with(&format!("divide.centroids='{}'", moved.display()));
    let digest = |run: &Path| json(&run.join("plan.json"))["digests"]["divide"].clone();
    let third = folder.path().join("third");
    divided(&taking, &third);
    assert_eq!(digest(&second), digest(&third));
}

#[test]
fn centroids_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let saved = divided(&levelled(), &folder.path().join("first"));
    let taking = Pipeline::embedded().with("divide.n_clusters=12");
    let taking = taking.with(&format!("divide.centroids='{}'", saved.display()));
    let refused = |pipeline: Pipeline| {
        let run = folder.path().join("refused");
        let message = error_of(&mut pipeline.command("divide", &run), 2);
        assert!(!run.exists(), "nothing is begun");
        assert!(message.contains("cannot take the centroids") && message.contains("hint: "), "{message}");
        message
    };
    let message = refused(taking.with("divide.model=learner"));
    assert!(message.contains("model digest") || message.contains("dimensions"), "{message}");
    let message = refused(taking.with("divide.n_clusters=7"));
    assert!(message.contains("12 centroids, but `divide.n_clusters` is 7"), "{message}");
    let message = refused(taking.with("divide.parent_levels=[3]"));
    assert!(message.contains("[4, 2]") && message.contains("[3]"), "{message}");
    let message = refused(taking.with("divide.centroids='no/such/file'"));
    assert!(message.contains("no/such/file"), "{message}");
    let text = root().join("Cargo.toml");
    let message = refused(taking.with(&format!("divide.centroids='{}'", text.display())));
    assert!(message.contains("no Parquet file"), "{message}");
    let samples = folder.path().join("first/divide/00000.parquet");
    let message = refused(taking.with(&format!("divide.centroids='{}'", samples.display())));
    assert!(message.contains("model digest"), "{message}");
}

#[test]
fn more_clusters_than_samples_are_refused_before_anything_is_fitted() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let message =
        error_of(&mut Pipeline::embedded().with("divide.n_clusters=5000").command("divide", &run), 2);
    assert!(message.contains("cannot make 5000 clusters") && message.contains("hint: lower"), "{message}");
    assert!(names(&run.join("divide")).is_empty());
}
