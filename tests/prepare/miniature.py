"""A Stanford Online Products of a few pictures, and other raw files, with known faults."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

SOP = ("dataset=sop", "max_bad_share=0.1")
HEADER = "image_id class_id super_class_id path\n"


def picture(seed: int, size: tuple[int, int] = (64, 48), quality: int = 90) -> bytes:
    """Return a JPEG that no other seed's looks like."""
    coarse = np.random.default_rng(seed).integers(0, 256, (15, 18, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=quality)
    return file.getvalue()


def write_sop(raw: Path, train: list[tuple[str, bytes]], test: list[tuple[str, bytes]]) -> Path:
    """Write the two lists and the pictures given as (class id, bytes)."""
    number = 0
    for name, rows in (("train", train), ("test", test)):
        lines = []
        for class_id, data in rows:
            number += 1
            file = f"chair_final/{number:012d}_{number % 3}.JPG"
            (raw / file).parent.mkdir(parents=True, exist_ok=True)
            (raw / file).write_bytes(data)
            lines.append(f"{number} {class_id} 4 {file}\n")
        (raw / f"Ebay_{name}.txt").write_text(HEADER + "".join(lines))
    return raw


def faulty_sop(raw: Path) -> Path:
    """Write 12 + 8 pictures: one bad, two identical under two labels, one test copied, one near a copy."""
    train = [(str(1 + i // 4), picture(i)) for i in range(12)]
    train[5] = ("2", train[0][1])  # class 2 has a picture of class 1
    train[7] = ("2", picture(7)[:-300])
    test = [(str(11319 + i // 3), picture(100 + i)) for i in range(8)]
    test[1] = ("11319", train[2][1])
    test[4] = ("11320", picture(9, (150, 113), quality=70))
    return write_sop(raw, train, test)


def state_of(folder: Path) -> dict[str, tuple[str, int]]:
    """Return hash and time of every file below a folder, of folders the time."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            path.stat().st_mtime_ns,
        )
        for path in [folder, *sorted(folder.rglob("*"))]
    }
