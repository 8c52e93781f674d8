//! Which tasks a full model audits, and what models a plan refuses.

use std::path::Path;

use super::*;
use crate::digest::Digest;
use crate::settings::EmbeddingDtype;

/// The plan of the quickstart on the fixtures, with as many shards as wanted.
fn plan(n_shards: usize, audit_fraction: f64) -> Plan {
    let mut plan: Plan = serde_json::from_str(include_str!("../report/testdata/plan.json")).unwrap();
    plan.pool.shards = (0..n_shards)
        .map(|n| Shard { id: format!("shard-{n:05}.tar"), size_bytes: 1, modified_ns: 0, sidecar: None })
        .collect();
    plan.pool.shards_per_task = 1;
    plan.report.audit_fraction = audit_fraction;
    let mut full = plan.models.get(ModelRole::Learner).unwrap().clone();
    full.digest = Digest::of_bytes(b"another model");
    plan.models.insert(ModelRole::FullLearner, full);
    plan
}

#[test]
fn audits_take_the_fraction_rounded_up() {
    for (n_shards, fraction, n_audited) in
        [(12, 0.1, 2), (12, 0.25, 3), (12, 1.0, 12), (1, 0.001, 1), (1000, 0.1, 100)]
    {
        let plan = plan(n_shards, fraction);
        let tasks = plan.audited_tasks();
        assert_eq!(tasks.len(), n_audited, "{fraction} of {n_shards}");
        assert!(tasks.is_sorted() && tasks.iter().all(|&task| task < n_shards));
    }
    let few = plan(1000, 0.1).audited_tasks();
    let more = plan(1000, 0.2).audited_tasks();
    assert!(few.iter().all(|task| more.contains(task)), "a larger audit holds the smaller one");
    // 100 of 1,000 at random have a mean of 499.5 with a standard deviation of 27.4
    let mean = few.iter().sum::<usize>() as f64 / few.len() as f64;
    assert!((mean - 499.5).abs() < 4.0 * 27.4, "{mean}");
    assert_ne!(few, Plan { seed: 2, ..plan(1000, 0.1) }.audited_tasks());
}

#[test]
fn a_model_with_another_role_embeds_everything() {
    let mut plan = plan(12, 0.25);
    let all: Vec<usize> = (0..12).collect();
    assert_eq!(plan.tasks_of(ModelRole::Learner), all);
    assert_eq!(plan.tasks_of(ModelRole::FullLearner), plan.audited_tasks());
    let mut reference = plan.models.get(ModelRole::FullLearner).unwrap().clone();
    plan.models.insert(ModelRole::FullReference, reference.clone());
    assert_eq!(plan.tasks_of(ModelRole::FullLearner), plan.audited_tasks(), "both only audit");
    reference.folder = "elsewhere".into();
    plan.models.insert(ModelRole::Reference, reference);
    assert_eq!(plan.tasks_of(ModelRole::FullLearner), all, "the same model is the reference");
}

const PIPELINE: &str = r#"
    [read]
    shards = ["fixtures/pool/shard-00000.tar"]
    [models.learner]
    folder = "fixtures/models/learner"
    [models.reference]
    folder = "FOLDER"
    [[select.step]]
    method = "jest"
    filter_ratio = 0.8
    super_batch_size = 60
"#;

/// A copy of the fixtures' reference with another `model.toml` and `config.json`.
fn reference(manifest: &str) -> tempfile::TempDir {
    let source = Path::new("fixtures/models/reference");
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("onnx")).unwrap();
    for name in [
        "onnx/vision_model.onnx",
        "onnx/text_model.onnx",
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
    ] {
        std::fs::copy(source.join(name), folder.path().join(name)).unwrap();
    }
    let config = std::fs::read_to_string(source.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["logit_scale_init_value"] = json!(2.6592);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.path().join("model.toml"), manifest).unwrap();
    folder
}

fn planned(manifest: &str, assignments: &[&str]) -> Result<PlannedModel, Error> {
    let folder = reference(manifest);
    let text = PIPELINE.replace("FOLDER", &folder.path().display().to_string());
    let assignments: Vec<String> = assignments.iter().map(|text| text.to_string()).collect();
    let settings = Settings::parse(&text, &assignments).unwrap();
    Ok(Plan::new(&settings, Device::Cpu)?.models.get(ModelRole::Reference).unwrap().clone())
}

