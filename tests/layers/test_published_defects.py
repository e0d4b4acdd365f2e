"""What public implementations of these layers were measured to get wrong; each has a test.

What concerns every weight, state and padding is in `test_conformance` and `test_conv_conformance`:
row-scaled and heavy-tailed weights, zero rows and columns, 1e-20, bfloat16, reflect and replicate,
copies and strict checkpoints. Stale caches are in `test_cache`, plain convolutions' norms in
`test_conv_geometry`, pooling in `test_parts`.
"""

import itertools

import pytest
import torch
from conv_cases import (
    CONVOLUTIONS,
    DTYPES,
    FEEDFORWARD,
    MODES,
    SLACK,
    applied,
    draw,
    holds,
    make,
    matrix,
    norm,
    units_on,
)
from layer_cases import make as make_dense
from torch import nn

from sdplip.layers import (
    LAYERS,
    NEMONConv2d,
    OrthogonalConv2d,
    OrthogonalLinear,
    SLLConv2d,
    SLLLinear,
    lipschitz_bound,
)

SQUARE = 5, 5
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
LOG_Q = {
    "around 1e-5": lambda n: torch.linspace(-11.5, -6.9, n),
    "one is 1e-6": lambda n: torch.tensor([-13.8] + [0.0] * (n - 1)),
    "one is 1e-7": lambda n: torch.tensor([-16.1] + [0.0] * (n - 1)),
    "one is 0 in float32": lambda n: torch.tensor([-120.0] + [0.0] * (n - 1)),
    "e^±45": lambda n: torch.linspace(-45, 45, n),
    "e^±89": lambda n: torch.linspace(-89, 89, n),
    "e^±1e30": lambda n: torch.linspace(-1e30, 1e30, n),
}


@every_dtype
@pytest.mark.parametrize("log_q", LOG_Q)
@pytest.mark.parametrize("cls", [SLLLinear, SLLConv2d], ids=lambda cls: cls.__name__)
def test_no_q_breaks_sll(cls, log_q, dtype):
    """An ε in 1 / (q + ε), and not in q, has constants 1.2 to 8e6 for small q; |log q| of 89 gives
    NaN."""
    for name in ("default", "tight", "heavy tail"):
        if cls is SLLLinear:
            layer = make_dense(cls, "square", dtype, activation="identity")
        else:
            layer = make("sll", channels=SQUARE, dtype=dtype, activation="identity")
        draw(layer, name)
        with torch.no_grad():
            if name == "tight":
                layer.weight.copy_(_orthogonal_like(layer.weight))
            layer.log_q.copy_(LOG_Q[log_q](len(layer.log_q)))
        shape = (layer.in_features,) if cls is SLLLinear else (5, 4, 4)
        x = torch.randn(2, *shape, dtype=dtype)
        layer(x).square().sum().backward()
        assert all(p.grad.isfinite().all() for p in layer.parameters())
        layer.bias = None
        assert norm(matrix(layer, *shape, dtype=dtype)) <= 1 + SLACK[dtype], name


def _orthogonal_like(W):
    tap = nn.init.orthogonal_(torch.empty(W.shape[:2], dtype=torch.float64)).to(W)
    if W.ndim == 2:
        return tap
    K = torch.zeros_like(W)
    K[:, :, 1, 1] = tap
    return K


def test_q_of_a_convolution_is_alive():
    """In the official convolution, and in another library, q and 1 / q have the same shape and
    cancel: q := 0 moves T by 1e-7."""
    layer = make("sll", channels=SQUARE, dtype=torch.float64, activation="tanh")
    layer.weight.data.normal_()
    before = layer.witness()["T"].detach()
    layer(torch.randn(2, 5, 4, 4, dtype=torch.float64)).square().sum().backward()
    assert layer.log_q.grad.abs().max() > 1e-3 * layer.weight.grad.abs().max()
    layer.log_q.data.copy_(torch.linspace(-1, 1, 5))
    T = layer.witness()["T"]
    assert (T / before - 1).abs().max() > 0.1


