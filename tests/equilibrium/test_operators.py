"""Block-circulant operators against the matrices that they stand for."""

import math
import warnings

import pytest
import torch
from torch import Tensor
from well_posed import F64, drive, lben

from sdplip.equilibrium import (
    Circulant,
    Dense,
    error_bound,
    implicit,
    monotonicity,
    optimal_step,
    solve,
)
from sdplip.errors import InvalidInput, NotConverged, NotConvergedWarning, ShapeError

SIZES = [(1, 1), (1, 2), (2, 1), (3, 4), (4, 3), (5, 5), (4, 6)]
METHODS = ["peaceman_rachford", "douglas_rachford", "forward_backward", "average", "newton"]


def kernel(n: int, size: tuple[int, int], *, seed: int = 0, gain: float = 0.5) -> Tensor:
    """A kernel as large as the torus, of which I - A is monotone: A = -gain·I + a small rest."""
    g = torch.Generator().manual_seed(seed)
    K = torch.randn(n, n, *size, generator=g, dtype=F64)
    K = 0.8 * K / K.flatten(2).abs().sum(-1).sum(0).max()
    K[:, :, 0, 0] -= gain * torch.eye(n, dtype=F64)
    return K


def unrolled(K: Tensor) -> Tensor:
    """(Kz)(p) = Σ_t K(t) z(p - t) by its definition, tap by tap."""
    n, _, h, w = K.shape
    A = torch.zeros(n, h, w, n, h, w, dtype=K.dtype)
    for i in range(h):
        for j in range(w):
            for a in range(h):
                for b in range(w):
                    A[:, (i + a) % h, (j + b) % w, :, i, j] += K[:, :, a, b]
    return A.reshape(n * h * w, -1)


def circulant(K: Tensor) -> Circulant:
    size = (K.shape[-2], K.shape[-1])
    return Circulant(torch.fft.rfft2(K).permute(2, 3, 0, 1), size)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_circulant_is_its_matrix(size):
    K = kernel(3, size)
    A, matrix = circulant(K), unrolled(K)
    z, v = drive(4, len(matrix)), drive(4, len(matrix), seed=2)
    torch.testing.assert_close(A.explicit().values, matrix)
    torch.testing.assert_close(A.plus(v, z), v + z @ matrix.mT)
    torch.testing.assert_close(A.adjoint().plus(v, z), v + z @ matrix)
    torch.testing.assert_close(A.affine(0.3, -2).plus(v, z), v + 0.3 * z - 2 * z @ matrix.mT)
    eye = torch.eye(len(matrix), dtype=F64)
    inverse = torch.linalg.inv(eye + 0.7 * (eye - matrix))
    torch.testing.assert_close(A.resolvent(0.7).plus(v, z), v + z @ inverse.mT)
    torch.testing.assert_close(A.cayley(0.7).plus(v, z), v - z + 2 * z @ inverse.mT)
    assert A.least_diagonal() == pytest.approx(float(matrix.diagonal().min()))
    assert float(A.largest_norm) >= float(torch.linalg.matrix_norm(matrix, ord=2)) * (1 - 1e-12)
    sums = z.abs() + v.abs() + z.abs() @ matrix.abs().mT
    assert (A.losses(z, v) > 0).all()
    assert (A.losses(z, v) <= 3 * math.sqrt(3) * torch.linalg.vector_norm(sums, dim=-1)).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_monotonicity_and_steps_are_those_of_the_matrix(size):
    K, Lam = kernel(3, size), torch.tensor([0.5, 1.0, 3.0], dtype=F64)
    A, matrix = circulant(K), unrolled(K)
    metric = Lam.repeat_interleave(math.prod(size))
    for ours, theirs in ((None, None), (Lam, metric)):
        assert monotonicity(A, ours) == pytest.approx(monotonicity(matrix, theirs))
        for method in ("forward_backward", "average"):
            expected = optimal_step(matrix, method, theirs)
            assert optimal_step(A, method, ours) == pytest.approx(expected)


def test_the_step_from_a_sample_of_frequencies_is_close_to_the_best():
    K = kernel(4, (12, 12), gain=3.0)
    A = circulant(K)
    m, L = monotonicity(A)
    assert 0.7 <= optimal_step(A, "peaceman_rachford") * (m * L) ** 0.5 <= 1.4


