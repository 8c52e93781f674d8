//! `[read]`: which shards there are, what a sample is, and what is refused.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::read::{ColumnNames, LabelSource, Limits, ReadRules, SampleKind};

use super::{MetadataFilter, SettingsError, out_of_range};

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ReadSettings {
    /// Shards of the pool, tars or Parquet files: paths with braces (`{00000..00012}`) and globs, or `@` and a file with
    /// such paths, a line each.
    pub shards: Vec<String>,
    /// Folder below which shard ids are paths; the longest common folder if absent.
    pub root: Option<PathBuf>,
    /// What a sample has beside its image: a caption, a label or nothing.
    #[serde(default)]
    pub samples: SampleContents,
    /// The field of the JSON member with a sample's label, a whole number; dots go into objects. Absent: labels are
    /// members `cls`.
    pub label_field: Option<String>,
    /// Whether a Parquet file beside a tar, of the same name, adds what the tar does not say of its samples.
    #[serde(default = "yes")]
    pub sidecar: bool,
    /// The column of Parquet shards with images; absent: the first of the usual names.
    pub image_column: Option<String>,
    /// The column of Parquet shards, and of files beside tars, with captions; absent: the first of the usual names.
    pub caption_column: Option<String>,
    /// Shards in one task; absent: so many that there are at most 100,000 tasks.
    pub shards_per_task: Option<usize>,
    /// How many shards may be left out whose tasks failed after all retries; the shards of a task are left out together.
    #[serde(default)]
    pub failed_shards_max: usize,
    /// Rejections over samples of one shard, beyond which the run exits with code 3.
    #[serde(default = "default_rejection_ratio_max_shard")]
    pub rejection_ratio_max_shard: f64,
    /// The same over the whole pool.
    #[serde(default = "default_rejection_ratio_max")]
    pub rejection_ratio_max: f64,
    #[serde(default)]
    pub limits: Limits,
    /// What samples must be within to be embedded. The same bounds as of a filter `metadata`, which embeds all, so that
    /// it can change without another pass over the pool.
    #[serde(default, skip_serializing_if = "MetadataFilter::is_empty")]
    pub bounds: MetadataFilter,
}

/// What the samples of a pool are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SampleContents {
    #[default]
    ImageText,
    ImageClass,
    Image,
    /// Captions without images, whose embeddings are given.
    Text,
}

impl ReadSettings {
    /// These shards, and the defaults for all else.
    pub fn of_shards(shards: &[String]) -> ReadSettings {
        let settings = serde_json::json!({ "shards": shards });
        serde_json::from_value(settings).expect("all but the shards has a default")
    }

    /// How shards are read.
    pub fn rules(&self) -> ReadRules {
        let columns = ColumnNames { image: self.image_column.clone(), caption: self.caption_column.clone() };
        ReadRules { kind: self.sample_kind(), limits: self.limits.clone(), columns }
    }

    /// What a sample must have so that it is not rejected.
    pub fn sample_kind(&self) -> SampleKind {
        match (self.samples, &self.label_field) {
            (SampleContents::ImageText, _) => SampleKind::ImageText,
            (SampleContents::Image, _) => SampleKind::Image,
            (SampleContents::Text, _) => SampleKind::Text,
            (SampleContents::ImageClass, None) => SampleKind::ImageClass(LabelSource::Member),
            (SampleContents::ImageClass, Some(field)) => {
                SampleKind::ImageClass(LabelSource::JsonField(field.clone()))
            }
        }
    }

    pub(super) fn check(&self) -> Result<(), SettingsError> {
        for (key, ratio) in [
            ("read.rejection_ratio_max_shard", self.rejection_ratio_max_shard),
            ("read.rejection_ratio_max", self.rejection_ratio_max),
        ] {
            if !(0.0..=1.0).contains(&ratio) {
                return Err(out_of_range(key, ratio, "between 0 and 1"));
            }
        }
        self.bounds.check("read.bounds", self.samples != SampleContents::Text)?;
        if self.label_field.is_some() && self.samples != SampleContents::ImageClass {
            return Err(SettingsError::NoLabels);
        }
        Ok(())
    }
}

fn yes() -> bool {
    true
}

fn default_rejection_ratio_max_shard() -> f64 {
    0.5
}

fn default_rejection_ratio_max() -> f64 {
    0.3
}
