"""In evaluation closed forms are kept. Nothing may make a layer use one that is out of date: in the
public code outputs of such layers have constants of 5.6 to 17 where 1 is claimed."""

import copy
import io
import itertools
import pickle
import sys
import threading

import pytest
import torch
from conv_cases import CONVOLUTIONS
from conv_cases import make as make_conv
from layer_cases import make
from torch import nn
from torch.func import functional_call, jvp
from torch.nn.utils import parametrize, prune, vector_to_parameters

from sdplip.layers import LAYERS, AOLConv2d, AOLLinear, LBENLinear, SLLConv2d, SLLLinear

EVERY = {f"dense {name}": name for name in LAYERS} | {f"conv {name}": name for name in CONVOLUTIONS}
NO_FORWARD_MODE = AOLLinear, AOLConv2d, SLLLinear, SLLConv2d
FEEDFORWARD = [
    key
    for key, name in EVERY.items()
    if not hasattr((LAYERS if key[0] == "d" else CONVOLUTIONS)[name], "solve")
]

every_layer = pytest.mark.parametrize("layer", EVERY, indirect=True)
feedforward = pytest.mark.parametrize("layer", FEEDFORWARD, indirect=True)

feedforward_conv = pytest.mark.parametrize(
    "layer", [key for key in FEEDFORWARD if key.startswith("conv")], indirect=True
)


def build(key, dtype=torch.float32):
    name, dense = EVERY[key], key.startswith("dense")
    layer = make(LAYERS[name], "square", dtype) if dense else make_conv(name, "3", (4, 4), dtype)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return layer


@pytest.fixture
def layer(request):
    return build(request.param).eval()


def inputs(layer):
    shape = (4, 3, 3) if hasattr(layer, "in_channels") else (layer.in_features,)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(8, *shape, generator=generator)
    return x.to(next(layer.parameters()).dtype)


def kept(layer, x):
    """The output of an evaluation that may use what is kept."""
    with torch.no_grad():
        return layer(x)


def recomputed(layer, x):
    """The output where gradients of parameters are wanted, which uses nothing that is kept."""
    with torch.enable_grad():
        return layer(x).detach()


def kernel(layer):
    """A parameter of which every entry matters."""
    known = (getattr(layer, name) for name in ("weight", "B") if hasattr(layer, name))
    return next(known, next(layer.parameters()))


def rows(layer):
    p = kernel(layer)
    return p.data.view(len(p), -1)


def stepped(layer, x, optimizer, **options):
    optimizer = optimizer(layer.parameters(), **options)
    layer(x).square().mean().backward()
    optimizer.step()


def loaded(layer, **options):
    state = {
        name: value * 1.5 if value.is_floating_point() else value.clone()
        for name, value in layer.state_dict().items()
    }
    layer.load_state_dict(state, **options)


def quietly(f):
    with torch.no_grad():
        f()


def replaced(layer):
    for name, p in list(layer.named_parameters()):
        setattr(layer, name, nn.Parameter(p.detach() * 1.5 + 0.1))


def in_inference_mode(layer):
    with torch.inference_mode():
        kernel(layer).mul_(-1.7)


def entries(layer, index, values):
    rows(layer)[index] += torch.tensor(values)


def swapped(layer):
    a, b = rows(layer)[0, :2].clone()
    rows(layer)[0, 0], rows(layer)[0, 1] = b, a


def permuted(layer, dim):
    M = rows(layer)
    M.copy_(M.roll(1, dims=dim))


CHANGES = {
    "SGD": lambda layer, x: stepped(layer, x, torch.optim.SGD, lr=3.0),
    "Adam": lambda layer, x: stepped(layer, x, torch.optim.Adam, lr=0.1),
    "foreach": lambda layer, x: stepped(layer, x, torch.optim.AdamW, lr=0.1, foreach=True),
    "load_state_dict": lambda layer, x: loaded(layer),
    "load_state_dict by assignment": lambda layer, x: loaded(layer, assign=True),
    "in place": lambda layer, x: quietly(lambda: kernel(layer).mul_(-1.7)),
    "in place, in inference mode": lambda layer, x: in_inference_mode(layer),
    "another Parameter": lambda layer, x: replaced(layer),
    "one vector": lambda layer, x: vector_to_parameters(
        torch.cat([1.5 * p.detach().flatten() + 0.1 for p in layer.parameters()]),
        layer.parameters(),
    ),
    "data: all": lambda layer, x: rows(layer).mul_(-1.7),
    "data: one entry": lambda layer, x: entries(layer, (0, 1), 0.5),
    "data: another tensor": lambda layer, x: setattr(
        kernel(layer), "data", torch.randn_like(kernel(layer))
    ),
    "data: a pattern": lambda layer, x: entries(layer, (0, slice(3)), [1.0, -2.0, 1.0]),
    "data: two entries": lambda layer, x: entries(layer, (0, slice(2)), [0.5, -0.5]),
    "data: two entries swapped": lambda layer, x: swapped(layer),
    "data: rows permuted": lambda layer, x: permuted(layer, 0),
    "data: columns permuted": lambda layer, x: permuted(layer, 1),
    "data: signs of a row": lambda layer, x: rows(layer)[0].neg_(),
    "data: signs of a column": lambda layer, x: rows(layer)[:, 0].neg_(),
    "through NumPy": lambda layer, x: kernel(layer).detach().numpy().__imul__(-1.7),
    "shared with other processes": lambda layer, x: (layer.share_memory(), rows(layer).mul_(-1.7)),
    "frozen, then changed": lambda layer, x: (layer.requires_grad_(False), rows(layer).mul_(-1.7)),
}


