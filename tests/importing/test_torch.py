"""Torch modules of any structure become systems, or are refused by the name of the node."""

import numpy as np
import pytest
import torch
from networks import Dense, Images
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import sdplip
from sdplip import System
from sdplip.convolutional import Activate, Add, Convolve, ConvSystem, Head, Pool
from sdplip.errors import InvalidInput, UncheckedWarning
from sdplip.importing import TooLarge, convolutions, from_torch, torch_graph

ACTS = [
    (nn.ReLU(inplace=True), "relu"),
    (nn.PReLU(8), "leaky_relu(0.25)"),
    (nn.LeakyReLU(2.0), "leaky_relu(2.0)"),
    (nn.Softplus(2, 50), "softplus(2.0)"),
    (nn.ELU(1.5), "elu(1.5)"),
    (nn.CELU(0.5), "celu(0.5)"),
    (nn.SELU(), "selu"),
    (nn.GELU("tanh"), "gelu_tanh"),
    (nn.SiLU(), "silu"),
    (nn.Mish(), "mish"),
    (nn.Hardswish(), "hardswish"),
    (nn.Hardtanh(), "hardtanh(-1.0,1.0)"),
    (nn.LogSigmoid(), "logsigmoid"),
    (nn.Softsign(), "softsign"),
]


class Function(nn.Module):
    """A module whose forward is a function of x, with two linear maps beside it."""

    def __init__(self, f):
        super().__init__()
        self.a, self.b, self.f = nn.Linear(6, 8), nn.Linear(8, 3), f

    def forward(self, x):
        return self.f(self, x)


def agree(module, example, system=None, atol=1e-5):
    system = from_torch(module, example) if system is None else system
    x = torch.randn(5, *example.shape[1:])
    with torch.no_grad():
        expected = module.eval()(x).flatten(1)
    y = system(x.double() if isinstance(system, ConvSystem) else x.double().flatten(1))
    torch.testing.assert_close(y.flatten(1).float(), expected, atol=atol, rtol=1e-4)
    return system


@pytest.mark.parametrize(("act", "name"), ACTS, ids=lambda a: str(a).split("(")[0])
def test_every_activation_through_skips(act, name):
    system = agree(Dense(act), torch.zeros(1, 6))
    assert system.units == 16 and set(system.activation) == {name}


@pytest.mark.parametrize("pool", [nn.AvgPool2d(3, 2, 1, count_include_pad=False),
                                  nn.AdaptiveAvgPool2d(2)], ids=str)  # fmt: skip
def test_convolutions_unroll(pool):
    assert isinstance(agree(Images(pool), torch.zeros(1, 3, 8, 8)), System)


def written(m, x):
    y, z = m.a(x).clone(), torch.zeros(len(x), 3).to(x)
    y[:, 0] = 5 * y[:, 1].relu()
    y[:, 2::2] *= 3
    y[:, -1] = 7
    y[:, 3:5] += x[:, :2].tanh()
    return z.copy_(y[:, :1]).add_(m.b(y))


