//! Tensors and token ids in, unit embeddings out: the graphs of a model, on one device.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use half::f16;
use ort::session::{Session, SessionInputValue};
use ort::value::{Tensor, TensorElementType, ValueType};

use super::model::{Graphs, Model, ModelError};
use super::session::{self, SessionSettings};
use super::tokenize::Tokens;
use crate::error::Error;
use crate::matrix::Matrix;
use crate::runtime::{NodeCounts, Place};

/// Embeddings of one tower, a row a sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Embeddings {
    /// `[n, width]`, rows of unit length; zeros where degenerate.
    pub rows: Matrix,
    /// Rows that held NaN or infinity or had length 0: each is a
    /// [`Rejection::DegenerateEmbedding`](crate::rejection::Rejection::DegenerateEmbedding).
    pub degenerate: Vec<usize>,
}

/// Embeddings of images and of their captions.
#[derive(Clone, Debug, PartialEq)]
pub struct PairEmbeddings {
    pub image: Embeddings,
    pub text: Embeddings,
}

/// A model that is ready to embed.
pub enum Towers {
    /// A graph each.
    Split(Box<ImageTower>, Box<TextTower>),
    /// One graph that wants images and captions together.
    Combined(Box<CombinedTower>),
}

impl Towers {
    /// Loads a model's graphs and embeds a blank batch of two, so that what cannot work fails before work
    /// starts.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] for graphs that cannot be loaded, lack inputs or outputs, or disagree in width;
    /// [`Error::Device`] for a GPU that was asked for and cannot be used; those of
    /// [`load`](crate::runtime::library::load).
    pub fn open(model: &Model, settings: &SessionSettings) -> Result<Towers, Error> {
        let mut towers = match &model.graphs {
            Graphs::Split { .. } => Towers::Split(
                Box::new(ImageTower::open(model, settings)?),
                Box::new(TextTower::open(model, settings)?),
            ),
            Graphs::Combined(_) => Towers::Combined(Box::new(CombinedTower::open(model, settings)?)),
        };
        let fault = |source| Error::Model { folder: model.folder.clone(), source };
        let (image, text) = towers.widths().map_err(fault)?;
        if image != text {
            return Err(fault(ModelError::TowersDisagree { image, text }));
        }
        Ok(towers)
    }

    /// Embeds `n` pairs. `pixels` is `[n, 3, height, width]`, `tokens` has `n` rows; any `n` from 1 will do.
    pub fn embed(&mut self, pixels: &[f32], tokens: &Tokens) -> Result<PairEmbeddings, Error> {
        match self {
            Towers::Split(image, text) => {
                Ok(PairEmbeddings { image: image.embed(pixels, tokens.n_rows())?, text: text.embed(tokens)? })
            }
            Towers::Combined(tower) => tower.embed(pixels, tokens),
        }
    }

    /// What the graphs run on.
    pub fn place(&self) -> Place {
        match self {
            Towers::Split(image, _) => image.graph.place,
            Towers::Combined(tower) => tower.graph.place,
        }
    }

    /// Which provider runs how many nodes of all graphs.
    pub fn nodes(&self) -> NodeCounts {
        match self {
            Towers::Split(image, text) => {
                let mut nodes = image.graph.nodes.clone();
                nodes.extend(&text.graph.nodes);
                nodes
            }
            Towers::Combined(tower) => tower.graph.nodes.clone(),
        }
    }

    /// Width of an embedding, the same for both towers, by a dry run.
    pub fn embedding_dim(&mut self) -> Result<usize, ModelError> {
        Ok(self.widths()?.0)
    }

    /// Embedding widths of the image and of the text tower, by a dry run.
    fn widths(&mut self) -> Result<(usize, usize), ModelError> {
        match self {
            Towers::Split(image, text) => Ok((image.width()?, text.width()?)),
            Towers::Combined(tower) => tower.widths(),
        }
    }
}

/// The image tower of a model whose towers are separate graphs.
pub struct ImageTower {
    graph: Graph,
    pixels: Pixels,
    output: String,
}

