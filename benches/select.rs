//! Joint selection beside its own products without any loss, and beside one big matrix product of the same work.
//!
//! ```text
//! cargo bench --bench select                                        B = 4,096, b = 1,024 in 4 chunks
//! SUPERBATCH_BENCH=full cargo bench --bench select                  B = 20,480, b = 4,096 in 16 chunks
//! SUPERBATCH_BENCH_THREADS=8 cargo bench --bench select             on 8 threads; 1 if absent
//! ```
//!
//! Two models, d = 512. Times are CPU time of all threads. After Criterion's comes a Markdown table of ratios, of what ran in
//! turns.

mod cpu_time;

use std::hint::black_box;

use criterion::Criterion;
use gemm::Parallelism;
use pulp::Simd;
use rayon::prelude::*;

use cpu_time::{CpuTime, ratio_of_turns};
use superbatch::fold::{Fold, PackedRows, Precision, Strip, lanes};
use superbatch::matrix::Matrix;
use superbatch::noise::{Purpose, SampleId, keyed_hash};
use superbatch::select::{
    Chance, DrawPlan, Learner, Objective, PairLoss, PairModel, PassKey, Reference, Scoring, chunk_sizes, draw,
};

const D: usize = 512;

struct Sizes {
    super_batch: usize,
    sub_batch: usize,
    n_chunks: usize,
}

impl Sizes {
    fn of_environment() -> Sizes {
        match std::env::var("SUPERBATCH_BENCH").as_deref() {
            Ok("full") => Sizes { super_batch: 20_480, sub_batch: 4096, n_chunks: 16 },
            _ => Sizes { super_batch: 4096, sub_batch: 1024, n_chunks: 4 },
        }
    }
}

impl Sizes {
    /// Rows and columns of one product with as many values as all the chunks' together: each chunk but the last meets
    /// every sample that is not drawn yet.
    fn big(&self) -> (usize, usize) {
        let chunks = chunk_sizes(self.sub_batch, self.n_chunks);
        let mut n_drawn = 0;
        let n_products: usize = chunks[..chunks.len() - 1]
            .iter()
            .map(|size| {
                n_drawn += size;
                size * (self.super_batch - n_drawn)
            })
            .sum();
        (n_drawn, n_products / n_drawn)
    }
}

/// Images and captions of the learner, then of the reference.
struct Embeddings([Matrix; 4]);

impl Embeddings {
    fn random(n: usize) -> Embeddings {
        Embeddings([1, 2, 3, 4].map(|seed| random_unit_rows(n, seed)))
    }

    fn scoring(&self, objective: Objective, precision: Precision) -> Scoring<'_> {
        let [x, y, x_reference, y_reference] = &self.0;
        let loss = PairLoss { logit_scale: 20.0, logit_bias: -10.0, objective };
        let model = |images, captions| PairModel::new(images, captions, loss).with_precision(precision);
        Scoring::Learnability {
            learner: Learner(model(x, y)),
            reference: Reference(model(x_reference, y_reference)),
        }
    }
}

fn random_unit_rows(n: usize, seed: u64) -> Matrix {
    let mut rows = Matrix::zeros(n, D);
    (0..n).for_each(|row| {
        let bits = |column| keyed_hash(Purpose::Control, seed, 0, "", (row * D + column) as u64);
        let values: Vec<f32> = (0..D).map(|column| bits(column) as f32 / 2f32.powi(64) - 0.5).collect();
        let length = values.iter().map(|value| value * value).sum::<f32>().sqrt();
        rows.row_mut(row).iter_mut().zip(values).for_each(|(to, value)| *to = value / length);
    });
    rows
}

/// What is left of the kernel where products are only added up.
#[derive(Clone, Copy)]
struct Sum;

impl Fold for Sum {
    type State<S: Simd> = S::f32s;

    #[inline(always)]
    fn start<S: Simd>(self, simd: S) -> S::f32s {
        simd.splat_f32s(0.0)
    }

    #[inline(always)]
    fn add<S: Simd, const N: usize>(self, simd: S, sums: S::f32s, products: [S::f32s; N]) -> S::f32s {
        let mut sums = sums;
        for product in &products {
            sums = simd.add_f32s(sums, *product);
        }
        sums
    }

    #[inline(always)]
    fn merge<S: Simd>(self, _: S, sums: S::f32s, total: f64) -> f64 {
        total + lanes::<S>(&sums).iter().map(|sum| f64::from(*sum)).sum::<f64>()
    }
}

struct Bench {
    sizes: Sizes,
    embeddings: Embeddings,
    n_threads: usize,
}

impl Bench {
    fn draw(&self, objective: Objective, precision: Precision, chance: Chance) {
        let Sizes { super_batch, sub_batch, n_chunks } = self.sizes;
        let ids: Vec<SampleId> =
            (0..super_batch as u64).map(|sample_idx| SampleId { shard: "00000.tar", sample_idx }).collect();
        let key = PassKey { seed: 0, round: 0, pass: 0 };
        let plan = DrawPlan { sub_batch_size: sub_batch, n_chunks, gain: 1.0, chance, key };
        black_box(draw(&ids, &self.embeddings.scoring(objective, precision), &plan));
    }

