"""Checks of the divide stage: assignment, banks, hardness, and what select/ carries of it."""

import struct

import numpy as np

from .divided import DOUBT, effective_number, first_negatives, hardness, read_bank, read_centroids
from .models import wide
from .replay import DRAW_TOLERANCE, keyed_hash
from .stored import matrix_of, plain

HARDNESS_GAIN_NEGATIVES_MIN = 16
CLUSTER_COLUMNS = [
    "cluster", "centroid_similarity", "centroid_margin", "hardness", "hardness_gain", "cross_modal_hardness",
    "effective_negatives", "n_negatives", "hardest_negative_similarity", "hardest_negative_shard",
    "hardest_negative_key", "n_false_negatives",
]  # fmt: skip


def check_assignment(run, divided, is_read, is_usable, report, tolerance):
    """Cluster, centroid similarity and margin against the committed centroids."""
    report.exact("divide: each sample once", np.diff(divided.stored.identity, prepend=-1) <= 0)
    assigned = ~np.isnan(divided.cluster)
    report.exact("divide: every sample with embeddings", ~assigned[is_usable])
    report.exact("divide: only samples with embeddings", ~(divided.model.has & is_read)[assigned])
    k = len(divided.centroids)
    report.same("centroids: as many as the plan says", [k], [run.plan["divide"]["n_clusters"]])
    report.same("centroids: numbered from 0", read_centroids(run)["cluster"].to_pylist(), list(range(k)))
    report.close("centroids: unit length", np.linalg.norm(divided.centroids, axis=1), 1.0, 1e-5)
    row = divided.row[assigned[divided.row]]
    recorded = {c: divided.stored.numbers(c)[assigned[divided.row]] for c in CLUSTER_COLUMNS[:3]}
    # a cosine: stored rows are unit only to the precision of their type
    image = wide(divided.model.image[row])
    similarity = image @ divided.centroids.T / np.linalg.norm(image, axis=1, keepdims=True)
    ordered = np.sort(similarity, axis=1)
    own = similarity[np.arange(len(row)), recorded["cluster"].astype(int)]
    margin = ordered[:, -1] - ordered[:, -2] if k > 1 else np.full(len(row), np.nan)
    report.exact("cluster: nearest centroid", (own < ordered[:, -1]) & (own < ordered[:, -1] - DOUBT))
    report.close("centroid_similarity", recorded["centroid_similarity"], own, tolerance)
    if k > 1:
        report.close("centroid_margin", recorded["centroid_margin"], margin, 2 * tolerance)


def check_banks(run, samples, divided, report):
    """Members and order of each bank by keyed hash, and the embeddings that it carries."""
    assigned = np.flatnonzero(~np.isnan(divided.cluster))
    prefix = b"bank\0" + struct.pack("<2Q", run.plan["seed"], 0)
    h = np.zeros(len(samples), np.uint64)
    h[assigned] = keyed_hash(prefix, samples.identity[assigned], run.shard_ids)
    size = run.plan["divide"]["bank_size"]

    def smallest(rows):
        return rows[np.argsort(h[rows], kind="stable")][:size].tolist()

    expected = {c: smallest(assigned[divided.cluster[assigned] == c]) for c in np.unique(divided.cluster[assigned]).astype(int)}
    report.same("banks: the clusters", sorted(divided.cluster_banks), sorted(expected))
    recorded = [r for c in sorted(expected) for r in [c, *divided.cluster_banks.get(c, np.zeros(0, int)).tolist()]]
    report.same("cluster banks: members in order", recorded, [r for c in sorted(expected) for r in [c, *expected[c]]])
    report.same("pool bank: members in order", divided.pool_bank.tolist(), smallest(assigned))
    bank = read_bank(run)
    is_pool = np.array(bank.texts("bank")) == "pool"
    report.exact("pool bank: cluster is null", is_pool != np.isnan(bank.numbers("cluster")))
    row = samples.rows_of(bank.identity)
    for tower in ("image", "text"):
        values, has = matrix_of(bank.table[f"{tower}_embedding"])
        report.exact(f"banks: {tower}_embedding as stored", (values != getattr(divided.model, tower)[row]).any(axis=1) | ~has)


