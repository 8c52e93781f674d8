"""Embeddings and (α, β) → logits → losses → scores, dense [n, n] in f64. METHODS §1 and §2."""

from dataclasses import dataclass

import numpy as np

SCORINGS = ("hard_learner", "easy_reference", "learnability")


@dataclass(frozen=True)
class Model:
    """A model's embeddings of n samples, images x and captions y, each [n, d]; `logit_scale` is linear."""

    x: np.ndarray
    y: np.ndarray
    logit_scale: float
    logit_bias: float

    def similarities(self):
        """⟨x_i, y_j⟩, [n, n], row = image."""
        return self.x @ self.y.T

    def logits(self):
        """l_ij = α⟨x_i, y_j⟩ + β."""
        return self.logit_scale * self.similarities() + self.logit_bias

    def of(self, rows):
        return Model(self.x[rows], self.y[rows], self.logit_scale, self.logit_bias)


def softplus(x):
    """ln(1 + eˣ), without overflow."""
    return np.logaddexp(0.0, x)


def log_sum_exp(values, axis):
    return np.logaddexp.reduce(values, axis=axis)


def sigmoid_losses(logits):
    """L_ii = softplus(−l_ii), L_ij = softplus(l_ij): [n, n], nats."""
    sign = np.where(np.eye(len(logits), dtype=bool), -1.0, 1.0)
    return softplus(sign * logits)


def softmax_losses(logits):
    """L_i = ½[(LSE_j l_ij − l_ii) + (LSE_j l_ji − l_ii)]: [n], nats."""
    return (log_sum_exp(logits, 1) + log_sum_exp(logits, 0)) / 2 - np.diag(logits)


def positive_losses(objective, logits):
    """The loss of the positive pair alone, [n], as `learner_loss` and `reference_loss` hold it."""
    return softplus(-np.diag(logits)) if objective == "sigmoid" else -np.diag(logits)


def combine(scoring, of_learner, of_reference):
    """L^θ, −L^θ* or L^θ − L^θ* of losses of one shape."""
    return {
        "hard_learner": of_learner,
        "easy_reference": -of_reference,
        "learnability": of_learner - of_reference,
    }[scoring]


def score_matrix(scoring, learner, reference):
    """S of the sigmoid objective, [n, n]."""
    return combine(scoring, sigmoid_losses(learner.logits()), sigmoid_losses(reference.logits()))


# What a set of samples A teaches; `s` is a score matrix, `rows` the members of A.


def batch_sum(s, rows):
    """F(A) = Σ_{i,j∈A} S_ij."""
    return float(s[np.ix_(rows, rows)].sum())


def batch_learnability(s, rows):
    """F(A)/|A|."""
    return batch_sum(s, rows) / len(rows)


def marginal(s, x, rows):
    """S_xx + Σ_{k∈A}(S_kx + S_xk), x not in A."""
    return float(s[x, x] + s[rows, x].sum() + s[x, rows].sum())


def share(s, x, rows):
    """S_xx + ½Σ_{k∈A, k≠x}(S_kx + S_xk), x in A: the shares of A sum to F(A)."""
    others = [k for k in rows if k != x]
    return float(s[x, x] + (s[others, x].sum() + s[x, others].sum()) / 2)
