//! Tensors and token ids in, unit embeddings out: the graphs of a model, on one device.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use half::f16;
use ort::session::{Session, SessionInputValue};
use ort::value::{Tensor, TensorElementType, ValueType};

use super::model::{ImageSide, Model, ModelError, ModelParts, TextSide};
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

/// What a classifier says of some images, a row a sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// `[n, n_classes]`; zeros where degenerate.
    pub rows: Matrix,
    /// Rows that held NaN or infinity.
    pub degenerate: Vec<usize>,
}

/// What a model takes of an inference batch.
#[derive(Clone, Debug, PartialEq)]
pub enum BatchInputs {
    /// `pixels` is `[n, 3, height, width]`, `tokens` has `n` rows.
    Pairs {
        pixels: Vec<f32>,
        tokens: Tokens,
    },
    /// `pixels` is `[n_images, 3, height, width]`.
    Images {
        pixels: Vec<f32>,
        n_images: usize,
    },
    Captions(Tokens),
}

/// What a model gives for an inference batch.
#[derive(Clone, Debug, PartialEq)]
pub enum BatchOutputs {
    Pairs(PairEmbeddings),
    Images(Embeddings),
    Captions(Embeddings),
    Logits(Logits),
}

/// A model that is ready to embed.
pub enum Towers {
    /// A graph each.
    Split(Box<ImageTower>, Box<TextTower>),
    /// One graph that wants images and captions together.
    Combined(Box<CombinedTower>),
    Image(Box<ImageTower>),
    Text(Box<TextTower>),
    Classifier(Box<ImageTower>),
}

impl Towers {
    /// Loads a model's graphs.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] for graphs that cannot be loaded, lack inputs or outputs, or want images of another size;
    /// [`Error::Device`] for a GPU that was asked for and cannot be used; those of
    /// [`load`](crate::runtime::library::load).
    pub fn open(model: &Model, settings: &SessionSettings) -> Result<Towers, Error> {
        let image_tower = |side, outputs| ImageTower::open(model, side, outputs, settings).map(Box::new);
        let text_tower = |side| TextTower::open(model, side, settings).map(Box::new);
        Ok(match &model.parts {
            ModelParts::Pair { image, text } if image.graph == text.graph => {
                Towers::Combined(Box::new(CombinedTower::open(model, image, text, settings)?))
            }
            ModelParts::Pair { image, text } => {
                Towers::Split(image_tower(image, &IMAGE_OUTPUTS)?, text_tower(text)?)
            }
            ModelParts::Image(image) => Towers::Image(image_tower(image, &IMAGE_OUTPUTS)?),
            ModelParts::Text(text) => Towers::Text(text_tower(text)?),
            ModelParts::Classifier(image) => Towers::Classifier(image_tower(image, &["logits"])?),
        })
    }

    /// Runs the model over any number of samples from 1 on; it must be given what its kind takes.
    pub fn embed(&mut self, inputs: &BatchInputs) -> Result<BatchOutputs, Error> {
        match (self, inputs) {
            (Towers::Split(image, text), BatchInputs::Pairs { pixels, tokens }) => {
                let image = image.embed(pixels, tokens.n_rows())?;
                Ok(BatchOutputs::Pairs(PairEmbeddings { image, text: text.embed(tokens)? }))
            }
            (Towers::Combined(tower), BatchInputs::Pairs { pixels, tokens }) => {
                tower.embed(pixels, tokens).map(BatchOutputs::Pairs)
            }
            (Towers::Image(tower), BatchInputs::Images { pixels, n_images }) => {
                tower.embed(pixels, *n_images).map(BatchOutputs::Images)
            }
            (Towers::Text(tower), BatchInputs::Captions(tokens)) => {
                tower.embed(tokens).map(BatchOutputs::Captions)
            }
            (Towers::Classifier(tower), BatchInputs::Images { pixels, n_images }) => {
                tower.classify(pixels, *n_images).map(BatchOutputs::Logits)
            }
            _ => panic!("a model is given what its kind takes"),
        }
    }

