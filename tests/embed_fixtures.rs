//! Reading and embedding, on the fixtures: every fault is one rejection, and the batch changes no embedding.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use superbatch::embed::image::{decode, preprocess};
use superbatch::embed::{
    BatchInputs, BatchOutputs, Device, Model, ModelChoice, ModelParts, PairEmbeddings, SessionSettings,
    Tokenizer, Tokens, Towers, Variant,
};
use superbatch::error::Error;
use superbatch::matrix::{Matrix, dot};
use superbatch::read::{LabelSource, Limits, ReadSample, Sample, SampleKind, Samples};
use superbatch::runtime::Place;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn read(shard: &str) -> Vec<ReadSample> {
    read_as(shard, SampleKind::ImageText)
}

fn read_as(shard: &str, kind: SampleKind) -> Vec<ReadSample> {
    let file = File::open(fixtures().join(shard)).unwrap();
    Samples::new(file, Limits::default(), true).of_kind(kind).collect::<Result<_, _>>().unwrap()
}

fn good(shard: &str) -> Vec<Sample> {
    let samples = read(shard).into_iter().map(|sample| match sample {
        ReadSample::Sample(sample) => sample,
        ReadSample::Rejected(sample) => panic!("{shard}: `{}` is rejected: {}", sample.key, sample.rejection),
    });
    samples.collect()
}

fn model(name: &str) -> Model {
    Model::open(&fixtures().join("models").join(name), ModelChoice::default()).unwrap()
}

fn cpu() -> SessionSettings {
    SessionSettings { place: Place::CPU, n_threads: 2 }
}

/// Embeds samples in batches of `n_batch`.
fn embed(model: &Model, samples: &[Sample], n_batch: usize) -> PairEmbeddings {
    let mut towers = Towers::open(model, &cpu()).unwrap();
    assert_eq!(towers.place(), Place::CPU);
    let nodes = towers.nodes();
    assert_eq!(nodes.totals().into_keys().collect::<Vec<_>>(), ["CPUExecutionProvider"]);
    assert!(nodes.totals()["CPUExecutionProvider"] > 40, "{nodes}");
    let ModelParts::Pair { image, text } = &model.parts else { panic!("the fixtures have both towers") };
    let tokenizer = Tokenizer::open(&model.folder, text).unwrap();
    let mut all: Option<PairEmbeddings> = None;
    for batch in samples.chunks(n_batch) {
        let n_values = image.preprocessing.n_values();
        let mut pixels = vec![0.0; batch.len() * n_values];
        let mut tokens = Tokens::new(tokenizer.context_length());
        for (sample, out) in batch.iter().zip(pixels.chunks_exact_mut(n_values)) {
            let decoded = decode(&sample.image, &Limits::default()).unwrap();
            preprocess(&decoded, &image.preprocessing, out);
            tokenizer.encode(sample.caption.as_deref().unwrap(), &mut tokens).unwrap();
        }
        let outputs = towers.embed(&BatchInputs::Pairs { pixels, tokens }).unwrap();
        let BatchOutputs::Pairs(embedded) = outputs else { panic!("pairs in, pairs out") };
        assert!(embedded.image.degenerate.is_empty() && embedded.text.degenerate.is_empty());
        match &mut all {
            None => all = Some(embedded),
            Some(all) => {
                append(&mut all.image.rows, &embedded.image.rows);
                append(&mut all.text.rows, &embedded.text.rows);
            }
        }
    }
    all.unwrap()
}

fn append(rows: &mut Matrix, others: &Matrix) {
    (0..others.n_rows()).for_each(|row| rows.push_row(others.row(row)));
}

fn smallest_cosine(left: &Matrix, right: &Matrix) -> f32 {
    assert_eq!((left.n_rows(), left.n_cols()), (right.n_rows(), right.n_cols()));
    (0..left.n_rows()).map(|row| dot(left.row(row), right.row(row))).fold(f32::INFINITY, f32::min)
}

#[test]
fn every_fault_is_one_rejection() {
    // Key and reason of the faulty sample, and how many good ones there are, as fixtures/faults/README.md
    // says.
    let faults = [
        ("avif", "009003", "unsupported_avif", 6),
        ("cut_jpeg", "000003", "undecodable_image", 6),
        ("duplicate_key", "005003", "duplicate_key", 7),
        ("invalid_label", "008003", "invalid_label", 6),
        ("jpeg_2000", "010003", "unsupported_jpeg_2000", 6),
        ("missing_caption", "001003", "missing_caption", 6),
        ("missing_image", "002003", "missing_image", 6),
        ("missing_label", "007003", "missing_label", 6),
        ("non_utf8_caption", "003003", "caption_not_utf8", 6),
        ("truncated", "006005", "shard_broken", 5),
        ("zero_byte_member", "004003", "empty_image", 6),
    ];
    let n_files = fs::read_dir(fixtures().join("faults"))
        .unwrap()
        .filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "tar"))
        .count();
    assert_eq!(n_files, faults.len(), "each fault has its line here");
    for (name, key, reason, n_good) in faults {
        let mut rejected = Vec::new();
        let mut n_ok = 0;
        let kind = match name.ends_with("_label") {
            true => SampleKind::ImageClass(LabelSource::Member),
            false => SampleKind::ImageText,
        };
        for (idx, sample) in read_as(&format!("faults/{name}.tar"), kind).into_iter().enumerate() {
            let (key, idx_stated, rejection) = match sample {
                ReadSample::Rejected(sample) => (sample.key, sample.sample_idx, Some(sample.rejection)),
                ReadSample::Sample(sample) => {
                    (sample.key, sample.sample_idx, decode(&sample.image, &Limits::default()).err())
                }
            };
            assert_eq!(idx_stated, idx as u64);
            match rejection {
                None => n_ok += 1,
                Some(rejection) => rejected.push((key, rejection.text())),
            }
        }
        assert_eq!(rejected, [(key.to_owned(), reason)], "{name}");
        assert_eq!(n_ok, n_good, "{name}");
    }
}

