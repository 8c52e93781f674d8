//! A run folder in; its damaged files, or the folder without them and without leftovers, out.

use std::collections::BTreeSet;

use crate::embed::CompleteTasks;
use crate::error::Error;
use crate::run_folder::{Marker, Place, RunFolder, Stage, is_exchange_file};
use crate::storage::{Storage, UNFINISHED_PREFIX};

/// What reading every committed file again has found.
#[derive(Debug, Default)]
pub struct Verified {
    pub n_files: usize,
    pub n_bytes: u64,
    /// Names of files that are missing or not what their markers say.
    pub damaged: BTreeSet<String>,
    /// Files in the product's folder that no marker names.
    pub unknown: Vec<String>,
}

impl Verified {
    pub fn text(&self) -> String {
        let mut text =
            format!("{} files, {} bytes read, {} damaged", self.n_files, self.n_bytes, self.damaged.len());
        for name in &self.damaged {
            text.push_str(&format!("\ndamaged: {name}"));
        }
        for name in &self.unknown {
            text.push_str(&format!("\nnamed by no marker: {name}"));
        }
        text
    }
}

type Committed = (Stage, String, Marker<serde_json::Value>);

/// Every marker of the run's stages under their present digests.
fn committed(run: &RunFolder) -> Result<Vec<Committed>, Error> {
    let mut all = Vec::new();
    for stage in run.stages()? {
        for (name, marker) in run.markers_in(&stage)? {
            if marker.stage_digest == stage.digest {
                all.push((stage.clone(), name, marker));
            }
        }
    }
    Ok(all)
}

/// Reads every file that a marker names and compares it.
pub fn verify(run: &RunFolder) -> Result<Verified, Error> {
    let mut verified = Verified::default();
    let mut named = BTreeSet::new();
    for (stage, _, marker) in committed(run)? {
        let storage = run.storage(&stage);
        for file in &marker.data {
            named.insert(file.name.clone());
            if is_exchange_file(&file.name) && storage.size_bytes(&file.name)?.is_none() {
                continue;
            }
            verified.n_files += 1;
            verified.n_bytes += file.size_bytes;
            let is_whole = storage.size_bytes(&file.name)? == Some(file.size_bytes)
                && storage.digest(&file.name)? == file.digest;
            if !is_whole {
                verified.damaged.insert(file.name.clone());
            }
        }
    }
    let products = run.run().list("curated")?.into_iter().map(|name| format!("curated/{name}"));
    verified.unknown = products.filter(|name| name.ends_with(".parquet") && !named.contains(name)).collect();
    Ok(verified)
}

/// Drops markers and stage plans that cannot be read, the markers of damaged files, and of everything that was made from
/// them or that stands on counts of them, with their files.
pub fn repair(run: &RunFolder) -> Result<String, Error> {
    let unreadable = run.drop_unreadable()?;
    let mut damaged = verify(run)?.damaged;
    let all = committed(run)?;
    // what no marker names any more, say after the repair of a run that shares it, may come back as other bytes
    let named: BTreeSet<&str> =
        all.iter().flat_map(|(_, _, marker)| &marker.data).map(|file| file.name.as_str()).collect();
    let read = all.iter().flat_map(|(_, _, marker)| &marker.read).map(|file| &file.name);
    damaged.extend(read.filter(|name| !named.contains(name.as_str())).cloned());
    let stands_on_counts = StandsOnCounts::of(run)?;
    let mut is_embed_lost = unreadable.is_of_embed || !is_list_true(run)?;
    // where in the flow tasks are lost
    let mut lost: BTreeSet<usize> = BTreeSet::new();
    let mut is_bad = vec![false; all.len()];
    loop {
        let n_damaged = damaged.len();
        for ((stage, _, marker), is_bad) in all.iter().zip(&mut is_bad) {
            // the report reads every stage, and its marker lists none of it
            let reads_all = marker.stage == run.report().name && !damaged.is_empty()
                || stands_on_counts.is_spoilt(stage, is_embed_lost, &lost);
            let mut files = marker.data.iter().chain(&marker.read);
            if reads_all || files.any(|file| damaged.contains(&file.name)) {
                *is_bad = true;
                is_embed_lost |= stage.place == Place::Store;
                lost.insert(stands_on_counts.position(stage));
                damaged.extend(marker.data.iter().map(|file| file.name.clone()));
            }
        }
        if damaged.len() == n_damaged {
            break;
        }
    }
    // last stage first: after a stop half-way, what is left is still found from what it reads
    let bad: Vec<&Committed> =
        all.iter().zip(&is_bad).rev().filter(|(_, is_bad)| **is_bad).map(|(c, _)| c).collect();
    for (stage, name, marker) in &bad {
        run.drop_marker(stage, name, marker)?;
    }
    if is_embed_lost {
        run.drop_list_of_complete_tasks()?;
    }
    if !bad.is_empty() || unreadable.n_dropped > 0 {
        run.drop_stage_plans_without_markers()?;
    }
    let n_dropped = bad.len() + unreadable.n_dropped;
    Ok(format!("{n_dropped} tasks dropped; `superbatch run` does them again"))
}

