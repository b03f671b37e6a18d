"""Google Universal Image Embedding: a zip with saved_model.pt, which embeds into 64 dimensions at most.

The challenge loads it with torch alone, without network, and asks one uint8 picture (1,3,H,W) of any size at
a time; Euclidean neighbours decide, so vectors of unit length rank as cosine does.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

from guie.errors import UserError
from guie.export.verify import describe, package_folders, verify

MEMBER = "saved_model.pt"
WIDTH = 64
OFFLINE = Path(__file__).with_name("offline.py")
TIMEOUT_S = 1800


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
        report = _run_offline(_unpacked(path, Path(folder)), path)
    for asked in report["asked"]:
        _check_answer(path, asked)
    sizes = ", ".join("x".join(map(str, asked["size"])) for asked in report["asked"])
    width = report["asked"][0]["shape"][1]
    how = "in a network of its own" if _own_network() else "connections refused"
    return f"{width}-d, {mib:,.1f} MiB, offline ({how}) with torch {report['torch']} for {sizes}"


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


def _check_answer(path: Path, asked: dict[str, Any]) -> None:
    size = "x".join(map(str, asked["size"]))
    shape, dtype = asked["shape"], asked["dtype"]
    accepted = {
        f"shape {tuple(shape)}": len(shape) == 2 and shape[0] == 1 and 1 <= shape[1] <= WIDTH,
        f"dtype {dtype}": dtype == "float32",
        "numbers that are not finite": asked["finite"],
        "another vector when asked again": asked["repeats"],
        f"length {asked['length']:.6f}": abs(asked["length"] - 1) < 1e-3,
    }
    if wrong := [what for what, holds in accepted.items() if not holds]:
        told = f"(1,D) float32 of length 1, D at most {WIDTH}, the same each time"
        raise UserError(f"{path}: {wrong[0]} for a picture of {size}; accepted: {told}")


def _run_offline(model: Path, path: Path) -> dict[str, Any]:
    script = [sys.executable, "-I", "-S", str(OFFLINE), str(model), *package_folders()]
    command = ["unshare", "-rn", *script] if _own_network() else script
    try:
        done = subprocess.run(
            command, cwd=model.parent, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        told = f"no answer in {TIMEOUT_S} s; accepted: a model that answers"
        raise UserError(f"{path}: {told}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"{path}: {MEMBER} does not run alone and offline: {last}; accepted: TorchScript")
    return json.loads(done.stdout.splitlines()[-1])


@functools.cache
def _own_network() -> bool:
    """Return whether this system lets a process have a network of its own, with nobody in it."""
    if not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0
