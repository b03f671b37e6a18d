"""The table of modules in ARCHITECTURE.md is the law; this test reads both and compares."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
SOURCE = PROJECT / "src" / "guie"
HEAVY = ["torch", "torchvision", "timm", "open_clip", "albumentations", "pandas", "faiss", "sklearn", "scipy"]
LIGHT = ["types", "errors", "build", "config.compose", "images", "resize", "metrics", "evaluate"]
LIGHT += [
    "search.exact",
    "report.page",
    "results",
    "evaluating",
    "floors",
    "embeddings",
    "datasets.manifest",
    "records.tfrecord",
    "records.pictures",
]


def allowed() -> dict[str, set[str]]:
    text = (PROJECT / "ARCHITECTURE.md").read_text()
    rows = re.findall(r"^\| `([\w`, ]+)` \|.*\| ([^|]*) \|$", text, flags=re.MULTILINE)
    table = {}
    for names, imports in rows:
        for name in names.replace("`", "").split(","):
            table[name.strip()] = set(re.findall(r"\w+", imports))
    return table


def imports_of(path: Path, modules: set[str]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "guie":
            names = [f"guie.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("guie.")}
    return found & modules


def violations(table: dict[str, set[str]]) -> list[str]:
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        module = path.relative_to(SOURCE).with_suffix("").parts[0]
        if module == "__init__":
            continue
        for other in imports_of(path, set(table)) - {module}:
            if "all" not in table[module] and other not in table[module]:
                wrong.append(f"{path.relative_to(SOURCE)} imports {other}")
    return wrong


def test_the_table_names_every_module_and_no_other():
    real = {p.stem if p.is_file() else p.name for p in SOURCE.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert set(allowed()) == real - {"__init__", "__pycache__"}


def test_imports_follow_the_table():
    assert violations(allowed()) == []


def test_the_import_test_can_fail():
    table = allowed()
    table["cli"] = set()
    assert any(line.startswith("cli") for line in violations(table))


def test_the_table_has_no_cycle():
    table = {name: set() if "all" in others else others for name, others in allowed().items()}
    done: set[str] = set()
    while len(done) < len(table):
        ready = {name for name, others in table.items() if name not in done and others <= done}
        assert ready, f"a cycle among {sorted(set(table) - done)}"
        done |= ready


def heavy_imports(statement: str) -> list[str]:
    code = f"{statement}\nimport sys\nprint([n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ast.literal_eval(done.stdout)


def test_light_modules_import_nothing_heavy():
    assert heavy_imports("".join(f"import guie.{name}\n" for name in LIGHT)) == []


@pytest.mark.parametrize("heavy", ["pandas"])
def test_the_light_test_can_fail(heavy):
    assert heavy in heavy_imports(f"import {heavy}")


def test_package_files_are_empty():
    assert [p for p in SOURCE.rglob("__init__.py") if p.stat().st_size] == []
