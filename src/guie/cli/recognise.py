"""guie-recognise: saved embeddings to one label for each query; or training what judges them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guie.config.compose import enter
from guie.errors import UserError


def run(cfg: dict[str, Any]) -> None:
    """Recognise, or with `fit` train the confidence model, as `cfg` says; no torch."""
    from guie.build import build
    from guie.cli.console import speak
    from guie.recognise import story

    speak()
    if not cfg["out"]:
        raise UserError("out: not given; accepted: a folder for what is predicted or trained")
    out, recogniser = Path(cfg["out"]).expanduser(), build(cfg["recognise"], where="recognise")
    parts = read("embeddings", cfg["embeddings"])
    nothing = read("nothing", cfg["nothing"]) if cfg["nothing"] else None
    if not isinstance(weights := cfg["weights"] or {}, dict):
        raise UserError(f"weights: {weights}; accepted: a number by model, as {{a:0.5,b:1}}")
    views = story.views_of(parts, weights, nothing, picture(cfg))
    asking = next(iter(parts.values()))
    if cfg["fit"]:
        recogniser.fit(views, story.truth_of(asking))
        print(f"GAP of what was left out  {max(recogniser.confidence.gaps):.4f}")
        print(f"recognise.confidence.path={recogniser.confidence.save(out)}")
        return
    found = story.predicted(recogniser, views, out)
    for name, value in story.scored(found, asking).items():
        print(f"{name:5} {value:.4f}")
    print(f"predictions {out / story.FILE}")


def read(key: str, given: Any) -> dict[str, Any]:
    """Return saved embeddings by the model's name: of {a: PATH, b: PATH}, or of one PATH as `all`."""
    from guie import embeddings

    places = given if isinstance(given, dict) else {"all": given}
    if not given or not all(isinstance(place, str) for place in places.values()):
        told = given or "not given"
        raise UserError(f"{key}: {told}; accepted: saved embeddings, or several as {{a:PATH,b:PATH}}")
    return {str(name): embeddings.load(Path(place).expanduser()) for name, place in places.items()}


def picture(cfg: dict[str, Any]) -> Any:
    """Return how to read a picture of `dataset` by its file, None where none is chosen."""
    if not cfg["dataset"]:
        return None
    from guie import assembly
    from guie.datasets.evaluated import reader

    sets = assembly.manifests(cfg["dataset"], cfg["data_root"])
    if len(sets) > 1:
        raise UserError(f"dataset: {', '.join(sets)}; accepted: the one whose embeddings these are")
    return reader(next(iter(sets.values())))


def main() -> None:
    """Console entry point."""
    enter("recognise", run)


if __name__ == "__main__":
    main()
