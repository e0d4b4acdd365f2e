"""Regions: intervals, slopes and lines against samples; local bounds against brute force."""

from dataclasses import replace

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import iv, mp
from random_systems import mlp

from sdplip import System
from sdplip.activations import ACTIVATIONS, elementwise
from sdplip.errors import CertificationError, InvalidInput, NotWellPosed, ShapeError
from sdplip.verify import check, layered, lipschitz, lower_bound
from sdplip.verify.fold import fold
from sdplip.verify.local import preactivations, restrict
from sdplip.verify.ranges import CURVATURE, lines, slope_range, value_range
from sdplip.verify.reduce import live_units
from sdplip.verify.region import Region
from sdplip.verify.rigorous import Ball

SEEDS = st.integers(0, 10**6)
NAMES = sorted({
    *ACTIVATIONS, *CURVATURE, "abs", "asinh", "atan", "erf", "softsign", "leaky_relu(0.3)",
    "leaky_relu(1.7)", "leaky_relu(-0.4)", "elu(0.5)", "elu(-0.7)", "celu(0.6)", "softplus(3.0)",
    "hardtanh(-0.3,0.8)", "softshrink(0.25)",
})  # fmt: skip


def draw_region(rng, m):
    """Boxes and balls of every size, points and flat boxes among them."""
    centre, size = rng.normal(size=m), 10.0 ** rng.uniform(-6, 2) * (rng.random() < 0.9)
    if rng.random() < 0.5:
        return Region.ball(centre, size)
    half = size * rng.random(m) * (rng.random(m) < 0.8)
    return Region.box(centre - half, centre + half)


