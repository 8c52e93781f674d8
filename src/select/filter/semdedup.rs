//! Clusters in; which of their samples duplicate another one out.

use std::collections::BTreeMap;

use crate::divide::{Texts, read_divided};
use crate::embed::{read_embeddings, tasks_at_once};
use crate::error::Error;
use crate::exchange::{self, ExchangeWriter, Index, Source};
use crate::executor::Executor;
use crate::matrix::Matrix;
use crate::noise::SampleId;
use crate::plan::row_bytes;
use crate::run_folder::{Done, RunFolder, Stage};
use crate::sample::SampleRef;
use crate::select::semdedup::{least_similar_first, semdedup_in_blocks};
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
    let divide = run.plan().divide.as_ref().expect("checked with the settings");
    let n_at_once = tasks_at_once(run, executor, row_bytes(&run.plan().models, divide.model))?;
    executor.run(run, &deal, tasks, n_at_once, |task| commit_deal(run, position, task))?;
    let dealt =
        exchange::sources(run, executor, &deal, tasks, |index: Index| index, exchange::FILES_PER_LEVEL_MAX)?;
    let stage = run.filter(position, ".group");
    let clusters: Vec<usize> = (0..divide.n_clusters).collect();
    let deduplicator = Deduplicator {
        run,
        position,
        filter,
        dealt: &dealt,
        memory_limit_bytes: executor.memory_limit_bytes,
    };
    // the kernel shares out the processors itself, and one cluster at a time bounds the memory
    executor.run(run, &stage, &clusters, 1, |cluster| deduplicator.commit(cluster))?;
    exchange::sources(run, executor, &stage, &clusters, |index: Index| index, exchange::FILES_PER_LEVEL_MAX)
}

/// Deals one task's samples to their clusters.
fn commit_deal(run: &RunFolder, position: usize, task: usize) -> Result<(), Error> {
    let plan = run.plan();
    let settings = plan.divide.as_ref().expect("checked with the settings");
    let (samples, file) = reaching(run, position, task)?;
    let divided = read_divided(run, task, &["centroid_similarity"])?;
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
    let mut writer = ExchangeWriter::new(run, &stage, task, table(&[]).schema())?;
    for (cluster, samples) in by_cluster {
        writer.push(cluster, table(&samples))?;
    }
    let written = writer.finish()?;
    let read = vec![file, divided.file.clone(), embeddings_file, texts.file.clone()];
    run.commit(&stage, task, Done::new(vec![written.file], read, written.index))?;
    Ok(())
}

/// What every task of a cluster takes.
struct Deduplicator<'a> {
    run: &'a RunFolder,
    position: usize,
    filter: &'a SemdedupFilter,
    dealt: &'a [Source],
    memory_limit_bytes: u64,
}

/// The samples of a cluster, but for their images.
#[derive(Default)]
struct Members {
    samples: Vec<SampleRef>,
    keys: Vec<String>,
    centroid_similarities: Vec<f32>,
}

impl Deduplicator<'_> {
    /// Finds and commits the duplicates of one cluster.
    fn commit(&self, cluster: usize) -> Result<(), Error> {
        let plan = self.run.plan();
        let members = self.read_members(cluster)?;
        let ids: Vec<SampleId> = members.samples.iter().map(|sample| sample.id(&plan.pool)).collect();
        let order = least_similar_first(&ids, &members.centroid_similarities);
        let read_images = |rows: &[usize]| self.read_images(cluster, rows);
        let duplicate_of = semdedup_in_blocks(&order, self.filter.epsilon, self.block_size(), read_images)?;
        let name = |row: usize| format!("{}:{}", ids[row].shard, members.keys[row]);
        let found: Vec<Found> = duplicate_of
            .into_iter()
            .map(|other| Found {
                is_within: other.is_none(),
                duplicate_of: other.map(name),
                ..Found::default()
            })
            .collect();
        let stage = self.run.filter(self.position, ".group");
        let of_cluster = self.dealt.iter().filter(|source| source.index.n_rows(cluster) > 0);
        let read = of_cluster.map(|source| source.file.clone()).collect();
        let written = push_found(self.run, &stage, cluster, &members.samples, &found)?;
        self.run.commit(&stage, cluster, Done::new(vec![written.file], read, written.index))?;
        Ok(())
    }

    /// Images of a block: with the block that it meets they take half of the memory.
    fn block_size(&self) -> usize {
        (self.memory_limit_bytes / 4 / (4 * self.dim() as u64)) as usize
    }

    fn dim(&self) -> usize {
        let plan = self.run.plan();
        let model = plan.divide.as_ref().and_then(|divide| plan.models.get(divide.model));
        model.expect("checked with the settings").embedding_dim
    }

    fn read_members(&self, cluster: usize) -> Result<Members, Error> {
        let mut members = Members::default();
        for batch in exchange::target_batches(self.run.run(), self.dealt, cluster) {
            let batch = batch?;
            let rows = Rows(&batch);
            members.samples.extend(SampleRef::of_rows(&rows, &self.run.plan().pool)?);
            members.keys.extend(rows.text("key").iter().flatten().map(str::to_owned));
            members.centroid_similarities.extend(rows.f32("centroid_similarity").values());
        }
        Ok(members)
    }

    /// The images of these members, in this order.
    fn read_images(&self, cluster: usize, rows: &[usize]) -> Result<Matrix, Error> {
        let mut images = Matrix::zeros(rows.len(), self.dim());
        let mut wanted: Vec<(usize, usize)> = rows.iter().copied().zip(0..).collect();
        wanted.sort_unstable();
        let mut wanted = wanted.into_iter().peekable();
        let mut start = 0;
        for batch in exchange::target_batches(self.run.run(), self.dealt, cluster) {
            let (of_batch, _) = Rows(&batch?).embeddings("image");
            let end = start + of_batch.n_rows();
            while let Some((row, place)) = wanted.next_if(|(row, _)| *row < end) {
                images.row_mut(place).copy_from_slice(of_batch.row(row - start));
            }
            start = end;
        }
        Ok(images)
    }
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
    let mut writer = ExchangeWriter::new(run, stage, group, schema)?;
    for (task, (samples, found)) in by_task {
        writer.push(task, found_table(run, &samples, &found))?;
    }
    writer.finish()
}
