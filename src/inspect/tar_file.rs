//! A tar in; its samples as a run under default limits would read and decode them, out.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use crate::embed::image::decode;
use crate::error::Error;
use crate::read::{LabelSource, Limits, ReadSample, SampleKind, Samples, decompress, is_plain};
use crate::rejection::Rejection;

use super::grid::{cut, grid, printable};

/// Samples that text shows.
const SAMPLES_SHOWN: usize = 20;
const CAPTION_SHOWN: usize = 48;
const KEY_SHOWN: usize = 32;

/// Samples by which a shard's kind is told.
const FIRST_SAMPLES: usize = 8;

/// Samples whose images are held at once.
const BLOCK_SAMPLES: usize = 16;

/// The samples of a tar, or those of one key.
#[derive(Debug, Serialize)]
pub struct Tar {
    path: PathBuf,
    key: Option<String>,
    n_samples: u64,
    /// By the text of the rejection.
    rejected: BTreeMap<&'static str, u64>,
    samples: Vec<TarSample>,
}

#[derive(Debug, Serialize)]
struct TarSample {
    key: String,
    sample_idx: u64,
    rejection: Option<&'static str>,
    image_extension: Option<String>,
    image_offset: Option<u64>,
    image_size: u64,
    /// Pixels; null where the image could not be decoded.
    width: Option<u32>,
    height: Option<u32>,
    uid: Option<String>,
    caption: Option<String>,
    /// The number of its class, in a shard of labelled images.
    label: Option<u32>,
    /// Of a sample that was asked for by its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    json: Option<String>,
}

impl Tar {
    pub fn read(path: &Path, file: File, key: Option<&str>) -> Result<Tar, Error> {
        let read_error = |source: io::Error| Error::Read { path: path.to_owned(), source };
        let name = path.to_string_lossy();
        let reader = decompress(&name, file).map_err(read_error)?;
        let limits = Limits::default();
        let kind = kind_of(path).map_err(read_error)?;
        let mut all = Samples::new(reader, limits.clone(), is_plain(&name)).of_kind(kind);
        let mut samples: Vec<TarSample> = Vec::new();
        let mut n_samples = 0;
        loop {
            let block =
                all.by_ref().take(BLOCK_SAMPLES).collect::<io::Result<Vec<_>>>().map_err(read_error)?;
            if block.is_empty() {
                break;
            }
            if n_samples == 0 && is_no_tar(&block[0]) {
                return Err(Error::NothingToShow { path: path.to_owned() });
            }
            n_samples += block.len() as u64;
            let wanted = block.into_par_iter().filter(|sample| key.is_none_or(|key| key_of(sample) == key));
            samples.par_extend(wanted.map(|sample| TarSample::new(sample, &limits, key.is_some())));
        }
        if let Some(key) = key
            && samples.is_empty()
        {
            return Err(Error::KeyMissing { path: path.to_owned(), key: key.to_owned() });
        }
        let mut rejected = BTreeMap::new();
        for rejection in samples.iter().filter_map(|sample| sample.rejection) {
            *rejected.entry(rejection).or_default() += 1;
        }
        Ok(Tar { path: path.to_owned(), key: key.map(str::to_owned), n_samples, rejected, samples })
    }

    pub fn text(&self) -> String {
        if self.key.is_some() {
            return self.samples.iter().map(TarSample::text).collect::<Vec<_>>().join("\n\n");
        }
        let n_rejected: u64 = self.rejected.values().sum();
        let mut text = format!("{}: {} samples, {n_rejected} rejected", self.path.display(), self.n_samples);
        for (rejection, n) in &self.rejected {
            let _ = write!(text, "\n  {n} {rejection}");
        }
        let header = ["idx", "key", "image", "pixels", "bytes", "caption or label", "rejection"];
        let rows: Vec<Vec<String>> = self.samples.iter().take(SAMPLES_SHOWN).map(TarSample::cells).collect();
        let _ = write!(text, "\n\n{}", grid(&header, &rows, &["idx", "pixels", "bytes"]));
        if self.samples.len() > SAMPLES_SHOWN {
            let _ = write!(text, "\n… {} more; `--json` shows all", self.samples.len() - SAMPLES_SHOWN);
        }
        text
    }
}

