"""The divide stage as committed: clusters, banks, and the negatives of each sample. METHODS §5."""

import re
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from .models import Model, wide
from .stored import Frame, matrix_of

BLOCK_ROWS = 2048
DOUBT = 1e-5  # cosines closer than this to a decision may fall on either side in f32
# Unicode White_Space, which `str.split()` exceeds by the separators U+001C to U+001F.
WHITE_SPACE = re.compile("[\t-\r \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")


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
