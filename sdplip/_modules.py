"""A Torch module as a `System`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import TypeGuard, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ._elementwise import parametrised
from .activations import elementwise_of
from .errors import InvalidInput, ShapeError
from .system import System

STEERED = 1000
"""Up to how many units the self-check looks for inputs that give each of them both signs."""
Kind = TypeVar("Kind", bound=nn.Module)
PASSES: tuple[type[nn.Module], ...] = (nn.Identity, nn.Flatten, nn.Dropout)
"""Modules that are the identity on a flat input in evaluation."""


def extract(module: nn.Module, place: str, features: int | None) -> System:
    """See `System.from_module`; `place` is where the module stands, for messages."""
    where = f" (at {place!r})" if place else ""
    own: Callable[..., System] | None = getattr(module, "system", None)
    if altered(module):
        raise InvalidInput(
            f"{type(module).__name__}{where} has forward hooks or a replaced forward, which may "
            "change what it computes; remove them."
        )
    if own is not None:
        takes_width = "features" in inspect.signature(own).parameters
        return own(features=features) if takes_width else own()
    if plain(module, nn.Linear):
        return System.linear(module.weight, module.bias)
    if plain(module, nn.Sequential):
        system = None
        # Not named_children(), which leaves out a module that is used twice.
        for name, child in module._modules.items():
            if child is None or plain(child, *PASSES):
                continue
            inner = extract(child, f"{place}.{name}".lstrip("."), features)
            system = inner if system is None else inner @ system
            features = system.outputs
        if system is not None:
            return system
        module = PASSES[0]()
    passes = plain(module, *PASSES)
    names: list[str] = []
    if plain(module, nn.PReLU):
        names = [parametrised("leaky_relu", slope) for slope in module.weight.tolist()]
    elif not passes and (sigma := elementwise_of(module)) is not None:
        names = [sigma.name]
    if not names and not passes:
        raise InvalidInput(
            f"{type(module).__name__}{where} is not known as part of a system. Have the whole "
            "model imported, by sdplip.lipschitz(model, input_shape=...) or "
            "sdplip.importing.from_torch(model, example), or give it a method system() -> System."
        )
    if features is None:
        raise InvalidInput(
            f"{type(module).__name__}{where} comes before any layer that fixes the input width; "
            "give features=."
        )
    if passes:
        return System.linear(np.eye(features))
    if len(names) not in (1, features):
        raise ShapeError(f"PReLU{where} has {len(names)} slopes for {features} features.")
    return System.elementwise(names * (features // len(names)), features)


def system_of(module: nn.Module, features: int | None) -> System:
    """See `System.from_module`."""
    module = copied("System.from_module", module)
    if features is None:
        widths = (getattr(m, "in_features", None) for m in module.modules())
        features = next((width for width in widths if width is not None), None)
    system = extract(module, "", features)
    twin = module.double()
    if (gap := differs(twin, extract(twin, "", features))) is not None:
        raise InvalidInput(
            f"{type(module).__name__}: on random inputs, the module and its extracted system "
            f"{gap}. Its system() does not describe its forward()."
        )
    return system


def differs(module: nn.Module, system: System) -> str | None:
    """How a float64 module and its system differ on random inputs; None where they agree."""
    # A module may solve its equilibrium to a tolerance; anything else is float64 arithmetic.
    relative = 1e-9 if system.is_feedforward else 1e-3
    for x in probes(system):
        # A copy, for a module may write into its input.
        with torch.no_grad():
            y = module(x.clone())
        if (found := gap(system, x, y, relative)) is not None:
            return found
    return None


def gap(system: System, x: Tensor, y: Tensor, relative: float) -> str | None:
    """How system(x), x (k, m), differs from y (k, p); None where it does not."""
    with torch.no_grad():
        actual = system(x)
        terms = system.hidden(x).abs() @ torch.as_tensor(abs(system.C)).mT
        terms += x.abs() @ torch.as_tensor(abs(system.D)).mT + torch.as_tensor(abs(system.c))
    return apart(actual, y, relative, terms)


def apart(actual: Tensor, y: Tensor, relative: float, terms: Tensor | None = None) -> str | None:
    """How two tensors differ by more than `relative`; `terms` are what was summed to get them."""
    if y.shape != actual.shape:
        return f"have the shapes {tuple(y.shape)} and {tuple(actual.shape)}"
    if not len(y):
        return None
    sizes = y.abs().max() + 1e-3 * (y.abs() if terms is None else terms).max()
    allowed = relative * sizes
    found = (actual - y).abs().max()
    return None if found <= allowed else f"are {found:.3g} apart (allowed {allowed:.3g})"


def probes(system: System) -> list[Tensor]:
    """Random inputs (k, m): of several sizes, and some that give every unit both signs.

    At an equilibrium only one size: elsewhere it may be slow to find.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, system.inputs, generator=generator, dtype=torch.float64)
    if not system.is_feedforward:
        return [x]
    out = [size * x for size in (1.0, 1e-3, 1e3)]
    if 0 < system.units <= STEERED and (steered := _steered(system, torch.cat(out))) is not None:
        out.append(steered)
    return out


