//! Every method as a user runs it: its pipeline file on the fixtures, what composes, and what is refused.

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use arrow::array::AsArray;
use arrow::datatypes::UInt32Type;
use assert_cmd::assert::OutputAssertExt;
use serde_json::Value;
use support::*;

/// The pipeline file of a method.
fn pipeline(name: &str) -> Pipeline {
    Pipeline { file: root().join(format!("pipelines/{name}.toml")), sets: Vec::new() }
}

/// The same on the three embedded shards, with super-batches that they fill.
fn small(name: &str) -> Pipeline {
    pipeline(name).with("read.shards=['fixtures/pool/shard-0000{0..2}.tar']").with_store(embedded_store())
}

fn run_small(pipeline: &Pipeline) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    pipeline.run(folder.path());
    assert_verified(folder.path());
    folder
}

fn report(run: &Path) -> Value {
    json(&run.join("report.json"))
}

fn n_of(run: &Path, verdict: &str) -> usize {
    let rows = rows(&run.join("select"));
    let verdicts = rows.column_by_name("verdict").unwrap().as_string::<i32>();
    verdicts.iter().filter(|found| *found == Some(verdict)).count()
}

fn kept(run: &Path) -> BTreeSet<(String, u64)> {
    let rows = rows(&run.join("select"));
    let verdicts = rows.column_by_name("verdict").unwrap().as_string::<i32>();
    let kept = ids(&rows).into_iter().zip(verdicts).filter(|(_, verdict)| *verdict == Some("kept"));
    kept.map(|(id, _)| id).collect()
}

/// A store with every fixture shard under both models, made once.
fn whole_store() -> &'static Path {
    static STORE: OnceLock<PathBuf> = OnceLock::new();
    STORE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("methods_whole");
        let _ = std::fs::remove_dir_all(&folder);
        let store = folder.join("store");
        pipeline("random").with_store(&store).command("embed", &folder.join("run")).output().unwrap();
        store
    })
}

/// What a file's head promises: `Expect on the fixtures: N of 1,612 kept, about S % of them swapped`.
fn expectation(file: &Path) -> Option<(u64, Option<f64>)> {
    let text = std::fs::read_to_string(file).unwrap();
    let head: String = text.lines().take_while(|line| line.starts_with('#')).collect::<Vec<_>>().join(" ");
    let head = head.replace("# ", "");
    let promise = head.split("Expect on the fixtures: ").nth(1)?;
    let kept = promise.split_once(" of 1,612 kept")?.0.parse().ok()?;
    let swapped = promise.split_once("about ").and_then(|(_, rest)| rest.split_once(" % of them swapped"));
    Some((kept, swapped.and_then(|(share, _)| share.trim().parse().ok())))
}

#[test]
fn every_pipeline_file_does_what_its_head_says() {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(root().join("pipelines")).unwrap().map(|file| file.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    assert!(files.len() >= 15);
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.file_stem().unwrap().to_str().unwrap();
        assert!(
            text.starts_with(&format!("# superbatch run pipelines/{name}.toml -o runs/{name}\n")),
            "{name}"
        );
        for part in ["Needs: ", "Expect on the fixtures: "] {
            assert!(text.contains(part), "{name} says nothing of `{part}`");
        }
        let folder = tempfile::tempdir().unwrap();
        let of_pairs = text.contains("\"fixtures/pool/*.tar\"");
        let pipeline = pipeline(name);
        let pipeline = if of_pairs { pipeline.with_store(whole_store()) } else { pipeline };
        pipeline.run(folder.path());
        let report = report(folder.path());
        if let Some((n_kept, swapped)) = expectation(&file) {
            assert_eq!(report["counts"]["kept"], n_kept, "{name}");
            if let Some(swapped) = swapped {
                let share = 100.0 * report["planted"]["kept_share"].as_f64().unwrap();
                // three standard errors of a share of so many, and the rounding of the promise
                let error = 300.0 * (swapped.max(1.0) / 100.0 / n_kept as f64).sqrt();
                assert!((share - swapped).abs() <= error + 1.0, "{name}: {share} % swapped");
            }
        }
    }
}

