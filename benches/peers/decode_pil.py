"""Decodes, resizes and normalises the benchmark's images as users do, with Pillow and NumPy, or torchvision's steps on
them: images a CPU-second on one thread, of each of five turns, as JSON.

python3 benches/peers/decode_pil.py target/bench-data          (needs numpy, Pillow)
"""

import io
import json
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def preprocess(data, side=224):
    """CLIP's: the shorter side to 224, bicubic, the centre, mean and standard deviation, channels first."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = image.size
    scale = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
    image = image.resize(scale, Image.Resampling.BICUBIC)
    left, top = (scale[0] - side) // 2, (scale[1] - side) // 2
    pixels = np.asarray(image.crop((left, top, left + side, top + side)), np.float32)
    pixels /= 255.0
    pixels -= MEAN
    pixels /= STD
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def images(path):
    with tarfile.open(path) as tar:
        members = (member for member in tar if member.name.endswith(".jpg"))
        return [tar.extractfile(member).read() for member, _ in zip(members, range(50))]


def rate(data):
    start = time.process_time()
    for image in data:
        preprocess(image)
    return len(data) / (time.process_time() - start)


def main():
    data = {f"decode/{name}": images(Path(sys.argv[1]) / f"{name}.tar") for name in ["small", "large"]}
    print(json.dumps({name: [rate(of_tar) for _ in range(5)] for name, of_tar in data.items()}))


main()
