//! The steps of `[select]` that take samples out by a rule.

use std::path::PathBuf;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::select::FilterRatio;

use super::select::{check_column, parse, table_of};
use super::{ModelRole, ModelSettings, Models, Ranking, SettingsError, check_sizes, out_of_range};

/// A filter under the name by which verdicts and columns call it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NamedFilter {
    /// The method's name, unless the step has a `name`.
    pub name: String,
    pub filter: Filter,
}

/// A rule that takes samples out.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum Filter {
    Metadata(MetadataFilter),
    Threshold(ThresholdFilter),
    ClipScore(ClipScoreFilter),
    NegClipLoss(NegClipLossFilter),
    NormSim(NormSimFilter),
    Decontaminate(DecontaminateFilter),
    Semdedup(SemdedupFilter),
}

pub(super) const FILTER_METHODS: [&str; 7] =
    ["metadata", "threshold", "clip_score", "neg_clip_loss", "norm_sim", "decontaminate", "semdedup"];

/// Bounds on what is known of a sample without any model; a bound that is absent holds.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetadataFilter {
    /// Of the shorter side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub side_min_px: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pixels_max: Option<u64>,
    /// Of the longer over the shorter side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aspect_ratio_max: Option<f64>,
    /// Unicode scalar values of the caption.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caption_chars_min: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caption_chars_max: Option<usize>,
    /// Runs of other characters than white space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caption_words_min: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caption_words_max: Option<usize>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "tables")]
    pub json: Vec<JsonBound>,
}

impl MetadataFilter {
    /// Whether every bound is one that some sample can be within. `table` is where it stands.
    pub(super) fn check(&self, table: &str, has_images: bool) -> Result<(), SettingsError> {
        let fault =
            |key: &str, value: String, must| Err(out_of_range(&format!("{table}.{key}"), value, must));
        if self.has_sizes() && !has_images {
            return Err(SettingsError::SizesWithoutImages { table: table.to_owned() });
        }
        if let Some(ratio) = self.aspect_ratio_max.filter(|ratio| !(1.0..f64::INFINITY).contains(ratio)) {
            return fault("aspect_ratio_max", ratio.to_string(), "a number from 1 on");
        }
        for (key, min, max) in [
            ("caption_chars_max", self.caption_chars_min, self.caption_chars_max),
            ("caption_words_max", self.caption_words_min, self.caption_words_max),
        ] {
            if let Some(max) = max.filter(|max| *max < min.unwrap_or(0)) {
                return fault(key, max.to_string(), "no less than the least");
            }
        }
        for bound in &self.json {
            let numbers = [bound.min, bound.max];
            if numbers.iter().flatten().any(|number| !number.is_finite()) {
                return fault("json", bound.field.clone(), "with finite bounds");
            }
            if bound.min > bound.max && bound.max.is_some() {
                return fault("json", bound.field.clone(), "with a `max` that is no less than its `min`");
            }
        }
        Ok(())
    }

    /// Whether there are bounds on an image's size.
    pub fn has_sizes(&self) -> bool {
        self.side_min_px.is_some() || self.pixels_max.is_some() || self.aspect_ratio_max.is_some()
    }

    /// Whether there is no bound.
    pub fn is_empty(&self) -> bool {
        *self == MetadataFilter::default()
    }
}

/// Settings of which each must be a table: serde would take an array's values by position.
fn tables<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let tables = Vec::<toml::Table>::deserialize(deserializer)?;
    tables.into_iter().map(|table| table.try_into().map_err(D::Error::custom)).collect()
}

/// A bound on a field of the JSON member. A sample without the field, or with one of another type, is taken out.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct JsonBound {
    /// Its name; dots go into objects.
    pub field: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// A text, number or truth value that the field must equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equals: Option<Value>,
}

/// What of a score's range passes.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(try_from = "Map<String, Value>", untagged)]
pub enum Keep {
    Min(AtLeast),
    Max(AtMost),
    Best(Best),
}

impl TryFrom<Map<String, Value>> for Keep {
    type Error = String;