#[test]
fn filters_compose_and_every_sample_is_counted_once() {
    let pipeline = small("semdedup")
        .with("select.step.3.super_batch_size=40")
        .with("divide.n_clusters=4")
        .with("select.step.2.keep.min=0.5");
    let run = run_small(&pipeline);
    let counts = &report(run.path())["counts"];
    let filtered = counts["filtered"].as_object().unwrap();
    assert!(filtered["clip_score"].as_u64().unwrap() > 0, "{counts}");
    let n_filtered: u64 = filtered.values().map(|n| n.as_u64().unwrap()).sum();
    let count = |name: &str| counts[name].as_u64().unwrap();
    assert_eq!(count("read"), count("kept") + count("not_drawn") + n_filtered);
    assert_eq!(n_of(run.path(), "filtered") as u64, n_filtered);
    // half of what came to the draw, and nothing below the threshold
    assert!(count("kept").abs_diff(count("not_drawn")) <= 1, "{counts}");
    let rows = rows(&run.path().join("select"));
    let removed_by = rows.column_by_name("removed_by").unwrap().as_string::<i32>();
    let similarity = numbers(&rows, "reference_similarity");
    let scores = numbers(&rows, "clip_score");
    for row in 0..rows.num_rows() {
        let removed = removed_by.iter().nth(row).unwrap();
        if removed.is_none() {
            assert!(similarity[row].unwrap() >= 0.5);
            assert_eq!(scores[row], similarity[row]);
        }
        if removed == Some("metadata") {
            assert_eq!(scores[row], None, "a filter looks at what comes to it alone");
        }
    }
}

fn numbers(rows: &arrow::array::RecordBatch, column: &str) -> Vec<Option<f64>> {
    let column = rows.column_by_name(column).unwrap();
    let column = arrow::compute::cast(column, &arrow::datatypes::DataType::Float64).unwrap();
    column.as_primitive::<arrow::datatypes::Float64Type>().iter().collect()
}

#[test]
fn a_fraction_is_exact_over_the_pool() {
    let run = run_small(&small("clip_score"));
    let rows = rows(&run.path().join("select"));
    let scores: Vec<f64> = numbers(&rows, "clip_score").into_iter().flatten().collect();
    let n_kept = n_of(run.path(), "kept");
    assert_eq!(n_kept, (scores.len() as f64 * 0.3).round() as usize);
    let mut sorted = scores.clone();
    sorted.sort_by(|left, right| right.total_cmp(left));
    let verdicts = rows.column_by_name("verdict").unwrap().as_string::<i32>();
    for (score, verdict) in scores.iter().zip(verdicts) {
        assert_eq!(verdict == Some("kept"), *score >= sorted[n_kept - 1]);
    }
    // of the pool, after a filter that takes most of it, all that is left passes
    let filtered = r#"select.step=[{method='threshold',by='reference_similarity',keep={min=0.8}},
        {method='clip_score',keep={filter_ratio=0.1,of='pool'}}]"#;
    let run = run_small(&small("clip_score").with(filtered));
    assert_eq!(report(run.path())["counts"]["filtered"].as_object().unwrap().len(), 1);
}

#[test]
fn passes_draw_anew_and_what_remains() {
    let passes = |pool: &str| {
        let pipeline = Pipeline::embedded().with("select.step.0.n_passes=3");
        run_small(&pipeline.with(&format!("select.step.0.pass_pool={pool}")))
    };
    let all = passes("all");
    let counts = |run: &Path| {
        let rows = rows(&run.join("select"));
        let repeats = rows.column_by_name("n_repeats").unwrap().as_primitive::<UInt32Type>().clone();
        repeats.iter().flatten().map(u64::from).collect::<Vec<u64>>()
    };
    let one = run_small(&Pipeline::embedded());
    let n_of_one = kept(one.path()).len() as u64;
    assert_eq!(counts(all.path()).iter().sum::<u64>(), 3 * n_of_one);
    assert!(counts(all.path()).iter().any(|&n| n > 1));
    let draws = rows(&all.path().join("draws"));
    assert_eq!(draws.num_rows() as u64, 3 * n_of_one);
    // the first pass is the run of one pass
    let passes_of = draws.column_by_name("pass").unwrap().as_primitive::<UInt32Type>();
    let first = ids(&draws).into_iter().zip(passes_of.values()).filter(|(_, pass)| **pass == 0);
    assert_eq!(first.map(|(id, _)| id).collect::<BTreeSet<_>>(), kept(one.path()));
    let remaining = passes("remaining");
    assert_eq!(counts(remaining.path()), vec![1; 3 * n_of_one as usize]);
    assert_eq!(rows(&remaining.path().join("curated")).num_rows() as u64, 3 * n_of_one);
}

