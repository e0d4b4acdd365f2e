"""An independent checker: `python checker.py CERTIFICATE MODEL.npz` proves a certified bound again.

It imports the standard library and NumPy, nothing of sdplip, and may be copied anywhere. Of the
certificate it uses the claim and the multipliers, which may be any numbers: weights and slopes are
those of the model, and the claim follows from them by what is proved here, in float64 with error
bounds, and in rational arithmetic where that fails and the network is small.

Norm 2: if λ > 0 and M(bound², λ) ≻ 0 (`condition`), solutions of z = σ(Az + Bx + b), y = Cz + Dx + c
satisfy ‖Δy‖ ≤ bound·‖Δx‖, since 2(Δz − αΔv)ᵀΛ(βΔv − Δz) ≥ 0 where σ has slopes in [α, β], and with
cycles in A there is exactly one (Fazlyab et al., NeurIPS 2019, Theorem 2; Revay et al., arXiv
2010.01732, Theorem 2). Norm inf: `measure` (Jafarpour et al., NeurIPS 2021, Theorem 3). Relied on:
IEEE 754 double precision, and that NumPy's matrix products are sums of products in some order.

One line is printed; exit code 0: proven, 1: not proven, 2: unreadable or not supported. sdplip's
own proof is `rigorous.Ball`, independent of this; tests keep the two agreeing.
"""

import hashlib
import json
import re
import sys
import zipfile
from fractions import Fraction
from math import inf, isfinite, nextafter

import numpy as np

FORMAT, LARGEST, EXACT = "sdplip certificate 2", 1 << 30, 64
FIELDS = """format bound norm multipliers proven lower optimum norm_product solver seconds inputs
    units outputs model version kind classes region solved sha256""".split()
SLOPES = {
    **dict.fromkeys("relu tanh sigmoid softplus elu softsign atan asinh".split(), (0.0, 1.0)),
    **dict.fromkeys("logsigmoid tanhshrink".split(), (0.0, 1.0)),
    **{"abs": (-1.0, 1.0), "sin": (-1.0, 1.0), "cos": (-1.0, 1.0), "identity": (1.0, 1.0)},
    **{"leaky_relu": (0.01, 1.0), "erf": (0.0, 1.1283792), "silu": (-0.09985, 1.09985)},
    **{"gelu": (-0.12891, 1.12891), "gelu_tanh": (-0.129, 1.129), "mish": (-0.11253, 1.0885)},
    **{"hardswish": (-0.5, 1.5), "hardsigmoid": (0.0, nextafter(1 / 6, 1)), "selu": (0.0, 1.7581)},
    **{"leaky_relu()": lambda s: (min(s, 1.0), max(s, 1.0)), "unknown": (inf, -inf)},
    **{"elu()": lambda s: (min(s, 0.0), max(s, 1.0)), "celu()": lambda s: (0.0, 1.0 / (s > 0))},
    **{"softplus()": lambda s: (0.0, 1.0 / (s > 0)), "softshrink()": lambda s: (0.0, 1.0 / (s >= 0))},
    **{"hardtanh()": lambda a, b: (0.0, 1.0 / (a < b))},
}
"""Of σ by name; () has parameters, as in leaky_relu(0.2); what divides by zero is refused."""
U, TINY, WIDER = 2.0**-53, 1e-290, 1 + 1e-9


class NotProvenError(Exception):
    """The claim does not follow; other exceptions say that something cannot be read."""


def need(holds, message, error=ValueError):
    if not holds:
        raise error(message)


def read_certificate(path):
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read(LARGEST)
    content = json.loads(text)
    need(isinstance(content, dict) and content.get("format") == FORMAT, f"it is no {FORMAT}")
    need({*content} == {*FIELDS}, "fields are missing, or not known")
    # One way to write it only: no second key of a name, no NaN, no number beyond float64.
    again = json.dumps(content, indent=1, allow_nan=False) + "\n"
    need(again == text, "the certificate was edited", NotProvenError)
    digest = content.pop("sha256")
    bare = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    need(hashlib.sha256(bare).hexdigest() == digest, "the certificate was edited", NotProvenError)
    numbers = [content["bound"], *content["multipliers"]]
    need(all(type(v) is float for v in numbers), "bound and multipliers must be decimals")
    need(content["kind"] == "system", f"kind {content['kind']!r} is not supported by this checker")
    need(content["norm"] in ("2", "inf"), "norm is neither 2 nor inf")
    return content


