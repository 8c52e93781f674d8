use super::*;
use crate::plan::Plan;
use crate::settings::Assumptions;

/// A thousand pairs in ten shards; a node of two GPUs and four cores, whose figures are easy to divide by.
const ASSUMED: &str = "
    [pool]
    n_samples = 1000
    samples_per_shard = 100
    sample_bytes = 10_000
    [models.learner]
    embedding_dim = 128
    flops = 3e6
    samples_per_sec = 10
    [models.reference]
    embedding_dim = 128
    flops = 5e6
    samples_per_sec = 5
    [node]
    n_gpus = 2
    n_cores = 4
    decode_samples_per_sec = 2
    flops_per_sec = 1e6
    bytes_per_sec = 1e6
";

/// Of the quick start's plan: both models with 128 values a tower, ten clusters, super-batches of 400.
fn estimate(assumed: &str) -> Estimate {
    let plan: Plan = serde_json::from_str(include_str!("../report/testdata/plan.json")).unwrap();
    let settings = Settings::load("pipelines/quickstart.toml".as_ref(), &[]).unwrap();
    Estimate::assumed(&plan, &settings, &toml::from_str::<Assumptions>(assumed).unwrap())
}

#[test]
fn operations_are_those_of_the_formulas() {
    let estimate = estimate(ASSUMED);
    let flops = |name| estimate.stages.iter().find(|stage| stage.stage == name).unwrap().flops.unwrap();
    assert_eq!((estimate.n_shards, estimate.n_kept, estimate.n_super_batches), (10, 200, 2));
    assert_eq!(flops("embed"), 1000.0 * 8e6);
    // 3 restarts of 50 passes over all points and ten centroids; an assignment; a pool bank of all and three times a
    // cluster's hundred
    let divide = 3.0 * 50.0 * 2.0 * 1000.0 * 10.0 * 128.0
        + 2.0 * 1000.0 * 10.0 * 128.0
        + 2.0 * 1000.0 * 128.0 * 1300.0;
    assert_eq!(flops("divide"), divide);
    // a bank of a hundred and a sub-batch of a hundred, in both directions, under both models
    assert_eq!(flops("select"), 4.0 * 1000.0 * 200.0 * 256.0);
}

#[test]
fn the_busiest_part_of_a_node_tells_its_seconds() {
    let time = |assumed: &str, name: &str| {
        let estimate = estimate(assumed);
        estimate.stages.into_iter().find(|stage| stage.stage == name).unwrap().time.unwrap()
    };
    let embed = time(ASSUMED, "embed");
    // GPUs: 100 s and 200 s, two of them; cores: 500 s, four of them; 10 MB are read and 1.2 MB written
    assert_eq!((embed.gpu_secs, embed.core_secs, embed.node_secs), (300.0, 500.0, 150.0));
    let embed = time(&ASSUMED.replace("n_gpus = 2", "n_gpus = 0"), "embed");
    assert_eq!((embed.gpu_secs, embed.core_secs, embed.node_secs), (0.0, 800.0, 200.0));
    let embed = time(&ASSUMED.replace("bytes_per_sec = 1e6", "bytes_per_sec = 1e3"), "embed");
    // 1,024 bytes of embeddings and 150 of other columns a sample
    assert_eq!(embed.node_secs, 10_000.0 + 1_174.0);
    // what is read: the pool, 2 MB of what is kept, rows of 300 bytes; what is kept is written twice
    let write = time(ASSUMED, "write");
    assert_eq!((write.gpu_secs, write.core_secs), (0.0, 0.0));
    assert_eq!(write.node_secs, (10e6 + 2e6 + 0.3e6 + 4e6) / 1e6);
}

