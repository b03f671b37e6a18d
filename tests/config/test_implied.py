"""What a command line says without naming it: the views of a classifier."""

import pytest

from guie.config.compose import composed
from guie.errors import UserError


@pytest.mark.parametrize("command", ["eval", "embed", "export"])
def test_a_classifier_alone_means_the_views_of_system_a(command):
    words = {"eval": [], "embed": ["dataset=toy", "out=x"], "export": ["pt=x"]}[command]
    views = composed(command, [*words, "ckpt_cls=runs/gate", "views.gate.square=null"])["views"]
    assert views["gate"]["otherwise"] == ["whole", "middle"] and views["gate"]["square"] is None
    assert "gate" in composed(command, [*words, "ckpt_cls=runs/gate", "views=padded"])["views"]
    assert composed(command, [*words, "ckpt_cls=runs/gate", "views=padded"])["views"]["gate"] is None
    assert composed(command, [*words, "ckpt_cls=null"])["views"] is None


def test_a_command_that_embeds_nothing_knows_no_classifier():
    with pytest.raises(UserError, match=r"ckpt_cls: unknown key; did you mean 'ckpt'"):
        composed("train", ["ckpt_cls=runs/gate"])
