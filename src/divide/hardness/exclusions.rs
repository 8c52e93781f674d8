//! Which bank rows are no negatives of which query, a bit a pair.

use std::ops::Range;

use crate::tile::Tile;

/// Which bank rows are no negatives of which query: the query itself and its near-duplicates. A bit a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exclusions {
    /// `[n_queries, n_bank / 64]`
    words: Vec<u64>,
    n_queries: usize,
    n_bank: usize,
}

impl Exclusions {
    pub(super) fn none(n_queries: usize, n_bank: usize) -> Exclusions {
        Exclusions { words: vec![0; n_queries * n_bank.div_ceil(64)], n_queries, n_bank }
    }

    pub(super) fn concat(n_bank: usize, strips: impl Iterator<Item = Exclusions>) -> Exclusions {
        let mut all = Exclusions::none(0, n_bank);
        for strip in strips {
            all.words.extend(strip.words);
            all.n_queries += strip.n_queries;
        }
        all
    }

    pub(super) fn insert(&mut self, query: usize, bank_row: usize) {
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

    pub(super) fn n_negatives(&self, query: usize) -> usize {
        self.n_bank - self.n_of(query)
    }

    /// Takes the excluded out of a block of similarities `[n_bank, n_queries]`: minus infinity adds nothing
    /// to a softmax and is never the largest.
    pub(super) fn mask(&self, block: &mut Tile) {
        for query in 0..self.n_queries {
            for bank_row in self.of(query, 0..self.n_bank) {
                block.set(bank_row, query, f32::NEG_INFINITY);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excluded_rows_come_by_range() {
        let mut exclusions = Exclusions::none(2, 200);
        for bank_row in [0, 63, 64, 127, 128, 199] {
            exclusions.insert(1, bank_row);
        }
        assert_eq!(exclusions.of(1, 0..200).collect::<Vec<_>>(), [0, 63, 64, 127, 128, 199]);
        assert_eq!(exclusions.of(1, 64..128).collect::<Vec<_>>(), [64, 127]);
        assert_eq!(exclusions.of(1, 64..100).collect::<Vec<_>>(), [64]);
        assert_eq!((exclusions.n_of(0), exclusions.n_of(1)), (0, 6));
    }
}
