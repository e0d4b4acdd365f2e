"""What closed forms give away, against CVXPY's optimum."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdplip.derive import promise_ratio, tightness
from sdplip.derive.tightness import least_diagonal
from sdplip.errors import InvalidInput
from sdplip.layers import LBENLinear, NEMONLinear, SLLLinear, aol, spectral
from sdplip.layers.closed_forms import gram_power


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (1, 6), (6, 1)])
def test_least_diagonal_is_the_optimum(shape):
    W = np.random.default_rng(0).normal(size=shape)
    S = W.T @ W
    t = cp.Variable(len(S))
    problem = cp.Problem(cp.Minimize(cp.sum(t)), [cp.diag(t) - S >> 0])
    problem.solve(solver=cp.CLARABEL)
    found = least_diagonal(S)
    assert found.sum() == pytest.approx(problem.value, rel=1e-6)
    assert np.linalg.eigvalsh(np.diag(found) - S)[0] >= -1e-12 * np.abs(S).max()


@given(st.integers(0, 2**16), st.sampled_from([1e-12, 1.0, 1e12]))
def test_least_diagonal_is_feasible_and_no_closed_form_beats_it(seed, scale):
    W = scale * np.random.default_rng(seed).normal(size=(4, 5))
    W[:, seed % 5] = 0
    least = least_diagonal(W.T @ W)
    assert np.linalg.eigvalsh(np.diag(least) - W.T @ W)[0] >= -1e-12 * np.abs(W).max() ** 2
    tensor = torch.from_numpy(W)
    for witness in (aol.witness, spectral.witness):
        found = witness(tensor)
        used = np.linalg.norm(found["W"]) / np.linalg.norm(W)
        live = W.any(axis=0)
        assert found["T"].numpy()[live].sum() / used**2 >= least.sum() * (1 - 1e-6)


def test_ratios_by_name_size_and_trained_weights(tmp_path):
    forms = {
        "AOL": aol.witness,
        "spectral": spectral.witness,
        "power": lambda W: {"T": gram_power(W.mT @ W, power=8)},
    }
    found = tightness(forms, sizes=(8, 64), draws=2)
    assert len(found.gaps) == 12
    assert all(gap.trace >= 1 - 1e-6 and gap.norm >= 1 - 1e-6 for gap in found.gaps)
    means = found.means()
    assert means["AOL", 64][0] > 1.8 > 1.2 > means["power", 64][0]
    assert means["spectral", 64][1] == pytest.approx(1, abs=1e-6)
    assert "AOL" in found.text()
    assert found.to_json()[0]["units"] == 8
    found.plot(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000
    orthogonal = tightness(aol.witness, weights=[np.eye(6)])
    assert orthogonal.gaps[0].trace == pytest.approx(1, abs=1e-6)


def test_what_is_no_witness_is_refused():
    with pytest.raises(InvalidInput, match="no T"):
        tightness(lambda W: {"D": W}, sizes=(4,))
    with pytest.raises(InvalidInput, match="not ⪰"):
        tightness(lambda W: {"T": (W.mT @ W).diagonal()}, sizes=(4,))
    for weights in (np.zeros((2, 2)), np.full((2, 2), np.nan), np.ones(3)):
        with pytest.raises(InvalidInput, match="finite"):
            tightness(aol.witness, weights=[weights])


@pytest.mark.parametrize("cls", [LBENLinear, NEMONLinear])
def test_promises_are_compared_with_the_verified_bound(cls):
    torch.manual_seed(0)
    layer = cls(5, 6, 3).double()
    assert promise_ratio(layer) >= 1 - 1e-6
    if cls is LBENLinear:
        assert promise_ratio(layer) > 1.05
    assert promise_ratio(SLLLinear(4).double()) >= 1 - 1e-6
