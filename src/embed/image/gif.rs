//! GIF bytes in, the RGB of its first frame out, as Pillow shows it.
//!
//! Crate `image` gives RGBA, with black where the frame does not cover the screen; Pillow gives the transparent colour
//! there, and grey where an index has no colour.

use std::io::Cursor;

use ::gif::{ColorOutput, DecodeOptions};
use ::image::RgbImage;

use crate::rejection::Rejection;

/// Decodes the first frame; the screen grows where the frame is larger.
pub(super) fn decode(bytes: &[u8], pixels_max: u64) -> Result<RgbImage, Rejection> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    let broken = |_| Rejection::UndecodableImage;
    let mut decoder = options.read_info(Cursor::new(bytes)).map_err(broken)?;
    let (screen_width, screen_height) = (decoder.width(), decoder.height());
    let frame = decoder.next_frame_info().map_err(broken)?.ok_or(Rejection::UndecodableImage)?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (frame_width, frame_height) = (usize::from(frame.width), usize::from(frame.height));
    let transparent = frame.transparent.unwrap_or(0);
    let width = usize::from(screen_width).max(left + frame_width);
    let height = usize::from(screen_height).max(top + frame_height);
    if (width * height) as u64 > pixels_max {
        return Err(Rejection::ImageTooLarge);
    }
    if frame_width * frame_height == 0 {
        return Err(Rejection::UndecodableImage);
    }
    let mut indices = vec![0; frame_width * frame_height];
    decoder.read_into_buffer(&mut indices).map_err(broken)?;
    let palette = palette(decoder.palette().map_err(broken)?);
    let mut pixels = vec![palette[usize::from(transparent)]; width * height];
    for (row, line) in indices.chunks_exact(frame_width).enumerate() {
        let start = (top + row) * width + left;
        for (pixel, &index) in pixels[start..start + frame_width].iter_mut().zip(line) {
            *pixel = palette[usize::from(index)];
        }
    }
    let pixels = pixels.into_flattened();
    Ok(RgbImage::from_raw(width as u32, height as u32, pixels).expect("three bytes for each pixel"))
}

/// The colour of every index: the file's, and grey of its own brightness for those that the file leaves out.
fn palette(colours: &[u8]) -> [[u8; 3]; 256] {
    let mut palette = std::array::from_fn(|index| [index as u8; 3]);
    for (place, colour) in palette.iter_mut().zip(colours.as_chunks::<3>().0) {
        *place = *colour;
    }
    palette
}
