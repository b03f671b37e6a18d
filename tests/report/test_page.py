"""The report holds what the files of the run say, is whole in one file, and survives missing parts."""

import html.parser
import io
import json
import re

import numpy as np
import pytest
from reports import png
from rich.console import Console

from guie.errors import UserError
from guie.report.charts import MOST_POINTS, line_chart
from guie.report.galleries import in_turn
from guie.report.page import write_report
from guie.report.terminal import print_table


class Balanced(html.parser.HTMLParser):
    """Fail on a tag that is closed out of turn."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_is_one_file_that_asks_for_nothing(run):
    text = write_report(run, read_picture=png).read_text()
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(addresses) > 9 and all(address.startswith("data:") for address in addresses)
    assert "url(" not in text and "@import" not in text and "<script" not in text


def test_the_report_shows_the_numbers_of_the_run(run):
    text = write_report(run, read_picture=png).read_text()
    numbers = json.loads((run / "metrics.json").read_text())
    for value in (numbers["trained"]["merged"]["mP@5"], numbers["trained"]["toy"]["domains"]["art"]["mP@5"]):
        assert f"{value:.3f}".removeprefix("0") in text
    for title in (
        "colour histogram",
        "food &amp; drink",
        "ArcFace",
        "recall@k",
        "eval/mP@5",
        "Worst queries",
    ):
        assert title in text
    assert "&lt;b&gt;class" in text and "<b>class" not in text


def test_missing_parts_are_left_out(run):
    for name in ("queries.parquet", "metrics.jsonl", "config.yaml"):
        (run / name).unlink()
    text = write_report(run).read_text()
    assert "Worst queries" not in text and "config.yaml" not in text and "recall@k" in text
    assert "precision by recall" not in text and "Against" not in text


def test_a_picture_that_cannot_be_read_leaves_its_place_empty(run):
    text = write_report(run, read_picture=lambda _, file: b"" if file < "5" else png(_, file)).read_text()
    assert 'class="none" title="3' in text and 'title="9' in text and 'class="none" title="9' not in text


def test_without_pictures_there_are_lists_of_files(run):
    for read in (None, lambda dataset, file: b"not a picture"):
        text = write_report(run, read_picture=read).read_text()
        assert '<ol class="files"' in text and "<img" not in text and 'class="none"' not in text


def test_a_report_without_numbers_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"metrics.json: .*accepted: the metrics.json"):
        write_report(tmp_path)
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match="neither trained nor floors"):
        write_report(tmp_path)


def test_the_worst_gallery_takes_turns_between_domains():
    domains = np.array(["a"] * 8 + ["b"] * 2, dtype=object)
    assert in_turn(np.arange(10), domains, count=6) == [0, 8, 1, 9, 2, 3]


def test_a_trained_number_below_a_floor_is_marked(run):
    numbers = json.loads((run / "metrics.json").read_text())
    assert 'class="behind"' not in write_report(run).read_text()
    numbers["trained"], numbers["floors"]["colour_histogram"] = (
        numbers["floors"]["colour_histogram"],
        numbers["trained"],
    )
    (run / "metrics.json").write_text(json.dumps(numbers))
    assert 'class="behind"' in write_report(run).read_text()


def test_a_long_history_is_averaged_to_few_points():
    svg = line_chart({"trained": [(step, step % 2) for step in range(10_000)]})
    corners = re.search(r'points="([^"]*)"', svg).group(1).split()
    assert 100 < len(corners) <= MOST_POINTS


def test_the_terminal_table_has_a_row_per_domain_and_system(run):
    console = Console(file=io.StringIO(), width=80)
    print_table(json.loads((run / "metrics.json").read_text()), console)
    text = console.file.getvalue()
    for word in ("food & drink", "art", "all, merged", "trained", "colours", "120"):
        assert word in text


def luminance(colour):
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def test_every_colour_of_text_can_be_read_by_day_and_by_night(run):
    style = write_report(run).read_text().split("</style>")[0]
    themes = [
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root {[^}]*}", style)
    ]
    assert len(themes) == 2 and themes[0].keys() == themes[1].keys()
    for theme in themes:
        for name in theme.keys() - {"page", "card", "line"}:
            for ground in ("page", "card"):
                dark, light = sorted((luminance(theme[name]), luminance(theme[ground])))
                assert (light + 0.05) / (dark + 0.05) >= 4.5, f"--{name} on --{ground}"
