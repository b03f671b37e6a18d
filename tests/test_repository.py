"""The house rules that a machine can check, over every tracked file; each check is shown to fail as well."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
LONGEST_FUNCTION = 60
# Written in pieces, or this file would be the first to break its own rule.
REGISTRY_HOSTS = [
    r"py" + r"pi\.org",
    r"pythonhosted" + r"\.org",
    r"ana" + r"conda\.(org|com)",
    r"py" + r"pi\.",
]
REGISTRY_HOSTS += [r"download\.py" + r"torch\.org", r"index-url\s*=?\s*[\"']?http", r"extra-index" + r"-url"]
MACHINE_PATHS = [r"(?<![\w.~/$}])/" + folder + r"/" for folder in ("work", "root")]
MACHINE_PATHS += [r"(?<![\w.~/$}])/home" + r"/\w+/", r"(?<![\w.~/$}])/Users" + r"/\w+/"]
FORBIDDEN = re.compile("|".join(REGISTRY_HOSTS + MACHINE_PATHS), re.IGNORECASE)
DRAWERS = {"utils", "util", "common", "helpers", "helper", "base", "misc", "core", "manager"}


def tracked() -> list[Path]:
    """Return the tracked files that exist; skip where git or the repository is missing."""
    try:
        done = subprocess.run(
            ["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"git cannot list the tracked files here: {error}")
    return [path for name in done.stdout.split("\0") if name and (path := PROJECT / name).is_file()]


def python_files() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py"]


def forbidden_text(path: Path) -> list[str]:
    text = path.read_bytes().decode(errors="ignore")
    return [f"{path.name}: {match.group()}" for match in FORBIDDEN.finditer(text)]


def long_functions(source: str) -> list[str]:
    functions = (
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in functions
        if node.end_lineno and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    ]


def test_no_tracked_file_names_a_registry_or_a_path_of_one_machine():
    assert [found for path in tracked() for found in forbidden_text(path)] == []


@pytest.mark.parametrize(
    "text",
    [
        "https://" + "pypi" + ".org/simple",
        "https://files." + "pythonhosted" + ".org/x",
        "--extra-index" + "-url x",
        "see /" + "work/main/x",
        "cd /" + "root/x",
        '"/' + 'home/ann/x"',
    ],
)
def test_the_text_check_can_fail(tmp_path, text):
    (tmp_path / "x.md").write_text(text)
    assert forbidden_text(tmp_path / "x.md")


def test_the_text_check_lets_ordinary_paths_pass(tmp_path):
    (tmp_path / "x.md").write_text("runs/work/x tests/root/y ~/work/z ${HOME}/root/ a.b/work/")
    assert forbidden_text(tmp_path / "x.md") == []


def test_the_lock_file_is_ignored_and_untracked():
    assert "uv.lock" not in {path.name for path in tracked()}
    assert "uv.lock" in (PROJECT / ".gitignore").read_text().splitlines()


def test_no_module_is_a_drawer():
    parts = {part for path in python_files() for part in path.relative_to(PROJECT).with_suffix("").parts}
    assert not parts & DRAWERS


def test_functions_fit_on_a_screen():
    sources = [path for path in python_files() if path.is_relative_to(PROJECT / "src")]
    assert [f"{path.name}: {found}" for path in sources for found in long_functions(path.read_text())] == []


def test_the_length_check_can_fail():
    assert long_functions("def long():\n" + "    pass\n" * LONGEST_FUNCTION) == ["long: 61 lines"]
    assert long_functions("def fits():\n" + "    pass\n" * (LONGEST_FUNCTION - 1)) == []


def test_package_init_files_are_empty_so_that_names_are_read_without_imports():
    files = [path for path in python_files() if path.name == "__init__.py" and "src" in path.parts]
    assert files
    assert [str(path.relative_to(PROJECT)) for path in files if path.read_text().strip()] == []


def test_shell_scripts_are_executable_and_stop_at_the_first_error():
    scripts = [path for path in tracked() if path.read_bytes().startswith(b"#!/usr/bin/env bash")]
    assert scripts
    for path in scripts:
        assert path.stat().st_mode & 0o100, f"{path.name} is not executable"
        assert "set -euo pipefail" in path.read_text(), path.name


def test_test_files_have_names_of_their_own_so_that_one_run_collects_them_all():
    names = [path.name for path in tracked() if path.name.startswith("test_")]
    assert names
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_the_licence_is_there_and_named_in_the_package():
    text = (PROJECT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0" in text
    assert 'license = "Apache-2.0"' in (PROJECT / "pyproject.toml").read_text()
