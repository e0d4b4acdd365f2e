"""Files of the published code of LBEN, MON and NEMON, and what was measured of them."""

import math
import pickle

import numpy as np
import pytest
import torch

import sdplip
from sdplip import System, conditions
from sdplip.errors import InvalidInput, ShapeError
from sdplip.layers import LBENLinear, MONLinear, NEMONLinear, as_lben, load_public
from sdplip.layers.public import KINDS
from sdplip.train import data

F64 = torch.float64
N, INPUTS, OUTPUTS = 7, 5, 3
ARGUMENTS = {
    "bounded LBEN": {"gamma": 0.6, "m": 0.9},
    "early bounded LBEN": {"gamma": 2.0, "m": 0.9},
    "early bounded MON": {"gamma": 2.0, "m": 0.9},
    "LBEN": {"gamma": math.inf, "m": 0.9},
    "MON": {"gamma": math.inf, "m": 0.9},
    "NEMON": {"gamma": math.inf, "m": 0.2},
}


def published(kind, dtype=F64):
    """A random state_dict of the kind."""
    torch.manual_seed(1)
    sizes = {"U.weight": (N, INPUTS), "Wout.weight": (OUTPUTS, N), "G.weight": (OUTPUTS, N),
             "Wout.bias": (OUTPUTS,), "G.bias": (OUTPUTS,)}  # fmt: skip
    if kind not in ("MON", "NEMON"):
        sizes["B.weight"] = (N, INPUTS)
    state = {}
    for name in KINDS[kind]:
        value = torch.randn(sizes.get(name, (N, N) if "weight" in name else (N,)), dtype=dtype)
        value = value.abs() + 0.2 if name == "Lambda" else value
        state[name if name.startswith("Wout") else f"mon.linear_module.{name}"] = value
    return state


def by_definition(kind, state, gamma, m):
    """The system of the network, W by the formula in the published class."""
    e = {k.removeprefix("mon.linear_module."): v.double() for k, v in state.items()}
    eye = torch.eye(N, dtype=F64)
    if kind == "NEMON":
        T, scale = e["A.weight"], e["d"].exp()
        W = m * eye + T * scale / scale[:, None] - torch.diag(T.abs().sum(dim=1))
    elif kind == "MON":
        A, B = e["A.weight"], e["B.weight"]
        W = (1 - m) * eye - A.mT @ A + B - B.mT
    else:
        V, S = e["V.weight"], e["S.weight"]
        if kind == "LBEN":
            W = eye - torch.diag(e["psi"].exp()) @ (V.mT @ V + m * eye + S.mT - S)
        else:
            G, U = e["G.weight"], e["B.weight"]
            Lam = torch.diag(e["Lambda"]) if "Lambda" in e else eye
            if kind == "bounded LBEN":
                Lam = torch.diag((-e["psi"]).exp())
            bound = G.mT @ G / gamma + Lam @ U @ U.mT @ Lam / gamma
            if kind == "bounded LBEN":
                W = eye - Lam.inverse() @ (bound / 2 + V.mT @ V + m * eye + S.mT - S)
            else:
                W = Lam.inverse() @ (2 * Lam - bound - V.mT @ V - m * eye + S.mT - S) / 2
    drive, read = ("B", "G") if "G.weight" in e else ("U", "Wout")
    return System.equilibrium(W, e[f"{drive}.weight"], e[f"{read}.weight"], None,
                              e[f"{drive}.bias"], e[f"{read}.bias"])  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_published_map(kind, tmp_path):
    state = published(kind)
    torch.save(state, tmp_path / "weights.params")
    layer = load_public(tmp_path / "weights.params", **ARGUMENTS[kind], tol=1e-12)
    plain = "MON" in kind and kind != "NEMON"
    assert type(layer) is (NEMONLinear if kind == "NEMON" else MONLinear if plain else LBENLinear)
    system = by_definition(kind, state, **ARGUMENTS[kind])
    A = torch.from_numpy(system.A.copy())
    torch.testing.assert_close(layer.witness()["A"].detach(), A, rtol=1e-9, atol=1e-9)
    x = torch.randn(32, INPUTS, dtype=F64)
    torch.testing.assert_close(layer(x), system(x), rtol=1e-9, atol=1e-9)
    if kind != "NEMON":
        assert layer.lipschitz == ARGUMENTS[kind]["gamma"]
    else:
        assert layer.c == 0.2


@pytest.mark.parametrize("kind", ["bounded LBEN", "early bounded LBEN"])
def test_the_condition_has_the_slack_that_the_authors_left(kind):
    """Their condition's least eigenvalue is 2m, that of the early code m, beside VᵀV."""
    state = published(kind)
    state["mon.linear_module.V.weight"] = torch.zeros(N, N, dtype=F64)
    layer = load_public(state, gamma=0.6, m=0.9)
    w = {name: value.detach().numpy() for name, value in layer.witness().items()}
    M = conditions.equilibrium(**w)
    schur = M[INPUTS:, INPUTS:] - M[INPUTS:, :INPUTS] @ M[:INPUTS, INPUTS:] / w["rho"]
    slack = np.linalg.eigvalsh(schur / 0.6)[0]
    assert slack == pytest.approx(1.8 if kind == "bounded LBEN" else 0.9, rel=1e-9)


def test_files_in_float32_stay_so():
    layer = load_public(published("bounded LBEN", torch.float32), gamma=1.0, m=1.0)
    assert {p.dtype for p in layer.parameters()} == {torch.float32}
    wide = load_public(published("bounded LBEN", torch.float32), gamma=1.0, m=1.0, dtype=F64)
    x = torch.randn(8, INPUTS)
    torch.testing.assert_close(layer(x).double(), wide(x.double()), rtol=1e-3, atol=1e-4)


