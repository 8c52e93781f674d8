//! What the draws made of a sample, as rows of the exchange and of `draws/`.

use arrow::array::RecordBatch;

use crate::run_folder::RunFolder;
use crate::sample::SampleRef;
use crate::table::Columns;

use super::joint::Drawn;

/// One sample of a super-batch after its draws.
pub struct Outcome {
    pub sample: SampleRef,
    pub super_batch: u64,
    /// The log-weight that the first pass began with.
    pub score: f64,
    /// How often it was kept over all passes.
    pub n_repeats: u32,
    first: Option<First>,
    /// Every pass that drew it, and how.
    passes: Vec<(u32, Drawn)>,
}

/// When a sample was drawn first.
struct First {
    pass: u32,
    /// Its place among the samples that its pass drew from the super-batch and no pass before it.
    place: u64,
    drawn: Drawn,
}

impl Outcome {
    pub fn new(sample: SampleRef, super_batch: u64) -> Outcome {
        Outcome { sample, super_batch, score: 0.0, n_repeats: 0, first: None, passes: Vec::new() }
    }

    /// Counts a draw; says whether it is the sample's first, which then stands at `place`.
    pub fn take(&mut self, pass: usize, drawn: Drawn, n_repeats: usize, place: u64) -> bool {
        let pass = pass as u32;
        self.n_repeats += n_repeats as u32;
        self.passes.push((pass, drawn));
        let is_first = self.first.is_none();
        if is_first {
            self.first = Some(First { pass, place, drawn });
        }
        is_first
    }

    pub fn is_in_pass(&self, pass: u32) -> bool {
        self.passes.iter().any(|(of_draw, _)| *of_draw == pass)
    }
}

/// Nothing for the −∞ of a sample without a weight.
fn nats(weight: f64) -> Option<f64> {
    weight.is_finite().then_some(weight)
}

/// The rows that go back to the shards.
pub fn outcome_table(run: &RunFolder, outcomes: &[&Outcome]) -> RecordBatch {
    let ids = || outcomes.iter().map(|outcome| outcome.sample.id(&run.plan().pool));
    let first = || outcomes.iter().map(|outcome| outcome.first.as_ref());
    let mut columns = Columns::default();
    columns
        .text("shard", ids().map(|id| Some(id.shard)))
        .u64("sample_idx", ids().map(|id| Some(id.sample_idx)))
        .f64("score", outcomes.iter().map(|outcome| nats(outcome.score)))
        .u64("super_batch", outcomes.iter().map(|outcome| Some(outcome.super_batch)))
        .u32("pass", first().map(|first| first.map(|first| first.pass)))
        .u64("place", first().map(|first| first.map(|first| first.place)))
        .u32("chunk", first().map(|first| first.map(|first| first.drawn.chunk as u32)))
        .u32("draw_rank", first().map(|first| first.map(|first| first.drawn.draw_rank as u32)))
        .f64("conditional_score", first().map(|first| nats(first?.drawn.conditional_score)))
        .u32(
            "n_repeats",
            outcomes.iter().map(|outcome| (outcome.n_repeats > 0).then_some(outcome.n_repeats)),
        );
    columns.build()
}

/// A row a draw, pass after pass, super-batch by super-batch, in the order of the draw.
pub fn draws_table(run: &RunFolder, outcomes: &[Outcome]) -> RecordBatch {
    let of_outcome = |outcome: &Outcome| -> Vec<(u32, u64, Drawn, SampleRef)> {
        let draws = outcome.passes.iter();
        draws.map(|(pass, drawn)| (*pass, outcome.super_batch, *drawn, outcome.sample)).collect()
    };
    let mut draws: Vec<_> = outcomes.iter().flat_map(of_outcome).collect();
    draws.sort_unstable_by_key(|(pass, super_batch, drawn, _)| (*pass, *super_batch, drawn.draw_rank));
    let ids = || draws.iter().map(|(.., sample)| sample.id(&run.plan().pool));
    let mut columns = Columns::default();
    columns
        .u32("pass", draws.iter().map(|(pass, ..)| Some(*pass)))
        .u64("super_batch", draws.iter().map(|(_, super_batch, ..)| Some(*super_batch)))
        .u32("draw_rank", draws.iter().map(|(_, _, drawn, _)| Some(drawn.draw_rank as u32)))
        .u32("chunk", draws.iter().map(|(_, _, drawn, _)| Some(drawn.chunk as u32)))
        .f64("conditional_score", draws.iter().map(|(_, _, drawn, _)| nats(drawn.conditional_score)))
        .text("shard", ids().map(|id| Some(id.shard)))
        .u64("sample_idx", ids().map(|id| Some(id.sample_idx)));
    columns.build()
}
