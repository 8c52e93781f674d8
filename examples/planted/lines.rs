//! A seed in, every line of the reference behaviours out: a name and a value each, named as in
//! `tests/oracle/planted.py`.

use superbatch::divide::{Bank, BankIndex, Banks, HardnessParams, Samples, hardness};
use superbatch::sample::SampleRef;
use superbatch::select::{Chance, DrawPlan, batch_learnability};

use super::baselines::{
    Gibbs, auc, effective_concepts, full_loss, independent, joint, key, share, similarity_gains, top, uniform,
};
use super::pools::{Kind, Pool, coarse_pool, noisy_pool, words};

const SUPER_BATCH: usize = 1280;
const SUB_BATCH: usize = 256;
const N_CHUNKS: usize = 16;
const N_POOL: usize = 5120;

pub type Lines = Vec<(String, f64)>;

/// Every line of one seed.
pub fn all(seed: u64) -> Lines {
    [noisy(seed), coarse(seed), filter_ratios(seed), reshuffled(seed), hardness_lines(seed)].concat()
}

fn plan(gain: f64, n_chunks: usize, seed: u64) -> DrawPlan {
    DrawPlan { sub_batch_size: SUB_BATCH, n_chunks, gain, chance: Chance::Gumbel, key: key(seed) }
}

fn first(pool: &Pool, n: usize) -> Pool {
    pool.at(&(0..n).collect::<Vec<_>>())
}

/// Where own pairs tell: a fifth of the captions swapped, a third of the pairs learnt.
pub fn noisy(seed: u64) -> Lines {
    let pool = noisy_pool(seed, N_POOL);
    let mut lines = Lines::new();
    for (name, scoring) in [
        ("hard_learner", pool.hard_learner()),
        ("easy_reference", pool.easy_reference()),
        ("learnability", pool.learnability()),
    ] {
        let scores = scoring.scores();
        let clean = |kind| kind != Kind::Mismatched;
        let value = auc_of_kind(&pool, &scores, clean);
        lines.push((format!("noisy: AUC(clean > mismatched), {name}"), value));
        let best = top(&pool, &scores, N_POOL / 5);
        for (kind_name, kind) in
            [("mismatched", Kind::Mismatched), ("learnt", Kind::Learnt), ("learnable", Kind::Learnable)]
        {
            lines.push((format!("noisy: top 20 % by {name}, {kind_name}"), share(&pool, &best, kind)));
        }
    }
    let super_batch = first(&pool, SUPER_BATCH);
    let scoring = super_batch.learnability();
    for gain in [1.0, 4.0] {
        let jointly = joint(&super_batch, &scoring, &plan(gain, N_CHUNKS, seed));
        let alone = independent(&super_batch, &scoring.scores(), SUB_BATCH, gain, Chance::Gumbel, seed);
        let ratio = batch_learnability(&scoring, &jointly) / batch_learnability(&scoring, &alone);
        lines.push((format!("noisy: joint / independent, gain {gain}"), ratio));
        for (name, rows) in [("joint", &jointly), ("independent", &alone)] {
            let learnt = share(&super_batch, rows, Kind::Learnt);
            lines.push((format!("noisy: learnt kept, {name}, gain {gain}"), learnt));
        }
    }
    lines.extend(swaps_kept("noisy", &super_batch, seed));
    lines.extend(active_clip(&super_batch, seed));
    lines
}

fn auc_of_kind(pool: &Pool, scores: &[f64], is_high: impl Fn(Kind) -> bool) -> f64 {
    let of = |wanted: bool| -> Vec<f64> {
        let samples = pool.kinds.iter().zip(scores);
        samples.filter(|(kind, _)| is_high(**kind) == wanted).map(|(_, score)| *score).collect()
    };
    auc(&of(true), &of(false))
}

/// Swapped captions among the kept: by JEST, at random, and by JEST with the models exchanged.
fn swaps_kept(name: &str, super_batch: &Pool, seed: u64) -> Lines {
    let drawn = [
        ("random", uniform(super_batch, SUB_BATCH, seed)),
        ("JEST", joint(super_batch, &super_batch.learnability(), &plan(1.0, N_CHUNKS, seed))),
        ("exchanged", joint(super_batch, &super_batch.exchanged(), &plan(1.0, N_CHUNKS, seed))),
    ];
    let line = |(who, rows): (&str, Vec<usize>)| {
        (format!("{name}: swaps kept, {who}"), share(super_batch, &rows, Kind::Mismatched))
    };
    drawn.into_iter().map(line).collect()
}

