"""The protocols of data sets: what the config chose, else the official one of each name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from guie.build import build
from guie.config.folders import directory
from guie.config.official import ALL, node, official
from guie.errors import UserError
from guie.protocols.part import Protocol

LABELLED_SPLITS = ("train", "val", "test")


def chosen(nodes: Mapping[str, Any], names: Iterable[str]) -> dict[str, Protocol]:
    """Return the protocol of each data set: its own of `nodes`, `nodes["all"]`, or the official one."""
    return {name: build(_node(nodes, name), where=f"protocol.{name}") for name in names}


def _node(nodes: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return nodes.get(name) or nodes.get(ALL) or node(official(name, [directory()]))


def over(
    protocols: Mapping[str, Protocol], split: str | None, present: Mapping[str, Any]
) -> dict[str, Protocol]:
    """Return the protocols with `split` asking (None: as they are); `present`: the splits of each data set.

    Raises UserError for another split than train, val and test.
    """
    if split is None:
        return dict(protocols)
    if split not in LABELLED_SPLITS:
        raise UserError(
            f"split: '{split}'; accepted: {', '.join(LABELLED_SPLITS)}, or null for the protocol's"
        )
    return {name: one.over(split, sorted(set(present[name]))) for name, one in protocols.items()}
