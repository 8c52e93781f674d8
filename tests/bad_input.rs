//! Bad samples are counted, and what stops a run is one clear error with its exit code and what to do about it.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use assert_cmd::assert::OutputAssertExt;
use support::{
    Pipeline, assert_same_bytes, assert_verified, copy_folder, error_of, ids, json, names, root, rows,
    superbatch, text,
};

/// Shard, reason and number of good samples, as fixtures/faults/README.md says.
const FAULTS: [(&str, &str, u64); 9] = [
    ("avif", "unsupported_avif", 6),
    ("cut_jpeg", "undecodable_image", 6),
    ("duplicate_key", "duplicate_key", 7),
    ("jpeg_2000", "unsupported_jpeg_2000", 6),
    ("missing_caption", "missing_caption", 6),
    ("missing_image", "missing_image", 6),
    ("non_utf8_caption", "caption_not_utf8", 6),
    ("truncated", "shard_broken", 5),
    ("zero_byte_member", "empty_image", 6),
];

/// Keeps every sample that can be embedded.
fn keep_all(shards: &str) -> Pipeline {
    let mut pipeline = Pipeline::of_shards("");
    pipeline.sets[0] = format!("read.shards=[{shards}]");
    pipeline.with("select.step.0.filter_ratio=0").with("select.step.0.super_batch_size=20")
}

fn faults() -> Pipeline {
    let names: Vec<&str> = FAULTS.iter().map(|(name, ..)| *name).collect();
    keep_all(&format!("'fixtures/faults/{{{}}}.tar'", names.join(",")))
}

#[test]
fn every_fault_costs_one_sample_and_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (store, run) = (folder.path().join("store"), folder.path().join("run"));
    faults().with_store(&store).run(&run);
    let n_good: u64 = FAULTS.iter().map(|(_, _, n_good)| n_good).sum();
    let report = json(&run.join("report.json"));
    assert_eq!(report["counts"]["read"], n_good + FAULTS.len() as u64);
    assert_eq!(report["counts"]["kept"], n_good);
    let rejected: BTreeMap<String, u64> =
        serde_json::from_value(report["counts"]["rejected"].clone()).unwrap();
    let expected = FAULTS.iter().map(|(_, reason, _)| (reason.to_string(), 1)).collect();
    assert_eq!(rejected, expected);
    assert_eq!(report["worst_shard"], "truncated.tar", "one of six");

    let curated = ids(&rows(&run.join("curated")));
    for (idx, (name, reason, n_good)) in FAULTS.iter().enumerate() {
        let stats = json(&run.join(format!("stats/{idx:05}_stats.json")));
        assert_eq!(stats["shard"], format!("{name}.tar"));
        assert_eq!(stats["count"], n_good + 1, "{name}");
        assert_eq!(stats["status_dict"], serde_json::json!({ "success": n_good, (*reason): 1 }), "{name}");
        let unreadable = ["missing_caption", "missing_image", "shard_broken", "empty_image"].contains(reason);
        assert_eq!(stats["failed_to_download"], u64::from(unreadable), "{name}");
        let undecodable = ["undecodable_image", "unsupported_avif", "unsupported_jpeg_2000"].contains(reason);
        assert_eq!(stats["failed_to_resize"], u64::from(undecodable), "{name}");
        let n_kept = curated.iter().filter(|(shard, _)| *shard == format!("{name}.tar")).count() as u64;
        assert_eq!(n_kept, *n_good, "{name}: every good sample is there");
    }
    assert_verified(&run);

    too_many_rejections_keep_all_outputs(&store, &run);
}

