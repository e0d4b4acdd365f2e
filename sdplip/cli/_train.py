"""`sdplip train`, and what it shares with `sdplip compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._extras import need
from ..errors import InvalidInput
from . import _options as options
from ._console import Json, Progress, listing, show

if TYPE_CHECKING:
    from ..train.config import RunConfig
    from ..train.data import Splits
    from ..train.experiments.budget import Budget
    from ..train.experiments.comparisons import Experiment

ONLY = {
    "gamma": ("lben", "mon"),
    "tol": ("lben", "mon", "nemon", "implicit"),
    "linf_penalty": ("nemon", "implicit"),
    "products": ("aol", "sll"),
}
"""Options that matter to some families only."""


def train(
    data: options.Data = None,
    layer: Annotated[
        str | None,
        typer.Option(
            show_default="sll",
            help="A family of sdplip layers, mon or implicit, or the baselines unconstrained and "
            "torch-spectral.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="A published network and its recipe, or a model of a published comparison, as "
            "lben-mnist/lben-gamma-1 (see --list-presets); other options change it."
        ),
    ] = None,
    list_presets: Annotated[
        bool, typer.Option("--list-presets", help="List the published networks, and exit.")
    ] = False,
    width: options.Width = None,
    depth: options.Depth = None,
    epochs: options.Epochs = None,
    gamma: options.Gamma = None,
    normalise: options.Normalise = None,
    activation: Annotated[
        str | None, typer.Option(show_default="relu", help="Activation of the hidden units.")
    ] = None,
    seed: options.Seed = 0,
    lr: options.Lr = None,
    batch_size: options.BatchSize = None,
    train_images: options.TrainImages = None,
    augment: options.Augment = None,
    optimizer: options.Optimizer = None,
    accumulate: Annotated[
        int | None, typer.Option(show_default="1", help="Batches per step of the optimiser.")
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(show_default="0, off", help="Decay of an average of the weights, as 0.999."),
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(show_default="0", help="Weight decay, added to the gradient.")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            show_default="piecewise",
            help="Learning rate over time: constant, piecewise, onecycle, cosine, step or "
            "multistep.",
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            show_default="margin where ℓ₂ is bounded",
            help="Loss: margin, multi_margin, cross_entropy, or for unconstrained dense networks "
            "lipschitz_margin.",
        ),
    ] = None,
    offset: Annotated[
        float | None,
        typer.Option(show_default="2.1213", help="Offset of the losses with a margin."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(show_default="0.25", help="Temperature of the margin loss.")
    ] = None,
    linf_penalty: Annotated[
        float | None,
        typer.Option(show_default="0.01 for nemon", help="Weight of the ℓ∞ bound in the loss."),
    ] = None,
    tol: Annotated[
        float | None, typer.Option(show_default="1e-2", help="Equilibrium tolerance in training.")
    ] = None,
    contraction: Annotated[
        float | None,
        typer.Option(
            show_default="1, no bound",
            help="What an iteration of LBEN or MON leaves of the error at most, from 0.1 on.",
        ),
    ] = None,
    precision: options.Precision = None,
    products: Annotated[
        str | None,
        typer.Option(
            show_default="exact", help="Products in the T of SLL and AOL: exact or bfloat16."
        ),
    ] = None,
    radii: options.Radii = None,
    linf_radii: Annotated[
        str | None,
        typer.Option(show_default="0.01,0.03,0.1", help="ℓ∞ radii, where ℓ∞ is bounded."),
    ] = None,
    images: options.Images = None,
    attack_images: options.AttackImages = None,
    attack: options.Attack = None,
    local_images: options.LocalImages = None,
    verify: options.Verify = True,
    verify_units: Annotated[
        int | None,
        typer.Option(show_default="300", help="Networks with more units are not verified."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(show_default="runs/DATA/LAYER or runs/DATA/PRESET", help="Run directory."),
    ] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    data_root: options.DataRoot = None,
    download: options.Download = False,
    resume: options.Resume = True,
    force: options.Force = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the run's records for TensorBoard, too.")
    ] = False,
    budget: options.Budget = None,
    scale: options.Scale = None,
    as_json: Json = False,
) -> None:
    """Train one network and measure it.

    That is what it promises, what is verified and what attacks find.
    """
    if list_presets:
        _list_presets(as_json)
        return
    from ..train.data import short_name
    from ..train.directory import folder_name
    from ..train.experiments.comparisons import one_model
    from ..train.runs import run

    experiment = one_model(preset or "")
    if experiment is not None and layer is not None:
        raise InvalidInput(f"--preset {preset} has a layer of its own. Leave --layer out.")
    chosen = known(preset, layer) if experiment is None else None
    data = data_of(data, experiment)
    if tensorboard:
        need("--tensorboard", "tensorboard", extra="tensorboard")
    with Progress() as progress:
        splits = read_data(data, data_root, download, device, threads, progress)
        changes: dict[str, Any] = dict(
            width=width, depth=depth, epochs=epochs, gamma=gamma,
            normalise=normalise, activation=activation, seed=seed, lr=lr, batch_size=batch_size,
            train_images=train_images, augment=augment, optimizer=optimizer,
            accumulate=accumulate, ema=ema,
            weight_decay=weight_decay, schedule=schedule, loss=loss, offset=offset,
            temperature=temperature, linf_penalty=linf_penalty, tol=tol, precision=precision,
            contraction=contraction, products=products, radii=numbers(radii),
            linf_radii=numbers(linf_radii), images=images,
            attack_images=attack_images, attack=attack, local_images=local_images,
            verify=verify, verify_units=verify_units,
        )  # fmt: skip
        beside: dict[str, Any] = {}
        if experiment is None:
            config = chosen_config(preset, chosen, splits, **changes)
            check_used(changes, config.model.layer)
            name = preset or config.model.layer
            if layer is not None and preset is not None and not preset.endswith(f"-{layer}"):
                name = f"{preset}-{layer}"
        else:
            ((model, config),) = experiment.configs(splits, **changes).items()
            name = folder_name(preset or "")
            beside["variant"] = model.removeprefix(config.model.layer).strip()
            beside["published"] = experiment.published(**changes).get(model)
            beside["source"] = experiment.sources(data)[model]
        out = Path("runs") / short_name(data) / name if out is None else out
        each = experiment is not None and experiment.each
        configs = {name: config}
        folders = {} if force else {name: out}
        config = shortened(configs, splits, device, budget, scale, each, folders)[0][name]
        splits = splits.first(config.train.train_images)
        finished = run(
            config, splits, out, device=device, force=force, resume=resume,
            on_epoch=progress.epoch, tensorboard=tensorboard, **beside,
        )  # fmt: skip
    if not finished.rows:
        return
    progress.finished(finished)
    from ..train.reporting.tables import document

    show(finished.rows, document(finished.rows, data, [], 0.0) | {"run": str(out)}, as_json)


def _list_presets(as_json: bool) -> None:
    from ..train.experiments.comparisons import EXPERIMENTS
    from ..train.experiments.presets import PRESETS

    rows = [
        (name, f"{preset.parameters():,}", preset.source, preset.recipe())
        for name, preset in PRESETS.items()
    ]
    for name, experiment in EXPERIMENTS.items():
        models = [f"{name}/{model}" for model in experiment.models]
        # In a table what is said of all of them stands once.
        for preset in models if as_json else [", ".join(models)]:
            rows.append((preset, "", experiment.source, experiment.title))
    listing(("preset", "parameters", "source", "recipe"), rows, as_json)


def check_used(changes: dict[str, Any], *layers: str) -> None:
    """Raise InvalidInput for an option that none of these families knows."""
    for option, families in ONLY.items():
        if changes.get(option) is not None and not {*layers} & {*families}:
            raise InvalidInput(
                f"--{option.replace('_', '-')} does nothing for {', '.join(layers)}, only for "
                f"{', '.join(families)}. Leave it out."
            )


def data_of(data: str | None, experiment: Experiment | None) -> str:
    """The data set asked for, else the experiment's, else digits."""
    if data is not None or experiment is None:
        return data or "digits"
    if not experiment.data:
        raise InvalidInput(
            f"{experiment.title}: no data set of this name is known. Give one with --data, as "
            "folder:PATH."
        )
    return experiment.data[0]


