"""The Torch module that a derivation gives, as readable source."""

from __future__ import annotations

import keyword
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import sympy as sp

from ..errors import InvalidInput
from ..lmi import Absolute
from .declared import LIBRARY

if TYPE_CHECKING:
    from .derivation import Derivation
    from .free import Free
    from .lemmas import Definition

Kind = Literal["diagonal", "vector", "matrix"]


@dataclass(frozen=True)
class Code:
    """A Torch expression and what it holds: diagonals and vectors by their n entries."""

    text: str
    kind: Kind
    atom: bool = False

    def __str__(self) -> str:
        return self.text if self.atom else f"({self.text})"


class Writer:
    """Turns matrix expressions into Torch source.

    Args:
        kinds: of the symbols that are there already, by name.
        sizes: source of each size symbol, e.g. {n: "W.shape[-1]"}.
        like: a tensor whose dtype and device new ones take.
    """

    def __init__(self, kinds: Mapping[str, Kind], sizes: Mapping[Any, str], like: str) -> None:
        self.kinds = dict(kinds)
        self.sizes, self.like = sizes, like
        self.used: set[str] = set()

    def matrix(self, expr: Any) -> str:
        """Source of the full matrix."""
        code = self(expr)
        return f"torch.diag_embed({code.text})" if code.kind == "diagonal" else code.text

    def diagonal(self, expr: Any) -> str:
        """Source of the diagonal's entries."""
        if isinstance(expr, sp.ZeroMatrix):
            return f"0 * {self._call('ones', self._size(expr.shape[0]))}"
        code = self(expr)
        if code.kind != "diagonal":
            raise InvalidInput(f"{expr} is needed as a diagonal, but is not seen to be one.")
        return code.text

    def scalar(self, expr: Any) -> str:
        return f"{self.like}.new_tensor({sp.pycode(sp.sympify(expr))})"

    def __call__(self, expr: Any) -> Code:
        match expr:
            case sp.MatrixSymbol():
                return Code(expr.name, self.kinds[expr.name], True)
            case sp.DiagMatrix():
                inner = self(expr.args[0])
                return Code(inner.text, "diagonal", inner.atom)
            case sp.Identity():
                return Code(self._call("ones", self._size(expr.shape[0])), "diagonal", True)
            case sp.ZeroMatrix():
                rows, columns = (self._size(d) for d in expr.shape)
                return Code(self._call("zeros", rows, columns), "matrix", True)
            case sp.OneMatrix() if expr.shape[1] == 1:
                return Code(self._call("ones", self._size(expr.shape[0])), "vector", True)
            case sp.Transpose():
                inner = self(expr.arg)
                if inner.kind == "diagonal":
                    return inner
                return Code(f"{inner}.mT", "matrix", True)
            case Absolute():
                inner = self(expr.args[0])
                return Code(f"{inner}.abs()", inner.kind, True)
            case sp.MatAdd():
                return self._sum([self(a) for a in expr.args])
            case sp.MatMul():
                return self._product(*expr.as_coeff_matrices())
            case sp.MatPow() if expr.exp.is_Integer:
                base = self(expr.base)
                if base.kind == "diagonal":
                    return Code(f"{base} ** {int(expr.exp)}", "diagonal")
                if expr.exp < 0:
                    base = Code(f"torch.linalg.inv({base.text})", "matrix", True)
                return Code(" @ ".join([str(base)] * abs(int(expr.exp))), "matrix")
        raise InvalidInput(f"No Torch source for {expr} ({type(expr).__name__}).")

    def _call(self, name: str, *arguments: str) -> str:
        self.used.add(name)
        return f"{name}({', '.join(arguments)}, {self.like})"

    def _size(self, dim: Any) -> str:
        if getattr(dim, "is_Integer", False):
            return str(dim)
        if dim not in self.sizes:
            raise InvalidInput(f"The size {dim} follows from no free symbol.")
        return self.sizes[dim]

    def _sum(self, parts: Sequence[Code]) -> Code:
        kinds = {part.kind for part in parts}
        if kinds == {"diagonal"} or kinds == {"vector"}:
            return Code(_signed([p.text for p in parts]), kinds.pop())
        texts = [
            f"torch.diag_embed({p.text})" if p.kind == "diagonal" else p.text
            for p in sorted(parts, key=lambda p: p.kind != "matrix")
        ]
        return Code(_signed(texts), "matrix")

    def _product(self, factor: Any, matrices: Sequence[Any]) -> Code:
        result = self(matrices[0])
        for other in map(self, matrices[1:]):
            result = _times(result, other)
        if factor == 1:
            return result
        if factor == -1:
            return Code(f"-{result}", result.kind)
        text = sp.pycode(factor)
        text = text if factor.is_Atom else f"({text})"
        return Code(f"{text} * {result}", result.kind)