fn too_many_rejections_keep_all_outputs(store: &Path, within: &Path) {
    let folder = tempfile::tempdir().unwrap();
    for limit in ["rejection_ratio_max", "rejection_ratio_max_shard"] {
        let run = folder.path().join(limit);
        let pipeline = faults().with_store(store).with(&format!("read.{limit}=0.1"));
        for _first_and_again in 0..2 {
            let beyond = pipeline.command("run", &run).assert().code(3);
            let output = beyond.get_output();
            assert!(
                text(&output.stderr).contains("too many rejections: 0.143 of the pool"),
                "{}",
                text(&output.stderr)
            );
            assert!(text(&output.stderr).contains("0.167 of the worst shard"));
            assert!(text(&output.stdout).trim_end().ends_with("report.html"));
        }
        assert_same_bytes(within, &run, &["curated", "select", "stats"]);
        assert_verified(&run);
    }
}

#[test]
fn a_shard_without_a_sample_costs_no_other() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(root().join("fixtures/faults/cut_jpeg.tar"), folder.path().join("b.tar")).unwrap();
    fs::write(folder.path().join("a.tar"), [0; 1024]).unwrap(); // an empty tar
    fs::write(folder.path().join("c.tar"), "no tar at all".repeat(100)).unwrap();
    fs::write(folder.path().join("d.tar"), "").unwrap();
    let run = folder.path().join("run");
    let shards = format!("'{}'", folder.path().join("*.tar").display());
    let ended = keep_all(&shards).with("divide.n_clusters=2").command("run", &run).assert().code(3);
    let said = text(&ended.get_output().stderr);
    assert!(
        said.contains("shards break off, and what follows could not be read or counted: c.tar, d.tar\n"),
        "{said}"
    );
    assert!(said.contains("9 read = 6 kept + 0 not drawn + 0 filtered + 3 rejected"), "{said}");
    let report = json(&run.join("report.json"));
    assert_eq!(report["counts"]["kept"], 6);
    let count = |idx: usize| json(&run.join(format!("stats/{idx:05}_stats.json")))["count"].as_u64().unwrap();
    assert_eq!([0, 1, 2].map(count), [0, 7, 1]);
    assert_eq!(json(&run.join("stats/00002_stats.json"))["status_dict"]["shard_broken"], 1);
    assert_eq!(names(&run.join("stats")).len(), 4);
    assert_verified(&run);
}

#[test]
fn without_a_good_sample_a_run_says_why() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.tar", "b.tar"] {
        fs::write(folder.path().join(name), "no tar at all".repeat(100)).unwrap();
    }
    let shards = format!("'{}'", folder.path().join("*.tar").display());
    let ended = keep_all(&shards).command("run", &folder.path().join("run")).assert().code(1);
    let error = text(&ended.get_output().stderr);
    let why = "2 taken out by `shard_broken`\nerror: no sample could be";
    assert!(error.contains(&format!("{why} embedded\nhint: `rejection` in `samples/`")), "{error}");
    let mut pipeline = keep_all(&shards);
    pipeline.sets.retain(|set| !set.starts_with("divide."));
    pipeline.file = without_divide(folder.path());
    let ended = pipeline.command("run", &folder.path().join("other")).assert().code(1);
    let error = text(&ended.get_output().stderr);
    let why = "2 taken out by `shard_broken`\nerror: no sample came to the draw\nhint: `rejection` in";
    assert!(error.contains(why), "{error}");
}

fn without_divide(folder: &Path) -> PathBuf {
    let text = fs::read_to_string(root().join("pipelines/quickstart.toml")).unwrap();
    let file = folder.join("pipeline.toml");
    fs::write(&file, text.replace("[divide]\nn_clusters = 10\n", "")).unwrap();
    file
}

