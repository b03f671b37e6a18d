"""An augmentation to look at: pictures of a data set beside what training would show of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from guie.datasets.manifest import Manifest
from guie.images import BadImage
from guie.prepare.page import address, write_page
from guie.prepare.preview import named
from guie.types import Preprocess

PICTURES, LOOKS = 16, 8


def write_sheet(
    path: Path, manifest: Manifest, augment: Any, preprocess: Preprocess, *, seed: int, settings: str
) -> None:
    """Write a page of PICTURES rows of `manifest`, each in LOOKS looks; `seed` chooses and draws.

    `settings` is text that says what `augment` is. Look j of picture i stands at slot i * LOOKS + j of the
    batch, so views that take turns stand side by side.
    """
    rows = []
    for place, row in enumerate(chosen(manifest, PICTURES, seed).tolist()):
        slots = np.arange(place * LOOKS, (place + 1) * LOOKS)
        try:
            seen = looks(augment, manifest, row, slots, preprocess, seed)
        except BadImage:
            continue  # gone since it was prepared
        first = named(manifest, row)
        rows.append([first, *({**first, "source": address(np.ascontiguousarray(look))} for look in seen)])
    write_page(
        path,
        "augment.html.jinja",
        title=f"guie · {manifest.name} · {type(augment).__name__}",
        root=str(manifest.root),
        looks=LOOKS,
        size=" x ".join(map(str, preprocess.size_px)),
        rows=rows,
        settings=settings,
    )


def chosen(manifest: Manifest, num: int, seed: int) -> np.ndarray:
    """Return at most `num` rows, the domains by turns."""
    order = np.random.default_rng(seed).permutation(len(manifest))
    domains = manifest.domains[order]
    turn = np.zeros(len(order), np.int64)
    for domain in np.unique(domains):
        same = np.flatnonzero(domains == domain)
        turn[same] = np.arange(len(same))
    return order[np.lexsort((domains, turn))[:num]]


def looks(
    augment: Any, manifest: Manifest, row: int, slots: np.ndarray, preprocess: Preprocess, seed: int
) -> np.ndarray:
    """Return (L,h,w,3) uint8: a picture as it would be at these slots (L,) of a batch; raises BadImage."""
    data, draws = manifest.read(row), augment.draws(seed, 0, slots)
    if augment.stage == "batch":
        seen = _of_batch(augment, data, draws, preprocess)
    else:
        seen = np.stack([augment(data, u) for u in draws])
    return seen.transpose(0, 2, 3, 1)


def _of_batch(augment: Any, data: bytes, draws: Any, preprocess: Preprocess) -> np.ndarray:
    import torch

    from guie.data.warp import cached_preprocess
    from guie.resize import load

    cached = load(data, cached_preprocess(preprocess, augment.cached_px))
    images = torch.from_numpy(cached).expand(len(draws), -1, -1, -1)
    return augment(images, draws).round().clamp(0, 255).to(torch.uint8).numpy()
