"""What surrounds the layers: pooling, rearranging, sorting, the last layer, sums of branches."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import stack_module_state

from sdplip import conditions
from sdplip.errors import InvalidInput, ShapeError
from sdplip.layers import CPLLinear, LBENLinear, SLLLinear
from sdplip.layers.basic import Normalize, Scale
from sdplip.layers.bounds import lipschitz_bound
from sdplip.layers.containers import Concatenate, ConvexResidual, Residual
from sdplip.layers.head import NormalizedLinear
from sdplip.layers.pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from sdplip.layers.shaping import ChannelPad, ChannelSlice, DepthToSpace, SpaceToDepth
from sdplip.layers.sorting import GroupSort, Householder, MaxMin

EPS = 1e-12
NORMS = pytest.mark.parametrize("norm", [2.0, math.inf])


def operator(part, shape):
    """The matrix of a linear part on images of this shape, from the identity basis."""
    n = math.prod(shape)
    basis = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    zero = part.double()(torch.zeros(1, *shape, dtype=torch.float64))
    return (part.double()(basis) - zero).reshape(n, -1).detach().mT


def steepest(part, shape, norm, count=200):
    """The largest Jacobian norm at random points, in float64: a lower bound of the constant."""
    part = part.double()
    worst = 0.0
    for _ in range(count // 20):
        x = torch.randn(20, *shape, dtype=torch.float64)
        x[::3] = x[::3].round()  # ties
        J = torch.autograd.functional.jacobian(lambda x: part(x).sum(0), x)
        J = J.reshape(-1, 20, math.prod(shape)).movedim(1, 0)
        worst = max(worst, torch.linalg.matrix_norm(J, ord=norm).max().item())
    return worst


# --- pooling ---

WINDOWS = [
    ((2, 2), None, (6, 6)),
    ((3, 2), None, (7, 5)),
    ((2, 2), (3, 3), (8, 8)),
    ((3, 3), (1, 1), (6, 6)),
    ((3, 3), (2, 2), (9, 7)),
    ((4, 2), (3, 1), (9, 6)),
]


@pytest.mark.parametrize(("kernel", "stride", "size"), WINDOWS)
@NORMS
def test_average_pooling_is_the_scaled_sum_and_keeps_its_constant(kernel, stride, size, norm):
    part = AvgPool2d(kernel, stride)
    x = torch.randn(2, 3, *size)
    area = math.prod(kernel)
    expected = nn.functional.avg_pool2d(x, kernel, stride, divisor_override=1) / math.sqrt(area)
    torch.testing.assert_close(part(x), expected)
    torch.testing.assert_close(part(x)[0], part(x[0]))
    true = torch.linalg.matrix_norm(operator(part, (1, *size)), ord=norm).item()
    assert true <= part.lipschitz_in(norm) * (1 + EPS)
    if stride is None:
        assert true >= part.lipschitz_in(norm) * (1 - EPS)


def test_average_pooling_keeps_the_norm_of_what_is_constant_on_windows():
    x = torch.randn(2, 3, 4, 5).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(AvgPool2d(2)(x).norm(), x.norm())
    torch.testing.assert_close(AdaptiveAvgPool2d((4, 5))(x).norm(), x.norm())


def test_overlapping_windows_count():
    assert AvgPool2d(3, 1).lipschitz == 3.0
    assert AvgPool2d(3, 2).lipschitz == 2.0
    assert operator(AvgPool2d(3, 1), (1, 12, 12)).svd().S.max() > 2.5
    assert MaxPool2d(2, 2, dilation=2).lipschitz == 2.0


@pytest.mark.parametrize("options", [{"padding": 1}, {"ceil_mode": True}])
def test_average_pooling_refuses_cut_windows(options):
    """A public norm-preserving average with ceil_mode has the constant 2 to 4."""
    with pytest.raises(InvalidInput, match=r"AvgPool2d: (padding = 1|ceil_mode = True), but"):
        AvgPool2d(2, **options)


@pytest.mark.parametrize("size", [(4, 6), (2, 3), (8, 3)])
def test_adaptive_pooling_divides_the_image(size):
    part = AdaptiveAvgPool2d((2, 3))
    assert operator(part, (2, *size)).svd().S.max() <= 1 + EPS
    y = AdaptiveAvgPool2d()(torch.ones(1, 2, *size))
    torch.testing.assert_close(y, torch.full((1, 2, 1, 1), math.prod(size) ** 0.5))


def test_adaptive_pooling_refuses_other_images_and_the_other_norm():
    with pytest.raises(ShapeError, match=r"image is 5x6.*multiple of output_size = 2x3"):
        AdaptiveAvgPool2d((2, 3))(torch.zeros(1, 1, 5, 6))
    with pytest.raises(InvalidInput, match="grows with the image"):
        lipschitz_bound(AdaptiveAvgPool2d(), math.inf)


@pytest.mark.parametrize("options", [{}, {"ceil_mode": True}, {"padding": 1}, {"dilation": 2}])
@pytest.mark.parametrize(("kernel", "stride", "size"), WINDOWS)
@NORMS
def test_max_pooling_keeps_its_constant(kernel, stride, size, norm, options):
    part = MaxPool2d(kernel, stride, **options)
    x = torch.randn(2, 3, *size)
    assert torch.equal(part(x), nn.MaxPool2d(kernel, stride, **options)(x))
    assert steepest(part, (1, *size), norm, 40) <= part.lipschitz_in(norm) * (1 + EPS)


def test_the_constant_of_overlapping_maxima_is_attained():
    """Every window but the border's has the one bright pixel."""
    x, part = torch.zeros(1, 1, 8, 8), MaxPool2d(3, 1)
    y = x.clone()
    y[..., 4, 4] = 1
    assert (part(y) - part(x)).norm() == part.lipschitz == 3.0


