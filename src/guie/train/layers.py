"""How deep each weight of a backbone lies: what layer-wise decay and the freezing of first layers go by."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

# timm's own form of a matcher; (99999,) puts what matches into the group before it.
_OPEN_CLIP_VIT = {
    "stem": r"^conv1|^class_embedding|^positional_embedding|^ln_pre|^patch",
    "blocks": [(r"^transformer\.resblocks\.(\d+)", None), (r"^ln_post|^proj|^attn_pool", (99999,))],
}


def depths(backbone: nn.Module) -> dict[str, int]:
    """Return the depth of each parameter by name: 1 for a tower's last layer, the most for its first.

    Layers are timm's own (`group_matcher`), open_clip's blocks, else each numbered block in the order of
    registration. Of several towers each counts its own; what stands outside of towers (an attention added
    to one, say) has depth 0, as a neck has.
    """
    found = {name: 0 for name, _ in backbone.named_parameters()}
    towers = list(_towers(backbone, "")) or [("", backbone, None)]
    for prefix, tower, matcher in towers:
        layers = _by_order(tower) if matcher is None else _by_matcher(tower, matcher)
        last = max(layers.values(), default=0)
        found |= {f"{prefix}{name}": last - layer + 1 for name, layer in layers.items()}
    return found


def _towers(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module, Any]]:
    matcher = _matcher(module)
    if matcher is not None:
        yield prefix, module, matcher
        return
    for name, child in module.named_children():
        yield from _towers(child, f"{prefix}{name}.")


def _matcher(module: Any) -> Any:
    if hasattr(module, "group_matcher"):
        return module.group_matcher(coarse=False)
    return _OPEN_CLIP_VIT if hasattr(getattr(module, "transformer", None), "resblocks") else None


def _by_matcher(tower: nn.Module, matcher: Any) -> dict[str, int]:
    from timm.models import group_parameters

    return group_parameters(tower, matcher, reverse=True)


def _by_order(tower: nn.Module) -> dict[str, int]:
    """Return layers by the path up to the first number in it (layer3.1, stages_2.0), else the first name."""
    layers: dict[str, int] = {}
    found = {}
    for name, _ in tower.named_parameters():
        block = re.match(r"(?:[^.]*[^.\d][^.]*\.)*?\d+(?=\.)", name)
        found[name] = layers.setdefault(block.group() if block else name.split(".")[0], len(layers))
    return found
