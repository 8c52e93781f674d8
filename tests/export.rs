//! Exports of a finished run, read back without our own readers and compared with the pool's tars, the embeddings and the
//! curated shards. `consumers/read_exports.py` opens them with the tools that they are for.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::UInt32Type;
use assert_cmd::assert::OutputAssertExt;
use half::f16;
use parquet::basic::{Compression, Encoding};
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;
use support::{
    Pipeline, embedded_store, embeddings, error_of, ids, json, names, root, rows, superbatch, text,
};

/// Two passes, so that some samples are kept twice.
fn finished() -> &'static Path {
    static RUN: OnceLock<PathBuf> = OnceLock::new();
    RUN.get_or_init(|| {
        let run = embedded_store().with_file_name("finished");
        Pipeline::embedded().with("select.step.0.n_passes=2").with("write.distil=true").run(&run);
        run
    })
}

fn export(run: &Path, to: &str, folder: &Path, options: &[&str]) -> std::process::Command {
    let mut command =
        superbatch(["export".as_ref(), run.as_os_str(), "--to".as_ref(), to.as_ref(), folder.as_os_str()]);
    command.args(options);
    command
}

/// The members of a sample by extension.
type Members = BTreeMap<String, Vec<u8>>;

/// The samples of a tar in its order: members with one key stand together.
fn samples(tar: &Path) -> Vec<(String, Members)> {
    let mut samples: Vec<(String, Members)> = Vec::new();
    for member in tar::Archive::new(fs::File::open(tar).unwrap()).entries().unwrap() {
        let mut member = member.unwrap();
        let path = member.path().unwrap().to_str().unwrap().to_owned();
        let mut bytes = Vec::new();
        member.read_to_end(&mut bytes).unwrap();
        let base = path.rfind('/').map_or(0, |slash| slash + 1);
        let dot = base + path[base..].find('.').unwrap();
        let (key, extension) = (path[..dot].to_owned(), path[dot + 1..].to_owned());
        if samples.last().is_none_or(|(last, _)| *last != key) {
            samples.push((key, Members::new()));
        }
        assert!(samples.last_mut().unwrap().1.insert(extension, bytes).is_none(), "{path} is there twice");
    }
    let keys: BTreeSet<&String> = samples.iter().map(|(key, _)| key).collect();
    assert_eq!(keys.len(), samples.len(), "keys are unique in a tar");
    samples
}

/// The samples of the pool by shard and key.
fn originals(pool: &Path) -> BTreeMap<(String, String), Members> {
    let shards = names(pool).into_iter().filter(|name| name.ends_with(".tar"));
    shards
        .flat_map(|shard| {
            samples(&pool.join(&shard)).into_iter().map(move |(key, members)| ((shard.clone(), key), members))
        })
        .collect()
}

fn provenance(members: &Members) -> Value {
    serde_json::from_slice(&members["superbatch.json"]).unwrap()
}

/// Fails unless a sample holds its original members and no others; returns its shard and position.
#[track_caller]
fn assert_original(members: &Members, originals: &BTreeMap<(String, String), Members>) -> (String, u64) {
    let story = provenance(members);
    let text = |name: &str| story[name].as_str().unwrap().to_owned();
    let mut without = members.clone();
    without.remove("superbatch.json");
    assert_eq!(without, originals[&(text("shard"), text("key"))]);
    (text("shard"), story["sample_idx"].as_u64().unwrap())
}

fn u32s(rows: &RecordBatch, column: &str) -> Vec<u32> {
    rows.column_by_name(column).unwrap().as_primitive::<UInt32Type>().values().to_vec()
}

fn texts<'a>(rows: &'a RecordBatch, column: &str) -> Vec<&'a str> {
    rows.column_by_name(column).unwrap().as_string::<i32>().iter().map(Option::unwrap).collect()
}

