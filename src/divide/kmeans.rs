//! Unit embeddings in; centroids, and each sample's cluster out: spherical k-means.
//!
//! A fit sees all its points at once, an assignment is per sample. Points of one cluster are each other's hard
//! negatives later.

use multiversion::multiversion;
use rayon::prelude::*;

use crate::matrix::{Matrix, dot};
use crate::noise::{Purpose, keyed_hash};
use crate::tile::{TILE, Tile, map_strips, ranges};

/// How centroids are fitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FitParams {
    pub n_clusters: usize,
    /// Fits from different starts, of which the best is taken.
    pub n_restarts: usize,
    pub n_iterations_max: usize,
    /// A fit ends when an iteration lowers the objective by no more than this part of it.
    pub tolerance: f64,
    pub seed: u64,
}

/// Fitted centroids.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// `[n_clusters, d]`, unit rows.
    pub centroids: Matrix,
    /// `Σ (1 − cos)` over the points, each with its nearest of these centroids.
    pub objective: f64,
    /// How often the centroids were moved.
    pub n_iterations: usize,
    /// The objective before each iteration and after the last: `n_iterations + 1` values.
    pub history: Vec<f64>,
}

/// Why centroids cannot be fitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FitError {
    #[error("{n_points} samples cannot make {n_clusters} clusters")]
    TooFewPoints { n_points: usize, n_clusters: usize },
}

/// A sample's place among the centroids.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assignment {
    pub cluster: u32,
    /// Cosine to the nearest centroid.
    pub centroid_similarity: f32,
    /// Cosine to the nearest minus cosine to the second, ≥ 0; low on a border. `None` with a single cluster.
    pub centroid_margin: Option<f32>,
}

/// Fits centroids by spherical k-means.
///
/// ```text
/// objective = Σ_i (1 − max_c cos(point_i, centroid_c))
/// centroid_c = normalise(Σ of the unit points nearest to it)
/// ```
///
/// Each restart starts from k-means++ points, drawn with probability ∝ 1 − cos to the nearest drawn before. A
/// cluster that loses all points takes the point farthest from its own centroid. The lowest objective wins,
/// the earlier restart on a tie. Equal points may leave equal centroids, of which the first gets all.
///
/// # Shapes and units
///
/// `points` is `[n_points, d]`, rows of about unit length (they may be rounded to f16; each is scaled to unit
/// length). Work: 2·n_points·n_clusters·d FLOPs an iteration. Memory: O(n_points + n_clusters·d) beside the
/// points.
///
/// # Errors
///
/// Fewer points than clusters.
///
/// # Source
///
/// Divide and Contrast, arXiv:2105.08054, clusters normalised features by k-means. Spherical k-means: Dhillon
/// and Modha, 2001; k-means++: Arthur and Vassilvitskii, 2007 (on the unit sphere `|a − b|² = 2(1 − cos)`).
pub fn fit(points: &Matrix, params: &FitParams) -> Result<Fit, FitError> {
    let (n_points, n_clusters) = (points.n_rows(), params.n_clusters);
    assert!(n_clusters > 0 && params.n_restarts > 0, "{params:?}");
    if n_points < n_clusters {
        return Err(FitError::TooFewPoints { n_points, n_clusters });
    }
    let lengths = InverseLengths::of(points);
    let fits = (0..params.n_restarts).map(|restart| {
        let chance = Chance { seed: params.seed, restart: restart as u64, n_used: 0 };
        let start = points.gather(&starting_points(points, &lengths, n_clusters, chance));
        refine(points, start, params)
    });
    let best = fits.reduce(|best, fit| if fit.objective < best.objective { fit } else { best });
    Ok(best.expect("at least one restart"))
}