def inside(rng, region, count):
    low, high = region.limits
    if region.radius is None:
        share = rng.random((count, len(low)))
        share[: count // 2] = rng.integers(0, 2, size=(count // 2, len(low)))
        return np.clip(low + share * (high - low), low, high)
    away = rng.normal(size=(count, len(low)))
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    return np.array(region.centre) + away * region.radius * rng.random((count, 1)) ** 0.2


@pytest.mark.parametrize("name", NAMES)
@given(SEEDS)
@settings(max_examples=20)
def test_slopes_values_and_lines_hold_between_any_two_points(name, seed):
    rng = np.random.default_rng(seed)
    low = rng.normal(size=12) * 10.0 ** rng.uniform(-3, 1.5, size=12)
    high = low + 10.0 ** rng.uniform(-5, 1.5, size=12) * (rng.random(12) < 0.9)
    low[0], high[1], high[2] = 0.0, max(low[1], 0.0), max(low[2], 0.0)
    high = np.maximum(low, high)
    names = np.full(12, name)
    v = np.concatenate([[low, high], low + rng.random((300, 12)) * (high - low)])
    sigma = elementwise(name)(torch.from_numpy(v)).numpy()
    a, b = slope_range(names, low, high)
    rise, run = sigma[1:] - sigma[:-1], v[1:] - v[:-1]
    noise = 1e-14 * (1 + abs(sigma[1:]) + abs(v[1:]))
    assert (rise * np.sign(run) >= a * abs(run) - noise).all()
    assert (rise * np.sign(run) <= b * abs(run) + noise).all()
    least, most = value_range(names, low, high)
    assert (least <= sigma).all() and (sigma <= most).all()
    s, below, t, above = lines(names, low, high)
    assert (s * v + below <= sigma + noise[0]).all() and (sigma <= t * v + above + noise[0]).all()
    assert (a >= elementwise(name).alpha).all() and (b <= elementwise(name).beta).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_slopes_of_a_short_interval_are_close_together(name):
    v = np.linspace(0.9, 2.1, 40)
    a, b = slope_range(np.full(40, name), v, v + 1e-4)
    assert (b - a < 1e-3).mean() > 0.9


CURVES = {
    "gelu": lambda x: (2 - x**2) * iv.exp(-(x**2) / 2) / iv.sqrt(2 * iv.pi),
    "silu": lambda x: _logistic(x) * _logistic(-x) * (2 - x * (_logistic(x) - _logistic(-x))),
    "mish": lambda x: _mish_bend(x),
    "gelu_tanh": lambda x: _gelu_tanh_bend(x),
    "tanhshrink": lambda x: 2 * _tanh(x) * (1 - _tanh(x) ** 2),
}


def _logistic(x):
    return 1 / (1 + iv.exp(-x))


def _tanh(x):
    return 1 - 2 / (1 + iv.exp(2 * x))


def _mish_bend(x):
    """x tanh(s), s = log(1 + eˣ): 2 t′ + x t″ with t′ = (1 − t²)σ."""
    e = iv.exp(x)
    square = (1 + e) ** 2
    t, logistic = (square - 1) / (square + 1), _logistic(x)
    first = (1 - t**2) * logistic
    return 2 * first + x * (-2 * t * first * logistic + (1 - t**2) * logistic * _logistic(-x))


def _gelu_tanh_bend(x):
    """x(1 + tanh u)/2 with u = k(x + c x³)."""
    k, c = iv.sqrt(2 / iv.pi), iv.mpf("0.044715")
    t = _tanh(k * (x + c * x**3))
    first, second = k * (1 + 3 * c * x**2), 6 * k * c * x
    return (1 - t**2) * (first + x / 2 * (second - 2 * t * first**2))


@pytest.mark.parametrize("name", CURVES)
def test_curvature_bounds_are_proven_by_interval_arithmetic(name):
    """On [−8, 8]; beyond, the tails are below 1e-6 (tanhshrink, gelu) or e⁻⁸·20."""
    bound = CURVATURE[name][0]
    todo = [(iv.mpf([k, k + 1])) for k in range(-8, 8)]
    while todo:
        x = todo.pop()
        if abs(CURVES[name](x)).b > bound:
            assert x.delta > 1e-5, (name, x)
            middle = iv.mpf(x.mid)
            todo += [iv.mpf([x.a, middle.a]), iv.mpf([middle.b, x.b])]


def test_curvature_formulas_are_second_derivatives():
    for name, curve in CURVES.items():
        for at in (-2.3, -0.4, 0.0, 0.7, 1.9):
            h, sigma = 1e-4, elementwise(name)
            v = torch.tensor([at - h, at, at + h], dtype=torch.float64)
            bend = (sigma(v)[0] - 2 * sigma(v)[1] + sigma(v)[2]) / h**2
            assert abs(float(bend) - mp.mpf(curve(iv.mpf(at)).mid)) < 1e-5


@given(SEEDS, st.sampled_from(["relu", "tanh", "leaky_relu(0.2)", "softplus", "silu", "sin"]))
@settings(max_examples=40)
def test_preactivations_stay_in_their_intervals(seed, activation):
    rng = np.random.default_rng(seed)
    system = mlp(rng, 3, 6, 5, 4, 2, activation=activation)
    if rng.random() < 0.3:
        system = system + System.linear(rng.normal(size=(2, 3)))
    region = draw_region(rng, 3)
    low, high = preactivations(system, region)
    x = inside(rng, region, 400)
    v = system.hidden(torch.from_numpy(x)).numpy() @ system.A.T + x @ system.B.T + system.b
    noise = 1e-13 * (1 + abs(v))
    assert (v >= low - noise).all() and (v <= high + noise).all()


def draw_system(rng):
    """Any acyclic wiring, mixed activations, weights of all sizes."""
    n, m = int(rng.integers(1, 9)), int(rng.integers(1, 4))
    A = np.tril(rng.normal(size=(n, n)), -1) * (rng.random((n, n)) < 0.6)
    order = rng.permutation(n)
    scale = 10.0 ** rng.uniform(-3, 3, size=n) if rng.random() < 0.3 else np.ones(n)
    A, B = A * scale[:, None] / scale, rng.normal(size=(n, m)) * scale[:, None]
    B *= rng.random((n, m)) < 0.7
    return System(
        A[np.ix_(order, order)], B[order], rng.normal(size=(2, n)), rng.normal(size=(2, m)),
        b=rng.normal(size=n) * (rng.random() < 0.8), activation=rng.choice(NAMES, size=n),
    )  # fmt: skip


def examine(seed):
    rng = np.random.default_rng(seed)
    system = draw_system(rng)
    region = draw_region(rng, system.inputs)
    low, high = preactivations(system, region)
    x = inside(rng, region, 200)
    z = system.hidden(torch.from_numpy(x)).numpy()
    v = z @ system.A.T + x @ system.B.T + system.b
    size = abs(z) @ abs(system.A).T + abs(x) @ abs(system.B).T + abs(system.b) + 1e-2
    noise = 1e-12 * size.max() * (1 + abs(system.A).max())
    assert (v >= low - noise).all() and (v <= high + noise).all()
    local = restrict(system, region)
    rise, run = z[1:] - z[:-1], v[1:] - v[:-1]
    assert (rise * np.sign(run) >= local.alpha * abs(run) - noise).all()
    assert (rise * np.sign(run) <= local.beta * abs(run) + noise).all()


@given(SEEDS)
@settings(max_examples=60)
def test_any_acyclic_system_stays_in_its_intervals_and_slopes(seed):
    examine(seed)


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=1000)
def test_any_acyclic_system_stays_in_its_intervals_and_slopes_at_length(seed):
    examine(seed)