#[test]
fn tars_hold_the_originals_in_curated_order() {
    let (run, folder) = (finished(), tempfile::tempdir().unwrap());
    let shard_bytes = 200_000;
    let output = export(run, "webdataset", folder.path(), &["--shard-bytes", "200000"]).assert().success();
    assert_eq!(support::text(&output.get_output().stdout).trim_end(), folder.path().to_str().unwrap());
    let originals = originals(&root().join("fixtures/pool"));
    let curated = rows(&run.join("curated"));
    let mut found = Vec::new();
    let mut sub_batches: BTreeMap<(u64, u64), BTreeSet<String>> = BTreeMap::new();
    let mut sizes = BTreeMap::new();
    let tars: Vec<String> = names(folder.path()).into_iter().filter(|name| name.ends_with(".tar")).collect();
    for (tar_idx, name) in tars.iter().enumerate() {
        assert_eq!(*name, format!("{tar_idx:05}.tar"));
        let samples = samples(&folder.path().join(name));
        sizes.insert(name.clone(), samples.len());
        for (_, members) in &samples {
            found.push(assert_original(members, &originals));
            let story = provenance(members);
            let number = |name: &str| story[name].as_u64().unwrap();
            sub_batches.entry((number("pass"), number("super_batch"))).or_default().insert(name.clone());
        }
        let size = fs::metadata(folder.path().join(name)).unwrap().len();
        assert!(tar_idx + 1 == tars.len() || size >= shard_bytes, "{name} has {size} bytes");
    }
    assert_eq!(found, ids(&curated));
    assert!(tars.len() > 2 && sub_batches.len() > tars.len());
    assert!(sub_batches.values().all(|tars| tars.len() == 1), "sub-batches stay together: {sub_batches:?}");
    assert_eq!(json(&folder.path().join("sizes.json")), serde_json::to_value(sizes).unwrap());
}

#[test]
fn each_cluster_has_its_folder() {
    let (run, folder) = (finished(), tempfile::tempdir().unwrap());
    export(run, "clusters", folder.path(), &[]).assert().success();
    let originals = originals(&root().join("fixtures/pool"));
    let curated = rows(&run.join("curated"));
    let clusters = u32s(&curated, "cluster");
    let sizes = json(&folder.path().join("clusters.json"));
    assert_eq!(sizes.as_array().unwrap().len(), 4);
    for (cluster, size) in (0..).zip(sizes.as_array().unwrap()) {
        let name = format!("cluster_{cluster:05}");
        let tar = folder.path().join(&name).join("00000.tar");
        let found: Vec<_> =
            samples(&tar).iter().map(|(_, members)| assert_original(members, &originals)).collect();
        let of_cluster = ids(&curated).into_iter().zip(&clusters).filter(|(_, of_row)| **of_row == cluster);
        assert_eq!(found, of_cluster.map(|(id, _)| id).collect::<Vec<_>>());
        let expected = serde_json::json!(
            {"cluster": cluster, "folder": name, "n_samples": found.len(), "n_tars": 1}
        );
        assert_eq!(*size, expected);
        let sizes = json(&folder.path().join(&name).join("sizes.json"));
        assert_eq!(sizes, serde_json::json!({"00000.tar": found.len()}));
    }
}

/// Header and values of a `.npy` file.
fn npy(path: &Path) -> (String, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    (String::from_utf8(bytes[10..10 + length].to_vec()).unwrap(), bytes[10 + length..].to_vec())
}

#[test]
fn subsets_are_sorted_halves_of_uids() {
    let (run, folder) = (finished(), tempfile::tempdir().unwrap());
    let said = text(&export(run, "datacomp", folder.path(), &[]).output().unwrap().stderr);
    let curated = rows(&run.join("curated"));
    let mut expected: Vec<u128> = Vec::new();
    for (uid, n_repeats) in texts(&curated, "uid").into_iter().zip(u32s(&curated, "n_repeats")) {
        expected.extend((0..n_repeats).map(|_| u128::from_str_radix(uid, 16).unwrap()));
    }
    expected.sort_unstable();
    assert!(expected.len() > curated.num_rows(), "some sample was kept twice");
    let counted = format!("{} samples, {} times in 1 files", curated.num_rows(), expected.len());
    assert!(said.contains(&counted), "{said}");
    let (header, values) = npy(&folder.path().join("subset.npy"));
    assert!(
        header.starts_with("{'descr': [('f0', '<u8'), ('f1', '<u8')], 'fortran_order': False, 'shape': (")
    );
    assert!(header.contains(&format!("({},)", expected.len())), "{header}");
    let half = |bytes: &[u8]| u128::from(u64::from_le_bytes(bytes.try_into().unwrap()));
    let found: Vec<u128> =
        values.chunks(16).map(|pair| (half(&pair[..8]) << 64) | half(&pair[8..])).collect();
    assert_eq!(found, expected);
}