impl ImageTower {
    /// Loads the image graph. Its output is what `model.toml` names, else `image_embeds`, else
    /// `pooler_output`.
    pub fn open(model: &Model, settings: &SessionSettings) -> Result<ImageTower, Error> {
        let Graphs::Split { image, .. } = &model.graphs else {
            panic!("a combined graph has no image tower of its own")
        };
        let graph = Graph::open(model, image, "image", settings)?;
        let in_model = |source| Error::Model { folder: model.folder.clone(), source };
        let pixels = Pixels::of(&graph, model).map_err(in_model)?;
        graph.check_inputs(&[&pixels.name], &[]).map_err(in_model)?;
        let output = graph.output(model.names.image_output.as_deref(), &["image_embeds", "pooler_output"]);
        Ok(ImageTower { output: output.map_err(in_model)?, graph, pixels })
    }

    /// Embeds `n` images, `pixels` being `[n, 3, height, width]`.
    pub fn embed(&mut self, pixels: &[f32], n: usize) -> Result<Embeddings, Error> {
        let inputs = self.pixels.input(pixels, n).map_err(|source| self.graph.fault(source))?;
        let [embeddings] = self.graph.run(vec![inputs], [&self.output], n)?;
        Ok(embeddings)
    }

    fn width(&mut self) -> Result<usize, ModelError> {
        let blank = self.pixels.blank(N_DRY);
        let input = self.pixels.input(&blank, N_DRY).map_err(|source| self.graph.dry_fault(source))?;
        let [width] = self.graph.dry_run(vec![input], [&self.output])?;
        Ok(width)
    }
}

/// The text tower of a model whose towers are separate graphs.
pub struct TextTower {
    graph: Graph,
    tokens: TokenInputs,
    output: String,
}

impl TextTower {
    /// Loads the text graph. Its output is what `model.toml` names, else `text_embeds`, else `pooler_output`.
    pub fn open(model: &Model, settings: &SessionSettings) -> Result<TextTower, Error> {
        let Graphs::Split { text, .. } = &model.graphs else {
            panic!("a combined graph has no text tower of its own")
        };
        let graph = Graph::open(model, text, "text", settings)?;
        let in_model = |source| Error::Model { folder: model.folder.clone(), source };
        let tokens = TokenInputs::of(&graph, model).map_err(in_model)?;
        graph.check_inputs(&[], &tokens.names()).map_err(in_model)?;
        let output = graph.output(model.names.text_output.as_deref(), &["text_embeds", "pooler_output"]);
        Ok(TextTower { output: output.map_err(in_model)?, graph, tokens })
    }

    /// Embeds captions.
    pub fn embed(&mut self, tokens: &Tokens) -> Result<Embeddings, Error> {
        let inputs = self.tokens.inputs(tokens).map_err(|source| self.graph.fault(source))?;
        let [embeddings] = self.graph.run(inputs, [&self.output], tokens.n_rows())?;
        Ok(embeddings)
    }

    fn width(&mut self) -> Result<usize, ModelError> {
        let inputs =
            self.tokens.inputs(&self.tokens.blank(N_DRY)).map_err(|source| self.graph.dry_fault(source))?;
        let [width] = self.graph.dry_run(inputs, [&self.output])?;
        Ok(width)
    }
}

/// Both towers in one graph.
pub struct CombinedTower {
    graph: Graph,
    pixels: Pixels,
    tokens: TokenInputs,
    image_output: String,
    text_output: String,
}

impl CombinedTower {
    fn open(model: &Model, settings: &SessionSettings) -> Result<CombinedTower, Error> {
        let Graphs::Combined(path) = &model.graphs else { panic!("a split model has no combined graph") };
        let graph = Graph::open(model, path, "combined", settings)?;
        let names = &model.names;
        let resolve = || {
            let pixels = Pixels::of(&graph, model)?;
            let tokens = TokenInputs::of(&graph, model)?;
            graph.check_inputs(&[&pixels.name], &tokens.names())?;
            let image_output = graph.output(names.image_output.as_deref(), &["image_embeds"])?;
            let text_output = graph.output(names.text_output.as_deref(), &["text_embeds"])?;
            Ok((pixels, tokens, image_output, text_output))
        };
        let (pixels, tokens, image_output, text_output) =
            resolve().map_err(|source| Error::Model { folder: model.folder.clone(), source })?;
        Ok(CombinedTower { graph, pixels, tokens, image_output, text_output })
    }

    fn inputs(&self, pixels: &[f32], tokens: &Tokens) -> ort::Result<Vec<Input>> {
        let mut inputs = self.tokens.inputs(tokens)?;
        inputs.push(self.pixels.input(pixels, tokens.n_rows())?);
        Ok(inputs)
    }

