"""Smooth activations and the proximal maps that belong to them; see `activations`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F


def _softplus(v: Tensor) -> Tensor:
    return torch.logaddexp(v, torch.zeros_like(v))


def _sech2(u: Tensor) -> Tensor:
    """1 - tanh² without cancellation."""
    return 4 * torch.sigmoid(2 * u) * torch.sigmoid(-2 * u)


def _tanh_gap(u: Tensor) -> Tensor:
    """u - tanh(u) without cancellation: Lambert's continued fraction where |u| < 1."""
    near = u.clamp(-1, 1)
    square = near * near
    t = torch.zeros_like(u)
    for odd in range(17, 1, -2):
        t = square / (odd + t)
    return torch.where(u.abs() < 1, near * t / (1 + t), u - torch.tanh(u))


def _logistic_slope(u: Tensor) -> Tensor:
    return torch.sigmoid(u) * torch.sigmoid(-u)


def _elu_gap(u: Tensor) -> Tensor:
    """u - σ(u) without cancellation: the series -u²/2! - u³/3! - … where -1 < u < 0."""
    low = u.clamp(max=0)
    near = low.clamp(min=-1)
    t = torch.ones_like(u)
    for k in range(20, 2, -1):
        t = 1 + near / k * t
    return torch.where(low > -1, -near.square() / 2 * t, low - torch.expm1(low))


@dataclass(frozen=True)
class Smooth:
    """A smooth σ by parts that do not cancel: σ, u - σ(u), σ' and 1 - σ'."""

    value: Callable[[Tensor], Tensor]
    gap: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    coslope: Callable[[Tensor], Tensor]

    def prox(self, v: Tensor, step: Tensor | float) -> Tensor:
        if not isinstance(step, Tensor) and step == 1:
            return self.value(v)
        work = torch.promote_types(v.dtype, torch.float32)
        steps = torch.as_tensor(step, dtype=work, device=v.device)
        u = _Preactivation.apply(*torch.broadcast_tensors(v.to(work), steps), self)
        return self.value(u).to(v.dtype)

    def preactivation(self, v: Tensor, step: Tensor) -> Tensor:
        """The u with σ(u) + step·(u - σ(u)) = v, by Newton's method kept inside a bracket."""
        eps = torch.finfo(v.dtype).eps
        # The left side has slopes between 1 and step, so its value at u = 0 brackets the root.
        offset = v - (1 - step) * self.value(torch.zeros_like(v))
        ends = offset / step.clamp(min=1), offset / step.clamp(max=1)
        low, high = torch.minimum(*ends), torch.maximum(*ends)
        u, previous = ends[0].clone(), high - low
        done = torch.zeros_like(v, dtype=torch.bool)
        for sweep in range(200):
            value, gap = self.value(u), step * self.gap(u)
            error = value + gap - v
            rise = self.slope(u) + step * self.coslope(u)
            noise = eps * (value.abs() + gap.abs() + v.abs() + rise * u.abs())
            done |= ~(error.abs() > noise)  # so written that a NaN counts as done
            if sweep % 4 == 3 and bool(done.all()):
                break
            low, high = torch.where(error < 0, u, low), torch.where(error > 0, u, high)
            new = u - error / rise
            slow = (new - u).abs() > previous / 2
            new = torch.where(slow | (new < low) | (new > high), low + (high - low) / 2, new)
            previous = (new - u).abs()
            u = torch.where(done, u, new)
        return u

    def slopes(self, u: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """The derivatives of `preactivation` in v and step, at its value u."""
        du = 1 / (self.slope(u) + step * self.coslope(u))
        return du, -self.gap(u) * du


class _Preactivation(torch.autograd.Function):
    """`Smooth.preactivation` with the derivatives of the implicit function theorem."""

    @staticmethod
    def forward(ctx: FunctionCtx, v: Tensor, step: Tensor, smooth: Smooth) -> Tensor:
        u = smooth.preactivation(v, step)
        ctx.save_for_backward(u, step)
        ctx.smooth = smooth  # type: ignore[attr-defined]
        return u

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        u, step = ctx.saved_tensors  # type: ignore[attr-defined]
        by_v, by_step = ctx.smooth.slopes(u, step)  # type: ignore[attr-defined]
        return grad * by_v, grad * by_step, None


SMOOTH = {
    "tanh": (1.0, Smooth(torch.tanh, _tanh_gap, _sech2, lambda u: torch.tanh(u).square())),
    "sigmoid": (
        0.25,
        Smooth(
            torch.sigmoid,
            lambda u: u - torch.sigmoid(u),
            _logistic_slope,
            lambda u: 1 - _logistic_slope(u),
        ),
    ),
    "softplus": (
        1.0,
        Smooth(_softplus, lambda u: -_softplus(-u), torch.sigmoid, lambda u: torch.sigmoid(-u)),
    ),
    "elu": (
        1.0,
        Smooth(
            F.elu,
            _elu_gap,
            lambda u: torch.exp(u.clamp(max=0)),
            lambda u: -torch.expm1(u.clamp(max=0)),
        ),
    ),
}
"""The largest slope of each, the least being 0, and its parts."""
