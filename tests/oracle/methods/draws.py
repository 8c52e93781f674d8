"""Draws without replacement: joint, independent, top-k; and their exact law for a few samples. METHODS §3 and §4."""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from . import losses
from .counts import chunk_sizes
from .noise import gumbel, id_order

TOLERANCE = 1e-4  # of 1 + Σ|terms| of a logit, for f32 kernels


@dataclass(frozen=True)
class Settings:
    sub_batch_size: int
    n_chunks: int
    gain: float
    draw: str  # "noise" or "top_k"
    seed: int
    round: int = 0
    pass_: int = 0


@dataclass(frozen=True)
class Chunk:
    """The state at one step: `logits` and `terms` (Σ|terms|) of all n, NaN where drawn before; `picks` in order.

    `gaps[p]`: how far pick p's gain · logit + noise lies above the next candidate's, drawn or not; inf without one.
    `doubts[p]`: how far f32 kernels may move the two together: gain · TOLERANCE · (2 + Σ|terms| of both).
    """

    logits: np.ndarray
    terms: np.ndarray
    picks: list
    gaps: list
    doubts: list


def sigmoid_logits(s, drawn):
    """The marginal of every sample given the drawn, and Σ|terms|: [n] each. Dense: nothing is kept between chunks."""
    logits = np.diag(s) + s[:, drawn].sum(axis=1) + s[drawn, :].sum(axis=0)
    terms = np.abs(np.diag(s)) + np.abs(s[:, drawn]).sum(axis=1) + np.abs(s[drawn, :]).sum(axis=0)
    return logits, terms


def softmax_model_logits(l, drawn):
    """−l_xx + ½(LSE_{k∈drawn} l_xk + LSE_{k∈drawn} l_kx), and Σ|terms|; −l_xx alone before the first chunk."""
    own = np.diag(l)
    if not drawn:
        return -own, np.abs(own)
    to_captions, to_images = losses.log_sum_exp(l[:, drawn], 1), losses.log_sum_exp(l[drawn, :], 0)
    return -own + (to_captions + to_images) / 2, np.abs(own) + (np.abs(to_captions) + np.abs(to_images)) / 2


def softmax_logits(scoring, learner_logits, reference_logits, drawn):
    of_learner, terms_learner = softmax_model_logits(learner_logits, drawn)
    of_reference, terms_reference = softmax_model_logits(reference_logits, drawn)
    terms = {
        "hard_learner": terms_learner,
        "easy_reference": terms_reference,
        "learnability": terms_learner + terms_reference,
    }
    return losses.combine(scoring, of_learner, of_reference), terms[scoring]


def logits_given(objective, scoring, learner, reference):
    """A function: the drawn → joint logits and Σ|terms| of all samples."""
    if objective == "sigmoid":
        s = losses.score_matrix(scoring, learner, reference)
        return lambda drawn: sigmoid_logits(s, drawn)
    of_learner, of_reference = learner.logits(), reference.logits()
    return lambda drawn: softmax_logits(scoring, of_learner, of_reference, drawn)


def draw(logits_of, ids, settings):
    """Draws b of n in chunks: the largest gain · logit + noise, ties by sample id. Returns the chunks."""
    n, rank = len(ids), id_order(ids)
    drawn, chunks = [], []
    for chunk_idx, size in enumerate(chunk_sizes(settings.sub_batch_size, settings.n_chunks)):
        logits, terms = (np.array(v, float) for v in logits_of(drawn))
        values = settings.gain * logits
        if settings.draw == "noise":
            key = (settings.seed, settings.round, settings.pass_, chunk_idx)
            values = values + np.array([gumbel(*key, sample_id) for sample_id in ids])
        in_order = sorted(set(range(n)) - set(drawn), key=lambda i: (-values[i], rank[i]))
        gaps, doubts = [], []
        for position in range(size):
            this, follower = in_order[position], in_order[position + 1 : position + 2]
            gaps.append(float(values[this] - values[follower[0]]) if follower else math.inf)
            moved = terms[this] + (terms[follower[0]] if follower else 0.0)
            doubts.append(settings.gain * TOLERANCE * (2 + float(moved)))
        logits[drawn], terms[drawn] = np.nan, np.nan
        chunks.append(Chunk(logits, terms, in_order[:size], gaps, doubts))
        drawn = drawn + in_order[:size]
    return chunks


def joint_draw(objective, scoring, learner, reference, ids, settings):
    return draw(logits_given(objective, scoring, learner, reference), ids, settings)


def independent_draw(scores, ids, settings):
    """A draw by per-sample log-weights: every chunk sees the same logits. With noise in one chunk: Plackett–Luce."""
    return draw(lambda drawn: (scores, np.abs(scores)), ids, settings)


def picks_of(chunks):
    return [pick for chunk in chunks for pick in chunk.picks]


def is_decided(chunks):
    """No pick could be another one within the tolerance of f32 kernels."""
    return all(gap > doubt for chunk in chunks for gap, doubt in zip(chunk.gaps, chunk.doubts))


# The exact law


def sequence_probability(log_weights_given, gain, sequence, sizes):
    """The probability of drawing `sequence` in this order, weights exp(gain · logit) renewed at each chunk."""
    n = len(log_weights_given([]))
    probability, drawn, position = 1.0, [], 0
    for size in sizes:
        weights = np.exp(gain * np.asarray(log_weights_given(drawn), float))
        inside = []
        for pick in sequence[position : position + size]:
            open_ = [i for i in range(n) if i not in drawn and i not in inside]
            probability *= weights[pick] / weights[open_].sum()
            inside.append(pick)
        drawn, position = drawn + inside, position + size
    return float(probability)


def exact_sequences(log_weights_given, gain, b, n_chunks):
    """{ordered b-tuple: probability} by enumeration."""
    n = len(log_weights_given([]))
    sizes = chunk_sizes(b, n_chunks)
    return {
        sequence: sequence_probability(log_weights_given, gain, sequence, sizes)
        for sequence in itertools.permutations(range(n), b)
    }


def exact_subsets(sequences):
    """{sorted tuple: probability} of the drawn as a set."""
    subsets = {}
    for sequence, probability in sequences.items():
        subset = tuple(sorted(sequence))
        subsets[subset] = subsets.get(subset, 0.0) + probability
    return subsets
