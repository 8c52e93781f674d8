//! What `benches/gpu/run` measures on a GPU beside the commands: `gpu parity MODEL…`, `gpu select`, `gpu kmeans`.
//!
//! `DEVICE` names another device than `cuda:0`, and `SCALE` divides the sizes, so that all of it also runs on the
//! processor: `DEVICE=cpu SCALE=64 gpu select`.

use std::env;
use std::path::Path;
use std::time::Instant;

use superbatch::algebra::Algebra;
use superbatch::embed::{
    BatchOutputs, Encoders, InferenceSettings, Model, ModelChoice, ModelInputs, Sessions, open_shard,
};
use superbatch::error::Error;
use superbatch::matrix::{Matrix, dot};
use superbatch::noise::SampleId;
use superbatch::plan::Pool;
use superbatch::rank::Overlap;
use superbatch::runtime::{Device, Place, Products};
use superbatch::select::{
    Chance, DrawPlan, JointDraw, Learner, Objective, PairLoss, PairModel, PassKey, Reference, Scoring, draw,
    draw_remaining_on,
};
use superbatch::settings::{DEFAULT_MEMORY_LIMIT_BYTES, ReadSettings};

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match &args[..] {
        ["parity", models @ ..] => parity(models),
        ["select"] => select(),
        ["kmeans"] => kmeans(),
        _ => panic!("gpu parity MODEL… | gpu select | gpu kmeans"),
    };
    if let Err(error) = done {
        eprintln!("{}", error.message());
        std::process::exit(1);
    }
}

fn device() -> Device {
    env::var("DEVICE").map_or("cuda:0".parse().unwrap(), |name| name.parse().unwrap())
}

fn place() -> Result<Place, Error> {
    Ok(device().places()?[0])
}

fn scaled(size: usize) -> usize {
    size / env::var("SCALE").map_or(1, |scale| scale.parse().unwrap())
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    println!("{what}: {:.3} s", start.elapsed().as_secs_f64());
    result
}

/// Embeddings of the fixtures' samples on the processor and on the device, model by model.
fn parity(models: &[&str]) -> Result<(), Error> {
    let read = ReadSettings::of_shards(&["fixtures/pool/shard-0000{0..3}.tar".to_owned()]);
    let pool = Pool::find(&read)?;
    for folder in models {
        let model = Model::open(Path::new(folder), ModelChoice::default())?;
        let encoders = Encoders::new([&model], read.limits.clone())?;
        let mut inputs: Vec<ModelInputs> = Vec::new();
        for shard in &pool.shards {
            for sample in open_shard(&pool, shard, &read)? {
                let sample = sample.expect("the fixtures can be read");
                inputs.extend(encoders.decode(sample)?.inputs);
            }
        }
        let rows = |device| -> Result<Vec<Matrix>, Error> {
            let memory_limit_bytes = DEFAULT_MEMORY_LIMIT_BYTES;
            let inference = InferenceSettings { device, sessions: None, memory_limit_bytes };
            let mut sessions = Sessions::open(&model, &inference, 2, 64)?;
            println!(
                "{folder} on {}: nodes {}",
                sessions.model().towers.place(),
                sessions.model().towers.nodes()
            );
            let batches = sessions.embed(0, &inputs)?.into_iter();
            let images = batches.map(|batch| match batch.outputs {
                BatchOutputs::Pairs(pairs) => pairs.image.rows,
                BatchOutputs::Images(images) => images.rows,
                _ => panic!("a model of images"),
            });
            Ok(images.collect())
        };
        let (expected, found) = (flat(&rows(Device::Cpu)?), flat(&rows(device())?));
        let cosines = (0..expected.n_rows()).map(|row| dot(expected.row(row), found.row(row)));
        let lowest = cosines.fold(f32::INFINITY, f32::min);
        println!("{folder}: lowest cosine of {} images {lowest:.7}", expected.n_rows());
        assert!(lowest >= 0.9999, "the device embeds otherwise");
    }
    Ok(())
}

fn flat(batches: &[Matrix]) -> Matrix {
    let mut all = batches[0].clone();
    batches[1..].iter().for_each(|batch| all.append(batch));
    all
}

/// Unit rows around a few centres, seeded.
fn embeddings(n: usize, d: usize, seed: u64, spread: f32) -> Matrix {
    let mut rows = Matrix::zeros(n, d);
    for row in 0..n {
        for (column, value) in rows.row_mut(row).iter_mut().enumerate() {
            // every seed has the same centres
            *value = uniform(0, row % 1000 * d + column) + spread * uniform(seed, row * d + column);
        }
        let length = dot(rows.row(row), rows.row(row)).sqrt();
        rows.row_mut(row).iter_mut().for_each(|value| *value /= length);
    }
    rows
}

