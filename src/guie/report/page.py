"""What an evaluation found, to look at: one self-contained html file.

The report is made from the files of a run folder (config.yaml, metrics.json, metrics.jsonl, queries.parquet);
each that is missing leaves its part out. Nothing in it is fetched from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guie.durable import replace_file
from guie.report import charts, curves, folder, tables
from guie.report.against import changes
from guie.report.album import Album, ReadPicture
from guie.report.doubts import doubts
from guie.report.folder import Queries
from guie.report.galleries import Judge, galleries, judge
from guie.report.numbers import Numbers, dataset_names
from guie.report.pairs import PairScores, pair_scores
from guie.report.sheets import sheets
from guie.types import Embeddings


def write_report(
    place: str | Path,
    *,
    read_picture: ReadPicture | None = None,
    found: Mapping[str, Embeddings] | None = None,
    against: str | Path | None = None,
) -> Path:
    """Write `report.html` into a run folder and return its path; UserError where metrics.json is missing.

    `read_picture` gives the pictures of the galleries; without it they are lists of files. `found` are the
    embeddings, by default those in `place`/embeddings; without them there are no scores of pairs. `against`
    is another evaluation's folder: what changed.
    """
    place = Path(place)
    numbers = folder.read_numbers(place / "metrics.json")
    queries = folder.read_queries(place / "queries.parquet", numbers)
    found = _saved(place) if found is None else found
    config = folder.read_text(place / "config.yaml")
    album = Album(read_picture)
    seen = _seen(queries, album, numbers, found, (place, against))
    html = _template().render(
        title=f"guie · {place.resolve().name}",
        subtitle=folder.subtitle(place, config),
        tiles=tables.tiles(numbers),
        datasets=[_dataset(name, numbers, queries) for name in dataset_names(numbers)],
        charts=[
            *curves.recall_charts(numbers),
            *curves.pair_charts(_pair_scores(numbers, found)),
            *curves.training_charts(folder.read_history(place / "metrics.jsonl")),
        ],
        sheets=sheets(numbers),
        facts=folder.facts(place, numbers),
        config=config,
        scale=charts.scale(),
        left_out=album.left_out,
        **seen,
    )
    path = place / "report.html"
    replace_file(path, html.encode())
    return path


def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8"))


def _seen(
    queries: Queries | None,
    album: Album,
    numbers: Numbers,
    found: Mapping[str, Embeddings],
    places: tuple[Path, str | Path | None],
) -> dict[str, Any]:
    """Return what is to be looked at: changes, galleries, doubts."""
    if queries is None or not len(queries):
        return {"changed": changes(*places, album, Judge(frozenset())), "galleries": [], "doubts": []}
    judging = judge(queries, numbers, found)
    return {
        "changed": changes(*places, album, judging),
        "galleries": galleries(queries, album, judging, numbers),
        "doubts": doubts(queries, album, judging),
    }


def _dataset(name: str, numbers: Numbers, queries: Queries | None) -> dict[str, Any]:
    table = tables.dataset_table(name, numbers, queries)
    for row in table["rows"]:
        row["bars"] = charts.bars(row["cells"])
    further = {"numbers": tables.all_numbers(name, numbers), "counts": tables.counts(name, numbers)}
    return table | further | {"legend": charts.legend(table["keys"], dashed=False)}


def _saved(place: Path) -> dict[str, Embeddings]:
    from guie import embeddings

    metas = sorted((place / "embeddings").glob("*/meta.json"))
    return {meta.parent.name: embeddings.load(meta.parent) for meta in metas}


def _pair_scores(numbers: Numbers, found: Mapping[str, Embeddings]) -> dict[str, PairScores]:
    protocols = numbers.get("protocols", {})
    sets = {name: part for name, part in found.items() if name in numbers.get("trained", {})}
    scores = {name: pair_scores(name, part, protocols.get(name, {})) for name, part in sets.items()}
    return {name: one for name, one in scores.items() if one}
