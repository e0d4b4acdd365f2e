"""The slope ranges of elementwise functions, proved by interval arithmetic.

Each derivative is written here a second time, on t in a bounded interval that stands for a half
line of x. Where its enclosure over all of it lies in the table's range, the range is proved.
"""

from contextlib import contextmanager
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import iv, mp
from torch import nn

from sdplip import System
from sdplip._elementwise import FAMILIES, PLAIN
from sdplip.activations import ACTIVATIONS, activation, elementwise, elementwise_of
from sdplip.errors import InvalidInput, SdplipError

ROOT = iv.sqrt(2 / iv.pi)
SCALE, ALPHA = iv.mpf("1.0507009873554804934193349852946"), iv.mpf(
    "1.6732632423543772848170429916717"
)  # fmt: skip
CUBIC = iv.mpf(["0.04471495", "0.04471505"])
"""With room for its rounding in files."""


def falling(t):
    """-t log t for t in [0, 1], which is |x| exp(-|x|): rising up to 1/e, then falling."""
    low, high = t.a, t.b
    if high > iv.exp(-1).a:
        return iv.mpf([0, iv.exp(-1).b]) if low == 0 else -t * iv.log(t)
    top = -high * iv.log(high) if high > 0 else iv.mpf(0)
    return iv.mpf([0 if low == 0 else (-low * iv.log(low)).a, top.b])


def erf(t):
    return iv.mpf([_erf(t.a).a, _erf(t.b).b])


@cache
def _erf(x):
    """By the alternating series, whose rest is smaller than its first term left out."""
    if x > 6:
        return 1 - iv.mpf([0, 1]) * iv.exp(-iv.mpf(36))
    x = iv.mpf(x)
    total, power = iv.mpf(0), x
    for k in range(200):
        total += power / (2 * k + 1)
        power *= -x * x / (k + 1)
        if k > 2 and abs(power).b < 1e-17:
            break
    return 2 / iv.sqrt(iv.pi) * (total + iv.mpf([-1, 1]) * abs(power))


def gelu(t):
    """For x = t >= 0: Φ(t) + t φ(t), whose second part falls from t = 1 on."""
    if t.a >= 1:
        t_density = iv.mpf([0, (t.a * iv.exp(-(t.a**2) / 2)).b])
        t_density = t * iv.exp(-(t**2) / 2) if t.b < 6.5 else t_density
    else:
        t_density = t * iv.exp(-(t**2) / 2)
    return (1 + erf(t / iv.sqrt(2))) / 2 + t_density / iv.sqrt(2 * iv.pi)


def gelu_tanh(t):
    """For x = t >= 0; beyond 6 every factor exp(-2u) falls faster than the others rise."""
    s = iv.mpf(t.a) if t.b > 6.5 else t
    u, rise = ROOT * (s + CUBIC * s**3), ROOT * (1 + 3 * CUBIC * s**2)
    e = iv.exp(-2 * u)
    d = 1 / (1 + e) + 2 * s * rise * e / (1 + e) ** 2
    return d if t.b <= 6.5 else iv.mpf([(1 / (1 + e)).a, d.b])


def half(t):
    return ((1 - t) / (1 + t)) ** 2


def mish_right(t):
    q = 1 + 2 * t + 2 * t**2
    return (1 + 2 * t) / q + 4 * falling(t) * t * (1 + t) / q**2


def mish_left(t):
    q = (1 + t) ** 2 + 1
    return 1 - 2 / q - 4 * falling(t) * (1 + t) / q**2


def decay(x):
    return mp.exp(-abs(x))


