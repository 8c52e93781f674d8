//! A stream of ranked samples in, where to cut it so that exactly n pass out, in memory for a histogram.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::sample::SampleRef;
use crate::settings::Ranking;

/// A rank as an integer whose order is the order of merit: the smaller, the better.
pub type Rank = u64;

/// The rank of a score: of two scores the better one has the smaller rank. No score ranks behind every score.
pub fn rank_of(score: Option<f64>, order: Ranking) -> Rank {
    let Some(score) = score.filter(|score| !score.is_nan()) else { return Rank::MAX };
    let score = score + 0.0; // −0 ranks as 0
    // the bits of a float, turned so that they ascend with the float
    let bits = score.to_bits();
    let ascending = if bits >> 63 == 0 { bits | 1 << 63 } else { !bits };
    match order {
        Ranking::Lowest => ascending,
        Ranking::Highest => !ascending,
    }
}

/// Where the best n of a stream end: all ranks below, and of those equal to it the samples up to `last`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cutoff {
    All,
    None,
    At { rank: Rank, last_shard: String, last_sample_idx: u64 },
}

impl Cutoff {
    /// Whether a sample of this rank is among the best.
    pub fn passes(&self, rank: Rank, shard: &str, sample_idx: u64) -> bool {
        match self {
            Cutoff::All => true,
            Cutoff::None => false,
            Cutoff::At { rank: last_rank, last_shard, last_sample_idx } => {
                (rank, shard, sample_idx) <= (*last_rank, last_shard.as_str(), *last_sample_idx)
            }
        }
    }
}

/// One sample of the stream.
#[derive(Clone, Copy, Debug)]
pub struct Ranked {
    /// Which of the cuts it belongs to.
    pub group: usize,
    pub rank: Rank,
    pub sample: SampleRef,
}

/// Bits that one pass over the stream decides: so many that few passes do, and so few that the counts of all groups are
/// small, 512 KiB a group for up to 64 of them and 2 KiB for more.
fn digit_bits(n_groups: usize) -> u32 {
    if n_groups <= 64 { 16 } else { 8 }
}

/// How often [`cutoffs`] scans the stream of so many groups.
pub fn n_scans(n_groups: usize) -> u32 {
    u64::BITS / digit_bits(n_groups) + 1
}

/// Finds, for each group of a stream, the rank and the sample where its best `wanted[group]` end.
///
/// Radix selection: each of four passes over the stream (eight for more than 64 groups) counts one digit of the ranks
/// that are still in question; one more finds the last of the samples that share the cut's rank. Samples come in the
/// order of their ids, which decides ties. Memory: a count a value of a digit and group.
///
/// # Errors
///
/// Those of `scan`, which hands every sample of the stream to its argument, each time the same.
pub fn cutoffs(
    wanted: &[u64],
    shard_of: impl Fn(SampleRef) -> String,
    scan: impl Fn(&mut dyn FnMut(Ranked)) -> Result<(), Error>,
) -> Result<Vec<Cutoff>, Error> {
    let mut cuts: Vec<Cut> = wanted.iter().map(|&n| Cut { prefix: 0, left: n, is_all: false }).collect();
    let digit_bits = digit_bits(cuts.len());
    let n_values = 1 << digit_bits;
    for digit in (0..u64::BITS / digit_bits).rev() {
        let shift = digit * digit_bits;
        let mut counts = vec![0u64; cuts.len() * n_values];
        scan(&mut |ranked| {
            if ranked.rank.checked_shr(shift + digit_bits).unwrap_or(0) == cuts[ranked.group].prefix {
                let value = (ranked.rank >> shift) as usize % n_values;
                counts[ranked.group * n_values + value] += 1;
            }
        })?;
        for (cut, counts) in cuts.iter_mut().zip(counts.chunks(n_values)) {
            cut.narrow(counts);
        }
    }
    let mut last: Vec<Option<SampleRef>> = vec![None; cuts.len()];
    let mut left: Vec<u64> = cuts.iter().map(|cut| cut.left).collect();
    scan(&mut |ranked| {
        if ranked.rank == cuts[ranked.group].prefix && left[ranked.group] > 0 {
            left[ranked.group] -= 1;
            last[ranked.group] = Some(ranked.sample);
        }
    })?;
    let found = cuts.iter().zip(last).zip(wanted).map(|((cut, last), &wanted)| match last {
        _ if cut.is_all => Cutoff::All,
        Some(last) if wanted > 0 => {
            Cutoff::At { rank: cut.prefix, last_shard: shard_of(last), last_sample_idx: last.sample_idx }
        }
        _ => Cutoff::None,
    });
    Ok(found.collect())
}

