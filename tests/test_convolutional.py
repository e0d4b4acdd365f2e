"""Networks of convolutions agree with torch, with their matrices and with their files."""

import numpy as np
import pytest
import torch
from conv_systems import random_network
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sdplip import System
from sdplip._files import load
from sdplip.convolutional import Activate, Add, Convolve, ConvSystem, Head, Pool
from sdplip.errors import InvalidInput, ShapeError

SEEDS = st.integers(0, 10**6)
MODES = st.sampled_from(["zeros", "circular"])


def arrays(module):
    bias = None if module.bias is None else module.bias.detach().numpy()
    return module.weight.detach().numpy(), bias


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), ((2, 4), (2, 1), (1, 0))])
def test_a_convolution_is_torchs(mode, kernel, stride, padding):
    if mode == "circular" and kernel != 3:
        padding = (0, 1)
    size = (kernel,) * 2 if isinstance(kernel, int) else kernel
    module = nn.Conv2d(2, 3, size, stride, padding, padding_mode=mode, dtype=torch.float64)
    network = ConvSystem(
        (Convolve(*arrays(module), stride, padding, mode), Activate("tanh")), 2, (6, 4)
    )
    x = torch.randn(2, 5, 2, 6, 4, dtype=torch.float64)
    truth = torch.tanh(module(x.flatten(0, 1)))
    assert torch.allclose(network(x).flatten(0, 1), truth, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
def test_same_padding_is_torchs_for_even_kernels():
    module = nn.Conv2d(1, 1, (4, 2), padding="same", dtype=torch.float64)
    network = ConvSystem((Convolve(*arrays(module)),), 1, (5, 5))
    x = torch.randn(3, 1, 5, 5, dtype=torch.float64)
    assert torch.allclose(network(x), module(x), rtol=0, atol=1e-12)


def test_a_residual_network_is_torchs(rng):
    first, inner, last = (
        nn.Conv2d(2, 2, 3, padding=1, dtype=torch.float64),
        nn.Conv2d(2, 2, 3, padding=1, dtype=torch.float64),
        nn.Linear(2 * 4, 3, dtype=torch.float64),
    )
    block = Add((Convolve(*arrays(inner), padding=1), Activate("tanh")), (Activate("relu"),))
    network = ConvSystem(
        (Convolve(*arrays(first), padding=1), block, Pool(2), Head(*arrays(last))), 2, (4, 5)
    )
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    u = first(x)
    u = nn.functional.avg_pool2d(torch.tanh(inner(u)) + torch.relu(u), 2)
    assert torch.allclose(network(x), last(u.flatten(1)), rtol=0, atol=1e-12)
    assert network.shapes == [(2, 4, 5), (2, 4, 5), (2, 2, 2), (3, 1, 1)]
    assert (network.inputs, network.units, network.outputs) == (40, 80, 3)


@given(SEEDS, MODES)
def test_unrolled_it_is_the_same_map(seed, mode):
    rng = np.random.default_rng(seed)
    network = random_network(rng, mode)
    x = rng.normal(size=(4, *network.start))
    y = network(x).reshape(4, -1)
    system = network.unroll()
    assert np.allclose(system(x.reshape(4, -1)), y, rtol=0, atol=1e-10 * (1 + abs(y).max()))
    assert (system.inputs, system.outputs) == (network.inputs, network.outputs)
    between = (system.activation == "identity") & (system.alpha == system.beta)
    assert (~between).sum() == network.units


@given(SEEDS)
def test_a_saved_network_is_the_same(tmp_path_factory, seed):
    network = random_network(np.random.default_rng(seed))
    path = tmp_path_factory.mktemp("conv") / "network.npz"
    network.save(path)
    for again in (ConvSystem.load(path), load(path)):
        assert again.digest() == network.digest()
        x = np.ones((1, *network.start))
        assert np.array_equal(again(x), network(x))


def test_every_part_changes_the_digest(rng):
    weight, bias = rng.normal(size=(1, 1, 3, 3)), np.zeros(1)

    def network(weight=weight, name="relu", size=(4, 4), alpha=None, **convolution):
        stages = (Convolve(weight, bias, **convolution), Activate(name, alpha), Pool(2))
        return ConvSystem(stages, 1, size)

    flipped = weight.copy()
    flipped.view(np.uint64)[0, 0, 2, 2] ^= 1
    others = [
        network(flipped),
        network(name="tanh"),
        network(size=(5, 4)),
        network(alpha=-0.1),
        network(padding=0),
        network(padding_mode="circular"),
        network(stride=(2, 1)),
        ConvSystem((Add(network().stages[:2]), Pool(2)), 1, (4, 4)),
    ]
    digests = {network().digest(), *(other.digest() for other in others)}
    assert len(digests) == 1 + len(others)


def test_a_chain_of_kernels_is_read(tmp_path, rng):
    kernels = [rng.normal(size=(2, 1, 3, 3)), rng.normal(size=(1, 2, 3, 3))]
    path = tmp_path / "chain.npz"
    np.savez(path, K0=kernels[0], K1=kernels[1], b0=np.ones(2), alpha=0.1, beta=1.0)
    network = ConvSystem.load(path, size=(5, 4))
    assert [type(stage) for stage in network.stages] == [Convolve, Activate, Convolve]
    assert network.stages[1].name == "leaky_relu(0.1)"
    assert network.start == (1, 5, 4) and network.stages[0].bias.tolist() == [1, 1]
    assert ConvSystem.load(path).size == (28, 28)


def test_files_of_the_other_kind_are_named(tmp_path, rng):
    chain, dense = tmp_path / "chain.npz", tmp_path / "dense.npz"
    np.savez(chain, K0=rng.normal(size=(1, 1, 3, 3)))
    System.linear(np.eye(2)).save(dense)
    assert isinstance(load(dense), System) and isinstance(load(chain), ConvSystem)
    with pytest.raises(InvalidInput, match=r"ConvSystem\.load"):
        System.load(chain)
    with pytest.raises(InvalidInput, match=r"System\.load"):
        ConvSystem.load(dense)


@pytest.mark.parametrize(
    "content",
    [
        {"stages": "not json"},
        {"stages": "[]"},
        {"stages": '{"stages": [{"convolve": 0}], "channels": 1, "size": [4, 4]}'},
        {"stages": '{"stages": [{"dense": 0}], "channels": 1, "size": [4, 4]}'},
        {"stages": '{"stages": [{"pool": 2}], "channels": 1}'},
        {"stages": '{"stages": [{"pool": 2}], "channels": 1, "size": [4, 4]}', "K0": np.ones(1)},
        {"stages": '{"stages": [{"pool": 2}], "channels": 1, "size": [4, 4], "more": 1}'},
        {"K0": np.ones((1, 1, 3, 3)), "K2": np.ones((1, 1, 3, 3))},
        {"K0": np.ones((1, 1, 3, 3)), "W0": np.ones((1, 1))},
        {"K0": np.full((1, 1, 3, 3), np.nan)},
        {"K0": np.ones((1, 1))},
        {"K0": np.ones((1, 1, 3, 3)), "alpha": np.zeros(1)},
    ],
)
def test_bad_files_are_refused(tmp_path, content):
    path = tmp_path / "bad.npz"
    np.savez(path, **content)
    with pytest.raises(InvalidInput, match=r"bad\.npz"):
        load(path)


def test_what_has_no_proof_is_refused_by_name():
    weight = np.ones((1, 1, 3, 3))
    for mode in ("reflect", "replicate"):
        with pytest.raises(InvalidInput, match=mode):
            Convolve(weight, padding_mode=mode)
    with pytest.raises(InvalidInput, match="repeats pixels"):
        Convolve(weight, padding=2, padding_mode="circular")
    with pytest.raises(InvalidInput, match="outside the declared"):
        Activate("relu", 0.5)
    with pytest.raises(InvalidInput, match="Head is no stage"):
        ConvSystem((Head(np.ones((1, 16))), Pool(2)), 1, (4, 4))
    with pytest.raises(InvalidInput, match="at least one"):
        ConvSystem((), 1, (4, 4))
    with pytest.raises(InvalidInput, match="activation is unknown"):
        ConvSystem((Activate("unknown"),), 1, (1, 1))(np.ones((1, 1, 1)))


@pytest.mark.parametrize(
    ("stage", "match"),
    [
        (Convolve(np.ones((1, 2, 3, 3))), "takes 2 channels"),
        (Convolve(np.ones((1, 1, 6, 1)), padding=0), "smaller than the kernel"),
        (Convolve(np.ones((1, 1, 2, 2)), None, 3, padding_mode="circular"), "multiples"),
        (Activate("relu", [0, 0], [1, 1]), "slopes for 2 channels"),
        (Head(np.ones((2, 15))), "16 numbers"),
        (Pool((10**9, 1)), "smaller block"),
        (Add((Pool(2),)), "must agree"),
    ],
)
def test_stages_that_do_not_fit_are_named(stage, match):
    with pytest.raises(ShapeError, match=match):
        ConvSystem((stage,), 1, (4, 4))


def test_large_images_are_not_unrolled():
    network = ConvSystem((Activate("relu"),), 3, (64, 64))
    with pytest.raises(InvalidInput, match="Use smaller images"):
        network.unroll()
    with pytest.raises(ShapeError, match=r"\(3, 64, 64\)"):
        network(np.ones((3, 64, 63)))
