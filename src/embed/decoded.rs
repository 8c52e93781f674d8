//! A read sample in, the inputs of every model out: decoded once, preprocessed once for each distinct rule.

use std::sync::Arc;

use ::image::RgbImage;

use crate::bounds::{fits_size, fits_texts};
use crate::error::Error;
use crate::read::{Limits, ReadSample, RejectedSample, Sample};
use crate::rejection::Rejection;
use crate::settings::MetadataFilter;

use super::image::{Decoded, Preprocessing, preprocess, stated_size};
use super::loaded::{LoadedModel, Padding};
use super::model::{Model, ModelParts, TextPreparation, TextSide};
use super::tokenize::{Tokenizer, Tokens};
use super::tower::{BatchInputs, BatchOutputs, Logits};

/// What `samples/` says of a sample: everything but its image bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleRow {
    pub key: String,
    pub sample_idx: u64,
    pub uid: Option<String>,
    pub caption: Option<String>,
    pub label: Option<u32>,
    /// Pixels; null where the image could not be decoded.
    pub width: Option<u32>,
    pub height: Option<u32>,
    pub image_offset: Option<u64>,
    pub image_size: u64,
    pub json: Option<String>,
    pub rejection: Option<Rejection>,
}

/// A sample after decoding: its row, and what the models take unless it was rejected.
pub struct DecodedSample {
    pub row: SampleRow,
    pub inputs: Option<ModelInputs>,
}

impl DecodedSample {
    fn rejected(row: SampleRow, rejection: Rejection) -> DecodedSample {
        DecodedSample { row: SampleRow { rejection: Some(rejection), ..row }, inputs: None }
    }
}

/// What the models take of one sample.
pub struct ModelInputs {
    /// By model, which of these it takes.
    taken: Arc<[Taken]>,
    /// `[3, height, width]` of each distinct preprocessing.
    pixels: Vec<Vec<f32>>,
    /// One row for each tokenizer.
    tokens: Vec<Tokens>,
    /// The number of the sample's class, in pools of labelled images.
    label: Option<u32>,
}

/// Preprocessing and tokenizer of each model.
pub struct Encoders {
    preprocessings: Vec<Preprocessing>,
    tokenizers: Vec<OpenTokenizer>,
    /// By model, which of these it takes.
    taken: Arc<[Taken]>,
    limits: Limits,
    /// What a sample must be within to be embedded.
    bounds: MetadataFilter,
}

/// A tokenizer with what it was made of.
struct OpenTokenizer {
    tokenizer: Tokenizer,
    /// The bytes of its `tokenizer.json`.
    file: Arc<[u8]>,
    preparation: TextPreparation,
}

/// Positions among the distinct preprocessings, and among the tokenizers.
#[derive(Clone, Copy, Debug)]
enum Taken {
    Pair { pixels: usize, tokens: usize },
    Image { pixels: usize },
    Text { tokens: usize },
}

