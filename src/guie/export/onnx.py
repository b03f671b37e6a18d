"""ONNX: one program for ONNX Runtime and for all that reads it; pictures are uint8, of any size.

No torch at import: what a file says of itself is read without it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guie.errors import UserError
from guie.export.archive import METADATA
from guie.export.formats import check_gated, check_precision
from guie.export.protobuf import Entry, append_metadata, metadata
from guie.export.verify import sha256_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.onnx import ONNXProgram

    from guie.export.source import Request, Source

# ONNX Runtime from 1.17 on; the first with Gelu as one operator.
OPSET = 20
INPUT, OUTPUT = "images", "vectors"
# Weights above this lie in a file beside: protobuf ends at 2 GB, and whoever loads it holds it twice.
INLINE_BYTES = 1_500_000_000
_PIECE = 1 << 20


def write(source: Source, request: Request, path: Path, facts: Mapping[str, Any]) -> list[Path]:
    """Write `path`, and `path`.data beside it where the weights are large; return what was written.

    Raises UserError for what ONNX cannot hold: gated views, bf16, an operator that it has not.
    """
    check(source, request)
    files = program_file(source, request, path)
    parts = {file.name: sha256_of(file) for file in files[1:]}
    seal(path, {**facts, **limits(source), "opset": OPSET, "parts": parts})
    return files


def check(source: Source, request: Request) -> None:
    """Raise UserError for a source or request that no ONNX file can hold."""
    if source.views is not None and source.views.gating is not None:
        check_gated("onnx")
    check_precision("onnx", request.precision)


def limits(source: Source) -> dict[str, int]:
    """Return `most_px`, the longest side that a program takes, where views have one: see views.Padded."""
    looks = source.views.looks.values() if source.views else ()
    found = [look.most_px for look in looks if hasattr(look, "most_px")]
    return {"most_px": min(found)} if found else {}


def program_file(source: Source, request: Request, path: Path) -> list[Path]:
    """Write the program of a source without facts; return what was written."""
    if request.precision == "int8":
        return _quantised(source, request, path)
    from guie.export.pt2 import program

    made = translated(program(source, request, "other"), free_axes(request))
    return save(made, path, inline_bytes=INLINE_BYTES)


def _quantised(source: Source, request: Request, path: Path) -> list[Path]:
    from guie.export.quantise import quantise

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole = Path(folder) / "whole.onnx"
        program_file(source, replace(request, precision="fp32"), whole)
        return quantise(whole, path, source, request)


def save(program: ONNXProgram, path: Path, *, inline_bytes: int) -> list[Path]:
    """Write the program and, where its weights take more than `inline_bytes`, these beside it."""
    tensors = [value.const_value for value in program.model.graph.initializers.values()]
    beside = sum(tensor.nbytes for tensor in tensors if tensor is not None) > inline_bytes
    program.save(str(path), external_data=beside)
    return [path, path.with_name(f"{path.name}.data")] if beside else [path]


def seal(path: Path, facts: Mapping[str, Any]) -> None:
    """Write `facts` into a finished file, and with them the sha256 of all that is in it."""
    append_metadata(path, METADATA, json.dumps({**facts, "sha256": sha256_of(path)}))


def read_facts(path: Path) -> dict[str, Any]:
    """Return what was written into the file; OSError or ValueError where nothing was."""
    return json.loads(_facts(path).value)


def damage(path: Path) -> str | None:
    """Return what is damaged, None where all bytes are those that were written."""
    try:
        entry = _facts(path)
        facts = json.loads(entry.value)
    except (OSError, ValueError) as error:
        return str(error)
    return (
        None
        if _sha256_before(path, entry.start) == facts.get("sha256")
        else "bytes differ from those written"
    )


def _facts(path: Path) -> Entry:
    found = next((entry for entry in metadata(path) if entry.key == METADATA), None)
    if found is None:
        raise ValueError(f"no {METADATA} inside")
    return found


def _sha256_before(path: Path, end: int) -> str:
    """Return the sha256 of the first `end` bytes of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(min(_PIECE, end - file.tell())):
            digest.update(piece)
    return digest.hexdigest()


def free_axes(request: Request) -> dict[int, str]:
    """Return the names of the axes of pictures that may have any size."""
    sizes = {} if request.pixels == "normalised" or request.size_px else {2: "height", 3: "width"}
    return sizes | ({0: "batch"} if request.batch is None else {})


def translated(exported: ExportedProgram, axes: Mapping[int, str] | None = None) -> ONNXProgram:
    """Return the program in ONNX's operators, without the paths of this machine that torch notes in it.

    `axes` names those of its input that may have any size. Raises UserError naming an operator that ONNX has
    not, and the module that needs it.
    """
    import torch

    from guie.export.operators import own
    from guie.export.precision import mend

    try:
        with _quiet():
            program = torch.onnx.export(
                exported,
                (),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=(dict(axes),) if axes else None,
                custom_translation_table=own(),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise _refusal(error, exported) from error
    if program is None:
        raise UserError("format: onnx gave no program; accepted: torchscript, pt2")
    _without_notes(program)
    mend(program.model)
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to errors what the translator has to say."""
    log = logging.getLogger("onnxscript")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _without_notes(program: ONNXProgram) -> None:
    model = program.model
    for node in [*model.graph.all_nodes(), *(n for f in model.functions.values() for n in f.all_nodes())]:
        node.metadata_props.clear()
        node.doc_string = None
    model.metadata_props.clear()


def _refusal(error: BaseException, exported: ExportedProgram) -> UserError:
    """Return the one line that names the operator that could not be translated, and whose it is."""
    found = re.search(r"target=torch\.ops\.([\w.]+)\]", _told(error))
    if found is None:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return UserError(f"format: onnx cannot hold this network ({reason}); accepted: torchscript, pt2")
    operator = found[1]
    return UserError(
        f"format: onnx has no operator for {operator}, which {_user(exported, operator)} needs; "
        "accepted: torchscript, pt2, or a network without it"
    )


def _told(error: BaseException | None) -> str:
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__
    return "\n".join(texts)


def _user(exported: ExportedProgram, operator: str) -> str:
    """Return the module that calls `operator`, as its path and class."""
    for node in exported.run_decompositions().graph.nodes:
        if str(node.target) == operator and (stack := node.meta.get("nn_module_stack")):
            path, kind = list(stack.values())[-1]
            name = kind if isinstance(kind, str) else kind.__qualname__
            where = path.removeprefix("L['self'].")
            return f"{where} ({name.rpartition('.')[2]})"
    return "the network"
