#!/usr/bin/env python3
"""Opens curated shards with what users open them with: pyarrow, DuckDB, Polars and Hugging Face `datasets`.

    python tests/consumers/read_curated.py CURATED_DIR

The four must see the same rows, keys and scores in the same order; `datasets` must see `image` as its `Image` feature
by the files' own metadata; and every image must decode. One line a check; exit code 1 if one fails.
"""

import io
import os
import struct
import sys
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

import datasets
import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

COLUMNS = ["shard", "sample_idx", "key", "score", "super_batch", "draw_rank", "verdict", "caption"]
EXIF_ORIENTATION = 0x0112


def with_pyarrow(files):
    return pa.concat_tables(pq.read_table(file, columns=COLUMNS) for file in files).to_pylist()


def with_duckdb(files):
    cursor = duckdb.connect().execute(f"SELECT {', '.join(COLUMNS)} FROM read_parquet(?)", [files])
    return [dict(zip(COLUMNS, row)) for row in cursor.fetchall()]


def with_polars(files):
    return polars.scan_parquet(files).select(COLUMNS).collect().to_dicts()


def with_datasets(opened):
    return opened.select_columns(COLUMNS).to_list()


def as_f32(row):
    """A row with its numbers as f32 bits, as the readers hand out f32 columns in f64 or not."""
    return tuple(struct.pack("<f", v) if isinstance(v, float) else v for v in row.values())


def image_faults(opened, files):
    """What is wrong with the images as `datasets` gives them, a line each."""
    if not isinstance(opened.features["image"], datasets.Image):
        return [f"the `image` column is {opened.features['image']}, not Image"]
    faults = []
    stored = (image for file in files for image in pq.read_table(file, columns=["image"])["image"].to_pylist())
    rows = opened.select_columns(["key", "width", "height"])
    for row_idx, (row, image) in enumerate(zip(rows, stored, strict=True)):
        try:
            fault = image_fault(opened[row_idx]["image"], image["bytes"], [row["width"], row["height"]])
        except (OSError, ValueError, TypeError) as error:
            fault = f"does not decode: {error}"
        if fault:
            faults.append(f"`{row['key']}` {fault}")
    return faults


def image_fault(decoded, image_bytes, size):
    """What is wrong with one image, or None. Orientation from EXIF may exchange the sides."""
    if not isinstance(decoded, Image.Image):
        return "does not come as a PIL image"
    decoded.load()
    from_bytes = Image.open(io.BytesIO(image_bytes))
    from_bytes.load()
    if not sorted(decoded.size) == sorted(from_bytes.size) == sorted(size):
        return f"decodes to {decoded.size}, its bytes to {from_bytes.size}, its row says {size}"
    is_turned = from_bytes.getexif().get(EXIF_ORIENTATION, 1) != 1
    if not is_turned and decoded.convert("RGB").tobytes() != from_bytes.convert("RGB").tobytes():
        return "decodes to other pixels than its bytes"
    return None


def check(name, faults, seen):
    print(f"{'FAILED' if faults else 'ok    '} {name:<32} {seen}")
    for fault in faults[:5]:
        print(f"         {fault}")
    return not faults


def main(curated):
    files = [str(file) for file in sorted(Path(curated).glob("*.parquet"))]
    if not files:
        print(f"FAILED no *.parquet in `{curated}`")
        return 1
    with tempfile.TemporaryDirectory() as cache:
        opened = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
        reads = {"pyarrow": with_pyarrow(files), "DuckDB": with_duckdb(files), "Polars": with_polars(files)}
        reads["datasets"] = with_datasets(opened)
        expected = [as_f32(row) for row in reads["pyarrow"]]
        passed = [check("pyarrow: rows", [] if expected else ["no row"], f"{len(expected)} rows in {len(files)} files")]
        for name in ("DuckDB", "Polars", "datasets"):
            rows = [as_f32(row) for row in reads[name]]
            faults = [f"{a} instead of {b}" for a, b in zip(rows, expected) if a != b]
            if len(rows) != len(expected):
                faults.append(f"{len(rows)} rows instead of {len(expected)}")
            passed.append(check(f"{name}: as pyarrow", faults, f"{len(rows)} rows, {len(COLUMNS)} columns"))
        passed.append(check("datasets: images decode", image_faults(opened, files), f"{len(expected)} images"))
        del opened
    print(f"{sum(passed)} passed, {len(passed) - sum(passed)} failed")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: read_curated.py CURATED_DIR")
    datasets.disable_progress_bars()
    sys.exit(main(sys.argv[1]))
