import numpy as np
import pytest
import scipy.linalg
import torch

from guie.errors import UserError
from guie.models.necks import FCBN, BNLinear, Identity, Linear
from guie.models.refit import discriminant, refit

NECKS = {
    "linear": lambda: Linear(3, in_dim=7),
    "bn_linear": lambda: BNLinear(3, in_dim=7),
    "bn_linear affine": lambda: BNLinear(3, affine=True, in_dim=7),
    "fc_bn": lambda: FCBN(3, in_dim=7),
    "fc_bn without bias": lambda: FCBN(3, bias=False, norm_input=True, in_dim=7),
    "fc_bn without affine": lambda: FCBN(3, affine=False, in_dim=7),
}


def trained(neck):
    """Give batch norms statistics and weights of their own."""
    for layer in neck.modules():
        if isinstance(layer, torch.nn.BatchNorm1d) and layer.affine:
            torch.nn.init.uniform_(layer.weight, -2, 2)
            torch.nn.init.uniform_(layer.bias, -2, 2)
    for _ in range(5):
        neck(3 * torch.randn(40, 7) + 1)
    return neck.eval()


def covariances(x, y):
    """Return mean, total and within-class covariance by plain loops over classes."""
    within = sum((x[y == c] - x[y == c].mean(0)).T @ (x[y == c] - x[y == c].mean(0)) for c in np.unique(y))
    return x.mean(0), np.cov(x.T, bias=True), within / len(x)


@pytest.mark.parametrize("name", NECKS)
def test_assign_makes_a_neck_the_given_map(name):
    torch.manual_seed(0)
    neck = trained(NECKS[name]())
    weight, bias, x = torch.randn(3, 7), torch.randn(3), torch.randn(11, 7)
    neck.assign(weight, bias)
    torch.testing.assert_close(neck(x), x @ weight.T + bias, rtol=1e-5, atol=1e-5)


def test_the_map_is_that_of_the_generalised_eigenvalue_problem():
    r = np.random.default_rng(0)
    y = np.repeat(np.arange(12), 15)
    x = r.standard_normal((12, 6))[y] + r.standard_normal((180, 6)) @ (
        np.eye(6) + 0.3 * r.standard_normal((6, 6))
    )
    _, total, within = covariances(x, y)
    found = discriminant(total, within, np.eye(6)[:2], shrinkage=0.0)
    # unit variance within classes, and the two largest ratios of total to within
    np.testing.assert_allclose(found @ within @ found.T, np.eye(2), atol=1e-3)
    ratios = scipy.linalg.eigh(total, within, eigvals_only=True)[::-1]
    np.testing.assert_allclose(np.sort(np.diag(found @ total @ found.T))[::-1], ratios[:2], rtol=1e-3)


def test_a_refitted_neck_separates_unseen_classes_better():
    """Classes differ along 4 of 20 directions; along the others only pictures of one class do, much more."""
    r = np.random.default_rng(1)
    turn = np.linalg.qr(r.standard_normal((20, 20)))[0]
    y = np.repeat(np.arange(80), 10)
    spread = np.r_[np.full(4, 0.3), np.full(16, 3.0)]
    places = np.hstack([r.standard_normal((80, 4)), np.zeros((80, 16))])
    x = (places[y] + spread * r.standard_normal((800, 20))) @ turn + 5
    train = y < 40
    neck = Linear(4, in_dim=20).eval()

    def accuracy():
        with torch.no_grad():
            z = torch.nn.functional.normalize(neck(torch.from_numpy(x[~train]).float()), dim=1)
        nearest = (z @ z.T).fill_diagonal_(-2).argmax(1).numpy()
        return (y[~train][nearest] == y[~train]).mean()

    before = accuracy()
    holes = x.copy()
    holes[3] = np.nan  # a bad picture
    refit(neck, holes[train].astype(np.float16), y[train], shrinkage=0.01)
    assert before < 0.2 and accuracy() > 0.6


def test_chunks_do_not_change_the_map(monkeypatch):
    r = np.random.default_rng(2)
    x, y = r.standard_normal((50, 7)) + 3, np.repeat(np.arange(10), 5)
    weights = []
    for chunk in (7, 1000):
        monkeypatch.setattr("guie.models.refit.CHUNK", chunk)
        torch.manual_seed(0)
        neck = trained(FCBN(3, in_dim=7))
        refit(neck, x, y, 1.0)
        weights.append(neck.linear.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("neck", "rows", "message"),
    [
        (Identity(in_dim=7), 9, "neck Identity; accepted: a linear neck"),
        (Linear(3, bias=False, in_dim=7), 9, r"neck\.bias: false"),
        (Linear(3, in_dim=7), 1, "1 pictures with features"),
    ],
)
def test_what_cannot_be_refitted_is_said(neck, rows, message):
    features = np.random.default_rng(0).standard_normal((rows, 7))
    with pytest.raises(UserError, match=message):
        refit(neck.eval(), features, np.arange(rows) % 3, 1.0)
