"""The commands about bounds: `sdplip verify`, and `sdplip check` for certificates."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._engine import scatter
from .._json import to_json
from ..errors import CertificationError, InvalidInput, SdplipError
from ._console import Address, Engine, Json, Progress, fail, listing, regular, worst
from ._read import ActivationName, InputShape, Normalise, how_to_read, read_network

if TYPE_CHECKING:
    from ..convolutional import ConvSystem
    from ..system import System
    from ..verify import Certificate, Region

    Found = tuple[Certificate, float | None]

LOOSE = 1e-3
"""From this relative gap on, `verify` says that its bound is not the tightest."""
SEARCHES = ("interior", "chain", "descent", "frequency")
"""Methods that look for the optimum."""
CHECKED = 3000
"""Up to this many inputs and units `check` runs the independent checker, too: half a minute."""
COMPARED = 600
"""Up to this many units the closed-form bound is proven, too, for comparison."""


def verify(
    models: Annotated[
        list[Path],
        typer.Argument(
            help="Networks: .npz, .onnx, .safetensors, .pt, .mat, or directories of runs. Options "
            "hold for each of them.",
            metavar="NETWORK",
        ),
    ],
    norm: Annotated[str, typer.Option(help="The norm of inputs and outputs: 2 or inf.")] = "2",
    method: Annotated[
        str,
        typer.Option(
            help="auto, interior, chain, descent, layerwise, product; frequency for convolutions; "
            "or a solver of CVXPY's, as clarabel or scs."
        ),
    ] = "auto",
    local: Annotated[
        Path | None,
        typer.Option(
            help="A .npy file: the input around which to bound the network, see --radius."
        ),
    ] = None,
    radius: Annotated[
        float | None,
        typer.Option(help="Radius of the box around --local, or of the ball with --ball."),
    ] = None,
    ball: Annotated[
        bool, typer.Option("--ball", help="Bound over an ℓ₂ ball instead of a box.")
    ] = False,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Bound y_i - y_j for every pair of outputs.")
    ] = False,
    time_limit: Annotated[
        float | None,
        typer.Option(help="Seconds to search a network; the best bound by then is proven."),
    ] = None,
    input_shape: InputShape = None,
    activation: ActivationName = None,
    normalise: Normalise = None,
    lower: Annotated[bool, typer.Option(help="Search for a lower bound, too.")] = True,
    seed: Annotated[
        int, typer.Option(help="Seed of the search for a lower bound.", min=0, max=2**63 - 1)
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--certificate", "--out", help="Write the certificate here; a directory for several."
        ),
    ] = None,
    engine: Engine = "local",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Prove Lipschitz bounds of networks, and find lower bounds."""
    if norm not in ("2", "inf"):
        raise InvalidInput(f"--norm is {norm!r}, but must be 2 or inf.")
    several = len(models) > 1 or per_class
    _check_out(out, models, several)
    region = _region(local, radius, ball)
    options = {
        "norm": float(norm), "method": _solver(method), "region": region, "lower": lower,
        "seed": seed, "time_limit": time_limit,
    }  # fmt: skip
    reading = how_to_read(input_shape, activation, normalise)
    errors: dict[int, SdplipError] = {}

    def networks() -> Iterator[tuple[int, str, System | ConvSystem]]:
        for k, path in enumerate(models):
            try:
                yield k, path.name, read_network(path, **reading)
            except SdplipError as error:
                errors[k] = error

    results: dict[int, list[dict[str, Any]]] = {}
    with Progress() as progress:
        tell = progress.say if engine == "local" else None
        for _, (k, outcome) in scatter(
            partial(_certificates, tell=tell), networks(), shared=(options, per_class),
            engine=engine, address=address,
        ):  # fmt: skip
            if isinstance(outcome, SdplipError):
                errors[k] = outcome
            else:
                results[k] = [_saved(models[k], c, rough, out, several) for c, rough in outcome]
    if errors and len(models) == 1:
        raise errors[0]
    for k, error in sorted(errors.items()):
        named = str(error).startswith(str(models[k]))
        fail(error if named else f"{models[k]}: {error}", worst(error))
        results[k] = [{"model": str(models[k]), "bound": None, "error": str(error)}]
    _show([values for k in sorted(results) for values in results[k]], as_json, several)
    if errors:
        raise typer.Exit(max(map(worst, errors.values())))


