//! A graph file of a model in, runs of it out: named inputs to matrices, whatever they mean.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use half::f16;
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

    pub fn run<const N: usize>(
        &mut self,
        inputs: Vec<Input>,
        outputs: [&str; N],
        n: usize,
    ) -> Result<[Matrix; N], Error> {
        let (tower, folder, path) = (self.tower, &self.folder, &self.path);
        let fault = |source| Error::Inference { tower, folder: folder.clone(), source };
        let values = self.session.run(inputs).map_err(fault)?;
        let mut all = Vec::with_capacity(N);
        for output in outputs {
            let (shape, raw) = extract(&values[output]).map_err(fault)?;
            if shape.len() != 2 || shape[0] != n as i64 || shape[1] < 1 {
                let source =
                    ModelError::OutputShape { graph: path.clone(), output: output.to_owned(), shape };
                return Err(Error::Model { folder: folder.clone(), source });
            }
            all.push(Matrix::new(raw, shape[1] as usize));
        }
        Ok(all.try_into().expect("one for each output"))
    }

    /// The widths of outputs.
    pub fn dry_run<const N: usize>(
        &mut self,
        inputs: Vec<Input>,
        outputs: [&str; N],
    ) -> Result<[usize; N], ModelError> {
        match self.run(inputs, outputs, N_DRY) {
            Ok(rows) => Ok(rows.map(|rows| rows.n_cols())),
            Err(Error::Model { source, .. }) => Err(source),
            Err(Error::Inference { source, .. }) => Err(self.dry_fault(source)),
            Err(error) => unreachable!("running a graph has no other error: {error}"),
        }
    }
}

/// The values of an f32 or f16 output.
fn extract(value: &ort::value::DynValue) -> ort::Result<(Vec<i64>, Vec<f32>)> {
    if let Ok((shape, values)) = value.try_extract_tensor::<f16>() {
        return Ok((shape.to_vec(), values.iter().map(|value| value.to_f32()).collect()));
    }
    let (shape, values) = value.try_extract_tensor::<f32>()?;
    Ok((shape.to_vec(), values.to_vec()))
}