    /// What the graphs run on.
    pub fn place(&self) -> Place {
        match self {
            Towers::Split(tower, _) | Towers::Image(tower) | Towers::Classifier(tower) => tower.graph.place,
            Towers::Text(tower) => tower.graph.place,
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
            Towers::Image(tower) | Towers::Classifier(tower) => tower.graph.nodes.clone(),
            Towers::Text(tower) => tower.graph.nodes.clone(),
            Towers::Combined(tower) => tower.graph.nodes.clone(),
        }
    }

    /// Width of an embedding, the same for both towers; of a classifier, the number of its classes. By a dry run.
    pub fn width(&mut self) -> Result<usize, ModelError> {
        let (image, text) = match self {
            Towers::Split(image, text) => (image.width()?, text.width()?),
            Towers::Combined(tower) => tower.widths()?,
            Towers::Image(tower) | Towers::Classifier(tower) => return tower.width(),
            Towers::Text(tower) => return tower.width(),
        };
        if image == text { Ok(image) } else { Err(ModelError::TowersDisagree { image, text }) }
    }
}

/// Outputs with an embedding of each image, the best first.
const IMAGE_OUTPUTS: [&str; 2] = ["image_embeds", "pooler_output"];
/// Outputs with an embedding of each caption, the best first.
const TEXT_OUTPUTS: [&str; 2] = ["text_embeds", "pooler_output"];

/// A graph that takes images alone.
pub struct ImageTower {
    graph: Graph,
    pixels: Pixels,
    output: String,
}

impl ImageTower {
    /// Loads the graph. Its output is what `model.toml` names, else the first of `outputs` that it has, else its only
    /// one.
    fn open(
        model: &Model,
        side: &ImageSide,
        outputs: &[&str],
        settings: &SessionSettings,
    ) -> Result<ImageTower, Error> {
        let graph = Graph::open(model, &side.graph, "image", settings)?;
        let resolve = || {
            let pixels = Pixels::of(&graph, side)?;
            graph.check_inputs(&[&pixels.name], &[])?;
            Ok((pixels, graph.output(side.output.as_deref(), outputs)?))
        };
        let (pixels, output) =
            resolve().map_err(|source| Error::Model { folder: model.folder.clone(), source })?;
        Ok(ImageTower { output, graph, pixels })
    }

    /// Embeds `n` images, `pixels` being `[n, 3, height, width]`.
    pub fn embed(&mut self, pixels: &[f32], n: usize) -> Result<Embeddings, Error> {
        self.run(pixels, n).map(unit_rows)
    }

    /// The logits of `n` images, `pixels` being `[n, 3, height, width]`.
    pub fn classify(&mut self, pixels: &[f32], n: usize) -> Result<Logits, Error> {
        self.run(pixels, n).map(finite_rows)
    }

    fn run(&mut self, pixels: &[f32], n: usize) -> Result<Matrix, Error> {
        let inputs = self.pixels.input(pixels, n).map_err(|source| self.graph.fault(source))?;
        let [rows] = self.graph.run(vec![inputs], [&self.output], n)?;
        Ok(rows)
    }

    fn width(&mut self) -> Result<usize, ModelError> {
        let blank = self.pixels.blank(N_DRY);
        let input = self.pixels.input(&blank, N_DRY).map_err(|source| self.graph.dry_fault(source))?;
        let [width] = self.graph.dry_run(vec![input], [&self.output])?;
        Ok(width)
    }
}

/// A graph that takes captions alone.
pub struct TextTower {
    graph: Graph,
    tokens: TokenInputs,
    output: String,
}

impl TextTower {
    /// Loads the graph. Its output is what `model.toml` names, else `text_embeds`, else `pooler_output`, else its only
    /// one.
    fn open(model: &Model, side: &TextSide, settings: &SessionSettings) -> Result<TextTower, Error> {
        let graph = Graph::open(model, &side.graph, "text", settings)?;
        let resolve = || {
            let tokens = TokenInputs::of(&graph, side)?;
            graph.check_inputs(&[], &tokens.names())?;
            Ok((tokens, graph.output(side.output.as_deref(), &TEXT_OUTPUTS)?))
        };
        let (tokens, output) =
            resolve().map_err(|source| Error::Model { folder: model.folder.clone(), source })?;
        Ok(TextTower { output, graph, tokens })
    }

