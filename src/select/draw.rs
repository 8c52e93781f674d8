//! A dealing group in; its super-batches scored and drawn, and what was drawn on its way back to the shards.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::error::Error;
use crate::exchange::{ExchangeWriter, Index};
use crate::noise::{Purpose, SampleId};
use crate::run_folder::{Done, RunFolder};
use crate::sample::SampleRef;
use crate::settings::{
    ActiveClip, ActiveClipScore, Deal, Jest, PassPool, ScoreKind, SoftCap, SuperBatchDraw, SuperBatchMethod,
};

use super::draw_plan::{Dealt, DrawPlans, SuperBatch, ordered};
use super::group::{GroupRows, read_group};
use super::independent::{
    DistanceToBest, EffectiveSamples, IndependentPlan, SoftCapPlan, draw_independent, draw_soft_cap,
};
use super::joint::{Chance, DrawPlan, Drawn, PassKey, draw_remaining_on, draw_uniform};
use super::outcome::{Outcome, draws_table, outcome_table};
use super::score::batch_learnability;
use super::share::{SeededNegatives, contrastive_scores, full_loss_scores};
use super::usable::Measure;

/// Counts of one task of `select.draw`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrawCounts {
    pub super_batches: Vec<SuperBatchCounts>,
    /// From tasks (the targets) to row groups.
    pub index: Index,
}

/// One super-batch after its draws.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SuperBatchCounts {
    pub super_batch: u64,
    pub n_samples: usize,
    /// Draws of the first pass.
    pub n_kept: usize,
    /// By pass, the samples that it drew and no pass before it.
    pub n_first: Vec<u64>,
    /// `F(A)/|A|` of the first pass's sub-batch, nats; none where no pairs are scored or nothing is kept.
    pub batch_learnability: Option<f64>,
    /// The same of as many of the group's kept samples, dealt anew.
    pub batch_learnability_reshuffled: Option<f64>,
    /// The same of a uniform draw of the same size.
    pub batch_learnability_random: Option<f64>,
    /// How far from uniform, and from the best, the first draw is; none for uniform draws.
    pub weights: Option<WeightCounts>,
}

/// What the log-weights of a super-batch's first chunk say of its draw.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightCounts {
    /// `e^entropy` and `(Σp)²/Σp²` of `p = softmax(gain · score)`, samples.
    pub effective_samples: f64,
    pub effective_samples_of_collisions: f64,
    /// Mean score of the drawn, of as many of the best, and of all.
    pub mean_of_drawn: f64,
    pub mean_of_best: f64,
    pub mean_of_all: f64,
}

/// What every task of `select.draw` takes.
pub struct Drawer<'a> {
    pub run: &'a RunFolder,
    pub draw: &'a SuperBatchDraw,
    pub plans: &'a DrawPlans,
    pub dealt: Option<&'a Dealt>,
    pub engine: &'a Engine,
}

/// The samples of one super-batch, drawn in turn by every pass.
pub struct Passes<'a> {
    run: &'a RunFolder,
    engine: &'a Engine,
    method: &'a SuperBatchMethod,
    ids: Vec<SampleId<'a>>,
    rows: GroupRows,
    n_kept: usize,
    /// The log-weights of an independent draw, which no pass changes; a joint draw makes its own.
    scores: Vec<f64>,
}

/// One pass over a super-batch.
pub struct Pass {
    /// The log-weight of each sample at the start, before gain and noise.
    pub scores: Vec<f64>,
    /// In the order of the draw, and how often each was drawn.
    pub drawn: Vec<(Drawn, usize)>,
    /// What the scores were multiplied by; none for a uniform draw and for one without noise.
    gain: Option<f64>,
}

