//! Pools in every layout that is read, written by the field's own tools: see `tests/consumers/make_inputs.py`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use blake2::Blake2b;
use blake2::digest::{Digest, consts::U8};
use serde::Deserialize;
use serde_json::Value;
use superbatch::read::{
    ColumnNames, LabelSource, ReadRules, ReadSample, SampleKind, ShardError, ShardFormat, ShardSamples,
};
use superbatch::rejection::Rejection;

mod support;

use support::{Seeded, root};

#[derive(Deserialize)]
struct Expected {
    key: String,
    caption: String,
    uid: Option<String>,
    label: Option<u32>,
    /// BLAKE2b of the encoded bytes.
    image: Option<String>,
    /// Fields that the JSON has beside others.
    #[serde(default)]
    json: BTreeMap<String, Value>,
    rejection: Option<String>,
}

fn inputs() -> PathBuf {
    root().join("tests/golden/inputs")
}

fn expected() -> BTreeMap<String, Vec<Expected>> {
    serde_json::from_slice(&fs::read(inputs().join("expected.json")).unwrap()).unwrap()
}

fn open(path: &Path, rules: &ReadRules) -> Result<ShardSamples, ShardError> {
    let name = path.to_str().unwrap();
    let sidecar = ShardFormat::sidecar_of(name).and_then(|name| File::open(name).ok());
    ShardSamples::open(name, File::open(path).unwrap(), sidecar, rules)
}

fn read(path: &Path, rules: &ReadRules) -> Vec<ReadSample> {
    open(path, rules)
        .unwrap_or_else(|error| panic!("{}: {error:?}", path.display()))
        .map(Result::unwrap)
        .collect()
}

fn of_kind(kind: SampleKind) -> ReadRules {
    ReadRules { kind, ..ReadRules::default() }
}

