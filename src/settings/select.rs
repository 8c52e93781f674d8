//! `[select]`: an ordered list of steps, filters first and one draw last.
//!
//! In a pipeline file every step is a table with its `method` and that method's keys; here a checked list of filters and
//! the draw. Where the last step is a filter, all that passes it is kept.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::runtime::{Device, Products};
use crate::select::{Chance, FilterRatio, Objective, Precision, Quota};

use super::filter::{Filter, NamedFilter};
use super::{ModelRole, ModelSettings, Models, SettingsError, check_sizes, out_of_range};

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

/// The last step: what is kept of all that passed the filters.
#[derive(Clone, Debug, PartialEq)]
pub enum Draw {
    /// Drawn super-batch by super-batch.
    InSuperBatches(SuperBatchDraw),
    /// Ranked or capped over the whole pool.
    OverPool(PoolDraw),
    /// There is no draw: everything that passed the filters is kept.
    Keep,
}

/// A draw inside each super-batch.
#[derive(Clone, Debug, PartialEq)]
pub struct SuperBatchDraw {
    pub deal: Deal,
    pub method: SuperBatchMethod,
}

/// How samples come together, and how many of them are kept: the keys that all draws in super-batches share.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Deal {
    /// Fraction of the samples that is not kept, as an exact decimal.
    pub filter_ratio: FilterRatio,
    pub super_batch_size: usize,
    #[serde(default)]
    pub super_batches: SuperBatches,
    /// How the kept are shared out over the clusters; `size` keeps the same fraction of each.
    #[serde(default)]
    pub quota: Quota,
    /// Draws of every super-batch, each with fresh noise.
    #[serde(default = "one")]
    pub n_passes: usize,
    /// Whether a later pass may keep a sample again.
    #[serde(default)]
    pub pass_pool: PassPool,
}

const DEAL_KEYS: [&str; 6] =
    ["filter_ratio", "super_batch_size", "super_batches", "quota", "n_passes", "pass_pool"];

/// Which samples meet in a super-batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SuperBatches {
    #[default]
    OverPool,
    WithinClusters,
}

/// What a pass draws from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PassPool {
    /// All samples: one may be kept more than once.
    #[default]
    All,
    /// Those that no earlier pass kept.
    Remaining,
}

/// How a super-batch is drawn.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum SuperBatchMethod {
    Jest(Jest),
    ActiveClip(ActiveClip),
    ClassAct(ClassAct),
    FullLoss(FullLoss),
    SoftCap(SoftCap),
    Random(Random),
}

const SUPER_BATCH_METHODS: [&str; 6] =
    ["jest", "active_clip", "class_act", "full_loss", "soft_cap", "random"];

impl SuperBatchMethod {
    /// Whether the draw looks at the embeddings of learner and reference.
    pub fn scores_pairs(&self) -> bool {
        match self {
            SuperBatchMethod::Jest(_) | SuperBatchMethod::ActiveClip(_) | SuperBatchMethod::FullLoss(_) => {
                true
            }
            SuperBatchMethod::ClassAct(_) | SuperBatchMethod::SoftCap(_) | SuperBatchMethod::Random(_) => {
                false
            }
        }
    }
}

/// Joint selection by learnability (JEST, arXiv:2406.17711).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Jest {
    #[serde(default)]
    pub score: ScoreKind,
    #[serde(default = "default_n_chunks")]
    pub n_chunks: usize,
    #[serde(default = "default_gain")]
    pub gain: f64,
    #[serde(default)]
    pub draw: Chance,
    /// Where the pairs of different samples are added up: `cpu` by this program's own kernels, a GPU (`cuda:0`) through
    /// the runtime. Scores differ in their last digits, so it is part of what makes a draw, and no machine chooses it.
    #[serde(default = "processor")]
    pub device: Device,
    /// How a GPU multiplies: `f32`, or `tf32` with operands of 11 bits.
    #[serde(default)]
    pub products: Products,
}

/// Independent selection with cheap proxies (ActiveCLIP, arXiv:2312.05328).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ActiveClip {
    #[serde(default)]
    pub score: ActiveClipScore,
    /// Seeded negatives of each sample, for the contrastive score.
    #[serde(default = "default_n_negatives")]
    pub n_negatives: usize,
    #[serde(default = "default_gain")]
    pub gain: f64,
    #[serde(default)]
    pub draw: Chance,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ActiveClipScore {
    /// The reference's similarity less the learner's: the paper's.
    #[default]
    DotProduct,
    /// The contrastive loss against a few seeded negatives, learner minus reference.
    Contrastive,
}

/// Independent selection of labelled images (ClassAct, arXiv:2312.05328).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClassAct {
    #[serde(default)]
    pub score: ScoreKind,
    /// ε of the cross-entropy.
    #[serde(default = "default_label_smoothing")]
    pub label_smoothing: f64,
    #[serde(default = "default_gain")]
    pub gain: f64,
    /// `top_k` is the RHO loss.
    #[serde(default)]
    pub draw: Chance,
}

