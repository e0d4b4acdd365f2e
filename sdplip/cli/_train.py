"""The commands that train: `sdplip train` and `sdplip compare`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InvalidInput
from ._console import Json, Progress, show

if TYPE_CHECKING:
    from ..train.config import RunConfig
    from ..train.data import Splits
    from ..train.row import Row
    from ..train.runs import Finished

Data = Annotated[str, typer.Option(help="digits, mnist or fashionmnist.")]
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
Images = Annotated[int | None, typer.Option(show_default="all", help="Test images to measure on.")]
Verify = Annotated[bool, typer.Option(help="Compute the SDP bound after training.")]
Resume = Annotated[bool, typer.Option(help="Continue an interrupted run in --out.")]
Force = Annotated[
    bool, typer.Option("--force", help="Start over in --out, removing what is there.")
]


def train(
    data: Data = "digits",
    layer: Annotated[str, typer.Option(help="A family, see sdplip layers.")] = "sll",
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
    batch_size: Annotated[
        int | None, typer.Option(show_default="per data set", help="Images per step.")
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            show_default="piecewise", help="constant, piecewise, onecycle, cosine or step."
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(show_default="margin where ℓ₂ is bounded", help="margin or cross_entropy."),
    ] = None,
    offset: Annotated[
        float | None, typer.Option(show_default="2.1213", help="Of the margin loss.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(show_default="0.25", help="Of the margin loss.")
    ] = None,
    linf_penalty: Annotated[
        float | None,
        typer.Option(show_default="0.01 for nemon", help="Weight of the ℓ∞ bound in the loss."),
    ] = None,
    tol: Annotated[
        float | None, typer.Option(show_default="1e-4", help="Equilibrium tolerance in training.")
    ] = None,
    radii: Radii = None,
    linf_radii: Annotated[
        str | None,
        typer.Option(show_default="0.01,0.03,0.1", help="ℓ∞ radii, where ℓ∞ is bounded."),
    ] = None,
    images: Images = None,
    verify: Verify = True,
    verify_units: Annotated[
        int | None,
        typer.Option(show_default="300", help="Networks with more units are not verified."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(show_default="runs/DATA/LAYER", help="Run directory.")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    data_root: DataRoot = None,
    download: Download = False,
    resume: Resume = True,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train one network, then measure what it promises, what is verified and what attacks find."""
    from ..train import models
    from ..train.runs import prepare, run

    models.known_layer(layer)
    splits = _load(data, data_root, download, device, threads)
    config = _config(
        layer, splits, width=width, depth=depth, epochs=epochs, gamma=gamma, normalise=normalise,
        activation=activation, seed=seed, lr=lr, batch_size=batch_size, schedule=schedule,
        loss=loss, offset=offset, temperature=temperature, linf_penalty=linf_penalty, tol=tol,
        radii=_radii(radii), linf_radii=_radii(linf_radii), images=images, verify=verify,
        verify_units=verify_units,
    )  # fmt: skip
    out = Path("runs") / data / layer if out is None else out
    prepare(config, out, force=force, resume=resume)
    with Progress() as progress:
        finished = run(config, splits, out, device=device, resume=resume, on_epoch=progress.epoch)
    progress.finished(finished)
    from ..train.report import document

    show(finished.rows, document(finished.rows, data, [], 0.0) | {"run": str(out)}, as_json)


def compare(
    data: Data = "digits",
    layers: Annotated[
        str, typer.Option(help="all, or names separated by commas; see sdplip layers.")
    ] = "all",
    width: Width = None,
    depth: Depth = None,
    epochs: Epochs = None,
    gamma: Gamma = None,
    normalise: Normalise = None,
    seed: Seed = 0,
    lr: Lr = None,
    radii: Radii = None,
    images: Images = None,
    verify: Verify = True,
    out: Annotated[
        Path | None, typer.Option(show_default="runs/DATA-compare", help="Run directory.")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    data_root: DataRoot = None,
    download: Download = False,
    resume: Resume = True,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train every layer family and two baselines, and lay their guarantees side by side."""
    from ..train import models
    from ..train import runs as train_runs

    names = list(models.families()) if layers == "all" else [n.strip() for n in layers.split(",")]
    for name in dict.fromkeys(names):
        models.known_layer(name)
    splits = _load(data, data_root, download, device, threads)
    configs = [
        _config(
            name, splits, width=width, depth=depth, epochs=epochs, gamma=gamma,
            normalise=normalise, seed=seed, lr=lr, radii=_radii(radii), images=images,
            verify=verify,
        )
        for name in dict.fromkeys(names)
    ]  # fmt: skip
    out = Path("runs") / f"{data}-compare" if out is None else out
    rows: list[Row] = []
    with Progress() as progress:

        def done(finished: Finished) -> None:
            progress.finished(finished)
            rows.extend(finished.rows)

        result = train_runs.compare(
            configs, splits, out, device=device, force=force, resume=resume,
            on_epoch=progress.epoch, on_finished=done,
        )  # fmt: skip
    show(rows, result | {"run": str(out)}, as_json)


def _config(layer: str, splits: Splits, **changes: Any) -> RunConfig:
    from ..train.config import override, preset

    return override(preset(layer, splits), **changes)


def _load(data: str, root: Path | None, download: bool, device: str, threads: int | None) -> Splits:
    needed = ["lightning", "matplotlib", "torchmetrics"]
    needed += ["sklearn"] if data == "digits" else ["torchvision"]
    if missing := [name for name in needed if find_spec(name) is None]:
        raise InvalidInput(
            f"training needs {', '.join(missing)}, which is not installed. "
            "Install it with: pip install 'sdplip[train]'"
        )
    from ..train.data import load
    from ..train.fit import pick_device

    pick_device(device)
    import torch

    # Networks this small gain nothing from threads and lose much when cores are shared.
    if threads is None and data == "digits":
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)
    return load(data, root, download)


def _radii(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InvalidInput(
            f"the radii are {text!r}, but must be numbers separated by commas, as in 0.1,0.5."
        ) from error
