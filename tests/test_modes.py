"""PyTorch's modes are the caller's: bounds are the same in each."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

import sdplip
from sdplip.convolutional import Activate, Convolve, ConvSystem
from sdplip.verify import Region, margin_bounds


@contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


MODES = [
    torch.no_grad,
    torch.inference_mode,
    lambda: torch.autocast("cpu"),
    default_device,
]
X = np.zeros(4)


def dense():
    """With units that have one sign on all inputs that are tried."""
    layers = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 3)
    layers[0].bias.data += 30
    return nn.Sequential(*layers)


def images():
    kernels = (torch.randn(2, 1, 3, 3).numpy(), torch.randn(1, 2, 3, 3).numpy())
    return ConvSystem((Convolve(kernels[0]), Activate("relu"), Convolve(kernels[1])), 1, (4, 4))


def checked(model):
    certificate = sdplip.lipschitz(model)
    return sdplip.check(certificate, model).bound


BOUNDS = {
    "a module": (dense, checked),
    "in a region": (dense, lambda m: sdplip.lipschitz(m, region=Region.ball(X, 0.1)).bound),
    "of margins": (dense, lambda m: margin_bounds(m).bounds.max()),
    "of what is traced": (dense, lambda m: sdplip.lipschitz(m, input_shape=(4,)).lower),
    "of convolutions": (images, lambda m: sdplip.lipschitz(m, method="frequency").lower),
    "of a layer": (lambda: sdplip.layers.SLLLinear(4, hidden=5), checked),
}


@pytest.mark.parametrize("case", BOUNDS)
def test_a_bound_is_the_same_in_every_mode(case):
    make, bound = BOUNDS[case]
    model = make()
    expected = bound(model)
    for mode in MODES:
        with mode():
            assert bound(model) == expected


def test_modules_made_for_inference_alone_have_bounds():
    with torch.inference_mode():
        model = dense()
        x = torch.zeros(1, 4, dtype=torch.float64)
    assert sdplip.lipschitz(model).lower > 0
    assert sdplip.importing.from_torch(model.double(), x).units == 11