FUNCTIONS = {
    "parts written": written,
    "add": lambda m, x: m.b(F.relu(m.a(x)) + 0.1) - 2,
    "scalar minus": lambda m, x: m.b(1 - torch.tanh(m.a(2 * x))),
    "alpha": lambda m, x: torch.add(m.b(m.a(x).abs()), m.b(m.a(x)), alpha=0.3),
    "split": lambda m, x: sum(F.relu(part) for part in m.a(x).chunk(4, 1)),
    "unbind": lambda m, x: torch.stack([F.relu(c) for c in m.a(x).unbind(1)], 1).flip(1),
    "clamp": lambda m, x: m.b(m.a(x).clamp(-0.5, 0.25).clamp(min=-0.4).clamp(max=0.2)),
    "maximum": lambda m, x: m.b(torch.maximum(m.a(x), m.a(-x)).minimum(torch.ones(8))),
    "mean": lambda m, x: m.a(x).relu().mean(1, keepdim=True) + m.b(m.a(x)).sum(1, keepdim=True),
    "matrix": lambda m, x: torch.matmul(x, m.a.weight.T).sigmoid() @ m.b.weight.T,
    "gelu by hand": lambda m, x: m.b(m.a(x) * 0.5 * (1 + torch.erf(m.a(x) / 2**0.5))),
    "quick gelu": lambda m, x: m.b(m.a(x) * torch.sigmoid(1.702 * m.a(x))),
    "mutation": lambda m, x: m.b(F.relu_(m.a(x)).mul_(2).add_(1)),
    "slices": lambda m, x: m.a(x)[:, 1:7:2].relu() + x[:, :3] / 4,
    "constants": lambda m, x: m.b(m.a(x).relu() * torch.arange(8.0) + m.a.bias.exp()),
    "sum of products": lambda m, x: torch.einsum("bi,oi->bo", m.a(x).relu(), m.b.weight),
    "places": lambda m, x: m.a(x).relu()[:, [7, 0, 0]].repeat(1, 2).cumsum(1)[:, 2:5],
    "turned": lambda m, x: m.a(x).view(-1, 2, 4).rot90(1, (1, 2)).diagonal(0, 1, 2).clip(max=0.2),
    "alike": lambda m, x: torch.max(x, torch.zeros_like(x)) + torch.ones_like(x[:, :1]),
    "masks": lambda m, x: torch.where(torch.arange(3) < 1, m.b(m.a(x)), x[:, :1].relu()),
    "fills": lambda m, x: m.a(x).masked_fill(torch.arange(8) % 3 == 1, 0.1).relu(),
    "triangle": lambda m, x: m.a(x).view(-1, 2, 4).tril().relu().sum(1)[:, :3],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    agree(Function(FUNCTIONS[name]), torch.zeros(1, 6))


REFUSED = {
    "softmax": lambda m, x: m.b(m.a(x).softmax(1)),
    "square": lambda m, x: m.a(x) ** 2,
    "product": lambda m, x: m.a(x) * x.sum(1, keepdim=True),
    "quotient": lambda m, x: m.a(x) / (1 + x[:, :1].exp()),
    "norm": lambda m, x: F.layer_norm(m.a(x), [8]),
    "noise": lambda m, x: m.a(x) + torch.randn(8, dtype=x.dtype),
    "sort": lambda m, x: m.a(x).sort(1).values,
    "softplus": lambda m, x: F.softplus(m.a(x)),
    "choice": lambda m, x: torch.where(m.a(x) > 0, m.a(x), 0.0),
    "loop": lambda m, x: torch._higher_order_ops.while_loop(
        lambda i, v: i < 3, lambda i, v: (i + 1, m.a(v)[:, :6]), (torch.tensor(0), x)
    )[1],
    "branch": lambda m, x: m.a(x) if x.sum() > 0 else m.a(-x),
    "step": lambda m, x: torch.heaviside(m.a(x), torch.zeros(1, dtype=x.dtype)),
    "constant": lambda m, x: torch.ones(1, 3),
    "number": lambda m, x: 3.0,
    "nothing": lambda m, x: None,
    "dictionary": lambda m, x: {"y": m.a(x)},
    "two": lambda m, x: (x, m.a(x)),
    "single": lambda m, x: m.a(x).float().to(x.dtype),
    "rounding": lambda m, x: m.a(x).half().to(x.dtype),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_translation_is_refused(name):
    with pytest.raises(InvalidInput, match=r"node '|cannot be exported|does not depend|one"):
        from_torch(Function(REFUSED[name]), torch.zeros(1, 6))


@pytest.mark.parametrize(
    "f",
    [
        lambda m, x: m.b(m.a(x - x.mean(0, keepdim=True))),
        lambda m, x: m.a(x + 5 * (x - x.roll(1, 0))),
        lambda m, x: m.a(x) if len(x) == 1 else 100 * m.a(x),
        lambda m, x: m.a(x) if len(x) < 3 else 100 * m.a(x),
    ],
    ids=["mean", "roll", "branch", "branch at three"],
)
def test_what_mixes_the_samples_of_a_batch_is_not_one_of_a_single_sample(f):
    net = Function(f)
    with pytest.raises(InvalidInput, match="depends on the others of its batch"):
        from_torch(net, torch.zeros(1, 6))
    # Several samples as one input are mixed by the system, too.
    system = from_torch(net, torch.zeros(3, 6))
    x = torch.randn(3, 6)
    with torch.no_grad():
        torch.testing.assert_close(system(x.double().flatten()).float(), net(x).flatten())


WRITING = {
    "scaled twice": lambda m, x: x.mul_(2) * 2,
    "normalised": lambda m, x: m.b(F.relu(m.a(x.sub_(0.5).div_(0.25)))),
    "first activation": lambda m, x: m.a(F.relu_(x)),
    "returned": lambda m, x: x.relu_(),
}


@pytest.mark.parametrize("name", WRITING)
def test_modules_may_write_into_their_input(name):
    net = Function(WRITING[name])
    system, x = from_torch(net, torch.zeros(1, 6)), torch.randn(4, 6)
    with torch.no_grad():
        torch.testing.assert_close(system(x.double()).float(), net(x.clone()))
    if name == "scaled twice":
        assert sdplip.lipschitz(system, lower=False).bound == pytest.approx(4)


@pytest.mark.parametrize("comfortable", [6000, 1])
@pytest.mark.parametrize(
    "f",
    [
        lambda m, x: m.a(x) * m.z,
        lambda m, x: m.a(x) + 1j,
        lambda m, x: (x * (1 + 2j)).real,
        lambda m, x: x.to(torch.complex128),
    ],
)
def test_complex_numbers_are_refused(f, comfortable, monkeypatch):
    monkeypatch.setattr(convolutions, "COMFORTABLE", comfortable)
    net = Function(f)
    net.a = nn.Conv2d(1, 2, 1)
    net.register_buffer("z", torch.randn(1, dtype=torch.complex64))
    with pytest.raises(InvalidInput, match=r"node '.*complex|returns torch\.complex"):
        from_torch(net, torch.zeros(1, 1, 3, 3))


def test_an_output_without_numbers_is_refused():
    with pytest.raises(InvalidInput, match="holds nothing"):
        from_torch(Function(lambda m, x: m.a(x)[:, :0]), torch.zeros(1, 6))


def test_slopes_are_declared_for_functions_of_one_tensor():
    """Not where a second one depends on the input, too, or repeats the first."""
    slopes = {"hypot": (-1.0, 1.0)}
    with pytest.warns(UncheckedWarning):
        one = Function(lambda m, x: torch.hypot(torch.ones(8), m.a(x)))
        assert from_torch(one, torch.zeros(1, 6), slopes=slopes).units == 8
    for f in (
        lambda m, x: torch.hypot(m.a(x), 5 * m.a(-x)),
        lambda m, x: torch.hypot(m.a(x), torch.ones(3, 8)),
    ):
        with pytest.raises(InvalidInput, match="of one tensor"):
            from_torch(Function(f), torch.zeros(1, 6), slopes=slopes)


def test_attention_is_refused():
    with pytest.raises(InvalidInput, match="node "):
        from_torch(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.zeros(1, 4, 8))


def test_declared_slopes_are_taken_where_samples_agree():
    net = Function(lambda m, x: torch.sinc(m.a(x)))
    with pytest.raises(InvalidInput, match="sinc"):
        from_torch(net, torch.zeros(1, 6))
    with pytest.warns(UncheckedWarning):
        system = from_torch(net, torch.zeros(1, 6), slopes={"sinc": (-1.4, 1.4)})
    assert (system.beta == 1.4).all()


@pytest.mark.parametrize("comfortable", [6000, 1])
def test_what_is_around_a_declared_function_is_compared(comfortable, monkeypatch):
    monkeypatch.setattr(convolutions, "COMFORTABLE", comfortable)
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), Function(lambda m, x: torch.sinc(x)),
                        nn.Conv2d(2, 1, 1))  # fmt: skip
    slopes, example = {"sinc": (-1.4, 1.4)}, torch.zeros(1, 1, 3, 3)
    with pytest.warns(UncheckedWarning, match="tanh in its place the system agrees"):
        assert from_torch(net, example, slopes=slopes).units == 18
    conv2d = torch_graph.OPERATORS["conv2d"]
    monkeypatch.setitem(
        torch_graph.OPERATORS, "conv2d", lambda x, w, *more: conv2d(x, 1.001 * w, *more)
    )
    with pytest.raises(InvalidInput, match="apart"):
        from_torch(net, example, slopes=slopes)


