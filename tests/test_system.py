"""Systems evaluate like the networks they stand for, compose, and refuse bad input."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sdplip
from sdplip import System
from sdplip.convolutional import Activate, ConvSystem
from sdplip.errors import InvalidInput, ShapeError

SEEDS = st.integers(0, 10**6)


def mlp(rng, *sizes, activation="relu"):
    weights = [rng.normal(size=(b, a)) for a, b in itertools.pairwise(sizes)]
    biases = [rng.normal(size=W.shape[0]) for W in weights]
    return weights, biases, System.feedforward(weights, biases, activation)


@given(SEEDS, st.integers(0, 3), st.sampled_from(["relu", "tanh", "softplus", "leaky_relu"]))
def test_feedforward_is_the_perceptron(seed, depth, activation):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, size=depth + 2)
    weights, biases, system = mlp(rng, *sizes, activation=activation)
    layers = []
    for W, b in zip(weights, biases, strict=True):
        linear = nn.Linear(*W.shape[::-1], dtype=torch.float64)
        linear.weight.data, linear.bias.data = torch.as_tensor(W), torch.as_tensor(b)
        kinds = {"relu": nn.ReLU, "tanh": nn.Tanh, "leaky_relu": nn.LeakyReLU,
                 "softplus": lambda: nn.Softplus(threshold=40)}  # fmt: skip
        layers += [linear, kinds[activation]()]
    net = nn.Sequential(*layers[:-1])
    x = torch.as_tensor(rng.normal(size=(7, sizes[0])))
    torch.testing.assert_close(system(x), net(x))
    assert system.is_feedforward and system.units == sum(sizes[1:-1])
    torch.testing.assert_close(System.from_module(net)(x), net(x))


@pytest.mark.parametrize("sizes", [(3, 4), (5, 1, 7, 2), (2, 3, 3, 3, 1), (0, 3, 2), (3, 4, 0)])
def test_feedforward_is_the_composition_bit_for_bit(rng, sizes):
    weights = [rng.normal(size=(b, a)) for a, b in itertools.pairwise(sizes)]
    biases = [rng.normal(size=len(W)) for W in weights]
    for W in weights:
        W.flat[:1] = -0.0
    composed = System.linear(weights[0], biases[0])
    for W, b in zip(weights[1:], biases[1:], strict=True):
        composed = System.linear(W, b) @ System.elementwise("tanh", len(W.T)) @ composed
    assert System.feedforward(weights, biases, "tanh").digest() == composed.digest()


@given(SEEDS)
def test_series_and_sum(seed):
    rng = np.random.default_rng(seed)
    *_, f = mlp(rng, 3, 5, 4)
    *_, g = mlp(rng, 4, 6, 3, activation="tanh")
    H = rng.normal(size=(3, 3))
    x = rng.normal(size=(6, 3))
    np.testing.assert_allclose((g @ f)(x), g(f(x)), atol=1e-10)
    skip = g @ f + System.linear(H)
    np.testing.assert_allclose(skip(x), g(f(x)) + x @ H.T, atol=1e-10)


@given(SEEDS)
def test_residual_and_order_of_units_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    H, G, W = rng.normal(size=(3, 4)), rng.normal(size=(3, 5)), rng.normal(size=(4, 5))
    b, c, x = rng.normal(size=5), rng.normal(size=3), rng.normal(size=(6, 4))
    residual = System.residual(H, G, W, b, c)
    np.testing.assert_allclose(
        residual(x), x @ H.T + np.maximum(x @ W + b, 0) @ G.T + c, atol=1e-12
    )
    *_, deep = mlp(rng, 4, 3, 5, 2)
    P = rng.permutation(deep.units)
    mixed = System(deep.A[np.ix_(P, P)], deep.B[P], deep.C[:, P], deep.D, deep.b[P], deep.c)
    assert mixed.is_feedforward
    np.testing.assert_allclose(mixed(x), deep(x), atol=1e-12)


def test_equilibrium_is_solved(rng):
    A = rng.normal(size=(6, 6))
    A *= 0.9 / np.linalg.norm(A, 2)
    B, C, b = rng.normal(size=(6, 3)), rng.normal(size=(2, 6)), rng.normal(size=6)
    system = System.equilibrium(A, B, C, b=b, activation="tanh")
    x = rng.normal(size=(5, 3))
    z = np.zeros((5, 6))
    for _ in range(2000):
        z = np.tanh(z @ A.T + x @ B.T + b)
    np.testing.assert_allclose(system(x), z @ C.T, atol=1e-9)
    assert not system.is_feedforward


def test_gradients_flow_through_evaluation(rng):
    *_, system = mlp(rng, 3, 5, 2, activation="tanh")
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(system, (x,))


@given(SEEDS, st.booleans())
def test_files_keep_every_bit(tmp_path_factory, seed, equilibrium):
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.mktemp("system") / "net.npz"
    if equilibrium:
        system = System.equilibrium(*(rng.normal(size=s) for s in ((4, 4), (4, 3), (2, 4))))
    else:
        *_, system = mlp(rng, 3, 4, 2, activation="softplus")
    system.save(path)
    again = System.load(path)
    assert again.digest() == system.digest()
    assert list(path.parent.iterdir()) == [path]


def test_perceptron_files(tmp_path, rng):
    weights, biases, system = mlp(rng, 3, 5, 4, 2)
    names = {f"W{i}": W for i, W in enumerate(weights)} | {f"b{i}": b for i, b in enumerate(biases)}
    np.savez(tmp_path / "mlp.npz", **names, alpha=0.0, beta=1.0)
    assert System.load(tmp_path / "mlp.npz").digest() == system.digest()
    np.savez(tmp_path / "leaky.npz", **names, alpha=0.25)
    leaky = System.load(tmp_path / "leaky.npz")
    assert set(leaky.activation) == {"leaky_relu(0.25)"} and (leaky.alpha == 0.25).all()
    np.savez(tmp_path / "odd.npz", **names, alpha=-0.5, beta=1.5)
    odd = System.load(tmp_path / "odd.npz")
    with pytest.raises(InvalidInput, match="activation is unknown"):
        odd(np.zeros((1, 3)))


def test_missing_blocks_are_zero(tmp_path, rng):
    B, C = rng.normal(size=(4, 3)), rng.normal(size=(2, 4))
    np.savez(tmp_path / "net.npz", B=B, C=C)
    system = System.load(tmp_path / "net.npz")
    assert not system.A.any() and not system.D.any() and not system.b.any()
    np.testing.assert_allclose(system(np.ones((1, 3))), np.maximum(B.sum(1), 0)[None] @ C.T)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"W0": np.array([[object()]])}, "no readable system file"),
        ({"K0": np.ones((8, 8, 3, 3))}, "holds convolutions"),
        ({"Q": np.ones(3)}, "holds the arrays Q"),
        ({"W0": np.ones((2, 2)), "W2": np.ones((2, 2))}, "holds the arrays"),
        ({"B": np.array([[np.nan]]), "C": np.ones((1, 1))}, "B contains nan"),
        (
            {"B": np.ones((1, 1)), "C": np.ones((1, 1)), "alpha": 1.0, "beta": 0.0},
            r"slopes \(1, 0\)",
        ),
        ({"B": np.ones(3)}, "B has shape"),
        ({"W0": np.array([["a"]])}, "real numbers"),
    ],
)
def test_bad_files_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InvalidInput, match=message):
        System.load(tmp_path / "bad.npz")


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match="does not exist"):
        System.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(InvalidInput, match="no readable system file"):
        System.load(tmp_path / "text.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": np.ones((3, 3))}, r"A has shape \(3, 3\)"),
        ({"b": np.ones(3)}, r"b has shape \(3,\)"),
        ({"C": np.full((1, 2), np.inf)}, "C contains inf"),
        ({"alpha": 1.0, "beta": 0.0}, "no range"),
        ({"alpha": 0.5}, "outside the declared"),
        ({"activation": "swish"}, "swish"),
        ({"D": np.ones(2)}, "must be a matrix"),
    ],
)
def test_bad_arrays_are_refused(change, message):
    arrays = {
        "A": np.zeros((2, 2)),
        "B": np.ones((2, 2)),
        "C": np.ones((1, 2)),
        "D": np.ones((1, 2)),
    }
    with pytest.raises(InvalidInput, match=message):
        System(**{**arrays, **change})


def test_composition_names_what_does_not_fit(rng):
    *_, f = mlp(rng, 3, 4, 2)
    with pytest.raises(ShapeError, match="f has 2 outputs, but g takes 3 inputs"):
        f @ f
    with pytest.raises(ShapeError, match="f maps R"):
        f + System.linear(np.eye(3))
    with pytest.raises(ShapeError, match="m = 3"):
        f(np.ones((2, 4)))


def test_an_unknown_module_is_named_with_its_place():
    net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.LayerNorm(4)), nn.Linear(4, 2))
    with pytest.raises(InvalidInput, match=r"LayerNorm \(at '1\.0'\)"):
        System.from_module(net)


def test_a_module_whose_system_lies_is_refused():
    class Liar(nn.Linear):
        def system(self):
            return System.linear(self.weight.T, self.bias)

    with pytest.raises(InvalidInput, match="does not describe its forward"):
        System.from_module(Liar(4, 4))


def test_arrays_cannot_be_changed_behind_the_back(rng):
    *_, system = mlp(rng, 3, 4, 2)
    with pytest.raises(ValueError, match="read-only"):
        system.A[0, 0] = 1.0


def test_what_precedes_the_first_layer_takes_its_width():
    net = nn.Sequential(nn.Flatten(), sdplip.layers.Normalize(0.5, 2.0), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(3, 6)
    system = System.from_module(net)
    torch.testing.assert_close(system(x.double()).float(), net(x))
    with pytest.raises(InvalidInput, match="give features="):
        System.from_module(nn.Sequential(nn.ReLU()))
    np.testing.assert_allclose(System.from_module(nn.ReLU(), features=2)(-np.ones((1, 2))), 0)


def test_a_module_used_twice_counts_twice():
    square = nn.Linear(4, 4)
    net = nn.Sequential(square, nn.ReLU(), square)
    x = torch.randn(5, 4)
    torch.testing.assert_close(System.from_module(net)(x.double()).float(), net(x))


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Tenfold(nn.Linear):
    def forward(self, x):
        return 10 * super().forward(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("module", [Residual(nn.Linear(4, 4)), Tenfold(4, 4)])
def test_a_subclass_with_its_own_forward_is_not_its_parent(module, dtype):
    with pytest.raises(InvalidInput, match=type(module).__name__):
        System.from_module(nn.Sequential(nn.Linear(4, 4), module).to(dtype))


def test_hooks_are_refused():
    linear = nn.Linear(4, 4)
    linear.register_forward_hook(lambda module, x, y: 100 * y)
    with pytest.raises(InvalidInput, match="hooks"):
        System.from_module(nn.Sequential(linear))
    replaced = nn.Linear(4, 4)
    replaced.forward = lambda x: 2 * x
    with pytest.raises(InvalidInput, match="Linear"):
        System.from_module(replaced)


def test_a_lie_of_tiny_size_is_noticed():
    class Liar(nn.Linear):
        def system(self):
            return System.linear(self.weight / 5)

    liar = Liar(4, 4, bias=False)
    liar.weight.data *= 1e-6
    with pytest.raises(InvalidInput, match="does not describe"):
        System.from_module(liar)


def test_extraction_leaves_the_module_as_it_is():
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    net = nn.Sequential(normed, nn.Dropout(), nn.Linear(4, 2)).train()
    net[1].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    System.from_module(net)
    assert [m.training for m in net.modules()][1:] != [False] * 5
    assert net.training and not net[1].training
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_whole_numbers_are_not_evaluated_as_such():
    system = System.linear([[0.5]])
    with pytest.raises(InvalidInput, match="floating"):
        system(torch.tensor([[3]]))
    np.testing.assert_allclose(system(np.array([[3]])), [[1.5]])


def test_views_of_arrays_are_evaluated(rng):
    """Torch takes no array with a negative stride."""
    x, image = rng.normal(size=(2, 3)), rng.normal(size=(1, 1, 3, 3))
    np.testing.assert_array_equal(System.elementwise("abs", 3)(x[:, ::-1]), abs(x[:, ::-1]))
    network = ConvSystem((Activate("abs"),), 1, (3, 3))
    np.testing.assert_array_equal(network(image[..., ::-1]), abs(image[..., ::-1]))


def test_errors_name_what_the_caller_gave(tmp_path, rng):
    with pytest.raises(ShapeError, match=r"W1 has shape \(1, 4\), but W0 has 3 rows"):
        System.feedforward([np.ones((3, 2)), np.ones((1, 4))])
    with pytest.raises(InvalidInput, match="W1 contains nan"):
        System.feedforward([np.ones((3, 2)), np.full((1, 3), np.nan)])
    with pytest.raises(ShapeError, match=r"b1 has shape \(2,\)"):
        System.feedforward([np.ones((3, 2)), np.ones((1, 3))], [None, np.ones(2)])
    with pytest.raises(ShapeError, match=r"G \(2, 3\)"):
        System.residual(np.eye(2), np.ones((2, 3)), np.ones((2, 4)))
    path = tmp_path / "named.npz"
    np.savez(path, W0=np.ones((3, 2)), W1=np.ones((1, 4)))
    with pytest.raises(ShapeError, match=r"named\.npz: W1 has shape"):
        System.load(path)
    np.savez(path, A=np.eye(2), B=np.eye(2))
    with pytest.raises(InvalidInput, match="sizes of input and output"):
        System.load(path)
