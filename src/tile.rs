//! Two sets of embeddings in, their inner products out, tile by tile: what centroids, banks and pairs are
//! computed with.
//!
//! The product `[n_rows, n_columns]` is cut into *strips* of columns. Threads share out the strips; within
//! one strip the tiles follow each other in order, each kept in cache until it is reduced to something small
//! per column. Tiles have fixed places and every product of a tile is computed by one thread, so the results
//! are the same bytes for any number of threads. Nothing of the size of the product is ever stored.

use std::ops::Range;

use gemm::Parallelism;
use pulp::Scalar;
use rayon::prelude::*;

use crate::matrix::Matrix;
use crate::vector;

/// Rows and columns of a tile: 256 KiB of f32, so that two tiles stay in a core's second-level cache.
pub const TILE: usize = 256;

/// `0..n` in runs of [`TILE`], the last one shorter.
pub fn ranges(n: usize) -> impl ExactSizeIterator<Item = Range<usize>> + Clone {
    (0..n.div_ceil(TILE)).map(move |tile_idx| nth_range(n, tile_idx))
}

/// Rows of a block that is read once and needs no cache for anything else. Packing the columns' operand anew for each
/// block then costs a fifth less of the whole product than with [`TILE`] rows.
pub const TALL: usize = 4 * TILE;

/// `0..n` in runs of [`TALL`], the last one shorter.
pub fn tall_ranges(n: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(TALL).map(move |start| start..n.min(start + TALL))
}

fn nth_range(n: usize, tile_idx: usize) -> Range<usize> {
    tile_idx * TILE..n.min((tile_idx + 1) * TILE)
}

/// Applies `reduce` to every strip of columns, on all threads, and returns the results in the order of the
/// strips. `S` is scratch space that `reduce` may reuse from one strip to the next, never a result.
pub fn map_strips<S: Default, T: Send>(
    n_columns: usize,
    reduce: impl Fn(&mut S, Range<usize>) -> T + Sync,
) -> Vec<T> {
    (0..n_columns.div_ceil(TILE))
        .into_par_iter()
        .map_init(S::default, |scratch, tile_idx| reduce(scratch, nth_range(n_columns, tile_idx)))
        .collect()
}

/// A block of inner products `[n_rows, n_columns]`, row-major, reused from one place to the next.
#[derive(Clone, Debug, Default)]
pub struct Tile {
    values: Vec<f32>,
    n_columns: usize,
}

impl Tile {
    /// Sets `tile[i, j] = ⟨rows[row_range[i]], columns[column_range[j]]⟩`, summed in f32.
    ///
    /// The same operands give the same bytes at any time and on any thread of one kind of processor. The last
    /// bits may differ where the same two embeddings meet at another place of another tile.
    pub fn fill(
        &mut self,
        rows: &Matrix,
        row_range: Range<usize>,
        columns: &Matrix,
        column_range: Range<usize>,
    ) {
        assert_eq!(rows.n_cols(), columns.n_cols(), "embeddings of different sizes");
        let depth = rows.n_cols();
        let left = &rows.values()[row_range.start * depth..row_range.end * depth];
        let right = &columns.values()[column_range.start * depth..column_range.end * depth];
        self.n_columns = column_range.len();
        self.values.clear();
        self.values.resize(row_range.len() * self.n_columns, 0.0);
        if self.values.is_empty() {
            return;
        }
        // SAFETY: the three slices hold [n_rows, depth], [n_columns, depth] and [n_rows, n_columns] values
        // and the strides walk exactly those; the result is borrowed mutably and overlaps nothing.
        unsafe {
            gemm::gemm(
                row_range.len(),
                column_range.len(),
                depth,
                self.values.as_mut_ptr(),
                1,
                self.n_columns as isize,
                false,
                left.as_ptr(),
                1,
                depth as isize,
                right.as_ptr(),
                depth as isize,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }

    pub fn n_columns(&self) -> usize {
        self.n_columns
    }

    pub fn n_rows(&self) -> usize {
        self.values.len().checked_div(self.n_columns).unwrap_or(0)
    }

    /// All values, row after row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.n_columns..(row + 1) * self.n_columns]
    }

    pub fn set(&mut self, row: usize, column: usize, value: f32) {
        self.values[row * self.n_columns + column] = value;
    }
}

/// `e^x` for `x ≤ 0`, of one number: [`vector::exp_nonpositive`].
#[inline(always)]
pub fn exp_nonpositive(x: f32) -> f32 {
    vector::exp_nonpositive(Scalar, x)
}

/// Seeded unit rows for tests.
#[cfg(test)]
pub(crate) fn random_unit_rows(n_rows: usize, n_cols: usize, seed: u64) -> Matrix {
    use crate::noise::{Purpose, keyed_hash};
    let mut rows = Matrix::zeros(n_rows, n_cols);
    for row in 0..n_rows {
        let place = |column: usize| (row * n_cols + column) as u64;
        let uniform =
            |column| keyed_hash(Purpose::Control, seed, 0, "", place(column)) as f64 * (-64f64).exp2() - 0.5;
        let values: Vec<f64> = (0..n_cols).map(uniform).collect();
        let length = values.iter().map(|value| value * value).sum::<f64>().sqrt();
        for (value, exact) in rows.row_mut(row).iter_mut().zip(values) {
            *value = (exact / length) as f32;
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n_rows: usize, n_cols: usize) -> Matrix {
        Matrix::new((0..n_rows * n_cols).map(|i| (i as f32 * 0.7).sin()).collect(), n_cols)
    }

    #[test]
    fn a_tile_holds_the_inner_products_of_its_place() {
        let rows = Matrix::new(vec![1.0, 0.0, 0.0, 2.0, 1.0, 1.0], 2);
        let columns = Matrix::new(vec![3.0, 4.0, 5.0, 6.0], 2);
        let mut tile = Tile::default();
        tile.fill(&rows, 1..3, &columns, 0..2);
        assert_eq!(tile.values(), [8.0, 12.0, 7.0, 11.0]);
        tile.fill(&rows, 0..1, &columns, 1..2);
        assert_eq!(tile.values(), [5.0]);
        assert_eq!((tile.n_rows(), tile.n_columns()), (1, 1));
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bytes() {
        let (rows, columns) = (wave(600, 40), wave(1000, 40));
        let sums_with = |n_threads| {
            rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap().install(|| {
                map_strips(columns.n_rows(), |tile: &mut Tile, strip| {
                    let mut sums = vec![0.0f32; strip.len()];
                    for range in ranges(rows.n_rows()) {
                        tile.fill(&rows, range, &columns, strip.clone());
                        for row in 0..tile.n_rows() {
                            sums.iter_mut().zip(tile.row(row)).for_each(|(sum, value)| *sum += value);
                        }
                    }
                    sums
                })
            })
        };
        let one = sums_with(1);
        assert_eq!(one.iter().map(Vec::len).collect::<Vec<_>>(), [256, 256, 256, 232]);
        assert_eq!(one, sums_with(2));
        assert_eq!(one, sums_with(5));
    }
}
