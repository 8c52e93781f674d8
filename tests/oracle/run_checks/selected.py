"""Checks of select/: conservation, scores, counts, which samples met, and the draws."""

from fractions import Fraction

import numpy as np

from methods.counts import kept_over_pool, shared_by_size

from .replay import Replay, chunk_of_draw_rank, replay_super_batch
from .stored import SAMPLES_PER_SHARD_MAX


def check_conservation(run, samples, is_read, is_usable, select, report):
    """Every sample that was read and embedded stands in select/ once, with a verdict that its columns bear out."""
    report.exact("select: each sample once", np.diff(select.identity, prepend=-1) <= 0)
    row = samples.rows_of(select.identity)
    report.exact("select: none was rejected", ~is_read[row])
    report.exact("select: every sample with embeddings", ~np.isin(samples.identity[is_usable], select.identity))
    keys = samples.texts("key")
    report.same("select: key", select.texts("key"), [keys[r] for r in row])
    verdict = np.array(select.texts("verdict"))
    came = ~np.isnan(select.numbers("super_batch"))
    is_kept, is_filtered = verdict == "kept", verdict == "filtered"
    report.exact("verdict: a known one", ~np.isin(verdict, ["kept", "not_drawn", "filtered"]) & is_usable[row])
    for column in ("draw_rank", "chunk", "conditional_score"):
        report.exact(f"verdict: kept where {column}", is_kept != ~np.isnan(select.numbers(column)))
    report.exact("verdict: not_drawn where no rank", (verdict == "not_drawn") & ~came | came & ~is_kept & (verdict != "not_drawn"))
    report.exact("verdict: kept came to a draw", ~came[is_kept])
    report.exact("verdict: filtered came to none", came[is_usable[row]] == is_filtered[is_usable[row]])
    removed_by = select.texts("removed_by")
    removed = np.array([text is not None for text in removed_by])
    report.exact("removed_by: where filtered", (removed != is_filtered) & is_usable[row])
    filters = {step.get("name") or step["method"] for step in run.steps[:-1]}
    if filters:
        report.exact("removed_by: a step of the plan", [text not in filters for text in removed_by if text is not None] or [False])
    report.exact("degenerate embeddings come to no draw", came & ~is_usable[row])
    report.exact("n_repeats: 1 where kept", select.numbers("n_repeats")[is_kept] != 1)


def check_scores(row, select, models, scores, report, tolerance):
    """Similarities, losses, learnability and the score of the draw. A null is allowed where no draw was."""
    came, loss = ~np.isnan(select.numbers("super_batch")), scores.method.loss
    loss_allowed = {}
    for name, model in models.items():
        for what in ("similarity", "loss"):
            recorded = select.numbers(f"{name}_{what}")
            if model is None:
                report.exact(f"{name}_{what}: null without a model", ~np.isnan(recorded))
                continue
            expected = (model.similarity() if what == "similarity" else model.positive_loss(loss))[row]
            loss_allowed[name] = tolerance * (1 + model.loss_slope(loss))
            allowed = tolerance if what == "similarity" else loss_allowed[name]
            report.close(f"{name}_{what}", recorded, expected, allowed, where=came | ~np.isnan(recorded))
    recorded = select.numbers("learnability")
    allowed = sum(loss_allowed.values())
    if len(loss_allowed) == 2:
        expected = (models["learner"].positive_loss(loss) - models["reference"].positive_loss(loss))[row]
        report.close("learnability", recorded, expected, allowed, where=came | ~np.isnan(recorded))
    else:
        report.exact("learnability: null without a model", ~np.isnan(recorded))
    recorded = select.numbers("score")
    if scores.method.is_random:
        report.close("score", recorded, 0.0, 0.0, where=came)
    else:
        report.close("score", recorded, scores.diagonal()[row], allowed, where=came | ~np.isnan(recorded))


