"""Emitted convolutions against the operator itself, column by column."""

import numpy as np
import pytest
import torch

from sdplip import conditions, lipschitz
from sdplip.derive.library import find
from sdplip.errors import InvalidInput, ShapeError
from sdplip.layers import CONVOLUTIONS, LAYERS, lipschitz_bound
from sdplip.layers.custom_conv import dominant_channels
from sdplip.train import convnets
from sdplip.train.models import ModelConfig, build

SIZES = {"sll": (2, 2, 3, 4), "slopes": (2, 2, 3, 3), "aol": (3, 2, 3)}
CHANGES = {
    "random": lambda p: torch.randn_like(p),
    "large": lambda p: 100 * torch.randn_like(p),
    "tiny": lambda p: 1e-20 * torch.randn_like(p),
    "zero": torch.zeros_like,
    "one tap": lambda p: p * (torch.arange(p.numel()).reshape(p.shape) == 4),
    "equal": torch.ones_like,
}


def layer(name, **options):
    return find(name)[1][0].layer(convolution=True)(*SIZES[name], **options)


def operator(function, columns, height, width, dtype=torch.float64):
    """The matrix of a linear map of images."""
    basis = torch.eye(columns * height * width, dtype=dtype)
    return function(basis.unflatten(1, (columns, height, width))).flatten(1).T


@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", SIZES)
def test_jacobians_keep_the_bound(name, change, padding):
    torch.manual_seed(0)
    found = layer(name, padding_mode=padding, dtype=torch.float64)
    with torch.no_grad():
        for key in found.free:
            getattr(found, key).copy_(CHANGES[change](getattr(found, key)))
    for height, width in ((3, 5), (6, 4)):
        x = torch.randn(1, SIZES[name][0], height, width, dtype=torch.float64)
        J = torch.autograd.functional.jacobian(lambda x: found(x).flatten(), x)
        norm = torch.linalg.matrix_norm(J.reshape(len(J), -1), ord=2)
        assert norm <= found.lipschitz * (1 + 1e-12)


@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize("kernel", [1, 2, 3, (3, 2), 5], ids=str)
def test_T_dominates_the_operator_and_the_adjoint_is_one(kernel, padding):
    torch.manual_seed(0)
    found = find("aol")[1][0].layer(convolution=True)(2, 3, kernel, padding_mode=padding)
    for height, width in ((5, 5), (6, 7)):
        K = torch.randn(*found.W.shape, dtype=torch.float64)
        q = torch.rand(2, dtype=torch.float64) + 0.1
        W = operator(lambda x, K=K: found.convolve(K, x), 2, height, width)
        back = operator(lambda x, K=K: found.adjoint(K, x), 3, height, width)
        torch.testing.assert_close(back, W.T)
        for T in (dominant_channels(K), dominant_channels(K, q)):
            gap = torch.diag(T.repeat_interleave(height * width)) - W.T @ W
            assert torch.linalg.eigvalsh(gap)[0] >= -1e-12 * T.max()


@pytest.mark.parametrize("name", SIZES)
def test_evaluation_computes_the_closed_form_once(name, monkeypatch):
    found = layer(name).eval()
    calls, compute = [], found._closed_form
    monkeypatch.setattr(found, "_closed_form", lambda: calls.append(1) or compute())
    x = torch.randn(1, SIZES[name][0], 3, 5)
    with torch.no_grad():
        assert torch.equal(found(x), found(x))
    assert len(calls) == 1


def test_the_unrolled_witness_satisfies_the_condition():
    torch.manual_seed(1)
    found = layer("sll", dtype=torch.float64)
    with torch.no_grad():
        found.W.normal_()
        found.log_q.normal_()
    w = found.witness()
    W = operator(lambda x: found.convolve(w["W"], x), 4, 4, 3).detach().numpy()
    T = w["T"].detach().numpy().repeat(12)
    values = {"W": W, "H": np.eye(len(W)), "G": -2 * W / T, "Lam": 2 / T, "rho": 1.0}
    assert conditions.residual.margin(**values) >= -1e-12


