//! Two scores of the same samples in, how far they agree on the order out.

/// Ranks from 1 for the smallest; equal values share the mean of their ranks.
///
/// # Panics
///
/// On NaN, which has no place in an order.
pub fn average_ranks(values: &[f64]) -> Vec<f64> {
    let mut ranks = vec![0.0; values.len()];
    let mut n_below = 0;
    for tied in ascending(values).chunk_by(|&left, &right| values[left] == values[right]) {
        let mean = n_below as f64 + (tied.len() + 1) as f64 / 2.0;
        tied.iter().for_each(|&position| ranks[position] = mean);
        n_below += tied.len();
    }
    ranks
}

/// Spearman's rank correlation of two scores of the same samples.
///
/// ```text
/// ρ = Σ (r_i − r̄)(s_i − s̄) / √(Σ (r_i − r̄)² · Σ (s_i − s̄)²),   r, s = average ranks
/// ```
///
/// 1 where both put the samples in the same order, −1 where the orders are opposite, about 0 where one says
/// nothing of the other: for n unrelated scores its standard deviation is 1/√(n − 1). Nothing where one of
/// the scores is the same for all samples, or there are fewer than two.
///
/// # Shapes and units
///
/// Both `[n]`, row i = sample i, any unit.
///
/// # Panics
///
/// On scores of different lengths, and on NaN.
///
/// # Source
///
/// Spearman 1904; ties as in `scipy.stats.spearmanr`, which the tests compare with.
///
/// ```
/// # use superbatch::rank::spearman;
/// // Σd² = 2 for n = 4: ρ = 1 − 6·2/(4·15)
/// assert_eq!(spearman(&[1.0, 2.0, 3.0, 4.0], &[10.0, 20.0, 40.0, 30.0]), Some(0.8));
/// ```
pub fn spearman(left: &[f64], right: &[f64]) -> Option<f64> {
    assert_eq!(left.len(), right.len(), "two scores of the same samples");
    // the mean of ranks 1 to n, ties or not
    let mean = (left.len() + 1) as f64 / 2.0;
    let (mut both, mut of_left, mut of_right) = (0.0, 0.0, 0.0);
    for (l, r) in average_ranks(left).into_iter().zip(average_ranks(right)) {
        both += (l - mean) * (r - mean);
        of_left += (l - mean) * (l - mean);
        of_right += (r - mean) * (r - mean);
    }
    (of_left > 0.0 && of_right > 0.0).then(|| (both / (of_left * of_right).sqrt()).clamp(-1.0, 1.0))
}

/// Positions of the n largest values, largest first; of equal values the earlier ones.
///
/// # Panics
///
/// On NaN.
pub fn largest(values: &[f64], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&left, &right| comparable(values[right]).total_cmp(&comparable(values[left])));
    order.truncate(n);
    order
}

/// How many elements two sets of a pool have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap {
    pub n_left: usize,
    pub n_right: usize,
    pub n_both: usize,
}

impl Overlap {
    /// Of two ascending lists, each without repeats.
    pub fn of_sorted<T: Ord>(left: &[T], right: &[T]) -> Overlap {
        let is_ascending = |list: &[T]| list.windows(2).all(|pair| pair[0] < pair[1]);
        assert!(is_ascending(left) && is_ascending(right), "lists that ascend without repeats");
        let n_both = left.iter().filter(|element| right.binary_search(element).is_ok()).count();
        Overlap { n_left: left.len(), n_right: right.len(), n_both }
    }

    /// Of the n largest of two scores of the same samples.
    pub fn of_largest(left: &[f64], right: &[f64], n: usize) -> Overlap {
        assert_eq!(left.len(), right.len(), "two scores of the same samples");
        let sorted = |values| {
            let mut positions = largest(values, n);
            positions.sort_unstable();
            positions
        };
        Overlap::of_sorted(&sorted(left), &sorted(right))
    }

    /// What both have, as a share of the smaller set: 1 where one holds the other, 0 where nothing is shared;
    /// nothing where one is empty. Two sets drawn blindly from n elements share
    /// [`by_chance`](Overlap::by_chance).
    pub fn share(&self) -> Option<f64> {
        let n_smaller = self.n_left.min(self.n_right);
        (n_smaller > 0).then(|| self.n_both as f64 / n_smaller as f64)
    }

    /// The share expected of two sets of these sizes that know nothing of each other, in a pool of `n_pool`.
    pub fn by_chance(&self, n_pool: usize) -> f64 {
        assert!(self.n_left <= n_pool && self.n_right <= n_pool && n_pool > 0, "sets of a pool");
        self.n_left.max(self.n_right) as f64 / n_pool as f64
    }
}

/// Positions of the values, smallest first.
fn ascending(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&left, &right| comparable(values[left]).total_cmp(&comparable(values[right])));
    order
}

/// The two zeros as one, so that the total order is that of the numbers.
fn comparable(value: f64) -> f64 {
    assert!(!value.is_nan(), "NaN has no rank");
    value + 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        left: Vec<f64>,
        right: Vec<f64>,
        left_ranks: Vec<f64>,
        spearman: f64,
        n_both_of_largest: usize,
    }

    #[test]
    fn ranks_and_correlation_equal_scipys() {
        let golden: Vec<Case> =
            serde_json::from_str(include_str!("../tests/oracle/golden/rank.json")).unwrap();
        assert!(golden.len() >= 5);
        for case in golden {
            assert_eq!(average_ranks(&case.left), case.left_ranks);
            let rho = spearman(&case.left, &case.right).unwrap();
            assert!((rho - case.spearman).abs() < 1e-12, "{rho} is not {}", case.spearman);
            let overlap = Overlap::of_largest(&case.left, &case.right, case.left.len() / 5);
            assert_eq!(overlap.n_both, case.n_both_of_largest);
        }
    }

    #[test]
    fn ties_share_the_mean_of_their_ranks() {
        assert_eq!(average_ranks(&[5.0, 1.0, 5.0, -0.0, 0.0, 5.0]), [5.0, 3.0, 5.0, 1.5, 1.5, 5.0]);
        assert_eq!(average_ranks(&[]), [0.0; 0]);
    }

    #[test]
    fn an_order_agrees_with_itself_and_not_with_its_reverse() {
        let scores = [0.3, -2.0, 7.5, 7.5, f64::INFINITY];
        let reversed = scores.map(|score| -score);
        assert_eq!(spearman(&scores, &scores), Some(1.0));
        assert_eq!(spearman(&scores, &reversed), Some(-1.0));
        assert_eq!(spearman(&scores, &[1.0; 5]), None);
        assert_eq!(spearman(&[1.0], &[1.0]), None);
        assert_eq!(spearman(&[], &[]), None);
    }

    #[test]
    fn the_largest_come_first_and_ties_by_position() {
        assert_eq!(largest(&[1.0, 3.0, 2.0, 3.0], 3), [1, 3, 2]);
        assert_eq!(largest(&[1.0], 3), [0]);
    }

    #[test]
    fn overlap_is_counted_by_hand() {
        let overlap = Overlap::of_sorted(&["a", "b", "d"], &["b", "c", "d", "e"]);
        assert_eq!(overlap, Overlap { n_left: 3, n_right: 4, n_both: 2 });
        assert_eq!(overlap.share(), Some(2.0 / 3.0));
        // each of the three is among the other four with probability 4/8
        assert_eq!(overlap.by_chance(8), 0.5);
        assert_eq!(Overlap::of_sorted::<u8>(&[], &[1]).share(), None);
    }
}
