"""The formats of exported files: what each is called, what it needs, how near it must come to the evaluation.

No torch here: `guie-export format=x` is judged at once.
"""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from guie.errors import UserError
from guie.export import runtime


@dataclass(frozen=True)
class Format:
    """`module` writes it, `reader` says what a file holds; `packages` come with the extra `extra`.

    `largest` is the difference to the evaluation that is allowed in fp32, of any component. A format whose
    program does the same for every picture does not hold gated views: `gated` is false. `refused` is a
    precision that it does not hold, and `why`. `beside` is what makes of a file's name that of its weights,
    where these may lie in a file of their own.
    """

    suffix: str
    module: str
    reader: str
    largest: float
    packages: tuple[str, ...] = ()
    extra: str = ""
    gated: bool = True
    refused: str = ""
    why: str = ""
    beside: str = ""

    @property
    def precisions(self) -> list[str]:
        """Return the precisions that files of this format may have."""
        return [precision for precision in PRECISIONS if precision != self.refused]

    def weights_of(self, path: Path) -> Path | None:
        """Return the file that weights of `path` may lie in, None where all are inside."""
        return path.with_name(self.beside.format(name=path.name, stem=path.stem)) if self.beside else None


PRECISIONS = ("fp32", "bf16", "fp16", "int8")
_ONNX = ("onnx", "onnxscript", "onnxruntime")
FORMATS = {
    "torchscript": Format(".pt", "torchscript", "archive", 1e-5, refused="int8"),
    "pt2": Format(".pt2", "pt2", "archive", 1e-5, refused="int8"),
    "onnx": Format(
        *(".onnx", "onnx", "onnx", 1e-4, _ONNX, "onnx"),
        gated=False,
        refused="bf16",
        why="ONNX Runtime computes no bf16 on a CPU",
        beside="{name}.data",
    ),
    "openvino": Format(
        *(".xml", "openvino", "openvino", 1e-3, (*_ONNX, "openvino"), "openvino"),
        gated=False,
        beside="{stem}.bin",
    ),
}
# What every file says of itself.
NEEDED = {"format", "golden", "golden_sha256", "tolerance"}
# Least cosine with the evaluation in fp32, for what is less precise than that.
COSINES = {"bf16": 0.999, "fp16": 0.9999, "int8": 0.98}


@dataclass(frozen=True)
class Tolerance:
    """What a verified file keeps: `largest` absolute difference, or `cosine` at least; None: not asked."""

    largest: float | None = None
    cosine: float | None = None

    def __str__(self) -> str:
        if self.largest is not None:
            return f"largest difference at most {self.largest:.0e}"
        return f"cosine at least {self.cosine}"

    def kept(self, difference: float, cosine: float) -> bool:
        """Tell whether what was found is allowed; what is not a number is not."""
        near = self.largest is None or difference <= self.largest
        return near and (self.cosine is None or cosine >= self.cosine)


def tolerance(format: str, precision: str) -> Tolerance:
    """Return what a file of this format and precision must keep to the evaluation."""
    if precision == "fp32":
        return Tolerance(largest=FORMATS[format].largest)
    return Tolerance(cosine=COSINES[precision])


def check_formats(names: str | Sequence[str]) -> list[str]:
    """Return the formats named; UserError for one that is not known, or whose packages are missing."""
    chosen: list[Any] = list(names) if isinstance(names, list | tuple) else [names]
    for name in chosen:
        if not isinstance(name, str) or name not in FORMATS:
            raise UserError(f"format: {name!r} is not known; accepted: {', '.join(FORMATS)}")
        found = FORMATS[name]
        if missing := [package for package in found.packages if find_spec(package) is None]:
            cure = f"pip install 'guie[{found.extra}]'"
            raise UserError(f"format: {name} needs {', '.join(missing)}, not installed; accepted: {cure}")
    if not chosen:
        raise UserError(f"format: nothing chosen; accepted: {', '.join(FORMATS)}")
    return list(dict.fromkeys(chosen))


def check_gated(names: str | Sequence[str]) -> None:
    """Raise UserError for a format that does not hold gated views."""
    for name in check_formats(names):
        if not FORMATS[name].gated:
            accepted = ", ".join(other for other, format in FORMATS.items() if format.gated)
            raise UserError(
                f"format: {name} with gated views, but its programs do the same for every picture; "
                f"accepted: {accepted}, or views without a gate"
            )


def check_precision(names: str | Sequence[str], precision: str) -> None:
    """Raise UserError for a format that does not hold a precision."""
    for name in check_formats(names):
        if precision == FORMATS[name].refused:
            found = FORMATS[name]
            accepted = ", ".join(found.precisions) + (f" ({found.why})" if found.why else "")
            others = " or ".join(other for other, one in FORMATS.items() if precision in one.precisions)
            raise UserError(
                f"precision: {precision} with format={name}; accepted: {accepted}, or {precision} with "
                f"format={others}"
            )


def check_name(path: str | Path, format: str) -> None:
    """Raise UserError for a file that would be called what files of another format are called."""
    suffix, own = Path(path).suffix.lower(), FORMATS[format].suffix
    other = next((name for name, one in FORMATS.items() if one.suffix == suffix != own), None)
    if other:
        raise UserError(
            f"pt: {path} with format={format}; accepted: a name that ends in {own}, or format={other}"
        )
    if format == "openvino" and suffix != own:
        raise UserError(f"pt: {path} with format=openvino; accepted: a name that ends in {own}")


def writer(name: str) -> ModuleType:
    """Return the module whose `write` makes files of a format."""
    return importlib.import_module(f"guie.export.{FORMATS[name].module}")


def read_facts(path: Path) -> dict[str, Any]:
    """Return what an exported file says of itself; OSError or ValueError where it says nothing.

    ValueError, too, where it says less than every file does, or names a file that does not lie beside it.
    """
    facts = _reader(path).read_facts(path)
    if not isinstance(facts, dict) or not NEEDED <= facts.keys():
        raise ValueError("not what guie-export writes into a file")
    named = [facts["golden"], *facts.get("parts", {}), *facts.get("kept", {})]
    if strange := [name for name in named if not isinstance(name, str) or not _lies_beside(name)]:
        raise ValueError(f"names {strange[0]!r}, which does not lie beside it")
    return facts


def _lies_beside(name: str) -> bool:
    return name not in ("", ".", "..") and Path(name).name == name


def damage(path: Path) -> str | None:
    """Return what is damaged of an exported file, None where all of it is as it was written."""
    try:
        return _reader(path).damage(path)
    except (OSError, ValueError) as error:
        return str(error)


def _reader(path: Path) -> ModuleType:
    try:
        kind = runtime.kind(path)
    except (zipfile.BadZipFile, AttributeError) as error:  # facts that are no dict
        raise ValueError(str(error)) from error
    return importlib.import_module(f"guie.export.{FORMATS[kind].reader}")