#[test]
fn a_shard_that_cannot_be_read_stops_the_run_or_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    for (from, to) in [("cut_jpeg", "a"), ("missing_image", "c")] {
        fs::copy(root().join(format!("fixtures/faults/{from}.tar")), folder.path().join(format!("{to}.tar")))
            .unwrap();
    }
    // memory at address 0 cannot be read: an error of the disk, not of the bytes
    std::os::unix::fs::symlink("/proc/self/mem", folder.path().join("b.tar")).unwrap();
    let shards = format!("'{}'", folder.path().join("{a,b,c}.tar").display());
    let pipeline = keep_all(&shards).with("divide.n_clusters=2");
    let run = folder.path().join("run");
    let error = error_of(&mut pipeline.command("run", &run), 1);
    assert!(error.starts_with("error: cannot read shard `b.tar`\n  caused by: "), "{error}");
    assert!(error.contains("hint: fetch the shard again"), "{error}");

    let run = folder.path().join("left out");
    pipeline.with("read.failed_shards_max=1").run(&run);
    let report = json(&run.join("report.json"));
    assert_eq!(report["left_out_shards"], serde_json::json!(["b.tar"]));
    assert_eq!(report["counts"]["kept"], 12);
    assert_verified(&run);
}

#[test]
fn mistakes_in_settings_are_named_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mistakes = [
        ("read.shards=['fixtures/pool/shard-0000{0..99}.tar']", "/fixtures/pool/shard-000010.tar`"),
        ("read.shards=['fixtures/nothing/*.tar']", "no file matches `fixtures/nothing/*.tar`"),
        ("read.shards=['fixtures/pool/*.tar','fixtures/pool/shard-00000.tar']", "is named twice"),
        ("read.shards=['fixtures/pool']", "/fixtures/pool` is a folder, and no shard"),
        ("read.shard='x'", "unknown field `shard`"),
        ("select.step.0.gian=2", "unknown field `gian`"),
        ("select.step.0.filter_ratio=1", "filter_ratio"),
        ("select.step.0.filter_ratio=-0.5", "filter_ratio"),
        ("select.step.0.super_batch_size=0", "must be between 1 and 16777216"),
        ("select.step.0.method=best", "unknown method `best`"),
        ("divide.n_clusters=0", "must be between 1 and 16777216"),
        ("models.learner.folder=nowhere", "there is no `nowhere`"),
        ("models.learner.variant=fp16", "vision_model_fp16.onnx"),
        ("memory_limit_bytes=1000", "more than `memory_limit_bytes` = 1000 allows"),
        ("memory_limit_bytes=100000", "more than `memory_limit_bytes` = 100000 allows"),
        ("device=cuda:7", "cannot use device `cuda:7`"),
        ("divide.device=cuda:7", "cannot use device `cuda:7`"),
        ("divide.device=auto", "must be `cpu` or one GPU by its number"),
        ("divide.device=cuda", "must be `cpu` or one GPU by its number"),
        ("divide.device='cuda:0,1'", "must be `cpu` or one GPU by its number"),
        ("divide.device=gpu", "a device is `auto`, `cpu`"),
        ("divide.products=bf16", "unknown variant `bf16`"),
        ("select.step.0.device='tensorrt:0'", "must be `cpu` or one GPU by its number"),
    ];
    for (assignment, what) in mistakes {
        let error = error_of(&mut Pipeline::embedded().with(assignment).command("run", &run), 2);
        assert!(error.contains(what), "{assignment}: {error}");
        assert!(error.contains("\nhint: "), "{assignment}: {error}");
    }
    let mut missing = superbatch(["run", "nowhere.toml", "-o"]);
    let error = error_of(missing.arg(&run), 2);
    assert!(error.contains("`nowhere.toml`"), "{error}");
    assert!(!run.exists(), "nothing is written");
    for command in ["status", "verify", "repair", "clean"] {
        let error = error_of(&mut superbatch([command, "nowhere"]), 2);
        assert!(error.contains("is not a run folder") && error.contains("\nhint: "), "{error}");
    }
    error_of(&mut superbatch(["run"]), 2);
}

#[test]
fn more_clusters_than_samples_cannot_be_fitted() {
    let folder = tempfile::tempdir().unwrap();
    let error =
        error_of(&mut Pipeline::embedded().with("divide.n_clusters=1000").command("run", folder.path()), 2);
    assert!(error.starts_with("error: cannot fit centroids\n  caused by: "), "{error}");
    assert!(error.contains("hint: lower `divide.n_clusters`"), "{error}");
}

