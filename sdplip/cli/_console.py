"""What the commands share: exit codes, progress on stderr, tables and JSON on stdout."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from .._json import to_json
from ..errors import CertificationError, InvalidInput, NotConverged, NotWellPosed

if TYPE_CHECKING:
    from ..train.config import RunConfig
    from ..train.evaluation.row import Row
    from ..train.runs import Finished

DOES_NOT_HOLD, BAD_INPUT, UNDECIDED, DEFECT, INTERRUPTED, BROKEN_PIPE = 1, 2, 3, 70, 130, 141
QUIET_SECONDS = 30

Engine = Annotated[str, typer.Option(help="local (one after another) or ray (on a cluster).")]
Address = Annotated[
    str | None,
    typer.Option(show_default="starts one here", help="Address of a running Ray cluster."),
]
Json = Annotated[bool, typer.Option("--json", help="Write one JSON document instead of text.")]


def worst(error: Exception) -> int:
    """The exit code that an exception means."""
    if isinstance(error, NotWellPosed | NotConverged):
        return DOES_NOT_HOLD
    return UNDECIDED if isinstance(error, CertificationError) else BAD_INPUT


def fail(error: object, code: int) -> typer.Exit:
    typer.echo(f"error: {error}", err=True)
    return typer.Exit(code)


def regular(path: Path) -> Path:
    """The path, if it exists and is no pipe and no device: these may never end, or never begin."""
    if not path.exists():
        raise InvalidInput(f"{path} does not exist.")
    if not (path.is_file() or path.is_dir()):
        raise InvalidInput(f"{path} is neither a file nor a directory.")
    return path


class Progress:
    """One line per network on stderr; in a terminal, the epoch as well, elsewhere now and then."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.status = self.console.status("")
        self.said = time.monotonic()

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.status.stop()

    def decoded(self, done: int, total: int) -> None:
        self.say(f"decoding images, once: {done} of {total}", done == total)

    def epoch(self, name: str, config: RunConfig, epoch: int, metrics: dict[str, float]) -> None:
        text = (
            f"{name}: epoch {epoch}/{config.train.epochs}, "
            f"loss {metrics['loss']:.4f}, accuracy {100 * metrics['accuracy']:.1f} %"
        )
        if epoch == config.train.epochs:
            text += "; measuring"
        self.say(text)

    def say(self, text: str, always: bool = False) -> None:
        """In a terminal at once, elsewhere `always` or after a while in silence."""
        self.status.update(text)
        waited = time.monotonic() - self.said > QUIET_SECONDS
        if not self.console.is_terminal and (always or waited):
            self.said = time.monotonic()
            self.console.print(text, highlight=False, soft_wrap=True)

    def finished(self, finished: Finished) -> None:
        self.said = time.monotonic()
        if finished.failed:
            self.console.print(f"{finished.path.name}: failed", highlight=False, soft_wrap=True)
            return
        row = finished.rows[0]
        how = (
            f"finished before, read from {finished.path}; --force starts over"
            if finished.already
            else f"{row.train_seconds:.1f} s of training"
        )
        self.console.print(
            f"{row.label}: {100 * row.clean:.1f} % clean, {how}", highlight=False, soft_wrap=True
        )


def show(rows: list[Row], result: dict[str, Any], as_json: bool) -> None:
    from ..train.reporting.tables import notes, tables

    if as_json:
        typer.echo(to_json(result))
    else:
        _print(*tables(rows))
        written = result["pictures"] or [result["run"]]
        typer.echo("\n".join([*notes(rows), f"Written: {', '.join(written)}"]))
    wrong = [*result["violations"], *(f"{k}: {why}" for k, why in result["failed"].items())]
    if wrong:
        raise fail("; ".join(wrong), DOES_NOT_HOLD)
    if any(row.undecided for row in rows):
        raise typer.Exit(UNDECIDED)


def listing(header: tuple[str, ...], rows: Sequence[tuple[str, ...]], as_json: bool) -> None:
    if as_json:
        typer.echo(to_json([dict(zip(header, row, strict=True)) for row in rows]))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in header:
        # What does not fit goes on in the next line: a bound without its last digits is none.
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    _print(table)


def _print(*tables: Table) -> None:
    """On stdout, without the blanks at the ends of lines; a file or a pipe has room."""
    console = Console()
    if not console.is_terminal:
        console.width = 200
    with console.capture() as text:
        console.print(*tables, sep="\n")
    typer.echo("\n".join(line.rstrip() for line in text.get().split("\n")), nl=False)
