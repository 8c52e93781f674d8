//! Encoded image bytes in, RGB out, as Pillow's `open` and `convert("RGB")` give it.
//!
//! The format is what the bytes say, whatever the member is called. Alpha is dropped without blending, an ICC profile is
//! left alone, of an animation or a multi-picture file the first frame is taken. EXIF orientation is not applied, since
//! neither Pillow's `open` and `convert` nor the loaders that models are trained with do; TIFF's own is, as by Pillow.

use std::io::Cursor;

use ::image::metadata::Orientation;
use ::image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, RgbImage, guess_format};

use super::{Preprocessing, gif, jpeg};
use crate::foreign::survived;
use crate::read::Limits;
use crate::rejection::Rejection;

/// The longest side, in pixels, that JPEG can state. It holds for the other formats too, since the memory of
/// resizing grows with the source's height times the model's width, which the number of pixels does not
/// bound.
const SIDE_PX_MAX: u32 = 65_535;

const JPEG_START: &[u8] = &[0xff, 0xd8, 0xff];

/// Decodes an image to 8-bit RGB.
///
/// # Errors
///
/// [`Rejection::ImageTooLarge`] if the header announces more pixels than the limit (checked before they are
/// allocated), [`Rejection::UnsupportedAvif`] or [`Rejection::UnsupportedJpeg2000`], [`Rejection::UndecodableImage`] for
/// everything that is not a whole image of a known format.
///
/// # Parity
///
/// JPEG, PNG, GIF and WebP are equal to Pillow's bit for bit, BMP and TIFF in their usual forms; the rarer ones, which
/// `tests/consumers/hostile_images.py` lists, are rejected or differ. 16-bit gray is clipped at 255, not scaled, and
/// 16-bit colour keeps its high byte, since that is what Pillow does.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<RgbImage, Rejection> {
    if bytes.is_empty() {
        return Err(Rejection::EmptyImage);
    }
    if bytes.starts_with(JPEG_START) {
        return jpeg::decode(bytes, limits.image_pixels_max);
    }
    if let Some(rejection) = unsupported(bytes) {
        return Err(rejection);
    }
    let format = guess_format(bytes).map_err(|_| Rejection::UndecodableImage)?;
    if !matches!(
        format,
        ImageFormat::Png | ImageFormat::WebP | ImageFormat::Gif | ImageFormat::Bmp | ImageFormat::Tiff
    ) {
        return Err(Rejection::UndecodableImage);
    }
    let decoded = survived(|| match format {
        ImageFormat::Gif => gif::decode(bytes, limits.image_pixels_max),
        _ => decode_format(bytes, format, limits.image_pixels_max),
    });
    decoded.unwrap_or(Err(Rejection::UndecodableImage))
}

/// A format that occurs in pools and has no decoder here.
fn unsupported(bytes: &[u8]) -> Option<Rejection> {
    // ISO/IEC 15444-1, annexes A and I: a file, or a bare codestream
    const JPEG_2000: [&[u8]; 2] = [b"\0\0\0\x0cjP  \r\n\x87\n", &[0xff, 0x4f, 0xff, 0x51]];
    if JPEG_2000.iter().any(|start| bytes.starts_with(start)) {
        return Some(Rejection::UnsupportedJpeg2000);
    }
    // ISO/IEC 14496-12: the first box names the brands that the file is of
    let (length, rest) = bytes.split_first_chunk()?;
    let first_box =
        &rest[..rest.len().min((u32::from_be_bytes(*length) as usize).saturating_sub(length.len()))];
    let mut brands = first_box.strip_prefix(b"ftyp")?.chunks_exact(4);
    brands.any(|brand| brand == b"avif" || brand == b"avis").then_some(Rejection::UnsupportedAvif)
}

/// Width and height that the header states, in pixels, of the formats in which they are the decoded image's and come first.
pub fn stated_size(bytes: &[u8]) -> Option<(u32, u32)> {
    if bytes.starts_with(JPEG_START) {
        return jpeg::size(bytes);
    }
    let format = guess_format(bytes).ok()?;
    if !matches!(format, ImageFormat::Png | ImageFormat::WebP | ImageFormat::Bmp) {
        return None;
    }
    survived(|| ImageReader::with_format(Cursor::new(bytes), format).into_dimensions().ok()).ok().flatten()
}

/// An image, decoded once for each reduction that some preprocessing asks for.
pub struct Decoded {
    /// Before any reduction, in pixels.
    pub width: u32,
    pub height: u32,
    /// With the reduction, which [`Preprocessing::reduction`] gives.
    images: Vec<(u32, RgbImage)>,
}

impl Decoded {
    /// Decodes an image for these preprocessings; once if there are none.
    ///
    /// # Errors
    ///
    /// As [`decode`]'s.
    pub fn new(
        bytes: &[u8],
        limits: &Limits,
        preprocessings: &[Preprocessing],
    ) -> Result<Decoded, Rejection> {
        let size = if bytes.starts_with(JPEG_START) { jpeg::size(bytes) } else { None };
        let mut reductions: Vec<u32> = match size {
            Some((width, height)) => {
                preprocessings.iter().map(|rule| rule.reduction(width, height)).collect()
            }
            None => Vec::new(),
        };
        reductions.sort_unstable();
        reductions.dedup();
        let (Some((width, height)), [_, ..]) = (size, &reductions[..]) else {
            let image = decode(bytes, limits)?;
            return Ok(Decoded { width: image.width(), height: image.height(), images: vec![(1, image)] });
        };
        let decode_at =
            |reduction| Ok((reduction, jpeg::decode_reduced(bytes, limits.image_pixels_max, reduction)?));
        Ok(Decoded {
            width,
            height,
            images: reductions.into_iter().map(decode_at).collect::<Result<_, _>>()?,
        })
    }

    /// The image that a preprocessing takes.
    pub fn image_for(&self, rule: &Preprocessing) -> &RgbImage {
        let reduction = rule.reduction(self.width, self.height);
        let image = self.images.iter().find(|(of, _)| *of == reduction);
        // only a JPEG is reduced
        &image.unwrap_or(&self.images[0]).1
    }
}

fn decode_format(bytes: &[u8], format: ImageFormat, pixels_max: u64) -> Result<RgbImage, Rejection> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(allocation_limits(pixels_max));
    let mut decoder = reader.into_decoder().map_err(rejection)?;
    let (width, height) = decoder.dimensions();
    let n_pixels = u64::from(width) * u64::from(height);
    if n_pixels > pixels_max || width.max(height) > SIDE_PX_MAX {
        return Err(Rejection::ImageTooLarge);
    }
    if n_pixels == 0 {
        return Err(Rejection::UndecodableImage);
    }
    let orientation = match format {
        ImageFormat::Tiff => decoder.orientation().map_err(rejection)?,
        _ => Orientation::NoTransforms,
    };
    let mut image = DynamicImage::from_decoder(decoder).map_err(rejection)?;
    if format == ImageFormat::Png && is_gray_png(bytes) {
        // a transparent gray level, which Pillow keeps aside, would pass for an alpha channel
        image = without_alpha(image);
    }
    image.apply_orientation(orientation);
    to_rgb(image)
}

/// Whether a PNG's header, its first chunk, says gray without alpha.
fn is_gray_png(bytes: &[u8]) -> bool {
    bytes.get(25) == Some(&0)
}

fn without_alpha(image: DynamicImage) -> DynamicImage {
    match image {
        DynamicImage::ImageLumaA8(_) => DynamicImage::ImageLuma8(image.into_luma8()),
        DynamicImage::ImageLumaA16(_) => DynamicImage::ImageLuma16(image.into_luma16()),
        image => image,
    }
}

/// What a decoder may allocate beside and for the image: eight bytes a pixel (16-bit RGBA), twice.
fn allocation_limits(pixels_max: u64) -> ::image::Limits {
    let mut limits = ::image::Limits::no_limits();
    limits.max_alloc = Some(pixels_max.saturating_mul(16).max(1 << 20));
    limits
}

fn rejection(error: ImageError) -> Rejection {
    match error {
        ImageError::Limits(_) => Rejection::ImageTooLarge,
        _ => Rejection::UndecodableImage,
    }
}

fn to_rgb(image: DynamicImage) -> Result<RgbImage, Rejection> {
    let (width, height) = (image.width(), image.height());
    let pixels: Vec<u8> = match image {
        DynamicImage::ImageRgb8(image) => return Ok(image),
        DynamicImage::ImageLuma8(image) => image.iter().flat_map(|&gray| [gray; 3]).collect(),
        DynamicImage::ImageLumaA8(image) => {
            image.as_chunks::<2>().0.iter().flat_map(|&[gray, _]| [gray; 3]).collect()
        }
        DynamicImage::ImageRgba8(image) => drop_alpha(&image),
        DynamicImage::ImageLuma16(image) => image.iter().flat_map(|&gray| [gray.min(255) as u8; 3]).collect(),
        DynamicImage::ImageLumaA16(image) => {
            image.as_chunks::<2>().0.iter().flat_map(|&[gray, _]| [high_byte(gray); 3]).collect()
        }
        DynamicImage::ImageRgb16(image) => image.iter().copied().map(high_byte).collect(),
        DynamicImage::ImageRgba16(image) => {
            image.as_chunks::<4>().0.iter().flat_map(|&[r, g, b, _]| [r, g, b].map(high_byte)).collect()
        }
        // Floating-point TIFFs: Pillow refuses most of them and clips the rest.
        _ => return Err(Rejection::UndecodableImage),
    };
    Ok(RgbImage::from_raw(width, height, pixels).expect("three bytes for each pixel"))
}

fn drop_alpha(rgba: &[u8]) -> Vec<u8> {
    rgba.as_chunks::<4>().0.iter().flat_map(|&[r, g, b, _]| [r, g, b]).collect()
}

fn high_byte(value: u16) -> u8 {
    (value >> 8) as u8
}