@pytest.mark.parametrize("size", [0, (2, 0), (1, 2, 3), 1.5])
@pytest.mark.parametrize("kind", [AvgPool2d, MaxPool2d, AdaptiveAvgPool2d])
def test_sizes_of_windows_are_checked(kind, size):
    with pytest.raises(InvalidInput, match=f"{kind.__name__}: .* must be an integer ≥ 1"):
        kind(size)


# --- rearranging ---


@pytest.mark.parametrize(
    ("part", "shape"),
    [
        (SpaceToDepth(), (3, 4, 6)),
        (SpaceToDepth(3), (2, 3, 9)),
        (DepthToSpace(), (8, 3, 2)),
        (ChannelPad(7), (3, 4, 5)),
        (ChannelPad(3), (3, 2, 2)),
        (ChannelPad(7, dim=-1), (5,)),
    ],
    ids=repr,
)
@NORMS
def test_rearranging_keeps_norms(part, shape, norm):
    x = torch.randn(4, *shape)
    y = part(x)
    torch.testing.assert_close(y.flatten(1).norm(dim=1, p=norm), x.flatten(1).norm(dim=1, p=norm))
    assert torch.equal(part(x[0]), y[0])
    assert lipschitz_bound(part, norm) == 1.0


def test_space_and_depth_are_inverse():
    x = torch.randn(2, 3, 6, 12)
    assert torch.equal(DepthToSpace(3)(SpaceToDepth(3)(x)), x)
    assert torch.equal(SpaceToDepth()(x), nn.PixelUnshuffle(2)(x))


def test_slices_are_the_first_channels():
    x = torch.randn(2, 6, 3, 3)
    assert torch.equal(ChannelSlice()(x), x[:, :3])
    assert torch.equal(ChannelSlice(2)(x[0]), x[0, :2])
    assert torch.equal(ChannelSlice(4, dim=-1)(x[:, :, 0, 0]), x[:, :4, 0, 0])
    assert torch.equal(ChannelPad(9)(x)[:, :6], x)
    assert not ChannelPad(9)(x)[:, 6:].any()


@pytest.mark.parametrize(
    ("part", "shape", "message"),
    [
        (SpaceToDepth(), (1, 3, 5, 4), "image is 5x4"),
        (DepthToSpace(), (1, 6, 4, 4), "6 channels.*multiple"),
        (ChannelPad(2), (1, 3, 4, 4), "more than channels = 2"),
        (ChannelSlice(5), (1, 3, 4, 4), "channels = 5"),
        (ChannelSlice(), (1, 3, 4, 4), "have no half"),
        (MaxMin(), (1, 3, 4, 4), "pairs need an even number"),
        (MaxMin(), (2, 4), "no dimension -3"),
        (GroupSort(4), (1, 6, 4, 4), "groups of 4"),
        (Householder(4), (1, 6, 4, 4), "channels = 4"),
        (AvgPool2d(2), (4, 4), "must be"),
        (MaxPool2d(2), (4,), "must be"),
        (SpaceToDepth(), (4, 4), "must be"),
    ],
    ids=repr,
)
def test_shapes_that_do_not_fit_are_named(part, shape, message):
    with pytest.raises(ShapeError, match=f"{type(part).__name__}: .*{message}"):
        part(torch.zeros(shape))


