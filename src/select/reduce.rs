//! Two sets of embeddings under one model in, one number a column out: what each column's pairs with the rows add
//! to the loss of its sample. The pairs themselves are never stored.

use std::ops::Range;

use pulp::Simd;
use rayon::prelude::*;

use crate::divide::Exclusions;
use crate::fold::{Fold, PackedRows, Precision, Strip, lanes};
use crate::matrix::Matrix;
use crate::vector::{exp_nonpositive, softplus};

use super::loss::{Objective, PairLoss, log_add_exp};

/// The pairs of each row with each column under one model: images on one side, captions on the other.
#[derive(Clone, Copy)]
pub(super) struct Pairs<'a> {
    pub rows: &'a Matrix,
    pub columns: &'a Matrix,
    pub loss: PairLoss,
    pub precision: Precision,
}

/// Which pairs are left out.
#[derive(Clone, Copy)]
pub(super) enum Mask<'a> {
    Nothing,
    /// Row i and column i are one sample.
    Own,
    /// The bank rows that are excluded for a query, the rows being a bank and the columns its queries.
    Excluded(&'a Exclusions),
    /// All but the rows i + 1 to i + n of column i.
    AllButNext(usize),
}

impl Objective {
    /// Nothing added up yet.
    pub(super) fn nothing(self) -> f64 {
        match self {
            Objective::Sigmoid => 0.0,
            Objective::Softmax => f64::NEG_INFINITY,
        }
    }

    /// Both together.
    pub(super) fn merge(self, some: f64, more: f64) -> f64 {
        match self {
            Objective::Sigmoid => some + more,
            Objective::Softmax => log_add_exp(some, more),
        }
    }
}

/// [`reduce_some`] for all columns.
pub(super) fn reduce(sets: &[Pairs], mask: Mask) -> Vec<Vec<f64>> {
    let all: Vec<usize> = (0..sets[0].columns.n_rows()).collect();
    reduce_some(sets, mask, &all)
}

/// Adds up the pairs of some columns, in increasing order, for each of several sets of pairs with the same rows' and
/// columns' counts.
///
/// ```text
/// sigmoid    Σ_row softplus(logit[row, column])         nats; 0 for no rows
/// softmax    ln Σ_row exp(logit[row, column])           −∞ for no rows
/// ```
///
/// Logits and losses in f32, sums of at most [`TERMS_MAX`](crate::fold::TERMS_MAX) of them in f32 and in f64 from
/// there. Work: 2·n_rows·n_columns·d FLOPs a set. Memory: O(n_columns), and `ROWS_PACKED` rows of each set.
pub(super) fn reduce_some(sets: &[Pairs], mask: Mask, which: &[usize]) -> Vec<Vec<f64>> {
    let (n_rows, n_columns) = (sets[0].rows.n_rows(), sets[0].columns.n_rows());
    assert!(sets.iter().all(|set| set.rows.n_rows() == n_rows && set.columns.n_rows() == n_columns));
    assert!(which.is_sorted());
    let nothing = |set: &Pairs| vec![set.loss.objective.nothing(); which.len()];
    let mut totals: Vec<Vec<f64>> = sets.iter().map(nothing).collect();
    for start in (0..n_rows).step_by(ROWS_PACKED) {
        let rows = start..n_rows.min(start + ROWS_PACKED);
        let packed: Vec<PackedRows> =
            sets.iter().map(|set| PackedRows::new(set.rows, rows.clone(), set.precision)).collect();
        let strips = totals.iter_mut().enumerate().flat_map(|(set, totals)| {
            let strips = which.chunks(STRIP).zip(totals.chunks_mut(STRIP));
            strips.map(move |(which, totals)| (set, which, totals))
        });
        strips.collect::<Vec<_>>().into_par_iter().for_each(|(set, which, totals)| {
            let rows = mask.rows(rows.clone(), which);
            let strip = Strip { columns: sets[set].columns, which, rows };
            fold_strip(&packed[set], sets[set].loss, mask, &strip, totals);
        });
    }
    totals
}

/// Rows that are packed at once: few enough to be nothing beside a super-batch.
const ROWS_PACKED: usize = 4096;

/// Columns of a strip, the work that a thread takes at a time.
const STRIP: usize = 256;

fn fold_strip(packed: &PackedRows, loss: PairLoss, mask: Mask, strip: &Strip, totals: &mut [f64]) {
    let left_out = |column, rows| mask.left_out(column, rows);
    let (scale, bias) = (loss.logit_scale as f32, loss.logit_bias as f32);
    match loss.objective {
        Objective::Sigmoid => packed.fold(LossSum { scale, bias }, strip, left_out, totals),
        Objective::Softmax => packed.fold(LogSumExp { scale, bias }, strip, left_out, totals),
    }
}

