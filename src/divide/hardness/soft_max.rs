//! A block of similarities in; for each column, its largest and the sums of a softmax out.

use std::ops::Range;

use multiversion::multiversion;

use crate::tile::{Tile, exp_nonpositive};

/// For each column of a block: its largest value, and sums over `e = exp((value − largest) / temperature)`.
pub(super) struct SoftMax {
    temperature: f32,
    pub largest: Vec<f32>,
    /// The first row with the largest value.
    pub largest_row: Vec<u32>,
    sums: Vec<f64>,
    sums_of_squares: Vec<f64>,
}

impl SoftMax {
    pub fn of_columns(block: &Tile, temperature: f32) -> SoftMax {
        let n = block.n_columns();
        let (largest, largest_row) = (vec![f32::NEG_INFINITY; n], vec![0; n]);
        let mut soft_max =
            SoftMax { temperature, largest, largest_row, sums: vec![0.0; n], sums_of_squares: vec![0.0; n] };
        find_largest(&mut soft_max, block);
        sum_exponentials(&mut soft_max, block);
        soft_max
    }

    /// `temperature · ln(mean exp(value / temperature))` of a column over its `n` values that are not masked.
    pub fn log_mean_exp(&self, column: usize, n: usize) -> f64 {
        self.log_mean_exp_of(self.largest[column], self.sums[column], n)
    }

    fn log_mean_exp_of(&self, largest: f32, sum: f64, n: usize) -> f64 {
        f64::from(largest) + f64::from(self.temperature) * (sum / n as f64).ln()
    }

    /// The same over the first `n` of a column's `n_all` values that are not masked, `n` above 0: those after them
    /// are taken out of the sum, as they are few where both banks have about the same size.
    pub fn log_mean_exp_of_first(&self, block: &Tile, column: usize, n: usize, n_all: usize) -> f64 {
        let scale = self.temperature.recip();
        let value = |row: usize| block.row(row)[column];
        let is_unmasked = |row: &usize| value(*row) > f32::NEG_INFINITY;
        let sum_of = |largest: f32, rows: Range<usize>| -> f64 {
            let values = rows.filter(is_unmasked).map(value);
            values.map(|value| f64::from(exp_nonpositive((value - largest) * scale))).sum()
        };
        if n == n_all {
            return self.log_mean_exp(column, n);
        }
        let mut unmasked_from_last = (0..block.n_rows()).rev().filter(is_unmasked);
        let first_out = unmasked_from_last.nth(n_all - n - 1).expect("the column has `n_all` values");
        let largest = self.largest[column];
        let left = self.sums[column] - sum_of(largest, first_out..block.n_rows());
        if left > 0.25 * self.sums[column] {
            return self.log_mean_exp_of(largest, left, n);
        }
        // a small difference of large sums would be noise
        let largest = (0..first_out).map(value).fold(f32::NEG_INFINITY, f32::max);
        self.log_mean_exp_of(largest, sum_of(largest, 0..first_out), n)
    }

    /// `(Σe)² / Σe²` of a column.
    pub fn effective_number(&self, column: usize) -> f64 {
        self.sums[column].powi(2) / self.sums_of_squares[column]
    }
}

#[multiversion(targets = "simd")]
fn find_largest(soft_max: &mut SoftMax, block: &Tile) {
    for row in 0..block.n_rows() {
        let kept = soft_max.largest.iter_mut().zip(&mut soft_max.largest_row);
        for (value, (largest, largest_row)) in block.row(row).iter().zip(kept) {
            let is_larger = *value > *largest;
            *largest = if is_larger { *value } else { *largest };
            *largest_row = if is_larger { row as u32 } else { *largest_row };
        }
    }
}

#[multiversion(targets = "simd")]
fn sum_exponentials(soft_max: &mut SoftMax, block: &Tile) {
    let scale = soft_max.temperature.recip();
    for row in 0..block.n_rows() {
        let sums = soft_max.sums.iter_mut().zip(&mut soft_max.sums_of_squares);
        for ((value, largest), (sum, sum_of_squares)) in
            block.row(row).iter().zip(&soft_max.largest).zip(sums)
        {
            let e = exp_nonpositive((value - largest) * scale);
            *sum += f64::from(e);
            *sum_of_squares += f64::from(e * e);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Matrix;

    /// A column of a block with these values.
    fn column(values: &[f32]) -> Tile {
        let mut block = Tile::default();
        let rows = Matrix::new(vec![0.0; values.len()], 1);
        block.fill(&rows, 0..values.len(), &Matrix::new(vec![1.0], 1), 0..1);
        values.iter().enumerate().for_each(|(row, value)| block.set(row, 0, *value));
        block
    }

    #[test]
    fn the_first_values_are_those_that_are_not_masked() {
        let masked = f32::NEG_INFINITY;
        // the last two hold nearly all of the sum, then hardly any
        for last in [[0.9, 0.8], [-0.4, -0.5]] {
            let values = [0.1, masked, 0.3, -0.2, masked, last[0], masked, last[1]];
            let block = column(&values);
            let soft_max = SoftMax::of_columns(&block, 0.1);
            let unmasked: Vec<f64> =
                values.iter().filter(|value| **value > masked).map(|value| f64::from(*value)).collect();
            for n in 1..=5 {
                let mean = unmasked[..n].iter().map(|value| (value / 0.1).exp()).sum::<f64>() / n as f64;
                let found = soft_max.log_mean_exp_of_first(&block, 0, n, 5);
                assert!((found - 0.1 * mean.ln()).abs() < 1e-6, "the first {n}: {found}");
            }
        }
    }
}
