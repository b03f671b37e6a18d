"""What of a TorchScript file is known to be newer than a version of torch; its code is read, not loaded."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

# By what stands in the file's code: what it is, and the first torch that has it.
NEWER = {
    r"_upsample_\w+2d_aa\(": ("antialiased resize of uint8 on the CPU", "2.1"),
    r"\bscaled_dot_product_attention\(": ("scaled_dot_product_attention", "2.0"),
    r"\b_transformer_encoder_layer_fwd\(": ("_transformer_encoder_layer_fwd", "1.12"),
    r"\b_native_multi_head_attention\(": ("_native_multi_head_attention", "1.12"),
    r"\btorch\.pad\(": ("pad", "1.12"),
    r"\bgelu\([^()]*approximate": ("gelu(approximate=...)", "1.12"),
}


def newer(path: Path, torch: str) -> list[str]:
    """Return what a TorchScript file uses that is known to have come after the version `torch`, with its own.

    That there is nothing says little: what is known stands in NEWER.
    """
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if "/code/" in name and name.endswith(".py")]
        code = "".join(archive.read(name).decode() for name in names)
    known = [(what, since) for pattern, (what, since) in NEWER.items() if re.search(pattern, code)]
    return [f"{what} (torch {since})" for what, since in known if _number(since) > _number(torch)]


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))
