import pytest

from guie.config.compose import composed
from guie.datasets.inshop import inshop
from guie.errors import UserError

ROWS = [
    ("img/WOMEN/Dresses/id_00000002/02_1_front.jpg", "id_00000002", "train"),
    ("img/WOMEN/Dresses/id_00000002/02_2_side.jpg", "id_00000002", "train"),
    ("img/MEN/Denim/id_00000080/01_1_front.jpg", "id_00000080", "query"),
    ("img/MEN/Denim/id_00000080/01_7_additional.jpg", "id_00000080", "gallery"),
]


def text(rows=ROWS, count=None):
    """Return the file as it is distributed: padded with blanks, blanks at the ends of the lines."""
    head = f"{len(rows) if count is None else count}\nimage_name item_id evaluation_status\n"
    return head + "".join(f"{file:<70} {item} {status:<9}\n" for file, item, status in rows)


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "Eval").mkdir()
    (tmp_path / "Eval" / "list_eval_partition.txt").write_text(text())
    return tmp_path


def test_the_official_partition_is_read(raw):
    found = inshop(str(raw), data_root="elsewhere")
    assert found.splits.tolist() == ["train", "train", "query", "index"]
    assert found.files.tolist() == [file for file, _, _ in ROWS]
    assert found.label_names == ["id_00000002", "id_00000080"]
    assert found.domain_names == ["apparel"]
    assert found.table["super_label"].to_pylist() == ["WOMEN/Dresses"] * 2 + ["MEN/Denim"] * 2


def test_pictures_unpacked_where_the_archive_lies_are_found(raw):
    (raw / "Img" / "img").mkdir(parents=True)
    assert inshop(str(raw), data_root="elsewhere").files[0] == "Img/" + ROWS[0][0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            text(count=5),
            r"list_eval_partition\.txt: line 1 says 5 pictures, 4 are listed; accepted",
        ),
        (
            text([*ROWS, ("img/x.jpg", "id_1", "test")]),
            r"line 7: 'img/x.jpg id_1 test'; accepted: .* gall",
        ),
        (text([*ROWS, ("img/x.jpg", "", "")]), r"line 7: 'img/x.jpg'"),
        (text([*ROWS, ROWS[0]]), r"1 pictures listed twice"),
        (text().split("\n", 1)[1], r"line 1-2; accepted: the number of pictures, then image_name item_id"),
        ("", r"0 bytes"),
    ],
)
def test_mistakes_name_the_file_and_the_line(raw, content, message):
    (raw / "Eval" / "list_eval_partition.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        inshop(str(raw), data_root="elsewhere")


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"list_eval_partition\.txt: missing; accepted: the complete"):
        inshop(str(tmp_path), data_root="elsewhere")


def test_the_yaml_composes(raw):
    cfg = composed("train", ["dataset=inshop", f"dataset.inshop.root={raw}"])
    assert cfg["dataset"]["inshop"]["_target_"] == "guie.datasets.inshop.inshop"
