"""Write the exact versions of all dependencies, transitive ones too, into pyproject.toml (host-free).

Run `uv run python scripts/pin_versions.py` to take the newest versions that resolve together; `uv run`
obeys them afterwards through `[tool.uv] constraint-dependencies`. Run the tests before committing.
"""

import re
import subprocess
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
BLOCK = re.compile(r"(?<=# pinned: begin\n).*?(?=# pinned: end)", flags=re.DOTALL)


def exported(*choice: str) -> set[str]:
    """Return the requirement lines of one choice of groups and extras."""
    command = ["uv", "export", "--quiet", "--no-hashes", "--no-emit-project", "--no-annotate", "--no-header"]
    done = subprocess.run([*command, *choice], check=True, capture_output=True, text=True)
    return {line for line in done.stdout.splitlines() if line and not line.startswith("#")}


def shortened(lines: set[str]) -> list[str]:
    """Return the pins, with a marker only where versions differ between Pythons.

    A constraint acts only where its package is needed, so the platform part of a marker says nothing here.
    """
    versions: dict[str, set[str]] = {}
    for line in lines:
        pin = line.partition(" ; ")[0]
        versions.setdefault(pin.partition("==")[0], set()).add(pin)
    pins = set()
    for line in lines:
        pin, _, marker = line.partition(" ; ")
        pythons = sorted(set(re.findall(r"python_full_version [<>=]+ '[\d.]+'", marker)))
        alone = len(versions[pin.partition("==")[0]]) == 1
        pins.add(pin if alone or not pythons else f"{pin} ; {' and '.join(pythons)}")
    return sorted(pins)


def main() -> None:
    """Resolve afresh without the old pins, then write the new ones between the two marks."""
    text = PYPROJECT.read_text()
    PYPROJECT.write_text(BLOCK.sub("constraint-dependencies = []\n", text))
    try:
        subprocess.run(["uv", "lock", "--quiet", "--upgrade"], check=True)
        pins = exported("--all-groups") | exported("--no-group", "cpu", "--extra", "gpu")
    except BaseException:
        PYPROJECT.write_text(text)
        raise
    rows = "".join(f'    "{pin}",\n' for pin in shortened(pins))
    PYPROJECT.write_text(BLOCK.sub(lambda _: f"constraint-dependencies = [\n{rows}]\n", text))
    print(f"{len(rows.splitlines())} versions pinned")


if __name__ == "__main__":
    main()
