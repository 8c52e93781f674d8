"""Reads the benchmark shards with the Python library webdataset: samples a CPU-second, nothing decoded.

python3 benches/peers/read_webdataset.py target/bench-data          (needs webdataset)
"""

import sys
import time
from pathlib import Path

import webdataset


def rate(path):
    best = 0.0
    for _ in range(5):
        start = time.process_time()
        n_samples = sum(1 for sample in webdataset.WebDataset(str(path), shardshuffle=False) if sample["jpg"])
        best = max(best, n_samples / (time.process_time() - start))
    return best


def main():
    for name in ["small", "large"]:
        print(f"read/{name} {rate(Path(sys.argv[1]) / f'{name}.tar'):.0f} samples a CPU-second")


main()
