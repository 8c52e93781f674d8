//! RGB in, the tensor that an image tower takes out, as Hugging Face's (PIL) image processors make it.

use ::image::RgbImage;
use serde::{Deserialize, Serialize};

use super::resize::{Resample, Window, resize};

/// How a model wants its images: resize, crop, rescale, normalise, in this order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preprocessing {
    pub resize: Resize,
    pub resample: Resample,
    /// What a pixel of 0–255 is multiplied by, usually 1/255.
    pub rescale_factor: f64,
    /// Of red, green and blue, after rescaling.
    pub mean: [f64; 3],
    pub std: [f64; 3],
}

/// The rule by which an image gets the model's size, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// To this size, whatever the shape (SigLIP).
    Squash { width: u32, height: u32 },
    /// The shorter side to `side`, then the centre (CLIP); black where the crop is larger than the image.
    ShortestSide { side: u32, crop_width: u32, crop_height: u32 },
}

impl Preprocessing {
    /// Width and height of the tensor, in pixels.
    pub fn size(&self) -> (u32, u32) {
        match self.resize {
            Resize::Squash { width, height } => (width, height),
            Resize::ShortestSide { crop_width, crop_height, .. } => (crop_width, crop_height),
        }
    }

    /// Length of one image's tensor, `3 · height · width`.
    pub fn n_values(&self) -> usize {
        let (width, height) = self.size();
        3 * width as usize * height as usize
    }

    /// What each pixel value becomes, by channel; in f64 and f32 exactly where NumPy is.
    fn table(&self) -> [[f32; 256]; 3] {
        std::array::from_fn(|channel| {
            let (mean, std) = (self.mean[channel] as f32, self.std[channel] as f32);
            std::array::from_fn(|value| ((value as f64 * self.rescale_factor) as f32 - mean) / std)
        })
    }
}

/// Makes the tensor of one image.
///
/// ```text
/// out[channel, y, x] = (pixel · rescale_factor − mean[channel]) / std[channel]
/// ```
///
/// # Shapes
///
/// `out` is `[3, height, width]`, of [`Preprocessing::n_values`] values.
///
/// # Source
///
/// transformers, `CLIPImageProcessor` and `SiglipImageProcessor` (the ones on PIL, not the `Fast` ones): the
/// long side is `int(side · long / short)`, the crop begins at `(length − crop) // 2`.
pub fn preprocess(image: &RgbImage, preprocessing: &Preprocessing, out: &mut [f32]) {
    assert_eq!(out.len(), preprocessing.n_values());
    let (out_width, out_height) = preprocessing.size();
    let (width, height) = match preprocessing.resize {
        Resize::Squash { width, height } => (width, height),
        Resize::ShortestSide { side, .. } => shortest_side_to(side, image.width(), image.height()),
    };
    let (columns, rows) = (Crop::centre(width, out_width), Crop::centre(height, out_height));
    let window = Window { columns: columns.taken.clone(), rows: rows.taken.clone() };
    let resized = resize(image, width, height, preprocessing.resample, &window);
    let plane = out_width as usize * out_height as usize;
    let line = columns.taken.len();
    for (channel, (out, table)) in out.chunks_exact_mut(plane).zip(preprocessing.table()).enumerate() {
        if line < out_width as usize || rows.taken.len() < out_height as usize {
            out.fill(table[0]);
        }
        for (row, pixels) in resized.as_raw().chunks_exact(line * 3).enumerate() {
            let start = (rows.n_before as usize + row) * out_width as usize + columns.n_before as usize;
            for (value, pixel) in out[start..start + line].iter_mut().zip(pixels.as_chunks::<3>().0) {
                *value = table[usize::from(pixel[channel])];
            }
        }
    }
}

/// Width and height after the shorter side has become `side`; the longer one is rounded down.
fn shortest_side_to(side: u32, width: u32, height: u32) -> (u32, u32) {
    let (short, long) = (width.min(height), width.max(height));
    let long = u64::from(side) * u64::from(long) / u64::from(short);
    // A side of at most 65,535 px and a model's few hundred: far from the limit for any image that was
    // decoded.
    let long = u32::try_from(long).expect("the longer side fits in 32 bits");
    if width <= height { (side, long) } else { (long, side) }
}

/// The centre of one axis: which positions of the image are taken, after how many empty ones.
struct Crop {
    taken: std::ops::Range<u32>,
    n_before: u32,
}

impl Crop {
    fn centre(length: u32, crop: u32) -> Crop {
        let start = (i64::from(length) - i64::from(crop)).div_euclid(2);
        let end = (start + i64::from(crop)).min(i64::from(length));
        Crop { taken: start.max(0) as u32..end as u32, n_before: (-start).max(0) as u32 }
    }
}
