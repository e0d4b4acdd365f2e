"""`sdplip report`: what runs found, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._extras import need
from .._json import to_json
from ..errors import InvalidInput
from ._console import Json, regular


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN", help="Directories that sdplip train or sdplip compare wrote."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    as_json: Json = False,
) -> None:
    """Write what runs found as one HTML page. It needs neither network nor script."""
    need("The report", "matplotlib", extra="train")
    from .._arrays import write_atomically
    from ..train.reporting.page import report as compose

    if out.suffix not in (".html", ".htm") or out.is_dir():
        raise InvalidInput(f"--out is {out}, but must be a file that ends in .html.")
    if not out.parent.is_dir():
        raise InvalidInput(f"--out is {out}, but {out.parent} is no directory. Create it first.")
    text = compose([regular(path) for path in runs])
    write_atomically(out, lambda scratch: scratch.write_text(text, encoding="utf-8"))
    size = len(text.encode())
    found = {"report": str(out), "bytes": size}
    typer.echo(to_json(found) if as_json else f"Written: {out} ({size / 1e6:.2f} MB)")
