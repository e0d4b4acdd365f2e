"""State dicts, MATLAB cells and our own files; no pickle is ever run."""

import pickle
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.io import savemat
from torch import nn

from sdplip import System, lipschitz
from sdplip.convolutional import ConvSystem
from sdplip.errors import InvalidInput, ShapeError, UncheckedWarning
from sdplip.importing import load


def perceptron():
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.ReLU(),
                         nn.Linear(4, 2))  # fmt: skip


def write(path, state):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def sample(net):
    x = torch.randn(6, 3)
    return x.numpy(), net(x).detach().numpy()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_state_dicts_of_linear_layers(tmp_path, suffix):
    net = perceptron()
    path = write(tmp_path / f"net{suffix}", net.state_dict())
    with pytest.raises(InvalidInput, match="activation="):
        load(path)
    with pytest.warns(UncheckedWarning, match="sample"):
        system = load(path, activation="relu")
    assert system.digest() == System.from_module(net).digest()
    assert load(path, activation="relu", sample=sample(net)).digest() == system.digest()
    with pytest.raises(InvalidInput, match="apart"):
        load(path, activation="tanh", sample=sample(net))
    for bad in (3, (1, 2), (np.ones((2, 3)), np.ones(3)), (np.ones(4), np.ones(2))):
        with pytest.raises(InvalidInput, match="sample"):
            load(path, activation="relu", sample=bad)
    with pytest.warns(UncheckedWarning, match="unknown"):
        odd = load(path, slopes=(-0.2, 1.3))
    assert set(odd.activation) == {"unknown"} and (odd.beta == 1.3).all()
    with pytest.raises(InvalidInput, match="outside the declared"):
        load(path, activation="gelu", slopes=(0, 1))


def test_layers_are_ordered_by_number_not_by_letter(tmp_path):
    net = nn.Sequential(*[nn.Linear(3, 3) for _ in range(12)])
    path = write(tmp_path / "net.safetensors", net.state_dict())
    x = torch.randn(4, 3)
    y = x
    for layer in net[:-1]:
        y = torch.tanh(layer(y))
    checked = load(path, activation="tanh", sample=(x, net[-1](y).detach()))
    assert checked.units == 33


def test_names_without_numbers_need_one_order(tmp_path):
    state = {"out.weight": torch.ones(2, 4), "entry.weight": torch.ones(5, 3),
             "middle.weight": torch.ones(4, 5)}  # fmt: skip
    with pytest.warns(UncheckedWarning):
        assert load(write(tmp_path / "a.pt", state), activation="relu").units == 9
    state["other.weight"] = torch.ones(4, 4)
    with pytest.warns(UncheckedWarning):
        assert load(write(tmp_path / "a.pt", state), activation="relu").units == 13
    state["twin.weight"] = torch.ones(4, 4)
    with pytest.raises(InvalidInput, match="2 orders"):
        load(write(tmp_path / "a.pt", state), activation="relu")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3)).state_dict(), "0.weight"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).state_dict(), r"1\.\w+, of shape"),
        ({"0.weight": torch.ones(2, 3), "1.weight": torch.ones(2, 3)}, "do not follow"),
        ({"0.weight": torch.tensor([[torch.nan]])}, "contains nan"),
        ({"0.weight": torch.ones(2, 2), "0.bias": torch.ones(3)}, "b0"),
        ({"0.bias": torch.ones(3)}, "0.bias"),
        ({"scale": torch.ones(3)}, "scale"),
        ({}, "no orders"),
    ],
)
def test_state_dicts_of_other_networks(tmp_path, state, message):
    path = write(tmp_path / "net.safetensors", state)
    with pytest.raises(InvalidInput, match=message):
        load(path, activation="relu")


# --- files that would run code, or are damaged ---


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)


def test_pickles_are_not_run(tmp_path):
    path = tmp_path / "net.pt"
    for content in (Bomb(), {"0.weight": Bomb()}, nn.Linear(2, 2), [Bomb()]):
        torch.save(content, path)
        with pytest.raises(InvalidInput, match="pickle"):
            load(path, activation="relu")
    for suffix in (".pt", ".npz", ".mat", ".safetensors", ".onnx"):
        path = tmp_path / f"bomb{suffix}"
        path.write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(InvalidInput, match=r"readable|pickle|MATLAB|mat file"):
            load(path, **({"activation": "relu"} if suffix in (".pt", ".mat") else {}))
    np.savez(tmp_path / "object.npz", W0=np.array([[Bomb()]]))
    with pytest.raises(InvalidInput):
        load(tmp_path / "object.npz")
    for other in ({"a": 3}, torch.ones(2), 5):
        torch.save(other, tmp_path / "net.pt")
        with pytest.raises(InvalidInput, match=r"must be a tensor|state dict"):
            load(tmp_path / "net.pt", activation="relu")


