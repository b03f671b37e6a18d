"""guie-export bundle= and verify= as a shell sees them, on a trained and evaluated run."""

import csv
import json

import pytest
from commands import run

from guie.errors import UserError
from guie.export import writing


@pytest.fixture(scope="module")
def bundle(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    data = [f"ckpt={tiny_run.folder}", f"data_root={tiny_run.data}", "floors=false", "thresholds=true"]
    assert run("eval", *data, f"out={folder / 'evaluation'}") == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "GOLDEN_SIZES", ((1, 1), (9, 40)))
        given = [f"ckpt={tiny_run.folder}", f"bundle={folder / 'made'}"]
        assert run("export", *given, f"evaluation={folder / 'evaluation'}") == 0
    return folder / "made"


def test_a_bundle_tells_what_was_trained_on_and_measured(bundle, tiny_run):
    metrics = json.loads((bundle.parent / "evaluation" / "metrics.json").read_text())
    card = (bundle / "card.md").read_text()
    assert f"| toy | mP@5 | {metrics['trained']['toy']['mP@5']:.4f} |" in card
    assert f"Embedding space: `{metrics['space_id']}`" in card
    assert "| tiny | toy | 72 | 18 | Apache-2.0 |" in card
    with (bundle / "labels.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 18
    thresholds = json.loads((bundle / "thresholds.json").read_text())
    assert thresholds["space_id"] == metrics["space_id"]


def test_it_is_verified_by_its_path_and_a_change_is_named(bundle, capsys):
    assert run("export", f"verify={bundle}") == 0
    assert "model.pt: largest difference" in capsys.readouterr().out
    (bundle / "note.txt").write_text("mine")
    with pytest.raises(UserError, match=r"note\.txt: not in manifest\.json"):
        run("export", f"verify={bundle}")
    (bundle / "note.txt").unlink()


@pytest.mark.slow
def test_one_of_its_files_is_verified_alone(bundle, capsys):
    assert run("export", f"verify={bundle / 'model.pt'}") == 0
    assert "verified in a fresh process" in capsys.readouterr().out


@pytest.mark.parametrize("given", [[], ["pt=x.pt", "bundle=y"], ["verify=x", "huggingface=y"]])
def test_one_thing_is_asked_of_it_at_a_time(given):
    with pytest.raises(UserError, match="accepted: one of pt=FILE, bundle, huggingface or verify=PATH"):
        run("export", *given)
