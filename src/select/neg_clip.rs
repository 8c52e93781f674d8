//! One batch of a model's embeddings in, each sample's similarity less what its batch offers instead out.

use crate::fold::Precision;
use crate::matrix::Matrix;

use super::loss::{Objective, PairLoss, similarity};
use super::reduce::{Mask, Pairs, reduce};

/// The batch to whose size scores from smaller batches are brought: that of OpenAI's CLIP.
pub const NEG_CLIP_BATCH_SIZE: usize = 32_768;

/// The paper's temperature, that of OpenAI's CLIP.
pub const NEG_CLIP_TEMPERATURE: f64 = 0.01;

/// Minus the CLIP loss of each sample of a batch, in units of similarity.
///
/// ```text
/// score[i] = ⟨x_i, y_i⟩ − temperature/2 · [ln Σ_j e^(⟨x_i, y_j⟩/temperature) + ln Σ_j e^(⟨x_j, y_i⟩/temperature)]
///            j over the whole batch, i included; both logarithms plus ln(32,768 / n) for a batch of n samples
/// ```
///
/// High: image and caption are closer to each other than to anything else of the batch, which a high similarity alone
/// does not say. The term for the size makes scores from batches of different sizes compare.
///
/// # Shapes and units
///
/// Both `[n, d]`, unit rows; `[n]` scores; cosines. Similarities in the sums in f32. Work: 4·n²·d FLOPs; memory O(n).
///
/// # Source
///
/// negCLIPLoss, arXiv:2405.19547, which takes the mean of the scores in several random partitions of the pool into
/// batches: this is one batch of one partition.
pub fn neg_clip_scores(
    images: &Matrix,
    captions: &Matrix,
    temperature: f64,
    precision: Precision,
) -> Vec<f64> {
    assert_eq!(images.n_rows(), captions.n_rows(), "every image has its caption");
    let loss = PairLoss { logit_scale: temperature.recip(), logit_bias: 0.0, objective: Objective::Softmax };
    assert!(loss.is_usable(), "temperature {temperature}");
    let sets = [
        Pairs { rows: captions, columns: images, loss, precision },
        Pairs { rows: images, columns: captions, loss, precision },
    ];
    let log_sums = reduce(&sets, Mask::Nothing);
    let size_term = (NEG_CLIP_BATCH_SIZE as f64 / images.n_rows() as f64).ln();
    let samples = log_sums[0].iter().zip(&log_sums[1]).enumerate();
    samples
        .map(|(row, (image, caption))| {
            let own = similarity(images.row(row), captions.row(row));
            own - temperature * (0.5 * (image + caption) + size_term)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_samples_by_hand() {
        let images = Matrix::new(vec![1.0, 0.0, 0.0, 1.0], 2);
        let captions = Matrix::new(vec![1.0, 0.0, 0.6, 0.8], 2);
        // similarities [[1, 0.6], [0, 0.8]], temperature ½
        let scores = neg_clip_scores(&images, &captions, 0.5, Precision::F32);
        let size_term = 16_384f64.ln();
        let log_sum = |a: f64, b: f64| (a.exp() + b.exp()).ln();
        let first = 1.0 - 0.5 * (0.5 * (log_sum(2.0, 1.2) + log_sum(2.0, 0.0)) + size_term);
        let second = 0.8 - 0.5 * (0.5 * (log_sum(0.0, 1.6) + log_sum(1.2, 1.6)) + size_term);
        assert!((scores[0] - first).abs() < 1e-6 && (scores[1] - second).abs() < 1e-6);
    }

    #[test]
    fn a_batch_twice_over_scores_as_the_batch() {
        let images = crate::tile::random_unit_rows(300, 8, 1);
        let captions = crate::tile::random_unit_rows(300, 8, 2);
        let (mut twice_images, mut twice_captions) = (images.clone(), captions.clone());
        twice_images.append(&images);
        twice_captions.append(&captions);
        let once = neg_clip_scores(&images, &captions, NEG_CLIP_TEMPERATURE, Precision::F32);
        let twice = neg_clip_scores(&twice_images, &twice_captions, NEG_CLIP_TEMPERATURE, Precision::F32);
        for (once, twice) in once.iter().zip(&twice[300..]) {
            assert!((once - twice).abs() < 1e-6);
        }
    }
}
