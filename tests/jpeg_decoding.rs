//! The audit of `jpeg_decoding = "scaled"`: embeddings of large JPEGs decoded at a part of their size against those of
//! every pixel.

use std::fs::File;
use std::path::{Path, PathBuf};

use superbatch::embed::image::{Decoded, JpegDecoding, Preprocessing, RgbImage, decode};
use superbatch::embed::{
    BatchOutputs, DecodedSample, Encoders, Model, ModelChoice, ModelParts, Sessions, Sharing,
};
use superbatch::read::{Limits, ReadSample, Sample, Samples};
use superbatch::runtime::{Place, library};
use turbojpeg::{Image, PixelFormat, Subsamp};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn fixture_samples() -> Vec<Sample> {
    let shard = File::open(root().join("fixtures/pool/shard-00000.tar")).unwrap();
    let samples = Samples::new(shard, Limits::default(), true).map(Result::unwrap);
    let whole = samples.filter_map(|sample| match sample {
        ReadSample::Sample(sample) => Some(sample),
        ReadSample::Rejected(_) => None,
    });
    whole.collect()
}

/// Many pictures side by side, so that there is as much detail a pixel as in a photo.
fn mosaic(samples: &[Sample], width: u32, height: u32) -> RgbImage {
    let mut mosaic = RgbImage::new(width, height);
    let pictures: Vec<RgbImage> =
        samples.iter().filter_map(|sample| decode(&sample.image, &Limits::default()).ok()).collect();
    let (mut x, mut y, mut row_height) = (0, 0, 0);
    for picture in pictures.iter().cycle() {
        if x >= width {
            (x, y, row_height) = (0, y + row_height, 0);
        }
        if y >= height {
            return mosaic;
        }
        for (dx, dy, pixel) in picture.enumerate_pixels() {
            if x + dx < width && y + dy < height {
                mosaic.put_pixel(x + dx, y + dy, *pixel);
            }
        }
        (x, row_height) = (x + picture.width(), row_height.max(picture.height()).max(1));
    }
    unreachable!("pictures without end fill any mosaic")
}

fn jpeg(image: &RgbImage, subsampling: Subsamp) -> Vec<u8> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let raw =
        Image { pixels: &image.as_raw()[..], width, pitch: 3 * width, height, format: PixelFormat::RGB };
    turbojpeg::compress(raw, 90, subsampling).unwrap().to_vec()
}

fn model(name: &str, jpeg_decoding: JpegDecoding) -> Model {
    let choice = ModelChoice { jpeg_decoding, ..ModelChoice::default() };
    Model::open(&root().join("fixtures/models").join(name), choice).unwrap()
}

fn rule(model: &Model) -> &Preprocessing {
    let ModelParts::Pair { image, .. } = &model.parts else { panic!("the fixtures have both towers") };
    &image.preprocessing
}

#[test]
fn scaled_decoding_hardly_turns_an_embedding() {
    library::load().unwrap();
    let samples = fixture_samples();
    // each side at least twice the model's 96 pixels after the reduction, and a multiple of it
    let sizes =
        [(1600, 1600, 8), (1537, 1600, 1), (1000, 800, 4), (402, 578, 2), (384, 384, 2), (300, 300, 1)];
    for name in ["learner", "reference"] {
        let [exact, scaled] =
            [JpegDecoding::Exact, JpegDecoding::Scaled].map(|decoding| model(name, decoding));
        assert_ne!(exact.digest, scaled.digest, "other pixels are another model");
        let encoders = Encoders::new([&exact, &scaled], Limits::default()).unwrap();
        let sharing = Sharing { n_sessions: 1, n_threads: 1 };
        let mut sessions = Sessions::open_on(&exact, &[Place::CPU], sharing, 8).unwrap();
        for (idx, (width, height, reduction)) in sizes.into_iter().enumerate() {
            let subsampling = [Subsamp::Sub2x2, Subsamp::None][idx % 2];
            let image = jpeg(&mosaic(&samples[idx * 7..], width, height), subsampling);
            let decoded = Decoded::new(&image, &Limits::default(), &[rule(&scaled).clone()]).unwrap();
            assert_eq!((decoded.width, decoded.height), (width, height), "the size stays the image's own");
            let reduced = decoded.image_for(rule(&scaled));
            let expected = (width.div_ceil(reduction), height.div_ceil(reduction));
            assert_eq!((reduced.width(), reduced.height()), expected);

            let sample = Sample { image, ..samples[0].clone() };
            let DecodedSample { row, inputs } = encoders.decode(ReadSample::Sample(sample)).unwrap();
            assert_eq!((row.width, row.height), (Some(width), Some(height)));
            let inputs = [inputs.expect("the image can be decoded")];
            let rows = [0, 1].map(|model_idx| {
                let outputs = sessions.embed(model_idx, &inputs).unwrap().remove(0).outputs;
                let BatchOutputs::Pairs(pairs) = outputs else { panic!("the fixtures embed pairs") };
                pairs.image.rows
            });
            let cosine = superbatch::matrix::dot(rows[0].row(0), rows[1].row(0));
            assert!(cosine >= 0.999, "{name}, {width}×{height}: {cosine}");
            assert_eq!(rows[0] == rows[1], reduction == 1, "{name}, {width}×{height}: it was really reduced");
        }
    }
}
