"""The gate: one linear layer on the backbone's feature, its classes in the data set's order."""

import pytest
import torch
from one_batch import batch_of, output_of

from guie.datasets.guie130k import CLASSES
from guie.datasets.manifest import from_columns
from guie.errors import UserError
from guie.heads.gate import Gate

FACTS = {"num_classes": 11, "feature_dim": 6}


def test_the_gate_is_one_linear_layer_on_the_feature_whatever_the_neck_gives():
    head = Gate(0.1, **FACTS).double()
    linear = torch.nn.Linear(6, 11).double()
    linear.load_state_dict(head.state_dict())
    feature, labels = torch.randn(8, 6, dtype=torch.float64, requires_grad=True), torch.arange(8)
    loss = head(output_of(torch.full((8, 3), torch.nan), feature), batch_of(labels))
    expected = torch.nn.functional.cross_entropy(linear(feature), labels, label_smoothing=0.1)
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss.total, feature), torch.autograd.grad(expected, feature)
    )
    assert loss.scalars["accuracy"] == (linear(feature).argmax(1) == labels).float().mean()


def test_the_classes_of_guie130k_have_the_numbers_of_the_contract():
    contract = "apparel artwork cars dishes furniture illustrations landmark meme packaged storefronts toys"
    names = list(CLASSES)
    assert names == contract.split()
    rows = from_columns("guie130k", ".", {"file": [f"{n}.jpg" for n in names[::-1]], "label": names[::-1]})
    assert rows.label_names == names
    assert rows.labels.tolist() == list(range(11))[::-1]


def test_a_label_out_of_range_is_named():
    head = Gate(**FACTS)
    with pytest.raises(UserError, match=r"labels: 11..11 received; accepted: 0..10"):
        head(output_of(torch.randn(1, 3), torch.randn(1, 6)), batch_of(torch.tensor([11])))


def test_the_gate_computes_in_the_dtype_of_its_weights_under_autocast():
    head, feature = Gate(**FACTS), torch.randn(8, 6).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head(output_of(feature, feature), batch_of(torch.arange(8))).total
    expected = torch.nn.functional.cross_entropy(
        torch.nn.functional.linear(feature.float(), head.weight, head.bias), torch.arange(8)
    )
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
