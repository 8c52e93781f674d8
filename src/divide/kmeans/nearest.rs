//! Points and centroids in, each point's nearest centroid out: a tile of similarities at a time.

use multiversion::multiversion;

use crate::matrix::{Matrix, inverse_length};
use crate::tile::{TILE, Tile, map_strips, tall_ranges};

/// A sample's place among the centroids.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assignment {
    pub cluster: u32,
    /// Cosine to the nearest centroid.
    pub centroid_similarity: f32,
    /// Cosine to the nearest minus cosine to the second, ≥ 0; low on a border. `None` with a single cluster.
    pub centroid_margin: Option<f32>,
}

impl Assignment {
    /// Of a point's inner products with its nearest and second nearest centroid, minus infinity without a second.
    pub(super) fn of(cluster: u32, first: f32, second: f32, inverse_length: f32) -> Assignment {
        Assignment {
            cluster,
            centroid_similarity: first * inverse_length,
            centroid_margin: second.is_finite().then_some((first - second) * inverse_length),
        }
    }
}

/// Each point's nearest centroid, the lower cluster on a tie.
///
/// # Shapes
///
/// `points` is `[n, d]`, `centroids` `[n_clusters, d]`, unit rows. Cosines in f32; points are scaled to unit
/// length.
pub fn assign(points: &Matrix, centroids: &Matrix) -> Vec<Assignment> {
    assert!(centroids.n_rows() > 0, "no centroid to assign to");
    let strips = map_strips(points.n_rows(), |tile: &mut Tile, strip| {
        let mut nearest = Nearest::default();
        for range in tall_ranges(centroids.n_rows()) {
            tile.fill(centroids, range.clone(), points, strip.clone());
            see_centroids(&mut nearest, tile, range.start);
        }
        let assignments = strip.enumerate().map(|(column, point)| {
            let (first, second) = (nearest.first[column], nearest.second[column]);
            Assignment::of(nearest.cluster[column], first, second, inverse_length(points.row(point)))
        });
        assignments.collect::<Vec<_>>()
    });
    strips.concat()
}

/// The nearest and second nearest of the centroids seen so far, for each column of a strip.
struct Nearest {
    first: [f32; TILE],
    second: [f32; TILE],
    cluster: [u32; TILE],
}

impl Default for Nearest {
    fn default() -> Nearest {
        Nearest { first: [f32::NEG_INFINITY; TILE], second: [f32::NEG_INFINITY; TILE], cluster: [0; TILE] }
    }
}

/// Takes in a tile of similarities, row 0 being `first_cluster`.
#[multiversion(targets = "simd")]
fn see_centroids(nearest: &mut Nearest, tile: &Tile, first_cluster: usize) {
    for row in 0..tile.n_rows() {
        let this = (first_cluster + row) as u32;
        let kept = nearest.first.iter_mut().zip(&mut nearest.second).zip(&mut nearest.cluster);
        for (similarity, ((first, second), cluster)) in tile.row(row).iter().zip(kept) {
            let is_nearer = *similarity > *first;
            *second = if is_nearer { *first } else { second.max(*similarity) };
            *first = if is_nearer { *similarity } else { *first };
            *cluster = if is_nearer { this } else { *cluster };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tile::random_unit_rows;

    #[test]
    fn an_assignment_is_the_arg_max_over_all_centroids() {
        let (points, centroids) = (random_unit_rows(700, 12, 3), random_unit_rows(530, 12, 4));
        for (point, assignment) in assign(&points, &centroids).iter().enumerate() {
            let cosine = |centroid: usize| -> f64 {
                let pairs = points.row(point).iter().zip(centroids.row(centroid));
                pairs.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
            };
            let mut cosines: Vec<f64> = (0..530).map(cosine).collect();
            let similarity = f64::from(assignment.centroid_similarity);
            assert!((cosines[assignment.cluster as usize] - similarity).abs() < 1e-6);
            cosines.sort_by(f64::total_cmp);
            assert!((cosines[529] - similarity).abs() < 1e-6);
            let margin = f64::from(assignment.centroid_margin.unwrap());
            assert!((cosines[529] - cosines[528] - margin).abs() < 2e-6);
        }
    }

    #[test]
    fn equal_centroids_leave_the_points_to_the_first() {
        let points = random_unit_rows(5, 4, 1);
        let same = points.gather(&[2, 2, 2]);
        for assignment in assign(&points, &same) {
            assert_eq!((assignment.cluster, assignment.centroid_margin), (0, Some(0.0)));
        }
        let alone = assign(&points, &points.gather(&[2]));
        assert!(alone.iter().all(|assignment| assignment.centroid_margin.is_none()));
    }
}
