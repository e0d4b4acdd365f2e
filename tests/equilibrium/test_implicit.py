"""Implicit gradients against finite differences and against gradients through the iterations."""

import copy
import warnings

import pytest
import torch
from torch import Tensor
from well_posed import F64, drive, lben, nemon

from sdplip.activations import ACTIVATIONS, activation
from sdplip.equilibrium import METHODS, implicit, solve
from sdplip.errors import InvalidInput, NotConverged, NotConvergedWarning, ShapeError


def leaves(A: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return A.clone().requires_grad_(), v.clone().requires_grad_()


UNITS = ["tanh", "leaky_relu(0.1)", "elu"]


def unrolled(A: Tensor, v: Tensor, name: str, steps: int = 4000) -> Tensor:
    """The equilibrium by taped averaged steps: what implicit differentiation must agree with."""
    sigma, z = activation(name), torch.zeros_like(v)
    alpha = 1 / (1 - min(0.0, float(A.detach().diagonal().min())))
    for _ in range(steps):
        z = (1 - alpha) * z + alpha * sigma(z @ A.mT + v)
    return z


@pytest.mark.parametrize("name", [*ACTIVATIONS, "leaky_relu(0.4)", UNITS], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_gradcheck(name: str | list[str], method: str) -> None:
    A, Lam = lben(3, 3.0, eps=3.0, spread=0.2)
    v = drive(2, 3)
    exact = solve(A, v, name, method="newton").z
    assert (exact @ A.mT + v).abs().min() > 1e-3

    def function(A: Tensor, v: Tensor) -> Tensor:
        return implicit(A, v, name, method=method, metric=Lam, tol=1e-10, max_steps=5000)

    torch.testing.assert_close(function(A, v), exact, atol=1e-7, rtol=1e-7)
    assert torch.autograd.gradcheck(function, leaves(A, v), atol=1e-5, rtol=1e-3, fast_mode=True)


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_gradients_are_those_through_the_iterations(name: str) -> None:
    A, Lam = nemon(12)
    v = drive(5, 12).reshape(5, 1, 12)
    weight = drive(5, 12, seed=3).reshape(5, 1, 12)
    grads = []
    for function in (
        lambda A, v: implicit(A, v, name, metric=Lam, tol=1e-12),
        lambda A, v: implicit(A, v, name, method="newton"),
        lambda A, v: unrolled(A, v, name),
    ):
        inputs = leaves(A, v)
        (function(*inputs) * weight).sum().backward()
        grads.append([x.grad for x in inputs])
    for found in grads[:2]:
        for ours, expected in zip(found, grads[2], strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-8, rtol=1e-8)


def test_gradient_of_A_against_finite_differences_in_a_larger_net() -> None:
    A, Lam = lben(40, 0.3, spread=1.0)
    v, weight = drive(16, 40), drive(16, 40, seed=7)
    inputs = leaves(A, v)
    (implicit(*inputs, metric=Lam, tol=1e-11) * weight).sum().backward()
    direction = drive(40, 40, seed=8) / 40
    # Small enough that no unit crosses its kink.
    h = 1e-7
    ends = [solve(A + s * h * direction, v, method="newton").z for s in (1, -1)]
    slope = ((ends[0] - ends[1]) * weight).sum() / (2 * h)
    torch.testing.assert_close((inputs[0].grad * direction).sum(), slope, rtol=1e-5, atol=1e-6)


def test_a_parameter_behind_A_and_a_small_cotangent() -> None:
    A, Lam = lben(8, 1.0)
    v = drive(4, 8)
    scale = torch.tensor(1.0, dtype=F64, requires_grad=True)
    grads = []
    for size in (1.0, 1e-9, 1e12):
        (grad,) = torch.autograd.grad(size * implicit(scale * A, v, metric=Lam).sum(), scale)
        grads.append(grad / size)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(grads[2], grads[0], rtol=1e-12, atol=0)


def test_only_what_is_asked_for() -> None:
    A, Lam = lben(6, 1.0)
    v = drive(3, 6)
    for needs_A, needs_v in ((True, False), (False, True), (False, False)):
        a, b = A.clone().requires_grad_(needs_A), v.clone().requires_grad_(needs_v)
        z = implicit(a, b, metric=Lam)
        assert z.requires_grad == (needs_A or needs_v)
        if z.requires_grad:
            z.sum().backward()
        assert (a.grad is None) != needs_A
        assert (b.grad is None) != needs_v
    with torch.no_grad():
        assert not implicit(*leaves(A, v), metric=Lam).requires_grad


def test_shapes_empty_batches_and_single_samples() -> None:
    A, Lam = lben(6, 1.0)
    for shape in ((6,), (1, 6), (2, 3, 6), (0, 6), (3, 0, 6)):
        inputs = leaves(A, drive(6, 6).flatten()[: torch.Size(shape).numel()].reshape(shape))
        z = implicit(*inputs, metric=Lam, z0=torch.zeros(shape, dtype=F64))
        assert z.shape == shape
        z.sum().backward()
        assert inputs[0].grad.shape == (6, 6)
        assert inputs[1].grad.shape == shape
        assert inputs[0].grad.isfinite().all()
    z = implicit(torch.zeros(0, 0, requires_grad=True), torch.zeros(3, 0, requires_grad=True))
    z.sum().backward()
    with pytest.raises(ShapeError, match=r"\(6, 6\)"):
        implicit(A, drive(2, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_and_autocast(dtype: torch.dtype) -> None:
    A, Lam = (x.float() for x in lben(20, 0.5))
    weight, v = drive(9, 20, seed=2).float(), drive(9, 20).to(dtype)
    exact, low = leaves(A, v.float()), leaves(A, v)
    (implicit(*exact, metric=Lam) * weight).sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = implicit(*low, metric=Lam)
    assert z.dtype == dtype
    (z.float() * weight.to(dtype).float()).sum().backward()
    for x, y in zip(low, exact, strict=True):
        assert x.grad.dtype == x.dtype
        rounding = 4 * torch.finfo(dtype).eps + 1e-4
        assert torch.linalg.vector_norm(x.grad - y.grad) <= rounding * (
            1 + torch.linalg.vector_norm(y.grad)
        )


@pytest.mark.parametrize("name", [*ACTIVATIONS, ["relu", "tanh", "sigmoid", "softplus"]])
@pytest.mark.parametrize("method", ["peaceman_rachford", "newton"])
def test_second_derivatives(name: str | list[str], method: str) -> None:
    A, Lam = lben(4, 1.0)
    assert torch.autograd.gradgradcheck(
        lambda A, v: implicit(A, v, name, method=method, metric=Lam, tol=1e-12),
        leaves(A, drive(2, 4)),
    )


@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_function_transforms_agree_with_autograd(name: str) -> None:
    A, Lam = lben(5, 1.0)
    v, z0 = drive(3, 5), drive(3, 5, seed=6)

    def f(A: Tensor, v: Tensor) -> Tensor:
        return implicit(A, v, name, metric=Lam, tol=1e-12)

    jacrev, vmap = torch.func.jacrev, torch.func.vmap
    expected = [torch.autograd.functional.jacobian(f, (A, row)) for row in v]
    for k in (0, 1):
        each = torch.stack([jacobian[k] for jacobian in expected])
        torch.testing.assert_close(jacrev(f, k)(A, v[0]), each[0])
        torch.testing.assert_close(vmap(jacrev(f, k), (None, 0))(A, v), each)
    by_A = jacrev(lambda A: vmap(lambda row: f(A, row), 1)(v.mT))(A)
    torch.testing.assert_close(by_A, torch.stack([jacobian[0] for jacobian in expected]))
    hessian = jacrev(jacrev(lambda row: f(A, row).sum()))(v[0])
    twice = torch.autograd.functional.hessian(lambda row: f(A, row).sum(), v[0])
    torch.testing.assert_close(hessian, twice)

    nested = vmap(vmap(lambda row: f(A, row)))(v.expand(2, 3, 5))
    torch.testing.assert_close(nested, f(A, v).expand(2, 3, 5))
    started = vmap(lambda row, z: implicit(A, row, name, metric=Lam, z0=z, tol=1e-12))(v, z0)
    torch.testing.assert_close(started, f(A, v))
    with pytest.raises(InvalidInput, match=r"vmap.* Map over v alone"):
        vmap(f, (0, None))(torch.stack([A, A]), v[0])


def test_a_metric_that_depends_on_what_is_differentiated() -> None:
    A, Lam = lben(5, 1.0)
    row = drive(1, 5)[0]

    def f(scale: Tensor) -> Tensor:
        return implicit(scale * A, row, metric=scale * Lam, tol=1e-12)

    one = torch.tensor(1.0, dtype=F64)
    expected = torch.autograd.functional.jacobian(f, one)
    torch.testing.assert_close(torch.func.jacrev(f)(one), expected)


def test_a_model_that_was_trained_can_be_copied() -> None:
    A, Lam = lben(5, 1.0)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.A = torch.nn.Parameter(A)

        def forward(self, v: Tensor) -> Tensor:
            return implicit(self.A, v, metric=Lam)

    net, v = Net(), drive(3, 5)
    net(v).sum().backward()
    twin = copy.deepcopy(net)
    assert torch.equal(twin(v), net(v))


def test_failures_are_raised_warned_or_ignored() -> None:
    A, Lam = lben(30, 0.1, spread=1.0)
    v = drive(6, 30)
    hasty = {"metric": Lam, "max_steps": 2, "tol": 1e-9, "fallback": None}
    with pytest.raises(NotConverged, match="second block: 6 of 6"):
        implicit(A, v, **hasty, layer_name="second block")
    with pytest.warns(NotConvergedWarning, match="second block") as said:
        implicit(A, v, **hasty, layer_name="second block", on_failure="warn")
    assert said[0].filename == __file__, "the line of the caller, not one of ours"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        implicit(A, v, **hasty, on_failure="ignore")
        rescued = implicit(A, v, metric=Lam, max_steps=2, tol=1e-9)
    torch.testing.assert_close(rescued, solve(A, v, method="newton").z, atol=1e-8, rtol=1e-8)
    with pytest.raises(InvalidInput, match="on_failure"):
        implicit(A, v, on_failure="shrug")


def test_an_unconverged_adjoint_is_announced() -> None:
    A, Lam = lben(30, 0.1, spread=1.0)
    inputs = leaves(A, drive(6, 30))
    z0 = solve(*inputs, method="newton").z
    hasty = {"metric": Lam, "max_steps": 2, "tol": 1e-9, "fallback": None, "z0": z0}
    z = implicit(*inputs, **hasty)
    with pytest.raises(NotConverged, match=r"equilibrium \(gradient\): 6 of 6"):
        z.sum().backward()
    z = implicit(*inputs, **hasty, on_failure="warn")
    with pytest.warns(NotConvergedWarning, match="gradient"):
        z.sum().backward()


@pytest.mark.parametrize("name", ["relu", "tanh"])
@pytest.mark.parametrize("method", ["auto", "average+anderson", "newton", "adaptive"])
def test_a_bad_row_does_not_poison_the_gradients(name: str, method: str) -> None:
    A, Lam = lben(10, 3.0, eps=1.0, spread=0.3)
    v, weight = drive(8, 10), drive(8, 10, seed=4)
    options = {"metric": Lam, "method": method, "max_steps": 5000}
    rest = [i for i in range(8) if i != 5]
    clean = leaves(A, v[rest])
    (implicit(*clean, name, **options) * weight[rest]).sum().backward()

    v[5, 2] = torch.nan
    for on_failure in ("raise", "warn", "ignore"):
        dirty = leaves(A, v)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            z = implicit(*dirty, name, **options, on_failure=on_failure)
            (z * weight).sum().backward()
        expected = [] if on_failure == "ignore" else ["equilibrium: 1 of 8 samples have an input"]
        assert [str(w.message).split(" with ")[0] for w in said] == expected
        assert z[5].isnan().all()
        assert dirty[1].grad[5].isnan().all()
        torch.testing.assert_close(dirty[1].grad[rest], clean[1].grad, atol=1e-10, rtol=0)
        torch.testing.assert_close(dirty[0].grad, clean[0].grad, atol=1e-10, rtol=0)

    masked = leaves(A, v)
    (implicit(*masked, name, **options, on_failure="ignore")[rest] * weight[rest]).sum().backward()
    assert (masked[1].grad[5] == 0).all()
    torch.testing.assert_close(masked[0].grad, clean[0].grad, atol=1e-10, rtol=0)


def test_a_bad_row_does_not_hide_an_unconverged_one() -> None:
    A, Lam = lben(30, 0.1, spread=1.0)
    v = drive(6, 30)
    v[2, 0] = torch.inf
    with (
        pytest.warns(NotConvergedWarning, match="1 of 6 samples have an input with NaN or Inf"),
        pytest.raises(NotConverged, match="5 of 6"),
    ):
        implicit(A, v, metric=Lam, max_steps=2, tol=1e-9, fallback=None)


def test_a_bad_row_does_not_poison_second_derivatives() -> None:
    A, Lam = lben(6, 1.0)
    v, rest = drive(4, 6), [0, 1, 3]
    clean, seconds = leaves(A, v[rest]), []
    v[2, 1] = torch.nan
    dirty = leaves(A, v)
    for inputs, rows in ((clean, [0, 1, 2]), (dirty, rest)):
        z = implicit(*inputs, "tanh", metric=Lam, tol=1e-12, on_failure="ignore")
        (grad,) = torch.autograd.grad(z[rows].square().sum(), inputs[1], create_graph=True)
        grad.square().sum().backward()
        seconds.append((inputs[0].grad, inputs[1].grad[rows]))
    torch.testing.assert_close(seconds[1], seconds[0])


def test_a_bad_cotangent_does_not_poison_the_gradients() -> None:
    A, Lam = lben(10, 0.5)
    v, g = drive(8, 10), drive(8, 10, seed=4)
    clean = leaves(A, v)
    rest = [i for i in range(8) if i != 5]
    implicit(*clean, metric=Lam)[rest].backward(g[rest])
    g[5, 1] = torch.inf
    dirty = leaves(A, v)
    implicit(*dirty, metric=Lam, on_failure="ignore").backward(g)
    assert dirty[1].grad[5].isnan().all()
    torch.testing.assert_close(dirty[0].grad, clean[0].grad, atol=1e-12, rtol=0)
    z = implicit(*dirty, metric=Lam)
    with pytest.raises(NotConverged, match="gradient"):
        z.backward(g)
