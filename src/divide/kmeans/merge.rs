//! Clusters and their sizes in; which clusters are drawn together out.

use crate::matrix::{Matrix, dot};

/// Joins clusters that are too small for a super-batch to their nearest: the cluster in which each ends up.
///
/// Again and again the smallest cluster (the lower on a tie) below `size_min` joins the one whose centroid
/// has the highest cosine with its own (the lower on a tie) and adds to its size; that one keeps its
/// centroid. What joined earlier goes along. A single cluster may stay below `size_min`.
///
/// # Shapes
///
/// `centroids` is `[n_clusters, d]`, unit rows; `sizes` counts the samples of each cluster. Work:
/// 2·n_clusters·d FLOPs a join.
pub fn merge_small(centroids: &Matrix, sizes: &[usize], size_min: usize) -> Vec<u32> {
    assert_eq!(centroids.n_rows(), sizes.len(), "one size a cluster");
    let mut sizes: Vec<Option<usize>> = sizes.iter().map(|size| Some(*size)).collect();
    let mut joined: Vec<u32> = (0..sizes.len() as u32).collect();
    loop {
        let left = || sizes.iter().enumerate().filter_map(|(cluster, size)| size.map(|size| (size, cluster)));
        let Some((size, smallest)) = left().min() else { return joined };
        let nearest = left()
            .filter(|(_, other)| *other != smallest)
            .map(|(_, other)| (dot(centroids.row(smallest), centroids.row(other)), other))
            .max_by(|left, right| left.0.total_cmp(&right.0).then(right.1.cmp(&left.1)));
        let Some((_, nearest)) = nearest.filter(|_| size < size_min) else { return joined };
        sizes[smallest] = None;
        sizes[nearest] = sizes[nearest].map(|other| other + size);
        for cluster in &mut joined {
            if *cluster == smallest as u32 {
                *cluster = nearest as u32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_clusters_join_their_nearest() {
        // on a circle at 0, 10, 20, 90 and 100 degrees
        let angles = [0.0f32, 10.0, 20.0, 90.0, 100.0].map(f32::to_radians);
        let centroids = Matrix::new(angles.iter().flat_map(|angle| [angle.cos(), angle.sin()]).collect(), 2);
        assert_eq!(merge_small(&centroids, &[50, 60, 70, 80, 90], 50), [0, 1, 2, 3, 4]);
        // 0 joins 1; 4 joins 3
        assert_eq!(merge_small(&centroids, &[5, 60, 70, 80, 9], 50), [1, 1, 2, 3, 3]);
        // 0 joins 1, which is still small and joins 2
        assert_eq!(merge_small(&centroids, &[5, 6, 70, 80, 90], 50), [2, 2, 2, 3, 4]);
        assert_eq!(
            merge_small(&centroids, &[1, 1, 1, 1, 1], 50)
                .iter()
                .collect::<std::collections::HashSet<_>>()
                .len(),
            1
        );
        assert_eq!(merge_small(&centroids.gather(&[0]), &[1], 50), [0]);
    }
}
