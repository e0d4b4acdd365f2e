"""PGD and APGD: feasible, complete, and as strong as independent implementations."""

import math
import warnings
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sdplip.errors import InvalidInput, ShapeError
from sdplip.train import apgd, pgd

both = pytest.mark.parametrize("attack", [pgd, apgd])


def length(delta, norm):
    return torch.linalg.vector_norm(delta.flatten(1), ord=norm, dim=1)


@both
@given(
    st.integers(0, 10_000), st.sampled_from([2, math.inf]), st.floats(0.01, 2), st.integers(2, 5)
)
def test_what_is_found_is_an_error_in_the_ball_and_the_box(attack, seed, norm, radius, classes):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, classes)).double()
    x, y = torch.rand(16, 2, 3, dtype=torch.float64), torch.randint(0, classes, (16,))
    found = attack(model, x, y, radius, norm=norm, steps=5, seed=seed)
    assert (model(found.x).argmax(1) != y)[found.broken].all()
    assert (length(found.x - x, norm) <= radius * (1 + 1e-9)).all()
    assert found.x.min() >= 0 and found.x.max() <= 1
    wrong = model(x).argmax(1) != y
    assert found.broken[wrong].all()
    torch.testing.assert_close(found.x[~found.broken], x[~found.broken])


@both
@pytest.mark.parametrize("norm", [2, math.inf])
def test_linear_classifier_is_broken_exactly_beyond_its_radius(attack, norm):
    W = torch.randn(2, 7, dtype=torch.float64)
    x = torch.rand(50, 7, dtype=torch.float64)
    y = (x @ W.T).argmax(1)
    margin = (x @ (W[0] - W[1])).abs()
    exact = margin / (W[0] - W[1]).norm(p=2 if norm == 2 else 1)
    radius = float(exact.median())
    found = attack(lambda v: v @ W.T, x, y, radius, norm=norm, steps=40, restarts=1, box=None)
    clear = (exact / radius - 1).abs() > 0.01
    assert clear.sum() > 40
    assert torch.equal(found.broken[clear], (exact < radius)[clear])


def test_an_error_met_on_the_way_counts_although_later_iterates_are_right():
    # Wrong only inside a thin shell around 0.5: with steps of 0.35 from 0.2 the iterates are
    # 0.55 (wrong), 0.7 (at the edge of the ball, right again).
    def model(x):
        wrong = ((x > 0.5) & (x < 0.6)).double()
        return torch.cat([1 - 2 * wrong - x, 0 * x], dim=1)

    x, y = torch.tensor([[0.2]], dtype=torch.float64), torch.tensor([0])
    found = pgd(model, x, y, 0.5, steps=2, restarts=1, step_size=0.35)
    assert found.broken.all() and 0.5 < found.x.item() < 0.6


def test_the_last_iterate_is_looked_at():
    def model(x):
        return torch.cat([0.55 - x, 0 * x], dim=1)

    x, y = torch.tensor([[0.2]], dtype=torch.float64), torch.tensor([0])
    assert pgd(model, x, y, 0.5, steps=1, restarts=1, step_size=0.4).broken.all()


def plateau(x):
    """Class 0 everywhere but for x > 0.55, with no slope to show the way from below 0.5."""
    return torch.stack([0.05 - torch.relu(x[:, 0] - 0.5), torch.zeros(len(x))], dim=1)


def test_restarts_only_add_and_the_seed_decides():
    x, y = torch.full((60, 1), 0.4), torch.zeros(60, dtype=torch.int64)
    one = pgd(plateau, x, y, 0.5, steps=2, restarts=1)
    many = pgd(plateau, x, y, 0.5, steps=2, restarts=6)
    assert (one.broken <= many.broken).all() and many.broken.sum() > one.broken.sum() > 0
    again = pgd(plateau, x, y, 0.5, steps=2, restarts=6)
    assert torch.equal(many.x, again.x)
    other = pgd(plateau, x, y, 0.5, steps=2, restarts=6, seed=1)
    assert not torch.equal(many.x, other.x)


@both
def test_batches_do_not_change_what_needs_no_luck(attack):
    W = torch.randn(3, 5, dtype=torch.float64)
    x = torch.rand(50, 5, dtype=torch.float64)
    y = (x @ W.T).argmax(1)
    found = [
        attack(lambda v: v @ W.T, x, y, 0.3, steps=10, restarts=1, batch_size=size).broken
        for size in (1, 7, 50)
    ]
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[2])


