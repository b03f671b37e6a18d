"""Check a bundle: its own checks in a process without guie, then whether its files contradict each other."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from guie import images
from guie.bundle import check, embed
from guie.calibrate import thresholds
from guie.errors import UserError
from guie.export import fresh, runtime
from guie.export.alone import last_words, run_alone
from guie.export.contract import check_promise
from guie.export.verify import describe, sha256_of

# What every bundle holds to run without guie: these files, as they are.
SHIPPED = [Path(str(module.__file__)) for module in (embed, check, images, runtime, fresh)]
WITHOUT = Path(__file__).with_name("without.py")


def verify(folder: str | Path, *, device: str = "cpu") -> list[str]:
    """Return what was checked, a line for each thing; the bundle's own code is not run.

    Raises UserError naming everything that is not as it was exported.
    """
    place = Path(folder).expanduser().absolute()
    lines = alone(place, device=device)
    if problems := list(contradictions(place)):
        raise UserError(f"verify: {place}: {'; '.join(problems)}; accepted: the bundle as it was exported")
    for model in check.read_manifest(place)["models"]:
        path = place / model["file"]
        check_promise(path, describe(path), device)
    return lines


def alone(place: Path, *, device: str = "cpu", run: bool = True) -> list[str]:
    """Return what guie's own copies of the bundle's checks say, in a process without guie and network.

    Raises UserError naming every problem.
    """
    with tempfile.TemporaryDirectory() as elsewhere:
        for path in SHIPPED:
            shutil.copyfile(path, Path(elsewhere) / path.name)
        asked = ["--verify", "--folder", str(place), "--device", device, *([] if run else ["--files"])]
        words = (str(Path(elsewhere) / "embed.py"), ",".join(hidden(place)), json.dumps(asked))
        done = run_alone(WITHOUT, *words, offline=True)
    lines = done.stdout.splitlines()
    wrong = [line.removeprefix(embed.WRONG) for line in lines if line.startswith(embed.WRONG)]
    if done.returncode and not wrong:
        wrong = [last_words(done)]
    if wrong:
        raise UserError(f"verify: {place}: {'; '.join(wrong)}; accepted: the bundle as it was exported")
    return lines[:-1]


def hidden(place: Path) -> tuple[str, ...]:
    """Return the packages that a bundle must do without; torch, too, where none of its models runs in it."""
    try:
        engines = {model["engine"] for model in check.read_manifest(place)["models"]}
    except ValueError:  # the check itself says so
        engines = set()
    return fresh.ABSENT if "torch" in engines else (*fresh.ABSENT, "torch")


def contradictions(place: Path) -> Iterator[str]:
    """Yield a line for each thing that a file of the bundle says and another contradicts."""
    told = json.loads((place / "preprocess.json").read_bytes())
    for model in check.read_manifest(place)["models"]:
        yield from _of_model(place, model, told)
    if (place / thresholds.FILE).exists():
        calibrated = thresholds.load(place).space_id
        if calibrated != told["space_id"]:
            yield f"{thresholds.FILE}: of space {calibrated}, the models are of {told['space_id']}"
    if f"`{told['space_id']}`" not in (place / "card.md").read_text(encoding="utf-8"):
        yield f"card.md: does not name the space {told['space_id']}"


def _of_model(place: Path, model: Mapping[str, Any], told: Mapping[str, Any]) -> Iterator[str]:
    """Yield where a model file's own words differ from the files beside it."""
    facts = describe(place / model["file"])
    for key, value in told.items():
        if facts.get(key) != value:
            yield f"preprocess.json: {key} is {value}, in {model['file']} it is {facts.get(key)}"
    for key in ("format", "precision", "tolerance", "golden"):
        if facts.get(key) != model[key]:
            yield f"{check.MANIFEST}: {key} is {model[key]}, in {model['file']} it is {facts.get(key)}"
    listed = {facts["golden"]: facts["golden_sha256"], **facts.get("parts", {}), **facts.get("kept", {})}
    for name, digest in listed.items():
        if not (place / name).exists():
            yield f"{name}: missing, named by {model['file']}"
        elif sha256_of(place / name) != digest:
            yield f"{name}: not the one that {model['file']} was written with"
