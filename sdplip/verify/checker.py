"""An independent checker: `python checker.py CERTIFICATE MODEL.npz` proves a certified bound again.

It needs the standard library and NumPy, nothing of sdplip, and may be copied anywhere, with the
checker_*.py beside it for files of layers, linear units, wide levels, convolutions and regions. It
uses the claim and the multipliers, which may be any numbers: weights and slopes are the model's,
and what is proved here, in float64 with error bounds or, for a small network, in rational
arithmetic, implies the claim. Norm 2: if λ > 0 and M ≻ 0 (`condition`), all solutions of
z = σ(Az + Bx + b), y = Cz + Dx + c satisfy ‖Δy‖ ≤ bound·‖Δx‖, as (Δz − αΔv)ᵀΛ(βΔv − Δz) ≥ 0 for σ
with slopes in [α, β], and with cycles in A there is exactly one (Fazlyab et al., NeurIPS 2019,
Theorem 2; Revay et al., arXiv 2010.01732, Theorem 2). Norm inf: all `margins` > 0 (Jafarpour et
al., NeurIPS 2021, Theorem 3). Relied on: IEEE 754 double precision, matrix products that are sums
of products in some order. sdplip's proof is other code. Exit code 0: proven, 1: not, 2: bad file.
"""

# mypy: ignore-errors
import hashlib
import json
import sys
from fractions import Fraction
from math import inf, isfinite, nextafter
from pathlib import Path
from runpy import run_path

import numpy as np

FORMAT = "sdplip certificate 2"
FIELDS = "format bound norm multipliers proven lower optimum norm_product solver seconds inputs"
FIELDS += " units outputs model version kind classes region solved sha256"
SLOPES = {
    "relu tanh softplus elu softsign atan asinh logsigmoid tanhshrink": (0.0, 1.0),
    **{"abs sin cos": (-1.0, 1.0), "identity": (1.0, 1.0), "unknown": (inf, -inf)},
    **{"leaky_relu": (0.01, 1.0), "erf": (0.0, 1.1283792), "silu": (-0.09985, 1.09985)},
    **{"gelu": (-0.12891, 1.12891), "gelu_tanh": (-0.129, 1.129), "mish": (-0.11253, 1.0885)},
    **{"hardswish": (-0.5, 1.5), "hardsigmoid": (0.0, nextafter(1 / 6, 1)), "sigmoid": (0.0, 0.25)},
    **{
        "leaky_relu()": lambda s: (min(s, 1), max(s, 1)),
        "hardtanh()": lambda a, b: (0, 1 / (a < b)),
    },
    **{"elu()": lambda s: (min(s, 0.0), max(s, 1.0)), "softshrink()": lambda s: (0, 1 / (s >= 0))},
    **{"celu() softplus()": lambda s: (0, 1 / (s > 0)), "selu": (0.0, 1.7581)},
}
SLOPES = {name: slopes for names, slopes in SLOPES.items() for name in names.split()}
"""Of σ by name; () has parameters, as in leaky_relu(0.2); what divides by zero is refused."""
U, TINY, LARGE, BYTES, EXACT = 2.0**-53, 1e-150, 1e40, 1 << 30, 1e6


class NotProven(Exception):
    """The claim does not follow; any other exception says that something cannot be read."""


def need(holds, message, error=ValueError):
    if not holds:
        raise error(message)


def beside(name, function):
    """A function of the file checker_NAME.py, which lies beside this one."""
    return run_path(str(Path(__file__).with_name(f"checker_{name}.py")))[function]


def read_certificate(path):
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read(BYTES)
    content = json.loads(text)
    need(content["format"] == FORMAT and {*content} == {*FIELDS.split()}, f"it is no {FORMAT}")
    # One way to write it only: no second key of a name, no NaN, no number beyond float64.
    again = json.dumps(content, indent=1, allow_nan=False) + "\n"
    digest = content.pop("sha256")
    bare = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    need(again == text and hashlib.sha256(bare).hexdigest() == digest, "it was edited", NotProven)
    told = [content[key] for key in ("lower", "optimum", "norm_product", "solved")]
    told = [0.0 if v is None else v for v in told] + [content["seconds"]]
    numbers = [*told, content["bound"], *content["multipliers"]]
    need(all(type(v) is float for v in numbers), "the numbers must be decimals")
    need(content["norm"] in ("2", "inf"), "norm is neither 2 nor inf")
    agree = content["proven"] is True and min(told) >= 0 and told[0] <= content["bound"]
    need(agree, "proven, lower or another field contradicts the claim", NotProven)
    return content


