"""A run's state on disk: safetensors and JSON, hashed, written whole or not at all, never a pickle.

    checkpoints/
      step_000123/  embedder.safetensors head.safetensors [ema.safetensors ...]   weights, one file per part
                    training.safetensors training.json   optimiser, scaler, counters: tensors and plain values
                    meta.json                            config, preprocessing, space id, labels
                    manifest.json                        sha256 and length of every file above
      last.json best.json                                which step they mean

A folder appears under its name by one rename, after every byte has reached the disk; so a name that can be
seen is complete, and the manifest tells whether it has changed since.

A Hugging Face folder is a checkpoint, too, of weights for use alone: model.safetensors, config.json (what
meta.json says), their manifest.json, and README.md, which anybody may edit.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from guie import huggingface
from guie.durable import replace_file, replace_folder, sync, write_durably
from guie.errors import UserError
from guie.types import Preprocess

FORMAT = 1
STEP_FOLDER = re.compile(r"step_(\d{6,})")
STAGE_FOLDER = re.compile(r"(\d+)-(\w[\w-]*)")
Which = Literal["best", "last"]


@dataclass
class State:
    """Everything a run is after `step` optimiser steps.

    `parts` maps a part (`embedder`, `head`, `ema`, `refit`, later a memory or a shard) to its named tensors;
    `training` is nested dicts, lists, tuples, numbers, strings and tensors; `meta` is plain JSON.
    """

    step: int
    parts: dict[str, dict[str, Tensor]]
    training: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def trained(self) -> dict[str, Tensor]:
        """Return the embedder's weights as training left them: the moving average where one was kept."""
        return self.parts.get("ema") or self.parts["embedder"]

    @property
    def weights(self) -> dict[str, Tensor]:
        """Return the embedder's weights for use: as `trained`, its neck refitted where that was done."""
        return self.trained | self.parts.get("refit", {})


@dataclass(frozen=True)
class Store:
    """The `checkpoints/` folder of one run; keeps the newest `keep`, the best and those of `keep_steps`."""

    folder: Path
    keep: int = 2
    keep_steps: frozenset[int] = frozenset()

    def save(self, state: State, best: Mapping[str, Any] | None = None) -> Path:
        """Write `state`, point `last` (and `best`, given what made it so) at it, then delete old ones.

        Raises UserError where the disk is full or refuses; the former checkpoints stay loadable.
        """
        try:
            written = save(self.folder, state)
            point(self.folder, "last", written, {})
            if best is not None:
                point(self.folder, "best", written, best)
        except OSError as error:
            raise UserError(self._failure(state, error)) from error
        self._prune()
        return written

    def _failure(self, state: State, error: OSError) -> str:
        old = steps(self.folder)
        rest = f"the last good checkpoint is {old[-1]}" if old else "no earlier checkpoint exists"
        return f"{self.folder}: step {state.step} could not be saved ({error.strerror or error}); {rest}"

    def _prune(self) -> None:
        present = steps(self.folder)
        kept = set(present[-self.keep :]) | {pointed(self.folder, "best"), pointed(self.folder, "last")}
        for folder in present:
            if folder not in kept and step_of(folder) not in self.keep_steps:
                shutil.rmtree(folder, ignore_errors=True)
        for left in self.folder.glob(".step_*"):
            shutil.rmtree(left, ignore_errors=True)


def save(folder: Path, state: State) -> Path:
    """Write `folder/step_<step>` by temporary name, fsync and rename; return it.

    Raises OSError, leaving nothing behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step_{state.step:06d}"
    with _appearing(final) as temporary:
        _write_files(temporary, state)
    return final


@contextmanager
def published(folder: Path, state: State, card: str) -> Iterator[Path]:
    """Yield a folder with the weights for use, the meta and the card, as the Hugging Face hub keeps them.

    After the block it is `folder`, in the place of what was there; where the block raises, nothing is left.
    """
    with _appearing(folder) as temporary:
        write_durably(temporary / huggingface.CARD, card.encode())
        _seal(temporary, _published_files(state))
        yield temporary


@contextmanager
def _appearing(final: Path) -> Iterator[Path]:
    """Yield an empty folder beside `final`, which gets that name after the block; gone where that raises."""
    temporary = final.with_name(f".{final.name}.{os.getpid()}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        replace_folder(temporary, final, final.with_name(f"{temporary.name}.old"))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _published_files(state: State) -> dict[str, bytes]:
    told = json.dumps({**state.meta, "step": state.step}, indent=1).encode()
    return {huggingface.WEIGHTS: _tensor_bytes(state.weights, {"format": "pt"}), huggingface.CONFIG: told}


def _write_files(folder: Path, state: State) -> None:
    tensors: dict[str, Tensor] = {}
    plain = _pack(state.training, tensors, "")
    files = {f"{part}.safetensors": _tensor_bytes(named) for part, named in state.parts.items()}
    files["training.safetensors"] = _tensor_bytes(tensors)
    files["training.json"] = _json_bytes(plain)
    files["meta.json"] = _json_bytes({**state.meta, "step": state.step})
    _seal(folder, files)


def _seal(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` and their manifest into `folder`."""
    listed = {name: {"bytes": len(data), "sha256": _sha256(data)} for name, data in files.items()}
    manifest = _json_bytes({"files": listed, "format": FORMAT})
    for name, data in {**files, "manifest.json": manifest}.items():
        write_durably(folder / name, data)
    sync(folder)


