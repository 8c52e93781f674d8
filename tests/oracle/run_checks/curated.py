"""Checks of curated/: the kept rows, their order, and the original bytes."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .stored import Frame, plain

SAMPLE_TABLE_ONLY = {"rejection"}


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


def check_finite(frames, report):
    """No number is NaN or infinite: what was not computed is null."""
    wrong = []
    for frame in frames:
        for column in frame.table.columns:
            if pa.types.is_floating(column.type):
                wrong.append(~np.isfinite(column.drop_null().to_numpy()))
    report.exact("no number is NaN or infinite", np.concatenate(wrong))
