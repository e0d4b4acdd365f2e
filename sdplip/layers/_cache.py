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

EVEN = 16.0
"""Where the largest mean of a row is at most so many times the least of a column, a change that no
sum of a row shows is below the rounding of its column as well."""


class Kept(NamedTuple):
    """What was computed, from what, and the vectors that its numbers are looked at with."""

    key: object
    vectors: list[Tensor | None]
    marks: Tensor
    tensors: Tensors


@dataclass
class Cache:
    """The last closed form of a layer and what it was computed from; copies and pickles are empty.

    Writing through `parameter.data` does not move PyTorch's version counters, so that the numbers
    are looked at too: their product with a fixed vector costs one pass over the weights. Weights of
    very different sizes are kept and compared one by one.
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
                vectors = list(map(_vector, used))
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


def _vector(p: nn.Parameter) -> Tensor | None:
    """What the rows of `p` are multiplied with; None to keep its numbers as they are."""
    values = wide(p.detach())
    if values.ndim < 2 or not values.numel():
        return None
    flat = values.flatten(1)
    size = flat.abs()
    # In a sum with huge entries the others hide.
    if not size.mean(dim=1).max() <= EVEN * size.mean(dim=0).min():
        return None
    with torch.inference_mode(False):
        return _irregular(flat[0])


def _marks(parameters: list[nn.Parameter], vectors: list[Tensor | None]) -> Tensor:
    return torch.cat(list(map(_mark, parameters, vectors)))


def _mark(p: nn.Parameter, vector: Tensor | None) -> Tensor:
    values = wide(p.detach())
    # As they are, where there is no vector.
    sums = values.reshape(-1) if vector is None else values.flatten(1) @ vector
    # NaN differs from itself, so that a product that overflowed is never taken for the same.
    return sums.nan_to_num(*[torch.nan] * 3)


def _irregular(like: Tensor) -> Tensor:
    """Numbers between 1 and 2 without a pattern, which weights could be orthogonal to as they are
    to a ramp."""
    place = torch.arange(len(like), dtype=torch.double, device=like.device)
    return (1.5 + (place.square() * math.sqrt(5) + place).sin() / 2).to(like.dtype)
