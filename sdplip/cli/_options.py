"""The options that `sdplip train` and `sdplip compare` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    str | None,
    typer.Option(
        show_default="digits, or the preset's",
        help="digits, mnist, fashionmnist, cifar10, cifar100 or folder:PATH (of images).",
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(
        show_default="none",
        help="Minutes for all runs together (presets 1lc-*: for the training of each). Epochs or "
        "images are reduced to fit; the tables say so.",
    ),
]
Scale = Annotated[
    float | None, typer.Option(show_default="1", help="Share of the epochs; the tables say so.")
]
DataRoot = Annotated[
    Path | None,
    typer.Option(show_default="$SDPLIP_DATA, else the user cache", help="Folder of the data sets."),
]
Download = Annotated[bool, typer.Option("--download", help="Fetch the data set if it is missing.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, show_default="1 for digits, else all cores", help="Threads of Torch."),
]
Width = Annotated[int | None, typer.Option(show_default="per data set", help="Units per layer.")]
Depth = Annotated[int | None, typer.Option(show_default="2", help="Hidden layers or blocks.")]
Epochs = Annotated[
    int | None, typer.Option(show_default="per data set", help="Passes over the training data.")
]
Gamma = Annotated[
    float | None,
    typer.Option(
        show_default="1", help="Lipschitz bound of LBEN and MON, for the normalised input."
    ),
]
Normalise = Annotated[
    str | None,
    typer.Option(
        show_default="mean",
        help="What the model does first: none, mean (subtract it) or std (also divide).",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of weights, batches and attacks.")]
Lr = Annotated[float | None, typer.Option(show_default="per data set", help="Learning rate.")]
Radii = Annotated[
    str | None,
    typer.Option(show_default="per data set", help="ℓ₂ radii per raw pixel, as in 0.1,0.5."),
]
BatchSize = Annotated[
    int | None, typer.Option(show_default="per data set", help="Images per step.")
]
Augment = Annotated[
    str | None,
    typer.Option(
        show_default="none", help="Augmentation: none, crop, crop-reflect, colour or affine."
    ),
]
Optimizer = Annotated[
    str | None, typer.Option(show_default="adam, or the preset's", help="Optimiser: adam or sgd.")
]
TrainImages = Annotated[
    int | None,
    typer.Option(show_default="all", help="Use so many training images, evenly from all classes."),
]
AttackImages = Annotated[
    int | None,
    typer.Option(show_default="all; 500 with --preset", help="Attack so many of the test images."),
]
Attack = Annotated[str | None, typer.Option(show_default="pgd", help="Attack: pgd or apgd.")]
LocalImages = Annotated[
    int | None,
    typer.Option(show_default="none", help="Certify so many test images by a bound around each."),
]
Precision = Annotated[
    str | None, typer.Option(show_default="32", help="Precision of training: 32 or bf16-mixed.")
]
Images = Annotated[
    int | None, typer.Option(show_default="all", help="Measure on so many test images.")
]
Verify = Annotated[bool, typer.Option(help="Compute the SDP bound after training.")]
Resume = Annotated[bool, typer.Option(help="Continue an interrupted run in --out.")]
Force = Annotated[bool, typer.Option("--force", help="Remove what is in --out, and start over.")]
