//! A graph file of a model in, runs of it out: named inputs to matrices, whatever they mean.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use ort::session::{Session, SessionInputValue};
use ort::value::{TensorElementType, ValueType};

use super::model::{Model, ModelError};
use super::session::{self, SessionSettings};
use crate::error::Error;
use crate::matrix::Matrix;
use crate::runtime::{NodeCounts, Place};

/// A graph's input by name.
pub(super) type Input<'a> = (Cow<'a, str>, SessionInputValue<'a>);

/// Samples of the dry run: two, so that a graph with a fixed batch of one is found out.
pub(super) const N_DRY: usize = 2;

/// A loaded graph file.
pub(super) struct Graph {
    pub session: Session,
    pub path: PathBuf,
    folder: PathBuf,
    /// For messages: `image`, `text` or `combined`.
    tower: &'static str,
    pub place: Place,
    pub nodes: NodeCounts,
}

/// An output's shape and its values, row-major.
type RawOutput = (Vec<i64>, Vec<f32>);

impl Graph {
    pub fn open(
        model: &Model,
        path: &Path,
        tower: &'static str,
        settings: &SessionSettings,
    ) -> Result<Graph, Error> {
        let opened = session::open(model, path, settings)?;
        let (session, place, nodes) = (opened.session, opened.place, opened.nodes);
        Ok(Graph { session, path: path.to_owned(), folder: model.folder.clone(), tower, place, nodes })
    }

    pub fn fault(&self, source: ort::Error) -> Error {
        Error::Inference { tower: self.tower, folder: self.folder.clone(), source }
    }

    pub fn dry_fault(&self, source: ort::Error) -> ModelError {
        ModelError::DryRun { graph: self.path.clone(), source }
    }

    pub fn input_names(&self) -> Vec<String> {
        self.session.inputs().iter().map(|input| input.name().to_owned()).collect()
    }

    /// The only input, or the usual one of a graph with several.
    pub fn only_input_or<'a>(&'a self, usual: &'a str) -> &'a str {
        match self.session.inputs() {
            [only] => only.name(),
            _ => usual,
        }
    }

    /// The element type of an input, if the graph has it.
    pub fn input_type(&self, name: &str) -> Option<TensorElementType> {
        let input = self.session.inputs().iter().find(|input| input.name() == name)?;
        match input.dtype() {
            ValueType::Tensor { ty, .. } => Some(*ty),
            _ => None,
        }
    }

    pub fn no_input(&self, wanted: &'static str) -> ModelError {
        ModelError::NoInput { graph: self.path.clone(), wanted, offered: self.input_names() }
    }

    /// Refuses a graph that wants something which we do not feed.
    pub fn check_inputs(&self, pixels: &[&str], tokens: &[&str]) -> Result<(), ModelError> {
        let unknown =
            self.input_names().into_iter().find(|name| !pixels.iter().chain(tokens).any(|fed| fed == name));
        match unknown {
            None => Ok(()),
            Some(input) => Err(ModelError::UnknownInput { graph: self.path.clone(), input }),
        }
    }

    /// The length of each axis of an input, −1 where any will do; none where the graph does not say.
    pub fn input_shape(&self, name: &str) -> Option<Vec<i64>> {
        let input = self.session.inputs().iter().find(|input| input.name() == name)?;
        match input.dtype() {
            ValueType::Tensor { shape, .. } if !shape.is_empty() => Some(shape.to_vec()),
            _ => None,
        }
    }

    /// The output that the manifest names, else the first of the preferred ones that the graph has, else its only one.
    pub fn output(&self, named: Option<&str>, preferred: &[&str]) -> Result<String, ModelError> {
        let offered: Vec<String> =
            self.session.outputs().iter().map(|output| output.name().to_owned()).collect();
        let wanted: Vec<&str> = named.map_or(preferred.to_vec(), |name| vec![name]);
        match wanted.iter().find(|name| offered.iter().any(|output| output == *name)) {
            Some(name) => Ok((*name).to_owned()),
            None if named.is_none() && offered.len() == 1 => Ok(offered[0].clone()),
            None => Err(ModelError::NoOutput {
                graph: self.path.clone(),
                wanted: wanted.into_iter().map(str::to_owned).collect(),
                offered,
            }),
        }
    }

