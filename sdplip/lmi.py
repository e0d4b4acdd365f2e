"""A matrix condition written once and evaluated on NumPy, Torch, CVXPY or SymPy.

An `LMI` holds a SymPy block matrix over symbols of symbolic size. Calling it with values walks that
one expression; what kind of matrix comes out follows from what kind went in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from operator import add, matmul, mul
from typing import Any, Literal

import numpy as np
import sympy as sp
from sympy.matrices.expressions import MatrixExpr

from ._backends import NumpyOps, backend
from .errors import InvalidInput, ShapeError

Structure = Literal["full", "diagonal", "symmetric", "vector"]


class Absolute(MatrixExpr):
    """|X|, entry by entry."""

    def __new__(cls, arg: MatrixExpr) -> Absolute:
        return super().__new__(cls, arg)

    @property
    def shape(self) -> tuple[Any, Any]:
        return self.args[0].shape

    def doit(self, **hints: Any) -> MatrixExpr:
        inner = self.args[0].doit(**hints)
        return inner if isinstance(inner, sp.ZeroMatrix | sp.Identity) else type(self)(inner)


class Metzler(Absolute):
    """⌈X⌉: the diagonal of X and the absolute values off it [NEMON]."""


@dataclass(frozen=True)
class LMI:
    """A condition `matrix` ⪰ 0 (or ≥ 0 entrywise) with what it claims and where it comes from.

    Args:
        name: what errors call it.
        matrix: SymPy expression, symmetric for the cone "psd", a column for "nonnegative".
        claim: the statement that the condition implies.
        source: paper, theorem or equation.
        structure: per symbol "diagonal" or "vector" (given by its entries, shape (*batch, n)) or
            "symmetric"; a symbol not listed is a full matrix, shape (*batch, rows, columns).
        cone: "psd" for a linear matrix inequality, "nonnegative" for entrywise inequalities.
        signed: names of the symbols that the claim needs ≥ 0, as multipliers are.

    A scalar given for a diagonal symbol stands for that multiple of the identity.
    """

    name: str
    matrix: MatrixExpr
    claim: str
    source: str
    structure: Mapping[str, Structure] = field(default_factory=dict)
    cone: Literal["psd", "nonnegative"] = "psd"
    signed: tuple[str, ...] = ()

    @cached_property
    def symbols(self) -> dict[str, Any]:
        """The symbols that a call must give, by name; sizes are not among them."""
        matrices = self.matrix.atoms(sp.MatrixSymbol)
        shaped = matrices | self.matrix.atoms(sp.Identity, sp.ZeroMatrix, sp.OneMatrix)
        sizes = {s for x in shaped for d in x.shape for s in d.free_symbols}
        scalars = {s for s in self.matrix.free_symbols if isinstance(s, sp.Symbol)} - sizes
        return {s.name: s for s in sorted(matrices | scalars, key=lambda s: s.name)}

    def __call__(self, **values: Any) -> Any:
        """The matrix at these values.

        Args:
            values: one per symbol: NumPy arrays, Torch tensors, CVXPY expressions (mixed with
                NumPy constants) or SymPy matrices; leading batch dimensions broadcast.

        Returns:
            (*batch, d, d) for "psd", (*batch, d) for "nonnegative", of the arguments' kind.

        Raises:
            InvalidInput: a symbol is missing or unknown.
            ShapeError: a shape contradicts another; the message names both.
        """
        symbols = self.symbols
        if missing := symbols.keys() - values.keys():
            raise InvalidInput(f"{self.name} needs {', '.join(sorted(missing))}: not given.")
        if unknown := values.keys() - symbols.keys():
            raise InvalidInput(
                f"{self.name} has no symbol {', '.join(sorted(unknown))}; "
                f"it has {', '.join(symbols)}."
            )
        ops = backend(values)
        arrays = {name: ops.array(name, value) for name, value in values.items()}
        sizes = self._infer_sizes(symbols, arrays, ops)
        env: dict[Any, Any] = {}
        for name, symbol in symbols.items():
            value = arrays[name]
            if not isinstance(symbol, sp.MatrixSymbol):
                env[symbol] = ops.scalar(value)
            elif self._kind(name) == "diagonal":
                if not ops.shape(value):
                    value = value * ops.ones(_number(symbol.shape[0], sizes))
                env[symbol] = ops.diagonal(value)
            elif self._kind(name) == "vector":
                env[symbol] = ops.column(value)
            else:
                env[symbol] = value
        result = _evaluate(self.matrix, env, sizes, ops)
        return ops.entries(result) if self.cone == "nonnegative" else result

    def margin(self, **values: Any) -> Any:
        """Smallest eigenvalue (or entry), shape (*batch,): evidence in float64, not a proof."""
        matrix = np.asarray(self(**{k: _to_numpy(v) for k, v in values.items()}), dtype=np.float64)
        if self.cone == "nonnegative":
            return matrix.min(axis=-1)
        return np.linalg.eigvalsh((matrix + matrix.swapaxes(-1, -2)) / 2)[..., 0]

    def substitute(
        self, structure: Mapping[str, Structure] | None = None, **expressions: Any
    ) -> LMI:
        """The condition with symbols replaced by SymPy expressions; sizes follow from the shapes.

        Args:
            structure: of symbols that the expressions bring in.
            expressions: per symbol a matrix expression of fitting shape, or a scalar.
        """
        symbols = self.symbols
        sizes: dict[Any, Any] = {}
        for name, new in expressions.items():
            if name not in symbols:
                raise InvalidInput(
                    f"{self.name} has no symbol {name}; it has {', '.join(symbols)}."
                )
            old = symbols[name]
            if not isinstance(old, sp.MatrixSymbol) and getattr(new, "is_Matrix", False):
                raise ShapeError(f"{self.name}: {name} is a scalar, not the matrix {new}.")
            if isinstance(old, sp.MatrixSymbol):
                shape = getattr(new, "shape", None)
                if shape is None:
                    raise ShapeError(f"{self.name}: {name} is a matrix {old.shape}, not {new!r}.")
                for dim, size in zip(old.shape, shape, strict=True):
                    if sizes.setdefault(dim, size) != size:
                        raise ShapeError(
                            f"{self.name}: {name} has shape {shape}, but {dim} = {sizes[dim]}."
                        )
        sizes = {dim: size for dim, size in sizes.items() if dim != size}
        rules = {
            symbols[name].xreplace(sizes): sp.sympify(new) for name, new in expressions.items()
        }
        matrix = _collapse(self.matrix.xreplace(sizes).xreplace(rules))
        kept = {k: v for k, v in self.structure.items() if k not in expressions}
        kept |= structure or {}
        own = {
            s.T: s
            for s in matrix.atoms(sp.MatrixSymbol)
            if kept.get(s.name) in ("diagonal", "symmetric")
        }
        signed = tuple(name for name in self.signed if name not in expressions)
        matrix = _collapse(matrix.xreplace(own))
        return replace(self, matrix=matrix, structure=kept, signed=signed)

    def block(self, *indices: int) -> LMI:
        """The principal submatrix of these block rows and columns (implied by the whole)."""
        blocks = self.matrix.blocks
        columns = indices if self.cone == "psd" else (0,)
        grid = [[blocks[i, j] for j in columns] for i in indices]
        part = replace(self, matrix=grid[0][0] if len(indices) == 1 else sp.BlockMatrix(grid))
        return replace(part, signed=tuple(name for name in self.signed if name in part.symbols))

    def named(self, name: str, claim: str, source: str) -> LMI:
        """The same condition under another name, claim and source."""
        return replace(self, name=name, claim=claim, source=source)

    def _kind(self, name: str) -> Structure:
        return self.structure.get(name, "full")

    def _infer_sizes(
        self, symbols: Mapping[str, Any], arrays: Mapping[str, Any], ops: NumpyOps
    ) -> dict[Any, int]:
        """The value of every size symbol, each fixed by the first array that has it."""
        sizes: dict[Any, int] = {}
        origin: dict[Any, str] = {}
        batch: tuple[int, ...] = ()
        for name, symbol in symbols.items():
            shape = ops.shape(arrays[name])
            dims: tuple[Any, ...] = ()
            if isinstance(symbol, sp.MatrixSymbol) and self._kind(name) in ("diagonal", "vector"):
                shape = ops.by_entries(self.name, name, arrays[name])
                if self._kind(name) == "diagonal" and shape == ():
                    continue
                dims = symbol.shape[:1]
            elif isinstance(symbol, sp.MatrixSymbol):
                dims = symbol.shape
            if len(shape) < len(dims):
                raise ShapeError(
                    f"{self.name}: {name} has shape {shape}, but needs {len(dims)} dimensions."
                )
            lead = len(shape) - len(dims)
            for dim, size in zip(dims, shape[lead:], strict=True):
                known = sizes.setdefault(dim, int(size)) if dim.is_Symbol else int(dim)
                origin.setdefault(dim, name)
                if known != size:
                    raise ShapeError(
                        f"{self.name}: {name} has shape {shape}, but {dim} = {known}"
                        f" (from {origin[dim]})."
                    )
            try:
                batch = np.broadcast_shapes(batch, shape[:lead])
            except ValueError:
                raise ShapeError(
                    f"{self.name}: {name} has the batch dimensions {shape[:lead]}, but the symbols "
                    f"before it have {batch}."
                ) from None
        return sizes


def evaluate(expr: Any, values: Mapping[str, Any], sizes: Mapping[Any, int]) -> Any:
    """A matrix expression or scalar at these values, as full matrices of the values' kind.

    Args:
        values: by name of symbol; at least one decides the kind (see `LMI.__call__`).
        sizes: of the size symbols.
    """
    ops = backend(values)
    names = expr.atoms(sp.MatrixSymbol) | {s for s in expr.free_symbols if isinstance(s, sp.Symbol)}
    env = {s: ops.array(s.name, values[s.name]) for s in names if s.name in values}
    return _evaluate(expr, env, sizes, ops)


def _number(dim: Any, sizes: Mapping[Any, int]) -> int:
    value = sp.sympify(dim).subs(sizes)
    if value.free_symbols:
        raise ShapeError(f"The size {dim} follows from none of the given arrays; give one in full.")
    return int(value)


def _collapse(matrix: MatrixExpr) -> MatrixExpr:
    """Multiply out blocks and drop zeros, without the slow general simplification."""
    return sp.block_collapse(matrix.doit())


def _to_numpy(value: Any) -> Any:
    if hasattr(value, "detach"):
        return value.detach().cpu().double().numpy()
    return value


def _evaluate(expr: Any, env: dict[Any, Any], sizes: Mapping[Any, int], ops: NumpyOps) -> Any:
    """The value of one node, remembered in `env` so that a shared part is computed once."""
    if expr in env:
        return env[expr]

    def go(e: Any) -> Any:
        return _evaluate(e, env, sizes, ops)

    match expr:
        case sp.BlockMatrix():
            rows, cols = expr.blockshape
            value = ops.block([[go(expr.blocks[i, j]) for j in range(cols)] for i in range(rows)])
        case sp.Identity():
            value = ops.eye(_number(expr.shape[0], sizes))
        case sp.ZeroMatrix():
            value = ops.zeros(*(_number(d, sizes) for d in expr.shape))
        case sp.OneMatrix():
            value = ops.column(ops.ones(_number(expr.shape[0], sizes)))
            if expr.shape[1] != 1:
                value = value @ ops.transpose(ops.column(ops.ones(_number(expr.shape[1], sizes))))
        case sp.Transpose():
            value = ops.transpose(go(expr.arg))
        case sp.DiagMatrix():
            value = ops.diagonal(ops.entries(go(expr.args[0])))
        case sp.MatPow() if expr.exp.is_Integer:
            base = ops.inverse(go(expr.base)) if expr.exp < 0 else go(expr.base)
            value = reduce(matmul, [base] * abs(int(expr.exp)))
        case Metzler():
            value = ops.metzler(go(expr.args[0]))
        case Absolute():
            value = ops.absolute(go(expr.args[0]))
        case sp.MatMul():
            coefficient, factors = expr.as_coeff_matrices()
            value = reduce(matmul, map(go, factors))
            if coefficient != 1:
                value = go(coefficient) * value
        case sp.MatAdd() | sp.Add():
            value = reduce(add, map(go, expr.args))
        case sp.Mul():
            value = reduce(mul, map(go, expr.args))
        case sp.Pow():
            value = go(expr.base) ** int(expr.exp)
        case sp.Number():
            value = ops.number(expr)
        case _:
            raise InvalidInput(f"Cannot evaluate {type(expr).__name__} ({expr}) in an LMI.")
    env[expr] = value
    return value
