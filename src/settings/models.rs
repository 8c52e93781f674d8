//! `[models.NAME]`: which models a run has, and what each is for.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::embed::image::JpegDecoding;
use crate::embed::{LogitBias, LogitScale, ModelChoice, Variant};

use super::SettingsError;

/// What a model is for; its name in a pipeline file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum ModelRole {
    /// `learner`: the model that is to be trained on what is kept, or a cheaper variant of it.
    Learner,
    /// `reference`: the model that says what can be learnt at all.
    Reference,
    /// `base`: the model whose image embeddings are clustered; it may have no text tower.
    Base,
    /// `full_learner`: the model of which `learner` is a cheaper variant; audits a fraction of the pool.
    FullLearner,
    /// `full_reference`: the same for `reference`.
    FullReference,
    /// `expert_0`, `expert_1` …: the reference of one cluster.
    Expert(u32),
}

impl ModelRole {
    /// The roles that are not experts, in the order in which runs list them.
    const NAMED: [(ModelRole, &'static str); 5] = [
        (ModelRole::Learner, "learner"),
        (ModelRole::Reference, "reference"),
        (ModelRole::Base, "base"),
        (ModelRole::FullLearner, "full_learner"),
        (ModelRole::FullReference, "full_reference"),
    ];

    /// The model that audits this one on a fraction of the pool.
    pub fn audited_by(self) -> Option<ModelRole> {
        match self {
            ModelRole::Learner => Some(ModelRole::FullLearner),
            ModelRole::Reference => Some(ModelRole::FullReference),
            _ => None,
        }
    }

    /// Whether the model embeds the audited fraction of the pool only.
    pub fn is_audit(self) -> bool {
        matches!(self, ModelRole::FullLearner | ModelRole::FullReference)
    }
}

impl fmt::Display for ModelRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let ModelRole::Expert(cluster) = self {
            return write!(f, "expert_{cluster}");
        }
        let name = ModelRole::NAMED.iter().find_map(|(role, name)| (role == self).then_some(*name));
        f.pad(name.expect("every role but experts has a fixed name"))
    }
}

impl FromStr for ModelRole {
    type Err = String;

    fn from_str(text: &str) -> Result<ModelRole, String> {
        // as it is written: not with a sign or leading zeros
        let expert = text.strip_prefix("expert_").and_then(|cluster| cluster.parse().ok());
        let expert = expert.filter(|cluster: &u32| text == format!("expert_{cluster}"));
        let named = ModelRole::NAMED.iter().find_map(|(role, name)| (*name == text).then_some(*role));
        named.or(expert.map(ModelRole::Expert)).ok_or_else(|| {
            format!(
                "`{text}` is no model of a run: expected `learner`, `reference`, `base`, `full_learner`, \
                 `full_reference` or `expert_N` with the number of a cluster"
            )
        })
    }
}

impl TryFrom<String> for ModelRole {
    type Error = String;

    fn try_from(text: String) -> Result<ModelRole, String> {
        text.parse()
    }
}

impl From<ModelRole> for String {
    fn from(role: ModelRole) -> String {
        role.to_string()
    }
}

/// Something for each model of a run.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Models<T>(BTreeMap<ModelRole, T>);

impl<T> Models<T> {
    pub fn get(&self, role: ModelRole) -> Option<&T> {
        self.0.get(&role)
    }

    pub fn has(&self, role: ModelRole) -> bool {
        self.0.contains_key(&role)
    }

    /// The models that there are: learner, reference and base first, experts last.
    pub fn iter(&self) -> impl Iterator<Item = (ModelRole, &T)> {
        self.0.iter().map(|(role, model)| (*role, model))
    }

    pub fn get_mut(&mut self, role: ModelRole) -> Option<&mut T> {
        self.0.get_mut(&role)
    }

    pub fn remove(&mut self, role: ModelRole) -> Option<T> {
        self.0.remove(&role)
    }

    pub fn insert(&mut self, role: ModelRole, model: T) {
        self.0.insert(role, model);
    }

    /// The experts' clusters, in order.
    pub fn experts(&self) -> impl Iterator<Item = u32> {
        self.0.keys().filter_map(|role| match role {
            ModelRole::Expert(cluster) => Some(*cluster),
            _ => None,
        })
    }
}

