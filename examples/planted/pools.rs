//! A seed in, a pool with planted concepts, swapped captions and learnt pairs out.
//!
//! The random numbers and both pools are those that `tests/oracle/planted_pools.py` defines, so that figures can be
//! compared seed by seed. All in f64; embeddings are rounded to f32 at the end.

use std::f64::consts::PI;

use superbatch::matrix::Matrix;
use superbatch::noise::SampleId;
use superbatch::select::{Learner, Objective, PairLoss, PairModel, Reference, Scoring, calibrate};

const DIM: usize = 64;

/// The pairs that scale and bias of each model are fitted on: the first of the pool.
const N_FIT: usize = 400;

type Row = [f64; DIM];

/// What was planted in a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The reference knows it, the learner not yet.
    Learnable,
    /// The caption belongs to another image.
    Mismatched,
    /// The learner knows it too.
    Learnt,
}

fn mix64(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The words of a stream of a seed: splitmix64 from a start of its own.
pub fn words(seed: u64, stream: u64) -> impl Iterator<Item = u64> {
    let start = mix64(mix64(seed).wrapping_add(stream));
    (1u64..).map(move |i| mix64(start.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
}

/// Uniform in (0, 1).
pub fn uniforms(seed: u64, stream: u64) -> impl Iterator<Item = f64> {
    words(seed, stream).map(|word| ((word >> 11) as f64 + 0.5) * (-53f64).exp2())
}

/// Normal, two at a time from two uniforms (Box–Muller).
pub fn normals(seed: u64, stream: u64) -> impl Iterator<Item = f64> {
    let mut uniforms = uniforms(seed, stream);
    std::iter::from_fn(move || Some((uniforms.next()?, uniforms.next()?))).flat_map(|(first, second)| {
        let (radius, angle) = ((-2.0 * first.ln()).sqrt(), 2.0 * PI * second);
        [radius * angle.cos(), radius * angle.sin()]
    })
}

fn unit(mut row: Row) -> Row {
    let length = row.iter().map(|value| value * value).sum::<f64>().sqrt();
    row.iter_mut().for_each(|value| *value /= length);
    row
}

/// `n` rows of normals at unit length.
fn unit_noise(seed: u64, stream: u64, n: usize) -> Vec<Row> {
    let mut normals = normals(seed, stream);
    (0..n).map(|_| unit(std::array::from_fn(|_| normals.next().expect("a stream does not end")))).collect()
}

/// `normalise(own_share·v + other_share·w)`
fn blend(own_share: f64, v: &Row, other_share: f64, w: &Row) -> Row {
    unit(std::array::from_fn(|column| own_share * v[column] + other_share * w[column]))
}

/// `normalise(v + spread · noise)`
fn mix(v: &Row, spread: f64, noise: &Row) -> Row {
    blend(1.0, v, spread, noise)
}

/// One model's embeddings of a pool, and its loss.
#[derive(Clone)]
pub struct Model {
    pub images: Matrix,
    pub captions: Matrix,
    pub loss: PairLoss,
}

impl Model {
    /// With scale and bias at the least sigmoid loss of the first pairs.
    fn fitted(images: &[Row], captions: &[Row]) -> Model {
        let matrix =
            |rows: &[Row]| Matrix::new(rows.iter().flatten().map(|value| *value as f32).collect(), DIM);
        let (images, captions) = (matrix(images), matrix(captions));
        let first: Vec<usize> = (0..images.n_rows().min(N_FIT)).collect();
        let fit = calibrate(&images.gather(&first), &captions.gather(&first), first.len())
            .expect("pairs with noise have a least loss");
        let (logit_scale, logit_bias) = (fit.logit_scale, fit.logit_bias);
        Model { images, captions, loss: PairLoss { logit_scale, logit_bias, objective: Objective::Sigmoid } }
    }

    fn at(&self, rows: &[usize]) -> Model {
        Model { images: self.images.gather(rows), captions: self.captions.gather(rows), loss: self.loss }
    }

    fn view(&self) -> PairModel<'_> {
        PairModel::new(&self.images, &self.captions, self.loss)
    }
}

/// A pool under both models.
pub struct Pool {
    pub kinds: Vec<Kind>,
    /// Of the image.
    pub concepts: Vec<usize>,
    pub learner: Model,
    pub reference: Model,
}

impl Pool {
    pub fn n_samples(&self) -> usize {
        self.kinds.len()
    }

    /// The samples at these rows, in this order.
    pub fn at(&self, rows: &[usize]) -> Pool {
        Pool {
            kinds: rows.iter().map(|&row| self.kinds[row]).collect(),
            concepts: rows.iter().map(|&row| self.concepts[row]).collect(),
            learner: self.learner.at(rows),
            reference: self.reference.at(rows),
        }
    }

    /// Noise is that of the position.
    pub fn ids(&self) -> Vec<SampleId<'static>> {
        (0..self.n_samples() as u64).map(|sample_idx| SampleId { shard: "planted.tar", sample_idx }).collect()
    }

    pub fn hard_learner(&self) -> Scoring<'_> {
        Scoring::HardLearner { learner: Learner(self.learner.view()) }
    }

    pub fn easy_reference(&self) -> Scoring<'_> {
        Scoring::EasyReference { reference: Reference(self.reference.view()) }
    }

    pub fn learnability(&self) -> Scoring<'_> {
        let (learner, reference) = (Learner(self.learner.view()), Reference(self.reference.view()));
        Scoring::Learnability { learner, reference }
    }

    /// Learnability with the two models exchanged: the control that catches a sign error.
    pub fn exchanged(&self) -> Scoring<'_> {
        let (learner, reference) = (Learner(self.reference.view()), Reference(self.learner.view()));
        Scoring::Learnability { learner, reference }
    }
}

