//! Clusters in; which of their samples duplicate another one out.

use std::collections::BTreeMap;

use crate::divide::{Texts, read_divided};
use crate::embed::read_embeddings;
use crate::error::Error;
use crate::exchange::{self, ExchangeWriter, Index, Source};
use crate::executor::Executor;
use crate::run_folder::{Done, RunFolder, Stage};
use crate::sample::SampleRef;
use crate::select::semdedup::semdedup;
use crate::settings::SemdedupFilter;
use crate::table::{Columns, Rows};

use super::measure::{Found, found_table, reaching};

/// Deals the samples to their clusters, looks for duplicates in each, and says where the findings are.
pub fn run(
    run: &RunFolder,
    executor: &Executor,
    tasks: &[usize],
    position: usize,
    filter: &SemdedupFilter,
) -> Result<Vec<Source>, Error> {
    let deal = run.filter(position, ".deal");
    executor.run(run, &deal, tasks, executor.n_threads, |task| commit_deal(run, position, task))?;
    let dealt =
        exchange::sources(run, executor, &deal, tasks, |index: Index| index, exchange::FILES_PER_LEVEL_MAX)?;
    let stage = run.filter(position, ".group");
    let n_clusters = run.plan().divide.as_ref().expect("checked with the settings").n_clusters;
    let clusters: Vec<usize> = (0..n_clusters).collect();
    // the kernel shares out the processors itself, and one cluster at a time bounds the memory
    executor
        .run(run, &stage, &clusters, 1, |cluster| commit_cluster(run, position, filter, &dealt, cluster))?;
    exchange::sources(run, executor, &stage, &clusters, |index: Index| index, exchange::FILES_PER_LEVEL_MAX)
}

/// Deals one task's samples to their clusters.
fn commit_deal(run: &RunFolder, position: usize, task: usize) -> Result<(), Error> {
    let plan = run.plan();
    let settings = plan.divide.as_ref().expect("checked with the settings");
    let (samples, file) = reaching(run, position, task)?;
    let divided = read_divided(run, task)?;
    let (embedded, embeddings_file) = read_embeddings(run, settings.model, task)?;
    let texts = Texts::read(run, task)?;
    let mut by_cluster: BTreeMap<usize, Vec<SampleRef>> = BTreeMap::new();
    for sample in samples {
        by_cluster.entry(divided.cluster(sample) as usize).or_default().push(sample);
    }
    let table = |samples: &[SampleRef]| {
        let ids = || samples.iter().map(|sample| sample.id(&plan.pool));
        let similarities = Rows(&divided.table).f32("centroid_similarity");
        let images = embedded.rows.images().expect("checked with the plan: it embeds images");
        let images = images.gather(&embedded.rows_of(samples));
        let mut columns = Columns::default();
        columns
            .text("shard", ids().map(|id| Some(id.shard)))
            .u64("sample_idx", ids().map(|id| Some(id.sample_idx)))
            .text("key", samples.iter().map(|sample| Some(texts.of(*sample).0)))
            .f32("centroid_similarity", samples.iter().map(|s| Some(similarities.value(divided.row(*s)))))
            .embeddings("image", &images, &vec![true; samples.len()], plan.embed.embedding_dtype);
        columns.build()
    };
    let stage = run.filter(position, ".deal");
    let mut writer = ExchangeWriter::new(run.run(), &exchange::file_name(&stage, task), table(&[]).schema())?;
    for (cluster, samples) in by_cluster {
        writer.push(cluster, table(&samples))?;
    }
    let written = writer.finish()?;
    let read = vec![file, divided.file.clone(), embeddings_file, texts.file.clone()];
    run.commit(&stage, task, Done::new(vec![written.file], read, written.index))?;
    Ok(())
}

/// Finds the duplicates of one cluster.
fn commit_cluster(
    run: &RunFolder,
    position: usize,
    filter: &SemdedupFilter,
    dealt: &[Source],
    cluster: usize,
) -> Result<(), Error> {
    let plan = run.plan();
    let stage = run.filter(position, ".group");
    let of_cluster = dealt.iter().filter(|source| source.index.n_rows(cluster) > 0);
    let read = of_cluster.map(|source| source.file.clone()).collect();
    let (mut samples, mut found) = (Vec::new(), Vec::new());
    if let Some(batch) = exchange::read_target(run.run(), dealt, cluster)? {
        let rows = Rows(&batch);
        samples = SampleRef::of_rows(&rows, &plan.pool)?;
        let ids: Vec<_> = samples.iter().map(|sample| sample.id(&plan.pool)).collect();
        let (images, _) = rows.embeddings("image");
        let similarities = rows.f32("centroid_similarity").values();
        let duplicate_of = semdedup(&ids, &images, similarities, filter.epsilon);
        let name = |row: usize| format!("{}:{}", ids[row].shard, rows.text("key").value(row));
        found = duplicate_of
            .into_iter()
            .map(|other| Found {
                is_within: other.is_none(),
                duplicate_of: other.map(name),
                ..Found::default()
            })
            .collect();
    }
    let written = push_found(run, &stage, cluster, &samples, &found)?;
    run.commit(&stage, cluster, Done::new(vec![written.file], read, written.index))?;
    Ok(())
}

/// Writes what a group found as an exchange file back to the shards' tasks.
pub fn push_found(
    run: &RunFolder,
    stage: &Stage,
    group: usize,
    samples: &[SampleRef],
    found: &[Found],
) -> Result<Source, Error> {
    let plan = run.plan();
    let mut by_task: BTreeMap<usize, (Vec<SampleRef>, Vec<Found>)> = BTreeMap::new();
    for (sample, found) in samples.iter().zip(found) {
        let (of_task, found_of_task) = by_task.entry(plan.pool.task_of(sample.shard_idx)).or_default();
        of_task.push(*sample);
        found_of_task.push(found.clone());
    }
    let schema = found_table(run, &[], &[]).schema();
    let mut writer = ExchangeWriter::new(run.run(), &exchange::file_name(stage, group), schema)?;
    for (task, (samples, found)) in by_task {
        writer.push(task, found_table(run, &samples, &found))?;
    }
    writer.finish()
}
