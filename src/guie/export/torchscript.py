"""Write an embedder as one TorchScript file that runs without guie, and prove it before it gets its name."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn

from guie.errors import UserError
from guie.export import program
from guie.export.destination import check_destination, move_in_place, staging
from guie.export.golden import GOLDEN_BATCHES, GOLDEN_SIZES, Golden, make_golden
from guie.export.verify import METADATA, TOLERANCE, Verified, compare, describe

GOLDEN_NAME = "golden.npz"
# The golden pairs and the archive's own bookkeeping, on top of the weights.
SPARE_BYTES = 32_000_000


def export_torchscript(
    embedder: nn.Module,
    path: str | Path,
    *,
    space_id: str = "",
    overwrite: bool = False,
    golden_sizes: tuple[tuple[int, int], ...] = GOLDEN_SIZES,
    batches: tuple[int, ...] = GOLDEN_BATCHES,
    tolerance: float = TOLERANCE,
) -> Verified:
    """Write `path` and the golden file beside it; return what the verification found.

    The file takes (B,3,H,W) RGB, uint8 or float 0..255, any B, H, W, and gives (B,D) float32 unit vectors.
    It is built in a folder of its own, loaded in a process without the project, compared with
    the evaluation path at `golden_sizes` (height, width) and `batches`, and only then moved in place: when
    anything fails, what lay at `path` before is untouched. Raises UserError (destination, verification).
    """
    target = check_destination(path, overwrite=overwrite, need_bytes=_size_bytes(embedder) + SPARE_BYTES)
    name = golden_name(target)
    with staging(target) as folder, evaluating(embedder) as model:
        golden = make_golden(model, sizes=golden_sizes, batches=batches)
        digest = golden.save(folder / name)
        facts = {"space_id": space_id, "golden": name, "golden_sha256": digest}
        _write(model, folder / target.name, facts, golden)
        verified = compare(folder / target.name, folder / name, tolerance=tolerance)
        move_in_place(folder / name, target.parent / name)
        move_in_place(folder / target.name, target)
    return replace(verified, path=target, golden=target.parent / name)


def golden_name(target: Path) -> str:
    """Return `golden.npz`, or `<stem>.golden.npz` where that one belongs to another file of the folder."""
    recorded = _recorded_golden(target) if target.exists() else None
    if recorded:
        return recorded
    taken = (target.parent / GOLDEN_NAME).exists()
    return f"{target.stem}.{GOLDEN_NAME}" if taken else GOLDEN_NAME


def _recorded_golden(target: Path) -> str | None:
    try:
        return describe(target)["golden"]
    except UserError:
        return None


def _write(embedder: nn.Module, path: Path, facts: dict[str, str], golden: Golden) -> None:
    script, how = program.build_program(embedder)
    metadata = facts | {
        "format": "torchscript",
        "guie": _version(),
        "preprocess": asdict(embedder.preprocess),  # type: ignore[call-overload]
        "embed_dim": golden.vectors[0].shape[1],
        "backbone": how,
    }
    with program.torchscript_allowed():
        torch.jit.save(script, str(path), _extra_files={METADATA: json.dumps(metadata)})


def _version() -> str:
    try:
        return version("guie")
    except PackageNotFoundError:
        return "unknown"


def _size_bytes(embedder: nn.Module) -> int:
    tensors = [*embedder.parameters(), *embedder.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def evaluating(embedder: nn.Module) -> Iterator[nn.Module]:
    """Yield the embedder on the CPU in eval mode (from another device a copy); modes come back afterwards."""
    modes = {module: module.training for module in embedder.modules()}
    embedder.eval()
    try:
        on_cpu = all(tensor.device.type == "cpu" for tensor in [*embedder.parameters(), *embedder.buffers()])
        yield embedder if on_cpu else copy.deepcopy(embedder).cpu()
    finally:
        for module, mode in modes.items():
            module.training = mode