def test_a_point_has_the_slopes_of_its_jacobian(rng):
    system, x = mlp(rng, 5, 9, 7, 3), rng.normal(size=5)
    local = restrict(system, Region.ball(x, 0.0))
    np.testing.assert_array_equal(local.alpha, local.beta)
    at = torch.from_numpy(x)
    J = torch.autograd.functional.jacobian(system, at).numpy()
    folded = fold(local)
    assert folded.system.units == 0
    assert (abs(folded.arrays["D"].mid - J) <= folded.arrays["D"].rad + 1e-13).all()
    width = np.subtract(*preactivations(system, Region.ball(x, 0.0))[::-1])
    assert (width < 1e-12).all()


@given(SEEDS)
@settings(max_examples=8)
def test_local_bounds_lie_between_jacobians_of_the_region_and_the_global_bound(seed):
    rng = np.random.default_rng(seed)
    activation = ["relu", "tanh", "leaky_relu(0.1)", "softplus"][seed % 4]
    system, region = mlp(rng, 2, 4, 3, 2, activation=activation), draw_region(rng, 2)
    local = restrict(system, region)
    assert (local.alpha >= system.alpha).all() and (local.beta <= system.beta).all()
    x = torch.from_numpy(inside(rng, region, 40))
    J = _jacobians(system, x)
    for norm in (2, np.inf):
        bound = lipschitz(local, norm, lower=False).bound
        assert np.linalg.norm(J, norm, axis=(1, 2)).max() <= bound * (1 + 1e-9)
        assert bound <= lipschitz(system, norm, lower=False).bound * (1 + 1e-5)


def _jacobians(system, x):
    return np.stack([torch.autograd.functional.jacobian(system, row).numpy() for row in x])


def test_the_local_bound_is_nearly_exact_where_few_patterns_are_reachable(rng):
    """Against every pattern met on a fine grid of a small box, each with its exact Jacobian."""
    for _ in range(4):
        system = mlp(rng, 2, 6, 2)
        centre = rng.normal(size=2)
        region = Region.box(centre - 0.2, centre + 0.2)
        axis = np.linspace(-0.2, 0.2, 120)
        x = centre + np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
        patterns = np.unique(x @ system.B.T + system.b > 0, axis=0)
        exact = max(np.linalg.norm(system.C @ np.diag(s) @ system.B, 2) for s in patterns * 1.0)
        bound = lipschitz(restrict(system, region), lower=False).bound
        assert exact <= bound * (1 + 1e-9)
        assert bound <= 1.2 * exact


@pytest.mark.parametrize("size", [1e3, 1e150, 1.7e308])
def test_a_region_that_holds_everything_changes_nothing(rng, size):
    for activation in ("relu", "softplus", "silu"):
        system = mlp(rng, 3, 5, 4, 2, activation=activation)
        local = restrict(system, Region.box(np.full(3, -size), np.full(3, size)))
        np.testing.assert_allclose(local.alpha, system.alpha, atol=1e-6)
        np.testing.assert_allclose(local.beta, system.beta, atol=1e-6)


