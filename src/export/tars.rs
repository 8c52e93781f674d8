//! Kept samples in, tars in WebDataset's form out, with the `sizes.json` that training code sizes an epoch by.
//!
//! The members of a sample: its original image, `txt` (caption), `cls` (label), `json` (the original text) and
//! `superbatch.json` (who it is and why it was kept), each where there is one. Owners, modes and times are fixed, so that the
//! same run gives the same bytes.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::io;

use arrow::array::{Array, ArrowPrimitiveType, PrimitiveArray, StringArray};
use serde::Serialize;

use crate::error::Error;
use crate::storage::{PendingFile, Storage};
use crate::table::Rows;

use super::Exported;
use super::images::Image;

/// Tars are cut at about this many bytes where nothing else is asked for.
pub const SHARD_BYTES: u64 = 512 << 20;

/// What a tar is made of.
const BLOCK_BYTES: u64 = 512;

/// A kept sample as it stands in a tar.
pub struct TarSample<'a> {
    image: &'a Image,
    caption: Option<&'a str>,
    label: Option<u32>,
    json: Option<&'a str>,
    provenance: Provenance<'a>,
}

/// The member `superbatch.json`; the columns of the same names.
#[derive(Serialize)]
struct Provenance<'a> {
    shard: &'a str,
    sample_idx: u64,
    key: &'a str,
    score: Option<f64>,
    cluster: Option<u32>,
    #[serde(flatten)]
    sub_batch: SubBatch,
    draw_rank: Option<u32>,
    n_repeats: u32,
}

/// What samples were drawn together in: the super-batch, and the pass over it.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
struct SubBatch {
    super_batch: Option<u64>,
    pass: Option<u32>,
}

impl<'a> TarSample<'a> {
    pub fn of(rows: &Rows<'a>, row: usize, image: &'a Image) -> TarSample<'a> {
        TarSample {
            image,
            caption: text(rows.text("caption"), row),
            label: number(rows.u32("label"), row),
            json: text(rows.text("json"), row),
            provenance: Provenance {
                shard: rows.text("shard").value(row),
                sample_idx: rows.u64("sample_idx").value(row),
                key: rows.text("key").value(row),
                score: number(rows.f64("score"), row),
                cluster: number(rows.u32("cluster"), row),
                sub_batch: SubBatch {
                    super_batch: number(rows.u64("super_batch"), row),
                    pass: number(rows.u32("pass"), row),
                },
                draw_rank: number(rows.u32("draw_rank"), row),
                n_repeats: rows.u32("n_repeats").value(row),
            },
        }
    }

    /// Extension and bytes of each member, in the order of WebDataset's own writer.
    fn members(&self) -> Vec<(&str, Cow<'_, [u8]>)> {
        let provenance = serde_json::to_vec(&self.provenance).expect("columns are representable as JSON");
        let mut members = vec![
            (self.image.extension.as_str(), Cow::from(&self.image.bytes[..])),
            ("superbatch.json", Cow::from(provenance)),
        ];
        members.extend(self.label.map(|label| ("cls", Cow::from(label.to_string().into_bytes()))));
        members.extend(self.json.map(|json| ("json", Cow::from(json.as_bytes()))));
        members.extend(self.caption.map(|caption| ("txt", Cow::from(caption.as_bytes()))));
        members.sort_by_key(|(extension, _)| *extension);
        members
    }
}

fn text(column: &StringArray, row: usize) -> Option<&str> {
    column.is_valid(row).then(|| column.value(row))
}

fn number<T: ArrowPrimitiveType>(column: &PrimitiveArray<T>, row: usize) -> Option<T::Native> {
    column.is_valid(row).then(|| column.value(row))
}

/// The tars of one folder, written one after another.
///
/// A tar ends with the sub-batch in which it reaches `shard_bytes`, or, within a sub-batch that does not end, at twice that.
/// Memory: the members of one sample, and 16 bytes for each key of the tar.
pub struct TarWriter<'s> {
    storage: &'s Storage,
    /// Empty, or the folder's name with a slash.
    folder: String,
    shard_bytes: u64,
    open: Option<OpenTar>,
    /// Samples of each finished tar, by name.
    sizes: BTreeMap<String, u64>,
}

struct OpenTar {
    name: String,
    builder: tar::Builder<PendingFile>,
    n_samples: u64,
    size_bytes: u64,
    keys: Keys,
    last: SubBatch,
}

