//! Embeddings of samples and of targets or evaluation sets in; how close each sample comes to them out.

use multiversion::multiversion;

use crate::divide::assign;
use crate::matrix::{Matrix, unit_rows};
use crate::settings::Norm;
use crate::tile::{TILE, Tile, map_strips, ranges, tall_ranges};

/// How close each sample is to a whole set of targets (NormSim).
///
/// ```text
/// norm_sim_i = ‖⟨targets, row_i⟩‖_p       p = 2: √Σ_t ⟨target_t, row_i⟩²      p = ∞: max_t |⟨target_t, row_i⟩|
/// ```
///
/// High: like many targets (p = 2), or like one of them (p = ∞; a strongly negative similarity counts as well).
/// With p = 2 the values grow with the root of the number of targets: compare within one set only.
///
/// # Shapes and units
///
/// `rows` is `[n, d]`, `targets` `[n_targets, d]`, unit rows. Similarities in f32, sums of squares in f64. Work:
/// 2·n·n_targets·d FLOPs; with p = 2 and more targets than dimensions 2·(n + n_targets)·d², through
/// `rowᵀ(Σ_t target_t·target_tᵀ)row`. Memory: one tile a thread, and `[d, d]`.
///
/// # Source
///
/// arXiv:2405.19547, NormSim.
///
/// # Example
///
/// Targets (1, 0) and (0, −1), row (0.6, 0.8): 1 for p = 2, 0.8 for p = ∞.
pub fn norm_sim(rows: &Matrix, targets: &Matrix, norm: Norm) -> Vec<f64> {
    norm_sim_by(rows, targets, norm, moments_for(targets, norm).as_ref())
}

/// What of many targets is the same for all rows: `Σ_t target_t·target_tᵀ`, where it saves work.
pub fn moments_for(targets: &Matrix, norm: Norm) -> Option<Matrix> {
    (norm == Norm::Two && targets.n_rows() > targets.n_cols()).then(|| second_moments(targets))
}

/// [`norm_sim`], given what [`moments_for`] gives.
pub fn norm_sim_by(rows: &Matrix, targets: &Matrix, norm: Norm, moments: Option<&Matrix>) -> Vec<f64> {
    assert!(targets.n_rows() > 0, "no targets to be close to");
    match (norm, moments) {
        (Norm::Two, Some(moments)) => norm_2_by_moments(rows, moments),
        (Norm::Two, None) => by_tiles(rows, targets, add_squares).into_iter().map(f64::sqrt).collect(),
        (Norm::Infinity, _) => by_tiles(rows, targets, raise_to_magnitudes),
    }
}

/// Folds each sample's similarities with all targets, tile by tile.
fn by_tiles(rows: &Matrix, targets: &Matrix, fold: fn(&Tile, &mut [f64])) -> Vec<f64> {
    let strips = map_strips(rows.n_rows(), |tile: &mut Tile, strip| {
        let mut folded = vec![0.0; strip.len()];
        for range in tall_ranges(targets.n_rows()) {
            tile.fill(targets, range, rows, strip.clone());
            fold(tile, &mut folded);
        }
        folded
    });
    strips.concat()
}

#[multiversion(targets = "simd")]
fn add_squares(tile: &Tile, sums: &mut [f64]) {
    for row in 0..tile.n_rows() {
        for (sum, similarity) in sums.iter_mut().zip(tile.row(row)) {
            *sum += f64::from(*similarity) * f64::from(*similarity);
        }
    }
}

#[multiversion(targets = "simd")]
fn raise_to_magnitudes(tile: &Tile, largest: &mut [f64]) {
    for row in 0..tile.n_rows() {
        for (largest, similarity) in largest.iter_mut().zip(tile.row(row)) {
            *largest = largest.max(f64::from(similarity.abs()));
        }
    }
}

/// The norm for p = 2 without a look at each pair.
fn norm_2_by_moments(rows: &Matrix, moments: &Matrix) -> Vec<f64> {
    let strips = map_strips(rows.n_rows(), |tile: &mut Tile, strip| {
        let mut sums = vec![0.0; strip.len()];
        for range in ranges(rows.n_cols()) {
            tile.fill(rows, strip.clone(), moments, range.clone());
            for (position, row) in strip.clone().enumerate() {
                sums[position] += dot_f64(tile.row(position), &rows.row(row)[range.clone()]);
            }
        }
        sums
    });
    // rounding may take a sample at right angles to all targets below 0
    strips.concat().into_iter().map(|sum| sum.max(0.0).sqrt()).collect()
}

