"""Products-10K (Bai et al., 2020): about 10,000 articles sold on JD.com, as shop and as customer pictures."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from guie.datasets.known import Listing, csv_columns, known, required
from guie.datasets.manifest import Manifest
from guie.datasets.rules import Rules
from guie.datasets.tfrecord import guie_records
from guie.errors import UserError

# Labels of the TFRecord version are those of all sets made for GUIE together.
TFRECORD_LABELS = range(1000, 10691)


def products10k(
    root: str = "products10k", gallery: bool = False, rules: Rules = None, *, data_root: str
) -> Manifest:
    """Return `train.csv` as train and `test_kaggletest.csv`, other pictures of the same articles, as test.

    With `gallery` the test pictures ask and those of train are searched (splits query, index). The domain is
    `packaged`; `group` is the article's group. Where the folder holds shards `*-train-*.tfrec` instead, their
    records are listed, all as train, with labels 1000..10690.
    """
    return known("products10k", root, data_root, partial(listed, gallery=gallery), rules)


def listed(place: Path, gallery: bool = False) -> Listing:
    """List the shards, else the two csv files."""
    columns = guie_records(place, TFRECORD_LABELS)
    if not columns["file"]:
        return Listing(_from_csv(place, *(("index", "query") if gallery else ("train", "test"))))
    if gallery:
        raise UserError(
            f"dataset.products10k.gallery: true for the shards in {place}; "
            "accepted: false, they hold no test pictures"
        )
    count = len(columns["file"])
    return Listing({**columns, "domain": ["packaged"] * count, "split": ["train"] * count})


def _from_csv(place: Path, train_split: str, test_split: str) -> dict[str, list[str]]:
    train_csv, test_csv = required(place, "train.csv", "test_kaggletest.csv")
    train = csv_columns(train_csv, "name", "class", "group")
    test = csv_columns(test_csv, "name", "class")
    group = dict(zip(train["class"], train["group"], strict=True))
    in_train, in_test = len(train["name"]), len(test["name"])
    return {
        "file": [f"train/{name}" for name in train["name"]] + [f"test/{name}" for name in test["name"]],
        "label": train["class"] + test["class"],
        "domain": ["packaged"] * (in_train + in_test),
        "split": [train_split] * in_train + [test_split] * in_test,
        "group": train["group"] + [group.get(label, "") for label in test["class"]],
    }
