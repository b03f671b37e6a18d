"""A csv or parquet file that lists pictures."""

from __future__ import annotations

from pathlib import Path

from guie.datasets.manifest import SPLITS, Manifest, open_manifest
from guie.datasets.rules import Rules, apply
from guie.errors import UserError


def csv(  # noqa: PLR0913  (the keys of configs/dataset/csv.yaml)
    path: str,
    root: str | None = None,
    file_column: str = "file",
    label_column: str = "label",
    domain_column: str | None = None,
    split_column: str | None = None,
    domain: str | None = None,
    split: str | None = None,
    rules: Rules = None,
    *,
    data_root: str,
) -> Manifest:
    """Return the rows of a .csv or .parquet file; two columns, file and label, are enough.

    Files are relative to `root`, which is relative to `data_root`, and is the list's own folder unless
    given. Further columns: `entry` (record of a TFRecord file), `domain`, `split` (train unless stated);
    `*_column` names them where they are called otherwise, `domain` and `split` give all rows one value;
    `rules` act last.

    Raises:
        UserError: a missing file or column, or rows that validation refuses.

    """
    base = Path(data_root).expanduser()
    place = base / Path(path).expanduser()
    renamed = {"file": file_column, "label": label_column, "domain": domain_column, "split": split_column}
    constants = {"domain": domain, "split": split}
    if split is not None and split not in SPLITS:
        raise UserError(f"dataset.csv.split: {split!r}; accepted: {', '.join(SPLITS)}")
    found = open_manifest(
        place,
        base / Path(root).expanduser() if root else place.parent,
        place.stem,
        columns={ours: theirs for ours, theirs in renamed.items() if theirs and theirs != ours},
        constants={column: value for column, value in constants.items() if value is not None},
        cache_dir=base / ".guie",
    )
    return apply(rules, found)
