"""Writes tests/golden/processor_configs.json: image processors of many classes, as their `preprocessor_config.json` states
them in its new and in its old form, and the tensors that they make.

    python tests/oracle/processor_configs.py

Needs transformers 4.57 (the last release whose default processors run on PIL), NumPy and Pillow. The pictures are a formula
that the test computes too; of each tensor the golden file has the BLAKE2b digest of its f32 values, so that parity is bit for
bit, and a few values to see by how much it is missed.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import transformers
from PIL import Image

OUT = Path(__file__).parents[1] / "golden/processor_configs.json"
SIZES = ((90, 61), (47, 80), (150, 150))
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}

# class, its settings, and how old files state the same: a flat `size` or `crop_size` under the feature extractor's name
PROCESSORS = [
    ("CLIPImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}, {"size": 32, "crop_size": 32}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 37}, "crop_size": {"height": 24, "width": 30}, "resample": 2}, None),
    ("SiglipImageProcessor", {"size": {"height": 32, "width": 28}, **HALF}, None),
    ("ViTImageProcessor", {"size": {"height": 24, "width": 24}, **HALF}, {"size": 24}),
    ("ViTImageProcessor", {"size": {"height": 24, "width": 24}, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}, None),
    ("ViTImageProcessor", {"size": {"height": 24, "width": 24}, "do_normalize": False}, None),
    ("DeiTImageProcessor", {"size": {"height": 36, "width": 36}, "crop_size": {"height": 32, "width": 32}}, {"size": 36, "crop_size": 32}),
    ("BeitImageProcessor", {"size": {"height": 30, "width": 40}, "do_center_crop": True, "crop_size": {"height": 28, "width": 32}}, None),
    ("BlipImageProcessor", {"size": {"height": 24, "width": 24}}, None),
    ("BitImageProcessor", {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}, None),
    ("MobileNetV2ImageProcessor", {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}, None),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}, None),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}, "crop_pct": 0.95}, None),
    ("LevitImageProcessor", {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}, None),
    ("PoolFormerImageProcessor", {"size": {"shortest_edge": 28}, "crop_pct": 0.9, "crop_size": {"height": 28, "width": 28}}, None),
]


def picture(width: int, height: int) -> Image.Image:
    """Pixel (x, y), channel c: (7x + 13y + 29c + 5·(xy mod 31)) mod 256."""
    y, x, c = np.mgrid[:height, :width, :3]
    return Image.fromarray(((7 * x + 13 * y + 29 * c + 5 * (x * y % 31)) % 256).astype(np.uint8))


def tensor(processor, image: Image.Image) -> dict:
    pixels = np.ascontiguousarray(processor(image, return_tensors="np")["pixel_values"][0], np.float32)
    return {"shape": list(pixels.shape), "digest": hashlib.blake2b(pixels.tobytes(), digest_size=8).hexdigest(),
            "first": [float(value) for value in pixels.reshape(-1)[:4]]}


def old_form(name: str, config: dict, sizes: dict) -> dict:
    """As feature extractors wrote it: numbers for sizes, no rescaling."""
    kept = {key: value for key, value in config.items() if key not in ("image_processor_type", "do_rescale", "rescale_factor")}
    return {**kept, **sizes, "feature_extractor_type": name.replace("ImageProcessor", "FeatureExtractor")}


def main() -> int:
    rows = []
    for name, settings, old in PROCESSORS:
        processor = getattr(transformers, name)(**settings)
        config = json.loads(processor.to_json_string())
        tensors = [tensor(processor, picture(*size)) for size in SIZES]
        rows.append({"config": config, "tensors": tensors})
        if old is not None:
            rows.append({"config": old_form(name, config, old), "tensors": tensors})
    text = ",\n  ".join(json.dumps(row) for row in rows)
    OUT.write_text(f'{{\n "transformers": "{transformers.__version__}",\n "sizes": {json.dumps(SIZES)},\n "processors": [\n  {text}\n ]\n}}\n')
    print(f"{len(rows)} configurations of {len({name for name, _, _ in PROCESSORS})} classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
