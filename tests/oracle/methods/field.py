"""Filters and baselines of the field. METHODS §6."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from . import losses
from .counts import round_half_even
from .draws import Settings, independent_draw, picks_of
from .independent import contrastive_scores
from .noise import gumbel, id_order

NEG_CLIP_LOSS_BATCH = 32_768


# Baselines


def full_loss_shares(objective, scoring, learner, reference, sub_batch_size):
    """S_ii + (b−1)/(B−1) Σ_{j≠i} ½(S_ij + S_ji): the contrastive score of §4 with all others as negatives. [B]"""
    everyone = list(range(len(learner.x)))
    return contrastive_scores(objective, scoring, learner, reference, everyone, sub_batch_size)


def top_k(scores, ids, k):
    """Rows of the k largest, in falling order, ties to the smaller sample id."""
    rank = id_order(ids)
    return sorted(range(len(ids)), key=lambda i: (-scores[i], rank[i]))[:k]


# Per-sample filters; all return rows in the order of the pool, or numbers [n]


def top_fraction(scores, ids, fraction, n_pool):
    """Rows of the K = round-half-even(fraction · n_pool) largest of what is here; `fraction` is the decimal as text."""
    k = min(len(ids), round_half_even(n_pool * Fraction(fraction)))
    return sorted(top_k(scores, ids, k))


def neg_clip_loss(similarities, partitions, temperature, batch_size):
    """⟨x_i,y_i⟩ − (τ/2)[LSE_j ⟨x_i,y_j⟩/τ + LSE_j ⟨x_j,y_i⟩/τ], mean over partitions; high = clean.

    The LSE runs over i's batch, i included; a batch smaller than `batch_size` adds ln(batch_size/size) to it. [n]
    """
    total = np.zeros(len(similarities))
    for partition in partitions:
        for batch in partition:
            inside = similarities[np.ix_(batch, batch)]
            missing = np.log(batch_size / len(batch))
            sums = losses.log_sum_exp(inside / temperature, 1) + losses.log_sum_exp(inside / temperature, 0)
            total[batch] += np.diag(inside) - temperature / 2 * (sums + 2 * missing)
    return total / len(partitions)


def norm_sim(z, targets, p):
    """‖⟨Z_target, z_i⟩‖_p; p = 2, or infinity: the largest absolute value. [n]"""
    return np.linalg.norm(z @ targets.T, ord=p, axis=1)


@dataclass(frozen=True)
class Contamination:
    nearest: dict  # set → largest cosine to any of its embeddings, [n]
    dropped: list  # rows above the threshold of any set
    n_by_set: dict  # set → how many are above its threshold; a sample may count in several


def decontaminate(z, sets, threshold):
    """Drops what has a cosine > threshold to any embedding of any set; `sets`: name → [m, d]."""
    nearest = {name: (z @ targets.T).max(axis=1) for name, targets in sets.items()}
    is_near = {name: values > threshold for name, values in nearest.items()}
    dropped = np.flatnonzero(np.any(list(is_near.values()), axis=0)).tolist()
    return Contamination(nearest, dropped, {name: int(near.sum()) for name, near in is_near.items()})


@dataclass(frozen=True)
class Duplicates:
    order: dict  # cluster → its rows, least similar to the centroid first
    before: dict  # dropped row → every row before it with cosine > 1 − ε, in that order
    most_similar: dict  # dropped row → the most similar of those


def sem_dedup(z, clusters, centroid_similarities, ids, epsilon):
    """Drops j if some i before it in its cluster, dropped or not, has cosine > 1 − ε. All pairs."""
    rank, order, before, most_similar = id_order(ids), {}, {}, {}
    for cluster in sorted(set(clusters)):
        rows = [i for i in range(len(ids)) if clusters[i] == cluster]
        order[cluster] = sorted(rows, key=lambda i: (centroid_similarities[i], rank[i]))
        for position, j in enumerate(order[cluster]):
            close = [i for i in order[cluster][:position] if z[i] @ z[j] > 1 - epsilon]
            if close:
                before[j] = close
                most_similar[j] = max(close, key=lambda i: z[i] @ z[j])
    return Duplicates(order, before, most_similar)


# Soft-cap


def soft_cap(scores, ids, n_total, draw_size, penalty, seed, round_=0):
    """Repeats: draw G of n by softmax(score) without replacement, subtract the penalty from the drawn; until `n_total`.

    The noise of repeat r is that of chunk r; the last repeat draws what is left. Returns the picks of each repeat.
    """
    lowered, repeats = np.array(scores, float), []
    while sum(map(len, repeats)) < n_total:
        size = min(draw_size, len(ids), n_total - sum(map(len, repeats)))
        picks = draw_of_repeat(lowered, ids, size, len(repeats), seed, round_)
        lowered[picks] -= penalty
        repeats.append(picks)
    return repeats


def draw_of_repeat(scores, ids, size, repeat, seed, round_):
    values = scores + np.array([gumbel(seed, round_, 0, repeat, sample_id) for sample_id in ids])
    return top_k(values, ids, size)


def random_rows(ids, k, seed):
    """The uniform control: a draw by equal log-weights."""
    return picks_of(independent_draw(np.zeros(len(ids)), ids, Settings(k, 1, 1.0, "noise", seed)))