@pytest.mark.parametrize(
    ("f", "name", "slopes"),
    [
        (lambda m, x: m.a(x).softmax(1), "softmax", (0.0, 1.0)),
        (lambda m, x: m.a(x).logcumsumexp(1), "logcumsumexp", (-9.0, 9.0)),
        (lambda m, x: torch.sinh(m.a(x)), "sinh", (1.0, 2.0)),
        (lambda m, x: torch.round(m.a(x)), "round", (0.0, 1.0)),
    ],
)
def test_declarations_that_samples_contradict_are_refused(f, name, slopes):
    with pytest.raises(InvalidInput, match=rf"{name}.* declared"):
        from_torch(Function(f), torch.zeros(1, 6), slopes={name: slopes})


@pytest.mark.parametrize(
    "f",
    [
        lambda m, x: m.a(x) * (10 if x.dtype == torch.float32 else 1),
        lambda m, x: m.a(x) * torch.finfo(m.a.weight.dtype).bits / 64,
    ],
)
def test_what_a_module_is_in_its_own_precision_counts(f):
    """The bound of the float64 copy would be 10 times too small."""
    with pytest.raises(InvalidInput, match="in float32, on random inputs"):
        from_torch(Function(f), torch.zeros(1, 6))
    assert from_torch(Function(f).double(), torch.zeros(1, 6).double()).outputs == 8


