"""Random programs of writes in place, maxima and masks: bounds above what is attained."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sdplip
from sdplip.importing import from_torch

STEPS = [
    lambda m, u, v, i, j: m.a(u),
    lambda m, u, v, i, j: m.b(u).relu_().neg_().add_(v),
    lambda m, u, v, i, j: torch.maximum(u, v),
    lambda m, u, v, i, j: torch.stack([u, v, u - v]).amin(0),
    lambda m, u, v, i, j: u + v.max(1, keepdim=True)[0],
    lambda m, u, v, i, j: torch.cat([F.max_pool1d(u[:, None], 2, 1)[:, 0], v[:, :1].tanh()], 1),
    lambda m, u, v, i, j: torch.where(torch.arange(4) < i, u, v),
    lambda m, u, v, i, j: u.masked_fill(torch.arange(4) == i, 0.5),
    lambda m, u, v, i, j: torch.zeros_like(u).copy_(v[:, i : i + 1]),
    lambda m, u, v, i, j: write(u.clone(), v, i, j),
    lambda m, u, v, i, j: rectify(u.clone(), i, j),
]


def write(y, v, i, j):
    y[:, i] = v[:, j]
    y[:, min(i, j) : max(i, j)] += v[:, min(i, j) : max(i, j)]
    y[:, ::2] *= 0.5
    return y


def rectify(y, i, j):
    y[:, i:].mul_(2).clamp_(min=0)
    y[:, j].fill_(1.0)
    return y


class Program(nn.Module):
    def __init__(self, rng):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.steps = [(int(rng.integers(len(STEPS))), *rng.integers(4, size=4).tolist())
                      for _ in range(rng.integers(2, 7))]  # fmt: skip

    def forward(self, x):
        known = [x]
        for step, first, second, i, j in self.steps:
            u, v = known[-1 - first % len(known)], known[-1 - second % len(known)]
            known.append(STEPS[step](self, u, v, i, j))
        return known[-1] + known[-2]


def attained(net, norm, rng):
    """The largest quotient of differences, of neighbours and of others."""
    x = torch.tensor(rng.normal(size=(300, 4)) * rng.choice([0.1, 1, 5], (300, 1)))
    h = torch.tensor(rng.normal(size=(300, 4)) * rng.choice([1e-4, 1, 3], (300, 1)))
    with torch.no_grad():
        moved = torch.cat([net(row[None]) for row in x + h]) - torch.cat([net(r[None]) for r in x])
    lengths = [torch.linalg.vector_norm(t, norm, dim=1) for t in (moved, h)]
    return float((lengths[0] / lengths[1]).max())


def assert_sound(seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    net = Program(rng).double()
    system = from_torch(net, torch.zeros(1, 4).double())
    for norm in (2, np.inf):
        bound = sdplip.lipschitz(system, norm, lower=False).bound
        assert attained(net, norm, rng) <= bound * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("seed", range(10))
def test_programs_are_bounded(seed):
    assert_sound(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 200))
def test_more_programs_are_bounded(seed):
    assert_sound(seed)
