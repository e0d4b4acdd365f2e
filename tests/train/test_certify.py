"""Certified radii: exact where the exact radius is known, never too large elsewhere."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdplip.errors import ShapeError
from sdplip.layers import NEMONLinear
from sdplip.train import (
    certified_accuracy,
    certified_radii,
    global_pairs,
    last_layer_pairs,
    linf_pairs,
    pgd,
)


def exact_linear_radius(W, b, x, y, norm):
    """min_j (z_y − z_j)/‖w_y − w_j‖_dual: the distance to the nearest decision boundary."""
    z = x @ W.T + b
    best = torch.full((len(x),), math.inf, dtype=W.dtype)
    for i, label in enumerate(y):
        for j in range(len(W)):
            if j != label:
                dual = (W[label] - W[j]).norm(p=2 if norm == 2 else 1)
                best[i] = min(best[i], (z[i, label] - z[i, j]) / dual)
    return best.clamp_min(0)


@given(st.integers(0, 10_000))
def test_last_layer_pairs_are_exact_for_a_linear_classifier(seed):
    g = torch.Generator().manual_seed(seed)
    W, b = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((4, 3), (4,)))
    x = torch.randn(20, 3, generator=g, dtype=torch.float64)
    z = x @ W.T + b
    y = z.argmax(1)
    radii = certified_radii(z, y, last_layer_pairs(1.0, W), slack=0)
    torch.testing.assert_close(radii, exact_linear_radius(W, b, x, y, 2))
    loose = certified_radii(z, y, global_pairs(float(torch.linalg.matrix_norm(W, 2)), 4), slack=0)
    assert (loose <= radii * (1 + 1e-12)).all()


def test_what_a_solver_left_open_may_hide_a_tie():
    """It raises one logit and lowers the other."""
    z = torch.tensor([[1.0 + 1 / 8, 1.0 - 1 / 8, 0.0]])
    pairs, label = global_pairs(1.0, 3, math.inf), torch.tensor([0])
    hidden = certified_radii(z, label, pairs, slack=0, error=torch.tensor([1 / 8]))
    seen = certified_radii(z, label, pairs, slack=0, error=torch.tensor([1 / 16]))
    assert hidden.item() == 0
    assert seen.item() == pytest.approx(1 / 16)


@pytest.mark.parametrize("norm", [2, math.inf])
def test_certificate_stands_where_a_strong_attack_finds_the_boundary(norm):
    # Brute force: an attack at 1.02 of the exact radius must succeed, at 0.999 it cannot.
    W, b = torch.randn(2, 5, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    x = torch.rand(12, 5, dtype=torch.float64)
    y = (x @ W.T + b).argmax(1)
    pairs = last_layer_pairs(1.0, W) if norm == 2 else (W[:, None] - W[None]).abs().sum(-1)
    radii = certified_radii(x @ W.T + b, y, pairs)
    for i in range(len(x)):
        hit = [
            bool(
                pgd(
                    lambda v: v @ W.T + b, x[i : i + 1], y[i : i + 1], float(radii[i]) * factor,
                    norm=norm, steps=50, box=None,
                ).broken
            )
            for factor in (0.999, 1.02)
        ]  # fmt: skip
        assert hit == [False, True]


def test_wrong_and_tied_predictions_have_radius_zero():
    z = torch.tensor([[1.0, 2.0], [1.0, 1.0], [2.0, 1.0]])
    radii = certified_radii(z, torch.tensor([0, 0, 0]), global_pairs(1.0, 2))
    assert radii[0] == 0 and radii[1] == 0 and radii[2] > 0


def test_slack_is_taken_off_and_strictness_holds():
    z = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    pairs = global_pairs(1.0, 2)
    full = certified_radii(z, torch.tensor([0]), pairs, slack=0)
    assert full.item() == pytest.approx(1 / math.sqrt(2))
    assert certified_accuracy(full, full.item()) == 0
    assert certified_accuracy(full, full.item() * (1 - 1e-12)) == 1
    less = certified_radii(z, torch.tensor([0]), pairs, slack=0.1)
    assert less.item() == pytest.approx(0.8 / math.sqrt(2))
    single = certified_radii(z.float(), torch.tensor([0]), pairs)
    assert single < certified_radii(z, torch.tensor([0]), pairs) < full


def test_nan_logits_and_infinite_bounds_certify_nothing():
    z = torch.tensor([[math.nan, 0.0], [1.0, 0.0]])
    assert certified_radii(z, torch.tensor([0, 0]), global_pairs(1.0, 2))[0] == 0
    assert (certified_radii(z, torch.tensor([0, 0]), global_pairs(math.inf, 2)) == 0).all()


def test_pairs_of_the_wrong_size_are_refused():
    with pytest.raises(ShapeError, match="3 classes"):
        certified_radii(torch.zeros(1, 3), torch.tensor([0]), global_pairs(1.0, 2))


def test_linf_pairs_bound_every_difference_and_beat_twice_the_whole():
    layer = NEMONLinear(6, 8, 3).double().eval()
    layer.method, layer.tol = "newton", 1e-12
    pairs = linf_pairs(layer.system())
    assert (pairs <= 2 * layer.lipschitz * (1 + 1e-9)).all() and pairs.diagonal().abs().max() == 0
    x = torch.randn(200, 6, dtype=torch.float64)
    step = 0.1 * (2 * torch.rand(200, 6, dtype=torch.float64) - 1)
    with torch.no_grad():
        change = layer(x + step) - layer(x)
    allowed = pairs * step.abs().amax(1)[:, None, None]
    assert ((change[:, :, None] - change[:, None]).abs() <= allowed + 1e-12).all()