impl<'s> TarWriter<'s> {
    pub fn new(storage: &'s Storage, folder: String, shard_bytes: u64) -> TarWriter<'s> {
        TarWriter { storage, folder, shard_bytes, open: None, sizes: BTreeMap::new() }
    }

    /// Adds a sample after those before it.
    pub fn push(&mut self, sample: &TarSample) -> Result<(), Error> {
        let Provenance { shard, key, sub_batch, .. } = &sample.provenance;
        let is_full = self.open.as_ref().is_some_and(|tar| {
            ends(tar.size_bytes, self.shard_bytes, tar.last != *sub_batch || sub_batch.super_batch.is_none())
        });
        if is_full {
            self.finish_tar()?;
        }
        let tar = match &mut self.open {
            Some(tar) => tar,
            None => self.open.insert(OpenTar::create(
                self.storage,
                format!("{}{:05}.tar", self.folder, self.sizes.len()),
                *sub_batch,
            )?),
        };
        let key = tar.keys.give(shard, key);
        for (extension, bytes) in sample.members() {
            let path = self.storage.path(&tar.name);
            let appended = append(&mut tar.builder, &format!("{key}.{extension}"), &bytes);
            appended.map_err(|source| Error::Write { path, source })?;
            tar.size_bytes += BLOCK_BYTES + (bytes.len() as u64).next_multiple_of(BLOCK_BYTES);
        }
        tar.n_samples += 1;
        tar.last = *sub_batch;
        Ok(())
    }

    /// Ends the last tar and writes `sizes.json`.
    pub fn finish(mut self) -> Result<Exported, Error> {
        self.finish_tar()?;
        put_json(self.storage, &format!("{}sizes.json", self.folder), &self.sizes)?;
        let n_samples = self.sizes.values().sum();
        Ok(Exported { n_samples, n_rows: n_samples, n_files: self.sizes.len() as u64 })
    }

    fn finish_tar(&mut self) -> Result<(), Error> {
        let Some(tar) = self.open.take() else { return Ok(()) };
        let path = self.storage.path(&tar.name);
        tar.builder.into_inner().map_err(|source| Error::Write { path, source })?.commit()?;
        let name = tar.name[self.folder.len()..].to_owned();
        self.sizes.insert(name, tar.n_samples);
        Ok(())
    }
}

impl OpenTar {
    fn create(storage: &Storage, name: String, first: SubBatch) -> Result<OpenTar, Error> {
        let builder = tar::Builder::new(storage.create(&name)?);
        Ok(OpenTar { name, builder, n_samples: 0, size_bytes: 0, keys: Keys::default(), last: first })
    }
}

/// Whether a tar of this size ends before the next sample.
fn ends(size_bytes: u64, shard_bytes: u64, begins_sub_batch: bool) -> bool {
    size_bytes >= 2 * shard_bytes || (begins_sub_batch && size_bytes >= shard_bytes)
}

/// The keys of one tar.
#[derive(Default)]
struct Keys(HashSet<[u8; 16]>);

impl Keys {
    /// The sample's key, unless the tar has it from another shard: then the shard's id and the key.
    fn give(&mut self, shard: &str, key: &str) -> String {
        let key = member_path(key);
        let with_shard = (0..).map(|n: u64| match n {
            0 => format!("{shard}/{key}"),
            // only where a foreign key imitates a shard's id
            n => format!("{shard}/{n}/{key}"),
        });
        let mut candidates = std::iter::once(key.clone()).chain(with_shard.map(|path| member_path(&path)));
        let hash = |key: &str| *blake3::hash(key.as_bytes()).as_bytes().first_chunk().expect("32 bytes");
        candidates.find(|key| self.0.insert(hash(key))).expect("there is no end of candidates")
    }
}

/// A foreign key as a path that stays where it is unpacked and ends before its extension: no empty part, `.`, `..` or
/// control character, and no dot in its last part.
fn member_path(key: &str) -> String {
    let part = |part: &str| match part {
        "" | "." | ".." => "_".to_owned(),
        part => part.replace(char::is_control, "_"),
    };
    let mut parts: Vec<String> = key.split('/').map(part).collect();
    let last = parts.last_mut().expect("a text has a part");
    *last = last.replace('.', "_");
    parts.join("/")
}

fn append(builder: &mut tar::Builder<PendingFile>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o444);
    header.set_mtime(0);
    builder.append_data(&mut header, name, bytes)
}

/// Writes a value as a JSON file.
pub fn put_json(storage: &Storage, name: &str, value: &impl Serialize) -> Result<(), Error> {
    let mut text = serde_json::to_vec_pretty(value).expect("numbers and names are representable as JSON");
    text.push(b'\n');
    storage.put(name, &text)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tars_end_with_a_sub_batch_where_they_can() {
        assert!(!ends(99, 100, true));
        assert!(ends(100, 100, true));
        assert!(!ends(199, 100, false));
        assert!(ends(200, 100, false));
    }

    #[test]
    fn keys_are_unique_in_a_tar() {
        let mut keys = Keys::default();
        assert_eq!(keys.give("a.tar", "0"), "0");
        assert_eq!(keys.give("b.tar", "0"), "b.tar/0");
        assert_eq!(keys.give("c.tar", "d.tar/0"), "d.tar/0");
        assert_eq!(keys.give("d.tar", "0"), "d.tar/1/0");
        assert_eq!(keys.give("b.tar", "1"), "1");
    }

    #[test]
    fn no_path_leaves_the_folder() {
        assert_eq!(member_path("../../etc/passwd"), "_/_/etc/passwd");
        assert_eq!(member_path("/etc//./x"), "_/etc/_/_/x");
        assert_eq!(member_path("a\0b/ü c"), "a_b/ü c");
        assert_eq!(member_path("v1.0/cat.small"), "v1.0/cat_small");
    }
}
