"""Solves of z = σ(A z + v) against exact solutions that come from elsewhere."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import root
from torch import Tensor
from well_posed import F64, drive, lben, mon, nemon

from sdplip.activations import ACTIVATIONS, activation
from sdplip.equilibrium import (
    METHODS,
    Dense,
    announce,
    error_bound,
    implicit,
    monotonicity,
    optimal_step,
    solve,
)
from sdplip.equilibrium.problem import Problem
from sdplip.errors import InvalidInput, NotConverged, NotConvergedWarning, ShapeError

SYSTEMS = {
    "lben 0.1": lben(6, 0.1),
    "lben 1": lben(7, 1.0),
    "lben 10": lben(7, 10.0, spread=1.0),
    "mon": mon(7),
    "nemon": nemon(7),
    "nemon -1": nemon(6, c=-1.0),
    "one unit": (torch.tensor([[-3.0]], dtype=F64), torch.ones(1, dtype=F64)),
}
STEPS = 100_000


def by_enumeration(A: Tensor, v: Tensor) -> Tensor:
    """The ReLU equilibrium of one sample by trying every active set."""
    n = len(v)
    eye, found = np.eye(n), []
    a, b = A.numpy(), v.numpy()
    for active in itertools.product((False, True), repeat=n):
        on = np.array(active)
        z = np.linalg.solve(eye - np.diag(on) @ a, on * b)
        slack = 1e-11 * np.abs(b).max()
        if (z >= -slack).all() and ((a @ z + b)[~on] <= slack).all():
            found.append(z)
    assert found
    assert np.ptp(found, axis=0).max() <= 1e-8 * np.abs(b).max()
    return torch.from_numpy(found[0])


def by_continuation(A: Tensor, v: Tensor, name: str) -> Tensor:
    """The equilibrium of one sample: SciPy's root finder along the path from 0·A to A."""
    sigma, w = activation(name), v.numpy()

    def numpy_sigma(x: np.ndarray) -> np.ndarray:
        return sigma(torch.from_numpy(x)).numpy()

    def jacobian(x: np.ndarray, t: float) -> np.ndarray:
        return np.eye(len(x)) - t * A.numpy() * sigma.derivative(torch.from_numpy(x)).numpy()

    for t in np.linspace(0, 1, 60):
        # I - t A stays monotone, so w ↦ w - t A σ(w) - v has one root, which moves continuously.
        def shifted(x: np.ndarray, t: float = t) -> np.ndarray:
            return x - t * A.numpy() @ numpy_sigma(x) - v.numpy()

        w = root(shifted, w, jac=lambda x, t=t: jacobian(x, t), options={"xtol": 1e-13}).x
    assert np.abs(w - A.numpy() @ numpy_sigma(w) - v.numpy()).max() < 1e-9
    return torch.from_numpy(numpy_sigma(w))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_relu_equilibria_are_those_of_enumeration(system: str, method: str) -> None:
    A, Lam = SYSTEMS[system]
    v = drive(12, len(A))
    expected = torch.stack([by_enumeration(A, row) for row in v])
    for metric in (Lam, None):
        found = solve(A, v, method=method, metric=metric, tol=1e-11, max_steps=STEPS)
        if method != "average" and metric is not None:
            assert found.converged.all()
        good = found.converged
        assert found.method == method
        distance = torch.linalg.vector_norm(found.z - expected, dim=-1)
        assert (distance[good] <= 1e-8).all()
        # What did not converge says so, and where.
        assert (found.residual[~good] > 1e-11).all()


