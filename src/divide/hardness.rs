//! The samples of one cluster and two banks in; out: how hard each sample's negatives are, and which of the bank's rows are
//! none.
//!
//! Per sample, against the committed banks. A bank is a seeded draw of a cluster's members (or of the pool's): exact where
//! it holds the whole cluster.

use std::collections::HashMap;
use std::ops::Range;

use multiversion::multiversion;

use crate::matrix::Matrix;
use crate::noise::SampleId;
use crate::tile::{Tile, exp_nonpositive, map_strips};

/// Below this many negatives on both sides there is no `hardness_gain`.
const N_NEGATIVES_MIN: usize = 16;

/// Samples as the divide model sees them: row i of every part belongs to `ids[i]`.
#[derive(Clone, Copy, Debug)]
pub struct Samples<'a> {
    pub ids: &'a [SampleId<'a>],
    /// `[n_samples, d]`, unit rows.
    pub images: &'a Matrix,
    /// `[n_samples, d]`, unit rows; none where the model has no text tower or the pool no captions.
    pub captions: Option<&'a Matrix>,
    /// Hashes of the normalised captions; none where the pool has no captions.
    pub caption_hashes: Option<&'a [u128]>,
}

/// The negatives: of the queries' cluster, and of the pool. In bank order, by increasing keyed hash.
#[derive(Clone, Copy, Debug)]
pub struct Banks<'a> {
    pub cluster: Samples<'a>,
    pub pool: Samples<'a>,
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
    /// The mean of H over ⟨own image, other captions⟩ and ⟨other images, own caption⟩; none without caption embeddings.
    pub cross_modal_hardness: Option<f64>,
    /// `(Σp)² / Σp²`, p the softmax of the similarities over the temperature: 1..=n_negatives.
    pub effective_negatives: f64,
    /// The image similarity of the hardest.
    pub hardest_negative_similarity: f32,
    /// Its row in the cluster's bank; the earlier on a tie.
    pub hardest_negative: usize,
}

/// Which bank rows are no negatives of which query: the query itself and its near-duplicates. A bit a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exclusions {
    /// `[n_queries, n_bank / 64]`
    words: Vec<u64>,
    n_queries: usize,
    n_bank: usize,
}

impl Exclusions {
    fn none(n_queries: usize, n_bank: usize) -> Exclusions {
        Exclusions { words: vec![0; n_queries * n_bank.div_ceil(64)], n_queries, n_bank }
    }

    fn concat(n_bank: usize, strips: impl Iterator<Item = Exclusions>) -> Exclusions {
        let mut all = Exclusions::none(0, n_bank);
        for strip in strips {
            all.words.extend(strip.words);
            all.n_queries += strip.n_queries;
        }
        all
    }

    fn insert(&mut self, query: usize, bank_row: usize) {
        self.words[query * self.n_bank.div_ceil(64) + bank_row / 64] |= 1 << (bank_row % 64);
    }

    fn words_of(&self, query: usize) -> &[u64] {
        let n_words = self.n_bank.div_ceil(64);
        &self.words[query * n_words..(query + 1) * n_words]
    }

    pub fn n_queries(&self) -> usize {
        self.n_queries
    }

    pub fn n_bank(&self) -> usize {
        self.n_bank
    }

    /// The excluded bank rows of a query within a range that starts at a multiple of 64, in order.
    pub fn of(&self, query: usize, bank_rows: Range<usize>) -> impl Iterator<Item = usize> {
        assert!(bank_rows.start.is_multiple_of(64) && bank_rows.end <= self.n_bank);
        let words = &self.words_of(query)[bank_rows.start / 64..bank_rows.end.div_ceil(64)];
        let rows =
            words.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(move |(word_idx, word)| {
                let first = bank_rows.start + word_idx * 64;
                (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| first + bit)
            });
        rows.take_while(move |row| *row < bank_rows.end)
    }

    /// How many bank rows are excluded for a query.
    pub fn n_of(&self, query: usize) -> usize {
        self.words_of(query).iter().map(|word| word.count_ones() as usize).sum()
    }
}

