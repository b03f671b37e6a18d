"""The search that a config chooses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guie.build import build
from guie.search.exact import Exact
from guie.types import Search


def chosen(node: Mapping[str, Any] | None, memory_mib: float) -> Search:
    """Return what the group `search` says, by default the exact search in `memory_mib`."""
    return build(node, where="search") if node else Exact(memory_mib=memory_mib)