def expected_hardness(divided, rows, negatives):
    """The columns of METHODS §5 of one block, by name."""
    tau, image, text = divided.temperature, divided.model.image, divided.model.text
    similarity, is_negative, bank = negatives.similarity, negatives.is_negative, negatives.bank
    pool = divided.negatives(rows, divided.pool_bank)
    n = np.minimum(is_negative.sum(axis=1), pool.is_negative.sum(axis=1))
    gain = hardness(similarity, first_negatives(is_negative, n), tau)
    gain = gain - hardness(pool.similarity, first_negatives(pool.is_negative, n), tau)
    image_to_text, text_to_image = wide(image[rows]) @ wide(text[bank]).T, wide(text[rows]) @ wide(image[bank]).T
    crossed = hardness(image_to_text, is_negative, tau) + hardness(text_to_image, is_negative, tau)
    is_empty = ~is_negative.any(axis=1)
    return {
        "hardness": hardness(similarity, is_negative, tau),
        "hardness_gain": np.where(n >= HARDNESS_GAIN_NEGATIVES_MIN, gain, np.nan),
        "cross_modal_hardness": crossed / 2,
        "effective_negatives": np.where(is_empty, np.nan, effective_number(similarity, is_negative, tau)),
        "n_negatives": is_negative.sum(axis=1).astype(float),
        "hardest_negative_similarity": np.where(
            is_empty, np.nan, np.max(np.where(is_negative, similarity, -np.inf), axis=1, initial=-np.inf)
        ),
        "n_false_negatives": negatives.n_false.astype(float),
        "is_doubtful": negatives.is_doubtful.astype(float),
        "is_doubtful_gain": (negatives.is_doubtful | pool.is_doubtful).astype(float),
    }


def check_hardness(run, samples, divided, report, tolerance):
    """Every hardness column of divide/ against the committed banks."""
    expected = {}
    for rows, negatives in divided.blocks():
        for name, values in expected_hardness(divided, rows, negatives).items():
            expected.setdefault(name, np.full(len(samples), np.nan))[rows] = values
    expected = {name: values[divided.row] for name, values in expected.items()}
    is_sure, is_sure_gain = expected.pop("is_doubtful") != 1, expected.pop("is_doubtful_gain") != 1
    allowed = dict.fromkeys(expected, tolerance) | {
        "hardness_gain": 2 * tolerance,
        "effective_negatives": tolerance + 2 * tolerance / divided.temperature * np.nan_to_num(expected["effective_negatives"]),
        "n_negatives": 0.0,
        "n_false_negatives": 0.0,
    }
    for name, values in expected.items():
        recorded = divided.stored.numbers(name)
        if name == "n_negatives":
            recorded = np.where((values == 0) & np.isnan(recorded), 0.0, recorded)
        if name == "hardness_gain" and run.plan["divide"]["bank_size"] < HARDNESS_GAIN_NEGATIVES_MIN:
            report.exact("hardness_gain: null with so small a bank", ~np.isnan(recorded))
            continue
        report.close(name, recorded, values, allowed[name], where=is_sure_gain if name == "hardness_gain" else is_sure)
    check_hardest_negative(samples, divided, report, tolerance)


def check_hardest_negative(samples, divided, report, tolerance):
    """The sample that hardest_negative_shard and _key name is a negative, and none is harder."""
    shard, key = (divided.stored.texts(f"hardest_negative_{name}") for name in ("shard", "key"))
    readable = [r is None for r in samples.texts("rejection")]
    names = zip(samples.texts("shard"), samples.texts("key"), readable)
    row_of = {(s, k): r for r, (s, k, is_read) in enumerate(names) if is_read}
    named = np.full(len(samples), -2)
    for r, s, k in zip(divided.row.tolist(), shard, key):
        named[r] = -1 if s is None and k is None else row_of.get((s, k), -2)
    wrong = []
    for rows, negatives in divided.blocks():
        is_it = negatives.bank[None, :] == named[rows][:, None]
        hardest = np.max(np.where(negatives.is_negative, negatives.similarity, -np.inf), axis=1, initial=-np.inf)
        is_hard = negatives.similarity >= hardest[:, None] - 2 * tolerance
        is_found = (is_it & negatives.is_negative & is_hard).any(axis=1)
        is_right = np.where(negatives.is_negative.any(axis=1), is_found, named[rows] == -1)
        wrong.append(~is_right[~negatives.is_doubtful])
    report.exact("hardest_negative_shard, _key", np.concatenate(wrong))


