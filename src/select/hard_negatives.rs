//! A task's samples and their clusters' banks in; each sample among its hard negatives, under learner and reference, out.

use std::collections::BTreeMap;

use crate::divide::{Bank, HardnessParams, LoadedBanks, Samples, Texts, exclusions, read_banks};
use crate::embed::read_embeddings;
use crate::error::Error;
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
    banks: LoadedBanks,
    /// By cluster, the rows of its bank that every model embedded, and their embeddings.
    models: Vec<(Vec<usize>, ScoredModels)>,
    file: FileRecord,
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
pub fn needs_bank(run: &RunFolder) -> bool {
    let plan = run.plan();
    plan.divide.is_some() && OwnLoss::of(&plan.select) == OwnLoss::Pair && plan.pair_score().is_some()
}

impl HardNegatives {
    pub fn open_if_needed(run: &RunFolder) -> Result<Option<HardNegatives>, Error> {
        if !needs_bank(run) {
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
        let mut models = Vec::with_capacity(banks.clusters.len());
        for (cluster, bank) in banks.clusters.iter().enumerate() {
            let found = bank.samples.iter().enumerate();
            let found =
                found.filter_map(|(row, sample)| samples.binary_search(sample).ok().map(|at| (row, at)));
            let (bank_rows, positions): (Vec<usize>, Vec<usize>) = found.unzip();
            models.push((bank_rows, all.gather(&positions).in_cluster(run, cluster as u32)?));
        }
        Ok(Some(HardNegatives { score, divide: divide.clone(), banks, models, file: marker.file().clone() }))
    }

    pub fn files(&self) -> [FileRecord; 2] {
        [self.file.clone(), self.banks.file.clone()]
    }

    /// Each sample among the members of its cluster's bank, without itself and its near-duplicates.
    pub fn among(&self, run: &RunFolder, task: usize, usable: &UsableRows) -> Result<AmongColumns, Error> {
        let texts = Texts::read(run, task)?;
        let params = HardnessParams::of(&self.divide);
        let (embedded, _) = read_embeddings(run, self.divide.model, task)?;
        let mut columns = AmongColumns::absent(usable.samples.len());
        let mut by_cluster: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (row, &cluster) in usable.clusters.iter().flatten().enumerate() {
            by_cluster.entry(cluster).or_default().push(row);
        }
        for (cluster, rows) in by_cluster {
            let (bank_rows, bank_models) = &self.models[cluster as usize];
            if bank_rows.is_empty() {
                continue;
            }
            let bank = self.banks.clusters[cluster as usize].gather(bank_rows);
            let bank_ids = bank.ids(run);
            let samples: Vec<SampleRef> = rows.iter().map(|&row| usable.samples[row]).collect();
            let ids: Vec<_> = samples.iter().map(|sample| sample.id(&run.plan().pool)).collect();
            let caption_hashes: Vec<u128> = samples.iter().map(|sample| texts.of(*sample).1).collect();
            let positions = embedded.rows_of(&samples);
            let images =
                embedded.rows.images().expect("checked with the plan: it embeds images").gather(&positions);
            let captions = embedded.rows.captions().map(|captions| captions.gather(&positions));
            let queries = Samples {
                ids: &ids,
                images: &images,
                captions: captions.as_ref(),
                caption_hashes: Some(&caption_hashes),
            };
            let exclusions = exclusions(&queries, &bank.view(&bank_ids), &params);
            let models = usable.models.gather(&rows).in_cluster(run, cluster)?;
            let queries = models.scoring(self.score, Measure::Objective);
            let found =
                among_bank(&queries, &bank_models.scoring(self.score, Measure::Objective), &exclusions);
            let (learner, reference) = match found {
                ScoredBy::HardLearner { learner } => (Some(learner.0), None),
                ScoredBy::EasyReference { reference } => (None, Some(reference.0)),
                ScoredBy::Learnability { learner, reference } => (Some(learner.0), Some(reference.0)),
            };
            for (column, found) in [(&mut columns.learner, learner), (&mut columns.reference, reference)] {
                for (row, found) in rows.iter().zip(found.into_iter().flatten()) {
                    column[*row] = found;
                }
            }
        }
        Ok(columns)
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
    models.add_columns(&mut columns, run.plan().embed.embedding_dtype);
    let stage = run.score("select.bank");
    let name = crate::exchange::file_name(&stage, 0);
    let file = table::write(run.run(), &name, &columns.build(), &[])?;
    run.commit(&stage, 0, Done::new(vec![file], read, samples.len() as u64))?;
    Ok(())
}