/// How hard the negatives of each query are, and the bank rows of the cluster that are none.
///
/// ```text
/// H(i, A) = temperature · ln( 1/|A| · Σ_{j∈A} exp(⟨z_i, z_j⟩ / temperature) )       z the image embedding
/// A       = the bank without i and without near-duplicates: image cosine above the threshold, or equal captions
/// hardness_gain = H(i, first n of the cluster's A) − H(i, first n of the pool's A)   n the smaller of the two counts
/// ```
///
/// High hardness: the cluster's samples look alike to the model. A positive gain says that the cluster gives harder
/// negatives than the pool; H depends on |A|, so both sides take the same number.
///
/// # Shapes and units
///
/// `queries` are samples of the banks' cluster. Similarities and exponentials in f32, sums in f64. Work: 2·n_queries·d
/// FLOPs a bank row of each bank, twice more a cluster's row with captions. Memory: 256 f32 a bank row and thread, and a bit a
/// pair of query and the cluster's bank row.
///
/// # Source
///
/// Our own measure of what Divide and Contrast, arXiv:2105.08054, makes clusters for: all negatives of a batch hard.
///
/// # Example
///
/// One negative at similarity s has hardness s at any temperature; two at s and −∞ have `s − temperature · ln 2`.
pub fn hardness(queries: &Samples, banks: &Banks, params: &HardnessParams) -> (Vec<Hardness>, Exclusions) {
    assert!(params.temperature.is_finite() && params.temperature > 0.0, "{params:?}");
    queries.check();
    let (cluster, pool) = (Bank::new(&banks.cluster), Bank::new(&banks.pool));
    let strips = map_strips(queries.ids.len(), |blocks: &mut Blocks, strip| {
        let exclusions = cluster.fill_images(&mut blocks.cluster, queries, strip.clone(), params);
        let pool_exclusions = pool.fill_images(&mut blocks.pool, queries, strip.clone(), params);
        let against_all = SoftMax::of_columns(&blocks.cluster, params.temperature);
        let cross_modal = cluster.cross_modal(&mut blocks.cross, queries, strip.clone(), &exclusions, params);

        // the same number of negatives on both sides
        let n_both: Vec<usize> = (0..strip.len())
            .map(|column| exclusions.n_negatives(column).min(pool_exclusions.n_negatives(column)))
            .collect();
        keep_first(&mut blocks.cluster, &exclusions, &n_both);
        keep_first(&mut blocks.pool, &pool_exclusions, &n_both);
        let against_cluster = SoftMax::of_columns(&blocks.cluster, params.temperature);
        let against_pool = SoftMax::of_columns(&blocks.pool, params.temperature);

        let columns = strip.clone().enumerate().map(|(column, query)| {
            let n_negatives = exclusions.n_negatives(column);
            let is_in_bank = cluster.rows_of_id.contains_key(&queries.ids[query]);
            let gain = || {
                let n = n_both[column];
                against_cluster.log_mean_exp(column, n) - against_pool.log_mean_exp(column, n)
            };
            let negatives = || Negatives {
                hardness: against_all.log_mean_exp(column, n_negatives),
                hardness_gain: (n_both[column] >= N_NEGATIVES_MIN).then(gain),
                cross_modal_hardness: cross_modal.as_ref().map(|directions| {
                    0.5 * directions
                        .each_ref()
                        .map(|h| h.log_mean_exp(column, n_negatives))
                        .iter()
                        .sum::<f64>()
                }),
                effective_negatives: against_all.sums[column].powi(2) / against_all.sums_of_squares[column],
                hardest_negative_similarity: against_all.largest[column],
                hardest_negative: against_all.largest_row[column] as usize,
            };
            Hardness {
                n_negatives,
                n_false_negatives: exclusions.n_of(column) - usize::from(is_in_bank),
                negatives: (n_negatives > 0).then(negatives),
            }
        });
        (columns.collect::<Vec<_>>(), exclusions)
    });
    let (columns, exclusions): (Vec<_>, Vec<_>) = strips.into_iter().unzip();
    (columns.concat(), Exclusions::concat(banks.cluster.ids.len(), exclusions.into_iter()))
}

/// The bank rows that are no negatives of each query: the mask of all forms of hardness.
pub fn exclusions(queries: &Samples, bank: &Samples, params: &HardnessParams) -> Exclusions {
    queries.check();
    let bank = Bank::new(bank);
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

impl Exclusions {
    fn n_negatives(&self, query: usize) -> usize {
        self.n_bank - self.n_of(query)
    }

    /// Takes the excluded out of a block of similarities `[n_bank, n_queries]`: minus infinity adds nothing to a
    /// softmax and is never the largest.
    fn mask(&self, block: &mut Tile) {
        for query in 0..self.n_queries {
            for bank_row in self.of(query, 0..self.n_bank) {
                block.set(bank_row, query, f32::NEG_INFINITY);
            }
        }
    }
}

/// A bank with the rows of each id and each caption.
struct Bank<'a> {
    samples: &'a Samples<'a>,
    rows_of_id: HashMap<SampleId<'a>, usize>,
    rows_of_caption: HashMap<u128, Vec<usize>>,
}

