"""PGD: feasible, complete, and no weaker than an independent implementation."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sdplip.errors import InvalidInput
from sdplip.train import pgd


def length(delta, norm):
    return torch.linalg.vector_norm(delta.flatten(1), ord=norm, dim=1)


@given(st.integers(0, 10_000), st.sampled_from([2, math.inf]), st.floats(0.01, 2))
def test_what_is_found_is_an_error_in_the_ball_and_the_box(seed, norm, radius):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x, y = torch.rand(16, 2, 3, dtype=torch.float64), torch.randint(0, 3, (16,))
    found = pgd(model, x, y, radius, norm=norm, steps=5, seed=seed)
    assert (model(found.x).argmax(1) != y)[found.broken].all()
    assert (length(found.x - x, norm) <= radius * (1 + 1e-9)).all()
    assert found.x.min() >= 0 and found.x.max() <= 1
    wrong = model(x).argmax(1) != y
    assert found.broken[wrong].all()
    torch.testing.assert_close(found.x[~found.broken], x[~found.broken])


@pytest.mark.parametrize("norm", [2, math.inf])
def test_linear_classifier_is_broken_exactly_beyond_its_radius(norm):
    W = torch.randn(2, 7, dtype=torch.float64)
    x = torch.rand(50, 7, dtype=torch.float64)
    y = (x @ W.T).argmax(1)
    margin = (x @ (W[0] - W[1])).abs()
    exact = margin / (W[0] - W[1]).norm(p=2 if norm == 2 else 1)
    radius = float(exact.median())
    found = pgd(lambda v: v @ W.T, x, y, radius, norm=norm, steps=40, restarts=1, box=None)
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


def test_batches_do_not_change_what_needs_no_luck():
    W = torch.randn(3, 5, dtype=torch.float64)
    x = torch.rand(50, 5, dtype=torch.float64)
    y = (x @ W.T).argmax(1)
    found = [
        pgd(lambda v: v @ W.T, x, y, 0.3, restarts=1, batch_size=size).broken for size in (7, 50)
    ]
    assert torch.equal(*found)


def test_a_dead_gradient_does_not_stop_the_search():
    x, y = torch.full((40, 1), 0.4), torch.zeros(40, dtype=torch.int64)
    assert pgd(plateau, x, y, 0.5, steps=20, restarts=1).broken.float().mean() > 0.5


def test_nan_output_counts_as_broken():
    found = pgd(lambda x: x * math.nan, torch.rand(3, 2), torch.tensor([0, 1, 0]), 0.1)
    assert found.broken.all()


def test_no_images_and_no_radius():
    assert len(pgd(lambda x: x, torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), 1).broken) == 0
    x = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    assert pgd(lambda v: v, x, torch.tensor([0, 0]), 0.0).broken.tolist() == [False, True]


@pytest.mark.parametrize("scale", [1e-12, 1, 1e12])
def test_scaling_the_logits_changes_nothing(scale):
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4)).double()
    x = torch.rand(100, 10, dtype=torch.float64)
    y = model(x).argmax(1)
    plain = pgd(model, x, y, 0.2, steps=10).broken
    scaled = pgd(lambda v: scale * model(v), x, y, 0.2, steps=10).broken
    assert 0 < plain.sum() < 100 and torch.equal(plain, scaled)


@pytest.mark.parametrize(
    "options", [{"norm": 1}, {"radius": -1.0}, {"radius": math.nan}, {"steps": 0}, {"restarts": 0}]
)
def test_nonsense_is_refused(options):
    arguments = {"radius": 0.1} | options
    with pytest.raises(InvalidInput, match=next(iter(options))):
        pgd(lambda x: x, torch.rand(1, 2), torch.tensor([0]), **arguments)


@pytest.fixture(scope="module")
def trained():
    """A small network with real decision boundaries, and the images it gets right."""
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
    right = model(x).argmax(1) == y
    return model, x[right][:200], y[right][:200]


@pytest.mark.parametrize("norm, radius", [(2, 0.35), (2, 0.5), (math.inf, 0.1)])
def test_as_strong_as_an_independent_implementation(trained, norm, radius):
    pytest.importorskip("art", reason="adversarial-robustness-toolbox is not installed")
    model, x, y = trained
    ours = 1 - float(
        pgd(model, x, y, radius, norm=norm, steps=40, restarts=3).broken.double().mean()
    )
    with warnings.catch_warnings():
        # Not ours: it predates NumPy 2's copy keyword.
        warnings.simplefilter("ignore")
        from art.attacks.evasion import ProjectedGradientDescent
        from art.estimators.classification import PyTorchClassifier

        wrapped = PyTorchClassifier(
            model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu"
        )
        np.random.seed(0)
        attack = ProjectedGradientDescent(
            wrapped, norm=2 if norm == 2 else np.inf, eps=radius, eps_step=2.5 * radius / 40,
            max_iter=40, num_random_init=3, batch_size=200, verbose=False,
        )  # fmt: skip
        theirs_x = torch.as_tensor(attack.generate(x.numpy(), y.numpy()))
    model.eval()
    theirs = float((model(theirs_x).argmax(1) == y).float().mean())
    assert 0.05 < ours < 0.95
    assert ours <= theirs + 0.01
    # A wrongly kept best iterate makes one of the two much stronger or weaker than the other.
    assert theirs - ours < 0.1
