//! A task's embeddings, clusters and banks in; the scores that a sample has by itself out.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use serde::{Deserialize, Serialize};

use crate::divide::{
    Bank, HardnessParams, LoadedBanks, Samples, Texts, exclusions, read_banks, read_divided,
};
use crate::embed::{EmbeddedRows, ModelKind, read_embeddings};
use crate::error::Error;
use crate::matrix::Matrix;
use crate::run_folder::{Done, RunFolder};
use crate::sample::SampleRef;
use crate::settings::{DivideSettings, EmbeddingDtype, ModelRole, ScoreKind};
use crate::storage::FileRecord;
use crate::table::{self, Columns, Rows};

use super::loss::PairLoss;
use super::score::{Learner, PairModel, Reference, Scoring};
use super::share::hard_learnability;

/// Counts of one task of `select.score`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScoreCounts {
    /// Samples that every model embedded: those that come to the draw.
    pub scored: u64,
    /// Samples for which a model gave no direction.
    pub degenerate: u64,
    /// `scored` by cluster; empty without clusters.
    pub clusters: BTreeMap<u32, u64>,
}

/// Samples that come to the draw, by cluster where there are clusters.
pub fn score_counts(run: &RunFolder, task: usize) -> Result<ScoreCounts, Error> {
    Ok(run.committed::<ScoreCounts>(&run.select("select.score"), task)?.counts)
}

/// Both towers of each model of the plan over the same samples.
pub struct ScoredModels {
    models: Vec<(ModelRole, Matrix, Matrix, PairLoss)>,
}

impl ScoredModels {
    /// Embeddings by role; row i of every matrix belongs to sample i.
    pub fn new(
        run: &RunFolder,
        models: impl IntoIterator<Item = (ModelRole, Matrix, Matrix)>,
    ) -> ScoredModels {
        let with_loss = models.into_iter().map(|(role, images, captions)| {
            let model = run.plan().models.get(role).expect("a model of the plan");
            let objective = run.plan().select.objective;
            // no bias where no draw looks at pairs
            let loss = PairLoss {
                logit_scale: model.logit_scale.unwrap_or(1.0),
                logit_bias: model.logit_bias.unwrap_or(0.0),
                objective,
            };
            (role, images, captions, loss)
        });
        ScoredModels { models: with_loss.collect() }
    }

    fn view(&self, role: ModelRole) -> Option<PairModel<'_>> {
        let (_, images, captions, loss) = self.models.iter().find(|(present, ..)| *present == role)?;
        Some(PairModel::new(images, captions, *loss))
    }

    /// The embeddings by which the divide stage told the samples apart.
    fn matrices(&self, role: ModelRole) -> (&Matrix, &Matrix) {
        let (_, images, captions, _) =
            self.models.iter().find(|(present, ..)| *present == role).expect("checked with the settings");
        (images, captions)
    }

    /// What the step scores by; the settings say that its models are there.
    pub fn scoring(&self, score: ScoreKind) -> Scoring<'_> {
        let learner = || Learner(self.view(ModelRole::Learner).expect("checked with the settings"));
        let reference = || Reference(self.view(ModelRole::Reference).expect("checked with the settings"));
        match score {
            ScoreKind::HardLearner => Scoring::HardLearner { learner: learner() },
            ScoreKind::EasyReference => Scoring::EasyReference { reference: reference() },
            ScoreKind::Learnability => Scoring::Learnability { learner: learner(), reference: reference() },
        }
    }

    /// The embeddings at these rows as columns of a table, `learner_image` and so on.
    pub fn add_columns(&self, columns: &mut Columns, rows: &[usize], dtype: EmbeddingDtype) {
        let is_present = vec![true; rows.len()];
        for (role, images, captions, _) in &self.models {
            columns
                .embeddings(&format!("{}_image", role.to_string()), &images.gather(rows), &is_present, dtype)
                .embeddings(
                    &format!("{}_text", role.to_string()),
                    &captions.gather(rows),
                    &is_present,
                    dtype,
                );
        }
    }

    /// Takes the embeddings back out of such a table.
    pub fn of_rows(run: &RunFolder, rows: &Rows) -> ScoredModels {
        let models = pair_models(run).map(|role| {
            let tower = |tower: &str| rows.embeddings(&format!("{}_{tower}", role.to_string())).0;
            (role, tower("image"), tower("text"))
        });
        ScoredModels::new(run, models)
    }

    /// Adds the samples of another task after these.
    pub fn append(&mut self, other: &ScoredModels) {
        for ((role, images, captions, _), (other_role, more_images, more_captions, _)) in
            self.models.iter_mut().zip(&other.models)
        {
            assert_eq!(role, other_role);
            images.append(more_images);
            captions.append(more_captions);
        }
    }

    /// The samples at these rows.
    pub fn gather(&self, rows: &[usize]) -> ScoredModels {
        let gathered = self.models.iter();
        let gathered = gathered
            .map(|(role, images, captions, loss)| (*role, images.gather(rows), captions.gather(rows), *loss));
        ScoredModels { models: gathered.collect() }
    }
}

