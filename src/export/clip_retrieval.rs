//! Kept samples in, clip-retrieval's layout out: the embeddings of one model in f16 and the columns beside them, row by row.
//!
//! ```text
//! img_emb/img_emb_0.npy        [n, d] f16, unit rows
//! text_emb/text_emb_0.npy      the same of the captions, where the model embeds them
//! metadata/metadata_0.parquet  image_path (shard id and key), caption, then every column but image and embeddings
//! ```
//!
//! Numbers of files have as many digits as the largest, so that their order by name is the order of the rows.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use half::f16;
use parquet::arrow::ArrowWriter;

use crate::embed::{ModelKind, read_embeddings};
use crate::error::Error;
use crate::npy;
use crate::sample::SampleRef;
use crate::settings::ModelRole;
use crate::storage::{PendingFile, Storage};
use crate::table::{self, Columns, Rows};
use crate::write::TARGETS;

use super::kept::Kept;
use super::{ExportError, Exported};

/// What clip-retrieval's own writer puts into a file.
const CHUNK_ROWS_MAX: u64 = 1_000_000;

/// Bytes of the embeddings of a chunk, both towers together.
const CHUNK_BYTES_MAX: u64 = 1 << 30;

/// Encoded metadata that wait for their row group to be written.
const ROW_GROUP_BYTES: usize = 64 << 20;

pub fn export(kept: &Kept, storage: &Storage, model: ModelRole) -> Result<Exported, Error> {
    let towers = Towers::of(kept, model)?;
    let rows_max = CHUNK_ROWS_MAX.min(CHUNK_BYTES_MAX / (2 * 2 * towers.width as u64)).max(1);
    let n_chunks = kept.n_kept.div_ceil(rows_max);
    let n_digits = n_chunks.to_string().len();
    let mut chunk_idx = 0;
    let mut chunk: Option<Chunk> = None;
    kept.visit(
        |column| column != "image" && !TARGETS.contains(&column),
        |batch| {
            let mut start = 0;
            while start < batch.num_rows() {
                let open = match chunk.take() {
                    Some(chunk) => chunk,
                    None => Chunk::create(storage, &format!("{chunk_idx:0n_digits$}"), batch)?,
                };
                let n = (rows_max as usize - open.samples.len()).min(batch.num_rows() - start);
                let open = open.push(kept, &batch.slice(start, n))?;
                start += n;
                if open.samples.len() as u64 == rows_max {
                    open.finish(kept, &towers)?;
                    chunk_idx += 1;
                } else {
                    chunk = Some(open);
                }
            }
            Ok(())
        },
    )?;
    if let Some(last) = chunk {
        last.finish(kept, &towers)?;
    }
    Ok(Exported { n_samples: kept.n_kept, n_rows: kept.n_kept, n_files: n_chunks })
}

/// What the model embeds.
struct Towers {
    model: ModelRole,
    kind: ModelKind,
    width: usize,
}

impl Towers {
    fn of(kept: &Kept, model: ModelRole) -> Result<Towers, Error> {
        let is_whole = matches!(model, ModelRole::Learner | ModelRole::Reference | ModelRole::Base);
        let planned = kept.run.plan().models.get(model).filter(|_| is_whole);
        let planned = planned.ok_or(ExportError::NoEmbeddings { model })?;
        if planned.kind == ModelKind::Classifier {
            return Err(ExportError::Classifier { model }.into());
        }
        Ok(Towers { model, kind: planned.kind, width: planned.embedding_dim })
    }
}

/// Rows that share a file of each kind.
struct Chunk<'s> {
    storage: &'s Storage,
    number: String,
    metadata_name: String,
    metadata: ArrowWriter<PendingFile>,
    samples: Vec<SampleRef>,
}

