//! Other settings: what is unchanged is kept, what follows from the change is done again, and nothing else stays.

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use assert_cmd::assert::OutputAssertExt;
use superbatch::error::Error;
use superbatch::run_folder::{Done, RunFolder};
use superbatch::storage::Storage;
use support::{
    Pipeline, assert_same_bytes, assert_verified, copy_folder, embedded_store, error_of, json, names, root,
    status, superbatch,
};

/// The stages whose tasks this run's own plan has done.
fn done_by_this_plan(run: &Path) -> Vec<String> {
    status(run)
        .into_iter()
        .filter(|(_, (_, by_this_plan, _))| *by_this_plan > 0)
        .map(|(stage, _)| stage)
        .collect()
}

fn embeddings_stage(run: &Path, role: &str) -> String {
    let plan = json(&run.join("plan.json"));
    format!("embeddings/{}", plan["models"][role]["digest"].as_str().unwrap())
}

/// Fails unless a replanned run is what a fresh run of the same settings is.
#[track_caller]
fn assert_as_fresh(pipeline: &Pipeline, replanned: &Path) {
    let folder = tempfile::tempdir().unwrap();
    pipeline.run(folder.path());
    assert_same_bytes(folder.path(), replanned, &["curated", "select"]);
    for part in ["divide", "stats", "plan"] {
        assert_eq!(names(&folder.path().join(part)), names(&replanned.join(part)), "names in `{part}`");
    }
    let counts = |run: &Path| json(&run.join("report.json"))["counts"].clone();
    assert_eq!(counts(folder.path()), counts(replanned));
    assert_verified(replanned);
}

#[test]
fn another_filter_ratio_reuses_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    Pipeline::embedded().run(&first);
    Pipeline::embedded().with("select.step.0.filter_ratio=0.5").run(&second);
    let status = status(&second);
    for stage in
        ["samples".to_owned(), embeddings_stage(&second, "learner"), embeddings_stage(&second, "reference")]
    {
        assert_eq!(status[&stage], (3, 0, Some(3)), "{stage}: done, done by this plan, tasks");
    }
    assert_eq!(status["select"], (3, 3, Some(3)));
    assert_eq!(json(&second.join("report.json"))["counts"]["kept"], 200);
}

#[test]
fn another_learner_embeds_only_itself() {
    let folder = tempfile::tempdir().unwrap();
    // a store of its own, since the new learner's embeddings come into it
    let store = folder.path().join("store");
    copy_folder(embedded_store(), &store);
    let pipeline = Pipeline::small().with_store(&store);
    let model = folder.path().join("learner");
    copy_folder(&root().join("fixtures/models/learner"), &model);
    let manifest = fs::read_to_string(model.join("model.toml")).unwrap();
    let without_scale =
        manifest.lines().filter(|line| !line.starts_with("logit_scale")).collect::<Vec<_>>().join("\n");
    let learner = pipeline.with(&format!("models.learner.folder='{}'", model.display()));

    // the same towers with another logit scale: nothing to embed
    fs::write(model.join("model.toml"), format!("{without_scale}\nlogit_scale = 12.5\n")).unwrap();
    let rescaled = folder.path().join("rescaled");
    learner.run(&rescaled);
    assert_eq!(status(&rescaled)[&embeddings_stage(&rescaled, "learner")], (3, 0, Some(3)));
    assert_eq!(json(&rescaled.join("plan.json"))["models"]["learner"]["logit_scale"], 12.5);

    // the same towers on images that are resized otherwise
    fs::write(model.join("model.toml"), format!("{manifest}\nresample = \"bilinear\"\n")).unwrap();
    let other = folder.path().join("other");
    learner.run(&other);
    let status = status(&other);
    assert_eq!(status[&embeddings_stage(&other, "learner")], (3, 3, Some(3)));
    assert_eq!(status[&embeddings_stage(&other, "reference")], (3, 0, Some(3)));
    assert_eq!(status["samples"], (3, 0, Some(3)));
    assert_verified(&other);
}

#[test]
fn stages_that_run_no_model_need_none() {
    let folder = tempfile::tempdir().unwrap();
    let (run, model, away) =
        (folder.path().join("run"), folder.path().join("learner"), folder.path().join("away"));
    copy_folder(&root().join("fixtures/models/learner"), &model);
    let pipeline = Pipeline::embedded().with(&format!("models.learner.folder='{}'", model.display()));
    pipeline.run(&run);
    fs::rename(&model, &away).unwrap();
    for stage in ["divide", "select", "write", "report"] {
        pipeline.command(stage, &run).assert().success();
    }
    let error = error_of(&mut pipeline.with("seed=7").command("select", &run), 2);
    assert!(error.contains("holds the run of another plan"), "{error}");
    // these are to find out what the folder holds
    let mut embed = pipeline.command("embed", &run);
    let mut replan = pipeline.command("select", &run);
    for command in [&mut embed, replan.arg("--replan")] {
        let error = error_of(command, 2);
        assert!(error.contains("cannot load model"), "{error}");
    }
}