/// Σ softplus(logit).
#[derive(Clone, Copy)]
struct LossSum {
    scale: f32,
    bias: f32,
}

impl Fold for LossSum {
    type State<S: Simd> = S::f32s;

    #[inline(always)]
    fn start<S: Simd>(self, simd: S) -> S::f32s {
        simd.splat_f32s(0.0)
    }

    #[inline(always)]
    fn add<S: Simd, const N: usize>(self, simd: S, sums: S::f32s, products: [S::f32s; N]) -> S::f32s {
        let (scale, bias) = (simd.splat_f32s(self.scale), simd.splat_f32s(self.bias));
        let mut sums = sums;
        for product in &products {
            sums = simd.add_f32s(sums, softplus(simd, simd.mul_add_e_f32s(*product, scale, bias)));
        }
        sums
    }

    #[inline(always)]
    fn merge<S: Simd>(self, _: S, sums: S::f32s, total: f64) -> f64 {
        total + lanes::<S>(&sums).iter().map(|sum| f64::from(*sum)).sum::<f64>()
    }
}

/// ln Σ exp(logit): in each lane the largest logit so far, and the sum of the exponentials relative to it.
#[derive(Clone, Copy)]
struct LogSumExp {
    scale: f32,
    bias: f32,
}

impl Fold for LogSumExp {
    type State<S: Simd> = (S::f32s, S::f32s);

    #[inline(always)]
    fn start<S: Simd>(self, simd: S) -> (S::f32s, S::f32s) {
        // finite, so that where all is left out no two infinities are subtracted
        (simd.splat_f32s(f32::MIN), simd.splat_f32s(0.0))
    }

    #[inline(always)]
    fn add<S: Simd, const N: usize>(
        self,
        simd: S,
        (largest, sums): (S::f32s, S::f32s),
        products: [S::f32s; N],
    ) -> (S::f32s, S::f32s) {
        let (scale, bias) = (simd.splat_f32s(self.scale), simd.splat_f32s(self.bias));
        let mut logits = products;
        let mut larger = largest;
        for logit in &mut logits {
            *logit = simd.mul_add_e_f32s(*logit, scale, bias);
            larger = simd.max_f32s(larger, *logit);
        }
        let shrink = exp_nonpositive(simd, simd.sub_f32s(largest, larger));
        let mut sums = simd.mul_f32s(sums, shrink);
        for logit in logits {
            sums = simd.add_f32s(sums, exp_nonpositive(simd, simd.sub_f32s(logit, larger)));
        }
        (larger, sums)
    }

    #[inline(always)]
    fn merge<S: Simd>(self, simd: S, (largest, sums): (S::f32s, S::f32s), total: f64) -> f64 {
        let of_all = simd.reduce_max_f32s(largest);
        let shrink = exp_nonpositive(simd, simd.sub_f32s(largest, simd.splat_f32s(of_all)));
        let sums = simd.mul_f32s(sums, shrink);
        let sum: f64 = lanes::<S>(&sums).iter().map(|sum| f64::from(*sum)).sum();
        log_add_exp(total, f64::from(of_all) + sum.ln())
    }
}

impl Mask<'_> {
    /// Those of the rows that some of the columns meet.
    fn rows(&self, rows: Range<usize>, which: &[usize]) -> Range<usize> {
        match self {
            Mask::AllButNext(n) => {
                let (first, last) = (which[0], which[which.len() - 1]);
                let start = (first + 1).clamp(rows.start, rows.end);
                start..(last + 1 + n).clamp(start, rows.end)
            }
            Mask::Nothing | Mask::Own | Mask::Excluded(_) => rows,
        }
    }

    /// How many of `n_rows` rows a column meets.
    pub(super) fn n_rows_of(&self, column: usize, n_rows: usize) -> usize {
        match self {
            Mask::Nothing => n_rows,
            Mask::Own => n_rows - 1,
            Mask::Excluded(exclusions) => n_rows - exclusions.n_of(column),
            Mask::AllButNext(n) => *n,
        }
    }

    /// Bit i: whether row `rows.start + i` is left out for the column; at most 64 rows.
    #[inline(always)]
    fn left_out(&self, column: usize, rows: Range<usize>) -> u64 {
        match self {
            Mask::Nothing => 0,
            Mask::Own => bits(column..column + 1, rows),
            Mask::Excluded(exclusions) => excluded_bits(exclusions, column, rows),
            Mask::AllButNext(n) => !bits(column + 1..column + 1 + n, rows),
        }
    }
}

