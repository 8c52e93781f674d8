"""Per-sample scores of independent selection. METHODS §4."""

import numpy as np

from . import losses


def active_clip_score(learner, reference):
    """sim_reference − sim_learner: the loss of both models is −⟨x_i, y_i⟩. [n]"""
    return np.diag(reference.similarities()) - np.diag(learner.similarities())


def contrastive_loss(objective, logits, i, negatives, sub_batch_size):
    """Loss of sample i among b−1 samples that are like `negatives` (without i), nats.

    sigmoid: L_ii + (b−1)·mean_j ½(L_ij + L_ji)
    softmax: ½ Σ_directions [ln(e^{l_ii} + (b−1)·mean_j e^{l_ij}) − l_ii]
    """
    b, own = sub_batch_size, logits[i, i]
    out, back = logits[i, negatives], logits[negatives, i]
    if objective == "sigmoid":
        return float(losses.softplus(-own) + (b - 1) * np.mean(losses.softplus(out) + losses.softplus(back)) / 2)
    if b == 1:
        return 0.0
    spread = np.log((b - 1) / len(negatives))
    both = [np.logaddexp(own, spread + losses.log_sum_exp(direction, 0)) - own for direction in (out, back)]
    return float(sum(both) / 2)


def contrastive_scores(objective, scoring, learner, reference, negatives, sub_batch_size):
    """Contrastive score of every sample; `negatives` is one list of rows, of which sample i leaves itself out. [n]"""
    of_learner, of_reference = learner.logits(), reference.logits()
    scores = []
    for i in range(len(of_learner)):
        others = [j for j in negatives if j != i]
        both = (contrastive_loss(objective, l, i, others, sub_batch_size) for l in (of_learner, of_reference))
        scores.append(losses.combine(scoring, *both))
    return np.array(scores)


def log_softmax(logits):
    """[n, K] → ln p, rows sum to one."""
    return logits - losses.log_sum_exp(logits, 1)[:, None]


def class_act_loss(logits, labels, smoothing):
    """(1−ε)(−ln p_y) − (ε/K) Σ_c ln p_c: [n], nats. `logits` [n, K]."""
    log_p = log_softmax(logits)
    n, n_classes = log_p.shape
    return (1 - smoothing) * -log_p[np.arange(n), labels] - smoothing / n_classes * log_p.sum(axis=1)