#[test]
fn what_the_loss_takes_must_be_stated_or_calibrated() {
    let both = planned("logit_scale = 20.0\nlogit_bias = -9.0", &[]).unwrap();
    assert_eq!((both.logit_scale, both.logit_bias), (Some(20.0), Some(-9.0)));
    assert_eq!((both.logit_scale_source.as_str(), both.kind), ("model.toml", crate::embed::ModelKind::Pair));

    let Err(error) = planned("logit_scale = 20.0", &[]) else { panic!("no bias") };
    assert!(matches!(error, Error::BiasMissing { model: ModelRole::Reference, .. }), "{error}");
    let hint = error.hint().unwrap();
    assert!(
        hint.contains("`calibrate = true` in `[models.reference]`") && hint.contains("softmax"),
        "{hint}"
    );
    planned("logit_scale = 20.0", &["select.objective=softmax"]).unwrap();

    let Err(error) = planned("logit_bias = -9.0", &["select.objective=softmax"]) else { panic!("no scale") };
    let hint = error.hint().unwrap();
    assert!(hint.contains("calibrate = true") && hint.contains("14.28"), "{hint}");

    let calibrated = planned("logit_scale = 20.0", &["models.reference.calibrate=true"]).unwrap();
    assert_eq!((calibrated.logit_scale, calibrated.logit_bias), (None, None));
    assert_eq!(calibrated.logit_scale_source, "calibrated on the pool");
    assert_eq!(calibrated.logit_bias_source, "calibrated on the pool");
    assert_eq!(calibrated.digest, both.digest, "the embeddings are the same");
}

#[test]
fn a_model_must_be_of_the_kind_that_its_role_wants() {
    let both = "logit_scale = 20.0\nlogit_bias = -9.0";
    let refused = |manifest, assignments: &[&str]| match planned(manifest, assignments) {
        Err(Error::ModelKind { model, wanted, .. }) => (model.to_string(), wanted),
        Err(error) => panic!("{}", error.message()),
        Ok(_) => panic!("it is refused"),
    };
    let (model, wanted) = refused("kind = \"image\"", &[]);
    assert!(model == "reference" && wanted.contains("text tower"), "{wanted}");
    let (model, wanted) = refused(both, &["read.samples=image"]);
    assert!(model == "learner" && wanted.contains("no captions"), "{wanted}");
    let random = ["select.step=[{method='random', filter_ratio=0.5, super_batch_size=60}]"];
    planned("kind = \"image\"", &random).unwrap();
    let (_, wanted) = refused("kind = \"text\"", &[random[0], "divide={n_clusters=4}"]);
    assert!(wanted.contains("clustered"), "{wanted}");
    let labelled = [random[0], "read.samples=image_class", "models.learner.folder=fixtures/models/learner"];
    let (model, wanted) = refused("kind = \"image\"", &labelled);
    assert!(model == "learner" && wanted.contains("no captions"), "{wanted}");
}

#[test]
fn a_row_holds_what_its_model_gives() {
    let mut model = plan(1, 0.1).models.get(ModelRole::Learner).unwrap().clone();
    let bytes =
        |model: &PlannedModel| (model.row_bytes(EmbeddingDtype::F16), model.row_bytes(EmbeddingDtype::F32));
    assert_eq!((model.embedding_dim, bytes(&model)), (128, (512, 1024)));
    model.kind = crate::embed::ModelKind::Image;
    assert_eq!(bytes(&model), (256, 512));
    model.kind = crate::embed::ModelKind::Classifier;
    assert_eq!(bytes(&model), (512, 512));
}

#[test]
fn an_audit_changes_no_group() {
    let text = PIPELINE.replace("FOLDER", "fixtures/models/reference");
    // a sample takes 2 KiB under both models: two super-batches of 60, and one and a half more, are 430,080 bytes
    let memory = "memory_limit_bytes=860160".to_owned();
    let groups = |more: &[&str]| {
        let assignments: Vec<String> =
            more.iter().map(|text| text.to_string()).chain([memory.clone()]).collect();
        let settings = Settings::parse(&text, &assignments).unwrap();
        Plan::new(&settings, Device::Cpu).unwrap().select.super_batches_per_group
    };
    assert_eq!(groups(&[]), 2);
    let audited = ["models.full_learner.folder=fixtures/models/learner", "models.learner.image_size_px=48"];
    assert_eq!(groups(&audited), 2);
}
