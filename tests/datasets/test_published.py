"""The makers' counts: one source for what guie-prepare compares and what docs/datasets.md tells."""

from pathlib import Path

import pytest

from guie.datasets.manifest import SPLITS
from guie.datasets.published import PUBLISHED, published

ROOT = Path(__file__).parents[2]
ROWS = [line for line in (ROOT / "docs" / "datasets.md").read_text().splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("key", PUBLISHED)
def test_every_count_stands_in_the_table_of_the_docs(key):
    name = key.split()[0]
    assert (ROOT / "configs" / "dataset" / f"{name}.yaml").is_file()
    told = " ".join(row for row in ROWS if row.startswith(f"| `{name}` |"))
    for split, stated in PUBLISHED[key].items():
        assert split in SPLITS
        assert f"{stated.images:,}" in told
        assert stated.classes is None or f"{stated.classes:,}" in told


def test_parts_of_a_set_are_counted_apart_and_selections_not_at_all():
    assert published("gldv2", {"subset": "v2c"}, packed=False)["train"].images == 1_580_470
    assert published("gldv2", {"subset": "v2"}, packed=False)["train"].images == 4_132_914
    assert published("gldv2", {"subset": "v2x"}, packed=False) == {}
    assert published("cub", {"classes": "seen"}, packed=False) == {}
    assert published("products10k", {}, packed=False) and not published("products10k", {}, packed=True)
    assert published("uned", {}, packed=True)
    assert published("folder", {}, packed=False) == {}
