"""Pooling with its constant for every image size."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from ..errors import InvalidInput, ShapeError
from ._geometry import Pair, pair
from ._part import Part, check_images

Size = int | Pair


def overlap(kernel: Pair, stride: Pair, dilation: Size = 1) -> int:
    """In how many windows a pixel can be.

    Along one axis tap j of window o lies at o·stride + j·dilation; a pixel fixes this sum, hence j
    up to multiples of stride / gcd(stride, dilation).
    """
    spread = pair("overlap", "dilation", dilation)
    axes = zip(kernel, stride, spread, strict=True)
    return math.prod(math.ceil(k * math.gcd(s, d) / s) for k, s, d in axes)


class AvgPool2d(Part):
    """Window sums divided by √(window size): 1-Lipschitz in ℓ₂ where windows do not overlap.

    An image that is constant on every window keeps its norm. With overlapping windows a pixel is in
    up to n = ⌈k_h/s_h⌉⌈k_w/s_w⌉ of them and the constant is √n: by Cauchy-Schwarz the square of an
    output is at most the sum of squares over its window. In ℓ∞ it is √(k_h k_w). Pixels beyond the
    last whole window are left out, as in nn.AvgPool2d.

    Args:
        kernel_size: of the windows; stride: default kernel_size.
        padding, ceil_mode: as in nn.AvgPool2d, but only 0 and False.

    Raises:
        InvalidInput: padding, or ceil_mode, whose cut windows are divided by less.
        ShapeError: on input that is no image.
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: int = 0,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size = pair("AvgPool2d", "kernel_size", kernel_size)
        self.stride = pair("AvgPool2d", "stride", kernel_size if stride is None else stride)
        for name, value in {"padding": padding, "ceil_mode": ceil_mode}.items():
            if value:
                raise InvalidInput(
                    f"AvgPool2d: {name} = {value}, but windows must be whole for the bound. "
                    "Pad the image beforehand, e.g. with nn.ZeroPad2d."
                )

    def lipschitz_in(self, norm: float) -> float:
        windows = overlap(self.kernel_size, self.stride)
        return math.sqrt(windows if norm == 2 else math.prod(self.kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        check_images("AvgPool2d", x)
        return F.avg_pool2d(x, self.kernel_size, self.stride) * self._gain()

    def _gain(self) -> float:
        return math.sqrt(math.prod(self.kernel_size))

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}"


class AdaptiveAvgPool2d(Part):
    """`AvgPool2d` to this output size, 1 for the whole image, for every image size it divides.

    1-Lipschitz in ℓ₂. No constant in ℓ∞, where it grows with the image.

    Args:
        output_size: height and width of the output.

    Raises:
        ShapeError: on an image whose size is no multiple of output_size: the windows of
            nn.AdaptiveAvgPool2d would overlap.
    """

    def __init__(self, output_size: Size = 1) -> None:
        super().__init__()
        self.output_size = pair("AdaptiveAvgPool2d", "output_size", output_size)

    def lipschitz_in(self, norm: float) -> float:
        if norm != 2:
            raise InvalidInput(
                "AdaptiveAvgPool2d: its constant in norm = inf grows with the image. "
                "Use AvgPool2d, whose windows are fixed."
            )
        return 1.0

    def forward(self, x: Tensor) -> Tensor:
        check_images("AdaptiveAvgPool2d", x)
        height, width = self.output_size
        if x.shape[-2] % height or x.shape[-1] % width:
            raise ShapeError(
                f"AdaptiveAvgPool2d: the image is {x.shape[-2]}x{x.shape[-1]}, but must be a "
                f"multiple of output_size = {height}x{width}. Pad or crop it."
            )
        area = x.shape[-2] * x.shape[-1] // (height * width)
        return F.adaptive_avg_pool2d(x, self.output_size) * math.sqrt(area)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class MaxPool2d(Part):
    """nn.MaxPool2d: 1-Lipschitz in ℓ∞, and in ℓ₂ where windows do not overlap.

    The maximum moves by no more than some pixel of its window does, so in ℓ₂ the constant is √n for
    pixels that are in up to n windows (`overlap`). Padding is by -∞ and windows cut by ceil_mode
    are subsets: neither changes that.

    Args:
        kernel_size, stride, padding, dilation, ceil_mode: as in nn.MaxPool2d.
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size = pair("MaxPool2d", "kernel_size", kernel_size)
        self.stride = pair("MaxPool2d", "stride", kernel_size if stride is None else stride)
        self.dilation = pair("MaxPool2d", "dilation", dilation)
        self.padding, self.ceil_mode = padding, ceil_mode

    def lipschitz_in(self, norm: float) -> float:
        if norm != 2:
            return 1.0
        return math.sqrt(overlap(self.kernel_size, self.stride, self.dilation))

    def forward(self, x: Tensor) -> Tensor:
        check_images("MaxPool2d", x)
        return F.max_pool2d(
            x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )
