//! Every command of the README runs, and its pipeline is one.

use std::path::Path;
use std::process::Command;

use superbatch::settings::Settings;

const README: &str = include_str!("../README.md");

/// The contents of all fenced blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    let opening = format!("```{language}\n");
    let after = README.split(opening.as_str()).skip(1);
    after.map(|rest| rest.split("```").next().expect("a block ends")).collect()
}

#[test]
fn every_command_runs() {
    let folder = tempfile::tempdir().unwrap();
    let runs = format!("{}/", folder.path().display());
    let commands: Vec<&str> = blocks("sh").into_iter().flat_map(str::lines).collect();
    assert!(commands.len() >= 14, "{commands:?}");
    for command in commands {
        let arguments =
            command.strip_prefix("superbatch ").expect("a command of ours").replace("runs/", &runs);
        let output = Command::new(env!("CARGO_BIN_EXE_superbatch"))
            .args(arguments.split_whitespace())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}\n{}", String::from_utf8_lossy(&output.stderr));
        if command.starts_with("superbatch run ") {
            let printed = String::from_utf8(output.stdout).unwrap();
            let last = printed.lines().last().expect("a run ends with paths");
            assert!(last.ends_with("report.html") && Path::new(last).is_file(), "{printed}");
        }
    }
}

#[test]
fn the_pipeline_file_is_one() {
    let settings = Settings::parse(blocks("toml")[0], &[]).unwrap();
    assert_eq!(settings.select.draw.filter_ratio().to_string(), "0.8");
}