UNIT, LINE = [(0, 1)], [(0, 6.5), (6.5, mp.inf)]
SMOOTH = {
    "asinh": [(0, UNIT, lambda x: 1 / mp.sqrt(1 + x * x), lambda t: t)],
    "atan": [(0, UNIT, lambda x: 1 / (1 + x * x), lambda t: t)],
    "celu(0.7)": [
        (1, UNIT, decay, lambda t: iv.mpf(1)),
        (-1, UNIT, lambda x: mp.exp(x / 0.7), lambda t: t),
    ],
    "cos": [(0, [(-1, 1)], lambda x: -mp.sin(x), lambda t: t)],
    "elu": [(1, UNIT, decay, lambda t: iv.mpf(1)), (-1, UNIT, decay, lambda t: t)],
    "elu(-0.6)": [(1, UNIT, decay, lambda t: iv.mpf(1)), (-1, UNIT, decay, lambda t: -0.6 * t)],
    "elu(1.7)": [(1, UNIT, decay, lambda t: iv.mpf(1)), (-1, UNIT, decay, lambda t: 1.7 * t)],
    "erf": [(0, UNIT, lambda x: mp.exp(-x * x), lambda t: 2 / iv.sqrt(iv.pi) * t)],
    "gelu": [(1, LINE, abs, gelu), (-1, LINE, abs, lambda t: 1 - gelu(t))],
    "gelu_tanh": [(1, LINE, abs, gelu_tanh), (-1, LINE, abs, lambda t: 1 - gelu_tanh(t))],
    "logsigmoid": [
        (1, UNIT, decay, lambda t: 1 - 1 / (1 + t)),
        (-1, UNIT, decay, lambda t: 1 / (1 + t)),
    ],
    "mish": [(1, UNIT, decay, mish_right), (-1, UNIT, decay, mish_left)],
    "selu": [(1, UNIT, decay, lambda t: SCALE), (-1, UNIT, decay, lambda t: SCALE * ALPHA * t)],
    "sigmoid": [(0, UNIT, decay, lambda t: iv.mpf(0.25) - half(t) / 4)],
    "silu": [
        (1, UNIT, decay, lambda t: 1 / (1 + t) + falling(t) / (1 + t) ** 2),
        (-1, UNIT, decay, lambda t: 1 - 1 / (1 + t) - falling(t) / (1 + t) ** 2),
    ],
    "sin": [(0, [(-1, 1)], mp.cos, lambda t: t)],
    "softplus": [
        (1, UNIT, decay, lambda t: 1 / (1 + t)),
        (-1, UNIT, decay, lambda t: 1 - 1 / (1 + t)),
    ],
    "softplus(3.0)": [
        (1, UNIT, lambda x: mp.exp(-3 * x), lambda t: 1 / (1 + t)),
        (-1, UNIT, lambda x: mp.exp(3 * x), lambda t: 1 - 1 / (1 + t)),
    ],
    "softsign": [(0, UNIT, lambda x: 1 / (1 + abs(x)), lambda t: t**2)],
    "tanh": [(0, UNIT, lambda x: mp.exp(-2 * abs(x)), lambda t: 1 - half(t))],
    "tanhshrink": [(0, UNIT, lambda x: mp.exp(-2 * abs(x)), half)],
}
"""By name: on which side of 0 (0: both), where t lies, t of x, and the derivative at t."""

PIECEWISE = {
    "abs": [-1, 1],
    "hardsigmoid": [0, Fraction(1, 6)],
    "hardswish": [0, Fraction(-1, 2), Fraction(3, 2), 1],
    "hardtanh(-0.5,2.0)": [0, 1],
    "identity": [1],
    "leaky_relu": [Fraction(0.01), 1],
    "leaky_relu(-0.5)": [Fraction(-0.5), 1],
    "leaky_relu(2.5)": [Fraction(2.5), 1],
    "relu": [0, 1],
    "softshrink(0.5)": [0, 1],
}
"""The extreme slopes of those that are piecewise linear or, as Hardswish, quadratic."""


@pytest.mark.parametrize("name", SMOOTH)
def test_slopes_are_proved_and_sharp(name):
    sigma = elementwise(name)
    low, high = [], []
    for _, domain, _, derivative in SMOOTH[name]:
        todo = [iv.mpf(ends) for ends in domain]
        while todo:
            t = todo.pop()
            d = derivative(t)
            if sigma.alpha <= d.a and d.b <= sigma.beta:
                continue
            assert t.delta > 1e-7, f"slopes {d} at t = {t}"
            todo += [iv.mpf([t.a, t.mid]), iv.mpf([t.mid, t.b])]
        grid = np.linspace(float(domain[0][0]), float(domain[0][1]), 400)
        points = [derivative(iv.mpf(float(t))) for t in grid]
        low.append(min(float(d.a) for d in points))
        high.append(max(float(d.b) for d in points))
    assert min(low) <= sigma.alpha + 1e-4 and max(high) >= sigma.beta - 1e-4


@pytest.mark.parametrize("name", SMOOTH)
def test_the_derivatives_proved_are_those_of_the_functions(name):
    for side, _, at, derivative in SMOOTH[name]:
        x = np.array([0.003, 0.2, 0.9, 2.4, 5.1]) * (side or 1)
        x = x if side else np.concatenate([x, -x])
        with _digits(40):
            expected = [float(derivative(iv.mpf(at(mp.mpf(v)))).mid) for v in x]
        actual = elementwise(name).derivative(torch.tensor(x))
        # The constant of gelu_tanh has room there.
        np.testing.assert_allclose(actual, expected, atol=2e-7 if name == "gelu_tanh" else 1e-14)


@contextmanager
def _digits(count):
    mp.dps = iv.dps = count
    try:
        yield
    finally:
        mp.dps = iv.dps = 15


@pytest.mark.parametrize("name", PIECEWISE)
def test_slopes_between_kinks_are_exact(name):
    sigma, slopes = elementwise(name), PIECEWISE[name]
    assert Fraction(sigma.alpha) <= min(slopes) and Fraction(sigma.beta) >= max(slopes)
    assert sigma.alpha >= min(slopes) - 1e-15 and sigma.beta <= max(slopes) + 1e-15
    x = torch.linspace(-9, 9, 180_001, dtype=torch.float64)
    middle = (x[1:] + x[:-1]) / 2
    quotients = sigma(x).diff() / x.diff()
    assert abs(quotients - sigma.derivative(middle)).quantile(0.9) < 1e-10
    assert sigma.derivative(x).min() >= sigma.alpha and sigma.derivative(x).max() <= sigma.beta
    assert abs(float(quotients.min()) - min(slopes)) < 1e-4
    assert abs(float(quotients.max()) - max(slopes)) < 1e-4