#[test]
fn offsets_lead_to_the_image() {
    let shard = fixtures().join("pool/shard-00000.tar");
    let bytes = fs::read(&shard).unwrap();
    let samples = good("pool/shard-00000.tar");
    assert!(samples.len() > 100);
    for sample in samples {
        let start = sample.image_offset.unwrap() as usize;
        assert_eq!(&bytes[start..start + sample.image_size as usize], &sample.image[..], "{}", sample.key);
    }
}

#[test]
fn the_batch_changes_no_embedding() {
    let samples = &good("pool/shard-00000.tar")[..15];
    for name in ["learner", "reference"] {
        let model = model(name);
        let (one, seven) = (embed(&model, samples, 1), embed(&model, samples, 7));
        for row in 0..samples.len() {
            let length = dot(one.image.rows.row(row), one.image.rows.row(row)).sqrt();
            assert!((length - 1.0).abs() < 1e-5, "{name}: length {length}");
        }
        for (one, seven) in [(&one.image, &seven.image), (&one.text, &seven.text)] {
            let cosine = smallest_cosine(&one.rows, &seven.rows);
            assert!(cosine >= 0.9999, "{name}: {cosine}");
        }
    }
}

#[test]
fn a_caption_fits_its_image_best() {
    let samples = &good("pool/shard-00000.tar")[..64];
    let pairs = embed(&model("reference"), samples, 32);
    let similarity = |i: usize, j: usize| dot(pairs.image.rows.row(i), pairs.text.rows.row(j));
    let n = samples.len();
    let own = (0..n).map(|i| similarity(i, i)).sum::<f32>() / n as f32;
    let next = (0..n).map(|i| similarity(i, (i + 1) % n)).sum::<f32>() / n as f32;
    assert!(own > next + 0.1, "own {own}, next {next}");
}

#[test]
fn a_digest_is_of_what_decides_an_embedding() {
    let learner = model("learner");
    assert_eq!(learner.digest, model("learner").digest);
    assert_eq!(learner.digest.len(), 64);
    let folder = copy(&learner);
    let same = Model::open(folder.path(), ModelChoice::default()).unwrap();
    assert_eq!(same.digest, learner.digest, "the place of the folder is not part of it");
    append_to_manifest(&folder, "resample = \"bilinear\"\n");
    let other = Model::open(folder.path(), ModelChoice::default()).unwrap();
    assert_ne!(other.digest, learner.digest);
}

#[test]
fn a_graph_that_does_not_fit_says_what_it_offers() {
    let learner = model("learner");
    let folder = copy(&learner);
    append_to_manifest(&folder, "image_output = \"nothing\"\n");
    let model = Model::open(folder.path(), ModelChoice::default()).unwrap();
    let Err(Error::Model { source, .. }) = Towers::open(&model, &cpu()) else { panic!("an error") };
    let message = source.to_string();
    assert!(message.contains("`nothing`") && message.contains("`image_embeds`"), "{message}");
    assert!(source.hint().unwrap().contains("image_output"));
}

#[test]
fn a_missing_variant_names_the_files() {
    let folder = fixtures().join("models/learner");
    let Err(Error::Model { source, .. }) =
        Model::open(&folder, ModelChoice { variant: Variant::Fp16, ..ModelChoice::default() })
    else {
        panic!("an error")
    };
    assert!(source.to_string().contains("vision_model_fp16.onnx"), "{source}");
}

#[test]
fn a_gpu_that_is_not_there_is_an_error() {
    let device: Device = "cuda:63".parse().unwrap();
    assert!(matches!(device.places(), Err(Error::Device { .. })));
}

fn copy(model: &Model) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("onnx")).unwrap();
    let files = fs::read_dir(&model.folder).unwrap().map(|file| file.unwrap().path());
    let graphs = model.parts.graphs().into_iter().map(Path::to_owned);
    for file in files.filter(|path| path.is_file()).chain(graphs) {
        fs::copy(&file, folder.path().join(file.strip_prefix(&model.folder).unwrap())).unwrap();
    }
    folder
}

fn append_to_manifest(folder: &tempfile::TempDir, line: &str) {
    let path = folder.path().join("model.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(path, format!("{text}\n{line}")).unwrap();
}
