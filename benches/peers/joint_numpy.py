"""Joint selection as the paper writes it, dense, in NumPy: the peer of `joint.py`.

    python joint_numpy.py FOLDER N_SAMPLES SUB_BATCH_SIZE N_CHUNKS OBJECTIVE DRAW

The [B, B] score matrix of both models is computed once, in f32 and in place; each chunk then adds only the rows and
columns that were drawn last, and draws by Gumbel-top-k (`noise`) or takes the largest (`top_k`). Threads are those of
NumPy's BLAS. Prints seconds, peak memory and what was drawn as JSON.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

LOSSES = [("learner", 10.0, -10.0), ("reference", 20.0, -12.0)]


def read(folder, name, n_samples):
    return np.fromfile(folder / f"{name}.f32", dtype=np.float32).reshape(n_samples, -1)


def logits(models, role, scale, bias):
    images, captions = models[role]
    l = images @ captions.T
    l *= np.float32(scale)
    l += np.float32(bias)
    return l


def softplus_in_place(l):
    """max(l, 0) + log(1 + exp(−|l|)), with one array beside it."""
    rest = np.abs(l)
    np.negative(rest, out=rest)
    np.exp(rest, out=rest)
    np.log1p(rest, out=rest)
    np.maximum(l, 0, out=l)
    l += rest
    return l


def sigmoid_losses(models, role, scale, bias):
    losses = logits(models, role, scale, bias)
    own = np.diag(losses).copy()
    softplus_in_place(losses)
    np.fill_diagonal(losses, np.logaddexp(0, -own))
    return losses


def sigmoid_conditionals(models):
    """A function from the rows drawn last to the logits of all samples."""
    scores = sigmoid_losses(models, *LOSSES[0])
    scores -= sigmoid_losses(models, *LOSSES[1])
    total = np.diag(scores).astype(np.float64)

    def after(rows):
        nonlocal total
        if len(rows):
            total = total + scores[rows].sum(axis=0, dtype=np.float64) + scores[:, rows].sum(axis=1, dtype=np.float64)
        return total

    return after


def log_sum_exp(l, axis):
    largest = l.max(axis=axis, keepdims=True)
    return (np.log(np.exp(l - largest).sum(axis=axis, dtype=np.float64)) + largest.squeeze(axis)).astype(np.float64)


def softmax_conditionals(models):
    all_logits = [logits(models, *loss) for loss in LOSSES]
    own = [-np.diag(l).astype(np.float64) for l in all_logits]
    sums = [[np.full(len(o), -np.inf), np.full(len(o), -np.inf)] for o in own]

    def after(rows):
        if not len(rows):
            return own[0] - own[1]
        for l, both in zip(all_logits, sums):
            both[0] = np.logaddexp(both[0], log_sum_exp(l[:, rows], 1))
            both[1] = np.logaddexp(both[1], log_sum_exp(l[rows], 0))
        of_model = [o + 0.5 * (both[0] + both[1]) for o, both in zip(own, sums)]
        return of_model[0] - of_model[1]

    return after


def main():
    folder, n, b, n_chunks, objective, chance = sys.argv[1:]
    folder, n, b, n_chunks = Path(folder), int(n), int(b), int(n_chunks)
    roles = ["learner", "reference"]
    models = {role: [read(folder, f"{role}_{tower}", n) for tower in ("images", "captions")] for role in roles}
    embeddings_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rng = np.random.default_rng(0)

    start, start_cpu = time.perf_counter(), time.process_time()
    after = {"sigmoid": sigmoid_conditionals, "softmax": softmax_conditionals}[objective](models)
    drawn, rows = [], np.array([], dtype=int)
    is_drawn = np.zeros(n, dtype=bool)
    for chunk in range(n_chunks):
        size = (chunk + 1) * b // n_chunks - chunk * b // n_chunks
        values = after(rows) + (rng.gumbel(size=n) if chance == "noise" else 0)
        values = np.where(is_drawn, -np.inf, values)
        rows = np.argpartition(-values, size - 1)[:size] if size < n else np.arange(n)
        rows = rows[np.argsort(-values[rows], kind="stable")]
        is_drawn[rows] = True
        drawn.extend(rows.tolist())
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu

    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    times = dict(seconds=seconds, cpu_seconds=cpu_seconds)
    print(json.dumps(times | dict(embeddings_bytes=embeddings_bytes, peak_bytes=peak_bytes, rows=drawn)))


main()
