"""How two rankings or two kept sets agree, and how spread out weights are. METHODS §3, §4 and §7."""

import numpy as np
from scipy import stats


def effective_number(log_weights):
    """(Σp)²/Σp², p = softmax(log_weights): n where all are equal, 1 where one has all the weight."""
    p = np.exp(np.asarray(log_weights, float) - np.max(log_weights))
    return float(p.sum() ** 2 / (p**2).sum())


def effective_clusters(clusters):
    """exp(entropy) of the clusters of the kept."""
    p = np.unique(np.asarray(clusters), return_counts=True)[1] / len(clusters)
    return float(np.exp(-(p * np.log(p)).sum()))


def spearman(a, b):
    """Rank correlation, mean ranks for ties."""
    return float(stats.spearmanr(a, b).statistic)


def overlap(a, b):
    """|A ∩ B| / min(|A|, |B|)."""
    return len(set(a) & set(b)) / min(len(set(a)), len(set(b)))


def auc(high, low):
    """Probability that a number of `high` is above one of `low`, a tie counts half."""
    return float(stats.mannwhitneyu(high, low).statistic) / (len(high) * len(low))
