//! Encoded image bytes in, the tensor that a model takes out: `[3, height, width]` f32, equal to what Pillow
//! and Hugging Face's processors give. Per sample.

mod decode;
mod jpeg;
mod gif;
mod preprocess;
mod resize;

pub use ::image::RgbImage;
pub use decode::{Decoded, decode, stated_size};
pub use preprocess::{CropStart, JpegDecoding, Preprocessing, Resize, preprocess};
pub use resize::{Resample, Window, resize};

#[cfg(test)]
mod tests;
