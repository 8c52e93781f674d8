//! The samples of one cluster and two banks in; out: how hard each sample's negatives are, and which of the
//! bank's rows are none.
//!
//! Per sample, against the committed banks. A bank is a seeded draw of a cluster's members (or of the
//! pool's): exact where it holds the whole cluster.

mod exclusions;
mod soft_max;

use std::collections::HashMap;
use std::ops::Range;

use multiversion::multiversion;

use crate::matrix::Matrix;
use crate::sample::SampleRef;
use crate::tile::{Tile, map_strips};

use soft_max::SoftMax;

pub use exclusions::Exclusions;

/// Below this many negatives on both sides there is no `hardness_gain`.
const N_NEGATIVES_MIN: usize = 16;

/// Samples as the divide model sees them: row i of every part belongs to `ids[i]`.
#[derive(Clone, Copy, Debug)]
pub struct Samples<'a> {
    pub ids: &'a [SampleRef],
    /// `[n_samples, d]`, unit rows.
    pub images: &'a Matrix,
    /// `[n_samples, d]`, unit rows; none where the model has no text tower or the pool no captions.
    pub captions: Option<&'a Matrix>,
    /// Hashes of the normalised captions; none where the pool has no captions.
    pub caption_hashes: Option<&'a [u128]>,
}

/// Which rows of a bank hold a sample, and which a caption.
#[derive(Clone, Debug, Default)]
pub struct BankIndex {
    row_of_id: HashMap<SampleRef, usize>,
    rows_of_caption: HashMap<u128, Vec<usize>>,
}

/// Negatives, in bank order, by increasing keyed hash.
#[derive(Clone, Copy, Debug)]
pub struct Bank<'a> {
    pub samples: Samples<'a>,
    /// Of these samples.
    pub index: &'a BankIndex,
}

/// The negatives: of the queries' cluster, and of the pool.
#[derive(Clone, Copy, Debug)]
pub struct Banks<'a> {
    pub cluster: Bank<'a>,
    pub pool: Bank<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HardnessParams {
    /// τ of the log-mean-exp, above 0: the smaller, the more the hardest negative counts.
    pub temperature: f32,
    /// An image cosine above this makes a bank row a near-duplicate, never a negative.
    pub near_duplicate_similarity: f32,
}

impl Default for HardnessParams {
    fn default() -> HardnessParams {
        HardnessParams { temperature: 0.1, near_duplicate_similarity: 0.95 }
    }
}

/// How hard the negatives of one sample are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hardness {
    /// Bank rows of the cluster that are negatives: all but the sample itself and its near-duplicates.
    pub n_negatives: usize,
    /// Near-duplicates among the cluster's bank.
    pub n_false_negatives: usize,
    /// None where `n_negatives` is 0.
    pub negatives: Option<Negatives>,
}

/// One sample against its negatives, at least one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Negatives {
    /// `H(cluster bank)`, −1..1 (a similarity).
    pub hardness: f64,
    /// `H(cluster bank) − H(pool bank)` over the same number of negatives; none below 16.
    pub hardness_gain: Option<f64>,
    /// The mean of H over ⟨own image, other captions⟩ and ⟨other images, own caption⟩; none without caption
    /// embeddings.
    pub cross_modal_hardness: Option<f64>,
    /// `(Σp)² / Σp²`, p the softmax of the similarities over the temperature: 1..=n_negatives.
    pub effective_negatives: f64,
    /// The image similarity of the hardest.
    pub hardest_negative_similarity: f32,
    /// Its row in the cluster's bank; the earlier on a tie.
    pub hardest_negative: usize,
}

/// How hard the negatives of each query are.
///
/// ```text
/// H(i, A) = temperature · ln( 1/|A| · Σ_{j∈A} exp(⟨z_i, z_j⟩ / temperature) )       z the image embedding
/// A       = the bank without i and without near-duplicates: image cosine above the threshold, or equal captions
/// hardness_gain = H(i, first n of the cluster's A) − H(i, first n of the pool's A)   n the smaller of the two counts
/// ```
///
/// High hardness: the cluster's samples look alike to the model. A positive gain says that the cluster gives
/// harder negatives than the pool; H depends on |A|, so both sides take the same number.
///
/// # Shapes and units
///
/// `queries` are samples of the banks' cluster. Similarities and exponentials in f32, sums in f64. Work:
/// 2·n_queries·d FLOPs a bank row of each bank, twice more a cluster's row with captions. Memory: 256 f32 a
/// bank row and thread, and a bit a pair of query and the cluster's bank row.
///
/// # Source
///
/// Our own measure of what Divide and Contrast, arXiv:2105.08054, makes clusters for: all negatives of a
/// batch hard.
///
/// # Example
///
/// One negative at similarity s has hardness s at any temperature. A second one much farther away makes it
/// `s − temperature · ln 2`.
pub fn hardness(queries: &Samples, banks: &Banks, params: &HardnessParams) -> Vec<Hardness> {
    assert!(params.temperature.is_finite() && params.temperature > 0.0, "{params:?}");
    queries.check();
    let Banks { cluster, pool } = banks;
    cluster.samples.check();
    pool.samples.check();
    let strips = map_strips(queries.ids.len(), |blocks: &mut Blocks, strip| {
        let exclusions = cluster.fill_images(&mut blocks.cluster, queries, strip.clone(), params);
        let pool_exclusions = pool.fill_images(&mut blocks.pool, queries, strip.clone(), params);
        let against_cluster = SoftMax::of_columns(&blocks.cluster, params.temperature);
        let against_pool = SoftMax::of_columns(&blocks.pool, params.temperature);
        let cross_modal = cluster.cross_modal(&mut blocks.cross, queries, strip.clone(), &exclusions, params);
        let columns = strip.clone().enumerate().map(|(column, query)| {
            let n_negatives = exclusions.n_negatives(column);
            let n_pool = pool_exclusions.n_negatives(column);
            let is_in_bank = cluster.index.row_of_id.contains_key(&queries.ids[query]);
            // the same number of negatives on both sides
            let n_both = n_negatives.min(n_pool);
            let gain = || {
                against_cluster.log_mean_exp_of_first(&blocks.cluster, column, n_both, n_negatives)
                    - against_pool.log_mean_exp_of_first(&blocks.pool, column, n_both, n_pool)
            };
            let negatives = || Negatives {
                hardness: against_cluster.log_mean_exp(column, n_negatives),
                hardness_gain: (n_both >= N_NEGATIVES_MIN).then(gain),
                cross_modal_hardness: cross_modal.as_ref().map(|directions| {
                    0.5 * directions
                        .each_ref()
                        .map(|h| h.log_mean_exp(column, n_negatives))
                        .iter()
                        .sum::<f64>()
                }),
                effective_negatives: against_cluster.effective_number(column),
                hardest_negative_similarity: against_cluster.largest[column],
                hardest_negative: against_cluster.largest_row[column] as usize,
            };
            Hardness {
                n_negatives,
                n_false_negatives: exclusions.n_of(column) - usize::from(is_in_bank),
                negatives: (n_negatives > 0).then(negatives),
            }
        });
        columns.collect::<Vec<_>>()
    });
    strips.concat()
}

