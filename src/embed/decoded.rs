//! A read sample in, the inputs of every model out: decoded once, preprocessed once for each distinct rule.

use ::image::RgbImage;

use crate::error::Error;
use crate::read::{Limits, ReadSample, RejectedSample, Sample};
use crate::rejection::Rejection;

use super::image::{Preprocessing, decode, preprocess};
use super::loaded::LoadedModel;
use super::model::Model;
use super::tokenize::{Tokenizer, Tokens};
use super::tower::PairEmbeddings;

/// What `samples/` says of a sample: everything but its image bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleRow {
    pub key: String,
    pub sample_idx: u64,
    pub uid: Option<String>,
    pub caption: Option<String>,
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

/// What the models take of one sample, by model.
pub struct ModelInputs {
    /// `[3, height, width]` of each distinct preprocessing.
    pixels: Vec<Vec<f32>>,
    /// Which of `pixels` each model takes.
    pixels_of: Vec<usize>,
    /// One row for each model.
    tokens: Vec<Tokens>,
}

/// Preprocessing and tokenizer of each model.
pub struct Encoders {
    preprocessings: Vec<Preprocessing>,
    preprocessing_of: Vec<usize>,
    tokenizers: Vec<Tokenizer>,
    limits: Limits,
}

impl Encoders {
    pub fn new(models: &[Model], limits: Limits) -> Result<Encoders, Error> {
        let mut encoders = Encoders {
            preprocessings: Vec::new(),
            preprocessing_of: Vec::new(),
            tokenizers: Vec::new(),
            limits,
        };
        for model in models {
            let preprocessing = &model.preprocessing;
            let known = encoders.preprocessings.iter().position(|known| known == preprocessing);
            encoders.preprocessing_of.push(known.unwrap_or(encoders.preprocessings.len()));
            if known.is_none() {
                encoders.preprocessings.push(preprocessing.clone());
            }
            encoders.tokenizers.push(Tokenizer::open(model)?);
        }
        Ok(encoders)
    }

    /// What the models take of a black image with a short caption.
    pub fn blank(&self) -> Result<ModelInputs, Error> {
        self.encode(&RgbImage::new(1, 1), "a photo")
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
        let decoded = decode(&sample.image, &self.limits);
        let mut row = SampleRow::of(sample);
        let image = match decoded {
            Ok(image) => image,
            Err(rejection) => {
                row.rejection = Some(rejection);
                return Ok(DecodedSample { row, inputs: None });
            }
        };
        (row.width, row.height) = (Some(image.width()), Some(image.height()));
        let caption = row.caption.as_deref().expect("a whole sample has a caption");
        let inputs = self.encode(&image, caption)?;
        Ok(DecodedSample { row, inputs: Some(inputs) })
    }

    fn encode(&self, image: &RgbImage, caption: &str) -> Result<ModelInputs, Error> {
        let pixels = self.preprocessings.iter().map(|preprocessing| {
            let mut pixels = vec![0.0; preprocessing.n_values()];
            preprocess(image, preprocessing, &mut pixels);
            pixels
        });
        let mut inputs = ModelInputs {
            pixels: pixels.collect(),
            pixels_of: self.preprocessing_of.clone(),
            tokens: Vec::new(),
        };
        for tokenizer in &self.tokenizers {
            let mut tokens = Tokens::new(tokenizer.context_length());
            tokenizer.encode(caption, &mut tokens)?;
            inputs.tokens.push(tokens);
        }
        Ok(inputs)
    }
}

impl SampleRow {
    fn of(sample: Sample) -> SampleRow {
        SampleRow {
            key: sample.key,
            sample_idx: sample.sample_idx,
            uid: sample.uid,
            caption: Some(sample.caption),
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
            width: None,
            height: None,
            image_offset: sample.image_offset,
            image_size: sample.image_size,
            json: sample.json,
            rejection: Some(sample.rejection),
        }
    }
}

/// Runs both towers of one model over an inference batch.
pub fn embed_batch(
    loaded: &mut LoadedModel,
    model_idx: usize,
    batch: &[ModelInputs],
) -> Result<PairEmbeddings, Error> {
    let mut pixels = Vec::with_capacity(batch.len() * loaded.model.preprocessing.n_values());
    let mut tokens = Tokens::new(loaded.model.text.context_length);
    for inputs in batch {
        pixels.extend_from_slice(&inputs.pixels[inputs.pixels_of[model_idx]]);
        tokens.append(&inputs.tokens[model_idx]);
    }
    loaded.towers.embed(&pixels, &tokens)
}
