"""Reproduces METHODS §7 line by line on planted pools, ten seeds with spread, and prints a table.

python3 tests/oracle/planted.py [--seeds 10] [--fit 400] [--json FILE]          (needs numpy and scipy; about two minutes)

Every draw is that of METHODS §3 with its own noise, for samples `("planted.tar", i)`; nothing here uses a random
generator with a state. Figures in brackets are those of METHODS; `holds` where the mean is within three standard errors
of them. A line without one stands beside them.
"""

import argparse
import json
from pathlib import Path

import numpy as np

import planted_pools as planted
from methods import agreement, draws, field, hardness, losses
from planted_pools import LEARNABLE, LEARNT, MISMATCHED

SUPER_BATCH, SUB_BATCH, N_CHUNKS = 1280, 256, 16
N_POOL = 5120
GIBBS_SWEEPS = 20


def ids(n):
    return [("planted.tar", i) for i in range(n)]


def settings(gain, seed, b=SUB_BATCH, n_chunks=N_CHUNKS):
    return draws.Settings(b, n_chunks, gain, "noise", seed)


def joint(s, how):
    """The picks of a joint draw from a score matrix."""
    return draws.picks_of(draws.draw(lambda drawn: draws.sigmoid_logits(s, drawn), ids(len(s)), how))


def independent(scores, how):
    return draws.picks_of(draws.independent_draw(scores, ids(len(scores)), how))


def uniform(n, seed, b=SUB_BATCH):
    """A draw by equal log-weights."""
    return independent(np.zeros(n), settings(1.0, seed, b, 1))


def full_loss(s, b=SUB_BATCH):
    n, diagonal = len(s), np.diag(s)
    both = (s.sum(axis=0) + s.sum(axis=1)) / 2 - diagonal
    return field.top_k(diagonal + (b - 1) / (n - 1) * both, ids(n), b)


def gibbs(s, gain, seed, b=SUB_BATCH, n_sweeps=GIBBS_SWEEPS):
    """Exhaustive Gibbs: from a uniform draw, a random member leaves, and one of those outside, or itself, comes for it

    with probability ∝ exp(gain · marginal given the rest). Uniforms of stream 20 of the seed: place, then who comes.
    """
    rows = uniform(len(s), seed, b)
    both = s + s.T
    logits = np.diag(s) + both[:, rows].sum(axis=1)
    u = planted.uniforms(seed, 20, 2 * n_sweeps * b).reshape(-1, 2)
    is_out = np.ones(len(s), bool)
    is_out[rows] = False
    for u_place, u_who in u:
        place = int(u_place * b)
        leaves = rows[place]
        is_out[leaves] = True
        logits = logits - both[:, leaves]
        values = np.where(is_out, gain * logits, -np.inf)
        running = np.cumsum(np.exp(values - values.max()))
        comes = int(np.searchsorted(running, u_who * running[-1], side="right"))
        rows[place] = comes
        is_out[comes] = False
        logits = logits + both[:, comes]
    return rows


def share(values, what):
    return float(np.mean(np.asarray(values) == what))


def positive_scores(pool):
    """hard-learner, easy-reference and learnability of each pair's own loss, without any matrix."""
    of = {}
    for name, model in (("learner", pool.learner), ("reference", pool.reference)):
        similarity = np.einsum("nd,nd->n", model.x, model.y)
        of[name] = losses.softplus(-(model.logit_scale * similarity + model.logit_bias))
    return {scoring: losses.combine(scoring, of["learner"], of["reference"]) for scoring in losses.SCORINGS}


def both_score_matrices(pool):
    """S, and S with the two models exchanged."""
    s = losses.score_matrix("learnability", pool.learner, pool.reference)
    return s, -s


# The lines


