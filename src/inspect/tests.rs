use std::path::PathBuf;

use serde_json::Value;

use super::*;
use crate::storage::Storage;
use crate::table::{self, Columns};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn shown(path: &Path, key: Option<&str>) -> (Value, String) {
    let shown = inspect(path, key).unwrap();
    (serde_json::from_str(&shown.json()).unwrap(), shown.text())
}

#[test]
fn a_tar_is_a_table_of_samples() {
    let (json, text) = shown(&fixture("pool/shard-00000.tar"), None);
    let n_samples = json["n_samples"].as_u64().unwrap() as usize;
    assert_eq!((json["kind"].as_str(), json["samples"].as_array().unwrap().len()), (Some("tar"), n_samples));
    assert!(text.contains(&format!("{n_samples} samples, 0 rejected")), "{text}");
    assert!(text.ends_with(&format!("… {} more; `--json` shows all", n_samples - 20)), "{text}");
}

#[test]
fn rejections_are_counted_and_shown() {
    for (tar, rejection) in [
        ("cut_jpeg", "undecodable_image"),
        ("duplicate_key", "duplicate_key"),
        ("missing_caption", "missing_caption"),
        ("missing_image", "missing_image"),
        ("missing_label", "missing_label"),
        ("invalid_label", "invalid_label"),
        ("non_utf8_caption", "caption_not_utf8"),
        ("truncated", "shard_broken"),
        ("zero_byte_member", "empty_image"),
    ] {
        let (json, text) = shown(&fixture(&format!("faults/{tar}.tar")), None);
        assert!(json["rejected"][rejection].as_u64() > Some(0), "{tar}: {json}");
        assert!(text.contains(&format!(" {rejection}")), "{text}");
    }
}

#[test]
fn labelled_images_and_images_alone_are_samples_too() {
    let (json, text) = shown(&fixture("class_pool/shard-00000.tar"), None);
    assert!(text.contains("100 samples, 0 rejected") && text.contains("caption or label"), "{text}");
    assert!(json["samples"][0]["label"].is_u64() && json["samples"][0]["caption"].is_null(), "{json}");
    let folder = tempfile::tempdir().unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    let image = ::image::RgbImage::new(2, 3);
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, ::image::ImageFormat::Png).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(png.get_ref().len() as u64);
    builder.append_data(&mut header, "0.png", &png.get_ref()[..]).unwrap();
    let path = folder.path().join("images.tar");
    std::fs::write(&path, builder.into_inner().unwrap()).unwrap();
    assert!(shown(&path, None).1.contains("1 samples, 0 rejected"));
}

#[test]
fn a_compressed_tar_shows_the_same_samples() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(fixture("faults/cut_jpeg.tar")).unwrap();
    let path = folder.path().join("cut_jpeg.tar.zst");
    std::fs::write(&path, zstd::encode_all(&bytes[..], 1).unwrap()).unwrap();
    let (compressed, _) = shown(&path, None);
    let (plain, _) = shown(&fixture("faults/cut_jpeg.tar"), None);
    assert_eq!(compressed["rejected"], plain["rejected"]);
    assert_eq!(compressed["n_samples"], plain["n_samples"]);
}

#[test]
fn a_sample_of_a_tar_is_shown_whole() {
    let path = fixture("pool/shard-00000.tar");
    let (json, text) = shown(&path, Some("000000002"));
    let [sample] = &json["samples"].as_array().unwrap()[..] else { panic!("one sample: {json}") };
    assert!(sample["json"].is_string() && sample["width"].as_u64() > Some(0), "{sample}");
    assert!(
        text.contains("a run would read this sample") && text.contains(sample["caption"].as_str().unwrap()),
        "{text}"
    );
    assert!(matches!(inspect(&path, Some("nobody")), Err(Error::KeyMissing { .. })));
}

#[test]
fn a_parquet_file_shows_its_shape_and_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Storage::new(folder.path());
    let mut columns = Columns::default();
    columns.text("key", (0..40).map(|n| Some(format!("k{}", n % 39)))).u64("sample_idx", (0..40).map(Some));
    let table = columns.build();
    table::write(&storage, "t.parquet", &table, &[("superbatch_seed", "7".to_owned())]).unwrap();
    let path = folder.path().join("t.parquet");

    let (json, text) = shown(&path, None);
    assert_eq!((json["n_rows"].as_u64(), json["rows"].as_array().unwrap().len()), (Some(40), 20));
    assert_eq!(json["metadata"]["superbatch_seed"], "7");
    assert!(
        text.contains("superbatch_seed = 7") && text.contains("sample_idx  UInt64  0      1      2"),
        "{text}"
    );

    let (json, text) = shown(&path, Some("k0"));
    let found: Vec<u64> =
        json["rows"].as_array().unwrap().iter().map(|row| row["row_idx"].as_u64().unwrap()).collect();
    assert_eq!(found, [0, 39]);
    assert_eq!(json["rows"][1]["values"]["sample_idx"], 39);
    assert!(text.contains("t.parquet, row 39\n"), "{text}");
    assert!(matches!(inspect(&path, Some("k39")), Err(Error::KeyMissing { .. })));
}

#[test]
fn other_bytes_are_nothing_to_show() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(inspect(folder.path(), None), Err(Error::NothingToShow { .. })));
    let text = folder.path().join("notes.txt");
    std::fs::write(&text, "not a tar at all, but long enough for a header: ".repeat(40)).unwrap();
    assert!(matches!(inspect(&text, None), Err(Error::NothingToShow { .. })));
    assert!(matches!(inspect(&text, Some("k")), Err(Error::NothingToShow { .. })));
    std::fs::write(&text, "PAR1 but no more").unwrap();
    assert!(matches!(inspect(&text, None), Err(Error::ReadParquet { .. })));
    assert!(matches!(inspect(&folder.path().join("missing"), None), Err(Error::Read { .. })));
}