def check_counts(select, scores, report):
    """Kept counts and chunk sizes in exact integers; returns the kept count of each super-batch."""
    super_batch, rank, chunk = (select.numbers(c) for c in ("super_batch", "draw_rank", "chunk"))
    indices, sizes = np.unique(super_batch[~np.isnan(super_batch)], return_counts=True)
    report.same("super_batch: dense from 0", indices.tolist(), list(range(len(indices))))
    expected = shared_by_size(kept_over_pool(int(sizes.sum()), scores.method.filter_ratio), sizes.tolist())
    kept = [int((~np.isnan(rank[super_batch == s])).sum()) for s in indices]
    report.same("kept over the pool", [sum(kept)], [sum(expected)])
    report.same("kept of each super-batch", kept, expected)
    wrong_rank, wrong_chunk = [], []
    for s, n_kept in zip(indices, kept):
        is_kept = (super_batch == s) & ~np.isnan(rank)
        order = np.argsort(rank[is_kept], kind="stable")
        wrong_rank.append(rank[is_kept][order] != np.arange(n_kept))
        if n_kept:
            wrong_chunk.append(chunk[is_kept][order] != chunk_of_draw_rank(n_kept, scores.method.n_chunks))
    report.exact("draw_rank: dense from 0", np.concatenate(wrong_rank))
    report.exact("chunk: the sizes of METHODS §3", np.concatenate(wrong_chunk))
    return dict(zip(indices.tolist(), kept))


def check_dealing(run, select, report):
    """A dealing group of n samples makes max(1, round(n/B)) super-batches of nearly one size.

    A group is what its super-batches connect: clusters within clusters, else shards.
    """
    within = run.step["super_batches"] == "within_clusters"
    came = ~np.isnan(select.numbers("super_batch"))
    super_batch = select.numbers("super_batch")[came].astype(int)
    source = (select.numbers("cluster") if within else select.identity // SAMPLES_PER_SHARD_MAX)[came].astype(int)
    group = connected(source, super_batch)
    target, wrong_count, wrong_size, n_large = int(run.step["super_batch_size"]), [], [], []
    for g in np.unique(group):
        sizes = np.unique(super_batch[group == g], return_counts=True)[1]
        n = int(sizes.sum())
        nearest = {max(1, round(Fraction(n, target))), max(1, (2 * n + target) // (2 * target))}
        wrong_count.append(len(sizes) not in nearest)
        wrong_size.append(sizes.max() - sizes.min() > 1)
        n_large.append((np.unique(source[group == g], return_counts=True)[1] >= target).sum())
    report.exact("super-batches: their number in each group", wrong_count)
    report.exact("super-batches: sizes within one", wrong_size)
    if within:
        report.exact("super-batches: no two large clusters", np.array(n_large) > 1)


def connected(a, b):
    """A label for each (a[i], b[i]), equal for what shares an a or a b, directly or through others."""
    label = a.copy()
    while True:
        low = np.full(b.max() + 1, np.iinfo(int).max)
        np.minimum.at(low, b, label)
        back = np.full(a.max() + 1, np.iinfo(int).max)
        np.minimum.at(back, a, low[b])
        if np.array_equal(back[a], label):
            return label
        label = back[a]


def check_draws(run, samples, row, select, scores, report):
    """Replays every super-batch."""
    replay = Replay([], [], [], [], [], [])
    super_batch = select.numbers("super_batch")
    columns = {name: select.numbers(name) for name in ("chunk", "draw_rank", "conditional_score")}
    for s in np.unique(super_batch[~np.isnan(super_batch)]):
        own = np.flatnonzero(super_batch == s)
        drawn = {name: values[own] for name, values in columns.items()}
        replay_super_batch(replay, row[own], drawn, scores, run, samples.identity)
    joined = {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in vars(replay).items()}
    report.close("conditional_score", joined["recorded"], joined["expected"], joined["allowed"])
    n_certain, n_picks = int(joined["is_certain"].sum()), len(joined["is_certain"])
    report.exact("picks: the top of gain · logit + noise", joined["is_impossible"])
    report.line("picks: checked exactly", 0 < n_picks <= 2 * n_certain, f"{n_certain} of {n_picks}, the gap beyond any rounding")
    report.exact("picks: in falling order", joined["is_misplaced"])