impl Drawer<'_> {
    /// Draws and commits one group.
    pub fn commit(&self, group_idx: usize) -> Result<(), Error> {
        let run = self.run;
        let plan = run.plan();
        let group = &self.plans.groups[group_idx];
        let rows = read_group(run, group, self.dealt)?;
        assert_eq!(rows.samples.len(), group.n_samples, "a group holds what its plan counted");

        let order = ordered(plan, Purpose::DealSamples, plan.round, &rows.samples);
        let mut outcomes = Vec::with_capacity(group.n_samples);
        let mut counts = Vec::with_capacity(group.super_batches.len());
        let mut start = 0;
        for super_batch in &group.super_batches {
            let members = &order[start..start + super_batch.n_samples];
            start += super_batch.n_samples;
            counts.push(self.draw_super_batch(&rows, super_batch, members, &mut outcomes)?);
        }
        self.measure_reshuffled(&rows, &order, &outcomes, &mut counts);

        let mut by_task: BTreeMap<usize, Vec<&Outcome>> = BTreeMap::new();
        for outcome in &outcomes {
            by_task.entry(plan.pool.task_of(outcome.sample.shard_idx)).or_default().push(outcome);
        }
        let stage = run.select("select.draw");
        let mut writer = ExchangeWriter::new(run, &stage, group_idx, outcome_table(run, &[]).schema())?;
        for (task, outcomes) in by_task {
            writer.push(task, outcome_table(run, &outcomes))?;
        }
        let written = writer.finish()?;
        let mut data = vec![written.file];
        if self.plans.n_passes > 1 {
            let name = format!("draws/{group_idx:05}.parquet");
            let entries = super::table_metadata(run, &plan.digests.up_to_select());
            data.push(run.put_table(&stage, group_idx, &name, &draws_table(run, &outcomes), &entries)?);
        }
        let counts = DrawCounts { super_batches: counts, index: written.index };
        let numerics = self.engine.numerics_of_pair_sums(plan.select.objective.pair_sum())?;
        run.commit(&stage, group_idx, Done { data, read: rows.read, counts, numerics })?;
        Ok(())
    }

    /// Draws a super-batch once a pass, and adds what became of its samples.
    fn draw_super_batch(
        &self,
        rows: &GroupRows,
        super_batch: &SuperBatch,
        members: &[usize],
        outcomes: &mut Vec<Outcome>,
    ) -> Result<SuperBatchCounts, Error> {
        let rows = rows.gather(members);
        let passes = Passes::new(self.run, self.engine, &self.draw.method, rows, super_batch.n_kept);
        let Deal { n_passes, pass_pool, .. } = self.draw.deal;
        let mut found: Vec<Outcome> =
            passes.samples().iter().map(|&sample| Outcome::new(sample, super_batch.super_batch)).collect();
        let mut n_first = Vec::with_capacity(n_passes);
        let mut first_pass = None;
        for pass_idx in 0..n_passes {
            let is_taken: Vec<bool> = match pass_pool {
                PassPool::All => vec![false; found.len()],
                PassPool::Remaining => found.iter().map(|outcome| outcome.n_repeats > 0).collect(),
            };
            let pass = passes.draw(pass_idx, &is_taken)?;
            let mut n_new = 0;
            for (drawn, n_repeats) in &pass.drawn {
                n_new += u64::from(found[drawn.row].take(pass_idx, *drawn, *n_repeats, n_new));
            }
            n_first.push(n_new);
            first_pass.get_or_insert(pass);
        }
        let first_pass = first_pass.expect("at least one pass");
        for (outcome, score) in found.iter_mut().zip(&first_pass.scores) {
            outcome.score = *score;
        }
        outcomes.extend(found);
        Ok(passes.counts(super_batch, n_first, &first_pass))
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
        let Some(score) = self.run.plan().pair_score() else { return };
        let kept = order.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_in_pass(0));
        let kept: Vec<usize> = kept.map(|(&row, _)| row).collect();
        let samples: Vec<SampleRef> = kept.iter().map(|&row| rows.samples[row]).collect();
        let plan = self.run.plan();
        let dealt = ordered(plan, Purpose::Reshuffle, plan.round, &samples);
        let mut start = 0;
        for counts in counts.iter_mut() {
            let n = counts.n_first[0] as usize;
            let batch: Vec<usize> = dealt[start..start + n].iter().map(|&at| kept[at]).collect();
            start += n;
            let all: Vec<usize> = (0..batch.len()).collect();
            let models = rows.models.gather(&batch);
            let scoring = models.scoring(score, Measure::Objective);
            counts.batch_learnability_reshuffled = (n > 0).then(|| batch_learnability(&scoring, &all));
        }
    }
}

