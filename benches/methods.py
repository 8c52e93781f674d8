#!/usr/bin/env python3
"""Every method of `pipelines/` on the fixture pool, side by side.

    cargo build --release
    python benches/methods.py [--work FOLDER] >table.md          (needs numpy and pyarrow)

Runs each pipeline file with `target/release/superbatch` over one store of embeddings, and prints two Markdown tables.

The first has a row a method: how many it kept; the share of planted swaps among them (20 % of the captions are
another's), and the same with learner and reference exchanged, where the method uses both: a method that works by what
the reference knows and the learner does not must then keep more swaps than random; the effective clusters of the kept,
exp(entropy) over ten clusters that are the same for all; the batch learnability of the kept in consecutive batches of
80 in the order of `curated/`, of the same rows reshuffled, and how many of JEST's it kept as well.

The second is the overlap |A ∩ B| / min(|A|, |B|) of what any two methods kept.

Batch learnability is computed here, by NumPy from the run's embeddings: F(A)/|A| with the sigmoid losses of the two
fixture models (METHODS §2). The software reports its own; this is not it.
"""

import argparse
import csv
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/oracle"))

from run_checks.stored import Frame, RunFolder  # noqa: E402

BINARY = ROOT / "target/release/superbatch"
POOL = "fixtures/pool/*.tar"
BATCH = 80
N_RESHUFFLES = 50
N_CLUSTERS = 10
# Steps whose choice needs both models; what other methods do with the two exchanged is no control.
USES_BOTH = {"jest", "full_loss", "active_clip", "class_act", "soft_cap"}


# Runs


def superbatch(binary, pipeline, run, settings):
    """Runs a pipeline file; returns what went wrong, or nothing."""
    command = [binary, "run", pipeline, "-o", run]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if not done.returncode:
        return None
    lines = done.stderr.strip().splitlines() or ["nothing said"]
    return next((line for line in lines if line.startswith("error:")), lines[-1])


def why_not(settings):
    """Why a pipeline file has no place in this table, or nothing."""
    steps = settings["select"]["step"]
    if any(step["method"] == "class_act" for step in steps) or settings["read"].get("samples") == "image_class":
        return "a pool of classes has no captions that could be swapped"
    if settings["read"]["shards"] != [POOL]:
        return f"its pool is not `{POOL}`"
    return None


def exchanged(pipeline, settings):
    """The pipeline file with the two models exchanged, or nothing where the method does not use both."""
    if not any(step["method"] in USES_BOTH for step in settings["select"]["step"]):
        return None
    if not {"learner", "reference"} <= settings["models"].keys():
        return None
    other = {"learner": "reference", "reference": "learner"}
    return re.sub(r"^\[models\.(learner|reference)\]", lambda m: f"[models.{other[m[1]]}]", pipeline, flags=re.MULTILINE)


@dataclass(frozen=True)
class Kept:
    """The kept rows of the pool, each once, in the order of `curated/`."""

    rows: np.ndarray
    n_kept: int  # repeats counted


def kept_of(run, samples):
    tables = [pq.read_table(file, columns=["shard", "sample_idx", "n_repeats"]) for file in run.files("curated")]
    if not tables:
        raise ValueError(f"{run.path} kept nothing")
    frames = [Frame(table, run.shard_ids, is_sorted=False) for table in tables]
    rows = np.concatenate([samples.rows_of(frame.identity) for frame in frames])
    n_kept = int(sum(frame.numbers("n_repeats").sum() for frame in frames))
    _, first = np.unique(rows, return_index=True)
    return Kept(rows[np.sort(first)], n_kept)


# What is measured of what was kept


@dataclass(frozen=True)
class Pool:
    """The pool as every method sees it: rows in the order of (shard, sample_idx)."""

    samples: Frame
    is_swapped: np.ndarray  # [n]
    cluster: np.ndarray  # [n], of one common divide
    scores: np.ndarray  # [n, n], learner minus reference, row = image


def read_pool(run):
    samples = run.frame("samples")
    with open(ROOT / run.plan["report"]["planted"], newline="") as file:
        planted = {(row["shard"], row["key"]) for row in csv.DictReader(file)}
    identity = zip(samples.texts("shard"), samples.texts("key"))
    is_swapped = np.array([(Path(shard).name, key) in planted for shard, key in identity])
    if is_swapped.sum() != len(planted):
        raise ValueError(f"{is_swapped.sum()} of {len(planted)} planted swaps are in the pool")
    divided = run.frame("divide")
    cluster = np.full(len(samples), -1)
    cluster[samples.rows_of(divided.identity)] = divided.numbers("cluster").astype(int)
    if (cluster < 0).any():
        raise ValueError("a sample without a cluster")
    learner, reference = (run.model(role, samples) for role in ("learner", "reference"))
    return Pool(samples, is_swapped, cluster, sigmoid_losses(learner) - sigmoid_losses(reference))


def softplus(x):
    return np.logaddexp(0.0, x)


def sigmoid_losses(model):
    """softplus(−l_ii) on the diagonal, softplus(l_ij) beside it; [n, n], nats."""
    logits = model.logit_scale * (model.image @ model.text.T).astype(np.float64) + model.logit_bias
    np.fill_diagonal(logits, -np.diag(logits))
    return softplus(logits)


