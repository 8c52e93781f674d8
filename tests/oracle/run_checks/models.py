"""What a run's two models say of each sample → losses and scores, vectorised over rows of the pool. METHODS §1, §2, §4.

A NaN stands for a null. Similarities and losses are [n], beside the pool's samples.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from methods.losses import softplus

JOINT_METHODS = {"jest"}
# The loss of each method's columns where it is not that of an objective.
LOSS_OF_METHOD = {"active_clip": "dot_product", "class_act": "cross_entropy"}
METHODS = {"jest", "random", "active_clip", "class_act"}


@dataclass(frozen=True)
class Method:
    """The final draw, as the plan's last step has it."""

    name: str
    loss: str  # "sigmoid", "softmax", "dot_product" or "cross_entropy"
    scoring: str
    n_chunks: int
    filter_ratio: str

    @property
    def is_joint(self):
        return self.name in JOINT_METHODS

    @property
    def is_random(self):
        return self.name == "random"


def method_of(step):
    """What the step's method and objective ask for; an error names what cannot be recomputed."""
    name = step["method"]
    loss = LOSS_OF_METHOD.get(name, step.get("objective") or "sigmoid")
    if name not in METHODS or loss not in {"sigmoid", "softmax", "dot_product", "cross_entropy"}:
        raise ValueError(f"a draw by `{name}` with `{loss}` cannot be recomputed")
    n_chunks = int(step["n_chunks"]) if name in JOINT_METHODS else 1
    ratio = step.get("filter_ratio") or {"active_clip": "0.5"}.get(name)
    return Method(name, loss, step.get("score") or "learnability", n_chunks, str(ratio))


@dataclass(frozen=True)
class Model:
    """A dual encoder: embeddings [n, d] of the pool's samples; `has` is false for rejected and degenerate ones."""

    name: str
    logit_scale: float
    logit_bias: float
    image: np.ndarray
    text: np.ndarray
    has: np.ndarray
    stored: Any  # the Frame of its embeddings

    def similarity(self):
        """⟨x_i, y_i⟩, [n]; NaN without embeddings."""
        cosine = np.einsum("nd,nd->n", self.image, self.text, dtype=np.float64)
        return np.where(self.has, cosine, np.nan)

    def positive_loss(self, loss):
        """The loss of the positive pair, [n]: softplus(−l_ii); softmax −l_ii; dot product −⟨x_i, y_i⟩."""
        similarity = self.similarity()
        if loss == "dot_product":
            return -similarity
        logit = self.logit_scale * similarity + self.logit_bias
        with np.errstate(invalid="ignore"):
            return -logit if loss == "softmax" else softplus(-logit)

    def loss_slope(self, loss):
        """By how much a loss can move for a cosine that moves by one."""
        return 1.0 if loss == "dot_product" else self.logit_scale

    def pair_logit(self, images, captions):
        """l_ij, [|images|, |captions|]."""
        return self.logit_scale * (wide(self.image[images]) @ wide(self.text[captions]).T) + self.logit_bias

    def pair_loss(self, images, captions):
        """L_ij of the sigmoid objective, [|images|, |captions|]; positive where both are the same row."""
        logit = self.pair_logit(images, captions)
        return softplus(np.where(images[:, None] == captions[None, :], -logit, logit))


@dataclass(frozen=True)
class Classifier:
    """A classifier: logits [n, K] of the pool's samples and their labels [n], −1 where a sample has none."""

    name: str
    logits: np.ndarray
    labels: np.ndarray
    label_smoothing: float
    has: np.ndarray
    stored: Any

    def similarity(self):
        return np.full(len(self.has), np.nan)

    def positive_loss(self, _loss):
        """(1−ε)(−ln p_y) − (ε/K) Σ_c ln p_c, [n]."""
        log_p = wide(self.logits) - np.logaddexp.reduce(wide(self.logits), axis=1)[:, None]
        own = log_p[np.arange(len(log_p)), np.maximum(self.labels, 0)]
        value = (1 - self.label_smoothing) * -own - self.label_smoothing * log_p.mean(axis=1)
        return np.where(self.has & (self.labels >= 0), value, np.nan)

    def loss_slope(self, _loss):
        return 1.0


def wide(values):
    return values.astype(np.float64)


@dataclass(frozen=True)
class Scores:
    """The scores of the final draw."""

    method: Method
    learner: Model | Classifier | None
    reference: Model | Classifier | None

    def combine(self, of):
        """`of` gives the same losses of a model: L^θ − L^θ*, L^θ or −L^θ*."""
        if self.method.scoring == "hard_learner":
            return of(self.learner)
        if self.method.scoring == "easy_reference":
            return -of(self.reference)
        if self.method.scoring == "learnability":
            return of(self.learner) - of(self.reference)
        raise ValueError(f"no such score: {self.method.scoring}")

    def models(self):
        """The models that the score takes."""
        both = {"hard_learner": [self.learner], "easy_reference": [self.reference]}
        return both.get(self.method.scoring, [self.learner, self.reference])

    def diagonal(self):
        """The score of each sample, [n]."""
        return self.combine(lambda model: model.positive_loss(self.method.loss))

    def both_directions(self, rows, others):
        """S_rk and S_kr of the sigmoid objective, each [|rows|, |others|]."""
        there = self.combine(lambda model: model.pair_loss(rows, others))
        return there, self.combine(lambda model: model.pair_loss(others, rows)).T
