//! Two runs, or two models on the samples of a pool, in; how far they agree, out.

mod models;
mod runs;

use serde::{Deserialize, Serialize};

use crate::rank::Overlap;

pub use models::{ModelName, ModelsComparison, ModelsRequest, compare_models};
pub use runs::{RankCorrelation, RunsComparison, compare_runs};

/// What two sets have in common, with what blind draws of their sizes would.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SharedPart {
    pub n_left: usize,
    pub n_right: usize,
    pub n_both: usize,
    /// Of the smaller set; null where one is empty.
    pub share: Option<f64>,
    pub share_by_chance: f64,
}

impl SharedPart {
    fn of(overlap: Overlap, n_pool: usize) -> SharedPart {
        let Overlap { n_left, n_right, n_both } = overlap;
        let share_by_chance = if n_pool == 0 { 0.0 } else { overlap.by_chance(n_pool) };
        SharedPart { n_left, n_right, n_both, share: overlap.share(), share_by_chance }
    }

    fn text(&self) -> String {
        let share = number(self.share);
        format!(
            "{} of {} and {}: {share} ({:.4} by chance)",
            self.n_both, self.n_left, self.n_right, self.share_by_chance
        )
    }
}

/// Four decimals, or a dash.
fn number(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), |value| format!("{value:.4}"))
}

/// Mean, lowest, and the lowest percentiles of cosines: what goes wrong is at the low end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cosines {
    pub n: usize,
    pub mean: f64,
    pub min: f64,
    pub percentile_1: f64,
    pub percentile_5: f64,
    pub median: f64,
}

impl Cosines {
    /// None without values. The q-quantile is the value at rank `round(q·(n − 1))`, as for the columns' deciles.
    fn of(mut cosines: Vec<f64>) -> Option<Cosines> {
        cosines.sort_by(f64::total_cmp);
        let last = cosines.len().checked_sub(1)?;
        let percentile = |percent: usize| cosines[(percent * last + 50) / 100];
        Some(Cosines {
            n: cosines.len(),
            mean: cosines.iter().sum::<f64>() / cosines.len() as f64,
            min: cosines[0],
            percentile_1: percentile(1),
            percentile_5: percentile(5),
            median: percentile(50),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_ranks() {
        let cosines = Cosines::of((0..=100).rev().map(f64::from).collect()).unwrap();
        assert_eq!(
            (cosines.min, cosines.percentile_1, cosines.percentile_5, cosines.median),
            (0.0, 1.0, 5.0, 50.0)
        );
        assert_eq!((cosines.n, cosines.mean), (101, 50.0));
        assert_eq!(Cosines::of(Vec::new()), None);
        // the same rule as that of the columns' deciles
        let median = crate::write::Distribution::of((0..=100).map(f64::from).collect()).unwrap().deciles[5];
        assert_eq!(median, cosines.median);
    }
}
