//! Centroids moved by whole passes over the points, until an iteration brings little.

use rayon::prelude::*;

use crate::engine::Engine;
use crate::error::Error;
use crate::matrix::Matrix;

use super::cloud::{Cloud, set_direction};
use super::held::Held;
use super::nearest::Assignment;
use super::{Fit, FitParams};

/// Assigns every point, moves every centroid, and again.
pub(super) fn whole_passes(
    engine: &Engine,
    cloud: &Cloud,
    mut centroids: Matrix,
    params: &FitParams,
) -> Result<Fit, Error> {
    let points = Held::new(engine, cloud)?;
    let mut history: Vec<f64> = Vec::new();
    loop {
        let mut assignments = points.assign(&centroids)?;
        let objective = objective(&assignments);
        let is_settled = history.last().is_some_and(|last| last - objective <= params.tolerance * last);
        history.push(objective);
        if is_settled || history.len() > params.n_iterations_max {
            return Ok(Fit { centroids, objective, n_iterations: history.len() - 1, history });
        }
        fill_empty_clusters(&mut assignments, centroids.n_rows());
        move_centroids(cloud, &assignments, &mut centroids);
    }
}

/// `Σ (1 − cos)` of each point to its nearest centroid.
pub(super) fn objective(assignments: &[Assignment]) -> f64 {
    assignments.iter().map(|assignment| 1.0 - f64::from(assignment.centroid_similarity)).sum()
}

/// The points of each cluster, in their order.
pub(super) fn members(assignments: &[Assignment], n_clusters: usize) -> Vec<Vec<usize>> {
    let mut members: Vec<Vec<usize>> = vec![Vec::new(); n_clusters];
    for (point, assignment) in assignments.iter().enumerate() {
        members[assignment.cluster as usize].push(point);
    }
    members
}

/// Gives every empty cluster the point that is farthest from its centroid, the earlier point on a tie,
/// without emptying another.
fn fill_empty_clusters(assignments: &mut [Assignment], n_clusters: usize) {
    let mut sizes: Vec<usize> = members(assignments, n_clusters).iter().map(Vec::len).collect();
    if sizes.iter().all(|size| *size > 0) {
        return;
    }
    let mut farthest = by_distance(assignments).into_iter();
    for cluster in 0..n_clusters {
        if sizes[cluster] > 0 {
            continue;
        }
        let point = farthest
            .find(|point| sizes[assignments[*point].cluster as usize] > 1)
            .expect("there are at least as many points as clusters");
        sizes[assignments[point].cluster as usize] -= 1;
        sizes[cluster] = 1;
        assignments[point].cluster = cluster as u32;
    }
}

/// The points, farthest from their centroids first, the earlier on a tie.
pub(super) fn by_distance(assignments: &[Assignment]) -> Vec<usize> {
    let mut points: Vec<usize> = (0..assignments.len()).collect();
    let similarity = |point: usize| assignments[point].centroid_similarity;
    points.sort_by(|left, right| similarity(*left).total_cmp(&similarity(*right)));
    points
}

/// Sets each centroid to the direction of the sum of its unit points, in f64 in the order of the points.
fn move_centroids(cloud: &Cloud, assignments: &[Assignment], centroids: &mut Matrix) {
    let sums: Vec<Vec<f64>> = members(assignments, centroids.n_rows())
        .par_iter()
        .map(|members| {
            let mut sum = vec![0.0; cloud.points.n_cols()];
            members.iter().for_each(|point| cloud.add_to(&mut sum, *point));
            sum
        })
        .collect();
    for (cluster, sum) in sums.iter().enumerate() {
        set_direction(centroids.row_mut(cluster), sum);
    }
}

#[cfg(test)]
mod tests {
    use super::super::assign;
    use super::*;

    fn params() -> FitParams {
        FitParams { n_clusters: 2, n_iterations_max: 50, tolerance: 1e-6, ..FitParams::default() }
    }

    #[test]
    fn a_cluster_without_points_takes_the_farthest() {
        let points = Matrix::new(vec![1.0, 0.0, 0.96, 0.28, 0.0, 1.0], 2);
        let start = Matrix::new(vec![1.0, 0.0, -1.0, 0.0], 2);
        let fit = whole_passes(&Engine::Kernels, &Cloud::new(&points), start, &params()).unwrap();
        let clusters: Vec<u32> = assign(&points, &fit.centroids).iter().map(|a| a.cluster).collect();
        assert_eq!(clusters, [0, 0, 1]);
    }

    #[test]
    fn filling_empties_no_other_cluster() {
        // clusters 1 and 2 are empty; the farthest point is alone in cluster 0 and must stay
        let of =
            |cluster, centroid_similarity| Assignment { cluster, centroid_similarity, centroid_margin: None };
        let mut assignments = [of(0, 0.1), of(3, 0.5), of(3, 0.9), of(3, 0.4)];
        fill_empty_clusters(&mut assignments, 4);
        assert_eq!(assignments.map(|assignment| assignment.cluster), [0, 2, 3, 1]);
    }

    #[test]
    fn a_centroid_whose_points_cancel_out_stays() {
        let points = Matrix::new(vec![1.0, 0.0, -1.0, 0.0], 2);
        let start = Matrix::new(vec![0.0, 1.0], 2);
        let fit = whole_passes(&Engine::Kernels, &Cloud::new(&points), start, &params()).unwrap();
        assert_eq!((fit.centroids.values(), fit.objective), (&[0.0, 1.0][..], 2.0));
    }
}