#[multiversion(targets = "simd")]
fn dot_f64(left: &[f32], right: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 8];
    let (left_blocks, left_rest) = left.as_chunks::<8>();
    let (right_blocks, right_rest) = right.as_chunks::<8>();
    for (l, r) in left_blocks.iter().zip(right_blocks) {
        for lane in 0..8 {
            lanes[lane] += f64::from(l[lane]) * f64::from(r[lane]);
        }
    }
    let rest: f64 = left_rest.iter().zip(right_rest).map(|(l, r)| f64::from(*l) * f64::from(*r)).sum();
    lanes.iter().sum::<f64>() + rest
}

/// `Σ_t target_t·target_tᵀ`, `[d, d]`: in f32 over 256 targets, in f64 beyond.
fn second_moments(targets: &Matrix) -> Matrix {
    let dim = targets.n_cols();
    let strips = map_strips(dim, |tile: &mut Tile, strip| {
        let mut sums = vec![0.0f64; dim * strip.len()];
        for block in ranges(targets.n_rows()) {
            let mut transposed = Matrix::zeros(dim, TILE);
            for (position, target) in block.enumerate() {
                for (dimension, value) in targets.row(target).iter().enumerate() {
                    transposed.row_mut(dimension)[position] = *value;
                }
            }
            tile.fill(&transposed, 0..dim, &transposed, strip.clone());
            for (sum, value) in sums.iter_mut().zip(tile.values()) {
                *sum += f64::from(*value);
            }
        }
        sums
    });
    let mut moments = Matrix::zeros(dim, dim);
    for (strip, sums) in ranges(dim).zip(strips) {
        for row in 0..dim {
            let values = sums[row * strip.len()..(row + 1) * strip.len()].iter().map(|sum| *sum as f32);
            for (place, value) in moments.row_mut(row)[strip.clone()].iter_mut().zip(values) {
                *place = value;
            }
        }
    }
    moments
}

/// The nearest of a set of evaluation embeddings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NearestEvaluation {
    /// Its row in the set; the earlier on a tie.
    pub row: u32,
    /// Cosine to it.
    pub similarity: f32,
}

/// The nearest of one evaluation set to each sample: how decontamination sees whether a sample is in it.
///
/// High similarity: the sample shows what the evaluation asks about; near 1 it is the same image.
///
/// # Shapes and units
///
/// `images` is `[n, d]`, `evaluation` `[n_evaluation, d]`, at least one row; all rows are scaled to unit length.
/// Cosines in f32. Work: 2·n·n_evaluation·d FLOPs. Memory: a copy of the set, and one tile a thread.
///
/// # Panics
///
/// An empty set, or a row without direction.
pub fn nearest_evaluation(images: &Matrix, evaluation: &Matrix) -> Vec<NearestEvaluation> {
    let nearest = assign(images, &unit_rows(evaluation.clone())).into_iter();
    nearest
        .map(|nearest| NearestEvaluation { row: nearest.cluster, similarity: nearest.centroid_similarity })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tile::random_unit_rows;

    #[test]
    fn the_example_by_hand() {
        let targets = Matrix::new(vec![1.0, 0.0, 0.0, -1.0], 2);
        let rows = Matrix::new(vec![0.6, 0.8], 2);
        assert!((norm_sim(&rows, &targets, Norm::Two)[0] - 1.0).abs() < 1e-6);
        assert!((norm_sim(&rows, &targets, Norm::Infinity)[0] - 0.8).abs() < 1e-6);
        // a third target, at right angles to the row, goes through the moments
        let more = Matrix::new(vec![1.0, 0.0, 0.0, -1.0, 0.8, -0.6], 2);
        assert!((norm_sim(&rows, &more, Norm::Two)[0] - 1.0).abs() < 1e-6);
    }

    #[test]
    fn both_ways_give_the_same_norms() {
        let (rows, targets) = (random_unit_rows(300, 270, 1), random_unit_rows(600, 270, 2));
        let pairs = by_tiles(&rows, &targets, add_squares);
        for (squares, norm) in pairs.iter().zip(norm_sim(&rows, &targets, Norm::Two)) {
            assert!((squares.sqrt() - norm).abs() < 1e-5 * norm, "{} {norm}", squares.sqrt());
        }
    }

    #[test]
    fn the_nearest_has_any_length() {
        let evaluation = Matrix::new(vec![0.0, 3.0, 0.5, 0.0, 2.0, 0.0], 2);
        let images = Matrix::new(vec![0.8, 0.6], 2);
        let nearest = nearest_evaluation(&images, &evaluation);
        assert_eq!(nearest, [NearestEvaluation { row: 1, similarity: 0.8 }]);
    }
}
