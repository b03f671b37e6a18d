"""An embedder on data sets: embed, evaluate, compare with floors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from guie.data.bad_images import BadImages
from guie.datasets.evaluated import capped
from guie.datasets.manifest import Manifest
from guie.embed.reading import Reader
from guie.embed.vectors import embed
from guie.evaluate import Evaluation, evaluate
from guie.floors import FLOORS, floor_embeddings
from guie.protocols.part import Protocol, splits_of
from guie.types import Embeddings, Search

log = logging.getLogger("guie")

Notice = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Bench:
    """What is measured on, and how: manifests and protocols by name, reader, search, policy on bad pictures.

    `notice(what, done, total)` is told how far it is. Pictures that cannot be used are listed in the folder
    `listed_in`: in bad_images.csv, of several sets in bad_images_<set>.csv. `here`: of which processes each
    embeds its share (train.distributed.World); None: this one alone.
    """

    sets: Mapping[str, Manifest]
    reader: Reader
    protocols: Mapping[str, Protocol]
    search: Search
    policy: str = "skip"
    max_bad_share: float = 0.01
    notice: Notice | None = None
    listed_in: Path | None = None
    here: Any = None

    def capped(self, cap: int | None) -> Bench:
        """Return the bench with at most `cap` pictures of each set that ask, and as many that answer."""
        if cap is None:
            return self
        sets = {name: capped(rows, *splits_of(self.protocols[name]), cap) for name, rows in self.sets.items()}
        less = {name: len(rows) for name, rows in sets.items() if len(rows) < len(self.sets[name])}
        for name, rows in less.items():
            log.info("eval_cap: %s: during training on %d of %d pictures", name, rows, len(self.sets[name]))
        return replace(self, sets=sets, listed_in=None) if less else self

    def embeddings(self, embedder: Any, folder: Path | None = None) -> dict[str, Embeddings]:
        """Return the embeddings of every set; with `folder` an interrupted job is continued from there."""
        found = {}
        for name, manifest in self.sets.items():
            bad = BadImages(manifest, self._list_of(name), self.policy, self.max_bad_share)  # type: ignore[arg-type]
            further = {"bad_images": bad, "folder": folder, "here": self.here}
            progress = self._progress(f"embedding {name}")
            found[name] = embed(embedder, manifest, self.reader, **further, progress=progress)
        return found

    def evaluation(self, found: Mapping[str, Embeddings]) -> Evaluation:
        """Return the numbers of these embeddings."""
        return evaluate(found, self.protocols, search=self.search)

    def floors(self, untrained: Any | None) -> dict[str, dict]:
        """Return metrics by floor: colour histogram, raw pixels, the untrained or pre-trained backbone."""
        numbers = {}
        background = untrained.preprocess.background if untrained is not None else (255, 255, 255)
        for kind in FLOORS:
            self._tell(f"floor {kind}")
            found = {n: floor_embeddings(m, kind, background=background) for n, m in self.sets.items()}
            numbers[kind] = self.evaluation(found).metrics
        if untrained is not None:
            numbers["backbone"] = self.frozen(untrained)
        return numbers

    def frozen(self, untrained: Any) -> dict:
        """Return the metrics of the untrained or pre-trained backbone."""
        self._tell("floor backbone")
        return self.evaluation(self.embeddings(untrained)).metrics

    def _list_of(self, name: str) -> Path | None:
        listed = "bad_images.csv" if len(self.sets) == 1 else f"bad_images_{name}.csv"
        return self.listed_in / listed if self.listed_in else None

    def _tell(self, what: str) -> None:
        if self.notice:
            self.notice(what, 0, 0)

    def _progress(self, what: str) -> Callable[[int, int], None] | None:
        notice = self.notice
        return (lambda done, total: notice(what, done, total)) if notice else None
