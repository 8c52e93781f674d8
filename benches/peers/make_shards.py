"""Makes the shards that the benchmarks of reading and decoding take: photo-like JPEGs with captions, seeded.

python3 benches/peers/make_shards.py target/bench-data          (needs numpy, Pillow, webdataset)

small.tar: 2,000 pairs of 500x400; large.tar: 200 pairs of 1920x1080. Each of 50 distinct pictures comes often.
"""

import io
import sys
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image


def photo(rng, width, height):
    """Smooth noise in octaves: about as many JPEG bytes a pixel as a photo."""
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(2, 9):
        cells = 2**octave
        noise = (rng.random((cells, cells, 3)) * 255).astype(np.uint8)
        smooth = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(smooth, np.float32) / 2 ** (0.9 * octave)
    total -= total.min()
    return Image.fromarray((total * (255 / total.max())).astype(np.uint8))


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def make(path, n_samples, width, height):
    rng = np.random.default_rng(7)
    images = [encoded(photo(rng, width, height)) for _ in range(50)]
    with webdataset.TarWriter(str(path)) as tar:
        for idx in range(n_samples):
            caption = f"picture {idx} of a benchmark, with a caption of about as many words as captions have"
            tar.write({"__key__": f"{idx:08}", "jpg": images[idx % 50], "txt": caption, "json": {"uid": f"{idx:032x}"}})
    print(path, path.stat().st_size, "bytes", sum(map(len, images)) // 50, "bytes an image")


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    make(folder / "small.tar", 2000, 500, 400)
    make(folder / "large.tar", 200, 1920, 1080)


main()
