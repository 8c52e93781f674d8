//! A graph in, a session on one place out. How sessions are set up, and why:
//!
//! - Operators run one after the other (one inter-op thread): the graphs of towers are chains.
//! - Threads inside an operator do not spin while they wait, since decoders and other sessions want the processors.
//!   Several sessions with one thread each do better than one with several (`superbatch doctor --bench` measures
//!   both), so one thread is the rule where memory allows it.
//! - On a GPU neither TF32 (unless it is asked for) nor convolution algorithms chosen by a stopwatch: precision is a
//!   setting, and the same inputs shall give the same bytes. TensorRT alone multiplies f32 as TF32 unasked; the runtime
//!   has no option for it.
//! - TensorRT builds an engine for minutes, so engines can be kept ([`engine_folder`]).
//! - No CUDA graphs: they want one shape and fixed addresses, and batches differ in rows and captions in length; what
//!   they save of a tower's batch was not measured.

use std::collections::BTreeSet;
use std::env;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use ort::ep::{self, ArenaExtendStrategy};
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use serde::{Deserialize, Serialize};

use super::assignment::NodeCounts;
use super::device::{Place, Provider};
use super::graph::{Element, GraphBytes, Operand};
use super::library;
use crate::error::Error;

/// How a graph is run; nothing of this changes what its results mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    pub place: Place,
    /// Threads inside one operator.
    pub n_threads: usize,
    pub products: Products,
    /// Where TensorRT keeps the engines that it builds of this graph; none are kept without.
    pub engine_folder: Option<PathBuf>,
}

impl SessionOptions {
    /// One thread, products in the graph's own types, no engines kept.
    pub fn on(place: Place) -> SessionOptions {
        SessionOptions { place, n_threads: 1, products: Products::Exact, engine_folder: None }
    }
}

/// Names the folder in which TensorRT's engines are kept; without it they are built anew each time.
const ENGINES: &str = "SUPERBATCH_TENSORRT_ENGINES";

/// The folder for the engines of the model with this digest, if they are to be kept: [`ENGINES`]`/DIGEST`, made if it is
/// not there. The runtime names an engine by its graph, the versions of runtime, TensorRT and CUDA and the kind of GPU,
/// but not by its weights: hence a folder a model.
///
/// It writes an engine in place, and fails on half an engine that a killed process has left: then it must be deleted.
pub fn engine_folder(model_digest: &str) -> Result<Option<PathBuf>, Error> {
    let Some(engines) = env::var_os(ENGINES) else { return Ok(None) };
    let folder = Path::new(&engines).join(model_digest);
    fs::create_dir_all(&folder).map_err(|source| Error::Write { path: folder.clone(), source })?;
    Ok(Some(folder))
}

/// How a GPU multiplies f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Products {
    /// In f32.
    #[default]
    #[serde(rename = "f32")]
    Exact,
    /// With both operands rounded to 11 bits, several times as fast. The processor has none and stays exact.
    Tf32,
}

/// A session that is ready to run.
pub struct OpenSession {
    pub session: Session,
    pub place: Place,
    pub nodes: NodeCounts,
}

/// Loads a graph file. The runtime's library must have been [loaded](library::load).
pub fn open(graph: &Path, options: &SessionOptions) -> ort::Result<OpenSession> {
    let session = builder(options)?.commit_from_file(graph)?;
    let opened = OpenSession { nodes: NodeCounts::of(&session)?, place: options.place, session };
    if is_first(graph, options.place) {
        opened.tell(graph.display());
    }
    Ok(opened)
}

impl OpenSession {
    /// Logs where the graph runs.
    pub fn tell(&self, graph: impl Display) {
        let OpenSession { place, nodes, .. } = self;
        tracing::info!(%graph, %place, %nodes, "loaded");
        let fallen_back = nodes.fallen_back(*place);
        if !fallen_back.is_empty() {
            tracing::warn!(%graph, %place, ?fallen_back, "nodes that the GPU cannot run were left to the processor");
        }
    }
}

/// Whether a graph is loaded there for the first time: of many sessions one is told.
fn is_first(graph: &Path, place: Place) -> bool {
    static LOADED: Mutex<BTreeSet<(PathBuf, Place)>> = Mutex::new(BTreeSet::new());
    let mut loaded = LOADED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    loaded.insert((graph.to_owned(), place))
}

/// The same for a graph in memory.
pub fn open_bytes(graph: &[u8], options: &SessionOptions) -> ort::Result<OpenSession> {
    let session = builder(options)?.commit_from_memory(graph)?;
    Ok(OpenSession { nodes: NodeCounts::of(&session)?, place: options.place, session })
}