def batch_learnability(pool, rows):
    """F(A)/|A|, learner minus reference, the mean over whole consecutive batches."""
    n_batches = max(1, len(rows) // BATCH)
    batches = [rows[start * BATCH : (start + 1) * BATCH] for start in range(n_batches)]
    return float(np.mean([pool.scores[np.ix_(batch, batch)].sum() / len(batch) for batch in batches]))


def reshuffled(pool, rows):
    """The mean over reshuffles of the same rows, and its standard deviation."""
    generator = np.random.default_rng(1)
    values = [batch_learnability(pool, generator.permutation(rows)) for _ in range(N_RESHUFFLES)]
    return float(np.mean(values)), float(np.std(values, ddof=1))


def effective(clusters):
    share = np.unique(clusters, return_counts=True)[1] / len(clusters)
    return float(np.exp(-(share * np.log(share)).sum()))


def overlap(a, b):
    return len(np.intersect1d(a, b)) / min(len(a), len(b))


# The tables


def row_of(name, pool, kept, control, jest):
    mean, deviation = reshuffled(pool, kept.rows)
    cells = [
        name,
        str(kept.n_kept) if kept.n_kept == len(kept.rows) else f"{kept.n_kept} ({len(kept.rows)} different)",
        f"{100 * pool.is_swapped[kept.rows].mean():.1f} %",
        f"{100 * pool.is_swapped[control.rows].mean():.1f} %" if control else "–",
        f"{effective(pool.cluster[kept.rows]):.2f}",
        f"{batch_learnability(pool, kept.rows):.2f}",
        f"{mean:.2f} ± {deviation:.2f}",
        f"{overlap(kept.rows, jest.rows):.2f}" if jest else "–",
    ]
    return "| " + " | ".join(cells) + " |"


HEAD = [
    "method", "kept", "swapped among the kept", "with the models exchanged", "effective clusters",
    f"batch learnability, batches of {BATCH}", "of the same rows, reshuffled", "overlap with jest",
]  # fmt: skip


def print_tables(pool, kept, controls):
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    everyone = Kept(np.arange(len(pool.samples)), len(pool.samples))
    print(row_of("*the pool*", pool, everyone, None, kept.get("jest")))
    for name, rows in kept.items():
        print(row_of(name, pool, rows, controls.get(name), kept.get("jest")))
    print(f"\nReshuffled: mean and standard deviation of {N_RESHUFFLES} orders.\n")
    print("| overlap | " + " | ".join(kept) + " |\n|" + "---|" * (len(kept) + 1))
    for name, own in kept.items():
        values = [f"{overlap(own.rows, others.rows):.2f}" for others in kept.values()]
        print(f"| {name} | " + " | ".join(values) + " |")


def main():
    parser = argparse.ArgumentParser(description="Every method of pipelines/ on the fixture pool, side by side.")
    parser.add_argument("--work", type=Path, help="where the runs go, and stay; a temporary folder by default")
    parser.add_argument("--only", nargs="+", help="names of pipeline files; all by default")
    parser.add_argument("--binary", type=Path, default=BINARY)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="methods-") as temporary:
        compare(options.binary.resolve(), options.work.resolve() if options.work else Path(temporary), options.only)


def compare(binary, work, only):
    work.mkdir(parents=True, exist_ok=True)
    common = [f"store={work / 'store'}"]
    clusters = work / "common-clusters"
    wrong = superbatch(binary, ROOT / "pipelines/jest.toml", clusters, [*common, f"divide.n_clusters={N_CLUSTERS}"])
    if wrong:
        sys.exit(f"error: `pipelines/jest.toml` did not run, and it has the clusters that all are measured by\n{wrong}")
    pool = read_pool(RunFolder(clusters))
    kept, controls, skipped = {}, {}, []
    for pipeline in sorted((ROOT / "pipelines").glob("*.toml")):
        name, settings = pipeline.stem, tomllib.loads(pipeline.read_text())
        if only and name not in only:
            continue
        reason = why_not(settings) or superbatch(binary, pipeline, work / name, common)
        if reason:
            skipped.append(f"- `{name}` is not here: {reason}")
            continue
        kept[name] = kept_of(RunFolder(work / name), pool.samples)
        exchange = exchanged(pipeline.read_text(), settings)
        if exchange:
            (work / f"{name}-exchanged.toml").write_text(exchange)
            wrong = superbatch(binary, work / f"{name}-exchanged.toml", work / f"{name}-exchanged", common)
            if wrong:
                skipped.append(f"- `{name}` does not run with the models exchanged: {wrong}")
            else:
                controls[name] = kept_of(RunFolder(work / f"{name}-exchanged"), pool.samples)
        print(f"{name}: {kept[name].n_kept} kept", file=sys.stderr)
    print_tables(pool, kept, controls)
    if skipped:
        print("\n" + "\n".join(skipped))
    swaps = {name: pool.is_swapped[control.rows].mean() for name, control in controls.items()}
    below = [name for name, share in swaps.items() if share <= pool.is_swapped.mean()]
    print(json.dumps({"exchanged_below_the_pool": below}), file=sys.stderr)


if __name__ == "__main__":
    main()
