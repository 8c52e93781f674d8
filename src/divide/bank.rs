//! Assignments in, the banks out: for each cluster, and for the pool, the members of smallest keyed hash.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, FixedSizeBinaryArray};

use crate::caption::normalised_hash;
use crate::embed::{EmbeddedRows, SamplesCounts, read_embeddings};
use crate::error::Error;
use crate::matrix::Matrix;
use crate::noise::{Purpose, keyed_hash};
use crate::run_folder::{Done, RunFolder};
use crate::sample::SampleRef;
use crate::settings::DivideSettings;
use crate::smallest::Smallest;
use crate::storage::FileRecord;
use crate::table::{self, Columns, Rows};

use super::assign::AssignCounts;
use super::hardness::{Bank, BankIndex, Samples};

const BANK: &str = "divide/bank.parquet";

/// A member of a bank, before its embeddings are known: hash first, so that the order is bank order.
type Member = (u64, SampleRef, usize);

/// Samples with what the kernels take of them.
pub struct Gathered {
    pub samples: Vec<SampleRef>,
    images: Matrix,
    /// None where the divide model embeds images alone.
    captions: Option<Matrix>,
    caption_hashes: Vec<u128>,
}

/// One bank in memory.
pub struct LoadedBank {
    pub members: Gathered,
    pub keys: Vec<String>,
    index: BankIndex,
}

/// The banks of every cluster, and of the pool.
pub struct LoadedBanks {
    pub clusters: Vec<LoadedBank>,
    pub pool: LoadedBank,
    pub file: FileRecord,
}

impl Gathered {
    /// Samples of a task that the divide model embedded.
    pub fn of(embedded: &EmbeddedRows, texts: &Texts, samples: Vec<SampleRef>) -> Gathered {
        let positions = embedded.rows_of(&samples);
        let images = embedded.rows.images().expect("the plan checked that the model embeds images");
        Gathered {
            images: images.gather(&positions),
            captions: embedded.rows.captions().map(|captions| captions.gather(&positions)),
            caption_hashes: samples.iter().map(|sample| texts.of(*sample).1).collect(),
            samples,
        }
    }

    pub fn view(&self) -> Samples<'_> {
        Samples {
            ids: &self.samples,
            images: &self.images,
            captions: self.captions.as_ref(),
            caption_hashes: self.captions.as_ref().map(|_| &self.caption_hashes[..]),
        }
    }

    /// The samples at these rows, in their order.
    fn gather(&self, rows: &[usize]) -> Gathered {
        Gathered {
            samples: rows.iter().map(|&row| self.samples[row]).collect(),
            images: self.images.gather(rows),
            captions: self.captions.as_ref().map(|captions| captions.gather(rows)),
            caption_hashes: rows.iter().map(|&row| self.caption_hashes[row]).collect(),
        }
    }
}

impl LoadedBank {
    /// The bank as the kernels take it.
    pub fn view(&self) -> Bank<'_> {
        Bank { samples: self.members.view(), index: &self.index }
    }

    /// The members at these rows, in their order.
    pub fn gather(&self, rows: &[usize]) -> LoadedBank {
        LoadedBank::new(self.members.gather(rows), rows.iter().map(|&row| self.keys[row].clone()).collect())
    }

    fn new(members: Gathered, keys: Vec<String>) -> LoadedBank {
        let index = BankIndex::of(&members.view());
        LoadedBank { members, keys, index }
    }
}

/// Chooses the banks in one pass over the assignments and gathers their embeddings.
pub fn commit_banks(run: &RunFolder, settings: &DivideSettings, tasks: &[usize]) -> Result<(), Error> {
    let mut read = Vec::new();
    let (clusters, pool) = choose_members(run, settings, tasks, &mut read)?;
    let mut rows: Vec<(Option<u32>, Member)> = Vec::new();
    for (cluster, members) in clusters.into_iter().enumerate() {
        rows.extend(members.into_sorted().into_iter().map(|member| (Some(cluster as u32), member)));
    }
    rows.extend(pool.into_sorted().into_iter().map(|member| (None, member)));

    let mut by_task: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (row, (_, (_, _, task))) in rows.iter().enumerate() {
        by_task.entry(*task).or_default().push(row);
    }
    let model = run.plan().models.get(settings.model).expect("checked with the settings");
    let mut images = Matrix::zeros(rows.len(), model.embedding_dim);
    let mut captions = model.kind.takes_captions().then(|| images.clone());
    let mut keys = vec![String::new(); rows.len()];
    let mut caption_hashes = vec![0; rows.len()];
    for (task, wanted) in by_task {
        let (embedded, file) = read_embeddings(run, settings.model, task)?;
        read.push(file);
        let texts = Texts::read(run, task)?;
        read.push(texts.file.clone());
        for row in wanted {
            let sample = rows[row].1.1;
            let position = embedded.samples.binary_search(&sample).expect("an assigned sample is embedded");
            let of_images = embedded.rows.images().expect("the plan checked that the model embeds images");
            images.row_mut(row).copy_from_slice(of_images.row(position));
            if let (Some(captions), Some(of_captions)) = (&mut captions, embedded.rows.captions()) {
                captions.row_mut(row).copy_from_slice(of_captions.row(position));
            }
            let (key, caption_hash) = texts.of(sample);
            keys[row] = key.to_owned();
            caption_hashes[row] = caption_hash;
        }
    }
    let ids = || rows.iter().map(|(_, (_, sample, _))| sample.id(&run.plan().pool));
    let hashes = FixedSizeBinaryArray::try_from_iter(caption_hashes.iter().map(|hash| hash.to_le_bytes()))
        .map_err(|_| Error::NothingEmbedded)?;
    let dtype = run.plan().embed.embedding_dtype;
    let is_present = vec![true; rows.len()];
    let mut columns = Columns::default();
    columns
        .text(
            "bank",
            rows.iter().map(|(cluster, _)| Some(if cluster.is_some() { "cluster" } else { "pool" })),
        )
        .u32("cluster", rows.iter().map(|(cluster, _)| *cluster))
        .text("shard", ids().map(|id| Some(id.shard)))
        .u64("sample_idx", ids().map(|id| Some(id.sample_idx)))
        .text("key", keys.iter().map(Some))
        .array("caption_hash", Arc::new(hashes))
        .embeddings("image_embedding", &images, &is_present, dtype);
    if let Some(captions) = &captions {
        columns.embeddings("text_embedding", captions, &is_present, dtype);
    }
    let stage = run.divide("divide.bank").expect("the plan has the stage");
    let digest = [("divide_digest", stage.digest.to_string())];
    let file = run.put_table(&stage, 0, BANK, &columns.build(), &digest)?;
    run.commit(&stage, 0, Done::new(vec![file], read, rows.len() as u64))?;
    Ok(())
}

