//! Where models run: any number of devices and sessions gives the same files, what ran is written down, and a GPU that
//! is asked for and not there ends the command.

mod support;

use std::fs::{self, File};
use std::path::Path;

use assert_cmd::assert::OutputAssertExt;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;
use superbatch::embed::Device;
use superbatch::plan::Plan;
use superbatch::settings::Settings;
use support::{Pipeline, error_of, json, names, superbatch};

/// Embeds two shards and returns the files of embeddings with their bytes, without the attempt in their names, and the
/// samples.
fn embedded(run: &Path, settings: &[&str]) -> Vec<(String, Vec<u8>)> {
    let pipeline = Pipeline::of_shards("fixtures/pool/shard-0000{0..1}.tar");
    let pipeline = settings.iter().fold(pipeline, |pipeline, setting| pipeline.with(setting));
    let output = pipeline.command("embed", run).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut files = Vec::new();
    for folder in ["samples", "embeddings"] {
        for name in names(&run.join(folder)) {
            let bytes = fs::read(run.join(folder).join(&name)).unwrap();
            files.push((format!("{folder}/{}", name.split('-').next().unwrap()), bytes));
        }
    }
    files
}

#[test]
fn any_number_of_devices_and_sessions_gives_the_same_files() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, settings: &[&str]| embedded(&folder.path().join(name), settings);
    let one = run("one", &["device='cpu'", "sessions=1", "threads=1"]);
    assert_eq!(one.len(), 2 + 2 * 2, "samples and the embeddings of two models, for two shards");
    for (name, settings) in [
        ("two-devices", &["device='cpu:2'", "threads=2"][..]),
        ("three-sessions", &["device='cpu'", "sessions=3", "threads=2"]),
        ("threads-in-operators", &["device='cpu'", "sessions=1", "threads=2"]),
    ] {
        let other = run(name, settings);
        assert_eq!(other.len(), one.len(), "{name}");
        for ((left_name, left), (right_name, right)) in one.iter().zip(&other) {
            assert_eq!(left_name, right_name);
            assert!(left == right, "{left_name} differs with {name}");
        }
    }
}

#[test]
fn what_ran_the_models_is_in_the_files_and_their_markers() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    embedded(&run, &["device='cpu:2'"]);
    let plan = json(&run.join("plan.json"));
    let digest = plan["models"]["learner"]["digest"].as_str().unwrap();
    let marker = json(&run.join("_done/embeddings").join(digest).join("00000.json"));
    let numerics = &marker["numerics"];
    assert_eq!(numerics["provider"], "CPUExecutionProvider");
    assert_eq!(numerics["rows_at_once"], "8");
    let nodes: u32 =
        numerics["nodes"].as_str().unwrap().strip_prefix("CPUExecutionProvider ").unwrap().parse().unwrap();
    assert!(nodes > 40, "{nodes}");
    assert_eq!(&numerics_of(&run.join(marker["data"][0]["name"].as_str().unwrap())), numerics);
}

fn numerics_of(file: &Path) -> Value {
    let reader = SerializedFileReader::new(File::open(file).unwrap()).unwrap();
    let metadata = reader.metadata().file_metadata().key_value_metadata().unwrap();
    let stored = metadata.iter().find(|pair| pair.key == "numerics").unwrap().value.clone().unwrap();
    serde_json::from_str(&stored).unwrap()
}

#[test]
fn the_report_says_what_ran_the_models() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    Pipeline::of_shards("fixtures/pool/shard-0000{0..1}.tar").with("device='cpu'").run(&run);
    let report = json(&run.join("report.json"));
    for role in ["learner", "reference"] {
        let ways = report["inference"][role].as_array().unwrap();
        assert_eq!(ways.len(), 1, "{ways:?}");
        assert_eq!(ways[0]["n_tasks"], 2);
        assert_eq!(ways[0]["numerics"]["provider"], "CPUExecutionProvider");
    }
    // the kernels are no provider's
    let by_kernels = serde_json::json!({"device": "cpu"});
    assert_eq!(
        report["divide"]["assignment"],
        serde_json::json!([{"numerics": by_kernels.clone(), "n_tasks": 2}])
    );
    assert_eq!(json(&run.join("_done/divide.fit/00000.json"))["numerics"], by_kernels);
    for file in ["divide/centroids.parquet", "divide/00000.parquet"] {
        assert_eq!(numerics_of(&run.join(file)), by_kernels, "{file}");
    }
}

#[test]
fn a_gpu_that_is_not_there_says_what_to_install() {
    let folder = tempfile::tempdir().unwrap();
    // more GPUs than any machine has
    for device in ["cuda:63", "tensorrt:63"] {
        let pipeline = Pipeline::small().with(&format!("device='{device}'"));
        let error = error_of(&mut pipeline.command("embed", &folder.path().join("run")), 2);
        assert!(error.starts_with(&format!("error: cannot use device `{device}`")), "{error}");
        assert!(error.contains("\n  caused by: ") && error.contains("\nhint: "), "{error}");
    }
    // where clusters are found, too; `plan` looks as `run` does
    let setting = "divide.device='cuda:63'";
    let plan = superbatch(["plan", "pipelines/quickstart.toml", "--set", setting]);
    let divide = Pipeline::small().with(setting).command("divide", &folder.path().join("run"));
    for mut command in [plan, divide] {
        let error = error_of(&mut command, 2);
        assert!(error.starts_with("error: cannot use device `cuda:63`"), "{error}");
    }
    assert!(!folder.path().join("run").exists(), "nothing is begun");
    // what is assumed of other machines needs no GPU on this one, nor does a stage of a run that is planned already
    let mut assumed = superbatch(["plan", "pipelines/quickstart.toml", "--assume", "benches/billion.toml"]);
    assumed.args(["--set", setting, "--set", "device='cuda:63'"]).assert().success();
    let settings =
        |set: &str| Settings::load(Path::new("pipelines/quickstart.toml"), &[set.to_owned()]).unwrap();
    let earlier = Plan::new(&settings("threads=1"), Device::Cpu).unwrap();
    let planned = Plan::with_models_of(&settings(setting), &earlier).unwrap();
    assert_eq!(planned.divide.unwrap().device.to_string(), "cuda:63");
    let error =
        error_of(&mut Pipeline::small().with("device='gpu'").command("embed", &folder.path().join("run")), 2);
    assert!(error.contains("`cuda:0,3`"), "{error}");
}
