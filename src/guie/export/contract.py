"""What whoever takes an exported file asks of it, and whether the written file gives that. No torch here."""

from __future__ import annotations

import json
import logging
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from guie.errors import UserError
from guie.export.alone import last_words, run_alone
from guie.export.opset import newer

log = logging.getLogger("guie")

ASKING = Path(__file__).with_name("asking.py")
TIMEOUT_S = 1800
# How far a vector's length may be from 1.
NEAR = 1e-3


@dataclass(frozen=True)
class Contract:
    """The interface of a file, by the name of who takes it. Config group `contract`.

    The file is of a format of `formats` and takes `pixels` (see `source.Request`) of each of `dtypes`, shaped
    (B,3,H,W): B of `batches`, (H,W) of `sizes` (None: the network's). It gives (B,D) float32 of unit length,
    the same when asked again, and needs no connection; D is `dim`, or at most `most_dim`. `torch` is the
    version that runs it there: what is known to be newer in TorchScript is told, and no more than that.
    """

    name: str
    formats: Sequence[str] = ("torchscript",)
    pixels: Literal["levels", "normalised"] = "levels"
    dtypes: Sequence[str] = ("uint8",)
    batches: Sequence[int] = (1,)
    sizes: Sequence[Sequence[int]] | None = ((224, 224), (480, 640), (33, 20))
    dim: int | None = None
    most_dim: int | None = None
    torch: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is no version: 1.10 without quotes is the number 1.1."""
        known = self.torch is None or (isinstance(self.torch, str) and re.match(r"\d+\.\d", self.torch))
        if not known:
            raise UserError(f"contract.torch: {self.torch!r}; accepted: a version in quotes, such as '1.11'")

    def check_order(self, formats: Sequence[str], pixels: str, batch: int | None, size: Any) -> None:
        """Raise UserError where the file that is ordered cannot keep the contract."""
        wrong = {f"format: {name}": ", ".join(self.formats) for name in formats if name not in self.formats}
        wrong |= {} if pixels == self.pixels else {f"pixels: {pixels}": self.pixels}
        if batch is not None and list(self.batches) != [batch]:
            wrong[f"batch: {batch}"] = "null, for any, or the only one that is asked for"
        if size is not None and self.sizes is not None:
            wrong[f"size: {size}"] = "null, for any"
        for given, accepted in wrong.items():
            raise UserError(f"{given} with contract {self.name}; accepted: {accepted}")

    def check_width(self, width: int) -> None:
        """Raise UserError where vectors are not as wide as asked for."""
        if self.dim is not None and width != self.dim:
            told = str(self.dim)
        elif self.most_dim is not None and width > self.most_dim:
            told = f"at most {self.most_dim}"
        else:
            return
        raise UserError(
            f"contract {self.name}: the model gives {width} numbers; accepted: {told} (keep=N of a run with "
            "head=matryoshka, a neck of that width, or fitted steps that map to it)"
        )

    def asked(self, size_px: Sequence[int]) -> list[dict[str, Any]]:
        """Return what the file is asked: shapes and dtypes; `size_px` is the network's."""
        sizes = [size_px] if self.sizes is None else self.sizes
        kind = {"pixels": self.pixels}
        return [
            {**kind, "shape": [batch, 3, *size], "dtype": dtype}
            for size in sizes
            for batch in self.batches
            for dtype in self.dtypes
        ]


def check_file(
    path: Path, contract: Contract, size_px: Sequence[int] = (), device: str = "cpu"
) -> list[dict[str, Any]]:
    """Ask the file in a process of its own, where guie and the network are kept out; return the answers.

    `size_px` is the network's. Raises UserError for the first answer that is not the contract's.
    """
    asked = contract.asked(size_px)
    answers = _answers(path, contract, asked, device)
    for question, answer in zip(asked, answers, strict=True):
        for fault in _faults(question, answer, contract):
            shape = tuple(question["shape"])
            raise UserError(f"contract {contract.name}: {shape} {question['dtype']} gave {fault}")
    return answers


def _faults(question: dict[str, Any], answer: dict[str, Any], contract: Contract) -> Iterator[str]:
    batch, dim = question["shape"][0], f"{contract.dim or f'at most {contract.most_dim}'}"
    if "error" in answer:
        yield f"an error ({answer['error']}); accepted: ({batch}, {dim}) float32"
        return
    shape = answer["shape"]
    wide = len(shape) == 2 and (contract.dim or shape[1]) == shape[1] <= (contract.most_dim or shape[1])
    if not wide or shape[0] != batch:
        yield f"{tuple(shape)}; accepted: ({batch}, {dim})"
    if answer["dtype"] != "float32":
        yield f"{answer['dtype']}; accepted: float32"
    if not answer["finite"]:
        yield "numbers that are not finite; accepted: finite ones"
    if not answer["off_unit"] < NEAR:
        yield f"a vector whose length is {answer['off_unit']:.1e} from 1; accepted: within {NEAR:.0e}"
    if not answer["repeats"]:
        yield "another vector when asked again; accepted: the same"


def _answers(
    path: Path, contract: Contract, asked: list[dict[str, Any]], device: str
) -> list[dict[str, Any]]:
    told = f"contract {contract.name}: {path.name}"
    words = str(path.absolute()), json.dumps(asked), device
    try:
        done = run_alone(ASKING, *words, offline=True, timeout_s=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{told} gave no answer in {TIMEOUT_S} s; accepted: a file that answers") from error
    if done.returncode:
        accepted = ", ".join(contract.formats)
        raise UserError(f"{told} does not load alone and offline: {last_words(done)}; accepted: {accepted}")
    return json.loads(done.stdout.splitlines()[-1])


def stated(contract: Contract | None) -> dict[str, Any]:
    """Return what a file says of the contract that it keeps."""
    return {} if contract is None else {"contract": asdict(contract)}


def promised(facts: Mapping[str, Any]) -> Contract | None:
    """Return the contract that the facts of a file name, if any."""
    return Contract(**facts["contract"]) if facts.get("contract") else None


def check_promise(path: Path, facts: Mapping[str, Any], device: str = "cpu") -> None:
    """Raise UserError where a file does not keep the contract that its facts name."""
    if contract := promised(facts):
        log.info("asking it as contract %s does", contract.name)
        check_file(path, contract, facts["preprocess"]["size_px"], device)
        if contract.torch and facts["format"] == "torchscript":
            _tell_newer(path, contract.name, contract.torch)


def _tell_newer(path: Path, name: str, torch: str) -> None:
    if found := newer(path, torch):
        log.warning(
            "contract %s: torch %s does not run %s, which %s uses", name, torch, ", ".join(found), path.name
        )