def pruned():
    return prune.l1_unstructured(nn.Linear(4, 3), "weight", 0.5)


def doubled():
    layer = nn.Linear(4, 3)
    layer.twice = 2 * layer.weight
    return layer


@pytest.mark.parametrize("make", [pruned, doubled, lambda: nn.Linear(4, 3, device="meta")])
def test_what_cannot_be_copied_says_so(make):
    with pytest.raises(InvalidInput, match="cannot be copied"):
        from_torch(make(), torch.zeros(1, 4))
    with pytest.raises(InvalidInput, match="cannot be copied"):
        System.from_module(make())


def test_layers_with_constraints_are_evaluated():
    net = nn.Sequential(
        sdplip.layers.SLLLinear(6, hidden=5),
        nn.utils.parametrizations.orthogonal(nn.Linear(6, 4)),
        nn.ReLU(),
    )
    system = agree(net, torch.zeros(1, 6))
    assert system.units == 9


def test_the_module_stays_as_it_is():
    net = Images(nn.AvgPool2d(2)).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    from_torch(net, torch.zeros(1, 3, 8, 8))
    assert net.training and net.first.weight.requires_grad
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]) and value.dtype == before[key].dtype


def test_a_module_that_forgets_its_place_is_noticed():
    class Counter(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x * self.calls

    with pytest.raises(InvalidInput):
        from_torch(Counter(), torch.zeros(1, 3))


@pytest.mark.parametrize("example", [torch.zeros(1, 5), torch.zeros(1, 6).long(), None, [1.0]])
def test_examples_that_do_not_fit(example):
    with pytest.raises(InvalidInput):
        from_torch(nn.Linear(6, 2), example)


# --- too large to unroll ---


class Block(nn.Module):
    """A residual block with the activation after the addition."""

    def __init__(self, inner, outer, stride):
        super().__init__()
        self.first = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outer)
        self.second = nn.Conv2d(outer, outer, 3, 1, 1)
        self.skip = nn.Conv2d(inner, outer, 1, stride) if stride > 1 else nn.Identity()
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return F.relu(self.second(F.relu(self.norm(self.first(x)))) + self.skip(x))


def kinds(system):
    return [type(stage) for stage in system.stages]


def test_a_residual_network_stays_convolutions(monkeypatch):
    monkeypatch.setattr(convolutions, "COMFORTABLE", 100)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Block(8, 8, 1), Block(8, 16, 2),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))  # fmt: skip
    system = agree(net, torch.zeros(1, 3, 12, 12))
    assert isinstance(system, ConvSystem)
    assert kinds(system) == [Convolve, Activate, Add, Activate, Add, Activate, Head]
    assert system.units == 3 * 8 * 144 + 2 * 16 * 36
    normal = from_torch(net, torch.zeros(1, 3, 12, 12), normalize=([0.5, 0.4, 0.3], 0.2))
    x = torch.rand(2, 3, 12, 12).double()
    inner = (x - torch.tensor([0.5, 0.4, 0.3]).double()[:, None, None]) / 0.2
    torch.testing.assert_close(normal(x), system(inner))


class Difference(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        y = torch.relu(self.conv(x))
        return -(y - self.other(y)).clamp(max=0.5)


def test_differences_of_images_stay_convolutions(monkeypatch):
    monkeypatch.setattr(convolutions, "COMFORTABLE", 100)
    assert isinstance(agree(Difference(), torch.zeros(1, 3, 12, 12)), ConvSystem)


def test_groups_dilation_pooling_and_a_dense_head(monkeypatch):
    monkeypatch.setattr(convolutions, "COMFORTABLE", 100)
    net = nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=2, dilation=2), nn.SiLU(), nn.AvgPool2d(2),
        nn.Conv2d(16, 8, (3, 1), 2, groups=4), nn.PReLU(), nn.AvgPool2d(3, 1, 1), nn.Flatten(),
        nn.Linear(8 * 6, 10), nn.BatchNorm1d(10),
    )  # fmt: skip
    system = agree(net, torch.zeros(1, 2, 12, 12))
    assert kinds(system)[:4] == [Convolve, Activate, Pool, Convolve] and kinds(system)[-1] == Head


