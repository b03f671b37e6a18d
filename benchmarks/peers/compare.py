"""Is our mP@5 above the peer's? Paired bootstrap over the queries, seeds averaged first.

    uv run python benchmarks/peers/compare.py --ours runs/s0 runs/s1 --peer runs/pml0 runs/pml1

Each folder holds `queries.parquet` (a run of guie-train, or what `pml_shared.py` wrote). Queries are matched
by file. Prints merged and per-domain means, the difference, and its 95 % interval.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from guie.metrics.bootstrap import paired_bootstrap


def per_query(folders: list[str], column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (files, domains, values averaged over the folders), sorted by file."""
    values = []
    for folder in folders:
        table = pq.read_table(Path(folder) / "queries.parquet", columns=["file", "domain", column])
        order = np.argsort(table["file"].to_numpy())
        files, domains = (table[name].to_numpy()[order] for name in ("file", "domain"))
        values.append(table[column].to_numpy()[order])
    return files, domains, np.mean(values, axis=0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ours", nargs="+", required=True)
    parser.add_argument("--peer", nargs="+", required=True)
    options = parser.parse_args()
    print("| index | ours | peer | difference (95 % interval) |\n|---|---|---|---|")
    for column, what in (("mP@5", "merged index"), ("own mP@5", "own index")):
        files, domains, ours = per_query(options.ours, column)
        peer_files, _, peer = per_query(options.peer, column)
        if not np.array_equal(files, peer_files):
            raise SystemExit("the two sides were asked different queries")
        chosen = {"all": np.ones(len(files), bool)} if column == "mP@5" else {}
        if column == "own mP@5":
            chosen = {str(domain): domains == domain for domain in np.unique(domains)}
        for name, rows in chosen.items():
            difference, low, high = paired_bootstrap(ours[rows], peer[rows])
            means = f"{ours[rows].mean():.3f} | {peer[rows].mean():.3f}"
            print(f"| {name}, {what} | {means} | {difference:+.3f} ({low:+.3f} to {high:+.3f}) |")


if __name__ == "__main__":
    main()