impl<'a> Bank<'a> {
    fn new(samples: &'a Samples<'a>) -> Bank<'a> {
        samples.check();
        let rows_of_id = samples.ids.iter().enumerate().map(|(row, id)| (*id, row)).collect();
        let mut rows_of_caption: HashMap<u128, Vec<usize>> = HashMap::new();
        for (row, hash) in samples.caption_hashes.unwrap_or_default().iter().enumerate() {
            rows_of_caption.entry(*hash).or_default().push(row);
        }
        Bank { samples, rows_of_id, rows_of_caption }
    }

    /// Sets the block to the image similarities of the bank with the queries of the strip, minus infinity where excluded.
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
            let own_row = self.rows_of_id.get(&queries.ids[query]);
            let same_caption =
                queries.caption_hashes.and_then(|hashes| self.rows_of_caption.get(&hashes[query]));
            for bank_row in own_row.into_iter().chain(same_caption.into_iter().flatten()) {
                exclusions.insert(column, *bank_row);
            }
        }
        exclusions.mask(block);
        exclusions
    }

    /// Soft maxima of the queries' images with the bank's captions and of their captions with the bank's images.
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

/// Takes all but the first `n[column]` negatives of each column out of a block.
fn keep_first(block: &mut Tile, exclusions: &Exclusions, n: &[usize]) {
    for (column, n) in n.iter().enumerate() {
        let mut n_surplus = exclusions.n_negatives(column) - n;
        for bank_row in (0..block.n_rows()).rev() {
            if n_surplus == 0 {
                break;
            }
            if block.row(bank_row)[column] > f32::NEG_INFINITY {
                block.set(bank_row, column, f32::NEG_INFINITY);
                n_surplus -= 1;
            }
        }
    }
}

#[multiversion(targets = "simd")]
fn n_above(values: &[f32], threshold: f32) -> u32 {
    values.iter().map(|value| u32::from(*value > threshold)).sum()
}

/// For each column of a block: its largest value, and sums over `e = exp((value − largest) / temperature)`.
struct SoftMax {
    temperature: f32,
    largest: Vec<f32>,
    /// The first row with the largest value.
    largest_row: Vec<u32>,
    sums: Vec<f64>,
    sums_of_squares: Vec<f64>,
}

impl SoftMax {
    fn of_columns(block: &Tile, temperature: f32) -> SoftMax {
        let n = block.n_columns();
        let (largest, largest_row) = (vec![f32::NEG_INFINITY; n], vec![0; n]);
        let mut soft_max = SoftMax { temperature, largest, largest_row, sums: vec![0.0; n], sums_of_squares: vec![0.0; n] };
        find_largest(&mut soft_max, block);
        sum_exponentials(&mut soft_max, block);
        soft_max
    }

    /// `temperature · ln(mean exp(value / temperature))` of a column over its `n` values that are not masked.
    fn log_mean_exp(&self, column: usize, n: usize) -> f64 {
        f64::from(self.largest[column]) + f64::from(self.temperature) * (self.sums[column] / n as f64).ln()
    }
}

#[multiversion(targets = "simd")]
fn find_largest(soft_max: &mut SoftMax, block: &Tile) {
    for row in 0..block.n_rows() {
        let kept = soft_max.largest.iter_mut().zip(&mut soft_max.largest_row);
        for (value, (largest, largest_row)) in block.row(row).iter().zip(kept) {
            let is_larger = *value > *largest;
            *largest = if is_larger { *value } else { *largest };
            *largest_row = if is_larger { row as u32 } else { *largest_row };
        }
    }
}

#[multiversion(targets = "simd")]
fn sum_exponentials(soft_max: &mut SoftMax, block: &Tile) {
    let scale = soft_max.temperature.recip();
    for row in 0..block.n_rows() {
        let sums = soft_max.sums.iter_mut().zip(&mut soft_max.sums_of_squares);
        for ((value, largest), (sum, sum_of_squares)) in block.row(row).iter().zip(&soft_max.largest).zip(sums) {
            let e = exp_nonpositive((value - largest) * scale);
            *sum += f64::from(e);
            *sum_of_squares += f64::from(e * e);
        }
    }
}
