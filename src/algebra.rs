//! The two products of embeddings that take nearly all operations of `select` and `divide`, on a device of the runtime:
//! sums of pair losses, and nearest centroids. The kernels for the processor are the reference; this is for GPUs,
//! and is tested here by running the same graphs on the processor.
//!
//! Embeddings that are used again stay on the device ([`Resident`]); what comes back is a number a column.
//!
//! # Precision
//!
//! Products in f32, or with the operands rounded to TF32's 11 bits where the settings ask for it. With TF32 a cosine is
//! wrong by up to 1e-3, mostly far less, and sums of n losses by about scale·1e-3·√n; the goal is 1e-2·(1 + |x|) a
//! score and 98 % of the kept.

use std::ops::Range;
use std::sync::Mutex;

use ort::memory::AllocationDevice;
use ort::value::{DynTensor, Tensor, TensorRef};

use crate::error::Error;
use crate::matrix::Matrix;
use crate::runtime::{
    DeviceError, Element, GraphBytes, OpenSession, Operand, Place, Products, Provider, SessionOptions,
    library, open_bytes,
};

/// Columns of a tile: with [`ROWS_TILE`] rows, 256 MiB of logits on the device.
const COLUMNS_TILE: usize = 16_384;
const ROWS_TILE: usize = 4_096;

/// What is summed over the rows of each column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairSum {
    /// `Σ_row softplus(scale·⟨row, column⟩ + bias)`, nats.
    Softplus,
    /// `ln Σ_row exp(scale·⟨row, column⟩ + bias)`.
    LogSumExp,
}

/// The nearest centroid of a point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nearest {
    pub centroid: u32,
    pub similarity: f32,
    /// To the second nearest; the same where there is only one.
    pub second_similarity: f32,
}

/// The graphs of the algebra, on one place.
pub struct Algebra {
    place: Place,
    softplus: Mutex<OpenSession>,
    log_sum_exp: Mutex<OpenSession>,
    nearest: Mutex<OpenSession>,
}

/// Rows that lie on a place, in tiles.
pub struct Resident {
    tiles: Vec<DynTensor>,
    n_rows: usize,
    n_cols: usize,
}

impl Algebra {
    /// Opens the graphs.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] if they cannot run there; those of [`library::load`].
    pub fn open(place: Place, products: Products) -> Result<Algebra, Error> {
        library::load()?;
        let open = |graph: Vec<u8>| {
            let options = SessionOptions { products, ..SessionOptions::on(place) };
            open_bytes(&graph, &options).map(Mutex::new).map_err(|source| fault(place, source))
        };
        Ok(Algebra {
            place,
            softplus: open(pair_sum_graph(PairSum::Softplus))?,
            log_sum_exp: open(pair_sum_graph(PairSum::LogSumExp))?,
            nearest: open(nearest_graph())?,
        })
    }

    /// Brings rows to the device.
    pub fn keep(&self, rows: &Matrix) -> Result<Resident, Error> {
        let tiles =
            ranges(rows.n_rows(), COLUMNS_TILE).map(|range| self.tile(rows, range)).collect::<Result<_, _>>();
        Ok(Resident {
            tiles: tiles.map_err(|source| fault(self.place, source))?,
            n_rows: rows.n_rows(),
            n_cols: rows.n_cols(),
        })
    }

    fn tile(&self, rows: &Matrix, range: Range<usize>) -> ort::Result<DynTensor> {
        let n_cols = rows.n_cols();
        let values = rows.values()[range.start * n_cols..range.end * n_cols].to_vec();
        let tensor = Tensor::from_array(([range.len(), n_cols], values))?.upcast();
        match self.place.provider {
            Provider::Cpu => Ok(tensor),
            Provider::Cuda | Provider::TensorRt => {
                Ok(tensor.to(AllocationDevice::CUDA, self.place.number as i32)?)
            }
        }
    }

    /// Adds up what each column's pairs with the rows give.
    ///
    /// # Shapes
    ///
    /// `rows` is `[n_rows, d]`, `columns` `[n_columns, d]`; the result `[n_columns]`, in nats, added up in f32 over at
    /// most 4,096 rows and in f64 from there. Work: 2·n_rows·n_columns·d FLOPs.
    pub fn pair_sums(
        &self,
        sum: PairSum,
        rows: &Matrix,
        columns: &Resident,
        logit_scale: f64,
        logit_bias: f64,
    ) -> Result<Vec<f64>, Error> {
        assert_eq!(rows.n_cols(), columns.n_cols, "embeddings of different sizes");
        let session = match sum {
            PairSum::Softplus => &self.softplus,
            PairSum::LogSumExp => &self.log_sum_exp,
        };
        let mut session = session.lock().expect("no holder panics");
        let mut totals = vec![sum.nothing(); columns.n_rows];
        // the scale goes into the rows, which are few
        let scaled = Matrix::new(
            rows.values().iter().map(|value| value * logit_scale as f32).collect(),
            rows.n_cols(),
        );
        let mut run = || -> ort::Result<()> {
            let bias = [logit_bias as f32];
            for range in ranges(scaled.n_rows(), ROWS_TILE) {
                let rows = self.tile(&scaled, range)?;
                for (tile_idx, columns) in columns.tiles.iter().enumerate() {
                    let bias = TensorRef::from_array_view(([1usize], &bias[..]))?;
                    let inputs =
                        ort::inputs!["rows" => rows.view(), "columns" => columns.view(), "bias" => bias];
                    let outputs = session.session.run(inputs)?;
                    let (_, sums) = outputs["sums"].try_extract_tensor::<f32>()?;
                    let totals = &mut totals[tile_idx * COLUMNS_TILE..];
                    for (total, added) in totals.iter_mut().zip(sums) {
                        *total = sum.merge(*total, f64::from(*added));
                    }
                }
            }
            Ok(())
        };
        run().map_err(|source| fault(self.place, source))?;
        Ok(totals)
    }

