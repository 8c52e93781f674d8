"""Decodes the 984 images of Pillow's own test suite with `superbatch` and with Pillow, and compares pixel by pixel.

    python tests/consumers/hostile_images.py DECODE_IMAGES

DECODE_IMAGES is the program `cargo build --release --example decode_images` makes. Fetches the source package of Pillow
9.5.0 for its `Tests/images`: broken, cut, crafted and rare files of some forty formats. Both must decode a file to equal
pixels or both must refuse it; what is allowed to differ is named below, with its reason.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGE = "Pillow==9.5.0"
FORMATS = {"JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF"}

# We decode what Pillow refuses, or other pixels: by file, the reason and the largest difference of a channel.
DIFFERENT = {
    "apng/chunk_no_fctl.png": ("the first image is whole; the fault is in the animation after it", None),
    "png_decompression_dos.png": ("text chunks are not read, so that their size does not matter", None),
    "bmp/g/rgb32bf.bmp": ("bit masks that Pillow does not know", None),
    "bmp/q/rgb16-231.bmp": ("bit masks that Pillow does not know", None),
    "bmp/q/rgb32-111110.bmp": ("bit masks that Pillow does not know", None),
    "bmp/q/rgba16-4444.bmp": ("bit masks that Pillow does not know", None),
    "bmp/q/pal2.bmp": ("2 bits a pixel, which Pillow does not know", None),
    "bmp/g/rgb16.bmp": ("5 and 6 bits are widened to 8 with another rounding", 1),
    "bmp/g/rgb16-565.bmp": ("5 and 6 bits are widened to 8 with another rounding", 1),
    "bmp/g/rgb16-565pal.bmp": ("5 and 6 bits are widened to 8 with another rounding", 1),
    "bmp/q/pal4rletrns.bmp": ("pixels that the run lengths leave out are not defined", 255),
    "bmp/q/pal8rletrns.bmp": ("pixels that the run lengths leave out are not defined", 255),
    "pal8_offset.bmp": ("a palette that begins elsewhere than the header says", 255),
    "mmap_error.bmp": ("a palette that begins elsewhere than the header says", 255),
    "hopper_jpg.tif": ("JPEG inside TIFF goes through another decoder", 1),
    "pil168.tif": ("JPEG inside TIFF goes through another decoder", 1),
    "tiff_strip_cmyk_jpeg.tif": ("JPEG inside TIFF, and CMYK by another formula", 2),
    "tiff_tiled_cmyk_jpeg.tif": ("JPEG inside TIFF, and CMYK by another formula", 2),
    "tiff_strip_cmyk_16l_jpeg.tif": ("CMYK by another formula", 1),
    "pil136.tiff": ("colours multiplied by alpha, which Pillow divides by it again", 30),
    "tiff_16bit_RGBa.tiff": ("colours multiplied by alpha, which Pillow divides by it again", 254),
    "tiff_strip_planar_16bit_RGBa.tiff": ("colours multiplied by alpha, which Pillow divides by it again", 254),
}
# We refuse what Pillow decodes.
REFUSED = {
    "bmp/b/badplanes.bmp": "a header that the format forbids",
    "bmp/b/badrle.bmp": "run lengths that leave the image",
    "bmp/b/rletopdown.bmp": "run lengths from top to bottom, which the format forbids",
    "bmp/q/pal8os2v2.bmp": "OS/2 2.x",
    "no_palette.gif": "no colour for any index",
}
REFUSED_FORMATS = {"TIFF": "CCITT with unusual fill order, old JPEG, YCbCr JPEG, L*a*b*, palettes and gray of few bits, "
                           "tiled planes, floating point, LZMA, BigTIFF"}


def fetch(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                    "--no-binary", ":all:", "--no-build-isolation", "--dest", folder, PACKAGE], check=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, [m for m in archive if "/Tests/images/" in m.name], filter="data")
    return next(folder.glob("*/Tests/images"))


def ours(program: str, files: list[Path]) -> list[np.ndarray | str]:
    out = io.BytesIO(subprocess.run([program, *map(str, files)], check=True, stdout=subprocess.PIPE).stdout)
    decoded: list[np.ndarray | str] = []
    for _ in files:
        words = out.readline().decode().split()
        if len(words) == 1:
            decoded.append(words[0])
        else:
            width, height = map(int, words)
            decoded.append(np.frombuffer(out.read(width * height * 3), np.uint8).reshape(height, width, 3))
    return decoded


def pillow(path: Path) -> tuple[str | None, np.ndarray | None]:
    kind = None
    try:
        with Image.open(path) as image:
            kind = image.format
            return kind, np.asarray(image.convert("RGB"))
    except Exception:  # whatever the file makes Pillow raise is a refusal
        return kind, None


def main() -> int:
    warnings.simplefilter("ignore")
    program = sys.argv[1]
    counts, wrong, unused = Counter(), [], set(DIFFERENT) | set(REFUSED)
    with tempfile.TemporaryDirectory() as folder:
        images = fetch(Path(folder))
        files = sorted(path for path in images.rglob("*") if path.is_file())
        for path, decoded in zip(files, ours(program, files)):
            name = str(path.relative_to(images))
            kind, expected = pillow(path)
            is_refused = isinstance(decoded, str)
            if is_refused and expected is None:
                counts["refused by both"] += 1
            elif not is_refused and expected is not None and np.array_equal(decoded, expected):
                counts[f"equal {kind}"] += 1
            elif is_refused and kind not in FORMATS:
                counts["of a format that is not read"] += 1
            elif is_refused and (name in REFUSED or kind in REFUSED_FORMATS):
                counts[f"refused {kind}, named above"] += 1
                unused.discard(name)
            elif not is_refused and name in DIFFERENT:
                bound = DIFFERENT[name][1]
                found = None if expected is None else int(np.abs(decoded.astype(int) - expected).max())
                counts["different, named above"] += 1
                unused.discard(name)
                if found is not None and found > bound:
                    wrong.append(f"{name}: differs by {found}, not {bound} at most")
            else:
                wrong.append(f"{name} ({kind}): we {decoded if is_refused else 'decode'}, "
                             f"Pillow {'refuses' if expected is None else 'decodes'}")
    for what, n in sorted(counts.items()):
        print(f"{n:4} {what}")
    wrong += [f"{name}: named as an exception, but it is none" for name in sorted(unused)]
    print("\n".join(wrong) or f"all {len(files)} as they should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
