"""LaTeX as presentation MathML, and as Unicode text for a terminal."""

from __future__ import annotations

import html
import textwrap
import unicodedata
from collections.abc import Sequence
from itertools import zip_longest
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

TAGS = frozenset(
    [
        "math",
        "mrow",
        "mi",
        "mo",
        "mn",
        "msup",
        "msub",
        "msubsup",
        "munder",
        "mover",
        "munderover",
        "mfrac",
        "msqrt",
        "mroot",
        "mtable",
        "mtr",
        "mtd",
        "mtext",
        "mspace",
        "mstyle",
    ]
)
ATTRIBUTES = frozenset(
    [
        "xmlns",
        "display",
        "displaystyle",
        "scriptlevel",
        "stretchy",
        "fence",
        "form",
        "minsize",
        "maxsize",
        "lspace",
        "rspace",
        "width",
        "columnalign",
        "mathvariant",
    ]
)
_FENCES = frozenset("()[]|‖⌈⌉{}/")
_CLOSING = frozenset(")]|‖⌉}")
_MARKS = frozenset("⊤′")
_UPPER = dict(zip("0123456789+−-⊤ijn′", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻ᵀⁱʲⁿ′", strict=True))
_LOWER = dict(zip("0123456789+−ijn", "₀₁₂₃₄₅₆₇₈₉₊₋ᵢⱼₙ", strict=True))
_BINARY = frozenset("+−=<>≠≤≥⪰≻⪯→⇔⟺⟸⟹∈")
_FRACTIONS = {"1/2": "½", "1/3": "⅓", "1/4": "¼", "3/4": "¾"}
_EDGES = {"[": "⎡⎢⎣", "]": "⎤⎥⎦"}


def element(latex: str, display: bool = False) -> Element | None:
    """A `math` element with nothing but presentation in it; None for LaTeX that is not read."""
    from latex2mathml.converter import convert_to_element

    try:
        root = convert_to_element(latex, display="block" if display else "inline")
        # The converter leaves entities as text and would write "<" as it came.
        for node in root.iter():
            _settle(node)
        for node in root.iter():
            _space(node)
        return ElementTree.fromstring(ElementTree.tostring(root))
    except Exception:
        return None


def _settle(node: Element) -> None:
    node.text = html.unescape(node.text) if node.text else None
    if node.tag not in TAGS:
        raise ValueError(node.tag)
    node.attrib = {k: v for k, v in node.attrib.items() if k in ATTRIBUTES}
    text = node.text or ""
    if node.attrib.pop("mathvariant", "") == "bold":
        node.text = "".join(map(_bold, text))
    if node.tag == "mo" and (text.isalpha() or text in _MARKS):
        node.tag = "mi"
    elif node.tag == "mi" and len(text) == 1 and text not in _MARKS:
        if unicodedata.category(text) in ("Sm", "So"):
            node.tag = "mo"
        elif text in "ΓΔΘΛΞΠΣΦΨΩ":
            node.attrib["mathvariant"] = "normal"
    if node.tag == "mo" and text in _FENCES:
        node.attrib |= {"lspace": "0", "rspace": "0"}


def _space(row: Element) -> None:
    """Signs that stand first or after another operator are no infix operators."""
    before = None
    for node in row:
        first = before is None or (before.tag == "mo" and before.text not in _CLOSING)
        if first and node.tag == "mo" and node.text in ("−", "+"):
            node.attrib["form"] = "prefix"
        if node.tag != "mspace":
            before = node


def _bold(character: str) -> str:
    for first, bold in (("0", 0x1D7CE), ("A", 0x1D400), ("a", 0x1D41A)):
        if character.isascii() and character.isalnum():
            offset = ord(character) - ord(first)
            if 0 <= offset < (10 if first == "0" else 26):
                return chr(bold + offset)
    return character


def mathml(latex: str, display: bool = False) -> str:
    """The formula for an HTML page; LaTeX that is not read is shown as it is."""
    found = element(latex, display)
    if found is None:
        return f"<code>{html.escape(latex)}</code>"
    namespace = "{http://www.w3.org/1998/Math/MathML}"
    for node in found.iter():
        node.tag = node.tag.removeprefix(namespace)
    for node in found.iter():
        _bracketed(node)
    found.attrib["xmlns"] = namespace.strip("{}")
    return ElementTree.tostring(found, encoding="unicode")


def _bracketed(row: Element) -> None:
    """Matrices get their brackets from the style sheet: without a mathematical font a browser
    does not stretch them."""
    inside = list(row)
    if [node.tag for node in inside] != ["mo", "mtable", "mo"]:
        return
    if (inside[0].text, inside[2].text) == ("[", "]"):
        row.remove(inside[0])
        row.remove(inside[2])
        inside[1].attrib["class"] = "matrix"


# --- as text ---

Box = tuple[list[str], int]
"""Lines of the same length, and which of them is the base line."""


def plain(latex: str, width: int = 92) -> str:
    """The formula in Unicode; matrices over several lines, or entry by entry if they are too wide.

    Args:
        width: columns at most.
    """
    root = element(latex)
    if root is None:
        return latex
    lines, _ = _box(root)
    if max(map(len, lines)) <= width:
        return "\n".join(line.rstrip() for line in lines)
    if len(lines) == 1:
        return "\n".join(_wrapped(lines[0], width))
    # The base line would be lost among the rows, so every matrix becomes a list of its entries.
    return "\n".join(_listed(root, width))


def _wrapped(line: str, width: int) -> list[str]:
    return textwrap.wrap(line, width, subsequent_indent="    ", break_long_words=False)


def _listed(root: Element, width: int) -> list[str]:
    found: list[str] = []
    for table in root.iter(f"{_name(root)}mtable"):
        for i, row in enumerate(table, 1):
            for j, cell in enumerate(row, 1):
                text = " ".join(_box(cell)[0])
                found += _wrapped(f"({i}, {j})  {text}", width)
    return found


def _name(root: Element) -> str:
    """The namespace of an element's tag, in braces."""
    return root.tag[: root.tag.find("}") + 1]


def _box(node: Element) -> Box:
    tag = node.tag.rpartition("}")[2]
    match tag:
        case "mi" | "mn" | "mo" | "mtext":
            return [_unbold(node.text or "")], 0
        case "mspace":
            return [" "], 0
        case "msup" | "msub" | "msubsup" | "munder" | "mover" | "munderover":
            return _scripted(tag, [_box(child) for child in node])
        case "mfrac":
            over, under = (_flat(_box(child)) for child in node)
            text = f"{_grouped(over)}/{_grouped(under)}"
            return [_FRACTIONS.get(text, text)], 0
        case "msqrt":
            return [f"√{_grouped(_flat(_beside(list(node))))}"], 0
        case "mtable":
            return _table(node)
    return _beside(list(node))


def _unbold(text: str) -> str:
    return unicodedata.normalize("NFKC", text) if text and ord(text[0]) > 0x1D3FF else text


def _flat(box: Box) -> str:
    return " ".join(box[0])


def _grouped(text: str) -> str:
    single = len(text.rstrip("".join(_UPPER.values()))) <= 1 or text.isdecimal()
    return text if single else f"({text})"


def _scripted(tag: str, boxes: Sequence[Box]) -> Box:
    (lines, base), *scripts = boxes
    upper = _flat(scripts[-1]) if tag not in ("msub", "munder") else ""
    lower = _flat(scripts[0]) if tag not in ("msup", "mover") else ""
    text = _script(lower, _LOWER, "_") + _script(upper, _UPPER, "^")
    if lines == ["∑"]:
        lines, text = ["Σ"], f"_{lower} " if len(lower) == 1 else f"_{{{lower}}} "
    at = 0 if len(lines) > 1 and not lower else base
    return [line + (text if i == at else " " * len(text)) for i, line in enumerate(lines)], base


def _script(text: str, table: dict[str, str], mark: str) -> str:
    if all(character in table for character in text):
        return "".join(table[character] for character in text)
    return f"{mark}{text}" if len(text) == 1 else f"{mark}({text})"


def _beside(nodes: Sequence[Element]) -> Box:
    """The children side by side, on one base line."""
    boxes: list[Box] = []
    after_operator = True
    for node, following in zip_longest(nodes, nodes[1:]):
        lines, base = _box(node)
        text = lines[0] if len(lines) == 1 else ""
        tag = node.tag.rpartition("}")[2]
        if (
            tag == "mfrac"
            and "/" in text
            and following is not None
            and not following.tag.endswith("mo")
        ):
            lines = [f"({text})"]
        if tag == "mo" and text in _BINARY and not after_operator:
            lines = [f" {text} "]
        elif tag == "mo" and text in _BINARY - {"−", "+"}:
            lines = [f"{text} "]
        if lines != [""]:
            after_operator = text in _BINARY | {"(", "[", "⌈", ","}
            boxes.append((lines, base))
    return _aligned(boxes)


def _aligned(boxes: Sequence[Box]) -> Box:
    above = max((base for _, base in boxes), default=0)
    below = max((len(lines) - base for lines, base in boxes), default=1)
    fence = next((lines for lines, _ in boxes if len(lines) > 1), None)
    rows = [""] * (above + below)
    for i, (lines, base) in enumerate(boxes):
        if fence is not None and lines[0] in _EDGES and len(lines) == 1:
            beside = boxes[i + 1][0] if lines == ["["] else boxes[i - 1][0]
            if len(beside) > 1:
                lines, base = _edge(lines[0], len(beside)), len(beside) // 2
        width = max(map(len, lines))
        for k in range(above + below):
            at = k - above + base
            rows[k] += lines[at].ljust(width) if 0 <= at < len(lines) else " " * width
    return rows, above


def _edge(bracket: str, height: int) -> list[str]:
    top, middle, bottom = tuple(_EDGES[bracket])
    lines = [top, *[middle] * (height - 2), bottom]
    return [f"{line} " if bracket == "[" else f" {line}" for line in lines]


def _table(node: Element) -> Box:
    """Cells in columns; rows that are formulas of their own keep their heights."""
    cells = [[_box(cell) for cell in row] for row in node]
    columns = max(map(len, cells))
    widths = [
        max(max(map(len, row[j][0])) for row in cells if j < len(row)) for j in range(columns)
    ]
    lines: list[str] = []
    for row in cells:
        padded = [
            ([line.ljust(widths[j]) for line in box], base) for j, (box, base) in enumerate(row)
        ]
        spaced = [b for box in padded for b in (box, (["   "], 0))][:-1]
        lines += _aligned(spaced)[0]
    return lines, len(lines) // 2 if len(lines) > 1 else 0