#[test]
fn a_model_that_is_not_the_planned_one_embeds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (run, model) = (folder.path().join("run"), folder.path().join("reference"));
    copy_folder(&root().join("fixtures/models/reference"), &model);
    let pipeline = Pipeline::of_shards("fixtures/pool/shard-00003.tar")
        .with(&format!("models.reference.folder='{}'", model.display()));
    pipeline.run(&run);
    let embeddings = embeddings_stage(&run, "reference");
    fs::remove_dir_all(run.join("_done").join(&embeddings)).unwrap();
    let manifest = fs::read_to_string(model.join("model.toml")).unwrap();
    fs::write(model.join("model.toml"), format!("{manifest}\nresample = \"bilinear\"\n")).unwrap();
    // a round keeps the plan of every model but the learner
    let mut round = superbatch([Path::new("round"), &run]);
    let error = error_of(round.args(["--learner", "fixtures/models/learner"]), 1);
    assert!(error.contains("is not the one that the plan saw"), "{error}");
    assert!(error.contains("\nhint: ") && error.contains("`--replan`"), "{error}");
    assert!(!run.join("_done").join(&embeddings).exists(), "nothing is embedded");
}

#[test]
fn a_run_of_another_plan_is_refused_or_replanned() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let first = Pipeline::embedded();
    first.run(&run);
    let n_shards = names(&run.join("curated")).len();

    // fewer output shards than before: none may stay behind
    let fewer = first.with("select.step.0.filter_ratio=0.9").with("write.shard_bytes=200000");
    let error = error_of(&mut fewer.command("run", &run), 2);
    assert!(error.contains("holds the run of another plan"), "{error}");
    assert!(error.contains("select.step.0.filter_ratio: \"0.8\" → \"0.9\""), "{error}");
    assert!(error.contains("write.shard_bytes: 60000 → 200000"), "{error}");
    assert!(error.contains("hint: ") && error.contains("--replan"), "{error}");
    assert_eq!(names(&run.join("curated")).len(), n_shards, "nothing is touched");

    fewer.command("run", &run).arg("--replan").assert().success();
    assert!(names(&run.join("curated")).len() < n_shards);
    let done = done_by_this_plan(&run);
    assert!(
        done.iter().all(|stage| ["select", "write", "report"].iter().any(|name| stage.starts_with(name))),
        "{done:?}"
    );
    assert_as_fresh(&fewer, &run);

    // only the writing changes
    let rewritten = fewer.with("write.order=shard");
    rewritten.command("run", &run).arg("--replan").assert().success();
    let done = done_by_this_plan(&run);
    assert!(done.iter().all(|stage| stage.starts_with("write") || stage == "report"), "{done:?}");
    assert_as_fresh(&rewritten, &run);

    // clusters change: divide and all that follows
    let reclustered = rewritten.with("divide.n_clusters=3");
    reclustered.command("run", &run).arg("--replan").assert().success();
    assert!(done_by_this_plan(&run).contains(&"divide.fit".to_owned()));
    assert_as_fresh(&reclustered, &run);

    // there and back: what was stale is not taken up again
    first.command("run", &run).arg("--replan").assert().success();
    assert_as_fresh(&first, &run);

    // the same plan is no other plan
    first.command("run", &run).assert().success();
    first.command("run", &run).arg("--replan").assert().success();
}

#[test]
fn a_replan_without_clusters_drops_them() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    Pipeline::embedded().run(&run);
    let text = fs::read_to_string(root().join("pipelines/quickstart.toml")).unwrap();
    let without = text.replace("[divide]\nn_clusters = 10\n", "");
    assert_ne!(without, text);
    let file = folder.path().join("pipeline.toml");
    fs::write(&file, without).unwrap();
    let mut pipeline = Pipeline { file, ..Pipeline::embedded() };
    pipeline.sets.retain(|set| !set.starts_with("divide."));
    pipeline.command("run", &run).arg("--replan").assert().success();
    assert!(names(&run.join("divide")).is_empty());
    let folder = tempfile::tempdir().unwrap();
    pipeline.run(folder.path());
    assert_same_bytes(folder.path(), &run, &["curated", "select"]);
    assert_verified(&run);
}