    fn embed(&mut self, pixels: &[f32], tokens: &Tokens) -> Result<PairEmbeddings, Error> {
        let inputs = self.inputs(pixels, tokens).map_err(|source| self.graph.fault(source))?;
        let [image, text] =
            self.graph.run(inputs, [&self.image_output, &self.text_output], tokens.n_rows())?;
        Ok(PairEmbeddings { image, text })
    }

    fn widths(&mut self) -> Result<(usize, usize), ModelError> {
        let (pixels, tokens) = (self.pixels.blank(N_DRY), self.tokens.blank(N_DRY));
        let inputs = self.inputs(&pixels, &tokens).map_err(|source| self.graph.dry_fault(source))?;
        let [image, text] = self.graph.dry_run(inputs, [&self.image_output, &self.text_output])?;
        Ok((image, text))
    }
}

/// Samples of the dry run: two, so that a graph with a fixed batch of one is found out.
const N_DRY: usize = 2;

type Input = (Cow<'static, str>, SessionInputValue<'static>);

/// A loaded graph file.
struct Graph {
    session: Session,
    path: PathBuf,
    folder: PathBuf,
    /// For messages: `image`, `text` or `combined`.
    tower: &'static str,
    place: Place,
    nodes: NodeCounts,
}

impl Graph {
    fn open(
        model: &Model,
        path: &Path,
        tower: &'static str,
        settings: &SessionSettings,
    ) -> Result<Graph, Error> {
        let opened = session::open(model, path, settings)?;
        let (session, place, nodes) = (opened.session, opened.place, opened.nodes);
        Ok(Graph { session, path: path.to_owned(), folder: model.folder.clone(), tower, place, nodes })
    }

    fn fault(&self, source: ort::Error) -> Error {
        Error::Inference { tower: self.tower, folder: self.folder.clone(), source }
    }

    fn dry_fault(&self, source: ort::Error) -> ModelError {
        ModelError::DryRun { graph: self.path.clone(), source }
    }

    fn input_names(&self) -> Vec<String> {
        self.session.inputs().iter().map(|input| input.name().to_owned()).collect()
    }

    /// The element type of an input, if the graph has it.
    fn input_type(&self, name: &str) -> Option<TensorElementType> {
        let input = self.session.inputs().iter().find(|input| input.name() == name)?;
        match input.dtype() {
            ValueType::Tensor { ty, .. } => Some(*ty),
            _ => None,
        }
    }

    fn no_input(&self, wanted: &'static str) -> ModelError {
        ModelError::NoInput { graph: self.path.clone(), wanted, offered: self.input_names() }
    }

    /// Refuses a graph that wants something which we do not feed.
    fn check_inputs(&self, pixels: &[&str], tokens: &[&str]) -> Result<(), ModelError> {
        let unknown =
            self.input_names().into_iter().find(|name| !pixels.iter().chain(tokens).any(|fed| fed == name));
        match unknown {
            None => Ok(()),
            Some(input) => Err(ModelError::UnknownInput { graph: self.path.clone(), input }),
        }
    }

    /// The output that the manifest names, else the first of the preferred ones that the graph has.
    fn output(&self, named: Option<&str>, preferred: &[&str]) -> Result<String, ModelError> {
        let offered: Vec<String> =
            self.session.outputs().iter().map(|output| output.name().to_owned()).collect();
        let wanted: Vec<&str> = named.map_or(preferred.to_vec(), |name| vec![name]);
        match wanted.iter().find(|name| offered.iter().any(|output| output == *name)) {
            Some(name) => Ok((*name).to_owned()),
            None => Err(ModelError::NoOutput {
                graph: self.path.clone(),
                wanted: wanted.into_iter().map(str::to_owned).collect(),
                offered,
            }),
        }
    }