@both
def test_a_dead_gradient_does_not_stop_the_search(attack):
    x, y = torch.full((40, 1), 0.4), torch.zeros(40, dtype=torch.int64)
    assert attack(plateau, x, y, 0.5, steps=20, restarts=1).broken.float().mean() > 0.5


@both
def test_nan_output_counts_as_broken(attack):
    x, y = torch.rand(3, 2), torch.tensor([0, 1, 0])
    assert attack(lambda x: x * math.nan, x, y, 0.1).broken.all()
    # Also where only the attack meets it.
    x = torch.full((3, 2), 0.4)
    cliff = lambda v: torch.stack([0.6 - v[:, 0], 0 * v[:, 0]], 1).log()  # noqa: E731
    assert not (cliff(x).diff(dim=1) > 0).any() and attack(cliff, x, 0 * y, 0.5).broken.all()


@both
def test_no_images_and_no_radius(attack):
    none = torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)
    assert len(attack(None, *none, 1).broken) == 0
    x = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    calls = []
    found = attack(lambda v: calls.append(len(v)) or v, x, torch.tensor([0, 0]), 0.0)
    assert found.broken.tolist() == [False, True] and calls == [2]


@both
def test_what_is_broken_leaves_the_batch(attack):
    sizes = []

    def model(v):
        sizes.append(len(v))
        return torch.cat([0.5 - v, 0 * v], dim=1)

    x = torch.tensor([[0.6], [0.45], [0.3], [0.0]])
    found = attack(model, x, torch.zeros(4, dtype=torch.int64), 0.25, steps=8, restarts=1)
    assert found.broken.tolist() == [True, True, True, False]
    # The first is wrong as it is, the last is never; both others are broken at the first step.
    assert sizes[:3] == [4, 3, 3] and set(sizes[3:]) == {1}


def test_the_pixels_limits_can_be_left_out():
    x, y = torch.tensor([[0.1]]), torch.tensor([0])
    model = lambda v: torch.cat([v + 0.1, 0 * v], dim=1)  # noqa: E731
    for attack in (pgd, apgd):
        assert not attack(model, x, y, 0.5).broken
        assert attack(model, x, y, 0.5, box=None).broken
        assert attack(model, x, y, 0.5, box=(-1, 1)).broken
        with pytest.raises(InvalidInput, match="outside the box"):
            attack(model, x - 0.2, y, 0.5)


def test_a_coarse_model_is_attacked_in_float32():
    W = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).bfloat16()
    x, y = torch.tensor([[0.6, 0.4], [0.9, 0.1]]), torch.tensor([0, 0])
    for attack in (pgd, apgd):
        with pytest.raises(InvalidInput, match="bfloat16"):
            attack(lambda v: v @ W.T, x.bfloat16(), y, 0.2)
        with torch.no_grad():
            found = attack(lambda v: v.bfloat16() @ W.T, x, y, 0.2)
        assert found.broken.tolist() == [True, False]
        assert (length(found.x - x, 2) <= 0.2 * (1 + 1e-6)).all()


@pytest.mark.parametrize("scale", [1e-12, 1, 1e12])
@pytest.mark.parametrize("attack", [pgd, partial(apgd, losses=["dlr"])])
def test_scaling_the_logits_changes_nothing(attack, scale):
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4)).double()
    x = torch.rand(100, 10, dtype=torch.float64)
    y = model(x).argmax(1)
    plain = attack(model, x, y, 0.2, steps=10).broken
    scaled = attack(lambda v: scale * model(v), x, y, 0.2, steps=10).broken
    assert 0 < plain.sum() < 100 and torch.equal(plain, scaled)


@pytest.mark.parametrize(
    "options",
    [
        {"norm": 1},
        {"radius": -1.0},
        {"radius": math.nan},
        {"steps": 0},
        {"restarts": 0},
        {"batch_size": 0},
        {"step_size": math.nan},
        {"losses": ()},
        {"losses": "ce"},
        {"losses": ("ce", "cw")},
    ],
)
def test_nonsense_is_refused(options):
    with pytest.raises(ShapeError, match="one label"):
        pgd(lambda x: x, torch.rand(2, 2), torch.tensor([0]), 0.1)
    arguments = {"radius": 0.1} | options
    of_one = {"losses": (apgd,), "step_size": (pgd,)}
    for attack in of_one.get(next(iter(options)), (pgd, apgd)):
        with pytest.raises(InvalidInput, match=next(iter(options))):
            attack(lambda x: x, torch.rand(1, 2), torch.tensor([0]), **arguments)