/// A task's samples that every model embedded, with their embeddings.
pub struct UsableRows {
    pub samples: Vec<SampleRef>,
    pub models: ScoredModels,
    pub n_degenerate: u64,
    pub read: Vec<FileRecord>,
}

/// The models that choose samples by both of their towers.
fn pair_models(run: &RunFolder) -> impl Iterator<Item = ModelRole> {
    let models = run.plan().models.iter();
    models.filter(|(role, model)| !role.is_audit() && model.kind == ModelKind::Pair).map(|(role, _)| role)
}

/// Reads the embeddings of every model of the plan and keeps the samples that all of them have.
pub fn read_usable(run: &RunFolder, task: usize) -> Result<UsableRows, Error> {
    let mut embedded: Vec<(ModelRole, EmbeddedRows)> = Vec::new();
    let mut read = Vec::new();
    for role in pair_models(run) {
        let (rows, file) = read_embeddings(run, role, task)?;
        read.push(file);
        embedded.push((role, rows));
    }
    let samples = embedded[0].1.samples.clone();
    for (_, rows) in &embedded {
        assert_eq!(rows.samples, samples, "every model embeds the same samples");
    }
    let usable: Vec<usize> =
        (0..samples.len()).filter(|&row| embedded.iter().all(|(_, rows)| rows.is_present(row))).collect();
    let gathered = embedded.iter().map(|(role, rows)| {
        let tower = |rows: Option<&Matrix>| rows.expect("a pair model has both").gather(&usable);
        (*role, tower(rows.rows.images()), tower(rows.rows.captions()))
    });
    Ok(UsableRows {
        samples: usable.iter().map(|&row| samples[row]).collect(),
        models: ScoredModels::new(run, gathered),
        n_degenerate: (samples.len() - usable.len()) as u64,
        read,
    })
}

/// What every task of `select.score` takes.
pub struct Scorer<'a> {
    score: Option<ScoreKind>,
    divide: Option<&'a DivideSettings>,
    hard: Option<HardNegatives>,
}

/// The banks with their embeddings under every model.
struct HardNegatives {
    banks: LoadedBanks,
    /// By cluster, the rows of its bank that every model embedded, and their embeddings.
    models: Vec<(Vec<usize>, ScoredModels)>,
    file: FileRecord,
}

impl<'a> Scorer<'a> {
    /// Whether the run has the `hard_learnability` column: clusters, and a score.
    pub fn needs_bank(run: &RunFolder) -> bool {
        run.plan().divide.is_some() && run.plan().select.draw.pair_score().is_some()
    }

