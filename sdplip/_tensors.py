"""Looking at the values of tensors where that may decide what is computed."""

import torch
from torch import Tensor


def certainly(mask: Tensor) -> bool:
    """Whether all are true; False where a transformation of torch.func forbids to look, there is no
    value, or a trace would make a constant of it, so that the general way must be gone."""
    if torch.compiler.is_compiling() or mask.is_meta:
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(mask) and bool(mask.all())
