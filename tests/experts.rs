//! Runs whose reference is an expert of each cluster: every sample is scored by its own, and distilled from it.
//!
//! The expected numbers are computed here, in f64, from the stored embeddings and the models' own `model.toml`.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, UInt32Type, UInt64Type};
use support::{Pipeline, embedded_store, embeddings, error_of, ids, json, rows};

/// Logit scale and bias of the two fixture models, as their `model.toml` state them.
const LEARNER: (f64, f64) = (10.1796, -9.9352);
const REFERENCE: (f64, f64) = (14.6754, -9.9168);

/// Two clusters; the expert of the first is the learner itself.
const PIPELINE: &str = r#"
seed = 1

[read]
shards = ["fixtures/pool/shard-0000{0..2}.tar"]

[models.learner]
folder = "fixtures/models/learner"

[models.expert_0]
folder = "fixtures/models/learner"

[models.expert_1]
folder = "fixtures/models/reference"

[divide]
model = "learner"
n_clusters = 2

[[select.step]]
method = "jest"
filter_ratio = 0.5
super_batch_size = 60
super_batches = "within_clusters"
n_chunks = 4
gain = 6

[write]
distil = true
"#;

fn pipeline(folder: &Path, text: &str) -> Pipeline {
    let file = folder.join("pipeline.toml");
    std::fs::write(&file, text).unwrap();
    Pipeline { file, sets: Vec::new() }.with_store(embedded_store())
}

fn finished() -> &'static Path {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    RUN.get_or_init(|| {
        let run = embedded_store().with_file_name("finished");
        let folder = tempfile::tempdir().unwrap();
        pipeline(folder.path(), PIPELINE).run(&run);
        run
    })
}

type Id = (String, u64);

/// Image and caption of each sample under a model of the run.
fn towers(run: &Path, role: &str) -> BTreeMap<Id, [Vec<f64>; 2]> {
    let plan = json(&run.join("plan.json"));
    let digest = plan["models"][role]["digest"].as_str().unwrap();
    let rows = rows(&embedded_store().join("embeddings").join(digest));
    let towers = embeddings(&rows, "image_embedding").into_iter().zip(embeddings(&rows, "text_embedding"));
    ids(&rows).into_iter().zip(towers.map(|(image, text)| [image, text])).collect()
}

/// A model of pairs by hand.
struct Model {
    towers: BTreeMap<Id, [Vec<f64>; 2]>,
    logits: (f64, f64),
}

impl Model {
    fn similarity(&self, image: &Id, caption: &Id) -> f64 {
        self.towers[image][0].iter().zip(&self.towers[caption][1]).map(|(left, right)| left * right).sum()
    }

    /// The sigmoid loss of an image with a caption, its own or another's.
    fn loss(&self, image: &Id, caption: &Id) -> f64 {
        let logit = self.logits.0 * self.similarity(image, caption) + self.logits.1;
        let logit = if image == caption { -logit } else { logit };
        logit.max(0.0) + (-logit.abs()).exp().ln_1p()
    }
}

fn numbers(rows: &RecordBatch, column: &str) -> Vec<Option<f64>> {
    rows.column_by_name(column).unwrap().as_primitive::<Float64Type>().iter().collect()
}

fn u32s(rows: &RecordBatch, column: &str) -> Vec<Option<u32>> {
    rows.column_by_name(column).unwrap().as_primitive::<UInt32Type>().iter().collect()
}

#[track_caller]
fn assert_close(found: Option<f64>, expected: f64, bound: f64) {
    let found = found.unwrap();
    assert!((found - expected).abs() <= bound, "{found} is not {expected} within {bound:e}");
}

#[test]
fn every_sample_is_scored_by_the_expert_of_its_cluster() {
    let run = finished();
    let learner = Model { towers: towers(run, "learner"), logits: LEARNER };
    let experts = [
        Model { towers: towers(run, "expert_0"), logits: LEARNER },
        Model { towers: towers(run, "expert_1"), logits: REFERENCE },
    ];
    let rows = rows(&run.join("select"));
    let (ids, clusters) = (ids(&rows), u32s(&rows, "cluster"));
    let columns = ["learner_loss", "reference_similarity", "reference_loss", "learnability"]
        .map(|name| numbers(&rows, name));
    let mut n_of_clusters = [0, 0];
    for (row, id) in ids.iter().enumerate() {
        let cluster = clusters[row].unwrap() as usize;
        n_of_clusters[cluster] += 1;
        let expert = &experts[cluster];
        let losses = (learner.loss(id, id), expert.loss(id, id));
        let expected = [losses.0, expert.similarity(id, id), losses.1, losses.0 - losses.1];
        for (column, expected) in columns.iter().zip(expected) {
            assert_close(column[row], expected, 1e-5);
        }
    }
    assert!(n_of_clusters.iter().all(|&n| n > 60), "{n_of_clusters:?}");
}

