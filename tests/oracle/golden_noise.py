"""Writes golden/noise.json: Gumbel noise and keyed hashes from hashlib, for the test `golden.rs`.

python3 tests/oracle/golden_noise.py          (needs numpy for the package it stands beside)
"""

import json
from pathlib import Path

from methods.noise import gumbel, keyed_hash

LARGEST = 2**64 - 1
PLACES = [
    ("", 0),
    ("00000.tar", 0),
    ("00000.tar", 1),
    ("00000.tar", 255),
    ("00000.tar", 256),
    ("part-1/00017.tar", 9_999),
    ("ärger/Bücher 7.tar", 3),
    ("データ/画像.tar", 12_345_678_901),
    ("emoji-🦀.tar.gz", 2**32),
    ("s3://bucket/a.tar", LARGEST),
]


def main():
    noise = []
    for i, (shard, sample_idx) in enumerate(PLACES):
        keys = [(i, 0, 0, i % 3), (LARGEST - i, 2**40 + i, i, 15)]
        for seed, round_, pass_, chunk in keys:
            noise.append(
                dict(seed=seed, round=round_, pass_=pass_, chunk=chunk, shard=shard, sample_idx=sample_idx)
                | dict(gumbel=gumbel(seed, round_, pass_, chunk, (shard, sample_idx)))
            )
    hashes = []
    purposes = ["deal_shards", "deal_samples", "fit", "seeding", "bank", "control"]
    for i, (shard, sample_idx) in enumerate(PLACES + PLACES):
        purpose, seed, round_ = purposes[i % len(purposes)], 7 * i, i % 4 * 2**33
        hashes.append(
            dict(purpose=purpose, seed=seed, round=round_, shard=shard, sample_idx=sample_idx)
            | dict(hash=keyed_hash(purpose, seed, round_, (shard, sample_idx)))
        )
    out = Path(__file__).parent / "golden" / "noise.json"
    rows = [f'"{name}": [\n' + ",\n".join(json.dumps(v, ensure_ascii=False) for v in vectors) + "\n]"
            for name, vectors in [("noise", noise), ("hashes", hashes)]]
    out.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


main()