def read_model(path):
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
        sizes = {entry.filename: entry.file_size for entry in file.zip.infolist()}
        need(sum(sizes.values()) <= BYTES, "the model unpacks to more than 1 GiB")
        need(len(sizes) == len(file.zip.infolist()), "the model has two arrays of a name")
        net = {name: file[name] for name in file.files}
    for name, array in net.items():
        text = name in ("activation", "stages")
        need(array.dtype.kind in ("U" if text else "fiub"), f"{name} has dtype {array.dtype}")
        net[name] = array if text else array.astype(np.float64)
        need(text or np.isfinite(net[name]).all(), f"{name} is not finite")
    net = beside("layers", "images")(net) if {"stages", "K0"} & {*net} else system(net)
    for name, a, b in zip(net["names"], net["alpha"], net["beta"], strict=True):
        family, _, rest = name.partition("(")
        values = [float(text) for text in rest[:-1].split(",")] if rest else []
        need(rest[-1:] in ("", ")") and all(map(isfinite, values)), f"{name} is no activation")
        lowest, highest = SLOPES[family + "()"](*values) if rest else SLOPES[name]
        need(a <= b and a <= lowest and highest <= b, f"{name} has slopes beyond [{a}, {b}]")
    return net


def system(net):
    """The arrays A B C D b c alpha beta activation, from these or from layers W0 b0 W1 b1 …"""
    net |= beside("layers", "perceptron")(net) if "W0" in net else {}
    need(
        {*net} <= {*"ABCDbc", "alpha", "beta", "activation"}, f"it has the arrays {', '.join(net)}"
    )
    size = {}
    for name, dims in {"A": "nn", "B": "nm", "C": "pn", "D": "pm"}.items():
        size |= dict(zip(dims, net[name].shape, strict=True)) if name in net else {}
    n, m, p = size.get("n", 0), size["m"], size["p"]
    need((n + p) * (m + n) <= BYTES >> 3, "the model is too large")
    for name, shape in {"A": (n, n), "B": (n, m), "C": (p, n), "D": (p, m)}.items():
        need(net.setdefault(name, np.zeros(shape)).shape == shape, f"{name} must be {shape}")
    for name, (k, value) in {"b": (n, 0), "c": (p, 0), "alpha": (n, 0), "beta": (n, 1)}.items():
        net[name] = np.broadcast_to(net.get(name, value), k) * 1.0
    guess = []
    for a, b in zip(net["alpha"].tolist(), net["beta"].tolist(), strict=True):
        leaky = f"leaky_relu({a!r})" if b == 1 and 0 < a < 1 else "unknown"
        guess.append("relu" if (a, b) == (0, 1) else leaky)
    net["names"] = np.broadcast_to(net.pop("activation", guess), n).tolist()
    h = hashlib.sha256(b"sdplip system 1")
    for name in ("A", "B", "C", "D", "b", "c", "alpha", "beta"):
        array = np.ascontiguousarray(net[name], dtype="<f8")
        h.update(f"{name}{array.shape}".encode() + array.tobytes())
    h.update("\0".join(net["names"]).encode())
    return net | {"sha256": h.hexdigest(), "sizes": [m, n, p], "kind": "system"}


def levels(A):
    """Units in groups that depend on earlier groups only; None where A has a cycle."""
    left, groups = np.ones(len(A), bool), []
    while left.any():
        groups.append(np.flatnonzero(left & ~(A[:, left] != 0).any(1)))
        if not groups[-1].size:
            return None
        left[groups[-1]] = False
    return groups


