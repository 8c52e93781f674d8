//! `[select]`: an ordered list of steps, filters first and one draw last.
//!
//! In a pipeline file every step is a table with its `method` and that method's keys; here a checked list of filters and
//! the draw. Where the last step is a filter, all that passes it is kept.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::select::{Objective, Precision};

use super::draw::{Draw, SUPER_BATCH_METHODS, SuperBatches};
use super::filter::{FILTER_METHODS, Filter, NamedFilter};
use super::pool_draw::POOL_METHODS;
use super::{ModelRole, ModelSettings, Models, SettingsError, check_sizes};

/// What is filtered out, and how the rest is drawn.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(try_from = "RawSelect", into = "RawSelect")]
pub struct SelectSettings {
    /// The loss of a pair: `sigmoid` for models with a logit bias, `softmax` for others.
    pub objective: Objective,
    /// How embeddings are multiplied: `f32`, or `bf16`, which is faster where the processor has it.
    pub precision: Precision,
    /// Super-batches in one dealing group; fewer where the memory limit says so.
    pub super_batches_per_group: usize,
    /// In the order in which a sample meets them.
    pub filters: Vec<NamedFilter>,
    pub draw: Draw,
}

/// The table as it is written.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawSelect {
    #[serde(default)]
    objective: Objective,
    #[serde(default)]
    precision: Precision,
    #[serde(default = "default_super_batches_per_group")]
    super_batches_per_group: usize,
    step: Vec<Map<String, Value>>,
}

/// What samples are scored by; `select` documents the formulas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoreKind {
    #[default]
    Learnability,
    HardLearner,
    EasyReference,
}

impl ScoreKind {
    pub fn name(self) -> &'static str {
        match self {
            ScoreKind::Learnability => "learnability",
            ScoreKind::HardLearner => "hard_learner",
            ScoreKind::EasyReference => "easy_reference",
        }
    }

    /// The models that it takes.
    pub fn needs(self) -> &'static [ModelRole] {
        match self {
            ScoreKind::Learnability => &[ModelRole::Learner, ModelRole::Reference],
            ScoreKind::HardLearner => &[ModelRole::Learner],
            ScoreKind::EasyReference => &[ModelRole::Reference],
        }
    }
}

/// The other columns of `samples/`, `select/` and `curated/`, which no filter may be named after.
const RESERVED_COLUMNS: [&str; 34] = [
    "shard",
    "sample_idx",
    "key",
    "score",
    "cluster",
    "n_negatives",
    "hardest_negative_shard",
    "hardest_negative_key",
    "n_false_negatives",
    "hard_learnability",
    "super_batch",
    "pass",
    "place",
    "chunk",
    "draw_rank",
    "conditional_score",
    "verdict",
    "removed_by",
    "duplicate_of",
    "n_repeats",
    "uid",
    "caption",
    "label",
    "width",
    "height",
    "image_offset",
    "image_size",
    "json",
    "rejection",
    "image",
    "position",
    "base_embedding",
    "expert_embedding",
    "part",
];

/// The columns that a sample has by itself before any draw, and by which it can be ranked.
pub const OWN_COLUMNS: [&str; 12] = [
    "learner_similarity",
    "reference_similarity",
    "learner_loss",
    "reference_loss",
    "learnability",
    "centroid_similarity",
    "centroid_margin",
    "hardness",
    "hardness_gain",
    "cross_modal_hardness",
    "effective_negatives",
    "hardest_negative_similarity",
];

fn default_super_batches_per_group() -> usize {
    4
}

impl TryFrom<RawSelect> for SelectSettings {
    type Error = String;

    fn try_from(raw: RawSelect) -> Result<SelectSettings, String> {
        let mut steps = raw.step;
        let is_draw = |step: &Map<String, Value>| {
            let method = step.get("method").and_then(Value::as_str).unwrap_or_default();
            SUPER_BATCH_METHODS.contains(&method) || POOL_METHODS.contains(&method)
        };
        let draw = match steps.pop_if(|step| is_draw(step)) {
            Some(step) => Draw::parse(step).map_err(|error| at_step(steps.len(), &error))?,
            None if steps.is_empty() => {
                return Err("`select.step` holds 0 steps, but must hold at least one".to_owned());
            }
            None => Draw::Keep,
        };
        for (step_idx, step) in steps.iter().enumerate() {
            let method = step.get("method").and_then(Value::as_str).unwrap_or_default();
            if is_draw(step) {
                return Err(at_step(
                    step_idx,
                    &format!("`{method}` is a draw, and a draw must be the last step"),
                ));
            }
            if !FILTER_METHODS.contains(&method) {
                let draws = [&SUPER_BATCH_METHODS[..], &POOL_METHODS].concat().join(", ");
                let filters = FILTER_METHODS.join(", ");
                let error = format!(
                    "unknown method `{method}`: a filter is one of {filters}; a draw, as the last step, one of {draws}"
                );
                return Err(at_step(step_idx, &error));
            }
        }
        let filters = steps
            .into_iter()
            .enumerate()
            .map(|(step_idx, step)| NamedFilter::parse(step).map_err(|error| at_step(step_idx, &error)));
        Ok(SelectSettings {
            objective: raw.objective,
            precision: raw.precision,
            super_batches_per_group: raw.super_batches_per_group,
            filters: filters.collect::<Result<_, _>>()?,
            draw,
        })
    }
}

