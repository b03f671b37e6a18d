"""Rows of an array in files of one folder: each appears whole, any rank makes any, a killed job goes on."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from guie.durable import replace_file, sync
from guie.errors import UserError

# A shard is small against the whole, so that ranks end together and a kill costs little, but not tiny.
SHARDS_WANTED = 64
MOST_BATCHES = 32


def rows_each(num_rows: int, batch_size: int) -> int:
    """Return how many rows make a shard: whole batches, so that no number of ranks changes a batch."""
    batches = -(-num_rows // batch_size)
    return batch_size * min(max(batches // SHARDS_WANTED, 1), MOST_BATCHES)


@dataclass(frozen=True)
class Shards:
    """An array (num_rows, width) float32 as files of `rows_each` rows in `folder`."""

    folder: Path
    num_rows: int
    width: int
    rows_each: int

    def __len__(self) -> int:
        return -(-self.num_rows // self.rows_each)

    def rows(self, number: int) -> range:
        """Return the rows of a shard."""
        start = number * self.rows_each
        return range(start, min(start + self.rows_each, self.num_rows))

    def has(self, number: int) -> bool:
        """Return whether a shard is there."""
        return self._path(number).exists()

    def begin(self) -> None:
        """Make the folder ready for all that will write there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stopped.unlink(missing_ok=True)

    def stop(self, reason: str) -> None:
        """Tell the other processes that it makes no sense to go on."""
        replace_file(self._stopped, reason.encode())

    def check_stopped(self) -> None:
        """Raise UserError where another process has said `stop`."""
        if self._stopped.exists():
            raise UserError(self._stopped.read_text())

    def save(self, number: int, values: np.ndarray, bad: dict[int, str]) -> None:
        """Write a shard; `bad` gives the reason of each of its rows that is NaN."""
        told = self._path(number).with_suffix(".json")
        if bad:
            replace_file(told, json.dumps(bad).encode())
        else:
            told.unlink(missing_ok=True)  # of a job that was killed before its rows were there
        data = io.BytesIO()
        np.save(data, values)
        replace_file(self._path(number), data.getvalue())

    def join(self, path: Path) -> None:
        """Write all rows to `path`, the reasons of bad ones beside it, and remove the shards."""
        growing = path.with_name(f".{path.name}.growing")
        shape = (self.num_rows, self.width)
        target = np.lib.format.open_memmap(growing, mode="w+", dtype=np.float32, shape=shape)
        for number in range(len(self)):
            rows = self.rows(number)
            target[rows.start : rows.stop] = np.load(self._path(number))
        target.flush()
        replace_file(reasons_path(path), json.dumps(dict(self._bad())).encode())
        growing.replace(path)
        sync(path.parent)
        shutil.rmtree(self.folder)

    def _bad(self) -> Iterator[tuple[str, str]]:
        for file in sorted(self.folder.glob("[0-9]*.json")):
            yield from json.loads(file.read_bytes()).items()

    @property
    def _stopped(self) -> Path:
        return self.folder / "stopped"

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npy"


def reasons_path(path: Path) -> Path:
    """Return where the reasons of the bad rows of a joined file lie."""
    return path.with_suffix(".json")


def reasons(path: Path) -> dict[int, str]:
    """Return why rows of a joined file are NaN, by row."""
    return {int(row): reason for row, reason in json.loads(reasons_path(path).read_bytes()).items()}
