"""The compiled step of training against the general way of the same layers."""

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("numba")

from sdplip.equilibrium import compiled, error_bound
from sdplip.errors import NotConvergedWarning
from sdplip.layers import LBENLinear, MONLinear

INPUTS, OUTPUTS = 6, 4
announcing = sys.modules["sdplip.equilibrium.implicit"]


def trained(kind=LBENLinear, hidden=20, *, steps=2, stiff=1.0, tol=1e-5, scale=1.0, **options):
    """A layer that knows its step, and a batch: the next pass is compiled."""
    torch.manual_seed(0)
    layer = kind(INPUTS, hidden, OUTPUTS, **options).train()
    layer.tol = tol
    x = scale * torch.randn(37, INPUTS)
    with torch.no_grad():
        layer.V.mul_(stiff)
        if layer.psi is not None:
            layer.psi.normal_(std=0.5)
    for _ in range(steps):
        layer(x).sum().backward()
    layer.zero_grad()
    return layer, x


def compiled_once(y):
    return type(y.grad_fn).__name__ == "_StepBackward"


def exactly(layer, x, g, create_graph=False):
    """y and all gradients by the general way, in float64."""
    exact = copy.deepcopy(layer).double()
    exact.tol = 1e-12
    x = x.double().requires_grad_()
    y = exact(x)
    inputs = (x, *exact.parameters())
    return y, torch.autograd.grad(y, inputs, g.double(), create_graph=create_graph)


def close(found, true, tol):
    """Relative to the norm."""
    error = (found.double() - true).detach().norm()
    assert float(error) <= tol * (1e-3 + float(true.detach().norm()))


@pytest.mark.parametrize("kind", [LBENLinear, MONLinear])
@pytest.mark.parametrize("gamma", [float("inf"), 1.0, 0.1])
@pytest.mark.parametrize("hidden", [1, 17, 80, 128])
def test_outputs_and_gradients_are_those_of_the_general_way(kind, gamma, hidden):
    tol = 1e-4 if gamma == 0.1 else 1e-5  # what float32 can tell
    layer, x = trained(kind, hidden, gamma=gamma, tol=tol)
    g = torch.randn(len(x), OUTPUTS)
    x.requires_grad_()
    other, twin = copy.deepcopy(layer), x.detach().clone().requires_grad_()
    other.max_steps = 1000
    found, y = layer(x), other(twin)
    assert compiled_once(found) and not compiled_once(y)
    close(found, exactly(layer, x.detach(), g)[0], 10 * tol)
    close(found, y, 1e-5)
    found.backward(g)
    y.backward(g)
    for p, q in zip((x, *layer.parameters()), (twin, *other.parameters()), strict=True):
        close(p.grad, q.grad, 1e-4)


@pytest.mark.parametrize("options", [{"bias": False}, {"eps": 0.01}])
@pytest.mark.parametrize("batch", [1, 2, 40, 41, 300])
def test_shapes(batch, options):
    layer, _ = trained(hidden=80, **options)
    x, g = torch.randn(batch, INPUTS), torch.randn(batch, OUTPUTS)
    y = layer(x)
    assert compiled_once(y)
    y.backward(g)
    true, gradients = exactly(layer, x, g)
    close(y, true, 1e-4)
    for p, gradient in zip(layer.parameters(), gradients[1:], strict=True):
        close(p.grad, gradient, 3e-4)
    assert not compiled_once(layer(x[:0])) and not compiled_once(layer(x[0]))


