//! Our numbers against those of independent Python: `oracle/golden_noise.py` and `oracle/golden_kernels.py` write the
//! files that are read here, from the formulas and in f64.

#[path = "support/golden.rs"]
mod support;

use serde::Deserialize;
use superbatch::divide::{
    Bank, BankIndex, Banks, FitParams, HardnessParams, Samples, assign, exclusions, hardness, refine,
};
use superbatch::engine::Engine;
use superbatch::noise::{DrawKey, Purpose, gumbel, keyed_hash};
use superbatch::sample::SampleRef;
use superbatch::select::{
    Chance, DrawPlan, FilterRatio, Objective, PassKey, batch_learnability, chunk_sizes, draw,
    hard_learnability, kept_in, super_batch_sizes,
};
use support::{Pool, assert_close, golden};

const KERNELS: &str = "oracle/golden/kernels.json";

#[derive(Deserialize)]
struct NoiseFile {
    noise: Vec<NoiseVector>,
    hashes: Vec<HashVector>,
}

#[derive(Deserialize)]
struct NoiseVector {
    seed: u64,
    round: u64,
    pass_: u64,
    chunk: u64,
    shard: String,
    sample_idx: u64,
    gumbel: f64,
}

#[derive(Deserialize)]
struct HashVector {
    purpose: String,
    seed: u64,
    round: u64,
    shard: String,
    sample_idx: u64,
    hash: u64,
}

#[test]
fn noise_and_keyed_hashes() {
    let NoiseFile { noise, hashes } = golden("oracle/golden/noise.json");
    for vector in &noise {
        let key = DrawKey { seed: vector.seed, round: vector.round, pass: vector.pass_, chunk: vector.chunk };
        assert_close(
            gumbel(key, &vector.shard, vector.sample_idx),
            vector.gumbel,
            1e-13 * (1.0 + vector.gumbel.abs()),
        );
    }
    for vector in &hashes {
        let purpose = match vector.purpose.as_str() {
            "deal_shards" => Purpose::DealShards,
            "deal_samples" => Purpose::DealSamples,
            "fit" => Purpose::Fit,
            "seeding" => Purpose::Seeding,
            "bank" => Purpose::Bank,
            "control" => Purpose::Control,
            other => panic!("no purpose `{other}`"),
        };
        let hash = keyed_hash(purpose, vector.seed, vector.round, &vector.shard, vector.sample_idx);
        assert_eq!(hash, vector.hash);
    }
    assert_eq!((noise.len(), hashes.len()), (20, 20));
}

#[derive(Deserialize)]
struct Kernels {
    draws: Vec<GoldenDraw>,
    k_means: GoldenKMeans,
    hardness: Vec<GoldenHardness>,
    counts: GoldenCounts,
}

#[derive(Deserialize)]
struct GoldenDraw {
    scoring: String,
    sub_batch_size: usize,
    n_chunks: usize,
    gain: f64,
    chance: String,
    seed: u64,
    round: u64,
    pass_: u64,
    scores: Vec<f64>,
    drawn: Vec<GoldenDrawn>,
    batch_learnability: f64,
}

#[derive(Deserialize)]
struct GoldenDrawn {
    row: usize,
    chunk: usize,
    conditional_score: f64,
    /// Sum of the absolute values of the terms of the logit.
    terms: f64,
}

#[derive(Deserialize)]
struct GoldenKMeans {
    start: Vec<usize>,
    clusters: Vec<u32>,
    similarities: Vec<f64>,
    margins: Vec<f64>,
    objective: f64,
}

#[derive(Deserialize)]
struct GoldenHardness {
    queries: Vec<usize>,
    cluster_bank: Vec<usize>,
    pool_bank: Vec<usize>,
    temperature: f32,
    near_duplicate_similarity: f32,
    sub_batch_size: usize,
    columns: Vec<GoldenColumns>,
}

#[derive(Deserialize)]
struct GoldenColumns {
    n_negatives: usize,
    n_false_negatives: usize,
    hardness: f64,
    hardness_gain: Option<f64>,
    cross_modal_hardness: f64,
    effective_negatives: f64,
    hardest_negative_similarity: f64,
    hardest_negative: usize,
    hard_learnability: f64,
}

#[derive(Deserialize)]
struct GoldenCounts {
    kept: Vec<(String, u64, u64)>,
    super_batch_sizes: Vec<(usize, usize, Vec<usize>)>,
    kept_in: Vec<(u64, u64, Vec<u64>, Vec<u64>)>,
    chunk_sizes: Vec<(usize, usize, Vec<usize>)>,
}

fn samples<'a>(pool: &'a Pool, ids: &'a [SampleRef]) -> Samples<'a> {
    Samples {
        ids,
        images: &pool.learner.0,
        captions: Some(&pool.learner.1),
        caption_hashes: Some(&pool.caption_hashes),
    }
}

