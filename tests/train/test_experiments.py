"""Published comparisons: the settings, what a budget does to them, and what stands beside them."""

import json
import math
from dataclasses import replace

import pytest
import torch
from matplotlib.text import Text
from small_runs import quick
from typer.testing import CliRunner

from sdplip.cli import app
from sdplip.errors import InvalidInput
from sdplip.train import Splits, build, load, override
from sdplip.train.checkpoint import read_json, write_json
from sdplip.train.directory import folder_name
from sdplip.train.evaluation.measure import shortened
from sdplip.train.evaluation.row import Row
from sdplip.train.experiments.budget import Budget, settled, shrink
from sdplip.train.experiments.comparisons import EXPERIMENTS, Experiment, Variant, one_model
from sdplip.train.experiments.presets import PRESETS
from sdplip.train.loss import lipschitz_margin
from sdplip.train.models import ModelConfig, norm_product
from sdplip.train.reporting.captions import (
    own,
    published_errors,
    published_table,
    scaled_down,
    sources,
)
from sdplip.train.reporting.curves import tightness_figure
from sdplip.train.reporting.figures import cost_figure
from sdplip.train.reporting.plots import plot, tradeoff_figure
from sdplip.train.runs import compare, run


@pytest.fixture(scope="module")
def splits():
    return load("digits")


def shaped(name):
    """Images of the experiment's shape; the settings need no more."""
    experiment = EXPERIMENTS[name]
    classes, shape = experiment.classes, experiment.shape
    labels = torch.arange(2 * classes) % classes
    images = torch.randint(0, 256, (len(labels), *shape), dtype=torch.uint8)
    data = experiment.data[0] if experiment.data else "folder:/images"
    return Splits((images, labels), (images, labels), classes, shape, data)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_variant_is_a_model_of_its_own(name, splits):
    experiment = EXPERIMENTS[name]
    configs = experiment.configs(shaped(name))
    assert len({folder_name(variant) for variant in configs}) == len(configs)
    for variant, config in configs.items():
        assert variant.startswith(config.model.layer) or config.model.layer == "unconstrained"
        assert one_model(f"{name}/{folder_name(variant)}").variants[0].name == variant
        figures = experiment.published()[variant]
        assert experiment.sources()[variant] and all(v > 0 for v in figures.values())
        for figure in figures:
            if not figure.startswith("attacked"):
                assert own(row(config), figure) is not None or "verified" in figure, figure
    with pytest.raises(InvalidInput, match="digits"):
        experiment.configs(splits)


def row(config):
    """A measured row of a run with this configuration, all figures 1/2."""
    radii = config.evaluate.radii
    half = (0.5,) * len(radii)
    return Row(
        config.model.layer, 2.0, 0.5, radii, half, half, 0.5, None, None, 0.5, 10, 1, 1.0, 1.0,
        None, 0.0, 0.0, config.model.scale, 0,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["lben-mnist", "nemon-mnist", "lben-cifar10", "nemon-cifar10"])
def test_small_ones_can_be_built(name):
    for config in EXPERIMENTS[name].configs(shaped(name), width=7).values():
        assert config.model.width == 7 and build(config.model, seed=0) is not None


def test_a_folder_of_such_images_will_do_and_no_other(splits):
    images = shaped("lben-cifar10")
    folder = replace(images, name="folder:/jpeg")
    configs = EXPERIMENTS["lben-cifar10"].configs(folder)
    assert configs["lben γ=2"].train.data == "folder:/jpeg"
    said = EXPERIMENTS["lben-cifar10"].sources("folder:/jpeg")["mon"]
    assert said.endswith("of cifar10's own images")
    other = replace(shaped("lben-mnist"), name="folder:/jpeg")
    with pytest.raises(InvalidInput, match=r"10 classes of 3x32x32.*10 classes of 1x28x28"):
        EXPERIMENTS["lben-cifar10"].configs(other)


