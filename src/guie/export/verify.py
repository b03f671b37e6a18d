"""Load an exported file in a process without the project and compare it with its golden pairs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guie.errors import UserError
from guie.export.alone import last_words, run_alone
from guie.export.contract import check_promise
from guie.export.formats import Tolerance, damage, read_facts

FRESH = Path(__file__).with_name("fresh.py")


@dataclass(frozen=True)
class Verified:
    """An exported file that gave its golden vectors in a fresh process.

    `difference` is the largest absolute one over all components, `cosine` the least one; `sizes` are (height,
    width); `dtypes` and `batches` were tried for each size; `golden` lies beside `path`.
    """

    path: Path
    golden: Path
    difference: float
    cosine: float
    tolerance: Tolerance
    sizes: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    dtypes: tuple[str, ...]

    def __str__(self) -> str:
        sizes = ", ".join(f"{height}x{width}" for height, width in self.sizes)
        batches = "/".join(map(str, self.batches))
        tried = f"sizes {sizes}, batches {batches}, {' and '.join(self.dtypes)}"
        found = f"largest difference {self.difference:.1e}, least cosine {self.cosine:.6f}"
        return f"{self.path}: verified in a fresh process, {found} (accepted: {self.tolerance}) over {tried}"


def describe(path: str | Path) -> dict[str, Any]:
    """Return what is written inside an exported file, without loading torch.

    Keys: `format`, `guie` (version), `precision`, `batch`, `size_px` and `pixels` (see source.Request),
    `preprocess` (fields of Preprocess), `embed_dim`, `space_id`, `golden` (file name beside it),
    `golden_sha256`, `parts` (sha256 by file name of what lies beside it), `tolerance` (`largest`, `cosine`),
    `contract` (fields of Contract, where it keeps one).
    Raises UserError for a file that guie did not export.
    """
    try:
        return read_facts(Path(path))
    except FileNotFoundError as error:
        raise UserError(f"pt: {path} does not exist; accepted: a file that guie-export wrote") from error
    except (OSError, ValueError) as error:
        raise UserError(f"pt: {path} is no readable file of guie-export; export it again") from error


def verify(path: str | Path, *, device: str = "cpu") -> Verified:
    """Check a file that was exported before against the golden file beside it.

    Raises UserError when the file or a part of it is damaged, the golden file is missing or another one, when
    vectors differ by more than the file's tolerance, or it does not keep the contract that it says it keeps.
    """
    facts = describe(path)
    target = Path(path)
    golden = target.parent / facts["golden"]
    for name, digest in {golden.name: facts["golden_sha256"], **facts.get("parts", {})}.items():
        _check_part(target, target.parent / name, digest)
    verified = compare(target, golden, Tolerance(**facts["tolerance"]), device=device)
    check_promise(target, facts, device)
    return verified


def compare(path: Path, golden: Path, tolerance: Tolerance, *, device: str = "cpu") -> Verified:
    """Run the comparison in a fresh process; see `verify`."""
    if where := damage(path):
        raise UserError(f"pt: {path.name} is damaged: {where}; export it again")
    report = _run_fresh(path, golden, device)
    if report["smuggled"]:
        smuggled = ", ".join(report["smuggled"])
        raise UserError(f"pt: loading {path.name} imported {smuggled}; it must do without")
    if report["faults"]:
        raise UserError(f"pt: verification of {path.name} failed: {report['faults'][0]}")
    found = report["difference"], report["cosine"]
    if not tolerance.kept(*found):
        raise UserError(
            f"pt: verification of {path.name} failed: largest difference to the evaluation {found[0]:.1e}, "
            f"least cosine {found[1]:.6f}; accepted: {tolerance}"
        )
    return Verified(
        path=path,
        golden=golden,
        difference=found[0],
        cosine=found[1],
        tolerance=tolerance,
        sizes=tuple((height, width) for height, width in report["sizes"]),
        batches=tuple(report["batches"]),
        dtypes=tuple(report["dtypes"]),
    )


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_part(target: Path, part: Path, digest: str) -> None:
    if not part.exists():
        raise UserError(f"pt: {part} is missing beside {target.name}; accepted: the one of the same export")
    if sha256_of(part) != digest:
        raise UserError(f"pt: {part} does not belong to {target.name}; export again")


def _run_fresh(path: Path, golden: Path, device: str) -> dict[str, Any]:
    done = run_alone(FRESH, str(path.absolute()), str(golden.absolute()), device)
    if done.returncode:
        said = last_words(done).rstrip(".")
        accepted = "a network that the format runs, another format or precision"
        raise UserError(f"pt: {path.name} does not run without the project ({said}); accepted: {accepted}")
    return json.loads(done.stdout.splitlines()[-1])
