//! Damage to any file of a run is found and named, and repaired by making again what it has spoilt.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::assert::OutputAssertExt;
use support::{
    Pipeline, assert_same_bytes, assert_verified, copy_folder, embedded_store, error_of, json, names, status,
    superbatch, text,
};

#[derive(Clone, Copy, Debug)]
enum Damage {
    FlipByte,
    Truncate,
    Delete,
}

impl Damage {
    const ALL: [Damage; 3] = [Damage::FlipByte, Damage::Truncate, Damage::Delete];

    fn inflict(self, file: &Path) {
        let mut bytes = fs::read(file).unwrap();
        let middle = bytes.len() / 2;
        match self {
            Damage::FlipByte => bytes[middle] ^= 1,
            Damage::Truncate => bytes.truncate(middle),
            Damage::Delete => return fs::remove_file(file).unwrap(),
        }
        fs::write(file, bytes).unwrap();
    }
}

/// A finished run with a store that a test may damage.
struct Finished {
    folder: tempfile::TempDir,
    pipeline: Pipeline,
}

impl Finished {
    fn new() -> Finished {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store");
        copy_folder(embedded_store(), &store);
        let pipeline = Pipeline::small().with_store(&store);
        pipeline.run(&folder.path().join("run"));
        copy_folder(&folder.path().join("run"), &folder.path().join("before"));
        Finished { folder, pipeline }
    }

