"""Recomputes the embeddings of a finished run from its tars and compares them with the stored ones.

    python tests/oracle/embeddings.py RUN

Needs Pillow, NumPy, tokenizers, onnxruntime and pyarrow, and shares no code with the Rust: tars are read by `tarfile`,
images prepared by PIL. Prints one line a model; exits with 1 if a cosine is below 0.999, or a sample is missing or extra.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import math
import sys
import tarfile
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as parquet
from PIL import Image
from tokenizers import Tokenizer

COSINE_MIN = 0.999
IMAGE_EXTENSIONS = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"}
CAPTION_BYTES_MAX = 64 << 10
FILTERS = {"lanczos": 1, "bilinear": 2, "bicubic": 3}
SampleId = tuple[str, int]


# --- tars ---------------------------------------------------------------------------------------------------------


def split_name(path: str) -> tuple[str, str] | None:
    """Key and lower-case extension, split at the first dot of the base name."""
    folder, slash, base = path.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not dot or not stem or path.startswith("__") and path.partition("/")[0].endswith("__"):
        return None
    if any(part == "__MACOSX" or part.startswith("PaxHeaders") for part in folder.split("/")):
        return None
    return folder + slash + stem, extension.lower()


def open_shard(path: Path):
    if path.suffix in (".gz", ".tgz"):
        return gzip.open(path)
    if path.suffix in (".zst", ".zstd"):
        import zstandard  # only for such shards

        return zstandard.open(path, "rb")
    return open(path, "rb")


def groups(path: Path) -> Iterator[tuple[str, dict[str, bytes], bool]]:
    """Key, members and whether the group was read to its end, in the order of the shard."""
    key, members = "", {}
    try:
        with open_shard(path) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                name = split_name(member.name) if member.isreg() else None
                if name is None:
                    continue
                if members and (name[0] != key or name[1] in members):
                    yield key, members, True
                    members = {}
                key = name[0]
                members[name[1]] = tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError):
        yield key, members, False
        return
    if members:
        yield key, members, True


def caption_of(members: dict[str, bytes]) -> str | None:
    """The caption, or none if the sample is to be rejected for it or for its JSON."""
    fields = {}
    try:
        if "json" in members:
            fields = json.loads(members["json"].decode(), parse_constant=lambda name: 1 / 0)
        if "txt" in members or "caption" in members:
            caption = members.get("txt", members.get("caption")).decode()
        else:
            caption = fields.get("caption") if isinstance(fields, dict) else None
    except (ValueError, ZeroDivisionError):
        return None
    is_good = isinstance(caption, str) and caption.strip() and len(caption.encode()) <= CAPTION_BYTES_MAX
    return caption if is_good else None


def samples(path: Path) -> Iterator[tuple[int, Image.Image, str]]:
    """Position, image and caption of every sample that can be embedded."""
    seen = set()
    for idx, (key, members, is_whole) in enumerate(groups(path)):
        is_first = key not in seen
        seen.add(key)
        data = next((data for extension, data in members.items() if extension in IMAGE_EXTENSIONS), None)
        caption = caption_of(members)
        if not is_whole or not is_first or data is None or caption is None:
            continue
        try:
            yield idx, Image.open(io.BytesIO(data)).convert("RGB"), caption
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue


# --- models -------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


@dataclass
class Model:
    """A model folder with Hugging Face's layout, and `model.toml` before all other files."""

    folder: Path

    def __post_init__(self) -> None:
        self.manifest = tomllib.loads((self.folder / "model.toml").read_text()) if (self.folder / "model.toml").exists() else {}
        self.processor = read_json(self.folder / "preprocessor_config.json")
        config, tokenizer_config = read_json(self.folder / "config.json"), read_json(self.folder / "tokenizer_config.json")
        is_siglip = config.get("model_type", "").startswith("siglip")
        self.context_length = (
            self.manifest.get("context_length")
            or config.get("text_config", {}).get("max_position_embeddings")
            or tokenizer_config.get("model_max_length")
            or (64 if is_siglip else 77)
        )
        stated = self.manifest.get("caption_form")
        self.lower_case = stated == "lower_case" if stated else tokenizer_config.get("do_lower_case", is_siglip)
        self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        pad = self.manifest.get("pad_token") or tokenizer_config.get("pad_token") or (self.tokenizer.padding or {}).get("pad_token")
        pad = pad["content"] if isinstance(pad, dict) else pad
        self.tokenizer.enable_truncation(self.context_length)
        self.tokenizer.enable_padding(length=self.context_length, pad_id=self.tokenizer.token_to_id(pad), pad_token=pad)
        onnx = self.folder / "onnx" if (self.folder / "onnx").is_dir() else self.folder
        if "image_graph" in self.manifest:
            files = [self.folder / self.manifest["image_graph"], self.folder / self.manifest["text_graph"]]
        elif (onnx / "vision_model.onnx").exists():
            files = [onnx / "vision_model.onnx", onnx / "text_model.onnx"]
        else:
            files = [onnx / "model.onnx"]
        self.sessions = [onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]) for file in files]

    def pixels(self, image: Image.Image) -> np.ndarray:
        """[3, height, width] f32."""
        p, m = self.processor, self.manifest
        resample = FILTERS[m["resample"]] if "resample" in m else p["resample"]
        size, given = p.get("size"), m.get("image_size")
        given = [given, given] if isinstance(given, int) else given
        is_old_clip = isinstance(size, int) and (
            p.get("do_center_crop") or "CLIP" in p.get("feature_extractor_type", p.get("image_processor_type", ""))
        )
        rule = m.get("resize") or ("shortest_side" if is_old_clip or "shortest_edge" in (size if isinstance(size, dict) else {}) else "squash")
        if rule == "squash":
            width, height = given or ([size, size] if isinstance(size, int) else [size["width"], size["height"]])
            pixels = np.asarray(image.resize((width, height), resample))
        else:
            stated = size if isinstance(size, int) else (size or {}).get("shortest_edge")
            crop = p.get("crop_size", stated)
            crop = given or ([crop, crop] if isinstance(crop, int) else [crop["width"], crop["height"]])
            side = m.get("shortest_side") or (min(crop) if given else stated)
            pixels = centre(shortest_side_to(image, side, resample), *crop)
        mean = m.get("image_mean", p.get("image_mean") if p.get("do_normalize", True) else [0, 0, 0])
        std = m.get("image_std", p.get("image_std") if p.get("do_normalize", True) else [1, 1, 1])
        factor = m.get("rescale_factor", p.get("rescale_factor", 1 / 255))
        rescaled = (pixels.astype(np.float64) * factor).astype(np.float32)
        return ((rescaled - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)

    def embed(self, images: list[Image.Image], captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Unit rows of both towers, [n, width] f64."""
        encodings = self.tokenizer.encode_batch([text.lower() if self.lower_case else text for text in captions])
        n = len(captions)
        feeds = {
            self.manifest.get("image_input", "pixel_values"): np.stack([self.pixels(image) for image in images]),
            self.manifest.get("text_input", "input_ids"): np.array([e.ids for e in encodings], np.int64),
            "attention_mask": np.array([e.attention_mask for e in encodings], np.int64),
            "position_ids": np.tile(np.arange(self.context_length), (n, 1)),
            "token_type_ids": np.zeros((n, self.context_length), np.int64),
        }
        outputs = {}
        for session in self.sessions:
            wanted = {i.name: feeds[i.name].astype(DTYPES[i.type]) for i in session.get_inputs()}
            tower = "text" if session is self.sessions[-1] and len(self.sessions) == 2 else "image"
            for output, values in zip(session.get_outputs(), session.run(None, wanted)):
                outputs[output.name if output.name != "pooler_output" else f"{tower}_pooler_output"] = values
        rows = []
        for tower in ("image", "text"):
            names = [self.manifest.get(f"{tower}_output"), f"{tower}_embeds", f"{tower}_pooler_output"]
            values = next(outputs[name] for name in names if name in outputs).astype(np.float64)
            rows.append(values / np.linalg.norm(values, axis=1, keepdims=True))
        return rows[0], rows[1]


DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64, "tensor(int32)": np.int32}


def shortest_side_to(image: Image.Image, side: int, resample: int) -> np.ndarray:
    width, height = image.size
    long = int(side * max(image.size) / min(image.size))
    return np.asarray(image.resize((side, long) if width <= height else (long, side), resample))


def centre(pixels: np.ndarray, crop_width: int, crop_height: int) -> np.ndarray:
    """As transformers' `center_crop`: black where the image is too small."""
    height, width = pixels.shape[:2]
    top_pad, left_pad = max(0, math.ceil((crop_height - height) / 2)), max(0, math.ceil((crop_width - width) / 2))
    canvas = np.zeros((max(crop_height, height), max(crop_width, width), 3), np.uint8)
    canvas[top_pad : top_pad + height, left_pad : left_pad + width] = pixels
    top, left = (height - crop_height) // 2 + top_pad, (width - crop_width) // 2 + left_pad
    return canvas[max(0, top) : top + crop_height, max(0, left) : left + crop_width]


# --- runs ---------------------------------------------------------------------------------------------------------


def texts(value) -> Iterator[str]:
    """Every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def stored(run: Path, digest: str) -> dict[SampleId, tuple[np.ndarray, np.ndarray]]:
    """Embeddings in the files that markers name, by sample."""
    markers = [json.loads(path.read_text()) for path in sorted((run / "_done").rglob("*.json"))]
    named = {Path(text).name for marker in markers for text in texts(marker)}
    rows = {}
    for path in sorted((run / "embeddings" / digest).glob("*.parquet")):
        if path.name not in named:
            continue
        table = parquet.read_table(path, columns=["shard", "sample_idx", "image_embedding", "text_embedding"])
        for row in table.to_pylist():
            if row["image_embedding"] is None:
                continue
            sample = (row["shard"], row["sample_idx"])
            assert sample not in rows, f"{sample} is stored twice"
            rows[sample] = tuple(np.array(row[name], np.float64) for name in ("image_embedding", "text_embedding"))
    return rows


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def check(name: str, stated: dict, run: Path, plan: dict, n_batch: int) -> bool:
    model, ours = Model(Path(stated["folder"])), stored(run, stated["digest"])
    root = Path(plan["pool"]["root"])
    cosines, missing, batch = [], [], []

    def flush() -> None:
        if batch:
            images, captions = model.embed([image for _, image, _ in batch], [caption for _, _, caption in batch])
            for (sample, _, _), image, text in zip(batch, images, captions):
                pair = ours.pop(sample, None)
                if pair is None:
                    missing.append(sample)
                else:
                    cosines.append(min(cosine(pair[0], image), cosine(pair[1], text)))
            batch.clear()

    for shard in (shard["id"] for shard in plan["pool"]["shards"]):
        for idx, image, caption in samples(root / shard):
            batch.append(((shard, idx), image, caption))
            if len(batch) == n_batch:
                flush()
    flush()
    lowest = min(cosines, default=math.nan)
    print(f"{name}: {len(cosines)} samples, lowest cosine {lowest:.6f}, {len(missing)} missing, {len(ours)} extra", end="")
    print("".join(f"; {what} {rows[:3]}" for what, rows in (("missing", missing), ("extra", list(ours))) if rows))
    return lowest >= COSINE_MIN and not missing and not ours


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("--batch", type=int, default=32, help="samples embedded at once")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    plan = json.loads((arguments.run / "plan.json").read_text())
    models = {name: stated for name, stated in plan["models"].items() if stated}
    results = [check(name, stated, arguments.run, plan, arguments.batch) for name, stated in models.items()]
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
