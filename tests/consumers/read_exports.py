#!/usr/bin/env python3
"""Exports a finished run in every form and opens each with the tools it is for.

    python tests/consumers/read_exports.py RUN SUPERBATCH

RUN is a run with `[divide]` and `write.distil = true`; SUPERBATCH is the program. The tars are read by `webdataset`, the
subset by NumPy and in the way in which DataComp's resharder looks uids up, the embeddings by NumPy, the metadata and the
targets of distillation by pyarrow and DuckDB. One line a check; exit code 1 if one fails.
"""

import json
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset

U16 = np.dtype("u8,u8")


def read_all(folder, columns=None):
    return pa.concat_tables(pq.read_table(file, columns=columns) for file in sorted(Path(folder).glob("*.parquet")))


class Run:
    def __init__(self, run):
        self.run = Path(run)
        self.plan = json.loads((self.run / "plan.json").read_text())
        self.store = Path(self.plan["store"] or self.run)
        self.columns = ["shard", "sample_idx", "key", "uid", "caption", "json", "cluster", "score", "super_batch", "pass",
                        "draw_rank", "n_repeats"]
        self.kept = read_all(self.run / "curated", self.columns).to_pylist()

    def embeddings(self, role, column):
        """By shard and position, as f16."""
        digest = self.plan["models"][role]["digest"]
        table = read_all(self.store / "embeddings" / digest, ["shard", "sample_idx", column])
        rows = table[column].combine_chunks()
        values = rows.values.to_numpy().reshape(len(rows), -1)
        return dict(zip(zip(table["shard"].to_pylist(), table["sample_idx"].to_pylist()), values))

    def originals(self):
        """The members of each sample of the pool by shard and key, as Python's `tarfile` reads them."""
        found = {}
        for shard in self.plan["pool"]["shards"]:
            with tarfile.open(Path(self.plan["pool"]["root"]) / shard["id"]) as tar:
                for member in filter(tarfile.TarInfo.isfile, tar):
                    folder, slash, name = member.name.rpartition("/")
                    base, _, extension = name.partition(".")
                    sample = found.setdefault((shard["id"], folder + slash + base), {})
                    sample[extension.lower()] = tar.extractfile(member).read()
        return found


def identity(row):
    return row["shard"], row["sample_idx"]


def read_tars(folder):
    """The samples of a folder's tars as `webdataset` reads them, and what is wrong with its `sizes.json`."""
    tars = sorted(folder.glob("*.tar"))
    sizes = json.loads((folder / "sizes.json").read_text())
    samples, faults = [], []
    for tar in tars:
        of_tar = list(webdataset.WebDataset(str(tar), shardshuffle=False, empty_check=False))
        if sizes.get(tar.name) != len(of_tar):
            faults.append(f"`{tar.name}` holds {len(of_tar)} samples, sizes.json says {sizes.get(tar.name)}")
        if len({sample["__key__"] for sample in of_tar}) != len(of_tar):
            faults.append(f"`{tar.name}` has a key twice")
        samples.extend(of_tar)
    if sizes.keys() != {tar.name for tar in tars}:
        faults.append(f"sizes.json names {sorted(sizes)}")
    return samples, faults


def sample_faults(samples, rows, originals):
    """What differs between samples of tars and the rows that they come from."""
    if len(samples) != len(rows):
        return [f"{len(samples)} samples instead of {len(rows)}"]
    faults = []
    for sample, row in zip(samples, rows):
        story = json.loads(sample["superbatch.json"])
        for name, value in story.items():
            if value != row[name]:
                faults.append(f"`{sample['__key__']}`: {name} is {value}, not {row[name]}")
        members = {k: v for k, v in sample.items() if not k.startswith("__") and k != "superbatch.json"}
        if members != originals[row["shard"], row["key"]]:
            faults.append(f"`{sample['__key__']}`: other members than in `{row['shard']}`")
    return faults


def check_webdataset(run, folder, originals):
    samples, faults = read_tars(folder)
    faults += sample_faults(samples, run.kept, originals)
    return faults, f"{len(samples)} samples in {len(list(folder.glob('*.tar')))} tars"


def check_clusters(run, folder, originals):
    faults, n_samples = [], 0
    sizes = json.loads((folder / "clusters.json").read_text())
    for size in sizes:
        samples, of_cluster = read_tars(folder / size["folder"])
        rows = [row for row in run.kept if row["cluster"] == size["cluster"]]
        faults += of_cluster + sample_faults(samples, rows, originals)
        if size["n_samples"] != len(samples):
            faults.append(f"clusters.json says {size['n_samples']} of cluster {size['cluster']}, not {len(samples)}")
        n_samples += len(samples)
    if n_samples != len(run.kept):
        faults.append(f"{n_samples} samples instead of {len(run.kept)}")
    return faults, f"{n_samples} samples in {len(sizes)} folders"


