"""Writes golden/kernels.json: counts, joint draws, k-means and hardness, dense, in f64, for the test `golden.rs`.

Written from the formulas, not from the Rust code: nothing here is tiled, incremental or f32.

python3 tests/oracle/golden_kernels.py          (needs numpy)
"""

import json
from pathlib import Path

import numpy as np

from methods import clusters as spherical
from methods import counts as exact
from methods import draws, hardness, losses
from methods.clusters import unit

N, D = 64, 8
SHARDS = ["b.tar", "a.tar", "ü.tar"]


# inputs: decimals that read as the same f32 everywhere


def decimals(matrix):
    return [[float(str(np.float32(v))) for v in row] for row in matrix]


def as_f32(rows):
    return np.array(rows, dtype=np.float32).astype(np.float64)


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


# draws


def model_of(inputs, name):
    model = inputs[name]
    towers = (as_f32(model[tower]) for tower in ("images", "captions"))
    return losses.Model(*towers, model["logit_scale"], model["logit_bias"])


def score_matrix(inputs, scoring):
    return losses.score_matrix(scoring, model_of(inputs, "learner"), model_of(inputs, "reference"))


def joint_draw(inputs, scoring, b, n_chunks, gain, chance, seed, round_, pass_):
    s = score_matrix(inputs, scoring)
    ids = [tuple(sample_id) for sample_id in inputs["ids"]]
    how = draws.Settings(b, n_chunks, gain, {"gumbel": "noise"}.get(chance, chance), seed, round_, pass_)
    out = []
    for chunk_idx, chunk in enumerate(draws.draw(lambda drawn: draws.sigmoid_logits(s, drawn), ids, how)):
        for x in chunk.picks:
            logit, terms = float(chunk.logits[x]), float(chunk.terms[x])
            out.append(dict(row=x, chunk=chunk_idx, conditional_score=logit, terms=terms))
    settings = dict(scoring=scoring, sub_batch_size=b, n_chunks=n_chunks, gain=gain, chance=chance)
    settings |= dict(seed=seed, round=round_, pass_=pass_, scores=np.diag(s).tolist(), drawn=out)
    return settings | dict(batch_learnability=losses.batch_learnability(s, [pick["row"] for pick in out]))


# k-means


def k_means(points, start):
    points = unit(points)
    found = spherical.assign(points, spherical.spherical_lloyd(points, points[start])[0])
    return dict(
        start=start,
        clusters=found.clusters.tolist(),
        similarities=found.similarities.tolist(),
        margins=found.margins.tolist(),
        objective=found.objective(),
    )


# hardness


def hardness_block(inputs, queries, cluster_bank, pool_bank, tau, threshold, b):
    learner, reference, hashes = model_of(inputs, "learner"), model_of(inputs, "reference"), inputs["caption_hashes"]
    columns = []
    for i in queries:
        own = hardness.columns(learner, hashes, i, (cluster_bank, pool_bank), tau, threshold)
        negatives, _ = hardness.split_bank(learner.x, hashes, i, cluster_bank, threshold)
        share = hardness.hard_learnability("sigmoid", "learnability", learner, reference, i, negatives, b)
        columns.append(own | dict(hard_learnability=share))
    settings = dict(queries=queries, cluster_bank=cluster_bank, pool_bank=pool_bank)
    return settings | dict(temperature=tau, near_duplicate_similarity=threshold, sub_batch_size=b, columns=columns)


# counts


def counts():
    kept = []
    for ratio in ["0", "0.5", "0.8", "0.9", "0.333", "0.999999", "0.123456789012345678"]:
        for n in [0, 1, 2, 3, 5, 10, 20_480, 163_840, 999_999_937, 10_000_000_000, 10_000_000_001, 2**63]:
            kept.append([ratio, n, exact.kept_over_pool(n, ratio)])
    sizes = []
    for n, super_batch_size in [(1, 10), (10, 10), (14, 10), (15, 10), (25, 10), (35, 10), (163_841, 20_480), (999, 7)]:
        sizes.append([n, super_batch_size, exact.super_batch_sizes(n, super_batch_size)])
    shares = []
    for n_samples, n_kept, n_cuts in [(10**10, 2 * 10**9 + 1, 7), (1000, 333, 13), (2**62, 2**61 + 12_345, 5)]:
        cuts = [n_samples * s // n_cuts for s in range(n_cuts + 1)]
        kept_in = exact.shared_by_size(n_kept, [e - s for s, e in zip(cuts, cuts[1:])])
        shares.append([n_samples, n_kept, cuts, kept_in])
    chunks = [[b, t, exact.chunk_sizes(b, t)] for b, t in [(4096, 16), (2048, 23), (5, 16), (1, 1), (32_768, 15)]]
    return dict(kept=kept, super_batch_sizes=sizes, kept_in=shares, chunk_sizes=chunks)


def main():
    inputs = make_inputs()
    clusters = k_means(as_f32(inputs["learner"]["images"]), [0, 5, 3])
    members = lambda i: [j for j in range(N) if clusters["clusters"][j] == clusters["clusters"][i]]
    pool_bank = list(range(0, N, 2))[::-1]
    blocks = [  # the queries need not be in the bank
        hardness_block(inputs, members(1) + [2, 63], members(1), pool_bank, 0.1, 0.95, 32),
        hardness_block(inputs, members(0) + [1, 63], members(0)[::-1], pool_bank, 0.1, 0.95, 32),
        hardness_block(inputs, members(0), members(0)[:14], pool_bank, 0.03, 0.8, 4096),
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