def _steered(system: System, x: Tensor) -> Tensor | None:
    """Inputs from which the units that have one sign on all of x were led to the other one."""
    A, B, b = (torch.as_tensor(a.copy()) for a in (system.A, system.B, system.b))

    def inner(at: Tensor) -> Tensor:
        return system.hidden(at) @ A.mT + at @ B.mT + b

    v = inner(x)
    stuck = ((v > 0).all(0) | (v < 0).all(0)).nonzero()[:, 0][:64]
    if not len(stuck):
        return None
    units, sign = torch.arange(len(stuck)), v[0, stuck].sign()
    at = x[v[:, stuck].abs().argmin(0)]
    for _ in range(12):
        at = at.detach().requires_grad_()
        height = (sign * inner(at)[units, stuck]).clamp(min=0)
        (slope,) = torch.autograd.grad(height.sum(), at)
        at, length = at.detach(), slope.norm(dim=1).clamp(min=1e-150)
        # Newton's step to the change of sign, half as far again.
        step = torch.minimum(1.5 * height.detach() / length, 1e3 * (1 + at.norm(dim=1)))
        at = at - (step / length)[:, None] * slope
    return at


def check_module(owner: str, model: object) -> None:
    """Raise InvalidInput for what is no module, or a lazy one, whose parameters have no shape."""
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"{owner}: the model is {model!r}, but must be a torch.nn.Module.")
    for path, module in model.named_modules():
        if any(map(is_lazy, (*module._parameters.values(), *module._buffers.values()))):
            place = f' (at "{path}")' if path else ""
            raise InvalidInput(
                f"{owner}: {type(module).__name__}{place} has parameters without a shape. "
                "Call the model on a batch first."
            )


def copied(owner: str, model: nn.Module) -> nn.Module:
    """A copy on the CPU in evaluation mode, which itself or reading from it may change a module.

    Raises:
        InvalidInput: it cannot be copied.
    """
    try:
        twin = copy.deepcopy(model).cpu().eval()
        return twin.requires_grad_(False)
    # Whatever a module's own code, or PyTorch, finds that it cannot copy.
    except Exception as error:
        raise InvalidInput(
            f"{owner}: {type(model).__name__} cannot be copied "
            f"({' '.join(str(error).split())[:120]}). Make what its hooks compute permanent, as by "
            "torch.nn.utils.remove_weight_norm or prune.remove; give a scripted module's source, "
            "and weights to one on the meta device."
        ) from error


def altered(module: nn.Module) -> bool:
    """Whether it may compute something else than its class's forward: by hooks, by a method of this
    one instance, or where its class is called in another way."""
    kind = type(module)
    methods = (callable(getattr(kind, name, None)) for name in vars(module))
    called = all(getattr(kind, x) is getattr(nn.Module, x) for x in ("__call__", "_call_impl"))
    return bool(not called or module._forward_hooks or module._forward_pre_hooks or any(methods))


def plain(module: nn.Module, *kinds: type[Kind]) -> TypeGuard[Kind]:
    """Whether a module computes what one of these torch.nn kinds computes, nothing around it.

    A subclass may have a forward of its own, and hooks may change what goes in and comes out.
    """
    return not altered(module) and any(
        isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds
    )
