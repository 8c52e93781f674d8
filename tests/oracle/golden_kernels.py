"""Writes golden/kernels.json: counts, joint draws, k-means and hardness, dense, in f64, for the test `golden.rs`.

Written from the formulas, not from the Rust code: nothing here is tiled, incremental or f32.

python3 tests/oracle/golden_kernels.py          (needs numpy)
"""

import hashlib
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np

N, D = 64, 8
SHARDS = ["b.tar", "a.tar", "ü.tar"]


# inputs: decimals that read as the same f32 everywhere


def decimals(matrix):
    return [[float(str(np.float32(v))) for v in row] for row in matrix]


def as_f32(rows):
    return np.array(rows, dtype=np.float32).astype(np.float64)


def unit(matrix):
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def make_inputs():
    rng = np.random.default_rng(20240617)
    centres = unit(rng.normal(size=(4, D)))
    z = unit(centres[np.arange(N) % 4] + 0.3 * rng.normal(size=(N, D)))
    z[[9, 13]] = unit(z[1] + 0.02 * rng.normal(size=(2, D)))  # near-duplicates
    noisy = lambda spread: decimals(unit(z + spread * rng.normal(size=(N, D))))
    learner = dict(images=decimals(z), captions=noisy(0.3), logit_scale=10.0, logit_bias=-6.0)
    reference = dict(images=noisy(0.1), captions=noisy(0.1), logit_scale=25.5, logit_bias=-12.25)
    ids = [[SHARDS[i % 3], (i * 37) % 101] for i in range(N)]
    caption_hashes = [1000 + i % 60 for i in range(N)]  # rows 60 to 63 repeat the captions of 0 to 3
    return dict(learner=learner, reference=reference, ids=ids, caption_hashes=caption_hashes)


# losses and scores


def softplus(l):
    return np.maximum(l, 0) + np.log1p(np.exp(-np.abs(l)))


def pair_losses(model):
    x, y = as_f32(model["images"]), as_f32(model["captions"])
    l = model["logit_scale"] * (x @ y.T) + model["logit_bias"]
    losses = softplus(l)
    np.fill_diagonal(losses, softplus(-np.diag(l)))
    return losses


def score_matrix(inputs, scoring):
    learner, reference = pair_losses(inputs["learner"]), pair_losses(inputs["reference"])
    return {"hard_learner": learner, "easy_reference": -reference, "learnability": learner - reference}[scoring]


# draws


def gumbel(seed, round_, pass_, chunk, shard, sample_idx):
    u64 = lambda v: v.to_bytes(8, "little")
    data = b"".join(map(u64, (seed, round_, pass_, chunk))) + shard.encode() + b"\0" + u64(sample_idx)
    h = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
    return -math.log(-math.log(((h >> 11) + 0.5) * 2.0**-53))


