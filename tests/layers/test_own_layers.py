"""Layers that a user writes: what is forgotten or does not fit is named, with what to write."""

import math

import pytest
import torch
from torch import nn

from sdplip.errors import InvalidInput, ShapeError
from sdplip.layers import ConvLayer, Layer, fold, lipschitz_bound
from sdplip.layers._geometry import Geometry
from sdplip.layers._part import Container, Part
from sdplip.layers._residual import ResidualLayer
from sdplip.layers._residual_conv import ResidualConv
from sdplip.layers.custom import ClosedFormEquilibrium, ClosedFormLinear, ClosedFormResidual
from sdplip.layers.custom_conv import ClosedFormLinearConv2d, ClosedFormResidualConv2d

BASES = {
    ClosedFormLinear: (3, 4),
    ClosedFormResidual: (3, 5, 4),
    ClosedFormEquilibrium: (3, 5, 4),
    ClosedFormLinearConv2d: (3, 4, 3),
    ClosedFormResidualConv2d: (3, 4, 3),
}
FREE = {"W": ("out_features", "in_features")}
RETURNED = {
    ClosedFormLinear: "D rho",
    ClosedFormResidual: "H G W Lam rho",
    ClosedFormEquilibrium: "A B C D Lam rho",
    ClosedFormLinearConv2d: "rho",
    ClosedFormResidualConv2d: "rho",
}


def mine(base, **body):
    return type("Mine", (base,), body)


def scaled(W):
    """D = W / ‖W‖, ρ = 1."""
    return {"D": W / torch.linalg.matrix_norm(W, 2), "rho": 1}


@pytest.mark.parametrize("base", BASES)
def test_a_forgotten_closed_form_is_named_with_what_to_write(base):
    with pytest.raises(InvalidInput, match="Mine: closed_form is missing") as caught:
        mine(base, free=FREE)(*BASES[base])
    text = str(caught.value)
    assert "@staticmethod\n    def closed_form(W):" in text
    symbols = ", ".join(f'"{name}": {name}' for name in RETURNED[base].split())
    assert f"return {{{symbols}}}" in text


@pytest.mark.parametrize("base", [ClosedFormResidual, ClosedFormResidualConv2d])
def test_parameters_that_are_forgotten_are_named(base):
    with pytest.raises(InvalidInput, match=r"Mine: free is empty.* hidden"):
        mine(base, closed_form=staticmethod(scaled))(*BASES[base])


@pytest.mark.parametrize(
    "body, message",
    [
        ({"closed_form": scaled}, "no static method"),
        ({"closed_form": classmethod(lambda cls, W: scaled(W))}, "no static method"),
        ({"closed_form": staticmethod(lambda: {})}, "does not take W"),
        ({"closed_form": staticmethod(scaled), "constants": ("c",)}, "does not take W, c"),
        ({"free": {"W": ("outputs", "in_features")}}, "free has sizes outputs"),
    ],
)
def test_what_does_not_fit_is_named_as_the_layer_is_made(body, message):
    with pytest.raises(InvalidInput, match=f"Mine: .*{message}"):
        mine(ClosedFormLinear, **{"free": FREE, "closed_form": staticmethod(scaled)} | body)(3, 4)


@pytest.mark.parametrize(
    "closed_form, message",
    [
        (lambda W: {"D": W}, "does not return rho"),
        (lambda W: (W, 1), "does not return D, rho"),
        (lambda W: None, "does not return D, rho"),
    ],
)
def test_symbols_that_are_not_returned_are_named(closed_form, message):
    layer = mine(ClosedFormLinear, free=FREE, closed_form=staticmethod(closed_form))(3, 4)
    for use in (lambda: layer(torch.zeros(3)), lambda: layer.lipschitz, layer.system):
        with pytest.raises(InvalidInput, match=f"Mine: closed_form {message}"):
            use()


@pytest.mark.parametrize(
    "closed_form, name",
    [
        (lambda W: {"D": W.mT, "rho": 1}, "D"),
        (lambda W: {"D": W, "rho": W.new_ones(4)}, "rho"),
    ],
)
def test_shapes_that_do_not_fit_are_named(closed_form, name):
    layer = mine(ClosedFormLinear, free=FREE, closed_form=staticmethod(closed_form))(3, 4)
    for use in (lambda: layer(torch.zeros(3)), lambda: layer.lipschitz):
        with pytest.raises(ShapeError, match=f"Mine: closed_form returns {name} of shape"):
            use()


def test_a_layer_as_the_messages_ask_for_it_keeps_its_promise():
    layer = mine(ClosedFormLinear, free=FREE, closed_form=staticmethod(scaled))(3, 4)
    assert layer.lipschitz == 1.0
    x = torch.randn(3, requires_grad=True)
    J = torch.autograd.functional.jacobian(layer, x)
    assert math.isclose(float(torch.linalg.matrix_norm(J, 2)), 1.0, rel_tol=1e-5)
    layer(x).sum().backward()
    assert layer.W.grad.abs().sum() > 0


def test_no_hook_of_a_base_is_missed_silently():
    """Above all the constant: a map that promises none has none."""

    class Fivefold(Layer):
        def forward(self, x):
            return 5 * x

    layer = Fivefold(3, 3)
    for use, hook in (
        (lambda: layer.lipschitz, "_promise"),
        (layer.system, "_system"),
        (layer.witness, "_closed_form"),
        (lambda: mine(Part)().lipschitz, "lipschitz_in"),
        (lambda: mine(Container)().combined(2, float), "combined"),
        (lambda: mine(ResidualLayer)(3)(torch.zeros(3)), "_multiplier"),
        (lambda: mine(ResidualConv)(3, 3, 3)(torch.zeros(1, 3, 4, 4)), "_multiplier"),
    ):
        with pytest.raises(InvalidInput, match=f": {hook} is not defined"):
            use()
    geometry = Geometry.of("Mine", 3, 1, "same", 1, 1, "zeros", {})
    with pytest.raises(InvalidInput, match="Mine: _unrolled is not defined"):
        mine(ConvLayer)(3, 3, geometry).system((4, 4))
    for refused in (lipschitz_bound, fold):
        with pytest.raises(InvalidInput, match=r"Fivefold|not known"):
            refused(nn.Sequential(layer))


def test_an_equilibrium_layer_names_the_method_that_it_lacks():
    from sdplip.layers._equilibrium import EquilibriumLayer
    from sdplip.layers._equilibrium_conv import EquilibriumConv2d

    for base, method, arguments in (
        (EquilibriumLayer, "_metric", ({},)),
        (EquilibriumLayer.__mro__[1], "solve_output", (None,)),
        (EquilibriumConv2d, "_symbols", ((4, 4),)),
    ):
        bare = type("Mine", (base,), {}).__new__(type("Mine", (base,), {}))
        with pytest.raises(InvalidInput, match=f"{method} is not defined"):
            getattr(base, method)(bare, *arguments)
