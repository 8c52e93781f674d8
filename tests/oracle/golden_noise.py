"""Writes golden/noise.json: Gumbel noise and keyed hashes from hashlib, for the test `golden.rs`.

python3 tests/oracle/golden_noise.py          (standard library only)
"""

import hashlib
import json
import math
from pathlib import Path


def u64(value):
    return value.to_bytes(8, "little")


def blake2b_8(data):
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def gumbel(seed, round_, pass_, chunk, shard, sample_idx):
    data = u64(seed) + u64(round_) + u64(pass_) + u64(chunk) + shard.encode() + b"\0" + u64(sample_idx)
    u = ((blake2b_8(data) >> 11) + 0.5) * 2.0**-53
    return -math.log(-math.log(u))


def keyed_hash(purpose, seed, round_, shard, sample_idx):
    return blake2b_8(purpose.encode() + b"\0" + u64(seed) + u64(round_) + shard.encode() + b"\0" + u64(sample_idx))


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
                | dict(gumbel=gumbel(seed, round_, pass_, chunk, shard, sample_idx))
            )
    hashes = []
    purposes = ["deal_shards", "deal_samples", "fit", "seeding", "bank", "control"]
    for i, (shard, sample_idx) in enumerate(PLACES + PLACES):
        purpose, seed, round_ = purposes[i % len(purposes)], 7 * i, i % 4 * 2**33
        hashes.append(
            dict(purpose=purpose, seed=seed, round=round_, shard=shard, sample_idx=sample_idx)
            | dict(hash=keyed_hash(purpose, seed, round_, shard, sample_idx))
        )
    out = Path(__file__).parent / "golden" / "noise.json"
    rows = [f'"{name}": [\n' + ",\n".join(json.dumps(v, ensure_ascii=False) for v in vectors) + "\n]"
            for name, vectors in [("noise", noise), ("hashes", hashes)]]
    out.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


main()
