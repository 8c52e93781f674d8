//! Matched embeddings of a model without a logit bias in, the scale and bias that the sigmoid loss would give it out.

use multiversion::multiversion;
use pulp::Scalar;

use crate::matrix::Matrix;
use crate::tile::{Tile, exp_nonpositive, map_strips, ranges};
use crate::vector;

use super::loss::{similarity, softplus};

/// Where the loss of a model's pairs is least.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calibration {
    pub logit_scale: f64,
    pub logit_bias: f64,
    /// The loss there, nats a sample.
    pub loss: f64,
    pub n_iterations: usize,
}

/// Why no scale and bias could be fitted.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum CalibrationError {
    #[error(
        "the loss is still falling after {n_iterations} iterations, at a logit scale of {logit_scale:.3e}: every \
         pair is told from every other by its similarity alone, or all similarities are equal"
    )]
    NotConverged { n_iterations: usize, logit_scale: f64 },
    #[error(
        "the best logit scale is {logit_scale:.3}: the model's captions are no closer to their own images than to others"
    )]
    NotPositive { logit_scale: f64 },
}

const N_ITERATIONS_MAX: usize = 50;

/// Half the squared Newton decrement, relative to the loss, at which the fit has converged: what a further step
/// could still gain.
const TOLERANCE: f64 = 1e-10;

/// SigLIP's start.
const START: Line = Line { logit_scale: 10.0, logit_bias: -10.0 };

/// Fits logit scale and logit bias to a model's pairs by the sigmoid loss of a sub-batch.
///
/// ```text
/// loss = 1/n · [Σ_i softplus(−l_ii) + (sub_batch_size − 1)/(n − 1) · Σ_{i≠j} softplus(l_ij)]
/// l_ij = logit_scale · ⟨x_i, y_j⟩ + logit_bias
/// ```
///
/// The loss is convex. Newton's method with backtracking from scale 10 and bias −10; similarities, losses and their
/// derivatives in f32, sums in f64. The same bytes for any number of threads.
///
/// # Shapes
///
/// Both `[n, d]`, unit rows, row i of both belongs to pair i; n at least 2. Work: 2·n²·d FLOPs an evaluation, of which
/// there are about ten. Memory: O(n).
///
/// # Errors
///
/// The loss has no least value, or it is at a scale that is not above 0.
///
/// # Source
///
/// The loss of SigLIP, arXiv:2303.15343, for the negatives of a sub-batch from those of n pairs.
pub fn calibrate(
    images: &Matrix,
    captions: &Matrix,
    sub_batch_size: usize,
) -> Result<Calibration, CalibrationError> {
    let pairs = MatchedPairs::new(images, captions, sub_batch_size);
    let mut line = START;
    let mut here = pairs.evaluate(line);
    for n_iterations in 1..=N_ITERATIONS_MAX {
        let not_converged = CalibrationError::NotConverged { n_iterations, logit_scale: line.logit_scale };
        let step = here.newton_step().ok_or(not_converged)?;
        let gain = -here.slope_along(step);
        let is_last = 0.5 * gain <= TOLERANCE * here.loss;
        (line, here) = pairs.descend(line, &here, step).ok_or(not_converged)?;
        if is_last {
            let Line { logit_scale, logit_bias } = line;
            if logit_scale <= 0.0 {
                return Err(CalibrationError::NotPositive { logit_scale });
            }
            return Ok(Calibration { logit_scale, logit_bias, loss: here.loss, n_iterations });
        }
    }
    Err(CalibrationError::NotConverged { n_iterations: N_ITERATIONS_MAX, logit_scale: line.logit_scale })
}

/// What is fitted; also a step from one to the next.
#[derive(Clone, Copy, Debug)]
struct Line {
    logit_scale: f64,
    logit_bias: f64,
}

/// The loss at a line with its first and second derivatives.
struct Evaluation {
    loss: f64,
    by_scale: f64,
    by_bias: f64,
    by_scale_scale: f64,
    by_scale_bias: f64,
    by_bias_bias: f64,
}

impl Evaluation {
    /// Minus the inverse of the second derivatives times the first; none where the loss is flat in a direction.
    fn newton_step(&self) -> Option<Line> {
        let determinant = self.by_scale_scale * self.by_bias_bias - self.by_scale_bias * self.by_scale_bias;
        let is_curved = determinant > 1e-9 * self.by_scale_scale * self.by_bias_bias;
        is_curved.then(|| Line {
            logit_scale: (self.by_scale_bias * self.by_bias - self.by_bias_bias * self.by_scale)
                / determinant,
            logit_bias: (self.by_scale_bias * self.by_scale - self.by_scale_scale * self.by_bias)
                / determinant,
        })
    }

    fn slope_along(&self, step: Line) -> f64 {
        self.by_scale * step.logit_scale + self.by_bias * step.logit_bias
    }
}

