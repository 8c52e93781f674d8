//! Similarities in, sigmoid pair losses out: of one pair in f64, of a whole tile of negative pairs in f32.

use multiversion::multiversion;
use serde::{Deserialize, Serialize};

use crate::tile::{Tile, exp_nonpositive, horner};

/// The loss of a pair, by which models were trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// SigLIP's: each pair by itself; needs a logit bias.
    #[default]
    Sigmoid,
    /// CLIP's: each pair against all others of its batch.
    Softmax,
}

/// The inner product of two stored embeddings: a cosine as far as the stored rows have unit length. The
/// products are exact in f64 and summed in f64 in eight fixed lanes.
pub fn similarity(image: &[f32], caption: &[f32]) -> f64 {
    assert_eq!(image.len(), caption.len());
    let mut lanes = [0.0f64; 8];
    for (image, caption) in image.chunks(8).zip(caption.chunks(8)) {
        for (lane, (x, y)) in lanes.iter_mut().zip(image.iter().zip(caption)) {
            *lane += f64::from(*x) * f64::from(*y);
        }
    }
    lanes.iter().sum()
}

/// `ln(1 + e^l)`, exact to f64: the loss in nats of a pair whose logit should have been −∞.
pub fn softplus(logit: f64) -> f64 {
    logit.max(0.0) + (-logit.abs()).exp().ln_1p()
}

/// [`softplus`] in f32 for loops over tiles, by arithmetic alone so that they vectorise.
///
/// The relative error is below 1e-6 for every logit above −87, where the loss is 1.6e-38; below, the loss
/// stays there.
///
/// # Source
///
/// `max(l, 0) + ln(1 + e^−|l|)` with `ln(1 + z) = z·P(z)`, P our own minimax fit on 0..1 (relative error 3e-8).
#[inline(always)]
fn softplus_f32(logit: f32) -> f32 {
    const LN_1P_OVER_Z: [f32; 9] = [
        0.999_999_94,
        -0.499_994_93,
        0.333_190_95,
        -0.248_429_64,
        0.191_059_35,
        -0.136_630_95,
        0.078_224_175,
        -0.029_504_146,
        0.005_232_421_7,
    ];
    let z = exp_nonpositive(-logit.abs());
    logit.max(0.0) + z * horner(z, LN_1P_OVER_Z)
}

/// A model's sigmoid loss: how it turns the similarity of an image and a caption into nats.
///
/// ```text
/// logit = logit_scale · similarity + logit_bias
/// positive(similarity) = softplus(−logit)      the pair (i, i)
/// negative(similarity) = softplus(logit)       the pairs (i, j), i ≠ j
/// ```
///
/// Both are high where the model is wrong: the positive loss where image and caption are far apart, the
/// negative loss where an image is close to another sample's caption.
///
/// # Source
///
/// SigLIP, arXiv:2303.15343, with its sign of the bias (about −10 at the start of training). JEST,
/// arXiv:2406.17711, writes the logit `−α·s + β`: its β is minus this bias.
///
/// # Example
///
/// ```
/// use superbatch::select::SigmoidLoss;
/// let loss = SigmoidLoss { logit_scale: 10.0, logit_bias: -10.0 };
/// assert_eq!(loss.positive(1.0), 2f64.ln()); // logit 0
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SigmoidLoss {
    /// Linear (checkpoints store its logarithm), above 0.
    pub logit_scale: f64,
    pub logit_bias: f64,
}

impl SigmoidLoss {
    /// The loss of a sample's own pair, in nats.
    pub fn positive(&self, similarity: f64) -> f64 {
        softplus(-self.logit(similarity))
    }

    /// The loss of an image with another sample's caption, in nats.
    pub fn negative(&self, similarity: f64) -> f64 {
        softplus(self.logit(similarity))
    }

    fn logit(&self, similarity: f64) -> f64 {
        self.logit_scale * similarity + self.logit_bias
    }

    /// Replaces each similarity of a tile by the loss of the negative pair times `weight`.
    pub(super) fn weigh_negatives(&self, tile: &mut Tile, weight: f32) {
        weigh_negatives(tile.values_mut(), self.logit_scale as f32, self.logit_bias as f32, weight);
    }
}

#[multiversion(targets = "simd")]
fn weigh_negatives(similarities: &mut [f32], logit_scale: f32, logit_bias: f32, weight: f32) {
    for value in similarities {
        *value = weight * softplus_f32(logit_scale * *value + logit_bias);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_by_hand() {
        let loss = SigmoidLoss { logit_scale: 2.0, logit_bias: -1.0 };
        // logits 1 and −2: ln(1 + e^−1), ln(1 + e^1), ln(1 + e^2), ln(1 + e^−2)
        assert!((loss.positive(1.0) - 0.313_261_687_518_222_8).abs() < 1e-15);
        assert!((loss.negative(1.0) - 1.313_261_687_518_222_8).abs() < 1e-15);
        assert!((loss.positive(-0.5) - 2.126_928_011_042_972_7).abs() < 1e-15);
        assert!((loss.negative(-0.5) - 0.126_928_011_042_972_6).abs() < 1e-15);
        assert_eq!(softplus(1e4), 1e4);
        assert_eq!(softplus(-1e4), 0.0);
        assert_eq!(similarity(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], &[1.0; 9]), 45.0);
    }

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

    #[test]
    fn a_tile_becomes_the_losses_of_its_pairs() {
        let loss = SigmoidLoss { logit_scale: 30.0, logit_bias: -7.0 };
        let (rows, columns) = (
            crate::matrix::Matrix::new((-20..=20).map(|i| i as f32 / 20.0).collect(), 1),
            crate::matrix::Matrix::new(vec![1.0, -0.5], 1),
        );
        let mut tile = Tile::default();
        tile.fill(&rows, 0..41, &columns, 0..2);
        let similarities = tile.clone();
        loss.weigh_negatives(&mut tile, -1.0);
        for (value, similarity) in tile.values().iter().zip(similarities.values()) {
            let expected = -loss.negative(f64::from(*similarity));
            assert!((f64::from(*value) - expected).abs() <= 2e-5 * expected.abs());
        }
    }
}
