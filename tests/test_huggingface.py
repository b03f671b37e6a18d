"""A name on the hub is a folder on this machine: asked of a server, of the cache, or refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from guie import huggingface
from guie.errors import UserError

FIRST, SECOND = "1" * 40, "2" * 40
FILES = {
    "config.json": b"{}",
    "manifest.json": b"[]",
    "model.safetensors": b"weights",
    "README.md": b"read me",
}
MALICE = {"pytorch_model.bin": b"a pickle", "modeling.py": b"import os"}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as `snapshot_download` asks for: owner/name has a branch, a tag, two commits."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path.partition("?")[0])
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            return self._api("/".join(parts[2:4]), parts[4:])
        commit, name = parts[3], parts[4]
        self._answer(self._content(commit)[name], {"ETag": f'"{commit}-{name}"', "X-Repo-Commit": commit})

    do_HEAD = do_GET

    def _api(self, repository: str, parts: list[str]) -> None:
        commits = {"main": SECOND, "v1": FIRST, FIRST: FIRST, SECOND: SECOND}
        if repository != "owner/name":
            return self._refuse("RepoNotFound")
        if parts[1] not in commits:
            return self._refuse("RevisionNotFound")
        if parts[0] == "revision":
            return self._answer(json.dumps({"id": repository, "sha": commits[parts[1]]}).encode())
        files = self._content(parts[1]).items()
        listed = [{"type": "file", "path": n, "size": len(d), "oid": f"{parts[1]}-{n}"} for n, d in files]
        self._answer(json.dumps(listed).encode())

    @staticmethod
    def _content(commit: str) -> dict[str, bytes]:
        return FILES | MALICE | {"model.safetensors": b"of " + commit.encode()}

    def _refuse(self, code: str) -> None:
        self._answer(b"", {"X-Error-Code": code}, 404)

    def _answer(self, data: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Iterator[Path]:
    """Give the hub's library an empty cache and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface._fetched.cache_clear()
    yield tmp_path / "hub"
    huggingface._fetched.cache_clear()


@pytest.fixture
def hub(cache, monkeypatch) -> Iterator[SimpleNamespace]:
    """Serve owner/name on this machine."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Hub,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", place)
    template = place + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield SimpleNamespace(asked=asked, cache=cache)
    server.shutdown(), thread.join(), server.server_close()


def cached(cache: Path, commit: str = FIRST, branch: str = "main") -> Path:
    """Put owner/name into the cache as a machine with a network left it there."""
    folder = cache / "models--owner--name" / "snapshots" / commit
    folder.mkdir(parents=True)
    for name in huggingface.FETCHED:
        (folder / name).write_bytes(FILES[name])
    (cache / "models--owner--name" / "refs").mkdir()
    (cache / "models--owner--name" / "refs" / branch).write_text(commit)
    return folder


def test_a_path_stays_as_it_is(tmp_path):
    for path in (tmp_path, Path("runs/x"), Path("hf-hub")):
        assert huggingface.local(path) is path


def test_three_files_are_fetched_and_no_pickle_no_code(hub):
    folder = huggingface.local(Path("hf-hub:owner/name"))
    assert {path.name for path in folder.iterdir()} == set(huggingface.FETCHED)
    assert (folder / "model.safetensors").read_bytes() == b"of " + SECOND.encode()
    assert not [path for path in hub.asked if path.endswith(tuple(MALICE))]
    assert huggingface.is_published(folder)


def test_a_branch_a_tag_or_a_commit_may_be_named(hub):
    assert huggingface.local(Path("hf-hub:owner/name@v1")).name == FIRST
    assert huggingface.local(Path(f"hf-hub:owner/name@{SECOND}")).name == SECOND
    assert huggingface.title(huggingface.local(Path("hf-hub:owner/name@v1"))) == "owner--name-1111111"


def test_the_hub_is_asked_once_in_a_process(hub):
    first = huggingface.local(Path("hf-hub:owner/name"))
    count = len(hub.asked)
    assert huggingface.local(Path("hf-hub:owner/name")) == first and len(hub.asked) == count


def test_what_was_fetched_is_there_without_a_network(cache):
    folder = cached(cache)
    assert huggingface.local(Path("hf-hub:owner/name")) == folder
    assert huggingface.local(Path(f"hf-hub:owner/name@{FIRST}")) == folder


def test_without_a_network_the_cure_is_named(cache):
    with pytest.raises(UserError) as raised:
        huggingface.local(Path("hf-hub:owner/name@v1"))
    assert str(raised.value).count("\n") == 0
    assert str(raised.value).startswith("ckpt: hf-hub:owner/name@v1 cannot be had (")
    assert "HF_HOME of a machine that ran 'hf download owner/name'" in str(raised.value)
    assert "ckpt=FOLDER" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "owner/other",
            r"does not exist, or not for this account; accepted: HF_TOKEN of one that may read it",
        ),
        ("owner/name@v9", r"has no revision 'v9'; accepted: a branch, a tag or a commit of it"),
    ],
)
def test_what_the_hub_does_not_have_is_named(hub, name, told):
    with pytest.raises(UserError, match=rf"^ckpt: hf-hub:{name} {told}$"):
        huggingface.local(Path(f"hf-hub:{name}"))


@pytest.mark.parametrize("name", ["", "name", "owner/name/more", "owner/name@", "owner/na me", "../name/x"])
def test_a_name_that_cannot_be_is_refused_with_what_can(name):
    with pytest.raises(
        UserError, match=r"^ckpt: hf-hub:.*; accepted: hf-hub:owner/name, or hf-hub:owner/name@"
    ):
        huggingface.local(Path(f"hf-hub:{name}"))


def test_a_path_costs_no_import_of_the_hub():
    code = "import sys; from pathlib import Path; from guie import huggingface; "
    code += "huggingface.local(Path('x')); sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("data", "told"),
    [(b"[]", "lacks 'config'"), (b'{"config": {}}', "lacks 'preprocess'"), (b"{", "Expecting")],
)
def test_a_config_of_another_library_is_told_apart(data, told):
    with pytest.raises(ValueError, match=told):
        huggingface.meta(data)


def test_only_what_is_replaced_may_lie_where_a_folder_is_written(tmp_path):
    new = tmp_path / "new"
    assert huggingface.check_new(new, overwrite=False) == new
    new.mkdir()
    assert huggingface.check_new(new, overwrite=False) == new
    (new / "README.md").touch()
    with pytest.raises(UserError, match=r"^huggingface: .*new exists; accepted: another .*overwrite=true"):
        huggingface.check_new(new, overwrite=False)
    for name in ("config.json", "model.safetensors"):  # so far anybody's
        (new / name).touch()
        with pytest.raises(UserError, match=r"^huggingface: .*new was not written by guie-export; accepted"):
            huggingface.check_new(new, overwrite=True)
    (new / "manifest.json").touch()
    assert huggingface.check_new(new, overwrite=True) == new
    (new / ".git").mkdir()
    with pytest.raises(UserError, match=r"^huggingface: .*new holds \.git; accepted: a folder that is new"):
        huggingface.check_new(new, overwrite=True)
    for path, told in ((new / "README.md", "is a file"), (tmp_path / "a" / "b", "there is no folder .*a")):
        with pytest.raises(UserError, match=rf"^huggingface: .*{told}"):
            huggingface.check_new(path, overwrite=True)
