"""The command line: results on stdout, progress on stderr, the outcome in the exit code.

0 everything asked for holds, 1 ran and something does not hold, 2 usage or bad input,
3 undecided (a solver gave up), 70 a defect of sdplip, 130 interrupted, 141 nobody reads stdout.
"""

from __future__ import annotations

import inspect
import os
import platform
import sys
import traceback
from importlib.metadata import version as installed
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .._json import to_json
from ..errors import InvalidInput, SdplipError
from ._compare import compare
from ._console import BROKEN_PIPE, DEFECT, DOES_NOT_HOLD, INTERRUPTED, Json, fail, listing, worst
from ._derive import derive, has_kind, read, replayed
from ._read import ActivationName, InputShape, Normalise, how_to_read
from ._report import report
from ._train import train
from ._verify import certified, verify


class _Group(TyperGroup):
    """Turns the library's exceptions into one line on stderr and the exit code that they mean."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError as error:
            # Whoever reads, as `| head`, has enough; what is still to be flushed goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(BROKEN_PIPE) from error
        except (SdplipError, OSError) as error:
            raise fail(error, worst(error)) from error
        except KeyboardInterrupt as error:
            raise fail("interrupted", INTERRUPTED) from error


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    # Boxes would cut names of options off and leave a third of the width to what they mean.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Provably Lipschitz neural networks: derive, verify and train them from one condition.",
    epilog="Exit codes: 0 all holds, 1 something does not hold, 2 usage or bad input, "
    "3 undecided, 70 a defect of sdplip, 130 interrupted, 141 nobody reads the output.",
)


def _version(wanted: bool) -> None:
    if wanted:
        parts = ", ".join(f"{name} {installed(name)}" for name in ("torch", "numpy", "cvxpy"))
        typer.echo(f"sdplip {installed('sdplip')} ({parts}, Python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show versions.")
    ] = False,
) -> None:
    pass


@app.command()
def layers(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Write the table of the README.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the layers, their conditions and their promises."""
    if markdown and as_json:
        raise InvalidInput("--markdown and --json: only one of them can be written.")
    from ..layers import CONVOLUTIONS, LAYERS

    found = [(name, cls) for table in (LAYERS, CONVOLUTIONS) for name, cls in table.items()]
    if markdown:
        lines = ["| layer | promise | condition |", "| --- | --- | --- |"]
        for _, cls in found:
            norm = "ℓ₂" if cls.norm == 2 else "ℓ∞"
            claim = _claim(cls).replace("|", r"\|")
            lines.append(f"| `{cls.__name__}` | {claim} | `{cls.condition}`, {norm} |")
        typer.echo("\n".join(lines))
        return
    rows = [
        (name, cls.__name__, cls.condition, "2" if cls.norm == 2 else "inf", _claim(cls))
        for name, cls in found
    ]
    listing(("layer", "class", "condition", "norm", "claim"), rows, as_json)


def _claim(cls: type) -> str:
    """The first paragraph of a class's docstring."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())


@app.command()
def conditions(as_json: Json = False) -> None:
    """List the conditions, what each claims, and its source."""
    from .. import conditions as module
    from ..lmi import LMI

    named = {value.name: value for value in vars(module).values() if isinstance(value, LMI)}
    rows = [(name, lmi.claim, lmi.source) for name, lmi in named.items()]
    listing(("condition", "claim", "source"), rows, as_json)
    if not as_json:
        _, *sources = " ".join((module.__doc__ or "").split()).partition("Sources: ")
        typer.echo("".join(sources))


@app.command()
def check(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A certificate, a proof or a counterexample."),
    ],
    model: Annotated[
        Path | None,
        typer.Argument(metavar="NETWORK", help="The network that a certificate is about."),
    ] = None,
    input_shape: InputShape = None,
    activation: ActivationName = None,
    normalise: Normalise = None,
    as_json: Json = False,
) -> None:
    """Check a certificate, proof or counterexample from its file. No solver is needed."""
    content = read(file)
    if has_kind(content):
        if model is not None:
            raise InvalidInput(f"{file} is about no network. Leave {model} out.")
        result, said = replayed(file, content)
    elif model is None:
        raise InvalidInput(
            f"{file} is no proof and no counterexample. If it is a certificate, name its network: "
            f"sdplip check {file} NETWORK"
        )
    else:
        reading = how_to_read(input_shape, activation, normalise)
        result, said = certified(file, model, **reading)
    typer.echo(to_json(result) if as_json else said)
    if not result["holds"]:
        raise typer.Exit(DOES_NOT_HOLD)


app.command()(verify)
app.command()(derive)
app.command()(train)
app.command()(compare)
app.command()(report)


def main() -> None:
    """The console script."""
    try:
        app()
    except Exception:
        # Python's own exit code for this, 1, would say that a certificate does not hold.
        traceback.print_exc()
        sys.exit(DEFECT)