def test_apgd_follows_its_paper():
    """Algorithm 1 step by step, for one image on which no attack succeeds."""
    W, V = torch.randn(3, 4, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
    seen = []

    def model(v):
        seen.append(v.detach().clone())
        logits = torch.sin(3 * v @ V) @ W.T
        return torch.cat([logits[:, :1] + 100, logits[:, 1:]], dim=1)

    def loss(v):
        return nn.functional.cross_entropy(model(v) / 50, torch.tensor([0]))

    def ascend(v, size):
        v = v.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(v), v)
        return inside(v.detach() + size * g / g.norm())

    def inside(v):
        away = v - x
        return (x + away * (eps / away.norm().clamp_min(1e-300)).clamp_max(1)).clamp(0, 1)

    x, eps, steps = torch.rand(1, 4, dtype=torch.float64), 0.4, 30
    apgd(lambda v: model(v) / 50, x, torch.tensor([0]), eps, losses=["ce"], steps=steps)
    visited = seen[1:]
    # p = 0, 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 of 30 steps.
    checks, size, points = [0, 7, 13, 18, 21, 24, 27, 28, 30], 2 * eps, [x, ascend(x, 2 * eps)]
    best, sizes, peaks, rises = max(points, key=loss), [size], [loss(x)], []
    rises.append(loss(points[1]) > loss(points[0]))
    for k in range(1, steps):
        if k in checks:
            j = checks.index(k)
            few = sum(rises[checks[j - 1] :]) < 0.75 * (k - checks[j - 1])
            still = size == sizes[-1] and loss(best) == peaks[-1]
            sizes.append(size)
            peaks.append(loss(best))
            if few or still:
                size, points[-1] = size / 2, best
        now, before = points[-1], points[-2]
        ahead = ascend(now, size)
        points.append(inside(now + 0.75 * (ahead - now) + 0.25 * (now - before)))
        rises.append(loss(points[-1]) > loss(now))
        best = max(best, points[-1], key=loss)
        torch.testing.assert_close(visited[k + 1], points[-1], rtol=1e-9, atol=1e-9)
    assert len(sizes) > 5 and size < eps


@pytest.fixture(scope="module")
def trained():
    """A small network with real decision boundaries, and images."""
    from sdplip.train import load

    torch.manual_seed(0)
    splits = load("digits")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, y = splits.train
    for _ in range(150):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, y = splits.test
    return model.eval().requires_grad_(False), x[:256], y[:256]


def by_its_authors(model, x, y, norm, radius, version):
    AutoAttack = pytest.importorskip("pyautoattack", reason="pyautoattack is missing").AutoAttack
    options = {"version": version}
    if version == "custom":
        options["attacks"] = ["apgd-ce", "apgd-t"]
    attack = AutoAttack(model, norm="L2" if norm == 2 else "Linf", eps=radius, seed=0, **options)
    found = attack.run_standard_evaluation(x, y)
    return found[0] if isinstance(found, tuple) else found


def by_torchattacks(model, x, y, norm, radius, version):
    library = pytest.importorskip(
        "torchattacks",
        reason="torchattacks is missing: it asks for an old requests, so that it is no dependency",
    )
    attack = library.AutoAttack(
        model, norm="L2" if norm == 2 else "Linf", eps=radius, version=version, n_classes=10, seed=0
    )
    return attack(x, y)


@pytest.mark.parametrize(
    "oracle, version",
    [
        (by_its_authors, "custom"),
        pytest.param(by_its_authors, "standard", marks=pytest.mark.slow),
        pytest.param(by_torchattacks, "standard", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("norm, radius", [(2, 0.5), (math.inf, 0.1)])
def test_as_strong_as_autoattack(trained, norm, radius, oracle, version):
    model, x, y = trained
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        adversarial = oracle(model, x, y, norm, radius, version)
    theirs = float((model(adversarial).argmax(1) == y).double().mean())
    assert 0.1 < theirs < 0.9
    for attack, within in ((apgd, 0.01), (pgd, 0.02)):
        found = attack(model, x, y, radius, norm=norm)
        ours = 1 - float(found.broken.double().mean())
        assert abs(ours - theirs) <= within, attack