@pytest.mark.parametrize("family", FEEDFORWARD)
def test_arguments_are_not_ignored(family):
    """The official convolution takes a stride and leaves it out, and pads by 1 for any kernel."""
    x = torch.randn(1, 4, 6, 6)
    layer = make(family, {"kernel_size": 3, "stride": 2}, (4, 4))
    assert layer(x).shape == (1, 4, 3, 3)
    for kernel in (1, 5):
        layer = make(family, {"kernel_size": kernel}, (4, 4), **units_on(family))
        draw(layer, "default")
        impulse = torch.zeros(2, 4, 9, 9)
        impulse[1, :, 4, 4] = 1
        y = layer(impulse)
        reach = (y[1] - y[0]).abs().sum(dim=0).nonzero()
        assert (reach.max() - 4).item() <= 2 * (kernel // 2)
        assert y.shape[-2:] == (9, 9)


@pytest.mark.parametrize("family", FEEDFORWARD)
@pytest.mark.parametrize("weights", ["default", "constant", "alternating", "duplicates"])
def test_a_norm_found_on_small_images_is_not_used_on_large_ones(family, weights):
    """A step size of CPL found on 4 x 4 images gives 1.75 to 2.29 on 16 x 16."""
    for mode in MODES:
        layer = make(family, channels=(1, 1), padding_mode=mode, dtype=torch.float64)
        draw(layer, weights)
        layer.eval()
        with torch.no_grad():
            layer(torch.randn(1, 1, 4, 4, dtype=torch.float64))
        linear = make(
            family, channels=(1, 1), padding_mode=mode, dtype=torch.float64, **units_on(family)
        )
        linear.load_state_dict(layer.state_dict() | {"_extra_state": linear.get_extra_state()})
        linear.eval()
        with torch.no_grad():
            linear(torch.randn(1, 1, 4, 4, dtype=torch.float64))
        assert holds(linear, (16, 16))


@pytest.mark.parametrize("family", FEEDFORWARD)
def test_training_needs_no_iterations_to_catch_up(family):
    """One power iteration per step leaves training at 1.2 to 1.6, and a jump of the weights to a
    direction that the kept vector does not see at more."""
    layer = make(family, channels=(4, 4), dtype=torch.float64, **units_on(family)).train()
    for step in range(4):
        x = torch.randn(2, 4, 4, 4, dtype=torch.float64)
        layer(x)
        with torch.no_grad():
            for p in layer.parameters():
                p.copy_(torch.randn_like(p) * 10.0 ** (4 * (step % 2)))
        saved = {name: p.detach().clone() for name, p in layer.named_parameters()}
        start = layer(torch.zeros(1, 4, 4, 4, dtype=torch.float64)).detach()
        M = matrix(lambda x, start=start: layer(x) - start, 4, 4, 4, dtype=torch.float64)
        assert norm(M) <= 1 + 1e-9
        assert all(torch.equal(saved[n], p) for n, p in layer.named_parameters())
        assert not list(layer.buffers())


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4, 1e6, 1e8, 1e15, 1e-20, 0.0])
@every_dtype
def test_orthogonal_layers_stay_orthogonal(scale, dtype):
    """The Cayley map by an inverse in float32 reaches 1.056 for weights of 1e4 and 470 for 1e8; a
    truncated exponential and one behind a row scaling are not orthogonal at all."""
    close = {torch.float32: 2e-6, torch.float64: 1e-13}[dtype]
    for options in ({"map": "cayley"}, {"map": "matrix_exp"}):
        layer = OrthogonalLinear(6, 9, dtype=dtype, **options)
        layer.weight.data.normal_().mul_(scale)
        _isometry(layer.witness()["D"], close)
    for kernel, mode in itertools.product((1, 2, 3), MODES):
        layer = OrthogonalConv2d(4, 6, kernel, padding_mode=mode, bias=False, dtype=dtype)
        for p in layer.parameters():
            p.data.normal_().mul_(scale)
        M = applied(layer.train(), (5, 4))
        assert norm(M) <= 1 + 2 * close
        assert torch.equal(applied(layer.eval(), (5, 4)), M)
        if mode == "circular":
            _isometry(M, 2 * close)