    pub fn open(run: &'a RunFolder) -> Result<Scorer<'a>, Error> {
        let divide = run.plan().divide.as_ref();
        let hard = match divide {
            Some(divide) if Scorer::needs_bank(run) => Some(HardNegatives::open(run, divide)?),
            _ => None,
        };
        Ok(Scorer { score: run.plan().select.draw.pair_score(), divide, hard })
    }

    /// Scores and commits one task.
    pub fn commit(&self, run: &RunFolder, task: usize) -> Result<(), Error> {
        let mut usable = read_usable(run, task)?;
        let divided = match self.divide {
            Some(_) => Some(read_divided(run, task)?),
            None => None,
        };
        let clusters: Option<Vec<u32>> = divided
            .as_ref()
            .map(|divided| usable.samples.iter().map(|sample| divided.cluster(*sample)).collect());
        let hard = match (&self.hard, &clusters) {
            (Some(hard), Some(clusters)) => {
                Some(self.beside_hard_negative(run, hard, task, &usable, clusters)?)
            }
            _ => None,
        };
        usable.read.extend(divided.map(|divided| divided.file));
        usable.read.extend(self.hard.iter().flat_map(|hard| [hard.file.clone(), hard.banks.file.clone()]));
        let table = self.table(run, &usable, hard);
        let stage = run.select("select.score");
        let file = table::write(run.run(), &crate::exchange::file_name(&stage, task), &table, &[])?;
        let mut by_cluster = BTreeMap::new();
        for cluster in clusters.into_iter().flatten() {
            *by_cluster.entry(cluster).or_default() += 1;
        }
        let counts = ScoreCounts {
            scored: usable.samples.len() as u64,
            degenerate: usable.n_degenerate,
            clusters: by_cluster,
        };
        run.commit(&stage, task, Done::new(vec![file], usable.read, counts))?;
        Ok(())
    }

    fn table(&self, run: &RunFolder, usable: &UsableRows, hard: Option<Vec<Option<f64>>>) -> RecordBatch {
        let n = usable.samples.len();
        let diagonal = |role| usable.models.view(role).map(|model| model.diagonal());
        let (learner, reference) = (diagonal(ModelRole::Learner), diagonal(ModelRole::Reference));
        let learnability = match (&learner, &reference) {
            (Some(learner), Some(reference)) => {
                let losses = learner.losses.iter().zip(&reference.losses);
                Some(losses.map(|(learner, reference)| learner - reference).collect::<Vec<f64>>())
            }
            _ => None,
        };
        // the random control draws by equal weights
        let scores = self.score.map_or_else(|| vec![0.0; n], |score| usable.models.scoring(score).scores());
        let ids = || usable.samples.iter().map(|sample| sample.id(&run.plan().pool));
        let mut columns = Columns::default();
        columns
            .text("shard", ids().map(|id| Some(id.shard)))
            .u64("sample_idx", ids().map(|id| Some(id.sample_idx)))
            .f64("learner_similarity", optional(n, learner.as_ref().map(|diagonal| &diagonal.similarities)))
            .f64(
                "reference_similarity",
                optional(n, reference.as_ref().map(|diagonal| &diagonal.similarities)),
            )
            .f64("learner_loss", optional(n, learner.as_ref().map(|diagonal| &diagonal.losses)))
            .f64("reference_loss", optional(n, reference.as_ref().map(|diagonal| &diagonal.losses)))
            .f64("learnability", optional(n, learnability.as_ref()))
            .f64("score", scores.into_iter().map(Some))
            .f64("beside_hard_negative", hard.unwrap_or_else(|| vec![None; n]));
        columns.build()
    }

    /// Each sample's share in a sub-batch of two: itself and a mean hard negative of its cluster, nats.
    ///
    /// From it `hard_learnability` follows for any size of sub-batch, which is known only when groups are dealt.
    fn beside_hard_negative(
        &self,
        run: &RunFolder,
        hard: &HardNegatives,
        task: usize,
        usable: &UsableRows,
        clusters: &[u32],
    ) -> Result<Vec<Option<f64>>, Error> {
        let divide = self.divide.expect("hard negatives come from clusters");
        let score = self.score.expect("hard negatives need a score");
        let texts = Texts::read(run, task)?;
        let params = HardnessParams::of(divide);
        let mut shares = vec![None; usable.samples.len()];
        let mut by_cluster: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (row, &cluster) in clusters.iter().enumerate() {
            by_cluster.entry(cluster).or_default().push(row);
        }
        for (cluster, rows) in by_cluster {
            let (bank_rows, bank_models) = &hard.models[cluster as usize];
            if bank_rows.is_empty() {
                continue;
            }
            let bank = hard.banks.clusters[cluster as usize].gather(bank_rows);
            let bank_ids = bank.ids(run);
            let ids: Vec<_> = rows.iter().map(|&row| usable.samples[row].id(&run.plan().pool)).collect();
            let caption_hashes: Vec<u128> = rows.iter().map(|&row| texts.of(usable.samples[row]).1).collect();
            let queries = usable.models.gather(&rows);
            let (images, captions) = queries.matrices(divide.model);
            let query_samples = Samples {
                ids: &ids,
                images,
                captions: Some(captions),
                caption_hashes: Some(&caption_hashes),
            };
            let exclusions = exclusions(&query_samples, &bank.view(&bank_ids), &params);
            let found =
                hard_learnability(&queries.scoring(score), &bank_models.scoring(score), &exclusions, 2);
            for (row, share) in rows.into_iter().zip(found) {
                shares[row] = share;
            }
        }
        Ok(shares)
    }
}

fn optional<'v>(n: usize, values: Option<&'v Vec<f64>>) -> Box<dyn Iterator<Item = Option<f64>> + 'v> {
    match values {
        Some(values) => Box::new(values.iter().copied().map(Some)),
        None => Box::new(std::iter::repeat_n(None, n)),
    }
}

