"""Equilibrium convolutions of one resolution, and what those of several share with them."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from equilibrium_conv_cases import EXTREMES, F64, FAMILIES, jacobians, make, matrix, put
from torch.nn import functional as F

from sdplip import conditions
from sdplip.equilibrium import Circulant, error_bound
from sdplip.errors import InvalidInput, NotConverged, NotConvergedWarning, ShapeError
from sdplip.layers import ROUNDING
from sdplip.layers._torus import symbol
from sdplip.layers.nemon import linf_bound, metzler
from sdplip.layers.nemon_conv import NEMONConv2d

every_family = pytest.mark.parametrize("family", FAMILIES)
every_extreme = pytest.mark.parametrize("extreme", EXTREMES)
MODES = ["zeros", "circular"]


def draw(*shape, dtype=F64):
    return torch.randn(*shape, dtype=dtype)


def weights_of(layer, image, system):
    """λ of every unit of the unrolled system."""
    Lam = layer.witness(image)["Lam"].detach().double().numpy()
    return np.repeat(Lam, len(system.A) // len(Lam))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(4, 6), (2, 2), (2, 4)], ids=str)
@pytest.mark.parametrize("kernel_size", [1, 3, (1, 3), 5], ids=str)
@every_family
def test_forward_is_the_equilibrium_of_the_unrolled_system(family, kernel_size, size, mode):
    x = draw(3, 2, *size)
    for options in ({}, {"readout": "pool"}, {"feedthrough": True}):
        layer = make(family, kernel_size, padding_mode=mode, **options)
        y, system = layer(x), layer.system(size)
        assert y.shape == ((3, 2, 1, 1) if options.get("readout") else (3, 2, *size))
        expected = system(x.flatten(1)).view_as(y)
        torch.testing.assert_close(y, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel_size", [2, 4, (2, 3)], ids=str)
@pytest.mark.parametrize("family", ["lben", "multiscale"])
def test_even_kernels(family, kernel_size, mode):
    layer = make(family, kernel_size, padding_mode=mode, feedthrough=True)
    x = draw(3, 2, 4, 6)
    system = layer.system((4, 6))
    torch.testing.assert_close(layer(x).flatten(1), system(x.flatten(1)), rtol=1e-8, atol=1e-9)
    w = {"Lam": weights_of(layer, (4, 6), system), "rho": 1.0}
    blocks = {name: getattr(system, name) for name in "ABCD"}
    assert conditions.equilibrium.margin(**blocks, **w) >= -1e-9


@pytest.mark.parametrize("family", ["lben", "nemon"])
@pytest.mark.parametrize("kernel_size", [1, 3, 5], ids=str)
def test_couplings_are_those_of_nn_conv2d(family, kernel_size):
    """Small parameters do not saturate: B and C are the kernels as PyTorch applies them."""
    layer = make(family, kernel_size, padding_mode="circular", feedthrough=family == "nemon")
    size, around = (5, 6), [kernel_size // 2] * 4
    system, x = layer.system(size), draw(1, 2, *size)
    drive = F.conv2d(F.pad(x, around, mode="circular"), layer.B)
    torch.testing.assert_close(torch.from_numpy(system.B.copy()) @ x.flatten(), drive.flatten())
    z = draw(1, 3, *size)
    read = F.conv2d(F.pad(z, around, mode="circular"), layer.C)
    torch.testing.assert_close(torch.from_numpy(system.C.copy()) @ z.flatten(), read.flatten())
    framed = make(family, kernel_size, padding_mode="zeros")
    drive = F.conv2d(x, framed.B, framed.bias, padding="same")
    w = framed.witness(size)
    torus = framed._torus(size)
    waves = torch.fft.rfft2(framed._entered(x)).permute(2, 3, 0, 1)
    ours = torch.fft.irfft2((waves @ w["B"].mT).permute(2, 3, 0, 1), s=torus)
    ours = ours[..., : size[0], : size[1]] + framed.bias[:, None, None]
    torch.testing.assert_close(ours, drive)


@pytest.mark.parametrize("gamma", [0.3, 2.0])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, (3, 2)], ids=str)
@pytest.mark.parametrize("size", [(4, 5), (2, 3), (1, 1)], ids=str)
def test_lben_is_the_published_parametrisation_of_the_unrolled_matrices(size, kernel_size, gamma):
    layer = make("lben", kernel_size, padding_mode="circular", gamma=gamma, eps=0.5)
    V, S, B, C = (matrix(p.detach(), size) for p in (layer.V, layer.S, layer.B, layer.C))
    Lam = (4 * torch.tanh(-layer.psi.detach() / 4)).exp().repeat_interleave(math.prod(size))
    bound = (C.mT @ C + Lam[:, None] * (B @ B.mT) * Lam) / (2 * gamma)
    eye = torch.eye(len(Lam), dtype=F64)
    A = eye - (bound + V.mT @ V + 0.5 * eye + S - S.mT) / Lam[:, None]
    torch.testing.assert_close(
        torch.from_numpy(layer.system(size).A.copy()), A, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4], ids=str)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (6, 5), (8, 8)], ids=str)
def test_symbols_are_the_fourier_transforms_of_periodised_kernels(kernel_size, size):
    K, origin = draw(3, 2, kernel_size, kernel_size), (kernel_size - 1) // 2
    torus = torch.zeros(3, 2, *size, dtype=F64)
    for i in range(kernel_size):
        for j in range(kernel_size):
            torus[:, :, (origin - i) % size[0], (origin - j) % size[1]] += K[:, :, i, j]
    plain = torch.fft.rfft2(torus).permute(2, 3, 0, 1)
    torch.testing.assert_close(symbol(K, (origin, origin), size), plain, rtol=1e-12, atol=1e-12)
    K.requires_grad_()
    weight = draw(*plain.shape)
    (grad,) = torch.autograd.grad((symbol(K, (origin, origin), size).real * weight).sum(), K)
    moved = torch.zeros_like(K)
    with torch.no_grad():
        for index in np.ndindex(*K.shape):
            one = torch.zeros_like(K)
            one[index] = 1
            moved[index] = (symbol(one, (origin, origin), size).real * weight).sum()
    torch.testing.assert_close(grad, moved, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", MODES)
@every_extreme
@pytest.mark.parametrize("family", ["lben", "multiscale"])
def test_the_condition_holds_and_so_does_the_bound(family, extreme, mode):
    """The official LBEN convolution loses it as soon as one of three scalars is negative."""
    for gamma, options in ((1.0, {}), (0.2, {"feedthrough": True}), (5.0, {"readout": "pool"})):
        layer = make(family, padding_mode=mode, gamma=gamma, **options)
        put(layer, extreme)
        image = (2, 4)
        system = layer.system(image)
        w = {"Lam": weights_of(layer, image, system), "rho": gamma**2}
        blocks = {name: getattr(system, name) for name in "ABCD"}
        size = np.linalg.norm(blocks["A"], 2)
        assert conditions.equilibrium.margin(**blocks, **w) >= -1e-13 * (1 + size) * gamma**2 * 100
        for J in jacobians(system):
            assert np.linalg.norm(J, 2) <= gamma * (1 + 1e-12)


@every_extreme
@pytest.mark.parametrize("family", ["lben", "multiscale"])
def test_the_bound_holds_for_weights_in_float32(family, extreme):
    layer = make(family, dtype=torch.float32, gamma=0.5, eps=1e-6)
    put(layer, extreme)
    system = layer.system((2, 4))
    w = {name: getattr(system, name) for name in "A"}
    Lam = weights_of(layer, (2, 4), system)
    assert conditions.wellposed.margin(**w, Lam=Lam, alpha=0.0, beta=1.0) > 0
    for J in jacobians(system, 6):
        assert np.linalg.norm(J, 2) <= 0.5 * (1 + ROUNDING)


@pytest.mark.parametrize("mode", MODES)
@every_extreme
@pytest.mark.parametrize("c", [0.0, 0.99, -3.0, 1 - 1e-9])
def test_the_matrix_measure_of_the_unrolled_system(c, extreme, mode):
    """The official NEMON convolution asks for 0 and gets 4.1."""
    for dtype in (torch.float32, F64):
        layer = make("nemon", dtype=dtype, c=c, padding_mode=mode)
        put(layer, extreme)
        for image in ((4, 3), (2, 1)):
            A = layer.system(image).A
            eta = layer.witness()["eta"].detach().double().numpy()
            eta = np.repeat(eta, len(A) // len(eta))
            rows = np.abs(A)
            np.fill_diagonal(rows, A.diagonal())
            # The unrolled matrix comes out of a Fourier transform, with rounding of its largest.
            noise = 100 * torch.finfo(dtype).eps * np.abs(A).max() * eta.max() / eta.min()
            assert (rows @ eta / eta).max() <= layer.c + noise


def test_the_official_recipe_would_fail_here():
    """It shifts by max|K| · channels instead of the row sum over channels and taps."""
    torch.manual_seed(0)
    K = torch.nn.Conv2d(8, 8, 5, dtype=F64).weight.detach()
    official = K.clone()
    official[range(8), range(8), 2, 2] -= 8 * K.abs().max()
    shifted = K.clone()
    shifted[range(8), range(8), 2, 2] -= K.abs().sum(dim=(1, 2, 3))
    measures = [float(metzler(matrix(X, (6, 6))).sum(1).max()) for X in (official, shifted)]
    assert measures[0] > 0.5
    assert measures[1] <= 1e-12


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel_size", [1, 3, (3, 1), 5], ids=str)
@pytest.mark.parametrize("readout", ["image", "pool"])
def test_nemon_promises_the_bound_of_its_unrolled_matrices(readout, kernel_size, mode):
    options = {"readout": readout, "padding_mode": mode, "feedthrough": True}
    layer = make("nemon", kernel_size, c=0.5, **options)
    for image in ((5, 6), (2, 3), (1, 1)):
        system = layer.system(image)
        unrolled = (torch.from_numpy(getattr(system, name).copy()) for name in "ABCD")
        exact = linf_bound(*unrolled).item()
        assert exact <= layer.lipschitz * (1 + 1e-10)
        if image == (5, 6) and mode == "circular":
            assert exact == pytest.approx(layer.lipschitz, rel=1e-8)
        for J in jacobians(system):
            assert np.abs(J).sum(1).max() <= layer.lipschitz * (1 + 1e-12)
    assert layer.linf_bound().item() == pytest.approx(layer.lipschitz, rel=1e-8)


def test_linf_bound_is_differentiable_and_trains():
    layer = make("nemon")
    before = layer.lipschitz
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.02)
    for _ in range(5):
        optimizer.zero_grad()
        layer.linf_bound().backward()
        optimizer.step()
    assert layer.lipschitz < 0.95 * before


def test_lben_reaches_its_bound():
    """The parametrisation is tight: a gradient ascent on the gain comes close to γ."""
    layer = make("lben", gamma=2.0, eps=1e-3, activation="identity", padding_mode="circular")
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(150):
        w = layer.witness((4, 4))
        eye = torch.eye(3, dtype=w["A"].dtype)
        gains = torch.linalg.matrix_norm(w["C"] @ torch.linalg.solve(eye - w["A"], w["B"]), ord=2)
        optimizer.zero_grad()
        (-gains.max()).backward()
        optimizer.step()
    assert 1.9 < gains.max().item() <= 2.0


@every_extreme
@every_family
def test_equilibria_are_accurate_for_any_parameters(family, extreme):
    layer = make(family)
    put(layer, extreme)
    found = layer.solve(draw(3, 2, 4, 6))
    assert found.converged.all()
    assert found.residual.max() <= 1e-9
    assert found.z.shape[0] == 3


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@every_family
def test_gradcheck(family, activation):
    layer = make(family, (1, 3), activation=activation, readout="pool", feedthrough=True)
    names = [name for name, _ in layer.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    x = draw(1, 2, *((2, 2) if family == "multiscale" else (1, 2))).requires_grad_()

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *values), rtol=1e-4, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "leaky_relu(0.2)"])
@every_family
def test_other_activations(family, activation):
    layer, x = make(family, activation=activation), draw(2, 2, 2, 4)
    torch.testing.assert_close(layer(x).flatten(1), layer.system((2, 4))(x.flatten(1)))
    J = torch.autograd.functional.jacobian(lambda x: layer(x).sum(0), x).movedim(3, 0).flatten(4)
    J = J.flatten(1, 3)
    assert torch.linalg.matrix_norm(J, ord=layer.norm).max() <= layer.lipschitz * (1 + 1e-12)


@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-4])
@pytest.mark.parametrize("family", ["lben", "multiscale"])
def test_images_in_different_batches_move_by_what_is_promised(family, tol):
    """The official LBEN at γ = 1 and its training tolerance moves by 336 times as much."""
    layer = make(family, gamma=0.3, eps=0.1)
    layer.tol, layer.fallback, image = tol, None, (4, 4)
    with torch.no_grad():
        for name in ("V", "S"):
            for parameter in (p for n, p in layer.named_parameters() if n.startswith(name)):
                parameter.mul_(3)
    x, w = draw(8, 2, *image), layer.witness(image)
    moved = x + 0.01 * draw(8, 2, *image)
    system, size = layer.system(image), layer._torus(image)
    root = np.sqrt(weights_of(layer, image, system))
    gain = np.linalg.norm(system.C / root, 2)
    outputs, slack = [], []
    for batch in (x, torch.cat([moved, 100 * draw(20, 2, *image)])):
        found, A = layer.solve(batch), Circulant(w["A"].detach(), size)
        v = batch.flatten(1) @ torch.from_numpy(system.B.copy()).mT + torch.from_numpy(
            system.b.copy()
        )
        bound = error_bound(A, v, found.z.flatten(1), metric=w["Lam"].detach())
        slack.append(gain * bound[:8])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotConvergedWarning)
            outputs.append(layer(batch)[:8].flatten(1).detach())
    gap = torch.linalg.vector_norm(outputs[1] - outputs[0], dim=-1)
    step = torch.linalg.vector_norm((moved - x).flatten(1), dim=-1)
    assert (gap <= 0.3 * step + slack[0] + slack[1] + 1e-12).all()
    assert (slack[0] <= 1e3 * tol).all()


@every_family
def test_neighbours_in_the_batch_do_not_matter(family):
    layer = make(family, dtype=torch.float32)
    layer.tol = 1e-5
    x = draw(16, 2, 4, 4, dtype=torch.float32)
    together = layer(x)
    alone = torch.stack([layer(image) for image in x])
    assert (together - alone).abs().max() <= 1e-4 * together.abs().max()


@every_family
def test_a_bad_image_stays_alone(family):
    layer = make(family).eval()
    layer.on_failure = "ignore"
    x = draw(4, 2, 4, 4)
    clean = layer(x)
    x[2, 0, 1, 1] = math.nan
    y = layer(x)
    assert y[2].isnan().all()
    torch.testing.assert_close(y[[0, 1, 3]], clean[[0, 1, 3]], rtol=1e-10, atol=1e-12)
    y[[0, 1, 3]].sum().backward()


@every_family
def test_unsolved_samples_are_announced(family):
    layer = make(family)
    layer.max_steps, layer.fallback = 1, None
    x, name = draw(4, 2, 4, 4), type(layer).__name__
    with pytest.raises(NotConverged, match=name):
        layer.eval()(x)
    with pytest.warns(NotConvergedWarning, match=name):
        layer.train()(x)
    solution = layer.solve(x)
    assert not solution.converged.any()
    layer.max_steps, layer.fallback = 4, "newton"
    assert layer.solve(x).converged.all()
    big = draw(1, 2, 40, 40)
    assert not layer.solve(big).converged.any()
    with pytest.raises(NotConverged, match=name):
        layer.eval()(big)


@pytest.mark.parametrize("method", ["forward_backward", "douglas_rachford", "average", "newton"])
@every_family
def test_every_method_finds_the_same_output(family, method):
    layer, x = make(family), draw(2, 2, 4, 4)
    layer.tol = 1e-10
    expected = layer(x)
    layer.method, layer.max_steps = method, 20_000
    torch.testing.assert_close(layer(x), expected, rtol=1e-7, atol=1e-8)


@every_family
def test_evaluation_keeps_what_still_holds_and_nothing_else(family):
    layer, x = make(family), draw(2, 2, 4, 4)
    with torch.no_grad():
        fresh = layer(x)
        layer.eval()
        assert torch.equal(layer(x), fresh)
        assert torch.equal(layer(x), fresh)
        other = draw(2, 2, 4, 8)
        torch.testing.assert_close(layer(other), copy.deepcopy(layer).train()(other))
        assert torch.equal(layer(x), fresh)
        for change in (
            lambda: next(layer.parameters()).mul_(1.5),
            lambda: setattr(layer, "c" if family == "nemon" else "gamma", 0.4),
            lambda: next(layer.parameters()).data.add_(0.1),
        ):
            change()
            now = layer(x)
            assert not torch.equal(now, fresh)
            torch.testing.assert_close(now, copy.deepcopy(layer).train()(x))
            fresh = now
        layer.method, layer.max_steps, layer.tol = "average", 5000, 1e-9
        torch.testing.assert_close(layer(x), fresh, rtol=1e-6, atol=1e-7)
    layer.method = "peaceman_rachford"
    layer.requires_grad_(False)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x)
    (again,) = torch.autograd.grad(layer(x).square().sum(), x)
    (trained,) = torch.autograd.grad(copy.deepcopy(layer).train()(x).square().sum(), x)
    assert torch.equal(grad, again)
    torch.testing.assert_close(grad, trained)


@every_family
def test_states_copies_and_calls(family):
    layer, x = make(family, dtype=torch.float32), draw(2, 2, 4, 4, dtype=torch.float32)
    layer(x).sum().backward()
    # Besides the parameters a state counts the solves since the step was chosen.
    before = {name: value.clone() for name, value in layer.named_parameters()}
    y = layer(x)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), y)
    fresh = make(family, dtype=torch.float32, **({"c": 0.3} if family == "nemon" else {"eps": 7.0}))
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), y)
    assert torch.equal(torch.func.functional_call(layer, dict(layer.named_parameters()), (x,)), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), y)
    assert all(torch.equal(before[name], value) for name, value in layer.named_parameters())
    layer.reset_parameters()
    assert not torch.equal(layer(x), y)
    for other in ({"padding_mode": "circular"}, {"activation": "tanh"}):
        with pytest.raises(InvalidInput, match="Build the layer that was saved"):
            make(family, dtype=torch.float32, **other).load_state_dict(layer.state_dict())


@pytest.mark.parametrize("family", ["lben", "nemon"])
def test_a_readout_is_part_of_the_state(family):
    pooled = make(family, 1, readout="pool")
    with pytest.raises(InvalidInput, match="readout"):
        make(family, 1).load_state_dict(pooled.state_dict())


@every_family
def test_half_precision(family):
    layer = make(family, dtype=torch.float32)
    layer.tol = 1e-5
    x = draw(2, 2, 4, 4, dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        low = copy.deepcopy(layer).to(dtype)
        y = low(x.to(dtype))
        assert y.dtype == dtype
        exact = copy.deepcopy(low).float()(x.to(dtype).float())
        assert (y.float() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max() + 1e-4
        y.float().sum().backward()
        assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in low.parameters())
    mixed = layer(x.bfloat16())
    assert mixed.dtype == torch.bfloat16


@every_family
def test_shapes(family):
    layer = make(family)
    x = draw(3, 2, 4, 4)
    y = layer(x)
    torch.testing.assert_close(layer(x[0]), y[0], rtol=1e-9, atol=1e-10)
    assert layer.solve(x[0]).converged.shape == ()
    empty = layer(x[:0])
    assert empty.shape == (0, 2, 4, 4)
    empty.sum().backward()
    for wrong in (draw(3, 1, 4, 4), draw(4, 4), draw(1, 1, 2, 4, 4)):
        with pytest.raises(ShapeError, match="in_channels = 2"):
            layer(wrong)
    with pytest.raises(InvalidInput, match="floating"):
        layer(torch.ones(3, 2, 4, 4, dtype=torch.int64))
    with pytest.raises(InvalidInput, match="image"):
        layer.system()


@every_family
def test_what_cannot_hold_is_refused(family):
    for mode in ("reflect", "replicate"):
        with pytest.raises(InvalidInput, match=mode):
            make(family, padding_mode=mode)
    with pytest.raises(InvalidInput, match="readout = 'mean'"):
        make(family, readout="mean")
    with pytest.raises(InvalidInput, match="kernel_size"):
        make(family, 0)
    with pytest.raises(InvalidInput, match="gelu"):
        make(family, activation="gelu")
    with pytest.raises(InvalidInput, match="hidden = 0"):
        FAMILIES[family](2, (0,) if family == "multiscale" else 0, 2, 3)
    layer = make(family)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.view(-1)[0] = math.nan
    for use in (lambda: layer.lipschitz, lambda: layer.system((4, 4))):
        with pytest.raises(InvalidInput, match="NaN"):
            use()
    with pytest.raises(InvalidInput, match="NaN"):
        layer(draw(1, 2, 4, 4))


def test_even_kernels_have_no_middle_tap():
    with pytest.raises(InvalidInput, match="kernel_size = 2"):
        NEMONConv2d(2, 3, 2, 2)


@every_family
def test_meta_device(family):
    hidden = (2, 3) if family == "multiscale" else 3
    layer = FAMILIES[family](2, hidden, 2, 3, device="meta")
    assert type(layer).__name__ in repr(layer)
    with pytest.raises(InvalidInput, match="no equilibrium can be computed on the meta"):
        layer(torch.empty(1, 2, 4, 4, device="meta"))
    with pytest.raises(InvalidInput, match="meta device"):
        _ = layer.lipschitz
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer(torch.randn(1, 2, 4, 4)).isfinite().all()


@pytest.mark.parametrize("family", ["lben", "multiscale"])
def test_gamma(family):
    layer = make(family, gamma=3.0, learn_gamma=True)
    assert layer.lipschitz == pytest.approx(3)
    layer(draw(2, 2, 4, 4)).square().sum().backward()
    assert layer.log_gamma.grad.abs() > 0
    trained, fresh = make(family, gamma=0.1, eps=0.25), make(family, gamma=5.0)
    fresh.load_state_dict(trained.state_dict())
    assert (fresh.lipschitz, fresh.eps) == (0.1, 0.25)
    for direct in (False, True):
        free = make(family, gamma=math.inf, feedthrough=direct)
        with torch.no_grad():
            for parameter in free.parameters():
                parameter.mul_(10)
        assert free.lipschitz == math.inf
        system = free.system((2, 2))
        Lam = weights_of(free, (2, 2), system)
        assert conditions.wellposed.margin(A=system.A, Lam=Lam, alpha=0.0, beta=1.0) > 0
        free(draw(1, 2, 2, 2)).sum().backward()
        assert all(p.grad.isfinite().all() for p in free.parameters())
    with pytest.raises(InvalidInput, match="finite to be learned"):
        make(family, gamma=math.inf, learn_gamma=True)


@every_family
def test_per_sample_gradients_and_maps_over_images(family):
    layer, x = make(family, activation="tanh"), draw(3, 2, 2, 2)
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x), rtol=1e-9, atol=1e-10)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters, image):
        return torch.func.functional_call(layer, parameters, (image,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    layer.zero_grad()
    layer(x[1]).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(each[name][1], parameter.grad, rtol=1e-7, atol=1e-9)
