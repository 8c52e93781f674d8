//! Whole runs over pools that are no tars: Parquet with images, and embeddings that were made before, in the layouts of
//! clip-retrieval and DataComp. See `tests/consumers/make_inputs.py`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, RecordBatch};
use assert_cmd::assert::OutputAssertExt;
use serde_json::Value;

mod support;

use support::{Pipeline, assert_verified, copy_folder, embeddings, error_of, json, root, rows, superbatch};

const INPUTS: &str = "tests/golden/inputs";

/// A pipeline file over these shards.
fn pipeline(folder: &Path, read: &str, models: &str, step: &str) -> Pipeline {
    let file = folder.join("pipeline.toml");
    fs::write(&file, format!("seed = 3\n[read]\n{read}\n{models}\n[[select.step]]\n{step}\n")).unwrap();
    Pipeline { file, sets: Vec::new() }
}

fn texts(rows: &RecordBatch, column: &str) -> Vec<Option<String>> {
    let column = rows.column_by_name(column).unwrap().as_string::<i32>();
    column.iter().map(|text| text.map(str::to_owned)).collect()
}

/// The unit vectors of a tower, by NumPy.
fn expected(model: &str, tower: &str) -> Vec<Vec<f64>> {
    let all: Value = json(&root().join(INPUTS).join("vectors.json"));
    serde_json::from_value(all[model][tower].clone()).unwrap()
}

/// The stored embeddings of the plan's learner or reference.
fn stored(run: &Path, role: &str) -> RecordBatch {
    let plan = json(&run.join("plan.json"));
    let digest = plan["models"][role]["digest"].as_str().unwrap().to_owned();
    rows(&run.join("embeddings").join(digest))
}

#[track_caller]
fn assert_near(found: &[Vec<f64>], expected: &[Vec<f64>]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        for (found, expected) in found.iter().zip(expected) {
            // stored as f16
            assert!((found - expected).abs() < 1e-3, "{found} for {expected}");
        }
    }
}

const TEXT_POOL: &str = "samples = \"text\"";

#[test]
fn embeddings_of_clip_retrieval_need_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let read = format!("shards = [\"{INPUTS}/clip_retrieval/metadata/*.parquet\"]\n{TEXT_POOL}");
    let learner = format!(
        "[models.learner]\nprecomputed = {{ image = \"{INPUTS}/clip_retrieval/img_emb/*.npy\", \
         text = \"{INPUTS}/clip_retrieval/text_emb/*.npy\" }}"
    );
    let pipeline = pipeline(
        folder.path(),
        &read,
        &learner,
        "method = \"random\"\nfilter_ratio = 0.5\nsuper_batch_size = 8",
    );
    let run = folder.path().join("run");
    pipeline.run(&run);
    let embedded = stored(&run, "learner");
    assert_near(&embeddings(&embedded, "image_embedding"), &expected("clip_retrieval", "image"));
    assert_near(&embeddings(&embedded, "text_embedding"), &expected("clip_retrieval", "text"));
    let curated = rows(&run.join("curated"));
    assert_eq!(curated.num_rows(), 4);
    let image = curated.column_by_name("image").unwrap();
    assert_eq!(image.null_count(), 4, "there are no images");
    assert!(texts(&curated, "uid").iter().chain(&texts(&curated, "caption")).all(Option::is_some));
    assert!(texts(&curated, "key").iter().flatten().all(|key| key.starts_with("pictures/")));
    assert_verified(&run);
}

#[test]
fn two_models_of_datacomp_learn_from_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let read = format!("shards = [\"{INPUTS}/datacomp/metadata/*.parquet\"]\n{TEXT_POOL}");
    let model = |role: &str, array: &str| {
        format!(
            "[models.{role}]\nprecomputed = {{ npz = \"{INPUTS}/datacomp/metadata/*.npz\", image = \"{array}_img\", \
             text = \"{array}_txt\", logit_scale = 10.0, logit_bias = -3.0 }}\n"
        )
    };
    let models = model("learner", "b32") + &model("reference", "l14");
    let step = "method = \"jest\"\nfilter_ratio = 0.5\nsuper_batch_size = 8\nn_chunks = 2";
    let pipeline = pipeline(folder.path(), &read, &models, step);
    let run = folder.path().join("run");
    pipeline.run(&run);
    for (role, name) in [("learner", "b32"), ("reference", "l14")] {
        let embedded = stored(&run, role);
        assert_near(&embeddings(&embedded, "image_embedding"), &expected(name, "image"));
        assert_near(&embeddings(&embedded, "text_embedding"), &expected(name, "text"));
    }
    // the similarity of a pair is that of its unit vectors
    let selected = rows(&run.join("select"));
    let found = selected.column_by_name("reference_similarity").unwrap();
    let found = arrow::compute::cast(found, &arrow::datatypes::DataType::Float64).unwrap();
    let found = found.as_primitive::<arrow::datatypes::Float64Type>().values().to_vec();
    for ((image, text), found) in expected("l14", "image").iter().zip(&expected("l14", "text")).zip(found) {
        let cosine: f64 = image.iter().zip(text).map(|(left, right)| left * right).sum();
        assert!((cosine - found).abs() < 2e-3, "{found} for {cosine}");
    }
    assert_eq!(rows(&run.join("curated")).num_rows(), 4);
    assert_verified(&run);
    // the subset goes back to DataComp's own shards; tars would have no images
    let export = |to: &str| {
        let target = folder.path().join(to);
        superbatch([Path::new("export"), &run, Path::new("--to"), Path::new(to), &target])
    };
    export("datacomp").assert().success();
    let subset = fs::metadata(folder.path().join("datacomp/subset.npy")).unwrap();
    assert_eq!(subset.len(), 128 + 4 * 16, "a header and four uids");
    assert!(error_of(&mut export("webdataset"), 2).contains("the pool has no images"));
}