# --- activations on groups ---

GROUPED = [MaxMin(-1), GroupSort(2, dim=-1), GroupSort(3, dim=-1), GroupSort(None, dim=-1)]


def turned(channels=6, dim=-1):
    part = Householder(channels, dim=dim)
    with torch.no_grad():
        part.angle.uniform_(-10, 10)
    return part


@pytest.mark.parametrize("part", [*GROUPED, turned()], ids=repr)
@NORMS
def test_grouped_activations_keep_their_constant(part, norm):
    assert steepest(part, (6,), norm) <= part.lipschitz_in(norm) * (1 + EPS)
    x, y = torch.randn(2, 5000, 6, dtype=torch.float64)
    near = x + 1e-3 * torch.randn_like(x)
    for other in (y, near, torch.zeros_like(x)):
        moved = torch.linalg.vector_norm(part(x) - part(other), dim=-1, ord=norm)
        by = torch.linalg.vector_norm(x - other, dim=-1, ord=norm)
        assert (moved <= part.lipschitz_in(norm) * by * (1 + 1e-9)).all()


@pytest.mark.parametrize("part", [*GROUPED, turned()], ids=repr)
def test_grouped_activations_keep_gradient_norms(part):
    x = torch.randn(50, 6, dtype=torch.float64, requires_grad=True)
    g = torch.randn(50, 6, dtype=torch.float64)
    (back,) = torch.autograd.grad(part.double()(x), x, g)
    torch.testing.assert_close(back.norm(dim=-1), g.norm(dim=-1))


def test_sorting_is_sorting():
    x = torch.randn(4, 6, 3, 2)
    assert torch.equal(MaxMin()(x)[:, :3], torch.maximum(x[:, :3], x[:, 3:]))
    assert torch.equal(MaxMin()(x)[:, 3:], torch.minimum(x[:, :3], x[:, 3:]))
    assert torch.equal(MaxMin(1)(x), MaxMin()(x))
    assert torch.equal(GroupSort(3)(x)[:, :3], x[:, :3].sort(1).values)
    assert torch.equal(GroupSort(None)(x[0]), x[0].sort(0).values)
    torch.testing.assert_close(Householder(6)(x), MaxMin()(x))


def test_channels_counted_from_the_end_are_the_same_under_vmap():
    x = torch.randn(4, 6, 3, 2)
    for part in (MaxMin(), GroupSort(), turned(dim=-3), ChannelSlice(), SpaceToDepth(1)):
        torch.testing.assert_close(torch.func.vmap(part)(x), part(x))


def test_householder_reflects_where_the_product_is_not_positive():
    part = turned(8).double()
    v = torch.randn(30, 8, dtype=torch.float64)
    y = part(v)
    for i, angle in enumerate(part.angle.tolist()):
        u = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        pair = v[:, [i, i + 4]]
        product = pair @ u
        expected = torch.where((product > 0)[:, None], pair, pair - 2 * product[:, None] * u)
        torch.testing.assert_close(y[:, [i, i + 4]], expected)


def test_householder_learns_every_angle_and_survives_any():
    part = Householder(6, dim=-1)
    part(torch.randn(64, 6)).square()[:, 0].sum().backward()
    part.zero_grad()
    (part(torch.randn(64, 6)) * torch.randn(6)).sum().backward()
    assert (part.angle.grad != 0).all()
    with torch.no_grad():
        part.angle.copy_(torch.tensor([1e15, -1e-20, 0.0]))
    assert steepest(part, (6,), 2) <= 1 + EPS
    with torch.no_grad():
        part.angle[0] = math.nan
    with pytest.raises(InvalidInput, match="angle contains NaN"):
        lipschitz_bound(part)


