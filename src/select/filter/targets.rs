//! Files of target embeddings in; how close each sample's image comes to them out.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use crate::embed::read_embeddings;
use crate::error::Error;
use crate::matrix::Matrix;
use crate::npy;
use crate::run_folder::RunFolder;
use crate::sample::SampleRef;
use crate::select::nearest::{NearestEvaluation, moments_for, nearest_evaluation, norm_sim_by};
use crate::settings::{Filter, ModelRole, Norm};
use crate::storage::FileRecord;

use super::measure::Found;

/// The target embeddings of a filter, rows of unit length.
pub struct Targets {
    model: ModelRole,
    norm: Norm,
    /// Their names, and their embeddings `[n, d]`.
    sets: Vec<(String, Matrix)>,
    /// Of the first set, where its norm needs no more.
    moments: Option<Matrix>,
}

/// The evaluation set that comes closest to a sample.
pub struct Nearest<'a> {
    pub set: &'a str,
    pub similarity: f64,
}

impl Nearest<'_> {
    /// What the filter finds of a sample that may come no closer than this.
    pub fn found(&self, similarity_max: f64) -> Found {
        let is_within = self.similarity <= similarity_max;
        Found {
            score: Some(self.similarity),
            is_within,
            duplicate_of: None,
            part: (!is_within).then(|| self.set.to_owned()),
        }
    }
}

impl Targets {
    /// Reads the files that a filter names, if it names any.
    ///
    /// # Errors
    ///
    /// A file that is no matrix of numbers of the model's width.
    pub fn open(run: &RunFolder, filter: &Filter) -> Result<Option<Targets>, Error> {
        let (model, norm, files) = match filter {
            Filter::NormSim(filter) => (filter.model, filter.norm, vec![("targets", &filter.targets)]),
            Filter::Decontaminate(filter) => {
                let sets = filter.sets.iter().map(|set| (set.name.as_str(), &set.path));
                (filter.model, Norm::Infinity, sets.collect())
            }
            _ => return Ok(None),
        };
        let dim = run.plan().models.get(model).expect("checked with the settings").embedding_dim;
        let sets = files.into_iter().map(|(name, path)| Ok((name.to_owned(), read_targets(path, dim)?)));
        let sets: Vec<(String, Matrix)> = sets.collect::<Result<_, Error>>()?;
        let moments = moments_for(&sets[0].1, norm);
        Ok(Some(Targets { model, norm, sets, moments }))
    }

    /// The samples' NormSim against all targets.
    pub fn norms(
        &self,
        run: &RunFolder,
        task: usize,
        samples: &[SampleRef],
        read: &mut Vec<FileRecord>,
    ) -> Result<Vec<Option<f64>>, Error> {
        let images = self.images(run, task, samples, read)?;
        let (_, targets) = &self.sets[0];
        let norms = norm_sim_by(&images, targets, self.norm, self.moments.as_ref());
        Ok(norms.into_iter().map(Some).collect())
    }

    /// The evaluation set that comes closest to each sample.
    pub fn nearest(
        &self,
        run: &RunFolder,
        task: usize,
        samples: &[SampleRef],
        read: &mut Vec<FileRecord>,
    ) -> Result<Vec<Nearest<'_>>, Error> {
        let images = self.images(run, task, samples, read)?;
        let by_set: Vec<Vec<NearestEvaluation>> =
            self.sets.iter().map(|(_, targets)| nearest_evaluation(&images, targets)).collect();
        let nearest = (0..samples.len()).map(|row| {
            let of_sets = self.sets.iter().zip(&by_set).map(|((name, _), similarities)| Nearest {
                set: name.as_str(),
                similarity: f64::from(similarities[row].similarity),
            });
            // the first set on a tie
            of_sets.reduce(|best, next| if next.similarity > best.similarity { next } else { best })
        });
        Ok(nearest.map(|nearest| nearest.expect("a filter names a set")).collect())
    }

    fn images(
        &self,
        run: &RunFolder,
        task: usize,
        samples: &[SampleRef],
        read: &mut Vec<FileRecord>,
    ) -> Result<Matrix, Error> {
        let (embedded, file) = read_embeddings(run, self.model, task)?;
        read.push(file);
        let images = embedded.rows.images().expect("checked with the plan: it embeds images");
        Ok(images.gather(&embedded.rows_of(samples)))
    }
}

/// Reads targets and scales them to unit length.
fn read_targets(path: &Path, dim: usize) -> Result<Matrix, Error> {
    let file = File::open(path).map_err(|source| Error::ReadSetting { path: path.to_owned(), source })?;
    let targets = npy::read_matrix(BufReader::new(file))
        .map_err(|source| Error::Targets { path: path.to_owned(), source })?;
    let fault = |source| Error::Targets { path: path.to_owned(), source };
    if targets.n_cols() != dim {
        return Err(fault(npy::NpyError::Width { found: targets.n_cols(), expected: dim }));
    }
    let mut targets = targets;
    for row in 0..targets.n_rows() {
        let values = targets.row_mut(row);
        let length = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        if !(length.is_finite() && length > 0.0) {
            return Err(fault(npy::NpyError::Degenerate { row }));
        }
        values.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
    }
    Ok(targets)
}
