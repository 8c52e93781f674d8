//! A read sample in, the inputs of every model out: decoded once, preprocessed once for each distinct rule.

use crate::error::Error;
use crate::read::{Limits, ReadSample};
use crate::rejection::Rejection;

use super::image::{Preprocessing, decode, preprocess};
use super::tokenize::{TokenIds, Tokenizer};
use super::tower::{Embedded, Towers};

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
    tokens: Vec<TokenIds>,
}

/// Preprocessing and tokenizer of each model.
pub struct Encoders {
    preprocessings: Vec<Preprocessing>,
    preprocessing_of: Vec<usize>,
    tokenizers: Vec<Tokenizer>,
    limits: Limits,
}

impl Encoders {
    pub fn new(towers: &[Towers], limits: Limits) -> Result<Encoders, Error> {
        let mut encoders =
            Encoders { preprocessings: Vec::new(), preprocessing_of: Vec::new(), tokenizers: Vec::new(), limits };
        for towers in towers {
            let model = towers.model();
            let known = encoders.preprocessings.iter().position(|known| known == model.preprocessing());
            encoders.preprocessing_of.push(known.unwrap_or(encoders.preprocessings.len()));
            if known.is_none() {
                encoders.preprocessings.push(model.preprocessing().clone());
            }
            encoders.tokenizers.push(model.tokenizer()?);
        }
        Ok(encoders)
    }

    pub fn decode(&self, sample: ReadSample) -> DecodedSample {
        let sample = match sample {
            ReadSample::Sample(sample) => sample,
            ReadSample::Rejected(rejected) => {
                let row = SampleRow {
                    key: rejected.key,
                    sample_idx: rejected.sample_idx,
                    uid: None,
                    caption: rejected.caption,
                    width: None,
                    height: None,
                    image_offset: rejected.image_offset,
                    image_size: rejected.image_size,
                    json: rejected.json,
                    rejection: Some(rejected.rejection),
                };
                return DecodedSample { row, inputs: None };
            }
        };
        let mut row = SampleRow {
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
        };
        let image = match decode(&sample.image, &self.limits) {
            Ok(image) => image,
            Err(rejection) => {
                row.rejection = Some(rejection);
                return DecodedSample { row, inputs: None };
            }
        };
        (row.width, row.height) = (Some(image.width()), Some(image.height()));
        let pixels = self.preprocessings.iter().map(|preprocessing| {
            let mut pixels = vec![0.0; preprocessing.n_values()];
            preprocess(&image, preprocessing, &mut pixels);
            pixels
        });
        let caption = row.caption.as_deref().expect("set above");
        let inputs = ModelInputs {
            pixels: pixels.collect(),
            pixels_of: self.preprocessing_of.clone(),
            tokens: self.tokenizers.iter().map(|tokenizer| tokenizer.encode(caption)).collect(),
        };
        DecodedSample { row, inputs: Some(inputs) }
    }
}

/// Runs both towers of one model over an inference batch.
pub fn embed_batch(towers: &mut Towers, model: usize, batch: &[ModelInputs]) -> Result<(Embedded, Embedded), Error> {
    let pixels: Vec<f32> = batch.iter().flat_map(|inputs| inputs.pixels[inputs.pixels_of[model]].iter().copied()).collect();
    let tokens: Vec<&TokenIds> = batch.iter().map(|inputs| &inputs.tokens[model]).collect();
    towers.embed(&pixels, &tokens)
}
