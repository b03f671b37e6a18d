"""scripts/export_torchscript.sh: every run named is exported or verified; who failed is named at the end."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "export_torchscript.sh"
# Stands for `uv run guie-export`: notes its words, writes the file, fails for a run called bad.
FAKE = """#!/usr/bin/env bash
echo "${*:3}" >> "$NOTED"
for word in "$@"; do
    case $word in
        ckpt=*bad) exit 2 ;;
        pt=*) touch "${word#pt=}" ;;
        verify=*) [[ -s ${word#verify=} ]] || exit 2 ;;
    esac
done
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Return a function that runs the script beside some runs; its result has `noted`, what was called."""
    fake = tmp_path / "bin" / "uv"
    fake.parent.mkdir()
    fake.write_text(FAKE)
    fake.chmod(0o755)
    for name in ("a", "b", "bad"):
        (tmp_path / name).mkdir()

    def run(*words: str, **variables: str) -> subprocess.CompletedProcess:
        noted = tmp_path / "noted"
        noted.write_text("")
        path = f"{fake.parent}{os.pathsep}{os.environ['PATH']}"
        given = {**os.environ, "PATH": path, "NOTED": str(noted), **variables}
        done = subprocess.run(
            [str(SCRIPT), *words], cwd=tmp_path, env=given, capture_output=True, text=True, check=False
        )
        done.noted = noted.read_text().splitlines()
        return done

    return run


def test_each_run_gets_a_file_of_its_own(script, tmp_path):
    done = script("a", "b/")
    assert done.returncode == 0
    assert done.noted == [f"ckpt={run} pt={run}/export/model.pt overwrite=false" for run in "ab"]
    assert (tmp_path / "b" / "export" / "model.pt").exists()


def test_keys_behind_two_dashes_go_to_every_export(script):
    done = script("a", "b", "--", "keep=64", "contract=kaggle_guie")
    assert [line.partition(" overwrite=false ")[2] for line in done.noted] == [
        "keep=64 contract=kaggle_guie"
    ] * 2


def test_runs_that_fail_are_named_at_the_end_and_the_others_written(script, tmp_path):
    done = script("bad", "a", "absent")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("absent: there is no such run")
    assert done.stderr.splitlines()[-1] == "not exported: bad absent"
    assert (tmp_path / "a" / "export" / "model.pt").exists()
    assert not (tmp_path / "bad" / "export").exists() and not (tmp_path / "absent").exists()


def test_a_file_that_is_there_is_verified_unless_it_is_to_be_replaced(script, tmp_path):
    script("a", "b")
    (tmp_path / "a" / "export" / "model.pt").write_text("whole")
    done = script("a", "b")
    assert done.noted == ["verify=a/export/model.pt", "verify=b/export/model.pt"]
    assert (done.returncode, done.stderr) == (1, "not exported: b\n")
    assert script("b", OVERWRITE="true").noted == ["ckpt=b pt=b/export/model.pt overwrite=true"]


def test_without_a_run_it_says_how_it_is_used(script):
    for words in ((), ("--", "keep=64")):
        done = script(*words)
        assert (done.returncode, done.noted) == (2, [])
        assert done.stderr == "usage: scripts/export_torchscript.sh RUN... [-- KEY=VALUE...]\n"