#[test]
fn files_of_others_are_not_written_over() {
    let folder = tempfile::tempdir().unwrap();
    // a log beside the outputs is no harm, as those of batch jobs are
    fs::write(folder.path().join("job.log"), "").unwrap();
    for name in ["report.html", "curated"] {
        let file = folder.path().join(name);
        fs::write(&file, "precious").unwrap();
        let error = error_of(&mut Pipeline::embedded().command("run", folder.path()), 2);
        assert!(
            error.contains(&format!("{name}` lies in the place of a run's output"))
                && error.contains("hint: "),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
        fs::remove_file(file).unwrap();
    }
    fs::create_dir(folder.path().join("curated")).unwrap(); // an empty folder is nobody's
    Pipeline::embedded().run(folder.path());
    assert_verified(folder.path());
    let store = folder.path().join("store");
    fs::create_dir_all(store.join("samples")).unwrap();
    fs::write(store.join("samples/00000.parquet"), "precious").unwrap();
    let pipeline = Pipeline::small().with_store(&store);
    let error = error_of(&mut pipeline.command("run", &folder.path().join("other")), 2);
    assert!(error.contains("/store/samples` lies in the place"), "{error}");
    let foreign = folder.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("plan.json"), "{\"terraform\": 1}").unwrap();
    let error = error_of(&mut Pipeline::embedded().command("run", &foreign), 2);
    assert!(error.contains("/foreign/plan.json` lies in the place"), "{error}");
}

#[test]
fn what_is_known_to_be_bad_but_not_there_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let listed = folder.path().join("planted.csv");
    let known = fs::read_to_string(root().join("fixtures/swapped.csv")).unwrap();
    let one = known.lines().find(|line| line.starts_with("shard-00000.tar,")).unwrap();
    fs::write(&listed, format!("shard,key\n{one}\nshard-00000.tar,nobody\n")).unwrap();
    let run = folder.path().join("run");
    let pipeline = Pipeline::embedded().with(&format!("report.planted='{}'", listed.display()));
    let said = text(&pipeline.command("run", &run).assert().success().get_output().stderr);
    assert!(
        said.contains("1 of 2 planted samples were scored: the others were rejected, or are not in the pool"),
        "{said}"
    );
    let planted = &json(&run.join("report.json"))["planted"];
    assert_eq!((&planted["n_listed"], &planted["n_planted"]), (&2.into(), &1.into()));
}

#[test]
fn numbers_that_are_hardly_meant_are_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy_folder(&root().join("fixtures/models/learner"), &model);
    let manifest = fs::read_to_string(model.join("model.toml")).unwrap();
    let stated = |key: &str, value: &str| {
        let lines = manifest.lines().map(|line| match line.split_once('=') {
            Some((found, _)) if found.trim() == key => format!("{key} = {value}"),
            _ => line.to_owned(),
        });
        fs::write(model.join("model.toml"), lines.collect::<Vec<_>>().join("\n")).unwrap();
        let set = format!("models.learner.folder='{}'", model.display());
        let mut command = superbatch(["plan"]);
        let pipeline = Pipeline::small().with(&set);
        command.arg(&pipeline.file).args(pipeline.sets.iter().flat_map(|set| ["--set", set]));
        text(&command.assert().success().get_output().stderr)
    };
    assert!(stated("logit_scale", "2.3204").contains("as low as the logarithm of one"));
    assert!(stated("logit_bias", "9.9").contains("a logit bias above 0"));
    assert!(!stated("logit_scale", "10.18").contains("logit"));
}

#[test]
fn a_run_that_keeps_nothing_is_complete() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = Pipeline::embedded().with("select.step.0.filter_ratio=0.9999");
    let output = pipeline.command("run", folder.path()).assert().success().get_output().stderr.clone();
    let said = " read = 0 kept + ";
    assert!(text(&output).contains(said) && text(&output).contains("nothing was kept"), "{}", text(&output));
    assert_eq!(json(&folder.path().join("report.json"))["counts"]["kept"], 0);
    assert_eq!(names(&folder.path().join("stats")).len(), 3);
    assert!(names(&folder.path().join("curated")).is_empty());
    assert_verified(folder.path());
}

