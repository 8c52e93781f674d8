//! The kernels of `divide`, and SemDeDup, each beside the matrix products that it cannot do without.
//!
//! ```text
//! cargo bench --bench divide                                        4,096 samples
//! SUPERBATCH_BENCH=full cargo bench --bench divide                  65,536 samples; 16,384 in a cluster for SemDeDup
//! SUPERBATCH_BENCH_THREADS=8 cargo bench --bench divide             on 8 threads; 1 if absent
//! ```
//!
//! d = 512, 1,024 centroids, banks of 1,024. Times are CPU time. After Criterion's times comes a Markdown table of ratios, of
//! a kernel and its products that ran in turns.

mod cpu_time;

use std::hint::black_box;
use std::ops::Range;

use criterion::Criterion;

use cpu_time::{CpuTime, ratio_of_turns};
use superbatch::divide::{Bank, BankIndex, Banks, HardnessParams, Samples, assign, hardness};
use superbatch::matrix::{Matrix, unit_rows};
use superbatch::noise::SampleId;
use superbatch::sample::SampleRef;
use superbatch::select::semdedup;
use superbatch::tile::{Tile, map_strips, tall_ranges};

const D: usize = 512;
const N_CENTROIDS: usize = 1024;
const BANK_SIZE: usize = 1024;

struct Bench {
    images: Matrix,
    captions: Matrix,
    ids: Vec<SampleId<'static>>,
    centroids: Matrix,
    /// Images of the cluster's bank and of the pool's, and captions of the cluster's.
    banks: [Matrix; 3],
    /// Samples of one cluster.
    n_in_cluster: usize,
}

/// Seeded unit rows around 64 directions, so that neighbours are as near as in real pools.
fn rows(seed: u64, n: usize) -> Matrix {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let centres: Vec<f32> = (0..64 * D).map(|_| uniform()).collect();
    let values = (0..n * D).map(|place| centres[place / D % 64 * D + place % D] + 1.5 * uniform());
    unit_rows(Matrix::new(values.collect(), D))
}

fn refs(shard_idx: u32, n: usize) -> Vec<SampleRef> {
    (0..n as u64).map(|sample_idx| SampleRef { shard_idx, sample_idx }).collect()
}

