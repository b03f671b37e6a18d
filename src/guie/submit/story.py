"""What guie-submit does: read what guie wrote, write the file a challenge takes, and check it.

A source is a folder of guie-eval (lists_<set>.parquet, queries.parquet, embeddings/<set>), of guie-embed, of
guie-recognise (predictions.csv), or saved embeddings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guie import embeddings
from guie.errors import UserError
from guie.metrics.copies import MOST_PAIRS
from guie.postprocess import saved
from guie.postprocess.pipeline import Pipeline
from guie.postprocess.step import Role
from guie.protocols.copies import Asking, best_pairs, usual_depth
from guie.protocols.part import Part, Roles
from guie.recognise.pipeline import Predictions
from guie.search.chosen import chosen
from guie.submit import isc, landmarks, universal
from guie.submit.tables import number, read_rows, wanted_ids
from guie.types import Embeddings

ENDINGS = {
    "guie": (".zip",),
    "recognition": (".csv", ".csv.gz"),
    "retrieval": (".csv", ".csv.gz"),
    "isc_matching": (".csv", ".csv.gz"),
    "isc_descriptor": (".h5", ".hdf5"),
}
SAMPLED = ("recognition", "retrieval")
ROLES = Roles(("query",), ("index",))


def submit_configured(cfg: Mapping[str, Any]) -> None:
    """Write (or with `check` only check) a submission as `cfg` says, and print what it holds."""
    if cfg["kind"] not in ENDINGS:
        raise UserError(f"kind: '{cfg['kind']}'; accepted: {', '.join(ENDINGS)}")
    _check_values(cfg)
    wanted = wanted_ids(cfg["sample"])
    if cfg["check"]:
        target = Path(cfg["check"]).expanduser()
        if not target.is_file():
            raise UserError(f"check: there is no file {target}; accepted: a submission")
        print(f"{target}: {check(target, cfg, wanted)}")
        return
    target = _destination(cfg)
    writers: dict[str, Callable[..., object]] = {
        "recognition": write_recognition,
        "retrieval": write_retrieval,
        "isc_matching": write_matching,
        "isc_descriptor": write_descriptors,
    }
    if cfg["kind"] == "guie":
        if not cfg["pt"]:
            raise UserError("pt: not given; accepted: a file that guie-export wrote")
        print(f"{target}: {universal.write_zip(target, cfg['pt'], cfg['max_mib'])}")
        return
    source, partial = _source(cfg), target.with_name(f".{os.getpid()}.{target.name}")
    try:
        writers[cfg["kind"]](partial, source, cfg, wanted)
        said = check(partial, cfg, wanted)
        partial.replace(target)
    except UserError as error:
        raise UserError(str(error).replace(str(partial), str(target))) from error
    finally:
        partial.unlink(missing_ok=True)
    print(f"{target}: {said}")


def _check_values(cfg: Mapping[str, Any]) -> None:
    """Raise UserError naming a value that cannot be, or that this kind of file knows nothing of."""
    if not 1 <= cfg["max_pairs"] <= MOST_PAIRS:
        raise UserError(f"max_pairs: {cfg['max_pairs']}; accepted: 1 to {MOST_PAIRS:,}")
    if cfg["sample"] and cfg["kind"] not in SAMPLED:
        raise UserError(f"sample: given with kind={cfg['kind']}; accepted: with {', '.join(SAMPLED)}")
    if cfg["fitted"] and not cfg["postprocess"]:
        raise UserError(f"fitted: {cfg['fitted']} without steps; accepted: with 'postprocess=[NAME]'")


def check(path: Path, cfg: Mapping[str, Any], wanted: Sequence[str] | None) -> str:
    """Return what the submission holds; UserError naming row and value of the first thing that is wrong."""
    checks: dict[str, Callable[[], str]] = {
        "guie": lambda: universal.check_zip(path, cfg["max_mib"]),
        "recognition": lambda: landmarks.check_recognition(path, wanted),
        "retrieval": lambda: landmarks.check_retrieval(path, wanted),
        "isc_matching": lambda: isc.check_matching(path),
        "isc_descriptor": lambda: isc.check_descriptors(path),
    }
    return checks[cfg["kind"]]()


def _destination(cfg: Mapping[str, Any]) -> Path:
    endings = ENDINGS[cfg["kind"]]
    accepted = f"the name of a file that ends in {' or '.join(endings)}"
    if not cfg["out"] or not str(cfg["out"]).endswith(endings):
        raise UserError(f"out: {cfg['out']}; accepted: {accepted}")
    target = Path(cfg["out"]).expanduser()
    if target.exists() and not cfg["overwrite"]:
        raise UserError(f"out: {target} exists; accepted: another name, or overwrite=true")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _source(cfg: Mapping[str, Any]) -> Path:
    place = Path(cfg["source"] or "").expanduser()
    if not cfg["source"] or not place.exists():
        raise UserError(
            f"source: {cfg['source']}; accepted: a folder of guie-eval, guie-embed or guie-recognise"
        )
    return place


def write_recognition(
    target: Path, source: Path, cfg: Mapping[str, Any], wanted: Sequence[str] | None
) -> None:
    """Write the predictions of guie-recognise, or of an evaluation whose protocol is recognition."""
    if source.suffix == ".csv" or (source / "predictions.csv").exists():
        path = source if source.suffix == ".csv" else source / "predictions.csv"
        rows = [
            (file, label, number(path, line, score, "score"))
            for line, (file, label, score) in read_rows(path, ("file", "label", "score"))
        ]
        columns: list[Sequence[Any]] = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
        found = landmarks.as_predictions(*columns)
    else:
        found = _predicted(_queries(source, cfg, ("file", "predicted", "prediction_score")))
    landmarks.write_recognition(target, found, wanted)


def _predicted(columns: Mapping[str, Sequence[Any]]) -> Predictions:
    return landmarks.as_predictions(columns["file"], columns["predicted"], columns["prediction_score"])


def write_retrieval(target: Path, source: Path, cfg: Mapping[str, Any], wanted: Sequence[str] | None) -> None:
    """Write the lists that an evaluation kept, else those of a search of saved embeddings."""
    kept = [] if source.is_file() else sorted(source.glob("lists_*.parquet"))
    if kept:
        results = _listed(_one(kept, cfg, "lists_{}.parquet"))
    else:
        part = _searched(source, cfg)
        queries, gallery = part.roles(ROLES)
        files = np.asarray(part.embeddings.files, dtype=object)
        results = {}
        for tile, ranking in part.asked(queries, gallery, min(landmarks.MOST_IMAGES, len(gallery))):
            for row, ids in zip(queries[tile], ranking.ids, strict=True):
                results[files[row]] = files[gallery[ids[ids >= 0]]].tolist()
    landmarks.write_retrieval(target, results, wanted)


def _listed(path: Path) -> dict[str, list[str]]:
    """Return the items of each query, best first."""
    columns = _columns(path, ("query", "item", "rank"))
    results: dict[str, list[str]] = {}
    order = np.argsort(np.asarray(columns["rank"]), kind="stable")
    for place in order.tolist():
        results.setdefault(columns["query"][place], []).append(columns["item"][place])
    return results


def write_matching(target: Path, source: Path, cfg: Mapping[str, Any], wanted: Sequence[str] | None) -> None:
    """Write the globally best pairs of saved embeddings."""
    part = _searched(source, cfg)
    queries, gallery = part.roles(ROLES)
    index = part.search.index(part.side(gallery, labels=True))
    asking = Asking(part.side(queries), part.self_ids(queries, gallery), index, len(gallery))
    pairs = best_pairs(asking, usual_depth(asking, cfg["max_pairs"]), cfg["max_pairs"])
    files = np.asarray(part.embeddings.files, dtype=object)
    isc.write_matching(target, pairs, files[queries].tolist(), files[gallery].tolist())


def write_descriptors(
    target: Path, source: Path, cfg: Mapping[str, Any], wanted: Sequence[str] | None
) -> None:
    """Write the vectors of saved embeddings, after the maps of `postprocess`."""
    part = _embeddings(source, cfg)
    pipeline = _pipeline(cfg, part.space_id)
    for name, step in pipeline.steps.items():
        if step.kind != "map":
            accepted = "steps that map each vector alone"
            raise UserError(f"postprocess.{name}: {step.kind} step for descriptors; accepted: {accepted}")
        if step.unfitted:
            raise UserError(f"postprocess.{name}: not fitted; accepted: fitted=FOLDER")
    roles: dict[str, Role] = {"query": "query", "index": "gallery"}
    rows = {role: np.flatnonzero(np.asarray(part.splits) == split) for split, role in roles.items()}
    sides = [_mapped(pipeline, part.vectors[places], role) for role, places in rows.items()]
    order = np.concatenate(list(rows.values()))
    isc.write_descriptors(target, np.concatenate(sides), part.files[order].tolist(), part.splits[order])


def _mapped(pipeline: Pipeline, vectors: np.ndarray, role: Role) -> np.ndarray:
    """Return vectors (N,D) after the steps."""
    for step in pipeline.steps.values():
        vectors = step.apply(vectors, role)
    return vectors


def _searched(source: Path, cfg: Mapping[str, Any]) -> Part:
    """Return the embeddings of `source`, with the search and the steps of the config."""
    found = _embeddings(source, cfg)
    return Part("embeddings", found, _pipeline(cfg, found.space_id))


def _pipeline(cfg: Mapping[str, Any], space_id: str) -> Pipeline:
    search = chosen(cfg["search"], cfg["memory_mib"])
    return saved.configured(cfg["postprocess"], search, cfg["fitted"], space_id=space_id)


def _embeddings(source: Path, cfg: Mapping[str, Any]) -> Embeddings:
    """Return the embeddings in `source`, `source`/<set> or `source`/embeddings/<set>."""
    places = [source, *sorted(source.glob("*")), *sorted(source.glob("embeddings/*"))]
    found = [place for place in places if embeddings.is_saved(place)]
    if not found:
        raise UserError(f"source: no embeddings in {source}; accepted: a folder of guie-eval or guie-embed")
    return embeddings.load(_one(found, cfg, "{}"))


def _one(found: Sequence[Path], cfg: Mapping[str, Any], pattern: str) -> Path:
    """Return the path of the data set `set`, or the only one."""
    name = cfg["set"]
    named = [path for path in found if path.name == pattern.format(name)] if name else list(found)
    if len(named) != 1:
        head, _, tail = pattern.partition("{}")
        names = ", ".join(path.name.removeprefix(head).removesuffix(tail) for path in found)
        raise UserError(f"set: {name}; accepted: one of {names}")
    return named[0]


def _queries(source: Path, cfg: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, list[Any]]:
    """Return columns of queries.parquet, of the data set `set` or the only one."""
    path = source / "queries.parquet"
    columns = _columns(path, ("dataset", *wanted))
    sets = list(dict.fromkeys(columns["dataset"]))
    name = str(_one([Path(one) for one in sets], cfg, "{}"))
    rows = [row for row, one in enumerate(columns["dataset"]) if one == name]
    return {key: [columns[key][row] for row in rows] for key in wanted}


def _columns(path: Path, wanted: Sequence[str]) -> dict[str, list[Any]]:
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
        return {name: table[name].to_pylist() for name in wanted}
    except KeyError as error:
        told = f"no column {error.args[0]}"
        raise UserError(f"source: {path}: {told}; accepted: an evaluation by that protocol") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"source: {path} cannot be read ({error}); accepted: a folder of guie-eval"
        ) from error