@pytest.mark.parametrize("name", [*ACTIVATIONS, "leaky_relu(0.3)"])
@pytest.mark.parametrize(
    "method", [m for m in METHODS if m not in ("forward_backward", "douglas_rachford")]
)
def test_every_activation_and_method_reaches_the_root(name: str, method: str) -> None:
    for A, Lam in (lben(5, 1.0), nemon(5)):
        v = drive(4, 5)
        found = solve(A, v, name, method=method, metric=Lam, tol=1e-10, max_steps=STEPS)
        assert found.converged.all()
        for z, row in zip(found.z, v, strict=True):
            expected = by_continuation(A, row, name)
            torch.testing.assert_close(z, expected, atol=1e-7, rtol=1e-7)


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 7),
    log_gamma=st.floats(-1, 1),
    spread=st.floats(0, 1.5),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
@settings(max_examples=60, deadline=None)
def test_peaceman_rachford_and_newton_on_random_networks(
    seed: int, n: int, log_gamma: float, spread: float, scale: float
) -> None:
    A, Lam = lben(n, 10**log_gamma, spread=spread, seed=seed)
    v = drive(3, n, scale=scale, seed=seed)
    expected = torch.stack([by_enumeration(A, row) for row in v])
    for method, tol in (("peaceman_rachford", 1e-9), ("newton", 1e-14)):
        found = solve(A, v, method=method, metric=Lam, tol=tol, max_steps=10_000)
        assert found.converged.all()
        size = torch.linalg.vector_norm(expected, dim=-1, keepdim=True)
        torch.testing.assert_close(found.z / (1 + size), expected / (1 + size), atol=1e-6, rtol=0)


def test_newton_is_exact_to_rounding() -> None:
    A, Lam = lben(60, 0.3, spread=1.0)
    v = drive(40, 60)
    for name in ("relu", "tanh", "softplus"):
        found = solve(A, v, name, method="newton", metric=Lam)
        exact = solve(A, v, name, method="newton", metric=Lam, tol=1e-15, z0=found.z)
        assert (found.residual <= 1e-12).all()
        torch.testing.assert_close(found.z, exact.z, atol=1e-12, rtol=1e-11)


def test_newton_does_not_cycle_where_its_plain_form_does() -> None:
    A, Lam = lben(80, 0.1, spread=2.0)
    v = drive(64, 80, scale=3.0)
    plain = torch.zeros_like(v)
    eye = torch.eye(80, dtype=F64)
    for _ in range(50):
        w = plain @ A.mT + v
        step = eye - (1 - torch.tanh(w) ** 2)[..., None] * A
        plain = plain - torch.linalg.solve(step, (plain - torch.tanh(w))[..., None])[..., 0]
    lost = ~(torch.linalg.vector_norm(plain - torch.tanh(plain @ A.mT + v), dim=-1) < 1e-6)
    assert lost.any()
    assert solve(A, v, "tanh", method="newton", metric=Lam).converged.all()


def test_a_unit_has_its_own_activation() -> None:
    A, Lam = lben(6, 3.0, eps=0.5, spread=0.5)
    names = ["relu", "tanh", "relu", "sigmoid", "leaky_relu(0.2)", "identity"]
    v = drive(9, 6)
    exact = solve(A, v, names, method="newton", metric=Lam)
    w = exact.z @ A.mT + v
    for i, name in enumerate(names):
        torch.testing.assert_close(exact.z[:, i], activation(name)(w[:, i]), atol=1e-12, rtol=0)
    for method in METHODS:
        found = solve(A, v, names, method=method, metric=Lam, tol=1e-10, max_steps=STEPS)
        assert found.converged.all()
        torch.testing.assert_close(found.z, exact.z, atol=1e-7, rtol=0)


def test_the_step_of_the_theory_beats_a_step_of_one() -> None:
    A, Lam = lben(80, 0.1)
    v = drive(64, 80)
    best = solve(A, v, metric=Lam, tol=1e-8, max_steps=STEPS)
    unit = solve(A, v, step=1.0, tol=1e-8, max_steps=STEPS)
    assert best.converged.all()
    assert unit.converged.all()
    assert 1.5 * best.steps.max() < unit.steps.max()
    m, L = monotonicity(A, Lam)
    assert optimal_step(A, "peaceman_rachford", Lam) == pytest.approx((m * L) ** -0.5)
    assert optimal_step(A, "forward_backward", Lam) < 2 * m / L**2


