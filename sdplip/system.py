"""Every network as one system z = σ(Az + Bx + b), y = Cz + Dx + c."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ._arrays import Array, finite, read_npz, vector, write_npz
from .activations import activation
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
            array = finite(name, getattr(self, name))
            if array.ndim != 2:
                raise ShapeError(f"{name} has shape {array.shape}, but must be a matrix.")
            put(self, name, array)
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
        D = finite("W", W)
        if D.ndim != 2:
            raise ShapeError(f"W has shape {D.shape}, but must be a matrix.")
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
        W = finite("W", W)
        n = W.shape[-1]
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
        system = cls.linear(weights[0], biases[0])
        for W, b in zip(weights[1:], biases[1:], strict=True):
            system = cls.linear(W, b) @ cls.elementwise(activation, system.outputs) @ system
        return system

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
    def elementwise(cls, name: str, features: int) -> System:
        """x ↦ σ(x), one unit per feature."""
        n, eye = features, np.eye(features)
        zero = np.zeros((n, n))
        return cls(zero, eye, eye, zero, activation=name)  # type: ignore[arg-type]

    @classmethod
    def from_module(cls, module: nn.Module, features: int | None = None) -> System:
        """The system of a Torch module, checked against the module on random inputs.

        Args:
            module: something with a `system()` method, nn.Linear, an activation with proven slopes,
                Identity, Flatten, Dropout in evaluation, or a Sequential of these.
            features: input width; None takes the first `in_features` found.

        Raises:
            InvalidInput: an unknown module, named with its place; or the two disagree.
        """
        from ._modules import extract

        if features is None:
            widths = (getattr(m, "in_features", None) for m in module.modules())
            features = next((width for width in widths if width is not None), None)
        system = extract(module, "", features)
        parameter = next(module.parameters(), None)
        dtype = torch.get_default_dtype() if parameter is None else parameter.dtype
        device = None if parameter is None else parameter.device
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(8, system.inputs, generator=generator, dtype=torch.float64)
        training = module.training
        try:
            with torch.no_grad():
                expected = module.eval()(x.to(dtype=dtype, device=device)).double().cpu()
        finally:
            module.train(training)
        actual = system(x)
        tolerance = 1e3 * torch.finfo(dtype).eps * (1 + expected.abs().max())
        if not (actual - expected).abs().max() <= tolerance:
            raise InvalidInput(
                f"{type(module).__name__}: the extracted system and the module differ by "
                f"{(actual - expected).abs().max():.3g} on random inputs (allowed "
                f"{tolerance:.3g}). Its system() does not describe its forward()."
            )
        return system

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
        remaining = np.ones(self.units, dtype=bool)
        levels = []
        while remaining.any():
            ready = remaining & ~depends[:, remaining].any(axis=1)
            if not ready.any():
                return None
            levels.append(np.flatnonzero(ready))
            remaining &= ~ready
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
            h.update(f"{name}{array.shape}".encode() + array.tobytes())
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

    def _joined(self, first: System) -> tuple[Any, Any, Any]:
        names = np.concatenate([first.activation, self.activation])
        return (
            np.concatenate([first.alpha, self.alpha]),
            np.concatenate([first.beta, self.beta]),
            names,
        )

    # --- evaluation ---

    def __call__(self, x: Any) -> Any:
        """y at x (..., m): Torch in, Torch out (differentiable in x); NumPy in, NumPy out.

        Raises:
            ShapeError: the last dimension is not m.
            InvalidInput: a unit's activation is unknown.
            NotConverged: the equilibrium was not found.
        """
        if not isinstance(x, Tensor):
            return self(torch.as_tensor(np.asarray(x, dtype=np.float64))).numpy()
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
        out = torch.empty_like(u) if len(set(names)) > 1 else activation(str(names[0]))(u)
        if len(set(names)) > 1:
            for name in np.unique(names):
                out[..., names == name] = activation(str(name))(u[..., names == name])
        return out

    # --- files ---

    def save(self, path: str | Path) -> None:
        """Write an `.npz` file, atomically."""
        names = ("A", "B", "C", "D", "b", "c", "alpha", "beta", "activation")
        write_npz(Path(path), {name: getattr(self, name) for name in names})

    @classmethod
    def load(cls, path: str | Path) -> System:
        """Read an `.npz` file: A B C D b c alpha beta activation, or W0 b0 W1 b1 … alpha beta.

        Missing blocks are zero and slopes default to [0, 1]. Without `activation`, slopes [0, 1]
        mean ReLU, [s, 1] with 0 < s < 1 leaky ReLU, anything else "unknown".

        Raises:
            InvalidInput: unreadable, holding pickled objects, too large, or with unknown arrays.
        """
        arrays = read_npz(Path(path))
        if any(name.startswith("K") for name in arrays):
            raise InvalidInput(
                f"{path} is a chain of convolutions (arrays {', '.join(sorted(arrays))}); only "
                "dense systems can be loaded. Unroll it into W0 b0 W1 b1 ..."
            )
        slopes = (arrays.pop("alpha", np.zeros(())), arrays.pop("beta", np.ones(())))
        names = arrays.pop("activation", None)
        layers = sorted((k for k in arrays if k[0] == "W"), key=lambda k: (len(k), k))
        known = {f"{k}{i}" for i in range(len(layers)) for k in "Wb"} if layers else set("ABCDbc")
        if not arrays or not arrays.keys() <= known or len(layers) > len(known & arrays.keys()):
            raise InvalidInput(
                f"{path} holds the arrays {', '.join(sorted(arrays)) or '(none)'}; a system file "
                "has A B C D b c alpha beta activation, or W0 b0 W1 b1 ... alpha beta."
            )
        if layers:
            weights = [arrays[f"W{i}"] for i in range(len(layers))]
            biases = [arrays.get(f"b{i}") for i in range(len(layers))]
            system = cls.feedforward(weights, biases, activation=UNKNOWN)
        else:
            system = cls(**_fill(arrays), activation=UNKNOWN)  # type: ignore[arg-type]
        alpha, beta = (
            vector(k, finite(k, s), system.units)
            for k, s in zip(("alpha", "beta"), slopes, strict=True)
        )
        if names is None:
            names = np.asarray([_guess(a, b) for a, b in zip(alpha, beta, strict=True)], np.str_)
        elif names.dtype.kind != "U":
            raise InvalidInput(f"{path}: activation has dtype {names.dtype}, but must be text.")
        return replace(system, alpha=alpha, beta=beta, activation=names)


def _slopes(name: str) -> tuple[float, float]:
    if name == UNKNOWN:
        return 0.0, 1.0
    found = activation(name)
    return found.alpha, found.beta


def _guess(alpha: float, beta: float) -> str:
    if (alpha, beta) == (0, 1):
        return "relu"
    return f"leaky_relu({float(alpha)!r})" if beta == 1 and 0 < alpha < 1 else UNKNOWN


def _fill(arrays: dict[str, Any]) -> dict[str, Any]:
    """Zero blocks for the missing ones of A, B, C, D; sizes from those present."""
    sizes: dict[str, int] = {}
    for name, dims in {"A": "nn", "B": "nm", "C": "pn", "D": "pm", "b": "n", "c": "p"}.items():
        shape = arrays[name].shape if name in arrays else ()
        if name in arrays and len(shape) != len(dims):
            raise ShapeError(f"{name} has shape {shape}, but must have {len(dims)} dimensions.")
        for dim, size in zip(dims, shape, strict=False):
            sizes.setdefault(dim, size)
    n, m, p = (sizes.get(d, 0) for d in "nmp")
    blocks = {"A": (n, n), "B": (n, m), "C": (p, n), "D": (p, m)}
    return {**{k: np.zeros(s) for k, s in blocks.items()}, **arrays}
