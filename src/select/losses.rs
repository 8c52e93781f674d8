//! A plan in; which loss each model's samples are measured by, and what pairs are scored by, out.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::plan::{Plan, PlannedModel};
use crate::run_folder::RunFolder;
use crate::settings::{
    ActiveClipScore, Draw, ModelRole, Models, ScoreKind, SelectSettings, SuperBatchMethod,
};

use super::loss::PairLoss;

/// What `learner_loss` and `reference_loss` are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum OwnLoss {
    /// The loss of a sample's own pair under the run's objective; absent where a model lacks scale or bias.
    Pair,
    /// ActiveCLIP's: minus the similarity.
    DotProduct,
    /// ClassAct's: cross-entropy of the label.
    CrossEntropy { label_smoothing: f64 },
}

impl OwnLoss {
    /// What the draw wants.
    pub fn of(select: &SelectSettings) -> OwnLoss {
        let Draw::InSuperBatches(draw) = &select.draw else { return OwnLoss::Pair };
        match &draw.method {
            SuperBatchMethod::ActiveClip(active_clip) if active_clip.score == ActiveClipScore::DotProduct => {
                OwnLoss::DotProduct
            }
            SuperBatchMethod::ClassAct(class_act) => {
                OwnLoss::CrossEntropy { label_smoothing: class_act.label_smoothing }
            }
            _ => OwnLoss::Pair,
        }
    }
}

/// Where the reference of the pairs comes from.
pub fn has_experts(plan: &Plan) -> bool {
    plan.models.experts().next().is_some()
}

/// What pairs are scored by in `hard_learnability` and in batch learnability: the draw's score, or, for draws that
/// look at no pairs, whatever the models allow.
pub fn pair_score(select: &SelectSettings, models: &Models<PlannedModel>) -> Option<ScoreKind> {
    if let Some(score) = select.draw.pair_score() {
        return Some(score);
    }
    let has_loss =
        |role: &ModelRole| models.get(*role).is_some_and(|model| model.has_logits(select.objective));
    let experts: Vec<ModelRole> = models.experts().map(ModelRole::Expert).collect();
    let has_reference =
        has_loss(&ModelRole::Reference) || !experts.is_empty() && experts.iter().all(has_loss);
    match (has_loss(&ModelRole::Learner), has_reference) {
        (true, true) => Some(ScoreKind::Learnability),
        (true, false) => Some(ScoreKind::HardLearner),
        (false, true) => Some(ScoreKind::EasyReference),
        (false, false) => None,
    }
}

/// Logit scale and bias as they were fitted to the pool.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CalibratedLogits {
    /// Linear.
    pub logit_scale: f64,
    pub logit_bias: f64,
    /// The sigmoid loss of the fit, nats a sample.
    pub loss: f64,
    pub n_samples: u64,
    /// The batch that the fit stands for.
    pub sub_batch_size: u64,
}

/// The models that are calibrated, each a task of `select.calibrate`.
pub fn calibrated_models(plan: &Plan) -> Vec<ModelRole> {
    plan.models.iter().filter_map(|(role, model)| model.calibrate.then_some(role)).collect()
}

/// The loss of a model's pairs under the run's objective; none if it lacks the scale, or the bias that the objective
/// needs.
pub fn pair_loss(run: &RunFolder, role: ModelRole) -> Result<Option<PairLoss>, Error> {
    let plan = run.plan();
    let objective = plan.select.objective;
    let Some(model) = plan.models.get(role).filter(|model| model.has_logits(objective)) else {
        return Ok(None);
    };
    let (logit_scale, logit_bias) =
        match calibrated_models(plan).iter().position(|calibrated| *calibrated == role) {
            Some(task) => {
                let stage = run.score("select.calibrate");
                let fitted: CalibratedLogits = run.committed_counts(&stage, task)?;
                (fitted.logit_scale, fitted.logit_bias)
            }
            None => (model.logit_scale.expect("it has logits"), model.logit_bias.unwrap_or(0.0)),
        };
    Ok(Some(PairLoss { logit_scale, logit_bias, objective }))
}
