"""What `equilibrium.py` compares with: the public solvers, torchdeq, the floor, exact equilibria.

`Textbook` and `ForwardStep` compute step by step what the public code of [MON], [LBEN] and [NEMON]
does: A is formed again for the inverse, for the recorded step and in backward ([NEMON]: in every
iteration), every iteration synchronises on the norm of its change over the batch, and the loop ends
with that norm, by convergence or by NaN. Diagonal factors are applied entrywise, which is cheaper
than there. Sources: as in `sdplip.equilibrium`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_STEPS = 3000
FREE = ("V", "S", "B", "C", "T", "d", "bias", "out_bias")


class Dense(nn.Module):
    """The free parameters of a dense layer of this package, and A by the formula of its paper."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        for name in FREE:
            if isinstance(getattr(layer, name, None), Tensor):
                setattr(self, name, nn.Parameter(getattr(layer, name).detach().clone()))
        self.gamma, self.shift = getattr(layer, "gamma", math.inf), getattr(layer, "c", 0.0)
        self.eps = getattr(layer, "eps", 0.0)
        self.register_parameter("psi", None)
        if isinstance(getattr(layer, "psi", None), nn.Parameter):
            scale = 1 if math.isinf(self.gamma) else self.gamma
            self.psi = nn.Parameter(-(layer.witness()["Lam"].detach() / scale).log())

    def A(self) -> Tensor:
        if hasattr(self, "T"):
            shift = torch.diag(self.shift - self.T.abs().sum(dim=1))
            return shift + torch.exp(-self.d)[:, None] * self.T * torch.exp(self.d)
        eye = torch.eye(len(self.V), dtype=self.V.dtype, device=self.V.device)
        total = self.V.T @ self.V + self.eps * eye + self.S - self.S.T
        if not math.isinf(self.gamma):
            N = self.B if self.psi is None else torch.exp(-self.psi)[:, None] * self.B
            total = total + (self.C.T @ self.C + N @ N.T) / (2 * self.gamma)
        return eye - (total if self.psi is None else torch.exp(self.psi)[:, None] * total)

    def drive(self, x: Tensor) -> Tensor:
        return F.linear(x, self.B, self.bias)

    def read(self, z: Tensor) -> Tensor:
        return F.linear(z, self.C, self.out_bias)

    def multiply(self, z: Tensor, transpose: bool = False) -> Tensor:
        A = self.A()
        return z @ (A if transpose else A.T)

    def inverse(self, alpha: float) -> Tensor:
        """(I + α(I - A))⁻¹."""
        A = self.A()
        eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
        return torch.inverse((1 + alpha) * eye - alpha * A)

    def apply(self, inverse: Tensor, z: Tensor, transpose: bool = False) -> Tensor:
        return z @ (inverse if transpose else inverse.T)


class Conv(nn.Module):
    """The same for a circular 3×3 convolution with γ = ∞, ψ = 0, pooled: products by convolutions,
    inverses by real matrices of twice the channels at every frequency [MON]."""

    def __init__(self, layer: Any, side: int) -> None:
        super().__init__()
        for name in FREE:
            if isinstance(getattr(layer, name, None), Tensor):
                setattr(self, name, nn.Parameter(getattr(layer, name).detach().clone()))
        self.eps, self.size = layer.eps, (side, side)

    def drive(self, x: Tensor) -> Tensor:
        return F.conv2d(_wrap(x), self.B, self.bias)

    def read(self, z: Tensor) -> Tensor:
        return F.linear(z.sum((-2, -1)) / z[0, 0].numel() ** 0.5, self.C[:, :, 0, 0], self.out_bias)

    def multiply(self, z: Tensor, transpose: bool = False) -> Tensor:
        V = _correlate(F.conv2d(_wrap(z), self.V), self.V)
        S = F.conv2d(_wrap(z), self.S) - _correlate(z, self.S)
        return (1 - self.eps) * z - V + (S if transpose else -S)

    def inverse(self, alpha: float) -> Tensor:
        V, S = (_stacked(K, self.size) for K in (self.V, self.S))
        eye = torch.eye(V.shape[-1], dtype=V.dtype, device=V.device)
        return torch.inverse((1 + alpha * self.eps) * eye + alpha * (V.mT @ V + S - S.mT))

    def apply(self, inverse: Tensor, z: Tensor, transpose: bool = False) -> Tensor:
        waves = torch.fft.fft2(z).permute(2, 3, 0, 1).flatten(0, 1)
        found = torch.cat([waves.real, waves.imag], -1) @ (inverse if transpose else inverse.mT)
        waves = torch.complex(*found.chunk(2, -1)).unflatten(0, z.shape[-2:]).permute(2, 3, 0, 1)
        return torch.fft.ifft2(waves).real


