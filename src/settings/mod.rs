//! A pipeline file in, checked settings out: one table a stage, an ordered list of select steps, no unknown key.
//!
//! Paths in a pipeline file are relative to the current folder, as on a command line.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::Value;

use crate::embed::{DEFAULT_INFERENCE_BATCH_SIZE, InferenceSettings};
use crate::error::Error;
use crate::fold::NoBf16;
use crate::read::{ColumnNames, LabelSource, Limits, ReadRules, SampleKind};
use crate::runtime::Device;
use crate::select::FilterRatio;

mod models;
mod divide;
mod filter;
mod draw;
mod select;
mod write;

pub use divide::{DivideSettings, FitKind};
pub use draw::{
    ActiveClip, ActiveClipScore, Balanced, ClassAct, Deal, Draw, FullLoss, Jest, PassPool, PoolDraw, Random,
    Ranking, SoftCap, SuperBatchDraw, SuperBatchMethod, SuperBatches, Top,
};
pub use filter::{
    AtLeast, AtMost, Best, ClipScoreFilter, DecontaminateFilter, EvaluationSet, Filter, FractionOf,
    JsonBound, Keep, MetadataFilter, NamedFilter, NegClipLossFilter, Norm, NormSimFilter, SemdedupFilter,
    ThresholdFilter,
};
pub use models::{ModelRole, ModelSettings, Models, PrecomputedSettings};
pub use select::{OWN_COLUMNS, ScoreKind, SelectSettings};
pub use write::{Order, ReportSettings, WriteSettings};

/// Everything that a pipeline file can say, with the defaults for what it does not.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// What every draw and every keyed order starts from.
    #[serde(default)]
    pub seed: u64,
    /// Folder of `samples/` and `embeddings/`, which runs may share; the run folder if absent.
    pub store: Option<PathBuf>,
    /// Where models run: `auto`, `cpu`, `cuda` (all GPUs), `cuda:0,3`, `tensorrt`, `tensorrt:0`; `cpu:2` for two halves of the
    /// processor.
    #[serde(default)]
    pub device: Device,
    /// Sets of sessions on each device: what runs models at once. Absent: as many as threads and memory have room for.
    pub sessions: Option<usize>,
    /// Threads for decoding, inference and scoring; as many as there are processors if absent.
    pub threads: Option<usize>,
    #[serde(default = "default_memory_limit_bytes")]
    pub memory_limit_bytes: u64,
    pub read: ReadSettings,
    pub models: Models<ModelSettings>,
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
    /// Shards of the pool, tars or Parquet files: paths with braces (`{00000..00012}`) and globs, or `@` and a file with
    /// such paths, a line each.
    pub shards: Vec<String>,
    /// Folder below which shard ids are paths; the longest common folder if absent.
    pub root: Option<PathBuf>,
    /// What a sample has beside its image: a caption, a label or nothing.
    #[serde(default)]
    pub samples: SampleContents,
    /// The field of the JSON member with a sample's label, a whole number; dots go into objects. Absent: labels are
    /// members `cls`.
    pub label_field: Option<String>,
    /// Whether a Parquet file beside a tar, of the same name, adds what the tar does not say of its samples.
    #[serde(default = "yes")]
    pub sidecar: bool,
    /// The column of Parquet shards with images; absent: the first of the usual names.
    pub image_column: Option<String>,
    /// The column of Parquet shards, and of files beside tars, with captions; absent: the first of the usual names.
    pub caption_column: Option<String>,
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
    /// What samples must be within to be embedded. The same bounds as of a filter `metadata`, which embeds all, so that
    /// it can change without another pass over the pool.
    #[serde(default, skip_serializing_if = "MetadataFilter::is_empty")]
    pub bounds: MetadataFilter,
}

/// What the samples of a pool are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SampleContents {
    #[default]
    ImageText,
    ImageClass,
    Image,
    /// Captions without images, whose embeddings are given.
    Text,
}

impl ReadSettings {
    /// How shards are read.
    pub fn rules(&self) -> ReadRules {
        let columns = ColumnNames { image: self.image_column.clone(), caption: self.caption_column.clone() };
        ReadRules { kind: self.sample_kind(), limits: self.limits.clone(), columns }
    }

