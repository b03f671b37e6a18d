"""OpenVINO: the ONNX program in Intel's two files, .xml and .bin. No torch at import, no report to Intel."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr, unescape

from guie.errors import UserError
from guie.export import onnx
from guie.export.formats import check_gated
from guie.export.verify import sha256_of

if TYPE_CHECKING:
    from guie.export.source import Request, Source

# What guie says is one line of the file's last <rt_info>, where OpenVINO finds it, too.
_FACTS = re.compile(rb"\t\t<guie value=(\"[^\"]*\"|'[^']*') />\n")
_END = b"\t</rt_info>\n</net>"


def write(source: Source, request: Request, path: Path, facts: Mapping[str, Any]) -> list[Path]:
    """Write `path` and the weights beside it (.bin); return both.

    fp16 are weights stored in half, computed in float32; in bf16 the machine computes what the program
    holds in bf16, the backbone. Raises UserError for what OpenVINO cannot hold: gated views, an operator
    that it has not.
    """
    check(source, request)
    weights = path.with_suffix(".bin")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        half = request.precision == "fp16"
        held = replace(request, precision="fp32") if half else request
        program = onnx.program_file(source, held, Path(folder) / "model.onnx")
        convert(program[0], path, half=half)
    seal(path, {**facts, **onnx.limits(source), "parts": {weights.name: sha256_of(weights)}})
    return [path, weights]


def check(source: Source, request: Request) -> None:
    """Raise UserError for a source that no OpenVINO file can hold."""
    if source.views is not None and source.views.gating is not None:
        check_gated("openvino")


def convert(program: Path, path: Path, *, half: bool) -> None:
    """Write an ONNX file as `path` and its .bin; UserError names an operator that OpenVINO has not."""
    openvino = imported()
    try:
        model = openvino.Core().read_model(program)
        openvino.save_model(model, path, compress_to_fp16=half)
    except RuntimeError as error:
        raise _refusal(error) from error


def imported() -> ModuleType:
    """Import openvino without the package through which it reports each import and conversion."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _refusal(error: RuntimeError) -> UserError:
    found = re.search(r"No conversion rule found for operations: (.+)", str(error))
    if found:
        return UserError(
            f"format: openvino has no operator for ONNX's {found[1].strip()}; accepted: onnx, torchscript, "
            "pt2, or a network without it"
        )
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return UserError(f"format: openvino cannot hold this network ({lines[-1]}); accepted: onnx, torchscript")


def seal(path: Path, facts: Mapping[str, Any]) -> None:
    """Write `facts` into a finished .xml, and with them the sha256 of all else in it."""
    content = path.read_bytes()
    if not content.endswith((_END, _END + b"\n")):
        raise ValueError(f"{path.name} does not end in <rt_info>, as OpenVINO's files do")
    told = json.dumps({**facts, "sha256": hashlib.sha256(content).hexdigest()})
    before, _, after = content.rpartition(_END)
    path.write_bytes(before + f"\t\t<guie value={quoteattr(told)} />\n".encode() + _END + after)


def read_facts(path: Path) -> dict[str, Any]:
    """Return what was written into the file; OSError or ValueError where nothing was."""
    return _opened(path)[0]


def damage(path: Path) -> str | None:
    """Return what is damaged of the .xml, None where all bytes are those that were written."""
    try:
        facts, rest = _opened(path)
    except (OSError, ValueError) as error:
        return str(error)
    kept = hashlib.sha256(rest).hexdigest() == facts.get("sha256")
    return None if kept else "bytes differ from those written"


def _opened(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the facts and the file without them."""
    content = path.read_bytes()
    found = list(_FACTS.finditer(content))
    if len(found) != 1:
        raise ValueError(f"no OpenVINO file of guie-export: {len(found)} times <guie> inside")
    line = found[0]
    told = unescape(line[1][1:-1].decode(), {"&quot;": '"'})
    return json.loads(told), content[: line.start()] + content[line.end() :]
