//! Filter ratio and sizes in, exact integers out: how many super-batches, how many kept, how many a chunk.
//!
//! The plan of a run fixes every count here, before any work, so that they add up over the pool to the sample.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The fraction of the pool to drop, `0 ≤ ratio < 1`, as the exact decimal that the user wrote.
///
/// ```
/// use superbatch::select::FilterRatio;
/// let ratio: FilterRatio = "0.8".parse().unwrap();
/// assert_eq!(ratio.kept(20_480), 4_096); // in f64, 20480·(1 − 0.8) is 4095.999…
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "toml::Value", into = "String")]
pub struct FilterRatio {
    numerator: u64,
    /// A power of ten.
    denominator: u64,
}

/// Why a text is not a filter ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterRatioError {
    #[error("not a plain decimal number such as `0.8`")]
    NotDecimal,
    #[error("more than 18 digits after the point")]
    TooManyDigits,
    #[error("not in 0 ≤ ratio < 1")]
    OutOfRange,
}

impl Default for FilterRatio {
    /// Nothing is dropped.
    fn default() -> FilterRatio {
        FilterRatio { numerator: 0, denominator: 1 }
    }
}

impl FromStr for FilterRatio {
    type Err = FilterRatioError;

    fn from_str(text: &str) -> Result<FilterRatio, FilterRatioError> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        let is_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if (whole.is_empty() && decimals.is_empty()) || !is_digits(whole) || !is_digits(decimals) {
            return Err(FilterRatioError::NotDecimal);
        }
        let decimals = decimals.trim_end_matches('0');
        if decimals.len() > 18 {
            return Err(FilterRatioError::TooManyDigits);
        }
        if whole.bytes().any(|byte| byte != b'0') {
            return Err(FilterRatioError::OutOfRange);
        }
        let numerator = decimals.bytes().fold(0, |value, byte| value * 10 + u64::from(byte - b'0'));
        Ok(FilterRatio { numerator, denominator: 10u64.pow(decimals.len() as u32) })
    }
}

impl TryFrom<toml::Value> for FilterRatio {
    type Error = String;

    /// From a number or a text of a pipeline file; a number's shortest decimal is what was written.
    fn try_from(value: toml::Value) -> Result<FilterRatio, String> {
        let text = match value {
            toml::Value::String(text) => text,
            number => number.to_string(),
        };
        text.parse().map_err(|error| format!("filter_ratio `{text}` is {error}"))
    }
}

impl From<FilterRatio> for String {
    fn from(ratio: FilterRatio) -> String {
        ratio.to_string()
    }
}

impl fmt::Display for FilterRatio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.denominator.ilog10() as usize {
            0 => f.write_str("0"),
            n_digits => write!(f, "0.{:0n_digits$}", self.numerator),
        }
    }
}

impl FilterRatio {
    /// How many of `n` samples are kept: `round-half-even(n·(1 − ratio))`.
    pub fn kept(self, n: u64) -> u64 {
        let kept_share = u128::from(self.denominator - self.numerator);
        // n < 2⁶⁴ and the share ≤ 10¹⁸ < 2⁶⁰, so the product fits; the result is at most n
        divide_half_even(u128::from(n) * kept_share, u128::from(self.denominator)) as u64
    }
}

/// The sizes of the super-batches of a dealing group of `n` samples: `max(1, round-half-even(n /
/// super_batch_size))` of them, which differ by at most one; the larger ones come first. No samples make no
/// super-batch.
pub fn super_batch_sizes(n: usize, super_batch_size: usize) -> Vec<usize> {
    assert!(super_batch_size > 0);
    if n == 0 {
        return Vec::new();
    }
    let n_super_batches = (divide_half_even(n as u128, super_batch_size as u128) as usize).max(1);
    let (size, n_larger) = (n / n_super_batches, n % n_super_batches);
    (0..n_super_batches).map(|super_batch_idx| size + usize::from(super_batch_idx < n_larger)).collect()
}

/// How many of the pool's `n_kept` a super-batch keeps: `⌊n_kept·end/n_samples⌋ − ⌊n_kept·start/n_samples⌋`,
/// where it holds the positions `start..end` of the pool's `n_samples`. Over any cover of the pool these add
/// up to `n_kept`.
pub fn kept_in(super_batch: std::ops::Range<u64>, n_kept: u64, n_samples: u64) -> u64 {
    assert!(super_batch.start <= super_batch.end && super_batch.end <= n_samples && n_kept <= n_samples);
    if n_samples == 0 {
        return 0;
    }
    let kept_before =
        |position: u64| (u128::from(n_kept) * u128::from(position) / u128::from(n_samples)) as u64;
    kept_before(super_batch.end) - kept_before(super_batch.start)
}

