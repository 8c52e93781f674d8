#!/usr/bin/env python3
"""Recomputes what density-based pruning keeps of each cluster from a run folder alone, and compares.

    python tests/oracle/pruned.py RUN        (needs numpy and pyarrow)

The quotas are the point of {0 ≤ q ≤ size, Σ q = kept} nearest to kept·softmax(d_inter·d_intra/T), METHODS §6; whole
numbers may lie one away from it. Exit code 1 if a quota or an order does not hold.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet


def frame(run, folder, columns):
    files = sorted((run / folder).glob("[0-9]*.parquet"))
    return pyarrow.concat_tables([pyarrow.parquet.read_table(file, columns=columns) for file in files])


def quotas(centroids, mean_distances, sizes, n_kept, step):
    distances = 1 - centroids @ centroids.T
    np.fill_diagonal(distances, np.inf)
    n_neighbours = min(step["n_neighbours"], len(centroids) - 1)
    complexity = np.sort(distances, axis=1)[:, :n_neighbours].mean(axis=1) * mean_distances
    weights = np.exp((complexity - complexity.max()) / step["temperature"])
    wanted = n_kept * weights / weights.sum()
    low, high = -float(sizes.max() + n_kept), float(sizes.max() + n_kept)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(wanted + middle, 0, sizes).sum() < n_kept else (low, middle)
    return np.clip(wanted + low, 0, sizes)


def main():
    run = Path(sys.argv[1])
    step = json.loads((run / "plan.json").read_text())["select"]["step"][-1]
    assert step["method"] == "dbp", f"the last step is `{step['method']}`"
    divided = frame(run, "divide", ["shard", "sample_idx", "cluster", "centroid_similarity"]).to_pydict()
    selected = frame(run, "select", ["shard", "sample_idx", "verdict"]).to_pydict()
    verdicts = dict(zip(zip(selected["shard"], selected["sample_idx"]), selected["verdict"]))
    cluster, similarity = np.array(divided["cluster"]), np.array(divided["centroid_similarity"], float)
    is_kept = np.array([verdicts[of] == "kept" for of in zip(divided["shard"], divided["sample_idx"])])
    centroids = np.stack(pyarrow.parquet.read_table(run / "divide/centroids.parquet")["centroid"].to_numpy())
    k = len(centroids)
    sizes = np.bincount(cluster, minlength=k)
    assert sizes.min() > 0, "a cluster without samples"
    mean_distances = np.bincount(cluster, weights=1 - similarity, minlength=k) / sizes
    expected = quotas(centroids.astype(float), mean_distances, sizes, is_kept.sum(), step)
    found = np.bincount(cluster[is_kept], minlength=k)
    farthest = np.abs(found - expected).max()
    n_wrong = 0
    for c in range(k):
        kept, dropped = similarity[(cluster == c) & is_kept], similarity[(cluster == c) & ~is_kept]
        n_wrong += bool(len(kept) and len(dropped) and kept.max() > dropped.min())
    print(f"{is_kept.sum()} kept of {k} clusters, {found.min()} to {found.max()} of each")
    print(f"quotas: at most {farthest:.2f} from the real ones; clusters that keep a nearer sample and drop a farther: {n_wrong}")
    sys.exit(farthest >= 1 or n_wrong > 0)


main()
