"""Writes tests/golden/open_clip.json: the tensors that OpenCLIP makes by an `open_clip_config.json`, and cleaned captions.

    python tests/oracle/open_clip.py

Needs NumPy and Pillow, to which OpenCLIP's and torchvision's transforms of a Pillow image come down; they are written down
here again after open_clip 3 (`transform.py`, `factory.py`, `tokenizer.py` without its `basic_clean`) and torchvision (`resize` of a side, `center_crop`, `to_tensor`).
Pictures and digests are those of processor_configs.py.
"""

from __future__ import annotations

import hashlib
import json
import string
import sys
from pathlib import Path

import numpy as np
from PIL import Image

OUT = Path(__file__).parents[1] / "golden/open_clip.json"
SIZES = ((90, 61), (47, 80), (150, 150), (61, 88))
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR, "random": Image.Resampling.BICUBIC}

# Of an image tower that states no size (`CLIPVisionCfg`); it takes the place of `preprocess_cfg.size` in any case.
IMAGE_SIZE = 224

# image size of the tower, `preprocess_cfg`
CONFIGS = [
    (32, {"mean": MEAN, "std": STD}),
    (33, {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "shortest"}),
    (28, {"size": 48, "interpolation": "random"}),
    (None, {"size": [32, 32], "mode": "RGB", "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0}),
    (32, {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}),
    ([24, 40], {"mean": 0.5, "std": 0.25, "resize_mode": "squash"}),
    (32, {"resize_mode": "longest"}),
    ([40, 25], {"interpolation": "bilinear", "resize_mode": "longest", "fill_color": 128}),
]

CAPTIONS = [
    "a photo of a cat", "A Photo, of: (two) DOGS & 3 birds!", "", " ", "\t\n  \r\n", "a dog\n", "   two  spaces   inside \t and around  ",
    "snake_case __init__ _x_", "don't, isn't", "file\x1cgroup\x1drecord\x1eunit\x1f vertical\x0btab form\x0cfeed", "\x1c\x00nul \x00 \x7f",
    "line\u2028separator\u2029paragraph\x85next\xa0nbsp\u3000wide \u180emongolian \u2003em", "zero\u200bwidth\ufeffbom\u00adhyphen",
    "ΟΔΥΣΣΕΥΣ ΣΟΦΟΣ, Σ", "İstanbul ı ẞ ß ǅ", "</s> <UNK>  <pad> [CLS]", "« naïve » — “quoted” … ½ ¿", "emoji 🍏  👩‍👩‍👧‍👦", "1,000 C++ a_b-c/d\\e|f~g`h^i{j}[k]",
]


def with_single_spaces(text: str) -> str:
    return " ".join(text.split())


def canonical(text: str) -> str:
    without = "".join(char for char in text.replace("_", " ") if char not in string.punctuation)
    return with_single_spaces(without.lower())


def cleaned(caption: str) -> dict:
    """By the values of `clean`."""
    single = with_single_spaces(caption)
    return {"caption": caption, "whitespace": single, "lower": single.lower(), "canonicalize": canonical(caption)}


def picture(width: int, height: int) -> Image.Image:
    """Pixel (x, y), channel c: (7x + 13y + 29c + 5·(xy mod 31)) mod 256."""
    y, x, c = np.mgrid[:height, :width, :3]
    return Image.fromarray(((7 * x + 13 * y + 29 * c + 5 * (x * y % 31)) % 256).astype(np.uint8))


def transformed(image: Image.Image, size, mode: str, resample, fill: int) -> Image.Image:
    height, width = (size, size) if isinstance(size, int) else size
    if mode == "squash":
        return image.resize((width, height), resample)
    if mode == "longest":
        ratio = max(image.height / height, image.width / width)
        resized = image.resize((round(image.width / ratio), round(image.height / ratio)), resample)
        field = Image.new("RGB", (width, height), (fill,) * 3)
        field.paste(resized, ((width - resized.width) // 2, (height - resized.height) // 2))
        return field
    assert height == width
    short, long = sorted(image.size)
    long = int(height * long / short)
    resized = image.resize((height, long) if image.width <= image.height else (long, height), resample)
    top, left = round((resized.height - height) / 2), round((resized.width - width) / 2)
    return resized.crop((left, top, left + width, top + height))


def tensor(image: Image.Image, size, cfg: dict) -> dict:
    pixels = transformed(image, size, cfg.get("resize_mode", "shortest"), FILTERS[cfg.get("interpolation", "bicubic")],
                         cfg.get("fill_color", 0))
    mean, std = (np.broadcast_to(np.array(cfg.get(name, default), np.float32), 3) for name, default in (("mean", MEAN), ("std", STD)))
    values = (np.asarray(pixels).astype(np.float32) / np.float32(255) - mean) / std
    values = np.ascontiguousarray(values.transpose(2, 0, 1), np.float32)
    return {"shape": list(values.shape), "digest": hashlib.blake2b(values.tobytes(), digest_size=8).hexdigest(),
            "first": [float(value) for value in values.reshape(-1)[:4]]}


def main() -> int:
    rows = []
    for tower, cfg in CONFIGS:
        config = {"model_cfg": {"embed_dim": 512, "vision_cfg": {} if tower is None else {"image_size": tower}}, "preprocess_cfg": cfg}
        tensors = [tensor(picture(*size), tower or IMAGE_SIZE, cfg) for size in SIZES]
        rows.append({"config": config, "tensors": tensors})
    text = ",\n  ".join(json.dumps(row) for row in rows)
    captions = ",\n  ".join(json.dumps(cleaned(caption)) for caption in CAPTIONS)
    OUT.write_text(f'{{\n "sizes": {json.dumps(SIZES)},\n "transforms": [\n  {text}\n ],\n "captions": [\n  {captions}\n ]\n}}\n')
    print(f"{len(rows)} configurations, {len(CAPTIONS)} captions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
