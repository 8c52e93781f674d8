//! Unit embeddings in; centroids, and each sample's cluster out: spherical k-means.
//!
//! A fit sees all its points at once, an assignment is per sample. Points of one cluster are each other's hard
//! negatives later.

mod cloud;
mod seeding;
mod nearest;
mod held;
mod lloyd;
mod mini_batch;
mod levels;
mod merge;

use crate::engine::Engine;
use crate::error::Error;
use crate::matrix::Matrix;

use cloud::{Cloud, set_direction};

pub use held::{assign_and_rows, assign_on};
pub use levels::fit_levels;
pub use merge::merge_small;
pub use nearest::{Assignment, assign};
pub use seeding::{Seeding, starting_points};

/// How centroids are fitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FitParams {
    pub n_clusters: usize,
    pub seeding: Seeding,
    pub method: FitMethod,
    /// Fits from different starts, of which the best is taken.
    pub n_restarts: usize,
    /// Passes over the points.
    pub n_iterations_max: usize,
    /// A fit ends when an iteration lowers the objective by no more than this part of it.
    pub tolerance: f64,
    pub seed: u64,
}

/// When centroids move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FitMethod {
    /// After a pass over all points (Lloyd).
    FullSample,
    /// After every `size` points, at least 1.
    MiniBatch { size: usize },
}

impl Default for FitParams {
    fn default() -> FitParams {
        FitParams {
            n_clusters: 10,
            seeding: Seeding::default(),
            method: FitMethod::FullSample,
            n_restarts: 3,
            n_iterations_max: 50,
            tolerance: 1e-4,
            seed: 0,
        }
    }
}

/// Fitted centroids.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// `[n_clusters, d]`, unit rows.
    pub centroids: Matrix,
    /// `Σ (1 − cos)` over the points, each with its nearest of these centroids.
    pub objective: f64,
    /// Passes in which the centroids were moved.
    pub n_iterations: usize,
    /// The objective before each iteration (with mini-batches: as the points were met during it) and after the
    /// last: `n_iterations + 1` values.
    pub history: Vec<f64>,
}

/// Why centroids cannot be fitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FitError {
    #[error("{n_points} samples cannot make {n_clusters} clusters")]
    TooFewPoints { n_points: usize, n_clusters: usize },
}

/// Fits centroids by spherical k-means.
///
/// ```text
/// objective = Σ_i (1 − max_c cos(point_i, centroid_c))
/// centroid_c = normalise(Σ of the unit points nearest to it)
/// ```
///
/// Each restart starts from points that [`starting_points`] draws. In whole passes, a cluster that loses all points
/// takes the point farthest from its own centroid. The lowest objective wins, the earlier restart on a tie. Equal
/// points may leave equal centroids, of which the first gets all.
///
/// With mini-batches the centroids move after every `size` points, which come in keyed order: a few passes do what
/// many whole ones do, to within about a percent of the objective.
///
/// The engine finds the nearest centroids; starts are drawn, and centroids moved, on the processor.
///
/// # Shapes and units
///
/// `points` is `[n_points, d]`, rows of about unit length (they may be rounded to f16; each is scaled to unit
/// length). Work: 2·n_points·n_clusters·d FLOPs an iteration. Memory: O(n_points + n_clusters·d) beside the
/// points; on a device, in whole passes, the points and 256 MiB.
///
/// # Errors
///
/// [`Error::Fit`] with fewer points than clusters; [`Error::Device`] where a device fails.
///
/// # Source
///
/// Divide and Contrast, arXiv:2105.08054, clusters normalised features by k-means. Spherical k-means: Dhillon
/// and Modha, 2001; mini-batches: Sculley, 2010, with a learning rate of 1/count.
pub fn fit(engine: &Engine, points: &Matrix, params: &FitParams) -> Result<Fit, Error> {
    let (n_points, n_clusters) = (points.n_rows(), params.n_clusters);
    assert!(n_clusters > 0 && params.n_restarts > 0, "{params:?}");
    if n_points < n_clusters {
        return Err(Error::Fit { source: FitError::TooFewPoints { n_points, n_clusters } });
    }
    let fit_from = |restart| {
        let start = starting_points(points, n_clusters, params.seeding, params.seed, restart);
        refine(engine, points, points.gather(&start), params)
    };
    let mut best = fit_from(0)?;
    for restart in 1..params.n_restarts {
        let fit = fit_from(restart)?;
        if fit.objective < best.objective {
            best = fit;
        }
    }
    Ok(best)
}