def _certificates(
    shared: tuple[dict[str, Any], bool],
    k: int,
    name: str,
    network: System | ConvSystem,
    tell: Callable[[str], None] | None = None,
) -> tuple[int, list[Found] | SdplipError]:
    """k, and the certificates of one network or why there are none; on this machine or another."""
    from ..verify import lipschitz, margin_bounds

    options, per_class = shared

    def step(count: int, upper: float, below: float) -> None:
        gap = f"{upper / below - 1:.1e}" if below > 0 else "unknown"
        if tell is not None:
            tell(f"{name}: step {count}, {below:.6g} ≤ bound ≤ {upper:.6g}, gap {gap}")

    def pair(done: int, total: int, last: Certificate) -> None:
        if tell is not None:
            tell(f"{name}: {done} of {total} pairs of classes, the last {last.bound:.6g}")

    try:
        if per_class:
            if network.outputs < 2:
                raise InvalidInput(f"--per-class: {name} has one output, and so no pairs.")
            pairs = margin_bounds(network, progress=pair, **options).certificates
            return k, [(certificate, None) for certificate in pairs.values()]
        found = lipschitz(network, progress=step, **options)
        rough = None
        if _comparable(network, options):
            with suppress(CertificationError):
                rough = lipschitz(network, method="layerwise", lower=False).bound
        return k, [(found, rough)]
    except SdplipError as error:
        return k, error


def _saved(
    path: Path, certificate: Certificate, rough: float | None, out: Path | None, several: bool
) -> dict[str, Any]:
    """What is shown of a certificate, once it is written and what it lacks is said."""
    file = _file(out, path, certificate.classes, several)
    if file is not None:
        certificate.save(file)
    pair, gap = certificate.classes, certificate.gap
    what = path.name if pair is None else f"{path.name}, classes {pair[0]} and {pair[1]}"
    early = ""
    if gap is not None and gap > LOOSE:
        early = f"the bound is at most {gap:.1%} above the best one"
    elif gap is None and certificate.solver.startswith(SEARCHES) and certificate.bound:
        early = "how far the bound is above the best one is not known"
    if early:
        typer.echo(f"warning: {what}: the search stopped early; {early}", err=True)
    return _values(path, certificate, rough, file)


def _comparable(network: System | ConvSystem, options: dict[str, Any]) -> bool:
    from ..system import System

    plain = isinstance(network, System) and network.is_feedforward and network.units <= COMPARED
    return plain and options["norm"] == 2 and options["region"] is None


def _values(
    path: Path, certificate: Certificate, rough: float | None, file: Path | None
) -> dict[str, Any]:
    return {
        "model": str(path),
        "bound": certificate.bound,
        "lower": certificate.lower,
        "optimum": certificate.optimum,
        "layerwise": rough,
        "norm_product": certificate.norm_product,
        **_scope(certificate),
        "proven": certificate.proven,
        "gap": certificate.gap,
        "inflation": certificate.inflation,
        "method": certificate.solver,
        "seconds": round(certificate.seconds, 3),
        "inputs": certificate.inputs,
        "units": certificate.units,
        "outputs": certificate.outputs,
        "certificate": None if file is None else str(file),
    }


SCOPE = ("norm", "classes", "region")
SAID = {
    "bound": "proven: the constant is at most this",
    "lower": "a Jacobian found: the constant is at least this",
    "optimum": "by duality, no multipliers give less than this",
    "layerwise": "closed form, proven",
    "norm_product": "product of norms",
    "gap": "bound / optimum - 1",
    "inflation": "what the proof added to the solver's bound, relatively",
    "region": "nothing is said about inputs outside",
    "frequency": "a multiplier per channel; how much less one per unit would give is unknown",
}
"""By the name of a result, or by its value."""


def _scope(certificate: Certificate) -> dict[str, Any]:
    """What its bound is about."""
    stated = (
        "2" if certificate.norm == 2 else "inf",
        None if certificate.classes is None else list(certificate.classes),
        None if certificate.region is None else str(certificate.region),
    )
    return dict(zip(SCOPE, stated, strict=True))


def _show(found: Sequence[dict[str, Any]], as_json: bool, several: bool) -> None:
    if as_json:
        typer.echo(to_json(list(found) if several else found[0]))
        return
    if several:
        head = ("model", "classes", "lower", "bound", "gap", "method", "seconds")
        listing(head, [_line(values) for values in found], False)
        for values in [values for values in found if values["bound"] is not None][:1]:
            region = values["region"] and f"in the {values['region']}: {SAID['region']}"
            typer.echo(f"All in norm {values['norm']}, {region or 'everywhere'}.")
        return
    # All digits: a bound that is rounded for display may be rounded down.
    for key, value in found[0].items():
        if value is not None and key != "model":
            text = str(value).lower() if isinstance(value, bool) else str(value)
            remark = SAID.get(key, SAID.get(text, ""))
            typer.echo(f"{key:<13}{text:<20}   {remark}".rstrip())


def _line(values: dict[str, Any]) -> tuple[str, ...]:
    if values["bound"] is None:
        return (values["model"], "", "", "failed", "", "", "")
    pair = values["classes"]
    return (
        values["model"],
        "all" if pair is None else f"{pair[0]}, {pair[1]}",
        "" if values["lower"] is None else repr(values["lower"]),
        repr(values["bound"]),
        "" if values["gap"] is None else f"{values['gap']:.1e}",
        values["method"],
        f"{values['seconds']:.2f}",
    )


