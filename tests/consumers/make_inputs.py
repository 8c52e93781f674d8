"""Writes tests/golden/inputs/: small pools in every layout that is read, each written by the tool that the field uses.

    python tests/consumers/make_inputs.py

Needs webdataset, datasets, img2dataset, clip-retrieval (without what it depends on), pyarrow, NumPy and Pillow. Eight pictures with captions go through

- `webdataset.TarWriter`, plain and gzipped, some of them with a class;
- `datasets`: `Dataset.to_parquet` with an `Image` column;
- `img2dataset`: tars with a Parquet file beside each, the same with images alone in the tar, and its Parquet format;
- clip-retrieval's writer of embeddings (`img_emb`, `text_emb`, `metadata`);
- NumPy and pyarrow, in the layout of DataComp's metadata (`.npz` with `b32_img`, `l14_txt` … beside `.parquet`).

`expected.json` says what each holds.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import importlib.metadata
import importlib.util
import io
import json
import shutil
import sys
import tarfile
import tempfile
import threading
from pathlib import Path

import datasets
import img2dataset
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from PIL import Image

FOLDER = Path(__file__).parents[1] / "golden/inputs"
PORT = 8431
N = 8
CAPTIONS = ["a red square", "ein grünes Quadrat", "蓝色方块", "a line of text, with a comma", "\"quoted\"", "emoji 🍏",
            "dots.in.the.caption", "the last one"]


def picture(i: int) -> Image.Image:
    rng = np.random.default_rng(i)
    y, x = np.mgrid[0 : 20 + i, 0 : 30 - i]
    wave = 128 + 100 * np.sin(rng.uniform(0.1, 0.6, 3) * x[..., None] + rng.uniform(0.1, 0.6, 3) * y[..., None])
    return Image.fromarray(wave.astype(np.uint8))


def encoded(i: int) -> bytes:
    out = io.BytesIO()
    picture(i).save(out, "PNG" if i % 2 else "JPEG", **({} if i % 2 else {"quality": 80}))
    return out.getvalue()


def extension(i: int) -> str:
    return "png" if i % 2 else "jpg"


def uid(i: int) -> str:
    return hashlib.md5(f"uid {i}".encode()).hexdigest()


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def webdataset_tars() -> dict:
    for name in ("webdataset/00000.tar", "webdataset/00001.tar.gz"):
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with webdataset.TarWriter(str(path), mtime=0, user="user", group="group") as writer:
            for i in range(N):
                sample = {"__key__": f"folder/sample_{i:03}", extension(i): encoded(i), "txt": CAPTIONS[i],
                          "json": {"uid": uid(i), "score": i / 8}, "cls": i % 3}
                writer.write(sample)
    rows = [{"key": f"folder/sample_{i:03}", "caption": CAPTIONS[i], "uid": uid(i), "label": i % 3,
             "image": digest(encoded(i))} for i in range(N)]
    return {"webdataset/00000.tar": rows, "webdataset/00001.tar.gz": rows}


def hugging_face() -> dict:
    """Two files: with paths and a class, as `ImageFolder` gives them; and without paths, several captions a row."""
    (FOLDER / "hugging_face").mkdir(parents=True, exist_ok=True)
    named = datasets.Dataset.from_dict(
        {"image": [{"bytes": encoded(i), "path": f"pictures/{i % 7}.{extension(i)}"} for i in range(N)],
         "text": CAPTIONS, "label": [i % 3 for i in range(N)], "width": [30 - i for i in range(N)],
         "similarity": [i / 16 if i else None for i in range(N)]},
        features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string"),
                                    "label": datasets.ClassLabel(names=["a", "b", "c"]), "width": datasets.Value("int32"),
                                    "similarity": datasets.Value("float64")}))
    named.to_parquet(FOLDER / "hugging_face/named.parquet", batch_size=3)
    listed = datasets.Dataset.from_dict(
        {"jpg": [None if i == 5 else {"bytes": encoded(i), "path": None} for i in range(N)],
         "captions": [[CAPTIONS[i], "another"] if i != 6 else [] for i in range(N)], "uid": [uid(i) for i in range(N)]},
        features=datasets.Features({"jpg": datasets.Image(), "captions": datasets.List(datasets.Value("string")),
                                    "uid": datasets.Value("string")}))
    listed.to_parquet(FOLDER / "hugging_face/listed.parquet", batch_size=3)
    # the eighth picture has the path of the first
    keys = [f"pictures/{i}" for i in range(7)] + ["00000007"]
    rows = [{"key": keys[i], "caption": CAPTIONS[i], "label": i % 3, "image": digest(encoded(i)),
             "json": {"label": i % 3, "width": 30 - i} | ({"similarity": i / 16} if i else {})} for i in range(N)]
    other = [{"key": f"{i:08}", "caption": CAPTIONS[i], "uid": uid(i), "image": digest(encoded(i))} for i in range(N)]
    other[5] |= {"rejection": "missing_image"}
    other[6] |= {"rejection": "missing_caption"}
    return {"hugging_face/named.parquet": rows, "hugging_face/listed.parquet": other}


def img2dataset_pools() -> dict:
    """Fetched from a server on this machine; the fourth picture is not there."""
    with tempfile.TemporaryDirectory() as scratch:
        for i in range(N):
            Path(scratch, f"{i}.{extension(i)}").write_bytes(encoded(i))
        urls = [f"http://localhost:{PORT}/{'gone' if i == 3 else i}.{extension(i)}" for i in range(N)]
        table = pa.table({"url": urls, "text": CAPTIONS, "uid": [uid(i) for i in range(N)],
                          "clip_l14_similarity_score": [i / 32 for i in range(N)]})
        pq.write_table(table, f"{scratch}/list.parquet")
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=scratch)
        with http.server.ThreadingHTTPServer(("localhost", PORT), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            for output in ("webdataset", "parquet"):
                target = Path(scratch, output)
                img2dataset.download(
                    url_list=f"{scratch}/list.parquet", input_format="parquet", url_col="url", caption_col="text",
                    save_additional_columns=["uid", "clip_l14_similarity_score"], output_folder=str(target),
                    output_format=output, resize_mode="no", disable_all_reencoding=True, processes_count=1, thread_count=1,
                    number_sample_per_shard=N, compute_hash="sha256")
                for path in target.iterdir():
                    if path.suffix in (".tar", ".parquet"):
                        kept = FOLDER / f"img2dataset_{output}" / path.name
                        kept.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copy(path, kept)
            server.shutdown()
    rows = [{"key": f"{i:06}", "caption": CAPTIONS[i], "uid": uid(i), "image": digest(encoded(i)),
             "json": {"url": urls[i], "clip_l14_similarity_score": i / 32, "sha256": hashlib.sha256(encoded(i)).hexdigest()}}
            for i in range(N)]
    images_alone = FOLDER / "img2dataset_images/00000.tar"
    images_alone.parent.mkdir()
    shutil.copy(FOLDER / "img2dataset_webdataset/00000.parquet", images_alone.with_suffix(".parquet"))
    with tarfile.open(FOLDER / "img2dataset_webdataset/00000.tar") as whole, tarfile.open(images_alone, "w") as part:
        for member in whole:
            if member.name.endswith(".jpg"):
                part.addfile(member, whole.extractfile(member))
    in_tar = [row for i, row in enumerate(rows) if i != 3]
    in_table = [row | ({"rejection": "missing_image"} if i == 3 else {}) for i, row in enumerate(rows)]
    return {"img2dataset_webdataset/00000.tar": in_tar, "img2dataset_images/00000.tar": in_tar,
            "img2dataset_parquet/00000.parquet": in_table}


def embeddings(model: int, tower: int) -> np.ndarray:
    """[N, 6], not of unit length, float16."""
    return np.random.default_rng(100 * model + tower).normal(size=(N, 6)).astype(np.float16)


def clip_retrieval() -> dict:
    """By clip-retrieval's own writer, in two partitions of five and three; its package would want a model to import."""
    file = next(file for file in importlib.metadata.files("clip-retrieval") if file.match("clip_inference/writer.py"))
    spec = importlib.util.spec_from_file_location("writer", file.locate())
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    for partition, rows in enumerate((range(5), range(5, N))):
        rows = list(rows)
        sink = writer.NumpyWriter(partition, str(FOLDER / "clip_retrieval"), True, True, True, 2)
        sink({"image_embs": embeddings(0, 0)[rows], "text_embs": embeddings(0, 1)[rows],
              "image_filename": [f"pictures/{i}.jpg" for i in rows], "text": [CAPTIONS[i] for i in rows],
              "metadata": [json.dumps({"uid": uid(i), "width": 30 - i}) for i in rows]})
        sink.flush()
    rows = [{"key": f"pictures/{i}", "caption": CAPTIONS[i], "uid": uid(i), "json": {"width": 30 - i}} for i in range(N)]
    return {"clip_retrieval/metadata/metadata_0.parquet": rows[:5], "clip_retrieval/metadata/metadata_1.parquet": rows[5:]}


