use super::*;
use crate::noise::{Purpose, keyed_hash};
use crate::tile::random_unit_rows;

fn ids(n: u64) -> Vec<SampleRef> {
    (0..n).map(|sample_idx| SampleRef { shard_idx: 0, sample_idx }).collect()
}

fn image_only<'a>(ids: &'a [SampleRef], images: &'a Matrix) -> Samples<'a> {
    Samples { ids, images, captions: None, caption_hashes: None }
}

fn against(queries: &Samples, cluster: Samples, pool: Samples, params: &HardnessParams) -> Vec<Hardness> {
    let indices = [BankIndex::of(&cluster), BankIndex::of(&pool)];
    let banks = Banks {
        cluster: Bank { samples: cluster, index: &indices[0] },
        pool: Bank { samples: pool, index: &indices[1] },
    };
    hardness(queries, &banks, params)
}

/// One bank is the cluster's and the pool's.
fn in_both(queries: &Samples, bank: Samples, params: &HardnessParams) -> Vec<Hardness> {
    against(queries, bank, bank, params)
}

fn cosine(left: &[f32], right: &[f32]) -> f64 {
    left.iter().zip(right).map(|(l, r)| f64::from(*l) * f64::from(*r)).sum()
}

fn log_mean_exp(similarities: &[f64]) -> f64 {
    let sum: f64 = similarities.iter().map(|s| (s / 0.1).exp()).sum();
    0.1 * (sum / similarities.len() as f64).ln()
}

#[test]
fn one_query_by_hand() {
    // similarities of the query with the bank: itself 1, a near-duplicate 0.96, 0.6, 0.8, its caption
    // again 0
    let images = Matrix::new(vec![1.0, 0.0, 0.96, 0.28, 0.6, 0.8, 0.8, 0.6, 0.0, 1.0], 2);
    let captions = Matrix::new(vec![0.8, 0.6, 0.0, 1.0, 0.6, 0.8, 1.0, 0.0, 0.0, 1.0], 2);
    let (ids, hashes) = (ids(5), [7, 1, 2, 3, 7]);
    let bank =
        Samples { ids: &ids, images: &images, captions: Some(&captions), caption_hashes: Some(&hashes) };
    let query_images = images.gather(&[0]);
    let query_captions = captions.gather(&[0]);
    let query = Samples {
        ids: &ids[..1],
        images: &query_images,
        captions: Some(&query_captions),
        caption_hashes: Some(&hashes[..1]),
    };
    let params = HardnessParams::default();
    let hardness = in_both(&query, bank, &params);
    let exclusions = exclusions(&query, &Bank { samples: bank, index: &BankIndex::of(&bank) }, &params);
    assert_eq!(exclusions.of(0, 0..5).collect::<Vec<_>>(), [0, 1, 4]);
    let hardness = hardness[0];
    assert_eq!((hardness.n_negatives, hardness.n_false_negatives), (2, 2));
    let negatives = hardness.negatives.unwrap();
    // 0.1·ln((e^6 + e^8)/2), (1 + e^−2)²/(1 + e^−4)
    assert!((negatives.hardness - 0.743_378_08).abs() < 1e-7);
    assert!((negatives.effective_negatives - 1.265_802_2).abs() < 1e-6);
    assert_eq!((negatives.hardest_negative, negatives.hardest_negative_similarity), (3, 0.8));
    assert_eq!(negatives.hardness_gain, None);
    // own image with captions 0.6 and 1.0; own caption with images 0.48 + 0.48 and 0.64 + 0.36
    let expected = 0.5 * (log_mean_exp(&[0.6, 1.0]) + log_mean_exp(&[0.96, 1.0]));
    assert!((negatives.cross_modal_hardness.unwrap() - expected).abs() < 1e-6);
}

#[test]
fn without_negatives_nothing_is_hard() {
    let images = Matrix::new([0.6, 0.8].repeat(3), 2);
    let ids = ids(3);
    let samples = image_only(&ids, &images);
    let hardness = in_both(&samples, samples, &HardnessParams::default());
    assert!(
        hardness
            .iter()
            .all(|hardness| *hardness == Hardness { n_negatives: 0, n_false_negatives: 2, negatives: None })
    );
}

