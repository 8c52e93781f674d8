//! Two models, or two variants of one, on samples of a pool in; how far their embeddings and the order of their
//! similarities agree, and how fast each is, out.

use std::fmt::{self, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;

use crate::embed::{
    Encoders, InferenceSettings, Model, ModelChoice, ModelInputs, ModelRows, Sessions, Variant, open_shard,
};
use crate::error::Error;
use crate::matrix::{Matrix, dot};
use crate::noise::{Purpose, keyed_hash};
use crate::plan::Pool;
use crate::rank::{Overlap, spearman};
use crate::settings::{ReadSettings, SampleContents};

use super::{Cosines, SharedPart, number};

/// Samples decoded at once.
const BLOCK_SAMPLES: usize = 256;

/// What the top is, as a fraction of the samples: JEST's filter ratio of 0.8 keeps a fifth.
const TOP_FIFTH: usize = 5;

/// A model folder, and which of its exports: `DIR` or `DIR@fp16`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    pub folder: PathBuf,
    pub variant: Variant,
}

impl FromStr for ModelName {
    type Err = std::convert::Infallible;

    /// What follows the last `@` is taken as a variant if it is one, and as a part of the folder's name if not.
    fn from_str(text: &str) -> Result<ModelName, Self::Err> {
        let named = text.rsplit_once('@').and_then(|(folder, variant)| {
            let variant = serde_json::from_value(serde_json::Value::String(variant.to_owned())).ok()?;
            Some(ModelName { folder: PathBuf::from(folder), variant })
        });
        Ok(named.unwrap_or_else(|| ModelName { folder: PathBuf::from(text), variant: Variant::default() }))
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variant = serde_json::json!(self.variant);
        write!(f, "{}", self.folder.display())?;
        match variant.as_str() {
            Some(variant) if self.variant != Variant::default() => write!(f, "@{variant}"),
            _ => Ok(()),
        }
    }
}

/// One of two models on the samples.
#[derive(Debug, Serialize)]
pub struct ModelMeasured {
    pub model: String,
    pub digest: String,
    pub embedding_dim: usize,
    /// Which provider runs how many nodes.
    pub nodes: String,
    /// Samples that the model embeds in a second on this machine, both towers, without decoding.
    pub samples_per_sec: f64,
}

/// How far two models agree.
#[derive(Debug, Serialize)]
pub struct ModelsComparison {
    pub left: ModelMeasured,
    pub right: ModelMeasured,
    /// Samples that both embedded.
    pub n_samples: usize,
    pub n_rejected: usize,
    /// Of both models' embeddings of an image; null where one has none, or where their widths differ.
    pub image_cosines: Option<Cosines>,
    /// The same of a caption.
    pub caption_cosines: Option<Cosines>,
    /// Spearman's rank correlation of the similarity of each image and its caption; null where a model has no such.
    pub similarity_rank_correlation: Option<f64>,
    /// The fifth of the samples whose image and caption are the most similar.
    pub top_fifth: Option<SharedPart>,
    /// Of classifiers: the share of samples that both put into the same class.
    pub same_class: Option<f64>,
}

/// What a comparison of models takes.
#[derive(Clone, Debug)]
pub struct ModelsRequest<'a> {
    pub left: &'a ModelName,
    pub right: &'a ModelName,
    pub pool: &'a Pool,
    /// Captions are read where a model takes them, whatever it says.
    pub read: &'a ReadSettings,
    pub n_samples: usize,
    pub inference: InferenceSettings,
    pub n_threads: usize,
    pub inference_batch_size: usize,
}