def watched(layer, x, monkeypatch):
    """y and the solutions that one pass announces, forward and backward."""
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(announcing, "announce", lambda solution, *rest: seen.append(solution))
        y = layer(x)
        assert compiled_once(y)
        y.sum().backward()
    return y, seen


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    hidden=st.integers(1, 60),
    stiff=st.floats(-2, 1.5),
    drive=st.floats(-6, 6),
    tol=st.sampled_from([1e-2, 1e-4, 1e-5]),
    plain=st.booleans(),
)
def test_every_row_is_solved_and_its_bound_holds(seed, hidden, stiff, drive, tol, plain):
    kind = MONLinear if plain else LBENLinear
    layer, x = trained(kind, hidden, stiff=10**stiff, tol=tol, scale=10**drive, steps=3)
    torch.manual_seed(seed)
    x = 10**drive * torch.randn(len(x), INPUTS)
    with pytest.MonkeyPatch.context() as patch:
        seen = []
        patch.setattr(announcing, "announce", lambda solution, *rest: seen.append(solution))
        y = layer(x)
        if not compiled_once(y):  # left to the general way: no claim is made here
            return
    w = {name: value.detach().double() for name, value in layer.witness().items()}
    A, v = w["A"], (x.double() @ w["B"].T + layer.bias.detach().double())
    z = seen[0].z.double()
    residual = (z - torch.relu(z @ A.T + v)).norm(dim=1) / (1 + z.norm(dim=1))
    assert seen[0].residual.max() <= tol and residual.max() <= tol + 1e-5 * (1 + A.norm())
    exact = copy.deepcopy(layer).double().eval()
    exact.method = "newton"
    true = exact.solve(x.double()).z
    bound = error_bound(A, v, z, metric=w["Lam"])
    root = w["Lam"].sqrt()
    # The exact equilibria are of parameters in float64, A was rounded.
    slack = 1e-5 * (1 + float(A.norm())) * (1 + true.norm(dim=1))
    assert bool((((z - true) * root).norm(dim=1) <= bound + slack * root.max() * 100).all())


def test_rows_do_not_depend_on_their_neighbours():
    layer, x = trained(hidden=80, stiff=3.0, tol=1e-4)
    layer._tuning.looks.clear()
    whole = copy.deepcopy(layer)(x)
    assert compiled_once(whole)
    for rows in (slice(0, 1), slice(5, 9), slice(30, 37)):
        part = copy.deepcopy(layer)(x[rows])
        assert compiled_once(part)
        torch.testing.assert_close(part, whole[rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_row_stays_in_its_row(bad):
    layer, x = trained()
    y = copy.deepcopy(layer)(x)
    spoilt = x.clone()
    spoilt[3, 1] = bad
    with pytest.warns(NotConvergedWarning, match="1 of 37"):
        found = layer(spoilt)
    rest = torch.arange(len(x)) != 3
    assert bool(found[3].isnan().all()) and not compiled_once(found)
    torch.testing.assert_close(found[rest], y[rest], rtol=1e-4, atol=1e-5)


def test_a_bad_cotangent_is_left_to_the_general_way():
    layer, x = trained()
    layer.on_failure = "ignore"
    g = torch.randn(len(x), OUTPUTS)
    g[3] = torch.nan
    x.requires_grad_()
    layer(x).backward(g)
    other, x2 = trained()
    other.on_failure, other.max_steps = "ignore", 1000
    x2.requires_grad_()
    y = other(x2)
    assert not compiled_once(y)
    y.backward(g)
    torch.testing.assert_close(x.grad, x2.grad, rtol=1e-3, atol=1e-4, equal_nan=True)
    torch.testing.assert_close(layer.B.grad, other.B.grad, rtol=1e-3, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e10, 1e30])
def test_gradients_scale_with_the_cotangent(size):
    layer, x = trained()
    g = torch.randn(len(x), OUTPUTS)
    one = torch.autograd.grad(layer(x), layer.S, g)[0]
    other = torch.autograd.grad(layer(x), layer.S, size * g)[0]
    torch.testing.assert_close(other / size, one, rtol=1e-3, atol=1e-5)
    assert float(torch.autograd.grad(layer(x), layer.S, 0 * g)[0].abs().max()) == 0


def test_what_is_not_solved_is_left_to_the_general_way(monkeypatch):
    layer, x = trained(stiff=3.0)
    y, gradients = exactly(layer, x, torch.ones(len(x), OUTPUTS))
    monkeypatch.setattr(compiled, "MAX_STEPS", 2)
    found = layer(x)
    assert not compiled_once(found)
    close(found, y, 1e-3)
    monkeypatch.undo()
    found = layer(x)
    assert compiled_once(found)
    monkeypatch.setattr(compiled, "MAX_STEPS", 2)
    found.sum().backward()
    for p, gradient in zip(layer.parameters(), gradients[1:], strict=True):
        close(p.grad, gradient, 1e-3)


@pytest.mark.parametrize("kind", [LBENLinear, MONLinear])
def test_second_derivatives(kind):
    layer, x = trained(kind)
    g = torch.randn(len(x), OUTPUTS)
    x.requires_grad_()
    y = layer(x)
    assert compiled_once(y)
    (first,) = torch.autograd.grad(y, x, g, create_graph=True)
    first.square().sum().backward()
    true = copy.deepcopy(layer).double()
    true.zero_grad()
    true.tol, x2 = 1e-12, x.detach().double().requires_grad_()
    (first,) = torch.autograd.grad(true(x2), x2, g.double(), create_graph=True)
    first.square().sum().backward()
    for ours, theirs in zip(layer.parameters(), true.parameters(), strict=True):
        if theirs.grad is not None:
            close(ours.grad, theirs.grad, 1e-2)


def test_only_what_is_asked_for():
    layer, x = trained()
    layer.V.requires_grad_(False)
    layer.bias.requires_grad_(False)
    y = layer(x)
    assert compiled_once(y)
    y.sum().backward()
    assert layer.V.grad is None and layer.bias.grad is None and layer.S.grad is not None
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()
    y = layer(x)
    with torch.no_grad():
        layer.V.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


class Subclass(LBENLinear):
    def _drive(self, x, B):
        return super()._drive(x, 2 * B)


def test_whatever_is_special_goes_the_general_way():
    layer, x = trained()
    parameters = dict(layer.named_parameters())
    assert compiled_once(layer(x)) and not compiled_once(layer(x[None]))
    assert not compiled_once(copy.deepcopy(layer).double()(x.double()))
    assert not compiled_once(copy.deepcopy(layer).eval()(x))
    with torch.no_grad():
        assert layer(x).grad_fn is None
    with torch.autocast("cpu", torch.bfloat16):
        assert not compiled_once(layer(x))
    with FlopCounterMode(display=False) as counter:
        assert not compiled_once(layer(x))
    assert counter.get_total_flops() > 0
    torch.func.functional_call(layer, {k: 2 * p for k, p in parameters.items()}, (x,))
    one = torch.func.grad(lambda p: torch.func.functional_call(layer, p, (x,)).sum())(parameters)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.C.grad, one["C"], rtol=1e-3, atol=1e-3)
    for name, value in (
        ("method", "auto"), ("polish", True), ("gradient", 3), ("max_steps", 50),
        ("activation", "tanh"),
    ):  # fmt: skip
        other = copy.deepcopy(layer)
        setattr(other, name, value)
        assert not compiled_once(other(x)), name
    special = (
        {"feedthrough": True}, {"learn_gamma": True}, {"contraction": 0.9}, {"hidden": 129},
        {"kind": Subclass}, {"stiff": 1e3},
    )  # fmt: skip
    for options in special:
        other, x = trained(**options)
        assert not compiled_once(other(x)), options
    prune.random_unstructured(layer, "V", 0.5)
    assert not compiled_once(layer(x))


