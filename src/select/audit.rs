//! The audited part of a pool under the models that score and under the full models that they stand for in; how far the
//! two agree out.

use serde::{Deserialize, Serialize};

use crate::embed::complete_tasks;
use crate::engine::Engine;
use crate::error::Error;
use crate::noise::Purpose;
use crate::plan::{Plan, row_bytes, scored_bytes};
use crate::rank::{Overlap, spearman};
use crate::run_folder::RunFolder;
use crate::sample::SampleRef;
use crate::settings::{Deal, Draw, EmbeddingDtype, ModelRole, SuperBatchDraw};

use super::counts::{kept_in, super_batch_sizes};
use super::draw::Passes;
use super::draw_plan::{group_size_max, group_tasks, ordered};
use super::group::{GroupRows, read_rows};
use super::reach::{decided_reaching, reach_counts};
use super::usable::read_full;

/// How far cheaper models choose what the full ones would.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    /// The roles that a cheaper model plays.
    pub audited: Vec<ModelRole>,
    /// Samples that both scored.
    pub n_samples: u64,
    /// Spearman's, of the scores that the draw begins with; none where one of them is constant.
    pub score_rank_correlation: Option<f64>,
    /// Samples that a draw of the audited part keeps under each of the two, with the same noise.
    pub n_kept: u64,
    /// Those that both keep, over those that one keeps.
    pub kept_overlap: Option<f64>,
    /// The same for two draws that know nothing of each other.
    pub kept_overlap_by_chance: f64,
}

/// Scores and draws the audited part twice; none where no full model audits, or where the draw looks at no models. Its groups
/// take no more memory than those of the run's draw, unless a single super-batch or task does.
pub fn audit(run: &RunFolder) -> Result<Option<Audit>, Error> {
    let plan = run.plan();
    let is_audited = |role: &ModelRole| role.audited_by().is_some_and(|full| plan.models.has(full));
    let audited: Vec<ModelRole> =
        [ModelRole::Learner, ModelRole::Reference].into_iter().filter(is_audited).collect();
    let Draw::InSuperBatches(draw) = &plan.select.draw else { return Ok(None) };
    if audited.is_empty() || !draw.method.scores_pairs() {
        return Ok(None);
    }
    let complete = complete_tasks(run)?.tasks;
    let mut tasks = plan.audited_tasks();
    tasks.retain(|task| complete.binary_search(task).is_ok());
    let count = |task| Ok(reach_counts(run, task)?.reaching as usize);
    let size_max = audited_size_max(plan, &draw.deal);
    let mut agreement = Agreement::default();
    for group in group_tasks(run, &tasks, count, size_max, draw.deal.super_batch_size)? {
        let (cheap, full) = read_both(run, &group.tasks)?;
        agreement.add(run, draw, &cheap, &full)?;
    }
    Ok(Some(agreement.finish(audited)))
}

/// Samples whose embeddings under the cheaper and under the full models take as much as those of a dealing group.
fn audited_size_max(plan: &Plan, deal: &Deal) -> usize {
    let cheap_bytes = scored_bytes(&plan.models, EmbeddingDtype::F32);
    let full = [ModelRole::FullLearner, ModelRole::FullReference];
    let full_bytes: u64 = full.into_iter().map(|role| row_bytes(&plan.models, role)).sum();
    // a model that is not audited stands beside the full ones once more
    let share = cheap_bytes as f64 / (2 * cheap_bytes + full_bytes).max(1) as f64;
    ((group_size_max(plan, deal) as f64 * share) as usize).max(deal.super_batch_size)
}

/// The samples of some tasks that both kinds of models embedded, under the cheaper and under the full models.
fn read_both(run: &RunFolder, tasks: &[usize]) -> Result<(GroupRows, GroupRows), Error> {
    let (mut all_cheap, mut all_full) = (GroupRows::default(), GroupRows::default());
    for &task in tasks {
        let (cheap, _) = read_rows(run, task, decided_reaching(run, task)?)?;
        let (rows, models) = read_full(run, task, &cheap.samples)?;
        let cheap = cheap.gather(&rows);
        let full = GroupRows { samples: cheap.samples.clone(), models, ..GroupRows::default() };
        all_cheap.append(cheap);
        all_full.append(full);
    }
    Ok((all_cheap, all_full))
}

#[derive(Default)]
struct Agreement {
    cheap_scores: Vec<f64>,
    full_scores: Vec<f64>,
    n_kept: u64,
    n_both: u64,
}

impl Agreement {
    /// Draws a group's super-batches under both.
    fn add(
        &mut self,
        run: &RunFolder,
        draw: &SuperBatchDraw,
        cheap: &GroupRows,
        full: &GroupRows,
    ) -> Result<(), Error> {
        let n = cheap.samples.len() as u64;
        let n_kept = draw.deal.filter_ratio.kept(n);
        let order = ordered(run.plan(), Purpose::DealSamples, run.plan().round, &cheap.samples);
        let mut start = 0;
        for size in super_batch_sizes(cheap.samples.len(), draw.deal.super_batch_size) {
            let members = &order[start..start + size];
            let n_kept = kept_in(start as u64..(start + size) as u64, n_kept, n) as usize;
            start += size;
            let (cheap_scores, cheap_kept) = drawn(run, draw, cheap.gather(members), n_kept)?;
            let (full_scores, full_kept) = drawn(run, draw, full.gather(members), n_kept)?;
            self.cheap_scores.extend(cheap_scores);
            self.full_scores.extend(full_scores);
            self.n_kept += cheap_kept.len() as u64;
            self.n_both += Overlap::of_sorted(&cheap_kept, &full_kept).n_both as u64;
        }
        Ok(())
    }

    fn finish(self, audited: Vec<ModelRole>) -> Audit {
        let n_samples = self.cheap_scores.len() as u64;
        let share = |n: u64, of: u64| n as f64 / of.max(1) as f64;
        Audit {
            audited,
            n_samples,
            score_rank_correlation: spearman(&self.cheap_scores, &self.full_scores),
            n_kept: self.n_kept,
            kept_overlap: (self.n_kept > 0).then(|| share(self.n_both, self.n_kept)),
            kept_overlap_by_chance: share(self.n_kept, n_samples),
        }
    }
}

/// The scores of a super-batch, and its kept samples, ascending.
fn drawn(
    run: &RunFolder,
    draw: &SuperBatchDraw,
    rows: GroupRows,
    n_kept: usize,
) -> Result<(Vec<f64>, Vec<SampleRef>), Error> {
    let passes = Passes::new(run, &Engine::Kernels, &draw.method, rows, n_kept);
    let samples = passes.samples();
    let pass = passes.draw(0, &vec![false; samples.len()])?;
    let mut kept: Vec<SampleRef> = pass.drawn.iter().map(|(drawn, _)| samples[drawn.row]).collect();
    kept.sort_unstable();
    Ok((pass.scores, kept))
}
