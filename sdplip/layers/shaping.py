"""Rearranging images without changing their norm, and adding or dropping channels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..errors import ShapeError
from ._base import check_size
from ._part import Nonexpansive, check_images, size_along


class SpaceToDepth(Nonexpansive):
    """Every block x block square of pixels becomes one pixel with block² times the channels.

    An isometry in ℓ₂ and ℓ∞: (N, C, H, W) to (N, C·block², H/block, W/block).

    Raises:
        ShapeError: on an image whose height or width block does not divide.
    """

    def __init__(self, block: int = 2) -> None:
        super().__init__()
        check_size("SpaceToDepth", "block", block)
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        check_images("SpaceToDepth", x)
        if x.shape[-2] % self.block or x.shape[-1] % self.block:
            raise ShapeError(
                f"SpaceToDepth: the image is {x.shape[-2]}x{x.shape[-1]}, which blocks of "
                f"{self.block} do not divide. Pad it, e.g. with nn.ZeroPad2d."
            )
        return F.pixel_unshuffle(x, self.block)

    def extra_repr(self) -> str:
        return f"block={self.block}"


class DepthToSpace(Nonexpansive):
    """The inverse of `SpaceToDepth`: (N, C·block², H, W) to (N, C, H·block, W·block).

    Raises:
        ShapeError: on channels that are no multiple of block².
    """

    def __init__(self, block: int = 2) -> None:
        super().__init__()
        check_size("DepthToSpace", "block", block)
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        check_images("DepthToSpace", x)
        if x.shape[-3] % self.block**2:
            raise ShapeError(
                f"DepthToSpace: the input has {x.shape[-3]} channels, but they must be a multiple "
                f"of {self.block}² = {self.block**2}."
            )
        return F.pixel_shuffle(x, self.block)

    def extra_repr(self) -> str:
        return f"block={self.block}"


class ChannelPad(Nonexpansive):
    """Zeros appended until there are `channels` channels: an isometry in ℓ₂ and ℓ∞.

    Args:
        channels: of the output.
        dim: the channels' dimension, -3 for images (batched or not) and -1 for vectors.

    Raises:
        ShapeError: on input with more channels.
    """

    def __init__(self, channels: int, *, dim: int = -3) -> None:
        super().__init__()
        check_size("ChannelPad", "channels", channels)
        self.channels, self.dim = channels, dim

    def forward(self, x: Tensor) -> Tensor:
        missing = self.channels - size_along("ChannelPad", x, self.dim)
        if missing < 0:
            raise ShapeError(
                f"ChannelPad: the input has {x.shape[self.dim]} channels, more than channels = "
                f"{self.channels}. Use ChannelSlice to drop some."
            )
        after = x.ndim - 1 - self.dim % x.ndim
        return F.pad(x, [0, 0] * after + [0, missing])

    def extra_repr(self) -> str:
        return f"channels={self.channels}, dim={self.dim}"


class ChannelSlice(Nonexpansive):
    """The first `channels` channels, 1-Lipschitz in ℓ₂ and ℓ∞.

    Args:
        channels: of the output; None keeps the first half.
        dim: the channels' dimension, -3 for images (batched or not) and -1 for vectors.

    Raises:
        ShapeError: on input with fewer channels, or an odd number where half are kept.
    """

    def __init__(self, channels: int | None = None, *, dim: int = -3) -> None:
        super().__init__()
        if channels is not None:
            check_size("ChannelSlice", "channels", channels)
        self.channels, self.dim = channels, dim

    def forward(self, x: Tensor) -> Tensor:
        found = size_along("ChannelSlice", x, self.dim)
        if self.channels is None and found % 2:
            raise ShapeError(f"ChannelSlice: {found} channels have no half. Give channels=...")
        kept = found // 2 if self.channels is None else self.channels
        if kept > found:
            raise ShapeError(
                f"ChannelSlice: the input has {found} channels, but channels = {kept}. "
                "Use ChannelPad to add some."
            )
        return x.narrow(self.dim, 0, kept)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, dim={self.dim}"