def condition(R, F, low, high, lam, bound, sign):
    """M = bound²E − [D C]ᵀ[D C] + 2RᵀαβΛR − RᵀΛ(α + β)U − Uᵀ(α + β)ΛR + 2UᵀΛU with R = [B A].

    E selects the input and U = [0 I] the units from (x, z). sign is -1, or 1 to add all up."""
    n, d = R.shape
    x, z, of = np.arange(d - n), np.arange(d - n, d), np.positive if sign < 0 else abs
    M = sign * (F.T @ F)
    if ((low != 0) & (high != 0)).any():
        M = M + R.T @ ((of(low * high) * (lam + lam))[:, None] * R)
    cross = sign * (of(low + high) * lam)[:, None] * R
    M[z] += cross
    M[:, z] += cross.T
    M[z, z] += lam + lam
    M[x, x] += bound * bound
    return M


def margins(R, F, low, high, eta, bound, sign):
    """bound − |C|η − |D|1 and η − ⌈jA⌉η − |jB|1 for j = α, β; ⌈⌉ is |·| but on the diagonal."""
    n, d = R.shape
    units, weights = np.arange(n), np.append(np.ones(d - n, dtype=int), eta)
    rows = [bound + sign * (abs(F) @ weights)]
    for slope in (low, high):
        G = abs(slope[:, None] * R)
        if sign < 0:
            G[units, d - n + units] = slope * R[units, d - n + units]
        rows.append(eta + sign * (G @ weights))
    return np.concatenate(rows)