    fn run(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// One file of every stage, by its name below the run folder or the store.
    fn files(&self) -> Vec<(PathBuf, String)> {
        let store = self.folder.path().join("store");
        let digest =
            json(&self.run().join("plan.json"))["models"]["reference"]["digest"].as_str().unwrap().to_owned();
        let embeddings = names(&store.join("embeddings").join(&digest))[1].clone();
        let in_store = ["samples/00001.parquet".to_owned(), format!("embeddings/{digest}/{embeddings}")];
        let in_run = [
            "divide/centroids.parquet",
            "divide/bank.parquet",
            "divide/00001.parquet",
            "_exchange/select.draw/00000.parquet",
            "select/00001.parquet",
            "curated/00001.parquet",
            "stats/00001_stats.json",
            "report.json",
        ];
        let in_store = in_store.into_iter().map(|name| (store.join(&name), name));
        in_store.chain(in_run.map(|name| (self.run().join(name), name.to_owned()))).collect()
    }

    #[track_caller]
    fn repair(&self) -> String {
        let repaired = superbatch([Path::new("repair"), &self.run()]).assert().success();
        text(&repaired.get_output().stdout)
    }
}

#[test]
fn damage_anywhere_is_named_and_repaired() {
    let finished = Finished::new();
    let (run, before) = (finished.run(), finished.folder.path().join("before"));
    // embeddings have another name after each repair, so the list is made again for each kind of damage
    for damage in Damage::ALL {
        for idx in 0..finished.files().len() {
            let (file, name) = finished.files().swap_remove(idx);
            damage.inflict(&file);
            let is_swept = matches!(damage, Damage::Delete) && name.starts_with("_exchange/");
            if is_swept {
                // `clean` does the same
                assert_verified(&run);
            } else {
                let mut verify = superbatch([Path::new("verify"), &run]);
                let error = error_of(&mut verify, 1);
                let found = text(&verify.output().unwrap().stdout);
                assert!(
                    found.contains(&format!(" 1 damaged\ndamaged: {name}\n")),
                    "{damage:?} {name}: {found}"
                );
                assert!(
                    error.contains("error: 1 files of `")
                        && error.contains("\nhint: `superbatch repair RUN`"),
                    "{error}"
                );
                let said = finished.repair();
                assert!(!said.starts_with("0 tasks"), "{damage:?} {name}: {said}");
            }
            finished.pipeline.run(&run);
            assert_same_bytes(&before, &run, &["curated", "select", "divide"]);
            assert_eq!(names(&before.join("stats")), names(&run.join("stats")), "{damage:?} {name}");
            assert_verified(&run);
            assert_eq!(finished.repair(), "0 tasks dropped; `superbatch run` does them again\n");
        }
    }
}

#[test]
fn everything_made_from_a_damaged_file_is_dropped() {
    let n_done_after = |name: &str| {
        let finished = Finished::new();
        let file = finished.files().into_iter().find(|(_, file)| file.starts_with(name));
        let file = file.map_or_else(|| finished.run().join(name), |(file, _)| file);
        Damage::FlipByte.inflict(&file);
        finished.repair();
        let status = status(&finished.run());
        move |stage: &str| status[stage].0
    };
    // one task's embeddings go into the centroids, and those into everything
    let after = n_done_after("embeddings/");
    assert_eq!(after("samples"), 3);
    for stage in ["divide.fit", "divide.assign", "divide.bank", "divide", "select.bank", "select.score"] {
        assert_eq!(after(stage), 0, "{stage}");
    }
    for stage in ["select.filter", "select.draw", "select"] {
        assert_eq!(after(stage), 0, "{stage}");
    }
    for stage in ["write.gather", "write.stats", "write", "report"] {
        assert_eq!(after(stage), 0, "{stage}");
    }
    let after = n_done_after("divide/bank");
    assert_eq!(
        (after("divide.assign"), after("divide.bank"), after("divide"), after("select.score")),
        (3, 0, 0, 0)
    );
    // one task's scores may be others when they are made again, and the draw is planned by counts of all
    let after = n_done_after("_exchange/select.score/00001.parquet");
    assert_eq!((after("divide"), after("select.score"), after("select.filter")), (3, 2, 2));
    for stage in ["select.draw", "select", "write.gather", "write"] {
        assert_eq!(after(stage), 0, "{stage}");
    }
    // one curated shard goes into the report alone
    let after = n_done_after("curated/");
    assert_eq!((after("select"), after("write.gather"), after("report")), (3, 3, 0));
}

#[test]
fn a_run_notices_damage_to_what_it_reads() {
    let finished = Finished::new();
    let run = finished.run();
    // what is written anew is read from a verdict file with one other byte
    let rewritten = finished.pipeline.with("write.images=false");
    Damage::FlipByte.inflict(&run.join("select/00001.parquet"));
    let error = error_of(rewritten.command("run", &run).arg("--replan"), 1);
    assert!(error.starts_with("error: `") && error.contains("select/00001.parquet` is damaged"), "{error}");
    assert!(error.contains("\nhint: `superbatch repair RUN`"), "{error}");
    finished.repair();
    rewritten.run(&run);
    assert_same_bytes(&finished.folder.path().join("before"), &run, &["select"]);
    assert_verified(&run);

    // a file of another length is noticed by whoever looks for what is done
    Damage::Truncate.inflict(&run.join("curated/00000.parquet"));
    let error = error_of(&mut rewritten.command("run", &run), 1);
    assert!(error.contains("curated/00000.parquet` is damaged") && error.contains("\nhint: "), "{error}");
}

#[test]
fn a_damaged_marker_or_stage_plan_is_named_and_made_again() {
    let finished = Finished::new();
    let run = finished.run();
    let learner = json(&run.join("plan.json"))["models"]["learner"]["digest"].as_str().unwrap().to_owned();
    let store = finished.folder.path().join("store");
    let in_run = ["select", "write", "divide.fit", "divide.assign", "select.draw", "report"];
    let markers = in_run.map(|stage| run.join(format!("_done/{stage}/00000.json")));
    let embedded = store.join(format!("_done/embeddings/{learner}/00000.json"));
    for damaged in markers.into_iter().chain([embedded, run.join("plan/select.draw.json")]) {
        Damage::Truncate.inflict(&damaged);
        let name = damaged.file_name().unwrap().to_str().unwrap();
        let error = error_of(&mut superbatch([Path::new("status"), &run]), 1);
        assert!(error.contains(&format!("{name}` is not valid JSON")), "{error}");
        assert!(error.contains("\nhint: `superbatch repair RUN`"), "{error}");
        assert!(!finished.repair().starts_with("0 tasks"), "{}", damaged.display());
        finished.pipeline.run(&run);
        assert_same_bytes(&finished.folder.path().join("before"), &run, &["curated", "select", "divide"]);
        assert_verified(&run);
    }
}

#[test]
fn a_damaged_plan_is_removed_by_hand_and_made_again() {
    let finished = Finished::new();
    let run = finished.run();
    Damage::Truncate.inflict(&run.join("plan.json"));
    // `repair` does not know what the run is to be
    for mut command in [superbatch([Path::new("repair"), &run]), superbatch([Path::new("status"), &run])] {
        let error = error_of(&mut command, 1);
        assert!(error.contains("plan.json` is not valid JSON"), "{error}");
        assert!(error.contains("\nhint: remove it; `superbatch run"), "{error}");
    }
    fs::remove_file(run.join("plan.json")).unwrap();
    finished.pipeline.run(&run);
    assert_eq!(status(&run)["select"], (3, 3, Some(3)), "done by this plan, which is the same");
    assert_same_bytes(&finished.folder.path().join("before"), &run, &["curated", "select", "divide"]);
    assert_verified(&run);
}

#[test]
fn a_curated_file_that_no_marker_names_is_told_and_removed() {
    let finished = Finished::new();
    let run = finished.run();
    fs::copy(run.join("curated/00000.parquet"), run.join("curated/99999.parquet")).unwrap();
    fs::write(run.join("curated/notes.txt"), "a user's own").unwrap();
    let mut verify = superbatch([Path::new("verify"), &run]);
    error_of(&mut verify, 1);
    let found = text(&verify.output().unwrap().stdout);
    assert!(
        found.contains("named by no marker: curated/99999.parquet\n") && !found.contains("notes"),
        "{found}"
    );
    finished.pipeline.run(&run);
    assert_verified(&run);
    assert!(run.join("curated/notes.txt").is_file());
}

#[test]
fn a_run_and_its_rounds_are_repaired_together() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let pipeline = Pipeline::small();
    pipeline.run(&run);
    let round = || {
        let mut round = superbatch([Path::new("round"), &run]);
        round.args(["--learner", "fixtures/models/reference"]).assert().success();
    };
    round();
    copy_folder(&run, &folder.path().join("before"));
    // the round reads what is the run's, and either of them may be named
    for named in [run.join("rounds/001"), run.clone()] {
        Damage::FlipByte.inflict(&run.join("samples/00001.parquet"));
        let output = superbatch([Path::new("repair"), &named]).assert().success().get_output().stdout.clone();
        let said = text(&output);
        assert!(said.lines().count() == 2 && !said.contains("\nround 1: 0 tasks"), "{said}");
        for of in [&run, &run.join("rounds/001")] {
            assert!(
                !of.join("plan/embed.json").exists() && !of.join("_done/report").join("00000.json").exists()
            );
        }
        pipeline.run(&run);
        round();
        assert_same_bytes(&folder.path().join("before"), &run, &["samples", "curated", "rounds/001/curated"]);
        assert_verified(&run);
        assert_verified(&run.join("rounds/001"));
    }
    let output = superbatch([Path::new("repair"), &run]).assert().success().get_output().stdout.clone();
    assert!(text(&output).starts_with("0 tasks dropped") && text(&output).contains("\nround 1: 0 tasks"));
}
