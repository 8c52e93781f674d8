"""Checks of markers, samples/ and embeddings/."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .models import Classifier, wide
from .stored import SAMPLES_PER_SHARD_MAX


def check_markers(run, report):
    roots = {run.path, run.store}
    # `superbatch clean` may have taken the files of the exchange
    names = [name for name in run.committed if not name.startswith("_exchange/")]
    report.exact("markers: their files are there", [not any((r / n).is_file() for r in roots) for n in names])
    report.same("plan: shard ids are sorted", run.shard_ids, sorted(run.shard_ids))


def check_samples(run, samples, report):
    """Identity: every sample once, in its task's file, with a key that is unique in its shard."""
    report.exact("samples: each once", np.diff(samples.identity, prepend=-1) <= 0)
    per_task, wrong = run.plan["pool"]["shards_per_task"], []
    for file in run.files("samples"):
        own = set(run.shard_ids[int(file.stem) * per_task : (int(file.stem) + 1) * per_task])
        wrong += [s not in own for s in pq.read_table(file, columns=["shard"])["shard"].cast(pa.string()).to_pylist()]
    report.exact("samples: in the file of their task", wrong)
    rank, n_tasks = samples.identity // SAMPLES_PER_SHARD_MAX, -(-len(run.shard_ids) // per_task)
    report.same("samples: a file for each task", [int(f.stem) for f in run.files("samples")], list(range(n_tasks)))
    keys = [(r, k) for r, k, x in zip(rank.tolist(), samples.texts("key"), samples.texts("rejection")) if x is None]
    report.exact("samples: keys unique in their shard", [False] * len(set(keys)) + [True] * (len(keys) - len(set(keys))))


def check_embeddings(samples, is_read, model, report):
    """Every sample that was not rejected once, and unit vectors where there are embeddings."""
    name = f"{model.name} embeddings"
    report.exact(f"{name}: each once", np.diff(model.stored.identity, prepend=-1) <= 0)
    report.exact(f"{name}: every sample read", ~np.isin(samples.identity[is_read], model.stored.identity))
    if isinstance(model, Classifier):
        return
    allowed = 2e-3 if model.stored.table["image_embedding"].type.value_type == pa.float16() else 1e-5
    for tower in ("image", "text"):
        norm = np.linalg.norm(wide(getattr(model, tower)), axis=1)
        report.close(f"{name}: unit length, {tower}", norm, 1.0, allowed, where=model.has)
