"""The independent checker proves what sdplip proves, alone, and nothing that was touched."""

import ast
import json
import pickle
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from both_checkers import NOT_PROVEN, PROVEN, UNREADABLE, assert_both, write
from hypothesis import given, settings
from hypothesis import strategies as st

from sdplip import System, activations, check, lipschitz
from sdplip._elementwise import PLAIN
from sdplip.verify import checker

SOURCE = Path(checker.__file__)
FILES = sorted(SOURCE.parent.glob("checker*.py"))


def small(seed, kind="feedforward", sigma="relu"):
    """A random system of 2 to 3 inputs and about 8 units."""
    rng = np.random.default_rng(seed)
    if kind == "feedforward":
        return System.feedforward(
            [rng.normal(size=s) for s in ((4, 3), (4, 4), (3, 4))], activation=sigma
        )
    if kind == "skips":
        A = np.tril(rng.normal(size=(6, 6)), -1) * 0.5
        blocks = [rng.normal(size=s) for s in ((6, 3), (2, 6), (2, 3))]
        return System(A, *blocks, activation=[sigma] * 3 + ["tanh"] * 3)
    W = rng.normal(size=(5, 5))
    A = np.eye(5) * 0.5 - W.T @ W / 5 + (W - W.T)
    return System.equilibrium(A, rng.normal(size=(5, 2)), rng.normal(size=(2, 5)))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    system = small(0)
    return write(tmp_path_factory.mktemp("files"), lipschitz(system, lower=False), system), system


# --- alone ---


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_they_are_short_files_that_need_numpy_only(path):
    text = path.read_text()
    assert len(text.splitlines()) < 300
    nodes = list(ast.walk(ast.parse(text)))
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    assert names - {*sys.stdlib_module_names} == {"numpy"}


def test_a_copy_runs_on_its_own(files, tmp_path):
    shutil.copy(SOURCE, tmp_path / "copy.py")
    command = [sys.executable, "-I", str(tmp_path / "copy.py"), *files[0]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == PROVEN and not done.stderr
    assert done.stdout.startswith("proven: |f(x) - f(x')| <= ")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["one"], ["a", "b", "c"], ["none.json", "none.npz"]])
def test_wrong_usage_is_no_proof(arguments, capsys):
    assert checker.main(arguments) == UNREADABLE
    assert len(capsys.readouterr().out.splitlines()) == 1


# --- the same as sdplip ---


@pytest.mark.parametrize("norm", [2, "inf"])
@pytest.mark.parametrize("seed", range(4))
def test_linear_units_of_cycles_are_solved_for(tmp_path, norm, seed):
    rng = np.random.default_rng(seed)
    n, linear = 6, 1 + seed
    low, high = np.zeros(n), np.ones(n)
    low[:linear] = high[:linear] = rng.choice([0.0, 1.0, -0.7, 0.5], linear)
    A, B, C = (0.15 * rng.normal(size=(n, n)), rng.normal(size=(n, 2)), rng.normal(size=(2, n)))
    system = System(A, B, C, np.zeros((2, 2)), alpha=low, beta=high, activation="unknown")
    found = lipschitz(system, norm, lower=False)
    assert not any(found.multipliers[:linear])
    assert_both(tmp_path, found, system, found.bound, PROVEN)
    assert_both(tmp_path, found, system, found.bound * (1 - 1e-6), NOT_PROVEN)


@pytest.mark.parametrize("kind", ["feedforward", "skips", "equilibrium"])
@pytest.mark.parametrize("sigma", ["relu", "leaky_relu(0.2)", "silu"])
@given(st.integers(0, 10**6))
@settings(max_examples=5)
def test_both_prove_and_refuse_the_same(tmp_path_factory, kind, sigma, seed):
    system = small(seed, kind, sigma)
    certificate = lipschitz(system, lower=False)
    folder = tmp_path_factory.mktemp("same")
    for factor, expected in ((1.0, PROVEN), (1.5, PROVEN), (1 - 1e-5, NOT_PROVEN)):
        # Just below the optimum nothing proves it; just below this bound, something might.
        assert_both(folder, certificate, system, certificate.bound * factor, expected)


