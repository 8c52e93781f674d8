//! RGB in, RGB of another size out, bit for bit as Pillow resizes 8-bit images.
//!
//! Antialiased: the filter grows with the reduction. Weights are 22-bit fixed-point numbers, and the first
//! pass is rounded to 8 bits before the second one; both decide the last bit, which is why no other crate
//! agrees.
//!
//! # Source
//!
//! Pillow 13, `src/libImaging/Resample.c`.

use std::ops::Range;

use ::image::RgbImage;
use serde::{Deserialize, Serialize};

/// Fixed-point bits of a weight: 32, less 8 of the pixel, less 2 for sums that overshoot.
const PRECISION_BITS: u32 = 22;

/// Rows that the horizontal pass takes at once.
const N_ROWS: usize = 16;

/// A resampling filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resample {
    Bilinear,
    /// Keys' cubic with a = −0.5.
    Bicubic,
    Lanczos,
}

impl Resample {
    /// The filter with Pillow's number, as `preprocessor_config.json` gives it.
    pub fn from_pillow(number: u64) -> Option<Resample> {
        match number {
            1 => Some(Resample::Lanczos),
            2 => Some(Resample::Bilinear),
            3 => Some(Resample::Bicubic),
            _ => None,
        }
    }

    /// Half its width in source pixels, at reduction 1.
    fn support(self) -> f64 {
        match self {
            Resample::Bilinear => 1.0,
            Resample::Bicubic => 2.0,
            Resample::Lanczos => 3.0,
        }
    }

    /// Its value at a distance in source pixels, at reduction 1.
    fn weight(self, distance: f64) -> f64 {
        let x = distance.abs();
        match self {
            Resample::Bilinear if x < 1.0 => 1.0 - x,
            // The order of the operations decides the last bit.
            Resample::Bicubic if x < 1.0 => ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1.0,
            Resample::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
            Resample::Lanczos if (-3.0..3.0).contains(&distance) => sinc(distance) * sinc(distance / 3.0),
            _ => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI) }
}

/// The part of a resized image that is wanted: columns and rows of the resized image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    pub columns: Range<u32>,
    pub rows: Range<u32>,
}

/// Resizes an image to `width` × `height` pixels and returns `window` of the result; what lies outside is not
/// computed.
///
/// # Panics
///
/// If a size is 0 or the window is empty or not inside the resized image.
pub fn resize(image: &RgbImage, width: u32, height: u32, resample: Resample, window: &Window) -> RgbImage {
    assert!(image.width() > 0 && image.height() > 0 && width > 0 && height > 0);
    assert!(!window.columns.is_empty() && window.columns.end <= width);
    assert!(!window.rows.is_empty() && window.rows.end <= height);
    let columns = Weights::new(image.width(), width, resample, &window.columns);
    let rows = Weights::new(image.height(), height, resample, &window.rows);
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor was just found to have AVX2.
        return unsafe { resize_avx2(image, &columns, &rows) };
    }
    resize_in_two_passes(image, &columns, &rows)
}

/// The same code, compiled for wider registers; integers, so the result is the same.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn resize_avx2(image: &RgbImage, columns: &Weights, rows: &Weights) -> RgbImage {
    resize_in_two_passes(image, columns, rows)
}

#[inline(always)]
fn resize_in_two_passes(image: &RgbImage, columns: &Weights, rows: &Weights) -> RgbImage {
    let line = image.width() as usize * 3;
    let pixels = if is_vertical_first(columns, rows) {
        let combined = vertical_pass(image.as_raw(), line, 0, rows);
        horizontal_pass(&combined, line, columns)
    } else {
        let sources = rows.sources();
        let narrowed =
            horizontal_pass(&image.as_raw()[sources.start * line..sources.end * line], line, columns);
        vertical_pass(&narrowed, columns.bounds.len() * 3, sources.start, rows)
    };
    let (width, height) = (columns.bounds.len() as u32, rows.bounds.len() as u32);
    RgbImage::from_raw(width, height, pixels).expect("three bytes for each pixel")
}

/// Pillow's choice since version 13: vertically first where the height shrinks by more than twice what the
/// width does. The passes round in between, so the order shows in the last bit.
fn is_vertical_first(columns: &Weights, rows: &Weights) -> bool {
    rows.shrinkage > 0 && rows.shrinkage > 2 * columns.shrinkage
}

