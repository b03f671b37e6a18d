"""Folders as the Hugging Face hub keeps them: `hf-hub:owner/name[@revision]` to a folder on this machine.

Of a repository three files are fetched, none of which is a pickle or code; `checkpoint` compares them with
their manifest before it reads them.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from guie.errors import UserError

SCHEME = "hf-hub:"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FETCHED = (CONFIG, WEIGHTS, "manifest.json")
PARTS = ("backbone", "pool", "neck")
META = ("config", "preprocess", "space_id", "step")
REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")


def local(path: Path) -> Path:
    """Return `path`; of `hf-hub:owner/name[@revision]` the folder of its files, fetched where it lacks them.

    The cache is the hub's own (HF_HOME). Raises UserError, with the cure, for what cannot be had.
    """
    text = str(path)
    return _fetched(text.removeprefix(SCHEME)) if text.startswith(SCHEME) else path


def title(folder: Path) -> str:
    """Return a name for such a folder: its own, of one in the hub's cache owner--name-commit."""
    folder = folder.absolute()
    if folder.parent.name != "snapshots":
        return folder.name
    return f"{folder.parent.parent.name.removeprefix('models--')}-{folder.name[:7]}"


def is_published(folder: Path) -> bool:
    """Return whether a folder is as the hub keeps them: weights for use, with their config."""
    return all((folder / name).is_file() for name in FETCHED)


def check_new(path: str | Path, *, overwrite: bool) -> Path:
    """Return the absolute folder to write; UserError where it holds anything but what is replaced there."""
    folder = Path(path).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"huggingface: {path} is a file; accepted: a folder that is new or empty")
    held = sorted(child.name for child in folder.iterdir()) if folder.is_dir() else []
    if others := [name for name in held if name not in (*FETCHED, CARD)]:
        raise UserError(f"huggingface: {path} holds {others[0]}; accepted: a folder that is new or empty")
    if held and not overwrite:
        raise UserError(f"huggingface: {path} exists; accepted: another folder, or overwrite=true")
    if held and not is_published(folder):
        raise UserError(f"huggingface: {path} was not written by guie-export; accepted: another folder")
    if not folder.parent.is_dir():
        raise UserError(f"huggingface: there is no folder {folder.parent}; accepted: one that is there")
    return folder


def meta(data: bytes) -> dict[str, Any]:
    """Return what a config.json says that guie wrote; raises ValueError for another."""
    found = json.loads(data)
    told = found if isinstance(found, dict) else {}
    parts = told["config"] if isinstance(told.get("config"), dict) else {}
    lacking = [key for key in META if key not in told]
    lacking += [f"config.{key}" for key in PARTS if not isinstance(parts.get(key), dict)]
    lacking += [] if "seed" in parts else ["config.seed"]
    if lacking:
        raise ValueError(f"{CONFIG} lacks '{lacking[0]}', so guie did not write it")
    return told


@cache  # one answer for the whole process: a branch may move on between two readers
def _fetched(name: str) -> Path:
    match = REPOSITORY.fullmatch(name)
    if not match:
        raise UserError(f"ckpt: {SCHEME}{name}; accepted: {SCHEME}owner/name, or {SCHEME}owner/name@revision")
    from huggingface_hub import snapshot_download

    repository, revision = match.groups()
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(FETCHED)))
    except Exception as error:  # the hub's, the HTTP library's and the system's: each has its own classes
        raise UserError(f"ckpt: {SCHEME}{name} {_explained(error, repository, revision)}") from error


def _explained(error: Exception, repository: str, revision: str | None) -> str:
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, RevisionNotFoundError):
        return f"has no revision '{revision or 'main'}'; accepted: a branch, a tag or a commit of it"
    if isinstance(error, RepositoryNotFoundError):
        return "does not exist, or not for this account; accepted: HF_TOKEN of one that may read it"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0]
    return (
        f"cannot be had ({reason}); accepted: HF_HOME of a machine that ran 'hf download {repository}', or "
        "the folder itself, copied: ckpt=FOLDER"
    )
