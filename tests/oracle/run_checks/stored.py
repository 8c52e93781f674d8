"""A run folder as its markers name it: plan, tables with a row a sample, embeddings."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .models import Classifier, Model

SAMPLES_PER_SHARD_MAX = 1 << 40


class RunFolder:
    """A run's plan and the files that its markers name."""

    def __init__(self, path):
        self.path = path
        self.plan = json.loads((path / "plan.json").read_text())
        self.store = self.resolve(self.plan["store"]) if self.plan.get("store") else path
        self.shard_ids = [shard["id"] for shard in self.plan["pool"]["shards"]]
        self.steps = self.plan["select"]["step"]
        self.step = self.steps[-1]  # the final draw
        self.committed = {name for root in {path, self.store} for name in names_in_markers(root)}

    def resolve(self, text):
        """A path of the plan: absolute, or relative to here, to this repository or to the run."""
        roots = [Path.cwd(), Path(__file__).resolve().parents[3], self.path]
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
        if "logits" in stored.table.column_names:
            return self.classifier(name, samples, stored, row)
        tower = {}
        for column in ("image_embedding", "text_embedding"):
            tower[column] = beside(samples, row, stored.table[column])
        (image, has_image), (text, has_text) = tower["image_embedding"], tower["text_embedding"]
        scale, bias = float(settings["logit_scale"]), float(settings.get("logit_bias") or 0.0)
        return Model(name, scale, bias, image, text, has_image & has_text, stored)

    def classifier(self, name, samples, stored, row):
        logits, has = beside(samples, row, stored.table["logits"])
        labels = np.nan_to_num(samples.numbers("label"), nan=-1).astype(int)
        smoothing = float(self.step.get("label_smoothing", 0.1))
        is_labelled = (labels >= 0) & (labels < logits.shape[1])
        return Classifier(name, logits, np.where(is_labelled, labels, -1), smoothing, has & is_labelled, stored)


def beside(samples, row, column):
    """A column of vectors, beside the pool's samples: values [n, d] and which are there."""
    values = np.zeros((len(samples), column.type.list_size), np.float32)
    has = np.zeros(len(samples), bool)
    values[row], has[row] = matrix_of(column)
    return values, has


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


def plain(column):
    return column.to_pylist()