    /// By the key that says which it is, so that a mistake in it is told as one of that kind.
    fn try_from(table: Map<String, Value>) -> Result<Keep, String> {
        let kinds = ["min", "max", "filter_ratio"].map(|key| table.contains_key(key));
        let kept = match kinds {
            [true, false, false] => parse(table).map(Keep::Min),
            [false, true, false] => parse(table).map(Keep::Max),
            [false, false, true] => parse(table).map(Keep::Best),
            _ => Err("expected `{ min = … }`, `{ max = … }` or `{ filter_ratio = …, of = \"reaching\" | \"pool\" }`"
                .to_owned()),
        };
        kept.map_err(|error| format!("`keep`: {error}"))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AtLeast {
    pub min: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AtMost {
    pub max: f64,
}

/// The best of the pool, exactly: ties go by sample id.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Fraction that does not pass.
    pub filter_ratio: FilterRatio,
    #[serde(default)]
    pub of: FractionOf,
    #[serde(default)]
    pub order: Ranking,
}

/// What a filter ratio is a fraction of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FractionOf {
    /// Of the samples that come to the step.
    #[default]
    Reaching,
    /// Of all samples that could be scored; where fewer come to the step, all of them pass.
    Pool,
}

/// A bound on a column that a sample has by itself, or on an earlier filter's.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ThresholdFilter {
    pub by: String,
    pub keep: Keep,
}

/// The similarity of image and caption.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClipScoreFilter {
    #[serde(default = "reference")]
    pub model: ModelRole,
    pub keep: Keep,
}

/// Similarity less what the pair's neighbours in a batch make of it (arXiv:2405.19547).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NegClipLossFilter {
    #[serde(default = "reference")]
    pub model: ModelRole,
    #[serde(default = "default_temperature")]
    pub temperature: f64,
    #[serde(default = "default_batch_size")]
    pub batch_size: usize,
    /// Seeded partitions into batches over which the score is averaged.
    #[serde(default = "default_n_partitions")]
    pub n_partitions: usize,
    pub keep: Keep,
}

/// Closeness to target embeddings (arXiv:2405.19547).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NormSimFilter {
    #[serde(default = "reference")]
    pub model: ModelRole,
    /// A `.npy` file `[n, d]` of image embeddings under this model.
    pub targets: PathBuf,
    #[serde(default)]
    pub norm: Norm,
    pub keep: Keep,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    /// Root of the sum of squares.
    #[default]
    Two,
    /// Largest absolute value.
    Infinity,
}

/// Takes out what is close to any evaluation image.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DecontaminateFilter {
    #[serde(default = "reference")]
    pub model: ModelRole,
    pub sets: Vec<EvaluationSet>,
    /// Image cosine above which a sample is taken out.
    #[serde(default = "default_similarity_max")]
    pub similarity_max: f64,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationSet {
    pub name: String,
    /// A `.npy` file `[n, d]` of image embeddings under the filter's model.
    pub path: PathBuf,
}

/// Takes out semantic duplicates inside each cluster (SemDeDup, arXiv:2303.09540).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SemdedupFilter {
    /// Samples whose image cosine is above 1 − ε are duplicates.
    pub epsilon: f64,
}

fn reference() -> ModelRole {
    ModelRole::Reference
}

/// The paper's τ.
fn default_temperature() -> f64 {
    0.01
}

/// The paper's batch size.
fn default_batch_size() -> usize {
    32_768
}

fn default_n_partitions() -> usize {
    10
}

fn default_similarity_max() -> f64 {
    0.95
}

impl NamedFilter {
    pub(super) fn parse(mut table: Map<String, Value>) -> Result<NamedFilter, String> {
        let name = table.remove("name");
        let method = table.get("method").cloned();
        let filter = parse(table)?;
        match name.or(method) {
            Some(Value::String(name)) if !name.is_empty() => Ok(NamedFilter { name, filter }),
            _ => Err("`name` must be a text".to_owned()),
        }
    }

    pub(super) fn table(&self) -> Map<String, Value> {
        let mut table = table_of(&self.filter);
        table.insert("name".to_owned(), self.name.clone().into());
        table
    }