def read_model(path):
    """The arrays A B C D b c alpha beta activation, from these or from W0 b0 W1 b1 …"""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    need(sum(e.file_size for e in entries) <= LARGEST, "the model unpacks to more than 1 GiB")
    need(len({e.filename for e in entries}) == len(entries), "the model has two arrays of a name")
    with np.load(path, allow_pickle=False) as file:
        net = {name: file[name] for name in file.files}
    names = net.pop("activation", None)
    need(names is None or names.dtype.kind == "U", "activation is no text")
    for name, array in net.items():
        need(array.dtype.kind in "fiub", f"{name} has dtype {array.dtype}")
        net[name] = array.astype(np.float64)
        need(np.isfinite(net[name]).all(), f"{name} is not finite")
    low, high = net.pop("alpha", np.zeros(())), net.pop("beta", np.ones(()))
    depth = sum(name[0] == "W" for name in net)
    known = [f"{k}{i}" for i in range(depth) for k in "Wb"] or [*"ABCDbc"]
    need({*net} <= {*known}, f"the model has the arrays {', '.join(net)}")
    net = chain([net[f"W{i}"] for i in range(depth)], net) if depth else net
    size = {}
    for name, dims in {"A": "nn", "B": "nm", "C": "pn", "D": "pm"}.items():
        size |= dict(zip(dims, net[name].shape, strict=True)) if name in net else {}
    n, m, p = size.get("n", 0), size["m"], size["p"]
    for name, shape in {"A": (n, n), "B": (n, m), "C": (p, n), "D": (p, m)}.items():
        need(net.setdefault(name, np.zeros(shape)).shape == shape, f"{name} must be {shape}")
    net |= {name: np.broadcast_to(net.get(name, 0.0), k) for name, k in (("b", n), ("c", p))}
    net |= {"alpha": np.broadcast_to(low, n) * 1.0, "beta": np.broadcast_to(high, n) * 1.0}
    ends = list(zip(net["alpha"].tolist(), net["beta"].tolist(), strict=True))
    names = [guess(*end) for end in ends] if names is None else np.broadcast_to(names, n)
    net["activation"] = [str(name) for name in names]
    for name, (a, b) in zip(net["activation"], ends, strict=True):
        family, *values = re.findall(r"^\w+|[-+.\deE]+", name) if "(" in name else [name]
        rule = SLOPES[f"{family}()" if values else name]
        need(all(isfinite(float(v)) for v in values), f"{name} has no slopes")
        lowest, highest = rule(*map(float, values)) if values else rule
        need(a <= b and a <= lowest and highest <= b, f"{name} has slopes beyond [{a}, {b}]")
    return net


def chain(W, arrays):
    # Adding 0.0 turns -0.0 into 0.0, as the products do by which sdplip composes layers.
    last = {"c": arrays.get(f"b{len(W) - 1}", np.zeros(()))}
    if len(W) == 1:
        return {"B": np.zeros((0, W[0].shape[1])), "D": W[0]} | last
    start = np.cumsum([0, *(len(w) for w in W[:-1])])
    net = {"A": np.zeros((start[-1], start[-1])), "b": np.zeros(start[-1]), "c": last["c"] + 0.0}
    net |= {"B": np.zeros((start[-1], W[0].shape[1])), "C": np.zeros((len(W[-1]), start[-1]))}
    net["B"][: start[1]], net["C"][:, start[-2] :] = W[0] + 0.0, W[-1] + 0.0
    for i, (first, end) in enumerate(zip(start, start[1:], strict=False)):
        net["b"][first:end] = arrays.get(f"b{i}", 0.0) + 0.0
        if i:
            net["A"][first:end, start[i - 1] : first] = W[i] + 0.0
    return net


def guess(low, high):
    leaky = f"leaky_relu({low!r})" if high == 1 and 0 < low < 1 else "unknown"
    return "relu" if (low, high) == (0, 1) else leaky


def sha256(net):
    h = hashlib.sha256(b"sdplip system 1")
    for name in ("A", "B", "C", "D", "b", "c", "alpha", "beta"):
        array = np.ascontiguousarray(net[name], dtype="<f8")
        h.update(f"{name}{array.shape}".encode() + array.tobytes())
    h.update("\0".join(net["activation"]).encode())
    return h.hexdigest()


class Near:
    """All X with |X − mid| ≤ rad entrywise; results enclose the exact ones."""

    __array_ufunc__ = None

    def __init__(self, mid, rad=0.0):
        self.mid = np.array(mid, dtype=np.float64)
        self.rad = np.array(np.broadcast_to(rad, self.mid.shape))
        self.T = self if self.mid.ndim < 2 else property

    def __add__(self, other):
        mid = self.mid + other.mid
        return Near(mid, (self.rad + other.rad + U * abs(mid)) * WIDER)

    def __sub__(self, other):
        return self + Near(-other.mid, other.rad)

    def __mul__(self, other):
        mid = self.mid * other.mid
        rad = abs(self.mid) * other.rad + self.rad * (abs(other.mid) + other.rad)
        return Near(mid, (rad + U * abs(mid)) * WIDER + TINY)

    def __matmul__(self, other):
        x, y = abs(self.mid), abs(other.mid)
        # Zeros round nothing: only as many terms count as are in a row, and in a column.
        terms = min((x > 0).sum(-1).max(initial=0), (y > 0).sum(0).max(initial=0)) + 2
        rad = x @ (other.rad + terms * U * y) + self.rad @ (y + other.rad)
        return Near(self.mid @ other.mid, rad * WIDER + self.mid.shape[-1] * TINY)

    def __abs__(self):
        return Near(abs(self.mid), self.rad)

    def __getitem__(self, index):
        return Near(self.mid[index], self.rad[index])

    def __setitem__(self, index, value):
        self.mid[index], self.rad[index] = value.mid, value.rad

    def transpose(self):
        return Near(self.mid.T, self.rad.T)

    def above(self):
        return self.mid > self.rad


exactly = np.vectorize(Fraction, otypes=[object])
