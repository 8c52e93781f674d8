#!/usr/bin/env python3
"""Joint selection against the paper's dense form in NumPy, side by side: time, peak memory, and whether both draw the same.

    cargo build --release --locked --example joint
    python benches/peers/joint.py [--n-samples 20480] [--sub-batch-size 4096] [--n-chunks 16] [--d 512]
                                  [--objective sigmoid] [--precision f32] [--threads 1] [--turns 5]

Needs numpy. Both sides read the same seeded embeddings (a coarse learner and a finer reference) and run in turns on as
many threads; a Markdown table has the medians, and the turns' ratios with their quartiles. Peak memory is the whole process's, embeddings
included. First both draw without noise, and the overlap of what they drew is printed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_embeddings(folder, n, d):
    rng = np.random.default_rng(1)
    z = unit(rng.normal(size=(n, d)).astype(np.float32))
    noisy = lambda spread: unit(z + spread * unit(rng.normal(size=(n, d)).astype(np.float32)))
    for role, spread in [("learner", 1.2), ("reference", 0.5)]:
        for tower in ["images", "captions"]:
            noisy(spread).astype("<f4").tofile(folder / f"{role}_{tower}.f32")


def run(command, threads):
    names = ["RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"]
    environment = os.environ | {name: str(threads) for name in names}
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {command[0]} ended with exit code {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-samples", type=int, default=20480)
    parser.add_argument("--sub-batch-size", type=int, default=4096)
    parser.add_argument("--n-chunks", type=int, default=16)
    parser.add_argument("--d", type=int, default=512)
    parser.add_argument("--objective", choices=["sigmoid", "softmax"], default="sigmoid")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_embeddings(Path(folder), a.n_samples, a.d)
        shared = [folder, a.n_samples, a.sub_batch_size, a.n_chunks, a.objective]

        def both(draw):
            ours = run([ROOT / "target/release/examples/joint", *shared, a.precision, draw], a.threads)
            theirs = run([sys.executable, Path(__file__).with_name("joint_numpy.py"), *shared, draw], a.threads)
            return ours, theirs

        ours, theirs = both("top_k")
        overlap = len(set(ours["rows"]) & set(theirs["rows"])) / a.sub_batch_size
        turns = [both("noise") for _ in range(a.turns)]
    print(f"B = {a.n_samples:,}, b = {a.sub_batch_size:,}, {a.n_chunks} chunks, d = {a.d}, two models, {a.objective}, {a.precision}, "
          f"{a.threads} thread{'s' * (a.threads > 1)}; drawn by both without noise: {100 * overlap:.2f} %\n")
    print("| | here | dense, NumPy | NumPy over here |\n|---|---|---|---|")

    def show(name, of_turn, unit_of_one):
        ratios = [of_turn(theirs) / of_turn(ours) for ours, theirs in turns]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        sides = [unit_of_one(statistics.median(of_turn(turn[side]) for turn in turns)) for side in (0, 1)]
        print(f"| {name} | {sides[0]} | {sides[1]} | {middle:.1f} ({low:.1f}–{high:.1f}) |")

    show("time", lambda turn: turn["seconds"], lambda seconds: f"{seconds:.2f} s")
    show("CPU time", lambda turn: turn["cpu_seconds"], lambda seconds: f"{seconds:.2f} s")
    show("peak memory", lambda turn: turn["peak_bytes"], lambda n: f"{n / 2**20:,.0f} MiB")
    beyond = lambda turn: max(turn["peak_bytes"] - turn["embeddings_bytes"], 2**20)
    show("peak memory beyond the embeddings", beyond, lambda n: f"{n / 2**20:,.0f} MiB")


main()
