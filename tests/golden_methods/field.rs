//! The methods of the field that users compare with: METHODS §6.

use std::collections::BTreeMap;

use serde::Deserialize;
use superbatch::sample::SampleRef;
use superbatch::select::{
    Chance, Cutoff, FilterRatio, IndependentPlan, NEG_CLIP_BATCH_SIZE, Objective, Precision, Ranked,
    SoftCapPlan, cutoffs, draw_independent, draw_soft_cap, draw_uniform, full_loss_scores,
    nearest_evaluation, neg_clip_scores, norm_sim, rank_of, semdedup,
};
use superbatch::settings::{Norm, Ranking};

use super::pool::{Logits, Pool, Scored, ScoringName, assert_all_close, assert_close, golden, key, matrix};

#[derive(Deserialize)]
struct File {
    full_loss: Vec<FullLoss>,
    clip_score: ClipScore,
    neg_clip_loss: Vec<NegClipLoss>,
    norm_sim: NormSim,
    decontaminate: Decontaminate,
    sem_dedup: SemDedup,
    soft_cap: Vec<SoftCap>,
    random: Random,
}

#[derive(Deserialize)]
struct FullLoss {
    objective: Objective,
    scoring: ScoringName,
    learner: Logits,
    reference: Logits,
    rows: Vec<usize>,
    sub_batch_size: usize,
    shares: Vec<f64>,
    picks: Vec<usize>,
    gap: f64,
}

#[derive(Deserialize)]
struct ClipScore {
    scores: Vec<f32>,
    ids: Vec<(String, u64)>,
    fractions: Vec<Fraction>,
    thresholds: Vec<Threshold>,
}

#[derive(Deserialize)]
struct Fraction {
    fraction: String,
    n_pool: u64,
    kept: Vec<usize>,
}

#[derive(Deserialize)]
struct Threshold {
    threshold: f64,
    kept: Vec<usize>,
}

#[derive(Deserialize)]
struct NegClipLoss {
    temperature: f64,
    batch_size: usize,
    partitions: Vec<Vec<Vec<usize>>>,
    scores: Vec<f64>,
}

#[derive(Deserialize)]
struct NormSim {
    targets: Vec<Vec<f32>>,
    p_2: Vec<f64>,
    p_infinity: Vec<f64>,
}

