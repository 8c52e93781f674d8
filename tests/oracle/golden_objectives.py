"""Writes golden/scores.json: the softmax objective, the scores and draws that are not joint, and a calibration, dense and
in f64, for the test `golden_scores.rs`.

Written from the formulas, not from the Rust code: nothing here is tiled, incremental or f32. The embeddings are those of
golden/kernels.json.

python3 tests/oracle/golden_objectives.py          (needs numpy and scipy)
"""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logsumexp

GOLDEN = Path(__file__).parent / "golden"


def as_f32(rows):
    return np.array(rows, dtype=np.float32).astype(np.float64)


def similarities(model):
    return as_f32(model["images"]) @ as_f32(model["captions"]).T


def logits(model):
    return model["logit_scale"] * similarities(model) + model["logit_bias"]


def softplus(l):
    return np.maximum(l, 0) + np.log1p(np.exp(-np.abs(l)))


# learner minus reference, or one of them


def scored(of_model, inputs, scoring):
    learner, reference = (np.asarray(of_model(logits(inputs[role]))) for role in ("learner", "reference"))
    return {"hard_learner": learner, "easy_reference": -reference, "learnability": learner - reference}[scoring]


# seeded randomness


def u64(value):
    return value.to_bytes(8, "little")


def blake(data):
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def gumbel(seed, round_, pass_, chunk, shard, sample_idx):
    h = blake(b"".join(map(u64, (seed, round_, pass_, chunk))) + shard.encode() + b"\0" + u64(sample_idx))
    return -math.log(-math.log(((h >> 11) + 0.5) * 2.0**-53))


def keyed_hash(purpose, seed, round_, shard, sample_idx):
    return blake(purpose.encode() + b"\0" + u64(seed) + u64(round_) + shard.encode() + b"\0" + u64(sample_idx))