@pytest.mark.parametrize("size", [1e-140, 1e-165, 1e-200])
def test_weights_whose_squares_underflow_keep_their_length(size):
    """Both signs are met in the ball, though the square of the weights is zero in float64."""
    region = Region.ball([0.0, 0.0], 1.0)
    for bias in (1e-5, -1e-5):
        system = System.feedforward([[[size, size]], [[1.0]]], [[bias * size], [0.0]])
        assert lipschitz(system, region=region, lower=False).bound >= 2**0.5 * size
        loop = System(
            [[0.0, 0.5], [0.5, 0.0]], np.full((2, 2), size), np.eye(2), np.zeros((2, 2)),
            b=np.full(2, bias * size),
        )  # fmt: skip
        local = restrict(loop, region)
        assert (local.alpha == 0).all() and (local.beta == 1).all()


def test_the_ball_is_tighter_than_its_box(rng):
    system, x = mlp(rng, 30, 40, 5), rng.normal(size=30)
    ball = restrict(system, Region.ball(x, 0.3))
    box = restrict(system, Region.box(x - 0.3, x + 0.3))
    assert (ball.beta - ball.alpha).sum() < (box.beta - box.alpha).sum()


def test_linear_bounds_are_tighter_than_intervals(rng):
    """A relu that undoes itself: relu(x) − relu(−x) = x, whatever intervals say."""
    system = System.feedforward(
        [[[1.0], [-1.0]], [[1.0, -1.0], [-1.0, 1.0]], [[1.0, 1.0]]], [[4.0, -4.0], [0.0, 0.0], [0]]
    )
    low, high = preactivations(system, Region.box([-1.0], [1.0]))
    np.testing.assert_allclose(low[2:], [3, -5], atol=1e-9)
    np.testing.assert_allclose(high[2:], [5, -3], atol=1e-9)


@pytest.mark.parametrize("gain", [0.25, 0.9])
@given(SEEDS)
@settings(max_examples=12)
def test_equilibria_of_the_region_stay_in_their_intervals(gain, seed):
    """The small gain is shown by the ℓ∞ condition, the other by the ℓ₂ one."""
    rng = np.random.default_rng(seed)
    n, m = 6, 2
    A = rng.normal(size=(n, n))
    A *= gain / np.linalg.norm(A, 2)
    kinds = ["relu", "tanh", "identity", "leaky_relu(0.2)"]
    system = System.equilibrium(
        A, rng.normal(size=(n, m)), rng.normal(size=(2, n)), b=rng.normal(size=n),
        activation=list(rng.choice(kinds, size=n)),
    )  # fmt: skip
    region = draw_region(rng, m)
    low, high = preactivations(system, region)
    x = inside(rng, region, 100)
    v = system.hidden(torch.from_numpy(x)).numpy() @ A.T + x @ system.B.T + system.b
    assert (v >= low - 1e-9 * (1 + abs(v))).all() and (v <= high + 1e-9 * (1 + abs(v))).all()
    if max(region.limits[1] - region.limits[0]) < 1e-3:
        assert (high - low).max() < 0.1


def test_networks_without_a_proven_equilibrium_have_no_local_bound():
    system = System.equilibrium(2 * np.eye(2), np.eye(2), np.eye(2), b=[-1.0, -1.0])
    with pytest.raises(NotWellPosed):
        restrict(system, Region.ball([-5.0, -5.0], 0.1))


@pytest.mark.parametrize(
    ("region", "text"),
    [
        (Region.box([0.4, -1.1], [0.6, -0.9]), "box of half-width 0.1 around (0.5, -1)"),
        (Region.box([0, 1], [1, 1]), "box of half-widths (0.5, 0) around (0.5, 1)"),
        (Region.box([0] * 9, [0] * 9), "box of half-width 0 around (0, 0, 0, …)"),
        (Region.ball([1 / 3] * 9, 2.5), "ball of radius 2.5 around (0.3333, 0.3333, 0.3333, …)"),
        (Region.box([-1.7e308], [1.7e308]), "box of half-width 1.7e+308 around (0)"),
    ],
)
def test_a_region_is_told_apart_by_its_text(region, text):
    assert str(region) == text and repr(region) == f"Region({text}, inputs={region.inputs})"