/// Bit i: whether row `rows.start + i` is in the range.
#[inline(always)]
fn bits(range: Range<usize>, rows: Range<usize>) -> u64 {
    let below = |end: usize| match end.clamp(rows.start, rows.end) - rows.start {
        64 => u64::MAX,
        n => (1u64 << n) - 1,
    };
    below(range.end) & !below(range.start)
}

fn excluded_bits(exclusions: &Exclusions, query: usize, rows: Range<usize>) -> u64 {
    // exclusions are asked for from multiples of 64 on
    let excluded = exclusions.of(query, rows.start / 64 * 64..rows.end);
    let excluded = excluded.skip_while(|row| *row < rows.start);
    excluded.fold(0, |bits, row| bits | 1 << (row - rows.start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::{similarity, softplus};
    use crate::tile::random_unit_rows;

    /// The definition, in f64.
    fn dense(pairs: &Pairs, column: usize, is_left_out: impl Fn(usize) -> bool) -> f64 {
        let rows = (0..pairs.rows.n_rows()).filter(|row| !is_left_out(*row));
        let logits =
            rows.map(|row| pairs.loss.logit(similarity(pairs.rows.row(row), pairs.columns.row(column))));
        match pairs.loss.objective {
            Objective::Sigmoid => logits.map(softplus).sum(),
            Objective::Softmax => logits.fold(f64::NEG_INFINITY, log_add_exp),
        }
    }

    #[test]
    fn every_mask_leaves_out_its_pairs() {
        for (n, d) in [(1, 3), (7, 5), (300, 33), (530, 16)] {
            let (rows, columns) = (random_unit_rows(n, d, 1), random_unit_rows(n, d, 2));
            let more_rows = random_unit_rows(n + 100, d, 3);
            for objective in [Objective::Sigmoid, Objective::Softmax] {
                for (logit_scale, logit_bias) in [(10.0, -10.0), (100.0, 0.0)] {
                    let loss = PairLoss { logit_scale, logit_bias, objective };
                    let square = Pairs { rows: &rows, columns: &columns, loss, precision: Precision::F32 };
                    let long = Pairs { rows: &more_rows, ..square };
                    let of_one = |pairs, mask| reduce(&[pairs], mask).remove(0);
                    let (all, all_long) = (of_one(square, Mask::Nothing), of_one(long, Mask::Nothing));
                    let others = of_one(square, Mask::Own);
                    let band = of_one(long, Mask::AllButNext(100));
                    for column in 0..n {
                        let check = |found: f64, expected: f64| {
                            let bound = 2e-5 * (1.0 + expected.abs());
                            assert!((found - expected).abs() < bound, "{found} {expected}");
                        };
                        check(all[column], dense(&square, column, |_| false));
                        check(all_long[column], dense(&long, column, |_| false));
                        if n > 1 {
                            check(others[column], dense(&square, column, |row| row == column));
                        }
                        let is_outside = |row| row <= column || row > column + 100;
                        check(band[column], dense(&long, column, is_outside));
                    }
                }
            }
        }
    }

    #[test]
    fn some_columns_are_reduced_as_all_are() {
        let (rows, columns) = (random_unit_rows(300, 20, 1), random_unit_rows(700, 20, 2));
        let which: Vec<usize> = (0..700).filter(|column| column * 13 % 7 < 3).collect();
        for objective in [Objective::Sigmoid, Objective::Softmax] {
            let loss = PairLoss { logit_scale: 20.0, logit_bias: -8.0, objective };
            let pairs = Pairs { rows: &rows, columns: &columns, loss, precision: Precision::F32 };
            let (all, some) = (reduce(&[pairs], Mask::Own), reduce_some(&[pairs], Mask::Own, &which));
            assert_eq!(some[0], which.iter().map(|&column| all[0][column]).collect::<Vec<_>>());
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bytes() {
        let (rows, columns) = (random_unit_rows(600, 40, 1), random_unit_rows(1000, 40, 2));
        for objective in [Objective::Sigmoid, Objective::Softmax] {
            let loss = PairLoss { logit_scale: 20.0, logit_bias: -8.0, objective };
            let pairs = Pairs { rows: &rows, columns: &columns, loss, precision: Precision::F32 };
            let with = |n_threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
                pool.install(|| reduce(&[pairs, pairs], Mask::Own))
            };
            assert_eq!(with(1), with(2));
            assert_eq!(with(1), with(5));
        }
    }
}
