//! A run folder in; what of each stage is done, and by whom, out.

use std::fmt::Write;
use std::path::PathBuf;

use serde::Serialize;

use crate::embed::CompleteTasks;
use crate::error::Error;
use crate::run_folder::{RunFolder, Stage};
use crate::select::{DrawPlans, calibrated_models, needs_bank};
use crate::settings::SuperBatches;
use crate::write::OutputPlan;

/// How far a run is.
#[derive(Debug, Serialize)]
pub struct Status {
    pub stages: Vec<StageStatus>,
    /// Those that were begun.
    pub rounds: Vec<RoundStatus>,
}

/// A later round of the run.
#[derive(Debug, Serialize)]
pub struct RoundStatus {
    pub round: u64,
    /// Its run folder.
    pub folder: PathBuf,
    pub is_complete: bool,
}

#[derive(Debug, Serialize)]
pub struct StageStatus {
    pub stage: String,
    pub digest: String,
    /// Tasks committed under the present digest.
    pub n_done: usize,
    /// Those of them that this run's plan has done; the others were there already.
    pub n_done_by_this_plan: usize,
    /// Unknown until the stages before are complete.
    pub n_tasks: Option<usize>,
}

impl Status {
    pub fn of(run: &RunFolder) -> Result<Status, Error> {
        let used = run.stages()?.into_iter().filter(|stage| is_used(run, stage));
        let stages = used.map(|stage| StageStatus::of(run, &stage));
        let rounds = run.rounds()?;
        Ok(Status {
            stages: stages.collect::<Result<_, _>>()?,
            rounds: rounds.iter().map(RoundStatus::of).collect::<Result<_, _>>()?,
        })
    }

    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a status is representable as JSON")
    }

    pub fn text(&self) -> String {
        let width = self.stages.iter().map(|stage| stage.stage.len()).max().unwrap_or(0);
        let mut text = format!("{:width$}  done  of     by this plan  reused", "stage");
        for stage in &self.stages {
            let n_tasks = stage.n_tasks.map_or("?".to_owned(), |n| n.to_string());
            let n_reused = stage.n_done - stage.n_done_by_this_plan;
            let StageStatus { stage, n_done, n_done_by_this_plan, .. } = stage;
            let _ = write!(
                text,
                "\n{stage:width$}  {n_done:<4}  {n_tasks:<5}  {n_done_by_this_plan:<12}  {n_reused}"
            );
        }
        for RoundStatus { round, folder, is_complete } in &self.rounds {
            let state = if *is_complete { "complete" } else { "not complete" };
            let _ = write!(text, "\nround {round}: {state}, `{}`", folder.display());
        }
        text
    }
}

impl RoundStatus {
    fn of(round: &RunFolder) -> Result<RoundStatus, Error> {
        Ok(RoundStatus {
            round: round.plan().round,
            folder: round.run().root().to_owned(),
            is_complete: round.is_complete()?,
        })
    }
}

impl StageStatus {
    fn of(run: &RunFolder, stage: &Stage) -> Result<StageStatus, Error> {
        let markers = run.markers_in(stage)?;
        let present = markers.iter().filter(|(_, marker)| marker.stage_digest == stage.digest);
        let own = present.clone().filter(|(_, marker)| run.is_own(marker));
        Ok(StageStatus {
            stage: stage.name.clone(),
            digest: stage.digest.to_string(),
            n_done: present.count(),
            n_done_by_this_plan: own.count(),
            n_tasks: n_tasks(run, stage)?,
        })
    }
}

/// Whether the plan has work for a step.
fn is_used(run: &RunFolder, stage: &Stage) -> bool {
    let draw = &run.plan().select.draw;
    match stage.name.as_str() {
        "select.calibrate" => !calibrated_models(run.plan()).is_empty(),
        "select.bank" => needs_bank(run.plan()),
        "select.draw" => draw.deal().is_some(),
        "select.deal" => draw.deal().is_some_and(|deal| deal.super_batches == SuperBatches::WithinClusters),
        _ => true,
    }
}

/// How many tasks a stage has, if the stages before it are far enough to tell.
fn n_tasks(run: &RunFolder, stage: &Stage) -> Result<Option<usize>, Error> {
    let complete = || -> Result<Option<usize>, Error> {
        Ok(run.stage_plan_if_present::<CompleteTasks>(&run.embed())?.map(|plan| plan.tasks.len()))
    };
    Ok(match stage.name.as_str() {
        "divide.fit" | "divide.bank" | "select.bank" | "report" => Some(1),
        "select.calibrate" => Some(calibrated_models(run.plan()).len()),
        "divide.assign" | "divide" | "select.score" | "select.deal" | "select" | "write.stats"
        | "write.gather" => complete()?,
        "select.draw" => run.stage_plan_if_present::<DrawPlans>(stage)?.map(|plan| plan.groups.len()),
        "write" => run.stage_plan_if_present::<OutputPlan>(stage)?.map(|plan| plan.shards.len()),
        // what only counts can tell
        name if name.contains(".merge") || name.ends_with(".group") => None,
        name if name.starts_with("select.filter") => complete()?,
        name if name.starts_with("embeddings/") => {
            let mut roles = run.plan().models.iter().map(|(role, _)| role);
            let role = roles.find(|role| run.embeddings(*role).as_ref() == Some(stage));
            role.map(|role| run.plan().tasks_of(role).len())
        }
        _ => Some(run.plan().pool.n_tasks()),
    })
}