@given(st.integers(0, 10**6), st.sampled_from(["feedforward", "skips"]))
@settings(max_examples=15)
def test_linf_and_class_differences(tmp_path_factory, seed, kind):
    system = small(seed, kind)
    folder = tmp_path_factory.mktemp("views")
    for norm in (2, np.inf):
        whole = lipschitz(system, norm, lower=False)
        assert checker.main(write(folder, whole, system)) == PROVEN
        # |y_0 − y_1| is at most √2‖y‖₂ and 2‖y‖∞, and so say the multipliers.
        bound, factor = whole.bound * (1.5 if norm == 2 else 2), 1 + (norm == 2)
        multipliers = tuple(factor * v for v in whole.multipliers)
        margin = replace(whole, classes=(0, 1), bound=bound, multipliers=multipliers, optimum=None)
        check(margin, system)
        assert checker.main(write(folder, margin, system)) == PROVEN
        low = replace(margin, bound=1e-3 * bound)
        assert checker.main(write(folder, low, system)) == NOT_PROVEN


def test_linear_units_are_substituted(tmp_path):
    rng = np.random.default_rng(3)
    system = small(3)
    names = ["identity", "relu"] * 4
    system = System(*(getattr(system, k) for k in "ABCDbc"), activation=names)
    certificate = lipschitz(system, lower=False)
    arguments = write(tmp_path, certificate, system)
    assert checker.main(arguments) == PROVEN
    scale = rng.uniform(1, 2, size=8) * (np.arange(8) % 2)
    other = replace(certificate, multipliers=tuple((certificate.multipliers * scale).tolist()))
    assert checker.main(write(tmp_path, replace(other, bound=1e6), system)) == PROVEN
    low = replace(certificate, bound=certificate.bound * 0.999)
    assert checker.main(write(tmp_path, low, system)) == NOT_PROVEN


def test_published_networks(nets_dir, tmp_path):
    for name in ("digits_fnn3", "lipsdp_random", "lben_gamma1_w80"):
        system = System.load(nets_dir / f"{name}.npz")
        certificate = lipschitz(system, lower=False)
        certificate.save(tmp_path / "c.json")
        assert checker.main([str(tmp_path / "c.json"), str(nets_dir / f"{name}.npz")]) == PROVEN
        low = replace(certificate, bound=certificate.bound * (1 - 1e-6), optimum=None)
        low.save(tmp_path / "c.json")
        assert checker.main([str(tmp_path / "c.json"), str(nets_dir / f"{name}.npz")]) == NOT_PROVEN


def test_it_knows_the_slopes_of_every_activation():
    for name in [*activations.ACTIVATIONS, *PLAIN]:
        sigma = activations.elementwise(name)
        assert checker.SLOPES[name] == (sigma.alpha, sigma.beta)
    for name in ("leaky_relu(0.3)", "leaky_relu(-2.0)", "elu(0.5)", "elu(2.0)", "celu(0.5)",
                 "softplus(3.0)", "softshrink(0.5)", "hardtanh(-1.0,2.0)"):  # fmt: skip
        sigma = activations.elementwise(name)
        family, _, rest = name.partition("(")
        values = map(float, rest[:-1].split(","))
        assert checker.SLOPES[f"{family}()"](*values) == (sigma.alpha, sigma.beta)


@pytest.mark.parametrize(
    "arrays",
    [
        {"W0": [[1.0, -0.0]], "b0": [-0.0]},
        {"W0": [[1.0], [-0.0]], "W1": [[2, 0]], "alpha": 0.1, "beta": 1.0},
        {"W0": [[-1.0]], "W1": [[-2.0]], "W2": [[-3.0]], "b1": [-0.0]},
        {"W0": np.ones((3, 2), np.float32), "W1": np.ones((1, 3)), "alpha": [0.0, 0.5, 0.0]},
        {"C": [[1.0, 2.0]], "B": [[1.0], [1.0]], "beta": 2.0},
        {"D": [[1.0]]},
        {"B": [[1.0]], "C": [[1.0]], "activation": "tanh", "c": [0.5]},
    ],
)
def test_it_reads_model_files_as_sdplip_does(arrays, tmp_path):
    np.savez(tmp_path / "m.npz", **arrays)
    system = System.load(tmp_path / "m.npz")
    net = checker.read_model(str(tmp_path / "m.npz"))
    assert net["sha256"] == system.digest()
    assert net["sizes"] == [system.inputs, system.units, system.outputs]
    lipschitz(system, lower=False).save(tmp_path / "c.json")
    assert checker.main([str(tmp_path / "c.json"), str(tmp_path / "m.npz")]) == PROVEN


# --- nothing that was touched ---