def test_every_function_of_the_tables_is_proved():
    proved = SMOOTH.keys() | PIECEWISE.keys()
    assert PLAIN.keys() | ACTIVATIONS.keys() <= proved
    assert FAMILIES.keys() <= {name.split("(")[0] for name in proved}


@given(
    st.sampled_from(sorted(PLAIN))
    | st.builds("leaky_relu({})".format, st.floats(-5, 5))
    | st.builds("elu({})".format, st.floats(-3, 3))
    | st.builds("celu({})".format, st.floats(0.1, 9)),
    st.floats(-20, 20),
    st.floats(-20, 20),
)
def test_difference_quotients_lie_in_the_range(name, a, b):
    sigma, u = elementwise(name), torch.tensor([a, b], dtype=torch.float64)
    rise, run = float(sigma(u).diff()), float(u.diff())
    low, high = sorted((sigma.alpha * run, sigma.beta * run))
    assert low - 1e-13 <= rise <= high + 1e-13


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.GELU(), "gelu"),
        (nn.GELU("tanh"), "gelu_tanh"),
        (nn.SiLU(), "silu"),
        (nn.Hardswish(), "hardswish"),
        (nn.Mish(), "mish"),
        (nn.Hardtanh(-2, 3), "hardtanh(-2.0,3.0)"),
        (nn.ReLU6(), "hardtanh(0.0,6.0)"),
        (nn.Hardsigmoid(), "hardsigmoid"),
        (nn.Softsign(), "softsign"),
        (nn.ELU(0.5), "elu(0.5)"),
        (nn.SELU(), "selu"),
        (nn.CELU(2), "celu(2.0)"),
        (nn.LogSigmoid(), "logsigmoid"),
        (nn.Tanhshrink(), "tanhshrink"),
        (nn.Softshrink(), "softshrink(0.5)"),
        (nn.LeakyReLU(1.5), "leaky_relu(1.5)"),
        (nn.Softplus(2, 50), "softplus(2.0)"),
    ],
)
def test_modules_and_names(module, name):
    sigma, x = elementwise_of(module), torch.linspace(-30, 30, 601, dtype=torch.float64)
    assert sigma.name == name
    torch.testing.assert_close(elementwise(name)(x), module(x))
    net = nn.Sequential(nn.Linear(3, 5), module, nn.Linear(5, 2))
    x = torch.randn(4, 3)
    system = System.from_module(net)
    torch.testing.assert_close(system(x.double()).float(), net(x))
    assert (system.alpha == sigma.alpha).all() and (system.beta == sigma.beta).all()
    with pytest.raises(InvalidInput, match="relu"):
        activation(name)


def test_a_first_activation_may_write_into_its_input():
    for first in (nn.LeakyReLU(0.5, inplace=True), nn.ELU(0.5, inplace=True)):
        net, x = nn.Sequential(first, nn.Linear(3, 2)), torch.randn(4, 3)
        system = System.from_module(net)
        torch.testing.assert_close(system(x.double()).float(), net(x.clone()))


def test_prelu_has_a_slope_per_unit():
    net = nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 2), nn.PReLU())
    net[1].weight.data = torch.tensor([-0.5, 0.25, 1.5, 0.0])
    x = torch.randn(5, 3)
    system = System.from_module(net)
    torch.testing.assert_close(system(x.double()).float(), net(x))
    np.testing.assert_allclose(system.alpha[:4], [-0.5, 0.25, 1.0, 0.0])
    np.testing.assert_allclose(system.beta[:4], [1.0, 1.0, 1.5, 1.0])


@pytest.mark.parametrize(
    "name",
    ["celu(0)", "celu(-1.0)", "softplus(-1.0)", "hardtanh(1.0,0.0)", "softshrink(-1.0)", "exp",
     "elu(1e)", "elu(1.0,2.0)", "leaky_relu(1e999)", "maxmin", "gelu(1.0)"],
)  # fmt: skip
def test_functions_without_slopes_are_refused(name):
    with pytest.raises(InvalidInput):
        elementwise(name)
    with pytest.raises(InvalidInput):
        System.elementwise(name, 2)


def test_an_equilibrium_needs_a_proximal_map():
    system = System.equilibrium([[0.1]], [[1.0]], [[1.0]], activation="gelu")
    with pytest.raises(SdplipError, match="proximal"):
        system(np.zeros((1, 1)))


def test_softplus_with_a_jump_is_no_function_of_the_table():
    with pytest.raises(InvalidInput, match="Softplus"):
        System.from_module(nn.Sequential(nn.Linear(2, 2), nn.Softplus()))
