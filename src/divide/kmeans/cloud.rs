//! Points as the fit sees them: rows of about unit length, each with what brings it to unit length.

use rayon::prelude::*;

use crate::matrix::{Matrix, dot, inverse_length};

/// Points with `1 / length` of each.
pub(super) struct Cloud<'a> {
    /// `[n_points, d]`
    pub points: &'a Matrix,
    pub inverse_lengths: Vec<f32>,
}

impl Cloud<'_> {
    pub fn new(points: &Matrix) -> Cloud<'_> {
        let rows = (0..points.n_rows()).into_par_iter();
        Cloud { points, inverse_lengths: rows.map(|row| inverse_length(points.row(row))).collect() }
    }

    /// `1 − cos` of two points, 0 for one and the same.
    pub fn distance(&self, left: usize, right: usize) -> f64 {
        let cosine = dot(self.points.row(left), self.points.row(right));
        let cosine = cosine * self.inverse_lengths[left] * self.inverse_lengths[right];
        if left == right { 0.0 } else { (1.0 - f64::from(cosine)).max(0.0) }
    }

    /// Adds a point at unit length.
    pub fn add_to(&self, sum: &mut [f64], point: usize) {
        let scale = f64::from(self.inverse_lengths[point]);
        for (sum, value) in sum.iter_mut().zip(self.points.row(point)) {
            *sum += scale * f64::from(*value);
        }
    }
}

/// Sets a centroid to the direction of a sum of unit points; one whose points cancel out stays.
pub(super) fn set_direction(centroid: &mut [f32], sum: &[f64]) {
    let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
    if length > 0.0 {
        for (value, sum) in centroid.iter_mut().zip(sum) {
            *value = (sum / length) as f32;
        }
    }
}
