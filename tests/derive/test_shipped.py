"""The layers of the package and those that their derivations emit are the same maps."""

import math

import pytest
import torch

from sdplip.derive.library import find
from sdplip.layers import LAYERS
from sdplip.layers.custom import ClosedForm

BY_HAND = [name for name, cls in LAYERS.items() if not issubclass(cls, ClosedForm)]
CASES = {
    "orthogonal": ((6, 5), (6, 5), {"X": lambda s: s.weight}),
    "spectral": ((6, 5), (6, 5), {"W": lambda s: s.weight}),
    "aol": ((6, 5), (6, 5), {"W": lambda s: s.weight}),
    "cpl": ((6, 8), (6, 8), {"W": lambda s: s.weight.mT}),
    "sll": ((6, 8), (6, 8), {"W": lambda s: s.weight.mT, "log_q": lambda s: s.log_q}),
    "sandwich": (
        (6, 5),
        (6, 5, 5),
        {
            "X": lambda s: s.weight[:, :5].mT,
            "Y": lambda s: s.weight[:, 5:].mT,
            # Φ = √2 Ψ, both bounded softly: weights(x) = √2 weights(log Ψ).
            "log_phi": lambda s: 4 * ((s.log_psi / 4).tanh() + math.log(2) / 8).atanh(),
        },
    ),
    "lben": (
        (6, 8, 5),
        (6, 8, 5),
        {
            "B": lambda s: s.B,
            "C": lambda s: s.C,
            "V": lambda s: s.V,
            "S": lambda s: s.S,
            "log_lam": lambda s: -s.psi,
        },
    ),
    "nemon": (
        (6, 8, 5),
        (6, 8, 5),
        {"T": lambda s: s.T, "log_eta": lambda s: -s.d, "B": lambda s: s.B, "C": lambda s: s.C},
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("family", BY_HAND)
def test_emitted_and_shipped_agree(family, dtype):
    shipped_sizes, emitted_sizes, parameters = CASES[family]
    torch.manual_seed(0)
    shipped = LAYERS[family](*shipped_sizes, dtype=dtype)
    emitted = find(family)[1][0].layer()(*emitted_sizes, dtype=dtype)
    with torch.no_grad():
        for parameter in shipped.parameters():
            parameter.copy_(torch.randn_like(parameter) / 2)
        for name, value in parameters.items():
            getattr(emitted, name).copy_(value(shipped))
        for name in ("bias", "out_bias"):
            if getattr(shipped, name, None) is not None:
                getattr(emitted, name).copy_(getattr(shipped, name))
    for layer in (shipped, emitted):
        if hasattr(layer, "tol"):
            layer.tol = 1e-12 if dtype == torch.float64 else 1e-6
    relative = 1e-5 if dtype == torch.float32 else 1e-10
    ours, theirs = emitted.witness(), shipped.witness()
    for name in ours.keys() & theirs.keys() - {"W", "T"}:
        scale = theirs[name].abs().max().clamp(min=1e-6)
        assert (ours[name] - theirs[name]).abs().max() <= relative * scale, name
    x = torch.randn(20, 6, dtype=dtype)
    y = shipped(x)
    assert (emitted(x) - y).abs().max() <= 10 * relative * y.abs().max()
    assert emitted.lipschitz == pytest.approx(shipped.lipschitz, rel=1e-5)
