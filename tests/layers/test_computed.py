"""What is certified is what was computed: bounds that count the solver's error."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sdplip import fold
from sdplip.equilibrium import METHODS, Circulant, monotonicity, solve
from sdplip.errors import InvalidInput
from sdplip.layers import (
    ROUNDING,
    LBENConv2d,
    LBENLinear,
    NEMONLinear,
    Residual,
    SpectralLinear,
    solve_output,
)
from sdplip.train import certified_radii, global_pairs

F64 = torch.float64
TOLERANCES = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6]


def stiff(gamma, seed=0, size=4.0, **options):
    torch.manual_seed(seed)
    layer = LBENLinear(12, 24, 5, gamma=gamma, eps=0.3, **options)
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(size)
    return layer.eval()


@pytest.mark.parametrize("gamma", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("tol", TOLERANCES)
def test_outputs_move_by_no_more_than_gamma_and_the_errors(gamma, tol):
    """The official LBEN moves 336 times its bound at 1e-2, from one batch to another."""
    layer = stiff(gamma)
    layer.tol, layer.fallback = tol, None
    for seed in range(5):
        x = torch.randn(64, 12, generator=torch.Generator().manual_seed(seed))
        for scale in (0.0, 1e-2, 1.0):
            near = x + scale * torch.randn(64, 12, generator=torch.Generator().manual_seed(99))
            y, e = solve_output(layer, x)
            # Other neighbours, and another order.
            other, f = solve_output(layer, torch.cat([1e3 * x[:7], near.flip(0)]))
            other, f = other[7:].flip(0), f[7:].flip(0)
            moved = (y.double() - other.double()).norm(dim=-1)
            allowed = gamma * (1 + ROUNDING) * (x.double() - near.double()).norm(dim=-1) + e + f
            assert (moved <= allowed * (1 + 1e-12)).all()
            assert (e > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: stiff(1.0, feedthrough=True), (12,)),
        (lambda: NEMONLinear(12, 24, 5, c=0.9), (12,)),
        (lambda: LBENConv2d(2, 3, 4, 3, feedthrough=True), (2, 5, 4)),
        (lambda: LBENConv2d(2, 3, 4, 3, readout="pool"), (2, 5, 4)),
    ],
    ids=["lben", "nemon", "convolution", "pool"],
)
def test_the_error_counts_what_the_layer_rounds(make, shape, dtype):
    """Large inputs and biases that cancel: the drive loses digits that no residual shows."""
    torch.manual_seed(0)
    layer = make().eval().to(dtype)
    x = 30 * torch.ones(4, *shape) + torch.randn(4, *shape)
    with torch.no_grad():
        layer.bias.copy_(-30 * layer.B.double().flatten(1).sum(dim=1))
    layer.tol = 1e-7
    y, e = layer.solve_output(x.to(dtype))
    system = layer.system() if len(shape) == 1 else layer.system(shape[1:])
    exact = system(x.to(dtype).double().flatten(1)).view(y.shape)
    distance = (y.double() - exact).flatten(1).norm(float(layer.norm), dim=-1)
    assert y.dtype == dtype
    assert (distance <= e + 1e-12 * exact.abs().max()).all()
    assert (e <= 100 * distance.max()).all(), "and no more than there is"


@given(
    seed=st.integers(0, 10**6),
    gamma=st.sampled_from([0.01, 0.3, 1.0, 100.0, float("inf")]),
    method=st.sampled_from(METHODS),
    steps=st.integers(1, 40),
    size=st.sampled_from([1e-3, 1.0, 30.0]),
    name=st.sampled_from(["relu", "tanh", "sigmoid", "softplus", "leaky_relu(0.3)", "elu"]),
)
def test_no_error_bound_is_below_the_error(seed, gamma, method, steps, size, name):
    layer = stiff(gamma, seed, size, activation=name)
    v = 3 * torch.randn(6, 24, generator=torch.Generator().manual_seed(seed))
    w = layer.witness()
    A, Lam = (w[k].detach() for k in ("A", "Lam"))
    found = solve(A, v, name, method=method, metric=Lam, max_steps=steps, tol=1e-9)
    exact = solve(A.double(), v.double(), name, method="newton", metric=Lam.double())
    assert exact.converged.all()
    distance = ((found.z.double() - exact.z).square() * Lam.double()).sum(-1).sqrt()
    floor = exact.error_bound
    assert (distance <= found.error_bound + floor).all()


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_bounds_of_well_conditioned_layers_are_tight(steps):
    torch.manual_seed(0)
    layer = LBENLinear(12, 24, 5, gamma=float("inf")).double()
    layer.tol, layer.max_steps, layer.fallback = 1e-14, steps, None
    x = torch.randn(50, 12, dtype=F64)
    found = layer.solve(x)
    layer.max_steps, layer.method = None, "newton"
    exact = layer.solve(x)
    distance = ((found.z - exact.z).square() * layer.witness()["Lam"]).sum(-1).sqrt()
    assert (distance > 1e-12).all()
    assert (found.error_bound / distance).median() <= 5


def test_errors_are_followed_through_a_network():
    torch.manual_seed(0)
    model = nn.Sequential(
        stiff(1.0), SpectralLinear(5, 12), stiff(0.5, seed=1), nn.ReLU(), nn.Linear(5, 3)
    ).eval()
    exact = nn.Sequential(*[m for m in model]).double()
    x = torch.randn(20, 12, dtype=F64)
    for m in model:
        if isinstance(m, LBENLinear):
            m.method = "newton"
    z, tiny = solve_output(exact, x)
    for m in model:
        if isinstance(m, LBENLinear):
            m.method, m.tol, m.fallback = "peaceman_rachford", 1e-2, None
    y, e = solve_output(model, x)
    assert ((y - z).norm(dim=-1) <= e + tiny).all()
    assert (tiny < 1e-9).all()
    assert (e > 1e-6).any()


def test_convolutions_and_the_measure_of_nemon():
    torch.manual_seed(0)
    layer = LBENConv2d(2, 3, 4, 3, gamma=1.0).eval().double()
    x = torch.randn(3, 2, 6, 5, dtype=F64)
    layer.tol = 1e-13
    exact, tiny = layer.solve_output(x)
    layer.tol = 1e-2
    y, e = layer.solve_output(x)
    assert ((y - exact).flatten(1).norm(dim=-1) <= e + tiny).all()
    assert (tiny < 1e-9).all()

    nemon = NEMONLinear(6, 9, 4, c=0.5).eval().double()
    x = torch.randn(30, 6, dtype=F64)
    nemon.tol = 1e-13
    exact, tiny = nemon.solve_output(x)
    nemon.tol = 1e-1
    y, e = nemon.solve_output(x)
    assert ((y - exact).abs().amax(-1) <= e + tiny).all()


def test_an_unsupported_margin_is_not_certified():
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=F64)
    labels, pairs = torch.tensor([0, 0]), global_pairs(1.0, 2)
    error = torch.tensor([0.1, 0.6], dtype=F64)
    radii = certified_radii(logits, labels, pairs, 0.0, error)
    torch.testing.assert_close(radii, torch.tensor([0.8 / 2**0.5, 0.0], dtype=F64))
    assert (certified_radii(logits, labels, pairs, 0.0, error / 0) == 0).all()


def test_what_cannot_be_followed_is_refused():
    with pytest.raises(InvalidInput, match="inside Residual"):
        solve_output(nn.Sequential(Residual(stiff(1.0))), torch.ones(1, 12))
    y, e = solve_output(SpectralLinear(3, 2).eval(), torch.ones(4, 3))
    assert (e == 0).all()
    assert y.shape == (4, 2)


@pytest.mark.parametrize("gamma", [0.3, float("inf")])
def test_the_modulus_by_construction_is_one(gamma):
    torch.manual_seed(0)
    layer = LBENConv2d(2, 3, 4, 3, gamma=gamma, eps=0.7).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.mul_(3).add_(0.2 * torch.randn_like(p))
    w = layer._at((5, 6))
    found, _ = monotonicity(Circulant(w["A"], (5, 6)), w["metric"])
    assert 0 < layer._modulus(w["metric"]) <= found


def test_folded_and_altered_equilibria_are_refused():
    """Their error is that of another map."""
    x = torch.randn(4, 12)
    with pytest.raises(InvalidInput, match="unfolded"):
        solve_output(fold(stiff(1.0), x, tol=1e-1), x)

    hooked = stiff(1.0)
    hooked.register_forward_hook(lambda module, inputs, output: 100 * output)

    class Larger(LBENLinear):
        def forward(self, x):
            return 5 * super().forward(x)

    for layer in (hooked, Larger(12, 3, 5).eval()):
        with pytest.raises(InvalidInput, match="another forward"):
            solve_output(nn.Sequential(layer), x)


def test_the_error_of_nothing_is_not_a_number():
    layer = stiff(1.0).requires_grad_(False)
    layer.C.zero_()
    x = torch.randn(4, 12)
    x[2] = torch.nan
    with pytest.warns(UserWarning):
        layer(x)
    _, e = solve_output(layer, x)
    assert e[2] == torch.inf
    assert e.isfinite().sum() == 3
