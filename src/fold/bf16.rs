//! The same folds of products in bf16, by the dot products of AVX-512 BF16: two components at a time.

use std::arch::x86_64::{__m512, __m512bh, _mm512_dpbf16_ps, _mm512_set1_epi32, _mm512_setzero_ps};
use std::mem::transmute;
use std::ops::Range;

use pulp::f32x16;
use pulp::x86::V4;

use super::panels::{Panels, Shape};
use super::{Fold, MANY_REGISTERS, Strip, block, take_in};

/// Pairs of components in a register.
const LANES: usize = 16;

/// Columns of a block.
const M: usize = MANY_REGISTERS.0;

pub const SHAPE: Shape = Shape { lanes: LANES, n_vectors: MANY_REGISTERS.1 };

/// Says that the processor has the instructions.
#[derive(Clone, Copy)]
pub struct Bf16 {
    simd: V4,
}

impl Bf16 {
    pub fn detect() -> Option<Bf16> {
        let simd = V4::try_new()?;
        is_x86_feature_detected!("avx512bf16").then_some(Bf16 { simd })
    }

    /// As [`PackedRows::fold`](super::PackedRows::fold).
    pub fn fold<F: Fold>(
        self,
        fold: F,
        panels: &Panels<u32>,
        strip: &Strip,
        left_out: impl Fn(usize, Range<usize>) -> u64,
        totals: &mut [f64],
    ) {
        // SAFETY: `detect` saw avx512bf16, and V4 the others.
        unsafe { fold_columns(self.simd, fold, panels, strip, left_out, totals) }
    }
}

/// Rounds components to bf16, to the nearest and halves to even, two in each u32; a last odd one stands with 0.
#[inline(always)]
pub fn round_pairs(row: &[f32], pairs: &mut [u32]) {
    assert_eq!(pairs.len(), row.len().div_ceil(2));
    // x86 is little-endian: the first of a pair is in the lower half
    let halves: &mut [u16] = pulp::bytemuck::cast_slice_mut(pairs);
    for (half, value) in halves.iter_mut().zip(row) {
        let bits = value.to_bits();
        *half = ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,fma,avx2")]
fn fold_columns<F: Fold>(
    simd: V4,
    fold: F,
    panels: &Panels<u32>,
    strip: &Strip,
    left_out: impl Fn(usize, Range<usize>) -> u64,
    totals: &mut [f64],
) {
    let depth = panels.depth();
    let mut rounded = vec![0; strip.which.len() * depth];
    for (&column, pairs) in strip.which.iter().zip(rounded.chunks_exact_mut(depth)) {
        round_pairs(strip.columns.row(column), pairs);
    }
    for group in panels.groups(strip.rows.clone()) {
        let blocks = strip.which.chunks(M).zip(rounded.chunks(M * depth));
        for ((which, rounded), totals) in blocks.zip(totals.chunks_mut(M)) {
            let block = block::<M>(which);
            let last = which.len() - 1;
            let columns: [&[u32]; M] = std::array::from_fn(|m| &rounded[m.min(last) * depth..][..depth]);
            let mut states = [fold.start(simd); M];
            for panel_idx in group.clone() {
                let panel = panels.panel(panel_idx);
                let masks = panel.masks(block, &left_out);
                let states = &mut states;
                match panel.n_vectors {
                    3 => take_in(simd, fold, multiply::<3>(&columns, panel.values), &masks, states),
                    2 => take_in(simd, fold, multiply::<2>(&columns, panel.values), &masks, states),
                    _ => take_in(simd, fold, multiply::<1>(&columns, panel.values), &masks, states),
                }
            }
            for (state, total) in states.into_iter().zip(totals) {
                *total = fold.merge(simd, state, *total);
            }
        }
    }
}

/// The products of the columns with a panel of N registers' width.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,fma,avx2")]
fn multiply<const N: usize>(columns: &[&[u32]; M], panel: &[u32]) -> [[f32x16; N]; M] {
    let (rows, _) = panel.as_chunks::<LANES>().0.as_chunks::<N>();
    assert!(columns.iter().all(|column| column.len() == rows.len()));
    let mut sums = [[_mm512_setzero_ps(); N]; M];
    for (pair, rows) in rows.iter().enumerate() {
        for m in 0..M {
            // SAFETY: each column is as long as there are rows. The check would be a tenth of the loop.
            let column = unsafe { *columns[m].get_unchecked(pair) };
            // SAFETY: 16 pairs of bf16 are 512 bits, as are 16 u32 and a register of either.
            let column: __m512bh = unsafe { transmute(_mm512_set1_epi32(column as i32)) };
            for n in 0..N {
                let row: __m512bh = unsafe { transmute::<[u32; LANES], __m512bh>(rows[n]) };
                sums[m][n] = _mm512_dpbf16_ps(sums[m][n], column, row);
            }
        }
    }
    let mut products = [[pulp::bytemuck::Zeroable::zeroed(); N]; M];
    for m in 0..M {
        for n in 0..N {
            // SAFETY: both are 16 f32.
            products[m][n] = unsafe { transmute::<__m512, f32x16>(sums[m][n]) };
        }
    }
    products
}