#[derive(Deserialize)]
struct Decontaminate {
    threshold: f64,
    sets: BTreeMap<String, Vec<Vec<f32>>>,
    nearest: BTreeMap<String, Vec<f64>>,
    dropped: Vec<usize>,
    n_by_set: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct SemDedup {
    clusters: Vec<usize>,
    centroids: Vec<Vec<f32>>,
    centroid_similarities: Vec<f64>,
    cases: Vec<SemDedupCase>,
}

#[derive(Deserialize)]
struct SemDedupCase {
    epsilon: f64,
    dropped: Vec<Duplicate>,
}

#[derive(Deserialize)]
struct Duplicate {
    row: usize,
    before: Vec<usize>,
    most_similar: usize,
}

#[derive(Deserialize)]
struct SoftCap {
    name: String,
    scores: Vec<f64>,
    n_total: usize,
    draw_size: usize,
    penalty: f64,
    seed: u64,
    repeats: Vec<Vec<usize>>,
    n_repeats: Vec<usize>,
}

#[derive(Deserialize)]
struct Random {
    seed: u64,
    n_kept: usize,
    picks: Vec<usize>,
}

#[test]
fn full_loss() {
    let (pool, file): (Pool, File) = (Pool::read(), golden("field"));
    for case in &file.full_loss {
        let &FullLoss { objective, scoring, learner, reference, sub_batch_size, .. } = case;
        let by = Scored { objective, scoring, learner, reference };
        let members = pool.at(&case.rows);
        let shares = full_loss_scores(&members.scoring(&by), sub_batch_size);
        let scale = learner.logit_scale + reference.logit_scale;
        let tolerance = |share: f64| 1e-5 * (1.0 + share.abs()) + 5e-7 * scale * sub_batch_size as f64;
        assert_all_close(&shares, &case.shares, tolerance);

        let plan = IndependentPlan { sub_batch_size, gain: 1.0, chance: Chance::TopK, key: key(0) };
        let drawn = draw_independent(&members.ids(), &shares, &vec![false; case.rows.len()], &plan);
        let drawn: Vec<usize> = drawn.iter().map(|drawn| drawn.row).collect();
        assert!(case.gap > 2.0 * tolerance(case.shares[case.picks[sub_batch_size - 1]]));
        let sorted = |rows: &[usize]| {
            let mut rows = rows.to_vec();
            rows.sort_unstable();
            rows
        };
        assert_eq!(sorted(&drawn), sorted(&case.picks));
    }
}

/// The filter ratio that keeps a fraction, as exact decimals; none for the fraction 0.
fn ratio_that_keeps(fraction: &str) -> Option<FilterRatio> {
    let decimals = fraction.split_once('.').map_or("", |(_, decimals)| decimals);
    let one = 10u64.pow(decimals.len() as u32);
    let kept: u64 = fraction.replace('.', "").parse().unwrap();
    (kept > 0).then(|| format!("0.{:0width$}", one - kept, width = decimals.len()).parse().unwrap())
}

#[test]
fn clip_score_keeps_an_exact_fraction() {
    let case = golden::<File>("field").clip_score;
    let mut shards: Vec<&str> = case.ids.iter().map(|(shard, _)| shard.as_str()).collect();
    shards.sort_unstable();
    shards.dedup();
    let sample = |(shard, sample_idx): &(String, u64)| SampleRef {
        shard_idx: shards.binary_search(&shard.as_str()).unwrap() as u32,
        sample_idx: *sample_idx,
    };
    let samples: Vec<SampleRef> = case.ids.iter().map(sample).collect();
    let rank = |row: usize| rank_of(Some(f64::from(case.scores[row])), Ranking::Highest);
    // a stream comes in the order of the ids
    let mut in_order: Vec<usize> = (0..samples.len()).collect();
    in_order.sort_by_key(|row| samples[*row]);
    for fraction in &case.fractions {
        let wanted = ratio_that_keeps(&fraction.fraction).map_or(0, |ratio| ratio.kept(fraction.n_pool));
        let cut: Cutoff = cutoffs(
            &[wanted],
            |sample: SampleRef| shards[sample.shard_idx as usize].to_owned(),
            |take| {
                in_order
                    .iter()
                    .for_each(|&row| take(Ranked { group: 0, rank: rank(row), sample: samples[row] }));
                Ok(())
            },
        )
        .unwrap()
        .remove(0);
        let passes = |row: &usize| {
            let (shard, sample_idx) = &case.ids[*row];
            cut.passes(rank(*row), shard, *sample_idx)
        };
        let kept: Vec<usize> = (0..samples.len()).filter(passes).collect();
        assert_eq!(kept, fraction.kept, "{} of {}", fraction.fraction, fraction.n_pool);
    }
    // no score is at a threshold
    for threshold in &case.thresholds {
        let above = rank_of(Some(threshold.threshold), Ranking::Highest);
        let kept: Vec<usize> = (0..samples.len()).filter(|row| rank(*row) < above).collect();
        assert_eq!(kept, threshold.kept);
    }
}

#[test]
fn neg_clip_loss_over_partitions() {
    let (pool, file): (Pool, File) = (Pool::read(), golden("field"));
    for case in &file.neg_clip_loss {
        let mut found = vec![0.0; 96];
        for batch in case.partitions.iter().flatten() {
            let members = pool.reference.at(batch);
            let scores =
                neg_clip_scores(&members.images, &members.captions, case.temperature, Precision::F32);
            for (row, score) in batch.iter().zip(scores) {
                found[*row] += score / case.partitions.len() as f64;
            }
        }
        // our scores are brought to batches of 32,768; another size shifts all of them alike
        let shift = case.temperature * (NEG_CLIP_BATCH_SIZE as f64 / case.batch_size as f64).ln();
        found.iter_mut().for_each(|score| *score += shift);
        assert_all_close(&found, &case.scores, |_| 1e-6);
    }
}

#[test]
fn norm_sim_of_both_norms() {
    let (pool, NormSim { targets, p_2, p_infinity }) = (Pool::read(), golden::<File>("field").norm_sim);
    let images = &pool.reference.images;
    assert_all_close(&norm_sim(images, &matrix(&targets), Norm::Two), &p_2, |_| 1e-6);
    assert_all_close(&norm_sim(images, &matrix(&targets), Norm::Infinity), &p_infinity, |_| 1e-6);
    // more targets than dimensions go through moments: the same targets four times are twice the norm
    let four_times: Vec<Vec<f32>> =
        [&targets, &targets, &targets, &targets].into_iter().flatten().cloned().collect();
    let doubled: Vec<f64> = p_2.iter().map(|norm| 2.0 * norm).collect();
    assert_all_close(&norm_sim(images, &matrix(&four_times), Norm::Two), &doubled, |_| 4e-6);
}

#[test]
fn decontamination() {
    let (pool, case) = (Pool::read(), golden::<File>("field").decontaminate);
    let mut is_dropped = [false; 96];
    for (name, set) in &case.sets {
        let nearest = nearest_evaluation(&pool.reference.images, &matrix(set));
        let similarities: Vec<f64> = nearest.iter().map(|nearest| f64::from(nearest.similarity)).collect();
        assert_all_close(&similarities, &case.nearest[name], |_| 1e-6);
        let is_near: Vec<bool> = similarities.iter().map(|similarity| *similarity > case.threshold).collect();
        assert_eq!(is_near.iter().filter(|near| **near).count(), case.n_by_set[name], "{name}");
        is_dropped.iter_mut().zip(is_near).for_each(|(dropped, near)| *dropped |= near);
    }
    assert_eq!((0..96).filter(|row| is_dropped[*row]).collect::<Vec<_>>(), case.dropped);
}

#[test]
fn semantic_duplicates() {
    let (pool, file): (Pool, File) = (Pool::read(), golden("field"));
    let SemDedup { clusters, centroids, centroid_similarities, cases } = file.sem_dedup;
    assert_eq!(centroids.len(), 3);
    let mut n_duplicates = 0;
    for case in &cases {
        let mut duplicate_of = vec![None; 96];
        for cluster in 0..3 {
            let rows: Vec<usize> = (0..96).filter(|row| clusters[*row] == cluster).collect();
            let members = pool.at(&rows);
            let similarities: Vec<f32> = rows.iter().map(|row| centroid_similarities[*row] as f32).collect();
            let found = semdedup(&members.ids(), &members.reference.images, &similarities, case.epsilon);
            for (row, duplicate) in rows.iter().zip(found) {
                duplicate_of[*row] = duplicate.map(|place| rows[place]);
            }
        }
        let dropped: Vec<usize> = (0..96).filter(|row| duplicate_of[*row].is_some()).collect();
        assert_eq!(dropped, case.dropped.iter().map(|dropped| dropped.row).collect::<Vec<_>>());
        for Duplicate { row, before, most_similar } in &case.dropped {
            let found = duplicate_of[*row].unwrap();
            assert!(before.contains(&found), "row {row} duplicates {found}, not one of {before:?}");
            assert_eq!(found, *most_similar, "row {row}");
            n_duplicates += 1;
        }
    }
    assert!(n_duplicates > 5);
}

#[test]
fn soft_cap() {
    let (pool, file): (Pool, File) = (Pool::read(), golden("field"));
    for case in &file.soft_cap {
        let n = case.scores.len();
        let plan = SoftCapPlan {
            n_draws: case.n_total,
            // a turn of ours is at most all samples, as the oracle takes it to be
            n_per_turn: case.draw_size.min(n),
            gain: 1.0,
            penalty: case.penalty,
            key: key(case.seed),
        };
        let found = draw_soft_cap(&pool.ids()[..n], &case.scores, &plan);
        let mut n_repeats = vec![0; n];
        found.iter().for_each(|sample| n_repeats[sample.first.row] = sample.n_repeats);
        assert_eq!(n_repeats, case.n_repeats, "{}", case.name);
        // in the order in which they came first, and when
        let mut firsts: Vec<(usize, usize)> = Vec::new();
        for (turn, picks) in case.repeats.iter().enumerate() {
            for &pick in picks {
                if firsts.iter().all(|(row, _)| *row != pick) {
                    firsts.push((pick, turn));
                }
            }
        }
        let found: Vec<(usize, usize)> =
            found.iter().map(|sample| (sample.first.row, sample.first.chunk)).collect();
        assert_eq!(found, firsts, "{}", case.name);
    }
}

#[test]
fn random_draws() {
    let (pool, Random { seed, n_kept, picks }) = (Pool::read(), golden::<File>("field").random);
    let drawn = draw_uniform(&pool.ids(), n_kept, key(seed));
    assert_eq!(drawn.iter().map(|drawn| drawn.row).collect::<Vec<_>>(), picks);
    assert_close(drawn[0].conditional_score, 0.0, 0.0);
}
