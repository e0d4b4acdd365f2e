"""The options that `sdplip train` and `sdplip compare` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    str | None,
    typer.Option(
        show_default="digits, or the preset's",
        help="digits, mnist, fashionmnist, cifar10, cifar100 or folder:PATH, of images.",
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(
        show_default="none",
        help="Minutes for all runs, with 1lc-* for the training of each: fewer epochs, or images, "
        "said in the table.",
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
Attack = Annotated[str | None, typer.Option(show_default="pgd", help="pgd or apgd.")]
LocalImages = Annotated[
    int | None,
    typer.Option(show_default="none", help="Test images to certify by bounds around each of them."),
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
