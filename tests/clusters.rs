//! k-means and the kernels that stand on clusters against independent Python: `oracle/clusters.py` writes what is
//! read here, dense, in f64, or by faiss and scikit-learn.

#[path = "support/golden.rs"]
mod support;

use serde::Deserialize;
use superbatch::divide::{ClusterTree, FitMethod, FitParams, Seeding, fit, refine};
use superbatch::engine::Engine;
use superbatch::matrix::{Matrix, unit_rows};
use superbatch::noise::SampleId;
use superbatch::select::{
    DensityParams, Quota, balanced_counts, density_quotas, nearest_evaluation, norm_sim, quotas, semdedup,
};
use superbatch::settings::Norm;
use support::{assert_close, golden};

#[derive(Deserialize)]
struct Golden {
    k_means: KMeans,
    semdedup: Vec<Semdedup>,
    balanced: Vec<Balanced>,
    quotas: Vec<Quotas>,
    density: Vec<Density>,
    closeness: Vec<Closeness>,
}

/// Points that both sides make by the same formula, in whole numbers over 8192.
#[derive(Clone, Copy, Deserialize)]
struct Points {
    seed: u64,
    n: usize,
    d: usize,
    n_concepts: usize,
    spread: i64,
}

#[derive(Deserialize)]
struct KMeans {
    points: Points,
    k: usize,
    start: Vec<usize>,
    /// The objective before each iteration and after the last.
    history: Vec<f64>,
    faiss_from_start: f64,
    faiss_random_starts: Vec<f64>,
    scikit_learn_potentials: Vec<f64>,
    scikit_learn_fitted: Vec<f64>,
}

#[derive(Deserialize)]
struct Semdedup {
    points: Points,
    /// A row, and the row that it becomes a copy of.
    copies: Vec<(usize, usize)>,
    epsilon: f64,
    /// −1: no duplicate; −2: one of several rows that are equally similar.
    duplicates: Vec<i64>,
}

#[derive(Deserialize)]
struct Balanced {
    parents: Vec<Vec<u32>>,
    sizes: Vec<u64>,
    target: u64,
    seed: u64,
    round: u64,
    counts: Vec<u64>,
}

#[derive(Deserialize)]
struct Quotas {
    sizes: Vec<u64>,
    n_kept: u64,
    quota: Quota,
    counts: Vec<u64>,
}

#[derive(Deserialize)]
struct Density {
    points: Points,
    mean_distances: Vec<f64>,
    sizes: Vec<u64>,
    n_kept: u64,
    temperature: f64,
    n_neighbours: usize,
    counts: Vec<u64>,
}

#[derive(Deserialize)]
struct Closeness {
    rows: Points,
    targets: Points,
    norm_2: Vec<f64>,
    norm_infinity: Vec<f64>,
    nearest: Vec<u32>,
    nearest_similarity: Vec<f64>,
}

fn clusters() -> Golden {
    golden("golden/clusters.json")
}

/// The finalizer of splitmix64.
fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl Points {
    fn matrix(self) -> Matrix {
        let whole = |seed: u64, i: usize| (mixed((seed << 32) + i as u64) >> 52) as i64 - 2048;
        let value = |place: usize| {
            let (row, column) = (place / self.d, place % self.d);
            let concept = (mixed(row as u64) % self.n_concepts as u64) as usize;
            let sum =
                4 * whole(self.seed, concept * self.d + column) + self.spread * whole(self.seed + 1, place);
            sum as f32 / 8192.0
        };
        Matrix::new((0..self.n * self.d).map(value).collect(), self.d)
    }
}

impl KMeans {
    fn params(&self) -> FitParams {
        FitParams {
            n_clusters: self.k,
            n_restarts: 1,
            n_iterations_max: self.history.len() - 1,
            // no iteration is left out, whatever it brings
            tolerance: f64::NEG_INFINITY,
            ..FitParams::default()
        }
    }

