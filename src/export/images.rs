//! A row of a curated shard in, its original image out: from the row, or, where the run holds no images, from the pool.

use std::collections::BTreeSet;

use arrow::array::{Array, AsArray};
use bytes::Bytes;

use crate::embed::check_shard;
use crate::error::Error;
use crate::read::extension_of;
use crate::run_folder::RunFolder;
use crate::settings::SampleContents;
use crate::table::Rows;

use super::ExportError;

/// An image as its shard holds it.
pub struct Image {
    pub bytes: Bytes,
    /// Lower case, without the dot.
    pub extension: String,
}

/// Where the images are.
pub enum Images<'r> {
    InRows,
    /// In the tars of the pool, at the places that the rows name.
    InPool {
        run: &'r RunFolder,
        /// Shards that are still those that the plan saw.
        checked: BTreeSet<String>,
    },
}

impl<'r> Images<'r> {
    /// # Errors
    ///
    /// A pool of captions alone.
    pub fn of(run: &'r RunFolder) -> Result<Images<'r>, Error> {
        if run.plan().read.samples == SampleContents::Text {
            return Err(ExportError::NoImages.into());
        }
        Ok(match run.plan().write.images {
            true => Images::InRows,
            false => Images::InPool { run, checked: BTreeSet::new() },
        })
    }

    /// The image of a row.
    pub fn read(&mut self, rows: &Rows, row: usize) -> Result<Image, Error> {
        match self {
            Images::InRows => {
                let image = rows.0.column_by_name("image").expect("the run holds images").as_struct();
                let path = image.column(1).as_string::<i32>().value(row);
                let extension = path[rows.text("key").value(row).len()..].trim_start_matches('.').to_owned();
                let bytes = Bytes::copy_from_slice(image.column(0).as_binary::<i32>().value(row));
                Ok(Image { bytes, extension })
            }
            Images::InPool { run, checked } => read_from_pool(run, checked, rows, row),
        }
    }
}

/// One read of the shard. What is there was an image of this size when the pool was embedded, and the shard has not
/// changed since.
fn read_from_pool(
    run: &RunFolder,
    checked: &mut BTreeSet<String>,
    rows: &Rows,
    row: usize,
) -> Result<Image, Error> {
    let id = rows.text("shard").value(row);
    let (offsets, sizes) = (rows.u64("image_offset"), rows.u64("image_size"));
    if offsets.is_null(row) {
        return Err(ExportError::ImagesLost { shard: id.to_owned() }.into());
    }
    let pool = &run.plan().pool;
    if !checked.contains(id) {
        let position = pool.shards.binary_search_by(|shard| shard.id.as_str().cmp(id));
        let position = position.map_err(|_| Error::UnknownShard { shard: id.to_owned() })?;
        check_shard(pool, &pool.shards[position])?;
        checked.insert(id.to_owned());
    }
    let bytes = pool.storage().read_range(id, offsets.value(row), sizes.value(row))?;
    let extension = extension_of(&bytes).to_owned();
    Ok(Image { bytes, extension })
}
