//! Two sets of embeddings in, one number a column out, folded from the column's inner products with the rows.
//!
//! The products live in registers only. Rows are packed once into *panels* of a few registers' width; a block of
//! columns is multiplied with one panel after the other, and each product goes from the register that it was summed
//! in straight into its column's fold. The places of panels and blocks are fixed by the shapes, and a column is folded
//! by one thread, so the results are the same bytes for any number of threads on one kind of processor.

mod f32;
mod panels;
#[cfg(target_arch = "x86_64")]
mod bf16;

use std::ops::Range;

use pulp::{Arch, Simd};
use serde::{Deserialize, Serialize};

use crate::matrix::Matrix;

use f32::{FoldF32, ShapeOf};
use panels::Panels;

/// What the products of one column with the rows become.
pub trait Fold: Copy + Send + Sync {
    /// What is known of a column so far, a lane of it for every lane of a register.
    type State<S: Simd>: Copy;

    fn start<S: Simd>(self, simd: S) -> Self::State<S>;

    /// Takes in a few registers of products; −∞ stands for one that is left out.
    fn add<S: Simd, const N: usize>(
        self,
        simd: S,
        state: Self::State<S>,
        products: [S::f32s; N],
    ) -> Self::State<S>;

    /// The total with what the lanes hold; they hold at most [`TERMS_MAX`] products each.
    fn merge<S: Simd>(self, simd: S, state: Self::State<S>, total: f64) -> f64;
}

/// Products in one lane before the lanes are merged into an f64.
pub const TERMS_MAX: usize = 18;

/// Panels that a block of columns meets before its lanes are merged: they stay in a core's second-level cache.
const GROUP_BYTES_MAX: usize = 640 << 10;

/// How embeddings are multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// As they are stored.
    #[default]
    F32,
    /// Rounded to bf16, the products summed in f32: about 1.6 times as fast where the processor has the instruction.
    ///
    /// Rounding moves each component by 2⁻⁹ of itself at most, and so a similarity by 2⁻⁸ at most and, as
    /// components err independently, by about 2⁻⁹·√(2/d) as a rule for d components.
    Bf16,
}

/// This processor lacks AVX-512 BF16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this processor has no bf16 dot products (AVX-512 BF16)")]
pub struct NoBf16;

