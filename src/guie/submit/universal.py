"""Google Universal Image Embedding: a zip with saved_model.pt, which embeds into 64 dimensions at most.

The challenge loads it with torch alone, without network, and asks one uint8 picture (1,3,H,W) of any size at
a time; Euclidean neighbours decide, so vectors of unit length rank as cosine does.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from importlib.metadata import version
from pathlib import Path

from guie.errors import UserError
from guie.export.alone import own_network
from guie.export.contract import Contract, check_file
from guie.export.verify import describe, verify

MEMBER = "saved_model.pt"
WIDTH = 64
TAKEN = Contract("kaggle_guie", most_dim=WIDTH)


def write_zip(path: Path, pt: str | Path, max_mib: float) -> str:
    """Zip the exported file `pt` after its golden pairs and return what the check of the zip says.

    Raises UserError where it is too wide or too large, or fails a check; then there is no zip.
    """
    width = describe(pt)["embed_dim"]
    if width > WIDTH:
        raise UserError(
            f"pt: {pt} gives {width} numbers; accepted: at most {WIDTH} (guie-export keep={WIDTH})"
        )
    _check_size(Path(pt), max_mib)
    verify(pt)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            archive.write(pt, MEMBER)
        told = check_zip(partial, max_mib)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return told


def check_zip(path: Path, max_mib: float) -> str:
    """Return a line that says what the model gave, alone in a process that has no network."""
    mib = _check_size(path, max_mib)
    with tempfile.TemporaryDirectory() as folder:
        answers = check_file(_unpacked(path, Path(folder)), TAKEN)
    how = "in a network of its own" if own_network() else "connections refused"
    sizes = ", ".join("x".join(map(str, size)) for size in TAKEN.sizes or ())
    width = answers[0]["shape"][1]
    return f"{width}-d, {mib:,.1f} MiB, offline ({how}) with torch {version('torch')} for {sizes}"


def _check_size(path: Path, max_mib: float) -> float:
    mib = path.stat().st_size / 2**20
    if mib > max_mib:
        raise UserError(f"{path}: {mib:,.1f} MiB; accepted: at most {max_mib:,.0f} (max_mib)")
    return mib


def _unpacked(path: Path, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if names != [MEMBER]:
                raise UserError(f"{path}: holds {', '.join(names) or 'nothing'}; accepted: {MEMBER} alone")
            with archive.open(MEMBER) as source, (folder / MEMBER).open("wb") as target:
                shutil.copyfileobj(source, target)  # reads to the end, and so checks the sum
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); accepted: a zip with {MEMBER}") from error
    return folder / MEMBER
