//! JPEG bytes in, RGB out, bit for bit as Pillow decodes them.
//!
//! This calls libjpeg-turbo's C interface, since crate `turbojpeg` makes an error of every warning and hides
//! which of the two it was: Pillow decodes on through mangled data, and refuses only a file that ends too
//! early.

use std::ffi::CStr;

use ::image::RgbImage;
use turbojpeg::libc::c_int;
use turbojpeg::raw;

use crate::rejection::Rejection;

/// Scans of a progressive file; each costs a pass over the image, and a small file can ask for thousands. The
/// limit is that of libjpeg-turbo's own fuzzers; encoders write about ten.
const SCANS_MAX: c_int = 500;

/// Decodes a whole JPEG; gray and CMYK are converted as Pillow's `convert("RGB")` does.
///
/// A file without its end marker is refused. So does Pillow, but for the few files whose last pixels happen
/// to be decoded before its decoder asks for more bytes.
pub(super) fn decode(bytes: &[u8], pixels_max: u64) -> Result<RgbImage, Rejection> {
    decode_reduced(bytes, pixels_max, 1)
}

/// Width and height that the header states, if it can be read.
pub(super) fn size(bytes: &[u8]) -> Option<(u32, u32)> {
    Decoder::new().read_header(bytes)
}

/// [`decode`] at one `reduction`th (1, 2, 4 or 8) of the size, both sides rounded up: each block of 8×8 coefficients is
/// transformed to fewer pixels.
pub(super) fn decode_reduced(bytes: &[u8], pixels_max: u64, reduction: u32) -> Result<RgbImage, Rejection> {
    let decoder = Decoder::new();
    let (width, height) = decoder.read_header(bytes).ok_or(Rejection::UndecodableImage)?;
    if u64::from(width) * u64::from(height) > pixels_max {
        return Err(Rejection::ImageTooLarge);
    }
    if reduction > 1 {
        decoder.reduce(reduction);
    }
    let (width, height) = (width.div_ceil(reduction), height.div_ceil(reduction));
    let pixels = match decoder.colorspace() {
        raw::TJCS_TJCS_CMYK | raw::TJCS_TJCS_YCCK => {
            rgb_from_inverted_cmyk(&decoder.pixels(bytes, width, height, raw::TJPF_TJPF_CMYK, 4)?)
        }
        _ => decoder.pixels(bytes, width, height, raw::TJPF_TJPF_RGB, 3)?,
    };
    Ok(RgbImage::from_raw(width, height, pixels).expect("the buffer was made for this size"))
}

/// A decompressor handle of libjpeg-turbo.
struct Decoder(raw::tjhandle);

impl Decoder {
    fn new() -> Decoder {
        // SAFETY: no arguments to get wrong; a null handle means that memory ran out.
        let handle = unsafe { raw::tj3Init(raw::TJINIT_TJINIT_DECOMPRESS as c_int) };
        assert!(!handle.is_null(), "libjpeg-turbo could not allocate a decompressor");
        let decoder = Decoder(handle);
        // SAFETY: the handle is live; parameter and value are valid for a decompressor.
        let status = unsafe { raw::tj3Set(handle, raw::TJPARAM_TJPARAM_SCANLIMIT as c_int, SCANS_MAX) };
        assert_eq!(status, 0, "libjpeg-turbo has no scan limit");
        decoder
    }

    /// Width and height in pixels, if the header can be read.
    fn read_header(&self, bytes: &[u8]) -> Option<(u32, u32)> {
        // SAFETY: the handle is live; pointer and length are one slice, which is only read.
        let status = unsafe { raw::tj3DecompressHeader(self.0, bytes.as_ptr(), bytes.len() as raw::size_t) };
        if status != 0 && !self.is_warning() {
            return None;
        }
        let width = u32::try_from(self.get(raw::TJPARAM_TJPARAM_JPEGWIDTH)).ok()?;
        let height = u32::try_from(self.get(raw::TJPARAM_TJPARAM_JPEGHEIGHT)).ok()?;
        (width > 0 && height > 0).then_some((width, height))
    }

    fn colorspace(&self) -> raw::TJCS {
        self.get(raw::TJPARAM_TJPARAM_COLORSPACE) as raw::TJCS
    }

