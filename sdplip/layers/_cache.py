"""Closed forms kept between evaluations, as long as nothing that they depend on has changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ._state import wide

Tensors = dict[str, Tensor]
Vectors = tuple[Tensor, ...]

EVEN = 16.0
"""Where the largest mean of a row is at most so many times the least of a column, sums over rows
show a change as well as sums over columns would."""


class Kept(NamedTuple):
    """What was computed, from what, and the vectors that its numbers are looked at with."""

    key: object
    vectors: list[Vectors]
    marks: Tensor
    tensors: Tensors


@dataclass
class Cache:
    """The last closed form of a layer and what it was computed from; copies and pickles are empty.

    Writing through `parameter.data` does not move PyTorch's version counters, so that the numbers
    are looked at too: their product with a fixed vector costs one pass over the weights.
    """

    kept: Kept | None = None

    def __deepcopy__(self, memo: object) -> Cache:
        return Cache()

    def __reduce__(self) -> tuple[type[Cache], tuple[()]]:
        return Cache, ()

    def get(
        self, layer: nn.Module, options: Callable[[], object], compute: Callable[[], Tensors]
    ) -> Tensors:
        """The closed form of `layer`, from `compute` unless the kept one is still right."""
        if _recording():
            return compute()
        parameters = list(layer._parameters.values())
        if not _may_keep(layer, parameters):
            self.forget()
            return compute()
        used = [p for p in parameters if p is not None]
        key = (str(options()), tuple(map(_identity, used)))
        kept = self.kept  # read once: other threads may evaluate the layer too
        if (
            kept is None
            or kept.key != key
            or not torch.equal(_marks(used, kept.vectors), kept.marks)
        ):
            with torch.inference_mode(False), torch.no_grad():
                vectors = list(map(_vectors, used))
                self.kept = kept = Kept(key, vectors, _marks(used, vectors), compute())
        return kept.tensors

    def forget(self) -> None:
        self.kept = None


def _recording() -> bool:
    """Whether operations are traced or captured, which would make the closed form a constant."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _may_keep(layer: nn.Module, parameters: list[Any]) -> bool:
    """In evaluation, where no gradient of a parameter is wanted and no transformation is at work:
    functional_call, vmap, parametrizations, pruning put other tensors in the parameters' places."""
    if layer.training or any(isinstance(value, Tensor) for value in vars(layer).values()):
        return False
    owned = [p for p in parameters if p is not None]
    if getattr(layer, "parametrizations", None) or any(type(p) is not nn.Parameter for p in owned):
        return False
    if any(p.is_meta or p.is_inference() for p in owned):
        return False
    return not (torch.is_grad_enabled() and any(p.requires_grad for p in owned))


def _identity(p: nn.Parameter) -> tuple[object, ...]:
    return id(p), p._version, p.data_ptr(), p.shape, p.stride(), p.dtype, p.device


def _vectors(p: nn.Parameter) -> Vectors:
    """What the rows and, where they need it, the columns of `p` are multiplied with."""
    values = wide(p.detach())
    if values.ndim < 2 or not values.numel():
        return ()
    flat = values.flatten(1)
    size = flat.abs()
    right = _irregular(flat[0])
    # A huge entry hides the others of its row in a sum, but not those of its column.
    if size.mean(dim=1).max() <= EVEN * size.mean(dim=0).min():
        return (right,)
    return right, _irregular(flat[:, 0])


def _marks(parameters: list[nn.Parameter], vectors: list[Vectors]) -> Tensor:
    return torch.cat(list(map(_mark, parameters, vectors)))


def _mark(p: nn.Parameter, vectors: Vectors) -> Tensor:
    values = wide(p.detach())
    # Few enough to be kept as they are, where there are no vectors.
    sums = values.reshape(-1)
    if vectors:
        flat = values.flatten(1)
        sums = torch.cat([M @ v for M, v in zip((flat, flat.mT), vectors, strict=False)])
    # NaN differs from itself, so that a product that overflowed is never taken for the same.
    return sums.nan_to_num(*[torch.nan] * 3)


def _irregular(like: Tensor) -> Tensor:
    """Numbers between 1 and 2 without a pattern, which weights could be orthogonal to as they are
    to a ramp."""
    place = torch.arange(len(like), dtype=torch.double, device=like.device)
    return (1.5 + (place.square() * math.sqrt(5) + place).sin() / 2).to(like.dtype)