/// Embeds the first `n_samples` samples of the pool's shards, in the order of a keyed hash of the shards, with both models.
///
/// # Errors
///
/// Those of opening models and shards; [`Error::NothingEmbedded`] if no sample can be decoded.
pub fn compare_models(request: &ModelsRequest) -> Result<ModelsComparison, Error> {
    let open = |name: &ModelName| {
        Model::open(&name.folder, ModelChoice { variant: name.variant, ..ModelChoice::default() })
    };
    let models = [open(request.left)?, open(request.right)?];
    let takes_captions = models.iter().any(|model| model.kind().takes_captions());
    let samples = if takes_captions { SampleContents::ImageText } else { SampleContents::Image };
    let read = ReadSettings { samples, label_field: None, ..request.read.clone() };
    let encoders = Encoders::new(&models, read.limits.clone())?.within(&read.bounds);
    let [mut left, mut right] = [Measured::open(request, &models[0])?, Measured::open(request, &models[1])?];
    let probe = encoders.probe()?;
    left.sessions.find_padding(0, &probe)?;
    right.sessions.find_padding(1, &probe)?;
    let (mut n_rejected, mut n_left) = (0, request.n_samples);
    // decoding and inference take turns, so that each model has the machine for itself while it is timed
    for shard_idx in shards_in_keyed_order(request.pool) {
        let shard = &request.pool.shards[shard_idx];
        let mut samples = open_shard(request.pool, shard, &read)?.peekable();
        while n_left > 0 && samples.peek().is_some() {
            let block: Vec<_> = samples
                .by_ref()
                .take(BLOCK_SAMPLES.min(n_left))
                .collect::<Result<_, _>>()
                .map_err(|source| Error::Shard { shard: shard.id.clone(), source })?;
            let n_read = block.len();
            let decoded: Vec<_> =
                block.into_par_iter().map(|sample| encoders.decode(sample)).collect::<Result<_, Error>>()?;
            let inputs: Vec<ModelInputs> = decoded.into_iter().filter_map(|sample| sample.inputs).collect();
            n_rejected += n_read - inputs.len();
            n_left -= inputs.len();
            left.embed(0, &inputs)?;
            right.embed(1, &inputs)?;
        }
    }
    Measured::compare(request, left, right, n_rejected)
}

fn shards_in_keyed_order(pool: &Pool) -> Vec<usize> {
    let mut shards: Vec<usize> = (0..pool.shards.len()).collect();
    shards.sort_by_key(|&idx| keyed_hash(Purpose::Control, 0, 0, &pool.shards[idx].id, 0));
    shards
}

/// A model with what it made so far.
struct Measured {
    sessions: Sessions,
    rows: ModelRows,
    is_present: Vec<bool>,
    secs: f64,
    n_timed: usize,
}

impl Measured {
    fn open(request: &ModelsRequest, model: &Model) -> Result<Measured, Error> {
        let (inference, batch_size) = (&request.inference, request.inference_batch_size);
        let sessions = Sessions::open(model, inference, request.n_threads, batch_size)?;
        let rows = sessions.model().no_rows();
        Ok(Measured { sessions, rows, is_present: Vec::new(), secs: 0.0, n_timed: 0 })
    }

    fn embed(&mut self, model_idx: usize, inputs: &[ModelInputs]) -> Result<(), Error> {
        if self.is_present.is_empty() {
            self.sessions.embed(model_idx, inputs)?; // to warm up
        }
        let start = Instant::now();
        let embedded = self.sessions.embed(model_idx, inputs)?;
        self.secs += start.elapsed().as_secs_f64();
        self.n_timed += inputs.len();
        for batch in embedded {
            self.rows.append(&batch.outputs);
            self.is_present.extend(batch.rejections.iter().map(Option::is_none));
        }
        Ok(())
    }

    /// The similarity of each image and its caption, of these rows, if the model has both towers.
    fn similarities(&self, rows: &[usize]) -> Option<Vec<f64>> {
        let (images, captions) = (self.rows.images()?, self.rows.captions()?);
        Some(rows.iter().map(|&row| f64::from(dot(images.row(row), captions.row(row)))).collect())
    }

    /// The class of the largest logit of each of these rows, if the model is a classifier.
    fn classes(&self, rows: &[usize]) -> Option<Vec<usize>> {
        let logits = self.rows.logits()?;
        let largest = |&row: &usize| {
            let classes = logits.row(row).iter().enumerate();
            classes.max_by(|left, right| left.1.total_cmp(right.1)).map_or(0, |(class, _)| class)
        };
        Some(rows.iter().map(largest).collect())
    }