    /// What a sample must have so that it is not rejected.
    pub fn sample_kind(&self) -> SampleKind {
        match (self.samples, &self.label_field) {
            (SampleContents::ImageText, _) => SampleKind::ImageText,
            (SampleContents::Image, _) => SampleKind::Image,
            (SampleContents::Text, _) => SampleKind::Text,
            (SampleContents::ImageClass, None) => SampleKind::ImageClass(LabelSource::Member),
            (SampleContents::ImageClass, Some(field)) => {
                SampleKind::ImageClass(LabelSource::JsonField(field.clone()))
            }
        }
    }

    fn check(&self) -> Result<(), SettingsError> {
        for (key, ratio) in [
            ("read.rejection_ratio_max_shard", self.rejection_ratio_max_shard),
            ("read.rejection_ratio_max", self.rejection_ratio_max),
        ] {
            if !(0.0..=1.0).contains(&ratio) {
                return Err(out_of_range(key, ratio, "between 0 and 1"));
            }
        }
        if self.label_field.is_some() && self.samples != SampleContents::ImageClass {
            return Err(SettingsError::NoLabels);
        }
        Ok(())
    }
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

impl EmbeddingDtype {
    /// Of one value.
    pub fn size_bytes(self) -> u64 {
        match self {
            EmbeddingDtype::F16 => 2,
            EmbeddingDtype::F32 => 4,
        }
    }
}

/// Far above any use, and low enough that products of two sizes and a row's bytes cannot overflow.
const SIZE_MAX: usize = 1 << 24;

/// More threads than any machine has.
const THREADS_MAX: usize = 1024;

impl Default for EmbedSettings {
    fn default() -> Self {
        EmbedSettings {
            inference_batch_size: DEFAULT_INFERENCE_BATCH_SIZE,
            embedding_dtype: EmbeddingDtype::default(),
        }
    }
}

/// 8 GiB.
pub const DEFAULT_MEMORY_LIMIT_BYTES: u64 = 8 << 30;

fn default_memory_limit_bytes() -> u64 {
    DEFAULT_MEMORY_LIMIT_BYTES
}

impl ReadSettings {
    /// These shards, and the defaults for all else.
    pub fn of_shards(shards: &[String]) -> ReadSettings {
        let settings = serde_json::json!({ "shards": shards });
        serde_json::from_value(settings).expect("all but the shards has a default")
    }
}

fn yes() -> bool {
    true
}

fn default_rejection_ratio_max_shard() -> f64 {
    0.5
}

fn default_rejection_ratio_max() -> f64 {
    0.3
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
    #[error("`{what}` needs `models.{model}`")]
    ModelMissing { what: String, model: ModelRole },
    #[error("`models.{model}` {fault}")]
    ModelSource { model: ModelRole, fault: &'static str },
    #[error("`models` names no model")]
    NoModel,
    #[error("{what} needs a `[divide]` table")]
    NoClusters { what: &'static str },
    #[error(
        "`divide.model` is `{model}`, but must be `learner`, `reference` or `base`, and a model of the run"
    )]
    DivideModel { model: ModelRole },
    #[error(
        "the filter name `{name}` is taken by a column or by an earlier filter, or has other letters than a to z, digits and `_`"
    )]
    FilterName { name: String },
    #[error("`{column}` is no column that samples can be ranked by here")]
    NoSuchColumn { column: String },
    #[error(
        "experts take the reference's place: they need super-batches within clusters, and no `models.reference` or \
         full model beside them"
    )]
    Experts,
    #[error(
        "{n_passes} passes of what remains are more than a filter ratio of {filter_ratio} leaves samples for"
    )]
    Passes { n_passes: usize, filter_ratio: FilterRatio },
    #[error("`read.label_field` needs `read.samples` = `image_class`")]
    NoLabels,
    #[error("`select.precision` cannot be `bf16` here")]
    Precision { source: NoBf16 },
    #[error("`soft_cap` repeats samples itself: `pass_pool` must be `all`")]
    SoftCapRemaining,
    #[error(
        "a quota over clusters needs super-batches within clusters, and passes that draw from all samples"
    )]
    Quota,
    #[error("`write.distil` needs `models.reference`, or the experts of all clusters")]
    NoExperts,
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
        check_sizes(&[
            ("embed.inference_batch_size", self.embed.inference_batch_size),
            ("read.shards_per_task", self.read.shards_per_task.unwrap_or(1)),
        ])?;
        let n_threads = self.threads.unwrap_or(1);
        if !(1..=THREADS_MAX).contains(&n_threads) {
            return Err(out_of_range("threads", n_threads, "between 1 and 1024"));
        }
        if !(1..=THREADS_MAX).contains(&self.sessions.unwrap_or(1)) {
            return Err(out_of_range("sessions", self.sessions.unwrap_or(1), "between 1 and 1024"));
        }
        self.read.check()?;
        if self.models.iter().next().is_none() {
            return Err(SettingsError::NoModel);
        }
        for (role, model) in self.models.iter() {
            model.check(role)?;
        }
        if let Some(divide) = &self.divide {
            divide.check(&self.models)?;
        }
        for (role, _) in self.models.iter() {
            let audited = [ModelRole::Learner, ModelRole::Reference]
                .into_iter()
                .find(|of| of.audited_by() == Some(role));
            if let Some(model) = audited.filter(|model| !self.models.has(*model)) {
                return Err(SettingsError::ModelMissing { what: role.to_string(), model });
            }
        }
        self.write.check(&self.models, self.divide.is_some())?;
        self.report.check()?;
        self.select.check(&self.models, self.divide.is_some())?;
        Ok(self)
    }

    /// What inference may use of this machine.
    pub fn inference(&self) -> InferenceSettings {
        InferenceSettings {
            device: self.device,
            sessions: self.sessions,
            memory_limit_bytes: self.memory_limit_bytes,
        }
    }

    /// Threads to use on this machine.
    pub fn n_threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }
}