/// What tells one pool from the other.
struct Recipe {
    n_concepts: usize,
    mismatched: f64,
    learnt: f64,
    /// The learner's embedding of one side of a pair, from its kind, z, its concept's centre and unit noise.
    learner: fn(Kind, &Row, &Row, &Row) -> Row,
}

/// 20 % mismatched and 30 % learnt of 100 concepts; the learner is blurred all over.
pub fn noisy_pool(seed: u64, n: usize) -> Pool {
    let learner =
        |kind, z: &Row, _: &Row, noise: &Row| mix(z, if kind == Kind::Learnt { 0.4 } else { 1.5 }, noise);
    make(seed, n, &Recipe { n_concepts: 100, mismatched: 0.2, learnt: 0.3, learner })
}

/// 10 % mismatched and 20 % learnt of 24 concepts; the learner knows concepts and takes their members for one another.
pub fn coarse_pool(seed: u64, n: usize) -> Pool {
    let learner = |kind, z: &Row, centre: &Row, noise: &Row| match kind {
        Kind::Learnable => mix(&blend(0.65, centre, 0.35, z), 0.25, noise),
        Kind::Learnt => mix(z, 0.35, noise),
        Kind::Mismatched => mix(z, 0.25, noise),
    };
    make(seed, n, &Recipe { n_concepts: 24, mismatched: 0.1, learnt: 0.2, learner })
}

fn make(seed: u64, n: usize, recipe: &Recipe) -> Pool {
    let n_concepts = recipe.n_concepts;
    let mut pairs = uniforms(seed, 1);
    let mut product = || pairs.next().expect("endless") * pairs.next().expect("endless");
    let concepts: Vec<usize> = (0..n).map(|_| (product() * n_concepts as f64) as usize).collect();
    let centres = unit_noise(seed, 2, n_concepts);
    let kind = |u: f64| match u {
        u if u < recipe.mismatched => Kind::Mismatched,
        u if u < recipe.mismatched + recipe.learnt => Kind::Learnt,
        _ => Kind::Learnable,
    };
    let kinds: Vec<Kind> = uniforms(seed, 6).take(n).map(kind).collect();
    let others = uniforms(seed, 4).map(|u| (u * n_concepts as f64) as usize);
    let caption_concepts: Vec<usize> = (0..n)
        .zip(others)
        .map(|(row, other)| if kinds[row] == Kind::Mismatched { other } else { concepts[row] })
        .collect();

    let around = |row: usize, concept: usize, noise: &[Row]| mix(&centres[concept], 0.8, &noise[row]);
    let (noise, other_noise) = (unit_noise(seed, 3, n), unit_noise(seed, 5, n));
    let of_images: Vec<Row> = (0..n).map(|row| around(row, concepts[row], &noise)).collect();
    let of_caption = |row: usize| match kinds[row] {
        Kind::Mismatched => around(row, caption_concepts[row], &other_noise),
        _ => of_images[row],
    };
    let of_captions: Vec<Row> = (0..n).map(of_caption).collect();

    let seen_by_reference = |z: &[Row], stream| -> Vec<Row> {
        z.iter().zip(unit_noise(seed, stream, n)).map(|(z, noise)| mix(z, 0.35, &noise)).collect()
    };
    let seen_by_learner = |z: &[Row], concepts: &[usize], stream| -> Vec<Row> {
        let noise = unit_noise(seed, stream, n);
        (0..n)
            .map(|row| (recipe.learner)(kinds[row], &z[row], &centres[concepts[row]], &noise[row]))
            .collect()
    };
    let reference = Model::fitted(&seen_by_reference(&of_images, 7), &seen_by_reference(&of_captions, 8));
    let learner = Model::fitted(
        &seen_by_learner(&of_images, &concepts, 9),
        &seen_by_learner(&of_captions, &caption_concepts, 10),
    );
    Pool { kinds, concepts, learner, reference }
}
