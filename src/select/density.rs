//! Centroids, how spread their clusters are, and a total in; how many samples of each cluster are kept out.

use rayon::prelude::*;

use crate::matrix::{Matrix, dot};

/// How density-based pruning weighs clusters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DensityParams {
    /// T of the softmax over clusters, above 0: the lower, the more go to the most complex ones.
    pub temperature: f64,
    /// Nearest other centroids over which a cluster's distance to its neighbours is averaged, at least 1.
    pub n_neighbours: usize,
}

/// Shares out what is kept by the complexity of clusters: density-based pruning (DBP).
///
/// ```text
/// complexity_c = d_inter · d_intra      d_inter = mean 1 − cos to the nearest other centroids
///                                       d_intra = mean 1 − cos of the members to their centroid
/// wanted_c     = n_kept · softmax(complexity / temperature)_c
/// quota        = the point of {0 ≤ quota_c ≤ size_c, Σ quota = n_kept} nearest to wanted: clamp(wanted_c + ν, 0, size_c)
/// ```
///
/// Spread-out clusters that lie alone keep more, dense ones among near neighbours less: there, one sample says much of
/// what the next one does. Whole numbers by the largest remainder, the lower cluster on a tie. Inside a cluster the method
/// keeps the samples farthest from the centroid.
///
/// # Shapes and units
///
/// `centroids` is `[n_clusters, d]`, unit rows; `mean_distances` (d_intra, 0..=2) and `sizes` have a value for each.
/// Work: n_clusters²·d FLOPs.
///
/// # Panics
///
/// If more are to be kept than there are.
///
/// # Source
///
/// Abbas et al., arXiv:2401.04578. The paper also keeps at least one sample of each cluster; here a cluster may keep none.
///
/// # Example
///
/// Two clusters have the same d_inter whatever it is; with d_intra equal too, each keeps half, or the smaller one all it has
/// and the other the rest.
pub fn density_quotas(
    centroids: &Matrix,
    mean_distances: &[f64],
    sizes: &[u64],
    n_kept: u64,
    params: &DensityParams,
) -> Vec<u64> {
    let n_samples: u64 = sizes.iter().sum();
    assert!(n_kept <= n_samples, "{n_kept} of {n_samples} samples");
    assert_eq!(
        (centroids.n_rows(), mean_distances.len()),
        (sizes.len(), sizes.len()),
        "one of each a cluster"
    );
    assert!(params.temperature > 0.0 && params.n_neighbours > 0, "{params:?}");
    let filled: Vec<usize> = (0..sizes.len()).filter(|cluster| sizes[*cluster] > 0).collect();
    let complexities: Vec<f64> = filled
        .par_iter()
        .map(|&cluster| d_inter(centroids, &filled, cluster, params.n_neighbours) * mean_distances[cluster])
        .collect();
    let highest = complexities.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> =
        complexities.iter().map(|complexity| ((complexity - highest) / params.temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    let wanted: Vec<f64> = weights.iter().map(|weight| n_kept as f64 * weight / total).collect();
    let caps: Vec<u64> = filled.iter().map(|cluster| sizes[*cluster]).collect();
    let mut kept = vec![0; sizes.len()];
    for (cluster, quota) in filled.into_iter().zip(whole(&project(&wanted, &caps, n_kept), &caps, n_kept)) {
        kept[cluster] = quota;
    }
    kept
}

/// The mean `1 − cos` of a centroid to the nearest others that have samples; 1 for the only one.
fn d_inter(centroids: &Matrix, filled: &[usize], cluster: usize, n_neighbours: usize) -> f64 {
    let others = filled.iter().filter(|other| **other != cluster);
    let mut distances: Vec<f64> =
        others.map(|other| 1.0 - f64::from(dot(centroids.row(cluster), centroids.row(*other)))).collect();
    if n_neighbours < distances.len() {
        distances.select_nth_unstable_by(n_neighbours, f64::total_cmp);
        distances.truncate(n_neighbours);
    }
    distances.sort_by(f64::total_cmp);
    match distances.len() {
        0 => 1.0,
        n => distances.iter().sum::<f64>() / n as f64,
    }
}

/// `clamp(wanted + ν, 0, cap)` with ν so that they sum to `n_kept`.
fn project(wanted: &[f64], caps: &[u64], n_kept: u64) -> Vec<f64> {
    let at = |shift: f64| {
        let quotas =
            wanted.iter().zip(caps).map(move |(wanted, cap)| (wanted + shift).clamp(0.0, *cap as f64));
        quotas.collect::<Vec<f64>>()
    };
    // all at 0 on the left, all at their caps on the right
    let span = wanted.iter().zip(caps).map(|(wanted, cap)| wanted + *cap as f64).fold(0.0, f64::max);
    let (mut low, mut high) = (-span, span);
    // each step halves the interval: more cannot change an f64
    for _ in 0..128 {
        let middle = 0.5 * (low + high);
        match at(middle).iter().sum::<f64>() < n_kept as f64 {
            true => low = middle,
            false => high = middle,
        }
    }
    at(high)
}

/// Whole numbers that sum to `n_kept`, by the largest remainder.
fn whole(quotas: &[f64], caps: &[u64], n_kept: u64) -> Vec<u64> {
    let mut kept: Vec<u64> = quotas.iter().map(|quota| quota.floor() as u64).collect();
    let remainder = |cluster: usize| quotas[cluster] - quotas[cluster].floor();
    let mut order: Vec<usize> = (0..quotas.len()).collect();
    order.sort_by(|left, right| remainder(*right).total_cmp(&remainder(*left)));
    let mut n_left = n_kept as i64 - kept.iter().sum::<u64>() as i64;
    // rounding of the sums may leave the floors one or two above the total, or more to give than there are remainders
    for &cluster in order.iter().cycle().take(2 * order.len()) {
        if n_left > 0 && kept[cluster] < caps[cluster] {
            kept[cluster] += 1;
            n_left -= 1;
        }
    }
    for &cluster in order.iter().rev() {
        if n_left < 0 && kept[cluster] > 0 {
            kept[cluster] -= 1;
            n_left += 1;
        }
    }
    assert_eq!(kept.iter().sum::<u64>(), n_kept);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tile::random_unit_rows;
    use proptest::prelude::*;

    const PARAMS: DensityParams = DensityParams { temperature: 0.1, n_neighbours: 20 };

    #[test]
    fn the_example_by_hand() {
        let centroids = random_unit_rows(2, 3, 1);
        let of = |sizes: &[u64], n_kept| density_quotas(&centroids, &[0.3, 0.3], sizes, n_kept, &PARAMS);
        assert_eq!(of(&[50, 90], 60), [30, 30]);
        assert_eq!(of(&[20, 90], 60), [20, 40]);
        assert_eq!(of(&[20, 0], 7), [7, 0]);
    }

    #[test]
    fn spread_out_clusters_keep_more() {
        // three centroids at right angles: d_inter is 1 for all
        let centroids = Matrix::new(vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], 3);
        let distances = [0.1, 0.2, 0.3];
        let kept = density_quotas(&centroids, &distances, &[1000; 3], 1000, &PARAMS);
        // softmax of 1, 2, 3
        assert_eq!(kept, [90, 245, 665]);
        // the last has only 200: what is over goes in equal parts to the others
        let kept = density_quotas(&centroids, &distances, &[1000, 1000, 200], 1000, &PARAMS);
        assert_eq!(kept, [323, 477, 200]);
    }

    proptest! {
        #[test]
        fn exact_and_bounded(
            clusters in prop::collection::vec((0u64..400, 0.0..1.5f64), 1..30),
            fraction in 0.0..=1.0f64,
            temperature in 0.01..2.0f64,
        ) {
            let (sizes, distances): (Vec<u64>, Vec<f64>) = clusters.into_iter().unzip();
            let n_kept = (sizes.iter().sum::<u64>() as f64 * fraction) as u64;
            let params = DensityParams { temperature, n_neighbours: 3 };
            let centroids = random_unit_rows(sizes.len(), 4, 2);
            let kept = density_quotas(&centroids, &distances, &sizes, n_kept, &params);
            prop_assert_eq!(kept.iter().sum::<u64>(), n_kept);
            prop_assert!(kept.iter().zip(&sizes).all(|(kept, size)| kept <= size));
        }
    }
}
