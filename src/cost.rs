//! A filter ratio and what the scorers cost in, what selection costs beside training out.

use serde::{Deserialize, Serialize};

/// Units that training on a sample takes: a forward pass is one, the backward pass two.
const TRAINING_UNITS: f64 = 3.0;

/// What a kept sample costs with offline selection, relative to training on it alone.
///
/// ```text
/// cost = (scorer · super_batch / sub_batch + 3) / 3            for each round with a new learner checkpoint
/// reference_cost = (super_batch / sub_batch) / 3               once, however many rounds and learners follow
/// ```
///
/// A cost of 2 says that as much goes into a kept sample as into two samples that are trained on blindly; selection
/// pays where fewer than half of the steps do.
///
/// # Source
///
/// JEST, arXiv:2406.17711, §4: online, where the scoring forward pass is reused, `(super_batch/sub_batch + 3 − 1)/3`,
/// 2.33 at a filter ratio of 0.8. Offline it is not: 2.67 with a scorer of full cost, 1.47 at 0.28 of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SelectionCost {
    /// Samples scored for each that is kept.
    pub n_scored_per_kept: f64,
    /// Cost of the scoring learner, relative to the one that is trained.
    pub scorer: f64,
    pub cost: f64,
    pub reference_cost: f64,
}

impl SelectionCost {
    /// Of keeping `n_kept` of `n_samples`, at least one, with a learner that costs `scorer` of the one that is trained.
    pub fn new(n_samples: u64, n_kept: u64, scorer: f64) -> SelectionCost {
        assert!(n_kept > 0 && n_samples >= n_kept && scorer > 0.0);
        let n_scored_per_kept = n_samples as f64 / n_kept as f64;
        SelectionCost {
            n_scored_per_kept,
            scorer,
            cost: (scorer * n_scored_per_kept + TRAINING_UNITS) / TRAINING_UNITS,
            reference_cost: n_scored_per_kept / TRAINING_UNITS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_those_of_the_methods_page() {
        let two_decimals = |value: f64| (value * 100.0).round() / 100.0;
        assert_eq!(two_decimals(SelectionCost::new(5, 1, 1.0).cost), 2.67);
        assert_eq!(two_decimals(SelectionCost::new(163_840, 32_768, 0.28).cost), 1.47);
        assert_eq!(two_decimals(SelectionCost::new(5, 1, 0.28).reference_cost), 1.67);
        // nothing scored that is not kept, by a scorer that costs nothing: plain training
        assert!((SelectionCost::new(7, 7, 1e-9).cost - 1.0).abs() < 1e-9);
    }
}
