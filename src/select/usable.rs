//! A task's embeddings under every model in; the samples that all of them embedded, with both towers of learner and
//! reference side by side, out.

use std::collections::BTreeMap;

use crate::divide::{DividedTask, read_divided};
use crate::embed::{EmbeddedRows, read_embeddings};
use crate::error::Error;
use crate::fold::Precision;
use crate::matrix::Matrix;
use crate::run_folder::RunFolder;
use crate::sample::SampleRef;
use crate::settings::{EmbeddingDtype, ModelRole, ScoreKind};
use crate::storage::FileRecord;
use crate::table::{Columns, Rows};

use super::loss::PairLoss;
use super::losses::{has_experts, pair_loss};
use super::score::{Learner, PairModel, Reference, Scoring};

/// The roles whose pairs are scored; with experts the reference of a sample is the expert of its cluster.
const SCORED: [ModelRole; 2] = [ModelRole::Learner, ModelRole::Reference];

/// Both towers of learner and reference over the same samples.
#[derive(Clone, Debug, Default)]
pub struct ScoredModels(Vec<ScoredModel>);

#[derive(Clone, Debug)]
struct ScoredModel {
    role: ModelRole,
    images: Matrix,
    captions: Matrix,
    /// Under the run's objective.
    loss: Option<PairLoss>,
    precision: Precision,
}

/// Which loss pairs are measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// That of the run's objective.
    Objective,
    /// Minus the similarity.
    DotProduct,
}

impl ScoredModels {
    /// A model's view of the samples; none without the model, or without its loss.
    pub fn view(&self, role: ModelRole, measure: Measure) -> Option<PairModel<'_>> {
        let model = self.0.iter().find(|model| model.role == role)?;
        let loss = match measure {
            Measure::Objective => model.loss?,
            Measure::DotProduct => PairLoss::DOT_PRODUCT,
        };
        Some(PairModel::new(&model.images, &model.captions, loss).with_precision(model.precision))
    }

    /// What samples are scored by; the plan says that its models are there.
    pub fn scoring(&self, score: ScoreKind, measure: Measure) -> Scoring<'_> {
        let view = |role| self.view(role, measure).expect("checked with the plan");
        let learner = || Learner(view(ModelRole::Learner));
        let reference = || Reference(view(ModelRole::Reference));
        match score {
            ScoreKind::HardLearner => Scoring::HardLearner { learner: learner() },
            ScoreKind::EasyReference => Scoring::EasyReference { reference: reference() },
            ScoreKind::Learnability => Scoring::Learnability { learner: learner(), reference: reference() },
        }
    }

    /// The embeddings as columns of a table, `learner_image` and so on.
    pub fn add_columns(&self, columns: &mut Columns, dtype: EmbeddingDtype) {
        for model in &self.0 {
            let is_present = vec![true; model.images.n_rows()];
            columns
                .embeddings(&format!("{}_image", model.role), &model.images, &is_present, dtype)
                .embeddings(&format!("{}_text", model.role), &model.captions, &is_present, dtype);
        }
    }

    /// Takes the embeddings back out of such a table. With experts, `cluster` says whose they are.
    pub fn of_rows(run: &RunFolder, rows: &Rows, cluster: Option<u32>) -> Result<ScoredModels, Error> {
        let precision = run.plan().select.precision;
        let mut models = Vec::new();
        for role in SCORED {
            let tower = |tower: &str| rows.embeddings_if_present(&format!("{role}_{tower}"));
            let (Some((images, _)), Some((captions, _))) = (tower("image"), tower("text")) else { continue };
            let loss = loss_in(run, role, cluster)?;
            models.push(ScoredModel { role, images, captions, loss, precision });
        }
        Ok(ScoredModels(models))
    }

    /// Adds the samples of another task after these.
    pub fn append(&mut self, other: &ScoredModels) {
        if self.0.is_empty() {
            self.0.clone_from(&other.0);
            return;
        }
        assert_eq!(self.0.len(), other.0.len(), "the same models in every task");
        for (model, other) in self.0.iter_mut().zip(&other.0) {
            assert_eq!(model.role, other.role);
            model.images.append(&other.images);
            model.captions.append(&other.captions);
        }
    }

    /// The samples at these rows.
    pub fn gather(&self, rows: &[usize]) -> ScoredModels {
        let gathered = self.0.iter().map(|model| ScoredModel {
            role: model.role,
            images: model.images.gather(rows),
            captions: model.captions.gather(rows),
            loss: model.loss,
            precision: model.precision,
        });
        ScoredModels(gathered.collect())
    }

    /// The same samples, which are all of one cluster, with that cluster's reference.
    pub fn in_cluster(mut self, run: &RunFolder, cluster: u32) -> Result<ScoredModels, Error> {
        // without experts every cluster has the same
        if has_experts(run.plan()) {
            for model in &mut self.0 {
                model.loss = loss_in(run, model.role, Some(cluster))?;
            }
        }
        Ok(self)
    }
}

