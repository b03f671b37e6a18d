"""The reference systems' data recipes: YAML alone, built on lists in the real layout, with known counts."""

from collections import Counter

import numpy as np
import pytest

from guie.build import build
from guie.config.compose import composed

P10K_TEST = "name,class,Usage\n0.jpg,0,Public\n"


def opened(name, data_root, *overrides):
    cfg = composed("train", [f"dataset={name}", *(f"dataset.{name}.{override}" for override in overrides)])
    return build(cfg["dataset"][name], where=f"dataset.{name}", data_root=str(data_root))


def products10k(root, sizes):
    rows = [f"{label}_{i}.jpg,{label},{label % 7}" for label, n in sizes.items() for i in range(n)]
    write(root / "products10k/train.csv", "name,class,group", *rows)
    (root / "products10k/test_kaggletest.csv").write_text(P10K_TEST)


def glr2021(root, sizes):
    rows = [f"{label:08x}{i:08x},{label}" for label, n in sizes.items() for i in range(n)]
    write(root / "glr2021/train.csv", "id,landmark_id", *rows)


def gldv2(root, clean, extra):
    ids = {label: [f"{label:08x}{i:08x}" for i in range(n)] for label, n in clean.items()}
    more = {label: [f"{label:08x}f{i:07x}" for i in range(n)] for label, n in extra.items()}
    write(
        root / "gldv2/train_clean.csv",
        "landmark_id,images",
        *(f"{label},{' '.join(ids[label])}" for label in ids),
    )
    rows = [f"{i},http://x/{i}.jpg,{label}" for names in (ids, more) for label in names for i in names[label]]
    write(root / "gldv2/train.csv", "id,url,landmark_id", *rows)


def inshop(root, sizes):
    rows = [
        f"img/WOMEN/Dresses/id_{label:08d}/{i:02d}_1_front.jpg  id_{label:08d} train"
        for label, n in sizes.items()
        for i in range(n)
    ]
    rows.append("img/MEN/Tees/id_00009999/01_1_front.jpg  id_00009999 query")
    write(
        root / "inshop/Eval/list_eval_partition.txt",
        str(len(rows)),
        "image_name item_id evaluation_status",
        *rows,
    )


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def counts(manifest, *splits):
    part = manifest.split(*splits)
    return dict(zip(part.label_names, np.bincount(part.labels).tolist(), strict=True))


def test_system_a_trains_on_95_percent_of_15792_classes(tmp_path):
    products10k(tmp_path, {label: 2 for label in range(9691)})
    glr2021(tmp_path, {label: 2 for label in range(7000)})
    dishes = [f"dish{i:03d}" for i in range(101)]
    write(tmp_path / "food-101/meta/train.txt", *(f"{dish}/{i}" for dish in dishes for i in range(30)))
    write(tmp_path / "food-101/meta/test.txt", *(f"{dish}/{i}" for dish in dishes for i in range(30, 40)))
    images = tmp_path / "GPR1200/images"
    images.mkdir(parents=True)
    for category in range(1200):
        (images / f"{category}_a.jpg").touch()
    found = [opened(f"{name}_guie5", tmp_path) for name in ("products10k", "glr2021", "gpr1200", "food101")]
    assert [manifest.num_classes for manifest in found] == [9691, 5000, 1000, 101]
    assert [manifest.split("test").num_classes for manifest in found] == [485, 250, 50, 5]
    trained = sum(manifest.split("train", "val").num_classes for manifest in found)
    assert abs(trained - 15003) <= 1  # the rows of the published ArcFace weight
    assert "nature" not in found[2].domain_names and set(
        Counter(found[2].split("test").domains).values()
    ) == {10}
    assert set(counts(found[3], "train", "val", "test").values()) == {30}
    assert set(counts(found[3], "val").values()) == {1, 2}  # a twentieth of 30


@pytest.mark.parametrize(
    ("name", "made", "least"),
    [
        ("products10k_guie25", products10k, 15),
        ("products10k_guie25_less_class", products10k, 10),
        ("glr2021_guie25", glr2021, 150),
        ("glr2021_guie25_less_class", glr2021, 100),
        ("inshop_guie25", inshop, 20),
    ],
)
def test_system_b_keeps_classes_above_a_threshold_and_20_of_each(tmp_path, name, made, least):
    made(tmp_path, {1: least, 2: least + 1, 3: least + 40})
    manifest = opened(name, tmp_path)
    train = counts(manifest, "train", "val")
    assert sorted(train.values()) == sorted([min(20, least + 1), 20])
    val = counts(manifest, "val")
    assert all(n // 10 <= val[label] <= -(-n // 10) for label, n in train.items())
    fewer = opened(name, tmp_path, f"rules.frequent.images={least + 1}")
    assert list(counts(fewer, "train", "val").values()) == [20]


def test_system_b_asks_about_furniture_alone(tmp_path):
    kinds = ["bicycle", "lamp", "cabinet", "chair", "table", "sofa"]
    header = "image_id class_id super_class_id path"
    for part, first in (("train", 1), ("test", 11319)):
        rows = [f"{i} {first + i} {i} {kind}_final/{first + i}_0.JPG" for i, kind in enumerate(kinds)]
        write(tmp_path / f"Stanford_Online_Products/Ebay_{part}.txt", header, *rows)
    found = opened("sop_guie25", tmp_path).split("test")
    assert set(found.table["super_label"].to_pylist()) == set(kinds[1:])


def test_system_c_validates_both_stages_on_the_same_200_pictures(tmp_path):
    gldv2(tmp_path, {1: 250, 2: 199, 3: 300}, {1: 30, 2: 50, 7: 400})
    first, second = opened("gldv2_landmark2020", tmp_path), opened("gldv2_landmark2020_v2x", tmp_path)
    val = first.split("val")
    assert len(val) == 200 and set(val.label_names) == {"1", "3"}
    assert set(second.split("val").files) == set(val.files)
    assert len(second) == 250 + 199 + 300 + 80 and second.num_classes == first.num_classes


def test_systems_e_and_e0_take_frequent_landmarks(tmp_path):
    gldv2(tmp_path, {label: 1 + label % 30 for label in range(1200)}, {})
    top = opened("gldv2_engn8501", tmp_path)
    assert top.num_classes == 1000 and min(counts(top, "train", "val").values()) >= 6
    assert abs(len(top.split("val")) / len(top) - 0.1) < 0.02
    assert opened("gldv2_landmark2019", tmp_path).num_classes == 1160
