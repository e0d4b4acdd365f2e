"""Perceptrons, residual networks and other systems as LBEN layers."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sdplip
from sdplip import System, conditions
from sdplip.equilibrium import monotonicity
from sdplip.errors import InvalidInput, NotWellPosed, ShapeError
from sdplip.layers import LBENLinear, as_lben

F64 = torch.float64
ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "leaky_relu(0.2)": lambda: nn.LeakyReLU(0.2),
}


def perceptron(sizes, activation=nn.ReLU):
    layers = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1]).double()


class ResidualNetwork(nn.Module):
    """x ↦ R x_L, x_{l+1} = x_l + G_l σ(W_l x_l + b_l), in PyTorch's own modules."""

    def __init__(self, width, hidden, outputs, depth):
        super().__init__()
        self.inner = nn.ModuleList(nn.Linear(width, hidden) for _ in range(depth))
        self.outer = nn.ModuleList(nn.Linear(hidden, width) for _ in range(depth))
        self.read = nn.Linear(width, outputs)
        self.double()

    def forward(self, x):
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = x + outer(torch.relu(inner(x)))
        return self.read(x)

    def system(self):
        """Through the algebra of systems, which is tested against modules elsewhere."""
        whole = None
        for inner, outer in zip(self.inner, self.outer, strict=True):
            one = System.residual(
                np.eye(inner.in_features), *map(np.asarray, (
                    outer.weight.detach(), inner.weight.detach().mT,
                    inner.bias.detach(), outer.bias.detach(),
                )),
            )  # fmt: skip
            whole = one if whole is None else one @ whole
        return System.linear(self.read.weight, self.read.bias) @ whole


def test_a_condition_is_what_proves_it():
    """The certificate is the layer's own: the condition holds for its weights and γ."""
    layer = as_lben(System.from_module(perceptron((5, 8, 6, 3))))
    w = {name: value.detach().numpy() for name, value in layer.witness().items()}
    assert conditions.equilibrium.margin(**w) > 0
    assert w["rho"] == layer.lipschitz**2


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_perceptron_is_an_lben(activation):
    network = perceptron((5, 8, 6, 7, 3), ACTIVATIONS[activation])
    system = System.from_module(network)
    layer = as_lben(system, tol=1e-12)
    x = torch.randn(64, 5, dtype=F64)
    torch.testing.assert_close(layer(x), network(x), rtol=1e-9, atol=1e-9)
    A = layer.witness()["A"].detach()
    blocks = torch.block_diag(*(torch.ones(n, n) for n in (8, 6, 7)))
    below = torch.tril(torch.ones(21, 21)) * (1 - blocks)
    assert (A * (1 - below)).abs().max() <= 1e-12, "A is block strictly lower triangular"
    certificate = sdplip.lipschitz(system)
    assert certificate.lower <= certificate.bound <= layer.lipschitz
    assert layer.lipschitz <= 1.02 * certificate.norm_product


@pytest.mark.parametrize("depth", [1, 4])
def test_a_residual_network_is_an_lben(depth):
    network = ResidualNetwork(6, 9, 3, depth)
    layer = as_lben(network.system(), tol=1e-12)
    assert layer.feedthrough
    x = torch.randn(64, 6, dtype=F64)
    torch.testing.assert_close(layer(x), network(x), rtol=1e-9, atol=1e-9)
    J = torch.func.vmap(torch.func.jacrev(network))(100 * torch.randn(500, 6, dtype=F64))
    assert torch.linalg.matrix_norm(J, ord=2).max() <= layer.lipschitz