def test_the_average_keeps_the_rate_of_its_theorem() -> None:
    for c in (-1.0, 0.0, 0.8):
        A, _ = nemon(30, c=c)
        alpha = optimal_step(A, "average")
        assert alpha == pytest.approx(1 / (1 - float(A.diagonal().min())))
        v = drive(5, 30)
        exact = solve(A, v, method="newton").z
        metzler = A.abs() - torch.diag(A.diagonal().abs() - A.diagonal())
        eta = torch.linalg.inv(torch.eye(30, dtype=F64) - metzler).sum(1)
        mu = float((metzler @ eta / eta).max())
        first = ((0 - exact) / eta).abs().amax(-1)
        for steps in (4, 20, 60):
            z = solve(A, v, method="average", max_steps=steps, tol=1e-14).z
            bound = (1 - alpha * (1 - max(mu, 0))) ** steps * first
            assert (((z - exact) / eta).abs().amax(-1) <= bound + 1e-12).all()


def test_the_cayley_form_is_peaceman_rachford() -> None:
    A, Lam = lben(20, 0.3)
    v = drive(7, 20)
    for method in ("peaceman_rachford", "douglas_rachford"):
        cayley = solve(A, v, "relu", method=method, metric=Lam)
        general = solve(A, v, "leaky_relu(0.0)", method=method, metric=Lam)
        assert torch.equal(cayley.steps, general.steps)
        torch.testing.assert_close(cayley.z, general.z, atol=1e-12, rtol=0)


def test_monotonicity_is_that_of_its_definition() -> None:
    A, Lam = lben(9, 1.0, spread=1.0)
    m, L = monotonicity(A, Lam)
    M = torch.eye(9, dtype=F64) - A
    x = torch.randn(2000, 9, dtype=F64, generator=torch.Generator().manual_seed(0))
    Mx = x @ M.mT
    square = (Lam * x * x).sum(-1)
    assert ((Lam * x * Mx).sum(-1) >= m * square * (1 - 1e-12)).all()
    assert ((Lam * Mx * Mx).sum(-1) <= L**2 * square * (1 + 1e-12)).all()
    assert torch.linalg.eigvalsh(Lam[:, None] * M + M.mT * Lam - 2 * m * torch.diag(Lam))[0] > -1e-9
    assert torch.linalg.eigvalsh(Lam[:, None] * M + M.mT * Lam - 2.02 * m * torch.diag(Lam))[0] < 0


def test_nemon_of_500_units_is_the_equilibrium_not_one_step() -> None:
    A, Lam = nemon(500, c=0.0)
    v = drive(16, 500)
    exact = solve(A, v, method="newton", metric=Lam).z
    one_step = torch.relu(v)
    assert (torch.linalg.vector_norm(one_step - exact, dim=-1) > 0.5).all()
    for method in ("average", "peaceman_rachford"):
        found = solve(A, v, method=method, metric=Lam, tol=1e-8, max_steps=5000)
        assert found.converged.all()
        torch.testing.assert_close(found.z, exact, atol=1e-5, rtol=1e-5)
        # A tiny step changes nothing per iteration, and must not pass for that.
        collapsed = solve(A, v, method=method, step=1e-11, tol=1e-2, max_steps=50)
        assert not collapsed.converged.any()


@pytest.mark.parametrize("name", ["relu", "tanh"])
@pytest.mark.parametrize("method", METHODS)
def test_a_result_does_not_depend_on_its_batch(method: str, name: str) -> None:
    A, Lam = mon(20, m=2.0)
    easy, hard = drive(4, 20), drive(40, 20, scale=1e3, seed=5)
    hard[3, 7] = torch.inf
    options = {"method": method, "metric": Lam, "tol": 1e-4, "max_steps": 3000}
    together = solve(A, torch.cat([easy, hard]), name, **options)
    for i in range(4):
        alone = solve(A, easy[i], name, **options)
        torch.testing.assert_close(together.z[i], alone.z, atol=1e-11, rtol=1e-11)
        # Newton goes on while rounding lets it, which differs by the last bits.
        assert method == "newton" or together.steps[i] == alone.steps
    assert together.converged[:4].all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1.7e308])
