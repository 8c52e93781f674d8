//! The settings of a joint draw in, what draws it out: the processor's kernels or a device of the runtime.

use crate::algebra::Algebra;
use crate::error::Error;
use crate::noise::SampleId;
use crate::settings::SuperBatchMethod;

use super::joint::{DrawPlan, JointDraw, draw_remaining, draw_remaining_on};
use super::score::Scoring;

/// Where the pairs of a draw are added up.
pub(super) enum Engine {
    Kernels,
    Device(Box<Algebra>),
}

impl Engine {
    /// What the settings of a draw ask for.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] for a GPU that cannot be used.
    pub fn of(method: &SuperBatchMethod) -> Result<Engine, Error> {
        let SuperBatchMethod::Jest(jest) = method else { return Ok(Engine::Kernels) };
        match jest.device.places()?[0] {
            place if place.is_gpu() => Ok(Engine::Device(Box::new(Algebra::open(place, jest.products)?))),
            _ => Ok(Engine::Kernels),
        }
    }

    /// [`draw_remaining`] or [`draw_remaining_on`].
    pub fn draw(
        &self,
        ids: &[SampleId],
        scoring: &Scoring,
        is_taken: &[bool],
        plan: &DrawPlan,
    ) -> Result<JointDraw, Error> {
        match self {
            Engine::Kernels => Ok(draw_remaining(ids, scoring, is_taken, plan)),
            Engine::Device(algebra) => draw_remaining_on(algebra, ids, scoring, is_taken, plan),
        }
    }
}