def test_what_is_asked_for_shorter_or_otherwise_is_not_taken_for_the_published():
    experiment, images = EXPERIMENTS["lben-mnist"], shaped("lben-mnist")
    for changes in ({"epochs": 3}, {"train_images": 10}):
        for config in experiment.configs(images, **changes).values():
            assert config.train.of_epochs == 30
            assert shortened(config).startswith("scaled down: ")
    for changes in ({}, {"epochs": 40}, {"seed": 7}):
        configs = experiment.configs(images, **changes).values()
        assert not any(map(shortened, configs))
    for name, changes in (("lben-mnist", {"gamma": 2.0}), ("lben-mnist-widths", {"width": 9})):
        with pytest.raises(InvalidInput, match="of the comparison has"):
            EXPERIMENTS[name].configs(images, **changes)
    assert experiment.published(epochs=3, width=None) == experiment.published()
    assert experiment.published(width=8) == {}


def test_the_settings_are_the_published_ones():
    configs = EXPERIMENTS["lben-mnist"].configs(shaped("lben-mnist"))
    one = configs["lben γ=1"]
    assert (one.model.gamma, one.model.width, one.model.scale) == (1.0, 80, 0.3081)
    assert (one.train.epochs, one.train.lr, one.train.schedule) == (30, 1e-3, "step")
    assert configs["lben no bound"].model.gamma is None and configs["mon"].model.layer == "mon"
    assert EXPERIMENTS["lben-mnist"].published()["lben γ=1"]["error"] == 2.36
    mnist = EXPERIMENTS["nemon-mnist"].configs(shaped("nemon-mnist"))
    assert mnist["implicit"].model.layer == "implicit" and not mnist["implicit"].train.linf_penalty
    assert all(c.evaluate.linf and c.evaluate.fgsm for c in mnist.values())
    widths = EXPERIMENTS["lben-mnist-widths"].configs(shaped("lben-mnist"))
    assert [c.model.width for c in widths.values()] == [20, 50, 80, 110, 140, 250]
    assert all(c.model.gamma == 1.0 for c in widths.values())
    conv = EXPERIMENTS["lben-cifar10"].configs(shaped("lben-cifar10"))["lben γ=5"]
    assert (conv.model.architecture, conv.model.width, conv.model.kernel) == ("equilibrium", 81, 3)
    assert (conv.train.epochs, conv.train.milestones) == (25, (0.6,))
    nemon = EXPERIMENTS["nemon-cifar10"].configs(shaped("nemon-cifar10"))["nemon"]
    assert nemon.model.kernel == 5 and nemon.evaluate.linf and nemon.evaluate.fgsm
    images = shaped("sll-cifar10")
    sll, expected = EXPERIMENTS["sll-cifar10"].configs(images), PRESETS["sll-small"].config(images)
    assert sll["sll small"] == expected and expected.train.epochs == 1000
    grid = EXPERIMENTS["1lc-cifar10"]
    assert grid.each and len(grid.variants) == 4 * 6
    assert grid.published()["sll xs"]["certified 36/255 (2 h)"] == 56.4


def test_some_models_only():
    grid = EXPERIMENTS["1lc-cifar10"]
    assert [v.name for v in grid.only("sll, aol xs").variants] == [
        "aol xs", "sll xs", "sll s", "sll m", "sll l",
    ]  # fmt: skip
    assert grid.only("all") is grid
    with pytest.raises(InvalidInput, match=r"no model 'bcop'.*aol xs"):
        grid.only("sll,bcop")


def test_a_share_of_the_epochs_is_said(splits):
    config = quick("aol", splits, epochs=40)
    half = shrink(config, 0.5)
    assert (half.train.epochs, half.train.of_epochs) == (20, 40)
    assert shrink(config, 1.0) == config
    assert shrink(config, 1e-9).train.epochs == 1
    for scale in (0.0, 1.5, -1.0, float("nan")):
        with pytest.raises(InvalidInput, match="scale"):
            shrink(config, scale)
    rows = [
        replace(row(config), note=f"scaled down: {k} of 40 epochs; not verified") for k in (3, 3, 5)
    ]
    assert scaled_down(rows) == "scaled down: 3 of 40 epochs, 5 of 40 epochs"
    assert scaled_down([row(config)]) == ""