def _times(a: Code, b: Code) -> Code:
    match a.kind, b.kind:
        case "diagonal", "diagonal":
            return Code(f"{a} * {b}", "diagonal")
        case "diagonal", "matrix":
            return Code(f"{a}.unsqueeze(-1) * {b}", "matrix")
        case "matrix", "diagonal":
            return Code(f"{a} * {b}.unsqueeze(-2)", "matrix")
        case "matrix", "vector":
            return Code(f"({a} @ {b}.unsqueeze(-1)).squeeze(-1)", "vector", True)
        case "diagonal", "vector":
            return Code(f"{a} * {b}", "vector")
        case "matrix", "matrix":
            return Code(f"{a} @ {b}", "matrix")
    raise InvalidInput(f"No Torch source for {a.kind} times {b.kind}.")


def _signed(parts: Sequence[str]) -> str:
    text = parts[0]
    for part in parts[1:]:
        text += f" - {part[1:]}" if part.startswith("-") else f" + {part}"
    return text


_RESERVED = (
    "torch",
    "Tensor",
    "self",
    "training",
    "out_bias",
    "in_features",
    "out_features",
    "hidden",
    "features",
    "between",
    "Activation",
)
_ROLES = {"m": "in_features", "n": "hidden", "p": "out_features"}
_OPTIONS = (
    ("bias", "bool", "True"),
    ("activation", "str | Activation", '"relu"'),
    ("method", "str", '"peaceman_rachford"'),
    ("tol", "float | None", "None"),
    ("max_steps", "int | None", "None"),
    ("device", "torch.device | str | None", "None"),
    ("dtype", "torch.dtype | None", "None"),
)


def source(derivation: Derivation, name: str) -> str:
    """A Python module with the class `name`.

    Raises:
        InvalidInput: an expression of the ansatz that has no Torch form, or a bad class name.
    """
    check_class_name(name)
    check_condition(derivation)
    family = derivation.family
    square = family != "Linear" and derivation.square
    names = dict(_ROLES)
    if square:
        names |= {"p": "in_features"}
    body, used = _closed_form(derivation)
    constants = [f for f in derivation.free if f.domain == "constant"]
    tensors = [f for f in derivation.free if f.domain != "constant"]
    table: dict[str, tuple[str | int, ...]] = {f.parameter: _shape(f, names) for f in tensors}
    _check_names(derivation, family, table)
    has_constructor = family != "Linear" and (square or constants or not derivation.takes_relu)
    imports = ", ".join(sorted(used | ({"between"} if constants else set())))
    lines = [
        f'"""{derivation.title}',
        "",
        *textwrap.wrap(derivation.claim, 96),
        "",
        f"Written by sdplip from the derivation {derivation.name!r}; {derivation.source}.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "import torch",
        "from torch import Tensor",
        "",
        *(["from sdplip.activations import Activation"] if has_constructor else []),
        *([f"from sdplip.layers.closed_forms import {imports}"] if imports else []),
        f"from sdplip.layers.custom import ClosedForm{family}",
        "",
        "",
        f"class {name}(ClosedForm{family}):",
        *textwrap.indent(f'"""{_wrapped(derivation.claim)}"""', "    ").splitlines(),
        "",
        f'    condition = "{derivation.condition.name}"',
        *(['    norm = float("inf")'] if derivation.norm != 2 else []),
        f"    free = {table!r}".replace("'", '"'),
        *([f"    slopes = {derivation.slopes!r}"] if derivation.slopes != (0.0, 1.0) else []),
        *(["    feedthrough = True"] if family == "Equilibrium" and derivation.direct else []),
        *(
            [f"    constants = {tuple(f.name for f in constants)!r}".replace("'", '"')]
            if constants
            else []
        ),
        *(f"    {f.name} = between({f.low!r}, {f.high!r})" for f in constants),
        "",
        *_constructor(family, square, constants, derivation.takes_relu or family == "Linear"),
        "    @staticmethod",
        *textwrap.indent(body, "    ").splitlines(),
    ]
    return "\n".join(lines) + "\n"


def _shape(f: Free, names: Mapping[str, str]) -> tuple[str | int, ...]:
    """The names of a parameter's sizes; vectors are kept by their entries."""
    sizes = f.symbol.shape[:1] if f.facts else f.symbol.shape
    return tuple(int(d) if d.is_Integer else names[str(d)] for d in sizes)


def _check_names(derivation: Derivation, family: str, table: Mapping[str, Any]) -> None:
    from ..layers import closed_forms, custom

    base = getattr(custom, f"ClosedForm{family}")
    taken = {*closed_forms.__all__, *_RESERVED, *(n for n, _, _ in _OPTIONS), *keyword.kwlist}
    symbols = [f.name for f in derivation.free] + [d.symbol.name for d in derivation.definitions]
    for name in (*table, *symbols):
        own = name in base.free or (family == "Equilibrium" and name in "ABCD")
        if name in taken or (name in table and hasattr(base, name) and not own):
            raise InvalidInput(
                f"{derivation.name}: {name!r} cannot name a symbol of a layer: it means something "
                "else in Python, torch or the layer. Rename the symbol."
            )


def check_condition(derivation: Derivation) -> None:
    if derivation.condition.name not in LIBRARY:
        raise InvalidInput(
            f"{derivation.name}: {derivation.condition.name!r} is a condition of your own, from "
            "which no layer is emitted: what it claims is not known to the library."
        )