def _group_condition(W, G, rho, Lam):
    """The condition of x ↦ Gσ(Wx) with slopes between -1 and 1."""
    n = len(W)
    values = {"A": np.zeros((n, n)), "B": W, "C": G, "D": np.zeros((len(G), W.shape[1]))}
    slopes = {"alpha": -np.ones(n), "beta": np.ones(n)}
    return conditions.lipschitz.margin(**values, **slopes, Lam=Lam, rho=rho)


@pytest.mark.parametrize("part", [MaxMin(-1), turned()], ids=repr)
def test_one_multiplier_per_group_proves_a_true_bound(part):
    """Units i and i + 3 share a multiplier; scales 9 and 1/9 per pair cancel behind σ only so."""
    rng = np.random.default_rng(0)
    Q, P = (np.linalg.qr(rng.standard_normal((6, 6)))[0] for _ in range(2))
    scale = np.tile([9.0, 1.0, 1 / 9], 2)
    W, G = scale[:, None] * Q, P / scale
    assert _group_condition(W, G, 1.0, 0.5 / scale**2) >= -EPS
    assert _group_condition(W, G, 0.99, 0.5 / scale**2) < 0
    model = nn.Sequential(nn.Linear(6, 6, False), part, nn.Linear(6, 6, False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.as_tensor(W))
        model[2].weight.copy_(torch.as_tensor(G))
    assert steepest(model, (6,), 2) <= 1 + EPS


def test_different_multipliers_within_a_group_would_prove_what_is_false():
    scale = np.array([9.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    W, G = np.diag(scale), np.diag(1 / scale)
    assert _group_condition(W, G, 1.0, 0.5 / scale**2) >= -EPS
    W, G = (torch.as_tensor(M) for M in (W, G))

    def f(x):
        return MaxMin(-1)(x @ W.mT) @ G.mT

    J = torch.autograd.functional.jacobian(f, torch.tensor([0.0, 0, 0, 1, 0, 0]).double())
    assert torch.linalg.matrix_norm(J, ord=2) > 8


REFUSED = [MaxMin(-1), GroupSort(), Householder(4), MaxMin, "maxmin", "GroupSort", nn.ReLU()]


@pytest.mark.parametrize("sigma", REFUSED, ids=repr)
@pytest.mark.parametrize(
    "build",
    [
        lambda sigma: SLLLinear(4, activation=sigma),
        lambda sigma: CPLLinear(4, activation=sigma),
        lambda sigma: LBENLinear(4, 4, 4, activation=sigma),
    ],
    ids=["sll", "cpl", "lben"],
)
def test_layers_whose_proof_needs_slopes_refuse_grouped_activations(build, sigma):
    """x - 2W T⁻¹|Wᵀx| has the constant 3."""
    with pytest.raises(InvalidInput, match=r"slope in \[0, 1\] for every unit.*Use relu"):
        build(sigma)


# --- normalisation and scale ---


def test_normalisation_per_channel():
    mean, std = (0.49, 0.48, 0.45), (0.2, 0.25, 0.3)
    part = Normalize(mean, std, dim=-3)
    x = torch.rand(2, 3, 4, 5)
    expected = torch.stack([(x[:, i] - mean[i]) / std[i] for i in range(3)], dim=1)
    torch.testing.assert_close(part(x), expected)
    torch.testing.assert_close(part(x[0]), expected[0])
    assert abs(part.lipschitz - 5) < 1e-6
    assert lipschitz_bound(part, math.inf) == part.lipschitz == part.lipschitz_in(2)
    ready = Normalize(torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1))
    torch.testing.assert_close(ready(x), expected)


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 4, 4, 3), (2, 3), (3,), (2, 2, 4, 4)])
def test_normalisation_does_not_repeat_the_input(shape):
    """Broadcasting one channel to three would multiply the constant by √3."""
    part = Normalize(torch.zeros(3), torch.ones(3), dim=-3)
    with pytest.raises(ShapeError, match=r"Normalize: the input has shape.*\(3, 1, 1\)"):
        part(torch.zeros(shape))
    with pytest.raises(ShapeError, match="Normalize: the input has shape"):
        Normalize(torch.zeros(3), torch.ones(3))(torch.zeros(5, 1))


def test_normalisation_counts_dimensions_from_the_end():
    with pytest.raises(InvalidInput, match="dim = 1, but must be counted from the end"):
        Normalize((0.1, 0.2), 1.0, dim=1)