    /// The objectives of ten seeds after so many iterations. On one thread: the fits are small, and on a busy machine
    /// threads that wait for each other take longer than the work.
    fn ten_fits(&self, params: FitParams) -> Vec<f64> {
        let points = self.points.matrix();
        let fit_from =
            |seed| fit(&Engine::Kernels, &points, &FitParams { seed, ..params }).unwrap().objective;
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        alone.install(|| (0..10).map(fit_from).collect())
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The square of the mean's standard error.
fn variance_of_mean(values: &[f64]) -> f64 {
    let squares = values.iter().map(|value| (value - mean(values)).powi(2));
    squares.sum::<f64>() / (values.len() * (values.len() - 1)) as f64
}

#[test]
fn k_means_goes_the_way_of_numpy_and_faiss() {
    let golden = clusters().k_means;
    let points = golden.points.matrix();
    let start = points.gather(&golden.start);
    let found = refine(&Engine::Kernels, &points, start, &golden.params()).unwrap();
    assert_eq!(found.history.len(), golden.history.len());
    for (found, expected) in found.history.iter().zip(&golden.history) {
        assert_close(*found, *expected, 1e-4 * expected);
    }
    assert!(found.objective < 1.01 * golden.faiss_from_start);
}

#[test]
fn k_means_from_own_starts_is_no_worse_than_faiss() {
    let golden = clusters().k_means;
    for seeding in [Seeding::KMeansPlusPlus, Seeding::KMeansParallel] {
        for method in [FitMethod::FullSample, FitMethod::MiniBatch { size: 256 }] {
            let found = golden.ten_fits(FitParams { seeding, method, ..golden.params() });
            assert!(mean(&found) < 1.01 * mean(&golden.faiss_random_starts), "{method:?}: {found:?}");
        }
    }
}

#[test]
fn starting_points_are_as_good_as_those_of_scikit_learn() {
    let golden = clusters().k_means;
    let before_any_iteration = FitParams { n_iterations_max: 0, ..golden.params() };
    let found = golden.ten_fits(before_any_iteration);
    let expected = &golden.scikit_learn_potentials;
    let spread = (variance_of_mean(&found) + variance_of_mean(expected)).sqrt();
    assert_close(mean(&found), mean(expected), 3.0 * spread);
    assert!(spread < 0.01 * mean(expected));
    // the many candidates of k-means∥ leave a better choice, never a worse one
    let in_parallel = FitParams { seeding: Seeding::KMeansParallel, ..before_any_iteration };
    assert!(mean(&golden.ten_fits(in_parallel)) < mean(expected) + 3.0 * spread);
    assert!(mean(&golden.ten_fits(golden.params())) < 1.01 * mean(&golden.scikit_learn_fitted));
}

#[test]
fn semantic_duplicates_of_all_pairs() {
    for golden in clusters().semdedup {
        let mut images = golden.points.matrix();
        for (copy, original) in golden.copies {
            let original = images.row(original).to_vec();
            images.row_mut(copy).copy_from_slice(&original);
        }
        let n = golden.points.n;
        let ids: Vec<SampleId> =
            (0..n).map(|i| SampleId { shard: ["a", "b"][i % 2], sample_idx: (i * 61 % n) as u64 }).collect();
        let centroid_similarities: Vec<f32> = (0..n).map(|i| (i * 37 % 101) as f32 / 128.0).collect();
        let found = semdedup(&ids, &images, &centroid_similarities, golden.epsilon);
        for (row, (found, expected)) in found.iter().zip(&golden.duplicates).enumerate() {
            match expected {
                -2 => assert!(found.is_some(), "row {row}"),
                -1 => assert_eq!(*found, None, "row {row}"),
                other => assert_eq!(*found, Some(*other as usize), "row {row}"),
            }
        }
    }
}

#[test]
fn balanced_sampling_keeps_the_exact_counts() {
    for golden in clusters().balanced {
        let mut tree = ClusterTree::flat(golden.sizes.len());
        for parents in &golden.parents {
            let n_clusters = 1 + *parents.iter().max().unwrap() as usize;
            tree.push_level(n_clusters, parents.clone());
        }
        let counts = balanced_counts(&tree, &golden.sizes, golden.target, golden.seed, golden.round);
        assert_eq!(counts, golden.counts, "{} of {:?}", golden.target, golden.sizes);
    }
}

#[test]
fn quotas_are_exact() {
    for golden in clusters().quotas {
        let counts = quotas(&golden.sizes, golden.n_kept, golden.quota);
        assert_eq!(counts, golden.counts, "{} by {:?} of {:?}", golden.n_kept, golden.quota, golden.sizes);
    }
}

#[test]
fn density_based_quotas() {
    for golden in clusters().density {
        let params = DensityParams { temperature: golden.temperature, n_neighbours: golden.n_neighbours };
        let centroids = unit_rows(golden.points.matrix());
        let Density { mean_distances, sizes, n_kept, counts, .. } = golden;
        assert_eq!(
            density_quotas(&centroids, &mean_distances, &sizes, n_kept, &params),
            counts,
            "{params:?}"
        );
    }
}

#[test]
fn closeness_to_targets() {
    for golden in clusters().closeness {
        let (rows, targets) = (unit_rows(golden.rows.matrix()), unit_rows(golden.targets.matrix()));
        for (norm, expected) in [(Norm::Two, &golden.norm_2), (Norm::Infinity, &golden.norm_infinity)] {
            for (found, expected) in norm_sim(&rows, &targets, norm).iter().zip(expected) {
                assert_close(*found, *expected, 2e-6 * expected);
            }
        }
        // sets of any length are brought to unit length
        let nearest = nearest_evaluation(&rows, &golden.targets.matrix());
        assert_eq!(nearest.len(), golden.nearest.len());
        for (i, nearest) in nearest.iter().enumerate() {
            assert_eq!(nearest.row, golden.nearest[i]);
            assert_close(f64::from(nearest.similarity), golden.nearest_similarity[i], 1e-6);
        }
    }
}