@pytest.mark.parametrize("name", ["relu", "tanh"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(3, 4), (4, 3)], ids=str)
def test_solutions_and_gradients_are_those_of_the_matrix(size, method, name):
    K = kernel(2, size)
    v, weight = drive(5, 2 * math.prod(size)), drive(5, 2 * math.prod(size), seed=3)
    options = {"method": method, "tol": 1e-11, "max_steps": 5000}
    found = []
    for build in (circulant, unrolled):
        k, u = K.clone().requires_grad_(), v.clone().requires_grad_()
        z = implicit(build(k), u, name, **options)
        (z * weight).sum().backward()
        found.append((z.detach(), k.grad, u.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)
    solution = solve(circulant(K), v, name, **options)
    assert solution.converged.all()
    torch.testing.assert_close(solution.z, found[1][0], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_gradcheck_and_second_derivatives(name):
    K = kernel(2, (2, 3)).requires_grad_()
    v = drive(2, 12).requires_grad_()

    def function(K, v):
        return implicit(circulant(K), v, name, tol=1e-12)

    assert torch.autograd.gradcheck(function, (K, v))
    assert torch.autograd.gradgradcheck(function, (K, v))


def test_function_transforms():
    K, v = kernel(2, (3, 3)), drive(3, 18)

    def f(K, v):
        return implicit(circulant(K), v, "tanh", tol=1e-12)

    together = f(K, v)
    torch.testing.assert_close(torch.func.vmap(lambda row: f(K, row))(v), together)
    by_K = torch.func.jacrev(f)(K, v[0])
    expected = torch.autograd.functional.jacobian(lambda K: f(K, v[0]), K)
    torch.testing.assert_close(by_K, expected)
    each = torch.func.vmap(torch.func.jacrev(f), (None, 0))(K, v)
    torch.testing.assert_close(each[0], expected)
    with pytest.raises(InvalidInput, match="Map over v alone"):
        torch.func.vmap(f, (0, None))(torch.stack([K, K]), v[0])


def test_the_gradient_uses_the_inverse_of_the_solve(monkeypatch):
    inverses = []
    inv = torch.linalg.inv_ex
    monkeypatch.setattr(torch.linalg, "inv_ex", lambda X: inverses.append(1) or inv(X))
    K = kernel(2, (3, 4)).requires_grad_()
    z = implicit(circulant(K), drive(3, 24), tol=1e-9)
    z.sum().backward()
    assert len(inverses) == 1


def test_kept_inverses_are_those_of_their_values():
    """An affine image of the operator, or other values, must not find them."""
    A = circulant(kernel(2, (3, 3))).remembering()
    z = drive(2, 18)
    first = A.cayley(0.5).plus(z, z)
    assert torch.equal(A.cayley(0.5).plus(z, z), first)
    other = A.affine(0, 0.3)
    fresh = Circulant(other.values, other.size)
    assert torch.equal(other.cayley(0.5).plus(z, z), fresh.cayley(0.5).plus(z, z))
    matrix = A.explicit().values
    eye = torch.eye(18, dtype=F64)
    adjoint = torch.linalg.inv(eye + 0.5 * (eye - matrix.mT))
    torch.testing.assert_close(A.adjoint().cayley(0.5).plus(z, z), 2 * z @ adjoint.mT)
    turned = circulant(kernel(2, (3, 3))).remembering()
    torch.testing.assert_close(turned.adjoint().cayley(0.5).plus(z, z), 2 * z @ adjoint.mT)
    torch.testing.assert_close(turned.cayley(0.5).plus(z, z), first)


def test_error_bound_of_an_operator_is_that_of_its_matrix():
    K, Lam = kernel(2, (3, 4)), torch.tensor([0.5, 2.0], dtype=F64)
    v = drive(4, 24)
    z = solve(circulant(K), v, max_steps=4, tol=1e-12).z
    metric = Lam.repeat_interleave(12)
    expected = error_bound(unrolled(K), v, z, metric=metric)
    torch.testing.assert_close(error_bound(circulant(K), v, z, metric=Lam), expected)
    exact = solve(unrolled(K), v, method="newton").z
    distance = ((z - exact).square() * metric).sum(-1).sqrt()
    assert (distance <= expected * (1 + 1e-9) + 1e-12).all()
    assert error_bound(circulant(K), v[0], z[0], metric=Lam).shape == ()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1.7e308])
