"""How many pictures and classes the makers of a data set state, split by split: is the download whole?

Left out are sets whose makers state round numbers, or that shrink as addresses die: docs/datasets.md
has those, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Stated(NamedTuple):
    """The makers' counts of one split; None: they state none that compares."""

    images: int
    classes: int | None = None


_MET_VAL, _MET_QUERY = Stated(2_165), Stated(19_319)

PUBLISHED: dict[str, dict[str, Stated]] = {
    "cars196": {"train": Stated(8_054, 98), "test": Stated(8_131, 98)},
    "cub unseen": {"train": Stated(5_864, 100), "test": Stated(5_924, 100)},
    "disc21": {"query": Stated(25_000), "index": Stated(1_000_000)},
    "disc21_subset": {"query": Stated(4_991), "index": Stated(4_991)},
    "food101": {"train": Stated(75_750, 101), "test": Stated(25_250, 101)},
    "gldv2 v2": {"train": Stated(4_132_914, 203_094)},
    "gldv2 v2c": {"train": Stated(1_580_470, 81_313)},
    "gldv2_retrieval": {"query": Stated(1_129), "index": Stated(761_757)},
    "glr2021 v2": {"train": Stated(1_580_470, 81_313)},
    "gpr1200": {"test": Stated(12_000, 1_200)},
    "holidays": {"query": Stated(500, 500), "index": Stated(991, 500)},
    "ifood": {"train": Stated(118_475, 251), "val": Stated(11_994, 251)},
    "ifood_verified": {"train": Stated(11_994, 251)},
    "ilias_core": {"query": Stated(1_232, 1_000), "index": Stated(4_715, 1_000)},
    "inshop": {
        "train": Stated(25_882, 3_997),
        "query": Stated(14_218, 3_985),
        "index": Stated(12_612, 3_985),
    },
    "met": {"train": Stated(397_121, 224_408), "val": _MET_VAL, "query": _MET_QUERY},
    "met_mini": {"train": Stated(38_307, 33_501), "val": _MET_VAL, "query": _MET_QUERY},
    "met_retrieval": {"index": Stated(397_121, 224_408), "query": _MET_QUERY},
    "objectnet": {"test": Stated(50_273, 313)},
    "products10k": {"train": Stated(141_931, 9_691), "test": Stated(55_376)},
    "products10k_retrieval": {"index": Stated(141_931, 9_691), "query": Stated(55_376)},
    "r1m": {"index": Stated(1_001_001)},
    "roxford5k": {"query": Stated(70), "index": Stated(4_993)},
    "rparis6k": {"query": Stated(70), "index": Stated(6_322)},
    "sop": {"train": Stated(59_551, 11_318), "test": Stated(60_502, 11_316)},
    "ukbench": {"test": Stated(10_200, 2_550)},
    "uned": {"train": Stated(2_831_222, 316_446), "val": Stated(293_409)},
    "uned_test": {"query": Stated(16_350), "index": Stated(1_171_490), "test": Stated(225_636)},
}

# Selections of these go around as TFRecords; the shards' names state how many records they hold.
_FILES_ONLY = ("glr2021", "products10k")


def published(name: str, settings: Mapping[str, Any], *, packed: bool) -> dict[str, Stated]:
    """Return by split what the makers of a data set state, {} where that does not compare.

    `settings` are its config's values, `packed` tells that pictures lie inside of archives.
    """
    if packed and name in _FILES_ONLY:
        return {}
    part = settings.get("subset") or settings.get("classes")  # a set whose parts are counted apart
    return PUBLISHED.get(f"{name} {part}" if part else name, {})
