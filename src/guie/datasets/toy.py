"""The drawn data set: no download, made in seconds, the same for the same arguments."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from guie.datasets.folder import held_out
from guie.datasets.manifest import Manifest, from_columns, open_manifest
from guie.datasets.once import made_once
from guie.errors import UserError

_DRAWING = "4"  # raise it when a drawing changes: old caches are then left alone


def toy(
    instances: int = 64, views: int = 12, test_classes: float = 0.34, seed: int = 0, *, data_root: str
) -> Manifest:
    """Return pictures of six domains, `instances` things in each, every thing drawn `views` times.

    A share `test_classes` of the things is split `test` (self retrieval of unseen things), the rest
    `train`. The pictures lie in `data_root/toy-<digest>`; a folder that was not finished is drawn again.

    Raises:
        UserError: a number that leaves nothing to draw.

    """
    _accept(instances, views, test_classes)
    settings = repr((_DRAWING, instances, views, test_classes, seed))
    digest = hashlib.sha256(settings.encode()).hexdigest()[:10]
    folder = Path(data_root).expanduser() / f"toy-{digest}"
    made_once(folder, "manifest.parquet", lambda new: _draw_all(new, instances, views, test_classes, seed))
    return open_manifest(folder / "manifest.parquet", folder, "toy")


def _accept(instances: int, views: int, test_classes: float) -> None:
    if instances < 2:
        raise UserError(f"dataset.toy.instances: {instances}; accepted: 2 or more")
    if views < 2:
        raise UserError(f"dataset.toy.views: {views}; accepted: 2 or more")
    if not 0 <= test_classes < 1:
        raise UserError(f"dataset.toy.test_classes: {test_classes}; accepted: a share from 0 to below 1")


def _draw_all(folder: Path, instances: int, views: int, test_classes: float, seed: int) -> None:
    from guie.datasets.toy_things import DOMAINS

    things = [(domain, number) for domain in DOMAINS for number in range(instances)]
    for domain in DOMAINS:
        (folder / domain).mkdir()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for done in [pool.submit(_draw, folder, *thing, views, seed) for thing in things]:
            done.result()
    _list(folder, things, views, test_classes, seed)


def _draw(folder: Path, domain: str, number: int, views: int, seed: int) -> None:
    from guie.datasets.toy_things import DOMAINS
    from guie.datasets.toy_views import photograph

    place = list(DOMAINS).index(domain)
    thing = DOMAINS[domain](np.random.default_rng([seed, place, number]))
    for view in range(views):
        data = photograph(thing, np.random.default_rng([seed, place, number, view]))
        (folder / _name(domain, number, view)).write_bytes(data)


def _name(domain: str, number: int, view: int) -> str:
    return f"{domain}/{number:03d}_{view:02d}.jpg"


def _list(folder: Path, things: list[tuple[str, int]], views: int, test_classes: float, seed: int) -> None:
    labels = [f"{domain}/{number:03d}" for domain, number in things]
    unseen: set[str] = set()
    for domain in {domain for domain, _ in things}:
        unseen |= held_out([label for label in labels if label.startswith(domain + "/")], test_classes, seed)
    rows = [
        (*thing, label, view) for thing, label in zip(things, labels, strict=True) for view in range(views)
    ]
    columns = {
        "file": [_name(domain, number, view) for domain, number, _, view in rows],
        "label": [label for *_, label, _ in rows],
        "domain": [domain for domain, *_ in rows],
        "split": ["test" if label in unseen else "train" for *_, label, _ in rows],
    }
    from_columns("toy", folder, columns).write(folder / "manifest.parquet")