    pub(super) fn check(
        &self,
        models: &Models<ModelSettings>,
        has_clusters: bool,
        before: &[NamedFilter],
    ) -> Result<(), SettingsError> {
        let key = |key: &str| format!("select.step `{}`, `{key}`", self.name);
        if let Some(model) = self.filter.model().filter(|model| !models.has(*model)) {
            return Err(SettingsError::ModelMissing { what: self.name.clone(), model });
        }
        let is_scored = |model| matches!(model, ModelRole::Learner | ModelRole::Reference);
        let is_allowed = |model: ModelRole| match &self.filter {
            Filter::ClipScore(_) => is_scored(model),
            _ => is_scored(model) || model == ModelRole::Base,
        };
        if let Some(model) = self.filter.model().filter(|model| !is_allowed(*model)) {
            return Err(out_of_range(&key("model"), model, "a model that scores every sample"));
        }
        match &self.filter {
            Filter::Metadata(_) | Filter::ClipScore(_) | Filter::NormSim(_) => Ok(()),
            Filter::Threshold(filter) => check_column(&filter.by, before, models, has_clusters),
            Filter::NegClipLoss(filter) => {
                check_sizes(&[
                    ("select.step.batch_size", filter.batch_size),
                    ("select.step.n_partitions", filter.n_partitions),
                ])?;
                match filter.temperature {
                    temperature if (1e-4..=1e3).contains(&temperature) => Ok(()),
                    temperature => {
                        Err(out_of_range(&key("temperature"), temperature, "between 0.0001 and 1000"))
                    }
                }
            }
            Filter::Decontaminate(filter) if filter.sets.is_empty() => {
                Err(out_of_range(&key("sets"), "empty", "at least one evaluation set"))
            }
            Filter::Decontaminate(filter) => match filter.similarity_max {
                similarity if (-1.0..=1.0).contains(&similarity) => Ok(()),
                similarity => Err(out_of_range(&key("similarity_max"), similarity, "between -1 and 1")),
            },
            Filter::Semdedup(_) if !has_clusters => Err(SettingsError::NoClusters { what: "SemDeDup" }),
            Filter::Semdedup(filter) => match filter.epsilon {
                epsilon if (0.0..=2.0).contains(&epsilon) => Ok(()),
                epsilon => Err(out_of_range(&key("epsilon"), epsilon, "between 0 and 2")),
            },
        }
    }
}

impl Filter {
    /// The model whose embeddings it reads, if it names one.
    pub fn model(&self) -> Option<ModelRole> {
        match self {
            Filter::ClipScore(filter) => Some(filter.model),
            Filter::NegClipLoss(filter) => Some(filter.model),
            Filter::NormSim(filter) => Some(filter.model),
            Filter::Decontaminate(filter) => Some(filter.model),
            Filter::Metadata(_) | Filter::Threshold(_) | Filter::Semdedup(_) => None,
        }
    }

    /// The best of the pool, if that is what it keeps.
    pub fn best(&self) -> Option<Best> {
        let keep = match self {
            Filter::Threshold(filter) => filter.keep,
            Filter::ClipScore(filter) => filter.keep,
            Filter::NegClipLoss(filter) => filter.keep,
            Filter::NormSim(filter) => filter.keep,
            Filter::Metadata(_) | Filter::Decontaminate(_) | Filter::Semdedup(_) => return None,
        };
        match keep {
            Keep::Best(best) => Some(best),
            Keep::Min(_) | Keep::Max(_) => None,
        }
    }

    /// The steps in which it is done: dealing to clusters, what groups find, and each sample's score.
    pub fn steps(&self) -> &'static [&'static str] {
        match self {
            Filter::Semdedup(_) => &[".deal", ".group", ""],
            Filter::NegClipLoss(_) => &[".group", ""],
            _ => &[""],
        }
    }

    /// The files of embeddings that it compares with.
    pub fn files(&self) -> Vec<&PathBuf> {
        match self {
            Filter::NormSim(filter) => vec![&filter.targets],
            Filter::Decontaminate(filter) => filter.sets.iter().map(|set| &set.path).collect(),
            _ => Vec::new(),
        }
    }
}