/// Swapped captions in the half that ActiveCLIP keeps.
fn active_clip(super_batch: &Pool, seed: u64) -> Lines {
    let (scores, half) = (similarity_gains(super_batch), SUPER_BATCH / 2);
    let mut kept: Vec<(String, Vec<usize>)> = [1.0, 10.0, 30.0]
        .map(|gain| {
            (format!("gain {gain}"), independent(super_batch, &scores, half, gain, Chance::Gumbel, seed))
        })
        .into();
    kept.push(("top-k".to_owned(), top(super_batch, &scores, half)));
    kept.into_iter()
        .map(|(who, rows)| {
            let swaps = share(super_batch, &rows, Kind::Mismatched);
            (format!("noisy: ActiveCLIP swaps kept, {who}"), swaps)
        })
        .collect()
}

/// Where own pairs do not tell: the learner takes the members of a concept for one another.
pub fn coarse(seed: u64) -> Lines {
    let pool = coarse_pool(seed, SUPER_BATCH);
    let scoring = pool.learnability();
    let own = scoring.scores();
    let mut lines: Lines = vec![
        (
            "coarse: AUC(learnable > others), learnability".to_owned(),
            auc_of_kind(&pool, &own, |kind| kind == Kind::Learnable),
        ),
        (
            "coarse: AUC(clean > mismatched), learnability".to_owned(),
            auc_of_kind(&pool, &own, |kind| kind != Kind::Mismatched),
        ),
    ];
    let gibbs = Gibbs::new(&pool);
    let random = uniform(&pool, SUB_BATCH, seed);
    let jointly = |gain| joint(&pool, &scoring, &plan(gain, N_CHUNKS, seed));
    let drawn = [
        ("random", random.clone()),
        ("independent", independent(&pool, &own, SUB_BATCH, 1.0, Chance::Gumbel, seed)),
        ("joint, gain 1", jointly(1.0)),
        ("joint, gain 2", jointly(2.0)),
        ("joint, gain 4", jointly(4.0)),
        ("joint, gain 8", jointly(8.0)),
        ("full-loss top-k", full_loss(&pool, &scoring, SUB_BATCH)),
        ("Gibbs", gibbs.draw(random.clone(), 1.0, seed)),
        ("Gibbs, gain 4", gibbs.draw(random.clone(), 4.0, seed)),
    ];
    for (who, rows) in &drawn {
        lines.push((format!("coarse: batch learnability, {who}"), batch_learnability(&scoring, rows)));
    }
    let rows_of = |wanted: &str| &drawn.iter().find(|(who, _)| *who == wanted).expect("one of these").1;
    for who in ["random", "joint, gain 1", "joint, gain 4", "full-loss top-k", "Gibbs"] {
        lines.push((format!("coarse: effective concepts, {who}"), effective_concepts(&pool, rows_of(who))));
    }
    for who in ["independent", "joint, gain 4"] {
        lines.push((format!("coarse: learnt kept, {who}"), share(&pool, rows_of(who), Kind::Learnt)));
    }
    lines.extend(swaps_kept("coarse", &pool, seed));

    // 0 = random, 1 = Gibbs on the same super-batch
    let low = batch_learnability(&scoring, &random);
    let high = batch_learnability(&scoring, &gibbs.draw(random, 2.0, seed));
    for n_chunks in [1, 2, 4, 8, 16, 32] {
        let found = batch_learnability(&scoring, &joint(&pool, &scoring, &plan(2.0, n_chunks, seed)));
        lines.push((format!("chunks: {n_chunks} of b = {SUB_BATCH}, gain 2"), (found - low) / (high - low)));
    }
    lines
}

/// Larger super-batches of one pool for the same sub-batch: 0 = random, 1 = Gibbs, both at half of it dropped.
pub fn filter_ratios(seed: u64) -> Lines {
    let pool = coarse_pool(seed, 10 * SUB_BATCH);
    let half = first(&pool, 2 * SUB_BATCH);
    let random = uniform(&half, SUB_BATCH, seed);
    let low = batch_learnability(&half.learnability(), &random);
    let high = batch_learnability(&half.learnability(), &Gibbs::new(&half).draw(random, 2.0, seed));
    let line = |(filter_ratio, times): (&str, usize)| {
        let super_batch = first(&pool, times * SUB_BATCH);
        let scoring = super_batch.learnability();
        let found = batch_learnability(&scoring, &joint(&super_batch, &scoring, &plan(2.0, N_CHUNKS, seed)));
        (format!("filter ratio: {filter_ratio}, gain 2"), (found - low) / (high - low))
    };
    [("0.5", 2), ("0.8", 5), ("0.9", 10)].into_iter().map(line).collect()
}

