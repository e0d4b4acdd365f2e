"""The commands that train: `sdplip train` and `sdplip compare`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInput
from ._console import Address, Engine, Json, Progress, listing, show

if TYPE_CHECKING:
    from ..train.config import RunConfig
    from ..train.data import Splits
    from ..train.row import Row
    from ..train.runs import Finished

Data = Annotated[
    str,
    typer.Option(help="digits, mnist, fashionmnist, cifar10, cifar100 or folder:PATH, of images."),
]
Budget = Annotated[
    float | None,
    typer.Option(
        show_default="none",
        help="Minutes for all runs: fewer epochs, or images, said in the table.",
    ),
]
Scale = Annotated[
    float | None, typer.Option(show_default="1", help="Share of the epochs, said in the table.")
]
DataRoot = Annotated[
    Path | None,
    typer.Option(show_default="$SDPLIP_DATA, else the user cache", help="Folder of the data sets."),
]
Download = Annotated[bool, typer.Option("--download", help="Fetch the data set if missing.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Threads = Annotated[
    int | None, typer.Option(min=1, show_default="1 for digits, else all cores", help="Of torch.")
]
Width = Annotated[int | None, typer.Option(show_default="per data set", help="Units per layer.")]
Depth = Annotated[int | None, typer.Option(show_default="2", help="Hidden layers or blocks.")]
Epochs = Annotated[
    int | None, typer.Option(show_default="per data set", help="Passes over the training data.")
]
Gamma = Annotated[
    float | None, typer.Option(show_default="1", help="LBEN's bound, for the normalised input.")
]
Normalise = Annotated[
    str | None,
    typer.Option(
        show_default="mean", help="Inside the model: none, mean (subtracted), std (also divided)."
    ),
]
Seed = Annotated[int, typer.Option(help="Of weights, batches and attacks.")]
Lr = Annotated[float | None, typer.Option(show_default="per data set", help="Adam's rate.")]
Radii = Annotated[
    str | None,
    typer.Option(show_default="per data set", help="ℓ₂ radii per raw pixel, as in 0.1,0.5."),
]
BatchSize = Annotated[
    int | None, typer.Option(show_default="per data set", help="Images per step.")
]
Augment = Annotated[
    str | None,
    typer.Option(show_default="none", help="none, crop, crop-reflect, colour or affine."),
]
TrainImages = Annotated[
    int | None, typer.Option(show_default="all", help="Training images, evenly from all classes.")
]
AttackImages = Annotated[
    int | None,
    typer.Option(show_default="all; 500 with --preset", help="Of these, how many to attack."),
]
Precision = Annotated[
    str | None, typer.Option(show_default="32", help="Of training: 32 or bf16-mixed.")
]
Images = Annotated[int | None, typer.Option(show_default="all", help="Test images to measure on.")]
Verify = Annotated[bool, typer.Option(help="Compute the SDP bound after training.")]
Resume = Annotated[bool, typer.Option(help="Continue an interrupted run in --out.")]
Force = Annotated[
    bool, typer.Option("--force", help="Start over in --out, removing what is there.")
]


def train(
    data: Data = "digits",
    layer: Annotated[
        str | None, typer.Option(show_default="sll", help="A family, see sdplip layers.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="A published network and its recipe; other options change it."),
    ] = None,
    list_presets: Annotated[
        bool, typer.Option("--list-presets", help="List the published networks, and exit.")
    ] = False,
    width: Width = None,
    depth: Depth = None,
    epochs: Epochs = None,
    gamma: Gamma = None,
    normalise: Normalise = None,
    activation: Annotated[
        str | None, typer.Option(show_default="relu", help="Of the hidden units.")
    ] = None,
    seed: Seed = 0,
    lr: Lr = None,
    batch_size: BatchSize = None,
    train_images: TrainImages = None,
    augment: Augment = None,
    optimizer: Annotated[str | None, typer.Option(show_default="adam", help="adam or sgd.")] = None,
    accumulate: Annotated[
        int | None, typer.Option(show_default="1", help="Batches per step of the optimiser.")
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(show_default="0, off", help="Decay of an average of the weights, as 0.999."),
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(show_default="0", help="Added to the gradient.")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            show_default="piecewise",
            help="constant, piecewise, onecycle, cosine, step or multistep.",
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            show_default="margin where ℓ₂ is bounded",
            help="margin, multi_margin or cross_entropy.",
        ),
    ] = None,
    offset: Annotated[
        float | None, typer.Option(show_default="2.1213", help="Of the losses with a margin.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(show_default="0.25", help="Of the margin loss.")
    ] = None,
    linf_penalty: Annotated[
        float | None,
        typer.Option(show_default="0.01 for nemon", help="Weight of the ℓ∞ bound in the loss."),
    ] = None,
    tol: Annotated[
        float | None, typer.Option(show_default="1e-2", help="Equilibrium tolerance in training.")
    ] = None,
    precision: Precision = None,
    products: Annotated[
        str | None,
        typer.Option(show_default="exact", help="Of SLL's and AOL's T: exact or bfloat16."),
    ] = None,
    radii: Radii = None,
    linf_radii: Annotated[
        str | None,
        typer.Option(show_default="0.01,0.03,0.1", help="ℓ∞ radii, where ℓ∞ is bounded."),
    ] = None,
    images: Images = None,
    attack_images: AttackImages = None,
    verify: Verify = True,
    verify_units: Annotated[
        int | None,
        typer.Option(show_default="300", help="Networks with more units are not verified."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(show_default="runs/DATA/LAYER or runs/DATA/PRESET", help="Run directory."),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    data_root: DataRoot = None,
    download: Download = False,
    resume: Resume = True,
    force: Force = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the run's records for TensorBoard, too.")
    ] = False,
    scale: Scale = None,
    as_json: Json = False,
) -> None:
    """Train one network, then measure what it promises, what is verified and what attacks find."""
    if list_presets:
        _list_presets(as_json)
        return
    from ..train.data import short_name
    from ..train.runs import prepare, run

    chosen = _known(preset, layer)
    if tensorboard:
        installed("tensorboard", extra="tensorboard")
    with Progress() as progress:
        splits = _load(data, data_root, download, device, threads, progress)
        config = _config(
            preset, chosen, splits, width=width, depth=depth, epochs=epochs, gamma=gamma,
            normalise=normalise, activation=activation, seed=seed, lr=lr, batch_size=batch_size,
            train_images=train_images, augment=augment, optimizer=optimizer,
            accumulate=accumulate, ema=ema,
            weight_decay=weight_decay, schedule=schedule, loss=loss, offset=offset,
            temperature=temperature, linf_penalty=linf_penalty, tol=tol, precision=precision,
            products=products, radii=_radii(radii), linf_radii=_radii(linf_radii), images=images,
            attack_images=attack_images, verify=verify, verify_units=verify_units,
        )  # fmt: skip
        if scale is not None:
            from ..train.experiments import shrink

            config = shrink(config, scale)
        name = preset or config.model.layer
        if layer is not None and preset is not None and not preset.endswith(f"-{layer}"):
            name = f"{preset}-{layer}"
        out = Path("runs") / short_name(data) / name if out is None else out
        splits = splits.first(config.train.train_images)
        prepare(config, out, force=force, resume=resume)
        finished = run(
            config, splits, out, device=device, resume=resume, on_epoch=progress.epoch,
            tensorboard=tensorboard,
        )  # fmt: skip
    if not finished.rows:
        return
    progress.finished(finished)
    from ..train.report import document

    show(finished.rows, document(finished.rows, data, [], 0.0) | {"run": str(out)}, as_json)


def compare(
    data: Annotated[
        str | None, typer.Option(show_default="digits, or the experiment's", help="As in train.")
    ] = None,
    layers: Annotated[
        str, typer.Option(help="all, or names separated by commas; see sdplip layers.")
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
    budget: Budget = None,
    scale: Scale = None,
    width: Width = None,
    depth: Depth = None,
    epochs: Epochs = None,
    gamma: Gamma = None,
    normalise: Normalise = None,
    seed: Seed = 0,
    lr: Lr = None,
    batch_size: BatchSize = None,
    train_images: TrainImages = None,
    augment: Augment = None,
    precision: Precision = None,
    radii: Radii = None,
    images: Images = None,
    attack_images: AttackImages = None,
    verify: Verify = True,
    out: Annotated[
        Path | None,
        typer.Option(show_default="runs/DATA-compare or runs/DATA-PRESET", help="Run directory."),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    data_root: DataRoot = None,
    download: Download = False,
    resume: Resume = True,
    force: Force = False,
    engine: Engine = "local",
    address: Address = None,
    cpus: Annotated[float, typer.Option(help="That Ray reserves for a run.")] = 1,
    gpus: Annotated[float, typer.Option(help="That Ray reserves for a run.")] = 0,
    as_json: Json = False,
) -> None:
    """Train every layer family and two baselines, and lay their guarantees side by side.

    With --preset, the models of a published comparison, its figures beside the results.
    """
    from ..train import convnets, experiments, models
    from ..train import runs as train_runs
    from ..train.data import short_name

    if list_presets:
        every = [(k, e.title, e.source) for k, e in experiments.EXPERIMENTS.items()]
        listing(("preset", "comparison", "source"), every, as_json)
        return
    experiment = experiments.EXPERIMENTS.get(preset or "")
    names: list[str] = []
    if experiment is None:
        known = models.families() if preset is None else convnets.families()
        names = list(known) if layers == "all" else [n.strip() for n in layers.split(",")]
        for name in dict.fromkeys(names):
            _known(preset, name)
    elif layers != "all":
        raise InvalidInput(f"--preset {preset} has models of its own. Leave --layers out.")
    data = data or ("digits" if experiment is None else experiment.data[0])
    out = Path("runs") / f"{short_name(data)}-{preset or 'compare'}" if out is None else out
    rows: list[Row] = []
    with Progress() as progress:
        splits = _load(data, data_root, download, device, threads, progress)
        changes: dict[str, Any] = dict(
            width=width, depth=depth, epochs=epochs, gamma=gamma,
            normalise=normalise, seed=seed, lr=lr, batch_size=batch_size,
            train_images=train_images, augment=augment, precision=precision,
            radii=_radii(radii), images=images, attack_images=attack_images, verify=verify,
        )  # fmt: skip
        if experiment is None:
            configs = {name: _config(preset, name, splits, **changes) for name in names}
        else:
            configs = experiment.configs(splits, **changes)
        if scale is not None:
            configs = {name: experiments.shrink(c, scale) for name, c in configs.items()}
        if budget is not None:
            configs = experiments.affordable(configs, splits, budget, device)
            configs = {
                name: experiments.settled(c, out / train_runs.folder_name(name))
                for name, c in configs.items()
            }

        def done(finished: Finished) -> None:
            progress.finished(finished)
            rows.extend(finished.rows)

        result = train_runs.compare(
            configs, splits, out, device=device, force=force, resume=resume,
            on_epoch=progress.epoch, on_finished=done,
            published={} if experiment is None else experiment.published(),
            engine=engine, address=address, cpus=cpus, gpus=gpus,
        )  # fmt: skip
    show(rows, result | {"run": str(out)}, as_json)


def _list_presets(as_json: bool) -> None:
    from ..train.presets import PRESETS

    rows = [
        (name, f"{preset.parameters():,}", preset.source, preset.recipe())
        for name, preset in PRESETS.items()
    ]
    listing(("preset", "parameters", "source", "recipe"), rows, as_json)


def _known(preset: str | None, layer: str | None) -> str | None:
    """The family that was asked for, once it and the preset are known to exist."""
    from ..train import models, presets

    if layer is not None:
        models.known_layer(layer)
    if preset is not None:
        presets.find_preset(preset, layer)
        return layer
    return layer or "sll"


def _config(preset: str | None, layer: str | None, splits: Splits, **changes: Any) -> RunConfig:
    from ..train import config, presets

    if preset is None:
        return _usable(config.override(config.preset(layer or "sll", splits), **changes))
    found = presets.find_preset(preset, layer).config(splits)
    return _usable(config.override(found, layer=layer, **changes))


def _usable(config: RunConfig) -> RunConfig:
    if config.train.augment != "none":
        installed("kornia")
    return config


def _load(
    data: str,
    root: Path | None,
    download: bool,
    device: str,
    threads: int | None,
    progress: Progress,
) -> Splits:
    installed("lightning", "matplotlib", "torchmetrics")
    installed("sklearn" if data == "digits" else "torchvision")
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


def installed(*needed: str, extra: str = "train") -> None:
    """Raise InvalidInput where a package of this extra is missing."""
    if missing := [name for name in needed if find_spec(name) is None]:
        raise InvalidInput(
            f"this needs {', '.join(missing)}, which is not installed. "
            f"Install it with: pip install 'sdplip[{extra}]'"
        )


def _radii(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidInput(
            f"the radii are {text!r}, but must be numbers separated by commas, as in 0.1,0.5."
        ) from error
