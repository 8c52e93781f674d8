"""Writes tests/golden/processors.json: the tensors that the field's own image processors make of some images.

    python tests/oracle/processors.py

Needs transformers 4.57 (the last release whose default processors run on PIL), open_clip, torchvision and Pillow. The
images are those that tests/golden/preprocess.json holds; of each tensor the golden file has the BLAKE2b digest of its f32
values, so that parity is bit for bit, and a few values to see by how much it is missed. Prints how far torchvision's
processors (transformers' `use_fast`), which resize without PIL, are from the same tensors.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import transformers
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_processing_utils_fast import BaseImageProcessorFast
from transformers import CLIPImageProcessor, CLIPImageProcessorFast, SiglipImageProcessor, SiglipImageProcessorFast

FOLDER = Path(__file__).parents[1] / "golden"
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
RESAMPLE = {"lanczos": 1, "bilinear": 2, "bicubic": 3}
SOURCES = ("png_rgb", "png_dot", "png_strip", "jpeg_large", "jpeg_tall", "png_rgba", "jpeg_cmyk", "gif_animated",
           "png_16_bit_gray", "png_palette_alphas", "jpeg_exif_rotated")


def sources() -> dict[str, Image.Image]:
    rows = json.loads((FOLDER / "preprocess.json").read_text())["decoded"]
    encoded = {row["name"]: base64.b64decode(row["bytes"]) for row in rows}
    return {name: Image.open(io.BytesIO(encoded[name])).convert("RGB") for name in SOURCES}


def clip(side: int, crop: tuple[int, int], resample: str, normalise: bool = True):
    """`CLIPImageProcessor`: shorter side, then the centre; `crop` is (width, height)."""
    settings = dict(size={"shortest_edge": side}, crop_size={"height": crop[1], "width": crop[0]},
                    resample=RESAMPLE[resample], do_normalize=normalise, image_mean=CLIP_MEAN, image_std=CLIP_STD)
    rule = {"shortest_side": {"side": side, "crop_width": crop[0], "crop_height": crop[1]}}
    mean, std = (CLIP_MEAN, CLIP_STD) if normalise else ([0.0] * 3, [1.0] * 3)
    return rule, resample, mean, std, CLIPImageProcessor(**settings), CLIPImageProcessorFast(**settings)


def siglip(size: tuple[int, int], resample: str):
    """`SiglipImageProcessor`: squashed to (width, height)."""
    half = [0.5] * 3
    settings = dict(size={"height": size[1], "width": size[0]}, resample=RESAMPLE[resample], image_mean=half, image_std=half)
    rule = {"squash": {"width": size[0], "height": size[1]}}
    return rule, resample, half, half, SiglipImageProcessor(**settings), SiglipImageProcessorFast(**settings)


def open_clip(size: tuple[int, int], resample: str, fill: int):
    """open_clip's `longest`: fitted into (width, height), on a field of one gray."""
    transform = image_transform_v2(
        PreprocessCfg(size=(size[1], size[0]), mean=tuple(CLIP_MEAN), std=tuple(CLIP_STD), interpolation=resample,
                      resize_mode="longest", fill_color=fill), is_train=False)
    rule = {"longest_side": {"width": size[0], "height": size[1], "fill": [fill] * 3}}
    return rule, resample, CLIP_MEAN, CLIP_STD, lambda image: transform(image).numpy(), None


def tensor(processor, image: Image.Image) -> np.ndarray:
    if not isinstance(processor, BaseImageProcessor):
        return np.ascontiguousarray(processor(image), np.float32)
    options = {"input_data_format": "channels_last"}  # else one or three rows pass for channels
    if isinstance(processor, BaseImageProcessorFast):
        options = {}  # which knows that the image is Pillow's
    return np.ascontiguousarray(processor(image, return_tensors="pt", **options)["pixel_values"][0].numpy(), np.float32)


def main() -> int:
    images = sources()
    rules = [clip(32, (32, 32), "bicubic"), clip(33, (32, 30), "bicubic"), clip(24, (30, 24), "bilinear"),
             clip(20, (27, 25), "lanczos"), clip(96, (96, 96), "bicubic"), clip(31, (28, 29), "bilinear"),
             clip(48, (48, 48), "bilinear", normalise=False), siglip((40, 40), "bicubic"), siglip((24, 56), "bilinear"),
             siglip((61, 17), "lanczos"), open_clip((32, 32), "bicubic", 0), open_clip((40, 24), "bilinear", 128),
             open_clip((25, 33), "bicubic", 255)]
    rows, differences = [], []
    for rule, resample, mean, std, processor, fast in rules:
        preprocessing = {"resize": rule, "resample": resample, "rescale_factor": 1 / 255, "mean": mean, "std": std}
        for source, image in images.items():
            if "longest_side" in rule and source == "png_strip":
                continue  # a side would round to 0 pixels, which open_clip refuses
            expected = tensor(processor, image)
            rows.append({"source": source, "preprocessing": preprocessing,
                         "digest": hashlib.blake2b(expected.tobytes(), digest_size=8).hexdigest(),
                         "first": [float(value) for value in expected.reshape(-1)[:4]]})
            if fast is not None and resample != "lanczos":  # torchvision has no Lanczos filter for tensors
                pixels = np.abs(tensor(fast, image) - expected) * np.array(std)[:, None, None] * 255
                differences.append((pixels.max(), pixels.mean()))
    text = ",\n  ".join(json.dumps(row) for row in rows)
    (FOLDER / "processors.json").write_text(
        f'{{\n "transformers": "{transformers.__version__}",\n "tensors": [\n  {text}\n ]\n}}\n')
    largest, means = np.array(differences).T
    print(f"{len(rows)} tensors; torchvision's processors differ by {largest.max():.2f} of 255 at most, "
          f"{means.mean():.4f} on average")
    return 0


if __name__ == "__main__":
    sys.exit(main())