/// The largest shares in the whole super-batch: the strongest cheap baseline.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FullLoss {
    #[serde(default)]
    pub score: ScoreKind,
}

/// Repeated draws whose winners lose a penalty each time (arXiv:2503.08805).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SoftCap {
    /// The column that is drawn by: one of those that a sample has by itself, or a filter's.
    pub by: String,
    #[serde(default = "default_gain")]
    pub gain: f64,
    /// Samples of one turn.
    pub n_per_turn: usize,
    /// What a drawn sample's score loses.
    pub penalty: f64,
}

/// A uniform draw of the same counts: the control.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Random {}

/// A draw over the whole pool.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum PoolDraw {
    Top(Top),
    Balanced(Balanced),
}

const POOL_METHODS: [&str; 2] = ["top", "balanced"];

/// The best of a column.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Top {
    pub filter_ratio: FilterRatio,
    /// The column that is ranked by: one of those that a sample has by itself, or a filter's.
    pub by: String,
    #[serde(default)]
    pub order: Ranking,
}

/// Which end of a column is good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ranking {
    #[default]
    Highest,
    Lowest,
}

/// As equal shares of all clusters as their sizes allow (arXiv:2405.15613).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Balanced {
    pub filter_ratio: FilterRatio,
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

fn one() -> usize {
    1
}

fn default_super_batches_per_group() -> usize {
    4
}

/// The paper's number of chunks.
fn default_n_chunks() -> usize {
    16
}

fn processor() -> Device {
    Device::Cpu
}

fn default_gain() -> f64 {
    1.0
}

fn default_n_negatives() -> usize {
    256
}

/// The paper's ε.
fn default_label_smoothing() -> f64 {
    0.1
}

/// ActiveCLIP keeps half of each super-batch.
const ACTIVE_CLIP_FILTER_RATIO: f64 = 0.5;

impl TryFrom<RawSelect> for SelectSettings {
    type Error = String;

    fn try_from(raw: RawSelect) -> Result<SelectSettings, String> {
        let mut steps = raw.step;
        let is_draw = |step: &Map<String, Value>| {
            let method = step.get("method").and_then(Value::as_str).unwrap_or_default();
            SUPER_BATCH_METHODS.contains(&method) || POOL_METHODS.contains(&method)
        };
        let draw = match steps.pop_if(|step| is_draw(step)) {
            Some(step) => Draw::parse(step).map_err(|error| format!("the last step of `select`: {error}"))?,
            None if steps.is_empty() => {
                return Err("`select.step` holds 0 steps, but must hold at least one".to_owned());
            }
            None => Draw::Keep,
        };
        let filters = steps.into_iter().enumerate().map(|(step_idx, step)| {
            NamedFilter::parse(step).map_err(|error| format!("`select.step.{step_idx}`: {error}"))
        });
        Ok(SelectSettings {
            objective: raw.objective,
            precision: raw.precision,
            super_batches_per_group: raw.super_batches_per_group,
            filters: filters.collect::<Result<_, _>>()?,
            draw,
        })
    }
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

impl Draw {
    fn parse(mut table: Map<String, Value>) -> Result<Draw, String> {
        let method = table.get("method").and_then(Value::as_str).unwrap_or_default().to_owned();
        if POOL_METHODS.contains(&method.as_str()) {
            return parse(table).map(Draw::OverPool);
        }
        if method == "active_clip" {
            table.entry("filter_ratio").or_insert(ACTIVE_CLIP_FILTER_RATIO.into());
        }
        let shared = DEAL_KEYS.iter().filter_map(|key| table.remove_entry(*key)).collect();
        Ok(Draw::InSuperBatches(SuperBatchDraw { deal: parse(shared)?, method: parse(table)? }))
    }

    fn table(&self) -> Option<Map<String, Value>> {
        match self {
            Draw::InSuperBatches(draw) => {
                let mut table = table_of(&draw.method);
                table.extend(table_of(&draw.deal));
                Some(table)
            }
            Draw::OverPool(draw) => Some(table_of(draw)),
            Draw::Keep => None,
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Draw::InSuperBatches(draw) => match draw.method {
                SuperBatchMethod::Jest(_) => "jest",
                SuperBatchMethod::ActiveClip(_) => "active_clip",
                SuperBatchMethod::ClassAct(_) => "class_act",
                SuperBatchMethod::FullLoss(_) => "full_loss",
                SuperBatchMethod::SoftCap(_) => "soft_cap",
                SuperBatchMethod::Random(_) => "random",
            },
            Draw::OverPool(PoolDraw::Top(_)) => "top",
            Draw::OverPool(PoolDraw::Balanced(_)) => "balanced",
            Draw::Keep => "keep",
        }
    }

