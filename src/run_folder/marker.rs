//! Commits of tasks: a marker for each, and what markers say.

use std::collections::BTreeMap;
use std::io::Write;

use arrow::array::RecordBatch;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::Digest;
use crate::error::Error;
use crate::storage::{FileRecord, PendingFile};
use crate::table::{self, Description};

use super::stage_plan::stage_plan_name;
use super::{Place, RunFolder, Stage};

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

impl RunFolder {
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
    pub(super) fn marker_alone<C: DeserializeOwned>(
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

    /// What the numbers of a committed task depend on beside its inputs, whether or not its exchange file was cleaned
    /// away.
    pub fn committed_numerics(&self, stage: &Stage, task: usize) -> Result<BTreeMap<String, String>, Error> {
        let marker = self.marker_alone::<IgnoredAny>(stage, task)?;
        marker
            .map(|marker| marker.numerics)
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

    /// Gives a file of a task its name, ahead of the task's commit.
    ///
    /// # Errors
    ///
    /// [`Error::Diverged`] where the task is committed with other bytes under this name, say by another machine: what a marker
    /// names is not overwritten.
    pub fn put(&self, stage: &Stage, task: usize, file: PendingFile) -> Result<FileRecord, Error> {
        if stage.is_deterministic()
            && let Some(first) = self.marker_alone::<IgnoredAny>(stage, task)?
        {
            let is_other = |named: &FileRecord| named.name == file.name() && named.digest != file.digest();
            if first.data.iter().any(is_other) {
                return Err(Error::Diverged { stage: stage.name.clone(), task });
            }
        }
        file.commit()
    }

    /// Writes a table as a file of a task; see [`RunFolder::put`].
    pub fn put_table(
        &self,
        stage: &Stage,
        task: usize,
        name: &str,
        table: &RecordBatch,
        description: &Description,
    ) -> Result<FileRecord, Error> {
        self.put(stage, task, table::unnamed(self.storage(stage), name, table, description)?)
    }

    /// Writes bytes as a file of a task; see [`RunFolder::put`].
    pub fn put_bytes(
        &self,
        stage: &Stage,
        task: usize,
        name: &str,
        bytes: &[u8],
    ) -> Result<FileRecord, Error> {
        let storage = self.storage(stage);
        let mut file = storage.create(name)?;
        file.write_all(bytes).map_err(|source| Error::Write { path: storage.path(name), source })?;
        self.put(stage, task, file)
    }

    /// Commits a task; says whether this attempt was the first. Its files must have their names already, by [`RunFolder::put`]
    /// or names of their own.
    ///
    /// # Errors
    ///
    /// An earlier attempt under the same stage digest that wrote other bytes; [`Error::Replanned`].
    pub fn commit<C: Serialize>(&self, stage: &Stage, task: usize, done: Done<C>) -> Result<bool, Error> {
        self.check_plan()?;
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

    /// The files of a stage's markers, whatever stage digest they carry.
    pub(super) fn marker_names(&self, stage: &Stage) -> Result<Vec<String>, Error> {
        let folder = format!("_done/{}", stage.name);
        let files = self.storage(stage).list(&folder)?;
        let markers = files.into_iter().filter(|file| file.ends_with(".json"));
        Ok(markers.map(|file| format!("{folder}/{file}")).collect())
    }

    /// A marker under its name, unless another process took it back.
    pub(super) fn read_marker(&self, stage: &Stage, name: &str) -> Result<Option<Marker<Value>>, Error> {
        let storage = self.storage(stage);
        let Some(bytes) = storage.read_if_present(name)? else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| Error::Json { path: storage.path(name), source })
    }

    /// Every marker of a stage by the name of its file, whatever stage digest it carries.
    pub fn markers_in(&self, stage: &Stage) -> Result<Vec<(String, Marker<Value>)>, Error> {
        let names = self.marker_names(stage)?.into_iter();
        let marker = |name: String| Ok(self.read_marker(stage, &name)?.map(|marker| (name, marker)));
        names.filter_map(|name| marker(name).transpose()).collect()
    }

    /// Removes markers and stage plans that are no valid JSON of this format version: tasks without a marker are done
    /// again.
    pub fn drop_unreadable(&self) -> Result<Unreadable, Error> {
        let mut n_markers = 0;
        let mut is_of_embed = false;
        for stage in self.stages()? {
            for name in self.marker_names(&stage)? {
                if matches!(self.read_marker(&stage, &name), Err(Error::Json { .. })) {
                    self.drop_marker_alone(&stage, &name)?;
                    n_markers += 1;
                    is_of_embed |= stage.place == Place::Store;
                }
            }
        }
        let stage_plans = self.drop_unreadable_stage_plans()?;
        is_of_embed |= stage_plans.contains(&stage_plan_name(&self.embed()));
        Ok(Unreadable { n_dropped: n_markers + stage_plans.len(), is_of_embed })
    }

    /// Takes a commit back: the marker first, so that nothing names a missing file.
    pub fn drop_marker<C>(&self, stage: &Stage, name: &str, marker: &Marker<C>) -> Result<(), Error> {
        self.drop_marker_alone(stage, name)?;
        for file in &marker.data {
            self.storage(stage).remove(&file.name)?;
        }
        Ok(())
    }

    fn drop_marker_alone(&self, stage: &Stage, name: &str) -> Result<(), Error> {
        // it may be the list of other tasks when this one is done again, or fails
        if stage.place == Place::Store {
            self.drop_list_of_complete_tasks()?;
        }
        self.storage(stage).remove(name)
    }
}

/// What [`RunFolder::drop_unreadable`] has dropped.
pub struct Unreadable {
    /// Markers and stage plans.
    pub n_dropped: usize,
    /// Whether a marker of `samples` or `embeddings` was among them, or the list of complete tasks.
    pub is_of_embed: bool,
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