#[test]
fn a_round_keeps_clusters_and_reference_and_says_how_stale_the_last_is() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let pipeline = Pipeline::small();
    pipeline.run(&run);
    let embeddings = names(&run.join("embeddings"));
    let round =
        |learner: &str| superbatch(["round"]).arg(&run).args(["--learner", learner]).output().unwrap();
    // a checkpoint that is the reference itself has nothing left to learn
    assert!(round("fixtures/models/reference").status.success());
    assert_eq!(names(&run.join("embeddings")), embeddings, "nothing was embedded again");
    let first = report(&run.join("rounds/001"));
    let learnability = &first["scores"]["learnability"];
    assert_eq!((learnability["mean"].as_f64(), &learnability["deciles"][10]), (Some(0.0), &0.0.into()));
    assert_eq!(first["rounds"].as_array().unwrap().len(), 1);
    assert!(round("fixtures/models/learner").status.success());
    let second = report(&run.join("rounds/002"));
    let rounds = second["rounds"].as_array().unwrap();
    assert_eq!((&rounds[0]["round"], &rounds[1]["round"]), (&0.into(), &1.into()));
    // the same learner again: the same scores, drawn with fresh noise
    assert_eq!(rounds[0]["rank_correlations"]["score"]["spearman"], 1.0);
    let share = rounds[0]["kept"]["share"].as_f64().unwrap();
    assert!(share > rounds[0]["kept"]["share_by_chance"].as_f64().unwrap() && share < 1.0, "{share}");
    assert!(names(&run.join("rounds/002")).iter().all(|name| !name.starts_with("divide/")));
    for round in ["rounds/001", "rounds/002"] {
        assert_verified(&run.join(round));
    }
    // what was not finished gives way to another learner
    std::fs::remove_file(run.join("rounds/002/_done/report/00000.json")).unwrap();
    assert!(round("fixtures/models/reference").status.success());
    assert_eq!(report(&run.join("rounds/002"))["scores"]["learnability"]["mean"], 0.0);
    assert!(!run.join("rounds/003").exists());
    assert_verified(&run.join("rounds/002"));
    let error = error_of(superbatch(["round"]).arg(&run).args(["--learner", "nowhere"]), 2);
    assert!(error.contains("`nowhere`"), "{error}");
    let mut small = superbatch(["round"]);
    small.arg(&run).args(["--learner", "fixtures/models/learner", "--memory-limit-bytes", "500000"]);
    let error = error_of(&mut small, 2);
    assert!(error.contains("one super-batch takes 737280 bytes"), "{error}");
    for command in ["status", "inspect"] {
        let output = superbatch([command]).arg(&run).output().unwrap();
        let said = support::text(&output.stdout);
        for round in ["1", "2"] {
            let line = format!("round {round}: complete, `{}/rounds/00{round}`", run.display());
            assert!(said.lines().any(|said| said == line), "{said}");
        }
    }
    // the round after a round is the run's next; before another plan came, rounds were of another series
    pipeline.with("seed=9").command("run", &run).arg("--replan").assert().success();
    let mut next = superbatch(["round"]);
    next.arg(run.join("rounds/002")).args(["--learner", "fixtures/models/learner"]).assert().success();
    assert!(!run.join("rounds/002/rounds").exists());
    let rounds = report(&run.join("rounds/003"))["rounds"].clone();
    assert_eq!(rounds.as_array().unwrap().iter().map(|round| &round["round"]).collect::<Vec<_>>(), [&0]);
    let larger = pipeline.with("read.shards=['fixtures/pool/shard-0000{0..3}.tar']");
    larger.command("run", &run).arg("--replan").assert().success();
    assert!(round("fixtures/models/learner").status.success(), "earlier rounds are of another pool");
    assert_eq!(report(&run.join("rounds/004"))["rounds"].as_array().unwrap().len(), 1);
}

