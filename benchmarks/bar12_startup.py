"""Bar 12, time half: CPU seconds to answer, against importing the usual stack.

    uv run python benchmarks/bar12_startup.py [repeats]

Each command is a fresh process; user + system seconds of it and its children, sides in turn. `guie-eval`
reads saved embeddings (2,000 vectors of 64 numbers, made here) and does the whole evaluation and its report.
First it is checked that every command succeeds and that the evaluation's numbers are those of the library.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import report, spread

STACK = "import torch, torchvision, timm, open_clip, albumentations, pandas, hydra"
PROGRAMS = Path(sys.executable).parent


def cpu_seconds(command: list[str], folder: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise SystemExit(
            f"{' '.join(command)}: exit code {done.returncode}: {(done.stderr or done.stdout)[-400:]}"
        )
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def save_embeddings(folder: Path) -> float:
    """Save made-up embeddings; return their merged mP@5 by the library."""
    import numpy as np

    from guie.embeddings import save
    from guie.evaluate import evaluate
    from guie.types import Embeddings

    r = np.random.default_rng(0)
    labels = np.repeat(np.arange(200), 10)
    vectors = r.standard_normal((200, 64))[labels] + 1.2 * r.standard_normal((2000, 64))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    names = np.array([f"{i}" for i in labels])
    files = np.arange(2000).astype(str)
    strings = {"files": files, "labels": names, "domains": names, "splits": np.full(2000, "test")}
    strings["domains"] = np.full(2000, "made up")
    embeddings = Embeddings(vectors, space_id="benchmark", **strings)
    save(embeddings, folder)
    return evaluate({"made_up": embeddings}).metrics["merged"]["mP@5"]


def main(repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        expected = save_embeddings(Path(folder) / "made_up")
        train, evaluate = str(PROGRAMS / "guie-train"), str(PROGRAMS / "guie-eval")
        commands = {
            "guie-train --help": [train, "--help"],
            "guie-train --cfg job": [train, "--cfg", "job"],
            "guie-eval on saved embeddings": [evaluate, f"embeddings={folder}/made_up", f"out={folder}/out"],
        }
        stack = [sys.executable, "-c", STACK]
        for command in [*commands.values(), stack]:
            cpu_seconds(command, folder)  # warms the disk cache and checks that it works
        numbers = json.loads((Path(folder) / "out" / "metrics.json").read_text())
        assert abs(numbers["trained"]["merged"]["mP@5"] - expected) < 1e-6
        ratios: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(repeats):
            theirs = cpu_seconds(stack, folder)
            for name, command in commands.items():
                ours = cpu_seconds(command, folder)
                ratios[name].append(ours / theirs)
                print(f"{name}: {ours:.2f} s, the usual imports: {theirs:.2f} s")
        for name, values in ratios.items():
            report(12, f"{name} against the usual imports", spread(values), ask=1 / 15, at_most=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
