//! A super-batch and what was drawn from it in, what the drawn add to each sample's loss out: by the processor's kernels,
//! or on a device of the runtime.

use std::convert::Infallible;

use crate::algebra::{Algebra, PairSum, Resident};
use crate::error::Error;

use super::loss::{Objective, PairLoss};
use super::reduce::{Mask, reduce_some};
use super::score::PairModel;

/// What adds up the pairs of a super-batch with those drawn from it, under one model.
pub(super) trait Adder {
    type Error;

    /// As [`reduce_some`] has it, for the samples at `which`: of each image with the captions of the drawn, and of each
    /// caption with their images.
    fn add(&self, model: PairModel, drawn: PairModel, which: &[usize]) -> Result<[Vec<f64>; 2], Self::Error>;
}

/// The processor's own kernels.
pub(super) struct Kernels;

impl Adder for Kernels {
    type Error = Infallible;

    fn add(&self, model: PairModel, drawn: PairModel, which: &[usize]) -> Result<[Vec<f64>; 2], Infallible> {
        let sets = [model.images_with(drawn), model.captions_with(drawn)];
        let added = reduce_some(&sets, Mask::Nothing, which);
        Ok(added.try_into().expect("one for each set"))
    }
}

/// The embeddings of a super-batch under one model, on a device.
pub(super) struct OnDevice<'a> {
    algebra: &'a Algebra,
    images: Resident,
    captions: Resident,
}

impl Objective {
    /// What a device adds up for it.
    pub(super) fn pair_sum(self) -> PairSum {
        match self {
            Objective::Sigmoid => PairSum::Softplus,
            Objective::Softmax => PairSum::LogSumExp,
        }
    }
}

impl<'a> OnDevice<'a> {
    pub fn new(algebra: &'a Algebra, model: &PairModel) -> Result<OnDevice<'a>, Error> {
        let (images, captions) = (algebra.keep(model.images())?, algebra.keep(model.captions())?);
        Ok(OnDevice { algebra, images, captions })
    }
}

impl Adder for OnDevice<'_> {
    type Error = Error;

    fn add(&self, model: PairModel, drawn: PairModel, which: &[usize]) -> Result<[Vec<f64>; 2], Error> {
        let PairLoss { logit_scale, logit_bias, objective } = model.loss();
        let sum = objective.pair_sum();
        let with = |rows, columns| -> Result<Vec<f64>, Error> {
            let of_all = self.algebra.pair_sums(sum, rows, columns, logit_scale, logit_bias)?;
            Ok(which.iter().map(|&column| of_all[column]).collect())
        };
        Ok([with(drawn.captions(), &self.images)?, with(drawn.images(), &self.captions)?])
    }
}