def chunk_sizes(b, n_chunks):
    t = min(n_chunks, b)
    return [(i + 1) * b // t - i * b // t for i in range(t)]


# the softmax objective


def softmax_conditional(drawn):
    """The logit of every sample after these were drawn."""

    def of_model(l):
        if not drawn:
            return -np.diag(l)
        return -np.diag(l) + 0.5 * (logsumexp(l[:, drawn], axis=1) + logsumexp(l[drawn, :], axis=0))

    return of_model


def softmax_batch(rows):
    def of_model(l):
        l = l[np.ix_(rows, rows)]
        own = np.diag(l)
        return np.mean(0.5 * ((logsumexp(l, axis=1) - own) + (logsumexp(l, axis=0) - own)))

    return of_model


def softmax_draw(inputs, scoring, b, n_chunks, gain, chance, seed, taken):
    ids = inputs["ids"]
    drawn, out = [], []
    for chunk, size in enumerate(chunk_sizes(b, n_chunks)):
        logit = scored(softmax_conditional(drawn), inputs, scoring)
        candidates = []
        for x in set(range(len(ids))) - set(drawn) - set(taken):
            noise = gumbel(seed, 0, 0, chunk, *ids[x]) if chance == "gumbel" else 0.0
            candidates.append((-(gain * logit[x] + noise), ids[x], x))
        for _, _, x in sorted(candidates)[:size]:
            drawn.append(x)
            out.append(dict(row=x, chunk=chunk, conditional_score=float(logit[x])))
    settings = dict(scoring=scoring, sub_batch_size=b, n_chunks=n_chunks, gain=gain, chance=chance, seed=seed, taken=taken)
    return settings | dict(drawn=out, batch_learnability=float(scored(softmax_batch(drawn), inputs, scoring)))


# shares in a sub-batch


def share(objective, negatives_of, b):
    """Of every sample among the columns `negatives_of(i)`."""

    def of_model(l):
        shares = []
        for i in range(len(l)):
            a = negatives_of(i)
            own, images, captions = l[i, i], l[i, a], l[a, i]
            if objective == "sigmoid":
                mean = np.mean((softplus(images) + softplus(captions)) / 2)
                shares.append(softplus(-own) + (b - 1) * mean)
            else:
                sums = [np.exp(own) + (b - 1) * np.mean(np.exp(side)) for side in (images, captions)]
                shares.append(0.5 * sum(np.log(s) - own for s in sums))
        return shares

    return of_model


def shares(inputs):
    n = len(inputs["ids"])
    others = lambda i: [j for j in range(n) if j != i]
    out = []
    for objective in ["sigmoid", "softmax"]:
        for scoring, b, m, seed, round_ in [("learnability", 32, 10, 3, 1), ("easy_reference", 4096, 63, 2**63, 0)]:
            circle = sorted(range(n), key=lambda i: keyed_hash("negatives", seed, round_, *inputs["ids"][i]))
            following = lambda i: [circle[(circle.index(i) + step) % n] for step in range(1, m + 1)]
            settings = dict(objective=objective, scoring=scoring, sub_batch_size=b, n_negatives=m, seed=seed, round=round_)
            contrastive = scored(share(objective, following, b), inputs, scoring).tolist()
            full_loss = scored(share(objective, others, b), inputs, scoring).tolist()
            out.append(settings | dict(contrastive=contrastive, full_loss=full_loss))
    return out


# other scores


def neg_clip(model, temperature):
    s = similarities(model)
    size_term = math.log(32_768 / len(s))
    sums = logsumexp(s / temperature, axis=1) + logsumexp(s / temperature, axis=0) + 2 * size_term
    return dict(temperature=temperature, scores=(np.diag(s) - temperature / 2 * sums).tolist())


def cross_entropy():
    rng = np.random.default_rng(11)
    l = as_f32(rng.normal(scale=6.0, size=(9, 5)))
    labels = rng.integers(0, 5, size=9)
    smoothing = 0.1
    log_p = log_softmax(l, axis=1)
    losses = (1 - smoothing) * -log_p[np.arange(9), labels] - smoothing / 5 * log_p.sum(axis=1)
    return dict(logits=l.tolist(), labels=labels.tolist(), label_smoothing=smoothing, losses=losses.tolist())


# draws by scores alone


def independent_draw(ids, scores, b, gain, seed, taken):
    rest = [x for x in range(len(ids)) if x not in taken]
    rest.sort(key=lambda x: -(gain * scores[x] + gumbel(seed, 0, 0, 0, *ids[x])))
    return dict(sub_batch_size=b, gain=gain, seed=seed, taken=taken, rows=rest[:b])


def soft_cap(ids, scores, n_draws, n_per_turn, gain, penalty, seed):
    scores = list(scores)
    first, repeats, turn, left = [], {}, 0, n_draws
    while left:
        order = sorted(range(len(ids)), key=lambda x: -(gain * scores[x] + gumbel(seed, 0, 0, turn, *ids[x])))
        for x in order[: min(n_per_turn, left)]:
            if x not in repeats:
                first.append(dict(row=x, chunk=turn, score=scores[x]))
            repeats[x] = repeats.get(x, 0) + 1
            scores[x] -= penalty
            left -= 1
        turn += 1
    samples = [sample | dict(n_repeats=repeats[sample["row"]]) for sample in first]
    return dict(n_draws=n_draws, n_per_turn=n_per_turn, gain=gain, penalty=penalty, seed=seed, samples=samples)


def effective(scores, gain):
    p = np.exp(gain * np.array(scores) - logsumexp(gain * np.array(scores)))
    return dict(gain=gain, of_entropy=float(np.exp(-(p * np.log(p)).sum())), of_collisions=float(1 / (p**2).sum()))


# calibration


def calibration(model, b):
    s = similarities(model)
    n = len(s)
    weights = np.full((n, n), (b - 1) / (n - 1))
    np.fill_diagonal(weights, 1.0)
    signs = np.where(np.eye(n) == 1, -1.0, 1.0)

    def loss(at):
        return (weights * softplus(signs * (at[0] * s + at[1]))).sum() / n

    def gradient(at):
        slope = weights * signs * expit(signs * (at[0] * s + at[1])) / n
        return np.array([(slope * s).sum(), slope.sum()])

    fit = minimize(loss, [10.0, -10.0], jac=gradient, method="BFGS", options=dict(gtol=1e-10))
    assert np.abs(gradient(fit.x)).max() < 1e-8, fit
    return dict(sub_batch_size=b, logit_scale=fit.x[0], logit_bias=fit.x[1], loss=fit.fun)


def main():
    inputs = json.loads((GOLDEN / "kernels.json").read_text(encoding="utf-8"))["inputs"]
    ids = inputs["ids"]
    dots = np.diag(similarities(inputs["reference"])) - np.diag(similarities(inputs["learner"]))
    golden = dict(
        draws=[
            softmax_draw(inputs, "learnability", 24, 6, 1.0, "gumbel", 42, []),
            softmax_draw(inputs, "hard_learner", 17, 5, 0.5, "gumbel", 7, []),
            softmax_draw(inputs, "easy_reference", 17, 1, 0.5, "gumbel", 7, []),
            softmax_draw(inputs, "learnability", 30, 30, 1.0, "top_k", 0, [0, 7, 9, 31, 63]),
        ],
        shares=shares(inputs),
        neg_clip=[neg_clip(inputs["learner"], 0.01), neg_clip(inputs["reference"], 0.1)],
        cross_entropy=cross_entropy(),
        dot_products=dots.tolist(),
        independent=[
            independent_draw(ids, dots, 20, 25.5, 1, []),
            independent_draw(ids, dots, 33, 1.0, 2**40, list(range(5, 25))),
        ],
        soft_cap=[soft_cap(ids, dots, 90, 8, 10.0, 0.15, 6), soft_cap(ids, dots, 25, 64, 1.0, 0.0, 6)],
        effective=[effective(dots, 1.0), effective(dots, 25.5)],
        calibrations=[calibration(inputs["learner"], 64), calibration(inputs["reference"], 1000)],
    )
    text = ",\n".join(f'"{name}": {json.dumps(value, ensure_ascii=False)}' for name, value in golden.items())
    (GOLDEN / "scores.json").write_text("{\n" + text + "\n}\n", encoding="utf-8")


main()