def datacomp() -> dict:
    """As DataComp publishes its metadata: embeddings of two models beside each table, in the order of its rows."""
    folder = FOLDER / "datacomp/metadata"
    folder.mkdir(parents=True)
    expected = {}
    for name, rows in (("0a1b", range(3)), ("2c3d", range(3, N))):
        rows = list(rows)
        pq.write_table(pa.table({
            "uid": [uid(i) for i in rows], "url": [f"http://example.com/{i}.jpg" for i in rows],
            "text": [CAPTIONS[i] for i in rows], "original_width": [30 - i for i in rows],
            "original_height": [20 + i for i in rows], "clip_l14_similarity_score": [i / 32 for i in rows],
            "face_bboxes": pa.array([[] for _ in rows], pa.list_(pa.list_(pa.float64()))),
            "sha256": [hashlib.sha256(encoded(i)).hexdigest() for i in rows]}), folder / f"{name}.parquet")
        np.savez(folder / f"{name}.npz", b32_img=embeddings(1, 0)[rows], b32_txt=embeddings(1, 1)[rows],
                 l14_img=embeddings(2, 0)[rows], l14_txt=embeddings(2, 1)[rows])
        expected[f"datacomp/metadata/{name}.parquet"] = [
            {"key": f"{position:08}", "caption": CAPTIONS[i], "uid": uid(i), "json": {"original_width": 30 - i}}
            for position, i in enumerate(rows)]
    return expected


def main() -> int:
    shutil.rmtree(FOLDER, ignore_errors=True)
    expected = webdataset_tars() | hugging_face() | img2dataset_pools() | clip_retrieval() | datacomp()
    unit = lambda rows: (rows.astype(float) / np.linalg.norm(rows.astype(float), axis=1, keepdims=True)).round(6).tolist()
    towers = {"clip_retrieval": 0, "b32": 1, "l14": 2}
    vectors = {name: {"image": unit(embeddings(model, 0)), "text": unit(embeddings(model, 1))} for name, model in towers.items()}
    (FOLDER / "vectors.json").write_text(json.dumps(vectors) + "\n")
    (FOLDER / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