def sigmoid_shares(scores, rows, negatives, n_others):
    """S_ii + (b−1) · mean over A of ½(S_ij + S_ji), and Σ|terms|: [|rows|] each; NaN without negatives."""
    own = scores.diagonal()[rows]
    there, back = scores.both_directions(rows, negatives.bank)
    count = negatives.is_negative.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(negatives.is_negative, there + back, 0).sum(axis=1) / 2 / count
        mean_abs = np.where(negatives.is_negative, abs(there) + abs(back), 0).sum(axis=1) / 2 / count
    return own + n_others * mean, np.abs(own) + n_others * mean_abs


def softmax_shares(scores, rows, negatives, n_others):
    """½ Σ_directions [ln(e^{l_ii} + (b−1)·mean over A of e^{l_ij}) − l_ii] of the models, combined, and Σ|terms|."""
    count = negatives.is_negative.sum(axis=1)

    def of(model):
        own = -model.positive_loss("softmax")[rows]
        logits = (model.pair_logit(rows, negatives.bank), model.pair_logit(negatives.bank, rows).T)
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = np.log(n_others / count)
            sums = [np.logaddexp.reduce(np.where(negatives.is_negative, l, -np.inf), axis=1) for l in logits]
            return own, sum(np.logaddexp(own, spread + total) for total in sums) / 2 - own

    parts = {id(model): of(model) for model in scores.models()}
    value = scores.combine(lambda model: parts[id(model)][1])
    terms = sum(2 * np.abs(own) + np.abs(share) for own, share in parts.values())
    return np.where(count > 0, value, np.nan), terms


def check_hard_learnability(row, select, divided, models, scores, kept, report):
    """The share of each sample among b−1 negatives of its cluster's bank, b the kept count of its super-batch."""
    recorded = select.numbers("hard_learnability")
    shares = {"sigmoid": sigmoid_shares, "softmax": softmax_shares}.get(scores.method.loss)
    if shares is None or scores.method.is_random and np.isnan(recorded).all():
        report.exact("hard_learnability: null without pair losses", ~np.isnan(recorded))
        return
    n = len(divided.cluster)
    sub_batch = np.full(n, np.nan)
    sub_batch[row] = [kept.get(s, np.nan) for s in select.numbers("super_batch").tolist()]
    expected, allowed, is_sure = np.full(n, np.nan), np.ones(n), np.ones(n, bool)
    usable = np.all([model.has for model in models.values() if model], axis=0)
    for rows, negatives in divided.blocks():
        has_negatives = negatives.is_negative.any(axis=1)
        value, terms = shares(scores, rows, negatives, np.maximum(sub_batch[rows] - 1, 0))
        expected[rows] = np.where(has_negatives & ~np.isnan(sub_batch[rows]), value, np.nan)
        allowed[rows] = DRAW_TOLERANCE * (1 + np.nan_to_num(terms))
        is_sure[rows] = ~negatives.is_doubtful & usable[negatives.bank].all()
    report.close("hard_learnability", recorded, expected[row], allowed[row], where=is_sure[row])


def check_select_carries_divide(samples, row, select, divided, report):
    """select/ repeats the columns of divide/ unchanged."""
    position = np.full(len(samples), -1)
    position[divided.row] = np.arange(len(divided.row))
    there = position[row]
    report.exact("select: assigned where it came to a draw", (there < 0) & ~np.isnan(select.numbers("super_batch")))
    own, taken = select.table.filter(there >= 0), divided.stored.table.take(there[there >= 0])
    for column in CLUSTER_COLUMNS:
        report.same(f"select: {column} as in divide", plain(own[column]), plain(taken[column]))