def chunk_sizes(b, n_chunks):
    t = min(n_chunks, b)
    return [(i + 1) * b // t - i * b // t for i in range(t)]


def batch_sum(s, rows):
    return s[np.ix_(rows, rows)].sum()


def joint_draw(inputs, scoring, b, n_chunks, gain, chance, seed, round_, pass_):
    s = score_matrix(inputs, scoring)
    ids = inputs["ids"]
    drawn, out = [], []
    for chunk, size in enumerate(chunk_sizes(b, n_chunks)):
        candidates = []
        for x in set(range(N)) - set(drawn):
            logit = batch_sum(s, drawn + [x]) - batch_sum(s, drawn)  # the marginal, by its definition
            terms = abs(s[x, x]) + sum(abs(s[k, x]) + abs(s[x, k]) for k in drawn)
            noise = gumbel(seed, round_, pass_, chunk, *ids[x]) if chance == "gumbel" else 0.0
            candidates.append((-(gain * logit + noise), ids[x], x, logit, terms))
        for _, _, x, logit, terms in sorted(candidates)[:size]:
            drawn.append(x)
            out.append(dict(row=x, chunk=chunk, conditional_score=logit, terms=terms))
    settings = dict(scoring=scoring, sub_batch_size=b, n_chunks=n_chunks, gain=gain, chance=chance)
    settings |= dict(seed=seed, round=round_, pass_=pass_, scores=np.diag(s).tolist(), drawn=out)
    return settings | dict(batch_learnability=batch_sum(s, drawn) / len(drawn))


# k-means


def k_means(points, start):
    points, centroids = unit(points), unit(points[start])
    for _ in range(200):
        nearest = np.argmax(points @ centroids.T, axis=1)
        centroids = unit(np.stack([points[nearest == c].sum(axis=0) for c in range(len(start))]))
    similarities = points @ centroids.T
    two = np.sort(similarities, axis=1)[:, -2:]
    return dict(
        start=start,
        clusters=np.argmax(similarities, axis=1).tolist(),
        similarities=two[:, 1].tolist(),
        margins=(two[:, 1] - two[:, 0]).tolist(),
        objective=float((1 - two[:, 1]).sum()),
    )


# hardness


def h_tau(similarities, tau):
    s = np.array(similarities)
    return float(tau * np.log(np.mean(np.exp(s / tau))))


def hardness(inputs, queries, cluster_bank, pool_bank, tau, threshold, b):
    x, y = as_f32(inputs["learner"]["images"]), as_f32(inputs["learner"]["captions"])
    s = score_matrix(inputs, "learnability")
    hashes = inputs["caption_hashes"]
    columns = []
    for i in queries:
        duplicate = lambda j: x[i] @ x[j] > threshold or hashes[i] == hashes[j]
        a = [j for j in cluster_bank if j != i and not duplicate(j)]
        pool = [j for j in pool_bank if j != i and not duplicate(j)]
        n = min(len(a), len(pool))
        sims = x[a] @ x[i]
        p = np.exp(sims / tau) / np.exp(sims / tau).sum()
        gain = h_tau(sims[:n], tau) - h_tau(x[pool[:n]] @ x[i], tau) if n >= 16 else None
        columns.append(
            dict(
                n_negatives=len(a),
                n_false_negatives=sum(1 for j in cluster_bank if j != i and duplicate(j)),
                hardness=h_tau(sims, tau),
                hardness_gain=gain,
                cross_modal_hardness=(h_tau(y[a] @ x[i], tau) + h_tau(x[a] @ y[i], tau)) / 2,
                effective_negatives=float(p.sum() ** 2 / (p**2).sum()),
                hardest_negative_similarity=float(sims.max()),
                hardest_negative=a[int(sims.argmax())],
                hard_learnability=float(s[i, i] + (b - 1) * np.mean([(s[i, j] + s[j, i]) / 2 for j in a])),
            )
        )
    settings = dict(queries=queries, cluster_bank=cluster_bank, pool_bank=pool_bank)
    return settings | dict(temperature=tau, near_duplicate_similarity=threshold, sub_batch_size=b, columns=columns)


# counts


def counts():
    kept = []
    for ratio in ["0", "0.5", "0.8", "0.9", "0.333", "0.999999", "0.123456789012345678"]:
        for n in [0, 1, 2, 3, 5, 10, 20_480, 163_840, 999_999_937, 10_000_000_000, 10_000_000_001, 2**63]:
            kept.append([ratio, n, round(n * (1 - Fraction(ratio)))])  # Python rounds halves to even
    sizes = []
    for n, super_batch_size in [(1, 10), (10, 10), (14, 10), (15, 10), (25, 10), (35, 10), (163_841, 20_480), (999, 7)]:
        n_super_batches = max(1, round(Fraction(n, super_batch_size)))
        parts = [n // n_super_batches + (s < n % n_super_batches) for s in range(n_super_batches)]
        sizes.append([n, super_batch_size, parts])
    shares = []
    for n_samples, n_kept, n_cuts in [(10**10, 2 * 10**9 + 1, 7), (1000, 333, 13), (2**62, 2**61 + 12_345, 5)]:
        cuts = [n_samples * s // n_cuts for s in range(n_cuts + 1)]
        kept_in = [n_kept * e // n_samples - n_kept * s // n_samples for s, e in zip(cuts, cuts[1:])]
        shares.append([n_samples, n_kept, cuts, kept_in])
    chunks = [[b, t, chunk_sizes(b, t)] for b, t in [(4096, 16), (2048, 23), (5, 16), (1, 1), (32_768, 15)]]
    return dict(kept=kept, super_batch_sizes=sizes, kept_in=shares, chunk_sizes=chunks)


def main():
    inputs = make_inputs()
    clusters = k_means(as_f32(inputs["learner"]["images"]), [0, 5, 3])
    members = lambda i: [j for j in range(N) if clusters["clusters"][j] == clusters["clusters"][i]]
    pool_bank = list(range(0, N, 2))[::-1]
    blocks = [  # the queries need not be in the bank
        hardness(inputs, members(1) + [2, 63], members(1), pool_bank, 0.1, 0.95, 32),
        hardness(inputs, members(0) + [1, 63], members(0)[::-1], pool_bank, 0.1, 0.95, 32),
        hardness(inputs, members(0), members(0)[:14], pool_bank, 0.03, 0.8, 4096),
    ]
    draws = [
        joint_draw(inputs, "learnability", 24, 6, 1.0, "gumbel", 42, 0, 0),
        joint_draw(inputs, "learnability", 24, 6, 0.25, "gumbel", 42, 1, 3),
        joint_draw(inputs, "learnability", 20, 1, 2.0, "gumbel", 2**63 + 5, 0, 0),
        joint_draw(inputs, "hard_learner", 17, 5, 0.5, "gumbel", 7, 0, 0),
        joint_draw(inputs, "easy_reference", 17, 5, 0.5, "gumbel", 7, 0, 0),
        joint_draw(inputs, "learnability", 30, 30, 1.0, "top_k", 0, 0, 0),
    ]
    golden = dict(
        inputs=inputs,
        draws=draws,
        k_means=clusters,
        hardness=blocks,
        counts=counts(),
    )
    text = ",\n".join(f'"{name}": {json.dumps(value, ensure_ascii=False)}' for name, value in golden.items())
    (Path(__file__).parent / "golden" / "kernels.json").write_text("{\n" + text + "\n}\n", encoding="utf-8")


main()