/// The sizes of the chunks in which a sub-batch is drawn, `T = min(n_chunks, sub_batch_size)` of them: chunk
/// t takes `⌊(t+1)·b/T⌋ − ⌊t·b/T⌋`.
///
/// # Source
///
/// JEST, arXiv:2406.17711, takes `int(B·(1−f)/N)` a chunk, which loses samples: 2,047 for 2,048 in 23 chunks.
pub fn chunk_sizes(sub_batch_size: usize, n_chunks: usize) -> Vec<usize> {
    assert!(n_chunks > 0);
    let n_chunks = n_chunks.min(sub_batch_size);
    let drawn_before =
        |chunk: usize| (chunk as u128 * sub_batch_size as u128 / n_chunks.max(1) as u128) as usize;
    (0..n_chunks).map(|chunk| drawn_before(chunk + 1) - drawn_before(chunk)).collect()
}

fn divide_half_even(numerator: u128, denominator: u128) -> u128 {
    let (quotient, rest) = (numerator / denominator, numerator % denominator);
    let is_up = match (2 * rest).cmp(&denominator) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => quotient % 2 == 1,
        std::cmp::Ordering::Greater => true,
    };
    quotient + u128::from(is_up)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_filter_ratio_is_the_decimal_that_was_written() {
        for (text, shown, kept_of_1000) in [
            ("0.8", "0.8", 200),
            (".25", "0.25", 750),
            ("0", "0", 1000),
            ("0.050", "0.05", 950),
            ("00.9", "0.9", 100),
        ] {
            let ratio: FilterRatio = text.parse().unwrap();
            assert_eq!((ratio.to_string().as_str(), ratio.kept(1000)), (shown, kept_of_1000));
        }
        for (text, error) in [
            ("", FilterRatioError::NotDecimal),
            (".", FilterRatioError::NotDecimal),
            ("-0.1", FilterRatioError::NotDecimal),
            ("8e-1", FilterRatioError::NotDecimal),
            ("1", FilterRatioError::OutOfRange),
            ("12.5", FilterRatioError::OutOfRange),
            ("0.1234567890123456789", FilterRatioError::TooManyDigits),
        ] {
            assert_eq!(text.parse::<FilterRatio>(), Err(error), "{text}");
        }
    }

    #[test]
    fn halves_round_to_even() {
        let half: FilterRatio = "0.5".parse().unwrap();
        assert_eq!([1, 3, 5, 7].map(|n| half.kept(n)), [0, 2, 2, 4]);
        assert_eq!(super_batch_sizes(25, 10), [13, 12]);
        assert_eq!(super_batch_sizes(35, 10), [9, 9, 9, 8]);
        assert_eq!(super_batch_sizes(3, 10), [3]);
        assert!(super_batch_sizes(0, 10).is_empty());
    }

    #[test]
    fn the_paper_loses_a_sample_and_we_do_not() {
        assert_eq!(chunk_sizes(5, 3), [1, 2, 2]);
        assert_eq!(chunk_sizes(2, 16), [1, 1]);
        assert!(chunk_sizes(0, 16).is_empty());
        assert_eq!(chunk_sizes(2_048, 23).iter().sum::<usize>(), 2_048);
    }

    proptest! {
        #[test]
        fn kept_counts_add_up(
            n in 0u64..20_000_000_000,
            decimals in 0u64..1_000_000,
            cuts in prop::collection::vec(0.0..1.0, 0..40),
        ) {
            let ratio: FilterRatio = format!("0.{decimals:06}").parse().unwrap();
            let n_kept = ratio.kept(n);
            let exact = u128::from(n) * u128::from(1_000_000 - decimals);
            prop_assert!((u128::from(n_kept) * 1_000_000).abs_diff(exact) <= 500_000);
            let mut bounds: Vec<u64> = cuts.iter().map(|cut| (cut * n as f64) as u64).chain([0, n]).collect();
            bounds.sort_unstable();
            let kept: u64 = bounds.windows(2).map(|pair| kept_in(pair[0]..pair[1], n_kept, n)).sum();
            prop_assert_eq!(kept, n_kept);
            for pair in bounds.windows(2) {
                prop_assert!(kept_in(pair[0]..pair[1], n_kept, n) <= pair[1] - pair[0]);
            }
        }

        #[test]
        fn super_batches_differ_by_at_most_one(n in 1usize..2_000_000, size in 1usize..400_000) {
            let sizes = super_batch_sizes(n, size);
            prop_assert_eq!(sizes.iter().sum::<usize>(), n);
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
            prop_assert!(sizes.is_sorted_by(|left, right| left >= right));
        }

        #[test]
        fn chunks_add_up(sub_batch_size in 0usize..400_000, n_chunks in 1usize..100) {
            let sizes = chunk_sizes(sub_batch_size, n_chunks);
            prop_assert_eq!(sizes.len(), n_chunks.min(sub_batch_size));
            prop_assert_eq!(sizes.iter().sum::<usize>(), sub_batch_size);
            prop_assert!(sizes.iter().all(|size| *size > 0));
        }
    }
}
