//! What the draw said of a task's samples, from groups or from the pool's cuts, in; the columns of it, in the task's order,
//! out.

use std::collections::HashMap;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, UInt32Array, UInt64Array, new_null_array};
use arrow::compute::take;
use arrow::datatypes::DataType;

use crate::error::Error;
use crate::exchange::{self, Source};
use crate::run_folder::RunFolder;
use crate::sample::SampleRef;
use crate::settings::{PoolDraw, ScoreKind};
use crate::storage::FileRecord;
use crate::table::Rows;

use super::draw_plan::DrawPlans;
use super::hard_negatives::read_among;
use super::outcome::outcome_table;
use super::pool_draw::{PoolCuts, pool_ranks};
use super::reach::Reached;
use super::score::{Learner, Reference, ScoredBy};

/// How the samples that passed the filters were drawn.
pub enum Drawn<'a> {
    InSuperBatches { plans: &'a DrawPlans, outcomes: &'a [Source] },
    OverPool { draw: &'a PoolDraw, cuts: &'a PoolCuts },
    Keep,
}

/// What the draw said of a task's samples, in their order; null for those that did not come to it.
pub struct DrawColumns {
    pub scores: Float64Array,
    pub n_repeats: UInt32Array,
    /// `super_batch`, `pass`, `place`, `chunk`, `draw_rank`, `conditional_score`.
    pub columns: Vec<(&'static str, ArrayRef)>,
    /// The size of each sample's sub-batch, where there are sub-batches.
    sub_batch_sizes: Vec<Option<usize>>,
}

const DRAW_COLUMNS: [(&str, DataType); 6] = [
    ("super_batch", DataType::UInt64),
    ("pass", DataType::UInt32),
    ("place", DataType::UInt64),
    ("chunk", DataType::UInt32),
    ("draw_rank", DataType::UInt32),
    ("conditional_score", DataType::Float64),
];

impl DrawColumns {
    pub fn read(
        run: &RunFolder,
        drawn: &Drawn,
        task: usize,
        reached: &Reached,
        read: &mut Vec<FileRecord>,
    ) -> Result<DrawColumns, Error> {
        match drawn {
            Drawn::InSuperBatches { plans, outcomes } => {
                let of_task = outcomes.iter().filter(|source| source.index.n_rows(task) > 0);
                read.extend(of_task.map(|source| source.file.clone()));
                let batch = exchange::read_target(run.run(), outcomes, task)?;
                let batch = batch.unwrap_or_else(|| outcome_table(run, &[]));
                DrawColumns::in_super_batches(run, plans, &batch, task, reached)
            }
            Drawn::OverPool { draw, cuts } => {
                let ranked = pool_ranks(run, task, draw, read)?;
                let found: HashMap<SampleRef, (Option<f64>, bool)> = ranked
                    .iter()
                    .map(|ranked| (ranked.sample, (ranked.score, cuts.keeps(run, ranked))))
                    .collect();
                Ok(DrawColumns::over_pool(&reached.samples, |sample| found.get(&sample).copied()))
            }
            Drawn::Keep => {
                let reaching = reached.reaching();
                let keep = |sample| reaching.binary_search(&sample).is_ok().then_some((None, true));
                Ok(DrawColumns::over_pool(&reached.samples, keep))
            }
        }
    }

    fn in_super_batches(
        run: &RunFolder,
        plans: &DrawPlans,
        batch: &RecordBatch,
        task: usize,
        reached: &Reached,
    ) -> Result<DrawColumns, Error> {
        let found = SampleRef::of_rows(&Rows(batch), &run.plan().pool)?;
        let row_of: HashMap<SampleRef, u64> = found.iter().copied().zip(0..).collect();
        assert_eq!(row_of.len(), reached.reaching().len(), "every sample of task {task} comes to one draw");
        let order: UInt64Array = reached.samples.iter().map(|sample| row_of.get(sample).copied()).collect();
        let column = |name: &str| {
            let column = batch.column_by_name(name).expect("an outcome has these columns");
            take(column, &order, None).expect("the rows are there")
        };
        let n_kept: HashMap<u64, usize> =
            plans.super_batches().map(|planned| (planned.super_batch, planned.n_kept)).collect();
        let columns: Vec<(&str, ArrayRef)> =
            DRAW_COLUMNS.iter().map(|(name, _)| (*name, column(name))).collect();
        let (scores, n_repeats, super_batches) =
            (column("score"), column("n_repeats"), column("super_batch"));
        let taken = |name, array| RecordBatch::try_from_iter([(name, array)]).expect("one column");
        let (scores, n_repeats, super_batches) =
            (taken("score", scores), taken("n_repeats", n_repeats), taken("super_batch", super_batches));
        Ok(DrawColumns {
            scores: Rows(&scores).f64("score").clone(),
            n_repeats: Rows(&n_repeats).u32("n_repeats").clone(),
            sub_batch_sizes: Rows(&super_batches)
                .u64("super_batch")
                .iter()
                .map(|super_batch| super_batch.map(|super_batch| n_kept[&super_batch]))
                .collect(),
            columns,
        })
    }

    /// `found` says of a sample that comes to the draw by what it was ranked and whether it is kept.
    fn over_pool(
        samples: &[SampleRef],
        found: impl Fn(SampleRef) -> Option<(Option<f64>, bool)>,
    ) -> DrawColumns {
        let found: Vec<Option<(Option<f64>, bool)>> = samples.iter().map(|sample| found(*sample)).collect();
        let n_repeats = |found: &Option<(Option<f64>, bool)>| found.and_then(|(_, kept)| kept.then_some(1));
        let columns = DRAW_COLUMNS.iter();
        DrawColumns {
            scores: found.iter().map(|found| found.and_then(|(score, _)| score)).collect(),
            n_repeats: found.iter().map(n_repeats).collect(),
            columns: columns.map(|(name, kind)| (*name, new_null_array(kind, samples.len()))).collect(),
            sub_batch_sizes: vec![None; samples.len()],
        }
    }

    /// Each sample's score among the negatives of its cluster's bank, in a sub-batch of its super-batch's size.
    pub fn hard_learnability(&self, run: &RunFolder, scored: &Rows) -> Vec<Option<f64>> {
        let objective = run.plan().select.objective;
        let score = run.plan().pair_score();
        let share = |role: &str| {
            let among = read_among(scored, role);
            let losses = scored.f64(&format!("{role}_loss"));
            let shares = among.into_iter().zip(losses).zip(&self.sub_batch_sizes);
            let shares = shares.map(|((among, loss), size)| {
                let size = size.filter(|&size| size > 0)?;
                Some(objective.share(loss?, among?, size))
            });
            shares.collect::<Vec<Option<f64>>>()
        };
        let (learner, reference) = (share("learner"), share("reference"));
        let of_sample = |row: usize| {
            let learner = || Some(Learner(learner[row]?));
            let reference = || Some(Reference(reference[row]?));
            let shares = match score? {
                ScoreKind::HardLearner => ScoredBy::HardLearner { learner: learner()? },
                ScoreKind::EasyReference => ScoredBy::EasyReference { reference: reference()? },
                ScoreKind::Learnability => {
                    ScoredBy::Learnability { learner: learner()?, reference: reference()? }
                }
            };
            Some(shares.score())
        };
        (0..self.sub_batch_sizes.len()).map(of_sample).collect()
    }
}
