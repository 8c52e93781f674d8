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
    #[serde(default, skip_serializing_if = "CropStart::is_rounded_down")]
    pub crop_start: CropStart,
    #[serde(default, skip_serializing_if = "JpegDecoding::is_exact")]
    pub jpeg_decoding: JpegDecoding,
}

/// Where a crop begins that would begin at half a pixel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CropStart {
    /// At the pixel before, as Hugging Face's processors do.
    #[default]
    RoundedDown,
    /// At the even one of the two, as torchvision's `CenterCrop` does, and so OpenCLIP.
    RoundedToEven,
}

impl CropStart {
    fn is_rounded_down(&self) -> bool {
        *self == CropStart::RoundedDown
    }
}

/// How a JPEG that is much larger than the model wants is decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JpegDecoding {
    /// Every pixel, as Pillow does.
    #[default]
    Exact,
    /// At ½, ¼ or ⅛ of its size, straight from the coefficients, where both sides stay at least twice what they are
    /// resized to. Pixels differ, embeddings hardly do.
    Scaled,
}

impl JpegDecoding {
    fn is_exact(&self) -> bool {
        *self == JpegDecoding::Exact
    }
}

/// The rule by which an image gets the model's size, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// To this size, whatever the shape (SigLIP).
    Squash { width: u32, height: u32 },
    /// To a size, whatever the shape, then the centre (DeiT, BEiT).
    SquashThenCrop { width: u32, height: u32, crop_width: u32, crop_height: u32 },
    /// The shorter side to `side`, then the centre (CLIP); black where the crop is larger than the image.
    ShortestSide { side: u32, crop_width: u32, crop_height: u32 },
    /// So that it just fits into this size, in the middle of a field of one colour (open_clip's `longest`).
    LongestSide { width: u32, height: u32, fill: [u8; 3] },
}

impl Preprocessing {
    /// Width and height of the tensor, in pixels.
    pub fn size(&self) -> (u32, u32) {
        match self.resize {
            Resize::Squash { width, height } => (width, height),
            Resize::SquashThenCrop { crop_width, crop_height, .. }
            | Resize::ShortestSide { crop_width, crop_height, .. } => (crop_width, crop_height),
            Resize::LongestSide { width, height, .. } => (width, height),
        }
    }

    /// By how much a JPEG of this size may be reduced while it is decoded: 1, 2, 4 or 8.
    ///
    /// Only where both sides are multiples of it: the last pixel of another size would stand for a part of a pixel, and
    /// the whole picture be stretched a little.
    pub fn reduction(&self, width: u32, height: u32) -> u32 {
        if self.jpeg_decoding.is_exact() {
            return 1;
        }
        let placed = self.place(width, height);
        let is_large = |reduction: &u32| {
            let is_whole = width.is_multiple_of(*reduction) && height.is_multiple_of(*reduction);
            is_whole && width / reduction >= 2 * placed.width && height / reduction >= 2 * placed.height
        };
        [8, 4, 2].into_iter().find(is_large).unwrap_or(1)
    }

    /// Whether pixels stay the whole numbers from 0 to 255 that they are.
    pub fn keeps_values(&self) -> bool {
        self.rescale_factor == 1.0 && self.mean == [0.0; 3] && self.std == [1.0; 3]
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
/// transformers, `CLIPImageProcessor` and `SiglipImageProcessor` (the ones on PIL): the long side is
/// `int(side · long / short)`, the crop begins at `(length − crop) // 2`; torchvision's `CenterCrop` begins it at
/// `round((length − crop) / 2)`, half to even, where [`CropStart`] says so. For the longest side open_clip,
/// `ResizeKeepRatio` and `CenterCropOrPad`: each side is `round(length / ratio)`, half to even, the field begins with
/// `(size − length) // 2`.
pub fn preprocess(image: &RgbImage, preprocessing: &Preprocessing, out: &mut [f32]) {
    assert_eq!(out.len(), preprocessing.n_values());
    let (out_width, out_height) = preprocessing.size();
    let Placed { width, height, columns, rows, fill } = preprocessing.place(image.width(), image.height());
    let window = Window { columns: columns.taken.clone(), rows: rows.taken.clone() };
    let resized = resize(image, width, height, preprocessing.resample, &window);
    let plane = out_width as usize * out_height as usize;
    let line = columns.taken.len();
    for (channel, (out, table)) in out.chunks_exact_mut(plane).zip(preprocessing.table()).enumerate() {
        if line < out_width as usize || rows.taken.len() < out_height as usize {
            out.fill(table[usize::from(fill[channel])]);
        }
        for (row, pixels) in resized.as_raw().chunks_exact(line * 3).enumerate() {
            let start = (rows.n_before as usize + row) * out_width as usize + columns.n_before as usize;
            for (value, pixel) in out[start..start + line].iter_mut().zip(pixels.as_chunks::<3>().0) {
                *value = table[usize::from(pixel[channel])];
            }
        }
    }
}

/// An image of one shape under a resize rule: its size after resizing, what of that is taken, and what is around it.
struct Placed {
    width: u32,
    height: u32,
    columns: Span,
    rows: Span,
    fill: [u8; 3],
}

/// One axis: which positions of the resized image are taken, after how many empty ones.
struct Span {
    taken: std::ops::Range<u32>,
    n_before: u32,
}

impl Preprocessing {
    fn place(&self, width: u32, height: u32) -> Placed {
        let centre = |length, crop| Span::centre(length, crop, self.crop_start);
        match self.resize {
            Resize::Squash { width, height } => {
                let (columns, rows) = (Span::whole(width, 0), Span::whole(height, 0));
                Placed { width, height, columns, rows, fill: [0; 3] }
            }
            Resize::SquashThenCrop { width, height, crop_width, crop_height } => {
                let (columns, rows) = (centre(width, crop_width), centre(height, crop_height));
                Placed { width, height, columns, rows, fill: [0; 3] }
            }
            Resize::ShortestSide { side, crop_width, crop_height } => {
                let (width, height) = shortest_side_to(side, width, height);
                let (columns, rows) = (centre(width, crop_width), centre(height, crop_height));
                Placed { width, height, columns, rows, fill: [0; 3] }
            }
            Resize::LongestSide { width: field_width, height: field_height, fill } => {
                let (width, height) = fitted(width, height, field_width, field_height);
                let columns = Span::whole(width, (field_width - width) / 2);
                let rows = Span::whole(height, (field_height - height) / 2);
                Placed { width, height, columns, rows, fill }
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

/// Width and height after the image has just come to fit into the field.
fn fitted(width: u32, height: u32, field_width: u32, field_height: u32) -> (u32, u32) {
    let [width, height, field_width, field_height] =
        [width, height, field_width, field_height].map(f64::from);
    let ratio = (width / field_width).max(height / field_height);
    let side = |length: f64, field: f64| (length / ratio).round_ties_even().clamp(1.0, field) as u32;
    (side(width, field_width), side(height, field_height))
}

impl Span {
    fn whole(length: u32, n_before: u32) -> Span {
        Span { taken: 0..length, n_before }
    }

    fn centre(length: u32, crop: u32, crop_start: CropStart) -> Span {
        let n_outside = i64::from(length) - i64::from(crop);
        let down = n_outside.div_euclid(2);
        let start = match crop_start {
            CropStart::RoundedDown => down,
            CropStart::RoundedToEven => down + n_outside.rem_euclid(2) * down.rem_euclid(2),
        };
        let end = (start + i64::from(crop)).min(i64::from(length));
        Span { taken: start.max(0) as u32..end as u32, n_before: (-start).max(0) as u32 }
    }
}