impl<T> FromIterator<(ModelRole, T)> for Models<T> {
    fn from_iter<I: IntoIterator<Item = (ModelRole, T)>>(models: I) -> Models<T> {
        Models(models.into_iter().collect())
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// A folder as Hugging Face exports it, with an optional `model.toml`; empty where embeddings are given.
    #[serde(default)]
    pub folder: PathBuf,
    /// Embeddings that were made before, in place of a folder.
    pub precomputed: Option<PrecomputedSettings>,
    /// Which export of the graphs: `default`, `fp16`, `bf16`, `quantized`, `int8`, `uint8`, `q4`, `q4f16` or `bnb4`.
    #[serde(default)]
    pub variant: Variant,
    /// Width and height of the image tensor, for a graph that takes any: a cheaper look at the same pictures.
    pub image_size_px: Option<u32>,
    /// How JPEGs are decoded that are much larger than the model wants: `exact`, or `scaled`, which is faster.
    #[serde(default)]
    pub jpeg_decoding: JpegDecoding,
    /// Whether logit scale and bias are fitted to the pool by the sigmoid loss, and not taken from the folder.
    #[serde(default)]
    pub calibrate: bool,
}

/// Embeddings that were made before: files with a row for each sample, one file for each shard of the pool, in the order
/// of their names.
///
/// ```toml
/// # clip-retrieval
/// precomputed = { image = "emb/img_emb/*.npy", text = "emb/text_emb/*.npy", logit_scale = 100.0 }
/// # DataComp
/// precomputed = { npz = "metadata/*.npz", image = "l14_img", text = "l14_txt", logit_scale = 100.0 }
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PrecomputedSettings {
    /// Archives with the arrays of both towers; absent: each tower has files of its own.
    pub npz: Option<String>,
    /// Image embeddings: a pattern of `.npy` files, or the name of an array in the archives.
    pub image: Option<String>,
    /// Caption embeddings, likewise.
    pub text: Option<String>,
    /// Linear, not its logarithm.
    pub logit_scale: Option<f64>,
    /// SigLIP's sign: about −10 when training begins.
    pub logit_bias: Option<f64>,
}

impl ModelSettings {
    /// Whether it says of one thing where embeddings come from.
    pub(super) fn check(&self, role: ModelRole) -> Result<(), SettingsError> {
        let has_folder = !self.folder.as_os_str().is_empty();
        let fault = match &self.precomputed {
            None if !has_folder => "needs a `folder`, or `precomputed` embeddings",
            Some(_) if has_folder => "has a `folder` and `precomputed` embeddings, but can have only one",
            Some(given) if given.image.is_none() && given.text.is_none() => {
                "has `precomputed` embeddings neither of images nor of captions"
            }
            Some(given) if given.logit_scale.is_some_and(|scale| LogitScale::linear(scale).is_err()) => {
                "has a `precomputed.logit_scale` that is not above 0 and at most a million"
            }
            Some(given) if given.logit_bias.is_some_and(|bias| LogitBias::new(bias).is_err()) => {
                "has a `precomputed.logit_bias` that is not within a million of 0"
            }
            Some(_) if self.choice() != ModelChoice::default() => {
                "has `precomputed` embeddings, which no `variant`, `image_size_px` or `jpeg_decoding` changes"
            }
            _ => return Ok(()),
        };
        Err(SettingsError::ModelSource { model: role, fault })
    }

    /// What of the folder is taken.
    pub fn choice(&self) -> ModelChoice {
        ModelChoice {
            variant: self.variant,
            image_size_px: self.image_size_px,
            jpeg_decoding: self.jpeg_decoding,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_its_name() {
        for name in
            ["learner", "reference", "base", "full_learner", "full_reference", "expert_0", "expert_41"]
        {
            assert_eq!(name.parse::<ModelRole>().unwrap().to_string(), name);
        }
        for name in ["teacher", "expert", "expert_", "expert_-1", "Learner"] {
            assert!(name.parse::<ModelRole>().is_err(), "{name}");
        }
    }

    #[test]
    fn models_come_in_order() {
        let text = r#"{"expert_10": 5, "expert_2": 4, "base": 3, "reference": 2, "learner": 1}"#;
        let models: Models<u32> = serde_json::from_str(text).unwrap();
        assert_eq!(models.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(models.experts().collect::<Vec<_>>(), [2, 10]);
        assert_eq!(models.get(ModelRole::Base), Some(&3));
    }
}