def test_gamma_and_m_have_no_defaults():
    """One network at another γ is another network: 2.45 % instead of 2.36 % errors, silently."""
    state = published("bounded LBEN")
    for arguments in ({}, {"gamma": 1.0}, {"m": 1.0}):
        with pytest.raises(TypeError):
            load_public(state, **arguments)


class Hostile:
    def __reduce__(self):
        return print, ("this must not run",)


def test_hostile_and_damaged_files(tmp_path, capsys):
    whole = tmp_path / "whole.pt"
    torch.save(published("MON"), whole)
    (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:500])
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Hostile()))
    torch.save({"mon": Hostile()}, tmp_path / "object.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("cut", "text", "empty", "pickle", "object", "list", "missing"):
        with pytest.raises(InvalidInput, match=rf"load_public: .*{name}\.pt"):
            load_public(tmp_path / f"{name}.pt", gamma=math.inf, m=1.0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("change", [
    ({"A.weight": None}, InvalidInput, "the entries are"),
    ({"extra": torch.ones(1)}, InvalidInput, "extra"),
    ({"A.weight": torch.ones(N, N + 1)}, ShapeError, r"A.weight has shape \(7, 8\)"),
    ({"U.weight": torch.ones(N)}, ShapeError, "U.weight"),
    ({"U.weight": torch.ones(10**6, INPUTS)}, ShapeError, "1000000"),
    ({"U.bias": torch.ones(())}, ShapeError, "U.bias"),
    ({"B.weight": torch.ones(N, N, dtype=torch.long)}, InvalidInput, "B.weight.* no dense tensor"),
    ({"B.weight": torch.eye(N).to_sparse()}, InvalidInput, "B.weight.* no dense tensor"),
    ({"B.weight": [1.0]}, InvalidInput, "B.weight.* no dense tensor"),
    ({"B.weight": torch.full((N, N), math.nan)}, InvalidInput, "B.weight contains NaN"),
    ({"A.weight": torch.full((N, N), 1e3)}, InvalidInput, "V has the norm 7000"),
], ids=lambda change: f"{next(iter(change[0]))}: {change[2]}")  # fmt: skip
def test_wrong_entries_are_named(change):
    entries, error, message = change
    state = published("MON")
    for name, value in entries.items():
        state[f"mon.linear_module.{name}"] = value
        if value is None:
            del state[f"mon.linear_module.{name}"]
    with pytest.raises(error, match=message):
        load_public(state, gamma=math.inf, m=1.0)


def test_wrong_constants_and_metrics_are_named():
    for kind, arguments, message in (
        ("bounded LBEN", {"gamma": math.inf, "m": 1.0}, "has a bound"),
        ("MON", {"gamma": 1.0, "m": 1.0}, "has none: give inf"),
        ("NEMON", {"gamma": math.nan, "m": 0.0}, "gamma = nan"),
        ("bounded LBEN", {"gamma": -1.0, "m": 1.0}, "gamma = -1"),
        ("MON", {"gamma": math.inf, "m": -1.0}, "eps = -1"),
        ("NEMON", {"gamma": math.inf, "m": 1.0}, "c = 1"),
    ):
        with pytest.raises(InvalidInput, match=message):
            load_public(published(kind), **arguments)
    state = published("bounded LBEN")
    state["mon.linear_module.psi"] = torch.full((N,), 4.5)
    with pytest.raises(InvalidInput, match=r"psi has an entry of size 4\.5"):
        load_public(state, gamma=1.0, m=1.0)
    state = published("early bounded LBEN")
    state["mon.linear_module.Lambda"][2] = -0.5
    with pytest.raises(InvalidInput, match=r"Lambda = -0\.5"):
        load_public(state, gamma=1.0, m=1.0)


@pytest.mark.slow
def test_the_trained_network_has_the_values_that_were_measured(nets_dir, data_dir):
    """[LBEN]'s network of 80 units for γ = 1, by its certificate a layer for 0.916."""
    system = System.load(nets_dir / "lben_gamma1_w80.npz")
    certificate = sdplip.lipschitz(system, lower=False)
    assert certificate.bound == pytest.approx(0.9158, abs=1e-3)
    metric = np.array(certificate.multipliers) / certificate.bound**2
    layer = as_lben(system, 1.001 * certificate.bound, metric=metric, tol=1e-8)
    images, labels = data.load("mnist", data_dir).test
    x = (data.pixels(images, F64).flatten(1) - 0.1307) / 0.3081
    with torch.no_grad():
        z = torch.cat([layer.solve(rows).z for rows in x.split(1000)])
        logits = z @ layer.C.mT + layer.out_bias
        assert (logits.argmax(dim=1) != labels).sum() == 236
        torch.testing.assert_close(logits[:100], system(x[:100]), rtol=1e-6, atol=1e-6)
        # B in an orthonormal basis of its rows.
        A, B, C = (torch.as_tensor(getattr(system, name).copy()) for name in "ABC")
        B, eye = torch.linalg.qr(B.mT)[1].mT, torch.eye(80, dtype=F64)
        largest = 0.0
        for active in (z > 0).double().split(500):
            D = active[:, :, None]
            J = C @ torch.linalg.solve(eye - D * A, D * B)
            largest = max(largest, float(torch.linalg.matrix_norm(J, ord=2).max()))
    assert 0.88 <= largest <= certificate.bound
