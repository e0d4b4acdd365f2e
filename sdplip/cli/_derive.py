"""The commands about derivations: `sdplip derive`, and what `sdplip check` replays of them."""

from __future__ import annotations

import json
import re
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InvalidInput, SdplipError
from ._console import Json, listing, regular

MAX_BYTES = 16 << 20


def derive(
    target: Annotated[
        str | None, typer.Argument(metavar="NAME|FILE", help="One of --list, or a Python file.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the derivations and exit.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="Write the proof for reading here, .html or .md."),
    ] = None,
    emit: Annotated[
        Path | None, typer.Option(help="Write the layer here, .py, if the claim is proved.")
    ] = None,
    class_name: Annotated[
        str | None,
        typer.Option("--class", show_default="from the name", help="Name of the layer's class."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the proof for sdplip check here, .json.")
    ] = None,
    counterexample: Annotated[
        Path | None, typer.Option(help="Write a counterexample for sdplip check here, .json.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(show_default="all", help="Name of one, where FILE has several.")
    ] = None,
    convolution: Annotated[
        bool, typer.Option("--convolution", help="Emit the convolution, for images.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Prove or refute a derivation; write its proof and its layer."""
    if list_:
        if any((target, report, emit, class_name, out, counterexample, only, convolution)):
            raise InvalidInput("--list shows all derivations, and takes only --json beside it.")
        _list(as_json)
        return
    if target is None:
        raise InvalidInput("Name a derivation or a file; sdplip derive --list shows what there is.")
    from ..derive.library import blamed, find
    from ..derive.report import Request, run

    path, derivations = find(target)
    request = Request(report, emit, class_name, out, counterexample, only, convolution, as_json)
    try:
        code = run(derivations, request)
    except (SdplipError, OSError):
        raise
    except Exception as error:
        # A mistake in the file's own argument is no defect of sdplip.
        if traceback.extract_tb(error.__traceback__)[-1].filename != str(path):
            raise
        raise blamed(error, path) from error
    raise typer.Exit(code)


def _list(as_json: bool) -> None:
    from ..derive.library import files, load

    rows = []
    for name, path in files().items():
        for d in load(path):
            condition = getattr(d, "condition", None)
            rows.append((d.name, name, condition.name if condition else "", d.title))
    listing(("derivation", "file", "condition", "title"), rows, as_json)


def read(path: Path) -> Any:
    """A JSON file from anywhere.

    Raises:
        InvalidInput: unreadable, too large, or with numbers that would take forever.
    """
    if regular(path).is_dir():
        raise InvalidInput(f"{path} is a directory. Name a file that verify or derive wrote.")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidInput(f"{path} has more than {MAX_BYTES >> 20} MiB: no file of sdplip.")
        text = path.read_text()
        content = json.loads(text)
    except InvalidInput:
        raise
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise InvalidInput(f"{path} is no readable JSON file ({error}).") from error
    # Fraction("1e999999999") is a number with a billion digits.
    huge = re.search(r'"\s*[-+]?[\d._]+[eE][-+]?\d+', text)
    if huge and has_kind(content):
        raise InvalidInput(f'{path} contains {huge[0]}"; exact numbers are written as 3/4.')
    return content


def has_kind(content: Any) -> bool:
    """Whether this is what `derive` wrote; certificates have a format instead."""
    return isinstance(content, dict) and "kind" in content and "format" not in content


def replayed(path: Path, content: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What a proof object or a counterexample shows: JSON values, and a sentence.

    Raises:
        InvalidInput: something that is neither.
    """
    from ..derive.counterexample import KIND as COUNTEREXAMPLE
    from ..derive.proof import KIND as PROOF
    from ..derive.proof import THEOREM

    kind = content["kind"]
    if kind == THEOREM:
        raise InvalidInput(
            f"{path} records a theorem about conditions, which is not replayed from a file. Prove "
            f"it anew: sdplip derive {content.get('name')}"
        )
    if kind not in (PROOF, COUNTEREXAMPLE):
        raise InvalidInput(
            f"{path} is of the kind {kind!r}; a file must be {PROOF} or {COUNTEREXAMPLE}."
        )
    try:
        result, said = (_proof if kind == PROOF else _counterexample)(content)
        # What is printed comes from the file: no escape sequences for the terminal.
        return result, "".join(c if c.isprintable() else "�" for c in said)
    except (
        LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError,
        MemoryError,
    ) as error:  # fmt: skip
        said = str(error) if isinstance(error, InvalidInput) else f"{type(error).__name__} {error}"
        raise InvalidInput(f"{path}: {said}") from error


def _proof(content: dict[str, Any]) -> tuple[dict[str, Any], str]:
    from ..derive import replay

    status = content.get("status")
    # What a file does not claim need not be checked; it may hold no goal at all.
    problems = replay(content) if status == "proved" else [f"the file itself says {status!r}"]
    reason = "; ".join(problems) or None
    conditions = dict.fromkeys(str(g["condition"]) for g in content["goals"] if "condition" in g)
    what = f"satisfies {', '.join(conditions)}" if conditions else "rests on identities that hold"
    result = {
        "holds": reason is None,
        "kind": content["kind"],
        "name": content["name"],
        "reason": reason,
    }
    said = f"holds: {content['name']} {what} for every size"
    return result, said if reason is None else f"does not hold: {reason}"


def _counterexample(content: dict[str, Any]) -> tuple[dict[str, Any], str]:
    from ..derive import Counterexample

    found = Counterexample.from_json(content)
    reason, said = None, ""
    try:
        ratio = found.ratio()
        power = "²" if found.norm == 2 else ""
        said = f"‖Δy‖{power}/‖Δx‖{power} = {ratio}, and {found.claim} is claimed"
        reason = None if ratio > found.claim else said
    except InvalidInput as error:
        reason = str(error)
    result = {
        "holds": reason is None,
        "kind": content["kind"],
        "name": found.name,
        "reason": reason,
    }
    if reason is None:
        return result, f"holds: {found.name} is refuted, {said}"
    return result, f"does not hold: {reason}"
