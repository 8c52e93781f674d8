//! RGB in, RGB of another size out, bit for bit as Pillow resizes 8-bit images.
//!
//! Antialiased: the filter grows with the reduction. Weights are 22-bit fixed-point numbers, and the first pass is
//! rounded to 8 bits before the second one; both decide the last bit, which is why no other crate agrees.
//!
//! # Source
//!
//! Pillow 13, `src/libImaging/Resample.c`.

use std::ops::Range;

use ::image::RgbImage;
use serde::{Deserialize, Serialize};

/// Fixed-point bits of a weight: 32, less 8 of the pixel, less 2 for sums that overshoot.
const PRECISION_BITS: u32 = 22;

/// Pixels that the horizontal loop takes at once.
const STEP: usize = 4;

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

/// Resizes an image to `width` × `height` pixels and returns `window` of the result; what lies outside is not computed.
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

/// Pillow's choice since version 13: vertically first where the height shrinks by more than twice what the width does.
/// The passes round in between, so the order shows in the last bit.
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
    let mut padded = vec![0; (line / 3 + columns.n_taps) * 4];
    for (row, out) in pixels.chunks_exact(line).zip(narrowed.chunks_exact_mut(out_line)) {
        for (pixel, &[r, g, b]) in padded.as_chunks_mut::<4>().0.iter_mut().zip(row.as_chunks::<3>().0) {
            *pixel = [r, g, b, 0];
        }
        narrow_row(&padded, columns, out);
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
        let start = rows.bounds[row].start - first;
        combine_rows(&pixels[start * line..], line, rows.taps(row), out);
    }
    combined
}

/// One row of the horizontal pass, over pixels padded to four bytes.
#[inline(always)]
fn narrow_row(padded: &[u8], columns: &Weights, out: &mut [u8]) {
    for (column, pixel) in out.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        let start = columns.bounds[column].start * 4;
        let spread = columns.spread_taps(column);
        let source = &padded[start..start + spread.len()];
        let mut sums = [0i32; STEP * 4];
        for (values, weights) in
            source.as_chunks::<{ STEP * 4 }>().0.iter().zip(spread.as_chunks::<{ STEP * 4 }>().0)
        {
            for lane in 0..STEP * 4 {
                sums[lane] += i32::from(values[lane]) * weights[lane];
            }
        }
        for (channel, value) in pixel.iter_mut().enumerate() {
            *value = clip(sums[channel] + sums[4 + channel] + sums[8 + channel] + sums[12 + channel]);
        }
    }
}

/// One row of the vertical pass: the weighted sum of rows that follow each other.
#[inline(always)]
fn combine_rows(source: &[u8], row_bytes: usize, taps: &[i32], out: &mut [u8]) {
    const BLOCK: usize = 64;
    for (block, out) in out.chunks_mut(BLOCK).enumerate() {
        let mut sums = [0i32; BLOCK];
        for (tap, &weight) in taps.iter().enumerate() {
            let from = tap * row_bytes + block * BLOCK;
            let values = &source[from..from + out.len()];
            match values.first_chunk::<BLOCK>() {
                Some(values) => (0..BLOCK).for_each(|lane| sums[lane] += i32::from(values[lane]) * weight),
                None => {
                    sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += i32::from(value) * weight)
                }
            }
        }
        for (value, sum) in out.iter_mut().zip(sums) {
            *value = clip(sum);
        }
    }
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
    /// Taps of an output position, with zeros after the last: a multiple of [`STEP`].
    n_taps: usize,
    /// `[n, n_taps]`, and the same with each tap four times, for pixels of four bytes.
    taps: Vec<i32>,
    spread: Vec<i32>,
    /// Positions fewer in the output; if 0, Pillow leaves the axis alone.
    shrinkage: i64,
}

impl Weights {
    fn new(n_source: u32, n_out: u32, resample: Resample, window: &Range<u32>) -> Weights {
        let scale = f64::from(n_source) / f64::from(n_out);
        let filter_scale = scale.max(1.0);
        let support = resample.support() * filter_scale;
        let n_taps = (support.ceil() as usize * 2 + 1).next_multiple_of(STEP);
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
        let spread = taps.iter().flat_map(|&tap| [tap; 4]).collect();
        Weights { bounds, n_taps, taps, spread, shrinkage: i64::from(n_source) - i64::from(n_out) }
    }

    /// The source positions of all output positions.
    fn sources(&self) -> Range<usize> {
        self.bounds[0].start..self.bounds[self.bounds.len() - 1].end
    }

    fn taps(&self, position: usize) -> &[i32] {
        let start = position * self.n_taps;
        &self.taps[start..start + self.bounds[position].len()]
    }

    fn spread_taps(&self, position: usize) -> &[i32] {
        &self.spread[position * self.n_taps * 4..(position + 1) * self.n_taps * 4]
    }
}
