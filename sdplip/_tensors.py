"""Looking at values where that may decide what is computed; computing in full precision."""

import cmath
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)


def certainly_at_most(x: Tensor, limit: float | Tensor) -> bool:
    """Whether a number x is; False where a transformation of torch.func forbids to look, or a trace
    would make a constant of it, so that the general way must be gone."""
    return _open(x) and bool(x.item() <= limit)


def certainly_finite(x: Tensor) -> bool:
    """Whether all are finite; False where one may not look either, or where their sum overflows."""
    return _open(x) and cmath.isfinite(x.detach().sum().item())


def only_recorded(x: Tensor) -> bool:
    """Whether autograd, and nothing else, may record what is done with x."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or x.is_meta:
        return False
    transformed = torch._C._are_functorch_transforms_active()
    return not transformed and torch.autograd.forward_ad._current_level < 0


def _open(x: Tensor) -> bool:
    # In this order: the compiler can not trace the other question.
    if torch.compiler.is_compiling() or x.is_meta:
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(x)


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """A context without autocast, which would round closed forms to half precision."""
    device = like.device.type
    # Where it is off, to say so takes longer than many an operation.
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)