/// What a shard is of: the first kind that does not reject all of its first samples for the want of what it asks for.
fn kind_of(path: &Path) -> io::Result<SampleKind> {
    for kind in [SampleKind::ImageText, SampleKind::ImageClass(LabelSource::Member), SampleKind::Image] {
        let reader = decompress(&path.to_string_lossy(), File::open(path)?)?;
        let first = Samples::new(reader, Limits::default(), false).of_kind(kind.clone()).take(FIRST_SAMPLES);
        let lacks = |sample: &io::Result<ReadSample>| {
            matches!(sample, Ok(ReadSample::Rejected(rejected))
                if matches!(rejected.rejection, Rejection::MissingCaption | Rejection::MissingLabel))
        };
        if !first.into_iter().all(|sample| lacks(&sample)) {
            return Ok(kind);
        }
    }
    Ok(SampleKind::ImageText)
}

/// Whether the first header is broken already: bytes of something else.
fn is_no_tar(first: &ReadSample) -> bool {
    key_of(first).is_empty()
        && matches!(first, ReadSample::Rejected(rejected) if rejected.rejection == Rejection::ShardBroken)
}

fn key_of(sample: &ReadSample) -> &str {
    match sample {
        ReadSample::Sample(sample) => &sample.key,
        ReadSample::Rejected(rejected) => &rejected.key,
    }
}

impl TarSample {
    fn new(sample: ReadSample, limits: &Limits, with_json: bool) -> TarSample {
        match sample {
            ReadSample::Sample(sample) => {
                let decoded = decode(&sample.image, limits);
                let size = decoded.as_ref().ok().map(|image| image.dimensions());
                TarSample {
                    key: sample.key,
                    sample_idx: sample.sample_idx,
                    rejection: decoded.err().map(Rejection::text),
                    image_extension: Some(sample.image_extension),
                    image_offset: sample.image_offset,
                    image_size: sample.image_size,
                    width: size.map(|(width, _)| width),
                    height: size.map(|(_, height)| height),
                    uid: sample.uid,
                    caption: sample.caption,
                    label: sample.label,
                    json: sample.json.filter(|_| with_json),
                }
            }
            ReadSample::Rejected(rejected) => TarSample {
                key: rejected.key,
                sample_idx: rejected.sample_idx,
                rejection: Some(rejected.rejection.text()),
                image_extension: None,
                image_offset: rejected.image_offset,
                image_size: rejected.image_size,
                width: None,
                height: None,
                uid: None,
                caption: rejected.caption,
                label: rejected.label,
                json: rejected.json.filter(|_| with_json),
            },
        }
    }

    fn pixels(&self) -> String {
        self.width
            .zip(self.height)
            .map_or_else(|| "–".to_owned(), |(width, height)| format!("{width}×{height}"))
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.sample_idx.to_string(),
            cut(&self.key, KEY_SHOWN),
            self.image_extension.as_deref().map_or_else(|| "–".to_owned(), printable),
            self.pixels(),
            self.image_size.to_string(),
            match (&self.caption, self.label) {
                (Some(caption), _) => cut(caption, CAPTION_SHOWN),
                (None, Some(label)) => label.to_string(),
                (None, None) => "–".to_owned(),
            },
            self.rejection.unwrap_or_default().to_owned(),
        ]
    }

    fn text(&self) -> String {
        let shown = |text: &Option<String>| text.as_deref().map_or_else(|| "–".to_owned(), printable);
        let fate = match self.rejection {
            Some(rejection) => format!("rejected: {rejection}"),
            None => "a run would read this sample".to_owned(),
        };
        let offset = self.image_offset.map_or_else(|| "–".to_owned(), |offset| offset.to_string());
        format!(
            "sample {}, {}\n{fate}\n  image    {}, {} pixels, {} bytes at {offset}\n  uid      {}\n  caption  {}\n  label    {}\n  json     {}",
            self.sample_idx,
            printable(&self.key),
            shown(&self.image_extension),
            self.pixels(),
            self.image_size,
            shown(&self.uid),
            shown(&self.caption),
            self.label.map_or_else(|| "–".to_owned(), |label| label.to_string()),
            shown(&self.json),
        )
    }
}