@given(st.integers(0, 10**9), st.integers(0, 7))
@settings(max_examples=300)
def test_every_flipped_bit_of_a_certificate_is_refused(files, tmp_path_factory, place, bit):
    (certificate, model), _ = files
    data = bytearray(Path(certificate).read_bytes())
    data[place % len(data)] ^= 1 << bit
    forged = tmp_path_factory.mktemp("bits") / "c.json"
    forged.write_bytes(data)
    assert checker.main([str(forged), model]) != PROVEN


@given(st.integers(0, 10**9), st.integers(0, 7))
@settings(max_examples=300)
def test_every_flipped_bit_of_a_model_is_refused_or_no_number_of_it(
    files, tmp_path_factory, place, bit
):
    (certificate, model), system = files
    data = bytearray(Path(model).read_bytes())
    data[place % len(data)] ^= 1 << bit
    forged = tmp_path_factory.mktemp("bits") / "m.npz"
    forged.write_bytes(data)
    if checker.main([certificate, str(forged)]) == PROVEN:
        # Some bytes of a zip archive, such as the dates, are not about its content.
        assert System.load(forged).digest() == system.digest()


@given(st.integers(0, 10**6))
@settings(max_examples=50)
def test_one_ulp_or_one_slope_in_the_model_is_refused(files, tmp_path_factory, seed):
    (certificate, _), system = files
    rng = np.random.default_rng(seed)
    names = ("A", "B", "C", "D", "b", "c", "alpha", "beta")
    arrays = {k: getattr(system, k).copy() for k in names}
    array = arrays[names[seed % 8]]
    spot = tuple(rng.integers(s) for s in array.shape)
    array[spot] = np.nextafter(array[spot], -np.inf if names[seed % 8] == "alpha" else np.inf)
    System(**arrays).save(path := tmp_path_factory.mktemp("ulp") / "m.npz")
    assert checker.main([certificate, str(path)]) == NOT_PROVEN


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(files, share, tmp_path):
    for k, name in enumerate(("c.json", "m.npz")):
        arguments = list(files[0])
        data = Path(arguments[k]).read_bytes()
        (tmp_path / name).write_bytes(data[: int(share * len(data))])
        arguments[k] = str(tmp_path / name)
        assert checker.main(arguments) != PROVEN


def edited(files, change):
    """The certificate's text after a change, with a hash that fits."""
    content = json.loads(Path(files[0][0]).read_text())
    content.pop("sha256")
    change(content)
    bare = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    content["sha256"] = checker.hashlib.sha256(bare).hexdigest()
    return json.dumps(content, indent=1) + "\n"


@pytest.mark.parametrize(
    "change",
    [
        {"bound": float("nan")},
        {"bound": float("inf")},
        {"bound": -1.0},
        {"bound": 10**400},
        {"bound": "1.0"},
        {"bound": True},
        {"norm": "1"},
        {"norm": 2},
        {"multipliers": []},
        {"multipliers": [1.0] * 7 + [float("nan")]},
        {"multipliers": [1.0] * 7 + [0.0]},
        {"multipliers": [1.0] * 7 + [-1.0]},
        {"multipliers": [[1.0] * 8]},
        {"classes": [0, 3]},
        {"classes": [0, -1]},
        {"classes": [True, 0]},
        {"classes": [0]},
        {"classes": [1, 1]},
        {"classes": {"0": 0, "1": 1}},
        {"classes": "01"},
        {"region": {"centre": [0.0, 0.0], "radius": 1.0}},
        {"region": {"centre": [0.0, 0.0, 0.0], "radius": -1.0}},
        {"region": {"centre": [0.0, 0.0, 0.0], "radius": 1}},
        {"region": {"centre": [0.0, 0.0, 0.0]}},
        {"region": {"lower": [1.0, 0.0, 0.0], "upper": [0.0, 1.0, 1.0]}},
        {"region": []},
        {"region": {}},
        {"kind": "convolution"},
        {"proven": False},
        {"proven": 1},
        {"lower": 1e6},
        {"lower": -1.0},
        {"optimum": "0"},
        {"norm_product": False},
        {"solved": -1.0},
        {"seconds": None},
        {"inputs": True},
        {"format": "sdplip certificate 1"},
        {"units": 9},
        {"model": None},
        {"more": 1},
    ],
    ids=str,
)
def test_odd_claims_with_a_fitting_hash_are_refused(files, change, tmp_path):
    (tmp_path / "c.json").write_text(edited(files, lambda content: content.update(change)))
    assert checker.main([str(tmp_path / "c.json"), files[0][1]]) != PROVEN