def test_a_bad_row_stays_in_its_row(method: str, bad: float) -> None:
    A, Lam = lben(12, 0.5)
    v = drive(20, 12)
    clean = solve(A, v, method=method, metric=Lam, max_steps=STEPS)
    assert clean.converged.all()
    v[7] = bad
    v[9, 3] = bad
    found = solve(A, v, method=method, metric=Lam, max_steps=STEPS, fallback="newton")
    rest = [i for i in range(20) if i not in (7, 9)]
    torch.testing.assert_close(found.z[rest], clean.z[rest], atol=1e-12, rtol=1e-12)
    assert found.converged[rest].all()
    assert not found.converged[[7, 9]].any()
    assert found.z[[7, 9]].isnan().all()
    assert found.residual[[7, 9]].isnan().all()


@pytest.mark.parametrize("method", [m for m in METHODS if m != "auto"])
def test_lack_of_convergence_is_announced(method: str) -> None:
    A, Lam = lben(40, 0.1, spread=1.5)
    v = drive(10, 40, scale=30.0)
    v[3] = 0
    v[4] = torch.nan
    name = "tanh" if method == "newton" else "relu"
    found = solve(A, v, name, method=method, metric=Lam, max_steps=1, tol=1e-9)
    assert found.converged[3]
    assert found.converged.sum() == 1
    assert found.residual.nan_to_num(1.0)[[0, 1, 2, 4, 5, 6, 7, 8, 9]].min() > 1e-9
    assert found.finite.tolist() == [i != 4 for i in range(10)]
    with (
        pytest.warns(NotConvergedWarning, match="third layer: 1 of 10 .* NaN"),
        pytest.raises(NotConverged, match=r"third layer: 8 of 10 .* max_steps .* metric"),
    ):
        announce(found, "third layer")
    with pytest.warns(NotConvergedWarning) as said:
        announce(found, "third layer", "warn")
    assert [str(w.message).split(" ")[2] for w in said] == ["1", "8"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        announce(found, "third layer", "ignore")
    with pytest.raises(InvalidInput, match="on_failure"):
        announce(found, "third layer", "print")


def test_a_step_beyond_the_bound_is_not_converged_but_newton_helps() -> None:
    A, Lam = lben(20, 0.2)
    v = drive(10, 20)
    m, L = monotonicity(A, Lam)
    for steps in (200, 20_000):
        found = solve(A, v, method="forward_backward", step=1.0, metric=Lam, max_steps=steps)
        assert not found.converged.any()
        with pytest.raises(NotConverged):
            announce(found, "layer")
    saved = solve(A, v, method="forward_backward", step=1.0, max_steps=50, fallback="newton")
    assert saved.converged.all()
    assert saved.method == "forward_backward+newton"
    torch.testing.assert_close(saved.z, solve(A, v, method="newton", metric=Lam).z)
    safe = solve(A, v, method="forward_backward", step=m / L**2, max_steps=STEPS)
    assert safe.converged.all()


def test_an_ill_posed_problem_is_never_called_converged() -> None:
    # z = relu(2 z + 1) has no solution.
    A = torch.tensor([[2.0]], dtype=F64)
    for method in METHODS:
        found = solve(A, torch.ones(1, dtype=F64), method=method, fallback="newton", max_steps=100)
        assert not found.converged
        assert not found.residual <= 1e-6


def test_error_bound_holds_and_is_not_vacuous() -> None:
    A, Lam = lben(25, 0.5, spread=1.0)
    v = drive(30, 25)
    m, L = monotonicity(A, Lam)
    for name in ("relu", "tanh", "leaky_relu(0.2)"):
        exact = solve(A, v, name, method="newton", metric=Lam).z
        for steps in (2, 8, 20):
            z = solve(A, v, name, metric=Lam, max_steps=steps, tol=1e-12).z
            distance = ((z - exact).square() * Lam).sum(-1).sqrt()
            bound = error_bound(A, v, z, name, metric=Lam)
            assert (distance <= bound * (1 + 1e-9) + 1e-12).all()
            assert (bound <= (2 + L) * (1 + (1 + L) / m) * distance + 1e-10).all()
    assert error_bound(2 * torch.eye(25, dtype=F64), v, v).isinf().all()
    # One linear unit attains it: z* = v / (1 - a).
    z, one = torch.tensor([[0.0], [7.0]], dtype=F64), torch.ones(1, dtype=F64)
    tight = error_bound(0.75 * one[:, None], one, z, "identity")
    torch.testing.assert_close(tight, (z - 4.0).abs()[:, 0])


@pytest.mark.parametrize("name", [*ACTIVATIONS, "leaky_relu(0.3)"])
def test_error_bounds_are_near_the_error_down_to_rounding(name: str) -> None:
    """Within 5 times for nearly all well-conditioned rows, until rounding in float64 hides it."""
    eps, ratios = torch.finfo(F64).eps, []
    for seed, n in enumerate((3, 10, 40)):
        A, Lam = mon(n, m=3.0, seed=seed) if seed % 2 else lben(n, 3.0, eps=3.0, spread=0.2)
        m, L = monotonicity(A, Lam)
        k = m + 1 / activation(name).beta - 1
        v = drive(100, n, seed=seed)
        exact = solve(A, v, name, method="newton", metric=Lam, tol=1e-15)
        losses = exact.z.abs() + exact.z.abs() @ A.abs().mT + v.abs()
        floor = (n + 16) * eps * torch.linalg.vector_norm(losses, dim=-1) * Lam.max().sqrt() / k
        # What Newton's method finds is nearer than that, and its bound little more than that.
        assert (exact.error_bound <= 3 * floor).all()
        assert L / m < 5
        for steps in (1, 3, 9):
            found = solve(A, v, name, metric=Lam, max_steps=steps, tol=1e-16)
            distance = ((found.z - exact.z).square() * Lam).sum(-1).sqrt()
            assert (found.error_bound >= distance - floor).all()
            ratios.append((found.error_bound / distance)[distance > 10 * floor])
    ratio = torch.cat(ratios)
    assert ratio.median() <= 2.5
    assert ratio.quantile(0.95) <= 5
    assert ratio.max() <= 30


def test_a_bounded_slope_makes_the_bound_smaller_and_reaches_farther() -> None:
    """Slopes of the sigmoid are at most 1/4: I - A need not be monotone."""
    A = torch.diag(torch.tensor([3.5, -2.0], dtype=F64))
    v = drive(50, 2)
    assert monotonicity(A)[0] < 0
    z = torch.zeros_like(v)
    for _ in range(500):
        z = torch.sigmoid(z @ A.mT + v)  # contracts by 3.5 / 4
    rough = z + 0.01 * drive(50, 2, seed=5)
    bound = error_bound(A, v, rough, "sigmoid")
    distance = torch.linalg.vector_norm(rough - z, dim=-1)
    assert (distance <= bound).all() and bound.isfinite().all()
    assert error_bound(A, v, rough, ["sigmoid", "tanh"]).isinf().all()


def test_a_warm_start_is_used_and_garbage_in_it_is_not() -> None:
    A, Lam = lben(30, 0.2)
    v = drive(12, 30)
    cold = solve(A, v, metric=Lam)
    again = solve(A, v, metric=Lam, z0=cold.z)
    assert (again.steps == 0).all()
    assert torch.equal(again.z, cold.z)
    moved = solve(A, v + 0.001 * drive(12, 30, seed=9), metric=Lam, z0=cold.z)
    assert moved.steps.max() < cold.steps.max()
    dirty = cold.z.clone()
    dirty[4] = torch.nan
    found = solve(A, v, metric=Lam, z0=dirty)
    assert found.converged.all()
    torch.testing.assert_close(found.z, cold.z, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_shapes(method: str) -> None:
    A, Lam = lben(5, 1.0)
    v = drive(6, 5)
    flat = solve(A, v, method=method, metric=Lam, max_steps=STEPS)
    for shape in ((2, 3), (1, 6), (3, 1, 2)):
        found = solve(A, v.reshape(*shape, 5), method=method, metric=Lam, max_steps=STEPS)
        assert found.z.shape == (*shape, 5)
        assert found.residual.shape == found.steps.shape == found.converged.shape == shape
        torch.testing.assert_close(found.z.reshape(6, 5), flat.z, atol=1e-12, rtol=0)
    one = solve(A, v[0], method=method, metric=Lam, max_steps=STEPS)
    assert one.z.shape == (5,)
    assert one.converged.shape == ()
    for shape in ((0, 5), (3, 0, 5)):
        none = solve(A, torch.zeros(shape, dtype=F64), method=method)
        assert none.z.shape == shape
        assert none.converged.shape == shape[:-1]
        announce(none, "layer")
    empty = solve(torch.zeros(0, 0), torch.zeros(4, 0), method=method)
    assert empty.z.shape == (4, 0)
    assert empty.converged.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_precisions(dtype: torch.dtype) -> None:
    A, Lam = lben(40, 0.1, spread=1.0)
    low = A.to(torch.promote_types(dtype, torch.float32)).to(dtype)
    v = drive(16, 40).to(dtype)
    exact = solve(low.double(), v.double(), method="newton", metric=Lam).z
    for method in ("peaceman_rachford", "newton"):
        found = solve(low, v, method=method, metric=Lam)
        assert found.z.dtype == dtype
        assert found.converged.all()
        distance = torch.linalg.vector_norm(found.z.double() - exact, dim=-1)
        size = 1 + torch.linalg.vector_norm(exact, dim=-1)
        assert (distance <= (3e-5 + torch.finfo(dtype).eps) * size).all()


def test_autocast_does_not_touch_the_solve() -> None:
    A, Lam = (x.float() for x in lben(20, 0.5))
    v = drive(4, 20).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = solve(A, v, metric=Lam)
    assert torch.equal(found.z, solve(A, v, metric=Lam).z)


def test_bad_arguments_are_named() -> None:
    A, v = mon(4)[0], drive(3, 4)
    for args, message in (
        ((A[:3], v), r"A has shape \(3, 4\)"),
        ((A, v[:, :3]), r"v \(3, 3\)"),
        ((A, torch.tensor(1.0, dtype=F64)), "v"),
        ((A.float(), v), "float32"),
    ):
        with pytest.raises(ShapeError, match=message):
            solve(*args)
    with pytest.raises(ShapeError, match="3 units, but v has 4"):
        solve(A, v, ["relu", "relu", "tanh"])
    with pytest.raises(ShapeError, match="metric"):
        solve(A, v, metric=torch.ones(3))
    with pytest.raises(ShapeError, match="z0"):
        solve(A, v, z0=v[0])
    with pytest.raises(InvalidInput, match="NaN"):
        solve(A * torch.nan, v)
    with pytest.raises(InvalidInput, match="metric"):
        solve(A, v, metric=torch.tensor([1.0, 0.0, 1.0, 1.0]))
    with pytest.raises(InvalidInput, match="peaceman_rachford"):
        solve(A, v, method="picard")
    with pytest.raises(InvalidInput, match="fallback"):
        solve(A, v, fallback="hope")
    for name in ("step", "tol", "max_steps"):
        for value in (0, -1, float("nan")):
            with pytest.raises(InvalidInput, match=name):
                solve(A, v, **{name: value})
    with pytest.raises(InvalidInput, match="gelu"):
        solve(A, v, "gelu")


def test_float32_is_not_taken_at_its_word_where_it_cannot_tell() -> None:
    """With ‖A‖ in the thousands a float32 residual of 1e-3 is noise."""
    A, metric = lben(40, 0.003, seed=3)
    v = drive(16, 40, seed=4)
    solution = solve(A.float(), v.float(), tol=1e-6, metric=metric.float(), fallback="newton")
    assert float(torch.linalg.matrix_norm(A)) > 1e3
    assert bool(solution.converged.all()) and float(solution.residual.max()) <= 1e-6
    exact = solve(A.float().double(), v.float().double(), method="newton", tol=1e-12)
    torch.testing.assert_close(solution.z.double(), exact.z, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64, torch.complex128]
)
def test_what_is_not_real_floating_point_is_refused(dtype: torch.dtype) -> None:
    A, v = mon(4)[0], drive(3, 4)
    for args in ((A.to(dtype), v), (A, v.to(dtype)), (A.to(dtype), v.to(dtype))):
        for function in (solve, implicit):
            with pytest.raises(ShapeError, match=f"{dtype} .* real floating point"):
                function(*args)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1e6, 1e16, 1e200])