impl<'a> Passes<'a> {
    pub fn new(
        run: &'a RunFolder,
        engine: &'a Engine,
        method: &'a SuperBatchMethod,
        rows: GroupRows,
        n_kept: usize,
    ) -> Passes<'a> {
        let ids = rows.samples.iter().map(|sample| sample.id(&run.plan().pool)).collect();
        let mut passes = Passes { run, engine, method, ids, rows, n_kept, scores: Vec::new() };
        passes.scores = passes.independent_scores();
        passes
    }

    pub fn samples(&self) -> &[SampleRef] {
        &self.rows.samples
    }

    fn key(&self, pass_idx: usize) -> PassKey {
        let plan = self.run.plan();
        PassKey { seed: plan.seed, round: plan.round, pass: pass_idx as u64 }
    }

    /// Draws once; none of the taken.
    pub fn draw(&self, pass_idx: usize, is_taken: &[bool]) -> Result<Pass, Error> {
        let n_left = is_taken.iter().filter(|is_taken| !**is_taken).count();
        let n_kept = self.n_kept.min(n_left);
        let by_scores = |gain, chance| {
            let plan = IndependentPlan { sub_batch_size: n_kept, gain, chance, key: self.key(pass_idx) };
            let drawn = draw_independent(&self.ids, &self.scores, is_taken, &plan);
            Pass { scores: self.scores.clone(), drawn: once(drawn), gain: gain_of(gain, chance) }
        };
        Ok(match self.method {
            SuperBatchMethod::Jest(jest) => self.draw_jest(jest, n_kept, pass_idx, is_taken)?,
            SuperBatchMethod::ActiveClip(active_clip) => by_scores(active_clip.gain, active_clip.draw),
            SuperBatchMethod::ClassAct(class_act) => by_scores(class_act.gain, class_act.draw),
            SuperBatchMethod::FullLoss(_) => by_scores(1.0, Chance::TopK),
            SuperBatchMethod::SoftCap(soft_cap) => self.draw_capped(soft_cap, pass_idx),
            SuperBatchMethod::Random(_) => Pass { gain: None, ..by_scores(1.0, Chance::Gumbel) },
        })
    }

    fn draw_jest(
        &self,
        jest: &Jest,
        n_kept: usize,
        pass_idx: usize,
        is_taken: &[bool],
    ) -> Result<Pass, Error> {
        let plan = DrawPlan {
            sub_batch_size: n_kept,
            n_chunks: jest.n_chunks,
            gain: jest.gain,
            chance: jest.draw,
            key: self.key(pass_idx),
        };
        let scoring = self.rows.models.scoring(jest.score, Measure::Objective);
        let drawn = draw_remaining_on(self.engine, &self.ids, &scoring, is_taken, &plan)?;
        let gain = gain_of(jest.gain, jest.draw);
        Ok(Pass { scores: drawn.scores, drawn: once(drawn.drawn), gain })
    }

    fn draw_capped(&self, soft_cap: &SoftCap, pass_idx: usize) -> Pass {
        let plan = SoftCapPlan {
            n_draws: self.n_kept,
            n_per_turn: soft_cap.n_per_turn.min(self.ids.len()),
            gain: soft_cap.gain,
            penalty: soft_cap.penalty,
            key: self.key(pass_idx),
        };
        let drawn = draw_soft_cap(&self.ids, &self.scores, &plan);
        let drawn = drawn.into_iter().map(|repeated| (repeated.first, repeated.n_repeats)).collect();
        Pass { scores: self.scores.clone(), drawn, gain: Some(soft_cap.gain) }
    }

    fn independent_scores(&self) -> Vec<f64> {
        match self.method {
            SuperBatchMethod::Jest(_) => Vec::new(),
            SuperBatchMethod::ActiveClip(active_clip) => self.active_clip_scores(active_clip),
            SuperBatchMethod::ClassAct(_) | SuperBatchMethod::SoftCap(_) => {
                self.rows.weights.clone().expect("the rows of this draw carry weights")
            }
            SuperBatchMethod::FullLoss(full_loss) => {
                let scoring = self.rows.models.scoring(full_loss.score, Measure::Objective);
                full_loss_scores(&scoring, self.n_kept.max(1))
            }
            SuperBatchMethod::Random(_) => vec![0.0; self.ids.len()],
        }
    }

    fn active_clip_scores(&self, active_clip: &ActiveClip) -> Vec<f64> {
        let models = &self.rows.models;
        match active_clip.score {
            ActiveClipScore::DotProduct => {
                models.scoring(ScoreKind::Learnability, Measure::DotProduct).scores()
            }
            ActiveClipScore::Contrastive => {
                let plan = self.run.plan();
                let negatives = SeededNegatives {
                    n_negatives: active_clip.n_negatives,
                    seed: plan.seed,
                    round: plan.round,
                };
                let scoring = models.scoring(ScoreKind::Learnability, Measure::Objective);
                contrastive_scores(&self.ids, &scoring, negatives, self.n_kept.max(1))
            }
        }
    }

    fn counts(&self, super_batch: &SuperBatch, n_first: Vec<u64>, pass: &Pass) -> SuperBatchCounts {
        let score = self.run.plan().pair_score();
        let learnability_of = |rows: Vec<usize>| {
            let scoring = self.rows.models.scoring(score?, Measure::Objective);
            (!rows.is_empty()).then(|| batch_learnability(&scoring, &rows))
        };
        let rows: Vec<usize> = pass.drawn.iter().map(|(drawn, _)| drawn.row).collect();
        let uniform = draw_uniform(&self.ids, rows.len(), self.key(0));
        SuperBatchCounts {
            super_batch: super_batch.super_batch,
            n_samples: super_batch.n_samples,
            n_kept: super_batch.n_kept,
            n_first,
            weights: weight_counts(pass, &rows),
            batch_learnability: learnability_of(rows),
            batch_learnability_reshuffled: None,
            batch_learnability_random: learnability_of(uniform.iter().map(|drawn| drawn.row).collect()),
        }
    }
}

fn once(drawn: Vec<Drawn>) -> Vec<(Drawn, usize)> {
    drawn.into_iter().map(|drawn| (drawn, 1)).collect()
}

fn gain_of(gain: f64, chance: Chance) -> Option<f64> {
    match chance {
        Chance::Gumbel => Some(gain),
        Chance::TopK => None,
    }
}

fn weight_counts(pass: &Pass, rows: &[usize]) -> Option<WeightCounts> {
    let gain = pass.gain?;
    let scores: Vec<f64> = pass.scores.iter().copied().filter(|score| score.is_finite()).collect();
    if rows.is_empty() || scores.len() < pass.scores.len() {
        return None;
    }
    let effective = EffectiveSamples::of(&scores, gain);
    let distance = DistanceToBest::of(&scores, rows);
    Some(WeightCounts {
        effective_samples: effective.of_entropy,
        effective_samples_of_collisions: effective.of_collisions,
        mean_of_drawn: distance.mean_of_drawn,
        mean_of_best: distance.mean_of_best,
        mean_of_all: distance.mean_of_all,
    })
}
