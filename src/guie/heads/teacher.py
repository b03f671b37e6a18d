"""A frozen network that tells a head what it sees in the batch's pictures; no part of the head."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from guie.errors import UserError
from guie.heads.pairs import at_least_float32
from guie.types import Batch

Precision = Literal["auto", "fp32", "bf16"]


class Teacher(nn.Module):
    """A backbone (`configs/backbone`), an embedder, or what `guie.assembly.trained_embedder` returns; frozen.

    It sees `Batch.images` as the student does, after augmentation, resized to its own size and normalised by
    its own mean and std. `vector_dim` and `token_dim` are its widths. `precision` "auto" is bf16 on a GPU
    that has it, else fp32. Whoever holds it keeps it from being a submodule, so that its weights are not
    saved and not trained; it follows the pictures to their device.
    """

    def __init__(self, network: Any, precision: Precision = "auto") -> None:
        super().__init__()
        network = network[0] if isinstance(network, tuple) else network  # its meta data stand beside it
        if not isinstance(network, nn.Module) or not hasattr(network, "preprocess"):
            raise UserError(
                f"head.teacher: {type(network).__name__} received; accepted: a backbone or a trained run"
            )
        if precision not in ("auto", "fp32", "bf16"):
            raise UserError(f"head.precision: {precision!r} received; accepted: auto, fp32, bf16")
        self.network: Any = network
        self.backbone: Any = getattr(network, "backbone", network)
        self.preprocess: Any = network.preprocess
        self.token_dim: int = self.backbone.out_dim
        self.vector_dim: int = getattr(network, "embed_dim", self.token_dim)
        self.precision = precision
        kind = next((p.dtype for p in self.network.parameters()), torch.float32)
        stated = self.preprocess.mean, self.preprocess.std
        mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in stated)
        self.register_buffer("scale", (1 / (255 * std)).to(kind))
        self.register_buffer("shift", (-mean / std).to(kind))
        self.eval().requires_grad_(False)

    def vectors(self, batch: Batch) -> Tensor:
        """Return the embedder's raw vectors (B, E), or a backbone's: its own, the class token or the mean."""
        with self._running(batch.images):
            images = self._resized(batch.images)
            if self.network is not self.backbone:
                return self._embedded(images, batch.side).raw[:, : self.vector_dim]
            return _pooled(_float(self.network(self._normalised(images))), self.backbone.prefix_tokens)

    def _embedded(self, images: Tensor, side: Tensor | None) -> Any:
        if not getattr(self.network, "side_dim", 0):
            return self.network(images)
        if side is None:
            raise UserError("head.teacher: it reads side inputs; accepted: side_inputs=true")
        return self.network(images, side)

    def patches(self, batch: Batch) -> Tensor:
        """Return patch tokens, or the places of a map, as a map (B, C, h, w)."""
        with self._running(batch.images):
            found = _float(self.backbone(self._normalised(self._resized(batch.images))))
        if isinstance(found, Tensor) and found.ndim == 3:
            return on_grid(found[:, self.backbone.prefix_tokens :], self.preprocess.size_px)
        if isinstance(found, Tensor) and found.ndim == 4:
            return found
        raise UserError("head.teacher: it gives no patch tokens; accepted: a backbone of tokens or one map")

    @contextmanager
    def _running(self, images: Tensor) -> Iterator[None]:
        if images.ndim != 4:
            raise UserError(
                "head.teacher: the batch holds cached features, and a teacher has to see the pictures; "
                "accepted: trainer.cache_features=false"
            )
        if self.get_buffer("scale").device != images.device:
            self.to(images.device)
        half = self.precision == "bf16" or (
            self.precision == "auto" and images.is_cuda and torch.cuda.is_bf16_supported()
        )
        with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            yield

    def _resized(self, images: Tensor) -> Tensor:
        size = tuple(self.preprocess.size_px)
        if tuple(images.shape[2:]) == size:
            return images
        mode, real = self.preprocess.interpolation, images if images.is_floating_point() else images.float()
        return functional.interpolate(real, size=size, mode=mode, antialias=True).clamp(0, 255)

    def _normalised(self, images: Tensor) -> Tensor:
        scale = self.get_buffer("scale")
        return torch.addcmul(self.get_buffer("shift"), images.to(scale.dtype), scale)


class Taught(nn.Module):
    """The space id of the run that teaches, kept with the head: a run goes on with the teacher it began with.

    `meta` is what was saved with the teacher: its `space_id`, and its checkpoint's folder as `ckpt`.
    """

    def __init__(self, meta: Mapping[str, Any]) -> None:
        super().__init__()
        self.space_id, self.ckpt = str(meta["space_id"]), meta["ckpt"]

    def get_extra_state(self) -> Tensor:
        """Return the letters of the space id, uint8."""
        return torch.tensor(list(self.space_id.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Raise UserError where `state` is the space id of another teacher."""
        former = bytes(state.tolist()).decode()
        if former != self.space_id:
            raise UserError(
                f"head.teacher.path: {self.ckpt} has space id {self.space_id}, this run was taught by "
                f"{former}; accepted: the checkpoint of that space id (step_*), or a new run_dir"
            )


def on_grid(tokens: Tensor, size_px: tuple[int, ...]) -> Tensor:
    """Return patch tokens (B, T, C) as a map (B, C, h, w) of the shape of the picture.

    Leading tokens (class, registers) that the grid has no room for are left out.
    Raises UserError where no grid of at most T tokens has the picture's shape.
    """
    height, width = size_px[0], size_px[1]
    count = tokens.shape[1]
    for prefix in range(min(count, 17)):
        rows = math.isqrt((count - prefix) * height // width)
        if rows and (count - prefix) % rows == 0 and rows * width == (count - prefix) // rows * height:
            return tokens[:, prefix:].unflatten(1, (rows, -1)).permute(0, 3, 1, 2)
    raise UserError(f"head: {count} tokens of pictures of {height} x {width}; accepted: one per square patch")


def _float(found: Any) -> Any:
    """Return what a backbone gave, in at least float32."""
    if isinstance(found, list):
        return [_float(stage) for stage in found]
    return at_least_float32(found)


def _pooled(found: Tensor | list[Tensor], prefix: int) -> Tensor:
    if isinstance(found, list):
        return torch.cat([_pooled(stage, prefix) for stage in found], 1)
    if found.ndim == 3:
        return found[:, 0] if prefix else found.mean(1)
    return found.mean((2, 3)) if found.ndim == 4 else found