#[test]
fn towers_that_disagree_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy_folder(&root().join("fixtures/models/learner"), &model);
    fs::write(model.join("onnx/text_model.onnx"), onnx::cast_of_ids()).unwrap();
    let set = format!("models.learner.folder='{}'", model.display());
    let error = error_of(&mut Pipeline::embedded().with(&set).command("run", &folder.path().join("run")), 2);
    assert!(
        error.contains("the image tower gives embeddings of width 128, the text tower of width 24"),
        "{error}"
    );
    assert!(error.contains("\nhint: "), "{error}");
    fs::write(model.join("onnx/text_model.onnx"), "no graph").unwrap();
    let error = error_of(&mut Pipeline::embedded().with(&set).command("run", &folder.path().join("run")), 2);
    assert!(error.contains("cannot read graph file"), "{error}");
}

#[test]
fn a_sample_without_a_direction_is_counted_once_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy_folder(&root().join("fixtures/models/learner"), &model);
    fs::write(model.join("onnx/vision_model.onnx"), onnx::mean_colour()).unwrap();
    // zero, which has no direction, where a caption has at most eleven tokens
    fs::write(model.join("onnx/text_model.onnx"), onnx::late_ids(11)).unwrap();
    let run = folder.path().join("run");
    let pipeline = Pipeline::of_shards("fixtures/pool/shard-0000{0..1}.tar")
        .with(&format!("models.learner.folder='{}'", model.display()))
        .with("divide.model=learner")
        .with("read.rejection_ratio_max=1")
        .with("read.rejection_ratio_max_shard=1");
    pipeline.run(&run);
    let counts = &json(&run.join("report.json"))["counts"];
    let count = |name: &str| counts[name].as_u64().unwrap();
    let n_degenerate = counts["rejected"]["degenerate_embedding"].as_u64().unwrap();
    assert!(n_degenerate > 0 && n_degenerate < count("read"), "{counts}");
    assert_eq!(count("read"), count("kept") + count("not_drawn") + n_degenerate);
    assert_eq!(rows(&run.join("select")).num_rows() as u64, count("kept") + count("not_drawn"));
    let mut n_of_shards = 0;
    for name in names(&run.join("stats")) {
        let stats = json(&run.join("stats").join(name));
        let of_status: u64 =
            stats["status_dict"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
        assert_eq!(stats["count"], of_status, "{stats}");
        let scored = stats["kept"].as_u64().unwrap() + stats["not_drawn"].as_u64().unwrap();
        assert_eq!(stats["successes"], scored, "a success came to the draw");
        n_of_shards += stats["status_dict"]["degenerate_embedding"].as_u64().unwrap_or(0);
    }
    assert_eq!(n_of_shards, n_degenerate);
    assert_verified(&run);
}