def test_what_cannot_be_restricted_says_so(rng):
    system = mlp(rng, 3, 4, 2)
    with pytest.raises(ShapeError, match="dimension 2"):
        restrict(system, Region.ball([0.0, 0.0], 1.0))
    for search in (lipschitz, lower_bound):
        with pytest.raises(InvalidInput, match=r"must be Region\.box"):
            search(system, region=([0.0] * 3, 1.0))
    unknown = restrict(system, Region.ball(np.zeros(3), 1.0))
    with pytest.raises(InvalidInput, match="unknown activation"):
        restrict(unknown, Region.ball(np.zeros(3), 1.0))


@given(SEEDS)
@settings(max_examples=25)
def test_folding_encloses_the_exact_map(seed):
    rng = np.random.default_rng(seed)
    system = mlp(rng, 3, 4, 4, 2) + System.linear(rng.normal(size=(2, 3)))
    alpha = rng.choice([0.0, 0.5, 1.0], size=system.units)
    beta = np.where(rng.random(system.units) < 0.5, alpha, 1.0)
    loose = System(system.A, system.B, system.C, system.D, alpha=alpha, beta=beta,
                   activation="unknown")  # fmt: skip
    folded = fold(loose)
    if folded is None:
        assert (alpha < beta).all()
        return
    free = alpha < beta
    np.testing.assert_array_equal(folded.kept, free)
    slopes = alpha + rng.random(system.units) * (beta - alpha)
    S = np.diag(slopes)
    J = loose.D + loose.C @ np.linalg.solve(np.eye(len(S)) - S @ loose.A, S @ loose.B)
    F, T = folded.system, np.diag(slopes[free])
    K = F.D + F.C @ np.linalg.solve(np.eye(len(T)) - T @ F.A, T @ F.B)
    np.testing.assert_allclose(K, J, atol=1e-12)


@given(SEEDS)
@settings(max_examples=25)
def test_folding_around_cycles_encloses_the_exact_map(seed):
    """The exact solution of the linear units in rationals lies in the balls."""
    rng = np.random.default_rng(seed)
    n, m = 4, 2
    A = rng.normal(size=(n, n))
    A *= 0.9 / np.linalg.norm(A, 2)
    fixed = np.array([True, True, bool(seed % 2), False])
    alpha = np.where(fixed, rng.choice([0.0, 1.0, 0.75], size=n), 0.0)
    beta = np.where(fixed, alpha, 1.0)
    system = System(
        A, rng.normal(size=(n, m)), rng.normal(size=(2, n)), rng.normal(size=(2, m)),
        alpha=alpha, beta=beta, activation="unknown",
    )  # fmt: skip
    folded = fold(system)
    exact = {k: sp.Matrix(np.vectorize(sp.Rational)(getattr(system, k))) for k in "ABCD"}
    L, N = list(np.flatnonzero(fixed)), list(np.flatnonzero(~fixed))
    S = sp.diag(*[sp.Rational(alpha[i]) for i in L])
    inner = sp.eye(len(L)) - S * exact["A"].extract(L, L)
    on_x = inner.LUsolve(S * exact["B"].extract(L, list(range(m))))
    on_z = inner.LUsolve(S * exact["A"].extract(L, N))
    out, outputs = exact["C"].extract([0, 1], L), [0, 1]
    expected = {
        "A": exact["A"].extract(N, N) + exact["A"].extract(N, L) * on_z,
        "B": exact["B"].extract(N, list(range(m))) + exact["A"].extract(N, L) * on_x,
        "C": exact["C"].extract(outputs, N) + out * on_z,
        "D": exact["D"] + out * on_x,
    }
    for name, truth in expected.items():
        ball = folded.arrays[name]
        assert ball.rad.max(initial=0) < 1e-13
        for (i, j), mid in np.ndenumerate(ball.mid):
            assert abs(truth[i, j] - sp.Rational(mid)) <= sp.Rational(ball.rad[i, j])