def test_gradients_and_state(tmp_path):
    torch.manual_seed(0)
    found = layer("sll", padding_mode="circular")
    x = torch.randn(2, 2, 6, 6)
    y = found(x)
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in found.parameters())
    torch.save(found.state_dict(), tmp_path / "state.pt")
    fresh = type(found)(*SIZES["sll"], padding_mode="circular")
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(fresh(x), y)
    with pytest.raises(InvalidInput, match="geometry"):
        layer("sll").load_state_dict(found.state_dict())


def test_what_has_no_convolutional_meaning_is_refused():
    for name in ("cpl", "orthogonal", "lben", "nemon", "midpoint", "gram_power", "sandwich"):
        with pytest.raises(InvalidInput, match="no convolutional form"):
            find(name)[1][0].emit("Layer", convolution=True)
    with pytest.raises(InvalidInput, match="kernel_size = 0"):
        find("sll")[1][0].layer(convolution=True)(2, 2, 0)
    with pytest.raises(InvalidInput, match="out_channels = 3"):
        find("sll")[1][0].layer(convolution=True)(2, 3, 3)
    with pytest.raises(InvalidInput, match="reflect"):
        layer("sll", padding_mode="reflect")
    with pytest.raises(ShapeError, match="height"):
        layer("sll")(torch.zeros(2, 6))
    with pytest.raises(ShapeError, match="2 x 2"):
        find("aol")[1][0].layer(convolution=True)(2, 2, 7, padding_mode="circular")(
            torch.zeros(1, 2, 2, 2)
        )
    with pytest.raises(InvalidInput, match="only for one size"):
        layer("sll").system()
    with pytest.raises(InvalidInput, match="half"):
        _ = layer("sll").half().lipschitz


@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize("name", SIZES)
def test_the_system_is_forward_and_its_bound_below_the_promise(name, padding):
    torch.manual_seed(2)
    found = layer(name, padding_mode=padding, dtype=torch.float64)
    system = found.system((3, 4))
    x = torch.randn(5, SIZES[name][0], 3, 4, dtype=torch.float64)
    y = found(x)
    torch.testing.assert_close(system(x.flatten(1)), y.flatten(1))
    torch.testing.assert_close(found(x[0]), y[0])
    assert lipschitz(system, lower=False).bound <= found.lipschitz * (1 + 1e-6)


@pytest.mark.parametrize("kernel", [2, (3, 2), 4], ids=str)
@pytest.mark.parametrize("name", ["sll", "aol"])
def test_kernels_of_any_size_keep_the_bound(name, kernel):
    torch.manual_seed(3)
    found = find(name)[1][0].layer(convolution=True)(3, 3, kernel, dtype=torch.float64)
    x = torch.randn(1, 3, 5, 4, dtype=torch.float64)
    J = torch.autograd.functional.jacobian(lambda x: found(x).flatten(), x)
    assert torch.linalg.matrix_norm(J.reshape(len(J), -1), ord=2) <= 1 + 1e-12


@pytest.mark.parametrize("name", ["sll", "aol"])
def test_an_emitted_family_joins_the_architectures(name, monkeypatch):
    derivation = find(name)[1][0]
    monkeypatch.setitem(LAYERS, "mine", derivation.layer("Mine"))
    monkeypatch.setitem(CONVOLUTIONS, "mine", derivation.layer("MineConv", convolution=True))
    assert "mine" in convnets.families()
    sizes = {"convnet": (4, 1, 1, 4), "residual": (8, 2, 1, 8), "patchwise": (48, 1, 1, 128)}
    for architecture, (width, depth, dense_depth, dense_width) in sizes.items():
        shape = {"width": width, "depth": depth}
        dense = {"dense_depth": dense_depth, "dense_width": dense_width}
        mine, shipped = (
            build(ModelConfig(f, (3, 32, 32), 10, architecture=architecture, **shape, **dense))
            for f in ("mine", name)
        )
        kinds = [[str(k.condition) if hasattr(k, "condition") else type(k).__name__ for k in m]
                 for m in (mine, shipped)]  # fmt: skip
        assert kinds[0] == kinds[1]
        assert mine(torch.rand(2, 3, 32, 32)).shape == (2, 10)
        assert lipschitz_bound(mine) == pytest.approx(lipschitz_bound(shipped), abs=1e-5)
