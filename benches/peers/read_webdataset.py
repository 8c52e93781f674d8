"""Reads the benchmark shards with the Python library webdataset: samples a CPU-second, nothing decoded, of each of five turns,
as JSON.

python3 benches/peers/read_webdataset.py target/bench-data          (needs webdataset)
"""

import json
import sys
import time
from pathlib import Path

import webdataset


def rate(path):
    start = time.process_time()
    n_samples = sum(1 for sample in webdataset.WebDataset(str(path), shardshuffle=False) if sample["jpg"])
    return n_samples / (time.process_time() - start)


def main():
    paths = {f"read/{name}": Path(sys.argv[1]) / f"{name}.tar" for name in ["small", "large"]}
    print(json.dumps({name: [rate(path) for _ in range(5)] for name, path in paths.items()}))


main()