    fn run<const N: usize>(
        &mut self,
        inputs: Vec<Input>,
        outputs: [&str; N],
        n: usize,
    ) -> Result<[Embeddings; N], Error> {
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
            all.push(unit_rows(Matrix::new(raw, shape[1] as usize)));
        }
        Ok(all.try_into().expect("one for each output"))
    }

    /// The widths of outputs.
    fn dry_run<const N: usize>(
        &mut self,
        inputs: Vec<Input>,
        outputs: [&str; N],
    ) -> Result<[usize; N], ModelError> {
        match self.run(inputs, outputs, N_DRY) {
            Ok(embeddings) => Ok(embeddings.map(|embeddings| embeddings.rows.n_cols())),
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

/// Scales each row to length 1 and finds those that have none; lengths are summed in f64.
fn unit_rows(mut rows: Matrix) -> Embeddings {
    let mut degenerate = Vec::new();
    for idx in 0..rows.n_rows() {
        let row = rows.row_mut(idx);
        let length = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        if length.is_finite() && length > 0.0 {
            row.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        } else {
            row.fill(0.0);
            degenerate.push(idx);
        }
    }
    Embeddings { rows, degenerate }
}

/// How images are fed.
struct Pixels {
    name: String,
    kind: TensorElementType,
    width: usize,
    height: usize,
}

impl Pixels {
    fn of(graph: &Graph, model: &Model) -> Result<Pixels, ModelError> {
        let name = model.names.image_input.as_deref().unwrap_or("pixel_values");
        let kind = graph.input_type(name).ok_or_else(|| graph.no_input("pixels"))?;
        if !matches!(kind, TensorElementType::Float32 | TensorElementType::Float16) {
            return Err(ModelError::Unsupported { setting: "pixel type", value: kind.to_string() });
        }
        let (width, height) = model.preprocessing.size();
        Ok(Pixels { name: name.to_owned(), kind, width: width as usize, height: height as usize })
    }

    fn blank(&self, n: usize) -> Vec<f32> {
        vec![0.0; n * 3 * self.height * self.width]
    }

    fn input(&self, pixels: &[f32], n: usize) -> ort::Result<Input> {
        let shape = [n, 3, self.height, self.width];
        assert_eq!(pixels.len(), shape.iter().product::<usize>(), "pixels of {n} images");
        let value = match self.kind {
            TensorElementType::Float16 => {
                Tensor::from_array((shape, pixels.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>()))?
                    .into_dyn()
            }
            _ => Tensor::from_array((shape, pixels.to_vec()))?.into_dyn(),
        };
        Ok((Cow::Owned(self.name.clone()), value.into()))
    }
}

/// What a text graph can want of a caption.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TokenInput {
    Ids,
    Mask,
    Positions,
    Types,
}

/// How captions are fed: only what the graph declares.
struct TokenInputs {
    inputs: Vec<(String, TokenInput, TensorElementType)>,
    context_length: usize,
}

impl TokenInputs {
    fn of(graph: &Graph, model: &Model) -> Result<TokenInputs, ModelError> {
        let ids = model.names.text_input.as_deref().unwrap_or("input_ids");
        let known = [
            (ids, TokenInput::Ids),
            ("attention_mask", TokenInput::Mask),
            ("position_ids", TokenInput::Positions),
            ("token_type_ids", TokenInput::Types),
        ];
        let mut inputs = Vec::new();
        for (name, input) in known {
            match graph.input_type(name) {
                Some(kind @ (TensorElementType::Int64 | TensorElementType::Int32)) => {
                    inputs.push((name.to_owned(), input, kind));
                }
                Some(kind) => {
                    return Err(ModelError::Unsupported { setting: "token type", value: kind.to_string() });
                }
                None if input == TokenInput::Ids => return Err(graph.no_input("token ids")),
                None => {}
            }
        }
        Ok(TokenInputs { inputs, context_length: model.text.context_length })
    }

    fn names(&self) -> Vec<&str> {
        self.inputs.iter().map(|(name, _, _)| name.as_str()).collect()
    }

    fn blank(&self, n: usize) -> Tokens {
        Tokens::blank(self.context_length, n)
    }

    fn inputs(&self, tokens: &Tokens) -> ort::Result<Vec<Input>> {
        assert_eq!(tokens.context_length(), self.context_length);
        let shape = [tokens.n_rows(), self.context_length];
        let mut all = Vec::with_capacity(self.inputs.len());
        for (name, input, kind) in &self.inputs {
            let values: Vec<i64> = match input {
                TokenInput::Ids => tokens.ids().to_vec(),
                TokenInput::Mask => tokens.mask().to_vec(),
                TokenInput::Positions => {
                    (0..tokens.n_rows()).flat_map(|_| 0..self.context_length as i64).collect()
                }
                TokenInput::Types => vec![0; tokens.ids().len()],
            };
            let value = match kind {
                TensorElementType::Int32 => {
                    Tensor::from_array((shape, values.iter().map(|&id| id as i32).collect::<Vec<_>>()))?
                        .into_dyn()
                }
                _ => Tensor::from_array((shape, values))?.into_dyn(),
            };
            all.push((Cow::Owned(name.clone()), value.into()));
        }
        Ok(all)
    }
}