impl Encoders {
    pub fn new<'a>(models: impl IntoIterator<Item = &'a Model>, limits: Limits) -> Result<Encoders, Error> {
        let mut encoders = Encoders {
            preprocessings: Vec::new(),
            tokenizers: Vec::new(),
            taken: Arc::new([]),
            limits,
            bounds: MetadataFilter::default(),
        };
        let mut taken = Vec::new();
        for model in models {
            taken.push(match &model.parts {
                ModelParts::Pair { image, text } => Taken::Pair {
                    pixels: encoders.preprocessing(&image.preprocessing),
                    tokens: encoders.tokenizer(model, text)?,
                },
                ModelParts::Image(image) | ModelParts::Classifier(image) => {
                    Taken::Image { pixels: encoders.preprocessing(&image.preprocessing) }
                }
                ModelParts::Text(text) => Taken::Text { tokens: encoders.tokenizer(model, text)? },
            });
        }
        encoders.taken = taken.into();
        Ok(encoders)
    }

    /// The same, rejecting what is outside these bounds.
    pub fn within(self, bounds: &MetadataFilter) -> Encoders {
        Encoders { bounds: bounds.clone(), ..self }
    }

    /// The position of a preprocessing, which models may share.
    fn preprocessing(&mut self, preprocessing: &Preprocessing) -> usize {
        let known = self.preprocessings.iter().position(|known| known == preprocessing);
        known.unwrap_or_else(|| {
            self.preprocessings.push(preprocessing.clone());
            self.preprocessings.len() - 1
        })
    }

    /// The position of a tokenizer, which models may share.
    fn tokenizer(&mut self, model: &Model, side: &TextSide) -> Result<usize, Error> {
        let is_same =
            |open: &OpenTokenizer| open.file == side.tokenizer && open.preparation == side.preparation;
        if let Some(known) = self.tokenizers.iter().position(is_same) {
            return Ok(known);
        }
        self.tokenizers.push(OpenTokenizer {
            tokenizer: Tokenizer::open(&model.folder, side)?,
            file: side.tokenizer.clone(),
            preparation: side.preparation.clone(),
        });
        Ok(self.tokenizers.len() - 1)
    }

    /// Black images with captions of different lengths, by which
    /// [`LoadedModel::find_padding`](super::loaded::LoadedModel::find_padding) tells what padding does.
    pub fn probe(&self) -> Result<[ModelInputs; 2], Error> {
        let black = RgbImage::new(1, 1);
        let captions = ["a photo", "two dogs and a cat sleep on a red sofa"];
        let [short, long] = captions.map(|caption| self.encode(|_| &black, Some(caption), None));
        Ok([short?, long?])
    }

    /// Decodes one sample.
    ///
    /// # Errors
    ///
    /// A tokenizer that cannot take a piece of text: the model's fault, not the sample's.
    pub fn decode(&self, sample: ReadSample) -> Result<DecodedSample, Error> {
        let sample = match sample {
            ReadSample::Sample(sample) => sample,
            ReadSample::Rejected(rejected) => {
                return Ok(DecodedSample { row: SampleRow::of_rejected(rejected), inputs: None });
            }
        };
        if !fits_texts(&self.bounds, sample.caption.as_deref(), sample.json.as_deref()) {
            return Ok(DecodedSample::rejected(SampleRow::of(sample), Rejection::OutOfBounds));
        }
        if sample.image.is_empty() {
            // of a pool without images, for which no model that takes them is planned
            let row = SampleRow::of(sample);
            let none = RgbImage::new(1, 1);
            let inputs = self.encode(|_| &none, row.caption.as_deref(), row.label)?;
            return Ok(DecodedSample { row, inputs: Some(inputs) });
        }
        // what is outside by its header is not decoded, whether or not it could be
        let stated = if self.bounds.has_sizes() { stated_size(&sample.image) } else { None };
        if let Some((width, height)) = stated
            && !fits_size(&self.bounds, width, height)
        {
            let row = SampleRow { width: Some(width), height: Some(height), ..SampleRow::of(sample) };
            return Ok(DecodedSample::rejected(row, Rejection::OutOfBounds));
        }
        let decoded = Decoded::new(&sample.image, &self.limits, &self.preprocessings);
        let mut row = SampleRow::of(sample);
        let image = match decoded {
            Ok(image) => image,
            Err(rejection) => return Ok(DecodedSample::rejected(row, rejection)),
        };
        (row.width, row.height) = (Some(image.width), Some(image.height));
        if !fits_size(&self.bounds, image.width, image.height) {
            return Ok(DecodedSample::rejected(row, Rejection::OutOfBounds));
        }
        let inputs = self.encode(|rule| image.image_for(rule), row.caption.as_deref(), row.label)?;
        Ok(DecodedSample { row, inputs: Some(inputs) })
    }

    fn encode<'a>(
        &self,
        image_for: impl Fn(&Preprocessing) -> &'a RgbImage,
        caption: Option<&str>,
        label: Option<u32>,
    ) -> Result<ModelInputs, Error> {
        let pixels = self.preprocessings.iter().map(|preprocessing| {
            let mut pixels = vec![0.0; preprocessing.n_values()];
            preprocess(image_for(preprocessing), preprocessing, &mut pixels);
            pixels
        });
        let mut inputs =
            ModelInputs { taken: self.taken.clone(), pixels: pixels.collect(), tokens: Vec::new(), label };
        for OpenTokenizer { tokenizer, .. } in &self.tokenizers {
            let caption = caption.expect("models of captions are planned where every sample has one");
            let mut tokens = Tokens::new(tokenizer.context_length());
            tokenizer.encode(caption, &mut tokens)?;
            inputs.tokens.push(tokens);
        }
        Ok(inputs)
    }
}