fn ids(shard: &'static str, n: usize) -> Vec<SampleId<'static>> {
    (0..n as u64).map(|sample_idx| SampleId { shard, sample_idx }).collect()
}

impl Bench {
    fn of_environment() -> Bench {
        let (n, n_in_cluster) = match std::env::var("SUPERBATCH_BENCH").as_deref() {
            Ok("full") => (65_536, 16_384),
            _ => (4096, 4096),
        };
        Bench {
            images: rows(1, n),
            captions: rows(2, n),
            ids: ids("a", n),
            centroids: rows(3, N_CENTROIDS),
            banks: [4, 5, 6].map(|seed| rows(seed, BANK_SIZE)),
            n_in_cluster,
        }
    }

    /// The products of all rows with all columns, a tall tile at a time, and nothing else.
    fn products(&self, sides: &[(&Matrix, &Matrix)]) {
        let n_columns = sides[0].1.n_rows();
        map_strips(n_columns, |tile: &mut Tile, strip| {
            for (rows, columns) in sides {
                fill(tile, rows, 0..rows.n_rows(), columns, strip.clone());
            }
        });
    }

    fn assign(&self) {
        black_box(assign(&self.images, &self.centroids));
    }

    fn products_of_assign(&self) {
        self.products(&[(&self.centroids, &self.images)]);
    }

    fn hardness(&self, has_captions: bool) {
        let [cluster, pool, bank_captions] = &self.banks;
        let samples = |ids, images, captions: Option<_>| Samples {
            ids,
            images,
            captions: captions.filter(|_| has_captions),
            caption_hashes: None,
        };
        let (ids, of_cluster, of_pool) = (refs(0, self.ids.len()), refs(0, BANK_SIZE), refs(1, BANK_SIZE));
        let queries = samples(&ids, &self.images, Some(&self.captions));
        let (cluster, pool) =
            (samples(&of_cluster, cluster, Some(bank_captions)), samples(&of_pool, pool, None));
        let indices = [BankIndex::of(&cluster), BankIndex::of(&pool)];
        let banks = Banks {
            cluster: Bank { samples: cluster, index: &indices[0] },
            pool: Bank { samples: pool, index: &indices[1] },
        };
        black_box(hardness(&queries, &banks, &HardnessParams::default()));
    }

    fn products_of_hardness(&self, has_captions: bool) {
        let [cluster, pool, bank_captions] = &self.banks;
        let images = [(cluster, &self.images), (pool, &self.images)];
        let captions = [(bank_captions, &self.images), (cluster, &self.captions)];
        let n_captions = if has_captions { captions.len() } else { 0 };
        self.products(&[&images, &captions[..n_captions]].concat());
    }

    fn semdedup(&self) {
        let n = self.n_in_cluster;
        let images = Matrix::new(self.images.values()[..n * D].to_vec(), D);
        let similarities: Vec<f32> = (0..n).map(|row| (row * 37 % 101) as f32).collect();
        black_box(semdedup(&self.ids[..n], &images, &similarities, 0.05));
    }

    fn products_of_semdedup(&self) {
        map_strips(self.n_in_cluster, |tile: &mut Tile, strip| {
            fill(tile, &self.images, 0..strip.end, &self.images, strip.clone());
        });
    }
}

fn fill(tile: &mut Tile, rows: &Matrix, range: Range<usize>, columns: &Matrix, strip: Range<usize>) {
    for range in tall_ranges(range.end) {
        tile.fill(rows, range, columns, strip.clone());
        black_box(tile.values());
    }
}

/// What is timed, under its name.
type Timed<'a> = (&'static str, &'a dyn Fn());

fn time(criterion: &mut Criterion<CpuTime>, pairs: &[(Timed, Timed)]) {
    let mut group = criterion.benchmark_group("divide");
    group.sample_size(10);
    for ((name, kernel), (name_of_floor, floor)) in pairs {
        group.bench_function(*name, |bencher| bencher.iter(kernel));
        group.bench_function(*name_of_floor, |bencher| bencher.iter(floor));
    }
    group.finish();
}

/// Prints how many times the products' time a kernel takes, run in turns.
fn print_ratios(pairs: &[(Timed, Timed)]) {
    const N_TURNS: usize = 11;
    println!("\n| kernel | time over its products alone |\n|---|---|");
    for ((name, kernel), (_, floor)) in pairs {
        println!("| {name} | {} |", ratio_of_turns(N_TURNS, floor, kernel));
    }
}

fn main() {
    let n_threads =
        std::env::var("SUPERBATCH_BENCH_THREADS").map_or(1, |n| n.parse().expect("a number of threads"));
    let bench = Bench::of_environment();
    let pairs: [(Timed, Timed); 4] = [
        (("assign", &|| bench.assign()), ("products of assign", &|| bench.products_of_assign())),
        (
            ("hardness, images", &|| bench.hardness(false)),
            ("products of hardness, images", &|| bench.products_of_hardness(false)),
        ),
        (
            ("hardness, images and captions", &|| bench.hardness(true)),
            ("products of hardness, images and captions", &|| bench.products_of_hardness(true)),
        ),
        (("semdedup", &|| bench.semdedup()), ("products of semdedup", &|| bench.products_of_semdedup())),
    ];
    rayon::ThreadPoolBuilder::new().num_threads(n_threads).build_global().unwrap();
    let mut criterion = Criterion::default().with_measurement(CpuTime).configure_from_args();
    time(&mut criterion, &pairs);
    criterion.final_summary();
    print_ratios(&pairs);
}