impl Precision {
    /// Whether this processor has the instructions.
    pub fn check(self) -> Result<(), NoBf16> {
        match self {
            Precision::F32 => Ok(()),
            Precision::Bf16 if has_bf16() => Ok(()),
            Precision::Bf16 => Err(NoBf16),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_bf16() -> bool {
    bf16::Bf16::detect().is_some()
}

#[cfg(not(target_arch = "x86_64"))]
fn has_bf16() -> bool {
    false
}

/// Rows ready to be multiplied, in memory once more.
pub struct PackedRows(Packed);

enum Packed {
    F32(Panels<f32>, Arch),
    #[cfg(target_arch = "x86_64")]
    Bf16(Panels<u32>, bf16::Bf16),
}

/// Some columns and the rows that they meet.
#[derive(Clone)]
pub struct Strip<'a> {
    pub columns: &'a Matrix,
    /// Which of the columns.
    pub which: &'a [usize],
    /// Within the packed ones; whole panels are visited, so what is outside must be left out too.
    pub rows: Range<usize>,
}

impl PackedRows {
    /// Packs the rows of a range, which keep their numbers.
    ///
    /// # Panics
    ///
    /// Where the processor lacks the instructions of the precision: see [`Precision::check`].
    pub fn new(rows: &Matrix, range: Range<usize>, precision: Precision) -> PackedRows {
        match precision {
            Precision::F32 => PackedRows::new_f32(rows, range, Arch::new()),
            Precision::Bf16 => PackedRows::new_bf16(rows, range),
        }
    }

    fn new_f32(rows: &Matrix, range: Range<usize>, arch: Arch) -> PackedRows {
        let copy = |row: usize, to: &mut [f32]| to.copy_from_slice(rows.row(row));
        let panels = Panels::new(range, rows.n_cols(), arch.dispatch(ShapeOf), copy);
        PackedRows(Packed::F32(panels, arch))
    }

    #[cfg(target_arch = "x86_64")]
    fn new_bf16(rows: &Matrix, range: Range<usize>) -> PackedRows {
        let bf16 = bf16::Bf16::detect().expect("checked with the settings");
        let depth = rows.n_cols().div_ceil(2);
        let round = |row: usize, to: &mut [u32]| bf16::round_pairs(rows.row(row), to);
        PackedRows(Packed::Bf16(Panels::new(range, depth, bf16::SHAPE, round), bf16))
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn new_bf16(_: &Matrix, _: Range<usize>) -> PackedRows {
        panic!("{NoBf16}: checked with the settings")
    }

    /// Folds each column's products with the rows into its total.
    ///
    /// `left_out(column, rows)` has bit i set where the product with row `rows.start + i` is not to count; it is
    /// asked for at most 64 rows.
    ///
    /// `totals[i]` belongs to column `strip.which[i]`. Products are summed in f32 in the order of the
    /// components. Work: 2·n_rows·n_columns·d FLOPs.
    pub fn fold<F: Fold>(
        &self,
        fold: F,
        strip: &Strip,
        left_out: impl Fn(usize, Range<usize>) -> u64,
        totals: &mut [f64],
    ) {
        assert_eq!(strip.which.len(), totals.len(), "a total a column");
        match &self.0 {
            Packed::F32(panels, arch) => {
                assert_eq!(strip.columns.n_cols(), panels.depth(), "embeddings of different sizes");
                arch.dispatch(FoldF32 { fold, panels, strip, left_out, totals });
            }
            #[cfg(target_arch = "x86_64")]
            Packed::Bf16(panels, bf16) => {
                let depth = strip.columns.n_cols().div_ceil(2);
                assert_eq!(depth, panels.depth(), "embeddings of different sizes");
                bf16.fold(fold, panels, strip, left_out, totals);
            }
        }
    }
}

/// Columns of a block, and registers' width of a panel: a register for each of their sums, for each of the panel's
/// vectors and for a column, of 32 or of 16.
const MANY_REGISTERS: (usize, usize) = (8, 3);
const FEW_REGISTERS: (usize, usize) = (6, 2);

/// M columns; a block that is not full repeats its last column, and what that gives is dropped.
#[inline(always)]
fn block<const M: usize>(which: &[usize]) -> [usize; M] {
    std::array::from_fn(|m| which[m.min(which.len() - 1)])
}

/// Masks the products and folds them.
#[inline(always)]
fn take_in<S: Simd, F: Fold, const M: usize, const N: usize>(
    simd: S,
    fold: F,
    mut products: [[S::f32s; N]; M],
    masks: &[u64; M],
    states: &mut [F::State<S>; M],
) {
    if masks.iter().any(|mask| *mask != 0) {
        for m in 0..M {
            products[m] = mask::<S, N>(products[m], masks[m]);
        }
    }
    for m in 0..M {
        states[m] = fold.add(simd, states[m], products[m]);
    }
}

#[cold]
fn mask<S: Simd, const N: usize>(mut products: [S::f32s; N], left_out: u64) -> [S::f32s; N] {
    let lanes: &mut [f32] = pulp::bytemuck::cast_slice_mut(&mut products);
    for (lane, product) in lanes.iter_mut().enumerate() {
        if left_out >> lane & 1 == 1 {
            *product = f32::NEG_INFINITY;
        }
    }
    products
}

/// The lanes of a register.
#[inline(always)]
pub fn lanes<S: Simd>(vector: &S::f32s) -> &[f32] {
    pulp::bytemuck::cast_slice(std::slice::from_ref(vector))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tile::random_unit_rows;
    use crate::vector::every_arch;

    /// Sum and largest of the products.
    #[derive(Clone, Copy)]
    enum Plain {
        Sum,
        Largest,
    }

    impl Fold for Plain {
        type State<S: Simd> = S::f32s;

        #[inline(always)]
        fn start<S: Simd>(self, simd: S) -> S::f32s {
            match self {
                Plain::Sum => simd.splat_f32s(0.0),
                Plain::Largest => simd.splat_f32s(-9.0),
            }
        }

        #[inline(always)]
        fn add<S: Simd, const N: usize>(self, simd: S, state: S::f32s, products: [S::f32s; N]) -> S::f32s {
            products.into_iter().fold(state, |state, product| match self {
                Plain::Sum => simd.add_f32s(state, simd.max_f32s(product, simd.splat_f32s(-9.0))),
                Plain::Largest => simd.max_f32s(state, product),
            })
        }

        #[inline(always)]
        fn merge<S: Simd>(self, _: S, state: S::f32s, total: f64) -> f64 {
            let lanes = lanes::<S>(&state).iter().map(|lane| f64::from(*lane));
            match self {
                Plain::Sum => total + lanes.sum::<f64>(),
                Plain::Largest => lanes.fold(total, f64::max),
            }
        }
    }

    fn product(rows: &Matrix, row: usize, columns: &Matrix, column: usize) -> f64 {
        let terms = rows.row(row).iter().zip(columns.row(column));
        terms.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    }

    #[test]
    fn every_product_is_folded_once_into_its_column() {
        // sizes around the panels' widths 2, 16 and 48 and the blocks' 6 and 8
        for (n_rows, n_columns, d) in [(1, 1, 1), (47, 7, 3), (48, 8, 16), (49, 9, 33), (400, 70, 50)] {
            let (rows, columns) = (random_unit_rows(n_rows, d, 1), random_unit_rows(n_columns, d, 2));
            for arch in every_arch() {
                let packed = PackedRows::new_f32(&rows, 0..n_rows, arch);
                let some = (0..n_columns).filter(|column| column % 5 != 2).collect();
                for which in [(0..n_columns).collect::<Vec<usize>>(), some] {
                    let strip = Strip { columns: &columns, which: &which, rows: 0..n_rows };
                    let mut largest = vec![f64::NEG_INFINITY; which.len()];
                    packed.fold(Plain::Largest, &strip, |_, _| 0, &mut largest);
                    // left out: a third of the pairs, by no pattern of panels and blocks; −9 stands for each
                    let is_left_out = |row: usize, column: usize| (row * 7 + column * 5).is_multiple_of(3);
                    let left_out = |column: usize, rows: Range<usize>| {
                        let bits = rows.clone().filter(|row| is_left_out(*row, column));
                        bits.fold(0, |bits, row| bits | 1 << (row - rows.start))
                    };
                    let mut sums = vec![1.0; which.len()];
                    packed.fold(Plain::Sum, &strip, left_out, &mut sums);
                    let n_lanes = n_rows.next_multiple_of(arch.dispatch(ShapeOf).lanes);
                    for (at, &column) in which.iter().enumerate() {
                        let products = (0..n_rows).map(|row| product(&rows, row, &columns, column));
                        let expected = products.clone().fold(f64::NEG_INFINITY, f64::max);
                        assert!((largest[at] - expected).abs() < 1e-6);
                        let kept = products
                            .enumerate()
                            .map(|(row, product)| if is_left_out(row, column) { -9.0 } else { product });
                        let expected = 1.0 + kept.sum::<f64>() - 9.0 * (n_lanes - n_rows) as f64;
                        assert!((sums[at] - expected).abs() < 1e-3, "{} {expected} {arch:?}", sums[at]);
                    }
                }
            }
        }
    }

    #[test]
    fn a_range_of_the_rows_is_met_by_whole_panels() {
        let (rows, columns) = (random_unit_rows(900, 20, 1), random_unit_rows(30, 20, 2));
        let which: Vec<usize> = (0..30).collect();
        // rows 100 to 800 are packed and keep their numbers; 333 to 444 are met
        let packed = PackedRows::new(&rows, 100..800, Precision::F32);
        let strip = Strip { columns: &columns, which: &which, rows: 333..444 };
        let outside = |_, rows: Range<usize>| {
            let bits = rows.clone().filter(|row| !(333..444).contains(row));
            bits.fold(0, |bits, row| bits | 1 << (row - rows.start))
        };
        let mut largest = vec![f64::NEG_INFINITY; 30];
        packed.fold(Plain::Largest, &strip, outside, &mut largest);
        for (column, largest) in largest.iter().enumerate() {
            let products = (333..444).map(|row| product(&rows, row, &columns, column));
            assert!((largest - products.fold(f64::NEG_INFINITY, f64::max)).abs() < 1e-6);
        }
    }

    #[test]
    fn bf16_products_have_their_stated_error() {
        if let Err(error) = Precision::Bf16.check() {
            eprintln!("skipped: {error}");
            return;
        }
        for d in [64, 511, 768] {
            let (rows, columns) = (random_unit_rows(130, d, 1), random_unit_rows(260, d, 2));
            let which: Vec<usize> = (0..260).collect();
            let mut errors = Vec::new();
            for row in 0..rows.n_rows() {
                let packed = PackedRows::new(&rows, row..row + 1, Precision::Bf16);
                let strip = Strip { columns: &columns, which: &which, rows: row..row + 1 };
                let mut products = vec![f64::NEG_INFINITY; 260];
                packed.fold(Plain::Largest, &strip, |_, _| 0, &mut products);
                let exact = (0..260).map(|column| product(&rows, row, &columns, column));
                errors.extend(products.iter().zip(exact).map(|(found, exact)| (found - exact).abs()));
            }
            let largest = errors.iter().copied().fold(0.0, f64::max);
            let mean_square = errors.iter().map(|error| error * error).sum::<f64>() / errors.len() as f64;
            let typical = (-9f64).exp2() * (2.0 / d as f64).sqrt();
            assert!(largest < (-8f64).exp2(), "{d}: {largest:e}");
            assert!((0.2 * typical..typical).contains(&mean_square.sqrt()), "{d}: {:e}", mean_square.sqrt());
        }
    }

    #[test]
    fn what_is_exact_in_bf16_is_exact() {
        if Precision::Bf16.check().is_err() {
            return;
        }
        // components with few bits, an odd number of them
        let matrix = |n: usize, seed: usize| {
            let values = (0..n * 7).map(|at| ((at * 37 + seed) % 17) as f32 - 8.0).collect();
            Matrix::new(values, 7)
        };
        let (rows, columns) = (matrix(51, 1), matrix(13, 5));
        let which: Vec<usize> = (0..13).collect();
        let packed = PackedRows::new(&rows, 0..51, Precision::Bf16);
        let strip = Strip { columns: &columns, which: &which, rows: 0..51 };
        let mut largest = vec![f64::NEG_INFINITY; 13];
        packed.fold(Plain::Largest, &strip, |_, _| 0, &mut largest);
        for (column, largest) in largest.iter().enumerate() {
            let products = (0..51).map(|row| product(&rows, row, &columns, column));
            assert_eq!(*largest, products.fold(-9.0, f64::max));
        }
    }
}
