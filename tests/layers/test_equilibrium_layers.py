"""LBEN and NEMON layers."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from layer_cases import EXTREMES, make, put

from sdplip import conditions
from sdplip.activations import per_unit
from sdplip.equilibrium import monotonicity
from sdplip.errors import InvalidInput, NotConverged, NotConvergedWarning, ShapeError
from sdplip.layers import ROUNDING, LBENConv2d, LBENLinear, NEMONLinear, fold
from sdplip.layers.lben import witness as lben
from sdplip.layers.nemon import linf_bound
from sdplip.layers.nemon import witness as nemon

EQUILIBRIUM = [LBENLinear, NEMONLinear]


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("gamma", [0.3, 1.0, 4.0])
def test_lben_slack_is_what_the_schur_complement_leaves(direct, gamma):
    """The Schur complement of ρI - DᵀD is exactly 2γ(VᵀV + εI)."""
    psi, V, S, B, C = 0.3 * draw(7), draw(7, 7), draw(7, 7), draw(7, 5), draw(4, 7)
    D = draw(4, 5) if direct else None
    eps = torch.tensor(0.5, dtype=torch.float64)
    w = lben(psi, V, S, B, C, D, torch.tensor(gamma, dtype=torch.float64), eps)
    M = conditions.equilibrium(**w)
    m = B.shape[1]
    schur = M[m:, m:] - M[m:, :m] @ torch.linalg.solve(M[:m, :m], M[:m, m:])
    expected = 2 * gamma * (V.mT @ V + eps * torch.eye(7, dtype=torch.float64))
    torch.testing.assert_close(schur, expected, rtol=1e-8, atol=1e-8)
    assert torch.linalg.matrix_norm(w["D"], ord=2) < gamma


def test_lben_closed_form_is_batched():
    free = (draw(2, 7), draw(2, 7, 7), draw(2, 7, 7), draw(2, 7, 5), draw(2, 4, 7), draw(2, 4, 5))
    gamma, eps = torch.tensor(0.5, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    batched = lben(*free, gamma, eps)
    single = lben(*(f[1] for f in free), gamma, eps)
    for name in ("A", "B", "C", "D", "Lam"):
        torch.testing.assert_close(batched[name][1], single[name])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [0.3, math.inf])
def test_derivatives_of_the_lben_closed_form(gamma, weighted):
    """Written by hand for a matrix without a direct path; torch.func goes another way."""
    psi = [0.3 * draw(4)] if weighted else []
    free = [*psi, draw(4, 4), draw(4, 4), draw(4, 3), draw(2, 4)]

    def form(*free):
        w = lben(*([] if weighted else [None]), *free, None, gamma, 0.5)
        return w["A"], w["Lam"]

    inputs = tuple(x.requires_grad_() for x in free)
    assert torch.autograd.gradcheck(form, inputs)
    assert torch.autograd.gradgradcheck(form, inputs)
    chosen = tuple(range(len(free)))
    by_hand = torch.autograd.functional.jacobian(lambda *free: form(*free)[0], inputs)
    recorded = torch.func.jacrev(lambda *free: form(*free)[0], chosen)(*free)
    for a, b in zip(by_hand, recorded, strict=True):
        torch.testing.assert_close(a, b)


def test_lben_reaches_its_bound():
    """The parametrisation is tight: a gradient ascent on the gain comes close to γ."""
    layer = make(LBENLinear, dtype=torch.float64, gamma=2.0, eps=1e-3, activation="identity")
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(150):
        w = layer.witness()
        eye = torch.eye(len(w["A"]), dtype=torch.float64)
        gain = torch.linalg.matrix_norm(w["C"] @ torch.linalg.solve(eye - w["A"], w["B"]), ord=2)
        optimizer.zero_grad()
        (-gain).backward()
        optimizer.step()
    assert 1.9 < gain.item() <= 2.0


def test_gamma_is_learned_through_its_logarithm():
    layer = make(LBENLinear, gamma=3.0, learn_gamma=True, dtype=torch.float64)
    assert abs(layer.lipschitz - 3) <= 1e-12
    layer(draw(4, 5)).square().sum().backward()
    assert layer.log_gamma.grad.abs() > 0
    for exponent, limit in ((-100, 1e-9), (100, 1e9)):
        layer.log_gamma.data.fill_(exponent)
        assert abs(layer.lipschitz / limit - 1) <= 1e-12


@pytest.mark.parametrize("direct", [False, True])
def test_infinite_gamma_is_only_well_posed(direct):
    layer = make(LBENLinear, gamma=math.inf, feedthrough=direct, dtype=torch.float64)
    with torch.no_grad():
        layer.B.mul_(100)
        if direct:
            layer.D.fill_(7.0)
    assert layer.lipschitz == math.inf
    layer(draw(3, 5)).sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    w = {name: value.detach().numpy() for name, value in layer.witness().items()}
    assert conditions.wellposed.margin(A=w["A"], Lam=w["Lam"], alpha=0.0, beta=1.0) > 0
    assert (w["D"] == (7.0 if direct else 0.0)).all()


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("c", [0.0, 0.99, -3.0, 1 - 1e-9])
def test_matrix_measure_by_definition(extreme, c):
    """The official NEMON convolution asks for 0 and gets 4.1."""
    layer = make(NEMONLinear, c=c)
    with torch.no_grad():
        layer.d.normal_()
    put(layer, extreme)
    w = layer.witness()
    A, eta = w["A"].tolist(), w["eta"].tolist()
    n = range(len(A))
    measure = max(A[i][i] + sum(abs(A[i][j]) * eta[j] / eta[i] for j in n if j != i) for i in n)
    assert measure <= layer.c + 1e-7 * abs(layer.c)
    assert measure < 1


def test_nemon_is_the_published_parametrisation():
    T, d, c = draw(5, 5), 0.01 * draw(5), torch.tensor(0.3, dtype=torch.float64)
    eta = torch.diag(torch.exp(-d))
    expected = c * torch.eye(5) + eta @ T @ eta.inverse() - torch.diag(T.abs().sum(dim=1))
    torch.testing.assert_close(nemon(T, d, c)["A"], expected, rtol=1e-5, atol=1e-6)


def test_nemon_closed_form_is_batched():
    T, d, c = draw(2, 5, 5), draw(2, 5), torch.tensor(0.3, dtype=torch.float64)
    B, C, D = draw(2, 5, 3), draw(2, 4, 5), draw(2, 4, 3)
    A = nemon(T, d, c)["A"]
    torch.testing.assert_close(A[1], nemon(T[1], d[1], c)["A"])
    torch.testing.assert_close(linf_bound(A, B, C, D)[1], linf_bound(A[1], B[1], C[1], D[1]))


def test_linf_bound_is_at_most_the_paper_formula_and_meets_the_condition():
    layer = make(NEMONLinear, c=0.5, feedthrough=True, dtype=torch.float64)
    with torch.no_grad():
        layer.d.normal_()
        layer.D.normal_()
    w = {name: value.detach().numpy() for name, value in layer.witness().items()}
    eta, bound = w["eta"], layer.lipschitz
    norm_B, norm_C = (np.abs(w["B"]).sum(1) / eta).max(), (np.abs(w["C"]) * eta).sum(1).max()
    assert bound <= norm_C * norm_B / (1 - 0.5) + np.abs(w["D"]).sum(1).max()
    metzler = np.abs(w["A"])
    np.fill_diagonal(metzler, w["A"].diagonal())
    reach = np.linalg.solve(np.eye(len(eta)) - metzler, np.abs(w["B"]).sum(1))
    values = {"A": w["A"], "B": w["B"], "C": w["C"], "D": w["D"], "eta": reach, "gamma": bound}
    margin = conditions.linf.margin(**values, c=1.0, alpha=0.0, beta=1.0)
    assert margin >= -1e-12 * bound


def test_linf_bound_is_differentiable_and_trains():
    layer = make(NEMONLinear, dtype=torch.float64)
    before = layer.lipschitz
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        bound = layer.linf_bound()
        bound.backward()
        optimizer.step()
    assert layer.lipschitz < 0.9 * before
    assert abs(bound.item() - before) > 0


@pytest.mark.parametrize("extreme", EXTREMES)
def test_nemon_is_an_lben(extreme):
    """Its metric satisfies the ℓ₂ well-posedness condition, so ℓ₂ solvers and bounds apply."""
    layer = make(NEMONLinear, c=0.5, dtype=torch.float64)
    put(layer, extreme)
    w = layer.witness()
    A, Lam = w["A"].detach().numpy(), layer._metric(w).numpy()
    assert conditions.wellposed.margin(A=A, Lam=Lam, alpha=0.0, beta=1.0) > 0


@pytest.mark.parametrize("cls", EQUILIBRIUM)
@pytest.mark.parametrize("extreme", EXTREMES)
def test_the_solver_gets_a_metric_in_which_the_layer_is_monotone(cls, extreme):
    layer = make(cls, dtype=torch.float64)
    put(layer, extreme)
    w = layer.witness()
    assert monotonicity(w["A"], layer._metric(w))[0] > 0


@pytest.mark.parametrize("cls", EQUILIBRIUM)
@pytest.mark.parametrize("extreme", EXTREMES)
def test_equilibria_are_accurate_for_any_parameters(cls, extreme):
    """Free weights saturate, so rounding in A never swamps the equation."""
    layer = make(cls, dtype=torch.float64)
    put(layer, extreme)
    assert layer.solve(draw(4, 5)).residual.max() <= 1e-9


@pytest.mark.parametrize("extreme", EXTREMES)
def test_rounding_does_not_eat_up_a_small_eps(extreme):
    torch.manual_seed(0)
    layer = LBENLinear(20, 60, 10, gamma=0.1, eps=1e-7, feedthrough=True)
    put(layer, extreme)
    w = {name: value.detach().double().numpy() for name, value in layer.witness().items()}
    assert conditions.wellposed.margin(A=w["A"], Lam=w["Lam"], alpha=0.0, beta=1.0) > 0
    J = w["D"] + w["C"] @ np.linalg.solve(np.eye(60) - w["A"], w["B"])
    assert np.linalg.norm(J, 2) <= layer.lipschitz * (1 + ROUNDING)


def test_an_eps_below_rounding_leaves_the_layer_well_posed():
    layer = make(LBENLinear, eps=1e-30)
    put(layer, "zero")
    w = {name: value.detach().double().numpy() for name, value in layer.witness().items()}
    assert conditions.wellposed.margin(A=w["A"], Lam=w["Lam"], alpha=0.0, beta=1.0) > 0


@pytest.mark.parametrize("cls", EQUILIBRIUM)
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "leaky_relu(0.2)"])
def test_other_activations(cls, activation):
    layer = make(cls, dtype=torch.float64, activation=activation)
    x = draw(4, 5)
    torch.testing.assert_close(layer(x), layer.system()(x), rtol=1e-9, atol=1e-10)
    J = torch.autograd.functional.jacobian(lambda x: layer(x).sum(0), x).movedim(1, 0)
    assert torch.linalg.matrix_norm(J, ord=layer.norm).max() <= layer.lipschitz * (1 + 1e-12)


@pytest.mark.parametrize("cls", EQUILIBRIUM)
@pytest.mark.parametrize("method", ["forward_backward", "douglas_rachford", "average", "newton"])
def test_every_method_finds_the_same_output(cls, method):
    layer, x = make(cls, dtype=torch.float64), draw(4, 5)
    layer.tol = 1e-10
    expected = layer(x)
    layer.method, layer.max_steps = method, 5000
    torch.testing.assert_close(layer(x), expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("cls", EQUILIBRIUM)
def test_unsolved_samples_are_announced(cls):
    """The public code stops silently after max_iter."""
    layer = make(cls, dtype=torch.float64)
    layer.max_steps, layer.fallback = 1, None
    x = draw(4, 5)
    with pytest.raises(NotConverged, match=cls.__name__):
        layer.eval()(x)
    with pytest.warns(NotConvergedWarning, match=cls.__name__):
        layer.train()(x)
    layer.on_failure = "ignore"
    layer(x)
    solution = layer.solve(x)
    assert not solution.converged.any()
    assert (solution.residual > layer.tol).all()


@pytest.mark.parametrize("cls", EQUILIBRIUM)
def test_a_row_of_nan_stays_in_its_row(cls):
    """In the public code the other 127 of 128 rows come back 50 to 150 % wrong."""
    layer = make(cls, dtype=torch.float64).eval()
    layer.on_failure = "ignore"
    x = draw(6, 5)
    clean = layer(x)
    x[2] = math.nan
    y = layer(x)
    others = [0, 1, 3, 4, 5]
    assert y[2].isnan().all()
    torch.testing.assert_close(y[others], clean[others], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cls", EQUILIBRIUM)
def test_neighbours_in_the_batch_do_not_matter(cls):
    """At its training tolerance the official LBEN moves 336 times its bound between batches."""
    layer = make(cls)
    layer.tol = 1e-5
    x = torch.randn(64, 5)
    together = layer(x)
    alone = torch.stack([layer(row) for row in x])
    assert (together - alone).norm(dim=-1).max() <= 1e-4 * together.norm(dim=-1).max()


@pytest.mark.parametrize("cls", EQUILIBRIUM)
def test_nothing_changes_on_read(cls):
    """The official NEMON shrinks its step size for good, in evaluation too."""
    layer = make(cls)
    x = torch.randn(4, 5)
    layer(x)  # finds a step, and how often to look at the residual
    first = layer(x)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    attributes = {k: v for k, v in vars(layer).items() if not k.startswith("_")}
    layer.eval()(100 * x)
    layer.solve(x), layer.system(), layer.witness(), layer.lipschitz
    assert all(torch.equal(state[name], value) for name, value in layer.state_dict().items())
    assert torch.equal(layer.train()(x), first)
    assert {k: v for k, v in vars(layer).items() if not k.startswith("_")} == attributes


@pytest.mark.parametrize("cls", EQUILIBRIUM)
def test_sizes_must_be_positive(cls):
    with pytest.raises(InvalidInput, match="hidden = 0"):
        cls(3, 0, 2)
    with pytest.raises(InvalidInput, match="in_features = 0"):
        cls(0, 3, 2)


@pytest.mark.parametrize("units", [1, 10, 100, 300])
@pytest.mark.parametrize("dead", [0.0, 0.5, 1.0])
def test_nemon_promises_what_its_weights_give(units, dead):
    """Units without input must neither loosen the bound nor make it fail."""
    layer = NEMONLinear(8, units, 3, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
        layer.B[: round(dead * units)] = 0
        exact = float(layer.linf_bound())
    assert exact <= layer.lipschitz <= exact * (1 + 1e-6) + 1e-12


@pytest.mark.parametrize("cls", EQUILIBRIUM)
def test_every_unit_may_have_an_activation_of_its_own(cls):
    names = ["relu", "tanh", "sigmoid", "leaky_relu(0.2)"]
    layer = cls(5, 4, 3, activation=per_unit(names), dtype=torch.float64, tol=1e-12)
    x = draw(6, 5)
    y, system = layer(x), layer.system()
    assert list(system.activation) == names
    torch.testing.assert_close(y, system(x), rtol=1e-9, atol=1e-10)
    folded = fold(torch.nn.Sequential(layer).eval(), samples=x, tol=1e-10)
    torch.testing.assert_close(folded(x), y, rtol=1e-7, atol=1e-8)
    twin = pickle.loads(pickle.dumps(layer))
    twin.load_state_dict(copy.deepcopy(layer).state_dict())
    assert torch.equal(twin.train()(x), layer.train()(x))
    with pytest.raises(InvalidInput, match="it would compute another map"):
        cls(5, 4, 3, activation=per_unit(names[::-1])).load_state_dict(layer.state_dict())
    with pytest.raises(ShapeError, match="4 units"):
        cls(5, 7, 3, activation=per_unit(names))(torch.ones(1, 5))


class Around(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(2 * torch.relu(x)).tanh()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    ("make", "shape"),
    [(lambda: LBENLinear(5, 8, 3), (6, 5)), (lambda: LBENConv2d(2, 3, 2, 3), (2, 2, 4, 6))],
    ids=["dense", "convolution"],
)
def test_what_is_around_it_is_compiled(make, shape):
    """The solver itself is not: that took minutes, a graph for every number of iterations."""
    torch.compiler.reset()
    torch.manual_seed(0)
    network, x, graphs = Around(make()), torch.randn(shape), []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(copy.deepcopy(network), backend=count)
    for size in (1, 5, 20):
        y, expected = compiled(size * x), network(size * x)
        assert torch.equal(y, expected)
        y.square().sum().backward()
        expected.square().sum().backward()
    for p, q in zip(network.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    assert len(graphs) == 2, "before it and after it"
