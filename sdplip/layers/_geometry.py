"""How a convolution walks over an image: its map, and the exact adjoint of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor
from torch.nn import functional as F

from .._tensors import HALVES
from ..errors import InvalidInput, ShapeError

Padding = Literal["zeros", "circular"]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """The arguments of nn.Conv2d that say where taps lie, per axis (height, width).

    With zeros the operator is the one on the whole plane between an embedding and a selection of
    pixels, with circular the one on the torus before a selection: a bound of those holds for it.

    Attributes:
        before, after: padding at the two ends of each axis.
    """

    kernel_size: Pair
    stride: Pair
    before: Pair
    after: Pair
    dilation: Pair
    groups: int
    mode: Padding

    @classmethod
    def of(
        cls,
        owner: str,
        kernel_size: int | Pair,
        stride: int | Pair,
        padding: int | Pair | str,
        dilation: int | Pair,
        groups: int,
        mode: str,
        channels: Mapping[str, int],
    ) -> Geometry:
        """Checked arguments; "same" pads by dilation·(kernel - 1) in all, as nn.Conv2d does.

        Args:
            channels: what groups must divide, by name.

        Raises:
            InvalidInput: a size that is none, groups that do not divide, or padding for which no
                bound holds.
        """
        whole = isinstance(groups, int) and groups >= 1
        if not whole or any(count % groups for count in channels.values()):
            named = " and ".join(f"{name} = {count}" for name, count in channels.items())
            raise InvalidInput(f"{owner}: groups = {groups}, but must divide {named}.")
        if mode not in get_args(Padding):
            raise InvalidInput(
                f"{owner}: padding_mode = {mode!r}, but the bound holds for zeros and circular "
                "only: the others repeat pixels, which expands."
            )
        sizes = {
            "kernel_size": pair(owner, "kernel_size", kernel_size),
            "stride": pair(owner, "stride", stride),
            "dilation": pair(owner, "dilation", dilation),
        }
        reach = [d * (k - 1) for d, k in zip(sizes["dilation"], sizes["kernel_size"], strict=True)]
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise InvalidInput(
                    f"{owner}: padding = {padding!r}, but must be 'same', 'valid' or numbers."
                )
            total = reach if padding == "same" else [0, 0]
            before, after = [t // 2 for t in total], [t - t // 2 for t in total]
        else:
            before = after = list(pair(owner, "padding", padding, 0))
        if mode == "circular" and any(
            b + a > r for b, a, r in zip(before, after, reach, strict=True)
        ):
            raise InvalidInput(
                f"{owner}: padding = {padding}, but circular padding by more than dilation * "
                "(kernel_size - 1) in all repeats pixels, which expands. Use padding='same'."
            )
        return cls(
            sizes["kernel_size"],
            sizes["stride"],
            (before[0], before[1]),
            (after[0], after[1]),
            sizes["dilation"],
            groups,
            mode,  # type: ignore[arg-type]
        )

    def check(self, owner: str, size: Pair) -> None:
        """ShapeError for an image (height, width) that the kernel or the torus does not fit."""
        for n, k, s, b, a, d in zip(
            size,
            self.kernel_size,
            self.stride,
            self.before,
            self.after,
            self.dilation,
            strict=True,
        ):
            if n + b + a < d * (k - 1) + 1:
                raise ShapeError(
                    f"{owner}: the image is {size[0]} x {size[1]}, smaller than the kernel with "
                    f"its padding. Use padding='same' or larger images."
                )
            if self.mode == "circular" and (n % s or max(b, a) > n):
                raise ShapeError(
                    f"{owner}: the image is {size[0]} x {size[1]}, but with circular padding its "
                    f"sides must be multiples of the stride {self.stride} and at least as large as "
                    f"the padding {self.before}. Pad the image, or use padding_mode='zeros'."
                )

    def output_size(self, size: Pair) -> Pair:
        """The size that images of this size are mapped to."""
        height, width = (
            (n + b + a - d * (k - 1) - 1) // s + 1
            for n, k, s, b, a, d in zip(
                size,
                self.kernel_size,
                self.stride,
                self.before,
                self.after,
                self.dilation,
                strict=True,
            )
        )
        return height, width

    def convolve(self, K: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The kernel (out, in / groups, k₁, k₂) over images (N, in, height, width)."""
        padding: Any = self.before
        if self.mode == "circular":
            x, padding = F.pad(x, self._ends, mode="circular"), 0
        elif self.before != self.after:
            x, padding = F.pad(x, self._ends), 0
        return F.conv2d(x, K, bias, self.stride, padding, self.dilation, self.groups)

    def transpose(self, K: Tensor, h: Tensor, size: Pair, bias: Tensor | None = None) -> Tensor:
        """The adjoint of `convolve` on images of this size, applied to h (N, out, ·, ·)."""
        if h.dtype in HALVES and self.dilation != (1, 1) and h.is_cpu:
            # torch 2.15 crashes on images of one row.
            exact = None if bias is None else bias.float()
            return self.transpose(K.float(), h.float(), size, exact).to(h.dtype)
        native = self.mode == "zeros" and self.before == self.after
        # Of the padded image, what the kernel reached and what the stride left over.
        reached = [
            (n - 1) * s + d * (k - 1) + 1
            for n, s, d, k in zip(
                h.shape[-2:], self.stride, self.dilation, self.kernel_size, strict=True
            )
        ]
        left = [
            n + b + a - r for n, b, a, r in zip(size, self.before, self.after, reached, strict=True)
        ]
        y = F.conv_transpose2d(
            h,
            K,
            bias if native else None,
            self.stride,
            self.before if native else 0,
            left,
            self.groups,
            self.dilation,
        )
        if native:
            return y
        for axis, (n, b, a) in enumerate(zip(size, self.before, self.after, strict=True), -2):
            inside = y.narrow(axis, b, n)
            if self.mode == "circular":
                head, tail = y.narrow(axis, 0, b), y.narrow(axis, b + n, a)
                inside = inside + _extend(head, axis, n - b, 0) + _extend(tail, axis, 0, n - a)
            y = inside
        return y if bias is None else y + bias[:, None, None]

    @property
    def _ends(self) -> list[int]:
        return [self.before[1], self.after[1], self.before[0], self.after[0]]


def _extend(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    return F.pad(x, [before, after] if axis == -1 else [0, 0, before, after])


def pair(owner: str, name: str, value: int | Pair, least: int = 1) -> Pair:
    """One number per image axis."""
    both = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2 or not all(isinstance(v, int) and v >= least for v in both):
        raise InvalidInput(
            f"{owner}: {name} = {value}, but must be an integer ≥ {least}, or two of them."
        )
    return both
