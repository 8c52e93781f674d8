//! A shard that cannot be read fails its task; what depends on it stops, unless the settings allow leaving it out.

use std::fs;
use std::path::Path;
use std::time::Duration;

use superbatch::embed::Device;
use superbatch::error::Error;
use superbatch::executor::{Executor, Part};
use superbatch::plan::Plan;
use superbatch::report::{self, Report};
use superbatch::run_folder::{OtherPlan, RunFolder};
use superbatch::settings::Settings;
use superbatch::storage::Storage;

/// Plans a run over three shards, then touches one of them, so that it is not the one that the plan saw.
fn run_with_changed_shard(failed_shards_max: usize) -> Result<Report, Error> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let folder = tempfile::tempdir().unwrap();
    for shard in ["shard-00000.tar", "shard-00001.tar", "shard-00002.tar"] {
        fs::copy(fixtures.join("pool").join(shard), folder.path().join(shard)).unwrap();
    }
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
        pool = folder.path().display(),
        models = fixtures.join("models").display(),
    );
    let settings = Settings::parse(&pipeline, &[]).unwrap();
    let plan = Plan::new(&settings, Device::Cpu).unwrap();
    let changed = fs::File::options().append(true).open(folder.path().join("shard-00001.tar")).unwrap();
    changed.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();

    let run = RunFolder::create(Storage::new(folder.path().join("run")), plan, OtherPlan::Refuse)?;
    let executor =
        Executor { part: Part::WHOLE, n_threads: 2, memory_limit_bytes: 1 << 30, wait: Duration::ZERO };
    superbatch::pipeline::run(&run, &executor, &settings.inference())?;
    report::run(&run, &executor)
}

#[test]
fn a_changed_shard_stops_the_run() {
    let error = run_with_changed_shard(0).unwrap_err();
    assert!(matches!(&error, Error::ShardChanged { path } if path.ends_with("shard-00001.tar")), "{error}");
}

#[test]
fn a_changed_shard_is_left_out_where_the_settings_allow_it() {
    let report = run_with_changed_shard(1).unwrap();
    assert_eq!(report.left_out_shards, ["shard-00001.tar"]);
    let counts = &report.counts;
    assert_eq!(counts.read, counts.kept + counts.not_drawn);
    assert!(counts.kept > 0 && counts.kept.abs_diff(counts.not_drawn) <= 1, "{counts:?}");
}
