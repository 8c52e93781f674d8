//! A dealing group in; its super-batches scored and drawn, and what was drawn on its way back to the shards.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::exchange::{self, ExchangeWriter, Index, Source};
use crate::noise::{Purpose, SampleId, keyed_hash};
use crate::run_folder::{Done, RunFolder};
use crate::sample::SampleRef;
use crate::settings::{Draw, Random, SuperBatchMethod};
use crate::storage::FileRecord;
use crate::table::{Columns, Rows};

use super::draw_plan::{DrawPlans, Group, Members, SuperBatch};
use super::joint::{DrawPlan, Drawn, PassKey, draw, draw_uniform};
use super::score::batch_learnability;
use super::scored::{ScoredModels, read_usable};

/// Counts of one task of `select.draw`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrawCounts {
    pub super_batches: Vec<SuperBatchCounts>,
    /// From tasks (the targets) to row groups.
    pub index: Index,
}

/// One super-batch after its draw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SuperBatchCounts {
    pub super_batch: u64,
    pub n_samples: usize,
    pub n_kept: usize,
    /// `F(A)/|A|` of the drawn sub-batch, nats; none where nothing is scored or kept.
    pub batch_learnability: Option<f64>,
    /// The same of as many of the group's kept samples, dealt anew.
    pub batch_learnability_reshuffled: Option<f64>,
    /// The same of a uniform draw of the same size.
    pub batch_learnability_random: Option<f64>,
}

/// What every task of `select.draw` takes.
pub struct Drawer<'a> {
    pub run: &'a RunFolder,
    pub plans: &'a DrawPlans,
    pub dealt: Option<&'a [Source]>,
}

/// The samples of a group and their embeddings.
struct GroupRows {
    samples: Vec<SampleRef>,
    models: ScoredModels,
    read: Vec<FileRecord>,
}

/// One sample of a super-batch after the draw.
pub struct Outcome {
    sample: SampleRef,
    super_batch: u64,
    drawn: Option<Drawn>,
}