def shortened(
    configs: dict[str, RunConfig],
    splits: Splits,
    device: str,
    budget: float | None,
    scale: float | None,
    each: bool,
    folders: dict[str, Path],
) -> tuple[dict[str, RunConfig], Budget | None]:
    """As `--scale` and `--budget` ask for, and the budget; runs that were begun in their folders
    keep their length."""
    from ..train.experiments.budget import Budget, shrink

    if scale is not None:
        configs = {name: shrink(config, scale) for name, config in configs.items()}
    if budget is None:
        return configs, None
    shared = Budget(configs, splits, budget, device, each=each, folders=folders)
    return shared.plan(), shared


def known(preset: str | None, layer: str | None) -> str | None:
    """The family that was asked for, once it and the preset are known to exist."""
    from ..train import models
    from ..train.experiments import presets

    if layer is not None:
        models.known_layer(layer)
    if preset is not None:
        presets.find_preset(preset, layer)
        return layer
    return layer or "sll"


def chosen_config(
    preset: str | None, layer: str | None, splits: Splits, **changes: Any
) -> RunConfig:
    from ..train import config
    from ..train.experiments import presets

    if preset is None:
        return _usable(config.override(config.preset(layer or "sll", splits), **changes))
    found = presets.find_preset(preset, layer).config(splits)
    return _usable(config.override(found, layer=layer, **changes))


def _usable(config: RunConfig) -> RunConfig:
    if config.train.augment != "none":
        need("--augment", "kornia", extra="train")
    return config


def read_data(
    data: str,
    root: Path | None,
    download: bool,
    device: str,
    threads: int | None,
    progress: Progress,
) -> Splits:
    source = "sklearn" if data == "digits" else "torchvision"
    need("Training", "lightning", "matplotlib", source, "torchmetrics", extra="train")
    from ..train.data import load
    from ..train.fit import pick_device

    pick_device(device)
    import torch

    # Networks this small gain nothing from threads and lose much when cores are shared.
    if threads is None and data == "digits":
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)
    return load(data, root, download, progress=progress.decoded)


def numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidInput(
            f"the radii are {text!r}, but must be numbers separated by commas, as in 0.1,0.5."
        ) from error