/// What a model made of some samples, a row a sample.
pub struct EmbeddedBatch {
    pub outputs: BatchOutputs,
    /// Why there is nothing for a sample.
    pub rejections: Vec<Option<Rejection>>,
}

/// Runs one model over samples. `model_idx` is its position in the encoders that made the inputs.
pub fn embed_batch(
    loaded: &mut LoadedModel,
    model_idx: usize,
    batch: &[ModelInputs],
) -> Result<EmbeddedBatch, Error> {
    let outputs = loaded.towers.embed(&batch_inputs(model_idx, batch, loaded.padding))?;
    let rejections = rejections(&outputs, batch);
    Ok(EmbeddedBatch { outputs, rejections })
}

fn batch_inputs(model_idx: usize, batch: &[ModelInputs], padding: Padding) -> BatchInputs {
    let pixels = |position: usize| {
        let mut pixels = Vec::with_capacity(batch.len() * batch[0].pixels[position].len());
        batch.iter().for_each(|inputs| pixels.extend_from_slice(&inputs.pixels[position]));
        pixels
    };
    let tokens = |position: usize| {
        let mut tokens = Tokens::new(batch[0].tokens[position].length());
        batch.iter().for_each(|inputs| tokens.append(&inputs.tokens[position]));
        match padding {
            Padding::ContextLength => tokens,
            Padding::Longest => tokens.without_shared_padding(),
        }
    };
    match batch[0].taken[model_idx] {
        Taken::Pair { pixels: image, tokens: text } => {
            BatchInputs::Pairs { pixels: pixels(image), tokens: tokens(text) }
        }
        Taken::Image { pixels: image } => {
            BatchInputs::Images { pixels: pixels(image), n_images: batch.len() }
        }
        Taken::Text { tokens: text } => BatchInputs::Captions(tokens(text)),
    }
}

/// A rejection in place of each row that is no result.
fn rejections(outputs: &BatchOutputs, batch: &[ModelInputs]) -> Vec<Option<Rejection>> {
    let mut rejections = vec![None; batch.len()];
    let mut reject = |rows: &[usize]| {
        rows.iter().for_each(|&row| rejections[row] = Some(Rejection::DegenerateEmbedding));
    };
    match outputs {
        BatchOutputs::Pairs(pairs) => {
            reject(&pairs.image.degenerate);
            reject(&pairs.text.degenerate);
        }
        BatchOutputs::Images(embeddings) | BatchOutputs::Captions(embeddings) => {
            reject(&embeddings.degenerate);
        }
        BatchOutputs::Logits(Logits { rows, degenerate }) => {
            reject(degenerate);
            let n_classes = rows.n_cols();
            let labels = batch.iter().map(|inputs| inputs.label);
            for (rejection, label) in rejections.iter_mut().zip(labels) {
                if label.is_some_and(|label| label as usize >= n_classes) {
                    *rejection = Some(Rejection::LabelOutOfRange);
                }
            }
        }
    }
    rejections
}

impl SampleRow {
    fn of(sample: Sample) -> SampleRow {
        SampleRow {
            key: sample.key,
            sample_idx: sample.sample_idx,
            uid: sample.uid,
            caption: sample.caption,
            label: sample.label,
            width: None,
            height: None,
            image_offset: sample.image_offset,
            image_size: sample.image_size,
            json: sample.json,
            rejection: None,
        }
    }

    fn of_rejected(sample: RejectedSample) -> SampleRow {
        SampleRow {
            key: sample.key,
            sample_idx: sample.sample_idx,
            uid: None,
            caption: sample.caption,
            label: sample.label,
            width: None,
            height: None,
            image_offset: sample.image_offset,
            image_size: sample.image_size,
            json: sample.json,
            rejection: Some(sample.rejection),
        }
    }
}