#[test]
fn without_the_runtime_library_the_places_searched_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("superbatch");
    fs::hard_link(support::BINARY, &binary)
        .or_else(|_| fs::copy(support::BINARY, &binary).map(drop))
        .unwrap();
    let run = |library: &Path| {
        let mut command = Command::new(&binary);
        command.current_dir(folder.path()).env_clear().env("SUPERBATCH_ONNXRUNTIME", library);
        command.arg("run").arg(root().join("pipelines/quickstart.toml")).args(["-o", "run"]);
        for model in ["learner", "reference"] {
            let path = root().join("fixtures/models").join(model);
            command.arg("--set").arg(format!("models.{model}.folder='{}'", path.display()));
        }
        let shards = root().join("fixtures/pool/shard-00000.tar");
        command.arg("--set").arg(format!("read.shards=['{}']", shards.display()));
        command
    };
    let nonsense = folder.path().join("libonnxruntime.so.nonsense");
    fs::write(&nonsense, "no library").unwrap();
    let error = error_of(&mut run(&nonsense), 2);
    assert!(error.starts_with("error: cannot load the ONNX Runtime library `"), "{error}");
    assert!(error.contains("\nhint: "), "{error}");
    fs::remove_file(nonsense).unwrap();

    let usual = [
        "/usr/local/lib",
        "/usr/lib",
        "/usr/lib64",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
    ];
    let is_installed = usual.iter().any(|place| {
        let files = fs::read_dir(place).into_iter().flatten().flatten();
        files.into_iter().any(|file| file.file_name().to_string_lossy().starts_with("libonnxruntime.so"))
    });
    if is_installed {
        eprintln!("skipped: the library is installed where the linker looks");
        return;
    }
    let error = error_of(&mut run(Path::new("/nowhere")), 2);
    assert!(error.starts_with("error: cannot find the ONNX Runtime library\nhint: "), "{error}");
    assert!(error.contains("SUPERBATCH_ONNXRUNTIME") && error.contains("searched /nowhere, "), "{error}");
    assert!(!folder.path().join("run").exists());
}

/// In a mount namespace of its own, which takes the small disk with it. Exit code 77: mounting is not permitted.
const SMALL_DISK: &str = r#"
    mkdir disk && mount -t tmpfs -o size=512k tmpfs disk || exit 77
    eval "$COMMAND -o disk/run" 2> before.txt; echo $? > before.code
    mount -o remount,size=8m disk
    eval "$EMBED -o disk/run" || exit 1
    head -c 8M /dev/zero > disk/filler 2> /dev/null
    truncate -s -300k disk/filler
    eval "$COMMAND -o disk/run" 2> full.txt; echo $? > full.code
    rm disk/filler
    eval "$COMMAND -o disk/run" && cp -r disk/run run
"#;

#[test]
fn a_full_disk_is_foreseen_or_named_and_the_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = Pipeline::embedded();
    let shell_line = |stage: &str| {
        let command = pipeline.command(stage, Path::new("RUN"));
        let words = command.get_args().take_while(|word| *word != "-o").map(|word| word.to_str().unwrap());
        let sets = pipeline.sets.iter().flat_map(|set| ["--set", set]);
        let words = [support::BINARY].into_iter().chain(words).chain(sets);
        words
            .map(|word| {
                format!("\"{}\"", word.replace("'fixtures", &format!("'{}/fixtures", root().display())))
            })
            .chain(["learner", "reference"].map(|model| {
                format!("--set models.{model}.folder='{}/fixtures/models/{model}'", root().display())
            }))
            .chain([format!("--set report.planted='{}/fixtures/swapped.csv'", root().display())])
            .collect::<Vec<_>>()
            .join(" ")
    };
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "--map-root-user", "bash", "-c", SMALL_DISK]).current_dir(folder.path());
    shell.env("COMMAND", shell_line("run")).env("EMBED", shell_line("embed")).env_remove("RUST_LOG");
    match shell.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) if output.status.code() == Some(77) || text(&output.stderr).starts_with("unshare:") => {
            eprintln!("skipped: a small disk cannot be mounted here: {}", text(&output.stderr));
            return;
        }
        Ok(output) => panic!("{}", text(&output.stderr)),
        Err(error) => {
            eprintln!("skipped: `unshare` cannot be run: {error}");
            return;
        }
    }
    let said = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(said("before.code").trim(), "2");
    let before = said("before.txt");
    assert!(before.contains("error: the disk of `disk/run` has ") && before.contains("\nhint: "), "{before}");
    assert_eq!(said("full.code").trim(), "1", "{}", said("full.txt"));
    let full = said("full.txt");
    assert!(full.contains("error: cannot write ") && full.contains("No space left on device"), "{full}");
    assert!(full.contains("\nhint: free some space; the run goes on where it stopped"), "{full}");
    assert!(!full.contains("panicked"), "{full}");
    let whole = folder.path().join("whole");
    pipeline.run(&whole);
    assert_same_bytes(&whole, &folder.path().join("run"), &["curated", "select"]);
}

