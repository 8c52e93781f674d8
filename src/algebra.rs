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

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

use ort::memory::AllocationDevice;
use ort::session::Session;
use ort::value::{DynTensor, Tensor, TensorRef};

use crate::error::Error;
use crate::matrix::Matrix;
use crate::runtime::{
    DeviceError, Element, GraphBytes, OpenSession, Operand, Place, Products, Provider, SessionOptions,
    in_pieces, library, numerics, open_bytes,
};

/// Columns of a tile: with [`ROWS_TILE`] rows, 256 MiB of logits on the device.
const COLUMNS_TILE: usize = 16_384;
/// Fewer after the device's memory did not do.
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
    /// To the second nearest; minus infinity where there is only one.
    pub second_similarity: f32,
}

/// The graphs of the algebra, on one place. Each is opened when it is first run.
pub struct Algebra {
    place: Place,
    products: Products,
    softplus: Graph,
    log_sum_exp: Graph,
    nearest: Graph,
}

struct Graph {
    name: &'static str,
    bytes: Vec<u8>,
    opened: Mutex<Option<Opened>>,
}

struct Opened {
    session: OpenSession,
    rows_max: usize,
}

/// Rows that lie on a place, in tiles.
pub struct Resident {
    tiles: Vec<DynTensor>,
    n_rows: usize,
    n_cols: usize,
}

impl Algebra {
    /// The algebra on a place, of which nothing is opened yet.
    ///
    /// # Errors
    ///
    /// Those of [`library::load`].
    pub fn open(place: Place, products: Products) -> Result<Algebra, Error> {
        library::load()?;
        let graph = |name, bytes| Graph { name, bytes, opened: Mutex::new(None) };
        Ok(Algebra {
            place,
            products,
            softplus: graph("sums of softplus", pair_sum_graph(PairSum::Softplus)),
            log_sum_exp: graph("sums of exponentials", pair_sum_graph(PairSum::LogSumExp)),
            nearest: graph("nearest centroids", nearest_graph()),
        })
    }

    pub fn place(&self) -> Place {
        self.place
    }

    /// What nearest centroids depend on beside points and centroids, found so many rows of centroids at once; without a
    /// number, as many as had room so far.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] where the graph cannot be opened there.
    pub fn numerics_of_nearest(
        &self,
        rows_at_once: Option<usize>,
    ) -> Result<BTreeMap<String, String>, Error> {
        self.numerics_of(&self.nearest, rows_at_once)
    }

    /// What sums over pairs depend on beside the pairs, with as many rows at once as had room so far.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] where the graph cannot be opened there.
    pub fn numerics_of_pair_sums(&self, sum: PairSum) -> Result<BTreeMap<String, String>, Error> {
        self.numerics_of(self.graph_of(sum), None)
    }

    /// Of one graph, which is opened for that if it has not run: what a task says of itself must not tell which tasks came
    /// before it.
    fn numerics_of(
        &self,
        graph: &Graph,
        rows_at_once: Option<usize>,
    ) -> Result<BTreeMap<String, String>, Error> {
        let mut slot = graph.opened.lock().expect("no holder panics");
        let Opened { session, rows_max } = self.opened(graph, &mut slot)?;
        let mut numerics = numerics(self.place, &session.nodes);
        numerics.insert("rows_at_once".to_owned(), rows_at_once.unwrap_or(*rows_max).to_string());
        let products = serde_json::to_value(self.products).expect("a name is representable as JSON");
        numerics.insert("products".to_owned(), products.as_str().expect("it is a name").to_owned());
        Ok(numerics)
    }

    fn graph_of(&self, sum: PairSum) -> &Graph {
        match sum {
            PairSum::Softplus => &self.softplus,
            PairSum::LogSumExp => &self.log_sum_exp,
        }
    }

