//! Kept samples in, WebDataset tars out, in curated order: the samples of a sub-batch stand together.

use crate::error::Error;
use crate::storage::Storage;

use super::Exported;
use super::kept::Kept;
use super::tars::{TarSample, TarWriter};

pub fn export(kept: &Kept, storage: &Storage, shard_bytes: u64) -> Result<Exported, Error> {
    let mut tars = TarWriter::new(storage, String::new(), shard_bytes);
    kept.visit_images(|_, _| true, |rows, row, image| tars.push(&TarSample::of(rows, row, image)))?;
    tars.finish()
}
