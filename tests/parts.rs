//! A job array: parts of each stage's tasks in processes of their own make the bytes of one process.

mod support;

use std::path::Path;
use std::process::{Child, Stdio};

use support::{DETERMINISTIC, Pipeline, assert_same_bytes, assert_verified, error_of, names, text};

const N_PARTS: usize = 3;

/// Every part at once, in a process each; all must succeed.
#[track_caller]
fn run_parts(pipeline: &Pipeline, command: &str, run: &Path) {
    let start = |part: usize| -> Child {
        let mut command = pipeline.command(command, run);
        command.args(["--tasks", &format!("{part}/{N_PARTS}"), "--wait-secs", "60"]);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let parts: Vec<Child> = (0..N_PARTS).map(start).collect();
    for (part, process) in parts.into_iter().enumerate() {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{command} {part}/{N_PARTS}: {}", text(&output.stderr));
    }
}

#[test]
fn parts_of_each_stage_make_the_bytes_of_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    // one thread a process: three of them embed at once
    let pipeline = Pipeline::small().with("threads=1");
    Pipeline::embedded().with("threads=1").run(&whole);
    for stage in ["embed", "divide", "select", "write"] {
        run_parts(&pipeline, stage, &parts);
    }
    pipeline.command("report", &parts).output().unwrap();
    assert_same_bytes(&whole, &parts, &DETERMINISTIC);
    assert_eq!(names(&whole.join("stats")), names(&parts.join("stats")));
    assert_verified(&parts);
    assert!(parts.join("report.json").is_file());
}

#[test]
fn parts_of_a_whole_run_wait_for_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    // within clusters every stage has an exchange between the parts
    let clusters = "select.step.0.super_batches=within_clusters";
    Pipeline::embedded().with(clusters).run(&whole);
    run_parts(&Pipeline::small().with("threads=1").with(clusters), "run", &parts);
    assert_same_bytes(&whole, &parts, &DETERMINISTIC);
    assert_verified(&parts);
}

#[test]
fn a_part_that_waits_in_vain_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut alone = Pipeline::embedded().command("divide", folder.path());
    alone.args(["--tasks", "1/3", "--wait-secs", "0"]);
    let error = error_of(&mut alone, 1);
    assert!(error.contains("of `divide.fit` are left to other parts"), "{error}");
    assert!(error.contains("hint: start the other parts"), "{error}");
    for wrong in ["3/3", "1", "a/b", "1/0"] {
        let mut command = Pipeline::embedded().command("divide", folder.path());
        assert!(error_of(command.args(["--tasks", wrong]), 2).contains("I/N"));
    }
}
