"""What an LMI needs to know about NumPy, Torch, CVXPY and SymPy, chosen by the arguments' type.

A backend is used only where the caller's own values show that its library is loaded already.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np
import sympy as sp

from .errors import InvalidInput, ShapeError


class NumpyOps:
    """Float64 arrays; also the base of the other kinds, which replace what differs."""

    def array(self, name: str, value: Any) -> Any:
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise InvalidInput(f"{name} has dtype {array.dtype}, but must hold real numbers.")
        return array.astype(np.float64, copy=False)

    def by_entries(self, owner: str, name: str, value: Any) -> tuple[int, ...]:
        """The shape of a diagonal or vector given by its entries; a square matrix is refused."""
        shape = self.shape(value)
        square = len(shape) >= 2 and shape[-1] == shape[-2] > 1
        if square and not (value * (1 - self.eye(shape[-1]))).any():
            raise ShapeError(
                f"{owner}: {name} has shape {shape} and is a diagonal matrix; give its diagonal."
            )
        return shape

    def number(self, value: Any) -> Any:
        return float(value)

    def scalar(self, value: Any) -> Any:
        return value[..., None, None] if self.shape(value) else value

    def shape(self, value: Any) -> tuple[int, ...]:
        return tuple(getattr(value, "shape", ()))

    def ones(self, n: int) -> Any:
        return np.ones(n)

    def eye(self, n: int) -> Any:
        return np.eye(n)

    def zeros(self, n: int, m: int) -> Any:
        return np.zeros((n, m))

    def column(self, value: Any) -> Any:
        return value[..., None]

    def entries(self, value: Any) -> Any:
        return value[..., 0]

    def diagonal(self, value: Any) -> Any:
        return value[..., None] * np.eye(value.shape[-1])

    def transpose(self, value: Any) -> Any:
        return value.swapaxes(-1, -2)

    def inverse(self, value: Any) -> Any:
        return np.linalg.inv(value)

    def absolute(self, value: Any) -> Any:
        return abs(value)

    def metzler(self, value: Any) -> Any:
        eye = self.eye(value.shape[-1])
        return abs(value) * (1 - eye) + value * eye

    def block(self, rows: list[list[Any]]) -> Any:
        batch = np.broadcast_shapes(*(b.shape[:-2] for row in rows for b in row))
        full = [[np.broadcast_to(b, batch + b.shape[-2:]) for b in row] for row in rows]
        return np.concatenate([np.concatenate(row, axis=-1) for row in full], axis=-2)


class _TorchOps(NumpyOps):
    def __init__(self, tensors: list[Any], others: list[Any]) -> None:
        self.torch: Any = sys.modules["torch"]
        dtypes = [t.dtype for t in tensors]
        dtypes += [self.torch.as_tensor(o).dtype for o in others if isinstance(o, np.ndarray)]
        dtypes = [d for d in dtypes if d.is_floating_point or d.is_complex]
        widest = reduce(self.torch.promote_types, dtypes or [self.torch.get_default_dtype()])
        if not widest.is_floating_point:
            raise InvalidInput(f"The tensors have the dtype {widest}, but must be real numbers.")
        self.kind = {"dtype": widest, "device": max(tensors, key=lambda t: t.ndim).device}

    def array(self, name: str, value: Any) -> Any:
        return self.torch.as_tensor(value, **self.kind)

    def ones(self, n: int) -> Any:
        return self.torch.ones(n, **self.kind)

    def eye(self, n: int) -> Any:
        return self.torch.eye(n, **self.kind)

    def zeros(self, n: int, m: int) -> Any:
        return self.torch.zeros(n, m, **self.kind)

    def diagonal(self, value: Any) -> Any:
        return self.torch.diag_embed(value)

    def inverse(self, value: Any) -> Any:
        return self.torch.linalg.inv(value)

    def block(self, rows: list[list[Any]]) -> Any:
        batch = self.torch.broadcast_shapes(*(b.shape[:-2] for row in rows for b in row))
        full = [[b.expand(*batch, *b.shape[-2:]) for b in row] for row in rows]
        return self.torch.cat([self.torch.cat(row, dim=-1) for row in full], dim=-2)


class _CvxpyOps(NumpyOps):
    """Constants stay NumPy arrays; only what depends on a variable becomes an expression."""

    def __init__(self) -> None:
        self.cp: Any = sys.modules["cvxpy"]

    def array(self, name: str, value: Any) -> Any:
        return value if isinstance(value, self.cp.Expression) else super().array(name, value)

    def by_entries(self, owner: str, name: str, value: Any) -> tuple[int, ...]:
        return _entries_of_column(owner, name, self.shape(value))

    def scalar(self, value: Any) -> Any:
        return value

    def column(self, value: Any) -> Any:
        return self.cp.reshape(value, (value.shape[0], 1), order="F")

    def entries(self, value: Any) -> Any:
        return value[:, 0]

    def diagonal(self, value: Any) -> Any:
        return self.cp.diag(self.cp.vec(value, order="F"))

    def transpose(self, value: Any) -> Any:
        return value.T

    def absolute(self, value: Any) -> Any:
        return self.cp.abs(value) if isinstance(value, self.cp.Expression) else abs(value)

    def metzler(self, value: Any) -> Any:
        eye = np.eye(value.shape[0])
        if isinstance(value, self.cp.Expression):
            return self.cp.multiply(self.cp.abs(value), 1 - eye) + self.cp.multiply(value, eye)
        return super().metzler(value)

    def inverse(self, value: Any) -> Any:
        if isinstance(value, self.cp.Expression):
            raise InvalidInput("The inverse of a CVXPY expression is not affine; give its value.")
        return super().inverse(value)

    def block(self, rows: list[list[Any]]) -> Any:
        return self.cp.bmat(rows)


class _SympyOps(NumpyOps):
    """Exact: numbers stay rational, columns and diagonals are given as n by 1 matrices."""

    def array(self, name: str, value: Any) -> Any:
        return sp.Matrix(value) if isinstance(value, np.ndarray) else sp.sympify(value)

    def by_entries(self, owner: str, name: str, value: Any) -> tuple[int, ...]:
        return _entries_of_column(owner, name, self.shape(value))

    def number(self, value: Any) -> Any:
        return value

    def scalar(self, value: Any) -> Any:
        return value

    def ones(self, n: int) -> Any:
        return sp.ones(n, 1)

    def eye(self, n: int) -> Any:
        return sp.eye(n)

    def zeros(self, n: int, m: int) -> Any:
        return sp.zeros(n, m)

    def column(self, value: Any) -> Any:
        return sp.Matrix(value)

    def entries(self, value: Any) -> Any:
        return value

    def diagonal(self, value: Any) -> Any:
        return sp.diag(*value)

    def transpose(self, value: Any) -> Any:
        return value.T

    def inverse(self, value: Any) -> Any:
        return value.inv()

    def absolute(self, value: Any) -> Any:
        return value.applyfunc(sp.Abs)

    def metzler(self, value: Any) -> Any:
        return sp.Matrix(*value.shape, lambda i, j: value[i, j] if i == j else sp.Abs(value[i, j]))

    def block(self, rows: list[list[Any]]) -> Any:
        return sp.Matrix.vstack(*(sp.Matrix.hstack(*row) for row in rows))


def backend(values: Mapping[str, Any]) -> NumpyOps:
    """The operations for these arguments' kind; a kind of its own names them as `lmi_ops`."""
    torch, cvxpy = sys.modules.get("torch"), sys.modules.get("cvxpy")
    for value in values.values():
        if hasattr(type(value), "lmi_ops"):
            return value.lmi_ops()
        if cvxpy is not None and isinstance(value, cvxpy.Expression):
            return _CvxpyOps()
        if isinstance(value, sp.MatrixBase):
            return _SympyOps()
    tensors = [v for v in values.values() if torch is not None and isinstance(v, torch.Tensor)]
    if tensors:
        return _TorchOps(tensors, list(values.values()))
    return NumpyOps()


def _entries_of_column(owner: str, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """(n,) from (n,) or (n, 1)."""
    if len(shape) > 1 and shape[1] != 1:
        raise ShapeError(f"{owner}: {name} has shape {shape}, but is given by its n entries.")
    return shape[:1]
