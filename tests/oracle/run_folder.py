#!/usr/bin/env python3
"""Recomputes the numbers of a run folder from the run folder alone, and compares.

    python tests/oracle/run_folder.py RUN [--tolerance 5e-6] [--without-images]

In: `plan.json`, the committed Parquet files, and for the image bytes the tars of the pool. Out: one line a check,
with the largest error and the number of values compared. Exit code 1 if a check fails or compared nothing.

Written from METHODS.md in NumPy, in f64 and dense form, without a look at the Rust. A NaN stands for a null.
Rows are positions in the pool, in the order of (shard, sample_idx); in a score matrix row = image, column = caption.
"""

import argparse
import hashlib
import json
import re
import struct
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SAMPLES_PER_SHARD_MAX = 1 << 40
BLOCK_ROWS = 2048
DRAW_TOLERANCE = 1e-4  # of 1 + Σ|terms| of a logit: running logits are sums of f32 losses
NOISE_TOLERANCE = 1e-12  # of two logarithms in f64
DOUBT = 1e-5  # cosines closer than this to a decision may fall on either side in f32
HARDNESS_GAIN_NEGATIVES_MIN = 16
# Unicode White_Space, which `str.split()` exceeds by the separators U+001C to U+001F.
WHITE_SPACE = re.compile("[\t-\r \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
SAMPLE_TABLE_ONLY = {"rejection"}
CLUSTER_COLUMNS = [
    "cluster", "centroid_similarity", "centroid_margin", "hardness", "hardness_gain", "cross_modal_hardness",
    "effective_negatives", "n_negatives", "hardest_negative_similarity", "hardest_negative_shard",
    "hardest_negative_key", "n_false_negatives",
]  # fmt: skip


# ---------------------------------------------------------------------------------------------- the report


class Report:
    """Prints one line a check and remembers whether all of them held."""

    def __init__(self):
        self.n_passed = 0
        self.n_failed = 0

    def close(self, name, recorded, expected, allowed, where=True):
        """Nulls agree and |recorded − expected| ≤ allowed, at each position of `where`."""
        recorded, expected, allowed, where = np.broadcast_arrays(recorded, expected, allowed, where)
        recorded, expected, allowed = recorded[where], expected[where], allowed[where]
        both = ~np.isnan(recorded) & ~np.isnan(expected)
        null_differs = int((np.isnan(recorded) != np.isnan(expected)).sum())
        error = np.abs(recorded[both] - expected[both])
        n_wrong = int((~(error <= allowed[both])).sum())
        of_allowed = float(np.max(error / np.maximum(allowed[both], 1e-300), initial=0.0))
        text = f"largest error {np.max(error, initial=0.0):.1e}, {of_allowed:.2f} of what is allowed, {both.sum()} values"
        if n_wrong:
            text += f"; {n_wrong} wrong"
        if null_differs:
            text += f"; {null_differs} null on one side only"
        self.line(name, n_wrong == 0 and null_differs == 0 and both.any(), text)

    def exact(self, name, wrong, note=""):
        """No position is wrong, and there is at least one."""
        wrong = np.asarray(wrong, dtype=bool).ravel()
        self.line(name, wrong.size > 0 and not wrong.any(), f"{wrong.sum()} wrong of {wrong.size} values{note}")

    def same(self, name, recorded, expected):
        """Two lists are equal, element by element."""
        n_more = abs(len(recorded) - len(expected))
        wrong = [a != b for a, b in zip(recorded, expected)] + [True] * n_more
        self.exact(name, wrong, f" ({len(recorded)} instead of {len(expected)})" if n_more else "")

    def line(self, name, is_passed, text):
        self.n_passed += is_passed
        self.n_failed += not is_passed
        print(f"{'ok    ' if is_passed else 'FAILED'} {name:<48} {text}")

    def skipped(self, name, why):
        print(f"-      {name:<48} {why}")

    def section(self, check, *arguments):
        """Runs a group of checks; what keeps it from running, such as a missing column, is a failure of its own."""
        try:
            return check(*arguments)
        except (KeyError, IndexError, ValueError, OSError, TypeError, pa.ArrowException) as error:
            self.line(check.__name__, False, f"could not run: {type(error).__name__}: {error}")


# ------------------------------------------------------------------------------------- reading a run folder


class RunFolder:
    """A run's plan and the files that its markers name."""

    def __init__(self, path):
        self.path = path
        self.plan = json.loads((path / "plan.json").read_text())
        self.store = self.resolve(self.plan["store"]) if self.plan.get("store") else path
        self.shard_ids = [shard["id"] for shard in self.plan["pool"]["shards"]]
        self.step = self.plan["select"]["step"][-1]
        self.committed = {name for root in {path, self.store} for name in names_in_markers(root)}

    def resolve(self, text):
        """A path of the plan: absolute, or relative to here, to this repository or to the run."""
        roots = [Path.cwd(), Path(__file__).resolve().parents[2], self.path]
        return next((root / text for root in roots if (root / text).exists()), Path(text))

    def files(self, folder):
        root = self.store if folder.split("/")[0] in ("samples", "embeddings") else self.path
        found = sorted((root / folder).glob("*.parquet"))
        return [file for file in found if f"{folder}/{file.name}" in self.committed]

    def file(self, name):
        if name not in self.committed:
            raise ValueError(f"no marker names `{name}`")
        return self.path / name

    def frame(self, folder):
        files = [file for file in self.files(folder) if file.stem[:1].isdigit()]
        if not files:
            raise ValueError(f"no marker names a file of `{folder}/`")
        return Frame(pa.concat_tables(pq.read_table(file) for file in files), self.shard_ids)

    def model(self, name, samples):
        """The embeddings of a model beside `samples`, or None where the run has no such model."""
        settings = self.plan["models"].get(name)
        if settings is None:
            return None
        stored = self.frame(f"embeddings/{settings['digest']}")
        row = samples.rows_of(stored.identity)
        tower = {}
        for column in ("image_embedding", "text_embedding"):
            values = np.zeros((len(samples), settings["embedding_dim"]), np.float32)
            has = np.zeros(len(samples), bool)
            values[row], has[row] = matrix_of(stored.table[column])
            tower[column] = (values, has)
        (image, has_image), (text, has_text) = tower["image_embedding"], tower["text_embedding"]
        scale, bias = float(settings["logit_scale"]), float(settings["logit_bias"])
        return Model(name, scale, bias, image, text, has_image & has_text, stored)


def names_in_markers(root):
    for marker in sorted((root / "_done").glob("**/*.json")):
        yield from (data["name"] for data in json.loads(marker.read_text()).get("data", []))


class Frame:
    """A table with one row a sample, in the order of (shard, sample_idx)."""

    def __init__(self, table, shard_ids, is_sorted=True):
        rank = {shard: position for position, shard in enumerate(shard_ids)}
        shard = table["shard"].cast(pa.string()).to_pylist()
        idx = table["sample_idx"].cast(pa.int64()).to_numpy()
        self.identity = np.array([rank[s] for s in shard], np.int64) * SAMPLES_PER_SHARD_MAX + idx
        self.table = table
        if is_sorted:
            order = np.argsort(self.identity, kind="stable")
            self.identity, self.table = self.identity[order], table.take(order)

    def __len__(self):
        return len(self.identity)

    def numbers(self, column):
        """[n] f64, NaN where null."""
        return self.table[column].cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)

    def texts(self, column):
        return self.table[column].cast(pa.string()).to_pylist()

    def rows_of(self, identity):
        """The row of each identity; an identity that is not here is an error."""
        row = np.minimum(np.searchsorted(self.identity, identity), len(self) - 1)
        if not np.array_equal(self.identity[row], identity):
            raise ValueError("a row names a sample that the pool does not have")
        return row