    fn summary(self, name: &ModelName) -> ModelMeasured {
        let loaded = self.sessions.model();
        ModelMeasured {
            model: name.to_string(),
            digest: loaded.model.digest.clone(),
            embedding_dim: loaded.embedding_dim,
            nodes: loaded.towers.nodes().to_string(),
            samples_per_sec: self.n_timed as f64 / self.secs,
        }
    }

    fn compare(
        request: &ModelsRequest,
        left: Measured,
        right: Measured,
        n_rejected: usize,
    ) -> Result<ModelsComparison, Error> {
        let rows: Vec<usize> =
            (0..left.is_present.len()).filter(|&row| left.is_present[row] && right.is_present[row]).collect();
        if rows.is_empty() {
            return Err(Error::NothingEmbedded);
        }
        let cosines = |of_left: Option<&Matrix>, of_right: Option<&Matrix>| {
            let (of_left, of_right) = (of_left?, of_right?);
            let cosine = |&row: &usize| f64::from(dot(of_left.row(row), of_right.row(row)));
            (of_left.n_cols() == of_right.n_cols()).then(|| Cosines::of(rows.iter().map(cosine).collect()))?
        };
        let similarities = left.similarities(&rows).zip(right.similarities(&rows));
        let top_fifth = similarities.as_ref().map(|(left, right)| {
            let top = Overlap::of_largest(left, right, rows.len().div_ceil(TOP_FIFTH));
            SharedPart::of(top, rows.len())
        });
        let same_class = left.classes(&rows).zip(right.classes(&rows)).map(|(left, right)| {
            let n_same = left.iter().zip(&right).filter(|(left, right)| left == right).count();
            n_same as f64 / rows.len() as f64
        });
        Ok(ModelsComparison {
            n_samples: rows.len(),
            n_rejected,
            image_cosines: cosines(left.rows.images(), right.rows.images()),
            caption_cosines: cosines(left.rows.captions(), right.rows.captions()),
            similarity_rank_correlation: similarities.and_then(|(left, right)| spearman(&left, &right)),
            top_fifth,
            same_class,
            left: left.summary(request.left),
            right: right.summary(request.right),
        })
    }
}

impl ModelsComparison {
    pub fn text(&self) -> String {
        let mut text = String::new();
        for model in [&self.left, &self.right] {
            let _ = writeln!(
                text,
                "{}: {} dimensions, {:.1} samples/s, nodes: {}",
                model.model, model.embedding_dim, model.samples_per_sec, model.nodes
            );
        }
        let _ = writeln!(text, "{} samples, {} rejected", self.n_samples, self.n_rejected);
        for (what, cosines) in [("image", &self.image_cosines), ("caption", &self.caption_cosines)] {
            let shown = match cosines {
                None => "not to be compared".to_owned(),
                Some(cosines) => format!(
                    "mean {:.6}, lowest {:.6}, 1 % {:.6}, 5 % {:.6}, median {:.6}",
                    cosines.mean, cosines.min, cosines.percentile_1, cosines.percentile_5, cosines.median
                ),
            };
            let _ = writeln!(text, "cosine of both embeddings, {what:8} {shown}");
        }
        let _ = writeln!(
            text,
            "rank correlation of image-caption similarities (Spearman) {}",
            number(self.similarity_rank_correlation)
        );
        let top_fifth = self.top_fifth.as_ref().map_or(number(None), SharedPart::text);
        let _ = write!(text, "most similar fifth in both  {top_fifth}");
        if let Some(same_class) = self.same_class {
            let _ = write!(text, "\nsamples in the same class of both  {same_class:.4}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_stands_after_the_folder() {
        let name = |text: &str| text.parse::<ModelName>().unwrap();
        assert_eq!(name("models/a@fp16"), ModelName { folder: "models/a".into(), variant: Variant::Fp16 });
        assert_eq!(name("models/a").variant, Variant::default());
        assert_eq!(name("models@home/a").folder, PathBuf::from("models@home/a"));
        for text in ["models/a@fp16", "models/a"] {
            assert_eq!(name(text).to_string(), text);
        }
    }
}
