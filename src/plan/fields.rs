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
    let Some((fields, n_samples)) = missing(pool, read, select) else { return };
    for field in fields {
        tracing::warn!(
            field,
            n_samples,
            "none of the first samples with JSON has this field in it: is it misspelt?"
        );
    }
}

/// The fields, and the number of samples that lack them; nothing where no sample with JSON can be read.
fn missing<'a>(
    pool: &Pool,
    read: &'a ReadSettings,
    select: &'a SelectSettings,
) -> Option<(Vec<&'a str>, usize)> {
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
        return None;
    }
    let mut n_samples = 0;
    for sample in open_shard(pool, pool.shards.first()?, read).ok()?.take(N_SAMPLES) {
        // what was seen before a break counts
        let Ok(sample) = sample else { break };
        let json = match sample {
            ReadSample::Sample(sample) => sample.json,
            ReadSample::Rejected(sample) => sample.json,
        };
        let Some(json) = json.and_then(|text| serde_json::from_str::<Value>(&text).ok()) else { continue };
        n_samples += 1;
        missing.retain(|field| field_of(&json, field).is_none());
    }
    (n_samples > 0).then_some((missing, n_samples))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn fields_that_no_sample_has_are_found() {
        let pipeline_of = |shard: &str, more: &str| {
            let text = format!(
                "[read]\nshards = ['{shard}']\n{more}\n[models.learner]\nfolder = 'none'\n\
                 [[select.step]]\nmethod = 'metadata'\njson = [{{ field = 'width' }}, {{ field = 'uid.digits' }}]\n\
                 [[select.step]]\nmethod = 'random'\nfilter_ratio = 0.5\nsuper_batch_size = 10\n"
            );
            Settings::parse(&text, &[]).unwrap()
        };
        let pipeline = |more: &str| pipeline_of("fixtures/pool/shard-00000.tar", more);
        let missing = |settings: &Settings| -> Vec<String> {
            let pool = Pool::find(&settings.read).unwrap();
            let (missing, n_samples) = missing(&pool, &settings.read, &settings.select).unwrap();
            assert_eq!(n_samples, N_SAMPLES);
            missing.into_iter().map(str::to_owned).collect()
        };
        let bounds = "bounds = { json = [{ field = 'heigth' }, { field = 'original' }] }";
        assert_eq!(missing(&pipeline(bounds)), ["heigth", "uid.digits"]);
        // every sample is rejected for the label that it lacks, and has its JSON still
        let labels = "samples = 'image_class'\nlabel_field = 'height'";
        assert_eq!(missing(&pipeline(labels)), ["uid.digits"]);
        let misspelt = labels.replace("height", "hieght");
        assert_eq!(missing(&pipeline(&misspelt)), ["hieght", "uid.digits"]);
        // a shard that breaks off at once tells nothing of the others
        let folder = tempfile::tempdir().unwrap();
        let broken = folder.path().join("broken.tar");
        std::fs::write(&broken, "no tar at all".repeat(100)).unwrap();
        let settings = pipeline_of(broken.to_str().unwrap(), "");
        let pool = Pool::find(&settings.read).unwrap();
        assert_eq!(super::missing(&pool, &settings.read, &settings.select), None);
    }
}
