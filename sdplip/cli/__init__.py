"""The command line: results on stdout, progress on stderr, the outcome in the exit code.

0 everything asked for holds, 1 ran and something does not hold, 2 usage or bad input,
3 undecided (a solver gave up), 70 a defect of sdplip, 130 interrupted.
"""

from __future__ import annotations

import platform
import sys
import traceback
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import CertificationError, InvalidInput, NotConverged, NotWellPosed, SdplipError
from ._console import BAD_INPUT, DEFECT, DOES_NOT_HOLD, INTERRUPTED, UNDECIDED, Json, fail, listing
from ._derive import derive, has_kind, read, replayed
from ._report import report
from ._train import compare, train

if TYPE_CHECKING:
    from ..system import System


LOOSE = 1e-3
"""From this relative gap on, `verify` says that its bound is not the tightest."""


class _Group(TyperGroup):
    """Turns the library's exceptions into one line on stderr and the exit code that they mean."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (NotWellPosed, NotConverged) as error:
            raise fail(error, DOES_NOT_HOLD) from error
        except CertificationError as error:
            raise fail(error, UNDECIDED) from error
        except (SdplipError, OSError) as error:
            raise fail(error, BAD_INPUT) from error
        except KeyboardInterrupt as error:
            raise fail("interrupted", INTERRUPTED) from error


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Provably Lipschitz neural networks: derive, verify and train them from one condition.",
    epilog="Exit codes: 0 holds, 1 does not hold, 2 usage or bad input, 3 undecided, "
    "130 interrupted.",
)


def _version(wanted: bool) -> None:
    if wanted:
        parts = ", ".join(f"{name} {installed(name)}" for name in ("torch", "numpy", "cvxpy"))
        typer.echo(f"sdplip {installed('sdplip')} ({parts}, Python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def layers(as_json: Json = False) -> None:
    """List the layer families, the condition each satisfies, and its promise."""
    from ..layers import CONVOLUTIONS, LAYERS

    rows = [
        (name, cls.__name__, cls.condition, "2" if cls.norm == 2 else "inf", _first_line(cls))
        for table in (LAYERS, CONVOLUTIONS)
        for name, cls in table.items()
    ]
    listing(("layer", "class", "condition", "norm", "claim"), rows, as_json)


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]


@app.command()
def conditions(as_json: Json = False) -> None:
    """List the conditions, what each claims, and its source."""
    from .. import conditions as module
    from ..lmi import LMI

    named = {value.name: value for value in vars(module).values() if isinstance(value, LMI)}
    rows = [(name, lmi.claim, lmi.source) for name, lmi in named.items()]
    listing(("condition", "claim", "source"), rows, as_json)


@app.command()
def verify(
    model: Annotated[Path, typer.Argument(help="A .npz system, or a run's model or directory.")],
    norm: Annotated[str, typer.Option(help="2 or inf.")] = "2",
    solver: Annotated[str, typer.Option(help="auto, or a solver's name.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Write the certificate here.")] = None,
    as_json: Json = False,
) -> None:
    """Find the tightest Lipschitz bound of a network, and a lower bound beside it."""
    if norm not in ("2", "inf"):
        raise InvalidInput(f"--norm is {norm!r}, but must be 2 or inf.")
    from ..train.checkpoint import to_json
    from ..verify import lipschitz

    if out is not None and not out.parent.is_dir():
        raise InvalidInput(f"--out is {out}, but {out.parent} is no directory. Create it first.")
    certificate = lipschitz(_system(model), norm=float(norm), solver=solver)
    if out is not None:
        certificate.save(out)
    values = {
        "bound": certificate.bound,
        "lower": certificate.lower,
        "norm": norm,
        "norm_product": certificate.norm_product,
        "optimum": certificate.optimum,
        "proven": certificate.proven,
        "solver": certificate.solver,
        "seconds": round(certificate.seconds, 3),
        "units": certificate.units,
        "certificate": None if out is None else str(out),
    }
    if as_json:
        typer.echo(to_json(values))
        return
    if (certificate.gap or 0.0) > LOOSE:
        typer.echo(
            f"warning: the solver stopped early; the bound is at most {certificate.gap:.1%} above "
            "the best one",
            err=True,
        )
    # All digits: a bound that is rounded for display may be rounded down.
    for key, value in values.items():
        if value is not None:
            typer.echo(f"{key:<13}{str(value).lower() if isinstance(value, bool) else value}")


@app.command()
def check(
    file: Annotated[
        Path,
        typer.Argument(help="What verify or derive wrote: certificate, proof, counterexample."),
    ],
    model: Annotated[
        Path | None, typer.Argument(help="The network that a certificate is about.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a certificate, a proof or a counterexample from its file alone, without any solver."""
    from ..train.checkpoint import to_json

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
        result, said = _certified(file, model)
    typer.echo(to_json(result) if as_json else said)
    if not result["holds"]:
        raise typer.Exit(DOES_NOT_HOLD)


def _certified(certificate: Path, model: Path) -> tuple[dict[str, Any], str]:
    """What a certificate shows about a network: JSON values, and a sentence."""
    from ..verify import Certificate
    from ..verify import check as check_certificate

    system = _system(model)
    try:
        loaded = Certificate.load(certificate)
        check_certificate(loaded, system)
    except CertificationError as error:
        return {"holds": False, "bound": None, "reason": str(error)}, f"does not hold: {error}"
    said = f"holds: bound {loaded.bound!r} in norm {loaded.norm:g}"
    return {"holds": True, "bound": loaded.bound, "reason": None}, said


def _system(path: Path) -> System:
    from ..system import System

    if path.suffix == ".npz":
        return System.load(path)
    import math

    from ..train.checkpoint import load_model
    from ..train.evaluate import exact_copy

    model, config = load_model(path)
    if config.architecture != "dense":
        raise InvalidInput(
            f"{path} is a convolutional network, too large for a semidefinite program. Its bound "
            "and certified accuracies are in the metrics.json of its run."
        )
    return System.from_module(exact_copy(model), features=math.prod(config.input_shape))


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
