"""Re-ranking by local features: what the global search found first is looked at again, picture by picture."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

import numpy as np

from guie import launch
from guie.errors import UserError
from guie.images import BadImage, decode
from guie.local.cache import Cache, key_of
from guie.local.fusion import fused
from guie.local.matchers import Features, Matcher, Sift, check_positive
from guie.local.verify import Geometry, agreement
from guie.postprocess.step import SOME, Kind, Ranges, Stage, Step, followed_by
from guie.types import Index, Ranking, Side

log = logging.getLogger("guie")

RECENT = 1024  # pictures whose features stay in memory: about 150 kB each


class LocalFeatures(Step):
    """The first `top` results of a query ordered by score + `weight` * min(inliers, `cap`) / `cap`.

    Inliers are the places that `matcher` (None: `Sift`) finds in both pictures and that agree on one
    geometry, as `local.verify.Geometry` asks. Cap and weight are those of the landmark recognition systems
    of 2019 (Yokoo et al., arXiv 1906.04087) and 2020. A picture that cannot be read has no inliers. Features
    and inliers are kept below `path` (None: nowhere); `workers` threads (None: one per core).
    """

    kind: ClassVar[Kind] = "rerank"
    reads_vectors: ClassVar[bool] = False
    ranges: ClassVar[Ranges] = {"top": SOME, "cap": SOME}

    def __init__(
        self,
        matcher: Any = None,
        geometry: Any = None,
        top: int = 100,
        cap: int = 70,
        weight: float = 1.0,
        path: str | None = "~/.cache/guie/local",
        workers: int | None = None,
    ):
        self.matcher: Matcher = matcher or Sift()
        self.geometry: Geometry = geometry or Geometry()
        self.top, self.cap, self.weight = top, cap, weight
        self.path, self.workers = path, workers

    @property
    def depth(self) -> int:
        """Return `top`."""
        return self.top

    def check(self) -> None:
        """Raise UserError on a parameter out of range, that of the geometry, too."""
        super().check()
        asked = {"geometry.tolerance_px": self.geometry.tolerance_px, "geometry.trials": self.geometry.trials}
        check_positive(workers=self.workers, **asked)

    def settings(self) -> dict[str, Any]:
        """Return what changes a result: where it is cached and by how many threads does not."""
        own = {"top": self.top, "cap": self.cap, "weight": self.weight}
        return {**own, **self.matcher.describing(), **self._comparing()}

    def prepare(self, gallery: Side, index: Index) -> Shelf:
        """Return the gallery's pictures, to be described when they are asked for."""
        return self._shelf(gallery)

    def rerank(self, ranking: Ranking, queries: Side, stage: Stage, self_ids: np.ndarray | None) -> Ranking:
        """Return (Q,K): the first `top` by the sum of both scores, what is behind them as it was."""
        head = Ranking(ranking.ids[:, : self.top], ranking.scores[:, : self.top])
        found = self._inliers(head.ids, self._shelf(queries), stage.kept or self._shelf(stage.gallery))
        return followed_by(fused(head, found, cap=self.cap, weight=self.weight), ranking)

    def inliers(self, ids: np.ndarray, queries: Side, gallery: Side) -> np.ndarray:
        """Return (Q,K) int32: inliers of each query with the gallery positions `ids` (Q,K); -1 for none."""
        return self._inliers(ids, self._shelf(queries), self._shelf(gallery))

    def _inliers(self, ids: np.ndarray, queries: Shelf, gallery: Shelf) -> np.ndarray:
        def of_query(row: int) -> list[int]:
            return self._of_query(row, ids[row], queries, gallery)

        found = np.full(ids.shape, -1, np.int32)
        with ThreadPoolExecutor(self.workers or len(launch.cores())) as pool:
            for row, values in enumerate(pool.map(of_query, range(len(ids)))):
                found[row] = values
        if unread := sorted(queries.unread | gallery.unread):
            log.warning("local features: %d pictures cannot be read, first %s", len(unread), unread[0])
            queries.unread.clear()
            gallery.unread.clear()
        return found

    def _of_query(self, row: int, ids: np.ndarray, queries: Shelf, gallery: Shelf) -> list[int]:
        """Return the inliers of one query with `ids` (K,), and keep what is new."""
        key = queries.key(row)
        keys = [gallery.key(place) if place >= 0 else None for place in ids.tolist()]
        known = queries.cache.inliers(key) if key else {}
        new = {
            item: place for item, place in zip(keys, ids.tolist(), strict=True) if item and item not in known
        }
        if key and new:
            mine = queries.features(row)
            known |= {item: self._compare(mine, gallery.features(place)) for item, place in new.items()}
            queries.cache.keep_inliers(key, known)
        found = [known.get(item, 0) if item else 0 for item in keys]
        return [value if place >= 0 else -1 for value, place in zip(found, ids.tolist(), strict=True)]

    def _compare(self, first: Features | None, second: Features | None) -> int:
        if first is None or second is None:
            return 0
        source, target = self.matcher.correspond(first, second)
        return agreement(source, target, **self.geometry._asdict()).inliers

    def _comparing(self) -> dict[str, Any]:
        return {**self.matcher.matching(), **self.geometry._asdict()}

    def _shelf(self, side: Side) -> Shelf:
        folder = Path(self.path).expanduser() if self.path else None
        cache = Cache(folder, self.matcher.describing(), self._comparing())
        return Shelf(side, cache, self.matcher.describe)


class Shelf:
    """The pictures of one side: their keys, and their features from memory, from disk or made now.

    `unread` are files that cannot be read and have not been told of.
    """

    def __init__(self, side: Side, cache: Cache, describe: Callable[[np.ndarray], Features]):
        if side.files is None or side.picture is None:
            raise UserError("pictures: none, embeddings alone; accepted: a data set with its files")
        self._files, self._picture, self._describe = side.files, side.picture, describe
        self.cache = cache
        self.unread: set[str] = set()
        self._keys: dict[int, bytes | None] = {}
        self._reading = Lock()  # archives are read by seeking
        self.features = lru_cache(maxsize=RECENT)(self._features)

    def key(self, row: int) -> bytes | None:
        """Return the key of a picture's bytes; None where there are none."""
        if row not in self._keys:
            data = self._read(row)
            self._keys[row] = None if data is None else key_of(data)
        return self._keys[row]

    def _features(self, row: int) -> Features | None:
        """Return the features of a picture, None where it cannot be read."""
        key = self.key(row)
        kept = self.cache.features(key) if key else None
        if kept is not None or key is None:
            return kept
        try:
            features = self._describe(decode(self._read(row) or b""))
        except BadImage:
            self.unread.add(str(self._files[row]))
            return None
        self.cache.keep_features(key, features)
        return features

    def _read(self, row: int) -> bytes | None:
        file = str(self._files[row])
        try:
            with self._reading:
                return self._picture(file)
        except BadImage:
            self.unread.add(file)
            return None
