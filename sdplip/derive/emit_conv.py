"""The convolutional layer that a derivation gives, where its products have that meaning."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sympy as sp

from ..errors import InvalidInput
from .algebra import Algebra
from .emit import Kind, Writer, check_class_name, check_condition

if TYPE_CHECKING:
    from .derivation import Derivation


def source(derivation: Derivation, name: str) -> str:
    """A Python module with the convolutional class `name`.

    Raises:
        InvalidInput: an ansatz that is not made of one free matrix W, diagonals per channel and
            T ⪰ WᵀW by diagonal dominance, or a bad class name.
    """
    check_class_name(name)
    check_condition(derivation)
    W = _kernel(derivation)
    vectors = [f for f in derivation.free if f.facts]
    roles = {"m": "in_features", "n": "hidden", "p": "out_features"}
    if derivation.square:
        roles["p"] = "in_features"
    sides = ("kernel_height", "kernel_width")
    table: dict[str, tuple[str, ...]] = {
        W.name: (roles[str(W.shape[0])], roles[str(W.shape[1])], *sides)
    }
    table |= {f.parameter: (roles[str(f.symbol.shape[0])],) for f in vectors}
    closed, kinds = _closed_form(derivation, W, list(table))
    methods = _methods(derivation, W, kinds)
    used = {u for u in HELPERS if any(f"{u}(" in line for line in (*closed, *methods))}
    forms = {f.code for f in vectors}
    base = f"ClosedForm{derivation.family}Conv2d"
    return "\n".join(
        [
            f'"""{derivation.title}, as a convolution.',
            "",
            *textwrap.wrap(derivation.claim, 96),
            "",
            f"Written by sdplip from the derivation {derivation.name!r}; {derivation.source}.",
            '"""',
            "",
            "from __future__ import annotations",
            "",
            *(["import torch"] * any("torch." in line for line in closed)),
            "from torch import Tensor",
            "",
            *([f"from sdplip.layers.closed_forms import {', '.join(sorted(forms))}"] * bool(forms)),
            f"from sdplip.layers.custom_conv import {base}, {', '.join(sorted(used))}",
            "",
            "",
            f"class {name}({base}):",
            f'    """{derivation.title}, as a convolution with stride 1."""',
            "",
            f'    condition = "{derivation.condition.name}"',
            *(["    square = True"] * (derivation.square and derivation.family == "Residual")),
            f"    free = {table!r}".replace("'", '"'),
            *([f"    slopes = {derivation.slopes!r}"] * (derivation.slopes != (0.0, 1.0))),
            "",
            "    @staticmethod",
            *(f"    {line}" for line in closed),
            "",
            *(f"    {line}" if line else "" for line in methods),
            "",
        ]
    )


HELPERS = ("scale", "dominant_channels")
"""What emitted source may use of `layers.custom_conv`."""


def _closed_form(
    derivation: Derivation, W: Any, parameters: Sequence[str]
) -> tuple[list[str], dict[str, Kind]]:
    """Lines of the function from parameters to symbols, and what each symbol but ρ is."""
    lines = [
        f"def closed_form({', '.join(f'{k}: Tensor' for k in parameters)}) -> dict[str, Tensor]:"
    ]
    lines.append(f'    """{derivation.ansatz_text}"""')
    kinds: dict[str, Kind] = {W.name: "matrix"}
    for f in derivation.free:
        if f.facts:
            lines.append(f"    {f.name} = {f.code}({f.parameter})")
            kinds[f.name] = "vector"
    for d in derivation.definitions:
        if d.lemma == "diagonal dominance":
            q = f", {d.arguments[1].name}" if len(d.arguments) > 1 else ""
            lines.append(f"    {d.symbol.name} = dominant_channels({W.name}{q})")
        else:
            lines.append(f"    {d.symbol.name} = torch.sqrt({d.arguments[0].name})")
        kinds[d.symbol.name] = "diagonal"
    rho = sp.sympify(derivation.outputs["rho"])
    if not rho.is_number:
        raise InvalidInput(f"{derivation.name}: ρ = {rho} is no number.")
    lines.append(f"    rho = {W.name}.new_tensor({sp.pycode(rho)})")
    names = [*kinds, "rho"]
    lines.append(f"    return {{{', '.join(f'{chr(34)}{n}{chr(34)}: {n}' for n in names)}}}")
    return lines, kinds


def _kernel(derivation: Derivation) -> Any:
    matrices = [f for f in derivation.free if not f.facts]
    fits = len(matrices) == 1 and matrices[0].domain != "constant"
    if fits and derivation.family != "Equilibrium":
        W = matrices[0].symbol
        for d in derivation.definitions:
            gram = d.lemma == "diagonal dominance" and Algebra().equal(d.arguments[0], W.T * W)
            fits = fits and (gram or d.lemma == "root")
        if fits:
            return W
    raise InvalidInput(
        f"{derivation.name} has no convolutional form: it must be made of one free matrix W, "
        "diagonals, and T ⪰ WᵀW by diagonal dominance."
    )


def _methods(derivation: Derivation, W: Any, kinds: Mapping[str, Kind]) -> list[str]:
    """Lines of the methods that apply D, or Wᵀ, H and G."""
    o = derivation.outputs
    if derivation.family == "Linear":
        return _method("linear", {"x": o["D"]}, "x", W, kinds)
    before, first, last = (o["W"].T, o["H"], o["G"]) if "H" in o else (o["B"], o["D"], o["C"])
    return [
        *_method("drive", {"x": sp.sympify(before).doit()}, "x", W, kinds),
        "",
        *_method("read", {"x": first, "z": last}, "x, z", W, kinds),
    ]


def _method(
    name: str, parts: Mapping[str, Any], arguments: str, W: Any, kinds: Mapping[str, Kind]
) -> list[str]:
    texts = [text for on, expr in parts.items() if (text := _applied(expr, on, W, kinds))]
    result = " + ".join(texts)
    kept = [n for n in kinds if re.search(rf"\b{n}\b", result)]
    typed = ", ".join(f"{x}: Tensor" for x in arguments.split(", "))
    return [
        f"def {name}(self, w: dict[str, Tensor], {typed}) -> Tensor:",
        f"    {', '.join(kept)} = {', '.join(f'w[{chr(34)}{n}{chr(34)}]' for n in kept)}",
        f"    return {result}",
    ]


def _applied(expr: Any, on: str, W: Any, kinds: Mapping[str, Kind]) -> str:
    """Source of the operator `expr` applied to the images `on`; "" for zero."""
    writer = Writer(kinds, {}, W.name)
    parts = []
    for term in sp.Add.make_args(sp.expand(expr)) if isinstance(expr, sp.MatAdd) else (expr,):
        if isinstance(term, sp.ZeroMatrix):
            continue
        product = isinstance(term, sp.MatMul)
        factor, matrices = term.as_coeff_matrices() if product else (1, (term,))
        text = on
        for X in reversed(matrices):
            match X:
                case sp.Identity():
                    continue
                case sp.MatrixSymbol() if W == X:
                    text = f"self.convolve({W.name}, {text})"
                case sp.Transpose() if X.arg == W:
                    text = f"self.adjoint({W.name}, {text})"
                case _:
                    text = f"scale({writer(X).text}, {text})"
        parts.append(text if factor == 1 else f"{sp.pycode(factor)} * {text}")
    return " + ".join(parts)