@given(seed=st.integers(0, 10**6), depth=st.integers(1, 4), scale=st.floats(-1.5, 0.3))
def test_random_perceptrons(seed, depth, scale):
    """Small and large weights: Λ then leaves the layer's range, and the units are scaled."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 7, depth + 2)
    weights = [rng.normal(size=(o, i)) * 10**scale for i, o in pairwise(sizes)]
    system = System.feedforward(weights, [rng.normal(size=len(W)) for W in weights])
    layer = as_lben(system, tol=1e-12)
    x = rng.normal(size=(16, sizes[0])) * 10.0**-scale
    found, expected = layer(torch.from_numpy(x)).detach().numpy(), system(x)
    assert abs(found - expected).max() <= 1e-8 * (1 + abs(expected).max())
    rise, run = (np.linalg.norm(v[1:] - v[:-1], axis=1) for v in (expected, x))
    assert (rise <= layer.lipschitz * run).all()


def test_a_certificate_becomes_a_layer_of_its_bound():
    system = System.from_module(perceptron((5, 8, 6, 3)))
    by_level = as_lben(system)
    certificate = sdplip.lipschitz(system)
    metric = np.array(certificate.multipliers) / certificate.bound**2
    layer = as_lben(system, 1.001 * certificate.bound, metric=metric, tol=1e-12)
    assert layer.lipschitz == 1.001 * certificate.bound
    assert layer.lipschitz < by_level.lipschitz
    x = torch.randn(64, 5, dtype=F64)
    torch.testing.assert_close(layer(x), system(x), rtol=1e-8, atol=1e-8)
    with pytest.raises(InvalidInput, match="the least constant that this Λ shows"):
        as_lben(system, 0.999 * certificate.lower, metric=metric)


def test_an_equilibrium_with_a_cycle_needs_a_metric():
    source = LBENLinear(4, 6, 3, gamma=0.8, feedthrough=True, dtype=F64, tol=1e-12)
    with torch.no_grad():
        for p in source.parameters():
            p.normal_()
    w = {name: value.detach() for name, value in source.witness().items()}
    with pytest.raises(NotWellPosed, match="cycle"):
        as_lben(source.system())
    layer = as_lben(source.system(), 0.81, metric=w["Lam"] / w["rho"], tol=1e-12)
    x = torch.randn(32, 4, dtype=F64)
    torch.testing.assert_close(layer(x), source(x), rtol=1e-9, atol=1e-9)
    with pytest.raises(NotWellPosed, match="does not show"):
        as_lben(source.system(), metric=1e9 * torch.ones(6))


def test_units_without_input_or_output():
    """A constant unit and one that nothing reads have levels and numbers too."""
    A, B = np.zeros((3, 3)), np.array([[1.0, 2.0], [0.0, 0.0], [3.0, 1.0]])
    A[2, 1] = 2.0
    system = System(A, B, np.array([[1.0, 1.0, 0.0]]), np.array([[0.0, 0.5]]), b=[0.1, 0.7, 0.2])
    layer = as_lben(system, tol=1e-12)
    x = torch.randn(16, 2, dtype=F64)
    torch.testing.assert_close(layer(x), system(x), rtol=1e-9, atol=1e-9)


def test_it_trains_on_within_its_bound():
    layer = as_lben(System.from_module(perceptron((5, 8, 6, 3))))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    x, y = torch.randn(32, 5, dtype=F64), torch.randn(32, 3, dtype=F64)
    losses = []
    for _ in range(20):
        loss = (layer(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    w = {name: value.detach().numpy() for name, value in layer.witness().items()}
    assert conditions.equilibrium.margin(**w) > 0


def test_what_cannot_be_represented_is_named():
    system = System.from_module(perceptron((3, 4, 2)))
    mixed = System.from_module(
        nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.Tanh())
    )
    for bad, arguments, message in (
        (mixed, {}, "activations relu, tanh"),
        (System.linear(np.eye(2)), {}, r"\(none\)"),
        (system, {"gamma": 1e-3}, "gamma = 0.001, but must be above"),
        (system, {"gamma": math.nan}, "gamma = nan"),
        (system, {"gamma": math.inf}, "gamma = inf.*at most 1e"),
        (system, {"metric": np.zeros(4)}, "must be positive"),
        (system, {"metric": [1, 1, math.nan, 1]}, "metric contains nan"),
    ):
        with pytest.raises(InvalidInput, match=message):
            as_lben(bad, **arguments)
    with pytest.raises(ShapeError, match="metric has shape"):
        as_lben(system, metric=np.ones(3))
    for first, last, message in ((1e4, 1e-4, "log Λ"), (50, 1, "B has entries up to 50")):
        tanh = System.feedforward([first * np.eye(2), last * np.eye(2)], activation="tanh")
        with pytest.raises(InvalidInput, match=message):
            as_lben(tanh)


@pytest.mark.parametrize("name", ["digits_fnn3", "lipsdp_random", "mnist_mlp_9x32"])
def test_trained_perceptrons(nets_dir, name):
    system = System.load(nets_dir / f"{name}.npz")
    layer = as_lben(system, tol=1e-12)
    x = torch.randn(32, system.inputs, dtype=F64)
    torch.testing.assert_close(layer(x), system(x), rtol=1e-7, atol=1e-7)
    best = {"digits_fnn3": 9.7286139, "lipsdp_random": 36.482229, "mnist_mlp_9x32": 93.668119}
    assert best[name] <= layer.lipschitz <= 2 * best[name]


@pytest.mark.parametrize("skew", [1.0, 100.0])
@pytest.mark.parametrize("eps", [0.05, 30.0])
def test_the_ode_of_an_lben_has_a_lyapunov_function(eps, skew):
    """The inequalities of examples/neural_ode.py, V being integrated for ReLU by hand.

    Any u* is the pre-activation of an equilibrium, that of the drive u* - Aσ(u*).
    """
    layer = LBENLinear(5, 12, 3, gamma=math.inf, eps=eps, dtype=F64)
    with torch.no_grad():
        layer.psi.normal_()
        layer.V.mul_(0.1)
        layer.S.mul_(skew)
        w = layer.witness()
    A, Lam = w["A"], w["Lam"]
    m, _ = monotonicity(A, Lam)
    assert (m < 0.5) == (eps < 0.5)
    goal, delta = torch.randn(2, 500, 12, dtype=F64)
    delta = delta * torch.logspace(-3, 3, 500, dtype=F64)[:, None]
    rest, now = torch.relu(goal), torch.relu(goal + delta)
    jump, V = now - rest, (now.square() - rest.square()) / 2 - rest * delta
    size, V, product = ((Lam * y).sum(dim=1) for y in (jump.square(), V, jump * delta))
    slack = 1e-9 * (1 + product)
    assert (size / 2 <= V + slack).all() and (V + size / 2 <= product + slack).all()
    speed = (Lam * jump * (-delta + jump @ A.mT)).sum(dim=1)
    assert (speed <= -min(2 * m, 1.0) * V + slack).all()


def test_the_ode_need_not_contract_in_any_norm():
    """ż = -z + σ(Az + v) for the A of an LBEN: there is convergence to the equilibrium instead.

    A norm xᵀPx in which -I + DA decreases it for every D of the ReLU would make every product of
    their flows a contraction; this product expands.
    """
    A = torch.tensor([[0.0, 10.0], [-10.0, 0.0]], dtype=F64)
    assert (2 * torch.eye(2) - A - A.mT == 2 * torch.eye(2)).all()
    flows = [torch.matrix_exp(torch.diag(torch.tensor(d, dtype=F64)) @ A - torch.eye(2, dtype=F64))
             for d in ([1.0, 0.0], [0.0, 1.0])]  # fmt: skip
    assert torch.linalg.eigvals(flows[1] @ flows[0]).abs().max() > 10
