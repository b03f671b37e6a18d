"""Odd pictures and their pixels: by them a bundle tells whether it reads pictures as the evaluation did."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from guie.images import Colour, decode

SIZE = (48, 40)  # width, height


def odd_pictures() -> dict[str, bytes]:
    """Return files by name, drawn, each of a kind that libraries read differently."""
    plain, clear = _drawn(), _drawn().convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(SIZE))
    deep = np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE[::-1]).astype(np.uint16)
    frames = [plain.quantize(64), plain.rotate(180).quantize(64)]
    return {
        "turned.jpg": _encoded(plain, "JPEG", exif=_lying(), quality=95),
        "turned.png": _encoded(plain, "PNG", exif=_lying()),
        "grey.jpg": _encoded(plain.convert("L"), "JPEG", quality=95),
        "cmyk.jpg": _encoded(plain.convert("CMYK"), "JPEG", quality=95),
        "progressive.jpg": _encoded(plain, "JPEG", progressive=True, quality=95),
        "palette.png": _encoded(plain.quantize(32), "PNG", transparency=3),
        "alpha.png": _encoded(clear, "PNG"),
        "grey_alpha.png": _encoded(clear.convert("LA"), "PNG"),
        "one_bit.png": _encoded(plain.convert("1"), "PNG"),
        "deep_grey.png": _encoded(Image.fromarray(deep), "PNG"),
        "animation.gif": _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
    }


def save(path: Path, background: Colour) -> None:
    """Write the files' bytes and their pixels (H,W,3) by `guie.images`, transparency on `background`."""
    arrays: dict[str, Any] = {"background": np.array(background, np.uint8)}
    for name, data in odd_pictures().items():
        arrays[f"file_{name}"] = np.frombuffer(data, np.uint8)
        arrays[f"pixels_{name}"] = decode(data, background=background)
    np.savez_compressed(path, **arrays)


def _drawn() -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)


def _lying() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
