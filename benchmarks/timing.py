"""Ratios measured in one run: two sides in turn, one thread, CPU seconds; peak memory of a fresh process.

A benchmark script imports this module FIRST (before numpy or torch), so that one thread holds everywhere:

    from timing import compare, peak_extra_mib, report
    speed = compare(ours, peer)                                  # peer seconds / our seconds
    memory = peak_extra_mib(SETUP, OURS) / peak_extra_mib(SETUP, PEER)
    report(4, "ArcFace against PML", speed, ask=2.5)
    report(5, "extra peak memory against PML", memory, ask=1 / 8, at_most=True)
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# A library reads these when it is loaded, so they are set by importing this module.
os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))

HOLDS_FROM = 0.9  # a bar holds if the median reaches this share of the ask

_MEASURED_PROCESS = """
def _high_water_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
{setup}
try:  # forget a transient peak of the imports; where it is not allowed, the base is that peak
    with open("/proc/self/clear_refs", "w") as _file:
        _file.write("5")
except OSError:
    pass
_base_kib = _high_water_kib()
{work}
print("extra_kib", _high_water_kib() - _base_kib)
"""


class Ratio(NamedTuple):
    """Median, lowest and highest ratio of the repeats."""

    median: float
    low: float
    high: float


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process (all its threads) that one call of `work` takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(ours: Callable[[], object], peer: Callable[[], object], repeats: int = 7) -> Ratio:
    """Peer's CPU seconds divided by ours, sides in turn after one warm-up call each; above 1 is faster."""
    _one_torch_thread()
    ours(), peer()
    return spread([cpu_seconds(peer) / cpu_seconds(ours) for _ in range(repeats)])


def spread(ratios: list[float]) -> Ratio:
    """Median, lowest and highest of ratios that a benchmark measured itself (subprocesses, for example)."""
    ordered = sorted(ratios)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return Ratio(median, ordered[0], ordered[-1])


def peak_extra_mib(setup: str, work: str) -> float:
    """MiB by which a fresh process' peak grows in `work`, after `setup` (imports, inputs) has run.

    Both are Python source, flush left, run in one namespace. Raises RuntimeError with the process' last
    lines when it fails.
    """
    code = _MEASURED_PROCESS.format(setup=setup, work=work)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"measured process: exit code {done.returncode}: {done.stderr[-500:]}")
    words = done.stdout.split()
    return int(words[words.index("extra_kib") + 1]) / 1024


def report(bar: int | str, what: str, ratio: Ratio | float, ask: float, *, at_most: bool = False) -> bool:
    """Print one row `| bar | what | ask | measured (spread) | holds |`; return whether the bar holds.

    `at_most`: the ask is an upper limit (a share of memory), not a lower one.
    """
    ratio = ratio if isinstance(ratio, Ratio) else Ratio(ratio, ratio, ratio)
    holds = ratio.median <= ask / HOLDS_FROM if at_most else ratio.median >= ask * HOLDS_FROM
    seen = f"{ratio.median:.3g}x"
    if ratio.low != ratio.high:
        seen += f" ({ratio.low:.3g}-{ratio.high:.3g})"
    sign = "<=" if at_most else ">="
    print(f"| {bar} | {what} | {sign} {ask:.3g}x | {seen} | {'yes' if holds else 'NO'} |", flush=True)
    return holds


def _one_torch_thread() -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
