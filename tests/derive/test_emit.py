"""The class that derivations/sll.py gives is a layer like the shipped ones; edges of the others."""

import keyword
from functools import partial

import numpy as np
import pytest
import sympy as sp
import torch
from derive_cases import shipped
from layer_cases import EXTREMES, put
from sympy import Identity, MatrixSymbol, ZeroMatrix

from sdplip import conditions
from sdplip.activations import Activation
from sdplip.conditions import m, n, p
from sdplip.derive import Derivation, Free, lemmas
from sdplip.derive.instances import sized
from sdplip.derive.library import files, find
from sdplip.errors import InvalidInput, NotWellPosed, ShapeError
from sdplip.layers import ROUNDING, SLLLinear

EMITTED = shipped("sll").derivation.layer("EmittedSLL")
DTYPES = {"float32": (torch.float32, ROUNDING), "float64": (torch.float64, 1e-12)}
HALVES = {"half": torch.float16, "bfloat16": torch.bfloat16}
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_extreme = pytest.mark.parametrize("extreme", EXTREMES)


def make(dtype=torch.float32, features=6, hidden=9, **options):
    torch.manual_seed(0)
    return EMITTED(features, hidden, dtype=dtype, **options)


def jacobians(layer, count=6):
    x = torch.randn(count, layer.in_features, dtype=next(layer.parameters()).dtype)
    total = torch.autograd.functional.jacobian(lambda x: layer(x).sum(dim=0), x)
    return total.movedim(1, 0).double()


# --- the SLL layer ---


@every_dtype
@every_extreme
@pytest.mark.parametrize("hidden", [1, 4, 9])
def test_jacobians_keep_the_bound(extreme, dtype, hidden):
    kind, tolerance = DTYPES[dtype]
    layer = make(kind, hidden=hidden)
    put(layer, extreme)
    norms = torch.linalg.matrix_norm(jacobians(layer), ord=2)
    assert norms.max() <= layer.lipschitz * (1 + tolerance)
    assert layer.lipschitz == 1.0


@every_dtype
@every_extreme
def test_is_the_shipped_layer_to_rounding(extreme, dtype):
    kind, tolerance = DTYPES[dtype]
    ours, theirs = make(kind), SLLLinear(6, 9, dtype=kind)
    put(ours, extreme)
    with torch.no_grad():
        theirs.weight.copy_(ours.W.mT)
        theirs.log_q.copy_(ours.log_q)
        theirs.bias.copy_(ours.bias)
    x = torch.randn(20, 6, dtype=kind)
    difference = (ours(x) - theirs(x)).abs().max()
    assert difference <= 100 * tolerance * x.abs().max()
    for name, value in theirs.witness().items():
        scale = value.abs().max()
        assert (ours.witness()[name] - value).abs().max() <= 10 * tolerance * scale, name


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("extreme", ["default", "zero", "zero row", "rank one", "duplicates"])
def test_half_precision_applies_what_lipschitz_counts(dtype, extreme):
    """The map of the weights as they are applied, with exact products."""
    layer = make().to(HALVES[dtype])
    put(layer, extreme)
    x = torch.randn(4, 6, dtype=HALVES[dtype])
    y = layer(x)
    y.sum().backward()
    assert y.dtype == HALVES[dtype]
    assert y.isfinite().all()
    s = layer.system()
    for pattern in np.random.default_rng(0).integers(0, 2, size=(20, 9)):
        K = s.D + s.C @ (pattern[:, None] * s.B)
        assert np.linalg.norm(K, 2) <= layer.lipschitz * (1 + ROUNDING)


def test_autocast_leaves_the_closed_form_alone():
    layer = make()
    x = torch.randn(3, 6)
    expected, witness = layer(x), layer.witness()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, inside = layer(x), layer.witness()
        y.sum().backward()
    assert all(torch.equal(inside[name], value) for name, value in witness.items())
    assert (y - expected).abs().max() <= 0.05 * expected.abs().max()


def test_double_and_back():
    layer = make()
    x = torch.randn(3, 6)
    expected = layer(x)
    y = layer.double()(x.double())
    assert y.dtype == torch.float64
    assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert torch.equal(layer.float()(x), expected)


@pytest.mark.parametrize("batch", [(), (0,), (1,), (2, 3)], ids=str)
def test_any_batch_shape(batch):
    assert make()(torch.randn(*batch, 6)).shape == (*batch, 6)


def test_wrong_input_is_named():
    layer = make()
    with pytest.raises(ShapeError, match=r"EmittedSLL.*in_features = 6"):
        layer(torch.zeros(3, 5))
    with pytest.raises(InvalidInput, match="floating-point"):
        layer(torch.ones(2, 6, dtype=torch.int64))
    with pytest.raises(InvalidInput, match="NaN or Inf"), torch.no_grad():
        layer.W[0, 0] = torch.nan
        _ = layer.lipschitz


# --- constants and slopes of all emitted layers ---

FOUND = [d for name in files() for d in find(name)[1] if isinstance(d, Derivation)]
WITH_CONSTANTS = {d.name: d for d in FOUND if any(f.domain == "constant" for f in d.free)}


def ends(f):
    """Numbers at and next to the ends of a constant's range."""
    for edge, inwards in ((f.low, 1), (f.high, -1)):
        for step in (0.0, 1e-300, 1e-9, 1e-3):
            yield edge + inwards * step * max(1.0, abs(edge))