#[test]
fn a_checkpoint_without_a_bias_is_calibrated_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy_folder(&root().join("fixtures/models/learner"), &model);
    std::fs::write(model.join("model.toml"), "logit_scale = 10.0\ncontext_length = 24\n").unwrap();
    let pipeline = Pipeline::small().with(&format!("models.learner.folder='{}'", model.display()));
    let error = error_of(&mut pipeline.command("run", &folder.path().join("refused")), 2);
    assert!(error.contains("has no logit bias") && error.contains("calibrate = true"), "{error}");
    pipeline.with("select.objective=softmax").run(&folder.path().join("softmax"));
    let calibrated = folder.path().join("calibrated");
    pipeline.with("models.learner.calibrate=true").run(&calibrated);
    let fitted = &report(&calibrated)["select"]["calibrated"]["learner"];
    // training ended with 10.18 and −9.94, on batches of 256 and without swapped captions
    let (scale, bias) = (fitted["logit_scale"].as_f64().unwrap(), fitted["logit_bias"].as_f64().unwrap());
    assert!(scale > 2.0 && scale < 20.0 && bias < -2.0 && bias > -15.0, "{fitted}");
    let plan = json(&calibrated.join("plan.json"));
    assert_eq!(plan["models"]["learner"]["logit_bias"], Value::Null);
    assert_eq!(plan["models"]["learner"]["logit_bias_source"], "calibrated on the pool");
}

#[test]
fn what_the_methods_cannot_do_is_named_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let quickstart = |assignment: &str| Pipeline::embedded().with(assignment);
    let steps = |steps: &str| quickstart(&format!("select.step=[{steps}]"));
    let jest = "{method='jest',filter_ratio=0.8,super_batch_size=60}";
    let mistakes = [
        (quickstart("select.step.0.filter_ratio=1.5"), "filter_ratio"),
        (quickstart("select.step.0.n_chunks=0"), "n_chunks"),
        (quickstart("select.step.0.gain=0"), "gain"),
        (quickstart("select.step.0.quota=sqrt"), "a quota over clusters needs"),
        (
            quickstart("select.step.0.pass_pool=remaining").with("select.step.0.n_passes=6"),
            "6 passes of what remains",
        ),
        (
            quickstart("models.expert_0.folder=fixtures/models/reference"),
            "experts take the reference's place",
        ),
        (quickstart("models.teacher.folder=x"), "`teacher` is no model of a run"),
        (quickstart("models.full_reference.folder=x").with("models.reference=1"), "models"),
        (quickstart("divide.model=base"), "`divide.model` is `base`"),
        (quickstart("select.objective=hinge"), "unknown variant `hinge`"),
        (quickstart("select.step.0.draw=dice"), "unknown variant `dice`"),
        (quickstart("read.bounds.json=[['punsafe', 0.5]]"), "expected a map"),
        (steps(""), "0 steps"),
        (steps("{method='jset'}"), "unknown method `jset`"),
        (
            steps(&format!("{jest},{jest}")),
            "`select.step.0`: `jest` is a draw, and a draw must be the last step",
        ),
        (steps(&format!("{{method='clip_score'}},{jest}")), "missing field `keep`"),
        (steps(&format!("{{method='clip_score',keep={{most=1}}}},{jest}")), "expected `{ min"),
        (
            steps(&format!("{{method='threshold',by='beauty',keep={{min=1}}}},{jest}")),
            "`beauty` is no column",
        ),
        (steps("{method='top',by='beauty',filter_ratio=0.5}"), "`beauty` is no column"),
        (steps(&format!("{{method='clip_score',model='base',keep={{min=0}}}},{jest}")), "`models.base`"),
        (steps(&format!("{{method='norm_sim',targets='no.npy',keep={{min=0}}}},{jest}")), "`no.npy`"),
        (steps(&format!("{{method='semdedup',epsilon=3}},{jest}")), "epsilon"),
        (
            steps(&format!(
                "{{method='clip_score',keep={{min=0}}}},{{method='clip_score',keep={{min=0}}}},{jest}"
            )),
            "`clip_score` is taken",
        ),
        (
            steps(
                "{method='soft_cap',by='learnability',filter_ratio=0.5,super_batch_size=60,n_per_turn=0,penalty=1}",
            ),
            "n_per_turn",
        ),
        (steps("{method='dbp',filter_ratio=0.5,temperature=0}"), "select.step.temperature"),
        (steps("{method='dbp',filter_ratio=0.5,n_neighbours=0}"), "n_neighbours"),
        (steps("{method='class_act',filter_ratio=0.5,super_batch_size=60}"), "a classifier"),
    ];
    for (pipeline, what) in mistakes {
        let error = error_of(&mut pipeline.command("run", &run), 2);
        assert!(error.contains(what), "{:?}: {error}", pipeline.sets);
        assert!(!run.exists(), "nothing is written: {:?}", pipeline.sets);
    }
    // chunks that do not fit are as many as there are samples to draw
    Pipeline::embedded().with("select.step.0.n_chunks=1000").run(&run);
}

