//! Shards built in memory, sound and hostile.

use std::io::{self, Read};

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;
use crate::rejection::Rejection;

/// A tar of regular members.
fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (path, data) in members {
        let mut header = Header::new_gnu();
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, path, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn samples(bytes: &[u8], limits: Limits) -> Vec<ReadSample> {
    Samples::new(bytes, limits, true).collect::<io::Result<_>>().expect("a slice never fails")
}

/// Key and outcome of each sample: `ok` or the rejection's text.
fn outcomes(bytes: &[u8]) -> Vec<(String, &'static str)> {
    outcomes_within(bytes, Limits::default())
}

fn outcomes_within(bytes: &[u8], limits: Limits) -> Vec<(String, &'static str)> {
    let outcome = |(idx, sample)| match sample {
        ReadSample::Sample(sample) => {
            assert_eq!(sample.sample_idx, idx as u64);
            (sample.key, "ok")
        }
        ReadSample::Rejected(sample) => {
            assert_eq!(sample.sample_idx, idx as u64);
            (sample.key, sample.rejection.text())
        }
    };
    samples(bytes, limits).into_iter().enumerate().map(outcome).collect()
}

#[test]
fn only_in_a_plain_tar_does_an_offset_say_where_an_image_lies() {
    let bytes = tar(&[("0.jpg", &[7; 2000]), ("0.txt", b"a caption")]);
    for (is_plain, offset) in [(true, Some(512)), (false, None)] {
        let of = |bytes: &[u8]| {
            let sample = Samples::new(bytes, Limits::default(), is_plain).next().unwrap().unwrap();
            match sample {
                ReadSample::Sample(sample) => sample.image_offset,
                ReadSample::Rejected(sample) => sample.image_offset,
            }
        };
        // whole, and broken off inside the image
        assert_eq!([of(&bytes), of(&bytes[..1000])], [offset; 2]);
    }
}

fn expected(outcomes: &[(&str, &'static str)]) -> Vec<(String, &'static str)> {
    outcomes.iter().map(|&(key, outcome)| (key.to_owned(), outcome)).collect()
}

#[test]
fn a_sample_is_what_its_members_say() {
    let json = br#"{"uid": "abc", "caption": "not this one", "width": 3}"#;
    let bytes = tar(&[("a/0.x/00.JPG", b"image"), ("a/0.x/00.txt", b"a caption"), ("a/0.x/00.json", json)]);
    let [ReadSample::Sample(sample)] = &samples(&bytes, Limits::default())[..] else { panic!("one sample") };
    assert_eq!((sample.key.as_str(), sample.sample_idx), ("a/0.x/00", 0));
    assert_eq!((&sample.image[..], sample.image_extension.as_str()), (&b"image"[..], "jpg"));
    assert_eq!((sample.image_offset, sample.image_size), (Some(512), 5));
    assert_eq!(&bytes[512..517], b"image");
    assert_eq!((sample.caption.as_deref(), sample.label), (Some("a caption"), None));
    assert_eq!(sample.uid.as_deref(), Some("abc"));
    assert_eq!(sample.json.as_deref().map(str::as_bytes), Some(&json[..]));
}

#[test]
fn offsets_mean_nothing_in_a_compressed_shard() {
    let bytes = tar(&[("0.jpg", b"image"), ("0.txt", b"caption")]);
    let mut samples = Samples::new(&bytes[..], Limits::default(), false);
    let Some(Ok(ReadSample::Sample(sample))) = samples.next() else { panic!("a sample") };
    assert_eq!((sample.image_offset, sample.image_size), (None, 5));
}

#[test]
fn the_caption_is_txt_then_caption_then_json() {
    let json = br#"{"caption": "from json"}"#;
    let bytes = tar(&[
        ("0.jpg", b"i"),
        ("0.caption", b"from caption"),
        ("0.txt", b"from txt"),
        ("1.json", json),
        ("1.jpg", b"i"),
        ("1.caption", b"from caption"),
        ("2.jpg", b"i"),
        ("2.json", json),
    ]);
    let captions: Vec<String> = samples(&bytes, Limits::default())
        .into_iter()
        .map(|sample| match sample {
            ReadSample::Sample(sample) => sample.caption.unwrap(),
            ReadSample::Rejected(sample) => panic!("{sample:?}"),
        })
        .collect();
    assert_eq!(captions, ["from txt", "from caption", "from json"]);
}

#[test]
fn every_fault_of_a_sample_has_its_rejection() {
    let bytes = tar(&[
        ("good.jpg", b"i"),
        ("good.txt", b"c"),
        ("no_image.txt", b"c"),
        ("no_caption.jpg", b"i"),
        ("null_caption.jpg", b"i"),
        ("null_caption.json", br#"{"caption": null}"#),
        ("empty_image.jpg", b""),
        ("empty_image.txt", b"c"),
        ("latin1.jpg", b"i"),
        ("latin1.txt", b"caf\xe9"),
        ("blank.jpg", b"i"),
        ("blank.txt", b" \n\t"),
        ("bad_json.jpg", b"i"),
        ("bad_json.txt", b"c"),
        ("bad_json.json", b"{"),
        ("good.png", b"i"),
        ("good.txt", b"c"),
    ]);
    let outcomes = outcomes(&bytes);
    let all = [
        ("good", "ok"),
        ("no_image", "missing_image"),
        ("no_caption", "missing_caption"),
        ("null_caption", "missing_caption"),
        ("empty_image", "empty_image"),
        ("latin1", "caption_not_utf8"),
        ("blank", "empty_caption"),
        ("bad_json", "invalid_json"),
        ("good", "duplicate_key"),
    ];
    assert_eq!(outcomes, expected(&all));
}

#[test]
fn an_image_in_a_format_without_a_decoder_is_named() {
    let bytes = tar(&[
        ("0.avif", b"i"),
        ("0.txt", b"a"),
        ("1.jp2", b"i"),
        ("1.txt", b"a"),
        ("2.avif", b"i"),
        ("2.jpg", b"i"),
        ("2.txt", b"a"),
        ("3.heic", b"i"),
        ("3.txt", b"a"),
    ]);
    let all =
        [("0", "unsupported_avif"), ("1", "unsupported_jpeg_2000"), ("2", "ok"), ("3", "missing_image")];
    assert_eq!(outcomes(&bytes), expected(&all));
}

type LabelAndCaption = (Option<u32>, Option<String>);

/// Key, label and caption of each sample, or its rejection.
fn of_kind(bytes: &[u8], kind: &SampleKind) -> Vec<(String, Result<LabelAndCaption, &'static str>)> {
    let samples = Samples::new(bytes, Limits::default(), true).of_kind(kind.clone());
    let outcome = |sample: io::Result<ReadSample>| match sample.expect("a slice never fails") {
        ReadSample::Sample(sample) => (sample.key, Ok((sample.label, sample.caption))),
        ReadSample::Rejected(sample) => (sample.key, Err(sample.rejection.text())),
    };
    samples.map(outcome).collect()
}

#[test]
fn a_labelled_image_needs_a_label_and_no_caption() {
    let bytes = tar(&[
        ("digits.jpg", b"i"),
        ("digits.cls", b"7\n"),
        ("digits.txt", b"a caption"),
        ("latin1.jpg", b"i"),
        ("latin1.cls", b"0"),
        ("latin1.txt", b"caf\xe9"),
        ("none.jpg", b"i"),
        ("none.txt", b"a caption"),
        ("word.jpg", b"i"),
        ("word.cls", b"seven"),
        ("long.jpg", b"i"),
        ("long.cls", &[b'1'; 100]),
        ("no_image.cls", b"7"),
    ]);
    let outcomes = of_kind(&bytes, &SampleKind::ImageClass(LabelSource::Member));
    let expected = [
        ("digits", Ok((Some(7), Some("a caption".to_owned())))),
        ("latin1", Ok((Some(0), None))),
        ("none", Err("missing_label")),
        ("word", Err("invalid_label")),
        ("long", Err("invalid_label")),
        ("no_image", Err("missing_image")),
    ];
    assert_eq!(outcomes, expected.map(|(key, outcome)| (key.to_owned(), outcome)));
}

#[test]
fn a_label_can_stand_in_the_json() {
    let bytes = tar(&[
        ("here.jpg", b"i"),
        ("here.json", br#"{"annotation": {"class": 3}, "caption": "a caption"}"#),
        ("text.jpg", b"i"),
        ("text.json", br#"{"annotation": {"class": "3"}}"#),
        ("other.jpg", b"i"),
        ("other.json", br#"{"class": 3}"#),
        ("other.cls", b"3"),
        ("broken.jpg", b"i"),
        ("broken.json", b"{"),
        ("no_json.jpg", b"i"),
    ]);
    let kind = SampleKind::ImageClass(LabelSource::JsonField("annotation.class".to_owned()));
    let expected = [
        ("here", Ok((Some(3), Some("a caption".to_owned())))),
        ("text", Err("invalid_label")),
        ("other", Err("missing_label")),
        ("broken", Err("invalid_json")),
        ("no_json", Err("missing_label")),
    ];
    assert_eq!(of_kind(&bytes, &kind), expected.map(|(key, outcome)| (key.to_owned(), outcome)));
}

#[test]
fn an_image_alone_is_a_sample_where_nothing_else_is_asked_for() {
    let bytes = tar(&[("0.jpg", b"i"), ("1.jpg", b"i"), ("1.txt", b" "), ("2.jpg", b""), ("3.txt", b"c")]);
    let expected = [
        ("0", Ok((None, None))),
        ("1", Ok((None, None))),
        ("2", Err("empty_image")),
        ("3", Err("missing_image")),
    ];
    assert_eq!(of_kind(&bytes, &SampleKind::Image), expected.map(|(key, outcome)| (key.to_owned(), outcome)));
}

#[test]
fn limits_are_kept() {
    let limits = Limits {
        member_bytes_max: 100,
        json_bytes_max: 20,
        caption_bytes_max: 10,
        members_per_sample_max: 3,
        ..Limits::default()
    };
    let bytes = tar(&[
        ("image.jpg", &[1; 101]),
        ("image.txt", b"c"),
        ("other.jpg", b"i"),
        ("other.txt", b"c"),
        ("other.npy", &[1; 101]),
        ("caption.jpg", b"i"),
        ("caption.txt", b"eleven char"),
        ("both.jpg", b""),
        ("both.txt", b"eleven char"),
        ("in_json.jpg", b"i"),
        ("in_json.json", br#"{"caption":"0123"}"#),
        ("json.jpg", b"i"),
        ("json.txt", b"c"),
        ("json.json", br#"{"caption":"0123456"}"#),
        ("many.jpg", b"i"),
        ("many.txt", b"c"),
        ("many.a", b""),
        ("many.b", b""),
        ("good.jpg", &[1; 100]),
        ("good.txt", b"0123456789"),
    ]);
    let all = [
        ("image", "member_too_large"),
        ("other", "member_too_large"),
        ("caption", "caption_too_long"),
        ("both", "empty_image"),
        ("in_json", "ok"),
        ("json", "member_too_large"),
        ("many", "too_many_members"),
        ("good", "ok"),
    ];
    assert_eq!(outcomes_within(&bytes, limits), expected(&all));
}

#[test]
fn a_rejected_sample_keeps_what_was_readable() {
    let bytes = tar(&[("0.jpg", b""), ("0.txt", b"caption"), ("0.json", b"{}")]);
    let [ReadSample::Rejected(sample)] = &samples(&bytes, Limits::default())[..] else {
        panic!("one rejection")
    };
    assert_eq!(sample.rejection, Rejection::EmptyImage);
    assert_eq!((sample.caption.as_deref(), sample.json.as_deref()), (Some("caption"), Some("{}")));
    assert_eq!((sample.image_offset, sample.image_size), (Some(512), 0));
}

#[test]
fn names_that_belong_to_no_sample_are_passed_over() {
    let bytes = tar(&[
        ("__meta__", b"x"),
        ("0.jpg", b"i"),
        (".hidden.txt", b"x"),
        ("._0.jpg", b"x"),
        ("__MACOSX/0.jpg", b"x"),
        ("a/PaxHeaders.7/0.jpg", b"x"),
        ("README", b"x"),
        ("0.txt", b"c"),
    ]);
    assert_eq!(outcomes(&bytes), expected(&[("0", "ok")]));
}

#[test]
fn only_regular_members_count() {
    let mut builder = Builder::new(Vec::new());
    for (kind, path) in [
        (EntryType::Directory, "0.jpg"),
        (EntryType::Symlink, "0.png"),
        (EntryType::Link, "0.webp"),
        (EntryType::Char, "0.gif"),
        (EntryType::Fifo, "0.bmp"),
    ] {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        builder.append_data(&mut header, path, io::empty()).unwrap();
    }
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(bytes.len() - 1024);
    bytes.extend(tar(&[("0.txt", b"c")]));
    assert_eq!(outcomes(&bytes), expected(&[("0", "missing_image")]));
}

#[test]
fn an_extension_twice_begins_a_second_sample() {
    let bytes = tar(&[("0.jpg", b"i"), ("0.txt", b"c"), ("0.jpg", b"j"), ("0.txt", b"d")]);
    assert_eq!(outcomes(&bytes), expected(&[("0", "ok"), ("0", "duplicate_key")]));
}

#[test]
fn long_names_and_pax_paths_are_read() {
    let folder = "folder/".repeat(40);
    let (image, caption) = (format!("{folder}0.jpg"), format!("{folder}0.txt"));
    let gnu = tar(&[(&image, b"i"), (&caption, b"c")]);
    let mut builder = Builder::new(Vec::new());
    for (path, data) in [(&image, b"i"), (&caption, b"c")] {
        let value = format!("a comment\nof two lines {path}");
        builder
            .append_pax_extensions([("comment", value.as_bytes()), ("path", path.as_bytes()), ("size", b"1")])
            .unwrap();
        let mut header = Header::new_ustar();
        header.set_size(0); // the pax size goes before it
        header.set_path("short").unwrap();
        header.set_cksum();
        builder.append(&header, &data[..]).unwrap();
    }
    let pax = builder.into_inner().unwrap();
    assert_eq!(outcomes(&gnu), expected(&[(&format!("{folder}0"), "ok")]));
    assert_eq!(outcomes(&pax), expected(&[(&format!("{folder}0"), "ok")]));
}

#[test]
fn a_cut_shard_delivers_what_came_before() {
    let bytes = tar(&[("0.jpg", b"i"), ("0.txt", b"c"), ("1.jpg", &[7; 2000]), ("1.txt", b"c")]);
    // headers at 0, 1024, 2048, 5120 (after 2,000 bytes in 4 blocks: 2048 + 512 + 2048 = 4608)
    assert_eq!(outcomes(&bytes[..3000]), expected(&[("0", "ok"), ("1", "shard_broken")]), "in an image");
    assert_eq!(outcomes(&bytes[..4700]), expected(&[("0", "ok"), ("1", "shard_broken")]), "in a header");
    assert_eq!(outcomes(&bytes[..5121]), expected(&[("0", "ok"), ("1", "ok")]), "in padding");
    assert_eq!(outcomes(&bytes[..5632]), expected(&[("0", "ok"), ("1", "ok")]), "no end blocks");
    assert_eq!(outcomes(&bytes[..100]), expected(&[("", "shard_broken")]), "in the first header");
    assert_eq!(outcomes(b""), expected(&[("", "shard_broken")]), "nothing at all");
    assert_eq!(outcomes(&tar(&[])), [], "an empty tar");
}

#[test]
fn a_compressed_shard_that_is_cut_is_broken() {
    let noise: Vec<u8> = (0..4000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let bytes = tar(&[("0.jpg", b"i"), ("0.txt", b"c"), ("1.jpg", &noise), ("1.txt", b"c")]);
    let packed = zstd::encode_all(&bytes[..], 1).unwrap();
    let cut = packed[..packed.len() - 100].to_vec();
    let reader = decompress("0.tar.zst", io::Cursor::new(cut)).unwrap();
    let last = Samples::new(reader, Limits::default(), false).last().unwrap().unwrap();
    assert!(matches!(last, ReadSample::Rejected(sample) if sample.rejection == Rejection::ShardBroken));
}

#[test]
fn a_failing_reader_is_an_error_not_a_rejection() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
    let bytes = tar(&[("0.jpg", b"i"), ("0.txt", b"c"), ("1.jpg", &[7; 2000]), ("1.txt", b"c")]);
    let mut samples = Samples::new((&bytes[..3000]).chain(Failing), Limits::default(), true);
    assert!(matches!(samples.next(), Some(Ok(ReadSample::Sample(_)))));
    assert!(matches!(samples.next(), Some(Err(_))));
    assert!(samples.next().is_none());
}

#[test]
fn records_of_any_claimed_size_allocate_nothing() {
    for kind in [EntryType::GNULongName, EntryType::XHeader, EntryType::GNULongLink, EntryType::XGlobalHeader]
    {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(u64::MAX / 4);
        header.set_cksum();
        assert_eq!(outcomes(header.as_bytes()), expected(&[("", "shard_broken")]), "{kind:?}");
    }
}

fn a_shard() -> Vec<u8> {
    let long = format!("{}/2.jpg", "long".repeat(50));
    tar(&[
        ("0.jpg", &[1; 700]),
        ("0.txt", b"caption"),
        ("0.json", br#"{"uid": "a", "caption": "b"}"#),
        ("1.jpg", b"i"),
        ("1.txt", b"c"),
        (&long, b"i"),
    ])
}

/// Reads to the end within small limits, which is all that must hold of hostile bytes.
fn must_end(bytes: &[u8]) {
    let limits = Limits { member_bytes_max: 1000, members_per_sample_max: 4, ..Limits::default() };
    let n_samples = samples(bytes, limits).len();
    assert!(n_samples <= bytes.len() / 512 + 1);
}

proptest! {
    #[test]
    fn random_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        must_end(&bytes);
    }

    #[test]
    fn mutated_shards_are_survived(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        is_resealed in any::<bool>(),
        length in any::<proptest::sample::Index>(),
    ) {
        let mut bytes = a_shard();
        for (place, value) in changes {
            let at = place.index(bytes.len());
            bytes[at] = value;
            if is_resealed {
                // Without a right checksum nothing behind the header would be reached.
                let block = at / 512 * 512;
                let mut header = Header::from_byte_slice(&bytes[block..block + 512]).clone();
                header.set_cksum();
                bytes[block..block + 512].copy_from_slice(header.as_bytes());
            }
        }
        must_end(&bytes);
        must_end(&bytes[..length.index(bytes.len())]);
    }
}
