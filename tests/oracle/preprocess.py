"""Writes tests/golden/preprocess.json: what Pillow and NumPy make of some images, for the Rust tests to compare with.

    python tests/oracle/preprocess.py

Needs Pillow and NumPy alone and shares no code with the Rust. The images are drawn from seeds and are written into the
golden file as encoded bytes; of decoded and resized pixels it holds BLAKE2b digests, of tensors a few values.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

GOLDEN = Path(__file__).parents[1] / "golden" / "preprocess.json"
FILTERS = {"lanczos": 1, "bilinear": 2, "bicubic": 3}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def picture(seed: int, width: int, height: int, n_channels: int = 3) -> np.ndarray:
    """Waves with noise: smooth parts, edges and saturated pixels, [height, width, n_channels] u8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = []
    for _ in range(n_channels):
        fx, fy, phase = rng.uniform(0.02, 0.5, 3)
        wave = 140 * np.sin(fx * x + fy * y + 6 * phase) + 128 + 60 * ((x // 7 + y // 5) % 2)
        planes.append(wave + rng.normal(0, 2, wave.shape))
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def png_of_words(words: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, [height, width, 2 or 3], which Pillow reads but does not write."""
    height, width, n_channels = words.shape
    lines = words.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + line.tobytes() for line in lines)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2}[n_channels], 0, 0, 0)
    chunk = lambda kind, data: (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def on_larger_screen(gif: bytes, left: int, top: int, width: int, height: int) -> bytes:
    """A GIF whose one frame does not cover its screen."""
    at = gif.index(b",", 13 + 3 * 2 ** ((gif[10] & 7) + 1))
    corner, screen = struct.pack("<HH", left, top), struct.pack("<HH", width, height)
    return gif[:6] + screen + gif[10 : at + 1] + corner + gif[at + 5 :]


def images() -> dict[str, bytes]:
    rgb, gray = Image.fromarray(picture(1, 61, 43)), Image.fromarray(picture(2, 40, 33, 1)[..., 0])
    rgba = Image.fromarray(picture(3, 37, 29, 4))
    sixteen = Image.fromarray((picture(4, 31, 23, 1)[..., 0].astype(np.uint16) * 3))
    cmyk = Image.frombytes("CMYK", (45, 38), picture(5, 45, 38, 4).tobytes())
    palette = rgb.quantize(20)
    clear = palette.copy()
    clear.info["transparency"] = 3
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg = encoded(rgb, "JPEG", quality=85)
    corrupt = bytearray(encoded(Image.fromarray(picture(6, 64, 64)), "JPEG", quality=70))
    corrupt[-300] ^= 0x55
    second = Image.fromarray(picture(7, 61, 43))
    return {
        "jpeg_420": jpeg,
        "jpeg_422": encoded(rgb, "JPEG", quality=70, subsampling=1),
        "jpeg_444": encoded(rgb, "JPEG", quality=95, subsampling=0),
        "jpeg_progressive": encoded(rgb, "JPEG", quality=80, progressive=True),
        "jpeg_gray": encoded(gray, "JPEG", quality=80),
        "jpeg_cmyk": encoded(cmyk, "JPEG", quality=80),
        "jpeg_exif_rotated": encoded(rgb, "JPEG", quality=60, exif=exif),
        "jpeg_corrupt_inside": bytes(corrupt),
        "jpeg_trailing_bytes": jpeg + b"trailing bytes" * 3,
        "jpeg_cut": jpeg[: len(jpeg) // 2],
        "jpeg_without_end": encoded(rgb, "JPEG", quality=70, subsampling=1)[:-2],
        "png_rgb": encoded(rgb, "PNG"),
        "png_gray": encoded(gray, "PNG"),
        "png_bilevel": encoded(gray.convert("1"), "PNG"),
        "png_gray_alpha": encoded(rgba.convert("LA"), "PNG"),
        "png_rgba": encoded(rgba, "PNG"),
        "png_16_bit_gray": encoded(sixteen, "PNG"),
        "png_palette": encoded(palette, "PNG"),
        "png_palette_4_bit": encoded(rgb.quantize(9), "PNG", bits=4),
        "png_palette_transparent": encoded(clear, "PNG", transparency=3),
        "png_palette_alphas": encoded(palette, "PNG", transparency=bytes(range(0, 200, 10))),
        "png_cut": encoded(rgb, "PNG")[:2000],
        "gif": encoded(palette, "GIF"),
        "gif_transparent": encoded(clear, "GIF", transparency=3),
        "gif_animated": encoded(rgb.quantize(16), "GIF", save_all=True, append_images=[second.quantize(16)]),
        "bmp": encoded(gray.convert("RGB").crop((0, 0, 20, 10)), "BMP"),
        "bmp_palette": encoded(rgb.quantize(16).crop((0, 0, 20, 10)), "BMP"),
        "tiff": encoded(rgb.crop((0, 0, 21, 13)), "TIFF"),
        "tiff_lzw": encoded(rgb.crop((0, 0, 21, 13)), "TIFF", compression="tiff_lzw"),
        "webp_lossless": encoded(rgb, "WEBP", lossless=True),
        "webp_lossless_alpha": encoded(rgba, "WEBP", lossless=True, exact=True),
        "webp_lossy": encoded(rgb, "WEBP", quality=80),
        "webp_lossy_alpha": encoded(rgba, "WEBP", quality=80),
        "webp_animated": encoded(rgb.crop((0, 0, 20, 16)), "WEBP", save_all=True,
                                 append_images=[second.crop((0, 0, 20, 16))], lossless=True),
        "webp_cut": encoded(rgb, "WEBP", quality=80)[:-200],
        "png_dot": encoded(Image.fromarray(picture(8, 1, 1)), "PNG"),
        "png_strip": encoded(Image.fromarray(picture(9, 320, 3)), "PNG"),
        "jpeg_large": encoded(Image.fromarray(picture(10, 400, 267)), "JPEG", quality=12),
        "jpeg_tall": encoded(Image.fromarray(picture(11, 120, 301)), "JPEG", quality=30),
        "jpeg_mpo": encoded(rgb.crop((0, 0, 24, 20)), "MPO", save_all=True, append_images=[second.crop((0, 0, 24, 20))]),
        "jpeg_icc": encoded(rgb.crop((0, 0, 24, 20)), "JPEG", icc_profile=b"not looked at" * 9),
        "png_icc": encoded(rgb.crop((0, 0, 24, 20)), "PNG", icc_profile=b"not looked at" * 9),
        "png_animated": encoded(rgb.crop((0, 0, 24, 20)), "PNG", save_all=True,
                                append_images=[second.crop((0, 0, 24, 20))]),
        "png_16_bit_gray_transparent": encoded(sixteen, "PNG", transparency=300),
        "png_16_bit_gray_alpha": png_of_words(picture(12, 19, 17, 2).astype(np.uint16) * 257 - 9),
        "png_16_bit_rgb": png_of_words(picture(13, 19, 17, 3).astype(np.uint16) * 257 - 9),
        "png_gray_transparent": encoded(gray, "PNG", transparency=40),
        "png_rgb_transparent": encoded(rgb, "PNG", transparency=(255, 255, 255)),
        "gif_frame_in_screen": on_larger_screen(encoded(palette.crop((0, 0, 20, 10)), "GIF", transparency=3), 5, 2, 33, 21),
        "gif_frame_over_screen": on_larger_screen(encoded(palette.crop((0, 0, 20, 10)), "GIF"), 5, 2, 12, 6),
        "gif_interlaced": encoded(palette, "GIF", interlace=True),
        "tiff_turned": encoded(rgb.crop((0, 0, 21, 13)), "TIFF", tiffinfo={274: 6}),
        "not_an_image": b"<html>not found</html>",
    }


def digest(pixels: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(pixels, np.uint8).tobytes(), digest_size=8).hexdigest()


def decode(data: bytes) -> Image.Image | None:
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, SyntaxError, ValueError):
        return None


def decoded(name: str, data: bytes) -> dict:
    row = {"name": name, "bytes": base64.b64encode(data).decode()}
    if (image := decode(data)) is not None:
        row |= {"width": image.width, "height": image.height, "pixels": digest(np.asarray(image))}
    return row


def resized(sources: dict[str, bytes]) -> list[dict]:
    rows = []
    for source, size in [("png_rgb", (24, 24)), ("png_rgb", (200, 31)), ("png_rgb", (61, 20)), ("png_rgb", (30, 43)),
                         ("png_dot", (7, 5)), ("png_strip", (16, 16)), ("jpeg_large", (96, 96)), ("jpeg_large", (224, 336)),
                         ("jpeg_tall", (1, 1)), ("jpeg_tall", (257, 255))]:
        for name, filter in FILTERS.items():
            out = np.asarray(decode(sources[source]).resize(size, filter))
            rows.append({"source": source, "size": size, "resample": name, "pixels": digest(out)})
    return rows


def clip_tensor(image: Image.Image, side: int, crop: tuple[int, int], resample: int) -> np.ndarray:
    """As transformers' CLIPImageProcessor: shorter side, centre crop with zero padding, rescale, normalise."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    long_out = int(side * long / short)
    size = (side, long_out) if width <= height else (long_out, side)
    pixels = np.asarray(image.resize(size, resample))
    crop_width, crop_height = crop
    height, width = pixels.shape[:2]
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    new_height, new_width = max(crop_height, height), max(crop_width, width)
    canvas = np.zeros((new_height, new_width, 3), np.uint8)
    top_pad, left_pad = math.ceil((new_height - height) / 2), math.ceil((new_width - width) / 2)
    canvas[top_pad : top_pad + height, left_pad : left_pad + width] = pixels
    top, left = top + top_pad, left + left_pad
    return normalised(canvas[max(0, top) : top + crop_height, max(0, left) : left + crop_width], MEAN, STD)


def normalised(pixels: np.ndarray, mean, std) -> np.ndarray:
    rescaled = (pixels.astype(np.float64) * (1 / 255)).astype(np.float32)
    return ((rescaled - np.array(mean, np.float32)) / np.array(std, np.float32)).transpose(2, 0, 1)


def tensors(sources: dict[str, bytes]) -> list[dict]:
    rows = []
    for source, side, crop in [("png_rgb", 32, (32, 32)), ("png_strip", 33, (32, 30)), ("jpeg_tall", 24, (30, 24)),
                               ("jpeg_large", 20, (25, 27)), ("jpeg_large", 96, (96, 96)), ("png_rgb", 31, (28, 29))]:
        tensor = clip_tensor(decode(sources[source]), side, crop, FILTERS["bicubic"])
        assert tensor.shape == (3, crop[1], crop[0])
        values = [round(float(value), 7) for value in tensor.reshape(-1)[::101]]
        rows.append({"source": source, "side": side, "crop": crop, "every_101st": values})
    return rows


def main() -> int:
    sources = images()
    golden = {"pillow": PIL.__version__, "decoded": [decoded(*item) for item in sources.items()],
              "resized": resized(sources), "tensors": tensors(sources)}
    lines = ["{"]
    for key, rows in golden.items():
        if isinstance(rows, list):
            lines.append(f' "{key}": [\n  ' + ",\n  ".join(json.dumps(row) for row in rows) + "\n ],")
        else:
            lines.append(f' "{key}": {json.dumps(rows)},')
    lines[-1] = lines[-1].rstrip(",")
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text("\n".join(lines) + "\n}\n")
    print(GOLDEN, GOLDEN.stat().st_size, "bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
