//! k-means beside that of scikit-learn, faiss and plain NumPy: METHODS §5.

use serde::Deserialize;
use superbatch::divide::{FitParams, Seeding, assign, fit, refine, starting_points};
use superbatch::engine::Engine;
use superbatch::matrix::{Matrix, unit_rows};

use super::pool::{assert_close, golden, matrix};

#[derive(Deserialize)]
struct File {
    points: Vec<Vec<f32>>,
    lloyd: Vec<Lloyd>,
    quality: Vec<Quality>,
}

#[derive(Deserialize)]
struct Lloyd {
    start: Vec<usize>,
    n_iterations: usize,
    objective: f64,
    clusters: Vec<u32>,
    sizes: Vec<usize>,
    similarities: Vec<f64>,
    margins: Vec<f64>,
    centroids: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct Quality {
    k: usize,
    sklearn_potentials: Vec<f64>,
    sklearn_objectives: Vec<f64>,
    faiss_objectives: Vec<f64>,
}

fn points(file: &File) -> Matrix {
    unit_rows(matrix(&file.points))
}

/// Whole passes to the end, whatever the last ones bring.
fn passes(n_clusters: usize, n_iterations_max: usize) -> FitParams {
    FitParams { n_clusters, n_iterations_max, tolerance: f64::NEG_INFINITY, ..FitParams::default() }
}

fn clusters(points: &Matrix, centroids: &Matrix) -> Vec<u32> {
    assign(points, centroids).iter().map(|assignment| assignment.cluster).collect()
}

#[test]
fn lloyd_from_given_centroids() {
    let file: File = golden("clusters");
    let points = points(&file);
    for case in &file.lloyd {
        let start = || points.gather(&case.start);
        let after = |n| refine(&Engine::Kernels, &points, start(), &passes(case.start.len(), n)).unwrap();
        // the last pass but one moved nothing to another cluster, the one before it did
        let n = case.n_iterations;
        assert_eq!(clusters(&points, &after(n - 2).centroids), case.clusters);
        assert_ne!(clusters(&points, &after(n - 3).centroids), case.clusters);

        let fit = after(n);
        assert_close(fit.objective, case.objective, 1e-6 * case.objective);
        for (cluster, centroid) in case.centroids.iter().enumerate() {
            for (found, expected) in fit.centroids.row(cluster).iter().zip(centroid) {
                assert_close(f64::from(*found), *expected, 1e-6);
            }
        }
        let mut sizes = vec![0; case.sizes.len()];
        for (point, assignment) in assign(&points, &fit.centroids).iter().enumerate() {
            assert_eq!(assignment.cluster, case.clusters[point]);
            assert_close(f64::from(assignment.centroid_similarity), case.similarities[point], 1e-6);
            assert_close(f64::from(assignment.centroid_margin.unwrap()), case.margins[point], 2e-6);
            sizes[assignment.cluster as usize] += 1;
        }
        assert_eq!(sizes, case.sizes);
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Of the mean of these values.
fn standard_error(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    (squares / (values.len() - 1) as f64 / values.len() as f64).sqrt()
}

/// `Σ (1 − cos)` of the points to the nearest of these.
fn potential(points: &Matrix, centroids: &Matrix) -> f64 {
    assign(points, centroids).iter().map(|assignment| 1.0 - f64::from(assignment.centroid_similarity)).sum()
}

#[test]
fn seeds_and_fits_are_as_good_as_those_of_others() {
    let file: File = golden("clusters");
    let points = points(&file);
    for case in &file.quality {
        let k = case.k;
        for seeding in [Seeding::KMeansPlusPlus, Seeding::KMeansParallel] {
            let (mut potentials, mut objectives) = (Vec::new(), Vec::new());
            for seed in 0..10 {
                let start = points.gather(&starting_points(&points, k, seeding, seed, 0));
                potentials.push(potential(&points, &start));
                objectives.push(refine(&Engine::Kernels, &points, start, &passes(k, 100)).unwrap().objective);
            }
            for (found, others) in
                [(&potentials, &case.sklearn_potentials), (&objectives, &case.sklearn_objectives)]
            {
                let spread = standard_error(found).hypot(standard_error(others));
                let (found, others) = (mean(found), mean(others));
                assert!(found <= others + 3.0 * spread, "k = {k}, {seeding:?}: {found}, others {others}");
            }
        }
        // single fits of either spread by a percent or two
        let fits = (0..10).map(|seed| {
            let params = FitParams { n_restarts: 5, seed, ..passes(k, 100) };
            fit(&Engine::Kernels, &points, &params).unwrap().objective
        });
        let (found, faiss) = (mean(&fits.collect::<Vec<_>>()), mean(&case.faiss_objectives));
        assert!(found <= 1.01 * faiss, "k = {k}: {found}, faiss {faiss}");
    }
}