@every_dtype
@pytest.mark.parametrize("name", WITH_CONSTANTS)
def test_constants_at_the_ends_of_their_range(name, dtype):
    """Refused, or the bound holds."""
    kind, tolerance = DTYPES[dtype]
    derivation = WITH_CONSTANTS[name]
    cls = derivation.layer()
    norm = 2 if derivation.norm == 2 else np.inf
    for f in derivation.free:
        for constant in ends(f) if f.domain == "constant" else ():
            torch.manual_seed(0)
            try:
                layer = cls(5, 7, 3, **{f.name: constant}, dtype=kind)
                promised, s = layer.lipschitz, layer.system()
            except (InvalidInput, NotWellPosed):
                continue
            for pattern in np.random.default_rng(0).integers(0, 2, size=(10, 7)):
                inner = np.eye(7) - pattern[:, None] * s.A
                K = s.D + s.C @ np.linalg.solve(inner, pattern[:, None] * s.B)
                # The last digits of an M-matrix close to singular.
                slack = 100 * tolerance / min(1.0, abs(1 - constant) if constant != 1 else 1.0)
                assert np.linalg.norm(K, norm) <= promised * (1 + slack) + 1e-300, constant


ABSOLUTE = Activation("abs", -1.0, 1.0, torch.abs, torch.sign, lambda v, step: v)


@pytest.mark.parametrize("name", [d.name for d in FOUND if d.family != "Linear"])
def test_activations_beyond_the_proof_are_refused(name):
    derivation = next(d for d in FOUND if d.name == name)
    cls = derivation.layer()
    system = sized(derivation, cls, (9, 5, 3)).system()
    low, high = derivation.slopes
    assert low <= system.alpha.min()
    assert system.beta.max() <= high
    if low > -1:
        with pytest.raises(InvalidInput, match="slopes"):
            sized(derivation, partial(cls, activation=ABSOLUTE), (9, 5, 3))


def narrow():
    """A valid equilibrium for slopes in [1/2, 1] that ReLU does not have: A = 5I."""
    C = MatrixSymbol("C", p, n)
    T = lemmas.spectral("T", C)
    return Derivation(
        name="narrow",
        title="narrow",
        claim="Slopes in [1/2, 1].",
        source="a test",
        condition=conditions.lipschitz,
        free=[Free(MatrixSymbol("X", n, m)), Free(C, "bounded")],
        definitions=[T],
        slopes=(0.5, 1.0),
        ansatz={
            "A": 5 * Identity(n), "B": ZeroMatrix(n, m), "D": ZeroMatrix(p, m), "rho": 1,
            "alpha": Identity(n) / 2, "beta": Identity(n), "Lam": T.symbol,
        },
        argument=lambda s: s.simplify()
        .subtract([ZeroMatrix(n, m), Identity(n)], 11 * T.symbol)
        .conclude(),
    )  # fmt: skip


def test_an_equilibrium_for_other_slopes_takes_no_relu():
    derivation = narrow()
    assert derivation.prove(quick=True).proved
    with pytest.raises(InvalidInput):
        derivation.layer()(4, 4, 4, activation="relu")


# --- names ---


@pytest.mark.parametrize("name", ["T", "H", "Lam", "x", "bias2", "torch2", "X1"])
def test_harmless_names_give_the_same_layer(name):
    layer = renamed(name).layer()(6, 4, dtype=torch.float64)
    assert torch.linalg.matrix_norm(jacobians(layer), ord=2).max() <= 1 + 1e-12


def renamed(name):
    W, q = MatrixSymbol("W", m, n), MatrixSymbol("q", n, 1)
    T = lemmas.diagonal_dominance(name, W.T * W, q)
    found = shipped("sll").derivation
    return Derivation(
        name="renamed", title="x", claim="x", source="x",
        condition=found.condition, free=found.free, definitions=[T],
        ansatz={"H": Identity(m), "G": -2 * W * T.symbol.I, "Lam": 2 * T.symbol.I, "rho": 1},
        argument=lambda s: s.simplify().drop_zeros().congruence(T.symbol / 2).conclude(),
    )  # fmt: skip


BAD = ["torch", "dominant", "ratios", "lambda", "W_ii", "diag(q)", "Wᵀ", "1T", "", "T T"]


@pytest.mark.parametrize("name", BAD)
def test_names_that_mean_something_else_are_refused_or_harmless(name):
    try:
        layer = renamed(name).layer()(6, 4, dtype=torch.float64)
    except InvalidInput:
        return
    assert not keyword.iskeyword(name)
    assert torch.linalg.matrix_norm(jacobians(layer), ord=2).max() <= 1 + 1e-12


@pytest.mark.parametrize("name", ["bias", "norm", "forward", "training", "in_features", "free"])
def test_free_symbols_that_are_attributes_are_refused_or_harmless(name):
    X = MatrixSymbol(name, p, m)
    T = lemmas.spectral("T", X)
    R = lemmas.root("R", T)
    try:
        found = Derivation(
            name="attribute", title="x", claim="x", source="x",
            condition=conditions.linear, free=[Free(X)], definitions=[T, R],
            ansatz={"D": X * R.symbol.I, "rho": 1},
            argument=lambda s: s.simplify().congruence(R.symbol).conclude(),
        )  # fmt: skip
        layer = found.layer()(5, 4, dtype=torch.float64)
    except InvalidInput:
        return
    assert torch.linalg.matrix_norm(layer.system().D, ord=2) <= 1 + 1e-12
    assert sp.sympify(layer.training).is_Boolean or isinstance(layer.training, bool)
