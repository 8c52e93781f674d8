//! Two sets of embeddings under one model in, one number a column out: what each column's pairs with the rows add
//! to the loss of its sample. The pairs themselves exist a tile at a time.

use std::ops::Range;

use multiversion::multiversion;
use rayon::prelude::*;

use crate::divide::Exclusions;
use crate::matrix::Matrix;
use crate::tile::{TILE, Tile, exp_nonpositive, ln_1p, nth_range};

use super::loss::{Objective, PairLoss, log_add_exp};

/// The pairs of each row with each column under one model: images on one side, captions on the other.
#[derive(Clone, Copy)]
pub(super) struct Pairs<'a> {
    pub rows: &'a Matrix,
    pub columns: &'a Matrix,
    pub loss: PairLoss,
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

/// Adds up the pairs of each column, for each of several sets of pairs with the same columns' count.
///
/// ```text
/// sigmoid    Σ_row softplus(logit[row, column])         nats; 0 for no rows
/// softmax    ln Σ_row exp(logit[row, column])           −∞ for no rows
/// ```
///
/// Logits and losses in f32, sums over up to 256 rows in f32 of at most 16 terms each and in f64 from there. Work:
/// 2·n_rows·n_columns·d FLOPs a set. Memory: O(n_columns), and a tile a thread.
pub(super) fn reduce(sets: &[Pairs], mask: Mask) -> Vec<Vec<f64>> {
    let n_columns = sets[0].columns.n_rows();
    assert!(sets.iter().all(|pairs| pairs.columns.n_rows() == n_columns));
    let n_strips = n_columns.div_ceil(TILE);
    let strips: Vec<Vec<f64>> = (0..sets.len() * n_strips)
        .into_par_iter()
        .map_init(Scratch::default, |scratch, task| {
            let strip = nth_range(n_columns, task % n_strips);
            scratch.reduce(&sets[task / n_strips], mask, strip)
        })
        .collect();
    (0..sets.len()).map(|set| strips[set * n_strips..(set + 1) * n_strips].concat()).collect()
}

/// What one thread uses from one strip to the next.
#[derive(Default)]
struct Scratch {
    tile: Tile,
}

impl Scratch {
    fn reduce(&mut self, pairs: &Pairs, mask: Mask, strip: Range<usize>) -> Vec<f64> {
        let mut totals = vec![pairs.loss.objective.nothing(); strip.len()];
        let all = mask.rows(pairs.rows.n_rows(), strip.clone());
        for start in all.clone().step_by(TILE) {
            let rows = start..all.end.min(start + TILE);
            self.tile.fill(pairs.rows, rows.clone(), pairs.columns, strip.clone());
            mask.apply(&mut self.tile, rows, strip.clone());
            match pairs.loss.objective {
                Objective::Sigmoid => add_losses(self.tile.values(), &pairs.loss, &mut totals),
                Objective::Softmax => {
                    add_exponentials(self.tile.values_mut(), &pairs.loss, &mut totals);
                }
            }
        }
        totals
    }
}

