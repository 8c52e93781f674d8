//! How hard the negatives of samples are: METHODS §5.

use std::collections::BTreeMap;

use serde::Deserialize;
use superbatch::divide::{Bank, BankIndex, Banks, HardnessParams, Samples, exclusions, hardness};
use superbatch::sample::SampleRef;
use superbatch::select::{Objective, hard_learnability};

use super::pool::{Logits, Pool, Scored, ScoringName, assert_close, golden};

#[derive(Deserialize)]
struct File {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    learner: Logits,
    reference: Logits,
    sub_batch_size: usize,
    temperature: f32,
    near_duplicate_similarity: f32,
    cluster_bank: Vec<usize>,
    pool_bank: Vec<usize>,
    columns: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    row: usize,
    n_negatives: usize,
    n_false_negatives: usize,
    hardness: Option<f64>,
    hardness_gain: Option<f64>,
    cross_modal_hardness: Option<f64>,
    effective_negatives: Option<f64>,
    hardest_negative_similarity: Option<f64>,
    hardest_negative: Option<usize>,
    /// hard_learnability by objective and scoring.
    #[serde(flatten)]
    others: BTreeMap<String, Option<f64>>,
}

/// As the divide model sees them: the reference.
fn samples<'a>(pool: &'a Pool, ids: &'a [SampleRef]) -> Samples<'a> {
    Samples {
        ids,
        images: &pool.reference.images,
        captions: Some(&pool.reference.captions),
        caption_hashes: Some(&pool.caption_codes),
    }
}

const SCORINGS: [(&str, ScoringName); 3] = [
    ("hard_learner", ScoringName::HardLearner),
    ("easy_reference", ScoringName::EasyReference),
    ("learnability", ScoringName::Learnability),
];

#[test]
fn hardness_and_hard_learnability() {
    let (pool, file): (Pool, File) = (Pool::read(), golden("hardness"));
    assert!(file.cases.len() >= 4);
    for case in &file.cases {
        let queries = pool.at(&case.columns.iter().map(|row| row.row).collect::<Vec<_>>());
        let (cluster, everyone) = (pool.at(&case.cluster_bank), pool.at(&case.pool_bank));
        let [ids, cluster_ids, pool_ids] = [&queries, &cluster, &everyone].map(|part| part.refs(&pool));
        let (of_cluster, of_pool) = (samples(&cluster, &cluster_ids), samples(&everyone, &pool_ids));
        let indices = [BankIndex::of(&of_cluster), BankIndex::of(&of_pool)];
        let banks = Banks {
            cluster: Bank { samples: of_cluster, index: &indices[0] },
            pool: Bank { samples: of_pool, index: &indices[1] },
        };
        let params = HardnessParams {
            temperature: case.temperature,
            near_duplicate_similarity: case.near_duplicate_similarity,
        };
        let found = hardness(&samples(&queries, &ids), &banks, &params);
        let exclusions = exclusions(&samples(&queries, &ids), &banks.cluster, &params);

        for (found, expected) in found.iter().zip(&case.columns) {
            let what = format!("{}, row {}", case.name, expected.row);
            assert_eq!(found.n_negatives, expected.n_negatives, "{what}");
            assert_eq!(found.n_false_negatives, expected.n_false_negatives, "{what}");
            let Some(found) = found.negatives else {
                assert_eq!(expected.hardness, None, "{what}");
                continue;
            };
            assert_close(found.hardness, expected.hardness.unwrap(), 1e-6);
            assert_eq!(found.hardness_gain.is_some(), expected.hardness_gain.is_some(), "{what}");
            assert_close(
                found.hardness_gain.unwrap_or_default(),
                expected.hardness_gain.unwrap_or_default(),
                2e-6,
            );
            let cross_modal = found.cross_modal_hardness.unwrap();
            assert_close(cross_modal, expected.cross_modal_hardness.unwrap(), 1e-6);
            let effective = expected.effective_negatives.unwrap();
            assert_close(found.effective_negatives, effective, 1e-4 * effective);
            let similarity = f64::from(found.hardest_negative_similarity);
            assert_close(similarity, expected.hardest_negative_similarity.unwrap(), 1e-6);
            assert_eq!(Some(case.cluster_bank[found.hardest_negative]), expected.hardest_negative, "{what}");
        }

        for (objective_name, objective) in [("sigmoid", Objective::Sigmoid), ("softmax", Objective::Softmax)]
        {
            for (scoring_name, scoring) in SCORINGS {
                let &Case { learner, reference, sub_batch_size, .. } = case;
                let by = Scored { objective, scoring, learner, reference };
                let found = hard_learnability(
                    &queries.scoring(&by),
                    &cluster.scoring(&by),
                    &exclusions,
                    sub_batch_size,
                );
                let scale = learner.logit_scale + reference.logit_scale;
                for (found, row) in found.iter().zip(&case.columns) {
                    let expected = row.others.get(&format!("{objective_name}_{scoring_name}"));
                    match (found, expected.copied().flatten()) {
                        (Some(found), Some(expected)) => {
                            let per_negative = 5e-7 * scale * sub_batch_size as f64;
                            assert_close(*found, expected, 1e-5 * (1.0 + expected.abs()) + per_negative);
                        }
                        (found, expected) => assert_eq!((*found, row.n_negatives), (expected, 0)),
                    }
                }
            }
        }
    }
}
