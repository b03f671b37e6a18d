"""One model or several as one source of embeddings: what guie-eval measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from guie.data.bad_images import BadImages
from guie.datasets.manifest import Manifest
from guie.embed.ensemble import MOST_ROWS, Ensemble
from guie.embed.reading import Reader
from guie.embed.space import space_id
from guie.embed.vectors import embed
from guie.train.distributed import World
from guie.types import Embeddings
from guie.views import Views


@dataclass(frozen=True)
class Models:
    """Embedders by name ("" for one alone), `joined` to one vector for each picture.

    `folder` is that of the run or checkpoint, or where results go; `facts` are told with them; `trained` is
    the config that a model alone was trained by.
    """

    embedders: Mapping[str, Any]
    joined: Ensemble
    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    trained: Mapping[str, Any] | None = None

    def space_id(self, views: Views | None = None) -> str:
        """Return the name of the space that pictures are embedded into, each seen through `views`."""
        return self.joined.space_id(
            {name: space_id(one, views=views) for name, one in self.embedders.items()}
        )

    @property
    def width(self) -> int:
        """Return how many numbers a vector has; UserError where these cannot be joined."""
        return self.joined.width({name: one.embed_dim for name, one in self.embedders.items()})

    def embeddings(self, bench: Any, out: Path) -> dict[str, Embeddings]:
        """Return the embeddings of every set of a `Bench`, which goes on from `out` after an interruption.

        One model at a time is on the bench's device. Raises UserError where models are averaged that share
        no space.
        """
        here = bench.here or World()
        if self.joined.averages:
            here.on_main(lambda: check_shared(self.joined, self.embedders.items(), bench.sets, bench.reader))
        parts: dict[str, dict[str, Embeddings]] = {name: {} for name in bench.sets}
        for name, embedder in self.embedders.items():
            told = replace(bench, notice=_by(bench.notice, name))
            for rows, made in told.embeddings(embedder.to(bench.reader.device), out).items():
                parts[rows][name] = made
            if len(self.embedders) > 1:
                embedder.to("cpu")  # one leaves before the next one comes
        return {
            name: _one(of_set, self.joined, out / f".joined-{name}.npy", here)
            for name, of_set in parts.items()
        }


def check_shared(
    joined: Ensemble, models: Iterable[tuple[str, Any]], sets: Mapping[str, Manifest], reader: Reader
) -> float:
    """Return how far models agree on a few pictures of `sets`, before all are embedded; see the ensemble's.

    `models` are embedders by name, wanted one after the other. Bad pictures are passed over.
    """
    drawn = {name: rows.select(_drawn(len(rows), len(sets))) for name, rows in sets.items()}
    found = {}
    for name, embedder in models:
        parts = [embed(embedder, rows, reader, bad_images=_any_share(rows)) for rows in drawn.values()]
        found[name] = np.concatenate([part.vectors for part in parts])
        embedder.to("cpu")
    return joined.check_shared(found)


def _drawn(count: int, num_sets: int) -> np.ndarray:
    """Return the rows that are looked at of a set's `count`, evenly drawn."""
    most = min(count, max(1, MOST_ROWS // num_sets))
    return np.arange(most) * count // max(1, most)


def _any_share(rows: Manifest) -> BadImages:
    return BadImages(rows, None, "skip", 1.0)


def _one(parts: Mapping[str, Embeddings], joined: Ensemble, path: Path, here: World) -> Embeddings:
    """Return the embeddings of several models as one, mapped from disk by all processes."""
    first, *others = parts.values()
    if not others:
        return first
    assert all(np.array_equal(first.files, other.files) for other in others), "bad pictures are bad to all"
    here.on_main(lambda: joined.write(path, _vectors(parts), np.arange(len(first.vectors))))
    vectors = np.load(path, mmap_mode="r")
    here.gather(None)  # what all have mapped stays when its name goes
    here.on_main(path.unlink)
    space = joined.space_id({name: part.space_id for name, part in parts.items()})
    return replace(first, vectors=vectors, space_id=space)


def _vectors(parts: Mapping[str, Embeddings]) -> dict[str, np.ndarray]:
    return {name: part.vectors for name, part in parts.items()}


def _by(notice: Callable[[str, int, int], None] | None, name: str) -> Callable[[str, int, int], None] | None:
    """Return a notice that says of which model it tells."""
    if notice is None or not name:
        return notice
    return lambda what, done, total: notice(f"{what} by {name}", done, total)
