//! A reader that has seen enough is no fault of ours.

mod support;

use std::io::pipe;
use std::process::{Command, ExitStatus, Stdio};

use assert_cmd::assert::OutputAssertExt;
use support::{Pipeline, superbatch, text};

/// The writing end of a pipe whose reading end is closed.
fn closed() -> Stdio {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    writer.into()
}

fn without_stderr(mut command: Command) -> ExitStatus {
    command.stdout(Stdio::null()).stderr(closed()).status().unwrap()
}

#[test]
fn a_closed_pipe_is_a_success() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let pipeline = Pipeline::embedded();
    // the first run itself, every line of which goes nowhere
    assert!(pipeline.command("run", &run).stdout(closed()).stderr(closed()).status().unwrap().success());
    for args in [&["status"][..], &["status", "--json"], &["verify"], &["clean"], &["repair"]] {
        let mut command = superbatch(args);
        let output = command.arg(&run).stdout(closed()).stderr(Stdio::piped()).output().unwrap();
        assert!(output.status.success(), "{args:?}");
        assert_eq!(text(&output.stderr), "", "{args:?}");
    }
    assert!(pipeline.command("run", &run).stdout(closed()).output().unwrap().status.success());
    assert!(without_stderr(pipeline.command("run", &run)).success());
    // a failure keeps its exit code, though nobody hears why
    assert_eq!(without_stderr(superbatch(["status", "nowhere"])).code(), Some(2));
}

#[test]
fn a_shell_that_reads_one_line_has_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    Pipeline::embedded().run(&run);
    let script = "set -o pipefail; \"$0\" status \"$1\" | head -1";
    let shell = Command::new("bash").args(["-c", script, support::BINARY]).arg(&run).assert().success();
    assert!(text(&shell.get_output().stdout).starts_with("stage "));
}