def _wrap(x: Tensor) -> Tensor:
    return F.pad(x, (1, 1, 1, 1), mode="circular")


def _correlate(x: Tensor, K: Tensor) -> Tensor:
    """The adjoint of the circular convolution with K."""
    return F.conv_transpose2d(_wrap(x), K)[..., 2:-2, 2:-2]


def _stacked(K: Tensor, size: tuple[int, ...]) -> Tensor:
    """[[Re, -Im], [Im, Re]] of the symbol of K on all frequencies."""
    placed = F.pad(K, (0, size[1] - 3, 0, size[0] - 3)).roll((-1, -1), (-2, -1))
    waves = torch.fft.fft2(placed).conj().permute(2, 3, 0, 1).flatten(0, 1)
    above = torch.cat([waves.real, -waves.imag], -1)
    return torch.cat([above, torch.cat([waves.imag, waves.real], -1)], -2)


class _Implicit(torch.autograd.Function):
    """z, whose cotangent the network replaces by that of its pre-activation's last step."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, adjoint: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        ctx.adjoint = adjoint
        ctx.save_for_backward(z)
        return z.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return ctx.adjoint(z, g), None


class Textbook(nn.Module):
    """Peaceman-Rachford splitting with step `alpha`, until the batch moves by tol, relatively.

    Attributes:
        tol, back_tol: of the forward and the backward pass, one number in the public code.
        z, steps: what the last splitting found, and the iterations forward and backward. (The step
            recorded for backward starts at z and ends up to ‖A‖ times as far from z*.)
    """

    def __init__(self, weights: Any, alpha: float, tol: float = 1e-2) -> None:
        super().__init__()
        self.weights, self.alpha, self.max_steps = weights, alpha, MAX_STEPS
        self.tol, self.back_tol = tol, tol
        self.steps = [0, 0]

    def forward(self, x: Tensor) -> Tensor:
        self._prepare()
        with torch.no_grad():
            v = self.weights.drive(x)
            z, self.steps[0] = self._settle(self.iterates(v), v, self.tol)
        self.z = z
        z = torch.relu(self.weights.drive(x) + self.weights.multiply(z))
        return self.weights.read(_Implicit.apply(z, self._adjoint))

    def _prepare(self) -> None:
        self.inverse = self.weights.inverse(self.alpha)

    def _adjoint(self, z: Tensor, g: Tensor) -> Tensor:
        self.active = z > 0
        u, self.steps[1] = self._settle(self.adjoints(self.active.to(g), g), g, self.back_tol)
        return g + self.weights.multiply(u, transpose=True)

    def iterates(self, v: Tensor) -> Iterator[Tensor]:
        z = u = torch.zeros_like(v)
        while True:
            half = 2 * z - u
            u = 2 * self.weights.apply(self.inverse, half + self.alpha * v) - half
            z = torch.relu(u)
            yield z

    def adjoints(self, slopes: Tensor, g: Tensor) -> Iterator[Tensor]:
        z = u = torch.zeros_like(g)
        dead, d, v = slopes == 0, (1 - slopes) / slopes, slopes * g
        while True:
            half = 2 * z - u
            u = 2 * self.weights.apply(self.inverse, half, transpose=True) - half
            z = (u + self.alpha * (1 + d) * v) / (1 + self.alpha * d)
            z[dead] = v[dead]
            yield z

    def _settle(self, points: Iterator[Tensor], like: Tensor, tol: float) -> tuple[Tensor, int]:
        z, error, steps = torch.zeros_like(like), math.inf, 0
        while error > tol and steps < self.max_steps:
            last, z, before, steps = z, next(points), error, steps + 1
            error = (z - last).norm().item() / (1e-6 + z.norm().item())
            self._judge(error, before)
        return z, steps

    def _judge(self, error: float, before: float) -> None:
        pass


class ForwardStep(Textbook):
    """[NEMON]'s z ← (1 - α)z + α relu(Az + v), which shrinks α for good whenever the change did not
    shrink by 15 %; with adaptive=False α stays."""

    def __init__(
        self, weights: Any, alpha: float, tol: float = 1e-2, adaptive: bool = False
    ) -> None:
        super().__init__(weights, alpha, tol)
        self.adaptive, self.max_steps = adaptive, 300

    def _prepare(self) -> None:
        pass

    def iterates(self, v: Tensor) -> Iterator[Tensor]:
        z = torch.zeros_like(v)
        while True:
            z = (1 - self.alpha) * z + self.alpha * torch.relu(self.weights.multiply(z) + v)
            yield z

    def adjoints(self, slopes: Tensor, g: Tensor) -> Iterator[Tensor]:
        u = torch.zeros_like(g)
        dead, d, v = slopes == 0, (1 - slopes) / slopes, slopes * g
        while True:
            u = (1 - self.alpha) * u + self.alpha * self.weights.multiply(u, transpose=True)
            u = (u + self.alpha * (1 + d) * v) / (1 + self.alpha * d)
            u[dead] = v[dead]
            yield u

    def _judge(self, error: float, before: float) -> None:
        if self.adaptive and error > 0.85 * before:
            self.alpha /= 1.5


class TorchDEQ(nn.Module):
    """torchdeq's solvers on the forward-backward map z ← relu((1 - α)z + α(Az + v)), whose fixed
    point is the same and which leaves the inactive units at zero; samples stop by themselves."""

    LIMITS = {"fixed_point_iter": 2000, "anderson": 300, "broyden": 100}  # noqa: RUF012

    def __init__(self, weights: Any, solver: str, alpha: float, tol: float = 1e-2) -> None:
        super().__init__()
        self.weights, self.solver, self.alpha = weights, solver, alpha
        self.tol, self.back_tol = tol, tol
        self.max_steps = self.LIMITS[solver]
        self.steps = [0, 0]

    def forward(self, x: Tensor) -> Tensor:
        from torchdeq import get_deq

        limit, self.steps = self.max_steps, [0, 0]
        deq = get_deq(
            f_solver=self.solver,
            b_solver=self.solver,
            ift=True,
            f_tol=self.tol,
            b_tol=self.back_tol,
            f_stop_mode="rel",
            b_stop_mode="rel",
            f_max_iter=limit,
            b_max_iter=limit,
        )
        deq.train()
        v, A = self.weights.drive(x), self.weights.A()

        def move(z: Tensor) -> Tensor:
            self.steps[0] += 1
            return torch.relu((1 - self.alpha) * z + self.alpha * torch.addmm(v, z, A.T))

        def backward(info: Any) -> None:
            self.steps[1] = int(info["nstep"].max())

        z = deq(move, torch.zeros_like(v), backward_writer=backward)[0][-1]
        self.z, self.active = z.detach(), move(z.detach()) > 0
        self.steps[0] -= 1
        return self.weights.read(z)


class Floor(nn.Module):
    """What no splitting can do without: A with its gradient, one inverse, `steps` products, and
    the products with B and C, forward and backward. It solves nothing."""

    def __init__(self, weights: Dense, steps: list[int]) -> None:
        super().__init__()
        self.weights, self.steps = weights, steps

    def forward(self, x: Tensor) -> Tensor:
        A, v = self.weights.A(), self.weights.drive(x)
        with torch.no_grad():
            eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
            R = torch.linalg.inv(2 * eye - A)
            z = v.detach()
            for _ in range(self.steps[0]):
                z = torch.addmm(v, z, R.T)
        return self.weights.read(_Steps.apply(A, v, z, R, self.steps[1]))


class _Steps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, A: Tensor, v: Tensor, z: Tensor, R: Tensor, steps: int) -> Tensor:
        ctx.save_for_backward(z, R)
        ctx.steps = steps
        return z.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, R = ctx.saved_tensors
        u = g
        for _ in range(ctx.steps):
            u = torch.addmm(g, u, R)
        return u.T @ z, u, None, None, None


class Given:
    """A network of which A is given."""

    def __init__(self, A: Tensor) -> None:
        self.matrix = A

    def A(self) -> Tensor:
        return self.matrix

    inverse, apply = Dense.inverse, Dense.apply


def exact(A: Tensor, v: Tensor, z: Tensor) -> Tensor:
    """The equilibria z = relu(A z + v) of float64 rows, by Newton's method on the active sets from
    z; raises where it does not arrive."""
    rows = []
    for drive, row in zip(v, z, strict=True):
        for _ in range(100):
            active = A @ row + drive > 0
            eye = torch.eye(int(active.sum()), dtype=A.dtype, device=A.device)
            row = torch.zeros_like(drive)
            row[active] = torch.linalg.solve(eye - A[active][:, active], drive[active])
            if torch.equal(A @ row + drive > 0, active):
                break
        rows.append(row)
    found = torch.stack(rows)
    defect = (found - torch.relu(found @ A.T + v)).norm(dim=1) / (1 + found.norm(dim=1))
    if not bool((defect < 1e-10).all()):
        raise ArithmeticError(f"Newton's method missed an equilibrium by {float(defect.max()):.1e}")
    return found


def reference(A: Tensor | None, weights: Any, x: Tensor, alpha: float) -> Tensor:
    """The exact equilibria for the A and the drive that were computed in float32, in float64; those
    of a convolution by splitting alone."""
    with torch.no_grad():
        if A is None:
            network = Textbook(copy.deepcopy(weights).double(), alpha, 1e-12)
            network(x.double())
            return network.z.flatten(1)
        v = weights.drive(x).double()
        network = Textbook(Given(A), alpha, 1e-12)
        network._prepare()
        start, _ = network._settle(network.iterates(v), v, 1e-12)
    found = exact(A.cpu(), v.cpu(), start.cpu()).to(x.device)
    if worst(start, found) > 1e-5:
        raise ArithmeticError("Splitting in float64 and Newton's method disagree.")
    return found


def adjoint(A: Tensor, active: Tensor, g: Tensor) -> Tensor:
    """u = D(g + Aᵀu) for float64 rows, D being 1 for the active units and 0 for the others."""
    u = torch.zeros_like(g)
    for found, units, row in zip(u, active, g, strict=True):
        eye = torch.eye(int(units.sum()), dtype=A.dtype, device=A.device)
        found[units] = torch.linalg.solve((eye - A[units][:, units]).T, row[units])
    return u


def worst(found: Tensor, true: Tensor) -> float:
    """The largest relative error of a row."""
    error = float(((found.detach().double() - true).norm(dim=1) / true.norm(dim=1)).max())
    return error if math.isfinite(error) else math.inf


def has_torchdeq() -> bool:
    return find_spec("torchdeq") is not None


def forward_backward(A: Tensor, v: Tensor, alpha: float) -> Iterator[Tensor]:
    """The map that torchdeq is given, iterated."""
    z = torch.zeros_like(v)
    while True:
        z = torch.relu((1 - alpha) * z + alpha * torch.addmm(v, z, A.T))
        yield z
