//! Points in, the points from which centroids start out: k-means++ or k-means∥.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::matrix::Matrix;
use crate::noise::{Purpose, keyed_hash};
use crate::tile::{Tile, map_strips, ranges};

use super::cloud::Cloud;

/// How starting points are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Seeding {
    /// One after another, each with probability ∝ its distance to the nearest drawn before.
    #[default]
    KMeansPlusPlus,
    /// Many at once in a few rounds, of which k are then drawn as above: fewer passes over many points.
    KMeansParallel,
}

/// Rounds of k-means∥, as in the paper's experiments.
const N_ROUNDS: usize = 5;

/// Points that a round of k-means∥ takes on average, for each cluster. The paper finds rounds × this ≥ 1 enough.
const ROUND_POINTS_PER_CLUSTER: f64 = 1.0;

/// Candidates that k-means++ draws at once: at least the first, at most the second, and never many more than a
/// fraction of the points drawn before, so that few of them get in each other's way.
const N_CANDIDATES: (usize, usize) = (32, 512);

/// Draws `n` points of different places, if there are so many, to start centroids from.
///
/// k-means++ draws a point with probability ∝ 1 − cos to the nearest drawn before. k-means∥ starts from one
/// point and in each of five rounds takes every point by itself with probability `n · (1 − cos) / Σ(1 − cos)`;
/// each of these candidates weighs as many points as it is the nearest to, and k-means++ draws from them by
/// weight. Where they are too few, k-means++ draws the rest from the points.
///
/// # Shapes
///
/// `points` is `[n_points, d]`, rows of about unit length, at least `n` of them. Work: 2·n_points·n·d FLOPs with
/// k-means++, about five times that with k-means∥.
///
/// # Source
///
/// k-means++: Arthur and Vassilvitskii, 2007; k-means∥: Bahmani et al., 2012, arXiv:1203.6402, with ℓ = k. On the
/// unit sphere `|a − b|² = 2(1 − cos)`.
pub fn starting_points(points: &Matrix, n: usize, seeding: Seeding, seed: u64, restart: usize) -> Vec<usize> {
    assert!(n <= points.n_rows(), "{n} of {} points", points.n_rows());
    let cloud = Cloud::new(points);
    let chance = Chance { seed, restart: restart as u64, n_used: 0 };
    match seeding {
        Seeding::KMeansPlusPlus => draw_apart(&cloud, None, Drawn::none(points.n_rows()), n, chance),
        Seeding::KMeansParallel => {
            let candidates = draw_in_rounds(&cloud, n, &chance);
            if candidates.places.len() < n {
                return draw_apart(&cloud, None, candidates, n, chance);
            }
            let weights = candidates.weights();
            let rows = points.gather(&candidates.places);
            let drawn = draw_apart(&Cloud::new(&rows), Some(&weights), Drawn::none(rows.n_rows()), n, chance);
            drawn.into_iter().map(|candidate| candidates.places[candidate]).collect()
        }
    }
}

/// Points drawn so far, and how far every point is from them.
struct Drawn {
    places: Vec<usize>,
    /// `1 − cos` of each point to the nearest drawn; 1 before the first.
    distances: Vec<f64>,
    /// The position in `places` of the nearest drawn.
    nearest: Vec<u32>,
}

impl Drawn {
    fn none(n_points: usize) -> Drawn {
        Drawn { places: Vec::new(), distances: vec![1.0; n_points], nearest: vec![0; n_points] }
    }

    /// Adds points and lowers all distances to those to the nearest of them.
    fn extend(&mut self, cloud: &Cloud, others: &[usize]) {
        let rows = cloud.points.gather(others);
        let first = self.places.len();
        let strips = map_strips(cloud.points.n_rows(), |tile: &mut Tile, strip| {
            let mut lowered = self.distances[strip.clone()].to_vec();
            let mut nearest = self.nearest[strip.clone()].to_vec();
            for range in ranges(others.len()) {
                tile.fill(&rows, range.clone(), cloud.points, strip.clone());
                for (row, position) in range.enumerate() {
                    let inverse_length = cloud.inverse_lengths[others[position]];
                    let similarities = tile.row(row).iter().zip(&cloud.inverse_lengths[strip.clone()]);
                    let kept = lowered.iter_mut().zip(&mut nearest);
                    for ((distance, nearest), (similarity, other)) in kept.zip(similarities) {
                        let new = (1.0 - f64::from(similarity * inverse_length * other)).max(0.0);
                        if new < *distance || first + position == 0 {
                            (*distance, *nearest) = (new, (first + position) as u32);
                        }
                    }
                }
            }
            (lowered, nearest)
        });
        let (distances, nearest): (Vec<_>, Vec<_>) = strips.into_iter().unzip();
        (self.distances, self.nearest) = (distances.concat(), nearest.concat());
        for (position, other) in others.iter().enumerate() {
            self.distances[*other] = 0.0;
            self.nearest[*other] = (first + position) as u32;
        }
        self.places.extend(others);
    }