def matrix_of(column):
    """FixedSizeList of f16 or f32 → values [n, d] as f32 (widening is exact) and which rows are not null."""
    d = column.type.list_size
    values, has = np.zeros((len(column), d), np.float32), np.zeros(len(column), bool)
    start = 0
    for chunk in column.chunks:
        is_valid = chunk.is_valid().to_numpy(zero_copy_only=False)
        flat = chunk.drop_null().flatten().to_numpy(zero_copy_only=False)
        values[start : start + len(chunk)][is_valid] = flat.reshape(-1, d)
        has[start : start + len(chunk)] = is_valid
        start += len(chunk)
    return values, has


# --------------------------------------------------------------------------------------- METHODS §1 and §2


@dataclass(frozen=True)
class Model:
    """Embeddings [n, d] of the pool's samples; `has` is false for rejected samples and degenerate embeddings."""

    name: str
    logit_scale: float
    logit_bias: float
    image: np.ndarray
    text: np.ndarray
    has: np.ndarray
    stored: Frame

    def similarity(self):
        """⟨x_i, y_i⟩, [n]; NaN without embeddings."""
        cosine = np.einsum("nd,nd->n", self.image, self.text, dtype=np.float64)
        return np.where(self.has, cosine, np.nan)

    def logit(self, similarity):
        return self.logit_scale * similarity + self.logit_bias

    def positive_loss(self):
        """L_ii = softplus(−l_ii), [n], nats."""
        return softplus(-self.logit(self.similarity()))

    def pair_loss(self, images, captions):
        """L_ij of the sigmoid objective, [|images|, |captions|], nats; positive where both are the same row."""
        logit = self.logit(wide(self.image[images]) @ wide(self.text[captions]).T)
        is_positive = images[:, None] == captions[None, :]
        return softplus(np.where(is_positive, -logit, logit))


def wide(values):
    return values.astype(np.float64)


def softplus(x):
    """ln(1 + eˣ); NaN stays NaN."""
    with np.errstate(invalid="ignore"):
        return np.logaddexp(0.0, x)


@dataclass(frozen=True)
class Scores:
    """The score matrix S of the final draw."""

    kind: str
    learner: Model | None
    reference: Model | None

    def combine(self, loss):
        """`loss` gives the same losses of a model: L^θ − L^θ*, L^θ or −L^θ*."""
        if self.kind == "hard_learner":
            return loss(self.learner)
        if self.kind == "easy_reference":
            return -loss(self.reference)
        if self.kind == "learnability":
            return loss(self.learner) - loss(self.reference)
        raise ValueError(f"no such score: {self.kind}")

    def diagonal(self):
        return self.combine(Model.positive_loss)

    def matrix(self, images, captions):
        return self.combine(lambda model: model.pair_loss(images, captions))

    def both_directions(self, rows, others):
        """S_rk and S_kr, each [|rows|, |others|]."""
        return self.matrix(rows, others), self.matrix(others, rows).T


# ------------------------------------------------------------------------------------ METHODS §3: the draw


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