def check_datacomp(run, folder):
    """As the resharder does: mapped into memory, of this type, and looked up from the left and from the right."""
    subset = np.load(folder / "subset.npy", mmap_mode="r")
    faults = [] if subset.dtype == U16 else [f"the type is {subset.dtype}"]
    if not np.array_equal(np.sort(subset), subset):
        faults.append("it is not sorted")
    kept = {row["uid"]: row["n_repeats"] for row in run.kept}
    uids = read_all(run.store / "samples", ["uid"])["uid"].drop_null().to_pylist()
    for uid in uids:
        key = np.array([divmod(int(uid, 16), 2**64)], U16)[0]
        count = np.searchsorted(subset, key, "right") - np.searchsorted(subset, key, "left")
        if count != kept.get(uid, 0):
            faults.append(f"`{uid}` is there {count} times, not {kept.get(uid, 0)}")
    if len(subset) != sum(kept.values()):
        faults.append(f"{len(subset)} uids, not {sum(kept.values())}")
    repeated = Counter(kept.values())
    return faults, f"{len(subset)} of {len(uids)} uids, {repeated.total() - repeated[1]} more than once"


def check_clip_retrieval(run, folder, role):
    metadata = pq.read_table(folder / "metadata" / "metadata_0.parquet")
    faults = []
    if metadata.column_names[:2] != ["image_path", "caption"]:
        faults.append(f"the columns begin with {metadata.column_names[:2]}")
    rows = metadata.to_pylist()
    for row, kept in zip(rows, run.kept):
        if any(row[name] != kept[name] for name in run.columns) or row["image_path"] != f"{kept['shard']}/{kept['key']}":
            faults.append(f"the metadata of `{row['image_path']}` are not those of its curated row")
    for name, column in (("img_emb", "image_embedding"), ("text_emb", "text_embedding")):
        values = np.load(folder / name / f"{name}_0.npy", mmap_mode="r")
        stored = run.embeddings(role, column)
        expected = np.stack([stored[identity(row)] for row in run.kept]).astype(np.float16)
        if values.dtype != np.float16 or not np.array_equal(values, expected):
            faults.append(f"{name} is not what `embeddings/` holds")
    if len(rows) != len(run.kept):
        faults.append(f"{len(rows)} rows instead of {len(run.kept)}")
    return faults, f"{len(rows)} rows, {len(metadata.column_names)} columns"


def check_distil(run):
    """The targets in pyarrow and DuckDB against `embeddings/`, and how they are stored."""
    files = [str(file) for file in sorted((run.run / "curated").glob("*.parquet"))]
    faults = []
    experts = sorted(role for role in run.plan["models"] if role.startswith("expert_"))
    of_expert = {role: run.embeddings(role, "image_embedding") for role in experts or ["reference"]}
    base = run.embeddings(run.plan["divide"]["model"], "image_embedding")
    expected = {"base_embedding": [base[identity(row)] for row in run.kept]}
    expert = lambda row: f"expert_{row['cluster']}" if experts else "reference"  # noqa: E731
    expected["expert_embedding"] = [of_expert[expert(row)][identity(row)] for row in run.kept]
    for column, rows in expected.items():
        rows = np.stack(rows)
        lists = read_all(run.run / "curated", [column])[column].combine_chunks()
        if not pa.types.is_fixed_size_list(lists.type) or not np.array_equal(lists.values.to_numpy().reshape(rows.shape), rows):
            faults.append(f"pyarrow: {column} is not what `embeddings/` holds")
        found = duckdb.connect().execute(f"SELECT {column} FROM read_parquet(?)", [files]).fetchall()
        if not np.array_equal(np.array([row for (row,) in found], rows.dtype), rows):
            faults.append(f"DuckDB: {column} is not what `embeddings/` holds")
        for file in files:
            row_group = pq.ParquetFile(file).metadata.row_group(0)
            chunks = map(row_group.column, range(row_group.num_columns))
            chunk = next(chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
            if chunk.compression != "ZSTD" or not {"PLAIN", "RLE"} >= set(chunk.encodings):
                faults.append(f"{column} is stored as {chunk.encodings}, {chunk.compression}")
    return faults, f"{len(run.kept)} rows, {rows.shape[1]} values"


def check(name, result):
    faults, seen = result
    print(f"{'FAILED' if faults else 'ok    '} {name:<40} {seen}")
    for fault in faults[:5]:
        print(f"         {fault}")
    return not faults


def main(run_folder, program):
    run = Run(run_folder)
    originals = run.originals()
    with tempfile.TemporaryDirectory() as folder:
        def export(name, to, *options):
            target = Path(folder) / name
            subprocess.run([program, "export", run_folder, "--to", to, target, *options], check=True, stdout=subprocess.DEVNULL)
            return target

        tars = export("webdataset", "webdataset", "--shard-bytes", "500000")
        passed = [check("webdataset: tars", check_webdataset(run, tars, originals))]
        clusters = export("clusters", "clusters")
        passed.append(check("webdataset: a folder a cluster", check_clusters(run, clusters, originals)))
        passed.append(check("NumPy: DataComp's subset", check_datacomp(run, export("datacomp", "datacomp"))))
        for role in ("reference", "learner"):
            target = export(role, "clip-retrieval", "--model", role)
            passed.append(check(f"NumPy, pyarrow: embeddings of {role}", check_clip_retrieval(run, target, role)))
        passed.append(check("pyarrow, DuckDB: targets of distillation", check_distil(run)))
    print(f"{sum(passed)} passed, {len(passed) - sum(passed)} failed")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: read_exports.py RUN SUPERBATCH")
    sys.exit(main(sys.argv[1], sys.argv[2]))
