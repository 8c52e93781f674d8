"""How hard the negatives of a sample are. METHODS §5. Similarities of one sample to its negatives A are [|A|]."""

import numpy as np

from . import agreement, losses
from .independent import contrastive_loss

GAIN_NEGATIVES_MIN = 16


def hardness(similarities, temperature):
    """H_τ = τ ln(1/|A| Σ_{j∈A} exp(s_j/τ)); a soft maximum, between the mean and the largest."""
    return float(temperature * (losses.log_sum_exp(similarities / temperature, 0) - np.log(len(similarities))))


def is_near_duplicate(image_similarity, same_caption, threshold):
    return image_similarity > threshold or same_caption


def split_bank(x, captions, i, bank, threshold):
    """(negatives, near-duplicates) of sample i in bank order, without i itself."""
    others = [j for j in bank if j != i]
    near = {j for j in others if is_near_duplicate(x[i] @ x[j], captions[i] == captions[j], threshold)}
    return [j for j in others if j not in near], [j for j in others if j in near]


def hardness_gain(x, i, cluster_negatives, pool_negatives, temperature):
    """H(cluster bank) − H(pool bank) over the first n of each, n the smaller of both; None below 16."""
    n = min(len(cluster_negatives), len(pool_negatives))
    if n < GAIN_NEGATIVES_MIN:
        return None
    of_cluster, of_pool = (hardness(x[a[:n]] @ x[i], temperature) for a in (cluster_negatives, pool_negatives))
    return of_cluster - of_pool


def cross_modal_hardness(x, y, i, negatives, temperature):
    """Mean of ⟨x_i, y_j⟩ and ⟨x_j, y_i⟩."""
    return (hardness(y[negatives] @ x[i], temperature) + hardness(x[negatives] @ y[i], temperature)) / 2


def hard_learnability(objective, scoring, learner, reference, i, negatives, sub_batch_size):
    """The share of i among b−1 such negatives. sigmoid: S_ii + (b−1)·mean_j ½(S_ij + S_ji)."""
    both = (contrastive_loss(objective, m.logits(), i, negatives, sub_batch_size) for m in (learner, reference))
    return losses.combine(scoring, *both)


def columns(model, captions, i, banks, temperature, threshold):
    """All columns of sample i but hard_learnability. `banks`: (cluster bank, pool bank), rows in bank order."""
    x, y = model.x, model.y
    negatives, near = split_bank(x, captions, i, banks[0], threshold)
    pool_negatives, _ = split_bank(x, captions, i, banks[1], threshold)
    found = dict(n_negatives=len(negatives), n_false_negatives=len(near))
    if not negatives:
        return found
    similarities = x[negatives] @ x[i]
    return found | dict(
        hardness=hardness(similarities, temperature),
        hardness_gain=hardness_gain(x, i, negatives, pool_negatives, temperature),
        cross_modal_hardness=cross_modal_hardness(x, y, i, negatives, temperature),
        effective_negatives=agreement.effective_number(similarities / temperature),
        hardest_negative_similarity=float(similarities.max()),
        hardest_negative=negatives[int(similarities.argmax())],
    )
