//! Points in, held where their nearest centroids are looked for; assignments out, for one set of centroids after another.

use crate::algebra::{Algebra, Nearest, Resident};
use crate::engine::Engine;
use crate::error::Error;
use crate::matrix::Matrix;

use super::cloud::Cloud;
use super::nearest::{Assignment, assign};

/// Points on an engine: where the processor has them, or resident on a device.
pub(super) enum Held<'a> {
    Kernels(&'a Matrix),
    Device { algebra: &'a Algebra, points: Resident, inverse_lengths: &'a [f32] },
}

impl<'a> Held<'a> {
    pub fn new(engine: &'a Engine, cloud: &'a Cloud) -> Result<Held<'a>, Error> {
        Ok(match engine {
            Engine::Kernels => Held::Kernels(cloud.points),
            Engine::Device(algebra) => Held::Device {
                algebra,
                points: algebra.keep(cloud.points)?,
                inverse_lengths: &cloud.inverse_lengths,
            },
        })
    }

    pub fn assign(&self, centroids: &Matrix) -> Result<Vec<Assignment>, Error> {
        match self {
            Held::Kernels(points) => Ok(assign(points, centroids)),
            Held::Device { algebra, points, inverse_lengths } => {
                Ok(assignments(&algebra.nearest(points, centroids)?, inverse_lengths))
            }
        }
    }
}

/// [`assign`] on an engine, of points that are assigned once. The same but for rounding: see
/// [`algebra`](crate::algebra).
///
/// # Errors
///
/// [`Error::Device`] where a device fails.
pub fn assign_on(engine: &Engine, points: &Matrix, centroids: &Matrix) -> Result<Vec<Assignment>, Error> {
    Ok(assign_and_rows(engine, points, centroids)?.0)
}

/// [`assign_on`], and how many centroids a device took at once at the fewest.
pub fn assign_and_rows(
    engine: &Engine,
    points: &Matrix,
    centroids: &Matrix,
) -> Result<(Vec<Assignment>, Option<usize>), Error> {
    match engine {
        Engine::Kernels => Ok((assign(points, centroids), None)),
        Engine::Device(algebra) => {
            let (nearest, rows_at_once) = algebra.nearest_once(points, centroids)?;
            Ok((assignments(&nearest, &Cloud::new(points).inverse_lengths), Some(rows_at_once)))
        }
    }
}

fn assignments(nearest: &[Nearest], inverse_lengths: &[f32]) -> Vec<Assignment> {
    let points = nearest.iter().zip(inverse_lengths);
    let assignment = |(nearest, inverse_length): (&Nearest, &f32)| {
        Assignment::of(nearest.centroid, nearest.similarity, nearest.second_similarity, *inverse_length)
    };
    points.map(assignment).collect()
}