fn digest(bytes: &[u8]) -> String {
    let digest: [u8; 8] = Blake2b::<U8>::digest(bytes).into();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_layout_gives_its_samples() {
    for (name, rows) in expected() {
        let has_images = rows.iter().any(|row| row.image.is_some());
        let kind = if has_images { SampleKind::ImageText } else { SampleKind::Text };
        let samples = read(&inputs().join(&name), &of_kind(kind));
        assert_eq!(samples.len(), rows.len(), "{name}");
        for (idx, (sample, row)) in samples.into_iter().zip(&rows).enumerate() {
            let what = format!("{name}, sample {idx}");
            match (sample, &row.rejection) {
                (ReadSample::Rejected(sample), Some(rejection)) => {
                    assert_eq!(
                        (&sample.key, sample.rejection.text()),
                        (&row.key, rejection.as_str()),
                        "{what}"
                    );
                }
                (ReadSample::Rejected(sample), None) => panic!("{what}: {}", sample.rejection),
                (ReadSample::Sample(_), Some(rejection)) => panic!("{what}: not {rejection}"),
                (ReadSample::Sample(sample), None) => {
                    assert_eq!((&sample.key, sample.sample_idx), (&row.key, idx as u64), "{what}");
                    assert_eq!(sample.caption.as_ref(), Some(&row.caption), "{what}");
                    assert_eq!(&sample.uid, &row.uid, "{what}");
                    if let Some(image) = &row.image {
                        assert_eq!(&digest(&sample.image), image, "{what}");
                        assert_eq!(sample.image_size, sample.image.len() as u64, "{what}");
                        assert!(["jpg", "png"].contains(&sample.image_extension.as_str()), "{what}");
                    }
                    let json: Value = serde_json::from_str(sample.json.as_deref().unwrap_or("{}")).unwrap();
                    for (field, value) in &row.json {
                        assert_eq!(&json[field], value, "{what}: {field}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_label_is_a_member_or_a_column() {
    let expected = expected();
    for name in ["webdataset/00000.tar", "webdataset/00001.tar.gz", "hugging_face/named.parquet"] {
        let samples = read(&inputs().join(name), &of_kind(SampleKind::ImageClass(LabelSource::Member)));
        for (sample, row) in samples.into_iter().zip(&expected[name]) {
            let ReadSample::Sample(sample) = sample else { panic!("{name}: `{}` has a label", row.key) };
            assert_eq!(sample.label, row.label, "{name}: {}", row.key);
        }
    }
    let by_field = of_kind(SampleKind::ImageClass(LabelSource::JsonField("width".to_owned())));
    let samples = read(&inputs().join("hugging_face/named.parquet"), &by_field);
    let ReadSample::Sample(first) = &samples[0] else { panic!("the first row is whole") };
    assert_eq!(first.label, Some(30));
}

#[test]
fn what_the_tar_says_goes_before_the_file_beside_it() {
    let path = inputs().join("img2dataset_webdataset/00000.tar");
    let json_of = |samples: Vec<ReadSample>| -> Vec<Option<String>> {
        let json = samples.into_iter().map(|sample| match sample {
            ReadSample::Sample(sample) => sample.json,
            ReadSample::Rejected(sample) => sample.json,
        });
        json.collect()
    };
    let alone = ShardSamples::open("0.tar", File::open(&path).unwrap(), None, &ReadRules::default()).unwrap();
    assert_eq!(json_of(read(&path, &ReadRules::default())), json_of(alone.map(Result::unwrap).collect()));
    // without the file beside it, a tar of images alone has no captions
    let path = inputs().join("img2dataset_images/00000.tar");
    let alone = ShardSamples::open("0.tar", File::open(&path).unwrap(), None, &ReadRules::default()).unwrap();
    for sample in alone.map(Result::unwrap) {
        let ReadSample::Rejected(sample) = sample else { panic!("`{sample:?}` has no caption") };
        assert_eq!(sample.rejection, Rejection::MissingCaption);
    }
}

#[test]
fn columns_are_named_or_the_fault_is() {
    let path = inputs().join("hugging_face/named.parquet");
    let named = |image: Option<&str>, caption: Option<&str>| ReadRules {
        columns: ColumnNames { image: image.map(str::to_owned), caption: caption.map(str::to_owned) },
        ..ReadRules::default()
    };
    assert_eq!(read(&path, &named(Some("image"), Some("text"))), read(&path, &ReadRules::default()));
    let Err(ShardError::NoColumn(error)) = open(&path, &named(None, Some("title"))) else {
        panic!("no `title`")
    };
    assert!(error.to_string().contains("`title`") && error.to_string().contains("`text`"), "{error}");
    let Err(ShardError::NoColumn(_)) = open(&path, &named(Some("text"), None)) else {
        panic!("a text is no image")
    };
    let metadata = inputs().join("datacomp/metadata/0a1b.parquet");
    let Err(ShardError::NoColumn(error)) = open(&metadata, &ReadRules::default()) else {
        panic!("no images")
    };
    assert!(error.to_string().contains("with images"), "{error}");
}

#[test]
fn mangled_and_cut_files_are_survived() {
    let whole = fs::read(inputs().join("hugging_face/named.parquet")).unwrap();
    let mut seeded = Seeded(7);
    let mut n_broken = 0;
    for case in 0..300 {
        let mut bytes = whole.clone();
        if case % 3 == 0 {
            bytes.truncate(seeded.below(whole.len() as u64) as usize);
        } else {
            for _ in 0..1 + seeded.below(8) {
                // the last third of a Parquet file is where its structure is
                let at = if case % 3 == 1 {
                    seeded.below(whole.len() as u64)
                } else {
                    whole.len() as u64 - 1 - seeded.below(1600)
                };
                bytes[at as usize] = seeded.below(256) as u8;
            }
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let Ok(samples) = ShardSamples::open("0.parquet", file, None, &ReadRules::default()) else {
            continue;
        };
        for (idx, sample) in samples.enumerate() {
            let sample = sample.expect("the file can be read");
            if let ReadSample::Rejected(sample) = &sample
                && sample.rejection == Rejection::ShardBroken
            {
                n_broken += 1;
                assert_eq!(sample.sample_idx, idx as u64);
            }
            assert!(idx < 1000, "rows without end");
        }
    }
    assert!(n_broken > 100, "{n_broken} of 300 were found to be broken");
}

#[test]
fn a_caption_column_that_the_file_beside_a_tar_lacks_is_an_error() {
    let path = inputs().join("img2dataset_webdataset/00000.tar");
    let columns = ColumnNames { caption: Some("alt".to_owned()), ..ColumnNames::default() };
    let opened = open(&path, &ReadRules { columns, ..ReadRules::default() });
    let Err(ShardError::Read(error)) = opened else { panic!("an error, and no sample without its caption") };
    assert!(error.to_string().contains("`alt` with captions"), "{error}");
}
