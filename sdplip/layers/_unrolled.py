"""Equilibria by a fixed number of iterations, as modules that can be exported."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..activations import Activation, activation
from ..equilibrium import Circulant, Operator, optimal_step
from ..equilibrium.operators import as_operator, spectrum
from ..equilibrium.problem import rounding
from ..errors import InvalidInput, NotConverged, ShapeError
from ._state import agree, between, pack, unpack

MAX_STEPS = 2000
"""Unrolled iterations of an equilibrium, each of which is a product in the exported graph."""


class Precise(nn.Module):
    """A module that moves to other devices, but keeps its precision when it is cast: for that one
    steps were counted, and of complex numbers a cast would drop the imaginary parts."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def moved(t: Tensor) -> Tensor:
            numbers = torch.view_as_real(t) if t.is_complex() else t
            found = fn(numbers)
            if found.dtype != t.dtype.to_real():
                found = numbers.to(found.device)
            return torch.view_as_complex(found) if t.is_complex() else found

        return super()._apply(moved, recurse)


class Unrolled(Precise):
    """v ↦ z after a fixed number of Peaceman-Rachford steps towards z = σ(Az + v).

    u ← R(2J(u) - u) + 2αVv, V = (I + α(I - A))⁻¹, R = 2V - I and J = prox of step α; z is J(u). No
    value decides what is computed: a sample with NaN leaves the others alone, and a graph can be
    exported. For the same reason α = 1 for activations whose prox has no closed form: that of step
    1 is σ itself.

    Attributes:
        steps: how many.
        rate: ‖R‖_Λ, by which each step brings u closer to its limit in the metric Λ.
    """

    A: Tensor
    R: Tensor
    V: Tensor
    step = between(0, math.inf)
    rate = between(-1, math.inf)

    def __init__(self, A: Tensor | Operator, sigma: str | Activation, metric: Tensor) -> None:
        super().__init__()
        self.sigma, self.steps = activation(sigma), 1
        operator = as_operator(A)
        self.kind = operator.kind
        name = self.sigma.name
        closed = name in ("relu", "identity") or name.startswith("leaky_relu")
        exact = operator.to(torch.float64)
        self.step = optimal_step(exact, "peaceman_rachford", metric) if closed else 1.0
        R, root = self._build(operator), metric.double().sqrt()
        self.rate = float(torch.linalg.matrix_norm(root[:, None] * R / root, ord=2).max())

    def _build(self, A: Operator) -> Tensor:
        V = A.to(torch.float64).resolvent(self.step)
        R = V.affine(-1, 2)
        for name, operator in {"A": A, "R": R, "V": V.affine(0, 2 * self.step)}.items():
            self.register_buffer(name, operator.to(A.dtype).values.detach().clone())
        return R.values

    def forward(self, v: Tensor) -> Tensor:
        v = v.to(self.dtype)
        u = push = self._push(v)
        for _ in range(self.steps):
            u = self._next(u, push)
        return self._point(u)

    @property
    def dtype(self) -> torch.dtype:
        """Of the iteration."""
        return self.kind(self.A).dtype

    def prepare(self, tol: float, v: Tensor | None) -> None:
        """Take as many steps as `tol` asks for (see `fold`), for the rows of v or any input.

        Raises:
            InvalidInput: that is more than MAX_STEPS for any input; no row of v is finite.
            NotConverged: it is for v.
        """
        A = self.kind(self.A)
        if rounding(A) > tol:  # as in `solve`: float32 could not tell whether tol is reached
            self._build(A.to(torch.float64))
        if v is not None:
            self.steps = max(self.steps, self._needed(tol, v))
            return
        needed = math.ceil(math.log(tol) / math.log(self.rate)) if 0 < self.rate < 1 else 1
        if needed > MAX_STEPS or self.rate >= 1:
            raise InvalidInput(
                f"fold: an equilibrium contracts by {self.rate:.6g} per step, which takes more "
                f"than {MAX_STEPS} steps to tol = {tol:g} for every input. Give samples, or raise "
                "tol."
            )
        self.steps = needed

    def _needed(self, tol: float, v: Tensor) -> int:
        v = v.reshape(-1, v.shape[-1]).to(self.dtype)
        finite = v.isfinite().all(-1)
        if not finite.any():
            raise InvalidInput(
                f"fold: no sample is finite, of {len(v)} that reach an equilibrium, so nothing "
                "says how many steps it needs; give images as the network will see."
            )
        v = v[finite]
        u = push = self._push(v)
        A, worst = self.kind(self.A), 0.0
        for step in range(1, MAX_STEPS + 1):
            u = self._next(u, push)
            z = self._point(u)
            defect = (z - self.sigma(A.plus(v, z))).norm(dim=-1)
            worst = float((defect / (1 + z.norm(dim=-1))).max())
            if worst <= tol:
                return step
        raise NotConverged(
            f"fold: after {MAX_STEPS} steps a sample has the residual {worst:.3g}, above tol = "
            f"{tol:g}. Raise tol, or train a layer with a larger margin."
        )

    def _push(self, v: Tensor) -> Tensor:
        return self.kind(self.V).plus(torch.zeros_like(v), v)

    def _next(self, u: Tensor, push: Tensor) -> Tensor:
        return self.kind(self.R).plus(push, 2 * self._point(u) - u)

    def _point(self, u: Tensor) -> Tensor:
        return self.sigma.resolvent(u, self.step)

    def get_extra_state(self) -> Tensor:
        numbers = {"steps": self.steps, "step": self.step, "rate": self.rate}
        return pack({"activation": self.sigma.name, **numbers})

    def set_extra_state(self, state: Tensor) -> None:
        found = unpack("Unrolled", state)
        agree("Unrolled", {"activation": self.sigma.name}, found)
        steps = found.get("steps")
        if type(steps) is not int or not 1 <= steps <= MAX_STEPS:
            raise InvalidInput(
                f"Unrolled: steps = {steps!r}, but must be an integer from 1 to {MAX_STEPS}. "
                "The checkpoint was changed or is damaged."
            )
        self.steps, self.step, self.rate = steps, found.get("step"), found.get("rate")

    def extra_repr(self) -> str:
        return f"activation={self.sigma.name}, steps={self.steps}"