/// Opens a graph of one node, which shows whether a place can be used at all.
pub(super) fn probe(place: Place) -> ort::Result<()> {
    let operand = |name| Operand { name, element: Element::F32, shape: &["1"] };
    let graph = GraphBytes::default()
        .input(operand("a"))
        .node("Add", &["a", "a"], &["b"], &[])
        .output(operand("b"))
        .finish();
    open_bytes(&graph, &SessionOptions::on(place)).map(|_| ())
}

fn builder(options: &SessionOptions) -> ort::Result<SessionBuilder> {
    let environment = library::load().expect("the library was loaded before");
    let builder: SessionBuilder = Session::builder(&environment)?
        .with_intra_op_spinning(false)?
        .with_config_entry("session.record_ep_graph_assignment_info", "1")?
        .with_log_level(LogLevel::Error)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(options.n_threads)?
        .with_inter_threads(1)?
        .with_deterministic_compute(true)?
        .with_memory_pattern(true)?;
    let cuda = || cuda(options).build().error_on_failure();
    Ok(match options.place.provider {
        Provider::Cpu => builder,
        Provider::Cuda => builder.with_execution_providers([cuda()])?,
        Provider::TensorRt => {
            // what TensorRT does not take goes to CUDA before the processor
            builder.with_execution_providers([tensorrt(options).build().error_on_failure(), cuda()])?
        }
    })
}

fn cuda(options: &SessionOptions) -> ep::CUDA {
    ep::CUDA::default()
        .with_device_id(options.place.number as i32)
        .with_tf32(options.products == Products::Tf32)
        .with_conv_algorithm_search(ep::cuda::ConvAlgorithmSearch::Heuristic)
        // grows by what is needed, and not to the next power of two
        .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
}

fn tensorrt(options: &SessionOptions) -> ep::TensorRT {
    let tensorrt = ep::TensorRT::default().with_device_id(options.place.number as i32);
    match &options.engine_folder {
        Some(folder) => tensorrt.with_engine_cache(true).with_engine_cache_path(folder.display()),
        None => tensorrt,
    }
}

/// Whether a run failed for want of memory on its device, so that fewer rows at once may do.
pub fn is_out_of_memory(error: &ort::Error) -> bool {
    // The runtime has no code for it. Texts of its arena, of CUDA and of cuBLAS, cuDNN and TensorRT.
    const TEXTS: [&str; 5] = [
        "failed to allocate memory",
        "out of memory",
        "cublas_status_alloc_failed",
        "cudnn_status_alloc_failed",
        "outofmemory",
    ];
    let message = error.message().to_ascii_lowercase();
    TEXTS.iter().any(|text| message.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_memory_is_told_from_other_faults() {
        library::load().unwrap();
        for text in [
            "Non-zero status code returned while running Conv node. /onnxruntime/core/framework/bfc_arena.cc:376 \
             Failed to allocate memory for requested buffer of size 1073741824",
            "CUDA failure 2: out of memory ; GPU=0",
            "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
        ] {
            assert!(is_out_of_memory(&ort::Error::new(text)), "{text}");
        }
        assert!(!is_out_of_memory(&ort::Error::new("Got invalid dimensions for input: pixel_values")));
    }

    #[test]
    fn options_reach_the_providers() {
        let place = Place { provider: Provider::TensorRt, number: 3 };
        let plain = SessionOptions::on(place);
        let exact = format!("{:?}", cuda(&plain));
        assert!(exact.contains(r#""device_id": "3""#) && exact.contains(r#""use_tf32": "false""#), "{exact}");
        let rounded = format!("{:?}", cuda(&SessionOptions { products: Products::Tf32, ..plain.clone() }));
        assert!(rounded.contains(r#""use_tf32": "true""#), "{rounded}");
        let without = format!("{:?}", tensorrt(&plain));
        assert!(without.contains(r#""device_id": "3""#) && !without.contains("cache"), "{without}");
        let keeping = SessionOptions { engine_folder: Some(PathBuf::from("/engines")), ..plain };
        let keeping = format!("{:?}", tensorrt(&keeping));
        assert!(keeping.contains(r#""trt_engine_cache_enable": "true""#), "{keeping}");
        assert!(keeping.contains(r#""trt_engine_cache_path": "/engines""#), "{keeping}");
    }

    #[test]
    fn the_processor_passes_the_probe() {
        library::load().unwrap();
        probe(Place::CPU).unwrap();
    }
}
