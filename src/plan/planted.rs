//! A file of samples known to be bad in, the set of them out.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::digest::Digest;
use crate::error::Error;

/// Samples that were made bad on purpose, by shard and key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlantedSamples(BTreeSet<(String, String)>);

impl PlantedSamples {
    /// Reads lines `shard,key` under a header of these words; the key is everything after the first comma.
    pub fn read(path: &Path) -> Result<PlantedSamples, Error> {
        let text = fs::read_to_string(path)
            .map_err(|source| Error::ReadSetting { path: path.to_owned(), source })?;
        let mut planted = BTreeSet::new();
        for (line_idx, line) in text.lines().enumerate() {
            let malformed = || Error::Planted { path: path.to_owned(), line: line_idx + 1 };
            let (shard, key) = line.split_once(',').ok_or_else(malformed)?;
            match line_idx {
                0 if (shard, key) != ("shard", "key") => return Err(malformed()),
                0 => {}
                _ => drop(planted.insert((shard.to_owned(), key.to_owned()))),
            }
        }
        Ok(PlantedSamples(planted))
    }

    pub fn contains(&self, id: &(String, String)) -> bool {
        self.0.contains(id)
    }

    pub fn n_samples(&self) -> usize {
        self.0.len()
    }

    pub fn digest(&self) -> Digest {
        Digest::of_json(self)
    }
}