    /// How many points each drawn one is the nearest to.
    fn weights(&self) -> Vec<f64> {
        let mut weights = vec![0.0; self.places.len()];
        for nearest in &self.nearest {
            weights[*nearest as usize] += 1.0;
        }
        weights
    }
}

/// Draws until there are `n`, each with probability ∝ its weight times its distance to the nearest before.
///
/// Several candidates are drawn at once from the same distances, and each but the first is accepted with the
/// probability that its distance has left, given those accepted before it. The accepted follow the law of
/// drawing one at a time, while the points are read once for all of them.
fn draw_apart(
    cloud: &Cloud,
    weights: Option<&[f64]>,
    mut drawn: Drawn,
    n: usize,
    mut chance: Chance,
) -> Vec<usize> {
    while drawn.places.len() < n {
        let n_left = n - drawn.places.len();
        let n_candidates = match drawn.places.len() {
            // from the first on, points know their distance
            0 => 1,
            n_drawn => (n_drawn / 4).clamp(N_CANDIDATES.0, N_CANDIDATES.1).min(n_left),
        };
        let candidates = draw_by_weight(&drawn.distances, weights, n_candidates, &mut chance);
        let mut accepted: Vec<usize> = Vec::new();
        for candidate in candidates {
            let nearest = accepted.par_iter().map(|other| cloud.distance(candidate, *other));
            let distance = drawn.distances[candidate];
            let distance_left = nearest.reduce(|| distance, f64::min);
            if accepted.is_empty() || chance.uniform() * distance < distance_left {
                accepted.push(candidate);
            }
        }
        if accepted.is_empty() {
            // every point lies on one that was drawn: the rest may be any
            let mut is_drawn = vec![false; cloud.points.n_rows()];
            drawn.places.iter().for_each(|place| is_drawn[*place] = true);
            let rest = (0..is_drawn.len()).filter(|place| !is_drawn[*place]);
            accepted = rest.take(n_left).collect();
        }
        drawn.extend(cloud, &accepted);
    }
    drawn.places
}

/// The candidates of k-means∥.
fn draw_in_rounds(cloud: &Cloud, n_clusters: usize, chance: &Chance) -> Drawn {
    let n_points = cloud.points.n_rows();
    let mut drawn = Drawn::none(n_points);
    let first = (chance.of_point(0, 0) * n_points as f64) as usize;
    drawn.extend(cloud, &[first.min(n_points - 1)]);
    for round in 1..=N_ROUNDS {
        let total: f64 = drawn.distances.iter().sum();
        let expected = ROUND_POINTS_PER_CLUSTER * n_clusters as f64;
        let is_taken = |place: &usize| {
            let distance = drawn.distances[*place];
            distance > 0.0 && chance.of_point(round, *place) * total < expected * distance
        };
        let taken: Vec<usize> = (0..n_points).into_par_iter().filter(is_taken).collect();
        drawn.extend(cloud, &taken);
    }
    drawn
}

/// `n` positions with probability ∝ distance (times weight), with replacement; none if nothing is left.
fn draw_by_weight(distances: &[f64], weights: Option<&[f64]>, n: usize, chance: &mut Chance) -> Vec<usize> {
    let mut total = 0.0;
    let ends: Vec<f64> = distances
        .iter()
        .enumerate()
        .map(|(place, distance)| {
            total += distance * weights.map_or(1.0, |weights| weights[place]);
            total
        })
        .collect();
    if total <= 0.0 {
        return Vec::new();
    }
    let last = ends.partition_point(|end| *end < total);
    (0..n)
        .map(|_| {
            let place = chance.uniform() * total;
            ends.partition_point(|end| *end <= place).min(last)
        })
        .collect()
}

/// Seeded uniform numbers of one restart.
struct Chance {
    seed: u64,
    restart: u64,
    n_used: u64,
}

