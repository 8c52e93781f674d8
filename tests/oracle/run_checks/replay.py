"""A super-batch's draw, replayed chunk by chunk from the recorded picks. METHODS §3 and §4."""

import hashlib
import struct
from dataclasses import dataclass

import numpy as np

from methods.counts import chunk_sizes

from .stored import SAMPLES_PER_SHARD_MAX

DRAW_TOLERANCE = 1e-4  # of 1 + Σ|terms| of a logit: running logits are sums of f32 losses
SCORE_TOLERANCE = 5e-6  # of a cosine or a logit of a classifier
NOISE_TOLERANCE = 1e-12  # of two logarithms in f64


def keyed_hash(prefix, identity, shard_ids):
    """BLAKE2b-8(prefix ‖ shard ‖ 0x00 ‖ sample_idx), little-endian, of each sample: [n] u64."""
    shard_bytes = [shard.encode() + b"\0" for shard in shard_ids]
    hashes = np.empty(len(identity), np.uint64)
    for position, value in enumerate(identity.tolist()):
        rank, idx = divmod(value, SAMPLES_PER_SHARD_MAX)
        key = prefix + shard_bytes[rank] + struct.pack("<Q", idx)
        hashes[position] = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
    return hashes


def gumbel_noise(seed, round_, chunk, identity, shard_ids):
    """g = −ln(−ln u), u = ((h >> 11) + ½)·2⁻⁵³, of each sample in pass 0."""
    h = keyed_hash(struct.pack("<4Q", seed, round_, 0, chunk), identity, shard_ids)
    u = ((h >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(-np.log(u))


def chunk_of_draw_rank(n_kept, n_chunks):
    """The chunk of each draw rank, [n_kept]."""
    sizes = chunk_sizes(n_kept, n_chunks)
    return np.repeat(np.arange(len(sizes)), sizes)


# The running logits of a super-batch's rows: `logit` [n], and `allowed` [n]: how far f32 kernels may be from it.
# `add` takes the picks of a chunk.


class FixedLogits:
    """Independent draws: the logit is the score, whatever was drawn."""

    def __init__(self, logit, allowed):
        self.logit, self.allowed = logit, np.full(len(logit), allowed)

    def add(self, _picks):
        pass


class SigmoidLogits:
    """S_xx + Σ_{k drawn}(S_kx + S_xk)."""

    def __init__(self, scores, rows):
        self.scores, self.rows = scores, rows
        self.logit = scores.diagonal()[rows]
        self.terms = np.abs(self.logit)

    @property
    def allowed(self):
        return DRAW_TOLERANCE * (1 + self.terms)

    def add(self, picks):
        there, back = self.scores.both_directions(self.rows, self.rows[picks])
        self.logit = self.logit + there.sum(axis=1) + back.sum(axis=1)
        self.terms = self.terms + np.abs(there).sum(axis=1) + np.abs(back).sum(axis=1)


class SoftmaxLogits:
    """−l_xx + ½(LSE_{k drawn} l_xk + LSE_{k drawn} l_kx) of the models that the score takes, combined."""

    def __init__(self, scores, rows):
        self.scores, self.rows = scores, rows
        self.drawn = np.zeros(0, int)
        self.logit = scores.diagonal()[rows]
        self.terms = sum(np.abs(model.positive_loss("softmax")[rows]) for model in scores.models())

    @property
    def allowed(self):
        return DRAW_TOLERANCE * (1 + self.terms)

    def add(self, picks):
        self.drawn = np.concatenate([self.drawn, self.rows[picks]])
        parts = {id(model): self.of(model) for model in self.scores.models()}
        self.logit = self.scores.combine(lambda model: sum(parts[id(model)]))
        self.terms = sum(np.abs(part) for own in parts.values() for part in own)

    def of(self, model):
        """−l_xx, ½ LSE over captions, ½ LSE over images."""
        to_captions = np.logaddexp.reduce(model.pair_logit(self.rows, self.drawn), axis=1)
        to_images = np.logaddexp.reduce(model.pair_logit(self.drawn, self.rows), axis=0)
        return model.positive_loss("softmax")[self.rows], to_captions / 2, to_images / 2


def running_logits(scores, rows):
    method = scores.method
    if method.is_random:
        return FixedLogits(np.zeros(len(rows)), 0.0)
    if not method.is_joint:
        return FixedLogits(scores.diagonal()[rows], SCORE_TOLERANCE * sum(1 + m.loss_slope(method.loss) for m in scores.models()))
    return {"sigmoid": SigmoidLogits, "softmax": SoftmaxLogits}[method.loss](scores, rows)


@dataclass
class Replay:
    """What a replay of the draws found, over all super-batches."""

    recorded: list  # conditional scores as stored
    expected: list
    allowed: list
    is_impossible: list  # picks that the top cannot contain, whatever the rounding
    is_certain: list  # picks that the top must contain
    is_misplaced: list  # picks that stand before a larger one of their chunk


def replay_super_batch(replay, rows, drawn, scores, run, identity):
    """Replays one draw, each chunk given the recorded picks of the chunks before it.

    `rows` [n]: the super-batch in the order of ids; `drawn`: its `chunk`, `draw_rank`, `conditional_score`.
    """
    is_random, is_noisy = scores.method.is_random, scores.method.is_random or run.step.get("draw", "noise") == "noise"
    gain = 0.0 if is_random else float(run.step.get("gain", 1.0))
    running, is_open = running_logits(scores, rows), np.ones(len(rows), bool)
    for chunk in range(int(np.nanmax(drawn["chunk"], initial=-1)) + 1):
        picks = np.flatnonzero(drawn["chunk"] == chunk)
        picks = picks[np.argsort(drawn["draw_rank"][picks], kind="stable")]
        allowed = running.allowed
        replay.recorded.append(drawn["conditional_score"][picks])
        replay.expected.append(running.logit[picks])
        replay.allowed.append(allowed[picks])
        value, doubt = gain * running.logit, gain * allowed
        if is_noisy:
            value = value + gumbel_noise(run.plan["seed"], run.plan["round"], chunk, identity[rows], run.shard_ids)
            doubt = doubt + NOISE_TOLERANCE
        judge_picks(replay, value, doubt, is_open, picks)
        is_open[picks] = False
        running.add(picks)


def judge_picks(replay, value, doubt, is_open, picks):
    """Compares the picks of a chunk with the largest values of what was open; ties go to the smaller id."""
    rest = is_open.copy()
    rest[picks] = False
    if not doubt.any():
        candidates = np.flatnonzero(is_open)
        top = candidates[np.lexsort((candidates, -value[candidates]))][: len(picks)]
        replay.is_impossible.append(~np.isin(picks, top))
        replay.is_certain.append(np.isin(picks, top))
        replay.is_misplaced.append(top != picks)
        return
    low, high = value - doubt, value + doubt
    replay.is_impossible.append(~is_open[picks] | (high[picks] < np.max(low[rest], initial=-np.inf)))
    replay.is_certain.append(low[picks] > np.max(high[rest], initial=-np.inf))
    replay.is_misplaced.append(low[picks] > np.minimum.accumulate(high[picks]))
