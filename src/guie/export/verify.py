"""Load an exported file in a process without the project and compare it with its golden pairs."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guie.errors import UserError

TOLERANCE = 1e-5
METADATA = "guie.json"
FRESH = Path(__file__).with_name("fresh.py")


@dataclass(frozen=True)
class Verified:
    """An exported file that gave its golden vectors in a fresh process.

    `difference` is the largest absolute one over all components; `sizes` are (height, width);
    `dtypes` and `batches` were tried for each size; `golden` lies beside `path`.
    """

    path: Path
    golden: Path
    difference: float
    tolerance: float
    sizes: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    dtypes: tuple[str, ...]

    def __str__(self) -> str:
        sizes = ", ".join(f"{height}x{width}" for height, width in self.sizes)
        batches = "/".join(map(str, self.batches))
        tried = f"sizes {sizes}, batches {batches}, {' and '.join(self.dtypes)}"
        found = f"largest difference {self.difference:.1e} (allowed {self.tolerance:.0e})"
        return f"{self.path}: verified in a fresh process, {found} over {tried}"


def describe(path: str | Path) -> dict[str, Any]:
    """Return what is written inside an exported file, without loading torch.

    Keys: `format`, `guie` (version), `preprocess` (fields of Preprocess), `embed_dim`, `space_id`, `backbone`
    (scripted or traced), `golden` (file name beside it) and `golden_sha256`. Raises UserError for a file
    that guie did not export.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = next(name for name in archive.namelist() if name.endswith(f"/extra/{METADATA}"))
            return json.loads(archive.read(member))
    except FileNotFoundError as error:
        raise UserError(f"pt: {path} does not exist; accepted: a file that guie-export wrote") from error
    except (OSError, zipfile.BadZipFile, StopIteration, ValueError) as error:
        raise UserError(f"pt: {path} is no readable file of guie-export; export it again") from error


def verify(path: str | Path, *, tolerance: float = TOLERANCE, device: str = "cpu") -> Verified:
    """Check a file that was exported before against the golden file beside it.

    Raises UserError when the archive is damaged, the golden file is missing or another one, or when a
    vector differs by more than `tolerance`.
    """
    facts = describe(path)
    target = Path(path)
    golden = target.parent / facts["golden"]
    if not golden.exists():
        raise UserError(f"pt: {golden} is missing beside {target.name}; accepted: the one of the same export")
    if hashlib.sha256(golden.read_bytes()).hexdigest() != facts["golden_sha256"]:
        raise UserError(f"pt: {golden} does not belong to {target.name}; export again")
    return compare(target, golden, tolerance=tolerance, device=device)


def compare(path: Path, golden: Path, *, tolerance: float = TOLERANCE, device: str = "cpu") -> Verified:
    """Run the comparison in a fresh process; see `verify`."""
    _check_archive(path)
    report = _run_fresh(path, golden, device)
    if report["smuggled"]:
        raise UserError(
            f"pt: loading {path.name} imported {', '.join(report['smuggled'])}; it must need torch alone"
        )
    if report["faults"]:
        raise UserError(f"pt: verification of {path.name} failed: {report['faults'][0]}")
    # Written so that a difference that is not a number fails too.
    if not report["difference"] <= tolerance:
        raise UserError(
            f"pt: verification of {path.name} failed: largest difference to the evaluation path "
            f"{report['difference']:.1e}; accepted: at most {tolerance:.0e}"
        )
    return Verified(
        path=path,
        golden=golden,
        difference=report["difference"],
        tolerance=tolerance,
        sizes=tuple((height, width) for height, width in report["sizes"]),
        batches=tuple(report["batches"]),
        dtypes=tuple(report["dtypes"]),
    )


def _check_archive(path: Path) -> None:
    """Compare every checksum of the archive: torch loads a flipped byte silently."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"pt: {path.name} is damaged: {error}; export it again") from error
    if damaged:
        raise UserError(f"pt: {path.name} is damaged in {damaged}; export it again")


def _run_fresh(path: Path, golden: Path, device: str) -> dict[str, Any]:
    command = [sys.executable, "-I", "-S", str(FRESH), str(path.absolute()), str(golden.absolute()), device]
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(
            [*command, *package_folders()], cwd=elsewhere, capture_output=True, text=True, check=False
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"pt: {path.name} does not run without the project: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def package_folders() -> list[str]:
    """Return where installed packages live; a checkout of the project is not among them."""
    folders = (Path(entry) for entry in sys.path if entry)
    return [str(folder) for folder in folders if folder.name in ("site-packages", "dist-packages")]