def test_odd_texts_are_refused(files, tmp_path):
    path, text = tmp_path / "c.json", Path(files[0][0]).read_text()
    twice = text.replace('{\n "format"', '{\n "bound": 0.1,\n "format"')
    number = text.replace('"seconds": ', '"seconds": 0')
    for odd in ("", "[]", "{}", "null", "[" * 10**5, twice, number, text.strip(), text + " "):
        path.write_text(odd)
        assert checker.main([str(path), files[0][1]]) != PROVEN
    path.write_bytes(text.encode("utf-16"))
    assert checker.main([str(path), files[0][1]]) == UNREADABLE


class Shout:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_pickles_bombs_and_nonsense_are_refused(files, tmp_path, monkeypatch, capsys):
    path, arrays = tmp_path / "m.npz", {"B": np.ones((2, 3)), "C": np.ones((1, 2))}

    def refused():
        code = checker.main([files[0][0], str(path)])
        return code == UNREADABLE and len(capsys.readouterr().out.splitlines()) == 1

    path.write_bytes(pickle.dumps(Shout()))
    assert refused()
    np.savez(path, **arrays, A=np.array([[Shout()]], dtype=object))
    assert refused()
    with monkeypatch.context() as patch:
        patch.setattr(checker, "BYTES", 1 << 20)
        np.savez_compressed(path, **arrays, A=np.zeros((1000, 1000)))
        assert path.stat().st_size < 1 << 14
        with pytest.raises(ValueError, match="unpacks to more"):
            checker.read_model(path)
    with zipfile.ZipFile(path, "w") as archive:
        header = "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999, 99999999), }"
        archive.writestr("B.npy", b"\x93NUMPY\x01\x00\x76\x00" + header.ljust(117).encode() + b"\n")
    assert refused()
    for odd in (
        {**arrays, "A": np.full((2, 2), np.nan)},
        {**arrays, "A": np.ones((2, 3))},
        {**arrays, "alpha": 2.0},
        {**arrays, "beta": 0.5, "activation": "relu"},
        {**arrays, "activation": "nonsense"},
        {**arrays, "activation": "elu(nan)"},
        {**arrays, "activation": "leaky_relu(0.2"},
        {**arrays, "B": np.ones((2, 3), dtype=complex)},
        {**arrays, "E": np.ones(2)},
        {"K0": np.ones((1, 1, 3))},
        {"K0": np.ones((1, 1, 3, 3)), "W0": np.ones((2, 3))},
        {"K0": np.ones((1, 1, 3, 3)), "size": 10**9},
        {"W0": np.ones((2, 3)), "A": np.zeros((2, 2))},
        {"W0": np.ones((2, 3)), "W2": np.ones((2, 2))},
        {"stages": np.array("[" * 10**5)},
        {"stages": np.array('{"channels": 1, "size": [2, 2], "stages": []}')},
        {"stages": np.ones(3)},
        {},
    ):
        np.savez(path, **odd)
        assert refused()


