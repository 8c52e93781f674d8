//! A pipeline file in, checked settings out: one table a stage, an ordered list of select steps, no unknown key.
//!
//! Paths in a pipeline file are relative to the current folder, as on a command line.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::Value;

use crate::embed::Device;
use crate::error::Error;
use crate::read::Limits;
use crate::select::{Chance, FilterRatio};

/// Everything that a pipeline file can say, with the defaults for what it does not.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// What every draw and every keyed order starts from.
    #[serde(default)]
    pub seed: u64,
    /// Folder of `samples/` and `embeddings/`, which runs may share; the run folder if absent.
    pub store: Option<PathBuf>,
    /// Where models run: `auto`, `cpu`, `cuda` or `cuda:N`.
    #[serde(default)]
    pub device: Device,
    /// Threads for decoding, inference and scoring; as many as there are processors if absent.
    pub threads: Option<usize>,
    #[serde(default = "default_memory_limit_bytes")]
    pub memory_limit_bytes: u64,
    pub read: ReadSettings,
    pub models: ModelsSettings,
    #[serde(default)]
    pub embed: EmbedSettings,
    /// Absent: no clusters and no hardness columns.
    pub divide: Option<DivideSettings>,
    pub select: SelectSettings,
    #[serde(default)]
    pub write: WriteSettings,
    #[serde(default)]
    pub report: ReportSettings,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ReadSettings {
    /// Shards of the pool: paths with braces (`{00000..00012}`) and globs.
    pub shards: Vec<String>,
    /// Folder below which shard ids are paths; the longest common folder if absent.
    pub root: Option<PathBuf>,
    /// Shards in one task; absent: so many that there are at most 100,000 tasks.
    pub shards_per_task: Option<usize>,
    /// How many tasks' shards may be left out after their retries failed.
    #[serde(default)]
    pub failed_shards_max: usize,
    /// Rejections over samples of one shard, beyond which the run exits with code 3.
    #[serde(default = "default_rejection_ratio_max_shard")]
    pub rejection_ratio_max_shard: f64,
    /// The same over the whole pool.
    #[serde(default = "default_rejection_ratio_max")]
    pub rejection_ratio_max: f64,
    #[serde(default)]
    pub limits: Limits,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ModelsSettings {
    pub learner: Option<ModelSettings>,
    pub reference: Option<ModelSettings>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// A folder as Hugging Face exports it, with an optional `model.toml`.
    pub folder: PathBuf,
    /// Which export of the graphs: `default`, `fp16` or `quantized`.
    #[serde(default)]
    pub variant: crate::embed::Variant,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmbedSettings {
    /// Samples that go through a model at once; part of the model digest.
    pub inference_batch_size: usize,
    /// How embeddings are stored.
    pub embedding_dtype: EmbeddingDtype,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EmbeddingDtype {
    #[default]
    F16,
    F32,
}

/// Which of the two models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelRole {
    Learner,
    #[default]
    Reference,
}

impl ModelRole {
    pub fn name(self) -> &'static str {
        match self {
            ModelRole::Learner => "learner",
            ModelRole::Reference => "reference",
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DivideSettings {
    /// The model whose image embeddings are clustered.
    pub model: ModelRole,
    pub n_clusters: usize,
    /// Fits from other seeds, of which the best is kept.
    pub n_restarts: usize,
    pub n_iterations_max: usize,
    /// Points for the fit, for each cluster.
    pub fit_samples_per_cluster: usize,
    /// Members of each cluster's bank at most; fewer where the memory limit says so.
    pub bank_size: usize,
    /// τ of the hardness.
    pub hardness_temperature: f64,
    /// Image cosine above which two samples are near-duplicates.
    pub near_duplicate_similarity: f64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SelectSettings {
    /// Super-batches in one dealing group; fewer where the memory limit says so.
    #[serde(default = "default_super_batches_per_group")]
    pub super_batches_per_group: usize,
    pub step: Vec<Step>,
}

/// One step of `select`. The last one draws.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum Step {
    Jest(JestStep),
    Random(RandomStep),
}

/// Joint selection by learnability (JEST).
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct JestStep {
    /// Fraction of the pool that is not kept, as an exact decimal.
    pub filter_ratio: FilterRatio,
    pub super_batch_size: usize,
    #[serde(default = "default_n_chunks")]
    pub n_chunks: usize,
    #[serde(default = "default_gain")]
    pub gain: f64,
    #[serde(default)]
    pub score: ScoreKind,
    #[serde(default)]
    pub super_batches: SuperBatches,
    #[serde(default)]
    pub draw: Chance,
}

/// A uniform draw of the same counts: the control.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RandomStep {
    pub filter_ratio: FilterRatio,
    pub super_batch_size: usize,
    #[serde(default)]
    pub super_batches: SuperBatches,
}

/// What samples are scored by; `select` documents the formulas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoreKind {
    #[default]
    Learnability,
    HardLearner,
    EasyReference,
}

impl ScoreKind {
    pub fn name(self) -> &'static str {
        match self {
            ScoreKind::Learnability => "learnability",
            ScoreKind::HardLearner => "hard_learner",
            ScoreKind::EasyReference => "easy_reference",
        }
    }

    /// The models that it takes.
    pub fn needs(self) -> &'static [ModelRole] {
        match self {
            ScoreKind::Learnability => &[ModelRole::Learner, ModelRole::Reference],
            ScoreKind::HardLearner => &[ModelRole::Learner],
            ScoreKind::EasyReference => &[ModelRole::Reference],
        }
    }
}