def test_a_budget_takes_epochs_then_images_and_never_adds_any(splits):
    configs = {name: quick(name, splits, epochs=50) for name in ("aol", "sll")}
    plenty = Budget(configs, splits, 1e4, "cpu").plan()
    assert plenty == configs
    for minutes in (1e-3, 1e-5):
        for short in Budget(configs, splits, minutes, "cpu").plan().values():
            assert short.train.epochs < 50 == short.train.of_epochs
            assert short.evaluate.images == 30 and (short.evaluate.attack_images or 30) <= 30
    assert short.train.epochs == 1 and short.train.train_images < len(splits.train[0])
    for minutes in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidInput, match="budget"):
            Budget(configs, splits, minutes, "cpu")


def test_a_budget_limits_what_is_measured_too(splits):
    config = override(quick("aol", splits), images=len(splits.test[0]), steps=50_000, restarts=9)
    (short,) = Budget({"aol": config}, splits, 1.0, "cpu").plan().values()
    # Two images of every class are left, and 35 % of a minute for verification.
    assert short == override(config, attack_images=20, time_limit=short.evaluate.time_limit)
    assert 0.3 * 60 < short.evaluate.time_limit <= 0.35 * 60
    (short,) = Budget({"aol": config}, splits, 1e-5, "cpu").plan().values()
    assert short.evaluate.images == 100 and short.evaluate.time_limit == 1.0
    unverified = {"aol": override(config, verify=False)}
    (short,) = Budget(unverified, splits, 1e-5, "cpu").plan().values()
    assert short.evaluate.time_limit is None


@pytest.fixture
def shared(splits, monkeypatch):
    """A budget's runs, with given seconds of an epoch, by a clock that stands still."""
    seconds = {"aol": 0.6, "sll": 60.0}
    monkeypatch.setattr(
        "sdplip.train.experiments.budget._epoch_seconds",
        lambda config, *rest: seconds[config.model.layer],
    )
    now = [0.0]

    def begin(configs, minutes, **options):
        return Budget(configs, splits, minutes, clock=lambda: now[0], **options)

    begin.now = now
    return begin


def test_budget_arithmetic(splits, shared):
    many = {f"aol {k}": quick("aol", splits, epochs=10**6, seed=k) for k in range(4)}
    # 65 % of a minute for four, or a minute for each.
    for each, epochs in ((False, 16), (True, 100)):
        found = shared(many, 1.0, each=each).plan()
        assert [c.train.epochs for c in found.values()] == [epochs] * 4
    # What a cheap run leaves over is the others': half a second less than 39 s, of 60 s an epoch.
    two = {"sll": quick("sll", splits), "aol": quick("aol", splits, epochs=1)}
    found, whole = shared(two, 1.0).plan(), len(splits.train[0])
    assert found["aol"].train.of_epochs is None and found["sll"].train.epochs == 1
    assert found["sll"].train.train_images == pytest.approx(38.4 / 60 * whole, abs=2)
    # A recipe of one epoch on fewer images is shorter, too; and the recipe's number stays.
    one = {"a": quick("sll", splits, epochs=1), "b": quick("sll", splits, epochs=2, of_epochs=9)}
    found = shared(one, 1.0).plan()
    assert [c.train.of_epochs for c in found.values()] == [1, 9]


