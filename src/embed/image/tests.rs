//! Parity with Pillow, by the golden file of `tests/oracle/preprocess.py`, and hostile bytes.

use std::collections::HashMap;

use ::image::RgbImage;
use base64::prelude::*;
use blake2::Blake2b;
use blake2::digest::{Digest, consts::U8};
use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::read::Limits;
use crate::rejection::Rejection;

#[derive(Deserialize)]
struct Golden {
    decoded: Vec<Decoded>,
    resized: Vec<Resized>,
    tensors: Vec<ExpectedTensor>,
}

#[derive(Deserialize)]
struct Decoded {
    name: String,
    bytes: String,
    #[serde(default)]
    width: u32,
    #[serde(default)]
    height: u32,
    /// None if Pillow refuses the image.
    pixels: Option<String>,
}

#[derive(Deserialize)]
struct Resized {
    source: String,
    size: (u32, u32),
    resample: Resample,
    pixels: String,
}

#[derive(Deserialize)]
struct ExpectedTensor {
    source: String,
    side: u32,
    crop: (u32, u32),
    every_101st: Vec<f32>,
}

impl Decoded {
    fn file(&self) -> Vec<u8> {
        BASE64_STANDARD.decode(&self.bytes).unwrap()
    }
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../../tests/golden/preprocess.json")).unwrap()
}

