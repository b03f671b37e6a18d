"""A data set to look at, in one html file: pictures of each domain, class sizes, the pairs that leak."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from guie.datasets.manifest import Manifest
from guie.images import BadImage, decode_region, read_header
from guie.prepare.duplicates import Leaks
from guie.prepare.page import THUMBNAIL_PX, address, write_page
from guie.prepare.summary import class_of, class_sizes, findings

CLASSES, PICTURES, PAIRS = 6, 6, 24
MOST_DOMAINS = 40
# Neither white nor black drawings on a transparent ground vanish on it.
BEHIND_TRANSPARENT = (150, 150, 150)


def write_preview(
    path: Path, manifest: Manifest, summary: Mapping[str, Any], leaks: Leaks, *, seed: int
) -> None:
    """Write the page; `seed` chooses classes and pictures. Nothing in it is fetched from anywhere."""
    domains = list(summary["domains"].items())
    write_page(
        path,
        "preview.html.jinja",
        title=f"guie · {manifest.name}",
        root=str(manifest.root),
        tiles=_tiles(summary),
        parts=[_part(name, numbers) for name, numbers in summary["splits"].items()],
        histogram=histogram(class_sizes(manifest, np.ones(len(manifest), bool))),
        findings=findings(summary),
        pairs=_pairs(manifest, leaks),
        domains=[_domain(manifest, name, numbers, seed) for name, numbers in domains[:MOST_DOMAINS]],
        left_out=max(0, len(domains) - MOST_DOMAINS),
    )


def _tiles(summary: Mapping[str, Any]) -> list[dict]:
    few, leakage = summary["per_class"], summary["leakage"]
    leaking = leakage["identical"] + leakage["near"]
    torn = summary["under_two_labels"]["groups"]
    return [
        _tile("images", summary["images"], f"{summary['bad_images']:,} unusable", summary["bad_images"]),
        _tile("classes", summary["classes"], f"{few['min']:,} to {few['max']:,} images each"),
        _tile("domains", len(summary["domains"]), f"{len(summary['splits'])} splits"),
        _tile("under two labels", torn, "pictures with the same bytes", torn),
        _tile("leakage", leaking, f"of {leakage['evaluated']:,} evaluated images", leaking),
    ]


def _tile(name: str, value: int, note: str, worry: int = 0) -> dict:
    return {"name": name, "value": f"{value:,}", "note": note, "worry": worry > 0}


def _part(name: str, numbers: Mapping[str, Any]) -> dict:
    few = numbers["per_class"]
    sizes = [f"{few['min']:,}", f"{few['median']:,g}", f"{few['max']:,}"]
    return {
        "name": name or "no domain",
        "cells": [f"{numbers['images']:,}", f"{numbers['classes']:,}", *sizes],
    }


def _domain(manifest: Manifest, name: str, numbers: Mapping[str, Any], seed: int) -> dict:
    at = manifest.domain_names.index(name)
    rows = manifest.domains == at
    classes = [
        {"label": label, "pictures": [_picture(manifest, row) for row in chosen]}
        for label, chosen in _chosen(manifest, rows, np.random.default_rng([seed, at]))
    ]
    return {**_part(name, numbers), "classes": classes, "histogram": histogram(class_sizes(manifest, rows))}


def _chosen(
    manifest: Manifest, rows: np.ndarray, rng: np.random.Generator
) -> Iterable[tuple[str, list[int]]]:
    """Yield some classes among `rows` (N,) bool, those with most pictures to show first, and their rows."""
    classes = class_of(manifest)
    present, sizes = np.unique(classes[rows], return_counts=True)
    shuffled = rng.permutation(len(present))
    order = shuffled[np.argsort(-sizes[shuffled].clip(max=PICTURES), kind="stable")][:CLASSES]
    for class_id in present[order].tolist():
        own = np.flatnonzero(rows & (classes == class_id))
        shown = np.sort(rng.choice(own, min(PICTURES, len(own)), replace=False)).tolist()
        yield manifest.label_names[manifest.labels[shown[0]]], shown


def _pairs(manifest: Manifest, leaks: Leaks) -> list[dict]:
    """Return evaluated pictures beside their copies in training, an equal number of each distance first."""
    pairs = []
    for at in _spread(leaks.distance, PAIRS):
        pair = [_picture(manifest, int(leaks.rows[at])), _picture(manifest, int(leaks.sources[at]))]
        bits = "identical" if leaks.exact[at] else f"{leaks.distance[at]} bits"
        pairs.append({"bits": bits, "pictures": pair})
    return pairs


def _spread(distance: np.ndarray, count: int) -> list[int]:
    """Return positions of at most `count` pairs, each distance in turn, so that no one fills the page."""
    turn = np.zeros(len(distance), np.int64)
    for value in np.unique(distance):
        same = np.flatnonzero(distance == value)
        turn[same] = np.arange(len(same))
    chosen = np.lexsort((distance, turn))[:count]
    return chosen[np.argsort(distance[chosen], kind="stable")].tolist()


def _picture(manifest: Manifest, row: int) -> dict:
    return {**named(manifest, row), "split": manifest.row(row).split}


def named(manifest: Manifest, row: int) -> dict:
    """Return a picture as a page shows it: source (empty where the file has gone since), file, label."""
    file, entry = manifest.place(row)
    name = file if entry is None else f"{file}[{entry}]"
    return {"source": _thumbnail(manifest, row), "file": name, "label": manifest.row(row).label}


def _thumbnail(manifest: Manifest, row: int) -> str:
    try:
        data = manifest.read(row)
        header = read_header(data)
        whole = (0.0, 0.0, float(header.width), float(header.height))
        shape = (THUMBNAIL_PX, THUMBNAIL_PX)
        return address(decode_region(data, whole, shape, background=BEHIND_TRANSPARENT).image)
    except BadImage:
        return ""


def histogram(sizes: np.ndarray) -> Any:
    """Return an inline svg: how many classes (C,) have 1, 2, 3-4, 5-8, ... images."""
    from markupsafe import Markup

    bars = size_bins(sizes)
    width, height, top, bottom = 340, 150, 16, 22
    step = width / max(len(bars), 6)
    most = max((count for _, count in bars), default=1)
    parts = [f'<line class="grid" x1="0" x2="{width}" y1="{height - bottom}" y2="{height - bottom}"/>']
    for i, (name, count) in enumerate(bars):
        tall = (height - top - bottom) * count / most
        tall = max(tall, 1.5) if count else 0
        x, y = i * step, height - bottom - tall
        middle = x + step / 2
        parts.append(
            f'<rect x="{x + step * 0.1:.1f}" y="{y:.1f}" width="{step * 0.8:.1f}" height="{tall:.1f}" rx="2">'
            f"<title>{count:,} classes of {name} images</title></rect>"
        )
        if count:
            parts.append(f'<text class="count" x="{middle:.1f}" y="{y - 4:.1f}">{_brief(count)}</text>')
        parts.append(f'<text x="{middle:.1f}" y="{height - 6}">{name}</text>')
    return Markup(f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>')


def size_bins(sizes: np.ndarray) -> list[tuple[str, int]]:
    """Return (images, classes) of each doubling from the smallest class to the largest."""
    if not len(sizes):
        return []
    doubling = np.ceil(np.log2(sizes)).astype(int)
    powers = range(int(doubling.min()), int(doubling.max()) + 1)
    return [(_bin_name(power), int((doubling == power).sum())) for power in powers]


def _bin_name(power: int) -> str:
    """Return 1, 2, 3-4 ... 33-64; above, only the largest size finds room below its bar."""
    low, high = 2**power // 2 + 1, 2**power
    if high <= 2:
        return str(high)
    return f"{low}-{high}" if high <= 64 else f"to {_brief(high)}"


def _brief(count: int) -> str:
    """Return 9999, 10k, 1.23M."""
    if count < 10_000:
        return str(count)
    return f"{count / 1000:.3g}k" if count < 1_000_000 else f"{count / 1e6:.3g}M"
