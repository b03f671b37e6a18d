"""Post-processing steps as a search: a protocol that searches need not know that there are any.

Steps act in the order of the config. The gallery goes through those over vectors first, then each tile of
queries; a step that asks for neighbours asks the gallery as the steps before it have left it. Re-rankings
come after all of them, each on the result of the one before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from guie.errors import UserError
from guie.postprocess.layers import Layer, Mapped
from guie.postprocess.step import Stage, Step
from guie.types import Index, Ranking, Search, Side


class Pipeline:
    """Named `steps` before and after `search`.

    Raises UserError on a parameter out of range, and where a step stands in a place where it cannot work.
    """

    def __init__(self, steps: Mapping[str, Step], search: Search) -> None:
        self.steps = dict(steps)
        self.search = search
        _check_order(self.steps)
        for name, step in self.steps.items():
            with named(name):
                step.check()

    def fit(self, bank: Side) -> None:
        """Fit each step that needs it to training vectors, as the maps before it leave them."""
        waiting = sum(step.needs_bank for step in self.steps.values())
        for name, step in self.steps.items():
            with named(name):
                if step.needs_bank:
                    step.fit(bank)
                    waiting -= 1
                if waiting and step.kind == "map":
                    bank = replace(bank, vectors=step.apply(bank.vectors, "gallery"))

    def index(self, gallery: Side) -> PipelineIndex:
        """Return `gallery` after the steps over vectors, ready for queries; UserError before `fit`."""
        self._check_fitted()
        index: Index | None = None
        asked: list[tuple[str, Step, Stage | None]] = []
        for name, step in self.steps.items():
            with named(name):
                if step.kind == "map":
                    gallery, index = replace(gallery, vectors=step.apply(gallery.vectors, "gallery")), None
                    asked.append((name, step, None))
                    continue
                index = index or self.search.index(gallery)
                stage = Stage(gallery, index, step.prepare(gallery, index))
                if step.kind == "gallery":
                    gallery, index = step.of_gallery(stage), None
                else:
                    asked.append((name, step, stage))
        return PipelineIndex(asked, index or self.search.index(gallery), len(gallery.vectors))

    def over_vectors(self) -> dict[str, Step]:
        """Return the steps that act on vectors: all but the re-rankings."""
        return {name: step for name, step in self.steps.items() if step.kind != "rerank"}

    def mapped(self, vectors: np.ndarray) -> np.ndarray | None:
        """Return (N,D) behind the steps over vectors, as a file gives them; None where none can hold them."""
        steps = self.over_vectors().values()
        if any(type(step).layer is Step.layer for step in steps):
            return None
        for step in steps:
            vectors = step.apply(vectors, "gallery")
        return vectors

    def upto(self) -> Iterator[tuple[str, Pipeline]]:
        """Yield ("", the search alone), then each step's name with the pipeline that ends there."""
        names = list(self.steps)
        for count in range(len(names) + 1):
            first = {name: self.steps[name] for name in names[:count]}
            yield (names[count - 1] if count else "", Pipeline(first, self.search))

    def space_id(self, before: str) -> str:
        """Return the name of the space that vectors of space `before` are taken to by the steps over them."""
        steps = self.over_vectors()
        if not steps:
            return before
        digest = hashlib.sha256(before.encode())
        for step in steps.values():
            digest.update(json.dumps([type(step).__name__, step.identity()], sort_keys=True).encode())
            for key, value in sorted(step.state().items()):
                digest.update(f"{key} {value.dtype} {value.shape}".encode())
                digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()[:16]

    def layers(self, width: int) -> list[Layer]:
        """Return what the steps do to a vector of `width` D, one after the other, for a file to be deployed.

        Raises UserError where one is more than a function of one vector, by its name.
        """
        self._check_fitted()
        layers: list[Layer] = []
        for name, step in self.steps.items():
            with named(name):
                layers.append(step.layer(width))
            width = len(layers[-1].weight) if isinstance(layers[-1], Mapped) else width
        return layers

    def facts(self) -> dict[str, Any]:
        """Return what the search says of itself, and the settings of each step."""
        steps = {name: step.settings() for name, step in self.steps.items()}
        return {**getattr(self.search, "facts", dict)(), "postprocess": steps}

    def _check_fitted(self) -> None:
        for name, step in self.steps.items():
            if step.unfitted:
                raise UserError(f"postprocess.{name}: not fitted; accepted: training vectors, or a saved fit")


@dataclass(frozen=True)
class PipelineIndex:
    """A gallery behind steps: `asked` are those that a query meets, `final` searches the last vectors."""

    asked: list[tuple[str, Step, Stage | None]]
    final: Index
    rows: int

    @property
    def tile(self) -> int | None:
        """Return None where a step has to see all queries at once."""
        return None if any(step.all_queries for _, step, _ in self.asked) else self.final.tile

    def search(self, queries: Side, k: int, *, self_ids: np.ndarray | None = None) -> Ranking:
        """Return the k best gallery positions of each query, (Q,k), after all steps."""
        queries = self._moved(queries, self_ids)
        deepest = max([step.depth for _, step, _ in self.asked], default=0)
        ranking = self.final.search(queries, max(k, min(deepest, self.rows)), self_ids=self_ids)
        for name, step, stage in self.asked:
            if step.kind == "rerank" and stage is not None:
                with named(name):
                    ranking = step.rerank(ranking, queries, stage, self_ids)
        return Ranking(ranking.ids[:, :k], ranking.scores[:, :k])

    def _moved(self, queries: Side, self_ids: np.ndarray | None) -> Side:
        for name, step, stage in self.asked:
            with named(name):
                if step.kind == "map":
                    queries = replace(queries, vectors=step.apply(queries.vectors, "query"))
                elif step.kind == "query" and stage is not None:
                    queries = step.of_queries(queries, stage, self_ids)
        return queries


@contextmanager
def named(name: str) -> Iterator[None]:
    """Put the step's name before the key of a UserError that it raises."""
    try:
        yield
    except UserError as error:
        raise UserError(f"postprocess.{name}.{error}") from error


def _check_order(steps: Mapping[str, Step]) -> None:
    reranking = ended = ""
    for name, step in steps.items():
        if reranking and step.kind != "rerank":
            raise UserError(
                f"postprocess: {name} after {reranking}, which re-ranks; accepted: steps over vectors first"
            )
        if ended and step.reads_vectors:
            raise UserError(
                f"postprocess: {name} after {ended}, whose vectors are no embeddings; accepted: before"
            )
        reranking = name if step.kind == "rerank" else reranking
        ended = name if step.ends_vectors else ended