# --- its arithmetic ---


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=30)
def test_the_error_bounds_hold_against_fractions(seed, leaky):
    rng = np.random.default_rng(seed)
    n, m, p = 3, 2, 2
    R, F = rng.normal(size=(n, m + n)), rng.normal(size=(p, m + n))
    low, high = np.full(n, 0.1 * leaky), rng.uniform(0.5, 1, size=n)
    values = (R, F, low, high, rng.uniform(0.1, 2, size=n), 1.7)
    E = [np.vectorize(Fraction, otypes=[object])(v) for v in values]
    for f in (checker.condition, checker.margins):
        near, top, exact = f(*values, -1), f(*map(abs, values), 1), f(*E, -1)
        bound = 1.01 * 24 * checker.U * top + checker.TINY
        assert (abs(near - exact) <= bound).all() and (bound <= 1e-13).all()
    # The condition as it is written: the identity in Λ, block by block.
    M, (R, F, low, high, lam, bound) = checker.condition(*E, -1), E
    U = np.hstack([np.zeros((n, m), dtype=int), np.eye(n, dtype=int)])
    product = ((U - low[:, None] * R) * lam[:, None]).T.dot(high[:, None] * R - U)
    expected = np.diag([bound * bound] * m + [0] * n) - F.T.dot(F) - product - product.T
    assert not (M - expected).any()


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_substitution_encloses_the_exact_one(seed):
    """Of linear units in four levels, with weights of all sizes and many zeros, in rationals."""
    rng = np.random.default_rng(seed)
    n, m = 8, 2
    R = rng.normal(size=(n, m + n)) * 10.0 ** rng.integers(-3, 3, (n, m + n))
    R *= rng.random(R.shape) < 0.6
    R[:, m:] *= np.kron(np.tril(np.ones((4, 4)), -1), np.ones((2, 2)))
    slope, linear = rng.choice([0.0, 1.0, 0.3], n), np.sort(rng.choice(n, 5, replace=False))
    columns = np.append(np.arange(m), m + np.setdiff1d(np.arange(n), linear))
    groups = checker.levels(R[:, m:])
    substitution = checker.beside("linear", "substitution")
    E, size, most = substitution(R, slope, linear, columns, groups)
    lift = np.vectorize(Fraction, otypes=[object])
    exact = substitution(lift(R), lift(slope), linear, columns, groups)[0]
    assert (size == abs(E)).all()
    assert (abs(lift(E) - exact) <= lift(most) - lift(size)).all()
    assert (most - size <= 1e-9 * (1 + size.max())).all()
    # The rows of the units solved for, inserted: α(Az + Bx) is z.
    rest = lift(slope[linear])[:, None] * lift(R[linear]).dot(exact) - exact[m + linear]
    assert not rest.any()


def minors_positive(M):
    def det(X):
        if len(X) == 0:
            return 1
        minor = [np.delete(X[1:], j, axis=1) for j in range(len(X))]
        return sum((-1) ** j * X[0, j] * det(minor[j]) for j in range(len(X)))

    return all(det(M[:k, :k]) > 0 for k in range(1, len(M) + 1))


@given(st.lists(st.integers(-4, 4), min_size=16, max_size=16), st.integers(-2, 2))
def test_definiteness_of_small_integer_matrices(entries, shift):
    X = np.array(entries).reshape(4, 4)
    M = X.T @ X + shift * np.eye(4, dtype=int)
    exact = np.vectorize(Fraction, otypes=[object])(M) / 8
    truth = minors_positive(exact)
    assert checker.definite_exactly(exact) == truth
    assert checker.definite(M * 0.125, np.zeros((4, 4))) <= truth


@given(st.integers(0, 10**6), st.integers(2, 60), st.floats(-14, -1))
@settings(max_examples=50)
def test_definiteness_in_float64_is_on_the_safe_side_and_sharp(seed, n, exponent):
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    lowest = 10.0**exponent
    S = (Q[:, 1:] @ Q[:, 1:].T + (Q[:, 1:] @ Q[:, 1:].T).T) / 2
    zero = np.zeros((n, n))
    assert not checker.definite(S - lowest * np.eye(n), zero)
    assert checker.definite(S + lowest * np.eye(n), zero) or lowest < 1e-12
    assert not checker.definite(S + lowest * np.eye(n), zero + 1.01 * lowest)


def test_the_exact_fallback_decides_the_last_bit(tmp_path):
    """x ↦ relu(x) is 1-Lipschitz: bounds one ulp above 1 are proven, 1 itself is on the border."""
    system = System.feedforward([[[1.0]], [[1.0]]])
    certificate = replace(lipschitz(system, lower=False), multipliers=(1.0,), optimum=None)
    for bound, expected in ((1.0, NOT_PROVEN), (np.nextafter(1.0, 2), PROVEN)):
        claim = replace(certificate, bound=float(bound))
        assert checker.main(write(tmp_path, claim, system)) == expected
    net, claim = checker.read_model(str(tmp_path / "m.npz")), vars(claim) | {"norm": "2"}
    assert not checker.prove(net, claim, exact=False) and checker.prove(net, claim, exact=True)


@pytest.mark.parametrize("norm", [2, np.inf])
def test_a_network_that_ignores_its_input_has_the_bound_zero(tmp_path, norm):
    system = System.feedforward([np.zeros((3, 2)), np.ones((1, 3))])
    certificate = lipschitz(system, norm)
    assert certificate.bound == 0
    certificate.save(tmp_path / "c.json")
    system.save(tmp_path / "net.npz")
    assert checker.main([str(tmp_path / "c.json"), str(tmp_path / "net.npz")]) == 0