impl Mask<'_> {
    /// The rows that some column of the strip meets.
    fn rows(&self, n_rows: usize, strip: Range<usize>) -> Range<usize> {
        match self {
            Mask::AllButNext(n) => strip.start + 1..strip.end + n,
            Mask::Nothing | Mask::Own | Mask::Excluded(_) => 0..n_rows,
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

    /// Sets the similarities of what is left out to −∞, which adds nothing under either objective.
    fn apply(&self, tile: &mut Tile, rows: Range<usize>, strip: Range<usize>) {
        let mut leave_out = |row: usize, column: usize| tile.set(row, column, f32::NEG_INFINITY);
        match self {
            Mask::Nothing => {}
            Mask::Own => {
                for own in rows.start.max(strip.start)..rows.end.min(strip.end) {
                    leave_out(own - rows.start, own - strip.start);
                }
            }
            Mask::Excluded(exclusions) => {
                for (column, query) in strip.enumerate() {
                    for row in exclusions.of(query, rows.clone()) {
                        leave_out(row - rows.start, column);
                    }
                }
            }
            Mask::AllButNext(n) => {
                for (column, i) in strip.enumerate() {
                    for row in rows.clone().filter(|row| *row <= i || *row > i + n) {
                        leave_out(row - rows.start, column);
                    }
                }
            }
        }
    }
}

/// [`softplus`](super::loss::softplus) in f32 for loops over tiles, by arithmetic alone so that they vectorise.
///
/// The relative error is below 1e-6 for every logit above −87, where the loss is 1.6e-38; below, the loss
/// stays there.
#[inline(always)]
fn softplus_f32(logit: f32) -> f32 {
    logit.max(0.0) + ln_1p(exp_nonpositive(-logit.abs()))
}

/// How many f32 are summed before the sum goes into an f64.
const BLOCK: usize = 8;

/// Adds to each total the losses of its column's pairs; `similarities` is `[n_rows, totals.len()]`.
#[multiversion(targets = "simd")]
fn add_losses(similarities: &[f32], loss: &PairLoss, totals: &mut [f64]) {
    let (scale, bias) = (loss.logit_scale as f32, loss.logit_bias as f32);
    let mut block_sums = [0.0f32; TILE];
    let block_sums = &mut block_sums[..totals.len()];
    for block in similarities.chunks(BLOCK * totals.len()) {
        block_sums.fill(0.0);
        for row in block.chunks_exact(block_sums.len()) {
            for (sum, similarity) in block_sums.iter_mut().zip(row) {
                *sum += softplus_f32(scale * similarity + bias);
            }
        }
        for (total, sum) in totals.iter_mut().zip(&*block_sums) {
            *total += f64::from(*sum);
        }
    }
}

/// Adds to each total, the logarithm of a sum, the exponentials of its column's logits.
#[multiversion(targets = "simd")]
fn add_exponentials(similarities: &mut [f32], loss: &PairLoss, totals: &mut [f64]) {
    let (scale, bias) = (loss.logit_scale as f32, loss.logit_bias as f32);
    let n_columns = totals.len();
    let mut largest = [f32::NEG_INFINITY; TILE];
    let largest = &mut largest[..n_columns];
    for row in similarities.chunks_exact_mut(n_columns) {
        for (largest, value) in largest.iter_mut().zip(row) {
            *value = scale * *value + bias;
            *largest = largest.max(*value);
        }
    }
    // where all is left out, any finite number does as the largest
    largest.iter_mut().for_each(|largest| *largest = largest.max(f32::MIN));
    let mut sums = [0.0f64; TILE];
    let mut block_sums = [0.0f32; TILE];
    let block_sums = &mut block_sums[..n_columns];
    for block in similarities.chunks(BLOCK * n_columns) {
        block_sums.fill(0.0);
        for row in block.chunks_exact(n_columns) {
            for ((sum, logit), largest) in block_sums.iter_mut().zip(row).zip(&*largest) {
                *sum += exp_nonpositive(logit - largest);
            }
        }
        for (sum, block_sum) in sums.iter_mut().zip(&*block_sums) {
            *sum += f64::from(*block_sum);
        }
    }
    for ((total, sum), largest) in totals.iter_mut().zip(sums).zip(&*largest) {
        *total = log_add_exp(*total, f64::from(*largest) + sum.ln());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::{similarity, softplus};
    use crate::tile::random_unit_rows;

    #[test]
    fn softplus_f32_has_its_stated_error() {
        for step in -870_000..=1_200_000 {
            let logit = step as f32 * 1e-4;
            let error = f64::from(softplus_f32(logit)) / softplus(f64::from(logit)) - 1.0;
            assert!(error.abs() < 1e-6, "relative error {error:e} at {logit}");
        }
        assert!(softplus_f32(-1e6) < 2e-38);
        assert_eq!(softplus_f32(1e6), 1e6);
    }

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
                    let square = Pairs { rows: &rows, columns: &columns, loss };
                    let long = Pairs { rows: &more_rows, columns: &columns, loss };
                    let all = reduce(&[square, long], Mask::Nothing);
                    let others = reduce(&[square], Mask::Own);
                    let band = reduce(&[long], Mask::AllButNext(100));
                    for column in 0..n {
                        let check = |found: f64, expected: f64| {
                            let bound = 2e-5 * (1.0 + expected.abs());
                            assert!((found - expected).abs() < bound, "{found} {expected}");
                        };
                        check(all[0][column], dense(&square, column, |_| false));
                        check(all[1][column], dense(&long, column, |_| false));
                        if n > 1 {
                            check(others[0][column], dense(&square, column, |row| row == column));
                        }
                        let is_outside = |row| row <= column || row > column + 100;
                        check(band[0][column], dense(&long, column, is_outside));
                    }
                }
            }
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bytes() {
        let (rows, columns) = (random_unit_rows(600, 40, 1), random_unit_rows(1000, 40, 2));
        for objective in [Objective::Sigmoid, Objective::Softmax] {
            let loss = PairLoss { logit_scale: 20.0, logit_bias: -8.0, objective };
            let pairs = Pairs { rows: &rows, columns: &columns, loss };
            let with = |n_threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
                pool.install(|| reduce(&[pairs, pairs], Mask::Own))
            };
            assert_eq!(with(1), with(2));
            assert_eq!(with(1), with(5));
        }
    }
}
