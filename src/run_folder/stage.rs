//! Which stages and steps a plan has, each with its digest, in the order of the flow.

use crate::digest::Digest;
use crate::error::Error;
use crate::settings::ModelRole;

use super::RunFolder;

/// A stage, or a step inside one, as the run folder knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Its folder below `_done/`.
    pub name: String,
    pub digest: Digest,
    pub place: Place,
}

/// Where the files of a stage lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Run,
    /// What depends on pool and model alone; runs may share it.
    Store,
    /// The run whose clusters a later round keeps.
    Base,
}

impl Stage {
    /// Whether two attempts at a task write the same bytes: all do but inference, which may differ by hardware.
    pub(super) fn is_deterministic(&self) -> bool {
        !self.name.starts_with("embeddings/")
    }

    /// A level of merging of the stage's exchange files.
    pub fn merge(&self, level: usize) -> Stage {
        Stage { name: format!("{}.merge{level}", self.name), ..self.clone() }
    }
}

impl RunFolder {
    pub fn samples(&self) -> Stage {
        Stage { name: "samples".to_owned(), digest: self.plan.digests.samples.clone(), place: Place::Store }
    }

    /// The embeddings of one model.
    pub fn embeddings(&self, role: ModelRole) -> Option<Stage> {
        let model = self.plan.models.get(role)?;
        Some(Stage {
            name: format!("embeddings/{}", model.digest),
            digest: self.plan.digests.embeddings[&role.to_string()].clone(),
            place: Place::Store,
        })
    }

    /// What later stages stand on: names the stage plan of the complete embed tasks.
    pub fn embed(&self) -> Stage {
        let digests =
            (&self.plan.digests.samples, &self.plan.digests.embeddings, self.plan.read.failed_shards_max);
        Stage { name: "embed".to_owned(), digest: Digest::of_json(&digests), place: Place::Run }
    }

    /// A step of `divide`: `divide.fit`, `divide.assign`, `divide.bank`, `divide`.
    pub fn divide(&self, step: &'static str) -> Option<Stage> {
        let digest = self.plan.digests.divide.clone()?;
        Some(Stage { name: step.to_owned(), digest, place: Place::Base })
    }

    /// A step of what samples are worth by themselves: `select.calibrate`, `select.bank`, `select.score`.
    pub fn score(&self, step: &'static str) -> Stage {
        Stage { name: step.to_owned(), digest: self.plan.digests.score.clone(), place: Place::Run }
    }

    /// A step of the filter at this position: `.deal`, `.group`, or nothing for its scores.
    pub fn filter(&self, position: usize, step: &'static str) -> Stage {
        let filter = &self.plan.select.filters[position];
        Stage {
            name: format!("select.filter.{}{step}", filter.name),
            digest: self.plan.digests.filters[position].clone(),
            place: Place::Run,
        }
    }

    /// What all filters together left.
    pub fn filtered(&self) -> Stage {
        let digests = &self.plan.digests;
        let digest = digests.filters.last().unwrap_or(&digests.score).clone();
        Stage { name: "select.filter".to_owned(), digest, place: Place::Run }
    }

    /// A step of the draw: `select.deal`, `select.draw`, `select`.
    pub fn select(&self, step: &'static str) -> Stage {
        Stage { name: step.to_owned(), digest: self.plan.digests.select.clone(), place: Place::Run }
    }

    /// A step of `write`: `write.stats`, `write.gather`, `write`.
    pub fn write(&self, step: &'static str) -> Stage {
        Stage { name: step.to_owned(), digest: self.plan.digests.write.clone(), place: Place::Run }
    }

    pub fn report(&self) -> Stage {
        Stage { name: "report".to_owned(), digest: self.plan.digests.report.clone(), place: Place::Run }
    }

    /// Every stage and step in the order of the flow, one for each distinct model, with the levels of merging that
    /// there are.
    pub fn stages(&self) -> Result<Vec<Stage>, Error> {
        let mut stages = vec![self.samples()];
        for (role, _) in self.plan.models.iter() {
            let embeddings = self.embeddings(role).expect("the plan names the model");
            if !stages.contains(&embeddings) {
                stages.push(embeddings);
            }
        }
        for step in ["divide.fit", "divide.assign", "divide.bank", "divide"] {
            stages.extend(self.divide(step));
        }
        for step in ["select.calibrate", "select.bank", "select.score"] {
            stages.push(self.score(step));
        }
        for (position, filter) in self.plan.select.filters.iter().enumerate() {
            for step in filter.filter.steps() {
                self.push_with_merges(&mut stages, self.filter(position, step))?;
            }
        }
        stages.push(self.filtered());
        for step in ["select.deal", "select.draw", "select"] {
            self.push_with_merges(&mut stages, self.select(step))?;
        }
        for step in ["write.stats", "write.gather", "write"] {
            self.push_with_merges(&mut stages, self.write(step))?;
        }
        stages.push(self.report());
        Ok(stages)
    }

    fn push_with_merges(&self, stages: &mut Vec<Stage>, stage: Stage) -> Result<(), Error> {
        let levels = (1..).map(|level| stage.merge(level));
        stages.push(stage.clone());
        for level in levels {
            if self.marker_names(&level)?.is_empty() {
                break;
            }
            stages.push(level);
        }
        Ok(())
    }
}