def noisy(seed):
    pool = planted.noisy_pool(seed, N_POOL)
    is_clean = pool.kind != MISMATCHED
    lines = {}
    for scoring, scores in positive_scores(pool).items():
        lines[f"noisy: AUC(clean > mismatched), {scoring}"] = agreement.auc(scores[is_clean], scores[~is_clean])
        top = pool.kind[field.top_k(scores, ids(N_POOL), N_POOL // 5)]
        lines[f"noisy: top 20 % by {scoring}, mismatched"] = share(top, MISMATCHED)
        lines[f"noisy: top 20 % by {scoring}, learnt"] = share(top, LEARNT)
        lines[f"noisy: top 20 % by {scoring}, learnable"] = share(top, LEARNABLE)
    super_batch = pool.of(range(SUPER_BATCH))
    s, _ = both_score_matrices(super_batch)
    for gain in (1.0, 4.0):
        how = settings(gain, seed)
        rows = {"joint": joint(s, how), "independent": independent(np.diag(s), how)}
        taught = {who: losses.batch_learnability(s, own) for who, own in rows.items()}
        lines[f"noisy: joint / independent, gain {gain:g}"] = taught["joint"] / taught["independent"]
        for who, own in rows.items():
            lines[f"noisy: learnt kept, {who}, gain {gain:g}"] = share(super_batch.kind[own], LEARNT)
    lines |= swaps_kept("noisy", super_batch, seed)
    lines |= active_clip_line(super_batch, seed)
    return lines


def swaps_kept(name, super_batch, seed):
    """Planted swaps among the kept: JEST, JEST with the models exchanged, uniform."""
    s, exchanged = both_score_matrices(super_batch)
    swaps = {
        "random": share(super_batch.kind[uniform(SUPER_BATCH, seed)], MISMATCHED),
        "JEST": share(super_batch.kind[joint(s, settings(1.0, seed))], MISMATCHED),
        "exchanged": share(super_batch.kind[joint(exchanged, settings(1.0, seed))], MISMATCHED),
    }
    return {f"{name}: swaps kept, {who}": value for who, value in swaps.items()}


def active_clip_line(super_batch, seed):
    """METHODS §4: mismatched kept of half a super-batch by sim_reference − sim_learner."""
    of = lambda model: np.einsum("nd,nd->n", model.x, model.y)
    scores, half = of(super_batch.reference) - of(super_batch.learner), SUPER_BATCH // 2
    kept = {f"gain {gain:g}": independent(scores, settings(gain, seed, half, 1)) for gain in (1.0, 10.0, 30.0)}
    kept["top-k"] = field.top_k(scores, ids(SUPER_BATCH), half)
    return {f"noisy: ActiveCLIP swaps kept, {who}": share(super_batch.kind[rows], MISMATCHED) for who, rows in kept.items()}


def coarse(seed):
    pool = planted.coarse_pool(seed, SUPER_BATCH)
    s, _ = both_score_matrices(pool)
    diagonal = np.diag(s)
    is_clean, is_learnable = pool.kind != MISMATCHED, pool.kind == LEARNABLE
    lines = {
        "coarse: AUC(learnable > others), learnability": agreement.auc(diagonal[is_learnable], diagonal[~is_learnable]),
        "coarse: AUC(clean > mismatched), learnability": agreement.auc(diagonal[is_clean], diagonal[~is_clean]),
    }
    drawn = {
        "random": uniform(SUPER_BATCH, seed),
        "independent": independent(diagonal, settings(1.0, seed)),
        **{f"joint, gain {gain:g}": joint(s, settings(gain, seed)) for gain in (1.0, 2.0, 4.0, 8.0)},
        "full-loss top-k": full_loss(s),
        "Gibbs": gibbs(s, 1.0, seed),
        "Gibbs, gain 4": gibbs(s, 4.0, seed),
    }
    for who, rows in drawn.items():
        lines[f"coarse: batch learnability, {who}"] = losses.batch_learnability(s, rows)
    for who in ("random", "joint, gain 1", "joint, gain 4", "full-loss top-k", "Gibbs"):
        lines[f"coarse: effective concepts, {who}"] = agreement.effective_clusters(pool.concept[drawn[who]])
    for who in ("independent", "joint, gain 4"):
        lines[f"coarse: learnt kept, {who}"] = share(pool.kind[drawn[who]], LEARNT)
    return lines | swaps_kept("coarse", pool, seed) | chunk_curve(s, seed) | filter_ratio_curve(seed)


def chunk_curve(s, seed):
    """Batch learnability at gain 2, 0 = uniform, 1 = Gibbs on the same super-batch."""
    low, high = (losses.batch_learnability(s, rows) for rows in (uniform(len(s), seed), gibbs(s, 2.0, seed)))
    curve = {}
    for n_chunks in (1, 2, 4, 8, 16, 32):
        found = losses.batch_learnability(s, joint(s, settings(2.0, seed, SUB_BATCH, n_chunks)))
        curve[f"chunks: {n_chunks} of b = {SUB_BATCH}, gain 2"] = (found - low) / (high - low)
    return curve


def filter_ratio_curve(seed):
    """Batch learnability at gain 2 for f = 0.5, 0.8, 0.9 of one pool, 0 = uniform, 1 = Gibbs at f = 0.5."""
    pool = planted.coarse_pool(seed, 10 * SUB_BATCH)
    curve = {}
    for filter_ratio, times in (("0.5", 2), ("0.8", 5), ("0.9", 10)):
        s, _ = both_score_matrices(pool.of(range(times * SUB_BATCH)))
        if filter_ratio == "0.5":
            low, high = (losses.batch_learnability(s, rows) for rows in (uniform(len(s), seed), gibbs(s, 2.0, seed)))
        found = losses.batch_learnability(s, joint(s, settings(2.0, seed)))
        curve[f"filter ratio: {filter_ratio}, gain 2"] = (found - low) / (high - low)
    return curve


def reshuffled(seed):
    """METHODS §3: drawn sub-batches, the same rows reshuffled, and random ones; super-batches over the pool or by concept."""
    pool = planted.coarse_pool(seed, N_POOL)
    lines = {}
    by_concept = np.argsort(pool.concept, kind="stable")
    for name, order in (("over the pool", np.arange(N_POOL)), ("within concepts", by_concept)):
        s, _ = both_score_matrices(pool.of(order))
        rows = []
        for start in range(0, N_POOL, SUPER_BATCH):
            inside = slice(start, start + SUPER_BATCH)
            picks = joint(s[inside, inside], settings(2.0, seed * 1000 + start // SUPER_BATCH))
            rows.append([start + pick for pick in picks])
        kept = [row for batch in rows for row in batch]
        dealt = np.array(kept)[np.argsort(planted.words(seed, 21, len(kept)))].reshape(len(rows), -1)
        random = np.argsort(planted.words(seed, 22, N_POOL))[: len(kept)].reshape(len(rows), -1)
        for what, batches in (("drawn", rows), ("reshuffled", dealt), ("random", random)):
            value = np.mean([losses.batch_learnability(s, list(batch)) for batch in batches])
            lines[f"sub-batches: {name}, {what}, gain 2"] = float(value)
    return lines


def hardness_lines(seed, n=6000, n_negatives=128, temperature=0.1, n_asked=300):
    """Mean hardness of the reference's images against 128 negatives, over 300 samples where 128 can be had."""
    pool = planted.noisy_pool(seed, n)
    x, concept = pool.reference.x, pool.concept
    ten = np.array([np.argsort(planted.words(seed, 23, 100))[:10]])
    lines = {}
    for name in ("random", "union of ten concepts", "one concept"):
        found, asked = [], 0
        while len(found) < n_asked and asked < n:
            i, asked = asked, asked + 1
            if name == "random":
                inside = np.arange(n)
            elif name == "one concept":
                inside = np.flatnonzero(concept == concept[i])
            else:  # its own concept and nine more
                others = ten[ten != concept[i]][:9]
                inside = np.flatnonzero((concept == concept[i]) | np.isin(concept, others))
            inside = inside[inside != i]
            if len(inside) < n_negatives:
                continue
            chosen = inside[np.argsort(planted.words(seed, 1_000_000 + i, len(inside)))[:n_negatives]]
            found.append(hardness.hardness(x[chosen] @ x[i], temperature))
        lines[f"hardness: {name}"] = float(np.mean(found))
    return lines


# What METHODS says: name → (low, high); a single figure holds to half of its last digit.


EXPECTED = {
    "noisy: AUC(clean > mismatched), easy_reference": (0.995, 1.0),
    "noisy: AUC(clean > mismatched), learnability": (0.935, 0.945),
    "noisy: AUC(clean > mismatched), hard_learner": (0.025, 0.035),
    "noisy: top 20 % by hard_learner, mismatched": (0.815, 0.825),
    "noisy: top 20 % by easy_reference, learnt": (0.365, 0.375),
    "noisy: top 20 % by easy_reference, mismatched": (0.0, 0.005),
    "noisy: top 20 % by learnability, learnable": (0.99, 1.0),
    "noisy: joint / independent, gain 1": (0.95, 1.05),
    "coarse: AUC(learnable > others), learnability": (0.325, 0.335),
    "coarse: batch learnability, random": (2.05, 2.15),
    "coarse: batch learnability, independent": (2.45, 2.55),
    "coarse: batch learnability, joint, gain 1": (3.0, 3.8),
    "coarse: batch learnability, joint, gain 2": (4.4, 4.6),
    "coarse: batch learnability, joint, gain 4": (4.4, 4.6),
    "coarse: batch learnability, full-loss top-k": (4.95, 5.05),
    "coarse: batch learnability, Gibbs": (5.15, 5.25),
    "hardness: random": (0.16, 0.20),
    "hardness: union of ten concepts": (0.35, 0.39),
    "hardness: one concept": (0.54, 0.58),
}

# To look at, not to meet: the paper's plot at b = 32,768, and figures of METHODS on pools that it does not describe.
ELSEWHERE = {
    **{f"chunks: {n} of b = {SUB_BATCH}, gain 2": f"paper {v}" for n, v in ((1, 0.0), (2, 0.69), (4, 0.89), (8, 0.96), (16, 0.99))},
    **{f"filter ratio: {f}, gain 2": f"paper {v}" for f, v in (("0.5", 1.0), ("0.8", 1.12), ("0.9", 1.15))},
    **{
        f"noisy: ActiveCLIP swaps kept, {who}": f"§4 {v}, on another pool"
        for who, v in (("gain 1", 0.192), ("gain 10", 0.144), ("gain 30", 0.103), ("top-k", 0.088))
    },
    **{
        f"sub-batches: within concepts, {who}, gain 2": f"§3 {v}, on another pool"
        for who, v in (("drawn", 3.99), ("reshuffled", 2.55), ("random", 2.21))
    },
}


def standard_error(values):
    return np.std(values, ddof=1) / np.sqrt(len(values))


def describe(name, values):
    mean, error = np.mean(values), standard_error(values)
    text = f"{name:<58} {mean:8.3f} ± {np.std(values, ddof=1):.3f}"
    if name in EXPECTED:
        low, high = EXPECTED[name]
        holds = low - 3 * error <= mean <= high + 3 * error
        text += f"   [{low:g} to {high:g}] {'holds' if holds else 'does not hold'}"
    elif name in ELSEWHERE:
        text += f"   ({ELSEWHERE[name]})"
    return text


def control_lines(found):
    """The law on swaps: at most half of random's by JEST, above random's with the models exchanged, over all seeds."""
    for name in ("noisy", "coarse"):
        random, jest, exchanged = (np.mean(found[f"{name}: swaps kept, {w}"]) for w in ("random", "JEST", "exchanged"))
        holds = jest <= random / 2 and exchanged > random
        yield f"{name}: swaps, JEST ≤ ½ random and exchanged > random: {'holds' if holds else 'does not hold'}"


def main():
    parser = argparse.ArgumentParser(description="Reproduces METHODS §7 on planted pools.")
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 1 on")
    parser.add_argument("--fit", type=int, default=planted.n_fit, help="pairs that each model's scale and bias are fitted on")
    parser.add_argument("--json", type=Path, help="also writes {line: one value a seed}")
    options = parser.parse_args()
    planted.n_fit = options.fit
    found = {}
    for seed in range(1, options.seeds + 1):
        for part in (noisy, coarse, reshuffled, hardness_lines):
            for name, value in part(seed).items():
                found.setdefault(name, []).append(value)
    for name, values in found.items():
        print(describe(name, values))
    for line in control_lines(found):
        print(line)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