#[test]
fn embeddings_stand_in_the_order_of_the_metadata() {
    let run = finished();
    for (options, role) in [(&[][..], "reference"), (&["--model", "learner"][..], "learner")] {
        let folder = tempfile::tempdir().unwrap();
        export(run, "clip-retrieval", folder.path(), options).assert().success();
        assert_eq!(
            names(folder.path()),
            ["img_emb/img_emb_0.npy", "metadata/metadata_0.parquet", "text_emb/text_emb_0.npy"]
        );
        let metadata = rows(&folder.path().join("metadata"));
        let curated = rows(&run.join("curated"));
        assert_eq!(ids(&metadata), ids(&curated));
        assert_eq!(texts(&metadata, "caption"), texts(&curated, "caption"));
        let first: Vec<&str> =
            metadata.schema_ref().fields()[..2].iter().map(|f| f.name().as_str()).collect();
        assert_eq!(first, ["image_path", "caption"]);
        let digest = json(&run.join("plan.json"))["models"][role]["digest"].as_str().unwrap().to_owned();
        let stored = rows(&embedded_store().join("embeddings").join(digest));
        let row_of: BTreeMap<(String, u64), usize> = ids(&stored).into_iter().zip(0..).collect();
        for (file, column) in [("img_emb", "image_embedding"), ("text_emb", "text_embedding")] {
            let stored = embeddings(&stored, column);
            let (header, values) = npy(&folder.path().join(format!("{file}/{file}_0.npy")));
            let shape =
                format!("'descr': '<f2', 'fortran_order': False, 'shape': ({}, 128)", metadata.num_rows());
            assert!(header.contains(&shape), "{header}");
            let values: Vec<f64> =
                values.chunks(2).map(|value| f16::from_le_bytes([value[0], value[1]]).to_f64()).collect();
            for (id, found) in ids(&metadata).iter().zip(values.chunks(128)) {
                assert_eq!(found, stored[row_of[id]], "{id:?}");
            }
        }
    }
}

#[test]
fn targets_of_distillation_are_plain_and_compressed() {
    let run = finished();
    let curated = rows(&run.join("curated"));
    let digest = json(&run.join("plan.json"))["models"]["reference"]["digest"].as_str().unwrap().to_owned();
    let stored = rows(&embedded_store().join("embeddings").join(digest));
    let row_of: BTreeMap<(String, u64), usize> = ids(&stored).into_iter().zip(0..).collect();
    let images = embeddings(&stored, "image_embedding");
    // without experts the reference is what all clusters have
    for column in ["base_embedding", "expert_embedding"] {
        for (id, found) in ids(&curated).iter().zip(embeddings(&curated, column)) {
            assert_eq!(found, images[row_of[id]], "{column} of {id:?}");
        }
        let file =
            SerializedFileReader::new(fs::File::open(run.join("curated/00000.parquet")).unwrap()).unwrap();
        let row_group = file.metadata().row_group(0);
        let chunk =
            row_group.columns().iter().find(|chunk| chunk.column_path().parts()[0] == column).unwrap();
        assert!(matches!(chunk.compression(), Compression::ZSTD(_)), "{column}");
        let encodings: Vec<Encoding> = chunk.encodings().collect();
        assert!(encodings.contains(&Encoding::PLAIN), "{encodings:?}");
        assert!(!encodings.contains(&Encoding::RLE_DICTIONARY), "{encodings:?}");
        assert!(!encodings.contains(&Encoding::BYTE_STREAM_SPLIT), "{encodings:?}");
    }
}

/// A pool of two shards with the same keys and no JSON.
fn small_pool(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let samples = samples(&root().join("fixtures/pool/shard-00000.tar"));
    for (shard, samples) in ["a.tar", "b.tar"].into_iter().zip(samples.chunks(16)) {
        let mut tar = tar::Builder::new(fs::File::create(folder.join(shard)).unwrap());
        for (sample_idx, (_, members)) in samples.iter().enumerate() {
            for (extension, bytes) in members.iter().filter(|(extension, _)| *extension != "json") {
                let mut header = tar::Header::new_gnu();
                header.set_size(bytes.len() as u64);
                header.set_mode(0o644);
                tar.append_data(&mut header, format!("{sample_idx:03}.{extension}"), &bytes[..]).unwrap();
            }
        }
        tar.finish().unwrap();
    }
}

