"""Spherical k-means beside faiss: the same points, the same start, the same iterations, the same threads.

cargo build --release --example kmeans
python3 benches/peers/kmeans_faiss.py [--n 200000] [--d 512] [--k 1024] [--iterations 10] [--threads 1] [--repeats 3]

(needs numpy, faiss-cpu.) Points lie around 2·k directions, in float32, in a temporary folder. Both sides start from the
same k points and move the centroids as often; the objective of both, Σ (1 − cos) over all points, is computed here from
the centroids that faiss found and taken from ours. Repeats take turns; time is the median of the process's own
processor time where `--threads 1`, else of the wall clock. Ours counts one assignment more, that of the last centroids,
which faiss leaves out.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in [("n", 200_000), ("d", 512), ("k", 1024), ("iterations", 10), ("threads", 1), ("repeats", 3)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/examples/kmeans")
    return parser.parse_args()


def make_points(n, d, k):
    import numpy as np

    rng = np.random.default_rng(20210517)
    centres = rng.normal(size=(2 * k, d)).astype(np.float32)
    x = centres[rng.integers(0, 2 * k, n)] + 1.5 * rng.normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def objective(x, centroids):
    import numpy as np

    centroids = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    total = 0.0
    for begin in range(0, len(x), 8192):
        total += float((1.0 - (x[begin : begin + 8192] @ centroids.T).max(axis=1)).astype(np.float64).sum())
    return total


def by_faiss(args, x, start):
    import faiss

    faiss.omp_set_num_threads(args.threads)
    km = faiss.Kmeans(
        args.d, args.k, niter=args.iterations, spherical=True, max_points_per_centroid=2**31 - 1, min_points_per_centroid=1
    )
    wall, cpu = time.perf_counter(), time.process_time()
    km.train(x, init_centroids=start)
    seconds = time.process_time() - cpu if args.threads == 1 else time.perf_counter() - wall
    return seconds, objective(x, km.centroids)


def by_ours(args, folder):
    command = [args.binary, folder / "points.f32", folder / "start.f32", str(args.d), str(args.iterations)]
    env = dict(os.environ, RAYON_NUM_THREADS=str(args.threads))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    found = json.loads(subprocess.run(command, env=env, capture_output=True, check=True).stdout)
    # the child's processor time includes reading its files, against us
    cpu = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert found["n_iterations"] == args.iterations
    return (cpu if args.threads == 1 else found["seconds"]), found["objective"]


def main():
    args = arguments()
    for variable in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]:
        os.environ[variable] = str(args.threads)
    x = make_points(args.n, args.d, args.k)
    start = x[: args.k].copy()
    times = {"ours": [], "faiss": []}
    objectives = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        x.tofile(folder / "points.f32")
        start.tofile(folder / "start.f32")
        for _ in range(args.repeats):
            for name, found in [("ours", by_ours(args, folder)), ("faiss", by_faiss(args, x, start))]:
                times[name].append(found[0])
                objectives[name] = found[1]
    print(f"n = {args.n:,}, d = {args.d}, k = {args.k:,}, {args.iterations} iterations, {args.threads} threads\n")
    print("| k-means | seconds, median (range) | objective |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f}) | {objectives[name]:,.2f} |")
    ratios = [theirs / ours for ours, theirs in zip(times["ours"], times["faiss"])]
    print(f"| faiss over ours | {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) | "
          f"{objectives['faiss'] / objectives['ours']:.5f} |")


if __name__ == "__main__":
    main()
