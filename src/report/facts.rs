//! What a draw, its calibration, its audit and its earlier rounds came to, a line each for the page.

use serde::Serialize;

use crate::cost::SelectionCost;
use crate::plan::Plan;
use crate::settings::ModelRole;

use super::summary::{READ_BOUNDS, Report};
use crate::numbers::{number, percent_of, whole};

/// One line: what, and how much.
#[derive(Serialize)]
pub struct Fact {
    what: String,
    value: String,
}

pub fn facts(report: &Report, plan: &Plan) -> Vec<Fact> {
    let mut facts = Vec::new();
    let mut say = |what: &str, value: String| facts.push(Fact { what: what.to_owned(), value });
    let select = &report.select;
    if let (Some(entropy), Some(collisions)) =
        (select.effective_samples, select.effective_samples_of_collisions)
    {
        let value = format!("{} by entropy, {} by collisions", number(entropy), number(collisions));
        say("effective samples of a super-batch in the first chunk’s draw", value);
    }
    if let (Some(drawn), Some(best), Some(all)) =
        (select.mean_score_of_drawn, select.mean_score_of_best, select.mean_score_of_all)
    {
        let value =
            format!("{}; of as many of the best {}, of all {}", number(drawn), number(best), number(all));
        say("mean score of the drawn", value);
    }
    for (model, fitted) in &select.calibrated {
        let value = format!(
            "logit scale {}, bias {}, from {} pairs for sub-batches of {}",
            number(fitted.logit_scale),
            number(fitted.logit_bias),
            whole(fitted.n_samples),
            whole(fitted.sub_batch_size)
        );
        say(&format!("{model}, calibrated on the pool"), value);
    }
    let n_kept = report.counts.kept;
    if plan.models.has(ModelRole::Learner) && plan.select.draw.deal().is_some() && n_kept > 0 {
        // only what is out of bounds is taken out before it is scored
        let scored_filters = report.counts.filtered.iter().filter(|(by, _)| *by != READ_BOUNDS);
        let n_filtered: u64 = scored_filters.map(|(_, n)| n).sum();
        let n_scored = n_kept + report.counts.not_drawn + n_filtered;
        let cost = SelectionCost::new(n_scored, n_kept, 1.0);
        let reference = number(cost.reference_cost);
        let value = match plan.models.has(ModelRole::FullLearner) {
            true => format!(
                "{} samples scored by the cheaper learner, whose cost `superbatch plan` measures beside the full one’s; \
                 {reference} times training on it once for the reference",
                number(cost.n_scored_per_kept)
            ),
            false => format!(
                "{} times training on it, if the scoring learner costs as much as the trained one; {reference} once for \
                 the reference",
                number(cost.cost)
            ),
        };
        say("cost of a kept sample", value);
    }
    if let Some(audit) = &report.audit {
        let roles: Vec<String> = audit.audited.iter().map(|role| role.to_string()).collect();
        let value = format!(
            "over {} samples, scores correlate at {} (Spearman); {} of the kept are the same ({} by chance)",
            whole(audit.n_samples),
            audit.score_rank_correlation.map_or("–".to_owned(), number),
            audit.kept_overlap.map_or("–".to_owned(), percent_of),
            percent_of(audit.kept_overlap_by_chance)
        );
        say(&format!("{} against the full model", roles.join(" and ")), value);
    }
    for earlier in &report.rounds {
        let correlation = earlier.rank_correlations.get("score").and_then(|found| found.spearman);
        let value = format!(
            "{} of the kept are the same ({} by chance); scores correlate at {} (Spearman)",
            earlier.kept.share.map_or("–".to_owned(), percent_of),
            percent_of(earlier.kept.share_by_chance),
            correlation.map_or("–".to_owned(), number)
        );
        say(&format!("round {}", earlier.round), value);
    }
    facts
}
