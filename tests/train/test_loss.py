"""The margin loss against its closed form."""

import math

import pytest
import torch
import torch.nn.functional as F

from sdplip.errors import InvalidInput
from sdplip.train import margin_cross_entropy, multi_margin


def test_two_classes_closed_form():
    # CE of logits (a − o, b) at temperature t for class 0: t·log(1 + exp((b − a + o)/t)).
    a, b, offset, temperature = 0.7, -0.2, 1.5, 0.5
    expected = temperature * math.log1p(math.exp((b - a + offset) / temperature))
    loss = margin_cross_entropy(
        torch.tensor([[a, b]]), torch.tensor([0]), offset=offset, temperature=temperature
    )
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_defaults_are_those_of_the_sll_code():
    z, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    shifted = z - 1.5 * math.sqrt(2) * torch.eye(4)[y]
    expected = F.cross_entropy(shifted / 0.25, y) * 0.25
    torch.testing.assert_close(margin_cross_entropy(z, y), expected)


def test_scaling_logits_and_bound_together_scales_the_loss():
    z, y, L = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), 7.0
    scaled = margin_cross_entropy(L * z, y, lipschitz=L, temperature=0.25 * L)
    torch.testing.assert_close(scaled, L * margin_cross_entropy(z, y))


def test_no_offset_at_temperature_one_is_cross_entropy():
    z, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    plain = margin_cross_entropy(z, y, offset=0, temperature=1)
    torch.testing.assert_close(plain, F.cross_entropy(z, y))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(InvalidInput, match="temperature"):
        margin_cross_entropy(torch.zeros(1, 2), torch.tensor([0]), temperature=temperature)


def test_multi_margin_is_the_mean_hinge():
    z, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    expected = 0.0
    for row, label in zip(z.tolist(), y.tolist(), strict=True):
        for j in set(range(3)) - {label}:
            expected += max(0.0, 0.7 * 2.0 - row[label] + row[j]) / 3
    loss = multi_margin(z, y, offset=0.7, lipschitz=2.0)
    assert loss.item() == pytest.approx(expected / 6, rel=1e-6)
