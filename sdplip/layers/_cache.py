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
Vectors = tuple[Tensor, Tensor] | None


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
        if kept is not None and kept.key != key:
            kept = None
        vectors = list(map(_vectors, used)) if kept is None else kept.vectors
        marks = torch.cat(list(map(_mark, used, vectors)))
        if kept is None or not torch.equal(marks, kept.marks):
            with torch.inference_mode(False), torch.no_grad():
                self.kept = kept = Kept(key, vectors, marks, compute())
        return kept.tensors

    def forget(self) -> None:
        self.kept = None


def _recording() -> bool:
    """Whether operations are traced or captured, which would make the closed form a constant."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


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
    if p.ndim < 2:
        return None
    flat = wide(p.detach()).flatten(1)
    with torch.inference_mode(False):
        return _irregular(flat[0]), _irregular(flat[:, 0])


def _mark(p: nn.Parameter, vectors: Vectors) -> Tensor:
    values = wide(p.detach())
    if vectors is None:
        # Few enough to be kept as they are.
        return values.reshape(-1).nan_to_num(*[torch.nan] * 3)
    flat = values.flatten(1)
    # Both ways, since a huge entry hides its neighbours in a sum.
    sums = torch.cat([flat @ vectors[0], flat.mT @ vectors[1]])
    # NaN differs from itself, so that a product that overflowed is never taken for the same.
    return sums.nan_to_num(*[torch.nan] * 3)


def _irregular(like: Tensor) -> Tensor:
    """Numbers between 1 and 2 without a pattern, which weights could be orthogonal to as they are
    to a ramp."""
    place = torch.arange(len(like), dtype=torch.double, device=like.device)
    return (1.5 + (place.square() * math.sqrt(5) + place).sin() / 2).to(like.dtype)
