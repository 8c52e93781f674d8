//! What `benches/gpu/run` measures on a GPU beside the commands: `gpu parity MODEL…`, `gpu select`, `gpu kmeans`.
//!
//! `DEVICE` names another device than `cuda:0`, and `SCALE` divides the sizes, so that all of it also runs on the
//! processor: `DEVICE=cpu SCALE=64 gpu select`.

use std::env;
use std::path::Path;
use std::time::Instant;

use superbatch::algebra::Algebra;
use superbatch::divide::{FitParams, assign, assign_on, refine};
use superbatch::embed::{
    BatchOutputs, Encoders, InferenceSettings, Model, ModelChoice, ModelInputs, Sessions, open_shard,
};
use superbatch::engine::Engine;
use superbatch::error::Error;
use superbatch::matrix::{Matrix, dot};
use superbatch::noise::SampleId;
use superbatch::plan::Pool;
use superbatch::rank::Overlap;
use superbatch::runtime::{Device, Products};
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

/// The graphs of the algebra, on the processor too.
fn engine(products: Products) -> Result<Engine, Error> {
    Ok(Engine::Device(Box::new(Algebra::open(device().places()?[0], products)?)))
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
        let engine = engine(products)?;
        let (n, size) = (scaled(16_384), scaled(3_277));
        let (models, ids) = (super_batch(n, d), ids(n));
        let expected = draw(&ids, &scoring(&models), &plan(size));
        let found = draw_remaining_on(&engine, &ids, &scoring(&models), &vec![false; n], &plan(size))?;
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
        let engine = engine(products)?;
        for attempt in ["first", "second"] {
            let what = format!("{products:?}, B = {n}, b = {size}, {attempt} draw");
            timed(&what, || {
                draw_remaining_on(&engine, &ids, &scoring(&models), &vec![false; n], &plan(size))
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

/// k-means from given starts: a sixteenth of the size against the processor's kernels, then ten passes and an assignment
/// at full size for their times.
fn kmeans() -> Result<(), Error> {
    let (n, k, d) = (scaled(1_000_000), scaled(10_000), 768);
    let params = |n_clusters, n_iterations_max| FitParams {
        n_clusters,
        n_iterations_max,
        // no iteration is left out, whatever it brings
        tolerance: f64::NEG_INFINITY,
        ..FitParams::default()
    };
    let points = timed("making the points", || embeddings(n, d, 5, 1.0));
    let starts = |n: usize, k: usize| points.gather(&(0..k).map(|i| i * (n / k)).collect::<Vec<_>>());
    let (n_few, k_few) = (n / 16, (k / 16).max(2));
    let few = points.gather(&(0..n_few).collect::<Vec<_>>());
    let expected = refine(&Engine::Kernels, &few, starts(n_few, k_few), &params(k_few, 10))?;
    for products in [Products::Exact, Products::Tf32] {
        let engine = engine(products)?;
        let found = refine(&engine, &few, starts(n_few, k_few), &params(k_few, 10))?;
        let error = (found.objective / expected.objective - 1.0).abs();
        let clusters = assign(&few, &expected.centroids).into_iter().map(|assignment| assignment.cluster);
        let on_device = assign_on(&engine, &few, &expected.centroids)?.into_iter();
        let n_same = on_device.zip(clusters).filter(|(found, cluster)| found.cluster == *cluster).count();
        let share = n_same as f64 / n_few as f64;
        println!(
            "{products:?}, n = {n_few}, k = {k_few}: objective within {error:.2e}, {share:.5} in the same cluster"
        );
        let bound = if products == Products::Exact { 1e-4 } else { 1e-2 };
        assert!(error <= bound && share >= 0.98, "the device clusters otherwise");
        // what ran it, and on which nodes
        println!("{:?}", engine.numerics_of_nearest(None)?);
    }
    for products in [Products::Exact, Products::Tf32] {
        let engine = engine(products)?;
        for n_passes in [1, 11] {
            let what = format!("{products:?}, n = {n}, k = {k}: bringing the points and {n_passes} passes");
            let fit = timed(&what, || refine(&engine, &points, starts(n, k), &params(k, n_passes - 1)))?;
            println!("Σ(1 − cos) = {:.1} after {} moves", fit.objective, fit.n_iterations);
        }
        let what = format!("{products:?}, n = {n}, k = {k}: assignment of points that come from memory");
        timed(&what, || assign_on(&engine, &points, &starts(n, k)))?;
    }
    Ok(())
}
