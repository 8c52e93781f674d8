//! A task's samples and their clusters' banks in; each sample among its hard negatives, under learner and reference, out.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::divide::{Gathered, HardnessParams, LoadedBank, Texts, exclusions, read_banks};
use crate::embed::read_embeddings;
use crate::error::Error;
use crate::plan::Plan;
use crate::run_folder::{Done, RunFolder};
use crate::sample::SampleRef;
use crate::settings::{DivideSettings, ScoreKind};
use crate::storage::FileRecord;
use crate::table::{self, Columns, Rows};

use super::loss::AmongNegatives;
use super::losses::OwnLoss;
use super::score::ScoredBy;
use super::share::among_bank;
use super::usable::{Measure, ScoredModels, UsableRows, read_usable};

/// The banks with their embeddings under every model.
pub struct HardNegatives {
    score: ScoreKind,
    divide: DivideSettings,
    /// By cluster, the members of its bank that every model embedded, under the divide model and under the scored ones.
    banks: Vec<(LoadedBank, ScoredModels)>,
    files: [FileRecord; 2],
}

/// From these columns `hard_learnability` follows for any sub-batch; which it will be is known when groups are dealt.
pub struct AmongColumns {
    learner: Vec<Option<AmongNegatives>>,
    reference: Vec<Option<AmongNegatives>>,
}

impl AmongColumns {
    /// Of samples whose negatives nobody looks at.
    pub fn absent(n: usize) -> AmongColumns {
        AmongColumns { learner: vec![None; n], reference: vec![None; n] }
    }

    pub fn add_to(&self, columns: &mut Columns) {
        for (role, among) in [("learner", &self.learner), ("reference", &self.reference)] {
            columns
                .f64(&format!("{role}_image_among"), among.iter().map(|among| among.map(|among| among.image)))
                .f64(
                    &format!("{role}_caption_among"),
                    among.iter().map(|among| among.map(|among| among.caption)),
                );
        }
    }
}

/// One model's columns of a table of `select.score`.
pub fn read_among(rows: &Rows, role: &str) -> Vec<Option<AmongNegatives>> {
    let images = rows.f64(&format!("{role}_image_among"));
    let captions = rows.f64(&format!("{role}_caption_among"));
    images
        .iter()
        .zip(captions)
        .map(|(image, caption)| Some(AmongNegatives { image: image?, caption: caption? }))
        .collect()
}

/// Whether the run has the `hard_learnability` column: clusters, and pairs with a loss.
pub fn needs_bank(plan: &Plan) -> bool {
    plan.divide.is_some() && OwnLoss::of(&plan.select) == OwnLoss::Pair && plan.pair_score().is_some()
}

impl HardNegatives {
    pub fn open_if_needed(run: &RunFolder) -> Result<Option<HardNegatives>, Error> {
        if !needs_bank(run.plan()) {
            return Ok(None);
        }
        let plan = run.plan();
        let (divide, score) = (plan.divide.as_ref().expect("needed"), plan.pair_score().expect("needed"));
        let banks = read_banks(run, divide)?;
        let marker = run.committed::<u64>(&run.score("select.bank"), 0)?;
        let batch = table::read(run.run(), marker.file(), &[])?;
        let rows = Rows(&batch);
        let samples = SampleRef::of_rows(&rows, &plan.pool)?;
        let all = ScoredModels::of_rows(run, &rows, None)?;
        let mut members = Vec::with_capacity(banks.clusters.len());
        for (cluster, bank) in banks.clusters.iter().enumerate() {
            let found = bank.members.samples.iter().enumerate();
            let found =
                found.filter_map(|(row, sample)| samples.binary_search(sample).ok().map(|at| (row, at)));
            let (bank_rows, positions): (Vec<usize>, Vec<usize>) = found.unzip();
            members.push((bank.gather(&bank_rows), all.gather(&positions).in_cluster(run, cluster as u32)?));
        }
        let files = [marker.file().clone(), banks.file];
        Ok(Some(HardNegatives { score, divide: divide.clone(), banks: members, files }))
    }

    /// Each sample among the members of its cluster's bank, without itself and its near-duplicates.
    pub fn among(
        &self,
        run: &RunFolder,
        task: usize,
        usable: &UsableRows,
        read: &mut Vec<FileRecord>,
    ) -> Result<AmongColumns, Error> {
        let texts = Texts::read(run, task)?;
        let (embedded, embeddings_file) = read_embeddings(run, self.divide.model, task)?;
        read.extend([texts.file.clone(), embeddings_file]);
        read.extend(self.files.iter().cloned());
        let mut by_cluster: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (row, &cluster) in usable.clusters.iter().flatten().enumerate() {
            by_cluster.entry(cluster).or_default().push(row);
        }
        // as in `divide`: processors share out clusters, and large clusters' strips
        let of_clusters = by_cluster.into_par_iter().map(|(cluster, rows)| {
            let of_cluster = rows.iter().map(|&row| usable.samples[row]).collect();
            let queries = Gathered::of(&embedded, &texts, of_cluster);
            let found = self.among_cluster(run, cluster, &queries, usable.models.gather(&rows))?;
            Ok((rows, found))
        });
        let mut columns = AmongColumns::absent(usable.samples.len());
        for (rows, (learner, reference)) in of_clusters.collect::<Result<Vec<_>, Error>>()? {
            for (column, found) in [(&mut columns.learner, learner), (&mut columns.reference, reference)] {
                for (row, found) in rows.iter().zip(found.into_iter().flatten()) {
                    column[*row] = found;
                }
            }
        }
        Ok(columns)
    }

    /// Samples of one cluster, under the divide model and under the scored ones.
    fn among_cluster(
        &self,
        run: &RunFolder,
        cluster: u32,
        queries: &Gathered,
        models: ScoredModels,
    ) -> Result<(Option<Among>, Option<Among>), Error> {
        let (bank, bank_models) = &self.banks[cluster as usize];
        if bank.members.samples.is_empty() {
            return Ok((None, None));
        }
        let exclusions = exclusions(&queries.view(), &bank.view(), &HardnessParams::of(&self.divide));
        let models = models.in_cluster(run, cluster)?;
        let queries = models.scoring(self.score, Measure::Objective);
        let found = among_bank(&queries, &bank_models.scoring(self.score, Measure::Objective), &exclusions);
        Ok(match found {
            ScoredBy::HardLearner { learner } => (Some(learner.0), None),
            ScoredBy::EasyReference { reference } => (None, Some(reference.0)),
            ScoredBy::Learnability { learner, reference } => (Some(learner.0), Some(reference.0)),
        })
    }
}

/// Of one model, a value a sample; none without negatives.
type Among = Vec<Option<AmongNegatives>>;

/// Gathers the embeddings of every member of a cluster's bank under every model, sorted by sample.
pub fn commit_bank(run: &RunFolder, tasks: &[usize]) -> Result<(), Error> {
    let divide = run.plan().divide.as_ref().expect("banks come from clusters");
    let banks = read_banks(run, divide)?;
    let mut wanted: Vec<SampleRef> =
        banks.clusters.iter().flat_map(|bank| bank.members.samples.iter().copied()).collect();
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
    models.add_columns(&mut columns, run.plan().embed.embedding_dtype);
    let stage = run.score("select.bank");
    let name = crate::exchange::file_name(&stage, 0);
    let file = run.put_table(&stage, 0, &name, &columns.build(), &[])?;
    run.commit(&stage, 0, Done::new(vec![file], read, samples.len() as u64))?;
    Ok(())
}
