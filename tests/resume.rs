//! Killed anywhere and resumed, a run gives the bytes of one that was never interrupted.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::assert::OutputAssertExt;
use support::{
    DETERMINISTIC, Pipeline, Seeded, assert_same_bytes, assert_verified, is_unfinished, names, status,
    superbatch, text,
};

/// How a process that was to be killed has ended.
#[derive(PartialEq)]
enum End {
    Killed,
    Done,
}

/// Starts a command and kills it a little after `is_due`, unless it is done before.
fn kill_when(command: &mut Command, mut is_due: impl FnMut() -> bool, delay: Duration) -> End {
    let mut child: Child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    loop {
        if let Some(exit) = child.try_wait().unwrap() {
            assert!(exit.success(), "{exit}");
            return End::Done;
        }
        if is_due() {
            break;
        }
        // nothing waits for this: it only leaves the processor to the command
        std::thread::sleep(Duration::from_millis(1));
    }
    let due = Instant::now();
    while due.elapsed() < delay {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    End::Killed
}

fn n_markers(folder: &Path) -> usize {
    names(&folder.join("_done")).iter().filter(|name| !is_unfinished(name)).count()
}

/// Runs until done, killing each attempt a seeded time after a seeded number of new markers; returns the kills.
fn run_with_kills(pipeline: &Pipeline, run: &Path, counted: &Path, step_max: u64, seed: u64) -> usize {
    let mut seeded = Seeded(seed);
    for n_kills in 0..100 {
        let target = n_markers(counted) + 1 + seeded.below(step_max) as usize;
        let delay = Duration::from_micros(seeded.below(4000));
        let is_due = || n_markers(counted) >= target;
        if kill_when(&mut pipeline.command("run", run), is_due, delay) == End::Done {
            return n_kills;
        }
    }
    panic!("the run does not get on");
}

fn unfinished(folder: &Path) -> Vec<String> {
    names(folder).into_iter().filter(|name| is_unfinished(name)).collect()
}

#[test]
fn killed_after_embed_and_resumed_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = Pipeline::embedded();
    let whole = folder.path().join("whole");
    pipeline.run(&whole);
    for seed in 1..=3 {
        let run = folder.path().join(format!("killed-{seed}"));
        let n_kills = run_with_kills(&pipeline, &run, &run, 6, seed);
        assert!(n_kills >= 3, "only {n_kills} kills");
        assert_same_bytes(&whole, &run, &DETERMINISTIC);
        assert_same_bytes(&whole, &run, &["stats"]);
        assert_verified(&run);
    }
}

#[test]
fn killed_while_it_embeds_and_resumed_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    Pipeline::embedded().run(&whole);
    // the run folder is its own store, so that markers of embed and of all later stages lie in it
    let run = folder.path().join("killed");
    let n_kills = run_with_kills(&Pipeline::small(), &run, &run, 3, 11);
    assert!(n_kills >= 4, "only {n_kills} kills");
    assert_same_bytes(&whole, &run, &DETERMINISTIC);
    assert_verified(&run);
}

#[test]
fn clean_removes_leftovers_and_nothing_is_done_again() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let pipeline = Pipeline::embedded();
    // killed while files are being written, some attempt leaves one without its name
    let mut seeded = Seeded(5);
    for attempt in 1.. {
        assert!(attempt < 200, "no kill has left an unfinished file");
        let _ = fs::remove_dir_all(&run);
        let is_due = || !unfinished(&run).is_empty();
        let delay = Duration::from_micros(seeded.below(200));
        if kill_when(&mut pipeline.command("run", &run), is_due, delay) == End::Killed
            && !unfinished(&run).is_empty()
        {
            break;
        }
    }
    pipeline.run(&run);
    assert!(!unfinished(&run).is_empty() && run.join("_exchange").is_dir());
    // a reader's `curated/*.parquet` must not match one
    assert!(unfinished(&run).iter().all(|name| !name.ends_with(".parquet")), "{:?}", unfinished(&run));
    let n_before = names(&run).len();
    let clean = |run: &Path| superbatch([Path::new("clean"), run]).assert().success();
    let cleaned = text(&clean(&run).get_output().stdout);
    let after = names(&run);
    assert!(cleaned.starts_with(&format!("{} files, ", n_before - after.len())), "{cleaned}");
    assert!(after.iter().all(|name| !is_unfinished(name) && !name.starts_with("_exchange/")), "{after:?}");
    assert_verified(&run);

    let times = |run: &Path| -> Vec<_> {
        names(run)
            .into_iter()
            .map(|name| (fs::metadata(run.join(&name)).unwrap().modified().unwrap(), name))
            .collect()
    };
    let before = times(&run);
    let again = pipeline.command("run", &run).assert().success();
    assert_eq!(times(&run), before, "nothing is written again");
    let paths = text(&again.get_output().stdout);
    assert!(paths.lines().next_back().unwrap().ends_with("report.html"), "{paths}");
    assert_eq!(text(&clean(&run).get_output().stdout), "0 files, 0 bytes removed\n");
    for (stage, (n_done, _, n_tasks)) in status(&run) {
        if stage != "select.deal" {
            assert_eq!(Some(n_done), n_tasks, "{stage}");
        }
    }
}

#[test]
fn a_killed_replan_can_be_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let (before, after) =
        (Pipeline::embedded(), Pipeline::embedded().with("select.step.0.filter_ratio='0.5'"));
    let fresh = folder.path().join("fresh");
    after.run(&fresh);
    let replan = |run: &Path| {
        let mut command = after.command("run", run);
        command.args(["--replan", "--wait-secs", "1"]);
        command
    };
    let done = folder.path().join("done");
    before.run(&done);
    for seed in 1..=3 {
        let run = folder.path().join(format!("killed-{seed}"));
        support::copy_folder(&done, &run);
        let n_done = n_markers(&run);
        // as soon as the first stale marker is gone
        let delay = Duration::from_micros(Seeded(seed).below(2000));
        let killed = kill_when(&mut replan(&run), || n_markers(&run) < n_done, delay) == End::Killed;
        assert!(killed, "the command is not killed");
        replan(&run).assert().success();
        assert_same_bytes(&fresh, &run, &["curated", "select"]);
        assert_eq!(names(&fresh.join("stats")), names(&run.join("stats")));
        assert_verified(&run);
    }
}