def test_linear_units_without_a_solution_are_not_folded():
    system = System(
        [[1.0, 0.0], [0.0, 0.5]], np.eye(2), np.eye(2), np.zeros((2, 2)),
        alpha=1.0, beta=1.0, activation="unknown",
    )  # fmt: skip
    assert fold(system) is None
    with pytest.raises(NotWellPosed):
        lipschitz(system, lower=False)


@pytest.mark.parametrize("loop", [0.0, 0.5])
def test_folding_encloses_what_cancels(loop):
    """b·(a·x) − fl(ab)·x is 0 in float64 and not in truth; `loop` closes a cycle elsewhere."""
    a, b = 1 / 3, 1 / 7
    A, B = np.zeros((4, 4)), np.array([[a], [-(a * b)], [0.0], [0.0]])
    A[1, 0], A[2, 3], A[3, 2] = b, loop, loop
    system = System(
        A, B, [[0.0, 1.0, 0.0, 0.0]], [[0.0]], alpha=1.0, beta=1.0, activation="unknown"
    )
    D = fold(system).arrays["D"]
    truth = sp.Rational(a) * sp.Rational(b) - sp.Rational(a * b)
    assert truth != 0
    assert abs(truth - sp.Rational(D.mid[0, 0])) <= sp.Rational(D.rad[0, 0]) < 1e-14


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu", "softplus", "leaky_relu(0.3)"])
def test_lines_are_close_to_the_function(name):
    """Between −1 and 1, no further than a triangle of the slopes' range."""
    s, below, t, above = lines(np.array([name]), np.array([-1.0]), np.array([1.0]))
    v = np.linspace(-1, 1, 50)
    assert ((t * v + above) - (s * v + below)).max() < 0.55 * 2 * elementwise(name).beta


def test_folding_encloses_with_integers():
    """Weights whose products do not fit into float64: the exact product lies in the ball."""
    a, b = 2.0**30 + 1, 2.0**30 + 3
    first = System.elementwise("identity", 1)
    chain = System.linear([[a]]) @ first @ System.linear([[b]])
    folded = fold(chain)
    D = folded.arrays["D"]
    assert isinstance(D, Ball)
    assert abs(int(D.mid[0, 0]) - (2**30 + 1) * (2**30 + 3)) <= D.rad[0, 0]
    assert D.rad[0, 0] < 1e4


@pytest.mark.parametrize("activation", ["relu", "leaky_relu(0.2)"])
def test_a_large_chain_keeps_its_linear_units_and_its_blocks(rng, monkeypatch, activation):
    sizes = (6, 30, 25, 20, 4)
    pairs = zip(sizes[1:], sizes, strict=False)
    weights = [rng.normal(size=s) / s[1] ** 0.5 for s in pairs]
    system = System.feedforward(
        weights, [0.3 * rng.normal(size=len(W)) for W in weights], activation
    )
    region = Region.box(-0.1 * np.ones(6), 0.1 * np.ones(6))
    local = restrict(system, region)
    assert 5 < (local.alpha == local.beta).sum() < system.units - 5
    folded = lipschitz(system, region=region)
    monkeypatch.setattr(layered, "MANY", 5)
    found = lipschitz(system, region=region, lower=False)
    assert found.solver == "descent"
    linear = (local.alpha == local.beta) & live_units(local)
    assert (np.array(found.multipliers)[linear] > 0).all()
    assert folded.optimum * (1 - 1e-9) <= found.bound <= 1.01 * folded.bound
    assert folded.lower <= found.bound
    assert check(found, system) is found
    with pytest.raises(CertificationError):
        check(replace(found, bound=folded.optimum * (1 - 1e-6)), system)
    # Substituted, the same multipliers prove it as well.
    monkeypatch.undo()
    assert check(found, system) is found
