"""`sdplip compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInput
from . import _options as options
from ._console import Address, Engine, Json, Progress, listing, show
from ._train import check_used, chosen_config, data_of, known, numbers, read_data, shortened

if TYPE_CHECKING:
    from ..train.evaluation.row import Row
    from ..train.runs import Finished


def compare(
    data: options.Data = None,
    layers: Annotated[
        str,
        typer.Option(
            help="all, or names separated by commas; see sdplip layers. Of a published comparison: "
            "families, or its models."
        ),
    ] = "all",
    preset: Annotated[
        str | None,
        typer.Option(
            help="A published comparison, as lben-mnist, or an architecture and recipe for all, as "
            "convnet-xs; see --list-presets."
        ),
    ] = None,
    list_presets: Annotated[
        bool, typer.Option("--list-presets", help="List the published comparisons, and exit.")
    ] = False,
    budget: options.Budget = None,
    scale: options.Scale = None,
    width: options.Width = None,
    depth: options.Depth = None,
    epochs: options.Epochs = None,
    gamma: options.Gamma = None,
    normalise: options.Normalise = None,
    seed: options.Seed = 0,
    lr: options.Lr = None,
    batch_size: options.BatchSize = None,
    train_images: options.TrainImages = None,
    augment: options.Augment = None,
    optimizer: options.Optimizer = None,
    precision: options.Precision = None,
    radii: options.Radii = None,
    images: options.Images = None,
    attack_images: options.AttackImages = None,
    attack: options.Attack = None,
    local_images: options.LocalImages = None,
    verify: options.Verify = True,
    out: Annotated[
        Path | None,
        typer.Option(show_default="runs/DATA-compare or runs/DATA-PRESET", help="Run directory."),
    ] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    data_root: options.DataRoot = None,
    download: options.Download = False,
    resume: options.Resume = True,
    force: options.Force = False,
    engine: Engine = "local",
    address: Address = None,
    cpus: Annotated[
        float | None,
        typer.Option(min=0, show_default="1", help="CPUs that Ray reserves for a run."),
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(min=0, show_default="0", help="GPUs that Ray reserves for a run."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train all families, and compare what they guarantee.

    Without --preset two baselines join them; with it, the models of a published comparison are
    trained, and its figures shown beside. A --budget is shared anew before every run; with Ray
    it is shared once, as if one run came after another.
    """
    from ..train import convnets, models, runs
    from ..train.data import short_name
    from ..train.directory import folder_name
    from ..train.experiments.comparisons import EXPERIMENTS

    if list_presets:
        _list_presets(as_json)
        return
    for option, value in {"cpus": cpus, "gpus": gpus}.items():
        if value is not None and engine != "ray":
            raise InvalidInput(f"--{option} is {value:g}, but needs --engine ray.")
    experiment = EXPERIMENTS.get(preset or "")
    names: list[str] = []
    if experiment is None:
        every = models.families() if preset is None else convnets.families()
        names = list(every) if layers == "all" else [n.strip() for n in layers.split(",")]
        for name in dict.fromkeys(names):
            known(preset, name)
    else:
        experiment = experiment.only(layers)
    data = data_of(data, experiment)
    out = Path("runs") / f"{short_name(data)}-{preset or 'compare'}" if out is None else out
    rows: list[Row] = []
    with Progress() as progress:
        splits = read_data(data, data_root, download, device, threads, progress)
        changes: dict[str, Any] = dict(
            width=width, depth=depth, epochs=epochs, gamma=gamma,
            normalise=normalise, seed=seed, lr=lr, batch_size=batch_size,
            train_images=train_images, augment=augment, optimizer=optimizer,
            precision=precision, radii=numbers(radii), images=images,
            attack_images=attack_images, attack=attack, local_images=local_images, verify=verify,
        )  # fmt: skip
        if experiment is None:
            check_used(changes, *names)
            configs = {name: chosen_config(preset, name, splits, **changes) for name in names}
        else:
            configs = experiment.configs(splits, **changes)
        folders = {name: out / folder_name(name) for name in configs if not force}
        each = experiment is not None and experiment.each
        configs, shared = shortened(configs, splits, device, budget, scale, each, folders)

        def done(finished: Finished) -> None:
            progress.finished(finished)
            rows.extend(finished.rows)

        result = runs.compare(
            configs, splits, out, device=device, force=force, resume=resume,
            on_epoch=progress.epoch, on_finished=done,
            published={} if experiment is None else experiment.published(**changes),
            sources={} if experiment is None else experiment.sources(data),
            engine=engine, address=address, cpus=1 if cpus is None else cpus, gpus=gpus or 0,
            budget=shared,
        )  # fmt: skip
    show(rows, result | {"run": str(out)}, as_json)


def _list_presets(as_json: bool) -> None:
    from ..train.experiments.comparisons import EXPERIMENTS
    from ..train.experiments.presets import CONVNETS

    rows = [(name, found.title, found.source) for name, found in EXPERIMENTS.items()]
    rows += [(f"convnet-{size}", "one architecture, every family", "[1LLC]") for size in CONVNETS]
    listing(("preset", "comparison", "source"), rows, as_json)