def test_a_new_step_is_kept_if_fewer_sweeps_solve_the_batch():
    changed = 0
    for stiff in (2.0, 4.0, 8.0):
        layer, x = trained(hidden=60, stiff=stiff, tol=1e-3, steps=1)
        theory = layer._tuning.step
        layer(x)
        chosen, needed = layer._tuning.step, layer._tuning.looks[False]
        layer._tuning.step = theory
        layer._tuning.looks.clear()
        assert compiled_once(layer(x))
        changed += chosen != theory
        assert needed < layer._tuning.looks[False] or chosen == theory
    assert changed


def test_a_checkpoint_finds_the_same_operations():
    layer, x = trained(steps=0)
    x.requires_grad_()
    for _ in range(3):
        y = checkpoint(layer, x, use_reentrant=False)
        y.sum().backward()
    assert not compiled_once(y)


def test_copies_pickles_and_threads():
    layer, x = trained(hidden=40)
    other = pickle.loads(pickle.dumps(layer))

    def train(one):
        one = copy.deepcopy(one)
        for _ in range(20):
            one.zero_grad()
            one(x).square().sum().backward()
            with torch.no_grad():
                for p in one.parameters():
                    p.sub_(p.grad, alpha=1e-3)
        return one.state_dict()

    alone = train(layer)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(train, [layer, other, layer, other]):
            for name, value in found.items():
                assert torch.equal(value, alone[name]), name


def test_numba_is_loaded_when_it_is_used_and_not_needed():
    code = """
import sys, torch
sys.modules["numba"] = None  # as if it were not there
from sdplip.layers import LBENLinear
layer = LBENLinear(3, 5, 2).train()
for _ in range(3):
    y = layer(torch.randn(4, 3))
    y.sum().backward()
del sys.modules["numba"]
print(type(y.grad_fn).__name__, sorted(m for m in sys.modules if m.partition(".")[0] == "numba"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["AddmmBackward0", "[]"]