def test_before_every_run_the_time_left_is_shared_anew(splits, shared):
    many = {f"aol {k}": quick("aol", splits, epochs=10**6, seed=k) for k in range(4)}
    budget = shared(many, 4.0)
    assert budget.begin("aol 0").train.epochs == 65
    # All is three times slower: 117 s and not 39 of training, 63 of measuring.
    shared.now[0] += 180
    budget.end(117.0, already=False)
    # A minute is left for three: 63 s to measure each leave a quarter for training, at 1.8 s.
    assert [c.train.epochs for c in budget.plan().values()] == [2, 3, 3]
    assert budget.begin("aol 1").train.of_epochs == 10**6
    # One that had finished counts as if it had been trained now: 13 s and 7 to measure.
    budget.end(13.0, already=True)
    assert [c.train.epochs for c in budget.plan().values()] == [2, 3]
    # What nothing is left for gets the least there is, and says so.
    budget.begin("aol 2")
    shared.now[0] += 1000
    budget.end(12.6, already=False)
    last = budget.begin("aol 3")
    assert (last.train.epochs, last.train.of_epochs, last.train.train_images) == (1, 10**6, 100)
    assert (last.evaluate.images, last.evaluate.attack_images) == (30, 20)
    # The time of training is each one's own: only the pace changes.
    budget = shared(many, 1.0, each=True)
    budget.begin("aol 0")
    shared.now[0] += 500
    budget.end(120.0, already=False)
    assert [c.train.epochs for c in budget.plan().values()] == [50, 50, 50]


def test_a_comparison_runs_what_its_budget_plans_and_nothing_twice(splits, shared, tmp_path):
    configs = {f"aol {k}": quick("aol", splits, epochs=40, seed=k) for k in range(3)}
    folders = {name: tmp_path / folder_name(name) for name in configs}
    seen = []

    def slow(name, config, epoch, metrics):
        seen.append(name)
        # Ten minutes for the first run, of half of one for all.
        shared.now[0] += 600.0 / config.train.epochs

    def go():
        budget = shared(configs, 0.5, folders=folders)
        rows = compare(budget.plan(), splits, tmp_path, budget=budget, on_epoch=slow)["rows"]
        return [row["note"] for row in rows]

    notes = go()
    assert list(dict.fromkeys(seen)) == list(configs)
    assert "scaled down: 10 of 40 epochs" in notes[0]
    assert all("scaled down: 1 of 40 epochs on 100 images" in note for note in notes[1:])
    stored = [read_json(folder / "config.json")["train"] for folder in folders.values()]
    assert [(c["epochs"], c["train_images"]) for c in stored] == [(10, None), (1, 100), (1, 100)]
    seen.clear()
    assert go() == notes and seen == []


def test_what_was_begun_keeps_its_length(splits, tmp_path):
    config = quick("aol", splits, epochs=50)
    begun = override(config, epochs=7, of_epochs=50, images=20, attack_images=10)
    write_json(tmp_path / "config.json", begun.to_dict())
    now = override(config, epochs=9, of_epochs=50)
    assert settled(now, tmp_path) == begun
    other = override(now, lr=0.5)
    assert settled(other, tmp_path) == other
    assert settled(now, tmp_path / "none") == now


def test_runs_of_one_family_stand_beside_each_other(splits, tmp_path):
    configs = {f"lben γ={g:g}": quick("lben", splits, gamma=g) for g in (0.5, 2.0)}
    figures = {"error": 3.0, "verified": 1.9, "attacked 0.39": 50.0}
    options = {"published": {"lben γ=2": figures}, "sources": {"lben γ=2": "a paper"}}
    result = compare(configs, splits, tmp_path, **options)
    assert [row["variant"] for row in result["rows"]] == ["γ=0.5", "γ=2"]
    assert result["rows"][1]["published"] == figures
    assert [row["source"] for row in result["rows"]] == ["", "a paper"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [
        "lben-gamma-0.5",
        "lben-gamma-2",
    ]
    drawn = {p.stem for p in tmp_path.glob("*.svg")}
    assert {"tradeoff", "tightness", "attack", "iterations"} <= drawn
    # What is published is said anew when finished runs are read back.
    again = compare(configs, splits, tmp_path, published={"lben γ=2": {"error": 2.5}})
    assert again["rows"][1]["published"] == {"error": 2.5}


@pytest.mark.parametrize("draw", [tradeoff_figure, tightness_figure, cost_figure])
def test_no_name_in_a_picture_covers_another(draw, splits):
    config = quick("lben", splits)
    rows = [replace(row(config), verified=0.5 + k / 500, variant=f"γ={k}") for k in range(24)]
    figure = draw(rows)
    figure.draw_without_rendering()
    (axis,) = figure.axes
    names = {text.get_text(): text for text in axis.texts if "γ" in text.get_text()}
    assert len(names) == len(rows)
    boxes = [Text.get_window_extent(name) for name in names.values()]
    for k, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:k])


