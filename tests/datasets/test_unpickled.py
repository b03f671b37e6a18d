"""Pickles that hold data are read whatever wrote them; those that call something are not."""

import os
import pickle
import subprocess

import numpy as np
import pytest

from guie.datasets.unpickled import unpickled
from guie.errors import UserError

VALUES = {
    "names": ["all_souls_000013", "é"],
    "nested": ({1, 2}, frozenset("a"), None, True, 1.5, b"raw", 10**30),
    "array": np.arange(6, dtype=np.int64).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "names_array": np.array(["a", "bc"]),
    "objects": np.array([np.array([1]), "x"], dtype=object),
    "scalars": (np.int64(7), np.float32(0.5), np.bool_(True)),
    "empty": np.array([]),
}
# What numpy 1 under Python 2 wrote: pickle.dumps({'easy': numpy.array([3, 5])}, 2).
PYTHON_2 = (
    b"\x80\x02}q\x01U\x04easyq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85"
    b"U\x01b\x87Rq\x05(K\x01K\x02\x85cnumpy\ndtype\nq\x06U\x02i8K\x00K\x01\x87Rq\x07(K\x03U\x01<NNNJ\xff\xff"
    b"\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x10\x03\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00"
    b"\x00tbs."
)


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_data_comes_back_as_it_was(tmp_path, protocol):
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps(VALUES, protocol))
    found = unpickled(path)
    assert found.keys() == VALUES.keys()
    for name, value in VALUES.items():
        np.testing.assert_equal(found[name], value)
        assert type(found[name]) is type(value)
        assert getattr(found[name], "dtype", None) == getattr(value, "dtype", None)


@pytest.mark.parametrize("new", [b"numpy.core.", b"numpy._core."])
def test_arrays_of_both_generations_of_numpy_are_read(tmp_path, new):
    path = tmp_path / "data.pkl"
    content = pickle.dumps(np.arange(3), 0).replace(b"numpy._core.", b"numpy.core.")
    path.write_bytes(content.replace(b"numpy.core.", new))
    assert unpickled(path).tolist() == [0, 1, 2]


def test_arrays_of_python_2_are_read(tmp_path):
    (tmp_path / "data.pkl").write_bytes(PYTHON_2)
    assert unpickled(tmp_path / "data.pkl")["easy"].tolist() == [3, 5]


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch escaped",), r"(posix|nt)\.system"),
        (eval, ("__import__('os').mkdir('escaped')",), r"builtins\.eval"),
        (getattr, ([], "append"), r"builtins\.getattr"),
        (subprocess.Popen, (["touch", "escaped"],), r"(subprocess|commands)\.Popen"),
        (np.load, ("x.npy",), r"numpy\.load"),
        (bytearray, (10,), r"builtins\.bytearray"),
        (np.memmap, ("escaped", "u1", "w+", 0, (1,)), r"numpy\.memmap"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_calls_something_is_refused_before_the_call(
    tmp_path, monkeypatch, function, arguments, name, protocol
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.pkl").write_bytes(pickle.dumps({"gnd": Calls(function, *arguments)}, protocol))
    with pytest.raises(UserError, match=rf"data\.pkl: the pickle names {name}, which is not data; accepted"):
        unpickled(tmp_path / "data.pkl")
    assert not (tmp_path / "escaped").exists()


def test_the_plain_loader_would_have_made_the_call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Calls(os.mkdir, "escaped")))
    assert (tmp_path / "escaped").exists()


def test_a_name_with_dots_does_not_reach_behind_the_table(tmp_path):
    content = b"\x80\x04\x8c\x05numpy\x8c\x0ddtype.__new__\x93."
    (tmp_path / "data.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"names numpy\.dtype\.__new__"):
        unpickled(tmp_path / "data.pkl")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_half_a_pickle_is_refused(tmp_path, share):
    whole = pickle.dumps(VALUES, 4)
    (tmp_path / "data.pkl").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"data\.pkl: not a whole pickle \(.*\); accepted: the original"):
        unpickled(tmp_path / "data.pkl")


def test_a_page_instead_of_a_pickle_is_refused(tmp_path):
    (tmp_path / "data.pkl").write_text("<!DOCTYPE html><html>404</html>")
    with pytest.raises(UserError, match=r"not a whole pickle"):
        unpickled(tmp_path / "data.pkl")