    /// The pairs of each sample with every drawn one but those of the last chunk: four sets, a direction of a model each.
    fn sets(&self) -> [(&Matrix, &Matrix); 4] {
        let [x, y, x_reference, y_reference] = &self.embeddings.0;
        [(y, x), (x, y), (y_reference, x_reference), (x_reference, y_reference)]
    }

    /// The products that the draw takes, chunk by chunk, without losses.
    fn products(&self, precision: Precision) {
        let chunks = chunk_sizes(self.sizes.sub_batch, self.sizes.n_chunks);
        let mut start = 0;
        for size in &chunks[..chunks.len() - 1] {
            let rows = start..start + size;
            start = rows.end;
            let rest: Vec<usize> = (start..self.sizes.super_batch).collect();
            for (all_rows, columns) in self.sets() {
                let packed = PackedRows::new(all_rows, rows.clone(), precision);
                let mut totals = vec![0.0; rest.len()];
                totals.par_chunks_mut(256).zip(rest.par_chunks(256)).for_each(|(totals, which)| {
                    let strip = Strip { columns, which, rows: rows.clone() };
                    packed.fold(Sum, &strip, |_, _| 0, totals);
                });
                black_box(totals);
            }
        }
    }

    /// As many products by the `gemm` crate, all of a set at once.
    fn big_gemm(&self) {
        let (n_rows, n_columns) = self.sizes.big();
        let parallelism = match self.n_threads {
            1 => Parallelism::None,
            n => Parallelism::Rayon(n),
        };
        let mut product = vec![0.0f32; n_rows * n_columns];
        for (rows, columns) in self.sets() {
            // SAFETY: [n_rows, D] times [D, n_columns] into [n_rows, n_columns], each as long as its slice.
            unsafe {
                gemm::gemm(
                    n_rows,
                    n_columns,
                    D,
                    product.as_mut_ptr(),
                    1,
                    n_columns as isize,
                    false,
                    rows.values().as_ptr(),
                    1,
                    D as isize,
                    columns.values().as_ptr(),
                    D as isize,
                    1,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    parallelism,
                );
            }
            black_box(&product);
        }
    }

    fn time(&self, criterion: &mut Criterion<CpuTime>) {
        let mut group = criterion.benchmark_group("select");
        group.sample_size(10);
        for (precision, name) in self.precisions() {
            for (objective, of) in [(Objective::Sigmoid, "sigmoid"), (Objective::Softmax, "softmax")] {
                group.bench_function(format!("draw {of} {name}"), |bencher| {
                    bencher.iter(|| self.draw(objective, precision, Chance::Gumbel));
                });
            }
            group.bench_function(format!("products {name}"), |bencher| {
                bencher.iter(|| self.products(precision));
            });
        }
        group.bench_function("big gemm", |bencher| bencher.iter(|| self.big_gemm()));
        group.finish();
    }

    fn precisions(&self) -> Vec<(Precision, &'static str)> {
        let all = [(Precision::F32, "f32"), (Precision::Bf16, "bf16")];
        all.into_iter().filter(|(precision, _)| precision.check().is_ok()).collect()
    }

    /// Speed of each draw relative to what it is set beside.
    fn print_ratios(&self) {
        const N_TURNS: usize = 9;
        let draw = |objective, precision| move || self.draw(objective, precision, Chance::Gumbel);
        println!(
            "\n| draw | its products alone | one big gemm in f32 | the draw in f32 |\n|---|---|---|---|"
        );
        for (precision, name) in self.precisions() {
            for (objective, of) in [(Objective::Sigmoid, "sigmoid"), (Objective::Softmax, "softmax")] {
                let fused = draw(objective, precision);
                let products = ratio_of_turns(N_TURNS, &fused, &|| self.products(precision));
                let gemm = ratio_of_turns(N_TURNS, &fused, &|| self.big_gemm());
                let in_f32 = match precision {
                    Precision::F32 => "1".to_owned(),
                    _ => ratio_of_turns(N_TURNS, &fused, &draw(objective, Precision::F32)),
                };
                println!("| {of}, {name} | {products} | {gemm} | {in_f32} |");
            }
        }
    }
}

fn main() {
    let n_threads =
        std::env::var("SUPERBATCH_BENCH_THREADS").map_or(1, |n| n.parse().expect("a number of threads"));
    let sizes = Sizes::of_environment();
    let bench = Bench { embeddings: Embeddings::random(sizes.super_batch), sizes, n_threads };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
    pool.install(|| {
        let mut criterion = Criterion::default().with_measurement(CpuTime).configure_from_args();
        bench.time(&mut criterion);
        criterion.final_summary();
        bench.print_ratios();
    });
}