#[test]
fn embeddings_that_are_dealt_to_clusters_take_room() {
    let mut plan: Plan = serde_json::from_str(include_str!("../report/testdata/plan.json")).unwrap();
    let settings = Settings::load("pipelines/quickstart.toml".as_ref(), &[]).unwrap();
    let assumed = toml::from_str::<Assumptions>(ASSUMED).unwrap();
    let mut of_steps = |steps: &str| {
        plan.select = toml::from_str(&format!("step = [{steps}]")).unwrap();
        let estimate = Estimate::assumed(&plan, &settings, &assumed);
        let select = estimate.stages.iter().find(|stage| stage.stage == "select").unwrap().clone();
        assert_eq!(
            estimate.disk_bytes(),
            estimate.embedding_bytes + estimate.exchange_bytes + estimate.curated_bytes + 600_000
        );
        (estimate.exchange_bytes - estimate.curated_bytes, select)
    };
    let jest =
        |more: &str| format!("{{ method = 'jest', filter_ratio = 0.8, super_batch_size = 100{more} }}");
    let (dealt_bytes, over_pool) = of_steps(&jest(""));
    assert_eq!(dealt_bytes, 0);
    // scores and draw read 1,024 bytes of embeddings a sample, and rows of 300 bytes are read and written twice
    assert_eq!((over_pool.read_bytes, over_pool.written_bytes), (2 * 1_024_000 + 600_000, 600_000));

    // both models' embeddings go out and come back
    let (dealt_bytes, within) = of_steps(&jest(", super_batches = 'within_clusters'"));
    assert_eq!(dealt_bytes, 1_024_000);
    assert_eq!(
        (within.read_bytes, within.written_bytes),
        (over_pool.read_bytes + 1_024_000, over_pool.written_bytes + 1_024_000)
    );

    // images of 128 values under one model do, of embeddings of 512 bytes
    let semdedup = format!("{{ method = 'semdedup', epsilon = 0.1 }}, {}", jest(""));
    let (dealt_bytes, semdedup) = of_steps(&semdedup);
    assert_eq!(dealt_bytes, 256_000);
    assert_eq!(
        (semdedup.read_bytes, semdedup.written_bytes),
        (over_pool.read_bytes + 512_000 + 256_000, over_pool.written_bytes + 256_000)
    );
    // without a draw nothing comes to super-batches; a cut reads ids and scores five times
    let (_, top) = of_steps("{ method = 'top', filter_ratio = 0.5, by = 'learnability' }");
    assert_eq!(top.read_bytes, 1_024_000 + 600_000 + 5 * 24_000);
}

#[test]
fn images_are_read_again_only_to_be_written() {
    let mut plan: Plan = serde_json::from_str(include_str!("../report/testdata/plan.json")).unwrap();
    let settings = Settings::load("pipelines/quickstart.toml".as_ref(), &[]).unwrap();
    plan.write.images = false;
    let estimate = Estimate::assumed(&plan, &settings, &toml::from_str::<Assumptions>(ASSUMED).unwrap());
    let write = estimate.stages.iter().find(|stage| stage.stage == "write").unwrap();
    // rows of the 200 that are kept, and of all
    assert_eq!(write.read_bytes, 200 * 600 + 300_000);
}

#[test]
fn seconds_of_what_has_no_rate_are_unknown() {
    let plan: Plan = serde_json::from_str(include_str!("../report/testdata/plan.json")).unwrap();
    let settings = Settings::load("pipelines/quickstart.toml".as_ref(), &[]).unwrap();
    let mut assumed = toml::from_str::<Assumptions>(ASSUMED).unwrap();
    assumed.node.decode_samples_per_sec = None;
    let estimate = Estimate::assumed(&plan, &settings, &assumed);
    let has_time: Vec<bool> = estimate.stages.iter().map(|stage| stage.time.is_some()).collect();
    assert_eq!(has_time, [false, true, true, true, true]);
    let text = text(Some(&estimate), &plan);
    assert!(text.contains(", decoding unknown of a core; ") && !text.contains("core s"), "{text}");
}

#[test]
fn filters_that_keep_a_fraction_are_counted() {
    let mut plan: Plan = serde_json::from_str(include_str!("../report/testdata/plan.json")).unwrap();
    let settings = Settings::load("pipelines/quickstart.toml".as_ref(), &[]).unwrap();
    let assumed = toml::from_str::<Assumptions>(ASSUMED).unwrap();
    let step = |text: &str| toml::from_str::<toml::Table>(text).unwrap();
    let mut of_steps = |steps: &[&str]| {
        let steps: Vec<toml::Value> = steps.iter().map(|text| step(text).into()).collect();
        plan.select = toml::Table::from_iter([("step".to_owned(), steps.into())]).try_into().unwrap();
        let estimate = Estimate::assumed(&plan, &settings, &assumed);
        (estimate.n_kept, estimate.n_super_batches, estimate.text(&plan))
    };
    let half = "method = 'clip_score'\nkeep = { filter_ratio = 0.5 }";
    let third = "method = 'threshold'\nby = 'clip_score'\nkeep = { filter_ratio = 0.7, of = 'pool' }";
    let bound = "method = 'semdedup'\nepsilon = 0.1";
    let (n_kept, n_super_batches, text) = of_steps(&[half, third, bound]);
    assert_eq!((n_kept, n_super_batches), (300, 0));
    assert!(
        text.contains("select    clip_score, then threshold, then semdedup: at most about 300 of"),
        "{text}"
    );
    let draw = "method = 'random'\nfilter_ratio = 0.8\nsuper_batch_size = 100";
    let (n_kept, n_super_batches, text) = of_steps(&[half, draw]);
    assert_eq!((n_kept, n_super_batches), (100, 5));
    assert!(
        text.contains("select    clip_score, then random, filter ratio 0.8: about 100 of 1,000 samples, in 5 super-batches\n"),
        "{text}"
    );
}
