"""Which space vectors live in: a name made of all that decides where a picture lands."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from guie import checkpoint
from guie.errors import UserError
from guie.views import Views


def space_id(embedder: Any, weights: Mapping[str, Tensor] | None = None, views: Views | None = None) -> str:
    """Return the name of the space that `embedder` (with `weights`, by default its own) embeds into.

    Sums over `views` live in a space of their own. Raises UserError where a gate chooses them by features of
    another backbone.
    """
    if views is not None and views.gating is not None:
        _check_features(embedder, views.gating.features)
    parts = ("backbone", "pool", "neck")
    space = checkpoint.space_id(
        weights or embedder.state_dict(), embedder.preprocess, settings(embedder, parts)
    )
    return space if views is None else digest(space, views.key)


def _check_features(embedder: Any, known: str) -> None:
    own = feature_space(embedder)
    if own != known:
        raise UserError(
            f"ckpt_cls: trained on other features ({known}) than this model has ({own}); accepted: a run of "
            "head=classifier_tta with the same frozen backbone and pooling"
        )


def feature_space(embedder: Any) -> str:
    """Return the name of the space of `Output.feature`: what backbone and pooling make of normalised pixels.

    How a picture becomes pixels is not part of it: views decide that.
    """
    weights = {k: v for k, v in embedder.state_dict().items() if not k.startswith("neck.")}
    pixels = f"{embedder.preprocess.mean} {embedder.preprocess.std}"
    return digest(checkpoint.weights_digest(weights), pixels, settings(embedder, ("backbone", "pool")))


def settings(embedder: Any, parts: tuple[str, ...]) -> str:
    """Return what these parts do without a weight that would tell: their own modules' kinds and settings.

    What training makes of them (batch norms of all ranks, weights cut over ranks) changes nothing.
    """
    found = []
    for path, module in embedder.named_modules():
        kinds = [kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("guie.models.")]
        if kinds and path.split(".")[0] in parts:
            plain = {k: v for k, v in vars(module).items() if isinstance(v, _PLAIN) and _is_setting(k)}
            found.append(f"{path} {kinds[0]} {sorted(plain.items())}")
    return "\n".join(found)


_PLAIN = (bool, int, float, str, tuple, list)


def _is_setting(name: str) -> bool:
    """Tell a setting from how a module stands: torch's marks, those of FSDP, `training` and `frozen`."""
    return not name.startswith("_") and name not in ("training", "frozen")


def digest(*parts: str) -> str:
    """Return 16 hex digits that change with any of `parts`."""
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