/// Graphs of one or two operators, written by hand as the protocol buffers that ONNX files are.
mod onnx {
    const FLOAT: u64 = 1;
    const INT64: u64 = 7;
    /// Context length of the fixtures' models.
    const N_TOKENS: u64 = 24;

    fn varint(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }

    fn number(field: u64, value: u64) -> Vec<u8> {
        [varint(field << 3), varint(value)].concat()
    }

    fn message(field: u64, content: &[u8]) -> Vec<u8> {
        [varint(field << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
    }

    fn text(field: u64, text: &str) -> Vec<u8> {
        message(field, text.as_bytes())
    }

    /// `ValueInfoProto` of a tensor `[n, …]`.
    fn value(name: &str, element: u64, dims: &[u64]) -> Vec<u8> {
        let dims = dims.iter().map(|&dim| message(1, &number(1, dim)));
        let shape: Vec<u8> = std::iter::once(message(1, &text(2, "n"))).chain(dims).flatten().collect();
        let tensor = [number(1, element), message(2, &shape)].concat();
        [text(1, name), message(2, &message(1, &tensor))].concat()
    }

    fn node(inputs: &[&str], output: &str, operator: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut node: Vec<u8> = inputs.iter().flat_map(|input| text(1, input)).collect();
        node.extend([text(2, output), text(4, operator)].concat());
        node.extend(attributes.iter().flat_map(|attribute| message(5, attribute)));
        message(1, &node)
    }

    fn int(name: &str, value: u64) -> Vec<u8> {
        [text(1, name), number(3, value), number(20, 2)].concat()
    }

    fn ints(name: &str, values: &[u64]) -> Vec<u8> {
        let values: Vec<u8> = values.iter().flat_map(|&value| number(8, value)).collect();
        [text(1, name), values, number(20, 7)].concat()
    }

    /// A `Constant` of int64.
    fn constant(output: &str, values: &[u64]) -> Vec<u8> {
        let data: Vec<u8> = values.iter().flat_map(|&value| number(7, value)).collect();
        let tensor = [number(1, values.len() as u64), number(2, INT64), data].concat();
        node(&[], output, "Constant", &[[text(1, "value"), message(5, &tensor), number(20, 4)].concat()])
    }

    fn model(nodes: &[Vec<u8>], input: Vec<u8>, output: Vec<u8>) -> Vec<u8> {
        let graph = [nodes.concat(), text(2, "graph"), message(11, &input), message(12, &output)].concat();
        let opset = number(2, 13);
        [number(1, 8), message(8, &opset), message(7, &graph)].concat()
    }

    fn ids() -> Vec<u8> {
        value("input_ids", INT64, &[N_TOKENS])
    }

    /// Embeds a caption as its token ids.
    pub fn cast_of_ids() -> Vec<u8> {
        let cast = node(&["input_ids"], "text_embeds", "Cast", &[int("to", FLOAT)]);
        model(&[cast], ids(), value("text_embeds", FLOAT, &[N_TOKENS]))
    }

    /// Embeds a caption as the three of its token ids from `first` on.
    pub fn late_ids(first: u64) -> Vec<u8> {
        let positions = constant("positions", &[first, first + 1, first + 2]);
        let gather = node(&["input_ids", "positions"], "late", "Gather", &[int("axis", 1)]);
        let cast = node(&["late"], "text_embeds", "Cast", &[int("to", FLOAT)]);
        model(&[positions, gather, cast], ids(), value("text_embeds", FLOAT, &[3]))
    }

    /// Embeds an image as its mean colour.
    pub fn mean_colour() -> Vec<u8> {
        let mean = node(
            &["pixel_values"],
            "image_embeds",
            "ReduceMean",
            &[ints("axes", &[2, 3]), int("keepdims", 0)],
        );
        model(&[mean], value("pixel_values", FLOAT, &[3, 96, 96]), value("image_embeds", FLOAT, &[3]))
    }
}
