//! Sizes of clusters and a total in, how many of each are kept out.

use serde::{Deserialize, Serialize};

/// What the kept are shared out over clusters by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quota {
    /// By the clusters' sizes: the same fraction of each.
    #[default]
    Size,
    /// By the roots of their sizes.
    Sqrt,
    /// The same number of each, as far as it has so many.
    Uniform,
}

impl Quota {
    /// The weight of a cluster in units of 2⁻³², so that all that follows is exact.
    fn weight(self, size: u64) -> u128 {
        match self {
            _ if size == 0 => 0,
            Quota::Size => u128::from(size) << 32,
            Quota::Sqrt => (u128::from(size) << 64).isqrt(),
            Quota::Uniform => 1 << 32,
        }
    }
}

/// Shares out what is kept over clusters.
///
/// ```text
/// quota_c = min(size_c, λ·weight_c)      weight_c = size_c, √size_c or 1; λ so that Σ quota_c = n_kept
/// ```
///
/// Whole numbers by the largest remainder, the lower cluster on a tie. No cluster gets more than it has, and
/// all of them together exactly `n_kept`. By size the pool keeps its shape; by 1 rare clusters are kept whole
/// and the common ones are cut to one height; the root lies in between.
///
/// # Panics
///
/// If more are to be kept than there are.
///
/// # Source
///
/// Our own; largest remainder: Hamilton's method of apportionment.
///
/// # Example
///
/// Of clusters of 90, 9 and 1, 20 are kept: 18, 2 and 0 by size, 14, 5 and 1 by root (λ·9.5 and λ·3 beside the
/// whole of the last), and 10, 9 and 1 by 1.
pub fn quotas(sizes: &[u64], n_kept: u64, quota: Quota) -> Vec<u64> {
    let n_samples: u64 = sizes.iter().sum();
    assert!(n_kept <= n_samples, "{n_kept} of {n_samples} samples");
    let weights: Vec<u128> = sizes.iter().map(|size| quota.weight(*size)).collect();
    let mut kept = sizes.to_vec();
    let mut open: Vec<usize> = (0..sizes.len()).filter(|cluster| sizes[*cluster] > 0).collect();
    let mut n_open_kept = u128::from(n_kept);
    // as clusters are kept whole, λ grows for the rest
    let total_weight = loop {
        let total_weight: u128 = open.iter().map(|cluster| weights[*cluster]).sum();
        let is_whole =
            |cluster: usize| u128::from(sizes[cluster]) * total_weight <= n_open_kept * weights[cluster];
        let (whole, rest): (Vec<usize>, Vec<usize>) = open.iter().partition(|cluster| is_whole(**cluster));
        if whole.is_empty() {
            break total_weight;
        }
        n_open_kept -= whole.iter().map(|cluster| u128::from(sizes[*cluster])).sum::<u128>();
        open = rest;
    };
    let mut n_left = n_open_kept;
    for &cluster in &open {
        kept[cluster] = (n_open_kept * weights[cluster] / total_weight) as u64;
        n_left -= u128::from(kept[cluster]);
    }
    open.sort_by_key(|cluster| (std::cmp::Reverse(n_open_kept * weights[*cluster] % total_weight), *cluster));
    for cluster in open.into_iter().take(n_left as usize) {
        kept[cluster] += 1;
    }
    assert_eq!(kept.iter().sum::<u64>(), n_kept);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_by_hand() {
        let of = |quota| quotas(&[90, 9, 1], 20, quota);
        assert_eq!(of(Quota::Size), [18, 2, 0]);
        // 19 over √90 : √9 = 14.4 and 4.6 once the last is whole: λ = 20/13.5 > 1
        assert_eq!(of(Quota::Sqrt), [14, 5, 1]);
        assert_eq!(of(Quota::Uniform), [10, 9, 1]);
    }

    #[test]
    fn nothing_and_everything() {
        for quota in [Quota::Size, Quota::Sqrt, Quota::Uniform] {
            assert_eq!(quotas(&[3, 0, 5], 0, quota), [0, 0, 0]);
            assert_eq!(quotas(&[3, 0, 5], 8, quota), [3, 0, 5]);
            assert_eq!(quotas(&[], 0, quota), [0; 0]);
        }
        // ties go to the lower cluster
        assert_eq!(quotas(&[7, 7, 7], 2, Quota::Uniform), [1, 1, 0]);
    }

    proptest! {
        #[test]
        fn exact_bounded_and_monotone(
            sizes in prop::collection::vec(0u64..5_000, 1..40),
            fraction in 0.0..=1.0f64,
            quota in prop::sample::select(vec![Quota::Size, Quota::Sqrt, Quota::Uniform]),
        ) {
            let n_kept = (sizes.iter().sum::<u64>() as f64 * fraction) as u64;
            let kept = quotas(&sizes, n_kept, quota);
            prop_assert_eq!(kept.iter().sum::<u64>(), n_kept);
            for (n, size) in kept.iter().zip(&sizes) {
                prop_assert!(n <= size);
            }
            // a larger cluster never gets less than a smaller one, but for the unit of a tie
            for (left, left_size) in kept.iter().zip(&sizes) {
                for (right, right_size) in kept.iter().zip(&sizes) {
                    prop_assert!(left_size > right_size || *left <= right + 1);
                }
            }
            // one λ fits all: no cluster that is not whole is two or more away from its share
            let weight = |size: u64| match quota {
                Quota::Size => size as f64,
                Quota::Sqrt => (size as f64).sqrt(),
                Quota::Uniform => 1.0,
            };
            let open: Vec<usize> = (0..sizes.len()).filter(|c| kept[*c] < sizes[*c]).collect();
            let lambda = open.iter().map(|c| kept[*c]).sum::<u64>() as f64
                / open.iter().map(|c| weight(sizes[*c])).sum::<f64>();
            for cluster in open {
                prop_assert!((kept[cluster] as f64 - lambda * weight(sizes[cluster])).abs() < 2.0);
            }
        }
    }
}
