"""TorchScript: one file that torch alone runs, in Python and in C++."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from guie.export.archive import METADATA
from guie.export.composed import Example, Lowering, Network, composed
from guie.export.prepare import Prepare
from guie.export.source import Request, Source


def write(source: Source, request: Request, path: Path, facts: Mapping[str, Any]) -> list[Path]:
    """Write `path`; return it, the one file that there is."""
    with torchscript_allowed():
        script, how = program(source, request)
        inside = {METADATA: json.dumps({**facts, "backbone": how})}
        torch.jit.save(script, str(path), _extra_files=inside)
    return [path]


def program(source: Source, request: Request) -> tuple[torch.jit.ScriptModule, str]:
    """Return the program for embedders on the CPU in eval mode, and how their backbones came in.

    "scripted" where TorchScript can compile them, else "traced"; what surrounds a backbone is always traced,
    with a free batch. Neither is believed: the written file is compared with the evaluation.
    """
    how: list[str] = []

    def lower(network: Network, example: Example) -> nn.Module:
        lowered, kind = _lowered(network, example)
        how.append(kind)
        return lowered

    with torchscript_allowed(), torch.no_grad():
        whole = composed(source, request, Lowering(Prepare, lower))
        return torch.jit.script(whole), "scripted" if set(how) == {"scripted"} else "traced"


def _lowered(network: Network, example: Example) -> tuple[torch.jit.ScriptModule, str]:
    # The compiler refuses a model with whatever its own internals raise; tracing is the way out for each.
    try:
        return _trace(_with_scripted_backbone(network), example), "scripted"
    except Exception:
        return _trace(network, example), "traced"


def _with_scripted_backbone(network: Network) -> Network:
    """Return a copy that shares all weights; the caller's embedder keeps its own backbone."""
    import copy

    twin = copy.copy(network.embedder)
    twin._modules = dict(network.embedder._modules)
    backbone: nn.Module = torch.jit.script(network.embedder.backbone)  # type: ignore[assignment]
    twin._modules["backbone"] = backbone
    return Network(twin)


def _trace(network: Network, example: Example) -> torch.jit.ScriptModule:
    # torch's own check of a trace fails on attention layers that are exact (open_clip's ViT).
    return torch.jit.trace(network.eval(), example, check_trace=False)


@contextmanager
def torchscript_allowed() -> Iterator[None]:
    """Silence what is known: TorchScript is deprecated since torch 2.11 but asked; a trace fixes sizes."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.\w+` is deprecated", category=category)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        # The compiler's remark on a model it cannot take; tracing follows.
        warnings.filterwarnings("ignore", message="The TorchScript type system doesn't", category=UserWarning)
        yield