    /// Makes what is decoded smaller.
    fn reduce(&self, reduction: u32) {
        assert!(matches!(reduction, 2 | 4 | 8), "a reduction that the library has");
        let factor = raw::tjscalingfactor { num: 1, denom: reduction as c_int };
        // SAFETY: the handle is live; the factor is one of those that the library offers.
        let status = unsafe { raw::tj3SetScalingFactor(self.0, factor) };
        assert_eq!(status, 0, "libjpeg-turbo scales by ½, ¼ and ⅛");
    }

    /// Interleaved pixels, of a header that was just read. `width` and `height` are those after scaling, as the
    /// library computes them: rounded up.
    fn pixels(
        &self,
        bytes: &[u8],
        width: u32,
        height: u32,
        format: raw::TJPF,
        n_channels: usize,
    ) -> Result<Vec<u8>, Rejection> {
        let mut pixels = vec![0u8; width as usize * height as usize * n_channels];
        // SAFETY: the handle is live; the input is one slice, which is only read; the output has width ·
        // height · n_channels bytes, which is what the library writes for this format with pitch 0, since it
        // parses the same bytes to the same width and height, scaled by the same factor and rounded up, and no
        // cropping is set.
        let status = unsafe {
            raw::tj3Decompress8(
                self.0,
                bytes.as_ptr(),
                bytes.len() as raw::size_t,
                pixels.as_mut_ptr(),
                0,
                format as c_int,
            )
        };
        // The library keeps the text of the first warning only, so another one may hide that of the early
        // end.
        let is_whole = status == 0 || (self.is_warning() && !self.is_early_end() && has_end_marker(bytes));
        if is_whole { Ok(pixels) } else { Err(Rejection::UndecodableImage) }
    }

    fn get(&self, parameter: raw::TJPARAM) -> c_int {
        // SAFETY: the handle is live; an unknown parameter gives -1.
        unsafe { raw::tj3Get(self.0, parameter as c_int) }
    }

    fn is_warning(&self) -> bool {
        // SAFETY: the handle is live.
        unsafe { raw::tj3GetErrorCode(self.0) == raw::TJERR_TJERR_WARNING as c_int }
    }

    fn is_early_end(&self) -> bool {
        // SAFETY: the handle is live; the text is NUL-terminated and lives until the next call.
        let text = unsafe { CStr::from_ptr(raw::tj3GetErrorStr(self.0)) };
        text.to_bytes().starts_with(b"Premature end of JPEG file")
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: the handle is live and not used after this.
        unsafe { raw::tj3Destroy(self.0) }
    }
}

/// Whether a walk over the markers comes to the end-of-image marker before the bytes end.
fn has_end_marker(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(2..).unwrap_or_default();
    while let Some(start) = rest.iter().position(|&byte| byte == 0xff) {
        match rest.get(start + 1) {
            Some(0xd9) => return true,
            // A stuffed zero, a restart marker, another start and TEM stand alone.
            Some(0x00 | 0x01 | 0xd0..=0xd8) => rest = &rest[start + 2..],
            Some(0xff) => rest = &rest[start + 1..],
            Some(_) => match rest.get(start + 2..start + 4) {
                Some(&[high, low]) => {
                    let length = usize::from(u16::from_be_bytes([high, low]));
                    rest = rest.get(start + 2 + length.max(2)..).unwrap_or_default();
                }
                _ => return false,
            },
            None => return false,
        }
    }
    false
}

/// Pillow's conversion of CMYK, for stored values that are inverted, as Adobe writes them and Pillow assumes.
///
/// ```text
/// k' = 255 − k,  red = clip(k' − c·k'/255), …      with c·k'/255 rounded to nearest, in integers
/// ```
fn rgb_from_inverted_cmyk(cmyk: &[u8]) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(cmyk.len() / 4 * 3);
    for &[c, m, y, k] in cmyk.as_chunks::<4>().0 {
        for ink in [c, m, y] {
            let product = u32::from(255 - ink) * u32::from(k) + 128;
            let quotient = ((product >> 8) + product) >> 8;
            rgb.push((u32::from(k).saturating_sub(quotient)) as u8);
        }
    }
    rgb
}
