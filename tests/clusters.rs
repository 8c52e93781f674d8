//! k-means and the kernels that stand on clusters against independent Python: `oracle/clusters.py` writes what is
//! read here, dense, in f64, or by faiss and scikit-learn.

use serde::Deserialize;
use superbatch::divide::ClusterTree;
use superbatch::matrix::{Matrix, unit_rows};
use superbatch::noise::SampleId;
use superbatch::select::{Quota, balanced_counts, nearest_evaluation, norm_sim, quotas, semdedup};
use superbatch::settings::Norm;

#[derive(Deserialize)]
struct Golden {
    semdedup: Vec<Semdedup>,
    balanced: Vec<Balanced>,
    quotas: Vec<Quotas>,
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
struct Closeness {
    rows: Points,
    targets: Points,
    norm_2: Vec<f64>,
    norm_infinity: Vec<f64>,
    nearest: Vec<u32>,
    nearest_similarity: Vec<f64>,
}

fn golden() -> Golden {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/clusters.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
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

#[track_caller]
fn assert_close(found: f64, expected: f64, bound: f64) {
    assert!((found - expected).abs() <= bound, "{found} is not {expected} within {bound:e}");
}

#[test]
fn semantic_duplicates_of_all_pairs() {
    for golden in golden().semdedup {
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
    for golden in golden().balanced {
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
    for golden in golden().quotas {
        let counts = quotas(&golden.sizes, golden.n_kept, golden.quota);
        assert_eq!(counts, golden.counts, "{} by {:?} of {:?}", golden.n_kept, golden.quota, golden.sizes);
    }
}

#[test]
fn closeness_to_targets() {
    for golden in golden().closeness {
        let (rows, targets) = (unit_rows(&golden.rows.matrix()), unit_rows(&golden.targets.matrix()));
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
