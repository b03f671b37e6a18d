"""Subset rules: a manifest in, fewer (or re-labelled) rows out; seeded, in stable order, logged with counts.

A data set's config holds them by name, in the order in which they act:

    rules:
      frequent: {_target_: guie.datasets.rules.MoreThan, images: 15}
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

from guie.datasets.manifest import Manifest

log = logging.getLogger("guie")


class Rule(Protocol):
    """A step of a data recipe."""

    def __call__(self, manifest: Manifest) -> Manifest:
        """Return what is left; rows keep their order."""
        ...


Rules = Mapping[str, Rule] | None


def apply(rules: Rules, manifest: Manifest) -> Manifest:
    """Return `manifest` after all rules, each logged with images and classes before and after."""
    for name, rule in (rules or {}).items():
        left = rule(manifest)
        log.info(
            "dataset %s, rule %s: %s images of %s classes -> %s of %s",
            *(manifest.name, name, f"{len(manifest):,}", f"{manifest.num_classes:,}"),
            *(f"{len(left):,}", f"{left.num_classes:,}"),
        )
        manifest = left
    return manifest