@every_layer
@pytest.mark.parametrize("change", CHANGES)
def test_no_change_of_the_weights_is_missed(layer, change):
    x = inputs(layer)
    before = kept(layer, x)
    assert torch.equal(kept(layer, x), before)
    CHANGES[change](layer, x)
    after = kept(layer, x)
    layer.requires_grad_(True)
    assert torch.equal(after, recomputed(layer, x))
    assert not torch.equal(after, before)


@every_layer
def test_a_change_of_any_parameter_is_seen(layer):
    """log_q, projectors, skip and biases as well."""
    x = inputs(layer)
    for name, p in layer.named_parameters():
        kept(layer, x)
        p.data.view(-1)[0] += 0.7
        assert torch.equal(kept(layer, x), recomputed(layer, x)), name


@pytest.mark.parametrize("cls", [SLLLinear, SLLConv2d], ids=lambda cls: cls.__name__)
def test_weights_that_a_ramp_does_not_see(cls):
    """Second differences are orthogonal to a ramp, in every scale: their T would be 25 times too
    small."""
    layer = cls(3, bias=False, hidden=1) if cls is SLLLinear else cls(1, 1, (1, 3), bias=False)
    layer.eval()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -2.0, 1.0]).view_as(layer.weight))
    x = torch.randn(2, *((3,) if cls is SLLLinear else (1, 4, 6)))
    before = kept(layer, x)
    layer.weight.data.mul_(5)
    assert torch.equal(kept(layer, x), recomputed(layer, x))
    torch.testing.assert_close(kept(layer, x), before)


CONSTANTS = {
    "activation": "tanh",
    "gamma": 0.7,
    "eps": 0.5,
    "c": -0.5,
    "map": "matrix_exp",
    "frequencies": 2,
}


@every_layer
def test_a_change_of_a_constant_is_seen(layer):
    x = inputs(layer)
    for name, value in CONSTANTS.items():
        if hasattr(layer, name):
            before = kept(layer, x)
            setattr(layer, name, value)
            after = kept(layer, x)
            assert torch.equal(after, recomputed(layer, x)), name
            assert not torch.equal(after, before), name


@every_layer
def test_casts(layer):
    x = inputs(layer)
    single = kept(layer, x)
    if hasattr(layer, "tol"):
        layer.tol = 1e-12
    double = kept(layer.double(), x.double())
    assert double.dtype == torch.float64
    assert torch.equal(double, recomputed(layer, x.double()))
    assert not torch.equal(double, single.double())
    if not hasattr(layer, "solve"):
        half = kept(layer.bfloat16(), x.bfloat16())
        assert torch.equal(half, recomputed(layer, x.bfloat16()))


@every_layer
def test_copies_hold_nothing(layer):
    """And keep what they compute to themselves."""
    x = inputs(layer)
    size = len(pickle.dumps(layer))
    before = kept(layer, x)
    assert abs(len(pickle.dumps(layer)) - size) < 64
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    copies = (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(saved, weights_only=False),
    )
    for other in copies:
        assert torch.equal(kept(other, x), before)
        rows(other).mul_(-1.7)
        assert torch.equal(kept(other, x), recomputed(other, x))
        assert torch.equal(kept(layer, x), before)


@every_layer
def test_a_shallow_copy_shares_parameters_but_not_constants(layer):
    x = inputs(layer)
    before = kept(layer, x)
    other = copy.copy(layer)
    assert torch.equal(kept(other, x), before)
    for name, value in CONSTANTS.items():
        if hasattr(layer, name):
            setattr(other, name, value)
    for _ in range(2):
        assert torch.equal(kept(other, x), recomputed(other, x))
        assert torch.equal(kept(layer, x), before)
    rows(other).mul_(-1.7)
    assert torch.equal(kept(layer, x), recomputed(layer, x))
    assert torch.equal(kept(other, x), recomputed(other, x))


