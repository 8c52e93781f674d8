//! A tree of clusters, their sizes and a target in; how many samples of each cluster are kept out.

use crate::divide::ClusterTree;
use crate::noise::{Purpose, keyed_hash};

/// How many samples of each cluster balanced sampling keeps.
///
/// ```text
/// share(target, sizes): cut = the largest whole x with Σ min(x, size) ≤ target
///                       each child gets min(cut, size); what is left of the target goes, one each, to
///                       children of more than the cut, in keyed order
/// ```
///
/// From the top down: the target is shared over the clusters of the coarsest level, the share of each over
/// those that lie in it, and so on. Rare concepts are kept whole and common ones cut to one height, level by
/// level. The counts sum to `min(target, all samples)`, and no cluster keeps more than it has.
///
/// # Shapes
///
/// `sizes` has the samples of each cluster of the tree's level 0; so has the result.
///
/// # Source
///
/// Vo et al., arXiv:2405.15613, hierarchical sampling. The paper cuts at a real height and rounds; we stay in
/// whole numbers, so that the counts are exact.
///
/// # Example
///
/// 12 of clusters of 1, 4 and 20 without a level above: the cut is 7, and they keep 1, 4 and 7.
pub fn balanced_counts(tree: &ClusterTree, sizes: &[u64], target: u64, seed: u64, round: u64) -> Vec<u64> {
    let levels = tree.sizes(sizes);
    let top = tree.n_levels() - 1;
    let total: u64 = sizes.iter().sum();
    // the counts of the level above, and in which of its clusters each one lies
    let mut targets = vec![target.min(total)];
    let mut parents = vec![0; tree.n_clusters(top)];
    for level in (0..=top).rev() {
        let mut children: Vec<Vec<usize>> = vec![Vec::new(); targets.len()];
        for (cluster, parent) in parents.iter().enumerate() {
            children[*parent as usize].push(cluster);
        }
        let mut counts = vec![0; levels[level].len()];
        for (children, target) in children.iter().zip(&targets) {
            let sizes: Vec<u64> = children.iter().map(|child| levels[level][*child]).collect();
            let order = |child: usize| {
                let place = (level as u64) << 32 | children[child] as u64;
                keyed_hash(Purpose::Balance, seed, round, "", place)
            };
            for (child, count) in children.iter().zip(share(*target, &sizes, order)) {
                counts[*child] = count;
            }
        }
        targets = counts;
        parents = match level {
            0 => Vec::new(),
            _ => tree.parents(level - 1).expect("a level below the top has parents").to_vec(),
        };
    }
    assert_eq!(targets.iter().sum::<u64>(), target.min(total));
    targets
}

/// Shares a target that is no larger than all sizes together.
fn share(target: u64, sizes: &[u64], order: impl Fn(usize) -> u64) -> Vec<u64> {
    let cut = largest_cut(target, sizes);
    let mut counts: Vec<u64> = sizes.iter().map(|size| cut.min(*size)).collect();
    let n_left = (target - counts.iter().sum::<u64>()) as usize;
    let mut unsaturated: Vec<usize> = (0..sizes.len()).filter(|child| sizes[*child] > cut).collect();
    unsaturated.sort_by_key(|child| (order(*child), *child));
    assert!(n_left <= unsaturated.len(), "a higher cut would fit");
    for child in unsaturated.into_iter().take(n_left) {
        counts[child] += 1;
    }
    counts
}

/// The largest x with `Σ min(x, size) ≤ target`, no larger than the largest size.
fn largest_cut(target: u64, sizes: &[u64]) -> u64 {
    let mut sorted = sizes.to_vec();
    sorted.sort_unstable();
    let mut left = target;
    for (position, size) in sorted.iter().enumerate() {
        let n_open = (sorted.len() - position) as u64;
        // the smallest open child is not filled: all open ones are cut at the same height
        if left / n_open < *size {
            return left / n_open;
        }
        left -= size;
    }
    sorted.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_by_hand() {
        assert_eq!(largest_cut(12, &[1, 4, 20]), 7);
        assert_eq!(balanced_counts(&ClusterTree::flat(3), &[1, 4, 20], 12, 0, 0), [1, 4, 7]);
        // 1 + 4 + 4 of the third are 9; one of ten is left for it alone
        assert_eq!(balanced_counts(&ClusterTree::flat(3), &[1, 4, 20], 10, 0, 0), [1, 4, 5]);
    }

    #[test]
    fn levels_share_before_clusters_do() {
        let mut tree = ClusterTree::flat(4);
        tree.push_level(2, vec![0, 0, 0, 1]);
        // two concepts get 30 each; flat, the three clusters of the first would get 45
        assert_eq!(balanced_counts(&tree, &[10, 40, 40, 40], 60, 0, 0), [10, 10, 10, 30]);
        assert_eq!(balanced_counts(&ClusterTree::flat(4), &[10, 40, 40, 40], 61, 0, 0), [10, 17, 17, 17]);
    }

    #[test]
    fn what_is_left_goes_by_the_seed() {
        let of = |seed| balanced_counts(&ClusterTree::flat(9), &[5; 9], 13, seed, 0);
        assert!((1..20).any(|seed| of(seed) != of(0)));
        assert!(of(0).iter().all(|n| (1..=2).contains(n)));
    }

    /// A tree of random shape over `n` clusters.
    fn tree_of(n: usize, n_parents: usize, places: &[u32]) -> ClusterTree {
        let mut tree = ClusterTree::flat(n);
        let parent = |child: usize, n: usize| places[child % places.len()] % n as u32;
        tree.push_level(n_parents, (0..n).map(|child| parent(child, n_parents)).collect());
        tree.push_level(2, (0..n_parents).map(|child| parent(child + 7, 2)).collect());
        tree
    }

    proptest! {
        #[test]
        fn counts_are_exact_and_bounded(
            sizes in prop::collection::vec(0u64..300, 1..60),
            places in prop::collection::vec(any::<u32>(), 1..60),
            n_parents in 1usize..8,
            target in 0u64..20_000,
            seed in any::<u64>(),
        ) {
            let tree = tree_of(sizes.len(), n_parents, &places);
            let counts = balanced_counts(&tree, &sizes, target, seed, 3);
            prop_assert_eq!(counts.iter().sum::<u64>(), target.min(sizes.iter().sum()));
            for (count, size) in counts.iter().zip(&sizes) {
                prop_assert!(count <= size);
            }
            // inside a node, nobody who is not kept whole has more than one less than another
            let of_levels = tree.sizes(&counts);
            let full = tree.sizes(&sizes);
            for level in 0..3 {
                let parents = tree.parents(level).map_or(vec![0; of_levels[level].len()], <[u32]>::to_vec);
                for left in 0..parents.len() {
                    for right in 0..parents.len() {
                        let is_cut = of_levels[level][left] < full[level][left];
                        if is_cut && parents[left] == parents[right] {
                            prop_assert!(of_levels[level][right] <= of_levels[level][left] + 1);
                        }
                    }
                }
            }
        }

        #[test]
        fn the_cut_is_the_largest(sizes in prop::collection::vec(0u64..50, 1..12), target in 0u64..400) {
            let kept = |cut: u64| sizes.iter().map(|size| cut.min(*size)).sum::<u64>();
            let cut = largest_cut(target, &sizes);
            prop_assert!(kept(cut) <= target);
            prop_assert!(cut == *sizes.iter().max().unwrap() || kept(cut + 1) > target);
        }
    }
}
