//! Folds of products in f32, by whatever vectors the processor has.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::panels::{Panels, Shape};
use super::{FEW_REGISTERS, Fold, MANY_REGISTERS, Strip, block, take_in};

/// Finds the shape of panels for the registers that there are.
pub struct ShapeOf;

impl WithSimd for ShapeOf {
    type Output = Shape;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Shape {
        let (_, n_vectors) = if S::REGISTER_COUNT >= 32 { MANY_REGISTERS } else { FEW_REGISTERS };
        Shape { lanes: S::F32_LANES, n_vectors }
    }
}

/// As [`PackedRows::fold`](super::PackedRows::fold).
pub struct FoldF32<'a, F, L> {
    pub fold: F,
    pub panels: &'a Panels<f32>,
    pub strip: &'a Strip<'a>,
    pub left_out: L,
    pub totals: &'a mut [f64],
}

impl<F: Fold, L: Fn(usize, Range<usize>) -> u64> WithSimd for FoldF32<'_, F, L> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 {
            self.in_blocks::<S, { MANY_REGISTERS.0 }>(simd);
        } else {
            self.in_blocks::<S, { FEW_REGISTERS.0 }>(simd);
        }
    }
}

impl<F: Fold, L: Fn(usize, Range<usize>) -> u64> FoldF32<'_, F, L> {
    #[inline(always)]
    fn in_blocks<S: Simd, const M: usize>(self, simd: S) {
        let FoldF32 { fold, panels, strip, left_out, totals } = self;
        for group in panels.groups(strip.rows.clone()) {
            for (which, totals) in strip.which.chunks(M).zip(totals.chunks_mut(M)) {
                let block = block::<M>(which);
                let columns: [&[f32]; M] = std::array::from_fn(|m| strip.columns.row(block[m]));
                let mut states = [fold.start(simd); M];
                for panel_idx in group.clone() {
                    let panel = panels.panel(panel_idx);
                    let masks = panel.masks(block, &left_out);
                    let states = &mut states;
                    match panel.n_vectors {
                        3 if S::REGISTER_COUNT >= 32 => {
                            step::<S, F, M, 3>(simd, fold, &columns, panel.values, &masks, states)
                        }
                        2 => step::<S, F, M, 2>(simd, fold, &columns, panel.values, &masks, states),
                        _ => step::<S, F, M, 1>(simd, fold, &columns, panel.values, &masks, states),
                    }
                }
                for (state, total) in states.into_iter().zip(totals) {
                    *total = fold.merge(simd, state, *total);
                }
            }
        }
    }
}

#[inline(always)]
fn step<S: Simd, F: Fold, const M: usize, const N: usize>(
    simd: S,
    fold: F,
    columns: &[&[f32]; M],
    panel: &[f32],
    masks: &[u64; M],
    states: &mut [F::State<S>; M],
) {
    let products = multiply::<S, M, N>(simd, columns, panel);
    take_in(simd, fold, products, masks, states);
}

/// The products of M columns with a panel of N registers' width.
#[inline(always)]
fn multiply<S: Simd, const M: usize, const N: usize>(
    simd: S,
    columns: &[&[f32]; M],
    panel: &[f32],
) -> [[S::f32s; N]; M] {
    let (rows, _) = S::as_simd_f32s(panel).0.as_chunks::<N>();
    assert!(columns.iter().all(|column| column.len() == rows.len()));
    let mut sums = [[simd.splat_f32s(0.0); N]; M];
    for (component, rows) in rows.iter().enumerate() {
        for m in 0..M {
            // SAFETY: each column is as long as there are rows. The check would be a tenth of the loop.
            let column = simd.splat_f32s(unsafe { *columns[m].get_unchecked(component) });
            for n in 0..N {
                sums[m][n] = simd.mul_add_e_f32s(column, rows[n], sums[m][n]);
            }
        }
    }
    sums
}
