//! Groups of tasks in; each sample's negCLIPLoss, averaged over seeded partitions of its group into batches, out.

use crate::error::Error;
use crate::exchange::{self, Index, Source};
use crate::executor::Executor;
use crate::matrix::Matrix;
use crate::noise::Purpose;
use crate::run_folder::{Done, RunFolder};
use crate::sample::SampleRef;
use crate::select::counts::super_batch_sizes;
use crate::select::draw_plan::{group_tasks, ordered, rounded_size_max};
use crate::select::neg_clip::neg_clip_scores;
use crate::select::usable::read_pairs;
use crate::settings::NegClipLossFilter;

use super::measure::{Found, reaching};
use super::semdedup::push_found;

/// Batches in one group of tasks, and half a batch more, as of dealing groups.
const BATCHES_PER_GROUP: usize = 4;

/// Samples of a batch that a group with its copies holds as many of as this times at most: `BATCHES_PER_GROUP`, half a
/// batch more, what would be less than one, and the batch that is measured, which may be half as large again.
pub const BATCHES_HELD: usize = BATCHES_PER_GROUP + 3;

/// Samples up to which tasks come together.
pub fn batches_size_max(filter: &NegClipLossFilter) -> usize {
    rounded_size_max(BATCHES_PER_GROUP, filter.batch_size)
}

/// Measures every group, and says where the scores are.
pub fn run(
    run: &RunFolder,
    executor: &Executor,
    tasks: &[usize],
    position: usize,
    filter: &NegClipLossFilter,
) -> Result<Vec<Source>, Error> {
    let stage = run.filter(position, ".group");
    let groups: Vec<Vec<usize>> = run.stage_plan(&stage, || {
        let count = |task| Ok(reaching(run, position, task)?.0.len());
        let groups = group_tasks(run, tasks, count, batches_size_max(filter), filter.batch_size)?;
        Ok(groups.into_iter().map(|group| group.tasks).collect())
    })?;
    let all: Vec<usize> = (0..groups.len()).collect();
    // the kernel shares out the processors itself
    executor.run(run, &stage, &all, 1, |group| commit(run, position, filter, &groups[group], group))?;
    exchange::sources(run, executor, &stage, &all, |index: Index| index, exchange::FILES_PER_LEVEL_MAX)
}

fn commit(
    run: &RunFolder,
    position: usize,
    filter: &NegClipLossFilter,
    tasks: &[usize],
    group: usize,
) -> Result<(), Error> {
    let mut samples: Vec<SampleRef> = Vec::new();
    let (mut images, mut captions) = (Matrix::default(), Matrix::default());
    let mut read = Vec::new();
    for &task in tasks {
        let (of_task, file) = reaching(run, position, task)?;
        read.push(file);
        let (of_images, of_captions) = read_pairs(run, filter.model, task, &of_task, &mut read)?;
        samples.extend(of_task);
        images.append(&of_images);
        captions.append(&of_captions);
    }
    let precision = run.plan().select.precision;
    let mut sums = vec![0.0; samples.len()];
    for partition in 0..filter.n_partitions as u64 {
        let order = ordered(run.plan(), Purpose::Partition, partition, &samples);
        let mut start = 0;
        for size in super_batch_sizes(samples.len(), filter.batch_size) {
            let batch = &order[start..start + size];
            start += size;
            let (images, captions) = (images.gather(batch), captions.gather(batch));
            let scores = neg_clip_scores(&images, &captions, filter.temperature, precision);
            for (&row, score) in batch.iter().zip(scores) {
                sums[row] += score;
            }
        }
    }
    let found: Vec<Found> = sums
        .into_iter()
        .map(|sum| Found {
            score: Some(sum / filter.n_partitions as f64),
            is_within: true,
            ..Found::default()
        })
        .collect();
    let stage = run.filter(position, ".group");
    let written = push_found(run, &stage, group, &samples, &found)?;
    run.commit(&stage, group, Done::new(vec![written.file], read, written.index))?;
    Ok(())
}
