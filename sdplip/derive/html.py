"""Reports as one page that needs nothing else: inline CSS, formulas as MathML, no scripts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import Any

from . import outline as parts
from .mathml import mathml, plain
from .outline import outline
from .proof import Proof
from .tex import split

COLUMN = 70
"""Characters of a formula that fit beside each other."""

SYMBOLS = {"equivalent": "⇔", "sufficient": "⇐", "necessary": "⇒"}


def html(*proofs: Proof | Mapping[str, Any]) -> str:
    """The reports as one page, well-formed as XML too."""
    documents = [proof.document if isinstance(proof, Proof) else proof for proof in proofs]
    articles = []
    for document in documents:
        body = "\n".join(map(_set, outline(document)))
        articles.append(f"<article>\n{body}\n</article>")
    title = "; ".join(escape(str(document["title"])) for document in documents)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{title}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        + "\n".join(articles)
        + "\n</body>\n</html>\n"
    )


def _set(part: parts.Part) -> str:
    match part:
        case parts.Title():
            return (
                f'<header class="{escape(part.status)}"><h1>{_prose(part.text)}</h1>'
                f'<p class="verdict"><span class="badge">{escape(part.status)}</span> '
                f"{_prose(part.sentence)}</p></header>"
            )
        case parts.Heading():
            return f"<h2>{_prose(part.text)}</h2>"
        case parts.Prose():
            label = f"<b>{_prose(part.label)}</b> " if part.label else ""
            kind = ' class="claim"' if part.label in ("Theorem.", "Claim.") else ""
            return f"<p{kind}>{label}{_prose(part.text)}</p>"
        case parts.Formula():
            return _displayed(part.latex, part.more)
        case parts.Items():
            rows = [
                f'<li><span class="scroll">{mathml(latex)}</span>'
                + (f'<span class="remark">{_prose(remark)}</span>' if remark else "")
                + "</li>"
                for latex, remark in part.items
            ]
            return f'<ul class="items{" dense" * part.dense}">{"".join(rows)}</ul>'
        case parts.Step():
            said = (
                f'<p><span class="number">{part.number}</span> <b>{_prose(part.name)}</b> — '
                f'{_prose(part.reason)} <span class="tag {escape(part.direction)}">'
                f"{SYMBOLS[part.direction]} {escape(part.direction)}</span></p>"
            )
            formula = _displayed(part.latex) if part.latex else ""
            return f'<section class="step">{said}{formula}</section>'
        case parts.Checks():
            rows = [
                f'<tr class="{"holds" if holds else "fails"}"><td>{"✓" if holds else "✗"}</td>'
                f"<td>{_prose(name)}</td>"
                f'<td><span class="scope {scope.split()[-1]}">{scope}</span></td>'
                f"<td>{_prose(detail)}</td></tr>"
                for name, holds, scope, detail in part.rows
            ]
            head = "<tr><th></th><th>check</th><th>scope</th><th>detail</th></tr>"
            body = "".join(rows)
            return (
                f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table>'
                "</div>"
            )


def _displayed(latex: str, more: tuple[str, ...] = ()) -> str:
    # The font shrinks for a formula that is wider than the column, down to what can be read.
    longest = max(len(line) for part in (latex, *more) for line in plain(part, 10**6).splitlines())
    fit = max(0.55, min(1.0, COLUMN / longest))
    style = f' style="--fit:{fit:.2f}"' if fit < 1 else ""
    formula = mathml(split(latex, more), display=True)
    return f'<div class="formula scroll"{style}>{formula}</div>'


def _prose(text: str) -> str:
    """Escaped, with S_ij, Σ_{i<j} and p^{1/2} set as indices and exponents."""
    found = escape(text, quote=False).replace("-Lipschitz", "\u2011Lipschitz")
    # Not in words_like_these.
    found = re.sub(
        r"(?<=\S)(?<![A-Za-z]{2})_(?:\{([^}]*)\}|([A-Za-z0-9]+))", r"<sub>\1\2</sub>", found
    )
    return re.sub(
        r"(?<=\S)\^(?:\{([^}]*)\}|\(([^)]*)\)|([A-Za-z0-9]+))", r"<sup>\1\2\3</sup>", found
    )


CSS = """
:root{color-scheme:light dark;--ink:#1c1c1e;--soft:#5f6368;--paper:#fffefb;--line:#e2ded4;
--panel:#f7f4ec;--accent:#7a4b1f;--good:#1f6f43;--bad:#a3271d;--unsure:#8a6100}
@media(prefers-color-scheme:dark){:root{--ink:#e9e6df;--soft:#a9a59b;--paper:#17171a;--line:#35343a;
--panel:#202024;--accent:#e0b184;--good:#79c99a;--bad:#f28b7d;--unsure:#e6be5a}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:17px/1.6 "Iowan Old Style",Charter,
"Palatino Linotype",Palatino,Georgia,"DejaVu Serif",serif;-webkit-text-size-adjust:100%}
article{max-width:50rem;margin:0 auto;padding:3.2rem 1.4rem 4rem}
article+article{border-top:1px solid var(--line)}
h1{font-size:1.85rem;line-height:1.25;font-weight:600;margin:0 0 .7rem;letter-spacing:-.01em}
h2{font-size:1.2rem;font-weight:600;margin:2.6rem 0 .8rem;padding-bottom:.3rem;
border-bottom:1px solid var(--line)}
p{margin:.7rem 0}
b{font-weight:600}
header{margin-bottom:1.8rem}
.verdict{color:var(--soft);margin:0}
.badge{display:inline-block;font:600 .78rem/1 ui-sans-serif,system-ui,sans-serif;
letter-spacing:.06em;text-transform:uppercase;padding:.36em .65em;border-radius:.3em;
color:var(--paper);background:var(--bad);vertical-align:.12em;margin-right:.3em}
.proved .badge{background:var(--good)}
.undecided .badge{background:var(--unsure)}
.claim{background:var(--panel);border-left:3px solid var(--accent);padding:.9rem 1.1rem;
border-radius:0 .3rem .3rem 0;font-size:1.06rem}
.scroll{overflow-x:auto;overflow-y:hidden;max-width:100%}li .scroll{padding-right:.6em}
.formula{padding:.35rem 0;margin:.5rem 0;text-align:center;
font-size:max(.72em,calc(var(--fit,1)*1em))}
math{font-family:"Latin Modern Math","STIX Two Math","Cambria Math","Libertinus Math",math;
font-size:1.06em}
mtd{padding:.28em .55em}
mtable.matrix{margin:0 .22em;border:solid currentColor;border-width:0 .07em;
background:linear-gradient(currentColor,currentColor) 0 0/.3em .07em no-repeat,
linear-gradient(currentColor,currentColor) 0 100%/.3em .07em no-repeat,
linear-gradient(currentColor,currentColor) 100% 0/.3em .07em no-repeat,
linear-gradient(currentColor,currentColor) 100% 100%/.3em .07em no-repeat;
print-color-adjust:exact;-webkit-print-color-adjust:exact}
mtd[columnalign=left]{text-align:left}
mtd[columnalign=right]{text-align:right}
.items{list-style:none;margin:.5rem 0;padding:0}
.items li{display:flex;flex-wrap:wrap;gap:.2rem 1.4rem;align-items:center;
padding:.28rem 0 .28rem 1.1rem}
.items.dense{display:flex;flex-wrap:wrap;gap:.2rem 1.6rem;padding-left:1.1rem}
.items.dense li{padding-left:0}
.items .remark{color:var(--soft)}
.step{margin:1.1rem 0;break-inside:avoid}
.number{display:inline-block;min-width:1.5em;color:var(--accent);font-weight:600}
.tag,.scope{font:500 .74rem/1 ui-sans-serif,system-ui,sans-serif;padding:.28em .55em;
border:1px solid var(--line);border-radius:1em;color:var(--soft);white-space:nowrap;
vertical-align:.08em}
.scope.size{color:var(--good);border-color:currentColor}
.scope.instances{color:var(--unsure);border-color:currentColor;border-style:dashed}
table{border-collapse:collapse;width:100%;font-size:.88rem;line-height:1.45}
th{text-align:left;font-weight:600;color:var(--soft)}
th,td{padding:.42rem .6rem .42rem 0;border-bottom:1px solid var(--line);vertical-align:top}
tr.holds td:first-child{color:var(--good)}
tr.fails td:first-child{color:var(--bad)}
sub,sup{font-size:.72em;line-height:0}
p{overflow-wrap:anywhere}
@media(max-width:36rem){body{font-size:16px}article{padding:1.6rem 1rem 2.4rem}
h1{font-size:1.5rem}.items li{padding-left:.3rem}}
@media print{:root{--ink:#000;--soft:#444;--paper:#fff;--line:#bbb;--accent:#000}
body{font-size:10.5pt;background:#fff;color:#000}article{max-width:none;padding:0}
article+article{break-before:page;border:0}h2{break-after:avoid}.scroll{overflow:visible}
.claim{background:none}.formula{font-size:calc(var(--fit,1)*1em)}
header .badge{color:#000;background:none;border:1px solid #000}}
"""