    /// Embeds captions.
    pub fn embed(&mut self, tokens: &Tokens) -> Result<Embeddings, Error> {
        let inputs = self.tokens.inputs(tokens).map_err(|source| self.graph.fault(source))?;
        let [rows] = self.graph.run(inputs, [&self.output], tokens.n_rows())?;
        Ok(unit_rows(rows))
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
    fn open(
        model: &Model,
        image: &ImageSide,
        text: &TextSide,
        settings: &SessionSettings,
    ) -> Result<CombinedTower, Error> {
        let graph = Graph::open(model, &image.graph, "combined", settings)?;
        let resolve = || {
            let pixels = Pixels::of(&graph, image)?;
            let tokens = TokenInputs::of(&graph, text)?;
            graph.check_inputs(&[&pixels.name], &tokens.names())?;
            let image_output = graph.output(image.output.as_deref(), &["image_embeds"])?;
            let text_output = graph.output(text.output.as_deref(), &["text_embeds"])?;
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
        Ok(PairEmbeddings { image: unit_rows(image), text: unit_rows(text) })
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

    /// The length of each axis of an input, −1 where any will do; none where the graph does not say.
    fn input_shape(&self, name: &str) -> Option<Vec<i64>> {
        let input = self.session.inputs().iter().find(|input| input.name() == name)?;
        match input.dtype() {
            ValueType::Tensor { shape, .. } if !shape.is_empty() => Some(shape.to_vec()),
            _ => None,
        }
    }

    /// The output that the manifest names, else the first of the preferred ones that the graph has, else its only one.
    fn output(&self, named: Option<&str>, preferred: &[&str]) -> Result<String, ModelError> {
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

    fn run<const N: usize>(
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
    fn dry_run<const N: usize>(
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

/// Finds the rows with a value that is no number.
fn finite_rows(mut rows: Matrix) -> Logits {
    let mut degenerate = Vec::new();
    for idx in 0..rows.n_rows() {
        let row = rows.row_mut(idx);
        if !row.iter().all(|x| x.is_finite()) {
            row.fill(0.0);
            degenerate.push(idx);
        }
    }
    Logits { rows, degenerate }
}

/// How images are fed.
struct Pixels {
    name: String,
    kind: TensorElementType,
    width: usize,
    height: usize,
}

impl Pixels {
    /// The input is what `model.toml` names, else `pixel_values`, else the only one.
    fn of(graph: &Graph, side: &ImageSide) -> Result<Pixels, ModelError> {
        let inputs = graph.input_names();
        let only = match &inputs[..] {
            [only] => only.as_str(),
            _ => "pixel_values",
        };
        let name = side.input.as_deref().unwrap_or(only);
        let kind = graph.input_type(name).ok_or_else(|| graph.no_input("pixels"))?;
        if !matches!(kind, TensorElementType::Float32 | TensorElementType::Float16) {
            return Err(ModelError::Unsupported { setting: "pixel type", value: kind.to_string() });
        }
        let (width, height) = side.preprocessing.size();
        let pixels = Pixels { name: name.to_owned(), kind, width: width as usize, height: height as usize };
        pixels.check_shape(graph)?;
        Ok(pixels)
    }

    /// Refuses a graph whose input is fixed to another shape than `[n, 3, height, width]`.
    fn check_shape(&self, graph: &Graph) -> Result<(), ModelError> {
        let Some(shape) = graph.input_shape(&self.name) else { return Ok(()) };
        let given = [3, self.height as i64, self.width as i64];
        let is_fit = shape.len() == 4
            && shape[1..].iter().zip(given).all(|(&fixed, given)| fixed < 0 || fixed == given);
        if is_fit {
            return Ok(());
        }
        let axes = |shape: &[i64]| {
            let axes =
                shape.iter().map(|&length| if length < 0 { "any".to_owned() } else { length.to_string() });
            format!("[{}]", axes.collect::<Vec<_>>().join(", "))
        };
        Err(ModelError::InputShape {
            graph: graph.path.clone(),
            input: self.name.clone(),
            takes: axes(&shape),
            given: format!("[n, 3, {}, {}]", self.height, self.width),
        })
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
    fn of(graph: &Graph, side: &TextSide) -> Result<TokenInputs, ModelError> {
        let ids = side.input.as_deref().unwrap_or("input_ids");
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
        Ok(TokenInputs { inputs, context_length: side.preparation.context_length })
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