#[test]
fn every_column_is_that_of_its_formula() {
    let (n_queries, n_cluster, n_pool) = (290, 300, 140);
    let all_ids = ids(1000);
    let images = random_unit_rows(n_queries, 5, 1);
    let captions = random_unit_rows(n_queries, 5, 2);
    let (cluster_images, cluster_captions) =
        (random_unit_rows(n_cluster, 5, 3), random_unit_rows(n_cluster, 5, 4));
    let pool_images = random_unit_rows(n_pool, 5, 5);
    let hashes: Vec<u128> = (0..n_queries as u128).map(|i| i % 50).collect();
    let cluster_hashes: Vec<u128> = (0..n_cluster as u128).map(|i| i % 75).collect();
    let queries = Samples {
        ids: &all_ids[..n_queries],
        images: &images,
        captions: Some(&captions),
        caption_hashes: Some(&hashes),
    };
    let cluster = Samples {
        ids: &all_ids[100..400],
        images: &cluster_images,
        captions: Some(&cluster_captions),
        caption_hashes: Some(&cluster_hashes),
    };
    let pool = image_only(&all_ids[200..340], &pool_images);
    let params = HardnessParams { near_duplicate_similarity: 0.8, ..HardnessParams::default() };
    let columns = against(&queries, cluster, pool, &params);
    for (i, hardness) in columns.iter().enumerate() {
        let is_duplicate = |bank: &Matrix, j| cosine(images.row(i), bank.row(j)) > 0.8;
        let is_negative =
            |j: &usize| 100 + j != i && !is_duplicate(&cluster_images, *j) && hashes[i] != cluster_hashes[*j];
        let negatives: Vec<usize> = (0..n_cluster).filter(is_negative).collect();
        let pool_negatives: Vec<usize> =
            (0..n_pool).filter(|j| 200 + j != i && !is_duplicate(&pool_images, *j)).collect();
        let in_bank = usize::from((100..400).contains(&i));
        assert_eq!(hardness.n_negatives, negatives.len());
        assert_eq!(hardness.n_false_negatives, n_cluster - negatives.len() - in_bank);

        let similarities: Vec<f64> =
            negatives.iter().map(|&j| cosine(images.row(i), cluster_images.row(j))).collect();
        let pool_similarities: Vec<f64> =
            pool_negatives.iter().map(|&j| cosine(images.row(i), pool_images.row(j))).collect();
        let found = hardness.negatives.unwrap();
        assert!((found.hardness - log_mean_exp(&similarities)).abs() < 1e-6);
        let n = similarities.len().min(pool_similarities.len());
        let gain = log_mean_exp(&similarities[..n]) - log_mean_exp(&pool_similarities[..n]);
        assert!((found.hardness_gain.unwrap() - gain).abs() < 1e-6);
        let to_captions: Vec<f64> =
            negatives.iter().map(|&j| cosine(images.row(i), cluster_captions.row(j))).collect();
        let to_images: Vec<f64> =
            negatives.iter().map(|&j| cosine(cluster_images.row(j), captions.row(i))).collect();
        let cross_modal = 0.5 * (log_mean_exp(&to_captions) + log_mean_exp(&to_images));
        assert!((found.cross_modal_hardness.unwrap() - cross_modal).abs() < 1e-6);
        let p: Vec<f64> = similarities.iter().map(|s| (s / 0.1).exp()).collect();
        let effective = p.iter().sum::<f64>().powi(2) / p.iter().map(|p| p * p).sum::<f64>();
        assert!((found.effective_negatives - effective).abs() < 1e-4 * effective);
        let largest = similarities.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        assert!((f64::from(found.hardest_negative_similarity) - largest).abs() < 1e-6);
        assert!((cosine(images.row(i), cluster_images.row(found.hardest_negative)) - largest).abs() < 1e-6);
    }
}

#[test]
fn a_tiny_temperature_leaves_the_hardest() {
    let images = random_unit_rows(60, 8, 1);
    let ids = ids(60);
    let samples = image_only(&ids, &images);
    let params = HardnessParams { temperature: 1e-4, near_duplicate_similarity: 1.0 };
    for hardness in in_both(&samples, samples, &params) {
        let negatives = hardness.negatives.unwrap();
        let hardest = f64::from(negatives.hardest_negative_similarity);
        assert!((negatives.hardness - hardest).abs() < 1e-4 * 60f64.ln() + 1e-6);
        assert!((1.0..60.0).contains(&negatives.effective_negatives));
    }
}

/// The gains of all samples of these clusters against a pool bank of the size of the first.
fn gains(images: &Matrix, clusters: &[Vec<usize>], pool_seed: u64) -> Vec<f64> {
    let all_ids = ids(images.n_rows() as u64);
    let gathered =
        |rows: &[usize]| (rows.iter().map(|row| all_ids[*row]).collect::<Vec<_>>(), images.gather(rows));
    let pool_rows = &keyed_order(images.n_rows(), pool_seed)[..clusters[0].len()];
    let (pool_ids, pool_images) = gathered(pool_rows);
    let mut gains = Vec::new();
    for rows in clusters {
        let (ids, images) = gathered(rows);
        let samples = image_only(&ids, &images);
        let pool = image_only(&pool_ids, &pool_images);
        let columns = against(&samples, samples, pool, &HardnessParams::default());
        gains.extend(columns.iter().map(|hardness| hardness.negatives.unwrap().hardness_gain.unwrap()));
    }
    gains
}

fn mean_and_standard_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

fn keyed_order(n: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_key(|row| keyed_hash(Purpose::Bank, seed, 0, "s", *row as u64));
    order
}

#[test]
fn clusters_are_harder_than_the_pool_and_a_random_partition_is_not() {
    let (n_concepts, n) = (10, 3000);
    let (centres, noise) = (random_unit_rows(n_concepts, 24, 1), random_unit_rows(n, 24, 2));
    let mut images = Matrix::zeros(n, 24);
    for row in 0..n {
        let sum = |column: usize| centres.row(row % n_concepts)[column] + 0.8 * noise.row(row)[column];
        let length = (0..24).map(|column| sum(column).powi(2)).sum::<f32>().sqrt();
        for (column, value) in images.row_mut(row).iter_mut().enumerate() {
            *value = sum(column) / length;
        }
    }
    let order = keyed_order(n, 1);
    let concepts: Vec<Vec<usize>> = (0..n_concepts)
        .map(|concept| order.iter().copied().filter(|row| row % n_concepts == concept).collect())
        .collect();
    let (mean, standard_error) = mean_and_standard_error(&gains(&images, &concepts, 2));
    assert!(mean > 10.0 * standard_error, "{mean} ± {standard_error}");

    // all samples share one pool bank, so the independent draws are whole partitions, not samples
    let means: Vec<f64> = (0..16)
        .map(|repeat| {
            let order = keyed_order(n, 100 + repeat);
            let random: Vec<Vec<usize>> = order.chunks(n / n_concepts).map(<[usize]>::to_vec).collect();
            mean_and_standard_error(&gains(&images, &random, 200 + repeat)).0
        })
        .collect();
    let (mean, standard_error) = mean_and_standard_error(&means);
    assert!(mean.abs() < 3.0 * standard_error && standard_error < 0.002, "{mean} ± {standard_error}");
}
