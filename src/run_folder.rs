//! The bookkeeping of a run: which stages there are, what is committed, what is still to do.
//!
//! A task commits by its **marker** `_done/<stage>/<task>.json`, created if absent after its data files have
//! their names. The marker is the only commit: readers read what markers name and nothing else. A marker carries
//! the digest of its stage, so that a task done under other settings does not count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::Error;
use crate::plan::Plan;
use crate::settings::ModelRole;
use crate::storage::{FileRecord, Storage};

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
    fn is_deterministic(&self) -> bool {
        !self.name.starts_with("embeddings/")
    }

    /// A level of merging of the stage's exchange files.
    pub fn merge(&self, level: usize) -> Stage {
        Stage { name: format!("{}.merge{level}", self.name), ..self.clone() }
    }
}

/// A committed task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Marker<C> {
    pub stage: String,
    pub task: usize,
    pub stage_digest: Digest,
    /// The run whose plan the task was done under.
    pub plan_digest: Digest,
    /// The files that the task wrote.
    pub data: Vec<FileRecord>,
    /// What it read of other tasks, by file.
    pub read: Vec<FileRecord>,
    pub counts: C,
    /// What its numbers depend on beside its inputs.
    pub numerics: BTreeMap<String, String>,
}

impl<C> Marker<C> {
    /// The only file of a task that writes one.
    pub fn file(&self) -> &FileRecord {
        let [file] = &self.data[..] else { panic!("a task of `{}` writes one file", self.stage) };
        file
    }
}

/// What a task hands to [`RunFolder::commit`].
#[derive(Debug)]
pub struct Done<C> {
    pub data: Vec<FileRecord>,
    pub read: Vec<FileRecord>,
    pub counts: C,
    pub numerics: BTreeMap<String, String>,
}

