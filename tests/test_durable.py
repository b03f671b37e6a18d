"""A folder has its old content or its new, and never none."""

from pathlib import Path

import pytest

from guie.durable import replace_folder


def folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "x").write_text(content)
    return path


def test_a_folder_takes_the_name_of_another_which_is_gone(tmp_path):
    replace_folder(folder(tmp_path / "made", "new"), folder(tmp_path / "target", "old"), tmp_path / "former")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target" / "x").read_text() == "new"


def test_a_folder_that_cannot_be_replaced_is_put_back(tmp_path, monkeypatch):
    made, target = folder(tmp_path / "made", "new"), folder(tmp_path / "target", "old")
    rename = Path.replace

    def fails_for_the_new(path: Path, name: Path) -> Path:
        if path == made:
            raise OSError(28, "No space left on device")
        return rename(path, name)

    monkeypatch.setattr(Path, "replace", fails_for_the_new)
    with pytest.raises(OSError, match="No space left"):
        replace_folder(made, target, tmp_path / "former")
    assert (target / "x").read_text() == "old"
    assert not (tmp_path / "former").exists()