#[test]
fn bounds_on_reading_keep_what_a_metadata_filter_keeps() {
    let bounds = "caption_words_min = 5, side_min_px = 128";
    let draw = "{ method = 'random', filter_ratio = 0.5, super_batch_size = 100 }";
    let filtered = run_small(
        &small("random").with(&format!("select.step=[{{ method = 'metadata', {bounds} }}, {draw}]")),
    );
    let bounded = tempfile::tempdir().unwrap();
    pipeline("random")
        .with("read.shards=['fixtures/pool/shard-0000{0..2}.tar']")
        .with(&format!("read.bounds={{ {bounds} }}"))
        .with(&format!("select.step=[{draw}]"))
        .run(bounded.path());
    assert_verified(bounded.path());
    assert_eq!(kept(bounded.path()), kept(filtered.path()));
    for (run, name) in [(filtered.path(), "metadata"), (bounded.path(), "read.bounds")] {
        let report = report(run);
        // counted in the tars with Pillow: 112 of 400 have fewer words or a shorter side
        assert_eq!(report["counts"]["filtered"], serde_json::json!({ name: 112 }));
        assert_eq!(report["rejection_ratio"], 0.0);
    }
}

#[test]
fn an_audit_can_come_after_files_between_steps_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let [cleaned, fresh] = ["cleaned", "fresh"].map(|name| folder.path().join(name));
    let plain = small("semdedup");
    let audited = plain.with("models.full_learner={ folder='fixtures/models/learner', image_size_px=64 }");
    plain.run(&cleaned);
    superbatch(["clean"]).arg(&cleaned).assert().success();
    audited.command("run", &cleaned).arg("--replan").assert().success();
    audited.run(&fresh);
    let audit = &report(&cleaned)["audit"];
    assert!(audit["n_samples"].as_u64() > Some(0), "{audit}");
    assert_eq!(audit, &report(&fresh)["audit"]);
}

#[test]
fn semdedup_finds_the_same_in_clusters_larger_than_memory() {
    let pipeline = pipeline("semdedup")
        .with_store(whole_store())
        .with("divide.n_clusters=1")
        .with("select.step=[{method='semdedup',epsilon=0.3}]");
    let (whole, blocks) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    pipeline.run(whole.path());
    // a block of 1,024 images of 128 dimensions: 512 KiB, a quarter of the limit
    pipeline.with("memory_limit_bytes=2097152").run(blocks.path());
    let duplicates = |run: &Path| {
        let rows = rows(&run.join("select"));
        let of = rows.column_by_name("duplicate_of").unwrap().as_string::<i32>();
        of.iter().map(|other| other.map(str::to_owned)).collect::<Vec<_>>()
    };
    let found = duplicates(whole.path());
    assert!(found.len() > 1200, "more than one block");
    assert!(found.iter().flatten().count() > 50, "{} of {}", found.iter().flatten().count(), found.len());
    assert!(found == duplicates(blocks.path()));
}

#[test]
fn a_task_of_several_shards_counts_each_of_them() {
    let stats = |pipeline: &Pipeline| -> Vec<Value> {
        let run = run_small(pipeline);
        let files = names(&run.path().join("stats"));
        let without_times = |name: &String| {
            let mut stats = json(&run.path().join("stats").join(name));
            for key in ["duration", "start_time", "end_time"] {
                stats.as_object_mut().unwrap().remove(key).unwrap();
            }
            stats
        };
        let mut stats: Vec<Value> = files.iter().map(without_times).collect();
        let report = report(run.path());
        stats.push(serde_json::json!([report["worst_shard"], report["rejection_ratio_max_of_shards"]]));
        stats
    };
    let one_each = small("clip_score");
    let store = tempfile::tempdir().unwrap();
    let together = small("clip_score").with_store(store.path()).with("read.shards_per_task=2");
    let found = stats(&together);
    assert_eq!(found.len(), 4, "three shards");
    assert!(found[..3].iter().all(|of_shard| of_shard["kept"].as_u64() > Some(0)));
    assert_eq!(found, stats(&one_each));
}
