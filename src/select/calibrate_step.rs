//! A seeded sample of the pool under one model in; the logit scale and bias that the sigmoid loss gives it out.

use crate::embed::{read_embeddings, smallest_by_hash};
use crate::error::Error;
use crate::matrix::Matrix;
use crate::noise::Purpose;
use crate::run_folder::{Done, RunFolder};
use crate::settings::ModelRole;

use super::calibrate::calibrate;
use super::losses::CalibratedLogits;

/// Pairs that the fit looks at: their negatives stand for those of a sub-batch of any size.
const PAIRS_MAX: usize = 4096;

/// Sub-batch of draws that have none.
const SUB_BATCH_SIZE: u64 = 4096;

/// Fits and commits one model.
pub fn commit_calibration(
    run: &RunFolder,
    tasks: &[usize],
    model: usize,
    role: ModelRole,
) -> Result<(), Error> {
    let plan = run.plan();
    let by_task = smallest_by_hash(run, role, tasks, Purpose::Calibrate, PAIRS_MAX)?;
    let (mut images, mut captions) = (Matrix::default(), Matrix::default());
    let mut read = Vec::new();
    for (task, samples) in by_task {
        let (embedded, file) = read_embeddings(run, role, task)?;
        read.push(file);
        let rows = embedded.rows_of(&samples);
        let (of_images, of_captions) = embedded.pairs().expect("checked with the plan: a model of pairs");
        images.append(&of_images.gather(&rows));
        captions.append(&of_captions.gather(&rows));
    }
    if images.n_rows() < 2 {
        return Err(Error::NothingEmbedded);
    }
    let sub_batch_size = match plan.select.draw.deal() {
        Some(deal) => deal.filter_ratio.kept(deal.super_batch_size as u64).max(2),
        None => SUB_BATCH_SIZE,
    };
    let fitted = calibrate(&images, &captions, sub_batch_size as usize)
        .map_err(|source| Error::Calibrate { model: role, source })?;
    tracing::info!(
        model = %role,
        logit_scale = fitted.logit_scale,
        logit_bias = fitted.logit_bias,
        "calibrated on the pool"
    );
    let counts = CalibratedLogits {
        logit_scale: fitted.logit_scale,
        logit_bias: fitted.logit_bias,
        loss: fitted.loss,
        n_samples: images.n_rows() as u64,
        sub_batch_size,
    };
    run.commit(&run.score("select.calibrate"), model, Done::new(Vec::new(), read, counts))?;
    Ok(())
}