/// Moves given centroids to a local minimum of the objective: the part of [`fit`] after the start.
pub fn refine(points: &Matrix, start: Matrix, params: &FitParams) -> Fit {
    assert!(start.n_rows() > 0 && start.n_rows() <= points.n_rows());
    let lengths = InverseLengths::of(points);
    let mut centroids = start;
    for cluster in 0..centroids.n_rows() {
        let sum: Vec<f64> = centroids.row(cluster).iter().map(|value| f64::from(*value)).collect();
        set_direction(centroids.row_mut(cluster), &sum);
    }
    let mut history: Vec<f64> = Vec::new();
    loop {
        let mut assignments = assign(points, &centroids);
        let objective = objective(&assignments);
        let is_settled = history.last().is_some_and(|last| last - objective <= params.tolerance * last);
        history.push(objective);
        if is_settled || history.len() > params.n_iterations_max {
            return Fit { centroids, objective, n_iterations: history.len() - 1, history };
        }
        fill_empty_clusters(&mut assignments, centroids.n_rows());
        move_centroids(points, &lengths, &assignments, &mut centroids);
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
        for range in ranges(centroids.n_rows()) {
            tile.fill(centroids, range.clone(), points, strip.clone());
            see_centroids(&mut nearest, tile, range.start);
        }
        let assignments = strip.enumerate().map(|(column, point)| {
            let inverse_length = inverse_length(points.row(point));
            let (first, second) = (nearest.first[column], nearest.second[column]);
            Assignment {
                cluster: nearest.cluster[column],
                centroid_similarity: first * inverse_length,
                centroid_margin: second.is_finite().then_some((first - second) * inverse_length),
            }
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

/// `1 / length` of each point.
struct InverseLengths(Vec<f32>);

impl InverseLengths {
    fn of(points: &Matrix) -> InverseLengths {
        InverseLengths(
            (0..points.n_rows()).into_par_iter().map(|row| inverse_length(points.row(row))).collect(),
        )
    }
}

fn inverse_length(point: &[f32]) -> f32 {
    let inverse_length = dot(point, point).sqrt().recip();
    assert!(inverse_length.is_finite(), "an embedding without direction");
    inverse_length
}

fn objective(assignments: &[Assignment]) -> f64 {
    assignments.iter().map(|assignment| 1.0 - f64::from(assignment.centroid_similarity)).sum()
}

fn sizes(assignments: &[Assignment], n_clusters: usize) -> Vec<usize> {
    let mut sizes = vec![0; n_clusters];
    for assignment in assignments {
        sizes[assignment.cluster as usize] += 1;
    }
    sizes
}

/// Gives every empty cluster the point that is farthest from its centroid, the earlier point on a tie,
/// without emptying another.
fn fill_empty_clusters(assignments: &mut [Assignment], n_clusters: usize) {
    let mut sizes = sizes(assignments, n_clusters);
    if sizes.iter().all(|size| *size > 0) {
        return;
    }
    let mut farthest: Vec<usize> = (0..assignments.len()).collect();
    farthest.sort_by(|left, right| {
        assignments[*left].centroid_similarity.total_cmp(&assignments[*right].centroid_similarity)
    });
    let mut farthest = farthest.into_iter();
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

/// Sets each centroid to the direction of the sum of its unit points, in f64 in the order of the points. A
/// cluster whose points cancel out keeps its centroid.
fn move_centroids(
    points: &Matrix,
    lengths: &InverseLengths,
    assignments: &[Assignment],
    centroids: &mut Matrix,
) {
    let sizes = sizes(assignments, centroids.n_rows());
    let mut members: Vec<Vec<usize>> = sizes.iter().map(|size| Vec::with_capacity(*size)).collect();
    for (point, assignment) in assignments.iter().enumerate() {
        members[assignment.cluster as usize].push(point);
    }
    let sums: Vec<Vec<f64>> = members
        .par_iter()
        .map(|members| {
            let mut sum = vec![0.0; points.n_cols()];
            for &point in members {
                let scale = f64::from(lengths.0[point]);
                for (sum, value) in sum.iter_mut().zip(points.row(point)) {
                    *sum += scale * f64::from(*value);
                }
            }
            sum
        })
        .collect();
    for (cluster, sum) in sums.iter().enumerate() {
        set_direction(centroids.row_mut(cluster), sum);
    }
}

fn set_direction(centroid: &mut [f32], sum: &[f64]) {
    let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
    if length > 0.0 {
        for (value, sum) in centroid.iter_mut().zip(sum) {
            *value = (sum / length) as f32;
        }
    }
}

/// Seeded uniform numbers of one restart, one after another.
struct Chance {
    seed: u64,
    restart: u64,
    n_used: u64,
}

impl Chance {
    /// Uniform in 0 ≤ u < 1.
    fn uniform(&mut self) -> f64 {
        let hash = keyed_hash(Purpose::Seeding, self.seed, self.restart, "", self.n_used);
        self.n_used += 1;
        (hash >> 11) as f64 * (-53f64).exp2()
    }
}

/// Draws the points from which the centroids start, by k-means++.
///
/// Several candidates are drawn at once from the same distances, and each but the first is accepted with the
/// probability that its distance has left, given those accepted before it. The accepted follow the law of
/// drawing one at a time, while the points are read once for all of them.
fn starting_points(
    points: &Matrix,
    lengths: &InverseLengths,
    n_clusters: usize,
    mut chance: Chance,
) -> Vec<usize> {
    const N_CANDIDATES: usize = 32;
    let n_points = points.n_rows();
    let mut distances = vec![1.0; n_points];
    let mut start: Vec<usize> = Vec::with_capacity(n_clusters);
    while start.len() < n_clusters {
        let candidates = draw_by_weight(&distances, N_CANDIDATES.min(n_clusters - start.len()), &mut chance);
        let mut accepted: Vec<usize> = Vec::new();
        for candidate in candidates {
            let nearest = accepted.iter().map(|other| cosine_distance(points, lengths, candidate, *other));
            let distance_left = nearest.fold(distances[candidate], f64::min);
            if accepted.is_empty() || chance.uniform() * distances[candidate] < distance_left {
                accepted.push(candidate);
            }
        }
        if accepted.is_empty() {
            // every point lies on a starting point: the rest may be any
            let rest = (0..n_points).filter(|point| !start.contains(point)).take(n_clusters - start.len());
            accepted = rest.collect();
        }
        lower_distances(&mut distances, points, lengths, &accepted);
        start.extend(accepted);
    }
    start
}

/// `n` positions with probability ∝ weight, with replacement; none if no weight is left.
fn draw_by_weight(weights: &[f64], n: usize, chance: &mut Chance) -> Vec<usize> {
    let mut total = 0.0;
    let ends: Vec<f64> = weights
        .iter()
        .map(|weight| {
            total += weight;
            total
        })
        .collect();
    if total <= 0.0 {
        return Vec::new();
    }
    (0..n)
        .map(|_| {
            let place = chance.uniform() * total;
            ends.partition_point(|end| *end <= place)
        })
        .collect()
}

fn cosine_distance(points: &Matrix, lengths: &InverseLengths, left: usize, right: usize) -> f64 {
    let cosine = dot(points.row(left), points.row(right)) * lengths.0[left] * lengths.0[right];
    if left == right { 0.0 } else { (1.0 - f64::from(cosine)).max(0.0) }
}

/// Lowers each point's distance to that of the nearest of `others`, which are points themselves.
fn lower_distances(distances: &mut [f64], points: &Matrix, lengths: &InverseLengths, others: &[usize]) {
    let rows = points.gather(others);
    let strips = map_strips(points.n_rows(), |tile: &mut Tile, strip| {
        let mut lowered = distances[strip.clone()].to_vec();
        tile.fill(&rows, 0..others.len(), points, strip.clone());
        for (row, other) in others.iter().enumerate() {
            let similarities = tile.row(row).iter().zip(strip.clone());
            for (distance, (similarity, point)) in lowered.iter_mut().zip(similarities) {
                let cosine = similarity * lengths.0[*other] * lengths.0[point];
                *distance = distance.min((1.0 - f64::from(cosine)).max(0.0));
            }
        }
        lowered
    });
    for (distance, lowered) in distances.iter_mut().zip(strips.concat()) {
        *distance = lowered;
    }
    for other in others {
        distances[*other] = 0.0;
    }
}

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
    use crate::tile::random_unit_rows;

    fn params(n_clusters: usize) -> FitParams {
        FitParams { n_clusters, n_restarts: 2, n_iterations_max: 50, tolerance: 1e-6, seed: 11 }
    }

    /// Around `n_concepts` random directions, point i around direction i mod n_concepts.
    fn planted(n_points: usize, n_concepts: usize, spread: f32) -> Matrix {
        let (centres, noise) = (random_unit_rows(n_concepts, 16, 1), random_unit_rows(n_points, 16, 2));
        let mut points = Matrix::zeros(n_points, 16);
        for point in 0..n_points {
            let sum: Vec<f64> = centres
                .row(point % n_concepts)
                .iter()
                .zip(noise.row(point))
                .map(|(c, n)| f64::from(c + spread * n))
                .collect();
            set_direction(points.row_mut(point), &sum);
        }
        points
    }

    #[test]
    fn four_points_make_two_clusters() {
        let points = Matrix::new(vec![1.0, 0.0, 0.6, 0.8, -1.0, 0.0, -0.6, -0.8], 2);
        let fit = fit(&points, &params(2)).unwrap();
        // each pair has cosine 0.6; both its points have cosine √0.8 to their mean direction
        assert!((fit.objective - 4.0 * (1.0 - 0.8f64.sqrt())).abs() < 1e-6);
        let assignments = assign(&points, &fit.centroids);
        let clusters: Vec<u32> = assignments.iter().map(|assignment| assignment.cluster).collect();
        assert!(clusters[0] == clusters[1] && clusters[2] == clusters[3] && clusters[0] != clusters[2]);
        for assignment in assignments {
            // the centroids are opposite, so the second similarity is the negative of the first
            assert!((assignment.centroid_similarity - 0.8f32.sqrt()).abs() < 1e-6);
            assert!((assignment.centroid_margin.unwrap() - 2.0 * 0.8f32.sqrt()).abs() < 1e-6);
        }
    }

    #[test]
    fn an_assignment_is_the_arg_max_over_all_centroids() {
        let (points, centroids) = (random_unit_rows(700, 12, 3), random_unit_rows(530, 12, 4));
        for (point, assignment) in assign(&points, &centroids).iter().enumerate() {
            let mut cosines: Vec<f64> = (0..530)
                .map(|c| {
                    points
                        .row(point)
                        .iter()
                        .zip(centroids.row(c))
                        .map(|(x, y)| f64::from(*x) * f64::from(*y))
                        .sum()
                })
                .collect();
            assert!(
                (cosines[assignment.cluster as usize] - f64::from(assignment.centroid_similarity)).abs()
                    < 1e-6
            );
            cosines.sort_by(f64::total_cmp);
            assert!((cosines[529] - f64::from(assignment.centroid_similarity)).abs() < 1e-6);
            assert!(
                (cosines[529] - cosines[528] - f64::from(assignment.centroid_margin.unwrap())).abs() < 2e-6
            );
        }
    }

    #[test]
    fn equal_centroids_leave_the_points_to_the_first() {
        let points = random_unit_rows(5, 4, 1);
        let same = points.gather(&[2, 2, 2]);
        for assignment in assign(&points, &same) {
            assert_eq!((assignment.cluster, assignment.centroid_margin), (0, Some(0.0)));
        }
        assert!(
            assign(&points, &points.gather(&[2]))
                .iter()
                .all(|assignment| assignment.centroid_margin.is_none())
        );
    }

    #[test]
    fn planted_concepts_are_found() {
        let points = planted(1200, 12, 0.1);
        let fit = fit(&points, &FitParams { n_restarts: 5, ..params(12) }).unwrap();
        let clusters = assign(&points, &fit.centroids);
        for point in 12..1200 {
            assert_eq!(clusters[point].cluster, clusters[point % 12].cluster);
        }
        assert!(fit.history.windows(2).all(|pair| pair[1] <= pair[0] + 1e-6));
        assert_eq!(fit.history.len(), fit.n_iterations + 1);
        assert_eq!(fit.history.last(), Some(&fit.objective));
    }

    #[test]
    fn a_seeded_fit_is_the_same_bytes_with_any_number_of_threads() {
        let points = planted(2000, 40, 0.9);
        let fit_with = |n_threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| fit(&points, &params(50)).unwrap())
        };
        assert_eq!(fit_with(1), fit_with(2));
        assert_ne!(fit_with(2), fit(&points, &FitParams { seed: 12, ..params(50) }).unwrap());
    }

    #[test]
    fn rows_need_not_have_unit_length() {
        let points = planted(300, 5, 0.2);
        let mut stretched = points.clone();
        for row in 0..300 {
            let factor = 0.25 * (1 << (row % 4)) as f32; // a power of two changes no other bit
            stretched.row_mut(row).iter_mut().for_each(|value| *value *= factor);
        }
        assert_eq!(fit(&points, &params(5)), fit(&stretched, &params(5)));
        assert_eq!(assign(&points, &points), assign(&stretched, &points));
    }

    #[test]
    fn a_cluster_without_points_takes_the_farthest() {
        let points = Matrix::new(vec![1.0, 0.0, 0.96, 0.28, 0.0, 1.0], 2);
        let start = Matrix::new(vec![1.0, 0.0, -1.0, 0.0], 2);
        let fit = refine(&points, start, &params(2));
        let clusters: Vec<u32> = assign(&points, &fit.centroids).iter().map(|a| a.cluster).collect();
        assert_eq!(clusters, [0, 0, 1]);
    }

    #[test]
    fn as_many_clusters_as_points_fit_exactly_and_more_are_refused() {
        let points = random_unit_rows(40, 8, 9);
        let fitted = fit(&points, &params(40)).unwrap();
        assert!(fitted.objective < 1e-5);
        let error = FitError::TooFewPoints { n_points: 40, n_clusters: 41 };
        assert_eq!(fit(&points, &params(41)), Err(error));
    }

    #[test]
    fn equal_points_still_fit() {
        let points = Matrix::new([0.6, 0.8].repeat(30), 2);
        let fitted = fit(&points, &params(7)).unwrap();
        assert!(fitted.objective.abs() < 1e-4);
        assert_eq!(fitted.centroids.n_rows(), 7);
    }

    #[test]
    fn starting_points_follow_the_law_of_drawing_one_at_a_time() {
        // one dense direction of 98 points and two lone ones, all far apart: k-means++ takes one of each
        let mut values = [1.0, 0.0, 0.0].repeat(98);
        values.extend([0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
        let points = Matrix::new(values, 3);
        let lengths = InverseLengths::of(&points);
        let (mut n_lone_first, n_trials) = (0, 400);
        for seed in 0..n_trials {
            let start = starting_points(&points, &lengths, 3, Chance { seed, restart: 0, n_used: 0 });
            n_lone_first += usize::from(start[0] >= 98);
            let mut directions: Vec<usize> = start.iter().map(|point| point.saturating_sub(97)).collect();
            directions.sort_unstable();
            assert_eq!(directions, [0, 1, 2]);
        }
        assert!(n_lone_first < 30, "{n_lone_first} of {n_trials}, expected 2 %");
    }

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
