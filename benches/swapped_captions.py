#!/usr/bin/env python3
"""Does JEST drop the captions that were swapped on purpose? And does it seek them with the two models exchanged?

    python benches/swapped_captions.py [--n-seeds 10]

Runs the quickstart with each seed, once as it is and once with learner and reference exchanged, over one store of
embeddings, and reads the share of planted swaps in the pool, among the kept, and among as many drawn at random. Prints a
Markdown table. Expected (METHODS §7): kept at most half of random's; exchanged, above random's. The second is the
control: a sign error would pass the first on a lucky pool and cannot pass both. Exit code 1 if either fails.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEARNER, REFERENCE = ROOT / "fixtures/models/learner", ROOT / "fixtures/models/reference"
SHARES = ["pool_share", "kept_share", "random_share_mean"]


def planted_shares(run, seed, store, settings):
    """Runs the quickstart into `run` and returns the shares of its report, by name."""
    command = [ROOT / "target/release/superbatch", "run", ROOT / "pipelines/quickstart.toml", "-o", run]
    for setting in [f"seed={seed}", f"store={store}", *settings]:
        command += ["--set", setting]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        sys.exit(f"error: `superbatch run` with seed {seed} ended with exit code {done.returncode}")
    planted = json.loads((run / "report.json").read_text())["planted"]
    return {name: float(planted[name]) for name in SHARES}


def spread(values):
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.2f} ± {100 * deviation:.2f} %"


def measure(n_seeds):
    """The shares of each seed as it is, and with the two models exchanged."""
    exchange = [f"models.learner.folder={REFERENCE}", f"models.reference.folder={LEARNER}"]
    as_it_is, exchanged = [], []
    with tempfile.TemporaryDirectory(prefix="swapped-captions-") as folder:
        folder = Path(folder)
        for seed in range(1, n_seeds + 1):
            as_it_is.append(planted_shares(folder / f"jest-{seed}", seed, folder / "store", []))
            exchanged.append(planted_shares(folder / f"exchanged-{seed}", seed, folder / "store", exchange))
            print(f"seed {seed} of {n_seeds}", file=sys.stderr)
    return as_it_is, exchanged


def main():
    parser = argparse.ArgumentParser(description="The share of planted swaps among the kept, over seeds.")
    parser.add_argument("--n-seeds", type=int, default=10)
    n_seeds = parser.parse_args().n_seeds
    as_it_is, exchanged = measure(n_seeds)
    kept = [shares["kept_share"] for shares in as_it_is]
    kept_exchanged = [shares["kept_share"] for shares in exchanged]
    random = [shares["random_share_mean"] for shares in as_it_is]
    random_exchanged = [shares["random_share_mean"] for shares in exchanged]
    columns = [[shares["pool_share"] for shares in as_it_is], random, kept, kept_exchanged]

    print("| seed | swaps in the pool | kept at random | kept by JEST | kept with the models exchanged |")
    print("|---|---|---|---|---|")
    for seed, values in enumerate(zip(*columns), start=1):
        print(f"| {seed} | " + " | ".join(f"{100 * value:.2f} %" for value in values) + " |")
    print("| mean ± sd | " + " | ".join(spread(values) for values in columns) + " |")

    is_halved = statistics.mean(kept) <= statistics.mean(random) / 2
    is_sought = statistics.mean(kept_exchanged) > statistics.mean(random_exchanged)
    print(f"\nkept at most half of random's: {'yes' if is_halved else 'NO'}")
    print(f"exchanged, above random's: {'yes' if is_sought else 'NO'}")
    return 0 if is_halved and is_sought else 1


if __name__ == "__main__":
    sys.exit(main())
