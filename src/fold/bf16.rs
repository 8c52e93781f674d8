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
pub fn round_pairs(row: &[f32], pairs: &mut [u32]) {
    let round = |value: f32| {
        let bits = value.to_bits();
        (bits + 0x7fff + (bits >> 16 & 1)) >> 16
    };
    let (whole, rest) = row.as_chunks::<2>();
    assert_eq!(pairs.len(), row.len().div_ceil(2));
    for (pair, [first, second]) in pairs.iter_mut().zip(whole) {
        *pair = round(*first) | round(*second) << 16;
    }
    for value in rest {
        pairs[whole.len()] = round(*value);
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
    let mut rounded = vec![0; strip.range.len() * depth];
    for (column, pairs) in strip.range.clone().zip(rounded.chunks_exact_mut(depth)) {
        round_pairs(strip.columns.row(column), pairs);
    }
    let Range { start, end } = strip.range;
    for group in panels.groups(strip.rows.clone()) {
        for first in strip.range.clone().step_by(M) {
            let block = block::<M>(first, end);
            let columns = block.map(|column| &rounded[(column - start) * depth..][..depth]);
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
            for (state, total) in states.into_iter().zip(&mut totals[first - start..]) {
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
    let columns = columns.map(|column| &column[..rows.len()]);
    let mut sums = [[_mm512_setzero_ps(); N]; M];
    for (pair, rows) in rows.iter().enumerate() {
        for m in 0..M {
            // SAFETY: 16 pairs of bf16 are 512 bits, as are 16 u32 and a register of either.
            let column: __m512bh = unsafe { transmute(_mm512_set1_epi32(columns[m][pair] as i32)) };
            for n in 0..N {
                let row: __m512bh = unsafe { transmute::<[u32; LANES], __m512bh>(rows[n]) };
                sums[m][n] = _mm512_dpbf16_ps(sums[m][n], column, row);
            }
        }
    }
    // SAFETY: both are 16 f32.
    sums.map(|sums| sums.map(|sum| unsafe { transmute::<__m512, f32x16>(sum) }))
}
