"""Pools with planted concepts, swapped captions and learnt pairs, from random numbers that any language can make again.

Random numbers, all arithmetic on u64 modulo 2⁶⁴, γ = 0x9E3779B97F4A7C15:

    mix64(z):       z ^= z >> 30;  z *= 0xBF58476D1CE4E5B9;  z ^= z >> 27;  z *= 0x94D049BB133111EB;  z ^= z >> 31
    start(seed, s): mix64(mix64(seed) + s)                             a stream s of a seed
    word i:         mix64(start + (i + 1)·γ)                           i = 0, 1, …
    uniform i:      ((word i >> 11) + ½)·2⁻⁵³                          in (0, 1)
    normal 2m:      √(−2 ln uniform 2m) · cos(2π · uniform 2m+1)       Box–Muller
    normal 2m+1:    √(−2 ln uniform 2m) · sin(2π · uniform 2m+1)

A matrix [n, d] takes its normals row by row. `unit noise` is a row of normals at length 1, and
`mix(v, s) = normalise(v + s · unit noise)`. All in f64; embeddings may be rounded to f32 at the end.

A pool of n samples, k concepts, d = 64, in streams:

    1  concept of sample i: ⌊u_{2i} · u_{2i+1} · k⌋
    2  centres μ [k, d]: unit noise
    3  z of image i: mix(μ_c, 0.8)
    4  concept of the caption of a mismatched sample i: ⌊u_i · k⌋
    5  z of the caption of a mismatched sample i: mix(μ_c', 0.8); of any other: z of its image
    6  kind of sample i: mismatched if u_i < mismatched, learnt if u_i < mismatched + learnt, else learnable
    7  reference images, 8 reference captions: mix(z, 0.35)
    9  learner images,  10 learner captions:
         noisy pool    mix(z, 1.5); learnt mix(z, 0.4)
         coarse pool   mix(normalise(0.65 μ + 0.35 z), 0.25); learnt mix(z, 0.35); mismatched mix(z, 0.25),
                       μ of the caption's own concept for captions

Every stream has a row for every sample, whether it is used or not.
"""

from dataclasses import dataclass

import numpy as np

from methods import calibrate, losses
from methods.clusters import unit

GAMMA = 0x9E3779B97F4A7C15
D = 64
n_fit = 400  # pairs that α and β of each model are fitted on: the first of the pool
LEARNABLE, MISMATCHED, LEARNT = 0, 1, 2


def mix64(z):
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def words(seed, stream, n):
    with np.errstate(over="ignore"):
        start = mix64(mix64(np.uint64(seed)) + np.uint64(stream))
        return mix64(start + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(GAMMA))


def uniforms(seed, stream, n):
    return ((words(seed, stream, n) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normals(seed, stream, n, d):
    """[n, d]"""
    u = uniforms(seed, stream, n * d + n * d % 2).reshape(-1, 2)
    radius, angle = np.sqrt(-2 * np.log(u[:, 0])), 2 * np.pi * u[:, 1]
    both = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return both.ravel()[: n * d].reshape(n, d)


def unit_noise(seed, stream, n, d):
    return unit(normals(seed, stream, n, d))


def mix(v, spread, noise):
    """normalise(v + s · unit noise); `spread` one number, or one a row."""
    return unit(v + np.reshape(spread, (-1, 1)) * noise)


@dataclass(frozen=True)
class Pool:
    kind: np.ndarray  # [n] LEARNABLE, MISMATCHED or LEARNT
    concept: np.ndarray  # [n], of the image
    z: np.ndarray  # [n, d], of the image
    learner: losses.Model
    reference: losses.Model

    def of(self, rows):
        return Pool(self.kind[rows], self.concept[rows], self.z[rows], self.learner.of(rows), self.reference.of(rows))


def fitted(x, y):
    """A model with (α, β) at the minimum of the sigmoid loss on the first `n_fit` pairs."""
    n = min(n_fit, len(x))
    scale, bias, _ = calibrate.calibrate(x[:n] @ y[:n].T, n)
    return losses.Model(x, y, scale, bias)


def make_pool(seed, n, n_concepts, shares, learner_of, d=D):
    """`shares`: (mismatched, learnt); `learner_of(z, μ, kind, noise)`: the learner's embeddings of one side."""
    u = uniforms(seed, 1, 2 * n).reshape(n, 2)
    concept = (u[:, 0] * u[:, 1] * n_concepts).astype(int)
    centres = unit_noise(seed, 2, n_concepts, d)
    z_image = mix(centres[concept], 0.8, unit_noise(seed, 3, n, d))
    other = (uniforms(seed, 4, n) * n_concepts).astype(int)
    z_other = mix(centres[other], 0.8, unit_noise(seed, 5, n, d))
    u = uniforms(seed, 6, n)
    kind = np.where(u < shares[0], MISMATCHED, np.where(u < shares[0] + shares[1], LEARNT, LEARNABLE))
    is_swapped = kind == MISMATCHED
    z_caption = np.where(is_swapped[:, None], z_other, z_image)
    caption_concept = np.where(is_swapped, other, concept)
    reference = fitted(*(mix(z, 0.35, unit_noise(seed, s, n, d)) for z, s in ((z_image, 7), (z_caption, 8))))
    sides = ((z_image, concept, 9), (z_caption, caption_concept, 10))
    learner = fitted(*(learner_of(z, centres[c], kind, unit_noise(seed, s, n, d)) for z, c, s in sides))
    return Pool(kind, concept, z_image, learner, reference)


def noisy_learner(z, mu, kind, noise):
    return mix(z, np.where(kind == LEARNT, 0.4, 1.5), noise)


def coarse_learner(z, mu, kind, noise):
    blurred = mix(unit(0.65 * mu + 0.35 * z), 0.25, noise)
    learnt, mismatched = mix(z, 0.35, noise), mix(z, 0.25, noise)
    is_learnt, is_mismatched = (kind == LEARNT)[:, None], (kind == MISMATCHED)[:, None]
    return np.where(is_learnt, learnt, np.where(is_mismatched, mismatched, blurred))


def noisy_pool(seed, n):
    return make_pool(seed, n, 100, (0.2, 0.3), noisy_learner)


def coarse_pool(seed, n):
    return make_pool(seed, n, 24, (0.1, 0.2), coarse_learner)
