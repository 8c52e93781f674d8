//! The random numbers and pools of `examples/planted`, and what comes out on one of them: METHODS §7.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::pool::{Logits, assert_all_close, assert_close, golden};

#[path = "../../examples/planted/pools.rs"]
mod pools;
#[path = "../../examples/planted/baselines.rs"]
mod baselines;
#[path = "../../examples/planted/lines.rs"]
mod lines;

pub use baselines::auc;
pub use pools::coarse_pool;

#[derive(Deserialize)]
struct File {
    streams: Vec<Stream>,
    pools: Vec<GoldenPool>,
}

#[derive(Deserialize)]
struct Stream {
    seed: u64,
    stream: u64,
    words: Vec<String>,
    uniforms: Vec<f64>,
    normals: Vec<f64>,
}

#[derive(Deserialize)]
struct GoldenPool {
    pool: String,
    seed: u64,
    n_samples: usize,
    kinds: Vec<usize>,
    concepts: Vec<usize>,
    learner: Model,
    reference: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(flatten)]
    logits: Logits,
    image_0: Vec<f64>,
    caption_0: Vec<f64>,
    image_499: Vec<f64>,
    caption_499: Vec<f64>,
}

#[test]
fn random_numbers() {
    let file: File = golden("planted");
    for Stream { seed, stream, words, uniforms, normals } in file.streams {
        let found = pools::words(seed, stream).take(5).map(|word| word.to_string());
        assert_eq!(found.collect::<Vec<_>>(), words);
        let found: Vec<f64> = pools::uniforms(seed, stream).take(5).collect();
        assert_all_close(&found, &uniforms, |_| 1e-9);
        let found: Vec<f64> = pools::normals(seed, stream).take(5).collect();
        assert_all_close(&found, &normals, |_| 1e-8);
    }
}

#[test]
fn planted_pools() {
    let file: File = golden("planted");
    for golden in file.pools {
        let make = if golden.pool == "noisy" { pools::noisy_pool } else { coarse_pool };
        let pool = make(golden.seed, golden.n_samples);
        assert_eq!(pool.concepts, golden.concepts);
        assert_eq!(pool.kinds.iter().map(|kind| *kind as usize).collect::<Vec<_>>(), golden.kinds);
        for (found, expected) in [(&pool.learner, &golden.learner), (&pool.reference, &golden.reference)] {
            assert_close(
                found.loss.logit_scale,
                expected.logits.logit_scale,
                1e-3 * expected.logits.logit_scale,
            );
            assert_close(
                found.loss.logit_bias,
                expected.logits.logit_bias,
                1e-3 * -expected.logits.logit_bias,
            );
            for (found, row, expected) in [
                (&found.images, 0, &expected.image_0),
                (&found.captions, 0, &expected.caption_0),
                (&found.images, 499, &expected.image_499),
                (&found.captions, 499, &expected.caption_499),
            ] {
                let found: Vec<f64> = found.row(row).iter().map(|value| f64::from(*value)).collect();
                assert_all_close(&found, expected, |_| 1e-7);
            }
        }
    }
}

/// One seed of every line beside NumPy's: not the mean of many, but the same pools, noise and picks. The file is what
/// `python3 tests/oracle/planted.py --seeds 1 --json tests/golden/planted_lines.json` writes.
#[test]
fn the_lines_of_a_seed_are_those_of_numpy() {
    let path = format!("{}/tests/golden/planted_lines.json", env!("CARGO_MANIFEST_DIR"));
    let expected: BTreeMap<String, [f64; 1]> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let found = lines::all(1);
    assert_eq!(found.len(), expected.len());
    for (name, found) in found {
        // the oracle draws these in chunks, with noise of its own for each: the same law, other picks
        let is_of_other_noise = name.contains("independent");
        // a pick or two of 256 may turn where f32 and f64 differ
        let tolerance = if is_of_other_noise { 0.15 } else { 0.02 };
        let [expected] = expected[&name];
        assert!(
            (found - expected).abs() <= tolerance * (1.0 + expected.abs()),
            "{name}: {found}, by NumPy {expected}"
        );
    }
}