/// The loss of a scored role, of an expert in its cluster; none for experts where no cluster is given.
fn loss_in(run: &RunFolder, role: ModelRole, cluster: Option<u32>) -> Result<Option<PairLoss>, Error> {
    match (role, cluster) {
        (ModelRole::Reference, Some(cluster)) if has_experts(run.plan()) => {
            pair_loss(run, ModelRole::Expert(cluster))
        }
        _ => pair_loss(run, role),
    }
}

/// Samples that a model could not embed or score: by index of the shard in the pool, then by reason.
pub type Unusable = BTreeMap<u32, BTreeMap<String, u64>>;

/// A task's samples that every model embedded.
pub struct UsableRows {
    pub samples: Vec<SampleRef>,
    /// By sample, where the run has clusters.
    pub clusters: Option<Vec<u32>>,
    pub models: ScoredModels,
    pub unusable: Unusable,
    pub read: Vec<FileRecord>,
}

/// Reads the embeddings of every model of the plan and keeps the samples that all of them have: of the experts, the
/// one of the sample's cluster.
pub fn read_usable(run: &RunFolder, task: usize) -> Result<UsableRows, Error> {
    let plan = run.plan();
    let mut read = Vec::new();
    let divided = plan.divide.as_ref().map(|_| read_divided(run, task, &[])).transpose()?;
    read.extend(divided.iter().map(|divided| divided.file.clone()));
    let (embedded, files) = read_embedded(run, task, divided.as_ref(), |role| !role.is_audit())?;
    read.extend(files);
    let samples = embedded.values().next().expect("a plan has a model").samples.clone();
    assert!(embedded.values().all(|rows| rows.samples == samples), "every model embeds the same samples");
    let mut unusable = Unusable::new();
    let mut is_usable = vec![true; samples.len()];
    for (row, is_usable) in is_usable.iter_mut().enumerate() {
        if let Some(rejection) = embedded.values().filter_map(|rows| rows.rejections[row]).min() {
            *is_usable = false;
            let of_shard = unusable.entry(samples[row].shard_idx).or_default();
            *of_shard.entry(rejection.text().to_owned()).or_default() += 1;
        }
    }
    let usable: Vec<usize> = (0..samples.len()).filter(|&row| is_usable[row]).collect();
    let kept: Vec<SampleRef> = usable.iter().map(|&row| samples[row]).collect();
    let clusters: Option<Vec<u32>> =
        divided.map(|divided| kept.iter().map(|sample| divided.cluster(*sample)).collect());
    let models = scored_models(run, &embedded, &usable)?;
    Ok(UsableRows { samples: kept, clusters, models, unusable, read })
}

/// Both towers of learner and reference over some usable samples of a task, and the samples' clusters, where the run has
/// any. No other model is read.
pub fn read_scored(
    run: &RunFolder,
    task: usize,
    samples: &[SampleRef],
    read: &mut Vec<FileRecord>,
) -> Result<(ScoredModels, Option<Vec<u32>>), Error> {
    let divided = run.plan().divide.as_ref().map(|_| read_divided(run, task, &[])).transpose()?;
    read.extend(divided.iter().map(|divided| divided.file.clone()));
    let (embedded, files) = read_embedded(run, task, divided.as_ref(), |role| SCORED.contains(&role))?;
    read.extend(files);
    let clusters: Option<Vec<u32>> =
        divided.map(|divided| samples.iter().map(|sample| divided.cluster(*sample)).collect());
    let rows = embedded.values().next().map(|any| any.rows_of(samples)).unwrap_or_default();
    Ok((scored_models(run, &embedded, &rows)?, clusters))
}

