"""Tables, pictures and formulas of a report as markup."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from ..evaluation.row import Row
from .plots import colour_of
from .tables import DASH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = """
article{max-width:74rem}
article>p,article>header,figcaption,article>details{max-width:64rem}
figure{margin:1.4rem 0 2rem;max-width:60rem}
.picture{overflow-x:auto;background:#fff;border-radius:.3rem;padding:.4rem}
.picture svg{display:block;width:100%;height:auto}
.picture svg text{white-space:pre}
figcaption{color:var(--soft);font-size:.9rem;line-height:1.5;margin-top:.5rem}
details ul{font-size:.88rem;line-height:1.45;color:var(--soft);padding-left:1.1rem}
summary{cursor:pointer;color:var(--soft);font-size:.85rem}
table{width:auto;min-width:min(100%,40rem);font-size:.82rem}
td,th{padding:.3rem .85rem .3rem 0;white-space:nowrap;text-align:right;
font-variant-numeric:tabular-nums}
td:first-child,th:first-child,.left{text-align:left}
.best{font-weight:600}
.swatch{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin:0 .45em 0 1px}
@media(prefers-color-scheme:dark){.swatch{box-shadow:0 0 0 1px var(--soft)}}
figure .scroll{max-height:26rem;overflow-y:auto}
@media print{figure .scroll{max-height:none}}
.broken{color:var(--bad)}
.soft{color:var(--soft);font-size:.9rem}
"""

WIDTH = 7.6
"""Inches that fill the column."""
NUMBER = re.compile(r"[-+]?\d")


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], best: Sequence[int] = ()) -> str:
    """A row's first cell may be a `Row`, which is named in its colour, and once where it repeats;
    columns of numbers stand right. In the columns `best` the largest leading numbers are bold."""
    columns = [[str(row[k]) for row in rows] if k else [] for k in range(len(head))]
    kinds = [
        "" if all(NUMBER.match(v) or v == DASH for v in values) else ' class="left"'
        for k, values in enumerate(columns)
    ]
    top = {k: max((_leading(v) for v in columns[k]), default=0.0) for k in best}

    def cell(k: int, value: Any) -> str:
        if isinstance(value, Row):
            dot = f'<span class="swatch" style="background:{colour_of(value)}"></span>'
            return f"<td>{dot}{escape(value.label)}</td>"
        text = escape(str(value))
        if k in top and len(rows) > 1 and _leading(text) == top[k] > 0:
            text = f'<span class="best">{text}</span>'
        return f"<td{kinds[k]}>{text}</td>"

    header = "".join(f"<th{kind}>{escape(t)}</th>" for kind, t in zip(kinds, head, strict=True))
    body = ""
    for before, row in zip([None, *rows], rows, strict=False):
        again = before is not None and before[0] is row[0]
        cells = ("<td></td>" if again and not k else cell(k, v) for k, v in enumerate(row))
        body += f"<tr>{''.join(cells)}</tr>"
    return (
        f'<div class="scroll"><table><thead><tr>{header}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _leading(text: str) -> float:
    found = re.match(r"\d+(?:\.\d+)?", text)
    return float(found[0]) if found else -1.0


def tones(rows: Sequence[Row]) -> list[str]:
    """Colours of rows in one picture: their families', the lighter the later within a family."""
    from matplotlib.colors import to_hex, to_rgb

    found = []
    for k, row in enumerate(rows):
        before, alike = (sum(r.layer == row.layer for r in some) for some in (rows[:k], rows))
        light = 0.65 * before / alike
        found.append(to_hex([light + (1 - light) * part for part in to_rgb(colour_of(row))]))
    return found


def figure(drawn: Figure, caption: str, numbers: str) -> str:
    """An inline picture with its caption, and the numbers behind it on demand."""
    file = io.StringIO()
    drawn.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    # A third of the size: positions to a hundredth of a point, and nothing that is not seen.
    svg = re.sub(r' [dxy]="[^"]*"', lambda d: re.sub(r"(\.\d\d)\d+", r"\1", d[0]), svg)
    for needless in (r'(?<=<g) id="[^"]*"', r' transform="rotate\(-0 [^"]*"', r"(?<=>)\s+(?=<)"):
        svg = re.sub(needless, "", svg)
    # Matplotlib numbers the parts of every picture alike; on one page names must differ.
    prefix = f"f{zlib.crc32(svg.encode())}-"
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    # Pictures of every width have letters of one size, which are still read on a phone.
    share = drawn.get_figwidth() / WIDTH
    size = f"max-width:{60 * share:.1f}rem;min-width:{min(34 * share, 34):.1f}rem"
    opening = f'<svg role="img" aria-label="{escape(caption)}" style="{size}" '
    svg = svg.replace("<svg ", opening, 1)
    return (
        f'<figure><div class="picture">{svg}</div><figcaption>{escape(caption)}</figcaption>'
        f"<details><summary>the numbers</summary>{numbers}</details></figure>"
    )
