//! Embeddings and clusters in, verdicts out: what is kept, and why.

// whole numbers: how many of what
mod counts;
mod quotas;
mod balanced;
mod density;

// pure functions of embeddings, in the order in which a sample meets them
mod loss;
mod reduce;
mod score;
mod share;
mod cross_entropy;
mod calibrate;
mod neg_clip;
mod nearest;
mod semdedup;
mod added;
mod joint;
mod independent;
mod cutoff;

pub use crate::fold::Precision;
pub use balanced::balanced_counts;
pub use calibrate::{Calibration, CalibrationError, calibrate};
pub use counts::{FilterRatio, FilterRatioError, chunk_sizes, kept_in, super_batch_sizes};
pub use cross_entropy::cross_entropies;
pub use cutoff::{Cutoff, Rank, Ranked, cutoffs, n_scans, rank_of};
pub use density::{DensityParams, density_quotas};
pub use independent::{
    DistanceToBest, EffectiveSamples, IndependentPlan, Repeated, SoftCapPlan, draw_independent, draw_soft_cap,
};
pub use joint::{
    Chance, DrawPlan, Drawn, JointDraw, PassKey, conditional_scores, draw, draw_remaining, draw_remaining_on,
    draw_uniform,
};
pub use loss::{AmongNegatives, Objective, PairLoss, log_add_exp, similarity, softplus};
pub use nearest::{NearestEvaluation, nearest_evaluation, norm_sim};
pub use neg_clip::{NEG_CLIP_BATCH_SIZE, NEG_CLIP_TEMPERATURE, neg_clip_scores};
pub use quotas::{Quota, quotas};
pub use score::{Diagonal, Learner, PairModel, Reference, ScoredBy, Scoring, batch_learnability};
pub use semdedup::{least_similar_first, semdedup, semdedup_in_blocks};
pub use share::{SeededNegatives, among_bank, contrastive_scores, full_loss_scores, hard_learnability};

// the stage, in the order of its steps
mod losses;
mod usable;
mod calibrate_step;
mod class_loss;
mod hard_negatives;
mod scored;
mod column;
mod filter;
mod reach;
mod group;
mod deal;
mod draw_plan;
mod outcome;
mod draw;
mod pool_draw;
mod draw_columns;
mod verdict;
mod stage;
mod audit;

pub use audit::{Audit, audit};
pub use deal::joined_clusters;
pub use draw::{DrawCounts, SuperBatchCounts, WeightCounts};
pub use draw_plan::{DrawPlans, SuperBatch, group_size_max};
pub use filter::{BATCHES_HELD, batches_size_max};
pub use hard_negatives::needs_bank;
pub use losses::{CalibratedLogits, OwnLoss, calibrated_models, has_experts, pair_score};
pub use pool_draw::PoolCuts;
pub use reach::{ReachCounts, reach_counts};
pub use scored::ScoreCounts;
pub use stage::run;
pub use verdict::{Verdict, VerdictCounts, table_metadata};
