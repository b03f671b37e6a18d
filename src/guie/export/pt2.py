"""torch.export's programs (.pt2): graphs that torch alone loads, on any device, and compilers read.

A graph has no branches. Gated views take two where pictures as high as wide get views of their own: `square`
and `other`, one archive, of which export.runtime runs the one that is due. Else there is one, `model`, which
`torch.export.load` finds, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import traceback
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.export.pt2_archive._package import package_pt2

from guie.errors import UserError
from guie.export.archive import METADATA, rewrite
from guie.export.composed import Lowering, composed
from guie.export.graph import prepared
from guie.export.source import Request, Source
from guie.views import Padded

Shape = Literal["square", "other"]
# A picture of no special size: torch fixes a free side that it sees to be 0 or 1, or equal to another.
EXAMPLE_PX = (97, 131)
_WEIGHT, _CONFIG = "/data/weights/weight_", "_weights_config.json"


def write(source: Source, request: Request, path: Path, facts: Mapping[str, Any]) -> list[Path]:
    """Write `path`; return it, the one file that there is. Raises UserError for what no such file holds."""
    made = programs(source, request)
    package_pt2(str(path), exported_programs=made, extra_files={METADATA: json.dumps(facts)})
    if len(made) > 1:
        share_weights(path)
    return [path]


def programs(source: Source, request: Request) -> dict[str, ExportedProgram]:
    """Return the programs by name: `model`, or `square` and `other`."""
    gating = source.views.gating if source.views else None
    if gating is None or gating.square is None:
        return {"model": program(source, request, "other")}
    if request.size_px is None:
        shapes: tuple[Shape, Shape] = ("square", "other")
        return {shape: program(source, request, shape) for shape in shapes}
    return {"model": program(source, request, "square" if gating.is_square(*request.size_px) else "other")}


def program(source: Source, request: Request, shape: Shape) -> ExportedProgram:
    """Return one program for pictures of a `shape`, without what torch notes of this machine's files.

    `source` is on the CPU in eval mode. Raises UserError for a network that torch.export cannot take.
    """
    whole = composed(source, request, Lowering(prepared, lambda network, _: network, shape))
    images, free = example(source, request)
    try:
        with torch.no_grad():
            made = torch.export.export(whole, (images,), dynamic_shapes=(free,), strict=False)
    except Exception as error:  # its own, sympy's or the network's: each refuses in its own way
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"format: torch.export cannot take {_place(whole, error)} ({reason}); accepted: torchscript, "
            "or a network without branches on values"
        ) from error
    for module in made.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return made


def _place(whole: nn.Module, error: BaseException) -> str:
    """Return the innermost module in which an error arose, as its path and class."""
    names = {module: name for name, module in whole.named_modules()}
    found = "the network"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and names.get(module):
            found = f"{names[module]} ({type(module).__name__})"
    return found


def example(source: Source, request: Request) -> tuple[torch.Tensor, dict[int, Dim]]:
    """Return made-up pictures, for a file keeps them, and which of their sides are free.

    Padding reduces pictures above some size first, which a graph does not: there that size is the largest.
    """
    bare = request.pixels == "normalised"
    size = source.preprocess.size_px if bare else request.size_px or EXAMPLE_PX
    images = torch.zeros(request.batch or 2, 3, *size, dtype=torch.float32 if bare else torch.uint8)
    free = {0: Dim("batch")} if request.batch is None else {}
    if not bare and request.size_px is None:
        looks = source.views.looks.values() if source.views else ()
        most = min((look.most_px for look in looks if isinstance(look, Padded)), default=None)
        free |= {2: Dim("height", max=most), 3: Dim("width", max=most)}
    return images, free


def share_weights(path: Path) -> None:
    """Keep of equal weights in an archive one, which all programs name."""
    kept: dict[str, str] = {}
    renamed: dict[str, str] = {}

    def once(whole: zipfile.ZipFile, entry: zipfile.ZipInfo) -> str | None:
        if _WEIGHT in entry.filename and not entry.filename.endswith(".json"):
            name = os.path.basename(entry.filename)
            renamed[name] = kept.setdefault(_digest(whole, entry), name)
            return None if renamed[name] == name else ""
        return _naming(whole.read(entry), renamed) if entry.filename.endswith(_CONFIG) else None

    rewrite(path, once)


def _digest(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> str:
    with archive.open(entry) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _naming(config: bytes, renamed: Mapping[str, str]) -> str:
    """Return torch's table of weights with other names of their files."""
    told = json.loads(config)
    for weight in told["config"].values():
        weight["path_name"] = renamed.get(weight["path_name"], weight["path_name"])
    return json.dumps(told)