    /// Brings rows to the device.
    ///
    /// # Errors
    ///
    /// [`Error::Device`], say where its memory has no room for them.
    pub fn keep(&self, rows: &Matrix) -> Result<Resident, Error> {
        self.keep_some(rows, 0..rows.n_rows())
    }

    fn keep_some(&self, rows: &Matrix, some: Range<usize>) -> Result<Resident, Error> {
        let tiles =
            ranges(some.clone(), COLUMNS_TILE).map(|range| self.tile(rows, range)).collect::<Result<_, _>>();
        Ok(Resident {
            tiles: tiles.map_err(|source| self.fault(DeviceError::Run(source)))?,
            n_rows: some.len(),
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

    /// Runs a graph on as many rows at once as the device's memory has room for, and says how many that were at the fewest,
    /// had there been so many. `work` must leave no trace of rows on which it fails: they come again, fewer at once.
    fn run(
        &self,
        graph: &Graph,
        rows: &Matrix,
        mut work: impl FnMut(&mut Session, DynTensor, Range<usize>) -> ort::Result<()>,
    ) -> Result<usize, Error> {
        let mut slot = graph.opened.lock().expect("no holder panics");
        let Opened { session, rows_max } = self.opened(graph, &mut slot)?;
        let run = |range: Range<usize>| work(&mut session.session, self.tile(rows, range.clone())?, range);
        in_pieces(rows.n_rows(), rows_max, |source: &ort::Error| Some(source), run)
            .map_err(|source| self.fault(DeviceError::Run(source)))?;
        Ok(*rows_max)
    }

    fn opened<'a>(&self, graph: &Graph, slot: &'a mut Option<Opened>) -> Result<&'a mut Opened, Error> {
        if slot.is_none() {
            *slot = Some(self.open_graph(graph)?);
        }
        Ok(slot.as_mut().expect("it was just opened"))
    }

    fn open_graph(&self, graph: &Graph) -> Result<Opened, Error> {
        let options = SessionOptions { products: self.products, ..SessionOptions::on(self.place) };
        let session =
            open_bytes(&graph.bytes, &options).map_err(|source| self.fault(DeviceError::Session(source)))?;
        session.tell(graph.name);
        Ok(Opened { session, rows_max: ROWS_TILE })
    }

    fn fault(&self, source: DeviceError) -> Error {
        Error::Device { device: self.place.to_string(), source: Box::new(source) }
    }

    /// Adds up what each column's pairs with the rows give.
    ///
    /// # Shapes
    ///
    /// `rows` is `[n_rows, d]`, `columns` `[n_columns, d]`; the result `[n_columns]`, in nats, added up in f32 over at
    /// most 4,096 rows and in f64 from there. Work: 2·n_rows·n_columns·d FLOPs; memory on the device: 256 MiB, less
    /// where that does not fit.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] where the graph cannot be opened there, or fails.
    pub fn pair_sums(
        &self,
        sum: PairSum,
        rows: &Matrix,
        columns: &Resident,
        logit_scale: f64,
        logit_bias: f64,
    ) -> Result<Vec<f64>, Error> {
        assert_eq!(rows.n_cols(), columns.n_cols, "embeddings of different sizes");
        let mut totals = vec![sum.nothing(); columns.n_rows];
        // the scale goes into the rows, which are few
        let scaled = Matrix::new(
            rows.values().iter().map(|value| value * logit_scale as f32).collect(),
            rows.n_cols(),
        );
        let bias = [logit_bias as f32];
        self.run(self.graph_of(sum), &scaled, |session, rows, _| {
            let mut added = Vec::with_capacity(columns.n_rows);
            for columns in &columns.tiles {
                let bias = TensorRef::from_array_view(([1usize], &bias[..]))?;
                let inputs = ort::inputs!["rows" => rows.view(), "columns" => columns.view(), "bias" => bias];
                let outputs = session.run(inputs)?;
                added.extend_from_slice(outputs["sums"].try_extract_tensor::<f32>()?.1);
            }
            for (total, added) in totals.iter_mut().zip(added) {
                *total = sum.merge(*total, f64::from(added));
            }
            Ok(())
        })?;
        Ok(totals)
    }

    /// The nearest centroid of each point by cosine, the lower number on a tie.
    ///
    /// # Shapes
    ///
    /// `points` is `[n, d]`, `centroids` `[k, d]`, unit rows, at least one. Work: 2·n·k·d FLOPs; memory on the device:
    /// 256 MiB, less where that does not fit.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] where the graph cannot be opened there, or fails.
    pub fn nearest(&self, points: &Resident, centroids: &Matrix) -> Result<Vec<Nearest>, Error> {
        Ok(self.nearest_and_rows(points, centroids)?.0)
    }

    /// [`Algebra::nearest`], and how many rows of centroids came at once.
    fn nearest_and_rows(
        &self,
        points: &Resident,
        centroids: &Matrix,
    ) -> Result<(Vec<Nearest>, usize), Error> {
        assert_eq!(points.n_cols, centroids.n_cols(), "embeddings of different sizes");
        assert!(centroids.n_rows() > 0, "no centroid to be near to");
        let mut nearest = vec![Nearest::NONE; points.n_rows];
        let rows_at_once = self.run(&self.nearest, centroids, |session, centroids, range| {
            let n_best = range.len().min(2);
            let mut found = Vec::with_capacity(points.n_rows);
            for points in &points.tiles {
                let n_best_tensor = [n_best as i64];
                let n_best_tensor = TensorRef::from_array_view(([1usize], &n_best_tensor[..]))?;
                let inputs = ort::inputs![
                    "points" => points.view(), "centroids" => centroids.view(), "n_best" => n_best_tensor
                ];
                let outputs = session.run(inputs)?;
                let (_, similarities) = outputs["similarities"].try_extract_tensor::<f32>()?;
                let (_, numbers) = outputs["numbers"].try_extract_tensor::<i64>()?;
                let best = similarities.chunks(n_best).zip(numbers.chunks(n_best));
                found.extend(best.map(|(similarities, numbers)| Nearest {
                    centroid: (range.start + numbers[0] as usize) as u32,
                    similarity: similarities[0],
                    second_similarity: similarities.get(1).copied().unwrap_or(f32::NEG_INFINITY),
                }));
            }
            nearest.iter_mut().zip(found).for_each(|(nearest, found)| nearest.see(found));
            Ok(())
        })?;
        Ok((nearest, rows_at_once))
    }

    /// [`Algebra::nearest`] of points that are asked for once: a tile of them is on the device at a time. Also says how many
    /// rows of centroids came at once at the fewest, of these points.
    pub fn nearest_once(&self, points: &Matrix, centroids: &Matrix) -> Result<(Vec<Nearest>, usize), Error> {
        let mut nearest = Vec::with_capacity(points.n_rows());
        let mut rows_at_once = ROWS_TILE;
        for range in ranges(0..points.n_rows(), COLUMNS_TILE) {
            let (of_tile, rows) = self.nearest_and_rows(&self.keep_some(points, range)?, centroids)?;
            nearest.extend(of_tile);
            rows_at_once = rows_at_once.min(rows);
        }
        Ok((nearest, rows_at_once))
    }
}

impl Nearest {
    /// Before any centroid was seen.
    const NONE: Nearest =
        Nearest { centroid: 0, similarity: f32::NEG_INFINITY, second_similarity: f32::NEG_INFINITY };

    /// Takes in the nearest of centroids of higher numbers.
    fn see(&mut self, later: Nearest) {
        if later.similarity > self.similarity {
            let second_similarity = self.similarity.max(later.second_similarity);
            *self = Nearest { second_similarity, ..later };
        } else {
            self.second_similarity = self.second_similarity.max(later.similarity);
        }
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

fn ranges(all: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = all.end;
    all.step_by(size).map(move |start| start..end.min(start + size))
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
mod tests;
