"""What one key of a command line says of another, written out: it shows in `--cfg job` and can be changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from guie.config import official
from guie.config.schema import COMMANDS

GATED = "views=classifier_tta"
NOTHING = (None, "", "null")


def completed(command: str, arguments: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Return a command line that names the protocol of its data sets, and the views of `ckpt_cls`."""
    return official.placed(command, _with_views(command, arguments), folders)


def _with_views(command: str, arguments: Sequence[str]) -> list[str]:
    """Return `arguments` with system A's views where a classifier is given and no others are chosen."""
    names = {key: value for key, _, value in (argument.partition("=") for argument in arguments)}
    known = "ckpt_cls" in (field.name for field in fields(COMMANDS[command]))
    given = known and names.get("ckpt_cls") not in NOTHING
    return [GATED, *arguments] if given and "views" not in names else list(arguments)