fn syntax(error: toml::de::Error) -> SettingsError {
    SettingsError::Syntax(error.to_string().trim_end().to_owned())
}

fn out_of_range(key: &str, value: impl ToString, must: &'static str) -> SettingsError {
    SettingsError::OutOfRange { key: key.to_owned(), value: value.to_string(), must }
}

/// Fails on the first size that is 0 or far above any use.
fn check_sizes(sizes: &[(&str, usize)]) -> Result<(), SettingsError> {
    match sizes.iter().find(|(_, size)| !(1..=SIZE_MAX).contains(size)) {
        Some((key, size)) => Err(out_of_range(key, size, "between 1 and 16777216")),
        None => Ok(()),
    }
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
        let Draw::InSuperBatches(SuperBatchDraw { method: SuperBatchMethod::Jest(jest), .. }) =
            settings.select.draw
        else {
            panic!("the draw is jest")
        };
        assert_eq!(jest.gain, 4.0);
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
        for levels in ["[10]", "[4, 4]", "[3, 5]", "[4, 0]"] {
            let levels = format!("divide.parent_levels={levels}");
            assert!(message(PIPELINE, &[&levels]).contains("`divide.parent_levels`"));
        }
        assert!(message(PIPELINE, &["threads=100000"]).contains("threads"));
        assert!(message(PIPELINE, &["read.label_field=label"]).contains("image_class"));
        assert!(message(PIPELINE, &["read.rejection_ratio_max=2"]).contains("read.rejection_ratio_max"));
        assert!(
            message(PIPELINE, &["write.distil=true"]).contains("`write.distil` needs a `[divide]` table")
        );
        let no_reference = PIPELINE.replace("[models.reference]", "[models.base]");
        let of_learner = ["divide.model=learner", "select.step.0.score=hard_learner", "write.distil=true"];
        assert!(message(&no_reference, &of_learner).contains("`write.distil` needs `models.reference`"));
        assert!(message(PIPELINE, &["select.step=[]"]).contains("0 steps"));
        let no_learner = PIPELINE.replace("[models.learner]\n        folder = \"l\"", "");
        assert!(message(&no_learner, &[]).contains("`models.learner`"));
    }
}