def _check_out(out: Path | None, models: Sequence[Path], several: bool) -> None:
    if out is None:
        return
    folder = out if several else out.parent
    if not folder.is_dir():
        raise InvalidInput(
            f"--certificate is {out}, but {folder} is no directory. Create it first."
        )
    if not several and out.is_dir():
        raise InvalidInput(f"--certificate is {out}, a directory. Name a file in it.")
    files: dict[Path | None, Path] = {}
    for path in models:
        other = files.setdefault(_file(out, path, None, several), path)
        if other is not path:
            raise InvalidInput(
                f"--certificate: {other} and {path} would both be written to "
                f"{_file(out, path, None, several)}. Verify them one by one."
            )


def _file(out: Path | None, path: Path, pair: tuple[int, int] | None, several: bool) -> Path | None:
    if out is None or not several:
        return out
    # The names of runs, which are directories, have dots that end no suffix.
    stem = path if path.is_dir() else path.with_suffix("")
    name = re.sub(r"[^\w.-]+", "-", str(stem).strip("/"))
    return out / f"{name}{'' if pair is None else f'-{pair[0]}-{pair[1]}'}.cert.json"


def _solver(method: str) -> str:
    """CVXPY names its solvers in capitals; what is no method stays as it was typed."""
    from ..verify.bound import FREQUENCY
    from ..verify.euclidean import OWN

    if method in (*OWN, FREQUENCY, "closed form"):
        return method
    import cvxpy

    return method.upper() if method.upper() in cvxpy.installed_solvers() else method


def _region(path: Path | None, radius: float | None, ball: bool) -> Region | None:
    if path is None:
        if radius is not None or ball:
            raise InvalidInput("--radius and --ball need --local, the input in the middle.")
        return None
    if radius is None or not (radius >= 0 and math.isfinite(radius)):
        raise InvalidInput(f"--radius is {radius}, but with --local must be a number ≥ 0.")
    import numpy as np

    from ..verify import Region

    try:
        with regular(path).open("rb") as file:
            centre = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"--local: {path} is no .npy file of numbers ({error}).") from error
    if centre.dtype.kind not in "fiu":
        raise InvalidInput(f"--local: {path} holds {centre.dtype}, but must hold numbers.")
    centre = centre.astype(float).reshape(-1)
    if ball:
        return Region.ball(centre, radius)
    return Region.box(centre - radius, centre + radius)


def certified(certificate: Path, model: Path, **reading: Any) -> tuple[dict[str, Any], str]:
    """What a certificate shows about a network: JSON values, and a sentence.

    It holds if both proofs show it: sdplip's own, and that of the independent checker, unless this
    does not cover it.
    """
    from ..verify import Certificate, check

    network = read_network(model, **reading)
    try:
        loaded = Certificate.load(certificate)
        check(loaded, network)
        told = any(value is not None for value in reading.values())
        independent, found = _independent(certificate, None if told else model, network)
        if independent is False:
            raise CertificationError(f"sdplip shows it, but the independent checker says {found}")
    except CertificationError as error:
        nothing = dict.fromkeys(("bound", *SCOPE, "independent"))
        return {"holds": False, **nothing, "reason": str(error)}, f"does not hold: {error}"
    where = "" if loaded.region is None else ", in the region that it names"
    what = "" if loaded.classes is None else f" of y_{loaded.classes[0]} - y_{loaded.classes[1]}"
    said = f"holds: bound {loaded.bound!r}{what} in norm {loaded.norm:g}{where}\n"
    values = {"bound": loaded.bound, **_scope(loaded), "independent": independent}
    return {"holds": True, **values, "reason": None}, f"{said}independent checker: {found}"


def _independent(
    certificate: Path, model: Path | None, network: System | ConvSystem
) -> tuple[bool | None, str]:
    """Whether checker.py, in a process that loads nothing of sdplip, proves it, and what it says.

    None where it does not cover such networks, or was not run. It reads the model itself if that is
    its kind of file, and told nothing besides.
    """
    from ..system import System

    script = find_spec("sdplip.verify.checker")
    assert script is not None and script.origin is not None
    if isinstance(network, System) and network.inputs + network.units > CHECKED:
        return None, f"not run, for it would take minutes: python {script.origin} CERTIFICATE MODEL"
    with tempfile.TemporaryDirectory() as folder:
        if model is None or model.suffix != ".npz":
            model = Path(folder) / "network.npz"
            network.save(model)
        words = [sys.executable, "-I", script.origin, str(certificate), str(model)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    said = done.stdout.strip() or done.stderr.strip()[-200:]
    return {0: True, 1: False}.get(done.returncode), said
