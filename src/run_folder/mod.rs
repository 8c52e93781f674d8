//! The bookkeeping of a run: which stages there are, what is committed, what is still to do.
//!
//! A task commits by its **marker** `_done/<stage>/<task>.json`, created if absent after its data files have
//! their names. The marker is the only commit: readers read what markers name and nothing else. A marker carries
//! the digest of its stage, so that a task done under other settings does not count.

mod marker;
mod stage;
mod stage_plan;

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::digest::Digest;
use crate::error::Error;
use crate::plan::Plan;
use crate::storage::Storage;

pub use marker::{Done, Marker, is_exchange_file};
pub use stage::{Place, Stage};

/// A run folder with its plan, and its store.
#[derive(Clone, Debug)]
pub struct RunFolder {
    run: Storage,
    store: Storage,
    base: Storage,
    plan: Plan,
    plan_digest: Digest,
}

/// What to do where the folder holds another plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherPlan {
    Refuse,
    /// Accept the new plan; keep every stage whose digest is unchanged, drop the others.
    Replace,
}

const PLAN: &str = "plan.json";

impl RunFolder {
    /// Opens a run folder for a plan, which it takes as its own if it has none.
    pub fn create(run: Storage, plan: Plan, other_plan: OtherPlan) -> Result<RunFolder, Error> {
        let folder = RunFolder::new(run, plan);
        folder.check_store()?;
        let text = serde_json::to_vec_pretty(&folder.plan).expect("a plan is representable as JSON");
        if folder.run.create_if_absent(PLAN, &text)? {
            return Ok(folder);
        }
        let present = read_plan(&folder.run)?;
        let differences = present.differences(&folder.plan);
        if differences.is_empty() {
            return Ok(folder);
        }
        if other_plan == OtherPlan::Refuse {
            return Err(Error::OtherPlan { folder: folder.run.root().to_owned(), differences });
        }
        // the new plan last: a stop in between leaves the earlier plan with fewer tasks done, and never a new plan
        // with stale markers in the places of its own
        folder.drop_stale()?;
        folder.run.put(PLAN, &text)?;
        Ok(folder)
    }

    /// Opens a run folder by the plan that it holds.
    pub fn open(run: Storage) -> Result<RunFolder, Error> {
        let plan = read_plan(&run)?;
        Ok(RunFolder::new(run, plan))
    }

    fn new(run: Storage, plan: Plan) -> RunFolder {
        // relative folders, which a round has, are so to its own
        let other = |folder: &Option<PathBuf>| {
            folder.as_ref().map_or_else(|| run.clone(), |at| Storage::new(run.root().join(at)))
        };
        let (store, base) = (other(&plan.store), other(&plan.base));
        let plan_digest = Digest::of_json(&plan);
        RunFolder { run, store, base, plan, plan_digest }
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn run(&self) -> &Storage {
        &self.run
    }

    /// Where the files of a stage lie.
    pub fn storage(&self, stage: &Stage) -> &Storage {
        match stage.place {
            Place::Run => &self.run,
            Place::Store => &self.store,
            Place::Base => &self.base,
        }
    }

    /// The run folder of a round of this run.
    pub fn round_folder(&self, round: u64) -> Storage {
        Storage::new(self.run.path(&format!("rounds/{round:03}")))
    }

    /// The rounds of this run that were begun, in order.
    pub fn rounds(&self) -> Result<Vec<RunFolder>, Error> {
        let mut rounds = Vec::new();
        for round in 1.. {
            match RunFolder::open(self.round_folder(round)) {
                Ok(round) => rounds.push(round),
                Err(Error::NotARun { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(rounds)
    }

    /// What a round follows: the run that it belongs to and the rounds before it, in order; nothing for a run.
    pub fn rounds_before(&self) -> Result<Vec<RunFolder>, Error> {
        if self.plan.base.is_none() {
            return Ok(Vec::new());
        }
        let base = RunFolder::open(self.base.clone())?;
        let mut before = base.rounds()?;
        before.truncate(self.plan.round as usize - 1);
        before.insert(0, base);
        Ok(before)
    }

    /// The folders that hold the run's files.
    pub fn storages(&self) -> Vec<&Storage> {
        if self.plan.store.is_some() { vec![&self.run, &self.store] } else { vec![&self.run] }
    }

    /// Whether every stage is done.
    pub fn is_complete(&self) -> Result<bool, Error> {
        Ok(self.undone(&self.report(), &[0])?.is_empty())
    }

    /// Drops what was committed under another digest, or by a step that the plan does not have: first the marker, then
    /// its files. Embeddings of other models stay in the store.
    fn drop_stale(&self) -> Result<(), Error> {
        let stages = self.stages()?;
        for name in self.committed_stages(&stages)? {
            let planned = stages.iter().find(|stage| stage.name == name);
            let absent =
                || Stage { name: name.clone(), digest: Digest::of_bytes(b"no stage"), place: Place::Run };
            let stage = planned.cloned().unwrap_or_else(absent);
            if stage.place == Place::Base && self.plan.base.is_some() {
                continue;
            }
            for (marker_name, marker) in self.markers_in(&stage)? {
                if marker.stage_digest != stage.digest {
                    self.drop_marker(&stage, &marker_name, &marker)?;
                }
            }
        }
        Ok(())
    }

    /// The names of the stages that have markers in the run folder, and of those that the plan has.
    fn committed_stages(&self, of_plan: &[Stage]) -> Result<BTreeSet<String>, Error> {
        let markers = self.run.list_all("_done")?;
        let folders = markers.iter().filter_map(|name| name.strip_prefix("_done/")?.rsplit_once('/'));
        let of_run = folders.map(|(stage, _)| stage.to_owned());
        let of_run = of_run.filter(|stage| !stage.starts_with("embeddings/"));
        Ok(of_run.chain(of_plan.iter().map(|stage| stage.name.clone())).collect())
    }

    /// A shared store belongs to one pool with one set of read limits.
    fn check_store(&self) -> Result<(), Error> {
        if self.plan.store.is_none() {
            return Ok(());
        }
        let samples = self.samples();
        let Some(first) = self.marker_names(&samples)?.into_iter().next() else { return Ok(()) };
        if self.read_marker(&samples, &first)?.stage_digest == samples.digest {
            Ok(())
        } else {
            Err(Error::StoreOfAnotherPool { folder: self.store.root().to_owned() })
        }
    }
}

fn read_plan(run: &Storage) -> Result<Plan, Error> {
    let bytes = run.read_if_present(PLAN)?;
    let bytes = bytes.ok_or_else(|| Error::NotARun { folder: run.root().to_owned() })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: run.path(PLAN), source })
}