def check_class_name(name: str) -> None:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise InvalidInput(f"layer: {name!r} is no name for a class.")


def _wrapped(text: str) -> str:
    lines = textwrap.wrap(text, 90)
    return lines[0] if len(lines) == 1 else "\n".join(lines) + "\n"


def _constructor(family: str, square: bool, constants: Sequence[Free], relu: bool) -> list[str]:
    """The constructor where the base's own does not do: one size for input and output, constants,
    or no default activation because the slopes leave out ReLU."""
    if not square and not constants and relu:
        return []
    options = [
        o for o in _OPTIONS if family == "Equilibrium" or o[0] not in ("method", "tol", "max_steps")
    ]
    if family == "Linear":
        options = [o for o in options if o[0] != "activation"]
    sizes = ["in_features", "hidden", "out_features"]
    if family == "Linear":
        sizes = ["in_features", "out_features"]
    if square:
        signature = ["features: int", "hidden: int | None = None"]
        passed = ["features", "features if hidden is None else hidden", "features"]
    else:
        signature = [f"{s}: int" for s in sizes]
        passed = sizes
    if not relu:
        options = [(n, t, "" if n == "activation" else v) for n, t, v in options]
    lead = []
    if family != "Equilibrium":
        lead, options = [options[0]], options[1:]
    lines = ["    def __init__(", "        self,"]
    lines += [f"        {s}," for s in signature]
    lines += [f"        {n}: {t} = {v}," for n, t, v in lead]
    lines += ["        *,"]
    lines += [f"        {f.name}: float = {f.default!r}," for f in constants]
    lines += [f"        {n}: {t} = {v}," if v else f"        {n}: {t}," for n, t, v in options]
    lines += ["    ) -> None:", "        super().__init__("]
    lines += [f"            {p}," for p in passed]
    lines += [f"            {n}={n}," for n, _, _ in (*lead, *options)]
    lines += ["        )"]
    lines += [f"        self.{f.name} = {f.name}" for f in constants]
    return [*lines, ""]


def _closed_form(derivation: Derivation) -> tuple[str, set[str]]:
    """The function from parameters to every symbol of the condition, and what it imports."""
    tensors = [f for f in derivation.free if f.domain != "constant"]
    constants = [f for f in derivation.free if f.domain == "constant"]
    sizes: dict[Any, str] = {}
    for f in tensors:
        for at, dim in enumerate(f.symbol.shape):
            if dim != 1:
                axis = -1 if f.facts or at else -2
                sizes.setdefault(dim, f"{f.parameter}.shape[{axis}]")
    kinds: dict[str, Kind] = {f.name: "vector" if f.facts else "matrix" for f in tensors}
    writer = Writer(kinds, sizes, tensors[0].parameter)
    signature = [f"{f.parameter}: Tensor" for f in tensors] + [
        f"{f.name}: float" for f in constants
    ]
    lines = [f"def closed_form({', '.join(signature)}) -> dict[str, Tensor]:"]
    lines.append(f'    """{derivation.ansatz_text}"""')
    for f in tensors:
        if f.code:
            writer.used.add(f.code)
            lines.append(f"    {f.name} = {f.code}({f.parameter})")
    for d in derivation.definitions:
        lines.append(f"    {d.symbol.name} = {_definition(d, writer)}")
        vector = d.symbol.shape[1] == 1
        kind: Kind = "diagonal" if d.diagonal else "vector" if vector else "matrix"
        writer.kinds[d.symbol.name] = kind
    outputs: dict[str, str] = {}
    for key, value in derivation.outputs.items():
        structure = derivation.condition.structure.get(key, "full")
        if not isinstance(value, sp.MatrixExpr):
            text = writer.scalar(value)
        elif structure == "diagonal":
            text = writer.diagonal(value)
        elif structure == "vector":
            text = writer(value).text
        else:
            text = writer.matrix(value)
        if text == key:
            outputs[key] = key
        else:
            lines.append(f"    {key}_ = {text}" if key in writer.kinds else f"    {key} = {text}")
            outputs[key] = f"{key}_" if key in writer.kinds else key
    for d in derivation.definitions:
        outputs.setdefault(d.symbol.name, d.symbol.name)
    items = ", ".join(f'"{k}": {v}' for k, v in outputs.items())
    lines.append(f"    return {{{items}}}")
    return "\n".join(lines), writer.used


def _definition(d: Definition, writer: Writer) -> str:
    if not d.code:
        if d.symbol.shape[1] == 1:
            return writer(d.value).text
        return writer.diagonal(d.value) if d.diagonal else writer.matrix(d.value)
    arguments = []
    for a in d.arguments[:2]:
        code = writer(a)
        arguments.append(
            code.text
            if code.kind != "diagonal" or d.code == "torch.sqrt"
            else f"torch.diag_embed({code.text})"
        )
    if "." not in d.code:
        writer.used.add(d.code)
    if d.code == "gram_power":
        arguments += ["None"] * (len(d.arguments) == 1)
    if d.code in ("gram_power", "block_dominant"):
        arguments += [repr(o) for o in d.options]
    return f"{d.code}({', '.join(arguments)})"
