"""Proofs to read: in the terminal, as Markdown with LaTeX, as one HTML page with MathML."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from .._arrays import write_atomically
from ..errors import InvalidInput, SdplipError
from . import outline as parts
from .derivation import Derivation
from .emit import check_class_name
from .html import html
from .mathml import plain
from .outline import outline
from .proof import Proof, document_of
from .tex import split
from .theorem import Theorem

__all__ = ["Request", "html", "main", "markdown", "run", "styled", "text"]

WIDTH = 96
EXIT = {"proved": 0, "refuted": 1, "inconsistent": 1, "undecided": 3}
STYLES = {"proved": "bold green", "refuted": "bold red", "undecided": "bold yellow"}


def text(*proofs: Proof | Mapping[str, Any]) -> str:
    """The reports without any markup, formulas in Unicode."""
    return styled(*proofs).plain


def styled(*proofs: Proof | Mapping[str, Any]) -> Text:
    """The reports for a terminal; what is written elsewhere comes out plain."""
    found = Text()
    for at, proof in enumerate(proofs):
        found.append("\n" * bool(at))
        for part in outline(document_of(proof)):
            _set(found, part)
    return found


def _set(found: Text, part: parts.Part) -> None:
    match part:
        case parts.Title():
            found.append(f"{part.text}: ", "bold")
            found.append(f"{part.status}\n", STYLES.get(part.status, "bold red"))
        case parts.Heading():
            found.append(f"\n{part.text}\n", "bold")
        case parts.Prose():
            found.append(_wrapped(f"{part.label} {part.text}".strip()))
            if part.label:
                at = found.plain.rindex(part.label)
                found.stylize("italic", at, at + len(part.label))
        case parts.Formula():
            for line in (part.latex, *(rf"\quad {line}" for line in part.more)):
                found.append(textwrap.indent(plain(line, WIDTH - 6), "      ") + "\n")
        case parts.Items():
            for latex, remark in part.items:
                line = plain(latex, WIDTH - 6) + (f"   {remark}" if remark else "")
                found.append(textwrap.indent(line, "      ") + "\n")
        case parts.Step():
            found.append(_wrapped(f"{part.number}. {part.name}: {part.reason} [{part.direction}]"))
            if part.latex:
                found.append(textwrap.indent(plain(part.latex, WIDTH - 6), "      ") + "\n")
        case parts.Checks():
            for name, holds, scope, detail in part.rows:
                found.append(
                    "  ok     " if holds else "  FAILS  ", "green" if holds else "bold red"
                )
                line = f"{scope:<11}{name}: {detail}"
                found.append(
                    textwrap.fill(line, WIDTH - 9, subsequent_indent=" " * 20).lstrip() + "\n"
                )


def _wrapped(line: str) -> str:
    lines = textwrap.wrap(line, WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    return textwrap.indent("\n".join(lines), "  ") + "\n"


# --- Markdown ---


def markdown(*proofs: Proof | Mapping[str, Any]) -> str:
    """The reports as GitHub shows them: LaTeX between dollar signs, checks as a table."""
    reports = ["\n\n".join(map(_marked, outline(document_of(proof)))) for proof in proofs]
    return "\n\n---\n\n".join(reports) + "\n"


def _marked(part: parts.Part) -> str:
    match part:
        case parts.Title():
            return (
                f"# {_escaped(part.text)}\n\n**{part.status.upper()}.** {_escaped(part.sentence)}"
            )
        case parts.Heading():
            return f"## {_escaped(part.text)}"
        case parts.Prose():
            label = f"**{_escaped(part.label)}** " if part.label else ""
            return f"{label}{_escaped(part.text)}".strip()
        case parts.Formula():
            return _displayed(part.latex, part.more)
        case parts.Items():
            return "\n".join(
                f"- ${latex}$" + (f" — {_escaped(remark)}" if remark else "")
                for latex, remark in part.items
            )
        case parts.Step():
            said = f"**Step {part.number}, {_escaped(part.name)}.** {_escaped(part.reason)}"
            said += f" *({part.direction})*"
            return f"{said}\n\n{_displayed(part.latex)}" if part.latex else said
        case parts.Checks():
            lines = ["| check | holds | scope | detail |", "| --- | --- | --- | --- |"]
            for name, holds, scope, detail in part.rows:
                cells = (_escaped(name), "yes" if holds else "**no**", scope, _escaped(detail))
                lines.append(f"| {' | '.join(cells)} |")
            return "\n".join(lines)


def _displayed(latex: str, more: Sequence[str] = ()) -> str:
    # A line that starts with a minus would be an item of a list.
    lead = "{} " if latex.startswith("-") and not more else ""
    return f"$$\n{lead}{split(latex, more)}\n$$"


def _escaped(prose: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|$#])", r"\\\1", prose)


# --- scripts and the command line ---


@dataclass(frozen=True)
class Request:
    """What to do with derivations besides printing them.

    Attributes:
        report: an .html or .md file for the reports.
        emit: a .py file for the layer of the one that `only` names, or of the first.
        class_name: of the emitted layer.
        convolution: emit the layer of images.
        out: a .json file for the proof object.
        counterexample: a .json file for the counterexample, if one is found.
        only: the name of the one derivation that is wanted.
        as_json: print one JSON document instead of text.
    """

    report: Path | None = None
    emit: Path | None = None
    class_name: str | None = None
    out: Path | None = None
    counterexample: Path | None = None
    only: str | None = None
    convolution: bool = False
    as_json: bool = False


def run(derivations: Sequence[Derivation | Theorem], request: Request) -> int:
    """Prove, print on stdout, write the files asked for; progress on stderr.

    Returns:
        0 if all are proved, 1 if one is refuted or inconsistent, else 3.

    Raises:
        InvalidInput: a file that cannot be written, or a wish that these derivations cannot fulfil.
    """
    chosen = _chosen(derivations, request)
    console = Console(stderr=True)
    proofs: list[Proof] = []
    for derivation in chosen:
        started = time.monotonic()
        # What a derivation prints must not get into the one JSON document.
        with _working(console, derivation.name), contextlib.redirect_stdout(sys.stderr):
            proofs.append(derivation.prove())
        said = f"{derivation.name}: {proofs[-1].status}, {time.monotonic() - started:.1f} s"
        console.print(said, highlight=False, soft_wrap=True)
    written = _write(chosen, proofs, request)
    if request.as_json:
        content = {
            "proved": all(proofs),
            "derivations": [proof.document for proof in proofs],
            "written": [str(path) for path in written],
        }
        sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    else:
        page = Console(soft_wrap=True, highlight=False)
        with page.capture() as text:
            page.print(styled(*proofs), end="")
        sys.stdout.write(text.get())
        for path in written:
            console.print(f"written: {path}", highlight=False, soft_wrap=True)
    codes = {EXIT[proof.status] for proof in proofs}
    return 1 if 1 in codes else max(codes)


@contextlib.contextmanager
def _working(console: Console, name: str) -> Iterator[None]:
    if console.is_terminal:
        with console.status(f"{name} …"):
            yield
    else:
        yield


def _chosen(
    derivations: Sequence[Derivation | Theorem], request: Request
) -> Sequence[Derivation | Theorem]:
    names = [d.name for d in derivations]
    if request.only is not None:
        derivations = [d for d in derivations if d.name == request.only]
        if not derivations:
            raise InvalidInput(f"There is no {request.only!r} among {', '.join(names)}.")
    endings = {"report": (".html", ".md"), "emit": (".py",)}
    for wish in ("report", "emit", "out", "counterexample"):
        path = getattr(request, wish)
        if path is None:
            continue
        if path.suffix not in (allowed := endings.get(wish, (".json",))):
            raise InvalidInput(f"--{wish} is {path}, but must end in {' or '.join(allowed)}.")
        if not path.parent.is_dir():
            raise InvalidInput(
                f"--{wish} is {path}, but {path.parent} is no directory. Create it first."
            )
        if wish in ("out", "counterexample") and len(derivations) > 1:
            raise InvalidInput(
                f"--{wish} holds one derivation, but there are {', '.join(names)}. "
                "Choose one with --only."
            )
    if request.class_name is not None:
        check_class_name(request.class_name)
    if request.emit is None and (request.class_name is not None or request.convolution):
        wish = "--convolution" if request.class_name is None else "--class"
        raise InvalidInput(
            f"{wish} is about the layer that --emit writes. Add --emit FILE.py, or leave it out."
        )
    if request.emit is not None and not isinstance(derivations[0], Derivation):
        raise InvalidInput(f"{derivations[0].name} is a theorem about a condition, not a layer.")
    return derivations


def _write(
    derivations: Sequence[Derivation | Theorem], proofs: Sequence[Proof], request: Request
) -> list[Path]:
    proof, first = proofs[0], derivations[0]
    written: list[Path] = []
    if request.report is not None:
        shown = html if request.report.suffix == ".html" else markdown
        _save(request.report, shown(*proofs))
        written.append(request.report)
    if request.out is not None:
        proof.save(request.out)
        written.append(request.out)
    if request.emit is not None and isinstance(first, Derivation):
        if proof.proved:
            name = request.class_name or first.class_name
            _save(request.emit, first.emit(name, request.convolution))
            written.append(request.emit)
        else:
            sys.stderr.write(f"{first.name} is not proved, so no layer is written.\n")
    if request.counterexample is not None:
        if proof.counterexample is None:
            sys.stderr.write(f"There is no counterexample to {first.name}.\n")
        else:
            proof.counterexample.save(request.counterexample)
            written.append(request.counterexample)
    return written


def _save(path: Path, content: str) -> None:
    write_atomically(path, lambda scratch: scratch.write_text(content))


def main(*derivations: Derivation | Theorem) -> int:
    """What `python derivations/NAME.py` calls, with the options of `sdplip derive`.

    Returns:
        As `run`; 2 for bad input.
    """
    parser = argparse.ArgumentParser(description="Prove the derivations of this file.")
    for option, help_ in (
        ("--report", "an .html or .md file for the report"),
        ("--emit", "a .py file for the layer"),
        ("--out", "a .json file for the proof object"),
        ("--counterexample", "a .json file for a counterexample, if there is one"),
    ):
        parser.add_argument(option, type=Path, help=help_)
    parser.add_argument("--class", dest="class_name", help="name of the emitted class")
    parser.add_argument("--convolution", action="store_true", help="emit the layer of images")
    parser.add_argument("--only", help="name of the one derivation that is wanted")
    parser.add_argument("--json", dest="as_json", action="store_true", help="one JSON document")
    try:
        return run(derivations, Request(**vars(parser.parse_args())))
    except (SdplipError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