#[test]
fn images_come_from_the_pool_where_the_run_has_none() {
    let folder = tempfile::tempdir().unwrap();
    let pool = folder.path().join("pool");
    small_pool(&pool);
    let run = folder.path().join("run");
    let pipeline = |shards: &str| {
        Pipeline::of_shards(&format!("{}/{shards}", pool.display()))
            .with("write.images=false")
            .with("select.step.0.super_batch_size=16")
            .with("select.step.0.filter_ratio=0.25")
            .with("divide.n_clusters=2")
    };
    pipeline("?.tar").run(&run);
    let to = |name: &str| folder.path().join(name);
    export(&run, "webdataset", &to("tars"), &[]).assert().success();
    let originals = originals(&pool);
    let found = samples(&to("tars").join("00000.tar"));
    let kept: Vec<_> = found.iter().map(|(_, members)| assert_original(members, &originals)).collect();
    assert_eq!(kept, ids(&rows(&run.join("curated"))));
    assert_eq!(kept.len(), 24);
    // of 16 keys 12 or more are kept of each shard: some stand in the tar twice
    let with_shard = found.iter().filter(|(key, _)| key.starts_with("a.tar/") || key.starts_with("b.tar/"));
    assert!(with_shard.count() >= 8);

    let error = error_of(&mut export(&run, "datacomp", &to("subset"), &[]), 2);
    assert!(error.contains("24 of 24 kept samples have no `uid` of 32 hexadecimal digits"), "{error}");
    assert!(names(&to("subset")).is_empty(), "a refused export leaves nothing");

    let bytes = fs::read(pool.join("a.tar")).unwrap();
    fs::write(pool.join("a.tar"), bytes).unwrap();
    let error = error_of(&mut export(&run, "webdataset", &to("later"), &[]), 1);
    assert!(error.contains("is not the one that the plan saw"), "{error}");

    let mut gz =
        flate2::write::GzEncoder::new(fs::File::create(pool.join("c.tar.gz")).unwrap(), Default::default());
    std::io::copy(&mut fs::File::open(pool.join("a.tar")).unwrap(), &mut gz).unwrap();
    gz.finish().unwrap();
    let run = folder.path().join("compressed");
    pipeline("c.tar.gz").run(&run);
    let error = error_of(&mut export(&run, "clusters", &to("clusters"), &[]), 2);
    assert!(error.contains("shard `c.tar.gz` is no plain tar"), "{error}");
    assert!(error.contains("hint: run again with `write.images = true`"), "{error}");
}

#[test]
fn what_cannot_be_exported_is_refused() {
    let (run, folder) = (finished(), tempfile::tempdir().unwrap());
    fs::write(folder.path().join("mine.txt"), "mine").unwrap();
    let error = error_of(&mut export(run, "datacomp", folder.path(), &[]), 2);
    assert!(error.contains("is not empty") && error.contains("hint: "), "{error}");
    assert_eq!(names(folder.path()), ["mine.txt"]);

    let to = folder.path().join("export");
    let error = error_of(&mut export(run, "clip-retrieval", &to, &["--model", "base"]), 2);
    assert!(error.contains("no embeddings of all samples under `models.base`"), "{error}");
    let error = error_of(&mut export(run, "datacomp", &to, &["--shard-bytes", "1000"]), 2);
    assert!(error.contains("`--shard-bytes` has no meaning for `--to datacomp`"), "{error}");
    let unfinished = folder.path().join("unfinished");
    Pipeline::embedded().command("embed", &unfinished).assert().success();
    let error = error_of(&mut export(&unfinished, "webdataset", &to, &[]), 1);
    assert!(error.contains("`write` is not committed"), "{error}");
    let error = error_of(&mut export(folder.path(), "webdataset", &to, &[]), 2);
    assert!(error.contains("is not a run folder"), "{error}");
}
