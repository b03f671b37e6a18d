"""The page in a real browser: a phone's width, nothing fetched, nothing complained of, small."""

import json
import re
import shutil
import subprocess

import pytest
from reports import made_up, png

from guie.calibrate.thresholds import calibrate
from guie.compression import sheet
from guie.evaluate import evaluate
from guie.protocols.retrieval import Retrieval
from guie.report.page import write_report
from guie.search.exact import Exact

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (390, 1200)
# Measures the page in frames, for a window is never narrower than 500 px.
MEASURE = """<body>%s<pre id="found"></pre><script>
onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument.documentElement;
    const asked = frame.contentWindow.performance.getEntriesByType("resource").map(one => one.name);
    const broken = [...frame.contentDocument.images].filter(one => one.complete && !one.naturalWidth).length;
    const wide = [...frame.contentDocument.querySelectorAll("main > *, svg, .case")].filter(one =>
      !one.closest(".wide") && one.getBoundingClientRect().right > frame.clientWidth + 1).length;
    return {scrolled: page.scrollWidth, shown: page.clientWidth, asked, broken, wide};
  });
  document.getElementById("found").textContent = JSON.stringify(found);
};</script>"""


@pytest.fixture
def whole(run):
    """Return the run with everything that a report can show."""
    long = "one_word_that_is_longer_than_any_phone_is_wide_so_that_it_has_to_be_broken"
    found, protocols = {"toy": made_up(dim=16, domains=("art", long))}, {"toy": Retrieval()}
    evaluation = evaluate(found)
    evaluation.write_queries(run / "queries.parquet")
    numbers = json.loads((run / "metrics.json").read_text()) | {"trained": evaluation.metrics, "ckpt": long}
    numbers["thresholds"], numbers["open_set"] = calibrate(found, protocols)
    numbers["compression"] = sheet(found, protocols, {}, Exact())
    step = {"metrics": {"toy": "mP@5"}, "values": {"toy": 0.5}, "seconds": 1.0}
    numbers["steps"] = [step | {"step": ""}, step | {"step": "alpha_qe", "values": {"toy": 0.6}}]
    (run / "metrics.json").write_text(json.dumps(numbers))
    other = run / "other"
    other.mkdir()
    weaker = evaluate({"toy": made_up(dim=16, noise=2, domains=("art", long))})
    weaker.write_queries(other / "queries.parquet")
    (other / "metrics.json").write_text(json.dumps({"trained": weaker.metrics}))
    return write_report(run, read_picture=png, found=found, against=other)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: the page is looked at where there is one")
def test_the_page_fits_a_phone_fetches_nothing_and_is_small(whole, tmp_path):
    assert whole.stat().st_size < 10_000_000
    frames = (
        f'<iframe src="report.html" width="{w}" height="900" style="border:0"></iframe>' for w in WIDTHS
    )
    measure = whole.with_name("measure.html")
    measure.write_text(MEASURE % "".join(frames))
    options = [
        "--headless",
        "--hide-scrollbars",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
    ]
    options += [
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1300,2000",
    ]
    options += ["--virtual-time-budget=5000", "--dump-dom", measure.as_uri()]
    done = subprocess.run([CHROMIUM, *options], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    found = json.loads(re.search(r'<pre id="found">(.*?)</pre>', done.stdout).group(1))
    assert [one["shown"] for one in found] == list(WIDTHS)
    for one in found:
        assert one["scrolled"] == one["shown"] and one["wide"] == 0
        assert [name for name in one["asked"] if not name.startswith("data:")] == [] and one["broken"] == 0
