"""Every network as one system z = σ(Az + Bx + b), y = Cz + Dx + c."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ._arrays import Array, finite, vector, write_named
from ._modes import own_modes
from .activations import elementwise
from .equilibrium import implicit
from .errors import InvalidInput, ShapeError

UNKNOWN = "unknown"


@dataclass(frozen=True, eq=False)
class System:
    """The numeric system z = σ(Az + Bx + b), y = Cz + Dx + c with x ∈ R^m, z ∈ R^n, y ∈ R^p.

    Use the constructors `linear`, `residual`, `feedforward`, `equilibrium`, `from_module`, `load`,
    then `g @ f` (g after f) and `f + g`. Calling it evaluates the network: by forward substitution
    where A is acyclic, at the equilibrium otherwise.

    Args:
        A, B, C, D: (n, n), (n, m), (p, n), (p, m); float64, finite.
        b, c: (n,), (p,); None is zero.
        activation: one name or one per unit; "unknown" where only the slopes are known (such a
            system can be verified, not evaluated).
        alpha, beta: (n,) or scalars, slopes of each unit; None takes the activation's own range.

    Raises:
        ShapeError: naming the two arrays that disagree.
        InvalidInput: NaN or Inf, alpha > beta, slopes narrower than the activation's.
    """

    A: Array
    B: Array
    C: Array
    D: Array
    b: Array = None  # type: ignore[assignment]
    c: Array = None  # type: ignore[assignment]
    alpha: Array = None  # type: ignore[assignment]
    beta: Array = None  # type: ignore[assignment]
    activation: NDArray[np.str_] = "relu"  # type: ignore[assignment]

    def __post_init__(self) -> None:
        put = object.__setattr__
        for name in "ABCD":
            put(self, name, _matrix(name, getattr(self, name)))
        (n, m), p = self.B.shape, self.C.shape[0]
        for name, shape in {"A": (n, n), "C": (p, n), "D": (p, m)}.items():
            if getattr(self, name).shape != shape:
                raise ShapeError(
                    f"{name} has shape {getattr(self, name).shape}, but with B {self.B.shape} "
                    f"and C {self.C.shape} it must be {shape}."
                )
        names = np.asarray(self.activation, dtype=np.str_)
        put(self, "activation", vector("activation", names, n))
        own = {name: _slopes(str(name)) for name in np.unique(self.activation)}
        for name, length, default in (
            ("b", n, 0.0),
            ("c", p, 0.0),
            ("alpha", n, [own[a][0] for a in self.activation]),
            ("beta", n, [own[a][1] for a in self.activation]),
        ):
            value = getattr(self, name)
            array = finite(name, default if value is None else value)
            put(self, name, vector(name, array, length))
        for i in np.flatnonzero(self.alpha > self.beta)[:1]:
            raise InvalidInput(
                f"Unit {i} has slopes ({self.alpha[i]:g}, {self.beta[i]:g}), which is no range; "
                "give alpha <= beta."
            )
        for i, name in enumerate(self.activation):
            low, high = own[name]
            if name != UNKNOWN and (low < self.alpha[i] or high > self.beta[i]):
                raise InvalidInput(
                    f"Unit {i} is {name} with slopes [{low:g}, {high:g}], outside the declared "
                    f"[{self.alpha[i]:g}, {self.beta[i]:g}]: bounds would be wrong. "
                    "Declare a range that contains them."
                )
        for name in ("A", "B", "C", "D", "b", "c", "alpha", "beta", "activation"):
            getattr(self, name).flags.writeable = False

    # --- constructors ---

    @classmethod
    def linear(cls, W: ArrayLike, b: ArrayLike | None = None) -> System:
        """x ↦ Wx + b with W (p, m): no hidden units."""
        D = _matrix("W", W)
        p, m = D.shape
        return cls(np.zeros((0, 0)), np.zeros((0, m)), np.zeros((p, 0)), D, c=b)  # type: ignore[arg-type]

    @classmethod
    def residual(
        cls,
        H: ArrayLike,
        G: ArrayLike,
        W: ArrayLike,
        b: ArrayLike | None = None,
        c: ArrayLike | None = None,
        activation: str | Sequence[str] = "relu",
    ) -> System:
        """x ↦ Hx + Gσ(Wᵀx + b) + c with H (p, m), G (p, n), W (m, n)."""
        H, G, W = _matrix("H", H), _matrix("G", G), _matrix("W", W)
        m, n = W.shape
        if H.shape[1] != m or G.shape != (H.shape[0], n):
            raise ShapeError(
                f"H has shape {H.shape}, G {G.shape} and W {W.shape}, but they must be (p, m), "
                "(p, n) and (m, n)."
            )
        return cls(np.zeros((n, n)), W.T, G, H, b, c, activation=activation)  # type: ignore[arg-type]

    @classmethod
    def feedforward(
        cls,
        weights: Sequence[ArrayLike],
        biases: Sequence[ArrayLike | None] | None = None,
        activation: str = "relu",
    ) -> System:
        """x ↦ W_L σ(… σ(W_0 x + b_0) …) + b_L with weights as in nn.Linear."""
        if not weights:
            raise InvalidInput("feedforward needs at least one weight matrix; got none.")
        biases = [None] * len(weights) if biases is None else biases
        if len(biases) != len(weights):
            raise ShapeError(f"{len(weights)} weights, but {len(biases)} biases.")
        W = [_matrix(f"W{k}", weight) for k, weight in enumerate(weights)]
        b = [
            vector(f"b{k}", finite(f"b{k}", 0.0 if bias is None else bias), len(W[k]))
            for k, bias in enumerate(biases)
        ]
        for k in range(1, len(W)):
            if W[k].shape[1] != len(W[k - 1]):
                raise ShapeError(
                    f"W{k} has shape {W[k].shape}, but W{k - 1} has {len(W[k - 1])} rows."
                )
        if len(W) == 1:
            return cls.linear(W[0], b[0])
        ends = np.cumsum([len(V) for V in W[:-1]])
        n, m, p = int(ends[-1]), W[0].shape[1], len(W[-1])
        A, B, C = np.zeros((n, n)), np.zeros((n, m)), np.zeros((p, n))
        # Sums with 0 make zeros positive, as the products in `@` do: the digest tells them apart.
        B[: ends[0]] += W[0]
        C[:, n - W[-1].shape[1] :] += W[-1]
        for V, end in zip(W[1:-1], ends, strict=False):
            A[end : end + len(V), end - V.shape[1] : end] += V
        inner, outer = np.concatenate(b[:-1]) + 0.0, b[-1] + 0.0
        return cls(A, B, C, np.zeros((p, m)), inner, outer, activation=activation)  # type: ignore[arg-type]

    @classmethod
    def equilibrium(
        cls,
        A: ArrayLike,
        B: ArrayLike,
        C: ArrayLike,
        D: ArrayLike | None = None,
        b: ArrayLike | None = None,
        c: ArrayLike | None = None,
        activation: str | Sequence[str] = "relu",
    ) -> System:
        """The network with a full A; whether it is well-posed is for `verify` to say."""
        if D is None:
            D = np.zeros((np.shape(C)[0], np.shape(B)[1]))
        return cls(A, B, C, D, b, c, activation=activation)  # type: ignore[arg-type]

    @classmethod
    def elementwise(cls, name: str | Sequence[str], features: int) -> System:
        """x ↦ σ(x), one unit per feature; one name for all, or one each."""
        n, eye = features, np.eye(features)
        zero = np.zeros((n, n))
        return cls(zero, eye, eye, zero, activation=name)  # type: ignore[arg-type]

    @classmethod
    @own_modes
    def from_module(cls, module: nn.Module, features: int | None = None) -> System:
        """The system of a Torch module, checked against the module on random inputs.

        Args:
            module: something with a `system()` method, nn.Linear, an activation with proven slopes
                (see `activations.elementwise`), Identity, Flatten, Dropout in evaluation, or a
                Sequential of these. For anything else see `importing.from_torch`, which needs an
                example of the input.
            features: input width; None takes the first `in_features` found.

        Raises:
            InvalidInput: an unknown module, named with its place; or the two disagree.
        """
        from ._modules import copied, differs, extract

        module = copied("System.from_module", module)
        if features is None:
            widths = (getattr(m, "in_features", None) for m in module.modules())
            features = next((width for width in widths if width is not None), None)
        system = extract(module, "", features)
        twin = module.double()
        if (gap := differs(twin, extract(twin, "", features))) is not None:
            raise InvalidInput(
                f"{type(module).__name__}: on random inputs, the module and its extracted system "
                f"{gap}. Its system() does not describe its forward()."
            )
        return system

    def __repr__(self) -> str:
        names = ", ".join(dict.fromkeys(self.activation.tolist())) or "none"
        return (
            f"System(inputs={self.inputs}, units={self.units}, outputs={self.outputs}, "
            f"activation={names})"
        )

    # --- structure ---

    @property
    def inputs(self) -> int:
        return self.B.shape[1]

    @property
    def units(self) -> int:
        return self.A.shape[0]

    @property
    def outputs(self) -> int:
        return self.C.shape[0]

    @cached_property
    def levels(self) -> list[NDArray[np.intp]] | None:
        """Units in groups that depend on earlier groups only; None where A has a cycle."""
        depends = self.A != 0
        waiting = depends.sum(axis=1)
        remaining = np.ones(self.units, dtype=bool)
        levels = []
        while remaining.any():
            ready = np.flatnonzero(remaining & (waiting == 0))
            if not ready.size:
                return None
            levels.append(ready)
            remaining[ready] = False
            waiting -= depends[:, ready].sum(axis=1)
        return levels

    @property
    def is_feedforward(self) -> bool:
        """Whether A is acyclic (strictly lower triangular in some order): always well-posed."""
        return self.levels is not None

    def digest(self) -> str:
        """SHA-256 over every array, bit for bit: what a certificate is tied to."""
        h = hashlib.sha256(b"sdplip system 1")
        for name in ("A", "B", "C", "D", "b", "c", "alpha", "beta"):
            array = np.ascontiguousarray(getattr(self, name), dtype="<f8")
            h.update(f"{name}{array.shape}".encode())
            h.update(array.data)
        h.update("\0".join(self.activation.tolist()).encode())
        return h.hexdigest()

    # --- composition ---

    def __matmul__(self, first: System) -> System:
        """Series: x ↦ self(first(x))."""
        if self.inputs != first.outputs:
            raise ShapeError(
                f"g @ f: f has {first.outputs} outputs, but g takes {self.inputs} inputs."
            )
        corner = np.zeros((first.units, self.units))
        return System(
            np.block([[first.A, corner], [self.B @ first.C, self.A]]),
            np.vstack([first.B, self.B @ first.D]),
            np.hstack([self.D @ first.C, self.C]),
            self.D @ first.D,
            np.concatenate([first.b, self.b + self.B @ first.c]),
            self.D @ first.c + self.c,
            *self._joined(first),
        )

    def __add__(self, other: System) -> System:
        """Sum on a shared input: x ↦ other(x) + self(x); with a linear system this is a skip."""
        if (self.inputs, self.outputs) != (other.inputs, other.outputs):
            raise ShapeError(
                f"f + g: f maps R^{self.inputs} to R^{self.outputs}, "
                f"but g maps R^{other.inputs} to R^{other.outputs}."
            )
        corner = np.zeros((other.units, self.units))
        return System(
            np.block([[other.A, corner], [corner.T, self.A]]),
            np.vstack([other.B, self.B]),
            np.hstack([other.C, self.C]),
            other.D + self.D,
            np.concatenate([other.b, self.b]),
            other.c + self.c,
            *self._joined(other),
        )

    def _joined(self, first: System) -> tuple[Array, Array, NDArray[np.str_]]:
        return (
            np.concatenate([first.alpha, self.alpha]),
            np.concatenate([first.beta, self.beta]),
            np.concatenate([first.activation, self.activation]),
        )

    # --- evaluation ---

    def __call__(self, x: Any) -> Any:
        """y at x (..., m): Torch in, Torch out (differentiable in x); NumPy in, NumPy out.

        Raises:
            ShapeError: the last dimension is not m.
            InvalidInput: a unit's activation is unknown.
            NotConverged: an equilibrium was not found (rows of x with NaN only warn).
        """
        if not isinstance(x, Tensor):
            return self(torch.as_tensor(np.asarray(x, dtype=np.float64))).numpy()
        if not x.is_floating_point():
            raise InvalidInput(
                f"x has dtype {x.dtype}, but must be floating point; use x.double()."
            )
        z = self.hidden(x)
        C, D, c = (torch.as_tensor(a.copy()).to(x) for a in (self.C, self.D, self.c))
        return z @ C.mT + x @ D.mT + c

    def hidden(self, x: Tensor) -> Tensor:
        """z at x (..., m): shape (..., n)."""
        if x.shape[-1:] != (self.inputs,):
            raise ShapeError(f"x has shape {tuple(x.shape)}, but m = {self.inputs}.")
        if (self.activation == UNKNOWN).any():
            raise InvalidInput(
                "This system's activation is unknown (only its slopes are), so it has no value "
                "to compute. Give System(..., activation=NAME)."
            )
        A, B, b = (torch.as_tensor(a.copy()).to(x) for a in (self.A, self.B, self.b))
        v = x @ B.mT + b
        if self.levels is None:
            tol = 1e-12 if x.dtype == torch.float64 else 1e-6
            names = [str(a) for a in self.activation]
            return implicit(A, v, names, method="newton", tol=tol, on_failure="raise")
        order = np.concatenate([np.zeros(0, dtype=np.intp), *self.levels])
        z = v[..., :0]
        for level in self.levels:
            u = v[..., level] + z @ A[np.ix_(level, order[: z.shape[-1]])].mT
            z = torch.cat([z, self._sigma(u, level)], dim=-1)
        return z[..., np.argsort(order)]

    def _sigma(self, u: Tensor, units: NDArray[np.intp]) -> Tensor:
        names = self.activation[units]
        out = torch.empty_like(u) if len(set(names)) > 1 else elementwise(str(names[0]))(u)
        if len(set(names)) > 1:
            for name in np.unique(names):
                out[..., names == name] = elementwise(str(name))(u[..., names == name])
        return out

    # --- files ---

    def save(self, path: str | Path) -> None:
        """Write an `.npz` file, atomically."""
        names = ("A", "B", "C", "D", "b", "c", "alpha", "beta", "activation")
        arrays = {name: getattr(self, name) for name in names}

        def write(scratch: Path) -> None:
            with scratch.open("wb") as file:
                np.savez(file, **arrays)

        write_named(Path(path), write)

    @classmethod
    def load(cls, path: str | Path) -> System:
        """Read an `.npz` file: A B C D b c alpha beta activation, or W0 b0 W1 b1 … alpha beta.

        Missing blocks are zero and slopes default to [0, 1]. Without `activation`, slopes [0, 1]
        mean ReLU, [s, 1] with 0 < s < 1 leaky ReLU, anything else "unknown".

        Raises:
            InvalidInput: unreadable, holding pickled objects, too large, or with unknown arrays.
        """
        from ._files import read_system

        return read_system(Path(path))


def _matrix(name: str, value: Any) -> Array:
    array = finite(name, value)
    if array.ndim != 2:
        raise ShapeError(f"{name} has shape {array.shape}, but must be a matrix.")
    return array


def _slopes(name: str) -> tuple[float, float]:
    if name == UNKNOWN:
        return 0.0, 1.0
    found = elementwise(name)
    return found.alpha, found.beta
