"""A picture's bytes by name: a file below a root folder, or a record or member of an archive below it."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from guie.errors import UserError
from guie.images import BadImage
from guie.records.tar import TAR_ENDS, BadArchive, TarArchive
from guie.records.tfrecord import BadRecord, TFRecordFile

PICTURE_KEYS = ("image/encoded", "image_bytes")

Opened = TypeVar("Opened")


class Pictures:
    """Random access to pictures below `root`; keeps the last `max_open` TFRecord files and tar archives open.

    Picklable: a copy in another process opens its own files.
    """

    def __init__(self, root: str | os.PathLike[str], *, max_open: int = 64, verify: bool = True):
        self.root = Path(root).resolve()
        self.max_open = max_open
        self.verify = verify
        self._open: OrderedDict[str, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict()}

    def read(self, file: str, entry: str | None = None) -> bytes:
        """Return the encoded picture `file` (relative to the root), or what `entry` names inside of it.

        An entry is a member's name where the file ends as tar archives do, else a record's number.

        Raises UserError for a name that leaves the root and for an entry that cannot exist; BadImage
        when the file, record or member is missing, unreadable, damaged or holds no picture.
        """
        if entry is not None and entry != "":
            in_tar = file.lower().endswith(TAR_ENDS)
            return self._member(file, entry) if in_tar else self._record(file, entry)
        try:
            return self._path(file).read_bytes()
        except OSError as error:
            raise BadImage(f"{file}: {error.strerror or error}") from None

    def _member(self, file: str, entry: str) -> bytes:
        try:
            return self._kept(file, TarArchive).read(entry)
        except BadArchive as error:
            raise BadImage(str(error)) from None
        except KeyError:
            raise UserError(f"{file}: no member {entry!r}; accepted: a name that the archive has") from None

    def _record(self, file: str, entry: str) -> bytes:
        if not (entry.isascii() and entry.isdigit()):
            raise UserError(f"{file}: entry {entry!r}; accepted: a record number from 0")
        try:
            features = self._shard(file)[int(entry)]
        except BadRecord as error:
            raise BadImage(str(error)) from None
        except IndexError as error:
            raise UserError(f"entry {error}") from None
        for key in PICTURE_KEYS:
            values = features.get(key)
            if values and isinstance(values[0], bytes):
                return values[0]
        accepted = " or ".join(PICTURE_KEYS)
        raise BadImage(f"{file}: record {entry} has keys {sorted(features)}; a picture is in {accepted}")

    def _shard(self, file: str) -> TFRecordFile:
        return self._kept(file, lambda path: TFRecordFile(path, verify=self.verify))

    def _kept(self, file: str, opener: Callable[[Path], Opened]) -> Opened:
        if file not in self._open:
            path = self._path(file)
            if not path.is_file():
                raise BadImage(f"{file}: No such file")
            self._open[file] = opener(path)
            if len(self._open) > self.max_open:
                self._open.popitem(last=False)
        self._open.move_to_end(file)
        return self._open[file]

    def _path(self, file: str) -> Path:
        """Return the path below the root; refuse absolute names, `..` and symbolic links that leave it."""
        parts = file.replace("\\", "/").split("/")
        if "\0" in file or ".." in parts or Path(file).is_absolute():
            raise UserError(f"file {file!r}; accepted: a relative path without '..'")
        path = (self.root / file).resolve()
        if not path.is_relative_to(self.root):
            raise UserError(f"file {file!r} is a link to {path}; accepted: files below {self.root}")
        return path