    /// The fraction that is not kept; none where all that passes the filters is.
    pub fn filter_ratio(&self) -> FilterRatio {
        match self {
            Draw::InSuperBatches(draw) => draw.deal.filter_ratio,
            Draw::OverPool(PoolDraw::Top(top)) => top.filter_ratio,
            Draw::OverPool(PoolDraw::Balanced(balanced)) => balanced.filter_ratio,
            Draw::Keep => FilterRatio::default(),
        }
    }

    /// How super-batches are dealt, where there are any.
    pub fn deal(&self) -> Option<&Deal> {
        match self {
            Draw::InSuperBatches(draw) => Some(&draw.deal),
            Draw::OverPool(_) | Draw::Keep => None,
        }
    }

    /// What the pairs of a sub-batch are scored by; none where a draw looks at no pairs.
    pub fn pair_score(&self) -> Option<ScoreKind> {
        let Draw::InSuperBatches(draw) = self else { return None };
        match &draw.method {
            SuperBatchMethod::Jest(jest) => Some(jest.score),
            SuperBatchMethod::FullLoss(full_loss) => Some(full_loss.score),
            _ => None,
        }
    }
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
            let is_taken = OWN_COLUMNS.contains(&filter.name.as_str())
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
            Draw::OverPool(PoolDraw::Top(top)) => check_column(&top.by, &self.filters, models, has_clusters),
            Draw::OverPool(PoolDraw::Balanced(_)) if !has_clusters => {
                Err(SettingsError::NoClusters { what: "balanced sampling" })
            }
            Draw::OverPool(PoolDraw::Balanced(_)) => Ok(()),
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

impl Deal {
    fn check(&self, has_clusters: bool) -> Result<(), SettingsError> {
        check_sizes(&[
            ("select.step.super_batch_size", self.super_batch_size),
            ("select.step.n_passes", self.n_passes),
        ])?;
        let is_within = self.super_batches == SuperBatches::WithinClusters;
        if is_within && !has_clusters {
            return Err(SettingsError::NoClusters { what: "super-batches within clusters" });
        }
        if !is_within && self.quota != Quota::Size {
            return Err(SettingsError::Quota);
        }
        // of 10¹⁸ samples, so that no filter ratio is rounded
        const POOL: u64 = 1_000_000_000_000_000_000;
        let n_drawn = u128::from(self.filter_ratio.kept(POOL)) * self.n_passes as u128;
        if self.pass_pool == PassPool::Remaining && n_drawn > u128::from(POOL) {
            return Err(SettingsError::Passes { n_passes: self.n_passes, filter_ratio: self.filter_ratio });
        }
        Ok(())
    }
}

impl SuperBatchDraw {
    fn check(
        &self,
        models: &Models<ModelSettings>,
        has_clusters: bool,
        filters: &[NamedFilter],
    ) -> Result<(), SettingsError> {
        let gain = |gain: f64| {
            if gain.is_finite() && gain > 0.0 {
                return Ok(());
            }
            Err(out_of_range("select.step.gain", gain, "a number above 0"))
        };
        match &self.method {
            SuperBatchMethod::Jest(jest) => {
                check_sizes(&[("select.step.n_chunks", jest.n_chunks)])?;
                gain(jest.gain)?;
                if matches!(jest.device, Device::Auto | Device::Cpus(_)) {
                    let must = "`cpu` or a GPU by name, such as `cuda:0`";
                    return Err(out_of_range("select.step.device", jest.device, must));
                }
                check_score(jest.score, models)
            }
            SuperBatchMethod::ActiveClip(active_clip) => {
                check_sizes(&[("select.step.n_negatives", active_clip.n_negatives)])?;
                gain(active_clip.gain)?;
                check_score(ScoreKind::Learnability, models)
            }
            SuperBatchMethod::ClassAct(class_act) => {
                gain(class_act.gain)?;
                if !(0.0..1.0).contains(&class_act.label_smoothing) {
                    let smoothing = class_act.label_smoothing;
                    return Err(out_of_range("select.step.label_smoothing", smoothing, "in 0 ≤ ε < 1"));
                }
                check_score(class_act.score, models)
            }
            SuperBatchMethod::FullLoss(full_loss) => check_score(full_loss.score, models),
            SuperBatchMethod::SoftCap(soft_cap) => {
                gain(soft_cap.gain)?;
                check_sizes(&[("select.step.n_per_turn", soft_cap.n_per_turn)])?;
                if !(soft_cap.penalty.is_finite() && soft_cap.penalty >= 0.0) {
                    return Err(out_of_range("select.step.penalty", soft_cap.penalty, "a number from 0 on"));
                }
                check_column(&soft_cap.by, filters, models, has_clusters)
            }
            SuperBatchMethod::Random(Random {}) => Ok(()),
        }
    }
}

fn check_score(score: ScoreKind, models: &Models<ModelSettings>) -> Result<(), SettingsError> {
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
    let is_score =
        |filter: &NamedFilter| filter.name == column && !matches!(filter.filter, Filter::Metadata(_));
    match filters.iter().any(is_score) {
        true => Ok(()),
        false => Err(SettingsError::NoSuchColumn { column: column.to_owned() }),
    }
}