/// How messages about a step begin.
pub(super) const AT_STEP: &str = "`select.step.";

fn at_step(step_idx: usize, error: &str) -> String {
    format!("{AT_STEP}{step_idx}`: {error}")
}

impl From<SelectSettings> for RawSelect {
    fn from(settings: SelectSettings) -> RawSelect {
        let filters = settings.filters.iter().map(NamedFilter::table);
        RawSelect {
            objective: settings.objective,
            precision: settings.precision,
            super_batches_per_group: settings.super_batches_per_group,
            step: filters.chain(settings.draw.table()).collect(),
        }
    }
}

/// The keys of a settings struct.
pub(super) fn table_of(settings: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(table)) => table,
        _ => panic!("settings are tables"),
    }
}

/// Settings from their keys.
pub(super) fn parse<T: for<'de> Deserialize<'de>>(table: Map<String, Value>) -> Result<T, String> {
    serde_json::from_value(Value::Object(table)).map_err(|error| error.to_string())
}

impl SelectSettings {
    pub(super) fn check(
        &self,
        models: &Models<ModelSettings>,
        has_clusters: bool,
    ) -> Result<(), SettingsError> {
        check_sizes(&[("select.super_batches_per_group", self.super_batches_per_group)])?;
        self.precision.check().map_err(|source| SettingsError::Precision { source })?;
        for (position, filter) in self.filters.iter().enumerate() {
            let before = &self.filters[..position];
            let is_plain = |letter: char| matches!(letter, 'a'..='z' | '0'..='9' | '_');
            let is_taken = OWN_COLUMNS.contains(&filter.name.as_str())
                || RESERVED_COLUMNS.contains(&filter.name.as_str())
                || !filter.name.chars().all(is_plain)
                || before.iter().any(|other| other.name == filter.name);
            if is_taken {
                return Err(SettingsError::FilterName { name: filter.name.clone() });
            }
            filter.check(models, has_clusters, before)?;
        }
        if models.experts().next().is_some() {
            self.check_experts(models)?;
        }
        match &self.draw {
            Draw::Keep => Ok(()),
            Draw::OverPool(draw) => draw.check(models, has_clusters, &self.filters),
            Draw::InSuperBatches(draw) => {
                draw.deal.check(has_clusters)?;
                draw.check(models, has_clusters, &self.filters)
            }
        }
    }

    /// With experts the reference of a sample is the expert of its cluster.
    fn check_experts(&self, models: &Models<ModelSettings>) -> Result<(), SettingsError> {
        let is_within =
            self.draw.deal().is_some_and(|deal| deal.super_batches == SuperBatches::WithinClusters);
        // an audit draws by one reference
        let others = [ModelRole::Reference, ModelRole::FullLearner, ModelRole::FullReference];
        if !is_within || others.iter().any(|other| models.has(*other)) {
            return Err(SettingsError::Experts);
        }
        Ok(())
    }
}

pub(super) fn check_score(score: ScoreKind, models: &Models<ModelSettings>) -> Result<(), SettingsError> {
    let has = |model: ModelRole| {
        models.has(model) || model == ModelRole::Reference && models.experts().next().is_some()
    };
    match score.needs().iter().find(|model| !has(**model)) {
        Some(model) => Err(SettingsError::ModelMissing { what: score.name().to_owned(), model: *model }),
        None => Ok(()),
    }
}

/// Whether a column that is ranked by is one that the run has.
pub(super) fn check_column(
    column: &str,
    filters: &[NamedFilter],
    models: &Models<ModelSettings>,
    has_clusters: bool,
) -> Result<(), SettingsError> {
    let score = match column {
        "learner_similarity" | "learner_loss" => Some(ScoreKind::HardLearner),
        "reference_similarity" | "reference_loss" => Some(ScoreKind::EasyReference),
        "learnability" => Some(ScoreKind::Learnability),
        _ => None,
    };
    if let Some(score) = score {
        return check_score(score, models);
    }
    if OWN_COLUMNS.contains(&column) {
        return match has_clusters {
            true => Ok(()),
            false => Err(SettingsError::NoClusters { what: "a column of `divide`" }),
        };
    }
    if filters.iter().any(|filter| filter.name == column && is_ranked(filter)) {
        return Ok(());
    }
    let own = OWN_COLUMNS.into_iter().filter(|own| check_column(own, &[], models, has_clusters).is_ok());
    let of_filters = filters.iter().filter(|filter| is_ranked(filter)).map(|filter| filter.name.as_str());
    let known = own.chain(of_filters).map(str::to_owned).collect();
    Err(SettingsError::NoSuchColumn { column: column.to_owned(), known })
}

/// Whether a filter's column has numbers: those of `metadata` and `semdedup` have none.
fn is_ranked(filter: &NamedFilter) -> bool {
    !matches!(filter.filter, Filter::Metadata(_) | Filter::Semdedup(_))
}
