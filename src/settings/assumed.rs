//! What `superbatch plan --assume FILE` takes in place of the pool, the models' speed and the machine that are there: the
//! estimate of a run that nobody has the pool or the nodes for yet.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::Error;

use super::{ModelRole, Models, SettingsError, out_of_range};

/// A pool, the models of a pipeline and a node, as somebody states them.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Assumptions {
    pub pool: AssumedPool,
    /// Every model of the pipeline.
    pub models: Models<AssumedModel>,
    pub node: Node,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AssumedPool {
    pub n_samples: u64,
    pub samples_per_shard: u64,
    /// Of a shard, for each sample.
    pub sample_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AssumedModel {
    /// Width of an embedding; a classifier keeps the number of its own classes.
    pub embedding_dim: usize,
    /// Operations of a forward pass over one sample, a multiplication and an addition being two.
    pub flops: f64,
    /// What one GPU embeds; of a node without GPUs, one core.
    pub samples_per_sec: f64,
}

/// One machine, and how fast its parts are.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub n_gpus: usize,
    pub n_cores: usize,
    /// Images that one core decodes and resizes. Stated where it is assumed; unknown where none could be decoded.
    #[serde(deserialize_with = "stated")]
    pub decode_samples_per_sec: Option<f64>,
    /// Operations of one core in products of embeddings.
    pub flops_per_sec: f64,
    /// What the node reads and writes of shards and run folders, together.
    pub bytes_per_sec: f64,
}

/// A number that must be there.
fn stated<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    f64::deserialize(deserializer).map(Some)
}

impl Assumptions {
    /// Reads a file of assumptions, for a pipeline with these models; what it has of others is left out.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, a key that is unknown, missing or out of range, a model that it lacks.
    pub fn load(path: &Path, roles: impl IntoIterator<Item = ModelRole>) -> Result<Assumptions, Error> {
        let text = fs::read_to_string(path)
            .map_err(|source| Error::ReadSetting { path: path.to_owned(), source })?;
        Assumptions::parse(&text, roles)
            .map_err(|source| Error::Assumptions { path: path.to_owned(), source: Box::new(source) })
    }

    fn parse(text: &str, roles: impl IntoIterator<Item = ModelRole>) -> Result<Assumptions, SettingsError> {
        let mut assumed: Assumptions = toml::from_str(text).map_err(super::syntax)?;
        let roles: Vec<ModelRole> = roles.into_iter().collect();
        let models = assumed.models.iter().filter(|(role, _)| roles.contains(role));
        assumed.models = models.map(|(role, model)| (role, model.clone())).collect();
        let decode_samples_per_sec = assumed.node.decode_samples_per_sec.expect("it is stated");
        // (key, value, the most): far above any use, and no product of them overflows
        let mut numbers = vec![
            ("pool.n_samples".to_owned(), assumed.pool.n_samples as f64, 1e11),
            ("pool.samples_per_shard".to_owned(), assumed.pool.samples_per_shard as f64, 1e11),
            ("pool.sample_bytes".to_owned(), assumed.pool.sample_bytes as f64, 1e7),
            ("node.n_cores".to_owned(), assumed.node.n_cores as f64, 1e6),
            ("node.decode_samples_per_sec".to_owned(), decode_samples_per_sec, 1e18),
            ("node.flops_per_sec".to_owned(), assumed.node.flops_per_sec, 1e18),
            ("node.bytes_per_sec".to_owned(), assumed.node.bytes_per_sec, 1e18),
        ];
        for role in roles {
            let missing = || SettingsError::ModelMissing { what: "--assume".to_owned(), model: role };
            let model = assumed.models.get(role).ok_or_else(missing)?;
            numbers.push((format!("models.{role}.embedding_dim"), model.embedding_dim as f64, 1e5));
            numbers.push((format!("models.{role}.flops"), model.flops, 1e18));
            numbers.push((format!("models.{role}.samples_per_sec"), model.samples_per_sec, 1e18));
        }
        match numbers.into_iter().find(|(_, value, most)| !(1.0..=*most).contains(value)) {
            Some((key, value, _)) => {
                Err(out_of_range(&key, value, "at least 1, and no more than any machine has"))
            }
            None => Ok(assumed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASSUMED: &str = "
        [pool]
        n_samples = 1_000_000_000
        samples_per_shard = 10_000
        sample_bytes = 30_000
        [models.learner]
        embedding_dim = 512
        flops = 14.8e9
        samples_per_sec = 5_000
        [node]
        n_gpus = 0
        n_cores = 64
        decode_samples_per_sec = 1500
        flops_per_sec = 2e11
        bytes_per_sec = 2e9
    ";

    #[test]
    fn every_model_is_stated_and_every_rate_is_one() {
        let parse = |text: &str, role| Assumptions::parse(text, [role]).map_err(|error| error.to_string());
        assert_eq!(parse(ASSUMED, ModelRole::Learner).unwrap().node.n_cores, 64);
        let message = parse(ASSUMED, ModelRole::Reference).unwrap_err();
        assert_eq!(message, "`--assume` needs `models.reference`");
        for (from, to) in [("2e9", "0"), ("2e9", "nan"), ("2e9", "inf"), ("2e9", "-1"), ("2e9", "1e19")] {
            let message = parse(&ASSUMED.replace(from, to), ModelRole::Learner).unwrap_err();
            assert!(message.contains("node.bytes_per_sec"), "{message}");
        }
        let without =
            parse(&ASSUMED.replace("decode_samples_per_sec = 1500", ""), ModelRole::Learner).unwrap_err();
        assert!(without.contains("missing field `decode_samples_per_sec`"), "{without}");
        let message = parse(&ASSUMED.replace("n_gpus", "gpus"), ModelRole::Learner).unwrap_err();
        assert!(message.contains("unknown field `gpus`"), "{message}");
    }

    #[test]
    fn models_of_other_pipelines_do_not_count() {
        let other = "[models.full_learner]\nembedding_dim = 0\nflops = nan\nsamples_per_sec = 0\n[node]";
        let assumed = Assumptions::parse(&ASSUMED.replace("[node]", other), [ModelRole::Learner]).unwrap();
        assert_eq!(assumed.models.iter().map(|(role, _)| role).collect::<Vec<_>>(), [ModelRole::Learner]);
    }
}