impl Drawer<'_> {
    /// Draws and commits one group.
    pub fn commit(&self, group_idx: usize) -> Result<(), Error> {
        let run = self.run;
        let plan = run.plan();
        let group = &self.plans.groups[group_idx];
        let rows = self.read(group)?;
        assert_eq!(rows.samples.len(), group.n_samples, "a group holds what its plan counted");

        let order = ordered(run, Purpose::DealSamples, &rows.samples);
        let mut outcomes = Vec::with_capacity(group.n_samples);
        let mut counts = Vec::with_capacity(group.super_batches.len());
        let mut start = 0;
        for super_batch in &group.super_batches {
            let members = &order[start..start + super_batch.n_samples];
            start += super_batch.n_samples;
            counts.push(self.draw_super_batch(&rows, super_batch, members, &mut outcomes));
        }
        self.measure_reshuffled(&rows, &order, &outcomes, &mut counts);
        let mut by_task: BTreeMap<usize, Vec<&Outcome>> = BTreeMap::new();
        for outcome in &outcomes {
            by_task
                .entry(outcome.sample.shard_idx as usize / plan.pool.shards_per_task)
                .or_default()
                .push(outcome);
        }
        let stage = run.select("select.draw");
        let name = exchange::file_name(&stage, group_idx);
        let mut writer = ExchangeWriter::new(run.run(), &name, outcome_table(run, &[]).schema())?;
        for (task, outcomes) in by_task {
            writer.push(task, outcome_table(run, &outcomes))?;
        }
        let written = writer.finish()?;
        let counts = DrawCounts { super_batches: counts, index: written.index };
        run.commit(&stage, group_idx, Done::new(vec![written.file], rows.read, counts))?;
        Ok(())
    }

    fn read(&self, group: &Group) -> Result<GroupRows, Error> {
        let tasks = match &group.members {
            Members::Tasks(tasks) => tasks,
            Members::Partition(partition) => return self.read_partition(*partition),
        };
        let mut rows: Option<GroupRows> = None;
        for &task in tasks {
            let usable = read_usable(self.run, task)?;
            match &mut rows {
                None => {
                    rows =
                        Some(GroupRows { samples: usable.samples, models: usable.models, read: usable.read })
                }
                Some(rows) => {
                    rows.samples.extend(usable.samples);
                    rows.models.append(&usable.models);
                    rows.read.extend(usable.read);
                }
            }
        }
        Ok(rows.expect("a group has a task"))
    }

    fn read_partition(&self, partition: usize) -> Result<GroupRows, Error> {
        let sources = self.dealt.expect("partitions come from an exchange");
        let batch =
            exchange::read_target(self.run.run(), sources, partition)?.expect("planned from the exchange");
        let rows = Rows(&batch);
        let used = sources.iter().filter(|source| source.index.n_rows(partition) > 0);
        Ok(GroupRows {
            samples: SampleRef::of_rows(&rows, &self.run.plan().pool)?,
            models: ScoredModels::of_rows(self.run, &rows),
            read: used.map(|source| source.file.clone()).collect(),
        })
    }

    /// What the kept samples teach when other kept samples of the group stand beside them.
    ///
    /// `outcomes` are in the order `order` of the group's rows.
    fn measure_reshuffled(
        &self,
        rows: &GroupRows,
        order: &[usize],
        outcomes: &[Outcome],
        counts: &mut [SuperBatchCounts],
    ) {
        let Some(score) = self.run.plan().select.draw.pair_score() else { return };
        let kept = order.iter().zip(outcomes).filter(|(_, outcome)| outcome.drawn.is_some());
        let kept: Vec<usize> = kept.map(|(&row, _)| row).collect();
        let samples: Vec<SampleRef> = kept.iter().map(|&row| rows.samples[row]).collect();
        let dealt = ordered(self.run, Purpose::Reshuffle, &samples);
        let mut start = 0;
        for counts in counts.iter_mut().filter(|counts| counts.n_kept > 0) {
            let batch: Vec<usize> = dealt[start..start + counts.n_kept].iter().map(|&at| kept[at]).collect();
            start += counts.n_kept;
            let all: Vec<usize> = (0..batch.len()).collect();
            let models = rows.models.gather(&batch);
            counts.batch_learnability_reshuffled = Some(batch_learnability(&models.scoring(score), &all));
        }
    }

    fn draw_super_batch(
        &self,
        rows: &GroupRows,
        super_batch: &SuperBatch,
        members: &[usize],
        outcomes: &mut Vec<Outcome>,
    ) -> SuperBatchCounts {
        let plan = self.run.plan();
        let ids: Vec<SampleId> = members.iter().map(|&row| rows.samples[row].id(&plan.pool)).collect();
        let key = PassKey { seed: plan.seed, round: plan.round, pass: 0 };
        let uniform = draw_uniform(&ids, super_batch.n_kept, key);
        let mut learnability = (None, None);
        let Draw::InSuperBatches(step) = &plan.select.draw else { panic!("a draw in super-batches") };
        let drawn = match &step.method {
            SuperBatchMethod::Random(Random {}) => uniform,
            SuperBatchMethod::Jest(step) => {
                let models = rows.models.gather(members);
                let scoring = models.scoring(step.score);
                let draw_plan = DrawPlan {
                    sub_batch_size: super_batch.n_kept,
                    n_chunks: step.n_chunks,
                    gain: step.gain,
                    chance: step.draw,
                    key,
                };
                let drawn = draw(&ids, &scoring, &draw_plan).drawn;
                let of = |drawn: &[Drawn]| {
                    let rows: Vec<usize> = drawn.iter().map(|drawn| drawn.row).collect();
                    (!rows.is_empty()).then(|| batch_learnability(&scoring, &rows))
                };
                learnability = (of(&drawn), of(&uniform));
                drawn
            }
            _ => unreachable!("drawn elsewhere"),
        };
        let first = outcomes.len();
        outcomes.extend(members.iter().map(|&row| Outcome {
            sample: rows.samples[row],
            super_batch: super_batch.super_batch,
            drawn: None,
        }));
        for drawn in drawn {
            outcomes[first + drawn.row].drawn = Some(drawn);
        }
        SuperBatchCounts {
            super_batch: super_batch.super_batch,
            n_samples: super_batch.n_samples,
            n_kept: super_batch.n_kept,
            batch_learnability: learnability.0,
            batch_learnability_reshuffled: None,
            batch_learnability_random: learnability.1,
        }
    }
}

/// The rows of a group in the order of their keyed hashes, ties by sample id.
fn ordered(run: &RunFolder, purpose: Purpose, samples: &[SampleRef]) -> Vec<usize> {
    let plan = run.plan();
    let mut order: Vec<(u64, SampleRef, usize)> = samples
        .iter()
        .enumerate()
        .map(|(row, sample)| {
            let id = sample.id(&plan.pool);
            (keyed_hash(purpose, plan.seed, plan.round, id.shard, id.sample_idx), *sample, row)
        })
        .collect();
    order.sort_unstable();
    order.into_iter().map(|(_, _, row)| row).collect()
}

/// The rows that go back to the shards.
pub fn outcome_table(run: &RunFolder, outcomes: &[&Outcome]) -> arrow::array::RecordBatch {
    let ids = || outcomes.iter().map(|outcome| outcome.sample.id(&run.plan().pool));
    let drawn = || outcomes.iter().map(|outcome| outcome.drawn);
    let mut columns = Columns::default();
    columns
        .text("shard", ids().map(|id| Some(id.shard)))
        .u64("sample_idx", ids().map(|id| Some(id.sample_idx)))
        .u64("super_batch", outcomes.iter().map(|outcome| Some(outcome.super_batch)))
        .u32("chunk", drawn().map(|drawn| drawn.map(|drawn| drawn.chunk as u32)))
        .u32("draw_rank", drawn().map(|drawn| drawn.map(|drawn| drawn.draw_rank as u32)))
        .f64("conditional_score", drawn().map(|drawn| drawn.map(|drawn| drawn.conditional_score)));
    columns.build()
}