@NORMS
def test_scale_is_its_constant(norm):
    part = Scale(0.25)
    x = torch.randn(3, 4)
    torch.testing.assert_close(part(x), x / 4)
    assert abs(part.lipschitz_in(norm) - 0.25) < 1e-7
    part(x).sum().backward()
    assert part.log_scale.grad.isfinite()
    for log in (1e15, -1e15):
        with torch.no_grad():
            part.log_scale.fill_(log)
        assert part(x).isfinite().all()
        gain = (part(x).norm(p=norm) / x.norm(p=norm)).item()
        assert abs(gain / part.lipschitz_in(norm) - 1) < 1e-6
    assert not Scale(2.0, learned=False).log_scale.requires_grad


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 1e12])
def test_scale_out_of_range(scale):
    with pytest.raises(InvalidInput, match="Scale: scale = "):
        Scale(scale)


# --- the last layer ---

HEADS = {
    "default": lambda W: W,
    "zero": torch.zeros_like,
    "zero row": lambda W: W * (torch.arange(len(W)) > 0)[:, None],
    "zero column": lambda W: W * (torch.arange(W.shape[1]) > 0),
    "tiny": lambda W: W * 1e-20,
    "subnormal": lambda W: W * 1e-38,
    "huge": lambda W: W * 1e15,
    "same rows": lambda W: W[:1].expand_as(W),
    "row scales": lambda W: W * torch.logspace(-8, 4, len(W), dtype=W.dtype)[:, None],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weights", HEADS)
def test_rows_have_norm_one_and_pairs_their_bounds(weights, dtype):
    head = NormalizedLinear(5, 4, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(HEADS[weights](torch.randn(4, 5, dtype=dtype)))
    x = torch.randn(3, 5, dtype=dtype, requires_grad=True)
    head(x).sum().backward()
    assert head.weight.grad.isfinite().all()
    J = torch.autograd.functional.jacobian(head, x.detach()[0]).double()
    eps = 1e-6 if dtype == torch.float32 else 1e-11
    norms = J.norm(dim=1)
    assert ((norms - 1).abs() <= eps).logical_or(norms == 0).all()
    assert (norms == 0).sum() == {"zero": 4, "zero row": 1}.get(weights, 0)
    assert abs(head.lipschitz - J.svd().S.max().item()) <= eps
    assert abs(head.lipschitz_in(math.inf) - J.abs().sum(1).max().item()) <= eps
    pairs = head.pair_bounds(2.0)
    assert pairs.dtype == torch.float64
    for i, j in itertools.product(range(4), repeat=2):
        assert abs(pairs[i, j] - 2 * (J[i] - J[j]).norm()) <= eps


def test_all_logits_together_exceed_one():
    """A published last layer of this kind was taken for 1-Lipschitz; it measured 1.8."""
    head = NormalizedLinear(3, 10)
    assert head.lipschitz >= math.sqrt(10 / 3) - 1e-6
    assert lipschitz_bound(nn.Sequential(SLLLinear(3), head)) == head.lipschitz
    assert lipschitz_bound(head, math.inf) == head.lipschitz_in(math.inf)


def test_the_head_is_a_layer():
    head = NormalizedLinear(5, 4, dtype=torch.float64)
    w = {name: value.detach().numpy() for name, value in head.witness().items()}
    assert conditions.linear.margin(**w) >= -1e-12
    x = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(head.system()(x), head(x))
    half = NormalizedLinear(5, 4).to(torch.bfloat16)
    J = torch.autograd.functional.jacobian(half, torch.zeros(5, dtype=torch.bfloat16)).double()
    assert J.svd().S.max() <= half.lipschitz * (1 + EPS)
    with torch.no_grad():
        head.weight[0, 0] = math.inf
    with pytest.raises(InvalidInput, match="weight contains NaN or Inf"):
        head.pair_bounds()


# --- containers ---


def affine(rows, columns):
    return nn.Linear(columns, rows).double()


@NORMS
def test_sums_and_branches_keep_their_constants(norm):
    f, g, h = affine(4, 4), affine(4, 4), affine(3, 4)
    L = {m: torch.linalg.matrix_norm(m.weight, ord=norm).item() for m in (f, g, h)}
    convex = ConvexResidual(f, g, 0.25).double()
    joint = math.hypot(L[f], L[h]) if norm == 2 else max(L[f], L[h])
    for module, expected in (
        (Residual(f), 1 + L[f]),
        (Residual(f, g), L[f] + L[g]),
        (convex, 0.75 * L[g] + 0.25 * L[f]),
        (ConvexResidual(f), (1 + L[f]) / 2),
        (Concatenate(f, h, dim=-1), joint),
    ):
        found = lipschitz_bound(module, norm)
        assert abs(found / expected - 1) <= 1e-7
        assert module.lipschitz_in(norm) == found
        J = operator(module, (4,))
        assert torch.linalg.matrix_norm(J, ord=norm) <= found * (1 + EPS)


def test_containers_compute_what_they_say():
    f, g = affine(4, 4), affine(4, 4)
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(Residual(f)(x), x + f(x))
    torch.testing.assert_close(Residual(f, g)(x), g(x) + f(x))
    convex = ConvexResidual(f, g, 0.3).double()
    torch.testing.assert_close(convex(x), 0.7 * g(x) + 0.3 * f(x), rtol=1e-6, atol=1e-6)
    images = Concatenate(nn.Identity(), nn.ReLU())
    y = torch.randn(2, 3, 4, 4)
    assert torch.equal(images(y), torch.cat([y, y.relu()], 1))
    assert torch.equal(images(y[0]), images(y)[0])


@pytest.mark.parametrize("kind", [Residual, ConvexResidual])
def test_branches_are_not_broadcast(kind):
    """x + f(x) with one output of f for all entries has the constant 1 + 2L, not 1 + L."""
    module = kind(nn.Linear(4, 1))
    with pytest.raises(ShapeError, match=rf"{kind.__name__}: skip gives shape \(3, 4\) and f"):
        module(torch.zeros(3, 4))


def test_the_share_stays_between_zero_and_one():
    module = ConvexResidual(LBENLinear(4, 3, 4, gamma=math.inf))
    assert lipschitz_bound(module) == math.inf
    for logit, bound in ((-1e15, 1.0), (1e15, math.inf)):
        with torch.no_grad():
            module.logit.fill_(logit)
        assert lipschitz_bound(module) == bound
    for share in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(InvalidInput, match="ConvexResidual: share = "):
            ConvexResidual(nn.Identity(), share=share)
    with torch.no_grad():
        module.logit.fill_(math.nan)
    with pytest.raises(InvalidInput, match="logit contains NaN"):
        lipschitz_bound(module)


def test_containers_name_what_they_do_not_know():
    for module, place in (
        (Residual(nn.Sequential(nn.GELU())), "0.f.0"),
        (Residual(nn.Identity(), nn.GELU()), "0.skip"),
        (Concatenate(nn.Identity(), nn.GELU()), "0.branches.1"),
    ):
        with pytest.raises(InvalidInput, match=rf'GELU \(at "{place}"\) has no known'):
            lipschitz_bound(nn.Sequential(module))
    with pytest.raises(InvalidInput, match="no branches"):
        Concatenate()


class Twice(Residual):
    def forward(self, x):
        return 2 * super().forward(x)


class TwiceMax(MaxMin):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("module", [Twice(nn.ReLU()), TwiceMax()], ids=lambda m: type(m).__name__)
def test_a_subclass_with_its_own_forward_does_not_inherit_the_constant(module):
    with pytest.raises(InvalidInput, match=f"{type(module).__name__} replaces forward"):
        lipschitz_bound(module)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_comes_back_as_it_went_in(dtype):
    x = torch.randn(2, 6, 4, 4)
    parts = [AvgPool2d(2), AdaptiveAvgPool2d(), MaxMin(), GroupSort(), Householder(6), Scale(2.0)]
    for part in (*parts, ConvexResidual(nn.ReLU()), Normalize(0.5, 0.25)):
        exact = part(x)
        y = part.to(dtype)(x.to(dtype))
        assert y.dtype == dtype
        assert (y - exact).abs().max() <= 0.02 * exact.abs().max()


def test_parameters_can_be_stacked():
    models = [nn.Sequential(turned(), Scale(2.0), ConvexResidual(nn.Tanh())) for _ in range(3)]
    params, buffers = stack_module_state(models)
    x = torch.randn(5, 6)

    def f(p, b):
        return torch.func.functional_call(models[0], (p, b), (x,))

    y = torch.func.vmap(f)(params, buffers)
    torch.testing.assert_close(y, torch.stack([m(x) for m in models]))
