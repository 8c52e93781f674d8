//! Settings, models and the memory limit in; the sizes that fit into it, or why none does, out.

use crate::error::Error;
use crate::select::BATCHES_HELD;
use crate::settings::{DivideSettings, EmbeddingDtype, Filter, ModelRole, Models, SelectSettings, Settings};

use super::PlannedModel;

/// Lowers the sizes of fit, banks and dealing groups to what the memory limit allows: a quarter of it for the banks,
/// half for a group. The other half is for copies of what a draw looks at: a super-batch, which may be half as large
/// again as it is meant to be, and its sub-batch.
///
/// # Errors
///
/// [`Error::MemoryLimit`] where the least of these sizes, or a group of batches of `neg_clip_loss`, does not fit.
pub(super) fn fit_to_memory(
    settings: &Settings,
    models: &Models<PlannedModel>,
    divide: &mut Option<DivideSettings>,
    select: &mut SelectSettings,
) -> Result<(), Error> {
    if let Some(divide) = divide {
        let sample_bytes =
            (scored_bytes(models, EmbeddingDtype::F32) + row_bytes(models, divide.model)).max(1);
        let banks_bytes_max = settings.memory_limit_bytes / 4;
        let size_max = banks_bytes_max / (sample_bytes * (divide.n_clusters as u64 + 1));
        if size_max == 0 {
            return Err(Error::MemoryLimit {
                what: "one member for each bank",
                needed_bytes: 4 * sample_bytes * (divide.n_clusters as u64 + 1),
                limit_bytes: settings.memory_limit_bytes,
            });
        }
        divide.bank_size = divide.bank_size.min(size_max as usize);
        // the points of the fit come and go before the banks
        let dim = models.get(divide.model).map_or(1, |model| model.embedding_dim as u64);
        let n_points_max = banks_bytes_max / (4 * dim * divide.n_clusters as u64);
        divide.fit_samples_per_cluster = divide.fit_samples_per_cluster.min(n_points_max.max(1) as usize);
    }
    fit_select(settings.memory_limit_bytes, models, select)
}

/// The same of what `select` holds alone.
pub(super) fn fit_select(
    memory_limit_bytes: u64,
    models: &Models<PlannedModel>,
    select: &mut SelectSettings,
) -> Result<(), Error> {
    check_filters(memory_limit_bytes, models, select)?;
    let Some(deal) = select.draw.deal() else { return Ok(()) };
    let super_batch_bytes = deal.super_batch_size as u64 * scored_bytes(models, EmbeddingDtype::F32).max(1);
    let needed_bytes = 6 * super_batch_bytes;
    if memory_limit_bytes < needed_bytes {
        let what = "one super-batch";
        return Err(Error::MemoryLimit { what, needed_bytes, limit_bytes: memory_limit_bytes });
    }
    // a group of n super-batches may hold half a super-batch more, and what would be less than one besides
    let n_max = (memory_limit_bytes - 3 * super_batch_bytes) / (2 * super_batch_bytes);
    select.super_batches_per_group = select.super_batches_per_group.min(n_max as usize);
    Ok(())
}

/// The models that a draw scores a sample with: the learner, and the reference, with experts the widest of them. An audit
/// takes part in no draw, and must change none.
pub fn scored(models: &Models<PlannedModel>) -> impl Iterator<Item = &PlannedModel> {
    let is_reference = |role: &ModelRole| matches!(role, ModelRole::Reference | ModelRole::Expert(_));
    let references = models.iter().filter(|(role, _)| is_reference(role)).map(|(_, model)| model);
    models.get(ModelRole::Learner).into_iter().chain(references.max_by_key(|model| model.embedding_dim))
}

/// Bytes of a sample's embeddings under them.
pub fn scored_bytes(models: &Models<PlannedModel>, dtype: EmbeddingDtype) -> u64 {
    scored(models).map(|model| model.row_bytes(dtype)).sum()
}

/// Bytes of a sample's embeddings in memory; 0 without the model.
pub fn row_bytes(models: &Models<PlannedModel>, role: ModelRole) -> u64 {
    models.get(role).map_or(0, |model| model.row_bytes(EmbeddingDtype::F32))
}

/// Whether the memory limit allows the groups of a filter `neg_clip_loss`, whose batches are no one's but the user's.
fn check_filters(
    limit_bytes: u64,
    models: &Models<PlannedModel>,
    select: &SelectSettings,
) -> Result<(), Error> {
    for filter in &select.filters {
        let Filter::NegClipLoss(filter) = &filter.filter else { continue };
        let needed_bytes = (BATCHES_HELD * filter.batch_size) as u64 * row_bytes(models, filter.model);
        if needed_bytes > limit_bytes {
            let what = "a group of batches of `neg_clip_loss`";
            return Err(Error::MemoryLimit { what, needed_bytes, limit_bytes });
        }
    }
    Ok(())
}
