//! Centroids in, the tree of coarser clusters above them out: k-means on centroids, level by level.

use crate::divide::ClusterTree;
use crate::engine::Engine;
use crate::error::Error;
use crate::matrix::Matrix;

use super::{FitMethod, FitParams, assign_on, fit};

/// Clusters the centroids, the centroids of those clusters, and so on: one level for each number in `levels`.
///
/// Every centroid counts as one point, however many samples its cluster has. That is the point of the
/// hierarchy: k-means puts many centroids where samples are dense, and each level of k-means over centroids
/// instead of samples brings the levels nearer to an even cover of the concepts, so that sampling evenly from
/// the top down keeps rare ones. Weighted by size, a level would be as unbalanced as the samples.
///
/// # Shapes
///
/// `centroids` is `[n_clusters, d]`; `levels` falls, below `n_clusters`. Seeding, restarts and tolerance are
/// those of `params`; every level is fitted in whole passes.
///
/// # Errors
///
/// More clusters on a level than on the one below; those of a device.
///
/// # Source
///
/// Vo et al., arXiv:2405.15613, hierarchical k-means, without its resampling steps (which re-fit each level on
/// the points nearest to its centroids).
pub fn fit_levels(
    engine: &Engine,
    centroids: &Matrix,
    levels: &[usize],
    params: &FitParams,
) -> Result<ClusterTree, Error> {
    let mut tree = ClusterTree::flat(centroids.n_rows());
    let mut below = centroids.clone();
    for &n_clusters in levels {
        let params = FitParams { n_clusters, method: FitMethod::FullSample, ..*params };
        let above = fit(engine, &below, &params)?.centroids;
        let parents = assign_on(engine, &below, &above)?.into_iter().map(|assignment| assignment.cluster);
        tree.push_level(n_clusters, parents.collect());
        below = above;
    }
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::super::FitError;
    use super::*;

    #[test]
    fn levels_find_planted_branches() {
        // two directions far apart, in each three branches, in each branch four centroids
        let angle = |place: usize| {
            let (direction, branch, leaf) = (place / 12, place / 4 % 3, place % 4);
            (direction as f32 * 180.0 + branch as f32 * 20.0 + leaf as f32).to_radians()
        };
        let values = (0..24).flat_map(|place| [angle(place).cos(), angle(place).sin()]);
        let centroids = Matrix::new(values.collect(), 2);
        let params = FitParams { n_restarts: 8, ..FitParams::default() };
        let fitted = |levels: &[usize]| fit_levels(&Engine::Kernels, &centroids, levels, &params);
        let tree = fitted(&[6, 2]).unwrap();
        assert_eq!((tree.n_levels(), tree.n_clusters(1), tree.n_clusters(2)), (3, 6, 2));
        let ancestors: Vec<Vec<u32>> = (0..24).map(|leaf| tree.ancestors(leaf).collect()).collect();
        for left in 0..24 {
            for right in 0..24 {
                assert_eq!(ancestors[left][0] == ancestors[right][0], left / 4 == right / 4);
                assert_eq!(ancestors[left][1] == ancestors[right][1], left / 12 == right / 12);
            }
        }
        assert_eq!(fitted(&[]).unwrap(), ClusterTree::flat(24));
        let error = FitError::TooFewPoints { n_points: 24, n_clusters: 25 };
        assert!(matches!(fitted(&[25]), Err(Error::Fit { source }) if source == error));
    }
}
