//! The kernels of `divide`, and those of `select` that stand on clusters, each beside the matrix products that it
//! cannot do without.
//!
//! ```text
//! cargo bench --bench divide                              small, seconds
//! SUPERBATCH_BENCH_FULL=1 cargo bench --bench divide      n = 200,000, d = 512, k = 1,024
//! ```
//!
//! The floor of a kernel is the same tiles without what is done to them: what the kernel takes beyond it is the cost of
//! the arg-max or of the exponentials. Threads: `RAYON_NUM_THREADS`.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime};
use superbatch::divide::{Banks, HardnessParams, Samples, assign, hardness};
use superbatch::matrix::{Matrix, unit_rows};
use superbatch::noise::SampleId;
use superbatch::select::semdedup;
use superbatch::tile::{Tile, map_strips, tall_ranges};

struct Sizes {
    n_points: usize,
    dim: usize,
    n_clusters: usize,
    /// Samples whose hardness is measured.
    n_queries: usize,
    bank_size: usize,
    n_in_cluster: usize,
}

impl Sizes {
    fn from_env() -> Sizes {
        match std::env::var_os("SUPERBATCH_BENCH_FULL") {
            Some(_) => Sizes {
                n_points: 200_000,
                dim: 512,
                n_clusters: 1024,
                n_queries: 65_536,
                bank_size: 1024,
                n_in_cluster: 16_384,
            },
            None => Sizes {
                n_points: 8192,
                dim: 512,
                n_clusters: 1024,
                n_queries: 4096,
                bank_size: 1024,
                n_in_cluster: 4096,
            },
        }
    }
}

/// Seeded unit rows around 64 directions, so that neighbours are as near as in real pools.
fn rows(seed: u64, n: usize, dim: usize) -> Matrix {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let centres: Vec<f32> = (0..64 * dim).map(|_| uniform()).collect();
    let values = (0..n * dim).map(|place| centres[place / dim % 64 * dim + place % dim] + 1.5 * uniform());
    unit_rows(&Matrix::new(values.collect(), dim))
}

/// The products of all rows with all columns, tile by tile, and nothing else.
fn products(tile: &mut Tile, rows: &Matrix, columns: &Matrix, strip: std::ops::Range<usize>) {
    for range in tall_ranges(rows.n_rows()) {
        tile.fill(rows, range, columns, strip.clone());
        black_box(tile.values());
    }
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    group
}

fn bench_assign(criterion: &mut Criterion) {
    let sizes = Sizes::from_env();
    let points = rows(1, sizes.n_points, sizes.dim);
    let centroids = rows(2, sizes.n_clusters, sizes.dim);
    let mut group = group(criterion, "assign");
    group.bench_function("floor", |bencher| {
        bencher.iter(|| {
            map_strips(points.n_rows(), |tile: &mut Tile, strip| products(tile, &centroids, &points, strip))
        });
    });
    group.bench_function("kernel", |bencher| bencher.iter(|| assign(&points, &centroids)));
    group.finish();
}

fn bench_hardness(criterion: &mut Criterion) {
    let sizes = Sizes::from_env();
    let images = rows(3, sizes.n_queries, sizes.dim);
    let captions = rows(4, sizes.n_queries, sizes.dim);
    let (cluster, pool) = (rows(5, sizes.bank_size, sizes.dim), rows(6, sizes.bank_size, sizes.dim));
    let bank_captions = rows(7, sizes.bank_size, sizes.dim);
    let ids = |shard, n| (0..n as u64).map(|sample_idx| SampleId { shard, sample_idx }).collect::<Vec<_>>();
    let (query_ids, cluster_ids) = (ids("a", sizes.n_queries), ids("a", sizes.bank_size));
    let pool_ids = ids("b", sizes.bank_size);
    let samples = |ids, images, captions| Samples { ids, images, captions, caption_hashes: None };
    let params = HardnessParams::default();
    let mut group = group(criterion, "hardness");
    for (name, has_captions) in [("images", false), ("images_and_captions", true)] {
        let with = |captions| has_captions.then_some(captions);
        group.bench_function(format!("{name}/floor"), |bencher| {
            bencher.iter(|| {
                map_strips(images.n_rows(), |tile: &mut Tile, strip| {
                    products(tile, &cluster, &images, strip.clone());
                    products(tile, &pool, &images, strip.clone());
                    if has_captions {
                        products(tile, &bank_captions, &images, strip.clone());
                        products(tile, &cluster, &captions, strip.clone());
                    }
                })
            });
        });
        let queries = samples(&query_ids, &images, with(&captions));
        let banks = Banks {
            cluster: samples(&cluster_ids, &cluster, with(&bank_captions)),
            pool: samples(&pool_ids, &pool, None),
        };
        group.bench_function(format!("{name}/kernel"), |bencher| {
            bencher.iter(|| hardness(&queries, &banks, &params));
        });
    }
    group.finish();
}

fn bench_semdedup(criterion: &mut Criterion) {
    let sizes = Sizes::from_env();
    let images = rows(8, sizes.n_in_cluster, sizes.dim);
    let ids: Vec<SampleId> =
        (0..sizes.n_in_cluster as u64).map(|sample_idx| SampleId { shard: "a", sample_idx }).collect();
    let similarities: Vec<f32> = (0..sizes.n_in_cluster).map(|row| (row * 37 % 101) as f32).collect();
    let mut group = group(criterion, "semdedup");
    group.bench_function("floor", |bencher| {
        bencher.iter(|| {
            map_strips(images.n_rows(), |tile: &mut Tile, strip| {
                for range in tall_ranges(strip.end) {
                    tile.fill(&images, range, &images, strip.clone());
                    black_box(tile.values());
                }
            })
        });
    });
    group.bench_function("kernel", |bencher| {
        bencher.iter(|| semdedup(&ids, &images, &similarities, 0.05));
    });
    group.finish();
}

criterion_group!(benches, bench_assign, bench_hardness, bench_semdedup);
criterion_main!(benches);
