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

use serde::Deserialize;
use serde_json::Value;

use crate::digest::Digest;
use crate::embed::{CompleteTasks, SamplesCounts};
use crate::error::Error;
use crate::plan::{FORMAT_VERSION, Plan};
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
    /// Size and time of the plan's file, by which it is seen that another took its place.
    stamp: Option<(u64, u64)>,
}

/// What to do where the folder holds another plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherPlan {
    Refuse,
    /// Accept the new plan; keep every stage whose digest is unchanged, drop the others.
    Replace,
}

/// The file of a run's plan in its folder.
pub const PLAN: &str = "plan.json";

/// What a run writes into its folder beside its plan and its markers.
const OUTPUTS: [&str; 10] = [
    "divide",
    "select",
    "draws",
    "curated",
    "stats",
    "plan",
    "rounds",
    "_exchange",
    "report.json",
    "report.html",
];

/// What it writes into its store, which may be the same folder.
const EMBEDDED: [&str; 2] = ["samples", "embeddings"];

/// What is locked by who gives a folder its plan: no file that is ever replaced, since a lock is on a file and not on its
/// name.
const LOCK: &str = "_done/.lock";

impl RunFolder {
    /// Opens a run folder for a plan, which it takes as its own if it has none.
    ///
    /// # Errors
    ///
    /// [`Error::OtherPlan`] unless `other_plan` allows it, [`Error::Replanned`] while another process replaces the plan,
    /// [`Error::ForeignFile`] in the place of one of the run's, and a store that holds another pool's samples.
    pub fn create(run: Storage, plan: Plan, other_plan: OtherPlan) -> Result<RunFolder, Error> {
        let mut folder = RunFolder::new(run, plan);
        let text = serde_json::to_vec_pretty(&folder.plan).expect("a plan is representable as JSON");
        if folder.run.size_bytes(PLAN)?.is_none() {
            folder.check_foreign()?;
            folder.check_store()?;
            // of several that begin at once, the others wait until the folder is as the first wants it
            let _lock = folder.run.lock(LOCK)?;
            if folder.run.size_bytes(PLAN)?.is_none() {
                folder.drop_what_was_of(None)?;
                if folder.run.create_if_absent(PLAN, &text)? {
                    return folder.stamped();
                }
            }
        }
        let (present, stamp) = read_plan(&folder.run)?;
        let differences = present.differences(&folder.plan);
        if differences.is_empty() {
            folder.stamp = stamp;
            return Ok(folder);
        }
        if other_plan == OtherPlan::Refuse {
            return Err(Error::OtherPlan { folder: folder.run.root().to_owned(), differences });
        }
        // of two who replan at once, the second would drop what the first has made
        let Some(_lock) = folder.run.try_lock(LOCK)? else {
            return Err(Error::Replanned { folder: folder.run.root().to_owned() });
        };
        folder.check_store()?;
        // the new plan last: a stop in between leaves the earlier plan with fewer tasks done, and never a new plan
        // with stale markers in the places of its own
        folder.drop_what_was_of(Some(&present))?;
        folder.run.put(PLAN, &text)?;
        folder.stamped()
    }

    /// Refuses somebody else's files in the places of a run's, in a folder where nothing was ever committed.
    fn check_foreign(&self) -> Result<(), Error> {
        for (storage, names) in [(&self.run, &OUTPUTS[..]), (&self.store, &EMBEDDED)] {
            for name in names {
                let is_there = storage.size_bytes(name)?.is_some();
                let is_folder = storage.path(name).is_dir();
                let is_foreign = is_there && (!is_folder || !storage.list_all(name)?.is_empty());
                // who begins beside this one makes `_done` before anything else
                if is_foreign && storage.size_bytes("_done")?.is_none() {
                    return Err(Error::ForeignFile { path: storage.path(name) });
                }
            }
        }
        Ok(())
    }

    /// Opens a run folder by the plan that it holds.
    pub fn open(run: Storage) -> Result<RunFolder, Error> {
        let (plan, stamp) = read_plan(&run)?;
        let mut folder = RunFolder::new(run, plan);
        folder.stamp = stamp;
        Ok(folder)
    }

    fn new(run: Storage, plan: Plan) -> RunFolder {
        // relative folders, which a round has, are so to its own
        let other = |folder: &Option<PathBuf>| {
            folder.as_ref().map_or_else(|| run.clone(), |at| Storage::new(run.root().join(at)))
        };
        let (store, base) = (other(&plan.store), other(&plan.base));
        let plan_digest = Digest::of_json(&plan);
        RunFolder { run, store, base, plan, plan_digest, stamp: None }
    }

    /// Remembers the file of the plan as it is now, which this process has just written.
    fn stamped(mut self) -> Result<RunFolder, Error> {
        self.stamp = self.run.guard(PLAN)?;
        Ok(self)
    }