def kept_counts(sizes, filter_ratio):
    """How many each super-batch keeps: ⌊K·c_{s+1}/M⌋ − ⌊K·c_s/M⌋, K = round-half-even(M(1−f))."""
    n_reached = sum(sizes)
    n_kept = round(n_reached * (1 - Fraction(str(filter_ratio))))
    before = [0]
    for size in sizes:
        before.append(before[-1] + size)
    return [n_kept * b // n_reached - n_kept * a // n_reached for a, b in zip(before, before[1:])]


def chunk_of_draw_rank(n_kept, n_chunks):
    """The chunk of each draw rank, [n_kept]."""
    n_chunks = min(n_chunks, n_kept)
    sizes = [(t + 1) * n_kept // n_chunks - t * n_kept // n_chunks for t in range(n_chunks)]
    return np.repeat(np.arange(n_chunks), sizes)


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
    """Replays one draw chunk by chunk, each given the recorded picks of the chunks before it.

    `rows` [n]: the super-batch in the order of ids; `drawn`: its `chunk`, `draw_rank`, `conditional_score`.
    """
    step, seed, round_ = run.step, run.plan["seed"], run.plan["round"]
    is_random = step["method"] == "random"
    gain = 0.0 if is_random else float(step["gain"])
    logit = np.zeros(len(rows)) if is_random else scores.diagonal()[rows]
    terms = np.abs(logit)
    is_open = np.ones(len(rows), bool)
    for chunk in range(int(np.nanmax(drawn["chunk"], initial=-1)) + 1):
        picks = np.flatnonzero(drawn["chunk"] == chunk)
        picks = picks[np.argsort(drawn["draw_rank"][picks], kind="stable")]
        allowed = 0.0 * terms if is_random else DRAW_TOLERANCE * (1 + terms)
        replay.recorded.append(drawn["conditional_score"][picks])
        replay.expected.append(logit[picks])
        replay.allowed.append(allowed[picks])
        value, doubt = gain * logit, gain * allowed
        if step["draw"] == "noise" or is_random:
            value = value + gumbel_noise(seed, round_, chunk, identity[rows], run.shard_ids)
            doubt = doubt + NOISE_TOLERANCE
        judge_picks(replay, value, doubt, is_open, picks)
        is_open[picks] = False
        if not is_random:
            there, back = scores.both_directions(rows, rows[picks])
            logit = logit + there.sum(axis=1) + back.sum(axis=1)
            terms = terms + np.abs(there).sum(axis=1) + np.abs(back).sum(axis=1)


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


# -------------------------------------------------------------------------------------- METHODS §5: divide


def normalised_caption(caption):
    """Lower case, runs of white space as one space, trimmed."""
    return WHITE_SPACE.sub(" ", caption.lower()).strip(" ")


def caption_codes(captions):
    """Equal numbers for equal normalised captions; a sample without a caption has its own."""
    codes = {}
    return np.array([codes.setdefault(i if c is None else normalised_caption(c), i) for i, c in enumerate(captions)])


def hardness(similarity, is_negative, temperature):
    """H_τ = τ ln(1/|A| Σ_{j∈A} exp(s_j/τ)), [n]; NaN where A is empty."""
    n_negatives = is_negative.sum(axis=1)
    scaled = np.where(is_negative, similarity / temperature, -np.inf)
    peak = np.max(scaled, axis=1, initial=-1e300)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = np.exp(scaled - peak[:, None]).sum(axis=1)
        value = temperature * (peak + np.log(total) - np.log(n_negatives))
    return np.where(n_negatives > 0, value, np.nan)


def effective_number(similarity, is_negative, temperature):
    """(Σp)²/Σp², p = softmax(s/τ) over the negatives, [n]."""
    scaled = np.where(is_negative, similarity / temperature, -np.inf)
    p = np.exp(scaled - np.max(scaled, axis=1, initial=-1e300)[:, None])
    with np.errstate(invalid="ignore"):
        return p.sum(axis=1) ** 2 / (p**2).sum(axis=1)


def first_negatives(is_negative, n):
    """The first n[i] negatives of each row, in bank order."""
    return is_negative & (np.cumsum(is_negative, axis=1) <= n[:, None])


@dataclass(frozen=True)
class Negatives:
    """Rows of one cluster against a bank: all [|rows|, |bank|] but the last two, which are [|rows|]."""

    bank: np.ndarray
    similarity: np.ndarray
    is_negative: np.ndarray
    n_false: np.ndarray
    is_doubtful: np.ndarray


@dataclass(frozen=True)
class Divided:
    """The divide stage as committed; arrays stand beside the pool's samples."""

    model: Model
    centroids: np.ndarray  # [k, d], row = cluster
    cluster: np.ndarray  # [n], NaN where a sample was not assigned
    cluster_banks: dict  # cluster → rows of the pool, in bank order
    pool_bank: np.ndarray
    captions: np.ndarray  # codes of the normalised captions, [n]
    temperature: float
    near_duplicate_similarity: float
    stored: Frame
    row: np.ndarray  # the pool's row of each row of `stored`

    def negatives(self, rows, bank):
        """A: the bank without the sample itself and without its near-duplicates."""
        image = self.model.image
        similarity = wide(image[rows]) @ wide(image[bank]).T
        is_self = rows[:, None] == bank[None, :]
        is_near = similarity > self.near_duplicate_similarity
        is_near |= self.captions[rows][:, None] == self.captions[bank][None, :]
        is_doubtful = (np.abs(similarity - self.near_duplicate_similarity) < DOUBT) & ~is_self
        is_false = is_near & ~is_self
        return Negatives(bank, similarity, ~is_near & ~is_self, is_false.sum(axis=1), is_doubtful.any(axis=1))

    def blocks(self):
        """Rows of one cluster at a time, with their negatives of the cluster's bank."""
        for cluster, bank in sorted(self.cluster_banks.items()):
            members = np.flatnonzero(self.cluster == cluster)
            for start in range(0, len(members), BLOCK_ROWS):
                rows = members[start : start + BLOCK_ROWS]
                yield rows, self.negatives(rows, bank)


def read_divided(run, samples, models):
    settings = run.plan["divide"]
    model = models[settings["model"]]
    stored = run.frame("divide")
    row = samples.rows_of(stored.identity)
    cluster = np.full(len(samples), np.nan)
    cluster[row] = stored.numbers("cluster")
    centroids, _ = matrix_of(read_centroids(run)["centroid"])
    bank = read_bank(run)
    kind, of, bank_row = np.array(bank.texts("bank")), bank.numbers("cluster"), samples.rows_of(bank.identity)
    of_cluster = np.unique(of[kind == "cluster"]).astype(int).tolist()
    cluster_banks = {c: bank_row[(kind == "cluster") & (of == c)] for c in of_cluster}
    return Divided(
        model, wide(centroids), cluster, cluster_banks, bank_row[kind == "pool"], caption_codes(samples.texts("caption")),
        float(settings["hardness_temperature"]), float(settings["near_duplicate_similarity"]), stored, row,
    )  # fmt: skip


def read_centroids(run):
    return pq.read_table(run.file("divide/centroids.parquet")).sort_by("cluster")


def read_bank(run):
    return Frame(pq.read_table(run.file("divide/bank.parquet")), run.shard_ids, is_sorted=False)


# -------------------------------------------------------------------------------------------- the checks


def check_markers(run, report):
    roots = {run.path, run.store}
    report.exact("markers: their files are there", [not any((r / n).is_file() for r in roots) for n in run.committed])
    report.same("plan: shard ids are sorted", run.shard_ids, sorted(run.shard_ids))


def check_samples(run, samples, report):
    """Identity: every sample once, in its task's file, with a key that is unique in its shard."""
    report.exact("samples: each once", np.diff(samples.identity, prepend=-1) <= 0)
    per_task, wrong = run.plan["pool"]["shards_per_task"], []
    for file in run.files("samples"):
        own = set(run.shard_ids[int(file.stem) * per_task : (int(file.stem) + 1) * per_task])
        wrong += [s not in own for s in pq.read_table(file, columns=["shard"])["shard"].cast(pa.string()).to_pylist()]
    report.exact("samples: in the file of their task", wrong)
    rank, n_tasks = samples.identity // SAMPLES_PER_SHARD_MAX, -(-len(run.shard_ids) // per_task)
    report.same("samples: a file for each task", [int(f.stem) for f in run.files("samples")], list(range(n_tasks)))
    keys = [(r, k) for r, k, x in zip(rank.tolist(), samples.texts("key"), samples.texts("rejection")) if x is None]
    report.exact("samples: keys unique in their shard", [False] * len(set(keys)) + [True] * (len(keys) - len(set(keys))))


def check_embeddings(samples, is_read, model, report):
    """Every sample that was not rejected once, and unit vectors."""
    name = f"{model.name} embeddings"
    report.exact(f"{name}: each once", np.diff(model.stored.identity, prepend=-1) <= 0)
    report.exact(f"{name}: every sample read", ~np.isin(samples.identity[is_read], model.stored.identity))
    allowed = 2e-3 if model.stored.table["image_embedding"].type.value_type == pa.float16() else 1e-5
    for tower in ("image", "text"):
        norm = np.linalg.norm(wide(getattr(model, tower)), axis=1)
        report.close(f"{name}: unit length, {tower}", norm, 1.0, allowed, where=model.has)


def check_conservation(samples, is_read, is_usable, select, report):
    """Every sample that was read and embedded stands in select/ once, with a verdict that its columns bear out."""
    report.exact("select: each sample once", np.diff(select.identity, prepend=-1) <= 0)
    row = samples.rows_of(select.identity)
    report.exact("select: none was rejected", ~is_read[row])
    report.exact("select: every sample with embeddings", ~np.isin(samples.identity[is_usable], select.identity))
    keys = samples.texts("key")
    report.same("select: key", select.texts("key"), [keys[r] for r in row])
    verdict = np.array(select.texts("verdict"))
    came = ~np.isnan(select.numbers("super_batch"))
    is_kept, is_filtered = verdict == "kept", verdict == "filtered"
    report.exact("verdict: a known one", ~np.isin(verdict, ["kept", "not_drawn", "filtered"]) & is_usable[row])
    for column in ("draw_rank", "chunk", "conditional_score"):
        report.exact(f"verdict: kept where {column}", is_kept != ~np.isnan(select.numbers(column)))
    report.exact("verdict: not_drawn where no rank", (verdict == "not_drawn") & ~came | came & ~is_kept & (verdict != "not_drawn"))
    report.exact("verdict: kept came to a draw", ~came[is_kept])
    report.exact("verdict: filtered came to none", came[is_usable[row]] == is_filtered[is_usable[row]])
    removed = np.array([text is not None for text in select.texts("removed_by")])
    report.exact("removed_by: where filtered", (removed != is_filtered) & is_usable[row])
    report.exact("degenerate embeddings come to no draw", came & ~is_usable[row])
    report.exact("n_repeats: 1 where kept", select.numbers("n_repeats")[is_kept] != 1)


def check_scores(run, row, select, models, scores, report, tolerance):
    """Similarities, losses, learnability and the score of the draw. A null is allowed where no draw was."""
    came = ~np.isnan(select.numbers("super_batch"))
    loss_allowed = {}
    for name, model in models.items():
        for what in ("similarity", "loss"):
            recorded = select.numbers(f"{name}_{what}")
            if model is None:
                report.exact(f"{name}_{what}: null without a model", ~np.isnan(recorded))
                continue
            expected = (model.similarity() if what == "similarity" else model.positive_loss())[row]
            loss_allowed[name] = tolerance * (1 + model.logit_scale)
            allowed = tolerance if what == "similarity" else loss_allowed[name]
            report.close(f"{name}_{what}", recorded, expected, allowed, where=came | ~np.isnan(recorded))
    recorded = select.numbers("learnability")
    allowed = sum(loss_allowed.values())
    if len(loss_allowed) == 2:
        expected = (models["learner"].positive_loss() - models["reference"].positive_loss())[row]
        report.close("learnability", recorded, expected, allowed, where=came | ~np.isnan(recorded))
    else:
        report.exact("learnability: null without a model", ~np.isnan(recorded))
    recorded = select.numbers("score")
    if run.step["method"] == "random":
        report.close("score", recorded, 0.0, 0.0, where=came)
    else:
        report.close("score", recorded, scores.diagonal()[row], allowed, where=came | ~np.isnan(recorded))


def check_counts(run, select, report):
    """Kept counts and chunk sizes in exact integers; returns the kept count of each super-batch."""
    super_batch, rank, chunk = (select.numbers(c) for c in ("super_batch", "draw_rank", "chunk"))
    indices, sizes = np.unique(super_batch[~np.isnan(super_batch)], return_counts=True)
    report.same("super_batch: dense from 0", indices.tolist(), list(range(len(indices))))
    expected = kept_counts(sizes.tolist(), run.step["filter_ratio"])
    kept = [int((~np.isnan(rank[super_batch == s])).sum()) for s in indices]
    report.same("kept over the pool", [sum(kept)], [sum(expected)])
    report.same("kept of each super-batch", kept, expected)
    wrong_rank, wrong_chunk = [], []
    n_chunks = 1 if run.step["method"] == "random" else int(run.step["n_chunks"])
    for s, n_kept in zip(indices, kept):
        is_kept = (super_batch == s) & ~np.isnan(rank)
        order = np.argsort(rank[is_kept], kind="stable")
        wrong_rank.append(rank[is_kept][order] != np.arange(n_kept))
        if n_kept:
            wrong_chunk.append(chunk[is_kept][order] != chunk_of_draw_rank(n_kept, n_chunks))
    report.exact("draw_rank: dense from 0", np.concatenate(wrong_rank))
    report.exact("chunk: the sizes of METHODS §3", np.concatenate(wrong_chunk))
    return dict(zip(indices.tolist(), kept))


def check_dealing(run, select, report):
    """A dealing group of n samples makes max(1, round(n/B)) super-batches of nearly one size.

    A group is what its super-batches connect: clusters within clusters, else shards.
    """
    within = run.step["super_batches"] == "within_clusters"
    came = ~np.isnan(select.numbers("super_batch"))
    super_batch = select.numbers("super_batch")[came].astype(int)
    source = (select.numbers("cluster") if within else select.identity // SAMPLES_PER_SHARD_MAX)[came].astype(int)
    group = connected(source, super_batch)
    target, wrong_count, wrong_size, n_large = int(run.step["super_batch_size"]), [], [], []
    for g in np.unique(group):
        sizes = np.unique(super_batch[group == g], return_counts=True)[1]
        n = int(sizes.sum())
        nearest = {max(1, round(Fraction(n, target))), max(1, (2 * n + target) // (2 * target))}
        wrong_count.append(len(sizes) not in nearest)
        wrong_size.append(sizes.max() - sizes.min() > 1)
        n_large.append((np.unique(source[group == g], return_counts=True)[1] >= target).sum())
    report.exact("super-batches: their number in each group", wrong_count)
    report.exact("super-batches: sizes within one", wrong_size)
    if within:
        report.exact("super-batches: no two large clusters", np.array(n_large) > 1)


def connected(a, b):
    """A label for each (a[i], b[i]), equal for what shares an a or a b, directly or through others."""
    label = a.copy()
    while True:
        low = np.full(b.max() + 1, np.iinfo(int).max)
        np.minimum.at(low, b, label)
        back = np.full(a.max() + 1, np.iinfo(int).max)
        np.minimum.at(back, a, low[b])
        if np.array_equal(back[a], label):
            return label
        label = back[a]


def check_draws(run, samples, row, select, scores, report):
    """Replays every super-batch."""
    replay = Replay([], [], [], [], [], [])
    super_batch = select.numbers("super_batch")
    columns = {name: select.numbers(name) for name in ("chunk", "draw_rank", "conditional_score")}
    for s in np.unique(super_batch[~np.isnan(super_batch)]):
        own = np.flatnonzero(super_batch == s)
        drawn = {name: values[own] for name, values in columns.items()}
        replay_super_batch(replay, row[own], drawn, scores, run, samples.identity)
    joined = {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in vars(replay).items()}
    report.close("conditional_score", joined["recorded"], joined["expected"], joined["allowed"])
    n_certain, n_picks = int(joined["is_certain"].sum()), len(joined["is_certain"])
    report.exact("picks: the top of gain · logit + noise", joined["is_impossible"])
    report.line("picks: checked exactly", 0 < n_picks <= 2 * n_certain, f"{n_certain} of {n_picks}, the gap beyond any rounding")
    report.exact("picks: in falling order", joined["is_misplaced"])


def check_assignment(run, divided, is_read, is_usable, report, tolerance):
    """Cluster, centroid similarity and margin against the committed centroids."""
    report.exact("divide: each sample once", np.diff(divided.stored.identity, prepend=-1) <= 0)
    assigned = ~np.isnan(divided.cluster)
    report.exact("divide: every sample with embeddings", ~assigned[is_usable])
    report.exact("divide: only samples with embeddings", ~(divided.model.has & is_read)[assigned])
    k = len(divided.centroids)
    report.same("centroids: as many as the plan says", [k], [run.plan["divide"]["n_clusters"]])
    report.same("centroids: numbered from 0", read_centroids(run)["cluster"].to_pylist(), list(range(k)))
    report.close("centroids: unit length", np.linalg.norm(divided.centroids, axis=1), 1.0, 1e-5)
    row = divided.row[assigned[divided.row]]
    recorded = {c: divided.stored.numbers(c)[assigned[divided.row]] for c in CLUSTER_COLUMNS[:3]}
    # a cosine: stored rows are unit only to the precision of their type
    image = wide(divided.model.image[row])
    similarity = image @ divided.centroids.T / np.linalg.norm(image, axis=1, keepdims=True)
    ordered = np.sort(similarity, axis=1)
    own = similarity[np.arange(len(row)), recorded["cluster"].astype(int)]
    margin = ordered[:, -1] - ordered[:, -2] if k > 1 else np.full(len(row), np.nan)
    report.exact("cluster: nearest centroid", (own < ordered[:, -1]) & (own < ordered[:, -1] - DOUBT))
    report.close("centroid_similarity", recorded["centroid_similarity"], own, tolerance)
    if k > 1:
        report.close("centroid_margin", recorded["centroid_margin"], margin, 2 * tolerance)


def check_banks(run, samples, divided, report):
    """Members and order of each bank by keyed hash, and the embeddings that it carries."""
    assigned = np.flatnonzero(~np.isnan(divided.cluster))
    prefix = b"bank\0" + struct.pack("<2Q", run.plan["seed"], 0)
    h = np.zeros(len(samples), np.uint64)
    h[assigned] = keyed_hash(prefix, samples.identity[assigned], run.shard_ids)
    size = run.plan["divide"]["bank_size"]

    def smallest(rows):
        return rows[np.argsort(h[rows], kind="stable")][:size].tolist()

    expected = {c: smallest(assigned[divided.cluster[assigned] == c]) for c in np.unique(divided.cluster[assigned]).astype(int)}
    report.same("banks: the clusters", sorted(divided.cluster_banks), sorted(expected))
    recorded = [r for c in sorted(expected) for r in [c, *divided.cluster_banks.get(c, np.zeros(0, int)).tolist()]]
    report.same("cluster banks: members in order", recorded, [r for c in sorted(expected) for r in [c, *expected[c]]])
    report.same("pool bank: members in order", divided.pool_bank.tolist(), smallest(assigned))
    bank = read_bank(run)
    is_pool = np.array(bank.texts("bank")) == "pool"
    report.exact("pool bank: cluster is null", is_pool != np.isnan(bank.numbers("cluster")))
    row = samples.rows_of(bank.identity)
    for tower in ("image", "text"):
        values, has = matrix_of(bank.table[f"{tower}_embedding"])
        report.exact(f"banks: {tower}_embedding as stored", (values != getattr(divided.model, tower)[row]).any(axis=1) | ~has)


def expected_hardness(divided, rows, negatives):
    """The columns of METHODS §5 of one block, by name."""
    tau, image, text = divided.temperature, divided.model.image, divided.model.text
    similarity, is_negative, bank = negatives.similarity, negatives.is_negative, negatives.bank
    pool = divided.negatives(rows, divided.pool_bank)
    n = np.minimum(is_negative.sum(axis=1), pool.is_negative.sum(axis=1))
    gain = hardness(similarity, first_negatives(is_negative, n), tau)
    gain = gain - hardness(pool.similarity, first_negatives(pool.is_negative, n), tau)
    image_to_text, text_to_image = wide(image[rows]) @ wide(text[bank]).T, wide(text[rows]) @ wide(image[bank]).T
    crossed = hardness(image_to_text, is_negative, tau) + hardness(text_to_image, is_negative, tau)
    is_empty = ~is_negative.any(axis=1)
    return {
        "hardness": hardness(similarity, is_negative, tau),
        "hardness_gain": np.where(n >= HARDNESS_GAIN_NEGATIVES_MIN, gain, np.nan),
        "cross_modal_hardness": crossed / 2,
        "effective_negatives": np.where(is_empty, np.nan, effective_number(similarity, is_negative, tau)),
        "n_negatives": is_negative.sum(axis=1).astype(float),
        "hardest_negative_similarity": np.where(
            is_empty, np.nan, np.max(np.where(is_negative, similarity, -np.inf), axis=1, initial=-np.inf)
        ),
        "n_false_negatives": negatives.n_false.astype(float),
        "is_doubtful": negatives.is_doubtful.astype(float),
        "is_doubtful_gain": (negatives.is_doubtful | pool.is_doubtful).astype(float),
    }


def check_hardness(run, samples, divided, report, tolerance):
    """Every hardness column of divide/ against the committed banks."""
    expected = {}
    for rows, negatives in divided.blocks():
        for name, values in expected_hardness(divided, rows, negatives).items():
            expected.setdefault(name, np.full(len(samples), np.nan))[rows] = values
    expected = {name: values[divided.row] for name, values in expected.items()}
    is_sure, is_sure_gain = expected.pop("is_doubtful") != 1, expected.pop("is_doubtful_gain") != 1
    allowed = dict.fromkeys(expected, tolerance) | {
        "hardness_gain": 2 * tolerance,
        "effective_negatives": tolerance + 2 * tolerance / divided.temperature * np.nan_to_num(expected["effective_negatives"]),
        "n_negatives": 0.0,
        "n_false_negatives": 0.0,
    }
    for name, values in expected.items():
        recorded = divided.stored.numbers(name)
        if name == "n_negatives":
            recorded = np.where((values == 0) & np.isnan(recorded), 0.0, recorded)
        if name == "hardness_gain" and run.plan["divide"]["bank_size"] < HARDNESS_GAIN_NEGATIVES_MIN:
            report.exact("hardness_gain: null with so small a bank", ~np.isnan(recorded))
            continue
        report.close(name, recorded, values, allowed[name], where=is_sure_gain if name == "hardness_gain" else is_sure)
    check_hardest_negative(samples, divided, report, tolerance)


def check_hardest_negative(samples, divided, report, tolerance):
    """The sample that hardest_negative_shard and _key name is a negative, and none is harder."""
    shard, key = (divided.stored.texts(f"hardest_negative_{name}") for name in ("shard", "key"))
    readable = [r is None for r in samples.texts("rejection")]
    names = zip(samples.texts("shard"), samples.texts("key"), readable)
    row_of = {(s, k): r for r, (s, k, is_read) in enumerate(names) if is_read}
    named = np.full(len(samples), -2)
    for r, s, k in zip(divided.row.tolist(), shard, key):
        named[r] = -1 if s is None and k is None else row_of.get((s, k), -2)
    wrong = []
    for rows, negatives in divided.blocks():
        is_it = negatives.bank[None, :] == named[rows][:, None]
        hardest = np.max(np.where(negatives.is_negative, negatives.similarity, -np.inf), axis=1, initial=-np.inf)
        is_hard = negatives.similarity >= hardest[:, None] - 2 * tolerance
        is_found = (is_it & negatives.is_negative & is_hard).any(axis=1)
        is_right = np.where(negatives.is_negative.any(axis=1), is_found, named[rows] == -1)
        wrong.append(~is_right[~negatives.is_doubtful])
    report.exact("hardest_negative_shard, _key", np.concatenate(wrong))


def check_hard_learnability(run, row, select, divided, models, scores, kept, report):
    """S_ii + (b−1) · mean over A of ½(S_ij + S_ji), b the kept count of the sample's super-batch."""
    n = len(divided.cluster)
    sub_batch = np.full(n, np.nan)
    sub_batch[row] = [kept.get(s, np.nan) for s in select.numbers("super_batch").tolist()]
    expected, allowed, is_sure = np.full(n, np.nan), np.ones(n), np.ones(n, bool)
    diagonal = scores.diagonal()
    usable = np.all([model.has for model in models.values() if model], axis=0)
    for rows, negatives in divided.blocks():
        there, back = scores.both_directions(rows, negatives.bank)
        count = negatives.is_negative.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(negatives.is_negative, there + back, 0).sum(axis=1) / 2 / count
            mean_abs = np.where(negatives.is_negative, abs(there) + abs(back), 0).sum(axis=1) / 2 / count
        others = sub_batch[rows] - 1
        expected[rows] = np.where(count > 0, diagonal[rows] + others * mean, np.nan)
        terms = np.abs(diagonal[rows]) + np.abs(others) * mean_abs
        allowed[rows] = DRAW_TOLERANCE * (1 + np.nan_to_num(terms))
        is_sure[rows] = ~negatives.is_doubtful & usable[negatives.bank].all()
    recorded = select.numbers("hard_learnability")
    if run.step["method"] == "random" and np.isnan(recorded).all():
        report.skipped("hard_learnability", "null throughout: a random draw has no score")
        return
    report.close("hard_learnability", recorded, expected[row], allowed[row], where=is_sure[row])


def check_select_carries_divide(samples, row, select, divided, report):
    """select/ repeats the columns of divide/ unchanged."""
    position = np.full(len(samples), -1)
    position[divided.row] = np.arange(len(divided.row))
    there = position[row]
    report.exact("select: assigned where it came to a draw", (there < 0) & ~np.isnan(select.numbers("super_batch")))
    own, taken = select.table.filter(there >= 0), divided.stored.table.take(there[there >= 0])
    for column in CLUSTER_COLUMNS:
        report.same(f"select: {column} as in divide", plain(own[column]), plain(taken[column]))


def check_curated(run, samples, select, report):
    """The kept rows of select/ and the columns of samples/, in order, in densely numbered files."""
    files = run.files("curated")
    report.same("curated: dense numbering", [f.name for f in files], [f"{i:05}.parquet" for i in range(len(files))])
    report.same("curated: no other file", sorted(f.name for f in (run.path / "curated").glob("*.parquet")), [f.name for f in files])
    columns = [name for name in pq.read_schema(files[0]).names if name != "image"]
    read = [pq.read_table(file, columns=columns) for file in files]
    written = Frame(pa.concat_tables(read), run.shard_ids, is_sorted=False)
    check_curated_order(run, written, report)
    order = np.argsort(written.identity, kind="stable")
    is_kept = np.array(select.texts("verdict")) == "kept"
    report.same("curated: the kept rows", written.identity[order].tolist(), select.identity[is_kept].tolist())
    table = written.table.take(order)
    taken = select.table.filter(is_kept)
    beside = samples.table.take(samples.rows_of(select.identity[is_kept]))
    for source, there in (("select", taken), ("samples", beside)):
        names = [name for name in there.column_names if name not in SAMPLE_TABLE_ONLY]
        report.same(f"curated: has the columns of {source}", [n for n in names if n in columns], names)
        for name in (n for n in names if n in columns):
            report.same(f"curated: {name} as in {source}", plain(table[name]), plain(there[name]))


def check_curated_order(run, written, report):
    order = run.plan.get("write", {}).get("order", "sub_batch")
    if order == "sub_batch":
        keys = list(zip(written.numbers("super_batch").tolist(), written.numbers("draw_rank").tolist()))
    else:
        keys = written.identity.tolist()
    report.exact(f"curated: ordered by {order}", [a >= b for a, b in zip(keys, keys[1:])] or [False] * len(keys))


def check_image_bytes(run, samples, report):
    """`image.bytes` is what the tar holds at the place that samples/ gives."""
    root, wrong = run.resolve(run.plan["pool"]["root"]), []
    offset, size = samples.numbers("image_offset"), samples.numbers("image_size")
    for file in run.files("curated"):
        curated = Frame(pq.read_table(file, columns=["shard", "sample_idx", "image"]), run.shard_ids)
        row = samples.rows_of(curated.identity)
        for r, shard, image in zip(row, curated.texts("shard"), curated.table["image"].to_pylist()):
            if np.isnan(offset[r]):
                continue
            with open(root / shard, "rb") as tar:
                tar.seek(int(offset[r]))
                wrong.append(tar.read(int(size[r])) != image["bytes"])
    report.exact("curated: image.bytes as in the tar", wrong)


def plain(column):
    return column.to_pylist()


def check_finite(frames, report):
    """No number is NaN or infinite: what was not computed is null."""
    wrong = []
    for frame in frames:
        for column in frame.table.columns:
            if pa.types.is_floating(column.type):
                wrong.append(~np.isfinite(column.drop_null().to_numpy()))
    report.exact("no number is NaN or infinite", np.concatenate(wrong))


def check_run(run, report, tolerance, with_images):
    report.section(check_markers, run, report)
    samples = run.frame("samples")
    is_read = np.array([text is None for text in samples.texts("rejection")])
    models = {name: run.model(name, samples) for name in ("learner", "reference")}
    present = [model for model in models.values() if model is not None]
    is_usable = is_read & np.all([model.has for model in present], axis=0)
    report.section(check_samples, run, samples, report)
    for model in present:
        report.section(check_embeddings, samples, is_read, model, report)
    select = run.frame("select")
    row = samples.rows_of(select.identity)
    scores = Scores(run.step.get("score") or "learnability", models["learner"], models["reference"])
    report.section(check_conservation, samples, is_read, is_usable, select, report)
    report.section(check_finite, [select], report)
    report.section(check_scores, run, row, select, models, scores, report, tolerance)
    kept = report.section(check_counts, run, select, report)
    report.section(check_dealing, run, select, report)
    report.section(check_draws, run, samples, row, select, scores, report)
    if run.plan.get("divide"):
        divided = read_divided(run, samples, models)
        report.section(check_finite, [divided.stored], report)
        report.section(check_assignment, run, divided, is_read, is_usable, report, tolerance)
        report.section(check_banks, run, samples, divided, report)
        report.section(check_hardness, run, samples, divided, report, tolerance)
        report.section(check_select_carries_divide, samples, row, select, divided, report)
        report.section(check_hard_learnability, run, row, select, divided, models, scores, kept, report)
    report.section(check_curated, run, samples, select, report)
    if with_images:
        report.section(check_image_bytes, run, samples, report)


def main():
    parser = argparse.ArgumentParser(description="Recomputes the numbers of a run folder and compares.")
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--tolerance", type=float, default=5e-6, help="of a cosine; that of other numbers follows from it")
    parser.add_argument("--without-images", action="store_true", help="curated/ was written without its image column")
    options = parser.parse_args()
    run, report = RunFolder(options.run.resolve()), Report()
    if run.step["method"] not in ("jest", "random") or run.step.get("objective", "sigmoid") != "sigmoid":
        parser.error("only `jest` with the sigmoid objective and `random` can be recomputed")
    report.section(check_run, run, report, options.tolerance, not options.without_images)
    print(f"{report.n_passed} passed, {report.n_failed} failed")
    return 1 if report.n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