def test_published_errors_under_attack_are_about_the_normalised_input():
    config = EXPERIMENTS["lben-mnist"].configs(shaped("lben-mnist"))["mon"]
    published = EXPERIMENTS["lben-mnist"].published()["mon"]
    radii, errors = zip(*published_errors(replace(row(config), published=published)), strict=True)
    assert radii == pytest.approx(config.evaluate.radii, abs=5e-3)
    assert errors == pytest.approx((2.0, 2.6, 4.8, 10.0, 35.0, 80.0))


def test_the_table_has_a_column_for_every_published_figure(splits):
    config = override(quick("sll", splits), radii=(36 / 255, 1.0))
    figures = {"clean": 71.0, "certified 36/255 (2 h)": 60.0, "certified 36/255 (24 h)": 64.0}
    rows = [row(config), replace(row(config), published=figures, source="a paper")]
    head, cells = published_table(rows)
    assert head == ["clean (%)", "published", "certified 36/255", "published (2 h)",
                    "published (24 h)"]  # fmt: skip
    assert [values for _, values in cells] == [
        [50.0, None, 50.0, None, None],
        [50.0, 71.0, 50.0, 60.0, 64.0],
    ]
    assert sources(rows) == "a paper" and own(rows[0], "certified 72/255") is None
    assert published_table(rows[:1])[0] == []


def test_models_without_a_promise_in_linf_are_measured_in_it_on_request(splits, tmp_path):
    config = quick("aol", splits)
    config = replace(config, evaluate=replace(config.evaluate, linf=True))
    rows = compare([config], splits, tmp_path)["rows"]
    assert [row["norm"] for row in rows] == [2, "inf"]
    assert rows[1]["promised"] is None and rows[1]["verified"] > 0


@pytest.mark.parametrize("layer", ["nemon", "implicit"])
def test_linf_bounds_are_recorded_and_one_step_attacks_less(layer, splits, tmp_path):
    config = override(quick(layer, splits), fgsm=True, linf_penalty=0.01, linf_radii=(0.05, 0.3))
    rows = run(config, splits, tmp_path).rows
    for found in rows:
        assert found.violations() == [] and len(found.fgsm) == len(found.radii)
        assert all(one >= many for one, many in zip(found.fgsm, found.attacked, strict=True))
    metrics = read_json(tmp_path / "metrics.json")
    history, insight = metrics["history"], metrics["insight"]
    last = history[-1]["linf_bound"]
    assert last < history[0]["linf_bound"]
    # The bound in the loss is of NEMON's kind, for all weights; the verified one is no larger.
    assert rows[1].verified <= last * (1 + 1e-5)
    methods = insight["equilibria"][0]["methods"]
    assert methods["peaceman_rachford"]["largest"] <= methods["average"]["largest"]
    assert all(took["converged"] for took in methods.values())
    drawn = plot(rows, tmp_path, {layer: history}, {layer: insight})
    assert {path.stem for path in drawn} == {"accuracy", "lipschitz", "linf-bound", "iterations"}


@pytest.mark.parametrize("layer, gamma", [("lben", 2.0), ("mon", None), ("nemon", 1.0)])
def test_equilibrium_convolutions_are_trained_and_measured(layer, gamma, splits, tmp_path):
    given = quick("aol", splits, width=3, images=12, attack_images=8, fgsm=True, linf=True)
    values = given.model.to_dict() | {"architecture": "equilibrium", "layer": layer, "gamma": gamma}
    config = replace(given, model=ModelConfig.from_dict(values))
    rows = run(config, splits, tmp_path).rows
    assert [found.norm for found in rows] == [2, math.inf]
    for found in rows:
        assert found.violations() == []
        promising = gamma is not None and found.norm == (math.inf if layer == "nemon" else 2)
        assert (found.promised is not None) == promising
        if promising:
            assert found.sampled <= found.promised
            assert any(share > 0 for share in found.curve["certified"])