/// Positions in the order of a stream's words.
fn shuffled(seed: u64, stream: u64, n: usize) -> Vec<usize> {
    let words: Vec<u64> = words(seed, stream).take(n).collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_key(|&position| words[position]);
    order
}

/// Drawn sub-batches, the same rows reshuffled, and random ones; super-batches over the pool, or by concept.
pub fn reshuffled(seed: u64) -> Lines {
    let pool = coarse_pool(seed, N_POOL);
    let mut by_concept: Vec<usize> = (0..N_POOL).collect();
    by_concept.sort_by_key(|&row| pool.concepts[row]);
    let mut lines = Lines::new();
    for (name, order) in [("over the pool", (0..N_POOL).collect()), ("within concepts", by_concept)] {
        let ordered = pool.at(&order);
        let mut drawn: Vec<usize> = Vec::new();
        for (super_batch_idx, start) in (0..N_POOL).step_by(SUPER_BATCH).enumerate() {
            let super_batch = ordered.at(&(start..start + SUPER_BATCH).collect::<Vec<_>>());
            let plan = plan(2.0, N_CHUNKS, seed * 1000 + super_batch_idx as u64);
            drawn.extend(
                joint(&super_batch, &super_batch.learnability(), &plan).iter().map(|row| start + row),
            );
        }
        let dealt: Vec<usize> =
            shuffled(seed, 21, drawn.len()).into_iter().map(|position| drawn[position]).collect();
        let random = shuffled(seed, 22, N_POOL)[..drawn.len()].to_vec();
        for (what, rows) in [("drawn", &drawn), ("reshuffled", &dealt), ("random", &random)] {
            let sub_batches = rows.chunks(SUB_BATCH);
            let n = sub_batches.len() as f64;
            let sum: f64 = sub_batches.map(|rows| batch_learnability(&ordered.learnability(), rows)).sum();
            lines.push((format!("sub-batches: {name}, {what}, gain 2"), sum / n));
        }
    }
    lines
}

/// The mean hardness of the reference's images against 128 negatives, of 300 samples that have so many.
pub fn hardness_lines(seed: u64) -> Lines {
    const N: usize = 6000;
    const N_NEGATIVES: usize = 128;
    let pool = noisy_pool(seed, N);
    let ten = &shuffled(seed, 23, 100)[..10];
    let mut lines = Lines::new();
    for name in ["random", "union of ten concepts", "one concept"] {
        let mut found = Vec::new();
        for i in 0..N {
            if found.len() == 300 {
                break;
            }
            let own = pool.concepts[i];
            // its own concept and nine more
            let nine: Vec<usize> = ten.iter().copied().filter(|concept| *concept != own).take(9).collect();
            let is_inside = |concept: usize| match name {
                "random" => true,
                "one concept" => concept == own,
                _ => concept == own || nine.contains(&concept),
            };
            let inside: Vec<usize> =
                (0..N).filter(|&row| row != i && is_inside(pool.concepts[row])).collect();
            if inside.len() >= N_NEGATIVES {
                let order = shuffled(seed, 1_000_000 + i as u64, inside.len());
                let negatives: Vec<usize> = order[..N_NEGATIVES].iter().map(|&at| inside[at]).collect();
                found.push(hardness_against(&pool, i, &negatives));
            }
        }
        lines.push((format!("hardness: {name}"), found.iter().sum::<f64>() / found.len() as f64));
    }
    lines
}

/// The hardness of one sample's image among these, at τ = 0.1, whatever is near it.
fn hardness_against(pool: &Pool, row: usize, negatives: &[usize]) -> f64 {
    let rows = |rows: &[usize]| pool.reference.images.gather(rows);
    let ids = |rows: &[usize]| -> Vec<SampleRef> {
        rows.iter().map(|&row| SampleRef { shard_idx: 0, sample_idx: row as u64 }).collect()
    };
    let (query, query_ids) = (rows(&[row]), ids(&[row]));
    let (bank, bank_ids) = (rows(negatives), ids(negatives));
    let bank = Samples { ids: &bank_ids, images: &bank, captions: None, caption_hashes: None };
    let query = Samples { ids: &query_ids, images: &query, captions: None, caption_hashes: None };
    let params = HardnessParams { temperature: 0.1, near_duplicate_similarity: f32::INFINITY };
    let bank = Bank { samples: bank, index: &BankIndex::of(&bank) };
    let found = hardness(&query, &Banks { cluster: bank, pool: bank }, &params);
    found[0].negatives.expect("there are negatives").hardness
}
