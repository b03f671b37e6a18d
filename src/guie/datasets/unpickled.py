"""Pickles that hold data alone: containers, text, numbers and numpy arrays; nothing in them is called.

A pickle names functions that loading calls, so a file from the network could do anything. Here a name is
looked up in a short table, whose few entries only make arrays, and every other name is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from guie.errors import UserError


def unpickled(path: Path) -> Any:
    """Return what the pickle at `path` holds; text of Python 2 is read as latin-1.

    Raises:
        UserError: a name beyond the table (the message says which), or no whole pickle.

    """
    with path.open("rb") as file:
        try:
            return _Data(file, path).load()
        except UserError:
            raise
        except Exception as error:  # damaged bytes make the opcodes fail in every way there is
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{path}: not a whole pickle ({reason}); accepted: the original file (download it again)"
            ) from None


class _Data(pickle.Unpickler):
    def __init__(self, file: Any, path: Path):
        super().__init__(file, encoding="latin1")
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        # Python 3 and numpy 2 renamed modules; files of either age are read
        new = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        found = _ACCEPTED.get((new, name))
        if found is None:
            raise UserError(
                f"{self.path}: the pickle names {new}.{name}, which is not data; "
                "accepted: containers, text, numbers and numpy arrays"
            )
        return found


def _empty_array(kind: type, shape: tuple[int, ...], code: Any) -> np.ndarray:
    """Make the array that a pickle then fills by its state; size and type come with the state."""
    del kind, shape, code
    return np.ndarray((0,), np.int8)


def _scalar(dtype: np.dtype, content: bytes | str) -> Any:
    content = content.encode("latin1") if isinstance(content, str) else content
    return np.frombuffer(content, dtype, count=1)[0]


def _array_of(content: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def _no_bytes() -> bytes:
    """Stand for `bytes`, which is named where empty ones are written for Python 2; no size is taken."""
    return b""


def _bytes_of(text: str, encoding: str) -> bytes:
    """Stand for `_codecs.encode`, by which Python 3 writes bytes for Python 2; that encoding alone."""
    if encoding != "latin1":
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


_ACCEPTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("builtins", "list"): list,
    ("builtins", "dict"): dict,
    ("builtins", "tuple"): tuple,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "str"): str,
    ("builtins", "int"): int,
    ("builtins", "float"): float,
    ("builtins", "bytes"): _no_bytes,
    ("_codecs", "encode"): _bytes_of,
    ("numpy", "ndarray"): _empty_array,  # only named, as the kind of array to reconstruct
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _array_of,
}