@pytest.mark.slow
def test_presets_of_comparisons_on_the_command_line(splits, tmp_path, monkeypatch):
    small = {"width": 8, "epochs": 40, "images": 30, "steps": 3, "restarts": 1, "attack_images": 20}
    tiny = Experiment(
        "of digits", "a paper", ("digits",), 10, (1, 8, 8), small,
        tuple(
            Variant(f"lben γ={gamma}", {"layer": "lben", "gamma": gamma}, {"error": 9.0})
            for gamma in (1, 2)
        ),
    )  # fmt: skip
    monkeypatch.setitem(EXPERIMENTS, "tiny", tiny)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(
        app, ["train", "--preset", "tiny/lben-gamma-2", "--scale", "0.05", "--json"]
    )
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)["rows"]
    assert found["variant"] == "γ=2" and found["published"] == {"error": 9.0}
    assert found["source"] == "a paper" and "2 of 40 epochs" in found["note"]
    assert (tmp_path / "runs/digits/tiny-lben-gamma-2/metrics.json").is_file()
    done = CliRunner().invoke(
        app, ["compare", "--preset", "tiny", "--layers", "lben γ=1", "--scale", "0.05"]
    )
    assert done.exit_code == 0, done.output
    assert "a paper; scaled down: 2 of 40 epochs" in done.stdout
    listed = CliRunner().invoke(app, ["compare", "--list-presets", "--json"])
    named = {entry["preset"] for entry in json.loads(listed.stdout)}
    assert named >= {*EXPERIMENTS, "convnet-xs", "convnet-l"}
    listed = CliRunner().invoke(app, ["train", "--list-presets", "--json"])
    named = {entry["preset"] for entry in json.loads(listed.stdout)}
    assert named >= {*PRESETS, "tiny/lben-gamma-1", "1lc-cifar10/aol-xs"}
    for wrong in ("tiny/lben", "tiny", "nothing/at-all"):
        assert CliRunner().invoke(app, ["train", "--preset", wrong]).exit_code == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("compare --layers sll --gamma 2", "--gamma does nothing for sll, only for lben, mon"),
        ("compare --cpus 2", "--cpus is 2, but needs --engine ray"),
        ("compare --gpus 1", "--gpus is 1, but needs --engine ray"),
        ("compare --engine ray --cpus -1", "--cpus"),
        ("train --layer sll --loss lipschitz_margin", "layer unconstrained"),
    ],
)
def test_options_that_do_nothing_are_refused(arguments, message):
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code == 2 and message in done.output.replace("\n", " ")


def test_the_models_of_a_comparison_stand_in_one_line_of_the_table():
    shown = CliRunner().invoke(app, ["train", "--list-presets"], env={"COLUMNS": "200"}).stdout
    assert shown.count("models stored with the code") < 5 < shown.count("lben-mnist/")


def test_lipschitz_margin_training_counts_the_product_of_norms(splits):
    model = build(quick("unconstrained", splits).model, seed=0)
    expected = 1.0
    for layer in model:
        if isinstance(layer, torch.nn.Linear):
            expected *= float(torch.linalg.svdvals(layer.weight.detach().double())[0])
    bound = norm_product(model)
    assert float(bound.detach()) == pytest.approx(expected, rel=1e-5)
    logits, labels = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0])
    shifted = logits + torch.tensor([[0.0, 1.0, 1.0]]) * 0.5 * 2**0.5 * bound
    expected = torch.nn.functional.cross_entropy(shifted, labels)
    torch.testing.assert_close(lipschitz_margin(logits, labels, bound, weight=0.5), expected)
    lipschitz_margin(model(torch.rand(2, 1, 8, 8)), labels.expand(2), bound, weight=0.5).backward()
    assert all(p.grad is not None for p in model.parameters())
