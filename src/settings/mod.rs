//! A pipeline file in, checked settings out: one table a stage, an ordered list of select steps, no unknown key.
//!
//! Paths in a pipeline file are relative to the current folder, as on a command line.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::Value;

use crate::embed::InferenceSettings;
use crate::error::Error;
use crate::runtime::{Device, Gpus};

mod error;
mod read;
mod embed;
mod models;
mod divide;
mod filter;
mod draw;
mod pool_draw;
mod select;
mod write;
mod assumed;

pub use assumed::{AssumedModel, AssumedPool, Assumptions, Node};
pub use divide::{DivideSettings, FitKind};
pub use draw::{
    ActiveClip, ActiveClipScore, ClassAct, Deal, Draw, FullLoss, Jest, PassPool, Random, SoftCap,
    SuperBatchDraw, SuperBatchMethod, SuperBatches,
};
pub use embed::{EmbedSettings, EmbeddingDtype};
pub use error::SettingsError;
pub use filter::{
    AtLeast, AtMost, Best, ClipScoreFilter, DecontaminateFilter, EvaluationSet, Filter, FractionOf,
    JsonBound, Keep, MetadataFilter, NamedFilter, NegClipLossFilter, Norm, NormSimFilter, SemdedupFilter,
    ThresholdFilter,
};
pub use models::{ModelRole, ModelSettings, Models, PrecomputedSettings};
pub use pool_draw::{Balanced, Dbp, PoolDraw, Ranking, Top};
pub use read::{ReadSettings, SampleContents};
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

/// Far above any use, and low enough that products of two sizes and a row's bytes cannot overflow.
const SIZE_MAX: usize = 1 << 24;

/// More threads than any machine has.
const THREADS_MAX: usize = 1024;

/// 8 GiB.
pub const DEFAULT_MEMORY_LIMIT_BYTES: u64 = 8 << 30;

fn default_memory_limit_bytes() -> u64 {
    DEFAULT_MEMORY_LIMIT_BYTES
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
        let mut value = Value::Table(toml::from_str(text).map_err(syntax)?);
        for assignment in assignments {
            assign(&mut value, assignment)?;
        }
        if let Some(key) = not_finite(&value) {
            return Err(SettingsError::NotFinite { key });
        }
        // without assignments from the text itself, so that messages point at its lines
        let settings: Settings =
            if assignments.is_empty() { toml::from_str(text) } else { value.try_into() }.map_err(syntax)?;
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
        for filter in &self.select.filters {
            if let Filter::Metadata(bounds) = &filter.filter {
                let table = format!("select.step `{}`", filter.name);
                bounds.check(&table, self.read.samples != SampleContents::Text)?;
            }
        }
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
    // a step is read after its text, and the line would be the first step's
    let message = match error.message() {
        message if message.starts_with(select::AT_STEP) => message.to_owned(),
        _ => error.to_string(),
    };
    SettingsError::Syntax(message.trim_end().to_owned())
}

fn out_of_range(key: &str, value: impl ToString, must: &'static str) -> SettingsError {
    SettingsError::OutOfRange { key: key.to_owned(), value: value.to_string(), must }
}

/// Fails on a device that is no [`Engine`](crate::engine::Engine): not one, or one that a machine would choose. TensorRT
/// is none either: it builds anew for each shape, and multiplies as it likes.
fn check_engine(key: &str, device: Device) -> Result<(), SettingsError> {
    match device {
        Device::Cpu => Ok(()),
        Device::Cuda(Gpus::Numbered(gpus)) if gpus.numbers().count() == 1 => Ok(()),
        _ => Err(out_of_range(key, device, "`cpu` or one GPU by its number, such as `cuda:0`")),
    }
}

/// Fails on the first size that is 0 or far above any use.
fn check_sizes(sizes: &[(&str, usize)]) -> Result<(), SettingsError> {
    match sizes.iter().find(|(_, size)| !(1..=SIZE_MAX).contains(size)) {
        Some((key, size)) => Err(out_of_range(key, size, "between 1 and 16777216")),
        None => Ok(()),
    }
}

/// The key of a number that is none, or infinite, which no setting takes.
fn not_finite(value: &Value) -> Option<String> {
    let below = |key: &str, value| {
        let rest = not_finite(value)?;
        Some(if rest.is_empty() { key.to_owned() } else { format!("{key}.{rest}") })
    };
    match value {
        Value::Float(number) if !number.is_finite() => Some(String::new()),
        Value::Table(table) => table.iter().find_map(|(key, value)| below(key, value)),
        Value::Array(values) => {
            values.iter().enumerate().find_map(|(position, value)| below(&position.to_string(), value))
        }
        _ => None,
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
        let filtered = |filter: &str| {
            PIPELINE.replace("[[select.step]]", &format!("[[select.step]]\n{filter}\n[[select.step]]"))
        };
        let keep = message(&filtered("method = 'clip_score'\nkeep = { filter_ratio = 1.2 }"), &[]);
        assert!(
            keep.contains("`select.step.0`: `keep`: filter_ratio `1.2` is not in 0 ≤ ratio < 1"),
            "{keep}"
        );
        // no line of the file, which would be the first step's
        assert!(!keep.contains("line"), "{keep}");
        let both = message(&filtered("method = 'clip_score'\nkeep = { min = 1, max = 2 }"), &[]);
        assert!(both.contains("expected `{ min = … }`, `{ max = … }`"), "{both}");
        let by = message(&filtered("method = 'threshold'\nby = 'similarity'\nkeep = { min = 0 }"), &[]);
        assert!(by.contains("there are learner_similarity, reference_similarity, learner_loss"), "{by}");
        assert!(!by.contains("hardness"), "{by}");
        let no_learner = PIPELINE.replace("[models.learner]\n        folder = \"l\"", "");
        assert!(message(&no_learner, &[]).contains("`models.learner`"));
    }
}
