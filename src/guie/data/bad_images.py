"""What happens when a picture cannot be read: counted and replaced, or the end of the run. Never grey.

A picture whose JPEG stream is damaged in the middle, its length unchanged, is not noticed by any decoder.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Literal

from filelock import FileLock

from guie.datasets.manifest import Manifest
from guie.errors import UserError


class BadImages:
    """The bad pictures of one manifest, listed in `path` (bad_images.csv) as file, entry, reason.

    `policy="skip"`: the caller replaces them (see `replacement`), and the run fails when their share of the
    manifest's rows rises above `max_share`. `policy="fail"`: the first one ends the run. A list that is
    already at `path` is continued, so a resumed run keeps its count. Processes that share `path` share one
    list, and each judges by what all of them have found.
    """

    def __init__(
        self,
        manifest: Manifest,
        path: str | Path | None = None,
        policy: Literal["skip", "fail"] = "skip",
        max_share: float = 0.01,
    ):
        if policy not in ("skip", "fail"):
            raise UserError(f"bad_images: {policy!r}; accepted: skip, fail")
        self.manifest, self.policy, self.max_share = manifest, policy, max_share
        self.path = Path(path) if path else None
        self.reasons: dict[tuple[str, str], str] = {}
        self._seen: tuple[int, int] | None = None
        self._read()

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, row: int, reason: str) -> None:
        """Count row `row` of the manifest once, write the list, and judge.

        Raises:
            UserError: the policy is `fail`, or more than `max_share` of the rows are bad.

        """
        file, entry = self.manifest.place(row)
        place = file if entry is None else f"{file}[{entry}]"
        if self.policy == "fail":
            raise UserError(
                f"bad_images: {place} cannot be used ({reason}); accepted with policy 'fail': none"
            )
        if (file, entry or "") in self.reasons:
            return
        self._list((file, entry or ""), reason)
        share = len(self) / len(self.manifest)
        if share > self.max_share:
            listed = f", listed in {self.path}" if self.path else ""
            raise UserError(
                f"bad_images: {len(self)} of {len(self.manifest)} pictures ({share:.1%}) cannot be used"
                f"{listed}; the last is {place} ({reason}); accepted: at most {self.max_share:.1%}"
            )

    def _list(self, place: tuple[str, str], reason: str) -> None:
        """Add to the list, behind what other processes have added to it."""
        if self.path is None:
            self.reasons[place] = reason
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            self._read()
            if place not in self.reasons:
                self.reasons[place] = reason
                self._write(self.path)

    def _read(self) -> None:
        """Take over what is listed, where it is not what this process has written."""
        if self.path is None or not self.path.exists() or _version(self.path) == self._seen:
            return
        with self.path.open(newline="") as file:
            self.reasons |= {(row["file"], row["entry"]): row["reason"] for row in csv.DictReader(file)}

    def _write(self, path: Path) -> None:
        partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "entry", "reason"])
            writer.writerows((*place, reason) for place, reason in sorted(self.reasons.items()))
        os.replace(partial, path)
        self._seen = _version(path)


def _version(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_size
