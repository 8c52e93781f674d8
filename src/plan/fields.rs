//! Settings that name fields of the samples' JSON in, a warning about those that no sample seems to have out.

use serde_json::Value;

use super::pool::Pool;
use crate::bounds::field_of;
use crate::embed::open_shard;
use crate::read::ReadSample;
use crate::settings::{Filter, ReadSettings, SelectSettings};

/// Samples that are looked at: a pool's are alike.
const N_SAMPLES: usize = 100;

/// Warns of fields that none of the first samples of the pool has: a misspelt one takes all samples out, but only when
/// they have been read. What is wrong with the shard is said where it is read for good.
pub(super) fn warn_of_missing(pool: &Pool, read: &ReadSettings, select: &SelectSettings) {
    let missing = missing(pool, read, select);
    for field in missing.unwrap_or_default() {
        tracing::warn!(
            field,
            "none of the first {N_SAMPLES} samples has this field in its JSON: is it misspelt?"
        );
    }
}

/// Nothing where the samples cannot be read.
fn missing<'a>(pool: &Pool, read: &'a ReadSettings, select: &'a SelectSettings) -> Option<Vec<&'a str>> {
    let filters = select.filters.iter().filter_map(|filter| match &filter.filter {
        Filter::Metadata(bounds) => Some(bounds),
        _ => None,
    });
    let bounds = filters.chain([&read.bounds]).flat_map(|bounds| &bounds.json);
    let mut missing: Vec<&str> =
        bounds.map(|bound| bound.field.as_str()).chain(read.label_field.as_deref()).collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Some(missing);
    }
    for sample in open_shard(pool, pool.shards.first()?, read).ok()?.take(N_SAMPLES) {
        let json = match sample.ok()? {
            ReadSample::Sample(sample) => sample.json,
            ReadSample::Rejected(sample) => sample.json,
        };
        let json: Value = json.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        missing.retain(|field| field_of(&json, field).is_none());
    }
    Some(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn fields_that_no_sample_has_are_found() {
        let pipeline = |more: &str| {
            let text = format!(
                "[read]\nshards = ['fixtures/pool/shard-00000.tar']\n{more}\n[models.learner]\nfolder = 'none'\n\
                 [[select.step]]\nmethod = 'metadata'\njson = [{{ field = 'width' }}, {{ field = 'uid.digits' }}]\n\
                 [[select.step]]\nmethod = 'random'\nfilter_ratio = 0.5\nsuper_batch_size = 10\n"
            );
            Settings::parse(&text, &[]).unwrap()
        };
        let missing = |settings: &Settings| -> Vec<String> {
            let pool = Pool::find(&settings.read).unwrap();
            let missing = missing(&pool, &settings.read, &settings.select).unwrap();
            missing.into_iter().map(str::to_owned).collect()
        };
        let bounds = "bounds = { json = [{ field = 'heigth' }, { field = 'original' }] }";
        assert_eq!(missing(&pipeline(bounds)), ["heigth", "uid.digits"]);
        // every sample is rejected for the label that it lacks, and has its JSON still
        let labels = "samples = 'image_class'\nlabel_field = 'height'";
        assert_eq!(missing(&pipeline(labels)), ["uid.digits"]);
        let misspelt = labels.replace("height", "hieght");
        assert_eq!(missing(&pipeline(&misspelt)), ["hieght", "uid.digits"]);
    }
}