/// Brings rows of `line` bytes to the wanted columns.
#[inline(always)]
fn horizontal_pass(pixels: &[u8], line: usize, columns: &Weights) -> Vec<u8> {
    let out_line = columns.bounds.len() * 3;
    if columns.shrinkage == 0 {
        let first = columns.bounds[0].start * 3;
        return pixels.chunks_exact(line).flat_map(|row| &row[first..first + out_line]).copied().collect();
    }
    let mut narrowed = vec![0; pixels.len() / line * out_line];
    // Some rows at once, pixel by pixel side by side: then the sums of all of them run in the same registers.
    let mut side_by_side = vec![0; line * N_ROWS];
    for (rows, out) in pixels.chunks(line * N_ROWS).zip(narrowed.chunks_mut(out_line * N_ROWS)) {
        for (row, pixels) in rows.chunks_exact(line).enumerate() {
            let places = side_by_side.chunks_exact_mut(N_ROWS * 3);
            for (place, pixel) in places.zip(pixels.as_chunks::<3>().0) {
                place[row * 3..row * 3 + 3].copy_from_slice(pixel);
            }
        }
        for column in 0..columns.bounds.len() {
            let source = &side_by_side[columns.bounds[column].start * N_ROWS * 3..];
            let pixels: [u8; N_ROWS * 3] = weighted_sum(source, N_ROWS * 3, columns.taps(column));
            for (row, pixel) in out.chunks_exact_mut(out_line).zip(pixels.as_chunks::<3>().0) {
                row[column * 3..column * 3 + 3].copy_from_slice(pixel);
            }
        }
    }
    narrowed
}

/// Combines rows of `line` bytes, the first of which is the source's row `first`, to the wanted rows.
#[inline(always)]
fn vertical_pass(pixels: &[u8], line: usize, first: usize, rows: &Weights) -> Vec<u8> {
    if rows.shrinkage == 0 {
        let start = rows.bounds[0].start - first;
        return pixels[start * line..(start + rows.bounds.len()) * line].to_vec();
    }
    let mut combined = vec![0; rows.bounds.len() * line];
    for (row, out) in combined.chunks_exact_mut(line).enumerate() {
        let source = &pixels[(rows.bounds[row].start - first) * line..];
        combine_rows::<64>(source, line, rows.taps(row), out);
    }
    combined
}

/// One row of the vertical pass, in blocks of `N` bytes; the last block overlaps the one before it.
#[inline(always)]
fn combine_rows<const N: usize>(source: &[u8], line: usize, taps: &[i32], out: &mut [u8]) {
    if out.len() < N {
        return combine_rows::<3>(source, line, taps, out);
    }
    for start in (0..out.len()).step_by(N) {
        let start = start.min(out.len() - N);
        out[start..start + N].copy_from_slice(&weighted_sum::<N>(&source[start..], line, taps));
    }
}

/// The weighted sum of runs of `N` bytes that begin `stride` bytes apart.
#[inline(always)]
fn weighted_sum<const N: usize>(source: &[u8], stride: usize, taps: &[i32]) -> [u8; N] {
    let mut sums = [0i32; N];
    for (tap, &weight) in taps.iter().enumerate() {
        let values: &[u8; N] = source[tap * stride..].first_chunk().expect("a tap for each source position");
        for lane in 0..N {
            sums[lane] += i32::from(values[lane]) * weight;
        }
    }
    sums.map(clip)
}

/// Rounds a fixed-point sum to a pixel.
#[inline(always)]
fn clip(sum: i32) -> u8 {
    ((sum + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS).clamp(0, 255) as u8
}

/// What each output position takes from which source positions, along one axis.
struct Weights {
    /// Source positions of each output position in the window.
    bounds: Vec<Range<usize>>,
    /// `[n, n_taps]`, with zeros after an output position's last tap.
    taps: Vec<i32>,
    n_taps: usize,
    /// Positions fewer in the output; if 0, Pillow leaves the axis alone.
    shrinkage: i64,
}

impl Weights {
    fn new(n_source: u32, n_out: u32, resample: Resample, window: &Range<u32>) -> Weights {
        let scale = f64::from(n_source) / f64::from(n_out);
        let filter_scale = scale.max(1.0);
        let support = resample.support() * filter_scale;
        let n_taps = support.ceil() as usize * 2 + 1;
        let mut bounds = Vec::with_capacity(window.len());
        let mut taps = vec![0; window.len() * n_taps];
        let mut weights = Vec::with_capacity(n_taps);
        for (position, taps) in window.clone().zip(taps.chunks_exact_mut(n_taps)) {
            if n_source == n_out {
                bounds.push(position as usize..position as usize + 1);
                continue;
            }
            let center = (f64::from(position) + 0.5) * scale;
            let start = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(n_source as usize);
            weights.clear();
            // Pillow multiplies by the inverse, which is not the same in the last bit.
            let inverse = 1.0 / filter_scale;
            weights.extend((start..end).map(|x| resample.weight((x as f64 - center + 0.5) * inverse)));
            let total: f64 = weights.iter().sum();
            for (tap, weight) in taps.iter_mut().zip(&weights) {
                let weight = if total == 0.0 { *weight } else { weight / total };
                *tap = (weight * f64::from(1 << PRECISION_BITS) + 0.5f64.copysign(weight)) as i32;
            }
            bounds.push(start..end);
        }
        Weights { bounds, taps, n_taps, shrinkage: i64::from(n_source) - i64::from(n_out) }
    }

    /// The source positions of all output positions.
    fn sources(&self) -> Range<usize> {
        self.bounds[0].start..self.bounds[self.bounds.len() - 1].end
    }

    fn taps(&self, position: usize) -> &[i32] {
        let start = position * self.n_taps;
        &self.taps[start..start + self.bounds[position].len()]
    }
}