/// Whether all that the list of complete tasks names is there still; a list that is missing is true of nothing.
fn is_list_true(run: &RunFolder) -> Result<bool, Error> {
    let list: Option<CompleteTasks> = run.stage_plan_if_present(&run.embed())?;
    let Some(list) = list else { return Ok(false) };
    if !run.are_counted(&run.samples(), &list.tasks)? {
        return Ok(false);
    }
    for (role, _) in run.plan().models.iter() {
        let stage = run.embeddings(role).expect("a model of the plan");
        let mut tasks = run.plan().tasks_of(role);
        tasks.retain(|task| list.tasks.binary_search(task).is_ok());
        if !run.are_counted(&stage, &tasks)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What steps stand on beside the files that their markers name: the list of complete tasks, and counts of whole steps
/// before them. What is made again on other hardware may have other counts, and a shard may be readable no longer.
struct StandsOnCounts {
    /// In the order of the flow, each with whether it has a stage plan.
    steps: Vec<(Stage, bool)>,
    /// Whether the clusters are another run's, which has a list of its own.
    is_round: bool,
}

impl StandsOnCounts {
    fn of(run: &RunFolder) -> Result<StandsOnCounts, Error> {
        let steps = run.stages()?.into_iter();
        let steps = steps.map(|step| run.has_stage_plan(&step).map(|is_planned| (step, is_planned)));
        Ok(StandsOnCounts { steps: steps.collect::<Result<_, _>>()?, is_round: run.plan().base.is_some() })
    }

    fn position(&self, step: &Stage) -> usize {
        self.steps.iter().position(|(other, _)| other == step).expect("a step of the plan")
    }

    /// Whether all tasks of a step are to go: all stand on the list of complete tasks, and those of a stage with a stage plan
    /// on the counts of the stages before it.
    fn is_spoilt(&self, step: &Stage, is_embed_lost: bool, lost: &BTreeSet<usize>) -> bool {
        let stands_on_list = match step.place {
            Place::Store => false,
            Place::Base => !self.is_round,
            Place::Run => true,
        };
        // the steps of a stage have one digest
        let has_plan =
            self.steps.iter().any(|(other, is_planned)| *is_planned && other.digest == step.digest);
        let is_of_another = |before: &usize| self.steps[*before].0.digest != step.digest;
        stands_on_list && is_embed_lost || has_plan && lost.range(..self.position(step)).any(is_of_another)
    }
}

/// Drops unfinished files, embeddings of attempts that were not the first, and, once the run is complete, exchange files.
///
/// No run may be going on: an unfinished file of it would be lost, and its task fail.
pub fn clean(run: &RunFolder) -> Result<String, Error> {
    let (mut n_files, mut n_bytes) = (0, 0);
    let mut remove = |storage: &Storage, name: &str| -> Result<(), Error> {
        n_bytes += storage.size_bytes(name)?.unwrap_or(0);
        n_files += 1;
        storage.remove(name)
    };
    for storage in run.storages() {
        for name in storage.list_all("")? {
            let is_unfinished =
                name.rsplit('/').next().is_some_and(|file| file.starts_with(UNFINISHED_PREFIX));
            if is_unfinished {
                remove(storage, &name)?;
            }
        }
    }
    for stage in run.stages()?.into_iter().filter(|stage| stage.name.starts_with("embeddings/")) {
        let markers = run.markers_in(&stage)?;
        let named: BTreeSet<&str> =
            markers.iter().flat_map(|(_, marker)| &marker.data).map(|file| file.name.as_str()).collect();
        let storage = run.storage(&stage);
        for file in storage.list(&stage.name)? {
            let name = format!("{}/{file}", stage.name);
            if !named.contains(name.as_str()) {
                remove(storage, &name)?;
            }
        }
    }
    if run.is_complete()? {
        for name in run.run().list_all("_exchange")? {
            remove(run.run(), &name)?;
        }
    }
    Ok(format!("{n_files} files, {n_bytes} bytes removed"))
}
