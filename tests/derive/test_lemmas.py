"""Every lemma: its identities, its exact value, and its closed form in floating point."""

import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import sympy as sp
import torch
from derive_cases import located, rational
from hypothesis import given
from hypothesis import strategies as st
from sympy import Identity, MatrixSymbol, Symbol

from sdplip.derive import Derivation, Free, lemmas
from sdplip.derive.identities import LEMMAS, both_agree, verify
from sdplip.errors import DerivationError, InvalidInput, ShapeError
from sdplip.layers import closed_forms
from sdplip.lmi import LMI

n, m, k = sp.symbols("n m k", integer=True, positive=True)
W, S, X = MatrixSymbol("W", m, n), MatrixSymbol("S", n, n), MatrixSymbol("X", m, n)
Y, q = MatrixSymbol("Y", k, n), MatrixSymbol("q", n, 1)
SIZES = {n: 4, m: 3, k: 2}
DTYPES = {"float32": (torch.float32, 2e-6), "float64": (torch.float64, 1e-13)}
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


# --- what the lemmas rest on ---


@pytest.mark.parametrize("name", LEMMAS)
def test_identities_hold_by_both_engines(name):
    assert verify(name) == (True, True)


@pytest.mark.parametrize("name", [x for x in LEMMAS if LEMMAS[x].identities().pairs])
def test_wrong_identities_fail_by_both_engines(name):
    found = LEMMAS[name].identities()
    left, right = found.pairs[0]
    wrong = replace(found, pairs=((left, 2 * right), *found.pairs[1:]))
    assert both_agree(wrong) == (False, False)


# --- exact values ---