struct MatchedPairs<'a> {
    images: &'a Matrix,
    captions: &'a Matrix,
    own: Vec<f64>,
    /// Of each pair (i, j), i ≠ j.
    weight: f64,
}

impl<'a> MatchedPairs<'a> {
    fn new(images: &'a Matrix, captions: &'a Matrix, sub_batch_size: usize) -> MatchedPairs<'a> {
        let n = images.n_rows();
        assert_eq!(n, captions.n_rows(), "every image has its caption");
        assert!(n > 1 && sub_batch_size > 1, "{n} pairs for a sub-batch of {sub_batch_size}");
        let own = (0..n).map(|row| similarity(images.row(row), captions.row(row))).collect();
        let weight = (sub_batch_size - 1) as f64 / (n - 1) as f64;
        MatchedPairs { images, captions, own, weight }
    }

    /// A step that lowers the loss, halved until it does; none where it would have to be nothing.
    fn descend(&self, from: Line, here: &Evaluation, step: Line) -> Option<(Line, Evaluation)> {
        // what f32 losses can differ by without meaning
        let noise = 1e-7 * here.loss;
        let mut share = 1.0;
        for _ in 0..40 {
            let line = Line {
                logit_scale: from.logit_scale + share * step.logit_scale,
                logit_bias: from.logit_bias + share * step.logit_bias,
            };
            let there = self.evaluate(line);
            if there.loss <= here.loss + 1e-4 * share * here.slope_along(step) + noise {
                return Some((line, there));
            }
            share *= 0.5;
        }
        None
    }

    fn evaluate(&self, line: Line) -> Evaluation {
        let n = self.own.len();
        let strips = map_strips(n, |tile: &mut Tile, strip| {
            let mut moments = Moments::default();
            for rows in ranges(n) {
                tile.fill(self.images, rows.clone(), self.captions, strip.clone());
                if rows == strip {
                    for own in 0..strip.len() {
                        tile.set(own, own, f32::NEG_INFINITY);
                    }
                }
                add_moments(&mut moments, tile.values(), line.logit_scale as f32, line.logit_bias as f32);
            }
            moments
        });
        let of_negatives = |moment: usize| strips.iter().map(|strip| strip.sum(moment)).sum::<f64>();
        let mut total: [f64; N_MOMENTS] = std::array::from_fn(|moment| self.weight * of_negatives(moment));
        for similarity in &self.own {
            let logit = line.logit_scale * similarity + line.logit_bias;
            let p = (-softplus(-logit)).exp(); // σ(l)
            let (slope, curvature) = (p - 1.0, p * (1.0 - p));
            let of_own = [
                softplus(-logit),
                slope,
                slope * similarity,
                curvature,
                curvature * similarity,
                curvature * similarity * similarity,
            ];
            total.iter_mut().zip(of_own).for_each(|(total, own)| *total += own);
        }
        let [loss, by_bias, by_scale, by_bias_bias, by_scale_bias, by_scale_scale] =
            total.map(|total| total / n as f64);
        Evaluation { loss, by_scale, by_bias, by_scale_scale, by_scale_bias, by_bias_bias }
    }
}

/// softplus(l), σ(l), σ(l)·s, σ'(l), σ'(l)·s, σ'(l)·s², summed over pairs with similarity s and logit l.
const N_MOMENTS: usize = 6;

const LANES: usize = 16;

/// The sums in lanes, so that they vectorise.
#[derive(Default)]
struct Moments([[f64; LANES]; N_MOMENTS]);

impl Moments {
    fn sum(&self, moment: usize) -> f64 {
        self.0[moment].iter().sum()
    }
}