@pytest.mark.parametrize("weights", ["duplicates", "row scales", "heavy tail", "rank one", "tight"])
@pytest.mark.parametrize("stride", [1, 2])
def test_orthogonal_convolutions_are_so_for_all_weights(weights, stride):
    """Of one whose exponent loses its skewness the constant is 1.02 to 1.11; a Cholesky factor with
    an ε has 1.00006; symmetric kernels give NaN where the skew part is normalised."""
    for channels in ((4, 4), (6, 4), (3, 5)):
        layer = make(
            "orthogonal",
            {"kernel_size": 3, "stride": stride, "padding_mode": "circular"},
            channels,
            torch.float64,
        )
        draw(layer, weights)
        s = torch.linalg.svdvals(applied(layer, (4, 4)))
        assert (s - 1).abs().max() <= 1e-12


def _isometry(D, close):
    D = D.detach().double()
    gram = D.mT @ D if len(D) >= D.shape[1] else D @ D.mT
    assert (gram - torch.eye(len(gram), dtype=D.dtype)).abs().max() <= close


@every_dtype
@pytest.mark.parametrize("family", [*LAYERS, *(f"conv {name}" for name in FEEDFORWARD)])
def test_symmetric_and_equal_weights_have_gradients(family, dtype):
    """Skew parts of zero, QR of rank one, eigenvalues that repeat: NaN gradients in four of the
    public layers."""
    for change in (
        lambda p: torch.ones_like(p),
        lambda p: p + p.transpose(0, 1) if p.shape[0] == p.shape[1] else p,
        lambda p: torch.eye(*p.shape[:2]).to(p)[(..., *[None] * (p.ndim - 2))].expand_as(p),
    ):
        if family.startswith("conv "):
            layer = make(family[5:], channels=(4, 4), dtype=dtype)
            x = torch.randn(2, 4, 4, 4, dtype=dtype)
        else:
            layer = make_dense(LAYERS[family], "square", dtype)
            x = torch.randn(2, layer.in_features, dtype=dtype)
        with torch.no_grad():
            for p in layer.parameters():
                if p.ndim >= 2:
                    p.copy_(change(p))
        y = layer(x)
        y.square().sum().backward()
        assert y.isfinite().all()
        assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_network_has_the_constant_it_declares(factor):
    """A public container divides k among its layers and ends at 10 times what it claims."""
    layers = [nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight)
        layer.weight.data.mul_(factor**0.5)
    model = nn.Sequential(*layers).double()
    true = norm(matrix(model, 5, dtype=torch.float64))
    assert true <= lipschitz_bound(model) * (1 + 1e-12)
    assert abs(true / factor - 1) <= 1e-6


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_the_measure_of_a_nemon_convolution_is_what_was_asked_for(mode, scale):
    """Asked for 0, the official one has 4.1: its shift forgets taps and channels."""
    for c in (0.0, 0.9, -2.0):
        layer = NEMONConv2d(2, 3, 2, 3, c=c, padding_mode=mode, dtype=torch.float64)
        for p in layer.parameters():
            p.data.normal_().mul_(scale if p.ndim > 1 else 1)
        A = torch.tensor(layer.system(image=(4, 5)).A)
        eta = layer.witness()["eta"].detach()
        weight = eta.repeat_interleave(len(A) // 3)
        rows = (A.abs() * weight).sum(dim=1) / weight - A.diagonal().abs() + A.diagonal()
        assert rows.max() <= c + 1e-12 * A.abs().sum(dim=1).max()


def test_every_convolution_belongs_to_a_family():
    assert set(CONVOLUTIONS) <= set(LAYERS)