#[test]
fn sub_batches_are_drawn_by_the_expert_of_their_cluster() {
    let run = finished();
    let learner = Model { towers: towers(run, "learner"), logits: LEARNER };
    let expert = Model { towers: towers(run, "expert_1"), logits: REFERENCE };
    let rows = rows(&run.join("select"));
    let (ids, clusters, chunks) = (ids(&rows), u32s(&rows, "cluster"), u32s(&rows, "chunk"));
    let (scores, conditional) = (numbers(&rows, "score"), numbers(&rows, "conditional_score"));
    let mut super_batches: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (row, super_batch) in
        rows.column_by_name("super_batch").unwrap().as_primitive::<UInt64Type>().iter().enumerate()
    {
        super_batches.entry(super_batch.unwrap()).or_default().push(row);
    }
    let score = |image: &Id, caption: &Id| learner.loss(image, caption) - expert.loss(image, caption);
    let mut n_of_clusters = [0, 0];
    for members in super_batches.into_values() {
        let cluster = clusters[members[0]];
        assert!(members.iter().all(|&row| clusters[row] == cluster), "of one cluster");
        n_of_clusters[cluster.unwrap() as usize] += 1;
        let drawn: Vec<usize> = members.iter().copied().filter(|&row| chunks[row].is_some()).collect();
        assert!(drawn.len() >= 20 && drawn.iter().any(|&row| chunks[row] == Some(3)), "{drawn:?}");
        for &row in &drawn {
            if cluster == Some(0) {
                // the learner is its own expert
                assert_eq!((scores[row], conditional[row]), (Some(0.0), Some(0.0)));
                continue;
            }
            // JEST: F(A ∪ {x}) − F(A) of all that earlier chunks drew
            let own = score(&ids[row], &ids[row]);
            let before = drawn.iter().filter(|&&other| chunks[other] < chunks[row]);
            let terms: Vec<f64> = before
                .flat_map(|&other| [score(&ids[other], &ids[row]), score(&ids[row], &ids[other])])
                .collect();
            let size: f64 = terms.iter().map(|term| term.abs()).sum();
            assert_close(scores[row], own, 1e-5);
            assert_close(conditional[row], own + terms.iter().sum::<f64>(), 1e-4 * (1.0 + size));
        }
    }
    assert!(n_of_clusters.iter().all(|&n| n > 0), "{n_of_clusters:?}");
}

#[test]
fn kept_samples_carry_the_embeddings_of_base_and_expert() {
    let run = finished();
    let (base, reference) = (towers(run, "learner"), towers(run, "expert_1"));
    let rows = rows(&run.join("curated"));
    let found = embeddings(&rows, "base_embedding").into_iter().zip(embeddings(&rows, "expert_embedding"));
    let mut n_of_clusters = [0, 0];
    for ((id, cluster), (of_base, of_expert)) in ids(&rows).iter().zip(u32s(&rows, "cluster")).zip(found) {
        let expert = if cluster == Some(0) { &base } else { &reference };
        assert_eq!(of_base, base[id][0], "{id:?}");
        assert_eq!(of_expert, expert[id][0], "{id:?}");
        n_of_clusters[cluster.unwrap() as usize] += 1;
    }
    assert!(n_of_clusters.iter().all(|&n| n > 20), "{n_of_clusters:?}");
}

#[test]
fn experts_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |text: &str| {
        let run = folder.path().join("run");
        error_of(&mut pipeline(folder.path(), text).command("run", &run), 2)
    };
    let missing = PIPELINE.replace("[models.expert_1]\nfolder = \"fixtures/models/reference\"\n", "");
    let error = refused(&missing);
    assert!(error.contains("there is no `models.expert_1` for cluster 1"), "{error}");
    assert!(error.contains("hint: every cluster of `divide.n_clusters` needs its expert"), "{error}");
    let over_pool = PIPELINE.replace("super_batches = \"within_clusters\"\n", "");
    assert!(refused(&over_pool).contains("experts take the reference's place"));
    let audited = PIPELINE
        .replace("[divide]", "[models.full_learner]\nfolder = \"fixtures/models/reference\"\n\n[divide]");
    assert!(refused(&audited).contains("no `models.reference` or full model beside them"));
    let both = PIPELINE.replace("[models.expert_1]", "[models.reference]");
    assert!(refused(&both).contains("experts take the reference's place"));
    let no_expert = missing.replace("[models.expert_0]\nfolder = \"fixtures/models/learner\"\n", "");
    let no_expert = no_expert.replace("gain = 6", "gain = 6\nscore = \"hard_learner\"");
    assert!(refused(&no_expert).contains("`write.distil` needs `models.reference`"));
}