class FoldedEquilibrium(nn.Module):
    """y = Cz + Dx + c with z from `Unrolled` at v = Bx + b.

    Args:
        drive, read: B, b and C, c as nn.Linear. direct: D as nn.Linear, or None.
    """

    def __init__(
        self, drive: nn.Linear, inner: Unrolled, read: nn.Linear, direct: nn.Linear | None
    ) -> None:
        super().__init__()
        self.drive, self.inner, self.read, self.direct = drive, inner, read, direct

    def forward(self, x: Tensor) -> Tensor:
        u = x.to(self.drive.weight.dtype)
        v = self.drive(u)
        z = self.inner(v.reshape(-1, v.shape[-1])).to(v.dtype).reshape(v.shape)
        y = self.read(z)
        return (y if self.direct is None else y + self.direct(u)).to(x.dtype)

    def prepare(self, tol: float, x: Tensor | None) -> None:
        """`Unrolled.prepare` for the rows of x, or any input."""
        v = None if x is None else self.drive(x.to(self.drive.weight.dtype))
        self.inner.prepare(tol, v)


class FoldedEquilibriumConv2d(Precise):
    """An equilibrium convolution with its symbols and steps for one size of images.

    Like those it keeps its precision when it is cast; the output has the input's dtype.

    Args:
        layer: gives the symbols of a size, and says how images enter and leave the torus.
    """

    B: Tensor
    inner: Unrolled
    image: tuple[int, int]

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        self.layer._check(x)
        if (x.shape[-2], x.shape[-1]) != self.image:
            raise ShapeError(
                f"FoldedEquilibriumConv2d: the image is {x.shape[-2]} x {x.shape[-1]}, but it was "
                f"folded for {self.image[0]} x {self.image[1]}. Fold the model for this size too."
            )
        batch = x if x.ndim == 4 else x.unsqueeze(0)
        v, w, waves = self._entered(batch)
        z = self.inner(v.flatten(1)).to(v.dtype).view_as(v)
        y = self.layer._output(w, z, waves, self.image)
        return (y if x.ndim == 4 else y.squeeze(0)).to(x.dtype)

    def prepare(self, tol: float, x: Tensor | None) -> None:
        """Take the symbols for the size of x, and as many steps as its images need.

        Raises:
            InvalidInput: there is no x, or one of another size before. NotConverged: as in
                `Unrolled.prepare`.
        """
        if x is None:
            raise InvalidInput(
                f"fold: {type(self.layer).__name__} computes with the symbols of one size of "
                "images. Give samples of that size."
            )
        image = x.shape[-2], x.shape[-1]
        if not hasattr(self, "inner"):
            self.image = image
            w = self.layer._symbols(self.layer._torus(image))
            for name in "BCD":
                self.register_buffer(name, w.get(name))
            A = Circulant(w["A"], self.layer._torus(image))
            self.inner = Unrolled(A, self.layer.activation, w["metric"])
        if image != self.image:
            known = self._options()["image"]
            raise InvalidInput(
                f"fold: {type(self.layer).__name__} is used for images of {known} and of "
                f"{image[0]} x {image[1]}, but folded for one size. Give each size a layer of its "
                "own, as copy.deepcopy makes."
            )
        v, _, _ = self._entered(x if x.ndim == 4 else x.unsqueeze(0))
        self.inner.prepare(tol, v.flatten(1))

    def get_extra_state(self) -> Tensor:
        return pack(self._options())

    def set_extra_state(self, state: Tensor) -> None:
        owner = type(self).__name__
        agree(owner, self._options(), unpack(owner, state))

    def _options(self) -> dict[str, str]:
        return {"image": " x ".join(map(str, getattr(self, "image", ())))}

    def _entered(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        w = {name: getattr(self, name) for name in "BCD"}
        waves = spectrum(self.layer._entered(x.to(self.B.dtype.to_real())))
        return self.layer._drive(w, waves, self.layer._torus(self.image)), w, waves
