"""TorchScript: one file that torch alone runs, in Python and in C++."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from guie.export.archive import METADATA, rewrite
from guie.export.composed import Example, Lowering, Network, composed
from guie.export.prepare import prepared
from guie.export.source import Request, Source


def write(source: Source, request: Request, path: Path, facts: Mapping[str, Any]) -> list[Path]:
    """Write `path`; return it, the one file that there is."""
    with torchscript_allowed():
        torch.jit.save(program(source, request), str(path), _extra_files={METADATA: json.dumps(facts)})
    # What debuggers read are lines of the source, and where it lay on this machine.
    rewrite(path, lambda _, entry: "" if entry.filename.endswith(".debug_pkl") else None)
    return [path]


def program(source: Source, request: Request) -> torch.jit.ScriptModule:
    """Return the program for embedders on the CPU in eval mode.

    Networks are traced with a free batch, for the compiler takes hardly any; what is around them is compiled.
    Neither is believed: the written file is compared with the evaluation.
    """
    with torchscript_allowed(), torch.no_grad():
        return torch.jit.script(composed(source, request, Lowering(prepared, traced)))


def traced(network: Network, example: Example) -> torch.jit.ScriptModule:
    """Return what the network did to the example."""
    # torch's own check of a trace fails on attention layers that are exact (open_clip's ViT).
    return torch.jit.trace(network.eval(), example, check_trace=False)


@contextmanager
def torchscript_allowed() -> Iterator[None]:
    """Silence what is known: TorchScript is deprecated since torch 2.11 but asked; a trace fixes sizes."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.\w+` is deprecated", category=category)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield
