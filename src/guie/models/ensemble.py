"""Several backbones as one: each with its own preprocessing and pooling, each brought to unit length."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from guie.errors import UserError
from guie.models.pooling import for_stages, pooled
from guie.types import Preprocess


class Member(nn.Module):
    """A backbone with its pooling: pictures (B, 3, H, W) in 0..1 at any size to unit vectors (B, C).

    Pictures of another size are resized (bicubic, antialiased). What they are normalised by is a buffer: it
    comes with the weights' hub tag, which a checkpoint's reader does not have.
    """

    def __init__(self, backbone: Any, pool: nn.Module | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = for_stages(pool or nn.Identity(), len(getattr(backbone, "stages", [])))
        self.size_px: tuple[int, int] = backbone.preprocess.size_px
        mean, std = torch.tensor([backbone.preprocess.mean, backbone.preprocess.std])
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C) of unit length, in at least float32."""
        if tuple(x.shape[2:]) != self.size_px:
            x = functional.interpolate(x, self.size_px, mode="bicubic", antialias=True)
        found = self.backbone((x - self.get_buffer("mean")) / self.get_buffer("std"))
        if self.backbone.kind != "vector":
            found = pooled(self.pool, found, self.backbone.prefix_tokens)
        return functional.normalize(found if found.dtype == torch.float64 else found.float(), dim=1)


class Ensemble(nn.Module):
    """Named backbones side by side: their unit vectors one behind the other, or their mean.

    `pools` gives each member that has maps or tokens its pooling, by the same names. `weights` multiply the
    unit vectors (1 where there is none). Pictures come once, at the size of the largest member, cut by `crop`
    (null: the first member's rule) and in 0..1; each member resizes and normalises for itself.

    `forward` returns (B, out_dim): the sum of widths for "concat", the one width of all for "mean".
    """

    def __init__(
        self,
        members: dict[str, Any],
        pools: dict[str, Any] | None = None,
        weights: dict[str, float] | None = None,
        mode: Literal["concat", "mean"] = "concat",
        crop: Literal["stretch", "center", "pad"] | None = None,
    ) -> None:
        super().__init__()
        _check_names(members, pools or {}, weights or {})
        for name, member in members.items():
            if member.kind != "vector" and name not in (pools or {}):
                raise UserError(
                    f"backbone.pools.{name}: none for the {member.kind} of '{name}'; accepted: a pool"
                )
        self.members = nn.ModuleDict(
            {name: Member(member, (pools or {}).get(name)) for name, member in members.items()}
        )
        factors = [float((weights or {}).get(name, 1.0)) for name in members]
        self.register_buffer("factors", torch.tensor(factors))
        self.register_buffer("recipe", _digest(mode, self.members))
        self.mode = mode
        self.kind, self.prefix_tokens = "vector", 0
        self.out_dim = _width({name: member.out_dim for name, member in members.items()}, mode)
        self.preprocess = _common([member.preprocess for member in members.values()], crop)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_dim) of pictures (B, 3, H, W) in 0..1."""
        vectors = [member(x) for member in self.members.values()]
        factors = self.get_buffer("factors")
        weighted = [vector * factors[place] for place, vector in enumerate(vectors)]
        return torch.cat(weighted, dim=1) if self.mode == "concat" else torch.stack(weighted).mean(0)


def _check_names(members: Mapping[str, Any], pools: Mapping[str, Any], weights: Mapping[str, float]) -> None:
    if not members:
        raise UserError("backbone.members: none received; accepted: backbones by name")
    for key, given in {"pools": pools, "weights": weights}.items():
        for name in given:
            if name not in members:
                raise UserError(f"backbone.{key}.{name}: no such member; accepted: {', '.join(members)}")


def _digest(mode: str, members: nn.ModuleDict) -> Tensor:
    """Return a number () for what the weights do not show: how members are pooled, sized and put together."""
    parts = [f"{name} {type(member.pool).__name__} {member.size_px}" for name, member in members.items()]
    digest = hashlib.sha256(" ".join([mode, *parts]).encode()).digest()
    return torch.tensor(int.from_bytes(digest[:7], "big"))


def _width(widths: Mapping[str, int], mode: str) -> int:
    if mode not in ("concat", "mean"):
        raise UserError(f"backbone.mode: {mode!r} received; accepted: concat, mean")
    if mode == "concat":
        return sum(widths.values())
    if len(set(widths.values())) > 1:
        told = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise UserError(f"backbone.mode: mean of widths {told}; accepted: equal widths, or concat")
    return next(iter(widths.values()))


def _common(specs: list[Preprocess], crop: Literal["stretch", "center", "pad"] | None) -> Preprocess:
    """Return the first member's rule at the largest size, pixels left in 0..1."""
    first = specs[0]
    return replace(
        first,
        size_px=(max(spec.size_px[0] for spec in specs), max(spec.size_px[1] for spec in specs)),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        crop=crop or first.crop,
        crop_fraction=first.crop_fraction if crop in (None, first.crop) else 1.0,
    )
