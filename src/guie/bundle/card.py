"""card.md of a bundle: what it is for, what was measured, what it was made of, and under which licences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guie.bundle.licences import Licence, table
from guie.bundle.lineage import Lineage
from guie.bundle.measured import Measured
from guie.export.verify import Verified


@dataclass(frozen=True)
class Contents:
    """What a card tells: `told` is preprocess.json, `models` are the manifest's, `verified` as found."""

    name: str
    told: Mapping[str, Any]
    models: Sequence[Mapping[str, Any]]
    verified: Sequence[Verified]
    measured: Measured
    lineage: Lineage
    software: Sequence[Licence]
    labels: Sequence[str] = ()

    @property
    def licences(self) -> list[dict[str, str]]:
        """Return the table of licences."""
        return table([*self.lineage.licences, *self.software])


def card(contents: Contents) -> str:
    """Return the card as Markdown."""
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"cell": cell, "count": count}
    template = environment.from_string(Path(__file__).with_name("card.md.jinja").read_text(encoding="utf-8"))
    first, found = contents.verified[0], contents.measured.thresholds
    return template.render(
        name=contents.name,
        told=contents.told,
        models=[_parity(*pair) for pair in zip(contents.models, contents.verified, strict=True)],
        precision=contents.told["precision"],
        sizes=", ".join(f"{height}x{width}" for height, width in first.sizes),
        batches=", ".join(map(str, first.batches)),
        domains=sorted({row.domain for row in contents.measured.numbers} - {""}),
        measured=contents.measured,
        thresholds=found.rows if found else [],
        lineage=contents.lineage,
        labels=contents.labels,
        licences=contents.licences,
    )


def _parity(model: Mapping[str, Any], verified: Verified) -> dict[str, Any]:
    found = {"difference": verified.difference, "cosine": verified.cosine}
    return {**model, **found, "accepted": str(verified.tolerance)}


def cell(text: object) -> str:
    """Return text that stays inside one cell of a table."""
    return " ".join(str(text).replace("|", "\\|").split())


def count(number: int | None) -> str:
    """Return a count with its thousands apart."""
    return "not recorded" if number is None else f"{number:,}"
