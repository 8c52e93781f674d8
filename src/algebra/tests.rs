use super::*;
use crate::divide::assign;
use crate::matrix::dot;
use crate::tile::random_unit_rows;

fn on_cpu() -> Algebra {
    Algebra::open(Place::CPU, Products::Exact).unwrap()
}

/// The definition, in f64.
fn dense(sum: PairSum, rows: &Matrix, column: &[f32], scale: f64, bias: f64) -> f64 {
    let logits = (0..rows.n_rows()).map(|row| scale * f64::from(dot(rows.row(row), column)) + bias);
    match sum {
        PairSum::Softplus => logits.map(|logit| logit.max(0.0) + (-logit.abs()).exp().ln_1p()).sum(),
        PairSum::LogSumExp => logits.map(f64::exp).sum::<f64>().ln(),
    }
}

#[test]
fn pair_sums_are_their_definition_over_every_tile() {
    let algebra = on_cpu();
    // more rows and more columns than a tile has
    for (n_rows, n_columns, d) in [(3, 7, 5), (ROWS_TILE + 100, 300, 8), (50, COLUMNS_TILE + 3, 6)] {
        let (rows, columns) = (random_unit_rows(n_rows, d, 1), random_unit_rows(n_columns, d, 2));
        let resident = algebra.keep(&columns).unwrap();
        for sum in [PairSum::Softplus, PairSum::LogSumExp] {
            for (scale, bias) in [(10.0, -10.0), (100.0, 0.0)] {
                let sums = algebra.pair_sums(sum, &rows, &resident, scale, bias).unwrap();
                assert_eq!(sums.len(), n_columns);
                for column in (0..n_columns).step_by(n_columns.div_ceil(40)).chain([n_columns - 1]) {
                    let expected = dense(sum, &rows, columns.row(column), scale, bias);
                    let error = (sums[column] - expected).abs();
                    assert!(error < 2e-5 * (1.0 + expected.abs()), "{} {expected}", sums[column]);
                }
            }
        }
    }
}

#[test]
fn the_nearest_centroids_are_those_of_the_processors_kernel() {
    let algebra = on_cpu();
    let points = random_unit_rows(COLUMNS_TILE + 500, 12, 1);
    // the last: more than a tile has, by one
    for n_centroids in [1, 2, 37, ROWS_TILE + 1] {
        let centroids = random_unit_rows(n_centroids, 12, 2);
        let nearest = algebra.nearest(&algebra.keep(&points).unwrap(), &centroids).unwrap();
        assert_eq!(algebra.nearest_once(&points, &centroids).unwrap(), (nearest.clone(), ROWS_TILE));
        let expected = assign(&points, &centroids);
        assert_eq!(nearest.len(), expected.len());
        for (nearest, expected) in nearest.iter().zip(&expected) {
            let margin = nearest.similarity - nearest.second_similarity;
            assert!((nearest.similarity - expected.centroid_similarity).abs() < 1e-6);
            match expected.centroid_margin {
                Some(expected) => assert!((margin - expected).abs() < 1e-6),
                None => assert_eq!(nearest.second_similarity, f32::NEG_INFINITY),
            }
            // where two are as near, rounding decides
            assert!(nearest.centroid == expected.cluster || margin < 1e-6);
        }
    }
    let twice = Matrix::new(vec![0.6, 0.8, 0.6, 0.8], 2);
    let point = algebra.keep(&Matrix::new(vec![1.0, 0.0], 2)).unwrap();
    assert_eq!(algebra.nearest(&point, &twice).unwrap()[0].centroid, 0);
}

#[test]
fn what_is_said_of_points_does_not_tell_what_ran_before() {
    let (algebra, fresh) = (on_cpu(), on_cpu());
    let (points, centroids) = (random_unit_rows(30, 6, 1), random_unit_rows(200, 6, 2));
    let said = |algebra: &Algebra, points: &Matrix| {
        let (_, rows_at_once) = algebra.nearest_once(points, &centroids).unwrap();
        algebra.numerics_of_nearest(Some(rows_at_once)).unwrap()
    };
    let no_points = Matrix::new(Vec::new(), 6);
    let expected = said(&algebra, &no_points);
    assert!(expected["nodes"].starts_with("CPUExecutionProvider "), "{expected:?}");
    assert_eq!(said(&algebra, &points), expected);
    // another graph beside it
    let resident = algebra.keep(&points).unwrap();
    algebra.pair_sums(PairSum::Softplus, &points, &resident, 10.0, 0.0).unwrap();
    assert_eq!(said(&algebra, &points), expected);
    assert_eq!(said(&fresh, &points), expected);
    // memory that did not do concerns those who came after
    algebra.nearest.opened.lock().unwrap().as_mut().unwrap().rows_max = 64;
    assert_eq!(said(&algebra, &points)["rows_at_once"], "64");
    assert_eq!(said(&algebra, &no_points), expected);
}