def test_what_a_file_says_itself_is_not_told(tmp_path):
    for name, options in {"a.npz": {"activation": "relu"}, "a.onnx": {"activation": "relu"},
                          "a.pt": {"transposed": True}, "a.npz ": {}}.items():  # fmt: skip
        (tmp_path / name).touch()
        with pytest.raises(InvalidInput, match="take no" if options else "no kind of file"):
            load(tmp_path / name, **options)


def test_programs_and_unknown_endings(tmp_path):
    for name in ("net.pt2", "net.h5", "net"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(InvalidInput, match="from_torch"):
            load(tmp_path / name)
    with pytest.raises(InvalidInput, match="does not exist"):
        load(tmp_path / "none.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".mat", ".npz"])
def test_damaged_files(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    if suffix == ".mat":
        savemat(path, cells(np.ones((5, 3)), np.ones((2, 5))), do_compression=True)
    elif suffix == ".npz":
        System.from_module(perceptron()).save(path)
    else:
        write(path, perceptron().state_dict())
    content = path.read_bytes()
    for k in range(0, len(content), max(1, len(content) // 30)):
        path.write_bytes(content[:k])
        with pytest.raises(InvalidInput), warnings.catch_warnings():
            warnings.simplefilter("ignore", UncheckedWarning)
            load(path, **({} if suffix == ".npz" else {"activation": "relu"}))
            raise InvalidInput("cut where nothing is lost") if suffix == ".mat" else AssertionError


def test_files_that_unpack_without_end(tmp_path, monkeypatch):
    from sdplip import _arrays
    from sdplip.importing import weights

    for module in (_arrays, weights):
        monkeypatch.setattr(module, "MAX_FILE_BYTES", 1 << 16)
    nothing = bytes(1 << 20)
    for suffix in (".pt", ".npz"):
        with zipfile.ZipFile(tmp_path / f"net{suffix}", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("W0.npy", nothing)
    packed = zlib.compress(nothing)
    head = b"MATLAB".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    (tmp_path / "net.mat").write_bytes(head + struct.pack("<II", 15, len(packed)) + packed)
    for suffix in (".pt", ".npz", ".mat"):
        with pytest.raises(InvalidInput, match="unpacks to"):
            load(tmp_path / f"net{suffix}")


# --- MATLAB ---


def cells(*weights, biases=None):
    def cell(arrays):
        out = np.empty((1, len(arrays)), dtype=object)
        out[0, :] = arrays
        return out

    return {"weights": cell(weights)} | ({} if biases is None else {"biases": cell(biases)})


def test_cells_of_lipsdp(tmp_path, rng):
    W0, W1, W2 = (rng.normal(size=s) for s in ((5, 3), (4, 5), (2, 4)))
    path = tmp_path / "net.mat"
    savemat(path, cells(W0, W1, W2))
    with pytest.warns(UncheckedWarning):
        system = load(path, activation="relu")
    assert system.digest() == System.feedforward([W0, W1, W2]).digest()
    biases = [rng.normal(size=(n, 1)) for n in (5, 4, 2)]
    savemat(path, cells(W0, W1, W2, biases=biases), do_compression=True)
    x = rng.normal(size=(7, 3))
    full = System.feedforward([W0, W1, W2], [b[:, 0] for b in biases])
    assert load(path, activation="relu", sample=(x, full(x))).digest() == full.digest()
    savemat(path, cells(W0.T, W1.T, W2.T, biases=biases))
    assert load(path, activation="relu", sample=(x, full(x))).digest() == full.digest()


def test_orientations_that_shapes_do_not_tell(tmp_path, rng):
    W0, W1 = rng.normal(size=(2, 4, 4))
    path, x = tmp_path / "net.mat", rng.normal(size=(5, 4))
    savemat(path, cells(W0, W1))
    with pytest.raises(InvalidInput, match="transposed="):
        load(path, activation="relu")
    right = System.feedforward([W0, W1])
    good = {"activation": "relu", "sample": (x, right(x))}
    assert load(path, transposed=False, **good).digest() == right.digest()
    with pytest.raises(InvalidInput, match="apart"):
        load(path, transposed=True, **good)
    savemat(path, cells(rng.normal(size=(5, 3)), rng.normal(size=(2, 4))))
    with pytest.raises(ShapeError, match="do not follow"):
        load(path, activation="relu")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"W": np.ones((2, 2))}, "no cell array"),
        (cells(np.array([["a"]])), "real numbers"),
        (cells(np.full((2, 3), np.nan)), "contains nan"),
        (cells(np.ones((2, 3)), biases=[np.ones(2), np.ones(2)]), "2 biases"),
        ({"weights": {"inner": 1.0}}, "real numbers"),
    ],
)
def test_cells_that_hold_something_else(tmp_path, content, message):
    savemat(tmp_path / "net.mat", content)
    with pytest.raises(InvalidInput, match=message):
        load(tmp_path / "net.mat", activation="relu")


# --- our own ---


def test_own_files_and_normalisation(tmp_path, rng):
    system = System.feedforward([rng.normal(size=(5, 3)), rng.normal(size=(2, 5))])
    system.save(tmp_path / "net.npz")
    assert load(tmp_path / "net.npz").digest() == system.digest()
    mean, std, x = rng.normal(size=3), rng.uniform(0.5, 2, size=3), rng.normal(size=(4, 3))
    y = load(tmp_path / "net.npz", normalize=(mean, std))(x)
    np.testing.assert_allclose(y, system((x - mean) / std), atol=1e-12)


def test_chains_of_convolutions(tmp_path, rng):
    kernels = {"K0": rng.normal(size=(2, 3, 3, 3)), "K1": rng.normal(size=(1, 2, 3, 3))}
    np.savez(tmp_path / "net.npz", **kernels)
    conv = load(tmp_path / "net.npz", input_shape=(3, 6, 5))
    assert isinstance(conv, ConvSystem) and conv.inputs == 90
    normal = load(tmp_path / "net.npz", input_shape=(3, 6, 5), normalize=([1, 2, 3], 0.5))
    x = rng.normal(size=(2, 3, 6, 5))
    inner = (x - np.array([1, 2, 3])[:, None, None]) / 0.5
    np.testing.assert_allclose(normal(x), conv(inner), atol=1e-10)


def test_shapes_that_are_none_or_another(tmp_path, rng):
    System.feedforward([rng.normal(size=(6, 4))]).save(tmp_path / "net.npz")
    np.savez(tmp_path / "conv.npz", K0=rng.normal(size=(2, 3, 3, 3)), size=(4, 5))
    for shape in ((), (0,), (-4,), (4.0,), "4", (-1, -4)):
        with pytest.raises(InvalidInput, match="input_shape"):
            load(tmp_path / "net.npz", input_shape=shape)
        with pytest.raises(InvalidInput, match="input_shape"):
            lipschitz(nn.Linear(4, 2), input_shape=shape)
    for name, shape in (("net", (5,)), ("net", (1,)), ("conv", (3, 5, 5)), ("conv", (60, 2))):
        with pytest.raises(ShapeError, match="input_shape"):
            load(tmp_path / f"{name}.npz", input_shape=shape)
    assert load(tmp_path / "net.npz", input_shape=(2, 2), normalize=(0.5, 2.0)).inputs == 4


def test_numbers_that_are_not_real_are_refused(tmp_path, rng):
    """Tensor.double() drops imaginary parts."""
    weight = torch.randn(3, 2)
    for other in (weight + 1j, weight.to_sparse(), weight.to("meta")):
        torch.save({"0.weight": other}, tmp_path / "net.pt")
        with pytest.raises(InvalidInput, match=r"0\.weight|net\.pt"):
            load(tmp_path / "net.pt", activation="relu")
    with pytest.raises(InvalidInput, match="real"):
        System.from_module(nn.Linear(2, 3, dtype=torch.complex64))


def test_cells_that_are_no_list_of_layers(tmp_path, rng):
    """MATLAB numbers the entries of a matrix by columns, NumPy by rows."""
    square = np.empty((2, 2), dtype=object)
    row = np.empty((1, 2), dtype=object)
    for place in np.ndindex(2, 2):
        square[place] = rng.normal(size=(4, 4))
    row[0, 0], row[0, 1] = rng.normal(size=(2, 2)), rng.normal(size=(4, 1))
    weights = np.empty((1, 2), dtype=object)
    weights[0, 0], weights[0, 1] = rng.normal(size=(4, 3)), rng.normal(size=(4, 4))
    for content in ({"weights": square}, {"weights": weights, "biases": row}):
        savemat(tmp_path / "net.mat", content)
        with pytest.raises(InvalidInput, match="shape"):
            load(tmp_path / "net.mat", activation="relu", transposed=False)