/// Which samples meet in a super-batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SuperBatches {
    #[default]
    OverPool,
    WithinClusters,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct WriteSettings {
    /// Curated shards are cut at about this many bytes of images.
    pub shard_bytes: u64,
    pub row_group_bytes_max: u64,
    pub order: Order,
    /// Whether the original image bytes are written.
    pub images: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Super-batch by super-batch, in the order in which samples were drawn.
    #[default]
    SubBatch,
    /// As in the pool.
    Shard,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReportSettings {
    /// A CSV file `shard,key` of samples known to be bad; the report says how many were kept.
    pub planted: Option<PathBuf>,
}

/// Far above any use, and low enough that products of two sizes and a row's bytes cannot overflow.
const SIZE_MAX: usize = 1 << 24;

/// More threads than any machine has.
const THREADS_MAX: usize = 1024;

/// An output shard is in memory while it is written.
const SHARD_BYTES_MAX: u64 = 1 << 30;

impl Default for EmbedSettings {
    fn default() -> Self {
        EmbedSettings { inference_batch_size: 64, embedding_dtype: EmbeddingDtype::default() }
    }
}

impl Default for DivideSettings {
    fn default() -> Self {
        DivideSettings {
            model: ModelRole::Reference,
            // the middle of the Divide and Contrast paper's range of 5 to 10 and more, for pools of its size
            n_clusters: 10,
            n_restarts: 3,
            n_iterations_max: 50,
            fit_samples_per_cluster: 256,
            bank_size: 1024,
            hardness_temperature: 0.1,
            near_duplicate_similarity: 0.95,
        }
    }
}

impl Default for WriteSettings {
    fn default() -> Self {
        WriteSettings {
            shard_bytes: 512 << 20,
            row_group_bytes_max: 64 << 20,
            order: Order::default(),
            images: true,
        }
    }
}

fn default_memory_limit_bytes() -> u64 {
    8 << 30
}

fn default_rejection_ratio_max_shard() -> f64 {
    0.5
}

fn default_rejection_ratio_max() -> f64 {
    0.3
}

fn default_super_batches_per_group() -> usize {
    4
}

/// The paper's number of chunks.
fn default_n_chunks() -> usize {
    16
}

fn default_gain() -> f64 {
    1.0
}

/// Why a pipeline file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("{0}")]
    Syntax(String),
    #[error("`--set {assignment}` is not of the form `table.key=value`")]
    Assignment { assignment: String },
    #[error("`{path}` names no table or step that the pipeline file has")]
    NoSuchTable { path: String },
    #[error("`{key}` is {value}, but must be {must}")]
    OutOfRange { key: String, value: String, must: &'static str },
    #[error("`select.step` holds {n_steps} steps, but must hold one draw")]
    Steps { n_steps: usize },
    #[error("the score `{score}` needs `models.{model}`")]
    ModelMissing { score: &'static str, model: &'static str },
    #[error("`models` has neither a `learner` nor a `reference`")]
    NoModel,
    #[error("super-batches within clusters need a `[divide]` table")]
    NoClusters,
    #[error("`divide.model` is `{model}`, but there is no `models.{model}`")]
    DivideModel { model: &'static str },
}

impl Settings {
    /// Reads a pipeline file, applies `table.key=value` assignments in order, and checks the whole.
    pub fn load(path: &Path, assignments: &[String]) -> Result<Settings, Error> {
        let text = fs::read_to_string(path)
            .map_err(|source| Error::ReadSetting { path: path.to_owned(), source })?;
        Settings::parse(&text, assignments)
            .map_err(|source| Error::Settings { path: path.to_owned(), source: Box::new(source) })
    }

    pub fn parse(text: &str, assignments: &[String]) -> Result<Settings, SettingsError> {
        // without assignments from the text itself, so that messages point at its lines
        let settings: Settings = if assignments.is_empty() {
            toml::from_str(text).map_err(syntax)?
        } else {
            let mut value = Value::Table(toml::from_str(text).map_err(syntax)?);
            for assignment in assignments {
                assign(&mut value, assignment)?;
            }
            value.try_into().map_err(syntax)?
        };
        settings.checked()
    }

    fn checked(self) -> Result<Settings, SettingsError> {
        let at_least_one = |key: &str, value: usize| match value {
            0 => Err(out_of_range(key, 0, "at least 1")),
            _ => Ok(()),
        };
        at_least_one("embed.inference_batch_size", self.embed.inference_batch_size)?;
        at_least_one("threads", self.threads.unwrap_or(1))?;
        if self.threads > Some(THREADS_MAX) {
            return Err(out_of_range("threads", self.threads.unwrap_or(0), "at most 1024"));
        }
        at_least_one("read.shards_per_task", self.read.shards_per_task.unwrap_or(1))?;
        at_least_one("write.shard_bytes", self.write.shard_bytes as usize)?;
        at_least_one("write.row_group_bytes_max", self.write.row_group_bytes_max as usize)?;
        for (key, ratio) in [
            ("read.rejection_ratio_max_shard", self.read.rejection_ratio_max_shard),
            ("read.rejection_ratio_max", self.read.rejection_ratio_max),
        ] {
            if !(0.0..=1.0).contains(&ratio) {
                return Err(out_of_range(key, ratio, "between 0 and 1"));
            }
        }
        if self.write.shard_bytes > SHARD_BYTES_MAX {
            return Err(out_of_range("write.shard_bytes", self.write.shard_bytes, "at most 1 GiB"));
        }
        if self.models.iter().next().is_none() {
            return Err(SettingsError::NoModel);
        }
        if let Some(divide) = &self.divide {
            self.check_divide(divide)?;
        }
        let [step] = &self.select.step[..] else {
            return Err(SettingsError::Steps { n_steps: self.select.step.len() });
        };
        for (key, value) in [
            ("select.step.super_batch_size", step.super_batch_size()),
            ("select.super_batches_per_group", self.select.super_batches_per_group),
        ] {
            if !(1..=SIZE_MAX).contains(&value) {
                return Err(out_of_range(key, value, "between 1 and 16777216"));
            }
        }
        if step.super_batches() == SuperBatches::WithinClusters && self.divide.is_none() {
            return Err(SettingsError::NoClusters);
        }
        if let Step::Jest(jest) = step {
            at_least_one("select.step.n_chunks", jest.n_chunks)?;
            if !(jest.gain.is_finite() && jest.gain > 0.0) {
                return Err(out_of_range("select.step.gain", jest.gain, "a number above 0"));
            }
            for model in jest.score.needs() {
                if self.models.get(*model).is_none() {
                    return Err(SettingsError::ModelMissing {
                        score: jest.score.name(),
                        model: model.name(),
                    });
                }
            }
        }
        Ok(self)
    }

    fn check_divide(&self, divide: &DivideSettings) -> Result<(), SettingsError> {
        for (key, value) in [
            ("divide.n_clusters", divide.n_clusters),
            ("divide.n_restarts", divide.n_restarts),
            ("divide.n_iterations_max", divide.n_iterations_max),
            ("divide.fit_samples_per_cluster", divide.fit_samples_per_cluster),
            ("divide.bank_size", divide.bank_size),
        ] {
            if !(1..=SIZE_MAX).contains(&value) {
                return Err(out_of_range(key, value, "between 1 and 16777216"));
            }
        }
        let temperature = divide.hardness_temperature;
        if !(1e-3..=1e3).contains(&temperature) {
            return Err(out_of_range("divide.hardness_temperature", temperature, "between 0.001 and 1000"));
        }
        let similarity = divide.near_duplicate_similarity;
        if !(-1.0..=1.0).contains(&similarity) {
            return Err(out_of_range("divide.near_duplicate_similarity", similarity, "between -1 and 1"));
        }
        match self.models.get(divide.model) {
            Some(_) => Ok(()),
            None => Err(SettingsError::DivideModel { model: divide.model.name() }),
        }
    }

    /// The step that draws.
    pub fn draw_step(&self) -> &Step {
        self.select.step.last().expect("checked: one step")
    }

    /// Threads to use on this machine.
    pub fn n_threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }
}

impl ModelsSettings {
    pub fn get(&self, role: ModelRole) -> Option<&ModelSettings> {
        match role {
            ModelRole::Learner => self.learner.as_ref(),
            ModelRole::Reference => self.reference.as_ref(),
        }
    }

    /// The models that there are, learner first.
    pub fn iter(&self) -> impl Iterator<Item = (ModelRole, &ModelSettings)> {
        [ModelRole::Learner, ModelRole::Reference]
            .into_iter()
            .filter_map(|role| self.get(role).map(|settings| (role, settings)))
    }
}

impl Step {
    pub fn name(&self) -> &'static str {
        match self {
            Step::Jest(_) => "jest",
            Step::Random(_) => "random",
        }
    }

    pub fn filter_ratio(&self) -> FilterRatio {
        match self {
            Step::Jest(step) => step.filter_ratio,
            Step::Random(step) => step.filter_ratio,
        }
    }

    pub fn super_batch_size(&self) -> usize {
        match self {
            Step::Jest(step) => step.super_batch_size,
            Step::Random(step) => step.super_batch_size,
        }
    }

    /// What the step scores by; none for the random control.
    pub fn score(&self) -> Option<ScoreKind> {
        match self {
            Step::Jest(step) => Some(step.score),
            Step::Random(_) => None,
        }
    }

    pub fn super_batches(&self) -> SuperBatches {
        match self {
            Step::Jest(step) => step.super_batches,
            Step::Random(step) => step.super_batches,
        }
    }
}