DEFINITIONS = {
    "dominance": lambda: lemmas.diagonal_dominance("T", W.T * W),
    "dominance, scaled": lambda: lemmas.diagonal_dominance("T", W.T * W, q),
    "dominance, indefinite": lambda: lemmas.diagonal_dominance("T", S, q),
    "spectral norm": lambda: lemmas.spectral("T", W),
    "Gram power 2": lambda: lemmas.gram_power("T", W.T * W),
    "Gram power 4, scaled": lambda: lemmas.gram_power("T", W.T * W, q, power=4),
    "blocks": lambda: lemmas.block_dominance("T", S, 2),
    "orthogonality": lambda: lemmas.orthogonal("T", X),
    "inverse": lambda: lemmas.inverse("T", 2 * Identity(n) + W.T * W),
}
INPUTS = {
    "random": lambda M: M,
    "zero": lambda M: 0 * M,
    "zero column": lambda M: M * sp.diag(0, *[1] * (M.cols - 1)),
    "duplicates": lambda M: M[:, [j // 2 for j in range(M.cols)]],
    "rank one": lambda M: M[:, :1] * sp.ones(1, M.cols),
    "tiny": lambda M: M / 10**20,
    "huge": lambda M: M * 10**15,
    "scales": lambda M: M * sp.diag(*[sp.Integer(10) ** (4 * j - 8) for j in range(M.cols)]),
}


def exact_values(change, seed):
    rng = random.Random(seed)
    act = INPUTS[change]
    full = act(rational(rng, 4, 4))
    return {
        "W": act(rational(rng, 3, 4)),
        "S": full + full.T if change in ("random", "zero", "tiny", "huge") else full.T * full,
        "X": act(rational(rng, 3, 4)),
        "q": rational(rng, 4, 1, 1),
    }


@pytest.mark.parametrize("change", INPUTS)
@pytest.mark.parametrize("case", DEFINITIONS)
def test_exact_values_satisfy_the_conclusion(case, change):
    d = DEFINITIONS[case]()
    for seed in range(3):
        at = exact_values(change, seed)
        arguments = [sp.Matrix(located(a, SIZES, at)) for a in d.arguments]
        at["T"] = sp.ImmutableMatrix(d.exact(*arguments))
        for conclusion in d.concludes:
            assert located(conclusion, SIZES, at).is_positive_semidefinite
        for rule in d.rules:
            assert located(rule.left, SIZES, at) == located(rule.right, SIZES, at)
        if "positive" in d.facts:
            assert at["T"].is_positive_definite
        if "diagonal" in d.facts:
            assert at["T"].is_diagonal()


@pytest.mark.parametrize(("shape", "rows", "columns"), [("tall", 4, 3), ("lying", 3, 4)])
def test_orthogonal_rules_hold_for_their_shape(shape, rows, columns):
    p = Symbol("p", integer=True, positive=True)
    d = lemmas.orthogonal("Q", MatrixSymbol("X", p, m), shape)
    value = d.exact(sp.Matrix(rational(random.Random(0), rows, columns)))
    (rule,) = d.rules
    sizes = {p: rows, m: columns}
    at = {"Q": sp.ImmutableMatrix(value)}
    assert located(rule.left, sizes, at) == located(rule.right, sizes, at)
    with pytest.raises(ShapeError):
        getattr(closed_forms, d.code)(torch.zeros(columns, rows))


def test_stacked_matrices_share_their_gram_matrix():
    P, Q = lemmas.stacked("P", "Q", X, Y)
    rng = random.Random(1)
    top, bottom = (sp.Matrix(rational(rng, rows, 4)) for rows in (3, 2))
    at = {
        "P": sp.ImmutableMatrix(P.exact(top, bottom)),
        "Q": sp.ImmutableMatrix(Q.exact(top, bottom)),
    }
    (conclusion,) = P.concludes
    assert Q.concludes == ()
    assert located(conclusion, SIZES, at).is_positive_semidefinite


def test_roots_square_to_their_matrix():
    T = lemmas.diagonal_dominance("T", W.T * W)
    R = lemmas.root("R", T)
    value = T.exact(sp.Matrix(located(W.T * W, SIZES, exact_values("random", 0))))
    root = R.exact(value)
    assert root * root == value
    assert all(x.is_rational for x in root)


def test_m_matrix_solves_its_system():
    A, r = MatrixSymbol("A", n, n), MatrixSymbol("r", n, 1)
    d = lemmas.m_matrix("z", A, r, q, Symbol("c", real=True))
    value = sp.Matrix([[-3, 1], [sp.Rational(-1, 2), 0]])
    z = d.exact(value, sp.Matrix([1, 2]), sp.ones(2, 1), sp.Rational(1, 2))
    assert all(x > 0 for x in z)
    assert [z[0] - (-3 * z[0] + z[1]), z[1] - z[0] / 2] == [1, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: lemmas.gram_power("T", S),
        lambda: lemmas.gram_power("T", W.T * W, power=3),
        lambda: lemmas.gram_power("T", W.T * W, power=0),
        lambda: lemmas.block_dominance("T", S, 0),
        lambda: lemmas.diagonal_dominance("T", W),
        lambda: lemmas.inverse("T", W.T * W),
        lambda: lemmas.inverse("T", Identity(n) + S),
        lambda: lemmas.inverse("T", Identity(n) - W.T * W),
        lambda: lemmas.root("R", lemmas.define("T", W.T * W)),
        lambda: lemmas.orthogonal("Q", X, "square"),
    ],
)
def test_what_no_lemma_covers_is_refused(wrong):
    with pytest.raises(InvalidInput):
        wrong()


def test_a_matrix_that_is_not_symmetric_is_dominated_by_nothing():
    """T − S ⪰ 0 fails for S = [[0, 10], [0, 0]], T = diag(10, 1)."""
    d = lemmas.diagonal_dominance("T", S)
    own = LMI("own", MatrixSymbol("P", n, n), "P ⪰ 0", "a test")
    with pytest.raises((InvalidInput, DerivationError)):
        Derivation(
            name="x",
            title="x",
            claim="x",
            source="x",
            condition=own,
            free=[Free(S)],
            definitions=[d],
            ansatz={"P": d.symbol - S},
        ).goals()


# --- closed forms in floating point ---


def gram(seed, change, dtype):
    torch.manual_seed(seed)
    W = torch.randn(5, 6, dtype=torch.float64)
    scales = torch.logspace(-8, 4, 6, dtype=torch.float64)
    changed = {
        "random": W,
        "zero": 0 * W,
        "zero column": W * torch.tensor([0.0, 1, 1, 1, 1, 1]),
        "duplicates": W[:, torch.arange(6) // 2],
        "rank one": W[:, :1] * torch.ones(1, 6),
        "tiny": 1e-20 * W,
        "huge": 1e15 * W,
        "scales": W * scales,
        "heavy": W * torch.distributions.StudentT(1.0).sample(W.shape),
    }[change].to(dtype)
    return changed, changed.mT @ changed


FORMS = {
    "dominant": lambda W, S, q: closed_forms.dominant(S),
    "dominant, scaled": lambda W, S, q: closed_forms.dominant(S, q),
    "gram_power 2": lambda W, S, q: closed_forms.gram_power(S),
    "gram_power 8, scaled": lambda W, S, q: closed_forms.gram_power(S, q, 8),
    "block_dominant": lambda W, S, q: closed_forms.block_dominant(S, 2),
    "spectral": lambda W, S, q: closed_forms.spectral(W),
}
CHANGES = (*INPUTS, "heavy")


@every_dtype
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("form", FORMS)
def test_closed_forms_dominate(form, change, dtype):
    """T ⪰ S in the basis where T is I, so that no row hides behind a larger one."""
    kind, tolerance = DTYPES[dtype]
    for seed in range(5):
        W, S = gram(seed, change, kind)
        q = closed_forms.ratios(3 * torch.randn(6, dtype=kind))
        T = FORMS[form](W, S, q)
        assert T.dtype == kind
        assert (T > 0).all()
        assert T.isfinite().all()
        root = T.double().sqrt()
        scaled = W.double() / root
        assert torch.linalg.matrix_norm(scaled, ord=2) ** 2 <= 1 + tolerance


@pytest.mark.parametrize("change", ["random", "duplicates", "rank one", "scales"])
@pytest.mark.parametrize(
    "case", ["dominance", "dominance, scaled", "Gram power 2", "spectral norm"]
)
def test_exact_and_floating_values_are_the_same(case, change):
    d = DEFINITIONS[case]()
    at = exact_values(change, 5)
    arguments = [sp.Matrix(located(a, SIZES, at)) for a in d.arguments]
    exact = np.array(d.exact(*arguments).diagonal().tolist(), dtype=float).ravel()
    tensors = [torch.tensor(np.array(a.tolist(), dtype=float)) for a in arguments]
    if len(tensors) == 2:
        tensors[1] = tensors[1].ravel()
    found = getattr(closed_forms, d.code)(*tensors).numpy()
    large = exact > 1e-4 * exact.max()
    np.testing.assert_allclose(found[large], exact[large], rtol=1e-4)


@given(st.integers(0, 2**16), st.floats(1, 3))
def test_dominance_is_monotone(seed, factor):
    """Larger |S| gives larger T; scaling S scales T."""
    torch.manual_seed(seed)
    S = torch.randn(5, 5, dtype=torch.float64)
    q = closed_forms.ratios(torch.randn(5, dtype=torch.float64))
    larger = S * (1 + (factor - 1) * torch.rand(5, 5, dtype=torch.float64))
    T = closed_forms.dominant(S, q)
    assert (closed_forms.dominant(larger, q) >= T * (1 - 1e-14)).all()
    torch.testing.assert_close(closed_forms.dominant(factor * S, q), factor * T)
    torch.testing.assert_close(closed_forms.dominant(-S, q), T)


@given(st.integers(0, 2**16))
def test_higher_gram_powers_are_tighter(seed):
    """λ_max(S) ≤ max T_2p ≤ max T_p ≤ max T_1, since ‖S²ᵖ‖ ≤ ‖Sᵖ‖²."""
    torch.manual_seed(seed)
    W = torch.randn(4, 6, dtype=torch.float64)
    S = W.mT @ W
    tops = [closed_forms.gram_power(S, None, p).max() for p in (1, 2, 4, 8, 16)]
    torch.testing.assert_close(tops[0], closed_forms.dominant(S).max())
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(tops))
    assert torch.linalg.matrix_norm(W, ord=2) ** 2 <= tops[-1]
    assert tops[-1] <= 6 ** (1 / 16) * torch.linalg.matrix_norm(W, ord=2) ** 2 * (1 + 1e-6)


@every_dtype
def test_gradients_are_finite(dtype):
    kind, _ = DTYPES[dtype]
    for change in CHANGES:
        W, _ = gram(0, change, kind)
        W.requires_grad_()
        q = torch.ones(6, dtype=kind)
        for form in FORMS.values():
            (gradient,) = torch.autograd.grad(form(W, W.mT @ W, q).log().sum(), W)
            assert gradient.isfinite().all(), change