impl HardNegatives {
    fn open(run: &RunFolder, divide: &DivideSettings) -> Result<HardNegatives, Error> {
        let banks = read_banks(run, divide)?;
        let stage = run.select("select.bank");
        let marker = run.committed::<u64>(&stage, 0)?;
        let batch = table::read(run.run(), marker.file(), &[])?;
        let rows = Rows(&batch);
        let samples = SampleRef::of_rows(&rows, &run.plan().pool)?;
        let all = ScoredModels::of_rows(run, &rows);
        let models = banks.clusters.iter().map(|bank| {
            let found = bank.samples.iter().enumerate();
            let found =
                found.filter_map(|(row, sample)| samples.binary_search(sample).ok().map(|at| (row, at)));
            let (bank_rows, positions): (Vec<usize>, Vec<usize>) = found.unzip();
            (bank_rows, all.gather(&positions))
        });
        let models = models.collect();
        Ok(HardNegatives { models, banks, file: marker.file().clone() })
    }
}

/// Gathers the embeddings of every member of a cluster's bank under every model, sorted by sample.
pub fn commit_bank(run: &RunFolder, tasks: &[usize]) -> Result<(), Error> {
    let divide = run.plan().divide.as_ref().expect("banks come from clusters");
    let banks = read_banks(run, divide)?;
    let mut wanted: Vec<SampleRef> =
        banks.clusters.iter().flat_map(|bank: &Bank| bank.samples.iter().copied()).collect();
    wanted.sort_unstable();
    let mut samples = Vec::new();
    let mut models: Option<ScoredModels> = None;
    let mut read = vec![banks.file.clone()];
    let pool = &run.plan().pool;
    for &task in tasks {
        let first = pool.first_shard_idx(task) as u32;
        let end = first + pool.shards_of(task).len() as u32;
        let start = wanted.partition_point(|sample| sample.shard_idx < first);
        if wanted.get(start).is_none_or(|sample| sample.shard_idx >= end) {
            continue; // no member in this task's shards
        }
        let usable = read_usable(run, task)?;
        read.extend(usable.read);
        let is_wanted = |row: &usize| wanted.binary_search(&usable.samples[*row]).is_ok();
        let rows: Vec<usize> = (0..usable.samples.len()).filter(is_wanted).collect();
        samples.extend(rows.iter().map(|&row| usable.samples[row]));
        let gathered = usable.models.gather(&rows);
        match &mut models {
            Some(models) => models.append(&gathered),
            None => models = Some(gathered),
        }
    }
    let models = models.ok_or(Error::NothingScored)?;
    let ids = || samples.iter().map(|sample: &SampleRef| sample.id(pool));
    let mut columns = Columns::default();
    columns
        .text("shard", ids().map(|id| Some(id.shard)))
        .u64("sample_idx", ids().map(|id| Some(id.sample_idx)));
    let all: Vec<usize> = (0..samples.len()).collect();
    models.add_columns(&mut columns, &all, run.plan().embed.embedding_dtype);
    let stage = run.select("select.bank");
    let name = crate::exchange::file_name(&stage, 0);
    let file = table::write(run.run(), &name, &columns.build(), &[])?;
    run.commit(&stage, 0, Done::new(vec![file], read, samples.len() as u64))?;
    Ok(())
}
