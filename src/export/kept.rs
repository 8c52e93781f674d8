//! The curated shards of a run in, their rows out, in curated order, a row group at a time.

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;

use crate::error::Error;
use crate::run_folder::RunFolder;
use crate::storage::FileRecord;
use crate::table::Rows;
use crate::write::OutputPlan;

use super::ExportError;
use super::images::{Image, Images};

/// Every kept sample of a run.
pub struct Kept<'r> {
    pub run: &'r RunFolder,
    pub n_kept: u64,
    shards: Vec<FileRecord>,
}

impl<'r> Kept<'r> {
    /// # Errors
    ///
    /// A run that kept nothing, or whose curated shards are not all committed.
    pub fn of(run: &'r RunFolder) -> Result<Kept<'r>, Error> {
        let stage = run.write("write");
        let missing = || Error::NotCommitted { stage: stage.name.clone(), task: 0 };
        let outputs: OutputPlan = run.stage_plan_if_present(&stage)?.ok_or_else(missing)?;
        if outputs.n_kept == 0 {
            return Err(ExportError::NothingKept.into());
        }
        let mut shards = Vec::with_capacity(outputs.shards.len());
        for shard_idx in 0..outputs.shards.len() {
            shards.push(run.committed::<u64>(&stage, shard_idx)?.file().clone());
        }
        Ok(Kept { run, n_kept: outputs.n_kept, shards })
    }

    /// Reads the columns that are wanted of every row.
    pub fn visit(
        &self,
        is_wanted: impl Fn(&str) -> bool,
        mut visit: impl FnMut(&RecordBatch) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let storage = self.run.run();
        for shard in &self.shards {
            let parquet_error = |source| Error::ReadParquet { path: storage.path(&shard.name), source };
            let bytes = storage.read_recorded(shard)?;
            let metadata = ArrowReaderMetadata::load(&bytes, Default::default()).map_err(parquet_error)?;
            for row_group in 0..metadata.metadata().num_row_groups() {
                let batch = read_row_group(&bytes, &metadata, row_group, &is_wanted);
                visit(&batch.map_err(parquet_error)?)?;
            }
        }
        Ok(())
    }

    /// Reads every row that is wanted, with its image and all columns but the targets of distillation.
    pub fn visit_images(
        &self,
        is_wanted: impl Fn(&Rows, usize) -> bool,
        mut visit: impl FnMut(&Rows, usize, &Image) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut images = Images::of(self.run)?;
        self.visit(
            |column| !crate::write::TARGETS.contains(&column),
            |batch| {
                let rows = Rows(batch);
                for row in (0..batch.num_rows()).filter(|&row| is_wanted(&rows, row)) {
                    visit(&rows, row, &images.read(&rows, row)?)?;
                }
                Ok(())
            },
        )
    }
}

fn read_row_group(
    bytes: &Bytes,
    metadata: &ArrowReaderMetadata,
    row_group: usize,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<RecordBatch, ParquetError> {
    let fields = metadata.schema().fields().iter().enumerate();
    let wanted = fields.filter(|(_, field)| is_wanted(field.name())).map(|(column, _)| column);
    let mask = ProjectionMask::roots(metadata.parquet_schema(), wanted);
    let n_rows = metadata.metadata().row_group(row_group).num_rows() as usize;
    let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(bytes.clone(), metadata.clone())
        .with_row_groups(vec![row_group])
        .with_projection(mask)
        .with_batch_size(n_rows.max(1))
        .build()?;
    let batches = reader.collect::<Result<Vec<_>, _>>()?;
    let schema = batches.first().map_or_else(|| metadata.schema().clone(), |batch| batch.schema());
    Ok(concat_batches(&schema, &batches)?)
}