/// From −½ to ½: splitmix64.
fn uniform(seed: u64, place: usize) -> f32 {
    let mut z = (place as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (seed << 48);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32 - 0.5
}

/// Four sets of embeddings of one super-batch: learner's and reference's images and captions.
fn super_batch(n: usize, d: usize) -> [Matrix; 4] {
    [(1, 2.0), (2, 2.0), (3, 1.0), (4, 1.0)].map(|(seed, spread)| embeddings(n, d, seed, spread))
}

fn scoring(models: &[Matrix; 4]) -> Scoring<'_> {
    let objective = Objective::Sigmoid;
    let learner = PairLoss { logit_scale: 10.0, logit_bias: -10.0, objective };
    let reference = PairLoss { logit_scale: 20.0, logit_bias: -12.0, objective };
    Scoring::Learnability {
        learner: Learner(PairModel::new(&models[0], &models[1], learner)),
        reference: Reference(PairModel::new(&models[2], &models[3], reference)),
    }
}

fn plan(sub_batch_size: usize) -> DrawPlan {
    let key = PassKey { seed: 0, round: 0, pass: 0 };
    DrawPlan { sub_batch_size, n_chunks: 16, gain: 1.0, chance: Chance::Gumbel, key }
}

fn ids(n: usize) -> Vec<SampleId<'static>> {
    (0..n as u64).map(|sample_idx| SampleId { shard: "pool", sample_idx }).collect()
}

/// The draw at a tenth of the size against the processor's kernels, and at full size for its time.
fn select() -> Result<(), Error> {
    let d = 768;
    for products in [Products::Exact, Products::Tf32] {
        let algebra = Algebra::open(place()?, products)?;
        let (n, size) = (scaled(16_384), scaled(3_277));
        let (models, ids) = (super_batch(n, d), ids(n));
        let expected = draw(&ids, &scoring(&models), &plan(size));
        let found = draw_remaining_on(&algebra, &ids, &scoring(&models), &vec![false; n], &plan(size))?;
        let overlap = Overlap::of_sorted(&kept(&found), &kept(&expected)).share().unwrap_or(1.0);
        let error = found.drawn.iter().filter_map(|drawn| {
            let same = expected.drawn.iter().find(|of| (of.row, of.chunk) == (drawn.row, drawn.chunk))?;
            let scale = 1.0 + same.conditional_score.abs();
            Some((drawn.conditional_score - same.conditional_score).abs() / scale)
        });
        let error = error.fold(0.0, f64::max);
        println!(
            "{products:?}: overlap of the kept {overlap:.4}, largest error of a score {error:.2e}·(1 + |x|)"
        );
        assert!(overlap >= 0.98 && error <= 1e-2, "the device draws otherwise");
    }
    let (n, size) = (scaled(163_840), scaled(32_768));
    let (models, ids) = timed("making the embeddings", || (super_batch(n, d), ids(n)));
    for products in [Products::Exact, Products::Tf32] {
        let algebra = Algebra::open(place()?, products)?;
        for attempt in ["first", "second"] {
            let what = format!("{products:?}, B = {n}, b = {size}, {attempt} draw");
            timed(&what, || {
                draw_remaining_on(&algebra, &ids, &scoring(&models), &vec![false; n], &plan(size))
            })?;
        }
    }
    Ok(())
}

fn kept(draw: &JointDraw) -> Vec<usize> {
    let mut rows: Vec<usize> = draw.drawn.iter().map(|drawn| drawn.row).collect();
    rows.sort_unstable();
    rows
}

/// Ten passes of k-means: the nearest centroids on the device, the new centroids on the processor.
fn kmeans() -> Result<(), Error> {
    let (n, k, d) = (scaled(1_000_000), scaled(10_000), 768);
    let points = timed("making the points", || embeddings(n, d, 5, 1.0));
    let algebra = Algebra::open(place()?, Products::Tf32)?;
    let resident = timed("to the device", || algebra.keep(&points))?;
    let mut centroids = points.gather(&(0..k).map(|i| i * (n / k)).collect::<Vec<_>>());
    for pass in 0..10 {
        let nearest = timed(&format!("pass {pass}, assignment"), || algebra.nearest(&resident, &centroids))?;
        let objective: f64 = nearest.iter().map(|nearest| 1.0 - f64::from(nearest.similarity)).sum();
        println!("pass {pass}, Σ(1 − cos) = {objective:.1}");
        let mut sums = Matrix::zeros(k, d);
        for (row, nearest) in nearest.iter().enumerate() {
            let sum = sums.row_mut(nearest.centroid as usize);
            sum.iter_mut().zip(points.row(row)).for_each(|(sum, value)| *sum += value);
        }
        for cluster in 0..k {
            let length = dot(sums.row(cluster), sums.row(cluster)).sqrt();
            if length > 0.0 {
                let direction: Vec<f32> = sums.row(cluster).iter().map(|value| value / length).collect();
                centroids.row_mut(cluster).copy_from_slice(&direction);
            }
        }
    }
    Ok(())
}
