"""What equilibria of several resolutions have beyond those of one; the rest is tested with them."""

import math
from itertools import product

import pytest
import torch
from equilibrium_conv_cases import F64, make, matrix
from torch.nn import functional as F

from sdplip.errors import InvalidInput, ShapeError
from sdplip.layers._torus import polyphase, symbol
from sdplip.layers.lben_conv import LBENConv2d
from sdplip.layers.multiscale import MultiscaleLBEN


def fine_from_coarse(scales, image):
    """The permutation that takes the units (scale, channel, pixel) to those of the coarsest grid
    (scale, channel, place in the coarse pixel, coarse pixel)."""
    order, start, last = [], 0, 2 ** (len(scales) - 1)
    for i, n in enumerate(scales):
        h, w = image[0] // 2**i, image[1] // 2**i
        side = last // 2**i
        index = torch.arange(start, start + n * h * w).view(n, h // side, side, w // side, side)
        order.append(index.permute(0, 2, 4, 1, 3).flatten())
        start += n * h * w
    return torch.cat(order)


@pytest.mark.parametrize("kernel_size", [1, 2, 3], ids=str)
@pytest.mark.parametrize("image", [(4, 8), (4, 4)], ids=str)
def test_the_blocks_are_strided_convolutions_of_pytorch(image, kernel_size):
    """The unrolled matrices against the published formula of matrices from F.conv2d, scale by
    scale, on small parameters, which do not saturate."""
    hidden, gamma = (1, 2, 1), 0.7
    torch.manual_seed(0)
    layer = MultiscaleLBEN(
        2, hidden, 2, kernel_size, gamma=gamma, eps=0.5, padding_mode="circular", dtype=F64
    )
    with torch.no_grad():
        layer.psi.normal_()
    sizes = [(image[0] // 2**i, image[1] // 2**i) for i in range(3)]

    def square(name):
        rows = []
        for i in range(3):
            blocks = []
            for j in range(3):
                shape = (hidden[i] * math.prod(sizes[i]), hidden[j] * math.prod(sizes[j]))
                block = torch.zeros(shape, dtype=F64)
                if j <= i:
                    K = layer.get_parameter(f"{name}{i}_{j}").detach()
                    block = matrix(K, sizes[j], 2 ** (i - j))
                blocks.append(block)
            rows.append(torch.cat(blocks, dim=1))
        return torch.cat(rows)

    def tall(name):
        kernels = (layer.get_parameter(f"{name}{i}").detach() for i in range(3))
        return torch.cat([matrix(K, image, 2**i) for i, K in enumerate(kernels)])

    V, S, B, C = square("V"), square("S"), tall("B"), tall("C").mT
    Lam = (4 * torch.tanh(-layer.psi.detach() / 4)).exp()
    pixels = torch.tensor([math.prod(size) for size in sizes])
    Lam = Lam.repeat_interleave(pixels.repeat_interleave(torch.tensor(hidden)))
    eye = torch.eye(len(Lam), dtype=F64)
    bound = (C.mT @ C + Lam[:, None] * (B @ B.mT) * Lam) / (2 * gamma)
    A = eye - (bound + V.mT @ V + 0.5 * eye + S - S.mT) / Lam[:, None]
    order = fine_from_coarse(hidden, image)
    system = layer.system(image)
    for ours, expected in (
        (system.A, A[order][:, order]),
        (system.B, B[order]),
        (system.C, C[:, order]),
    ):
        torch.testing.assert_close(torch.from_numpy(ours.copy()), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 2), (2, 4), (1, 4), (4, 4)])
def test_polyphase_kernels_convolve_phases(rows, columns):
    stride = columns // rows
    for k1, k2 in product((1, 2, 4), (3, 5)):
        K, image = torch.randn(3, 2, k1, k2, dtype=F64), (8, 12)
        origin = (k1 // 2, k2 - 1)
        G, center = polyphase(K, origin, rows, columns)
        coarse = (image[0] // columns, image[1] // columns)
        x = torch.randn(1, 2, *image, dtype=F64)
        waves = torch.fft.rfft2(F.pixel_unshuffle(x, columns)).permute(2, 3, 0, 1)
        y = (waves @ symbol(G, center, coarse).mT).permute(2, 3, 0, 1)
        y = F.pixel_shuffle(torch.fft.irfft2(y, s=coarse), rows)
        index = [
            (torch.arange(-o, n + k - o)) % n
            for o, n, k in zip(origin, image, (k1, k2), strict=True)
        ]
        expected = F.conv2d(x[:, :, index[0]][:, :, :, index[1]], K, stride=stride)
        torch.testing.assert_close(y, expected[..., : y.shape[-2], : y.shape[-1]])


@pytest.mark.parametrize("readout", ["image", "pool"])
def test_one_scale_is_the_layer_of_one_resolution(readout):
    options = {"readout": readout, "feedthrough": True, "dtype": F64, "tol": 1e-12}
    many, one = MultiscaleLBEN(2, (3,), 2, 3, **options), LBENConv2d(2, 3, 2, 3, **options)
    with torch.no_grad():
        many.D.normal_()
        one.psi.copy_(many.psi.normal_())
        for name, source in (("V", "V0_0"), ("S", "S0_0"), ("B", "B0")):
            getattr(one, name).copy_(many.get_parameter(source))
        if readout == "pool":
            one.C.copy_(many.C[:, :, None, None])
            one.D.copy_(many.D[:, :, None, None])
        else:
            # As in nn.ConvTranspose2d, the kernel of the adjoint.
            one.C.copy_(many.C0.transpose(0, 1).flip(-1, -2))
            one.D.copy_(many.D)
        one.bias.copy_(many.bias)
        one.out_bias.copy_(many.out_bias)
    x = torch.randn(3, 2, 5, 4, dtype=F64)
    torch.testing.assert_close(many(x), one(x), rtol=1e-9, atol=1e-10)


def test_a_pool_is_the_mean_of_each_scale_times_the_root_of_its_pixels():
    layer = make("multiscale", padding_mode="circular", readout="pool", bias=False)
    x = torch.randn(2, 2, 4, 8, dtype=F64)
    z = layer.solve(x).z
    fine, coarse = z[:, :8].unflatten(1, (2, 4)), z[:, 8:]
    sums = [fine.sum(dim=(2, 3, 4)) / 32**0.5, coarse.sum(dim=(2, 3)) / 8**0.5]
    expected = torch.cat(sums, dim=1) @ layer.C.mT
    torch.testing.assert_close(layer(x)[:, :, 0, 0], expected)


def test_sizes_and_scales():
    layer = MultiscaleLBEN(2, (1, 1, 1), 2, 3)
    with pytest.raises(ShapeError, match=r"6 x 8.*3 scales.*multiples of 4"):
        layer(torch.randn(1, 2, 6, 8))
    with pytest.raises(ShapeError, match="multiples of 4"):
        layer.system((4, 5))
    for hidden in ((), 3):
        with pytest.raises(InvalidInput, match="hidden"):
            MultiscaleLBEN(2, hidden, 2, 3)


def test_all_parameters_matter_and_train():
    layer = make("multiscale", learn_gamma=True)
    x = torch.randn(4, 2, 4, 8, dtype=F64)
    losses = []
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for step in range(8):
        optimizer.zero_grad()
        loss = (layer(x) - x.flip(0)).square().mean()
        loss.backward()
        if step == 0:
            assert all(p.grad.abs().max() > 0 for p in layer.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