impl<'s> Chunk<'s> {
    /// Starts the files of rows like these.
    fn create(storage: &'s Storage, number: &str, rows: &RecordBatch) -> Result<Chunk<'s>, Error> {
        let name = format!("metadata/metadata_{number}.parquet");
        let file = storage.create(&name)?;
        let writer = ArrowWriter::try_new(file, metadata(rows).schema(), Some(table::properties().build()));
        let metadata = writer.map_err(|source| Error::WriteParquet { path: storage.path(&name), source })?;
        let number = number.to_owned();
        Ok(Chunk { storage, number, metadata_name: name, metadata, samples: Vec::new() })
    }

    /// Adds rows after those before them.
    fn push(mut self, kept: &Kept, rows: &RecordBatch) -> Result<Chunk<'s>, Error> {
        self.samples.extend(SampleRef::of_rows(&Rows(rows), &kept.run.plan().pool)?);
        let write = |metadata_writer: &mut ArrowWriter<PendingFile>| {
            metadata_writer.write(&metadata(rows))?;
            if metadata_writer.in_progress_size() > ROW_GROUP_BYTES {
                metadata_writer.flush()?;
            }
            Ok(())
        };
        let path = self.storage.path(&self.metadata_name);
        write(&mut self.metadata).map_err(|source| Error::WriteParquet { path, source })?;
        Ok(self)
    }

    fn finish(self, kept: &Kept, towers: &Towers) -> Result<(), Error> {
        let path = self.storage.path(&self.metadata_name);
        let file = self.metadata.into_inner();
        file.map_err(|source| Error::WriteParquet { path, source })?.commit()?;
        let (images, captions) = embeddings(kept, towers, &self.samples)?;
        let n = self.samples.len();
        if towers.kind.embeds_images() {
            put_matrix(self.storage, &format!("img_emb/img_emb_{}.npy", self.number), n, &images)?;
        }
        if towers.kind.takes_captions() {
            put_matrix(self.storage, &format!("text_emb/text_emb_{}.npy", self.number), n, &captions)?;
        }
        Ok(())
    }
}

/// `image_path` and `caption` first, where clip-retrieval looks for them.
fn metadata(rows: &RecordBatch) -> RecordBatch {
    let texts = Rows(rows);
    let paths = texts.text("shard").iter().zip(texts.text("key"));
    let paths: ArrayRef =
        Arc::new(paths.map(|(shard, key)| Some(format!("{}/{}", shard?, key?))).collect::<StringArray>());
    let mut columns = Columns::default();
    columns.array("image_path", paths);
    let column = |name: &str| rows.column_by_name(name).expect("a curated shard has this column").clone();
    columns.array("caption", column("caption"));
    for field in rows.schema().fields().iter().filter(|field| field.name() != "caption") {
        columns.array(field.name(), column(field.name()));
    }
    columns.build()
}

/// Both towers' embeddings of the samples, in their order; empty where the model lacks the tower.
fn embeddings(kept: &Kept, towers: &Towers, samples: &[SampleRef]) -> Result<(Vec<f16>, Vec<f16>), Error> {
    let mut by_task: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (row, sample) in samples.iter().enumerate() {
        by_task.entry(kept.run.plan().pool.task_of(sample.shard_idx)).or_default().push(row);
    }
    let room = |has_tower| vec![f16::ZERO; if has_tower { samples.len() * towers.width } else { 0 }];
    let mut images = room(towers.kind.embeds_images());
    let mut captions = room(towers.kind.takes_captions());
    for (task, rows) in by_task {
        let (embedded, _) = read_embeddings(kept.run, towers.model, task)?;
        let of_task: Vec<SampleRef> = rows.iter().map(|&row| samples[row]).collect();
        let found = embedded.rows_of(&of_task);
        let sides = [(&mut images, embedded.rows.images()), (&mut captions, embedded.rows.captions())];
        for (side, values) in sides {
            let Some(values) = values else { continue };
            for (&row, &at) in rows.iter().zip(&found) {
                assert!(embedded.is_present(at), "what every model embedded is kept, and nothing else");
                let place = &mut side[row * towers.width..(row + 1) * towers.width];
                for (place, value) in place.iter_mut().zip(values.row(at)) {
                    *place = f16::from_f32(*value);
                }
            }
        }
    }
    Ok((images, captions))
}

fn put_matrix(storage: &Storage, name: &str, n_rows: usize, values: &[f16]) -> Result<(), Error> {
    let mut file = storage.create(name)?;
    let mut write = || -> io::Result<()> {
        npy::write_header(&mut file, "'<f2'", &[n_rows as u64, (values.len() / n_rows) as u64])?;
        values.iter().try_for_each(|value| file.write_all(&value.to_le_bytes()))
    };
    write().map_err(|source| Error::Write { path: storage.path(name), source })?;
    file.commit()?;
    Ok(())
}
