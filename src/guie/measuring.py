"""Embeddings through protocols, a search and its steps: their numbers, and what is said of them beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from guie.embeddings import concatenate, one_space, with_distractors
from guie.errors import UserError
from guie.evaluate import Evaluation, Picture, by_step, evaluate
from guie.protocols.part import Protocol, splits_of
from guie.types import Embeddings, Search, Side

if TYPE_CHECKING:
    from guie.postprocess.pipeline import Pipeline


@dataclass(frozen=True)
class Measured:
    """How embeddings are evaluated: by `protocols`, through `search` and the steps of `postprocess`.

    What was fitted is kept in `out`/postprocess, by the process that `writes`. `picture` serves steps that
    look at pictures.
    """

    cfg: Mapping[str, Any]
    protocols: Mapping[str, Protocol]
    search: Search
    out: Path
    picture: Picture | None = None
    writes: bool = True

    def check(
        self, space: str, bank: Mapping[str, Any], distractors: Mapping[str, Any] | None = None
    ) -> None:
        """Raise UserError where `on` would for vectors of `space`, before there are any.

        Of `bank` and `distractors` only what they are called counts.
        """
        self._steps(space, bank)
        for name in self.protocols if distractors else ():
            self._joined_split(name)

    def on(
        self,
        found: Mapping[str, Embeddings],
        bank: Mapping[str, Embeddings],
        distractors: Mapping[str, Embeddings] | None = None,
    ) -> tuple[Evaluation, dict[str, Any]]:
        """Return the evaluation and facts for metrics.json: space_id, search, steps.

        Steps that need training vectors are fitted on `bank`. With `distractors` each set is evaluated again,
        as `<set>+<distractors>`, with these in its gallery. Raises UserError where the spaces differ.
        """
        one_space({**found, **(distractors or {}), **bank})
        space = next(iter(found.values())).space_id
        pipeline = self._fitted(space, bank)
        steps = pipeline.upto() if pipeline else [("", self.search)]
        evaluation, told = by_step(found, self.protocols, steps, picture=self.picture)
        if distractors:
            among = self._among(found, distractors, pipeline or self.search)
            evaluation = evaluation.with_further(among)
        facts: dict[str, Any] = {"space_id": pipeline.space_id(space) if pipeline else space}
        if pipeline:
            facts |= {"vectors_space_id": space, "postprocess": list(pipeline.steps), "steps": told}
        described: dict[str, Any] = getattr(self.search, "facts", dict)()
        facts |= {"search": described} if described else {}
        return evaluation, facts | self._calibrated(found, pipeline) | self._sheet(found, bank)

    def _calibrated(self, found: Mapping[str, Embeddings], pipeline: Pipeline | None) -> dict[str, Any]:
        """Return thresholds and open set where they are asked for, from one process, and their space.

        They are of the vectors that a file with the steps gives; as embedded, where none can hold them.
        """
        if not (self.cfg["thresholds"] and self.writes):
            return {}
        from guie.calibrate.thresholds import calibrate

        given = _behind(found, pipeline) if pipeline else found
        rows, reports = calibrate(given, self.protocols, seed=self.cfg["seed"])
        space = next(iter(given.values())).space_id
        return {"thresholds": rows, "open_set": reports, "thresholds_space_id": space}

    def _sheet(self, found: Mapping[str, Embeddings], bank: Mapping[str, Embeddings]) -> dict[str, Any]:
        """Return what is asked for of how small vectors may be."""
        facts: dict[str, Any] = {}
        if self.cfg["compression"]:
            from guie.compression import sheet

            facts["compression"] = sheet(found, self.protocols, bank, self.search)
        return facts

    def _among(
        self, found: Mapping[str, Embeddings], distractors: Mapping[str, Embeddings], search: Search
    ) -> Evaluation:
        """Return the evaluation with `distractors` in each gallery."""
        added = "+".join(distractors)
        parts = {
            f"{name}+{added}": with_distractors(part, distractors, self._joined_split(name))
            for name, part in found.items()
        }
        protocols = {f"{name}+{added}": self.protocols[name] for name in found}
        return evaluate(parts, protocols, search=search, picture=self.picture, merged=False)

    def _joined_split(self, name: str) -> str:
        """Return the split of a data set that distractors join."""
        asks, answers = splits_of(self.protocols[name])
        only = [split for split in answers if split not in asks]
        if not only:
            raise UserError(f"distractors: {name} is searched by itself alone; accepted: a set with an index")
        return "index" if "index" in only else only[0]

    def _steps(self, space: str, bank: Mapping[str, Any]) -> Pipeline | None:
        """Return the steps of `postprocess`, fitted where `fitted` is given; None where there are none.

        Raises UserError where some need training vectors, and there is no `bank`.
        """
        nodes, fitted = self.cfg["postprocess"], self.cfg["fitted"]
        if not nodes and not fitted:
            return None
        from guie.postprocess import saved

        pipeline = saved.configured(nodes, self.search, fitted, space_id=space)
        needing = _needing(pipeline)
        if needing and not bank and not fitted:
            raise UserError(
                f"postprocess.{needing[0]}: no training vectors; accepted: bank=NAME or fitted=FOLDER"
            )
        return pipeline

    def _fitted(self, space: str, bank: Mapping[str, Embeddings]) -> Pipeline | None:
        """Return the steps of `postprocess`, fitted on `bank` where they were not before."""
        pipeline = self._steps(space, bank)
        if pipeline and not self.cfg["fitted"] and _needing(pipeline):
            from guie.postprocess import saved

            whole = concatenate(bank)
            pipeline.fit(Side(np.ascontiguousarray(whole.vectors), whole.files, whole.labels))
            if self.writes:
                saved.save(pipeline, self.out / "postprocess", space_id=space)
        return pipeline


def _behind(found: Mapping[str, Embeddings], pipeline: Pipeline) -> Mapping[str, Embeddings]:
    """Return the embeddings behind steps that act on one vector by itself, else as they are."""
    made = {}
    for name, part in found.items():
        vectors = pipeline.mapped(part.vectors)
        if vectors is None:
            return found
        made[name] = replace(part, vectors=vectors, space_id=pipeline.space_id(part.space_id))
    return made


def _needing(pipeline: Pipeline) -> list[str]:
    """Return the steps that want to be fitted."""
    return [name for name, step in pipeline.steps.items() if step.unfitted]


def keep_thresholds(facts: Mapping[str, Any], *folders: Path) -> None:
    """Write thresholds.json into the evaluation's folder, and the model's."""
    if facts.get("thresholds"):
        from guie.calibrate.thresholds import Thresholds

        space = facts["thresholds_space_id"]
        for folder in folders:
            print(f"thresholds  {Thresholds(space, facts['thresholds']).save(folder)}")
