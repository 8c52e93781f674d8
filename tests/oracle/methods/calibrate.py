"""(α, β) of a model without a bias, by the sigmoid loss on n pairs. METHODS §1."""

import numpy as np
from scipy import optimize

from .losses import softplus


def calibration_loss(similarities, logit_scale, logit_bias, sub_batch_size):
    """1/n [Σ_i L_ii + (b−1)/(n−1) Σ_{i≠j} L_ij]: the loss a sample in a batch of b, from n pairs. Convex in (α, β)."""
    n = len(similarities)
    logits = logit_scale * similarities + logit_bias
    positive = np.eye(n, dtype=bool)
    weight = (sub_batch_size - 1) / (n - 1)
    return float((softplus(-logits[positive]).sum() + weight * softplus(logits[~positive]).sum()) / n)


def derivatives(similarities, parameters, sub_batch_size):
    """Gradient [2] and Hessian [2, 2] of the loss in (α, β)."""
    n = len(similarities)
    sign = np.where(np.eye(n, dtype=bool), -1.0, 1.0)
    weight = np.where(np.eye(n, dtype=bool), 1.0, (sub_batch_size - 1) / (n - 1)) / n
    p = np.exp(-softplus(-sign * (parameters[0] * similarities + parameters[1])))  # slope of softplus
    first, second = weight * sign * p, weight * p * (1 - p)
    gradient = np.array([(first * similarities).sum(), first.sum()])
    cross = (second * similarities).sum()
    return gradient, np.array([[(second * similarities**2).sum(), cross], [cross, second.sum()]])


def calibrate(similarities, sub_batch_size):
    """[n, n] cosines → (logit scale, logit bias, loss) at the minimum."""
    found = optimize.minimize(
        lambda p: calibration_loss(similarities, p[0], p[1], sub_batch_size),
        x0=[10.0, -10.0],
        jac=lambda p: derivatives(similarities, p, sub_batch_size)[0],
        hess=lambda p: derivatives(similarities, p, sub_batch_size)[1],
        method="trust-exact",
    )
    best = found.x
    for _ in range(30):  # Newton to the last digits: values of the loss no longer tell the points apart
        gradient, hessian = derivatives(similarities, best, sub_batch_size)
        best = best - np.linalg.solve(hessian, gradient)
    gradient, _ = derivatives(similarities, best, sub_batch_size)
    assert np.abs(gradient).max() < 1e-10, f"no minimum: {found.message}, gradient {gradient}"
    return float(best[0]), float(best[1]), calibration_loss(similarities, *best, sub_batch_size)