@every_layer
def test_layers_that_share_weights(layer):
    x = inputs(layer)
    other = copy.deepcopy(layer)
    for name, p in layer.named_parameters():
        setattr(other, name, p)
    for step in range(3):
        assert torch.equal(kept(layer, x), recomputed(layer, x))
        assert torch.equal(kept(other, x), kept(layer, x))
        quietly(lambda step=step: kernel(layer).mul_(1.5 + step))
    assert torch.equal(kept(other, x), recomputed(layer, x))


@every_layer
def test_functional_call_and_what_follows(layer):
    x = inputs(layer)
    before = kept(layer, x)
    changed = {name: p.detach() * 1.5 + 0.1 for name, p in layer.named_parameters()}
    wrapped = {name: nn.Parameter(value) for name, value in changed.items()}
    for given in (changed, wrapped):
        with torch.no_grad():
            y = functional_call(layer, given, (x,))
            assert torch.equal(functional_call(layer, given, (x,)), y)
        assert torch.equal(kept(layer, x), before)
    fresh = copy.deepcopy(layer)
    fresh.load_state_dict({**layer.state_dict(), **changed})
    assert torch.equal(y, kept(fresh, x))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(-1.7))

    def forward(self, p):
        return self.factor * p.flip(-1)


@every_layer
def test_parametrizations(layer):
    x = inputs(layer)
    name = next(n for n, p in layer.named_parameters() if p is kernel(layer))
    before = kept(layer, x)
    parametrize.register_parametrization(layer, name, Scaled())
    assert torch.equal(kept(layer, x), recomputed(layer, x))
    assert not torch.equal(kept(layer, x), before)
    for change in (
        lambda: getattr(layer.parametrizations, name)[0].factor.data.fill_(0.3),
        lambda: getattr(layer.parametrizations, name).original.data.add_(0.1),
        lambda: parametrize.remove_parametrizations(layer, name, leave_parametrized=False),
    ):
        change()
        assert torch.equal(kept(layer, x), recomputed(layer, x))


@every_layer
def test_pruning_step_by_step(layer):
    """Only a mask changes, which is a buffer; the parameter stays."""
    x = inputs(layer)
    name = next(n for n, p in layer.named_parameters() if p is kernel(layer))
    kept(layer, x)
    for amount in (0.2, 0.5, 0.9):
        prune.random_unstructured(layer, name, amount)
        y = kept(layer, x)
        fresh = copy.deepcopy(layer)
        prune.remove(fresh, name)
        assert torch.equal(y, kept(fresh.train(), x))


@every_layer
def test_what_is_kept_serves_gradients_later(layer):
    """Tensors made in inference mode could not."""
    x = inputs(layer)
    expected = recomputed(layer, x)
    with torch.inference_mode():
        assert torch.equal(layer(x), expected)
    layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    layer.requires_grad_(False)
    with torch.inference_mode():
        layer(x)
    moving = x.clone().requires_grad_()
    y = layer(moving)
    assert torch.equal(y.detach(), expected)
    y.square().sum().backward()
    layer.requires_grad_(True)
    other = x.clone().requires_grad_()
    layer(other).square().sum().backward()
    torch.testing.assert_close(moving.grad, other.grad)


@every_layer
def test_gradients_are_wanted_again_after_freezing(layer):
    x = inputs(layer)
    layer.requires_grad_(False)
    layer(x)
    kernel(layer).requires_grad_(True)
    layer(x).square().sum().backward()
    assert kernel(layer).grad.abs().max() > 0


