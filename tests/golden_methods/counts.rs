//! How many of what: METHODS §3, §5 and §6, in integers.

use std::collections::BTreeMap;

use serde::Deserialize;
use superbatch::divide::ClusterTree;
use superbatch::noise::{Purpose, keyed_hash};
use superbatch::select::{
    FilterRatio, Quota, balanced_counts, chunk_sizes, kept_in, quotas, super_batch_sizes,
};

use super::pool::golden;

#[derive(Deserialize)]
struct File {
    plans: Vec<Plan>,
    quotas: Vec<GoldenQuotas>,
}

#[derive(Deserialize)]
struct Plan {
    filter_ratio: String,
    super_batch_size: usize,
    n_chunks: usize,
    groups: Vec<usize>,
    super_batches: Vec<Vec<usize>>,
    n_kept: u64,
    kept: Vec<u64>,
    chunk_sizes: BTreeMap<String, Vec<usize>>,
}

#[derive(Deserialize)]
struct GoldenQuotas {
    cluster_sizes: Vec<u64>,
    n_kept: u64,
    weights: String,
    real: Vec<f64>,
    quotas: Vec<u64>,
    in_two_super_batches: BTreeMap<String, [u64; 2]>,
}

#[test]
fn plans_of_draws() {
    let file: File = golden("counts");
    for plan in &file.plans {
        let ratio: FilterRatio = plan.filter_ratio.parse().unwrap();
        let n_samples = plan.groups.iter().sum::<usize>() as u64;
        assert_eq!(ratio.kept(n_samples), plan.n_kept);
        for (n, sizes) in plan.groups.iter().zip(&plan.super_batches) {
            assert_eq!(&super_batch_sizes(*n, plan.super_batch_size), sizes);
        }
        let mut start = 0;
        let sizes = plan.super_batches.iter().flatten().map(|size| *size as u64);
        let kept: Vec<u64> = sizes
            .map(|size| {
                start += size;
                kept_in(start - size..start, plan.n_kept, n_samples)
            })
            .collect();
        assert_eq!(kept, plan.kept, "filter ratio {}", plan.filter_ratio);
        for (sub_batch_size, sizes) in &plan.chunk_sizes {
            assert_eq!(&chunk_sizes(sub_batch_size.parse().unwrap(), plan.n_chunks), sizes);
        }
    }
}

#[test]
fn quotas_over_clusters() {
    let file: File = golden("counts");
    for golden in &file.quotas {
        let quota = match golden.weights.as_str() {
            "proportional" => Quota::Size,
            "square_root" => Quota::Sqrt,
            _ => Quota::Uniform,
        };
        let found = quotas(&golden.cluster_sizes, golden.n_kept, quota);
        assert_eq!(found, golden.quotas, "{} of {:?}", golden.weights, golden.cluster_sizes);
        for (found, real) in found.iter().zip(&golden.real) {
            assert!((*found as f64 - real).abs() < 1.0 + 1e-9 * real, "{found} of {real}");
        }
        for (cluster, expected) in &golden.in_two_super_batches {
            let cluster: usize = cluster.parse().unwrap();
            let n = golden.cluster_sizes[cluster];
            let first = n - n / 3;
            let kept = [0..first, first..n].map(|range| kept_in(range, found[cluster], n));
            assert_eq!(kept, *expected);
        }
    }
}

#[derive(Deserialize)]
struct Clusters {
    balanced: Balanced,
}

#[derive(Deserialize)]
struct Balanced {
    flat: Vec<Flat>,
    trees: Vec<Leaves>,
}

#[derive(Deserialize)]
struct Flat {
    sizes: Vec<u64>,
    target: u64,
    order: Vec<usize>,
    counts: Vec<u64>,
}

#[derive(Deserialize)]
struct Leaves {
    target: u64,
    leaves: BTreeMap<String, u64>,
}

/// The clusters of a level in the keyed order in which they get one more.
fn keyed_order(seed: u64, level: u64, clusters: std::ops::Range<u64>) -> Vec<usize> {
    let first = clusters.start;
    let mut order: Vec<u64> = clusters.collect();
    order.sort_by_key(|cluster| keyed_hash(Purpose::Balance, seed, 0, "", level << 32 | cluster));
    order.into_iter().map(|cluster| (cluster - first) as usize).collect()
}

/// The first seed whose keyed orders are those of the golden file, so that the same children get one more.
fn seed_with(has_orders: impl Fn(u64) -> bool) -> u64 {
    (0..1_000_000).find(|seed| has_orders(*seed)).expect("some seed has these orders")
}

#[test]
fn balanced_counts_of_clusters_without_levels() {
    let file: Clusters = golden("clusters");
    for flat in &file.balanced.flat {
        let n = flat.sizes.len();
        let seed = seed_with(|seed| keyed_order(seed, 0, 0..n as u64) == flat.order);
        assert_eq!(balanced_counts(&ClusterTree::flat(n), &flat.sizes, flat.target, seed, 0), flat.counts);
    }
}

#[test]
fn balanced_counts_of_a_tree() {
    // a: a0 a1 a2 · b: b0 b1 · c: c0, c1: c10 c11. A tree has one depth: what has no children is its own only child.
    let mut tree = ClusterTree::flat(8);
    tree.push_level(7, vec![0, 1, 2, 3, 4, 5, 6, 6]);
    tree.push_level(3, vec![0, 0, 0, 1, 1, 2, 2]);
    let names = ["a0", "a1", "a2", "b0", "b1", "c0", "c10", "c11"];
    let sizes = [50, 3, 20, 1, 5, 200, 40, 2];
    let seed = seed_with(|seed| {
        keyed_order(seed, 2, 0..3) == [2, 0, 1]
            && keyed_order(seed, 1, 0..3) == [1, 0, 2]
            && keyed_order(seed, 1, 3..5) == [0, 1]
            && keyed_order(seed, 1, 5..7) == [1, 0]
            && keyed_order(seed, 0, 6..8) == [0, 1]
    });
    let file: Clusters = golden("clusters");
    for case in &file.balanced.trees {
        let found = balanced_counts(&tree, &sizes, case.target, seed, 0);
        let found: BTreeMap<String, u64> = names.iter().map(|name| (*name).to_owned()).zip(found).collect();
        assert_eq!(found, case.leaves, "{} of the tree", case.target);
    }
}
