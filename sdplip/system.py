"""Every network as one system z = σ(Az + Bx + b), y = Cz + Dx + c."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ._arrays import Array, finite, matrix, vector, write_named
from ._coupling import Coupling, Feed, below, dense, feeds, held, joined, levels, pieces
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
        A, B, C, D: (n, n), (n, m), (p, n), (p, m); float64, finite. A may be a `scipy.sparse`
            array; the attribute is a NumPy array, which of a large sparse A is formed when asked
            for (`coupling`, `feeds` and `block` do without).
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
    coupling: Coupling = field(init=False)
    """A as it is held: an array, or sparse."""

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "A", held(self.A))
        for name in "BCD":
            put(self, name, matrix(name, getattr(self, name)))
        (n, m), p = self.B.shape, self.C.shape[0]
        for name, shape in {"A": (n, n), "C": (p, n), "D": (p, m)}.items():
            if getattr(self, name).shape != shape:
                raise ShapeError(
                    f"{name} has shape {getattr(self, name).shape}, but with B {self.B.shape} "
                    f"and C {self.C.shape} it must be {shape}."
                )
        put(self, "activation", vector("activation", np.asarray(self.activation, np.str_), n))
        kinds, kind = np.unique(self.activation, return_inverse=True)
        low, high = np.array([_slopes(str(name)) for name in kinds]).reshape(-1, 2)[kind].T
        rest = {"b": (n, 0.0), "c": (p, 0.0), "alpha": (n, low), "beta": (n, high)}
        for name, (length, default) in rest.items():
            value = default if getattr(self, name) is None else getattr(self, name)
            put(self, name, vector(name, finite(name, value), length))
        for i in np.flatnonzero(self.alpha > self.beta)[:1]:
            raise InvalidInput(
                f"Unit {i} has slopes ({self.alpha[i]:g}, {self.beta[i]:g}), which is no range; "
                "give alpha <= beta."
            )
        narrow = (low < self.alpha) | (high > self.beta)
        for i in np.flatnonzero(narrow & (self.activation != UNKNOWN))[:1]:
            raise InvalidInput(
                f"Unit {i} is {self.activation[i]} with slopes [{low[i]:g}, {high[i]:g}], outside "
                f"the declared [{self.alpha[i]:g}, {self.beta[i]:g}]: bounds would be wrong. "
                "Declare a range that contains them."
            )
        put(self, "coupling", self.A)
        if not isinstance(self.A, np.ndarray):
            object.__delattr__(self, "A")
        for name in ("B", "C", "D", "b", "c", "alpha", "beta", "activation"):
            getattr(self, name).flags.writeable = False

    def __getattr__(self, name: str) -> Any:
        # Only a sparse A is missing, until somebody asks for it.
        if name != "A" or "coupling" not in vars(self):
            raise AttributeError(f"'System' object has no attribute {name!r}")
        A = dense(self.coupling)
        A.flags.writeable = False
        object.__setattr__(self, "A", A)
        return A

    # --- constructors ---

    @classmethod
    def linear(cls, W: ArrayLike, b: ArrayLike | None = None) -> System:
        """x ↦ Wx + b with W (p, m): no hidden units."""
        D = matrix("W", W)
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
        H, G, W = matrix("H", H), matrix("G", G), matrix("W", W)
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
        W = [matrix(f"W{k}", weight) for k, weight in enumerate(weights)]
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
        n, m, p = sum(map(len, W[:-1])), W[0].shape[1], len(W[-1])
        B, C = np.zeros((n, m)), np.zeros((p, n))
        # Sums with 0 make zeros positive, as the products in `@` do: the digest tells them apart.
        B[: len(W[0])] += W[0]
        C[:, n - W[-1].shape[1] :] += W[-1]
        inner, outer = np.concatenate(b[:-1]) + 0.0, b[-1] + 0.0
        return cls(below(W[:-1]), B, C, np.zeros((p, m)), inner, outer, activation=activation)  # type: ignore[arg-type]

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
        from ._modules import system_of

        return system_of(module, features)

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
        return self.B.shape[0]

    @property
    def outputs(self) -> int:
        return self.C.shape[0]

    @cached_property
    def levels(self) -> list[NDArray[np.intp]] | None:
        """Units in groups that depend on earlier groups only; None where A has a cycle."""
        return levels(self.coupling)

    @cached_property
    def feeds(self) -> list[Feed] | None:
        """What each of the `levels` reads of earlier ones; None where A has a cycle."""
        return None if self.levels is None else feeds(self.coupling, self.levels)

    def block(self, rows: NDArray[Any], columns: NDArray[Any]) -> Array:
        """A[np.ix_(rows, columns)], which of a sparse A is all that is formed."""
        return dense(self.coupling[rows][:, columns])

    @property
    def is_feedforward(self) -> bool:
        """Whether A is acyclic (strictly lower triangular in some order): always well-posed."""
        return self.levels is not None

    def digest(self) -> str:
        """SHA-256 over every array, bit for bit: what a certificate is tied to."""
        h = hashlib.sha256(b"sdplip system 1")
        for name in ("A", "B", "C", "D", "b", "c", "alpha", "beta"):
            array = self.coupling if name == "A" else getattr(self, name)
            h.update(f"{name}{array.shape}".encode())
            for rows in pieces(array):
                h.update(np.ascontiguousarray(rows, dtype="<f8").data)
        h.update("\0".join(self.activation.tolist()).encode())
        return h.hexdigest()

    def replaced(self, **arrays: Any) -> System:
        """The system with these arrays in place of its own, without forming a sparse A."""
        return System(**self._given | arrays)

    @property
    def _given(self) -> dict[str, Any]:
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name != "A"}
        return {"A": self.coupling, **own}

    def __reduce__(self) -> tuple[Any, ...]:
        return System, tuple(self._given.values())

    # --- composition ---

    def __matmul__(self, first: System) -> System:
        """Series: x ↦ self(first(x))."""
        if self.inputs != first.outputs:
            raise ShapeError(
                f"g @ f: f has {first.outputs} outputs, but g takes {self.inputs} inputs."
            )
        return System(
            joined(first.coupling, self.B @ first.C, self.coupling),
            np.vstack([first.B, self.B @ first.D]),
            np.hstack([self.D @ first.C, self.C]),
            self.D @ first.D,
            np.concatenate([first.b, self.b + self.B @ first.c]),
            self.D @ first.c + self.c,
            *self._units_after(first),
        )

    def __add__(self, other: System) -> System:
        """Sum on a shared input: x ↦ other(x) + self(x); with a linear system this is a skip."""
        if (self.inputs, self.outputs) != (other.inputs, other.outputs):
            raise ShapeError(
                f"f + g: f maps R^{self.inputs} to R^{self.outputs}, "
                f"but g maps R^{other.inputs} to R^{other.outputs}."
            )
        return System(
            joined(other.coupling, None, self.coupling),
            np.vstack([other.B, self.B]),
            np.hstack([other.C, self.C]),
            other.D + self.D,
            np.concatenate([other.b, self.b]),
            other.c + self.c,
            *self._units_after(other),
        )

    def _units_after(self, first: System) -> tuple[Array, Array, NDArray[np.str_]]:
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
            return self(torch.as_tensor(np.array(x, dtype=np.float64))).numpy()
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
        B, b = (torch.as_tensor(a.copy()).to(x) for a in (self.B, self.b))
        v = x @ B.mT + b
        if self.feeds is None:
            A = torch.as_tensor(self.A.copy()).to(x)
            tol = 1e-12 if x.dtype == torch.float64 else 1e-6
            names = [str(a) for a in self.activation]
            return implicit(A, v, names, method="newton", tol=tol, on_failure="raise")
        order = np.concatenate([np.zeros(0, dtype=np.intp), *(feed.units for feed in self.feeds)])
        place, z = np.argsort(order), v[..., :0]
        for level, fed, block in self.feeds:
            u = v[..., level] + z[..., place[fed]] @ torch.as_tensor(block.copy()).to(x).mT
            z = torch.cat([z, self._sigma(u, level)], dim=-1)
        return z[..., place]

    def _sigma(self, u: Tensor, units: NDArray[np.intp]) -> Tensor:
        names = self.activation[units]
        if len(kinds := np.unique(names)) == 1:
            return elementwise(str(names[0]))(u)
        out = torch.empty_like(u)
        for name in kinds:
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


def _slopes(name: str) -> tuple[float, float]:
    if name == UNKNOWN:
        return 0.0, 1.0
    found = elementwise(name)
    return found.alpha, found.beta