impl Chance {
    /// The next one, uniform in 0 ≤ u < 1.
    fn uniform(&mut self) -> f64 {
        self.n_used += 1;
        self.of("", self.n_used - 1)
    }

    /// That of one point in one round of k-means∥.
    fn of_point(&self, round: usize, place: usize) -> f64 {
        self.of("round", (round as u64) << 48 | place as u64)
    }

    fn of(&self, what: &str, place: u64) -> f64 {
        let hash = keyed_hash(Purpose::Seeding, self.seed, self.restart, what, place);
        (hash >> 11) as f64 * (-53f64).exp2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tile::random_unit_rows;

    const BOTH: [Seeding; 2] = [Seeding::KMeansPlusPlus, Seeding::KMeansParallel];

    /// One dense direction of 98 points and two lone ones, all at right angles.
    fn lone_points() -> Matrix {
        let mut values = [1.0, 0.0, 0.0].repeat(98);
        values.extend([0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
        Matrix::new(values, 3)
    }

    #[test]
    fn starting_points_follow_the_law_of_drawing_one_at_a_time() {
        let points = lone_points();
        for seeding in BOTH {
            let (mut n_lone_first, n_trials) = (0, 400);
            for seed in 0..n_trials {
                let start = starting_points(&points, 3, seeding, seed, 0);
                n_lone_first += usize::from(start[0] >= 98);
                // one of each direction, whatever came first
                let mut directions: Vec<usize> = start.iter().map(|point| point.saturating_sub(97)).collect();
                directions.sort_unstable();
                assert_eq!(directions, [0, 1, 2]);
            }
            // the first by weight alone: 2 % of the points are lone ones
            assert!(n_lone_first < 30, "{seeding:?}: {n_lone_first} of {n_trials}, expected 2 %");
        }
    }

    #[test]
    fn pairs_come_as_often_as_the_law_says() {
        // at 0, 60 and 180 degrees; of the first two drawn, {0, 1} has probability
        // ⅓·½/(½ + 2) + ⅓·½/(½ + 1½), and so on
        let angles = [0.0f64, 60.0, 180.0].map(f64::to_radians);
        let values = angles.iter().flat_map(|angle| [angle.cos() as f32, angle.sin() as f32]);
        let points = Matrix::new(values.collect(), 2);
        let distance = |i: usize, j: usize| 1.0 - (angles[i] - angles[j]).cos();
        let share = |i: usize, j: usize| {
            let other = 3 - i - j;
            distance(i, j) / 3.0
                * (1.0 / (distance(i, j) + distance(i, other)) + 1.0 / (distance(i, j) + distance(j, other)))
        };
        let n_trials = 4000;
        let mut n = [0usize; 3];
        for seed in 0..n_trials {
            let start = starting_points(&points, 2, Seeding::KMeansPlusPlus, seed, 1);
            n[3 - start[0] - start[1]] += 1;
        }
        for (left_out, pair) in [(1, 2), (0, 2), (0, 1)].into_iter().enumerate() {
            let expected = share(pair.0, pair.1);
            let spread = (expected * (1.0 - expected) / n_trials as f64).sqrt();
            let found = n[left_out] as f64 / n_trials as f64;
            assert!((found - expected).abs() < 4.0 * spread, "{pair:?}: {found} for {expected}");
        }
    }

    #[test]
    fn all_points_are_different_up_to_as_many_as_there_are() {
        for seeding in BOTH {
            for n in [1, 7, 40] {
                let mut start = starting_points(&random_unit_rows(40, 4, 1), n, seeding, 5, 0);
                start.sort_unstable();
                start.dedup();
                assert_eq!(start.len(), n, "{seeding:?}");
            }
            // copies of one point have nothing to tell them apart
            let same = Matrix::new([0.6, 0.8].repeat(9), 2);
            let mut start = starting_points(&same, 9, seeding, 5, 0);
            start.sort_unstable();
            assert_eq!(start, (0..9).collect::<Vec<_>>());
        }
    }

    #[test]
    fn candidates_weigh_all_points_together() {
        let points = random_unit_rows(500, 6, 8);
        let chance = Chance { seed: 3, restart: 0, n_used: 0 };
        let candidates = draw_in_rounds(&Cloud::new(&points), 20, &chance);
        assert!((40..200).contains(&candidates.places.len()), "{}", candidates.places.len());
        assert_eq!(candidates.weights().iter().sum::<f64>(), 500.0);
        assert!(candidates.weights().iter().all(|weight| *weight >= 1.0));
    }
}
