"""One HTML page that needs nothing else: inline CSS, no scripts, no network."""

from collections.abc import Sequence
from html import escape


def page(title: str, articles: Sequence[str], style: str = "") -> str:
    """A whole page, well-formed as XML too, of articles that are markup already."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}{style}</style>\n</head>\n<body>\n"
        + "\n".join(articles)
        + "\n</body>\n</html>\n"
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