fn choose_members(
    run: &RunFolder,
    settings: &DivideSettings,
    tasks: &[usize],
    read: &mut Vec<FileRecord>,
) -> Result<(Vec<Smallest<Member>>, Smallest<Member>), Error> {
    let plan = run.plan();
    let stage = run.divide("divide.assign").expect("the plan has the stage");
    let mut clusters: Vec<Smallest<Member>> =
        (0..settings.n_clusters).map(|_| Smallest::new(settings.bank_size)).collect();
    let mut pool = Smallest::new(settings.bank_size);
    for &task in tasks {
        let marker = run.committed::<AssignCounts>(&stage, task)?;
        read.push(marker.file().clone());
        let batch = table::read(run.storage(&stage), marker.file(), &["shard", "sample_idx", "cluster"])?;
        let rows = Rows(&batch);
        for (sample, &cluster) in
            SampleRef::of_rows(&rows, &plan.pool)?.into_iter().zip(rows.u32("cluster").values())
        {
            let id = sample.id(&plan.pool);
            let member = (keyed_hash(Purpose::Bank, plan.seed, 0, id.shard, id.sample_idx), sample, task);
            clusters[cluster as usize].push(member);
            pool.push(member);
        }
    }
    Ok((clusters, pool))
}

/// Keys and caption hashes of a task's samples.
pub struct Texts {
    samples: Vec<SampleRef>,
    keys: Vec<String>,
    caption_hashes: Vec<u128>,
    pub file: FileRecord,
}

impl Texts {
    pub fn read(run: &RunFolder, task: usize) -> Result<Texts, Error> {
        let marker = run.committed::<SamplesCounts>(&run.samples(), task)?;
        let columns = ["shard", "sample_idx", "key", "caption"];
        let batch = table::read(run.storage(&run.samples()), marker.file(), &columns)?;
        let rows = Rows(&batch);
        Ok(Texts {
            samples: SampleRef::of_rows(&rows, &run.plan().pool)?,
            keys: rows.text("key").iter().map(|key| key.unwrap_or_default().to_owned()).collect(),
            caption_hashes: rows
                .text("caption")
                .iter()
                .map(|text| normalised_hash(text.unwrap_or("")))
                .collect(),
            file: marker.file().clone(),
        })
    }

    pub fn of(&self, sample: SampleRef) -> (&str, u128) {
        let position = self.samples.binary_search(&sample).expect("an embedded sample is in `samples/`");
        (&self.keys[position], self.caption_hashes[position])
    }
}

/// The committed banks.
pub fn read_banks(run: &RunFolder, settings: &DivideSettings) -> Result<LoadedBanks, Error> {
    let stage = run.divide("divide.bank").expect("the plan has the stage");
    let marker = run.committed::<u64>(&stage, 0)?;
    let batch = table::read(run.storage(&stage), marker.file(), &[])?;
    let rows = Rows(&batch);
    let samples = SampleRef::of_rows(&rows, &run.plan().pool)?;
    let (images, _) = rows.embeddings("image_embedding");
    let model = run.plan().models.get(settings.model).expect("checked with the settings");
    let captions = model.kind.takes_captions().then(|| rows.embeddings("text_embedding").0);
    let hashes = batch.column_by_name("caption_hash").expect("a bank has caption hashes");
    let hashes = hashes.as_any().downcast_ref::<FixedSizeBinaryArray>().expect("of 16 bytes");
    let all = Gathered {
        samples,
        images,
        captions,
        caption_hashes: hashes
            .iter()
            .map(|hash| u128::from_le_bytes(hash.expect("never null").try_into().expect("16 bytes")))
            .collect(),
    };
    let keys = rows.text("key");
    let bank_of = |rows: &Vec<usize>| {
        let keys = rows.iter().map(|&row| keys.value(row).to_owned());
        LoadedBank::new(all.gather(rows), keys.collect())
    };
    let mut by_cluster = vec![Vec::new(); settings.n_clusters];
    let mut pool = Vec::new();
    for (row, cluster) in rows.u32("cluster").iter().enumerate() {
        match cluster {
            Some(cluster) => by_cluster[cluster as usize].push(row),
            None => pool.push(row),
        }
    }
    Ok(LoadedBanks {
        clusters: by_cluster.iter().map(bank_of).collect(),
        pool: bank_of(&pool),
        file: marker.file().clone(),
    })
}
