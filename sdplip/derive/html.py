"""Reports as one page that needs nothing else: inline CSS, formulas as MathML, no scripts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import Any

from .._page import page
from . import outline as parts
from .mathml import mathml, plain
from .outline import outline
from .proof import Proof, document_of
from .tex import split

COLUMN = 70
"""Characters of a formula that fit beside each other."""

SYMBOLS = {"equivalent": "⇔", "sufficient": "⇐", "necessary": "⇒"}


def html(*proofs: Proof | Mapping[str, Any]) -> str:
    """The reports as one page, well-formed as XML too."""
    documents = list(map(document_of, proofs))
    articles = []
    for document in documents:
        body = "\n".join(map(_set, outline(document)))
        articles.append(f"<article>\n{body}\n</article>")
    return page("; ".join(str(document["title"]) for document in documents), articles)


def _set(part: parts.Part) -> str:
    match part:
        case parts.Title():
            return (
                f'<header class="{escape(part.status)}"><h1>{prose(part.text)}</h1>'
                f'<p class="verdict"><span class="badge">{escape(part.status)}</span> '
                f"{prose(part.sentence)}</p></header>"
            )
        case parts.Heading():
            return f"<h2>{prose(part.text)}</h2>"
        case parts.Prose():
            label = f"<b>{prose(part.label)}</b> " if part.label else ""
            kind = ' class="claim"' if part.label in ("Theorem.", "Claim.") else ""
            return f"<p{kind}>{label}{prose(part.text)}</p>"
        case parts.Formula():
            return displayed(part.latex, part.more)
        case parts.Items():
            rows = [
                f'<li><span class="scroll">{mathml(latex)}</span>'
                + (f'<span class="remark">{prose(remark)}</span>' if remark else "")
                + "</li>"
                for latex, remark in part.items
            ]
            return f'<ul class="items{" dense" * part.dense}">{"".join(rows)}</ul>'
        case parts.Step():
            said = (
                f'<p><span class="number">{part.number}</span> <b>{prose(part.name)}</b> — '
                f'{prose(part.reason)} <span class="tag {escape(part.direction)}">'
                f"{SYMBOLS[part.direction]} {escape(part.direction)}</span></p>"
            )
            formula = displayed(part.latex) if part.latex else ""
            return f'<section class="step">{said}{formula}</section>'
        case parts.Checks():
            rows = [
                f'<tr class="{"holds" if holds else "fails"}"><td>{"✓" if holds else "✗"}</td>'
                f"<td>{prose(name)}</td>"
                f'<td><span class="scope {scope.split()[-1]}">{scope}</span></td>'
                f"<td>{prose(detail)}</td></tr>"
                for name, holds, scope, detail in part.rows
            ]
            head = "<tr><th></th><th>check</th><th>scope</th><th>detail</th></tr>"
            body = "".join(rows)
            return (
                f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table>'
                "</div>"
            )


def displayed(latex: str, more: tuple[str, ...] = ()) -> str:
    """A formula on lines of its own; `more` are its further lines."""
    # The font shrinks for a formula that is wider than the column, down to what can be read.
    longest = max(len(line) for part in (latex, *more) for line in plain(part, 10**6).splitlines())
    fit = max(0.55, min(1.0, COLUMN / longest))
    style = f' style="--fit:{fit:.2f}"' if fit < 1 else ""
    formula = mathml(split(latex, more), display=True)
    return f'<div class="formula scroll"{style}>{formula}</div>'


def prose(text: str) -> str:
    """Escaped, with S_ij, Σ_{i<j} and p^{1/2} set as indices and exponents."""
    found = escape(text, quote=False).replace("-Lipschitz", "\u2011Lipschitz")
    # Not in words_like_these.
    found = re.sub(
        r"(?<=\S)(?<![A-Za-z]{2})_(?:\{([^}]*)\}|([A-Za-z0-9]+))", r"<sub>\1\2</sub>", found
    )
    return re.sub(
        r"(?<=\S)\^(?:\{([^}]*)\}|\(([^)]*)\)|([A-Za-z0-9]+))", r"<sup>\1\2\3</sup>", found
    )
