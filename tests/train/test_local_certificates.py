"""Local certificates: exact where exact ones are known, never refuted, never below global ones."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_systems import mlp

from sdplip.layers import LBENLinear
from sdplip.system import System
from sdplip.train import apgd, certified_radii, global_pairs
from sdplip.train.evaluation.local import certified_locally
from sdplip.verify import check

norms = pytest.mark.parametrize("norm", [2, math.inf])


def evaluated(system, x):
    z = system(x)
    return z, z.argmax(1)


@norms
def test_a_linear_classifier_is_certified_up_to_its_boundary(norm):
    W = np.random.default_rng(0).normal(size=(4, 6))
    system = System.linear(W)
    x = torch.rand(20, 6, dtype=torch.float64)
    z, y = evaluated(system, x)
    dual = 2 if norm == 2 else 1
    for i in range(len(x)):
        gaps = [
            (z[i, y[i]] - z[i, j]) / np.linalg.norm(W[y[i]] - W[j], dual)
            for j in range(4)
            if j != y[i]
        ]
        radii = [float(min(gaps)) * factor for factor in (1.0001, 0.5, 0.9999)]
        nothing = global_pairs(math.inf, 4)
        one = slice(i, i + 1)
        found, _ = certified_locally(system, x[one], y[one], z[one], nothing, radii, norm, slack=0)
        assert found.tolist() == [[False, True, True]]


def perceptron(seed):
    return mlp(np.random.default_rng(seed), 5, 8, 8, 3)


def lben(seed):
    torch.manual_seed(seed)
    layer = LBENLinear(5, 6, 3, gamma=4.0).double().eval()
    return layer.system()


@norms
@settings(max_examples=10)
@given(st.integers(0, 10_000), st.sampled_from([perceptron, lben]))
def test_no_attack_refutes_a_local_certificate(norm, seed, make):
    system = make(seed)
    x = torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    z, y = evaluated(system, x)
    radii = (0.02, 0.1, 0.3)
    nothing = global_pairs(math.inf, 3)
    found, certificates = certified_locally(system, x, y, z, nothing, radii, norm)
    assert (found.int().diff(dim=1) <= 0).all()
    for (i, t, j), certificate in certificates.items():
        assert check(certificate, system).classes == (t, j) and t == y[i]
        largest = max(radius for k, radius in enumerate(radii) if found[i, k])
        low, high = certificate.region.limits
        assert (low <= x[i].numpy() - largest).all() and (high >= x[i].numpy() + largest).all()
        assert certificate.bound * largest < z[i, t] - z[i, j]
    for k, radius in enumerate(radii):
        broken = apgd(system, x, y, radius, norm=norm, losses=["dlr"], steps=10, box=None).broken
        assert not (broken & found[:, k]).any()
        away = torch.randn(200, 5, dtype=torch.float64)
        away = radius * away / torch.linalg.vector_norm(away, ord=norm, dim=1, keepdim=True)
        for i in torch.nonzero(found[:, k]).flatten():
            assert (evaluated(system, x[i] + away)[1] == y[i]).all()


@norms
def test_local_certificates_are_more_than_global_ones(norm):
    from sdplip.verify import margin_bounds

    system = mlp(np.random.default_rng(3), 5, 16, 16, 3)
    pairs = torch.as_tensor(margin_bounds(system, norm).bounds)
    x = torch.rand(30, 5, dtype=torch.float64)
    z, y = evaluated(system, x)
    wrong = (y + 1) % 3
    radii = (0.02, 0.05, 0.1, 0.2)
    everywhere = certified_radii(z, y, pairs)[:, None] > torch.tensor(radii, dtype=torch.float64)
    found, _ = certified_locally(system, x, y, z, pairs, radii, norm)
    assert (everywhere <= found).all() and found.sum() > everywhere.sum() > 0
    assert not certified_locally(system, x, wrong, z, pairs, radii, norm)[0].any()
    # What a solver left open, or slack, takes away.
    error = torch.full((30,), 1e3, dtype=torch.float64)
    assert not certified_locally(system, x, y, z, pairs, radii, norm, error=error)[0].any()
    less, _ = certified_locally(system, x, y, z, pairs, radii, norm, slack=0.2)
    assert (less <= found).all() and less.sum() < found.sum()


def test_what_is_no_number_is_not_certified():
    system = perceptron(0)
    x = torch.rand(2, 5, dtype=torch.float64)
    z, y = evaluated(system, x)
    z[0, 1] = math.nan
    pairs = torch.full((3, 3), math.nan, dtype=torch.float64)
    found, _ = certified_locally(system, x, y, z, pairs, (1e-6, 1e9))
    assert found.tolist() == [[False, False], [True, False]]