    /// Outputs with one row a sample, `[n, width]` each.
    pub fn run<const N: usize>(
        &mut self,
        inputs: Vec<Input>,
        outputs: [&str; N],
        n: usize,
    ) -> Result<[Matrix; N], Error> {
        let of_samples = |shape: &[i64]| matches!(shape, [rows, width] if *rows == n as i64 && *width > 0);
        let outputs = self.run_raw(inputs, outputs, "[samples, width]", of_samples)?;
        Ok(outputs.map(|(shape, values)| Matrix::new(values, shape[1] as usize)))
    }

    /// An output with one row a token: `[n · length, width]`, sample after sample.
    pub fn run_tokens(
        &mut self,
        inputs: Vec<Input>,
        output: &str,
        n: usize,
        length: usize,
    ) -> Result<Matrix, Error> {
        let of_tokens = |shape: &[i64]| match shape {
            [rows, tokens, width] => (*rows, *tokens) == (n as i64, length as i64) && *width > 0,
            _ => false,
        };
        let [(shape, values)] = self.run_raw(inputs, [output], "[samples, tokens, width]", of_tokens)?;
        Ok(Matrix::new(values, shape[2] as usize))
    }

    fn run_raw<const N: usize>(
        &mut self,
        inputs: Vec<Input>,
        outputs: [&str; N],
        wanted: &'static str,
        is_wanted: impl Fn(&[i64]) -> bool,
    ) -> Result<[RawOutput; N], Error> {
        let (tower, folder) = (self.tower, &self.folder);
        let fault = |source| Error::Inference { tower, folder: folder.clone(), source };
        let values = self.session.run(inputs).map_err(fault)?;
        let mut all = Vec::with_capacity(N);
        for output in outputs {
            let (shape, raw) = extract(&values[output]).map_err(fault)?;
            if !is_wanted(&shape) {
                let (graph, output) = (self.path.clone(), output.to_owned());
                let source = ModelError::OutputShape { graph, output, shape, wanted };
                return Err(Error::Model { folder: folder.clone(), source });
            }
            all.push((shape, raw));
        }
        Ok(all.try_into().expect("one for each output"))
    }

    /// The widths of outputs.
    pub fn dry_run<const N: usize>(
        &mut self,
        inputs: Vec<Input>,
        outputs: [&str; N],
    ) -> Result<[usize; N], ModelError> {
        let rows = self.run(inputs, outputs, N_DRY).map_err(|error| self.in_dry_run(error))?;
        Ok(rows.map(|rows| rows.n_cols()))
    }

    /// What is wrong with the model where a dry run failed.
    pub fn in_dry_run(&self, error: Error) -> ModelError {
        match error {
            Error::Model { source, .. } => source,
            Error::Inference { source, .. } => self.dry_fault(source),
            error => unreachable!("running a graph has no other error: {error}"),
        }
    }
}

/// The values of an f32, f16 or bf16 output.
fn extract(value: &ort::value::DynValue) -> ort::Result<(Vec<i64>, Vec<f32>)> {
    if let Ok((shape, values)) = value.try_extract_tensor::<bf16>() {
        return Ok((shape.to_vec(), values.iter().map(|value| value.to_f32()).collect()));
    }
    if let Ok((shape, values)) = value.try_extract_tensor::<f16>() {
        return Ok((shape.to_vec(), values.iter().map(|value| value.to_f32()).collect()));
    }
    let (shape, values) = value.try_extract_tensor::<f32>()?;
    Ok((shape.to_vec(), values.to_vec()))
}