/// The bank rows that are no negatives of each query: the mask of all forms of hardness.
pub fn exclusions(queries: &Samples, bank: &Bank, params: &HardnessParams) -> Exclusions {
    queries.check();
    bank.samples.check();
    let strips = map_strips(queries.ids.len(), |block: &mut Tile, strip| {
        bank.fill_images(block, queries, strip, params)
    });
    Exclusions::concat(bank.samples.ids.len(), strips.into_iter())
}

/// Scratch space of one thread.
#[derive(Default)]
struct Blocks {
    cluster: Tile,
    pool: Tile,
    cross: Tile,
}

impl Samples<'_> {
    fn check(&self) {
        let n_samples = self.ids.len();
        assert_eq!(self.images.n_rows(), n_samples, "one image a sample");
        assert!(self.captions.is_none_or(|captions| captions.n_rows() == n_samples), "one caption a sample");
        assert!(self.caption_hashes.is_none_or(|hashes| hashes.len() == n_samples), "one caption a sample");
    }
}

impl BankIndex {
    pub fn of(samples: &Samples) -> BankIndex {
        let row_of_id = samples.ids.iter().enumerate().map(|(row, id)| (*id, row)).collect();
        let mut rows_of_caption: HashMap<u128, Vec<usize>> = HashMap::new();
        for (row, hash) in samples.caption_hashes.unwrap_or_default().iter().enumerate() {
            rows_of_caption.entry(*hash).or_default().push(row);
        }
        BankIndex { row_of_id, rows_of_caption }
    }
}

impl Bank<'_> {
    /// Sets the block to the image similarities of the bank with the queries of the strip, minus infinity
    /// where excluded.
    fn fill_images(
        &self,
        block: &mut Tile,
        queries: &Samples,
        strip: Range<usize>,
        params: &HardnessParams,
    ) -> Exclusions {
        let n_bank = self.samples.ids.len();
        block.fill(self.samples.images, 0..n_bank, queries.images, strip.clone());
        let mut exclusions = Exclusions::none(strip.len(), n_bank);
        for bank_row in 0..n_bank {
            let row = block.row(bank_row);
            // nearly every row has none, and counting is fast
            if n_above(row, params.near_duplicate_similarity) > 0 {
                for (column, similarity) in row.iter().enumerate() {
                    if *similarity > params.near_duplicate_similarity {
                        exclusions.insert(column, bank_row);
                    }
                }
            }
        }
        for (column, query) in strip.enumerate() {
            let own_row = self.index.row_of_id.get(&queries.ids[query]);
            let same_caption =
                queries.caption_hashes.and_then(|hashes| self.index.rows_of_caption.get(&hashes[query]));
            for bank_row in own_row.into_iter().chain(same_caption.into_iter().flatten()) {
                exclusions.insert(column, *bank_row);
            }
        }
        exclusions.mask(block);
        exclusions
    }

    /// Soft maxima of the queries' images with the bank's captions and of their captions with the bank's
    /// images.
    fn cross_modal(
        &self,
        block: &mut Tile,
        queries: &Samples,
        strip: Range<usize>,
        exclusions: &Exclusions,
        params: &HardnessParams,
    ) -> Option<[SoftMax; 2]> {
        let (bank_captions, captions) = (self.samples.captions?, queries.captions?);
        let mut direction = |bank: &Matrix, queries: &Matrix| {
            block.fill(bank, 0..bank.n_rows(), queries, strip.clone());
            exclusions.mask(block);
            SoftMax::of_columns(block, params.temperature)
        };
        Some([direction(bank_captions, queries.images), direction(self.samples.images, captions)])
    }
}

#[multiversion(targets = "simd")]
fn n_above(values: &[f32], threshold: f32) -> u32 {
    values.iter().map(|value| u32::from(*value > threshold)).sum()
}

#[cfg(test)]
mod tests;
