"""Heads that know the domains of the data: margins within each domain, and the classifier of domains."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from guie.errors import UserError
from guie.heads.centres import initial_weight
from guie.heads.classifier import classified
from guie.heads.fused import Angular, Margined, Rule, margin_softmax
from guie.heads.labels import check_labels
from guie.heads.margin import check_range, checked_rule
from guie.heads.reduction import PerDomain, Reduction
from guie.types import Batch, Loss, Output, part_widths


class DomainArcFace(nn.Module):
    """ArcFace with `k` centres per class, over all classes or within each domain (system B).

    `mode`: "unified" compares the whole embedding with all classes. "tile" cuts it into a tile for each
    domain; a picture trains its domain's tile alone, against the classes of its domain. "separate" gives each
    domain a projection of its own of D - domains numbers (neck=domain_separate), and the rest to the domain's
    name. A gate in the neck is trained by cross-entropy, times `gate_weight`.
    """

    def __init__(  # noqa: PLR0913
        self,
        mode: Literal["unified", "tile", "separate"] = "unified",
        k: int = 1,
        scale: float = 30.0,
        margin: float = 0.3,
        label_smoothing: float = 0.0,
        chunk: int | None = None,
        init: Literal["xavier", "uniform"] = "uniform",
        focal: float = 0.0,
        gate_weight: float = 1.0,
        *,
        class_domains: np.ndarray,
        domain_names: list[str],
        embed_dim: int,
    ) -> None:
        super().__init__()
        check_range("margin", margin, 0, math.pi / 2, "radians (0.3 is system B's)")
        check_range("k", k, 1, 255, "sub-centres")
        self.rule = checked_rule(Rule(Angular(margin), scale, label_smoothing, chunk))
        self.mode, self.gate_weight, self.num_domains = mode, gate_weight, len(domain_names)
        _check_mode(mode, embed_dim, self.num_domains)
        self.widths = part_widths(mode, embed_dim, self.num_domains)
        self.reduction = Reduction(focal, PerDomain(domain_names=domain_names))
        groups = np.zeros_like(class_domains) if mode == "unified" else np.asarray(class_domains)
        sizes = np.bincount(groups, minlength=len(self.widths)).tolist()
        self.weights = nn.ParameterList(
            initial_weight((k, size, width), init) for size, width in zip(sizes, self.widths, strict=True)
        )
        # Not in the state dict: the part that a class lies in and its place there follow from the data.
        self.register_buffer("groups", torch.from_numpy(groups.astype(np.int64)), False)
        self.register_buffer("places", torch.from_numpy(_places(groups)), False)

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the mean loss; logs `loss/<domain>`, and of a gate `gate_loss` and `gate_accuracy`, too."""
        check_labels(batch.labels, len(self.get_buffer("groups")))
        gate, parts = self._parts(output.raw.to(self.weights[0].dtype))
        found = self._margined(parts, batch.labels)
        loss = self.reduction(found.losses, batch.domains)
        measured = {"accuracy": found.correct.float().mean(), "target_cosine": found.cosine.mean()}
        total = loss.total
        if gate is not None:
            told = functional.cross_entropy(gate, batch.domains)
            total = total + self.gate_weight * told
            measured["gate_loss"] = told.detach()
            measured["gate_accuracy"] = (gate.detach().argmax(1) == batch.domains).float().mean()
        return Loss(total, {**loss.scalars, "loss": total.detach(), **measured})

    def _parts(self, raw: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """Return the gate's logits (B, domains) where the neck has one, and what each part sees of `raw`."""
        own, gate = sum(self.widths), self.num_domains
        gates = {"unified": [0], "tile": [0, gate], "separate": [gate]}[self.mode]
        extra = raw.shape[1] - own
        if extra not in gates:
            accepted = " or ".join(str(own + width) for width in gates)
            raise UserError(
                f"head.mode: {self.mode} with {raw.shape[1]} numbers from the neck; accepted: {accepted} "
                f"(a neck for this mode, neck.domains={self.num_domains})"
            )
        logits, rest = raw.split([extra, own], 1)
        return (logits if extra else None), list(rest.split(self.widths, 1))

    def _margined(self, parts: list[Tensor], labels: Tensor) -> Margined:
        """Return the losses (B,) of each picture against the classes of its part alone."""
        places, groups = self.get_buffer("places")[labels], self.get_buffer("groups")[labels]
        order = groups.argsort(stable=True)
        counts = torch.bincount(groups, minlength=len(parts)).tolist()
        found = [
            margin_softmax(part[rows], weight, places[rows], self.rule)
            for part, weight, rows in zip(parts, self.weights, order.split(counts), strict=True)
        ]
        back = order.argsort()
        columns = [torch.cat(pieces)[back] for pieces in zip(*map(_columns, found), strict=True)]
        return Margined(*columns)


class DomainClassifier(nn.Module):
    """Linear classifier of domains on `Output.feature` (system B), with cross-entropy.

    It is a head among others: `heads.combine.Weighted` adds it with a weight.
    """

    def __init__(
        self, label_smoothing: float = 0.0, focal: float = 0.0, *, feature_dim: int, domain_names: list[str]
    ) -> None:
        super().__init__()
        check_range("label_smoothing", label_smoothing, 0, 1, "")
        self.label_smoothing = label_smoothing
        self.reduction = Reduction(focal, PerDomain(domain_names=domain_names))
        self.linear = nn.Linear(feature_dim, len(domain_names))

    def forward(self, output: Output, batch: Batch) -> Loss:
        """Return the mean cross-entropy; logs `loss`, `accuracy` and `loss/<domain>`."""
        with torch.autocast(output.feature.device.type, enabled=False):
            logits = self.linear(output.feature.to(self.linear.weight.dtype))
            return classified(logits, batch.domains, batch.domains, self.reduction, self.label_smoothing)


def _check_mode(mode: str, embed_dim: int, domains: int) -> None:
    if mode not in ("unified", "tile", "separate"):
        raise UserError(f"head.mode: {mode!r} received; accepted: unified, tile, separate")
    if mode != "unified" and domains >= embed_dim:
        raise UserError(f"head.mode: {mode} with {domains} domains; accepted: below {embed_dim} (embed_dim)")


def _columns(found: Margined) -> tuple[Tensor, Tensor, Tensor]:
    return found.losses, found.cosine, found.correct


def _places(groups: np.ndarray) -> np.ndarray:
    """Return each class's position (C,) int64 among the classes of its group."""
    order = np.argsort(groups, kind="stable")
    starts = np.cumsum(np.bincount(groups))
    places = np.empty(len(groups), np.int64)
    places[order] = np.arange(len(groups)) - np.concatenate([[0], starts])[groups[order]]
    return places
