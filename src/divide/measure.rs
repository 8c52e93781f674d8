//! A task's assignments and embeddings, and the banks, in; the hardness of each sample out.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use rayon::prelude::*;
use serde_json::json;

use crate::embed::read_embeddings;
use crate::engine::numerics_for_files;
use crate::error::Error;
use crate::run_folder::{Done, RunFolder};
use crate::sample::SampleRef;
use crate::settings::{DivideSettings, ModelRole};
use crate::storage::FileRecord;
use crate::table::{self, Columns, Rows};

use super::assign::AssignCounts;
use super::bank::{Gathered, LoadedBanks, Texts, read_banks};
use super::hardness::{Banks, Hardness, HardnessParams, Negatives, hardness};

/// What every task of the step takes.
pub struct Measure {
    model: ModelRole,
    banks: LoadedBanks,
    params: HardnessParams,
}

impl Measure {
    pub fn open(run: &RunFolder, settings: &DivideSettings) -> Result<Measure, Error> {
        let params = HardnessParams::of(settings);
        Ok(Measure { model: settings.model, banks: read_banks(run, settings)?, params })
    }
}

impl HardnessParams {
    pub fn of(settings: &DivideSettings) -> HardnessParams {
        HardnessParams {
            temperature: settings.hardness_temperature as f32,
            near_duplicate_similarity: settings.near_duplicate_similarity as f32,
        }
    }
}

/// Measures and commits one task.
pub fn commit_hardness(run: &RunFolder, measure: &Measure, task: usize) -> Result<(), Error> {
    let assign = run.divide("divide.assign").expect("the plan has the stage");
    let marker = run.committed::<AssignCounts>(&assign, task)?;
    let assigned = table::read(run.storage(&assign), marker.file(), &[])?;
    let (embedded, embeddings_file) = read_embeddings(run, measure.model, task)?;
    let texts = Texts::read(run, task)?;
    let rows = Rows(&assigned);
    let samples = SampleRef::of_rows(&rows, &run.plan().pool)?;

    let mut by_cluster: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (row, &cluster) in rows.u32("cluster").values().iter().enumerate() {
        by_cluster.entry(cluster).or_default().push(row);
    }
    // many clusters have few samples in a task: processors share out clusters, and large clusters' strips
    let of_clusters = by_cluster.into_par_iter().map(|(cluster, wanted)| {
        let of_cluster = wanted.iter().map(|&row| samples[row]).collect();
        let queries = Gathered::of(&embedded, &texts, of_cluster);
        let bank = &measure.banks.clusters[cluster as usize];
        let banks = Banks { cluster: bank.view(), pool: measure.banks.pool.view() };
        let hardnesses = hardness(&queries.view(), &banks, &measure.params);
        let measured = wanted.into_iter().zip(hardnesses);
        measured.map(|(row, hardness)| (row, (hardness, cluster))).collect::<Vec<_>>()
    });
    let mut measured: Vec<Option<(Hardness, u32)>> = vec![None; samples.len()];
    for (row, of_row) in of_clusters.collect::<Vec<_>>().concat() {
        measured[row] = Some(of_row);
    }
    let measured: Vec<(Hardness, u32)> =
        measured.into_iter().map(|measured| measured.expect("every sample has a cluster")).collect();
    let table = hardness_table(run, measure, &rows, &measured);
    let stage = run.divide("divide").expect("the plan has the stage");
    let made = [
        ("divide_digest", stage.digest.to_string()),
        ("numerics", json!(numerics_for_files(&marker.numerics)).to_string()),
    ];
    let file = run.put_table(&stage, task, &format!("divide/{task:05}.parquet"), &table, &made)?;
    let read = vec![marker.file().clone(), embeddings_file, texts.file.clone(), measure.banks.file.clone()];
    run.commit(&stage, task, Done::new(vec![file], read, samples.len() as u64))?;
    Ok(())
}

fn hardness_table(
    run: &RunFolder,
    measure: &Measure,
    assigned: &Rows,
    measured: &[(Hardness, u32)],
) -> RecordBatch {
    let negatives = || measured.iter().map(|(hardness, _)| hardness.negatives.as_ref());
    let number = |value: fn(&Negatives) -> Option<f64>| {
        negatives().map(move |negatives| negatives.and_then(value).map(|value| value as f32))
    };
    let hardest = || {
        measured.iter().map(|(hardness, cluster)| {
            let bank = &measure.banks.clusters[*cluster as usize];
            hardness.negatives.as_ref().map(|negatives| (bank, negatives.hardest_negative))
        })
    };
    let mut columns = Columns::default();
    for name in ["shard", "sample_idx", "cluster", "centroid_similarity", "centroid_margin"] {
        columns.array(name, assigned.0.column_by_name(name).expect("an assignment has these").clone());
    }
    columns
        .f32("hardness", number(|negatives| Some(negatives.hardness)))
        .f32("hardness_gain", number(|negatives| negatives.hardness_gain))
        .f32("cross_modal_hardness", number(|negatives| negatives.cross_modal_hardness))
        .f32("effective_negatives", number(|negatives| Some(negatives.effective_negatives)))
        .u32("n_negatives", measured.iter().map(|(hardness, _)| Some(hardness.n_negatives as u32)))
        .f32(
            "hardest_negative_similarity",
            number(|negatives| Some(f64::from(negatives.hardest_negative_similarity))),
        )
        .text(
            "hardest_negative_shard",
            hardest().map(|hardest| {
                hardest.map(|(bank, row)| bank.members.samples[row].id(&run.plan().pool).shard)
            }),
        )
        .text("hardest_negative_key", hardest().map(|hardest| hardest.map(|(bank, row)| &bank.keys[row])))
        .u32(
            "n_false_negatives",
            measured.iter().map(|(hardness, _)| Some(hardness.n_false_negatives as u32)),
        );
    columns.build()
}

/// What later stages read of this one: a task's divided samples.
pub struct DividedTask {
    pub samples: Vec<SampleRef>,
    clusters: Vec<u32>,
    /// The columns of `divide/` that were asked for, a row a sample.
    pub table: RecordBatch,
    pub file: FileRecord,
}

impl DividedTask {
    pub fn cluster(&self, sample: SampleRef) -> u32 {
        self.clusters[self.row(sample)]
    }

    /// The cluster of a sample, if the divide model embedded it.
    pub fn cluster_of(&self, sample: SampleRef) -> Option<u32> {
        self.samples.binary_search(&sample).ok().map(|row| self.clusters[row])
    }

    /// The sample's row in the table; every embedded sample has one.
    pub fn row(&self, sample: SampleRef) -> usize {
        self.samples.binary_search(&sample).expect("an embedded sample has a cluster")
    }
}

/// The committed clusters of a task, and more columns of `divide/`.
pub fn read_divided(run: &RunFolder, task: usize, more: &[&str]) -> Result<DividedTask, Error> {
    let stage = run.divide("divide").expect("the plan has the stage");
    let marker = run.committed::<u64>(&stage, task)?;
    let columns = [&["shard", "sample_idx", "cluster"], more].concat();
    let table = table::read(run.storage(&stage), marker.file(), &columns)?;
    let rows = Rows(&table);
    let samples = SampleRef::of_rows(&rows, &run.plan().pool)?;
    let clusters = rows.u32("cluster").values().to_vec();
    Ok(DividedTask { samples, clusters, table, file: marker.file().clone() })
}