impl<C> Done<C> {
    /// A task whose numbers depend on its inputs alone.
    pub fn new(data: Vec<FileRecord>, read: Vec<FileRecord>, counts: C) -> Done<C> {
        Done { data, read, counts, numerics: BTreeMap::new() }
    }
}

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
            if self.markers_in(&level)?.is_empty() {
                break;
            }
            stages.push(level);
        }
        Ok(())
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

    /// The marker of a task, if it is committed under the stage's present digest and its exchange file, if it wrote one,
    /// was not cleaned away.
    ///
    /// # Errors
    ///
    /// Any other data file that is missing, or one that has another size than its marker says.
    pub fn marker<C: DeserializeOwned>(
        &self,
        stage: &Stage,
        task: usize,
    ) -> Result<Option<Marker<C>>, Error> {
        let Some(marker) = self.marker_alone(stage, task)? else { return Ok(None) };
        let storage = self.storage(stage);
        for file in &marker.data {
            match storage.size_bytes(&file.name)? {
                Some(size_bytes) if size_bytes == file.size_bytes => {}
                None if is_exchange_file(&file.name) => return Ok(None),
                _ => return Err(Error::Damaged { path: storage.path(&file.name) }),
            }
        }
        Ok(Some(marker))
    }

    /// The marker of a task without a look at its files.
    fn marker_alone<C: DeserializeOwned>(
        &self,
        stage: &Stage,
        task: usize,
    ) -> Result<Option<Marker<C>>, Error> {
        let storage = self.storage(stage);
        let name = marker_name(stage, task);
        let Some(bytes) = storage.read_if_present(&name)? else { return Ok(None) };
        let json = |source| Error::Json { path: storage.path(&name), source };
        // another digest may mean counts of another shape
        let any: Marker<IgnoredAny> = serde_json::from_slice(&bytes).map_err(json)?;
        if any.stage_digest != stage.digest {
            return Ok(None);
        }
        serde_json::from_slice(&bytes).map(Some).map_err(json)
    }

    /// What a committed task counted, whether or not its exchange file was cleaned away.
    pub fn committed_counts<C: DeserializeOwned>(&self, stage: &Stage, task: usize) -> Result<C, Error> {
        let marker = self.marker_alone::<C>(stage, task)?;
        marker
            .map(|marker| marker.counts)
            .ok_or_else(|| Error::NotCommitted { stage: stage.name.clone(), task })
    }

    /// Whether every one of these tasks has counts, whether or not their exchange files were cleaned away.
    pub fn are_counted(&self, stage: &Stage, tasks: &[usize]) -> Result<bool, Error> {
        for &task in tasks {
            if self.marker_alone::<IgnoredAny>(stage, task)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The marker of a task that an earlier stage has committed.
    pub fn committed<C: DeserializeOwned>(&self, stage: &Stage, task: usize) -> Result<Marker<C>, Error> {
        self.marker(stage, task)?.ok_or_else(|| Error::NotCommitted { stage: stage.name.clone(), task })
    }

    /// Which of these tasks are not committed, in their order.
    pub fn undone(&self, stage: &Stage, tasks: &[usize]) -> Result<Vec<usize>, Error> {
        let mut undone = Vec::new();
        for &task in tasks {
            if self.marker::<IgnoredAny>(stage, task)?.is_none() {
                undone.push(task);
            }
        }
        Ok(undone)
    }

    /// Commits a task; says whether this attempt was the first. Its files must have their names already.
    ///
    /// # Errors
    ///
    /// An earlier attempt under the same stage digest that wrote other bytes.
    pub fn commit<C: Serialize>(&self, stage: &Stage, task: usize, done: Done<C>) -> Result<bool, Error> {
        let marker = Marker {
            stage: stage.name.clone(),
            task,
            stage_digest: stage.digest.clone(),
            plan_digest: self.plan_digest.clone(),
            data: done.data,
            read: done.read,
            counts: done.counts,
            numerics: done.numerics,
        };
        let bytes = serde_json::to_vec_pretty(&marker).expect("a marker is representable as JSON");
        let (storage, name) = (self.storage(stage), marker_name(stage, task));
        while !storage.create_if_absent(&name, &bytes)? {
            match self.marker_alone::<IgnoredAny>(stage, task)? {
                // the commit of an earlier plan, which does not count
                None => storage.remove(&name)?,
                Some(first) if first.data == marker.data || !stage.is_deterministic() => return Ok(false),
                Some(_) => return Err(Error::Diverged { stage: stage.name.clone(), task }),
            }
        }
        Ok(true)
    }

    /// Whether a marker was written under this run's plan, and not by another run or an earlier plan.
    pub fn is_own<C>(&self, marker: &Marker<C>) -> bool {
        marker.plan_digest == self.plan_digest
    }

    /// The stage plan under this name, made and committed by whoever comes first.
    pub fn stage_plan<P: Serialize + DeserializeOwned>(
        &self,
        stage: &Stage,
        make: impl FnOnce() -> Result<P, Error>,
    ) -> Result<P, Error> {
        if let Some(present) = self.stage_plan_if_present(stage)? {
            return Ok(present);
        }
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

    /// Every marker of a folder below `_done/`, whatever stage digest it carries.
    pub fn markers_in(&self, stage: &Stage) -> Result<Vec<(String, Marker<serde_json::Value>)>, Error> {
        let storage = self.storage(stage);
        let folder = format!("_done/{}", stage.name);
        let mut markers = Vec::new();
        for file in storage.list(&folder)? {
            if !file.ends_with(".json") {
                continue;
            }
            let name = format!("{folder}/{file}");
            let marker = serde_json::from_slice(&storage.read(&name)?)
                .map_err(|source| Error::Json { path: storage.path(&name), source })?;
            markers.push((name, marker));
        }
        Ok(markers)
    }

    /// Drops what was committed under another digest, or by a step that the plan does not have: first the marker, then
    /// its files. Embeddings of other models stay in the store.
    fn drop_stale(&self) -> Result<(), Error> {
        let stages = self.stages()?;
        for name in self.committed_stages()? {
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

    /// The names of the stages that have markers in the run folder, and of the store's that the plan has.
    fn committed_stages(&self) -> Result<BTreeSet<String>, Error> {
        let markers = self.run.list_all("_done")?;
        let folders = markers.iter().filter_map(|name| name.strip_prefix("_done/")?.rsplit_once('/'));
        let of_run = folders.map(|(stage, _)| stage.to_owned());
        let of_run = of_run.filter(|stage| !stage.starts_with("embeddings/"));
        let of_plan = self.stages()?.into_iter().map(|stage| stage.name);
        Ok(of_run.chain(of_plan).collect())
    }

    /// Takes a commit back: the marker first, so that nothing names a missing file.
    pub fn drop_marker<C>(&self, stage: &Stage, name: &str, marker: &Marker<C>) -> Result<(), Error> {
        let storage = self.storage(stage);
        storage.remove(name)?;
        for file in &marker.data {
            storage.remove(&file.name)?;
        }
        Ok(())
    }

    /// Drops the stage plans that were made from the counts of a step or of one before it, all but those of steps with
    /// commits left, so that they are made again from the counts as they are.
    pub fn drop_stage_plans_without_markers(&self) -> Result<(), Error> {
        for stage in self.stages()? {
            if self.markers_in(&stage)?.is_empty() {
                self.run.remove(&stage_plan_name(&stage))?;
            }
        }
        Ok(())
    }

    /// A shared store belongs to one pool with one set of read limits.
    fn check_store(&self) -> Result<(), Error> {
        if self.plan.store.is_none() {
            return Ok(());
        }
        for (_, marker) in self.markers_in(&self.samples())?.into_iter().take(1) {
            if marker.stage_digest != self.plan.digests.samples {
                return Err(Error::StoreOfAnotherPool { folder: self.store.root().to_owned() });
            }
        }
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct StagePlan<P> {
    stage_digest: Digest,
    plan: P,
}

fn read_plan(run: &Storage) -> Result<Plan, Error> {
    let bytes = run.read_if_present(PLAN)?;
    let bytes = bytes.ok_or_else(|| Error::NotARun { folder: run.root().to_owned() })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: run.path(PLAN), source })
}

/// Where steps hand rows to each other; nothing there is a result.
const EXCHANGE_FOLDER: &str = "_exchange/";

/// Whether `clean` may have removed a file without harm.
pub fn is_exchange_file(name: &str) -> bool {
    name.starts_with(EXCHANGE_FOLDER)
}

fn marker_name(stage: &Stage, task: usize) -> String {
    format!("_done/{}/{task:05}.json", stage.name)
}

fn stage_plan_name(stage: &Stage) -> String {
    format!("plan/{}.json", stage.name)
}
