//! Spherical k-means from given centroids, timed: what `benches/peers/kmeans_faiss.py` sets beside faiss.
//!
//! ```text
//! kmeans POINTS.f32 START.f32 DIM N_ITERATIONS      → {"seconds": …, "objective": …, "n_iterations": …}
//! ```
//!
//! Files hold little-endian f32, row after row, as NumPy's `tofile` writes them. Threads: `RAYON_NUM_THREADS`.

use std::time::Instant;

use superbatch::divide::{FitParams, refine};
use superbatch::engine::Engine;
use superbatch::matrix::Matrix;

fn read(path: &str, dim: usize) -> Matrix {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let (values, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty(), "{path} does not hold whole values");
    Matrix::new(values.iter().map(|value| f32::from_le_bytes(*value)).collect(), dim)
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [points, start, dim, n_iterations] = &args[..] else {
        panic!("usage: kmeans POINTS.f32 START.f32 DIM N_ITERATIONS");
    };
    let dim = dim.parse().expect("a dimension");
    let (points, start) = (read(points, dim), read(start, dim));
    let params = FitParams {
        n_clusters: start.n_rows(),
        n_iterations_max: n_iterations.parse().expect("a number of iterations"),
        // no iteration is left out, whatever it brings
        tolerance: f64::NEG_INFINITY,
        ..FitParams::default()
    };
    let begin = Instant::now();
    let fit = refine(&Engine::Kernels, &points, start, &params).expect("the kernels do not fail");
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        r#"{{"seconds": {seconds}, "objective": {}, "n_iterations": {}}}"#,
        fit.objective, fit.n_iterations
    );
}