/// One cut on its way down the digits.
struct Cut {
    /// The digits of its rank that are known.
    prefix: u64,
    /// How many of the samples that begin with these digits are among the best.
    left: u64,
    /// The stream is not longer than what is wanted.
    is_all: bool,
}

impl Cut {
    /// Takes the next digit: the one in whose count the last wanted sample lies.
    fn narrow(&mut self, counts: &[u64]) {
        let mut digit = 0;
        while digit + 1 < counts.len() && self.left > counts[digit] {
            self.left -= counts[digit];
            digit += 1;
        }
        self.is_all |= self.left > counts[digit];
        self.prefix = self.prefix * counts.len() as u64 + digit as u64;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(row: usize) -> SampleRef {
        SampleRef { shard_idx: (row / 7) as u32, sample_idx: (row % 7) as u64 }
    }

    fn shard_of(sample: SampleRef) -> String {
        format!("{:03}", sample.shard_idx)
    }

    fn kept(ranks: &[(usize, Rank)], wanted: &[u64]) -> Vec<usize> {
        let found = cutoffs(wanted, shard_of, |take| {
            for (row, &(group, rank)) in ranks.iter().enumerate() {
                take(Ranked { group, rank, sample: sample(row) });
            }
            Ok(())
        });
        let found = found.unwrap();
        let passes = |row: &usize| {
            let (group, rank) = ranks[*row];
            found[group].passes(rank, &shard_of(sample(*row)), sample(*row).sample_idx)
        };
        (0..ranks.len()).filter(passes).collect()
    }

    #[test]
    fn ranks_order_scores() {
        let scores = [f64::INFINITY, 3.5, 1e-300, 0.0, -1e-300, -2.0, f64::NEG_INFINITY];
        let ranks = scores.map(|score| rank_of(Some(score), Ranking::Highest));
        assert!(ranks.is_sorted_by(|left, right| left < right));
        assert!(scores.map(|score| rank_of(Some(score), Ranking::Lowest)).is_sorted_by(|l, r| l > r));
        assert_eq!(rank_of(Some(-0.0), Ranking::Highest), rank_of(Some(0.0), Ranking::Highest));
        assert_eq!(rank_of(Some(f64::NAN), Ranking::Highest), rank_of(None, Ranking::Highest));
        assert!(rank_of(None, Ranking::Lowest) > rank_of(Some(f64::INFINITY), Ranking::Lowest));
    }

    #[test]
    fn ties_go_by_sample() {
        let ranks = [(0, 5), (0, 3), (0, 5), (0, 5), (0, 9)];
        assert_eq!(kept(&ranks, &[3]), [0, 1, 2]);
        assert_eq!(kept(&ranks, &[0]), [0usize; 0]);
        assert_eq!(kept(&ranks, &[5]), [0, 1, 2, 3, 4]);
        assert_eq!(kept(&ranks, &[50]), [0, 1, 2, 3, 4]);
        assert_eq!(kept(&[(0, Rank::MAX), (0, Rank::MAX)], &[1]), [0]);
        assert_eq!(kept(&[], &[4]), [0usize; 0]);
    }

    #[test]
    fn few_groups_take_few_passes() {
        let n_passes = |n_groups: usize| {
            let n_passes = std::cell::Cell::new(0);
            let scan = |take: &mut dyn FnMut(Ranked)| {
                n_passes.set(n_passes.get() + 1);
                take(Ranked { group: n_groups - 1, rank: 7, sample: sample(0) });
                Ok(())
            };
            cutoffs(&vec![1; n_groups], shard_of, scan).unwrap();
            n_passes.get()
        };
        assert_eq!((n_passes(1), n_passes(64), n_passes(65)), (5, 5, 9));
    }

    proptest! {
        #[test]
        fn the_best_are_those_of_a_sort(
            ranks in prop::collection::vec((0usize..3, prop_oneof![0u64..6, any::<u64>()]), 0..200),
            mut wanted in prop::collection::vec(0u64..80, 3..4),
            n_empty in prop_oneof![Just(0), Just(62)],
        ) {
            // groups without samples, of which many make digits small
            wanted.resize(3 + n_empty, 5);
            let mut expected = Vec::new();
            for (group, &wanted) in wanted.iter().enumerate() {
                let mut rows: Vec<usize> = (0..ranks.len()).filter(|&row| ranks[row].0 == group).collect();
                rows.sort_by_key(|&row| (ranks[row].1, row));
                expected.extend(rows.into_iter().take(wanted as usize));
            }
            expected.sort_unstable();
            prop_assert_eq!(kept(&ranks, &wanted), expected);
        }
    }
}