    /// Refuses to go on under a plan that is no longer the folder's.
    fn check_plan(&self) -> Result<(), Error> {
        if self.run.guard(PLAN)? == self.stamp {
            return Ok(());
        }
        Err(Error::Replanned { folder: self.run.root().to_owned() })
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

    /// The run that a round belongs to; nothing for a run.
    pub fn run_of_round(&self) -> Result<Option<RunFolder>, Error> {
        self.plan.base.as_ref().map(|_| RunFolder::open(self.base.clone())).transpose()
    }

    /// What a round follows: the run that it belongs to and the rounds before it, in order; nothing for a run.
    pub fn rounds_before(&self) -> Result<Vec<RunFolder>, Error> {
        let Some(base) = self.run_of_round()? else { return Ok(Vec::new()) };
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

    /// Drops what this plan cannot take over of an earlier one, which may be unknown.
    fn drop_what_was_of(&self, earlier: Option<&Plan>) -> Result<(), Error> {
        if self.plan.store.is_none() && self.first_other_shard()?.is_some() {
            self.drop_all()
        } else if self.may_read_left_out_shards(earlier)? {
            self.drop_after_embed()
        } else {
            self.drop_stale()
        }
    }

    /// Drops every commit but embeddings of other models.
    fn drop_all(&self) -> Result<(), Error> {
        self.drop_commits(|_, _| true)
    }

    /// Drops what was committed under another digest, or by a step that the plan does not have.
    fn drop_stale(&self) -> Result<(), Error> {
        self.drop_commits(is_stale)
    }

    /// Drops the list of complete tasks with all that stands on it.
    fn drop_after_embed(&self) -> Result<(), Error> {
        self.drop_commits(|stage, marker| stage.place != Place::Store || is_stale(stage, marker))?;
        self.drop_list_of_complete_tasks()
    }

    /// Drops commits: of each first the marker, then its files, and what stands on others before them. Embeddings of other
    /// models stay in the store, and the clusters of a round with the run that they are of.
    fn drop_commits(&self, is_to_go: impl Fn(&Stage, &Marker<Value>) -> bool) -> Result<(), Error> {
        let stages = self.stages()?;
        let others = self
            .committed_stages()?
            .into_iter()
            .filter(|name| stages.iter().all(|stage| stage.name != *name));
        let others =
            others.map(|name| Stage { name, digest: Digest::of_bytes(b"no stage"), place: Place::Run });
        for stage in others.chain(stages.iter().rev().cloned()) {
            if stage.place == Place::Base && self.plan.base.is_some() {
                continue;
            }
            for (marker_name, marker) in self.markers_in(&stage)? {
                if is_to_go(&stage, &marker) {
                    self.drop_marker(&stage, &marker_name, &marker)?;
                }
            }
        }
        self.drop_stage_plans_without_markers()
    }

    /// The names of the stages that have markers in the run folder.
    fn committed_stages(&self) -> Result<BTreeSet<String>, Error> {
        let markers = self.run.list_all("_done")?;
        let folders = markers.iter().filter_map(|name| name.strip_prefix("_done/")?.rsplit_once('/'));
        let stages = folders.map(|(stage, _)| stage.to_owned());
        Ok(stages.filter(|stage| !stage.starts_with("embeddings/")).collect())
    }

    /// A shared store belongs to one pool with one set of read limits.
    fn check_store(&self) -> Result<(), Error> {
        if self.plan.store.is_none() {
            return Ok(());
        }
        let samples = self.samples();
        let Some(first) = self.marker_names(&samples)?.into_iter().next() else { return Ok(()) };
        let folder = || self.store.root().to_owned();
        match self.read_marker(&samples, &first)? {
            Some(marker) if marker.stage_digest != samples.digest => {
                Err(Error::StoreOfAnotherPool { folder: folder() })
            }
            _ => match self.first_other_shard()? {
                Some(shard) => Err(Error::StoreOfAnotherShard { folder: folder(), shard }),
                None => Ok(()),
            },
        }
    }

    /// Whether shards that the list of complete tasks leaves out are others than those of the earlier plan, so that they
    /// may be readable now.
    fn may_read_left_out_shards(&self, earlier: Option<&Plan>) -> Result<bool, Error> {
        let list = self.stage_plan_if_present::<CompleteTasks>(&self.embed())?;
        let left_out = list.map(|list| list.left_out_shards).unwrap_or_default();
        let found = |plan: &Plan, id: &str| plan.pool.shards.iter().find(|shard| shard.id == id).cloned();
        Ok(left_out.iter().any(|id| {
            let before = earlier.and_then(|plan| found(plan, id));
            before.is_none() || before != found(&self.plan, id)
        }))
    }

    /// A shard that is another than the one that its committed samples were read from, though of its name and size.
    /// Those whose time of modification is the same are not looked at.
    fn first_other_shard(&self) -> Result<Option<String>, Error> {
        let (samples, pool) = (self.samples(), &self.plan.pool);
        for task in 0..pool.n_tasks() {
            let Some(marker) = self.marker_alone::<SamplesCounts>(&samples, task)? else { continue };
            for (shard, read) in pool.shards_of(task).iter().zip(&marker.counts.shards) {
                if shard.modified_ns != read.modified_ns && pool.fingerprint(shard)? != read.fingerprint {
                    return Ok(Some(shard.id.clone()));
                }
            }
        }
        Ok(None)
    }
}

fn is_stale(stage: &Stage, marker: &Marker<Value>) -> bool {
    marker.stage_digest != stage.digest
}

/// All of a plan that every version has.
#[derive(Deserialize)]
struct Version {
    format_version: u32,
}

/// A folder's plan, and its file's size and time from before it was read: a plan that takes its place meanwhile is noticed.
fn read_plan(run: &Storage) -> Result<(Plan, Option<(u64, u64)>), Error> {
    let stamp = run.guard(PLAN)?;
    let bytes = run.read_if_present(PLAN)?;
    let bytes = bytes.ok_or_else(|| Error::NotARun { folder: run.root().to_owned() })?;
    let path = run.path(PLAN);
    let unreadable = |source| match run.size_bytes("_done") {
        // it may be anybody's
        Ok(None) => Error::ForeignFile { path: path.clone() },
        _ => Error::Json { path: path.clone(), source },
    };
    let Version { format_version } = serde_json::from_slice(&bytes).map_err(unreadable)?;
    if format_version != FORMAT_VERSION {
        return Err(Error::FormatVersion { folder: run.root().to_owned(), format_version });
    }
    let plan = serde_json::from_slice(&bytes).map_err(unreadable)?;
    Ok((plan, stamp))
}