fn digest(bytes: &[u8]) -> String {
    let digest: [u8; 8] = Blake2b::<U8>::digest(bytes).into();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sources(golden: &Golden) -> HashMap<&str, RgbImage> {
    let decodable = golden.decoded.iter().filter(|row| row.pixels.is_some());
    decodable.map(|row| (row.name.as_str(), decode(&row.file(), &Limits::default()).unwrap())).collect()
}

fn whole(width: u32, height: u32) -> Window {
    Window { columns: 0..width, rows: 0..height }
}

#[test]
fn decoding_equals_pillow() {
    for row in golden().decoded {
        let decoded = decode(&row.file(), &Limits::default());
        let Some(pixels) = &row.pixels else {
            assert_eq!(decoded, Err(Rejection::UndecodableImage), "{}", row.name);
            continue;
        };
        let image = decoded.unwrap_or_else(|rejection| panic!("{}: {rejection}", row.name));
        assert_eq!(image.dimensions(), (row.width, row.height), "{}", row.name);
        assert_eq!(&digest(image.as_raw()), pixels, "{}", row.name);
    }
}

#[test]
fn resizing_equals_pillow() {
    let golden = golden();
    let sources = sources(&golden);
    for row in &golden.resized {
        let (width, height) = row.size;
        let image = resize(&sources[row.source.as_str()], width, height, row.resample, &whole(width, height));
        assert_eq!(
            digest(image.as_raw()),
            row.pixels,
            "{} to {width}×{height}, {:?}",
            row.source,
            row.resample
        );
    }
}

#[test]
fn a_window_is_a_crop_of_the_whole() {
    let golden = golden();
    let image = &sources(&golden)["jpeg_tall"];
    for (width, height) in [(40, 70), (120, 70), (40, 301), (120, 301)] {
        let all = resize(image, width, height, Resample::Bicubic, &whole(width, height));
        let window = Window { columns: 3..31, rows: 20..66 };
        let part = resize(image, width, height, Resample::Bicubic, &window);
        assert_eq!(part, ::image::imageops::crop_imm(&all, 3, 20, 28, 46).to_image(), "{width}×{height}");
    }
}

#[test]
fn tensors_equal_transformers() {
    let golden = golden();
    let sources = sources(&golden);
    for row in &golden.tensors {
        let preprocessing = Preprocessing {
            resize: Resize::ShortestSide { side: row.side, crop_width: row.crop.0, crop_height: row.crop.1 },
            resample: Resample::Bicubic,
            rescale_factor: 1.0 / 255.0,
            mean: [0.48145466, 0.4578275, 0.40821073],
            std: [0.26862954, 0.26130258, 0.27577711],
            crop_start: Default::default(),
            jpeg_decoding: Default::default(),
        };
        let mut out = vec![f32::NAN; preprocessing.n_values()];
        preprocess(&sources[row.source.as_str()], &preprocessing, &mut out);
        assert!(out.iter().all(|value| value.is_finite()));
        for (ours, expected) in out.iter().step_by(101).zip(&row.every_101st) {
            assert!((ours - expected).abs() < 1e-6, "{}: {ours} for {expected}", row.source);
        }
    }
}

/// A tensor of `tests/oracle/processors.py`.
#[derive(Deserialize)]
struct Processed {
    source: String,
    preprocessing: Preprocessing,
    digest: String,
    first: Vec<f32>,
}

#[test]
fn tensors_equal_the_processors_bit_for_bit() {
    let golden = golden();
    let sources = sources(&golden);
    let text = include_str!("../../../tests/golden/processors.json");
    let tensors: HashMap<String, serde_json::Value> = serde_json::from_str(text).unwrap();
    let rows: Vec<Processed> = serde_json::from_value(tensors["tensors"].clone()).unwrap();
    assert!(rows.len() > 100);
    for row in rows {
        let mut out = vec![f32::NAN; row.preprocessing.n_values()];
        preprocess(&sources[row.source.as_str()], &row.preprocessing, &mut out);
        let bytes: Vec<u8> = out.iter().flat_map(|value| value.to_le_bytes()).collect();
        let what = format!("{} by {:?}: {:?} for {:?}", row.source, row.preprocessing, &out[..4], row.first);
        assert_eq!(digest(&bytes), row.digest, "{what}");
    }
}

#[test]
fn a_squashed_tensor_by_hand() {
    let image = RgbImage::from_raw(1, 1, vec![0, 128, 255]).unwrap();
    let preprocessing = Preprocessing {
        resize: Resize::Squash { width: 2, height: 1 },
        resample: Resample::Bilinear,
        rescale_factor: 1.0 / 255.0,
        mean: [0.5; 3],
        std: [0.5; 3],
        crop_start: Default::default(),
        jpeg_decoding: Default::default(),
    };
    let mut out = [0.0; 6];
    preprocess(&image, &preprocessing, &mut out);
    let middle = 128.0 / 255.0 * 2.0 - 1.0;
    for (ours, expected) in out.iter().zip([-1.0, -1.0, middle, middle, 1.0, 1.0]) {
        assert!((ours - expected).abs() < 1e-6, "{out:?}");
    }
}

#[test]
fn images_over_the_limit_are_not_decoded() {
    let golden = golden();
    for name in ["jpeg_420", "png_rgb", "webp_lossy", "gif", "bmp", "tiff"] {
        let row = golden.decoded.iter().find(|row| row.name == name).unwrap();
        let n_pixels = u64::from(row.width * row.height);
        let at = |image_pixels_max| decode(&row.file(), &Limits { image_pixels_max, ..Limits::default() });
        assert!(at(n_pixels).is_ok(), "{name}");
        assert_eq!(at(n_pixels - 1), Err(Rejection::ImageTooLarge), "{name}");
    }
    assert_eq!(decode(b"", &Limits::default()), Err(Rejection::EmptyImage));
}

#[test]
fn formats_without_a_decoder_are_named() {
    let decode = |bytes: &[u8]| decode(bytes, &Limits::default());
    let avif = |brands: &[u8]| {
        [&(8 + brands.len() as u32).to_be_bytes()[..], b"ftyp", brands, b"....meta avif"].concat()
    };
    assert_eq!(decode(&avif(b"avif\0\0\0\0avifmif1")), Err(Rejection::UnsupportedAvif));
    assert_eq!(decode(&avif(b"mif1\0\0\0\0mif1avif")), Err(Rejection::UnsupportedAvif));
    // another format of the same family, and what only comes after the box
    assert_eq!(decode(&avif(b"heic\0\0\0\0mif1heic")), Err(Rejection::UndecodableImage));
    assert_eq!(decode(b"\xff\xff\xff\xffftypavif"), Err(Rejection::UnsupportedAvif));
    assert_eq!(decode(b"\0\0\0\x08ftypavif"), Err(Rejection::UndecodableImage));
    let jpeg_2000 = b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ";
    assert_eq!(decode(jpeg_2000), Err(Rejection::UnsupportedJpeg2000));
    assert_eq!(decode(b"\xff\x4f\xff\x51\0\x29"), Err(Rejection::UnsupportedJpeg2000));
}

#[test]
fn the_stated_size_is_that_of_the_decoded_image() {
    let golden = golden();
    let mut formats = std::collections::HashSet::new();
    for row in golden.decoded.iter().filter(|row| row.pixels.is_some()) {
        if let Some(size) = stated_size(&row.file()) {
            assert_eq!(size, (row.width, row.height), "{}", row.name);
            formats.insert(row.name.split('_').next().unwrap());
        }
    }
    assert!(["jpeg", "png", "webp", "bmp"].iter().all(|format| formats.contains(format)), "{formats:?}");
    assert_eq!((stated_size(b""), stated_size(b"\x89PNG\r\n\x1a\n")), (None, None));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn mangled_images_are_survived(
        which in any::<proptest::sample::Index>(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..12),
        length in any::<proptest::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let golden = golden();
        let mut bytes = golden.decoded[which.index(golden.decoded.len())].file();
        for (place, value) in changes {
            let at = place.index(bytes.len());
            bytes[at] = value;
        }
        if is_cut {
            bytes.truncate(length.index(bytes.len()));
        }
        let _ = stated_size(&bytes);
        let limits = Limits { image_pixels_max: 1 << 18, ..Limits::default() };
        if let Ok(image) = decode(&bytes, &limits) {
            prop_assert!(u64::from(image.width()) * u64::from(image.height()) <= limits.image_pixels_max);
            let resized = resize(&image, 5, 4, Resample::Bicubic, &whole(5, 4));
            prop_assert_eq!(resized.dimensions(), (5, 4));
        }
    }
}