/// Moves given centroids to a local minimum of the objective: the part of [`fit`] after the start.
///
/// # Errors
///
/// [`Error::Device`] where a device fails.
pub fn refine(engine: &Engine, points: &Matrix, start: Matrix, params: &FitParams) -> Result<Fit, Error> {
    assert!(start.n_rows() > 0 && start.n_rows() <= points.n_rows());
    let cloud = Cloud::new(points);
    let mut centroids = start;
    for cluster in 0..centroids.n_rows() {
        let sum: Vec<f64> = centroids.row(cluster).iter().map(|value| f64::from(*value)).collect();
        set_direction(centroids.row_mut(cluster), &sum);
    }
    match params.method {
        FitMethod::FullSample => lloyd::whole_passes(engine, &cloud, centroids, params),
        FitMethod::MiniBatch { size } => mini_batch::mini_batches(engine, &cloud, centroids, size, params),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algebra::Algebra;
    use crate::runtime::{Place, Products, Provider};
    use crate::tile::random_unit_rows;

    const KERNELS: Engine = Engine::Kernels;

    const METHODS: [FitMethod; 2] = [FitMethod::FullSample, FitMethod::MiniBatch { size: 300 }];

    fn params(n_clusters: usize) -> FitParams {
        FitParams { n_clusters, n_restarts: 2, tolerance: 1e-6, seed: 11, ..FitParams::default() }
    }

    /// Around `n_concepts` random directions, point i around direction i mod n_concepts.
    fn planted(n_points: usize, n_concepts: usize, spread: f32) -> Matrix {
        let (centres, noise) = (random_unit_rows(n_concepts, 16, 1), random_unit_rows(n_points, 16, 2));
        let mut points = Matrix::zeros(n_points, 16);
        for point in 0..n_points {
            let pairs = centres.row(point % n_concepts).iter().zip(noise.row(point));
            let sum: Vec<f64> = pairs.map(|(c, n)| f64::from(c + spread * n)).collect();
            set_direction(points.row_mut(point), &sum);
        }
        points
    }

    #[test]
    fn four_points_make_two_clusters() {
        let points = Matrix::new(vec![1.0, 0.0, 0.6, 0.8, -1.0, 0.0, -0.6, -0.8], 2);
        let fit = fit(&KERNELS, &points, &params(2)).unwrap();
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
    fn planted_concepts_are_found() {
        let points = planted(1200, 12, 0.1);
        for seeding in [Seeding::KMeansPlusPlus, Seeding::KMeansParallel] {
            for method in METHODS {
                let params = FitParams { n_restarts: 5, seeding, method, ..params(12) };
                let fit = fit(&KERNELS, &points, &params).unwrap();
                let clusters = assign(&points, &fit.centroids);
                for point in 12..1200 {
                    assert_eq!(clusters[point].cluster, clusters[point % 12].cluster, "{params:?}");
                }
                assert_eq!(fit.history.len(), fit.n_iterations + 1);
                assert_eq!(fit.history.last(), Some(&fit.objective));
                if method == FitMethod::FullSample {
                    assert!(fit.history.windows(2).all(|pair| pair[1] <= pair[0] + 1e-6));
                }
            }
        }
    }

    #[test]
    fn mini_batches_come_close_to_whole_passes() {
        let points = planted(4000, 60, 1.2);
        // small batches: on a busy machine threads that wait for each other take longer than the work
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        for seed in 0..3 {
            let params = |method| FitParams { method, seed, ..params(40) };
            let fit_by = |method| alone.install(|| fit(&KERNELS, &points, &params(method)).unwrap());
            let [whole, mini] = METHODS.map(fit_by);
            assert!(mini.objective < 1.02 * whole.objective, "{} {}", mini.objective, whole.objective);
            assert!(mini.objective < 0.98 * whole.history[0], "no better than the start");
        }
    }

    #[test]
    fn a_seeded_fit_is_the_same_bytes_with_any_number_of_threads() {
        let points = planted(2000, 40, 0.9);
        for seeding in [Seeding::KMeansPlusPlus, Seeding::KMeansParallel] {
            for method in METHODS {
                let params = FitParams { seeding, method, ..params(50) };
                let fit_with = |n_threads| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
                    pool.install(|| fit(&KERNELS, &points, &params).unwrap())
                };
                assert_eq!(fit_with(1), fit_with(2));
                assert_ne!(fit_with(2), fit(&KERNELS, &points, &FitParams { seed: 12, ..params }).unwrap());
            }
        }
    }

    #[test]
    fn rows_need_not_have_unit_length() {
        let points = planted(300, 5, 0.2);
        let mut stretched = points.clone();
        for row in 0..300 {
            let factor = 0.25 * (1 << (row % 4)) as f32; // a power of two changes no other bit
            stretched.row_mut(row).iter_mut().for_each(|value| *value *= factor);
        }
        for method in METHODS {
            let params = FitParams { method, ..params(5) };
            let fitted = |points| fit(&KERNELS, points, &params).unwrap();
            assert_eq!(fitted(&points), fitted(&stretched));
        }
        assert_eq!(assign(&points, &points), assign(&stretched, &points));
    }

    #[test]
    fn a_start_in_empty_places_is_left() {
        // all start centroids but one point away from every point
        let points = planted(600, 6, 0.1);
        let mut start = points.gather(&[0; 6]);
        for cluster in 1..6 {
            start.row_mut(cluster).iter_mut().for_each(|value| *value = -*value);
        }
        for method in METHODS {
            let params = FitParams { method, n_restarts: 1, ..params(6) };
            let fit = refine(&KERNELS, &points, start.clone(), &params).unwrap();
            let clusters = assign(&points, &fit.centroids).into_iter().map(|a| a.cluster);
            assert_eq!(clusters.collect::<std::collections::HashSet<_>>().len(), 6, "{method:?}");
        }
    }

    #[test]
    fn as_many_clusters_as_points_fit_exactly_and_more_are_refused() {
        let points = random_unit_rows(40, 8, 9);
        let fitted = fit(&KERNELS, &points, &params(40)).unwrap();
        assert!(fitted.objective < 1e-5);
        let error = FitError::TooFewPoints { n_points: 40, n_clusters: 41 };
        let found = fit(&KERNELS, &points, &params(41));
        assert!(matches!(found, Err(Error::Fit { source }) if source == error));
    }

    #[test]
    fn equal_points_still_fit() {
        let points = Matrix::new([0.6, 0.8].repeat(30), 2);
        for method in METHODS {
            let fitted = fit(&KERNELS, &points, &FitParams { method, ..params(7) }).unwrap();
            assert!(fitted.objective.abs() < 1e-4);
            assert_eq!(fitted.centroids.n_rows(), 7);
        }
    }

    /// The graphs that a GPU runs, on the processor.
    fn graphs() -> Engine {
        Engine::Device(Box::new(Algebra::open(Place::CPU, Products::Exact).unwrap()))
    }

    #[test]
    fn a_device_fits_what_the_kernels_fit() {
        let (points, device) = (planted(3000, 40, 0.4), graphs());
        // as rows that were stored in f16 are
        let mut points_f16 = points.clone();
        for row in 0..points.n_rows() {
            points_f16
                .row_mut(row)
                .iter_mut()
                .for_each(|value| *value = half::f16::from_f32(*value).to_f32());
        }
        for points in [points, points_f16] {
            for method in METHODS {
                let params = FitParams { method, ..params(30) };
                let (expected, found) =
                    (fit(&KERNELS, &points, &params).unwrap(), fit(&device, &points, &params).unwrap());
                let error = (found.objective - expected.objective).abs();
                assert!(error < 1e-4 * expected.objective, "{} {}", found.objective, expected.objective);
                let on_device = assign_on(&device, &points, &expected.centroids).unwrap();
                for (found, expected) in on_device.iter().zip(assign(&points, &expected.centroids)) {
                    let margin = expected.centroid_margin.unwrap();
                    // where two are as near, rounding decides
                    assert!(found.cluster == expected.cluster || margin < 1e-5);
                    assert!((found.centroid_similarity - expected.centroid_similarity).abs() < 1e-5);
                    assert!((found.centroid_margin.unwrap() - margin).abs() < 1e-5);
                }
            }
        }
        let numerics = device.numerics_of_nearest(None).unwrap();
        assert_eq!((&*numerics["device"], &*numerics["products"]), ("cpu", "f32"));
        assert!(numerics["nodes"].starts_with("CPUExecutionProvider "), "{numerics:?}");
    }

    #[test]
    fn a_device_that_fails_is_named() {
        // a provider that the runtime of this process was not built with
        let place = Place { provider: Provider::Cuda, number: 61 };
        let missing = Engine::Device(Box::new(Algebra::open(place, Products::Exact).unwrap()));
        let error = fit(&missing, &planted(100, 4, 0.1), &params(4)).unwrap_err();
        assert!(matches!(&error, Error::Device { device, .. } if device == "cuda:61"), "{}", error.message());
    }
}
