"""Keyed hashes and Gumbel noise: (seed, …, sample id) → the same number on every machine."""

import hashlib
import math


def u64(value):
    return value.to_bytes(8, "little")


def blake2b_8(data):
    """BLAKE2b with 8 bytes of digest, read little-endian."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def id_bytes(sample_id):
    shard, sample_idx = sample_id
    return shard.encode() + b"\0" + u64(sample_idx)


def noise_hash(seed, round_, pass_, chunk, sample_id):
    return blake2b_8(u64(seed) + u64(round_) + u64(pass_) + u64(chunk) + id_bytes(sample_id))


def gumbel(seed, round_, pass_, chunk, sample_id):
    """g = −ln(−ln u), u = ((h >> 11) + ½)·2⁻⁵³; `sample_id` is (shard id, sample_idx)."""
    u = ((noise_hash(seed, round_, pass_, chunk, sample_id) >> 11) + 0.5) * 2.0**-53
    return -math.log(-math.log(u))


def keyed_hash(purpose, seed, round_, sample_id):
    """The hash that orders samples for a purpose; the smallest come first."""
    return blake2b_8(purpose.encode() + b"\0" + u64(seed) + u64(round_) + id_bytes(sample_id))


def id_order(ids):
    """The rank of each sample id: by shard (bytes of UTF-8), then sample_idx."""
    in_order = sorted(range(len(ids)), key=lambda i: (ids[i][0].encode(), ids[i][1]))
    rank = [0] * len(ids)
    for position, i in enumerate(in_order):
        rank[i] = position
    return rank