#[test]
fn a_parquet_pool_keeps_its_images() {
    let folder = tempfile::tempdir().unwrap();
    let read = format!("shards = [\"{INPUTS}/hugging_face/named.parquet\"]");
    let models = "[models.learner]\nfolder = \"fixtures/models/learner\"\n\
                  [models.reference]\nfolder = \"fixtures/models/reference\"";
    let step = "method = \"jest\"\nfilter_ratio = 0.5\nsuper_batch_size = 8\nn_chunks = 2";
    let pipeline = pipeline(folder.path(), &read, models, step);
    let run = folder.path().join("run");
    pipeline.run(&run);
    let curated = rows(&run.join("curated"));
    assert_eq!(curated.num_rows(), 4);
    // the bytes are those of the pool's rows of the same captions
    let images = |rows: &RecordBatch, caption: &str| -> BTreeMap<String, Vec<u8>> {
        let image = rows.column_by_name("image").unwrap().as_struct();
        let bytes = image.column_by_name("bytes").unwrap().as_binary::<i32>();
        let captions = texts(rows, caption).into_iter().map(Option::unwrap);
        captions.zip(bytes.iter()).map(|(caption, bytes)| (caption, bytes.unwrap().to_vec())).collect()
    };
    let all = images(&one_file(&root().join(INPUTS).join("hugging_face/named.parquet")), "text");
    for (caption, bytes) in images(&curated, "caption") {
        assert_eq!(all[&caption], bytes, "{caption}");
    }
    assert_verified(&run);
}

/// A Parquet file's rows.
fn one_file(path: &Path) -> RecordBatch {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(path, folder.path().join("0.parquet")).unwrap();
    rows(folder.path())
}

#[test]
fn what_does_not_fit_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let inputs: PathBuf = folder.path().join("inputs");
    copy_folder(&root().join(INPUTS), &inputs);
    let at = |name: &str| format!("{}/{name}", inputs.display());
    let step = "method = \"random\"\nfilter_ratio = 0.5\nsuper_batch_size = 8";
    let text_pool = format!("shards = [\"{}\"]\n{TEXT_POOL}", at("clip_retrieval/metadata/*.parquet"));
    let error = |read: &str, model: &str, code: i32| {
        let pipeline = pipeline(folder.path(), read, &format!("[models.learner]\n{model}"), step);
        error_of(&mut pipeline.command("run", &folder.path().join("run")), code)
    };
    let given = |image: &str| format!("precomputed = {{ image = \"{}\" }}", at(image));

    let said = error(&text_pool, "calibrate = false", 2);
    assert!(said.contains("`models.learner` needs a `folder`"), "{said}");
    let said = error(&text_pool, &given("clip_retrieval/img_emb/img_emb_0.npy"), 2);
    assert!(said.contains("names 1 files of embeddings, but the pool has 2 shards"), "{said}");
    let said = error(&text_pool, &given("clip_retrieval/metadata/*.parquet"), 2);
    assert!(said.contains("cannot use embeddings") && said.contains("not a NumPy file"), "{said}");
    let said = error(&text_pool, "folder = \"fixtures/models/learner\"", 2);
    assert!(said.contains("the pool has no images"), "{said}");
    let images = format!("shards = [\"{}\"]", at("clip_retrieval/metadata/*.parquet"));
    let said = error(&images, "folder = \"fixtures/models/learner\"", 2);
    assert!(said.contains("no column with images") && said.contains("read.samples"), "{said}");
    let said = error("shards = [\"s3://bucket/{0..9}.tar\"]", "folder = \"fixtures/models/learner\"", 2);
    assert!(said.contains("over `s3`") && said.contains("only local files"), "{said}");

    // a file of embeddings with a row too few, and the one of another shard
    let emb = inputs.join("clip_retrieval/img_emb");
    fs::copy(emb.join("img_emb_1.npy"), emb.join("img_emb_0.npy")).unwrap();
    let said = error(&text_pool, &given("clip_retrieval/img_emb/*.npy"), 2);
    assert!(said.contains("have 3 rows, but shard") && said.contains("has 5 samples"), "{said}");
    fs::rename(emb.join("img_emb_0.npy"), emb.join("img_emb_7.npy")).unwrap();
    let said = error(&text_pool, &given("clip_retrieval/img_emb/*.npy"), 2);
    assert!(said.contains("do not seem to be those of shard"), "{said}");
}

#[test]
fn a_list_file_names_the_shards() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("list.txt");
    let shards = format!("# the pool\n\n{INPUTS}/datacomp/metadata/{{0a1b,2c3d}}.parquet\n");
    fs::write(&list, shards).unwrap();
    let read = format!("shards = [\"@{}\"]\n{TEXT_POOL}", list.display());
    let models = format!(
        "[models.learner]\nprecomputed = {{ npz = \"{INPUTS}/datacomp/metadata/*.npz\", image = \"b32_img\" }}"
    );
    let pipeline = pipeline(
        folder.path(),
        &read,
        &models,
        "method = \"random\"\nfilter_ratio = 0.25\nsuper_batch_size = 8",
    );
    let run = folder.path().join("run");
    pipeline.command("run", &run).assert().success();
    assert_eq!(rows(&run.join("curated")).num_rows(), 6);
}
