//! A classifier's logits and the samples' labels in, losses out: what image–class samples are scored by.

use rayon::prelude::*;

use crate::matrix::Matrix;

/// The cross-entropy of each sample's label, smoothed over all classes, in nats.
///
/// ```text
/// loss = (1 − ε)·(−ln p_label) − ε/K · Σ_c ln p_c        p the softmax of the K logits, ε the label smoothing
/// ```
///
/// High where the classifier holds the label for unlikely. Learner minus reference is ClassAct's learnability; its
/// largest, without noise, are those of the RHO loss.
///
/// # Shapes and units
///
/// `logits` is `[n, K]` in f32 as the model gives them, `labels` `[n]`, each below K; the sums are in f64.
///
/// # Source
///
/// ClassAct, arXiv:2312.05328, with ε = 0.1 over its classes; RHO-loss, arXiv:2206.07137.
pub fn cross_entropies(logits: &Matrix, labels: &[usize], label_smoothing: f64) -> Vec<f64> {
    assert_eq!(logits.n_rows(), labels.len(), "one label a sample");
    assert!((0.0..=1.0).contains(&label_smoothing), "label smoothing {label_smoothing}");
    let samples = labels.par_iter().enumerate();
    samples.map(|(row, &label)| cross_entropy(logits.row(row), label, label_smoothing)).collect()
}

fn cross_entropy(logits: &[f32], label: usize, label_smoothing: f64) -> f64 {
    // relative to the largest, so that nothing overflows: ln p_c = logit_c − ln Σ e^logit
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let relative = logits.iter().map(|logit| f64::from(*logit) - largest);
    let (mut sum, mut sum_exp) = (0.0, 0.0);
    for logit in relative {
        sum += logit;
        sum_exp += logit.exp();
    }
    let log_sum = sum_exp.ln();
    let of_label = log_sum - (f64::from(logits[label]) - largest);
    let of_all = log_sum - sum / logits.len() as f64;
    (1.0 - label_smoothing) * of_label + label_smoothing * of_all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_by_hand() {
        // p = ¼, ½, ¼
        let logits = Matrix::new(vec![1.0, 1.0 + 2f32.ln(), 1.0], 3);
        let (quarter, half) = (4f64.ln(), 2f64.ln());
        let loss = |label, smoothing| cross_entropies(&logits, &[label], smoothing)[0];
        assert!((loss(0, 0.0) - quarter).abs() < 1e-7);
        assert!((loss(1, 0.0) - half).abs() < 1e-7);
        assert!((loss(1, 0.3) - (0.7 * half + 0.1 * (2.0 * quarter + half))).abs() < 1e-7);
    }

    #[test]
    fn far_logits_do_not_overflow() {
        let logits = Matrix::new(vec![-3e38, 0.0, 3e38, 1e4, 1e4, 1e4], 3);
        let losses = cross_entropies(&logits, &[2, 1], 0.0);
        assert!((losses[0] - 0.0).abs() < 1e-12 && (losses[1] - 3f64.ln()).abs() < 1e-12);
        assert!(cross_entropies(&logits, &[0, 0], 0.1)[0] > 5e38f64);
    }
}
