//! Tensors and token ids in, unit embeddings out: the graphs of a model, on one device.

use super::graph::{Graph, Input, N_DRY};
use super::graph_inputs::{Pixels, TokenInputs};
use super::model::{ImageSide, Model, ModelError, ModelParts, TextPooling, TextSide};
use super::session::SessionSettings;
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

impl BatchOutputs {
    /// Embeddings of captions, if the model gives them.
    pub fn text(&self) -> Option<&Embeddings> {
        match self {
            BatchOutputs::Pairs(pairs) => Some(&pairs.text),
            BatchOutputs::Captions(embeddings) => Some(embeddings),
            BatchOutputs::Images(_) | BatchOutputs::Logits(_) => None,
        }
    }
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

    /// Whether the model takes captions, and in rows of the context length alone.
    pub fn has_fixed_caption_length(&self) -> Option<bool> {
        match self {
            Towers::Split(_, tower) | Towers::Text(tower) => Some(tower.tokens.has_fixed_length),
            Towers::Combined(tower) => Some(tower.tokens.has_fixed_length),
            Towers::Image(_) | Towers::Classifier(_) => None,
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
const TEXT_OUTPUTS: [&str; 3] = ["text_embeds", "sentence_embedding", "pooler_output"];
/// Outputs with a vector of each token.
const TOKEN_OUTPUTS: [&str; 2] = ["token_embeddings", "last_hidden_state"];

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
    /// How the output's token vectors become one; none where it has one a caption.
    pooling: Option<TextPooling>,
}

impl TextTower {
    /// Loads the graph. Its output is what `model.toml` names, else the first of those that are known to have a vector a
    /// caption, or a token where they are to be pooled, else its only one.
    fn open(model: &Model, side: &TextSide, settings: &SessionSettings) -> Result<TextTower, Error> {
        let graph = Graph::open(model, &side.graph, "text", settings)?;
        let resolve = || {
            let tokens = TokenInputs::of(&graph, side)?;
            graph.check_inputs(&[], &tokens.names())?;
            let outputs = if side.pooling.is_some() { &TOKEN_OUTPUTS[..] } else { &TEXT_OUTPUTS };
            Ok((tokens, graph.output(side.output.as_deref(), outputs)?))
        };
        let (tokens, output) =
            resolve().map_err(|source| Error::Model { folder: model.folder.clone(), source })?;
        Ok(TextTower { output, graph, tokens, pooling: side.pooling })
    }

    /// Embeds captions.
    pub fn embed(&mut self, tokens: &Tokens) -> Result<Embeddings, Error> {
        self.run(tokens).map(unit_rows)
    }

    fn run(&mut self, tokens: &Tokens) -> Result<Matrix, Error> {
        let inputs = self.tokens.inputs(tokens).map_err(|source| self.graph.fault(source))?;
        let n = tokens.n_rows();
        match self.pooling {
            None => {
                let [rows] = self.graph.run(inputs, [&self.output], n)?;
                Ok(rows)
            }
            Some(pooling) => {
                let rows = self.graph.run_tokens(inputs, &self.output, n, tokens.length())?;
                Ok(pooled(&rows, tokens, pooling))
            }
        }
    }

    fn width(&mut self) -> Result<usize, ModelError> {
        let blank = self.tokens.blank(N_DRY);
        let rows = self.run(&blank).map_err(|error| self.graph.in_dry_run(error))?;
        Ok(rows.n_cols())
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

    fn embed(&mut self, pixels: &[f32], tokens: &Tokens) -> Result<PairEmbeddings, Error> {
        let inputs = pair_inputs(&self.pixels, &self.tokens, pixels, tokens);
        let inputs = inputs.map_err(|source| self.graph.fault(source))?;
        let [image, text] =
            self.graph.run(inputs, [&self.image_output, &self.text_output], tokens.n_rows())?;
        Ok(PairEmbeddings { image: unit_rows(image), text: unit_rows(text) })
    }

    fn widths(&mut self) -> Result<(usize, usize), ModelError> {
        let (pixels, tokens) = (self.pixels.blank(N_DRY), self.tokens.blank(N_DRY));
        let inputs = pair_inputs(&self.pixels, &self.tokens, &pixels, &tokens);
        let inputs = inputs.map_err(|source| self.graph.dry_fault(source))?;
        let [image, text] = self.graph.dry_run(inputs, [&self.image_output, &self.text_output])?;
        Ok((image, text))
    }
}

/// What a graph with both towers takes.
fn pair_inputs<'a>(
    pixels: &'a Pixels,
    tokens: &'a TokenInputs,
    pixel_values: &'a [f32],
    captions: &'a Tokens,
) -> ort::Result<Vec<Input<'a>>> {
    let mut inputs = tokens.inputs(captions)?;
    inputs.push(pixels.input(pixel_values, captions.n_rows())?);
    Ok(inputs)
}

/// Makes one vector of each caption's token vectors.
///
/// ```text
/// mean:  Σ_t mask[t] · vector[t] / Σ_t mask[t]        cls:  vector[0]        last:  vector[last t with mask[t] = 1]
/// ```
///
/// # Shapes
///
/// `rows` is `[n · length of the token rows, width]`, the result `[n, width]`. A caption without a token of its own is all zeros.
///
/// # Source
///
/// sentence-transformers, `Pooling`. Sums are in f64.
fn pooled(rows: &Matrix, tokens: &Tokens, pooling: TextPooling) -> Matrix {
    let mut all = Matrix::zeros(0, rows.n_cols());
    for (caption, mask) in tokens.mask().chunks_exact(tokens.length()).enumerate() {
        let mut own = (0..mask.len()).filter(|&token| mask[token] == 1);
        let first_row = caption * mask.len();
        let taken: Vec<usize> = match pooling {
            TextPooling::Mean => own.collect(),
            TextPooling::Cls => own.take(1).collect(),
            TextPooling::Last => own.next_back().into_iter().collect(),
        };
        let mut sums = vec![0.0; rows.n_cols()];
        for &token in &taken {
            for (sum, &value) in sums.iter_mut().zip(rows.row(first_row + token)) {
                *sum += f64::from(value);
            }
        }
        let n_taken = taken.len().max(1) as f64;
        all.push_row(&sums.iter().map(|sum| (sum / n_taken) as f32).collect::<Vec<_>>());
    }
    all
}

/// Scales each row to length 1 and finds those that have none; lengths are summed in f64.
pub fn unit_rows(mut rows: Matrix) -> Embeddings {
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
