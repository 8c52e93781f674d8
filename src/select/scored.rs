//! A task's embeddings, clusters and banks in; what a sample is worth by itself out, before any draw.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::run_folder::{Done, RunFolder};
use crate::sample::SampleRef;
use crate::settings::ModelRole;
use crate::storage::FileRecord;
use crate::table::{self, Columns, Rows};

use super::class_loss::class_losses;
use super::hard_negatives::{AmongColumns, HardNegatives};
use super::losses::{OwnLoss, has_experts};
use super::usable::{Measure, Unusable, UsableRows, read_usable};

/// Counts of one task of `select.score`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScoreCounts {
    /// Samples that every model embedded.
    pub scored: u64,
    pub unusable: Unusable,
}

/// The samples of a task that have scores, and the file that says so.
pub fn scored_samples(run: &RunFolder, task: usize) -> Result<(Vec<SampleRef>, FileRecord), Error> {
    let marker = run.committed::<ScoreCounts>(&run.score("select.score"), task)?;
    let batch = table::read(run.run(), marker.file(), &["shard", "sample_idx"])?;
    Ok((SampleRef::of_rows(&Rows(&batch), &run.plan().pool)?, marker.file().clone()))
}

/// What every task of `select.score` takes.
pub struct Scorer {
    own_loss: OwnLoss,
    hard: Option<HardNegatives>,
}

/// Similarity and loss of a model's own pairs, by sample.
#[derive(Clone, Debug, Default)]
struct OwnColumns {
    similarities: Vec<Option<f64>>,
    losses: Vec<Option<f64>>,
}

impl Scorer {
    pub fn open(run: &RunFolder) -> Result<Scorer, Error> {
        let hard = HardNegatives::open_if_needed(run)?;
        Ok(Scorer { own_loss: OwnLoss::of(&run.plan().select), hard })
    }

    /// Scores and commits one task.
    pub fn commit(&self, run: &RunFolder, task: usize) -> Result<(), Error> {
        let mut usable = read_usable(run, task)?;
        let mut read = std::mem::take(&mut usable.read);
        let among = match &self.hard {
            Some(hard) => hard.among(run, task, &usable, &mut read)?,
            None => AmongColumns::absent(usable.samples.len()),
        };
        let table = self.table(run, task, &usable, &among, &mut read)?;
        let stage = run.score("select.score");
        let file = run.put_table(&stage, task, &crate::exchange::file_name(&stage, task), &table, &[])?;
        let counts = ScoreCounts { scored: usable.samples.len() as u64, unusable: usable.unusable };
        run.commit(&stage, task, Done::new(vec![file], read, counts))?;
        Ok(())
    }

    fn table(
        &self,
        run: &RunFolder,
        task: usize,
        usable: &UsableRows,
        among: &AmongColumns,
        read: &mut Vec<FileRecord>,
    ) -> Result<RecordBatch, Error> {
        let learner = self.own_columns(run, task, usable, ModelRole::Learner, read)?;
        let reference = self.own_columns(run, task, usable, ModelRole::Reference, read)?;
        let losses = learner.losses.iter().zip(&reference.losses);
        let learnability = losses.map(|(learner, reference)| Some((*learner)? - (*reference)?));
        let ids = || usable.samples.iter().map(|sample| sample.id(&run.plan().pool));
        let mut columns = Columns::default();
        columns
            .text("shard", ids().map(|id| Some(id.shard)))
            .u64("sample_idx", ids().map(|id| Some(id.sample_idx)))
            .f64("learner_similarity", learner.similarities.iter().copied())
            .f64("reference_similarity", reference.similarities.iter().copied())
            .f64("learner_loss", learner.losses.iter().copied())
            .f64("reference_loss", reference.losses.iter().copied())
            .f64("learnability", learnability.collect::<Vec<_>>());
        among.add_to(&mut columns);
        Ok(columns.build())
    }

    fn own_columns(
        &self,
        run: &RunFolder,
        task: usize,
        usable: &UsableRows,
        role: ModelRole,
        read: &mut Vec<FileRecord>,
    ) -> Result<OwnColumns, Error> {
        let n = usable.samples.len();
        let mut own = OwnColumns { similarities: vec![None; n], losses: vec![None; n] };
        if let OwnLoss::CrossEntropy { label_smoothing } = self.own_loss {
            own.losses = class_losses(run, role, task, &usable.samples, label_smoothing, read)?;
            return Ok(own);
        }
        for (cluster, rows) in self.parts(run, role, usable) {
            let in_cluster = |cluster| usable.models.gather(&rows).in_cluster(run, cluster);
            let of_cluster = cluster.map(in_cluster).transpose()?;
            let models = of_cluster.as_ref().unwrap_or(&usable.models);
            let dot = models.view(role, Measure::DotProduct).map(|view| view.diagonal());
            let measured = match self.own_loss {
                OwnLoss::DotProduct => dot.clone(),
                _ => models.view(role, Measure::Objective).map(|view| view.diagonal()),
            };
            for (position, &row) in rows.iter().enumerate() {
                own.similarities[row] = dot.as_ref().map(|dot| dot.similarities[position]);
                own.losses[row] = measured.as_ref().map(|measured| measured.losses[position]);
            }
        }
        Ok(own)
    }

    /// The rows that share a loss: all of them, or, with experts, those of each cluster.
    fn parts(&self, run: &RunFolder, role: ModelRole, usable: &UsableRows) -> Vec<(Option<u32>, Vec<usize>)> {
        match &usable.clusters {
            Some(clusters) if role == ModelRole::Reference && has_experts(run.plan()) => {
                let mut parts: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
                for (row, &cluster) in clusters.iter().enumerate() {
                    parts.entry(cluster).or_default().push(row);
                }
                parts.into_iter().map(|(cluster, rows)| (Some(cluster), rows)).collect()
            }
            _ => vec![(None, (0..usable.samples.len()).collect())],
        }
    }
}
