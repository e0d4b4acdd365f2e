"""Every layer with every kind of weights, in every precision, state and padding: finite values and
gradients, and the norm of what forward applies, all units on, is at most the bound."""

import copy
import inspect
import pickle

import conv_cases
import layer_cases
import pytest
import torch

from sdplip.layers import CONVOLUTIONS, LAYERS

IMAGE, OTHER = (2, 3), (3, 1)
PRECISIONS = {
    "float32": (torch.float32, False),
    "float64": (torch.float64, False),
    "bfloat16 autocast": (torch.float32, True),
}
CASES = [pytest.param("linear", family, {}, id=f"{family} linear") for family in LAYERS]
CASES += [
    pytest.param("conv", family, {"padding_mode": mode}, id=f"{family} conv {mode}")
    for family in CONVOLUTIONS
    for mode in conv_cases.MODES
]
CASES += [
    pytest.param(kind, family, {"products": "bfloat16"}, id=f"{family} {kind} bfloat16")
    for kind, family in (("linear", "sll"), ("conv", "aol"))
]


def make(kind, family, dtype, options):
    """Without biases, since to remove one later would make a layer forget what it keeps."""
    if kind == "conv":
        options = options | conv_cases.units_on(family)
        return conv_cases.make(family, "3", (2, 3), dtype, bias=False, **options)
    if "activation" in inspect.signature(LAYERS[family]).parameters:
        options = options | {"activation": "identity"}
    return layer_cases.make(LAYERS[family], "tall", dtype, bias=False, **options)


def basis(layer, image=IMAGE):
    """The images or vectors that forward takes to the columns of its matrix."""
    channels = getattr(layer, "in_channels", None)
    shape = (layer.in_features,) if channels is None else (channels, *image)
    n = torch.Size(shape).numel()
    return torch.eye(n, dtype=next(layer.parameters()).dtype).view(n, *shape)


def evaluated(layer, *image):
    """The layer in evaluation, after it was used so."""
    with torch.no_grad():
        layer.eval()(basis(layer, *image))
    return layer


def stepped(layer):
    """CPL's and spectral norm's power iterations lag behind: 1.2 to 17 in the public code."""
    y = evaluated(layer)(basis(layer)[:3])
    (y * torch.randn_like(y)).sum().backward()
    for p in layer.parameters():
        rate = 0.5 * p.detach().abs().max().item() or 0.5
        p.grad.sign_()
        torch.optim.SGD([p], rate).step()
    layer.zero_grad()
    return layer


def loaded(layer):
    state = {
        name: 5 * value if value.is_floating_point() else value
        for name, value in layer.state_dict().items()
    }
    evaluated(layer).load_state_dict(state)
    return layer


STATES = {
    "train": lambda layer: layer.train(),
    "eval": evaluated,
    "after a step": stepped,
    "after load_state_dict": loaded,
    "copied": lambda layer: copy.deepcopy(evaluated(layer)),
    "pickled": lambda layer: pickle.loads(pickle.dumps(evaluated(layer))),
    "after another size": lambda layer: evaluated(layer, OTHER),
}


def promised(layer, dtype, autocast):
    """The bound with what rounding, and the residual of an equilibrium, may add."""
    if hasattr(layer, "solve"):
        slack = conv_cases.SOLVED[dtype]
    else:
        slack = layer_cases.HALF[layer.condition] if autocast else conv_cases.SLACK[dtype]
    return layer.lipschitz * (1 + slack)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("weights", conv_cases.WEIGHTS)
@pytest.mark.parametrize(("kind", "family", "options"), CASES)
def test_every_layer_is_finite_and_keeps_its_bound(kind, family, options, weights, state):
    for name, (dtype, autocast) in PRECISIONS.items():
        layer = make(kind, family, dtype, options)
        conv_cases.draw(layer, weights)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            layer = STATES[state](layer)
            with torch.no_grad():
                M = layer(basis(layer)).flatten(1).double().mT
            found = torch.linalg.matrix_norm(M, ord=layer.norm)
            assert found <= promised(layer, dtype, autocast), name
            x = basis(layer)[:2].requires_grad_()
            layer(x).float().sum().backward()
        assert M.isfinite().all() and x.grad.isfinite().all(), name
        for parameter, p in layer.named_parameters():
            assert p.grad.isfinite().all(), (name, parameter)
