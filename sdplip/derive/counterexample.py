"""A wrong claim refuted: two inputs, in exact numbers, whose outputs are too far apart."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy as sp

from .._arrays import write_named
from ..errors import InvalidInput
from .exact import Instance, instance, sized
from .free import Free

if TYPE_CHECKING:
    from .derivation import Derivation

Matrix = list[list[Fraction]]
KIND = "sdplip.counterexample"
_SHAPES = ((1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 2), (2, 3, 2), (3, 2, 2))


@dataclass(frozen=True)
class Counterexample:
    """A network z = σ(Az + Bx + b), y = Cz + Dx and two exact solutions that break the claim.

    σ is β_i v for v ≥ 0 and α_i v below, unit by unit: ReLU for slopes 0 and 1, |·| for -1 and 1.

    Attributes:
        name: of the derivation.
        A, B, C, D, b, alpha, beta: rational.
        x, z: two inputs and the states that solve the equation for them.
        claim: the square (norm 2) or the value (norm inf) of the claimed constant.
        norm: 2 or inf.
        values: of the free symbols from which the network was built.
        constant: the true Lipschitz constant for the worst biases, in float64.
    """

    name: str
    A: Matrix
    B: Matrix
    C: Matrix
    D: Matrix
    b: list[Fraction]
    alpha: list[Fraction]
    beta: list[Fraction]
    x: Matrix
    z: Matrix
    claim: Fraction
    norm: float
    values: dict[str, Any]
    constant: float

    def ratio(self) -> Fraction:
        """‖Δy‖² / ‖Δx‖² (norm 2) or ‖Δy‖ / ‖Δx‖ (norm inf), after checking both solutions.

        Raises:
            InvalidInput: z does not solve z = σ(Az + Bx + b), or both inputs are the same.
        """
        for x, z in zip(self.x, self.z, strict=True):
            v = _plus(_plus(_apply(self.A, z), _apply(self.B, x)), self.b)
            slopes = [
                hi if t >= 0 else lo for t, lo, hi in zip(v, self.alpha, self.beta, strict=True)
            ]
            if [s * t for s, t in zip(slopes, v, strict=True)] != z:
                raise InvalidInput(f"{self.name}: z does not solve the network's equation for x.")
        dx = [p - q for p, q in zip(*self.x, strict=True)]
        dz = [p - q for p, q in zip(*self.z, strict=True)]
        if not any(dx):
            raise InvalidInput(f"{self.name}: both inputs are the same.")
        dy = _plus(_apply(self.C, dz), _apply(self.D, dx))
        if self.norm == 2:
            return sum((t * t for t in dy), Fraction(0)) / sum((t * t for t in dx), Fraction(0))
        return max(map(abs, dy)) / max(map(abs, dx))

    def holds(self) -> bool:
        """Whether the two solutions are valid and break the claim, in exact arithmetic."""
        return self.ratio() > self.claim

    def to_json(self) -> dict[str, Any]:
        """JSON values, numbers as exact fractions."""
        return {
            "kind": KIND,
            "name": self.name,
            **{k: _texts(getattr(self, k)) for k in ("A", "B", "C", "D", "x", "z")},
            **{k: [str(t) for t in getattr(self, k)] for k in ("b", "alpha", "beta")},
            "claim": str(self.claim),
            "norm": "inf" if self.norm != 2 else "2",
            "ratio": str(self.ratio()),
            "constant": self.constant,
            "values": self.values,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Counterexample:
        """The inverse of `to_json`; InvalidInput for anything else."""
        try:
            matrices: Any = {k: _numbers(values[k]) for k in ("A", "B", "C", "D", "x", "z")}
            vectors: Any = {k: [Fraction(t) for t in values[k]] for k in ("b", "alpha", "beta")}
            if values["kind"] != KIND:
                raise InvalidInput(f"This is a {values['kind']!r}, not a {KIND}.")
            found = cls(
                name=str(values["name"]),
                **matrices,
                **vectors,
                claim=Fraction(values["claim"]),
                norm=float(values["norm"]),
                values=dict(values["values"]),
                constant=float(values["constant"]),
            )
            n, m, p = len(found.b), len(found.x[0]), len(found.D)
            shapes = {"A": (n, n), "B": (n, m), "C": (p, n), "D": (p, m), "x": (2, m), "z": (2, n)}
            for name, (rows, columns) in shapes.items():
                matrix = getattr(found, name)
                if len(matrix) != rows or any(len(r) != columns for r in matrix):
                    raise InvalidInput(f"{name} is not {rows} by {columns}.")
            if len(found.alpha) != n or len(found.beta) != n or found.norm not in (2, np.inf):
                raise InvalidInput("the slopes or the norm are not what they must be.")
        except InvalidInput as error:
            raise InvalidInput(f"Not a counterexample: {error}") from error
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            ZeroDivisionError,
            IndexError,
        ) as error:
            raise InvalidInput(f"Not a counterexample: {type(error).__name__} {error}.") from error
        return found

    def save(self, path: str | Path) -> None:
        """Write the file that `sdplip check` replays."""
        write_named(Path(path), lambda p: p.write_text(json.dumps(self.to_json(), indent=1) + "\n"))


def search(derivation: Derivation, tries: int = 80) -> Counterexample | None:
    """The worst instance with integer entries of the smallest shape that breaks the claim."""
    unusable = (TypeError, ArithmeticError, ValueError, AttributeError, np.linalg.LinAlgError)
    for shape in _SHAPES:
        best: tuple[float, Instance, Any] | None = None
        for at in _instances(derivation, shape, tries):
            try:
                found = _worst(derivation, at)
            except unusable:
                continue  # the ansatz has no rational value there
            if found is not None and (best is None or found[0] > best[0] * (1 + 1e-9)):
                best = (found[0], at, found[1])
        if best is not None and best[0] > 1 + 1e-9:
            with contextlib.suppress(*unusable):
                exact = _exact(derivation, best[1], best[2])
                if exact is not None:
                    return exact
    return None


def _instances(
    derivation: Derivation, shape: tuple[int, int, int], tries: int
) -> Iterator[Instance]:
    rng = random.Random(0)
    sizes = sized(derivation, shape)
    for _ in range(tries):
        free = {f.name: _integers(f, rng, sizes) for f in derivation.free}
        try:
            yield instance(derivation, sizes, rng, free=free, closed_form=True)
        except (ValueError, ZeroDivisionError, TypeError, sp.matrices.exceptions.MatrixError):
            continue


def _integers(f: Free, rng: random.Random, sizes: Mapping[Any, int]) -> Any:
    if f.domain == "constant":
        inside = [
            sp.Rational(c) for c in ("1/4", "1", "0", "3") if f.low < float(sp.Rational(c)) < f.high
        ]
        return rng.choice(inside) if inside else f.draw(rng, sizes)
    rows, columns = (int(sp.sympify(d).subs(sizes)) for d in f.symbol.shape)
    low = 1 if f.facts else -3
    return sp.Matrix(rows, columns, lambda *_: sp.Integer(rng.randint(low, 3)))


def system_of(derivation: Derivation, at: Instance) -> dict[str, sp.Matrix]:
    """A, B, C, D of the layer at this instance, exact."""
    o = at.outputs
    if "H" in o:
        return {"A": sp.zeros(o["W"].cols), "B": o["W"].T, "C": o["G"], "D": o["H"]}
    if "A" not in o and "B" not in o:
        p, m = o["D"].shape
        return {"A": sp.zeros(0, 0), "B": sp.zeros(0, m), "C": sp.zeros(p, 0), "D": o["D"]}
    return {name: o[name] for name in "ABCD"}


def claimed(derivation: Derivation, at: Instance) -> sp.Rational:
    """The claimed constant: its square for norm 2."""
    if derivation.norm == 2:
        return sp.Rational(at.outputs["rho"])
    if "gamma" in at.outputs:
        return sp.Rational(at.outputs["gamma"])
    # [NEMON] Theorem 3 with the witness's weights η.
    eta, B, C, D = (at.outputs[x] for x in ("eta", "B", "C", "D"))
    reach = max(sum(abs(x) for x in B.row(i)) / eta[i] for i in range(B.rows))
    read = max(sum(abs(C[i, j]) * eta[j] for j in range(C.cols)) for i in range(C.rows))
    direct = max(sum(abs(x) for x in D.row(i)) for i in range(D.rows))
    return read * reach / (1 - max(at.outputs["c"], 0)) + direct


def _worst(derivation: Derivation, at: Instance) -> tuple[float, Any] | None:
    """The largest ratio of constant and claim over all patterns of slopes, and that pattern."""
    exact = system_of(derivation, at)
    A, B, C, D = (np.array(exact[k].tolist(), dtype=float).reshape(exact[k].shape) for k in "ABCD")
    claim = float(claimed(derivation, at))
    if claim < 0:
        return None
    claim = claim**0.5 if derivation.norm == 2 else claim
    found = None
    for pattern in itertools.product(derivation.slopes, repeat=len(A)):
        J = np.diag(np.array(pattern, dtype=float))
        inner = np.eye(len(A)) - J @ A
        if abs(np.linalg.det(inner)) < 1e-9:
            continue
        K = D + C @ np.linalg.solve(inner, J @ B)
        size = float(np.linalg.norm(K, 2 if derivation.norm == 2 else np.inf))
        ratio = size / claim if claim > 0 else (np.inf if size > 1e-9 else 0.0)
        if found is None or ratio > found[0]:
            found = (ratio, pattern)
    return found


def _exact(derivation: Derivation, at: Instance, pattern: Any) -> Counterexample | None:
    parts = system_of(derivation, at)
    A, B, C, D = (parts[k] for k in "ABCD")
    n, m = B.rows, D.cols
    slopes = [sp.nsimplify(s) for s in pattern]
    J = sp.diag(*slopes) if n else sp.zeros(0, 0)
    map_z = (sp.eye(n) - J * A).inv() * J * B if n else sp.zeros(0, m)
    K = C * map_z + D
    numeric = np.array(K.tolist(), dtype=float).reshape(K.shape)
    if derivation.norm == 2:
        top = np.linalg.svd(numeric)[2][0]
        u = sp.Matrix([sp.Rational(float(t)).limit_denominator(1000) for t in top])
    else:
        worst = int(np.abs(numeric).sum(axis=1).argmax())
        u = sp.Matrix([sp.Integer(1 if t >= 0 else -1) for t in numeric[worst]])
    low, high = (sp.nsimplify(s) for s in derivation.slopes)
    v = [sp.Integer(1 if s == high else -1) for s in slopes]
    z = sp.Matrix([(high if t > 0 else low) * t for t in v]) if n else sp.zeros(0, 1)
    dv = A * map_z * u + B * u if n else sp.zeros(0, 1)
    # So small a step that no unit leaves its piece of the activation.
    largest = max([abs(t) for t in dv], default=sp.Integer(0))
    step = sp.Integer(1) if largest < 1 else sp.Rational(1, int(largest) + 1)
    bias = sp.Matrix(v) - A * z if n else sp.zeros(0, 1)
    second = z + step * map_z * u if n else z
    size = float(np.linalg.norm(numeric, 2 if derivation.norm == 2 else np.inf))
    found = Counterexample(
        name=derivation.name,
        **{k: _fractions(parts[k]) for k in "ABCD"},
        b=[_fraction(t) for t in bias],
        alpha=[_fraction(low)] * n,
        beta=[_fraction(high)] * n,
        x=[[Fraction(0)] * m, [_fraction(step * t) for t in u]],
        z=[[_fraction(t) for t in z], [_fraction(t) for t in second]],
        claim=_fraction(claimed(derivation, at)),
        norm=derivation.norm,
        values={k: _shown(v) for k, v in at.values.items()},
        constant=size,
    )
    return found if found.holds() else None


def _shown(value: Any) -> Any:
    if isinstance(value, sp.MatrixBase):
        return [[str(x) for x in row] for row in value.tolist()]
    return str(value)


def _fraction(value: Any) -> Fraction:
    return Fraction(int(value.p), int(value.q))


def _fractions(matrix: sp.Matrix) -> Matrix:
    return [[_fraction(matrix[i, j]) for j in range(matrix.cols)] for i in range(matrix.rows)]


def _texts(matrix: Matrix) -> list[list[str]]:
    return [[str(t) for t in row] for row in matrix]


def _numbers(rows: Any) -> Matrix:
    return [[Fraction(t) for t in row] for row in rows]


def _apply(matrix: Matrix, vector: list[Fraction]) -> list[Fraction]:
    return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction(0)) for row in matrix]


def _plus(a: list[Fraction], b: list[Fraction]) -> list[Fraction]:
    return [p + q for p, q in zip(a, b, strict=True)]
