"""Equilibrium convolutions written out as matrices, by definitions that do not use theirs."""

import math

import layer_cases
import numpy as np
import torch
from torch.nn import functional as F

from sdplip.layers.lben_conv import LBENConv2d
from sdplip.layers.multiscale import MultiscaleLBEN
from sdplip.layers.nemon_conv import NEMONConv2d

F64 = torch.float64
EXTREMES = {
    **layer_cases.EXTREMES,
    "negative": layer_cases.everything(lambda p: -p.abs()),
}
FAMILIES = {"lben": LBENConv2d, "nemon": NEMONConv2d, "multiscale": MultiscaleLBEN}


def make(family, kernel_size=3, dtype=F64, **options):
    """A layer with equilibria to rounding, from seed 0; all of its parameters are drawn."""
    torch.default_generator.manual_seed(0)
    hidden = (2, 3) if family == "multiscale" else 3
    layer = FAMILIES[family](2, hidden, 2, kernel_size, dtype=dtype, **options)
    layer.tol = 1e-12 if dtype == F64 else 1e-6
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name != "log_gamma" and not parameter.any():
                parameter.normal_(std=0.5)
    return layer


def put(layer, extreme):
    """Give the layer these parameters."""
    torch.default_generator.manual_seed(1)
    with torch.no_grad():
        EXTREMES[extreme](layer)


def matrix(K, size, stride=1):
    """The matrix of x ↦ Σ_t K(t) x(rq + t - o) on a torus, o = (k - r) // 2 before the first tap.

    By PyTorch's convolution of an image that is repeated often enough.
    """
    columns, k1, k2 = K.shape[1:]
    basis = torch.eye(columns * math.prod(size), dtype=K.dtype).view(-1, columns, *size)
    before = [(k - stride) // 2 for k in (k1, k2)]
    index = [
        (torch.arange(-b, n + k - b)) % n for b, n, k in zip(before, size, (k1, k2), strict=True)
    ]
    wrapped = basis[:, :, index[0]][:, :, :, index[1]]
    y = F.conv2d(wrapped, K, stride=stride)[..., : size[0] // stride, : size[1] // stride]
    return y.flatten(1).mT


def jacobians(system, count=20, seed=3):
    """The Jacobians at random slopes in {0, 1} and [0, 1] of the units."""
    rng = np.random.default_rng(seed)
    n = len(system.A)
    for i in range(count):
        s = rng.random(n) if i % 2 else (rng.random(n) < rng.random()).astype(float)
        inner = np.linalg.solve(np.eye(n) - s[:, None] * system.A, s[:, None] * system.B)
        yield system.D + system.C @ inner