def test_rounding_is_no_excuse_for_a_row_that_was_not_solved(method: str, size: float) -> None:
    """Rounding relative to ‖A‖ would let z = 0 pass: only the sums of the row itself count."""
    A, v = torch.diag(torch.tensor([-size, 0.0], dtype=F64)), torch.ones(1, 2, dtype=F64)
    exact = torch.tensor([[1 / (1 + size), 1.0]], dtype=F64)
    for fallback in (None, "newton"):
        found = solve(A, v, method=method, fallback=fallback)
        distance = torch.linalg.vector_norm(found.z - exact, dim=-1)
        assert not (found.converged & ~(distance <= 2e-6)).any()
        assert not (found.converged & (found.residual > 1e-6)).any()
    # A small row is held to its own size as well.
    small = solve(A, 1e-8 * v, method=method, tol=1e-12)
    distance = torch.linalg.vector_norm(small.z - 1e-8 * exact, dim=-1)
    assert not (small.converged & ~(distance <= 1e-11)).any()
    assert solve(A, v, method="newton").converged.all()


@given(
    residual=st.floats(1e-12, 1e3),
    tol=st.floats(1e-12, 1e-2),
    log_a=st.floats(0, 200),
    log_z=st.floats(-20, 20),
)
def test_no_residual_above_the_cap_passes_for_rounding(
    residual: float, tol: float, log_a: float, log_z: float
) -> None:
    A = torch.full((1, 1), -(10**log_a), dtype=F64)
    z = torch.full((1, 1), 10**log_z, dtype=F64)
    problem = Problem(Dense(A), torch.ones(1, 1, dtype=F64), activation("relu"))
    if problem.solved(z, torch.tensor([residual], dtype=F64), tol):
        assert residual <= max(tol, 1e-6)


def test_a_tolerance_below_rounding_means_rounding_of_each_row() -> None:
    A, Lam = lben(40, 0.3, spread=1.0)
    v = drive(16, 40) * torch.logspace(-6, 6, 16, dtype=F64)[:, None]
    found = solve(A, v, method="newton", metric=Lam, tol=1e-30)
    assert found.converged.all()
    z = found.z
    sums = z.abs() + z.abs() @ A.abs().mT + v.abs()
    level = 2 * torch.finfo(F64).eps * torch.linalg.vector_norm(sums, dim=-1)
    assert (found.residual <= level / (1 + torch.linalg.vector_norm(z, dim=-1))).all()
    # The small rows are held to their own size, far below that of ‖A‖.
    assert found.residual[0] < 1e-6 * 2 * torch.finfo(F64).eps * torch.linalg.matrix_norm(A)