def test_a_bad_row_stays_in_its_row(bad):
    K, v = kernel(2, (3, 4)), drive(6, 24)
    clean = solve(circulant(K), v)
    v[2, 5] = bad
    found = solve(circulant(K), v, fallback="newton")
    rest = [0, 1, 3, 4, 5]
    torch.testing.assert_close(found.z[rest], clean.z[rest], rtol=1e-12, atol=1e-12)
    assert found.converged.tolist() == [i != 2 for i in range(6)]
    k, u = K.clone().requires_grad_(), v.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)
        z = implicit(circulant(k), u, on_failure="ignore")
    z[rest].sum().backward()
    assert k.grad.isfinite().all()
    assert (u.grad[2] == 0).all()


def test_a_result_does_not_depend_on_its_batch():
    K = kernel(3, (4, 4), gain=5.0)
    easy, hard = drive(3, 48), drive(20, 48, scale=1e4, seed=5)
    together = solve(circulant(K), torch.cat([easy, hard]), tol=1e-5)
    for i in range(3):
        alone = solve(circulant(K), easy[i], tol=1e-5)
        torch.testing.assert_close(together.z[i], alone.z, rtol=1e-11, atol=1e-11)
        assert together.steps[i] == alone.steps


def test_lack_of_convergence_is_announced_where_newton_is_out_of_reach():
    K = kernel(1, (46, 46), gain=30.0)
    A, v = circulant(K), drive(2, 46 * 46)
    assert not A.small
    hasty = {"max_steps": 2, "step": 1e-3, "fallback": "newton"}
    assert not solve(A, v, **hasty).converged.any()
    with pytest.raises(NotConverged, match="2 of 2"):
        implicit(A, v, **hasty)
    with pytest.raises(InvalidInput, match=r"newton.*2116 units.*peaceman_rachford"):
        solve(A, v, method="newton")
    small = circulant(K[:, :, :5, :5])
    assert solve(small, drive(2, 25), **hasty).method == "peaceman_rachford+newton"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_precisions(dtype):
    K, v = kernel(3, (4, 5)), drive(4, 60).to(dtype)
    low = circulant(K.float())
    exact = solve(unrolled(K.float()).double(), v.double(), method="newton").z
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = solve(low, v)
    assert found.z.dtype == dtype
    assert found.converged.all()
    size = 1 + torch.linalg.vector_norm(exact, dim=-1)
    distance = torch.linalg.vector_norm(found.z.double() - exact, dim=-1)
    assert (distance <= (3e-5 + torch.finfo(dtype).eps) * size).all()


def test_shapes_and_kinds():
    A = circulant(kernel(2, (3, 4)))
    for shape in ((24,), (0, 24), (2, 3, 24)):
        found = solve(A, torch.ones(shape, dtype=F64))
        assert found.z.shape == shape
        assert found.converged.shape == shape[:-1]
    z = implicit(A, torch.ones(0, 24, dtype=F64, requires_grad=True))
    z.sum().backward()
    for wrong in (
        lambda: solve(A, torch.ones(2, 23, dtype=F64)),
        lambda: solve(Circulant(A.values, (3, 3)), torch.ones(2, 18, dtype=F64)),
        lambda: solve(A, torch.ones(2, 24)),
        lambda: solve(Circulant(A.values.real, A.size), torch.ones(2, 24, dtype=F64)),
        lambda: solve(A, torch.ones(2, 24, dtype=F64), metric=torch.ones(24, dtype=F64)),
    ):
        with pytest.raises(ShapeError):
            wrong()
    with pytest.raises(InvalidInput, match="NaN"):
        solve(Circulant(A.values * torch.nan, A.size), torch.ones(2, 24, dtype=F64))


def test_a_matrix_may_be_given_as_an_operator():
    A, Lam = lben(6, 1.0)
    v = drive(3, 6)
    assert torch.equal(solve(Dense(A), v, metric=Lam).z, solve(A, v, metric=Lam).z)
