//! A shard that cannot be read fails its task; what depends on it stops, unless the settings allow leaving it out.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use superbatch::embed::Device;
use superbatch::error::Error;
use superbatch::executor::{Executor, Part};
use superbatch::plan::Plan;
use superbatch::report::{self, Report};
use superbatch::run_folder::{OtherPlan, RunFolder};
use superbatch::settings::Settings;
use superbatch::storage::Storage;
use superbatch::verify;

const SHARDS: [&str; 3] = ["shard-00000.tar", "shard-00001.tar", "shard-00002.tar"];

/// Three shards that a test may change, and runs over them.
struct Shards {
    folder: tempfile::TempDir,
    failed_shards_max: usize,
}

impl Shards {
    fn new(failed_shards_max: usize) -> Shards {
        let folder = tempfile::tempdir().unwrap();
        let shards = Shards { folder, failed_shards_max };
        for shard in SHARDS {
            fs::copy(fixtures().join("pool").join(shard), shards.path(shard)).unwrap();
        }
        shards
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn settings(&self) -> Settings {
        let pipeline = format!(
            r#"
            [read]
            shards = ["{pool}/*.tar"]
            failed_shards_max = {failed_shards_max}
            [models.learner]
            folder = "{models}/learner"
            [models.reference]
            folder = "{models}/reference"
            [[select.step]]
            method = "jest"
            filter_ratio = 0.5
            super_batch_size = 100
            "#,
            pool = self.folder.path().display(),
            failed_shards_max = self.failed_shards_max,
            models = fixtures().join("models").display(),
        );
        Settings::parse(&pipeline, &[]).unwrap()
    }

    fn plan(&self) -> Plan {
        Plan::new(&self.settings(), Device::Cpu).unwrap()
    }

    /// Makes a shard another than the one that a plan saw: its time, and one byte behind the end of the archive if it is to
    /// have other bytes.
    fn change(&self, shard: &str, has_other_bytes: bool) {
        let file = fs::File::options().write(true).open(self.path(shard)).unwrap();
        if has_other_bytes {
            file.write_at(&[1], file.metadata().unwrap().len() - 1).unwrap();
        }
        file.set_modified(SystemTime::now() + Duration::from_secs(10)).unwrap();
    }

    /// Does all of a run in this folder.
    fn run(&self, folder: &str, plan: Plan, other_plan: OtherPlan) -> Result<Report, Error> {
        let run = RunFolder::create(Storage::new(self.path(folder)), plan, other_plan)?;
        let executor =
            Executor { part: Part::WHOLE, n_threads: 2, memory_limit_bytes: 1 << 30, wait: Duration::ZERO };
        superbatch::pipeline::run(&run, &executor, &self.settings().inference())?;
        report::run(&run, &executor)
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// Runs under a plan that saw another second shard.
fn run_with_changed_shard(shards: &Shards) -> Result<Report, Error> {
    let plan = shards.plan();
    shards.change(SHARDS[1], false);
    shards.run("run", plan, OtherPlan::Refuse)
}

#[test]
fn a_changed_shard_stops_the_run() {
    let error = run_with_changed_shard(&Shards::new(0)).unwrap_err();
    assert!(matches!(&error, Error::ShardChanged { path } if path.ends_with(SHARDS[1])), "{error}");
}

#[test]
fn a_changed_shard_is_left_out_where_the_settings_allow_it() {
    let report = run_with_changed_shard(&Shards::new(1)).unwrap();
    assert_eq!(report.left_out_shards, [SHARDS[1]]);
    let counts = &report.counts;
    assert_eq!(counts.read, counts.kept + counts.not_drawn);
    assert!(counts.kept > 0 && counts.kept.abs_diff(counts.not_drawn) <= 1, "{counts:?}");
}

#[test]
fn a_replan_takes_in_what_was_left_out() {
    let shards = Shards::new(1);
    let before = run_with_changed_shard(&shards).unwrap();
    // the shard as it is now is no other than the fixture, and the others are kept
    let after = shards.run("run", shards.plan(), OtherPlan::Replace).unwrap();
    assert!(after.left_out_shards.is_empty(), "{:?}", after.left_out_shards);
    assert!(after.counts.read > before.counts.read);
    let fresh = shards.run("fresh", shards.plan(), OtherPlan::Refuse).unwrap();
    assert_eq!(after.counts, fresh.counts);

    // where another shard is in the place of one that was read, all are read again
    let shards = Shards::new(1);
    run_with_changed_shard(&shards).unwrap();
    shards.change(SHARDS[0], true);
    let report = shards.run("run", shards.plan(), OtherPlan::Replace).unwrap();
    assert!(report.left_out_shards.is_empty());
}

#[test]
fn a_repair_leaves_out_what_can_be_read_no_longer() {
    let shards = Shards::new(1);
    let before = shards.run("run", shards.plan(), OtherPlan::Refuse).unwrap();
    assert!(before.left_out_shards.is_empty());
    let run = RunFolder::open(Storage::new(shards.path("run"))).unwrap();
    fs::write(shards.path("run/samples/00001.parquet"), "damaged").unwrap();
    shards.change(SHARDS[1], false);
    verify::repair(&run).unwrap();
    let after = shards.run("run", run.plan().clone(), OtherPlan::Refuse).unwrap();
    assert_eq!(after.left_out_shards, [SHARDS[1]]);
    assert!(after.counts.read < before.counts.read);
    assert!(verify::verify(&run).unwrap().damaged.is_empty());
}