#[test]
fn joint_draws() {
    let Kernels { draws, .. } = golden(KERNELS);
    let pool = Pool::read(Objective::Sigmoid);
    for golden in &draws {
        let scoring = pool.scoring(&golden.scoring);
        let chance = if golden.chance == "top_k" { Chance::TopK } else { Chance::Gumbel };
        let key = PassKey { seed: golden.seed, round: golden.round, pass: golden.pass_ };
        let &GoldenDraw { sub_batch_size, n_chunks, gain, .. } = golden;
        let drawn = draw(&pool.ids(), &scoring, &DrawPlan { sub_batch_size, n_chunks, gain, chance, key });
        for (score, expected) in drawn.scores.iter().zip(&golden.scores) {
            assert_close(*score, *expected, 1e-12);
        }
        assert_eq!(drawn.drawn.len(), golden.drawn.len());
        for (draw_rank, (drawn, expected)) in drawn.drawn.iter().zip(&golden.drawn).enumerate() {
            assert_eq!((drawn.row, drawn.chunk, drawn.draw_rank), (expected.row, expected.chunk, draw_rank));
            assert_close(drawn.conditional_score, expected.conditional_score, 2e-6 * (1.0 + expected.terms));
        }
        let rows: Vec<usize> = drawn.drawn.iter().map(|drawn| drawn.row).collect();
        let bound = 1e-5 * (1.0 + golden.batch_learnability.abs());
        assert_close(batch_learnability(&scoring, &rows), golden.batch_learnability, bound);
    }
}

#[test]
fn k_means_from_given_centroids() {
    let Kernels { k_means, .. } = golden(KERNELS);
    let points = Pool::read(Objective::Sigmoid).learner.0;
    let params = FitParams {
        n_clusters: k_means.start.len(),
        n_iterations_max: 100,
        tolerance: 0.0,
        ..FitParams::default()
    };
    let fit = refine(&Engine::Kernels, &points, points.gather(&k_means.start), &params).unwrap();
    assert_close(fit.objective, k_means.objective, 1e-5);
    for (point, assignment) in assign(&points, &fit.centroids).iter().enumerate() {
        assert_eq!(assignment.cluster, k_means.clusters[point]);
        assert_close(f64::from(assignment.centroid_similarity), k_means.similarities[point], 1e-6);
        assert_close(f64::from(assignment.centroid_margin.unwrap()), k_means.margins[point], 2e-6);
    }
}

#[test]
fn hardness_against_banks() {
    let Kernels { hardness: blocks, .. } = golden(KERNELS);
    let all = Pool::read(Objective::Sigmoid);
    for golden in &blocks {
        let [queries, cluster, pool] =
            [&golden.queries, &golden.cluster_bank, &golden.pool_bank].map(|rows| all.at(rows));
        let [query_ids, cluster_ids, pool_ids] = [&queries, &cluster, &pool].map(|part| part.refs(&all));
        let &GoldenHardness { temperature, near_duplicate_similarity, sub_batch_size, .. } = golden;
        let params = HardnessParams { temperature, near_duplicate_similarity };
        let (of_cluster, of_pool) = (samples(&cluster, &cluster_ids), samples(&pool, &pool_ids));
        let indices = [BankIndex::of(&of_cluster), BankIndex::of(&of_pool)];
        let banks = Banks {
            cluster: Bank { samples: of_cluster, index: &indices[0] },
            pool: Bank { samples: of_pool, index: &indices[1] },
        };
        let query_samples = samples(&queries, &query_ids);
        let columns = hardness(&query_samples, &banks, &params);
        let exclusions = exclusions(&query_samples, &banks.cluster, &params);
        let (learnable, bank) = (queries.scoring("learnability"), cluster.scoring("learnability"));
        let shares = hard_learnability(&learnable, &bank, &exclusions, sub_batch_size);
        assert_eq!(columns.len(), golden.columns.len());
        for ((found, share), expected) in columns.iter().zip(shares).zip(&golden.columns) {
            assert_eq!(found.n_negatives, expected.n_negatives);
            assert_eq!(found.n_false_negatives, expected.n_false_negatives);
            let negatives = found.negatives.unwrap();
            assert_close(negatives.hardness, expected.hardness, 1e-6);
            assert_eq!(negatives.hardness_gain.is_some(), expected.hardness_gain.is_some());
            assert_close(negatives.hardness_gain.unwrap_or(0.0), expected.hardness_gain.unwrap_or(0.0), 1e-6);
            assert_close(negatives.cross_modal_hardness.unwrap(), expected.cross_modal_hardness, 1e-6);
            let bound = 1e-5 * expected.effective_negatives;
            assert_close(negatives.effective_negatives, expected.effective_negatives, bound);
            let similarity = f64::from(negatives.hardest_negative_similarity);
            assert_close(similarity, expected.hardest_negative_similarity, 1e-6);
            assert_eq!(golden.cluster_bank[negatives.hardest_negative], expected.hardest_negative);
            let bound = 1e-5 * (1.0 + expected.hard_learnability.abs());
            assert_close(share.unwrap(), expected.hard_learnability, bound);
        }
    }
}

#[test]
fn counts() {
    let Kernels { counts, .. } = golden(KERNELS);
    for (ratio, n, kept) in &counts.kept {
        assert_eq!(ratio.parse::<FilterRatio>().unwrap().kept(*n), *kept, "{ratio} of {n}");
    }
    for (n, super_batch_size, sizes) in &counts.super_batch_sizes {
        assert_eq!(super_batch_sizes(*n, *super_batch_size), *sizes);
    }
    for (n_samples, n_kept, cuts, kept) in &counts.kept_in {
        let found: Vec<u64> =
            cuts.windows(2).map(|cut| kept_in(cut[0]..cut[1], *n_kept, *n_samples)).collect();
        assert_eq!(found, *kept);
    }
    for (sub_batch_size, n_chunks, sizes) in &counts.chunk_sizes {
        assert_eq!(chunk_sizes(*sub_batch_size, *n_chunks), *sizes);
    }
}
