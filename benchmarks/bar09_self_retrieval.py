"""Bar 9: 60,502 images (Stanford Online Products' test set) search each other, d=64, against PML and OML.

    uv run --group bench python benchmarks/bar09_self_retrieval.py [repeats]
    uv sync --project benchmarks/oml          # once, for open-metric-learning, which needs numpy < 2

11,316 classes of 5 or 6 images. Mean precision@1, R-precision and MAP@R must agree with PML's to 1e-6; OML
has other definitions, so of it only cmc@1 must agree, and it is timed as a process of its own that prints the
CPU seconds of each turn. Memory: peak growth of a fresh process. Two CPU minutes a repeat.
"""

import subprocess
import sys
from pathlib import Path

from evaluation_sides import Sides, against_pml, inputs, ours, ours_setup, pml_setup
from timing import cpu_seconds, report, spread

ROWS, CLASSES, DIM, TOP = 60_502, 11_316, 64, 100
OML = Path(__file__).parent / "oml"

INPUTS = inputs(f"np.arange({ROWS}) % {CLASSES}", DIM, noise=1.2)
SIDES = Sides(
    INPUTS + ours_setup("np.arange(len(labels))", "np.arange(len(labels))"),
    ours(TOP),
    INPUTS + pml_setup(TOP),
    "accuracies = calculator.get_accuracy(*whole)\n",
)


class Turns:
    """Open-metric-learning in its own environment: each turn is one evaluation."""

    def __init__(self) -> None:
        python = OML / ".venv" / "bin" / "python"
        asked = [python, OML / "self_retrieval.py", str(TOP)]
        self._process = subprocess.Popen(asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._tell(INPUTS.replace("\n", "\0"))

    def __call__(self) -> tuple[float, float]:
        """Return (CPU seconds, cmc@1) of one turn."""
        seconds, first = self._tell("again").split()
        return float(seconds), float(first)

    def _tell(self, line: str) -> str:
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"open-metric-learning ended with exit code {self._process.wait()}")
        return answer

    def end(self) -> None:
        """Let the process end."""
        self._process.communicate()


def against_oml(work, first: float, repeats: int) -> None:
    """Time `work` and open-metric-learning in turn; `first` is our R@1."""
    if not (OML / ".venv").exists():
        print("| 9 | the same against OML | >= 5x | not measured: uv sync --project benchmarks/oml | |")
        return
    turns, ratios = Turns(), []
    for _ in range(repeats):
        seconds, theirs = turns()
        assert abs(theirs - first) < 1e-6, f"cmc@1: {theirs} against {first}"
        ratios.append(seconds / cpu_seconds(work))
        print(f"against OML: {ratios[-1]:.2f}x of {seconds:.0f} CPU seconds", flush=True)
    turns.end()
    report(9, "the same against OML: time", spread(ratios), ask=5)


def main(repeats: int) -> None:
    title = f"{ROWS} rows search each other, d={DIM}, top {TOP}"
    left = against_pml(9, title, SIDES, repeats, speed=2.5, memory=1 / 25)
    again = compile(SIDES.ours, "ours", "exec")
    against_oml(lambda: exec(again, left), left["scores"].values["R@1"].mean(), repeats)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
