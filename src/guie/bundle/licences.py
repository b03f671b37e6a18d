"""Under which licences weights, data and software stand: what a named source states, and nothing else.

Where no source states one, the licence says so and where to look. `data_licences.json` holds what the makers
of known data sets state, by the function that lists the set.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from guie.models.weights import is_file_name

Of = Literal["weights", "data", "runs it", "made it"]
ORDER: tuple[Of, ...] = ("weights", "data", "runs it", "made it")

UNKNOWN = (None, "", "unknown", "other")
# A maintainer's answer for the weights that open_clip itself provides.
OPEN_CLIP = "github.com/mlfoundations/open_clip, issue 177"
OPENAI = "github.com/openai/CLIP (its code is MIT; issues 203 and 241 ask for the weights')"


class Licence(NamedTuple):
    """One row of the table: what, under which licence, as stated where."""

    of: Of
    name: str
    licence: str
    source: str

    @property
    def stated(self) -> bool:
        """Tell whether a source states it."""
        return not self.licence.startswith("not stated")


def stated(of: Of, name: str, licence: str | None, source: str) -> Licence:
    """Return the row of what `source` states; where that is nothing it is the place to look at."""
    return Licence(of, name, f"not stated; look at {source}" if licence in UNKNOWN else str(licence), source)


def of_data(name: str, node: Mapping[str, Any]) -> Licence:
    """Return the licence of a data set by its config's target: `name` may be a recipe's."""
    listed = str(node.get("_target_", "")).rpartition(".")[2]
    known = _known_data().get(listed)
    if known is None:
        return stated("data", name, None, f"the makers of {listed or name}")
    return stated("data", name, known["licence"], str(known["source"]))


def _known_data() -> dict[str, dict[str, str | None]]:
    return json.loads(Path(__file__).with_name("data_licences.json").read_text(encoding="utf-8"))


def of_weights(node: Mapping[str, Any]) -> Licence | None:
    """Return the licence of the weights that a backbone begins with, None where they are random."""
    name, pretrained = str(node.get("name")), node.get("pretrained")
    if not pretrained:
        return None
    if isinstance(pretrained, str) and is_file_name(pretrained):
        return stated("weights", f"{name} from {Path(pretrained).name}", None, "whoever gave you the file")
    if str(node["_target_"]).endswith(".OpenClip"):
        return _of_open_clip(name, str(pretrained))
    return _of_timm(name)


def _of_timm(name: str) -> Licence:
    import timm

    found = timm.get_pretrained_cfg(name, allow_unregistered=True)
    full = name if found is None or not found.tag else f"{found.architecture}.{found.tag}"
    if full.partition(".")[2].startswith("openai"):
        return stated("weights", full, None, OPENAI)
    hub = f"huggingface.co/{found.hf_hub_id}" if found and found.hf_hub_id else f"huggingface.co/timm/{full}"
    licence = found.license if found else None
    source = hub if licence in UNKNOWN else f"timm {version('timm')}, license of its {full} ({hub})"
    return stated("weights", full, licence, source)


def _of_open_clip(name: str, tag: str) -> Licence:
    import open_clip

    found = open_clip.get_pretrained_cfg(name, tag) or {}
    hub = str(found.get("hf_hub") or "").strip("/")
    whole = f"{name} {tag}"
    if tag == "openai":
        return stated("weights", whole, None, OPENAI)
    if hub.startswith("laion/") or "/open_clip/releases/" in str(found.get("url")):
        card = f"; see also the card of huggingface.co/{hub}, which may limit the use" if hub else ""
        return stated("weights", whole, "MIT", f"{OPEN_CLIP}{card}")
    if hub.startswith("timm/") and _in_timm(hub.removeprefix("timm/")):
        return _of_timm(hub.removeprefix("timm/"))._replace(name=whole)
    return stated("weights", whole, None, f"huggingface.co/{hub}" if hub else f"open_clip's {whole}")


def _in_timm(name: str) -> bool:
    import timm

    try:
        return timm.get_pretrained_cfg(name) is not None
    except RuntimeError:  # a tag that timm does not have
        return False


def of_software(of: Of, packages: Iterable[str]) -> list[Licence]:
    """Return the licence that each installed package states of itself; others are left out."""
    rows = []
    for package in packages:
        try:
            found = metadata(package)
        except PackageNotFoundError:
            continue
        name = f"{found['Name']} {found['Version']}"
        rows.append(stated(of, name, _of_package(found), f"metadata of the package; {_home(found)}"))
    return rows


def _of_package(found: Any) -> str | None:
    """Return the expression (PEP 639), else the short text, else the classifiers."""
    text = (found.get("License-Expression") or found.get("License") or "").strip()
    if text and "\n" not in text:
        return text
    classifiers = [line for line in found.get_all("Classifier") or [] if line.startswith("License ::")]
    return ", ".join(line.rpartition(" :: ")[2] for line in classifiers) or None


def _home(found: Any) -> str:
    """Return the address that a package gives of its source, else of its page, without its scheme."""
    given = dict(line.split(", ", 1) for line in found.get_all("Project-URL") or [] if ", " in line)
    named = {key.lower(): address for key, address in given.items()}
    order = ("source", "repository", "source code", "homepage")
    address = next((named[key] for key in order if key in named), found.get("Home-page") or found["Name"])
    return re.sub(r"^https?://", "", str(address))


def table(rows: Iterable[Licence]) -> list[dict[str, str]]:
    """Return rows without repetition as plain values, in the order of ORDER."""
    return [row._asdict() for row in sorted(dict.fromkeys(rows), key=lambda row: ORDER.index(row.of))]