def definite(S, rad):
    """Whether all symmetric X with |X − S| ≤ rad are ≻ 0: X − LLᵀ is diagonally dominant.

    L = P + Q, P in multiples of 2⁻²⁵, so that PPᵀ is exact, and Q so small that errors are, too."""
    S, rad = (S + S.T) / 2, (rad + rad.T) / 2 + U * abs(S + S.T)
    scale, d = np.ldexp(1.0, -(np.frexp(S.diagonal())[1] // 2)), len(S)
    S, rad = S * scale[:, None] * scale, (rad * scale[:, None] * scale).sum(1) + d * 1e-150
    shift = 1.1 * rad + 16 * U
    for _ in range(5):
        try:
            L = np.linalg.cholesky(S - np.diag(shift))
        except np.linalg.LinAlgError:
            return False
        P = np.rint(L * 2.0**25) / 2.0**25
        Q = L - P
        T, G = S - P @ P.T, P @ Q.T
        G = G + G.T + Q @ Q.T
        rest, entry = T - G, 8 * (d + 4) * U * np.linalg.norm(Q, axis=1).max() + 1e-150
        others = abs(rest).sum(1) - abs(rest.diagonal()) + rad
        others = (others + 4 * U * (abs(T) + abs(G)).sum(1) + d * entry) * (1 + 1e-9)
        if np.linalg.norm(P, axis=1).max() < 2 and (rest.diagonal() > others).all():
            return True
        shift = 1.5 * others
    return False


def definite_exactly(M):
    """Whether a matrix of dyadic fractions is ≻ 0: its leading minors are positive (Bareiss)."""
    M, last = M * max((v.denominator for v in M.flat), default=1), 1
    M = np.vectorize(int, otypes=[object])(M)
    while len(M) and M[0, 0] > 0:
        M, last = (M[0, 0] * M[1:, 1:] - np.outer(M[1:, 0], M[0, 1:])) // last, M[0, 0]
    return not len(M)


def prove(net, claim, exact):
    """Whether the claim holds, in rational arithmetic or in float64 with error bounds.

    A sum of products in float64, of k roundings in succession at most, is off by less than 1.01kU
    times the same sum of absolute values; underflow adds less than TINY if all are below LARGE."""
    (m, n, _), low, high, groups = net["sizes"], net["alpha"], net["beta"], levels(net["A"])
    lift = np.vectorize(Fraction, otypes=[object]) if exact else np.asarray
    R, F = np.hstack([net["B"], net["A"]]), lift(np.hstack([net["D"], net["C"]]))
    if claim["classes"] is not None:
        i, j = claim["classes"]
        F = F[[i]] - F[[j]]
    kept = np.ones(n, bool)
    if groups is not None:  # Only units between input and output matter.
        active, met = (low != 0) | (high != 0), R[:, m:] != 0
        kept, seen = R[:, :m].any(1) & active, (F[:, m:] != 0).any(0) & active
        for _ in groups:
            kept, seen = kept | met @ kept & active, seen | met.T @ seen & active
        kept &= seen
    if not (kept.any() or (F[:, :m] != 0).any()):
        return True
    linear = kept & (low == high) & ((groups is not None) | (np.array(claim["multipliers"]) == 0))
    kept &= ~linear
    lam = np.array(claim["multipliers"])[kept]
    if not (lam > 0).all():
        return False
    columns = np.append(np.arange(m), m + np.flatnonzero(kept))
    R, low, high, lam, bound = map(lift, (R, low, high, lam, claim["bound"]))
    f, axis, parts, E = (condition, 0, [], None) if claim["norm"] == "2" else (margins, 1, [], None)
    if linear.any():
        known = (R, low, np.flatnonzero(linear), columns, groups)
        E = beside("linear", "substitution")(*known)
        if E is None:
            return False
    if f is condition and E is None and not exact and len(lam) >= 1500:
        known = (R[kept][:, columns], F[:, columns], low[kept], high[kept], lam, bound)
        if (wide := beside("wide", "reduced")(*known, levels, condition)) is not None:
            return definite(*wide)
    for step, of, sign in ((0, np.asarray, -1), (1, abs, 1), (2, abs, 1)):
        of_all = (of(X) for X in (R[kept], F))
        rows, outputs = (X[:, columns] if E is None else X @ E[step] for X in of_all)
        parts.append(f(rows, outputs, low[kept], high[kept], lam, bound, sign))
    if exact:
        return definite_exactly(parts[0]) if f is condition else (parts[0] > 0).all()
    # The difference of the last parts is what errors of E do; it is a rounded one itself.
    terms = max((X != 0).sum(1).max(initial=0) for X in (R[kept], F))
    k = 10 + (outputs != 0).sum(axis).max(initial=0) + (0 if E is None else 6 * terms)
    if axis or ((low != 0) & (high != 0)).any():
        k += (rows != 0).sum(axis).max(initial=0)
    error = 1.01 * (k * U * parts[2] + parts[2] - parts[1]) + TINY * lam.max(initial=1)
    numbers = (R, F, low, high, bound, rows, np.sqrt(lam))
    small = max(np.max(abs(v), initial=0) for v in numbers) < LARGE
    return small and (definite(parts[0], error) if axis == 0 else (parts[0] > error).all())


@np.errstate(all="ignore")
def check(certificate, model):
    """The statement that is proven; NotProven, or any other exception for what is unreadable."""
    claim, net = read_certificate(certificate), read_model(model)
    if (net["kind"], claim["kind"]) == ("convolution", "system"):
        net = system(beside("unrolled", "arrays")(net))
    need(claim["model"] == net["sha256"], "the certificate is for other weights", NotProven)
    (m, n, p), pair, region, f = net["sizes"], claim["classes"], claim["region"], "f"
    told = [claim[key] for key in ("kind", "inputs", "units", "outputs")]
    need(json.dumps(told) == json.dumps([net["kind"], m, n, p]), "other kind or sizes", NotProven)
    if pair is not None:
        fit = len({*pair}) == len(pair) == 2 and all(type(k) is int and 0 <= k < p for k in pair)
        need(fit, "classes are not two outputs")
        f = "(f_{} - f_{})".format(*pair)
    if net["kind"] == "convolution":
        holds = beside("convolution", "holds")(net, claim, condition, definite)
    else:
        need(len(claim["multipliers"]) == n, "other sizes", NotProven)
        if region is not None:
            net |= beside("region", "slopes")(net, levels(net["A"]), region, SLOPES)
        cost = (m + n) ** 3 if claim["norm"] == "2" else n * (m + n)
        holds = prove(net, claim, False) or (cost <= EXACT and prove(net, claim, True))
    bound, where = claim["bound"], "" if region is None else " of the region"
    need(holds and bound >= 0, f"the condition is not shown at bound {bound!r}", NotProven)
    return f"|{f}(x) - {f}(x')| <= {bound!r} |x - x'| for all x, x'{where} in norm {claim['norm']}"


def main(arguments):
    try:
        print(f"proven: {check(*arguments)}")
    except Exception as error:  # whatever a damaged file leads to
        known, kind = isinstance(error, NotProven), type(error).__name__
        said = str(error).encode("unicode_escape").decode()
        print("not proven:" if known else f"unreadable: {kind}:", said)
        return 1 if known else 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
