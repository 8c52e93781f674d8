//! The last step of `[select]`: how what passed the filters is drawn.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::runtime::{Device, Products};
use crate::select::{Chance, FilterRatio, Quota};

use super::filter::NamedFilter;
use super::pool_draw::{POOL_METHODS, PoolDraw};
use super::select::{ScoreKind, check_column, check_score, parse, table_of};
use super::{ModelSettings, Models, SettingsError, check_engine, check_sizes, out_of_range};

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

pub(super) const SUPER_BATCH_METHODS: [&str; 6] =
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
    /// Where the pairs of different samples are added up: `cpu` by this program's own kernels, one GPU (`cuda:0`) through
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

fn one() -> usize {
    1
}

/// The paper's number of chunks.
fn default_n_chunks() -> usize {
    16
}

fn processor() -> Device {
    Device::Cpu
}

/// Far above any use, and so low that no weight overflows.
const GAIN_MAX: f64 = 1e6;

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

impl Draw {
    pub(super) fn parse(mut table: Map<String, Value>) -> Result<Draw, String> {
        let method = table.get("method").and_then(Value::as_str).unwrap_or_default().to_owned();
        if POOL_METHODS.contains(&method.as_str()) {
            return parse(table).map(Draw::OverPool);
        }
        if method == "active_clip" {
            table.entry("filter_ratio").or_insert(ACTIVE_CLIP_FILTER_RATIO.into());
        }
        let shared = DEAL_KEYS.iter().filter_map(|key| table.remove_entry(*key)).collect();
        let method = parse(table).map_err(|error| match error.contains("unknown field") {
            true => format!("{error}, or of every draw {}", DEAL_KEYS.join(", ")),
            false => error,
        });
        Ok(Draw::InSuperBatches(SuperBatchDraw { deal: parse(shared)?, method: method? }))
    }

    pub(super) fn table(&self) -> Option<Map<String, Value>> {
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
            Draw::OverPool(PoolDraw::Dbp(_)) => "dbp",
            Draw::Keep => "keep",
        }
    }

    /// What a page says of it in its head.
    pub fn title(&self) -> String {
        match self {
            Draw::Keep => "filters alone".to_owned(),
            draw => format!("{}, filter ratio {}", draw.name(), draw.filter_ratio()),
        }
    }

    /// The fraction that is not kept; none where all that passes the filters is.
    pub fn filter_ratio(&self) -> FilterRatio {
        match self {
            Draw::InSuperBatches(draw) => draw.deal.filter_ratio,
            Draw::OverPool(draw) => draw.filter_ratio(),
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

impl Deal {
    pub(super) fn check(&self, has_clusters: bool) -> Result<(), SettingsError> {
        check_sizes(&[
            ("select.step.super_batch_size", self.super_batch_size),
            ("select.step.n_passes", self.n_passes),
        ])?;
        let is_within = self.super_batches == SuperBatches::WithinClusters;
        if is_within && !has_clusters {
            return Err(SettingsError::NoClusters { what: "super-batches within clusters" });
        }
        let is_anew = self.pass_pool == PassPool::All;
        if self.quota != Quota::Size && !(is_within && is_anew) {
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
    pub(super) fn check(
        &self,
        models: &Models<ModelSettings>,
        has_clusters: bool,
        filters: &[NamedFilter],
    ) -> Result<(), SettingsError> {
        let gain = |gain: f64| {
            if gain > 0.0 && gain <= GAIN_MAX {
                return Ok(());
            }
            Err(out_of_range("select.step.gain", gain, "above 0 and at most a million"))
        };
        match &self.method {
            SuperBatchMethod::Jest(jest) => {
                check_sizes(&[("select.step.n_chunks", jest.n_chunks)])?;
                gain(jest.gain)?;
                check_engine("select.step.device", jest.device)?;
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
            SuperBatchMethod::SoftCap(_) if self.deal.pass_pool == PassPool::Remaining => {
                Err(SettingsError::SoftCapRemaining)
            }
            SuperBatchMethod::SoftCap(soft_cap) => {
                gain(soft_cap.gain)?;
                check_sizes(&[("select.step.n_per_turn", soft_cap.n_per_turn)])?;
                if !(0.0..=GAIN_MAX).contains(&soft_cap.penalty) {
                    let must = "from 0 to a million";
                    return Err(out_of_range("select.step.penalty", soft_cap.penalty, must));
                }
                check_column(&soft_cap.by, filters, models, has_clusters)
            }
            SuperBatchMethod::Random(Random {}) => Ok(()),
        }
    }
}
