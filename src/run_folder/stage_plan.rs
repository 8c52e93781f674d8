//! Stage plans: what a step decides once from the counts of the steps before it.

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::Error;

use super::{RunFolder, Stage};

#[derive(Serialize, Deserialize)]
struct StagePlan<P> {
    stage_digest: Digest,
    plan: P,
}

impl RunFolder {
    /// The stage plan under this name, made and committed by whoever comes first.
    pub fn stage_plan<P: Serialize + DeserializeOwned>(
        &self,
        stage: &Stage,
        make: impl FnOnce() -> Result<P, Error>,
    ) -> Result<P, Error> {
        if let Some(present) = self.stage_plan_if_present(stage)? {
            return Ok(present);
        }
        self.check_plan()?;
        let made = StagePlan { stage_digest: stage.digest.clone(), plan: make()? };
        let bytes = serde_json::to_vec_pretty(&made).expect("a stage plan is representable as JSON");
        while !self.run.create_if_absent(&stage_plan_name(stage), &bytes)? {
            match self.stage_plan_if_present(stage)? {
                Some(first) => return Ok(first),
                None => self.run.remove(&stage_plan_name(stage))?, // of an earlier plan
            }
        }
        Ok(made.plan)
    }

    /// The stage plan under this name, if it was made under the stage's present digest.
    pub fn stage_plan_if_present<P: DeserializeOwned>(&self, stage: &Stage) -> Result<Option<P>, Error> {
        let name = stage_plan_name(stage);
        let Some(bytes) = self.run.read_if_present(&name)? else { return Ok(None) };
        let json = |source| Error::Json { path: self.run.path(&name), source };
        let present: StagePlan<IgnoredAny> = serde_json::from_slice(&bytes).map_err(json)?;
        if present.stage_digest != stage.digest {
            return Ok(None);
        }
        let present: StagePlan<P> = serde_json::from_slice(&bytes).map_err(json)?;
        Ok(Some(present.plan))
    }

    /// Whether there is a stage plan under this name.
    pub fn has_stage_plan(&self, stage: &Stage) -> Result<bool, Error> {
        Ok(self.run.size_bytes(&stage_plan_name(stage))?.is_some())
    }

    /// Removes the stage plans that are no valid JSON of this format version, and names them.
    pub(super) fn drop_unreadable_stage_plans(&self) -> Result<Vec<String>, Error> {
        let mut dropped = Vec::new();
        for name in self.run.list("plan")? {
            let name = format!("plan/{name}");
            let Some(bytes) = self.run.read_if_present(&name)? else { continue };
            if serde_json::from_slice::<StagePlan<IgnoredAny>>(&bytes).is_err() {
                self.run.remove(&name)?;
                dropped.push(name);
            }
        }
        Ok(dropped)
    }

    /// Drops the list of complete tasks, so that it is made again from the embeddings that there are then. What stands on it
    /// must be dropped too, unless it will be the same.
    pub fn drop_list_of_complete_tasks(&self) -> Result<(), Error> {
        self.run.remove(&stage_plan_name(&self.embed()))
    }

    /// Drops the stage plans that were made from the counts of a step or of one before it, all but those of steps with
    /// commits left, so that they are made again from the counts as they are.
    pub fn drop_stage_plans_without_markers(&self) -> Result<(), Error> {
        for stage in self.stages()? {
            if self.marker_names(&stage)?.is_empty() {
                self.run.remove(&stage_plan_name(&stage))?;
            }
        }
        Ok(())
    }
}

pub(super) fn stage_plan_name(stage: &Stage) -> String {
    format!("plan/{}.json", stage.name)
}