/// Adds the moments of these negative pairs; −∞ stands for a pair that is left out.
#[multiversion(targets = "simd")]
fn add_moments(moments: &mut Moments, similarities: &[f32], logit_scale: f32, logit_bias: f32) {
    let mut block = [f32::NEG_INFINITY; LANES];
    for similarities in similarities.chunks(16 * LANES) {
        let mut sums = [[0.0f32; LANES]; N_MOMENTS];
        for group in similarities.chunks(LANES) {
            block[group.len()..].fill(f32::NEG_INFINITY);
            block[..group.len()].copy_from_slice(group);
            for lane in 0..LANES {
                // no two unit rows are that far apart: the pair is left out, and its terms are below 1e-37
                let is_left_out = block[lane] < -1.5;
                let s = block[lane].max(-1.5);
                let l = if is_left_out { -87.0 } else { logit_scale * s + logit_bias };
                let z = exp_nonpositive(-l.abs());
                let of_larger = 1.0 / (1.0 + z);
                let p = if l > 0.0 { of_larger } else { z * of_larger };
                let curvature = z * of_larger * of_larger;
                sums[0][lane] += l.max(0.0) + vector::ln_1p(Scalar, z);
                sums[1][lane] += p;
                sums[2][lane] += p * s;
                sums[3][lane] += curvature;
                sums[4][lane] += curvature * s;
                sums[5][lane] += curvature * s * s;
            }
        }
        for (totals, sums) in moments.0.iter_mut().zip(sums) {
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total += f64::from(sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::select::{Objective, PairLoss};
    use crate::tile::random_unit_rows;

    /// Captions near their images, and their own loss from the definition.
    fn pairs(n: usize) -> (Matrix, Matrix) {
        let images = random_unit_rows(n, 6, 1);
        let mut captions = random_unit_rows(n, 6, 2);
        for row in 0..n {
            let mixed: Vec<f32> =
                images.row(row).iter().zip(captions.row(row)).map(|(x, y)| 0.6 * x + 0.8 * y).collect();
            let length = mixed.iter().map(|value| value * value).sum::<f32>().sqrt();
            captions.row_mut(row).iter_mut().zip(mixed).for_each(|(to, from)| *to = from / length);
        }
        (images, captions)
    }

    fn loss_at(images: &Matrix, captions: &Matrix, b: usize, logit_scale: f64, logit_bias: f64) -> f64 {
        let n = images.n_rows();
        let line = PairLoss { logit_scale, logit_bias, objective: Objective::Sigmoid };
        let logit = |i, j| line.logit(similarity(images.row(i), captions.row(j)));
        let own: f64 = (0..n).map(|i| softplus(-logit(i, i))).sum();
        let others = (0..n).flat_map(|i| (0..n).filter(move |j| *j != i).map(move |j| (i, j)));
        let others: f64 = others.map(|(i, j)| softplus(logit(i, j))).sum();
        (own + (b - 1) as f64 / (n - 1) as f64 * others) / n as f64
    }

    #[test]
    fn nothing_near_the_fit_is_better() {
        let (images, captions) = pairs(300);
        for b in [64, 4096] {
            let fit = calibrate(&images, &captions, b).unwrap();
            let at = |scale: f64, bias: f64| loss_at(&images, &captions, b, scale, bias);
            let least = at(fit.logit_scale, fit.logit_bias);
            assert!((fit.loss - least).abs() < 1e-6 * least);
            for (scale, bias) in [(0.01, 0.0), (-0.01, 0.0), (0.0, 0.01), (0.0, -0.01), (0.01, -0.005)] {
                assert!(at(fit.logit_scale + scale, fit.logit_bias + bias) > least, "{b} {scale} {bias}");
            }
        }
    }

    #[test]
    fn derivatives_are_those_of_the_loss() {
        let (images, captions) = pairs(300);
        let pairs = MatchedPairs::new(&images, &captions, 128);
        let at = |logit_scale, logit_bias| pairs.evaluate(Line { logit_scale, logit_bias });
        let here = at(7.0, -5.0);
        assert!((here.loss - loss_at(&images, &captions, 128, 7.0, -5.0)).abs() < 1e-6 * here.loss);
        let step = 1e-2;
        let (left, right) = (at(7.0 - step, -5.0), at(7.0 + step, -5.0));
        let (down, up) = (at(7.0, -5.0 - step), at(7.0, -5.0 + step));
        let close = |found: f64, less: f64, more: f64| {
            let expected = (more - less) / (2.0 * step);
            assert!((found - expected).abs() < 1e-3 * expected.abs(), "{found} {expected}");
        };
        close(here.by_scale, left.loss, right.loss);
        close(here.by_bias, down.loss, up.loss);
        close(here.by_scale_scale, left.by_scale, right.by_scale);
        close(here.by_scale_bias, left.by_bias, right.by_bias);
        close(here.by_bias_bias, down.by_bias, up.by_bias);
    }

    #[test]
    fn what_has_no_fit_says_so() {
        // every pair at similarity 1 or 0: the loss falls for ever
        let mut apart = Matrix::zeros(20, 20);
        (0..20).for_each(|row| apart.row_mut(row)[row] = 1.0);
        assert!(matches!(calibrate(&apart, &apart, 20), Err(CalibrationError::NotConverged { .. })));
        // all similarities equal: no scale is better than another
        let same = Matrix::new([1.0, 0.0].repeat(30), 2);
        assert!(matches!(calibrate(&same, &same, 20), Err(CalibrationError::NotConverged { .. })));
        // captions of their opposites
        let (images, mut captions) = pairs(300);
        for row in 0..300 {
            captions.row_mut(row).iter_mut().for_each(|value| *value = -*value);
        }
        let error = calibrate(&images, &captions, 64).unwrap_err();
        assert!(
            matches!(error, CalibrationError::NotPositive { logit_scale } if logit_scale < 0.0),
            "{error}"
        );
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bytes() {
        let (images, captions) = pairs(600);
        let with = |n_threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| calibrate(&images, &captions, 512)).unwrap()
        };
        assert_eq!(with(1), with(3));
    }
}
