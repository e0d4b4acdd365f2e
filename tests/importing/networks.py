"""Networks to import, and their export to ONNX."""

from __future__ import annotations

import logging
import warnings

import torch
from torch import nn
from torch.nn import functional as F


def export(module, example, path, *, opset=18, dynamo=False, **options):
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(), (example,), path, opset_version=opset, dynamo=dynamo, verbose=False,
                **options,
            )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)
    return path


class Dense(nn.Module):
    """Skips of every kind: a concatenation, an addition before and after an activation."""

    def __init__(self, act):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8, bias=False), nn.Linear(14, 3)
        self.act = act

    def forward(self, x):
        h = self.act(self.a(x))
        h = self.act(h + self.b(h)) + h
        return self.c(torch.cat([x, h], 1))


class Images(nn.Module):
    """Strides, groups, dilation, padding, batch normalisation, pooling and residual blocks."""

    def __init__(self, pool):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding="same", groups=2, bias=False)
        self.wide = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.slope = nn.PReLU(4)
        self.pool = pool
        self.head = nn.Linear(16, 5)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        self.norm.weight.data.normal_()
        self.slope.weight.data.uniform_(-0.5, 1.5)

    def forward(self, x):
        x = (x - 0.4) / 0.25
        h = F.relu(self.norm(self.first(x)))
        h = F.relu(h + self.second(h))
        h = self.slope(self.wide(F.dropout(h, 0.5, self.training)))
        return self.head(self.pool(h).flatten(1))