def point(folder: Path, which: Which, checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """Make `folder/<which>.json` name `checkpoint`, atomically; `facts` (score, metric) stand beside it."""
    replace_file(folder / f"{which}.json", _json_bytes({**facts, "checkpoint": checkpoint.name}))


def pointed(folder: Path, which: Which) -> Path | None:
    """Return the checkpoint that `folder/<which>.json` names, or None where there is none to be found."""
    try:
        name = str(json.loads((folder / f"{which}.json").read_bytes())["checkpoint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder / name if STEP_FOLDER.fullmatch(name) and (folder / name).is_dir() else None


def steps(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, oldest step first."""
    found = [path for path in folder.glob("step_*") if STEP_FOLDER.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the step that the name of a checkpoint says."""
    return int(checkpoint.name[5:])


def stages(path: Path) -> list[Path]:
    """Return the run folders `<number>-<name>` of the stages below a run's folder, first stage first."""
    found = {folder: STAGE_FOLDER.fullmatch(folder.name) for folder in path.glob("[0-9]*-*/")}
    numbers = {folder: int(match.group(1)) for folder, match in found.items() if match}
    return sorted(numbers, key=numbers.__getitem__)


def locate(path: Path, which: Which = "best") -> Path:
    """Return the checkpoint folder meant by `path`: itself, or a run folder's `which` (else newest) one.

    Of a run in stages it is that of the last stage which has one; `hf-hub:owner/name` is fetched.
    """
    path = huggingface.local(path)
    if (path / "manifest.json").is_file():
        return path
    if path.is_file():
        raise UserError(f"ckpt: {path} is a file; accepted: a run folder or a checkpoint folder (step_*)")
    if (path / huggingface.CONFIG).is_file():
        raise UserError(f"ckpt: {path} has no manifest.json; accepted: a Hugging Face folder of guie-export")
    path = next((stage for stage in reversed(stages(path)) if steps(stage / "checkpoints")), path)
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    other: Which = "last" if which == "best" else "best"
    found = pointed(folder, which) or pointed(folder, other)
    if found is None and steps(folder):
        found = steps(folder)[-1]
    if found is None:
        raise UserError(
            f"ckpt: {path} holds no checkpoint; accepted: a run folder or a checkpoint folder (step_*)"
        )
    return found


def read(path: Path, which: Which = "best", parts: Iterable[str] | None = None) -> State:
    """Load a run folder's `which` checkpoint, or a checkpoint folder, onto the CPU.

    `parts` limits the weights that are read (default all); the optimiser's state is read only without it.
    Nothing is unpickled and no code is named. Every file read is first compared with its sha256.
    Raises UserError where a file is damaged or missing, and offers the newest intact checkpoint beside it.
    """
    folder = locate(Path(path), which)
    try:
        return _read(folder, None if parts is None else set(parts))
    except _Damaged as error:
        raise UserError(f"{folder}: {error}; {_offer(folder)}") from error


class _Damaged(Exception):
    """A checkpoint whose bytes are not the ones that were saved."""


def _read(folder: Path, wanted: set[str] | None) -> State:
    listed = _manifest(folder)
    files = _part_files(listed)
    parts = sorted(files if wanted is None else wanted)
    for part in parts:
        if part not in files:
            raise _Damaged(f"{part}.safetensors is not in its manifest")
    meta = _read_meta(folder, listed)
    training = _read_training(folder, listed) if wanted is None and "training.json" in listed else {}
    tensors = {part: _tensors(folder, files[part], listed) for part in parts}
    return State(int(meta["step"]), tensors, training, meta)


def _part_files(listed: Mapping[str, Any]) -> dict[str, str]:
    """Return the file of each part's weights."""
    names = [name for name in listed if name.endswith(".safetensors") and name != "training.safetensors"]
    return {"embedder" if name == huggingface.WEIGHTS else Path(name).stem: name for name in names}


def _read_meta(folder: Path, listed: dict[str, Any]) -> dict[str, Any]:
    if huggingface.CONFIG not in listed:
        return json.loads(_checked(folder, "meta.json", listed))
    try:
        return huggingface.meta(_checked(folder, huggingface.CONFIG, listed))
    except ValueError as error:
        raise _Damaged(str(error)) from error


def _read_training(folder: Path, listed: dict[str, Any]) -> dict[str, Any]:
    tensors = _tensors(folder, "training.safetensors", listed)
    return _unpack(json.loads(_checked(folder, "training.json", listed)), tensors)


def verify(folder: Path) -> None:
    """Compare every file of a checkpoint with its manifest; raises UserError naming one that differs."""
    try:
        listed = _manifest(folder)
        for name in listed:
            _checked(folder, name, listed)
    except _Damaged as error:
        raise UserError(f"{folder}: {error}; {_offer(folder)}") from error


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        data = (folder / "manifest.json").read_bytes()
        manifest = json.loads(data)
        # Any changed byte of the manifest itself shows here: it is written in one canonical form.
        if data != _json_bytes(manifest) or manifest.keys() != {"files", "format"}:
            raise ValueError("not as written")
    except (OSError, ValueError, AttributeError) as error:
        raise _Damaged(f"manifest.json is damaged ({error})") from error
    if manifest["format"] != FORMAT:
        raise _Damaged(f"manifest.json has format {manifest['format']}; this version reads {FORMAT}")
    return manifest["files"]


def _checked(folder: Path, name: str, listed: dict[str, Any]) -> bytes:
    if Path(name).name != name:
        raise _Damaged(f"manifest.json names {name!r}, outside the checkpoint")
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise _Damaged(f"{name} cannot be read ({error.strerror})") from error
    expected = listed.get(name, {}).get("sha256", "nothing")
    if _sha256(data) != expected:
        raise _Damaged(f"{name} is damaged (sha256 {_sha256(data)[:12]}, saved as {expected[:12]})")
    return data


def _tensors(folder: Path, name: str, listed: dict[str, Any]) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(_checked(folder, name, listed))
    except SafetensorError as error:
        raise _Damaged(f"{name} is no safetensors file ({error})") from error


def _offer(folder: Path) -> str:
    for other in reversed(steps(folder.parent)):
        if other == folder:
            continue
        try:
            listed = _manifest(other)
            for name in listed:
                _checked(other, name, listed)
        except _Damaged:
            continue
        return f"an intact one: {other} (resume={other} or ckpt={other})"
    return "no other checkpoint beside it is intact"


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits of the names, types, shapes and bytes of `weights`, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def space_id(weights: Mapping[str, Tensor], preprocess: Preprocess, postprocess: str = "") -> str:
    """Return the name of an embedding space: a hash of weights, preprocessing and post-processing.

    What the weights do not show (a fixed exponent of GeM, say) has to be among them as a buffer.
    """
    text = f"{weights_digest(weights)} {preprocess.digest()} {postprocess}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _tensor_bytes(tensors: Mapping[str, Tensor], told: dict[str, str] | None = None) -> bytes:
    # Each is cloned: safetensors refuses tensors that share memory (tied weights) or are not contiguous.
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return safetensors.torch.save(copies, told)


def _pack(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """Return nested values as JSON, each tensor replaced by a reference to its entry in `tensors`."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"$tensor": path}
    if isinstance(value, Mapping):
        return {"$dict": [[key, _pack(item, tensors, f"{path}/{key}")] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "$tuple" if isinstance(value, tuple) else "$list"
        return {kind: [_pack(item, tensors, f"{path}/{i}") for i, item in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"training state at {path or '/'}: {type(value).__name__}; accepted: tensors and plain values"
    )


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "$tensor":
        return tensors[content]
    if kind == "$dict":
        return {key: _unpack(item, tensors) for key, item in content}
    items = [_unpack(item, tensors) for item in content]
    return tuple(items) if kind == "$tuple" else items