fn syntax(error: toml::de::Error) -> SettingsError {
    SettingsError::Syntax(error.to_string().trim_end().to_owned())
}

fn out_of_range(key: &str, value: impl ToString, must: &'static str) -> SettingsError {
    SettingsError::OutOfRange { key: key.to_owned(), value: value.to_string(), must }
}

/// Sets one value; a number in the path is a position in a list, as in `select.step.0.gain=4`.
fn assign(settings: &mut Value, assignment: &str) -> Result<(), SettingsError> {
    let malformed = || SettingsError::Assignment { assignment: assignment.to_owned() };
    let (path, text) = assignment.split_once('=').ok_or_else(malformed)?;
    let path = path.trim();
    if path.split('.').any(str::is_empty) {
        return Err(malformed());
    }
    let mut place = settings;
    for key in path.split('.') {
        let next = match place {
            Value::Table(table) => Some(table.entry(key).or_insert_with(|| Value::Table(toml::Table::new()))),
            Value::Array(values) => key.parse().ok().and_then(|position: usize| values.get_mut(position)),
            _ => None,
        };
        place = next.ok_or_else(|| SettingsError::NoSuchTable { path: path.to_owned() })?;
    }
    // a bare word that is no TOML value is text: `--set device=cpu`
    *place = toml::from_str::<toml::Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.trim().to_owned()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIPELINE: &str = r#"
        [read]
        shards = ["a.tar"]
        [models.learner]
        folder = "l"
        [models.reference]
        folder = "r"
        [[select.step]]
        method = "jest"
        filter_ratio = 0.8
        super_batch_size = 400
    "#;

    fn message(text: &str, assignments: &[&str]) -> String {
        let assignments: Vec<String> = assignments.iter().map(|text| text.to_string()).collect();
        Settings::parse(text, &assignments).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn assignments_reach_tables_lists_and_bare_words() {
        let assignments = ["seed=7", "select.step.0.gain=4", "device=cpu", "read.shards=['b.tar']"];
        let assignments = assignments.map(str::to_owned);
        let settings = Settings::parse(PIPELINE, &assignments).unwrap();
        assert_eq!((settings.seed, settings.read.shards), (7, vec!["b.tar".to_owned()]));
        let Step::Jest(step) = &settings.select.step[0] else { panic!("the step is jest") };
        assert_eq!(step.gain, 4.0);
    }

    #[test]
    fn each_mistake_names_its_key() {
        assert!(
            message(&PIPELINE.replace("[read]", "[read]\nshard = 1"), &[]).contains("unknown field `shard`")
        );
        assert!(message(PIPELINE, &["select.step.0.gian=2"]).contains("unknown field `gian`"));
        assert!(message(PIPELINE, &["select.step.1.gain=2"]).contains("select.step.1.gain"));
        assert!(message(PIPELINE, &["gain"]).contains("`--set gain`"));
        assert!(message(PIPELINE, &["select.step.0.filter_ratio=1"]).contains("filter_ratio"));
        assert!(message(PIPELINE, &["select.step.0.super_batches=within_clusters"]).contains("[divide]"));
        assert!(
            message(PIPELINE, &["select.step.0.super_batch_size=9223372036854775807"])
                .contains("super_batch_size")
        );
        assert!(message(PIPELINE, &["divide.n_clusters=9223372036854775807"]).contains("n_clusters"));
        assert!(message(PIPELINE, &["threads=100000"]).contains("threads"));
        assert!(message(PIPELINE, &["select.step=[]"]).contains("0 steps"));
        let no_learner = PIPELINE.replace("[models.learner]\n        folder = \"l\"", "");
        assert!(message(&no_learner, &[]).contains("`models.learner`"));
    }
}
