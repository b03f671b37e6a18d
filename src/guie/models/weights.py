"""Pretrained weights for a backbone: a local file, or a hub name, with the cure when neither can be had."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from guie.errors import UserError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_Model = TypeVar("_Model")


def is_file_name(pretrained: str) -> bool:
    """Return whether `pretrained` means a file (by its suffix or because it exists), not a hub tag."""
    return pretrained.endswith(SUFFIXES) or Path(pretrained).expanduser().is_file()


def checked_file(pretrained: str) -> str:
    """Return the absolute path of a weights file; UserError where there is none or it is of another kind."""
    path = Path(pretrained).expanduser()
    if not path.is_file():
        raise UserError(
            f"backbone.pretrained: there is no file '{pretrained}'; accepted: {', '.join(SUFFIXES)}"
        )
    if path.suffix not in SUFFIXES:
        raise UserError(f"backbone.pretrained: '{path.name}' received; accepted: {', '.join(SUFFIXES)}")
    return str(path.resolve())


def check_complete(wanted: Iterable[str], given: Iterable[str], name: str, path: str) -> None:
    """Raise UserError unless a file gives every tensor that a model wants; it may hold more."""
    wanted = [key for key in wanted if not key.endswith("num_batches_tracked")]
    missing = sorted(set(wanted) - set(given))
    if missing:
        raise UserError(
            f"backbone.pretrained: '{path}' does not fit '{name}': it lacks {len(missing)} of {len(wanted)} "
            f"tensors, for example {', '.join(missing[:3])}"
        )


def build_with_weights(build: Callable[[], _Model], name: str, pretrained: bool | str | None) -> _Model:
    """Return `build()`, its failures told as UserError: unreadable file, other architecture, no network."""
    try:
        return build()
    except Exception as error:
        if not pretrained or isinstance(error, UserError):
            raise
        raise UserError(f"backbone.pretrained: {_explained(error, name, pretrained)}") from error


def _explained(error: Exception, name: str, pretrained: bool | str) -> str:
    source = f"'{pretrained}'" if isinstance(pretrained, str) else "the hub's weights"
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        return (
            f"{source} cannot be read as tensors only and is not loaded; accepted: a state dict "
            "(torch.save(model.state_dict(), path)) or .safetensors"
        )
    if isinstance(pretrained, str) and is_file_name(pretrained):
        return f"{source} does not fit '{name}': {_one_line(error)}"
    return (
        f"{source} for '{name}' cannot be had ({_one_line(error)}); give a local file "
        "(backbone.pretrained=weights.safetensors), fill the hub cache where there is a network (HF_HOME), "
        "or backbone.pretrained=null for random weights"
    )


def _one_line(error: Exception, limit: int = 200) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
