//! Scored super-batches in, verdicts out: what is kept, and why.

mod counts;
mod quotas;
mod loss;
mod reduce;
mod score;
mod share;
mod neg_clip;
mod cross_entropy;
mod calibrate;
mod joint;
mod independent;

pub use crate::fold::Precision;
pub use calibrate::{Calibration, CalibrationError, calibrate};
pub use counts::{FilterRatio, FilterRatioError, chunk_sizes, kept_in, super_batch_sizes};
pub use cross_entropy::cross_entropies;
pub use independent::{
    DistanceToBest, EffectiveSamples, IndependentPlan, Repeated, SoftCapPlan, draw_independent, draw_soft_cap,
};
pub use joint::{Chance, DrawPlan, Drawn, JointDraw, PassKey, draw, draw_remaining, draw_uniform};
pub use loss::{AmongNegatives, Objective, PairLoss, log_add_exp, similarity, softplus};
pub use neg_clip::{NEG_CLIP_BATCH_SIZE, NEG_CLIP_TEMPERATURE, neg_clip_scores};
pub use quotas::Quota;
pub use score::{Diagonal, Learner, PairModel, Reference, ScoredBy, Scoring, batch_learnability};
pub use share::{SeededNegatives, among_bank, contrastive_scores, full_loss_scores, hard_learnability};

mod scored;
mod deal;
mod draw_plan;
mod draw;
mod gather;
mod stage;

pub use draw::{DrawCounts, SuperBatchCounts};
pub use draw_plan::{DrawPlans, SuperBatch};
pub use gather::{Verdict, VerdictCounts, table_metadata};
pub use scored::ScoreCounts;
pub use stage::run;