/// The embeddings of a task under some models, and their files; the experts, in a run that has them, come as the reference.
fn read_embedded(
    run: &RunFolder,
    task: usize,
    divided: Option<&DividedTask>,
    is_wanted: impl Fn(ModelRole) -> bool,
) -> Result<(BTreeMap<ModelRole, EmbeddedRows>, Vec<FileRecord>), Error> {
    let mut read = Vec::new();
    let mut embedded: BTreeMap<ModelRole, EmbeddedRows> = BTreeMap::new();
    for (role, model) in run.plan().models.iter() {
        let reference_of = match role {
            ModelRole::Expert(cluster) => Some(cluster),
            _ => None,
        };
        let as_role = if reference_of.is_some() { ModelRole::Reference } else { role };
        if !is_wanted(as_role) {
            continue;
        }
        let (rows, file) = read_embeddings(run, role, task)?;
        read.push(file);
        // of the experts one at a time is held, and of each its own cluster is kept
        match reference_of {
            Some(cluster) => {
                let divided = divided.expect("experts come with clusters");
                let of_cluster = |sample: &SampleRef| divided.cluster_of(*sample) == Some(cluster);
                let blank = || EmbeddedRows::blank(rows.samples.clone(), model);
                let reference = embedded.entry(as_role).or_insert_with(blank);
                reference.take(&rows, of_cluster);
            }
            None => {
                embedded.insert(role, rows);
            }
        }
    }
    Ok((embedded, read))
}

/// The scored models that have both towers, over these rows of a task.
fn scored_models(
    run: &RunFolder,
    embedded: &BTreeMap<ModelRole, EmbeddedRows>,
    rows: &[usize],
) -> Result<ScoredModels, Error> {
    let mut models = Vec::new();
    for role in SCORED {
        if let Some((images, captions)) = embedded.get(&role).and_then(EmbeddedRows::pairs) {
            let (images, captions) = (images.gather(rows), captions.gather(rows));
            let (loss, precision) = (loss_in(run, role, None)?, run.plan().select.precision);
            models.push(ScoredModel { role, images, captions, loss, precision });
        }
    }
    Ok(ScoredModels(models))
}

/// The full models' embeddings of some samples of a task, in place of the cheaper models that stand for them: the rows of
/// the samples that all of them embedded, and what they say of these.
pub fn read_full(
    run: &RunFolder,
    task: usize,
    samples: &[SampleRef],
) -> Result<(Vec<usize>, ScoredModels), Error> {
    let mut sources = Vec::new();
    for role in SCORED.into_iter().filter(|role| run.plan().models.has(*role)) {
        let full = role.audited_by().filter(|full| run.plan().models.has(*full)).unwrap_or(role);
        let (embedded, _) = read_embeddings(run, full, task)?;
        sources.push((role, full, embedded.rows_of(samples), embedded));
    }
    let is_present =
        |row: &usize| sources.iter().all(|(_, _, positions, embedded)| embedded.is_present(positions[*row]));
    let rows: Vec<usize> = (0..samples.len()).filter(is_present).collect();
    let mut models = Vec::new();
    for (role, full, positions, embedded) in &sources {
        let positions: Vec<usize> = rows.iter().map(|&row| positions[row]).collect();
        let (images, captions) = embedded.pairs().expect("checked with the plan: a model of pairs");
        models.push(ScoredModel {
            role: *role,
            images: images.gather(&positions),
            captions: captions.gather(&positions),
            loss: pair_loss(run, *full)?,
            precision: run.plan().select.precision,
        });
    }
    Ok((rows, ScoredModels(models)))
}

/// Both towers of a model over some samples of a task, which it has embedded.
pub fn read_pairs(
    run: &RunFolder,
    role: ModelRole,
    task: usize,
    samples: &[SampleRef],
    read: &mut Vec<FileRecord>,
) -> Result<(Matrix, Matrix), Error> {
    let (embedded, file) = read_embeddings(run, role, task)?;
    read.push(file);
    let rows = embedded.rows_of(samples);
    let (images, captions) = embedded.pairs().expect("checked with the plan: a model of pairs");
    Ok((images.gather(&rows), captions.gather(&rows)))
}