def test_slopes_of_channels_stay_convolutions(monkeypatch):
    """And cost nothing: the bound is the one of an activation with these slopes."""
    slopes = torch.tensor([-0.5, 0.25, 1.0, 1.5])
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), nn.PReLU(4),
                        nn.Conv2d(4, 1, 3, padding=1, padding_mode="circular"))  # fmt: skip
    net[1].weight.data = slopes
    dense = agree(net, torch.zeros(1, 1, 4, 4))
    monkeypatch.setattr(convolutions, "COMFORTABLE", 10)
    conv = agree(net, torch.zeros(1, 1, 4, 4))
    assert isinstance(conv, ConvSystem) and conv.units == 64
    bounds = [sdplip.lipschitz(system, lower=False).bound for system in (dense, conv)]
    assert bounds[1] == pytest.approx(bounds[0], rel=1e-6)


def test_small_and_large_are_the_same_network():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, 2))
    large = from_torch(net, torch.zeros(1, 1, 48, 48))
    small = from_torch(net, torch.zeros(1, 1, 8, 8))
    assert isinstance(large, ConvSystem) and isinstance(small, System)
    same = ConvSystem(large.stages, 1, (8, 8)).unroll()
    for x in np.random.default_rng(0).normal(size=(3, 1, 64)):
        np.testing.assert_allclose(same(x), small(x), atol=1e-12)


@pytest.mark.parametrize(
    "rest", [[nn.Tanh(), nn.MaxPool2d(3, 2, 1)], [nn.Flatten(), nn.Linear(3136, 8), nn.ReLU()]]
)
def test_what_is_no_chain_of_convolutions_is_too_large(rest, monkeypatch):
    from sdplip.importing import values

    monkeypatch.setattr(values, "LIMIT", 1 << 22)
    monkeypatch.setattr(convolutions, "COMFORTABLE", 100)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), *rest)
    with pytest.raises(TooLarge, match="chain of convolutions"):
        from_torch(net, torch.zeros(1, 1, 28, 28))


def test_padding_and_transposed_convolutions(monkeypatch):
    nets = [
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(2, 3, 3, padding=(1, 0), padding_mode="replicate"),
        nn.Sequential(nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(2, 4, 3, padding=1)),
        nn.ConvTranspose2d(2, 4, 3, padding=1, groups=2),
        nn.ConvTranspose2d(2, 4, (2, 3), stride=2, output_padding=1, dilation=(2, 1)),
    ]
    for linear in nets:
        net = nn.Sequential(linear, nn.Tanh())
        dense = agree(net, torch.zeros(1, 2, 6, 6))
        assert isinstance(dense, System)
        with monkeypatch.context() as patch:
            patch.setattr(convolutions, "COMFORTABLE", 10)
            conv = from_torch(net, torch.zeros(1, 2, 6, 6))
        # Repeated pixels and images that grow are no convolution of ours.
        assert isinstance(conv, ConvSystem) == (linear not in (nets[1], nets[4]))
        if isinstance(conv, ConvSystem):
            x = torch.randn(3, 72).double()
            torch.testing.assert_close(conv(x.reshape(3, 2, 6, 6)).flatten(1), dense(x))


def test_images_stored_by_channels_last(monkeypatch):
    last = torch.channels_last
    net = Function(lambda m, x: F.relu(m.a(x).contiguous(memory_format=last)).clone())
    net.a = nn.Conv2d(2, 3, 3).to(memory_format=last)
    for comfortable, kind in ((6000, System), (10, ConvSystem)):
        monkeypatch.setattr(convolutions, "COMFORTABLE", comfortable)
        assert isinstance(agree(net, torch.zeros(1, 2, 5, 5)), kind)
        assert isinstance(from_torch(net, torch.zeros(1, 2, 5, 5).to(memory_format=last)), kind)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "nearest", "area"])
def test_images_of_other_sizes(mode):
    net = Function(lambda m, x: F.interpolate(m.a(x).relu(), scale_factor=1.5, mode=mode))
    net.a = nn.Conv2d(2, 3, 3)
    assert agree(net, torch.zeros(1, 2, 6, 6)).units == 48


@pytest.mark.parametrize("family", ["sll", "cpl", "sandwich"])
def test_own_convolutions_folded(family, monkeypatch):
    monkeypatch.setattr(convolutions, "COMFORTABLE", 10)
    layer = sdplip.CONVOLUTIONS[family](3, 3, 3)
    assert isinstance(agree(sdplip.fold(layer), torch.zeros(1, 3, 6, 6)), ConvSystem)


def test_a_dense_layer_over_pixels_alone_is_a_head(monkeypatch):
    monkeypatch.setattr(convolutions, "COMFORTABLE", 100)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(2), nn.Linear(36, 4))
    assert kinds(agree(net, torch.zeros(1, 1, 8, 8))) == [Convolve, Activate, Head]