    /// The nearest centroid of each point by cosine, the lower number on a tie.
    ///
    /// # Shapes
    ///
    /// `points` is `[n, d]`, `centroids` `[k, d]`, unit rows. Work: 2·n·k·d FLOPs; memory on the device: 64 KiB a
    /// centroid.
    pub fn nearest(&self, points: &Resident, centroids: &Matrix) -> Result<Vec<Nearest>, Error> {
        assert_eq!(points.n_cols, centroids.n_cols(), "embeddings of different sizes");
        let mut session = self.nearest.lock().expect("no holder panics");
        let n_best = centroids.n_rows().min(2);
        let mut nearest = Vec::with_capacity(points.n_rows);
        let mut run = || -> ort::Result<()> {
            let centroids = self.tile(centroids, 0..centroids.n_rows())?;
            let (n_best, n_best_tensor) = (n_best, [n_best as i64]);
            for tile in &points.tiles {
                let n_best_tensor = TensorRef::from_array_view(([1usize], &n_best_tensor[..]))?;
                let inputs = ort::inputs![
                    "points" => tile.view(), "centroids" => centroids.view(), "n_best" => n_best_tensor
                ];
                let outputs = session.session.run(inputs)?;
                let (_, similarities) = outputs["similarities"].try_extract_tensor::<f32>()?;
                let (_, numbers) = outputs["numbers"].try_extract_tensor::<i64>()?;
                for (similarities, numbers) in similarities.chunks(n_best).zip(numbers.chunks(n_best)) {
                    nearest.push(Nearest {
                        centroid: numbers[0] as u32,
                        similarity: similarities[0],
                        second_similarity: similarities[n_best - 1],
                    });
                }
            }
            Ok(())
        };
        run().map_err(|source| fault(self.place, source))?;
        Ok(nearest)
    }
}

impl PairSum {
    fn nothing(self) -> f64 {
        match self {
            PairSum::Softplus => 0.0,
            PairSum::LogSumExp => f64::NEG_INFINITY,
        }
    }

    fn merge(self, some: f64, more: f64) -> f64 {
        match self {
            PairSum::Softplus => some + more,
            PairSum::LogSumExp => {
                let (larger, smaller) = (some.max(more), some.min(more));
                if larger == f64::NEG_INFINITY { larger } else { larger + (smaller - larger).exp().ln_1p() }
            }
        }
    }
}

fn ranges(n: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(size).map(move |start| start..n.min(start + size))
}

fn fault(place: Place, source: ort::Error) -> Error {
    Error::Device { device: place.to_string(), source: Box::new(DeviceError::Session(source)) }
}

/// `reduce over rows of f(rows · columnsᵀ + bias)`.
fn pair_sum_graph(sum: PairSum) -> Vec<u8> {
    let operand = |name, shape| Operand { name, element: Element::F32, shape };
    let mut graph = GraphBytes::default();
    graph
        .input(operand("rows", &["n_rows", "d"]))
        .input(operand("columns", &["n_columns", "d"]))
        .input(operand("bias", &["1"]))
        .node("Gemm", &["rows", "columns", "bias"], &["logits"], &[("transB", 1)]);
    match sum {
        PairSum::Softplus => graph
            .integers("axes", &[0])
            .node("Softplus", &["logits"], &["losses"], &[])
            .node("ReduceSum", &["losses", "axes"], &["sums"], &[("keepdims", 0)]),
        // its axes are an attribute in this opset
        PairSum::LogSumExp => graph.reduction("ReduceLogSumExp", "logits", "sums", &[0]),
    };
    graph.output(operand("sums", &["n_columns"])).finish()
}

/// The largest of `points · centroidsᵀ` in each row, and where they stand.
fn nearest_graph() -> Vec<u8> {
    let operand = |name, shape| Operand { name, element: Element::F32, shape };
    let integers = |name, shape| Operand { name, element: Element::I64, shape };
    GraphBytes::default()
        .input(operand("points", &["n", "d"]))
        .input(operand("centroids", &["k", "d"]))
        .input(integers("n_best", &["1"]))
        .node("Gemm", &["points", "centroids"], &["cosines"], &[("transB", 1)])
        .node("TopK", &["cosines", "n_best"], &["similarities", "numbers"], &[("axis", 1)])
        .output(operand("similarities", &["n", "n_best"]))
        .output(integers("numbers", &["n", "n_best"]))
        .finish()
}

#[cfg(test)]
mod tests {
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
        for n_centroids in [1, 2, 37] {
            let centroids = random_unit_rows(n_centroids, 12, 2);
            let nearest = algebra.nearest(&algebra.keep(&points).unwrap(), &centroids).unwrap();
            let expected = assign(&points, &centroids);
            assert_eq!(nearest.len(), expected.len());
            for (nearest, expected) in nearest.iter().zip(&expected) {
                let margin = nearest.similarity - nearest.second_similarity;
                assert!((nearest.similarity - expected.centroid_similarity).abs() < 1e-6);
                assert!((margin - expected.centroid_margin.unwrap_or(0.0)).abs() < 1e-6);
                // where two are as near, rounding decides
                assert!(nearest.centroid == expected.cluster || margin < 1e-6);
            }
        }
        let twice = Matrix::new(vec![0.6, 0.8, 0.6, 0.8], 2);
        let point = algebra.keep(&Matrix::new(vec![1.0, 0.0], 2)).unwrap();
        assert_eq!(algebra.nearest(&point, &twice).unwrap()[0].centroid, 0);
    }
}