#[test]
fn a_replan_with_other_limits_reads_again() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let one_shard = Pipeline::of_shards("fixtures/pool/shard-00001.tar");
    one_shard.run(&run);
    let stricter = one_shard.with("read.limits.caption_bytes_max=30");
    stricter.command("run", &run).arg("--replan").assert().code(3);
    assert!(json(&run.join("report.json"))["counts"]["rejected"]["caption_too_long"].as_u64() > Some(0));
    assert_eq!(names(&run.join("samples")).len(), 1);
    assert_verified(&run);

    // a shared store belongs to one pool and one set of limits
    let other = folder.path().join("other");
    let error = error_of(
        &mut Pipeline::embedded().with("read.limits.caption_bytes_max=30").command("run", &other),
        2,
    );
    assert!(error.contains("holds the samples of another pool") && error.contains("hint: "), "{error}");
}

/// Two shards of one size; what the first holds comes with the second's name where they are exchanged.
fn two_shards(folder: &Path, exchanged: bool) {
    let read = |number: u64| {
        let mut bytes = fs::read(root().join(format!("fixtures/pool/shard-0000{number}.tar"))).unwrap();
        bytes.resize(400_000, 0);
        bytes
    };
    let numbers = if exchanged { [2, 1] } else { [1, 2] };
    for (name, number) in ["a.tar", "b.tar"].into_iter().zip(numbers) {
        fs::write(folder.join(name), read(number)).unwrap();
        // files that are written at once may have one time
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + number);
        File::options().write(true).open(folder.join(name)).unwrap().set_modified(time).unwrap();
    }
}

#[test]
fn shards_of_the_same_names_and_sizes_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    for (name, exchanged) in [("pool", false), ("other", true)] {
        fs::create_dir(place(name)).unwrap();
        two_shards(&place(name), exchanged);
    }
    let of = |pool: &str| Pipeline::of_shards(&place(pool).join("*.tar").display().to_string());
    of("pool").with_store(&place("store")).run(&place("stored"));
    let error = error_of(&mut of("other").with_store(&place("store")).command("run", &place("refused")), 2);
    assert!(error.contains("another shard `a.tar`"), "{error}");

    of("pool").run(&place("run"));
    two_shards(&place("pool"), true);
    error_of(&mut of("pool").command("run", &place("run")), 2);
    of("pool").command("run", &place("run")).arg("--replan").assert().success();
    of("other").run(&place("fresh"));
    assert_same_bytes(&place("run"), &place("fresh"), &["samples", "select", "curated"]);
    assert_verified(&place("run"));

    // nor does a plan that is not there any more hide them
    of("pool").run(&place("run"));
    two_shards(&place("pool"), false);
    fs::remove_file(place("run").join("plan.json")).unwrap();
    of("pool").run(&place("run"));
    assert_same_bytes(&place("run"), &place("stored"), &["select", "curated"]);
    assert_verified(&place("run"));
}

#[test]
fn only_one_replans_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    Pipeline::embedded().run(&run);
    let other = Pipeline::embedded().with("select.step.0.filter_ratio=0.5");
    // a file that no plan takes the place of: who opened it before sees the lock too
    let lock = File::open(run.join("_done/.lock")).unwrap();
    other.command("run", &run).arg("--replan").assert().success();
    lock.lock().unwrap();
    let before = names(&run);
    let other = Pipeline::embedded();
    let error = error_of(other.command("run", &run).arg("--replan"), 1);
    assert!(error.contains("was given another plan by another run"), "{error}");
    assert!(error.contains("\nhint: only one run of a folder may `--replan` at a time"), "{error}");
    assert_eq!(names(&run), before, "nothing is dropped");
    drop(lock);
    other.command("run", &run).arg("--replan").assert().success();
    assert_verified(&run);
}

/// A plan that another process puts in the place of the one that this process is reading is noticed before anything is
/// committed under the old one.
#[test]
fn a_plan_that_changes_while_it_is_read_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    Pipeline::embedded().run(&run);
    let (plan, later) = (run.join("plan.json"), run.join("later.json"));
    let text = fs::read(&plan).unwrap();
    fs::write(&later, &text).unwrap();
    fs::remove_file(&plan).unwrap();
    // whoever reads a pipe waits for what is written into it
    let name = std::ffi::CString::new(plan.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: the name ends with a zero and lives longer than the call
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let reader = std::thread::spawn({
        let run = run.clone();
        move || RunFolder::open(Storage::new(run)).unwrap()
    });
    let mut pipe = File::options().write(true).open(&plan).unwrap();
    fs::rename(&later, &plan).unwrap();
    pipe.write_all(&text).unwrap();
    drop(pipe);
    let opened = reader.join().unwrap();
    let done = Done::new(Vec::new(), Vec::new(), 0u64);
    let error = opened.commit(&opened.report(), 0, done).unwrap_err();
    assert!(matches!(error, Error::Replanned { .. }), "{error}");
}