@feedforward
def test_second_derivatives_in_evaluation(layer):
    layer = layer.double()
    if hasattr(layer, "activation"):
        layer.activation = "tanh"
    x = inputs(layer)[:1].requires_grad_()
    kept(layer, x)

    def penalty():
        (g,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        return g.square().sum()

    p = kernel(layer)
    (found,) = torch.autograd.grad(penalty(), p)
    direction, step = torch.randn_like(p), 1e-5
    sides = []
    for sign in (1, -1):
        p.data.add_(sign * step * direction)
        sides.append(penalty().item())
        p.data.add_(-sign * step * direction)
    numeric = (sides[0] - sides[1]) / (2 * step)
    assert abs((found * direction).sum().item() - numeric) <= 1e-4 * (abs(numeric) + 1e-2)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
@feedforward
def test_forward_mode_derivatives_in_evaluation(layer):
    """Tangents of parameters are not lost in what is kept."""
    layer = layer.double()
    x = inputs(layer)
    if isinstance(layer, NO_FORWARD_MODE):
        with pytest.raises(NotImplementedError, match="jvp"):
            jvp(lambda p: functional_call(layer, {"weight": p}, (x,)), *2 * [(layer.weight.data,)])
        return
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}
    kept(layer, x)
    with torch.no_grad():
        _, found = jvp(lambda p: functional_call(layer, p, (x,)), (parameters,), (tangents,))
    sides = [
        functional_call(layer, {n: p + s * tangents[n] for n, p in parameters.items()}, (x,))
        for s in (1e-6, -1e-6)
    ]
    torch.testing.assert_close(found, (sides[0] - sides[1]).detach() / 2e-6, rtol=1e-4, atol=1e-6)


@every_layer
def test_threads(layer):
    """One evaluates, one wants gradients, one calls eval(), as servers and attacks do."""
    x = inputs(layer)
    expected, errors = kept(layer, x), []

    def repeat(count, f):
        try:
            for _ in range(count):
                assert f()
        except Exception as error:
            errors.append(error)

    jobs = [
        lambda: repeat(60, lambda: torch.equal(kept(layer, x), expected)),
        lambda: repeat(60, lambda: torch.equal(kept(layer, x), expected)),
        lambda: repeat(40, lambda: torch.equal(recomputed(layer, x), expected)),
        lambda: repeat(300, lambda: layer.eval() is layer),
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors


@feedforward_conv
def test_compiled_after_evaluation(layer):
    x = inputs(layer)
    torch.compiler.reset()
    kept(layer, x)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for _ in range(2):
        with torch.no_grad():
            y = compiled(x)
        torch.testing.assert_close(y, recomputed(layer, x))
        rows(layer).mul_(-1.7)
        torch.testing.assert_close(kept(layer, x), recomputed(layer, x))


@feedforward_conv
def test_exported_after_evaluation(layer):
    """The closed form is in the graph, not a constant of it: parameters may be loaded later."""
    x = inputs(layer)
    kept(layer, x)
    with torch.no_grad():
        module = torch.export.export(layer, (x,), strict=False).module()
    rows(layer).mul_(-1.7)
    values = {name: p.detach() for name, p in layer.named_parameters()}
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(values[name])
    torch.testing.assert_close(kept(module, x), recomputed(layer, x))


@every_layer
def test_several_steps_under_one_autocast(layer):
    """Autocast keeps its copies of parameters until it ends; T of newer ones would not fit them."""
    x = inputs(layer)
    layer.train()
    if hasattr(layer, "solve"):
        layer.method = "newton"  # whose result does not depend on the solves before
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x)
        quietly(lambda: kernel(layer).mul_(0.3))
        y = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), y)


@every_layer
def test_evaluation_computes_the_closed_form_once(layer, monkeypatch):
    """And training every time."""
    name = "_symbols" if hasattr(layer, "solve") and hasattr(layer, "geometry") else "_closed_form"
    calls = []
    compute = getattr(layer, name)
    monkeypatch.setattr(layer, name, lambda *args: calls.append(1) or compute(*args))
    x = inputs(layer)
    for _ in range(3):
        kept(layer, x)
    assert len(calls) == 1
    layer.train()
    kept(layer, x)
    kept(layer, x)
    layer.eval()
    kept(layer, x)
    assert len(calls) == 4


@pytest.mark.parametrize("family", [n for n, c in CONVOLUTIONS.items() if hasattr(c, "solve")])
def test_images_of_several_sizes(family):
    """Symbols are those of one size."""
    layer = make_conv(family).eval()
    for size in itertools.islice(itertools.cycle([(3, 3), (2, 5), (5, 2)]), 7):
        x = torch.randn(1, 4, *size)
        assert torch.equal(kept(layer, x), recomputed(layer, x))


def test_a_huge_entry_does_not_hide_changes_of_the_others():
    lben = LBENLinear(2, 3, 2).eval().requires_grad_(False)
    aol = AOLLinear(4, 4, dtype=torch.float32).eval().requires_grad_(False)
    x, y = torch.randn(5, 2), torch.randn(5, 4)
    lben.psi.data[0] = 1e8
    aol.weight.data[:, 0] = 1e8
    lben(x), aol(y)
    lben.psi.data[1] += 1
    aol.weight.data[:, 2] *= -1
    for layer, points in ((lben, x), (aol, y)):
        kept = layer(points)
        assert torch.equal(kept, layer.train().eval()(points))
