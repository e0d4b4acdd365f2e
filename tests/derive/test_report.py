"""Reports say all that a proof object holds, right, and never more than its status."""

import copy
import random
import re
from dataclasses import replace
from fractions import Fraction
from xml.etree import ElementTree

import numpy as np
import pytest
import sympy as sp
from derive_cases import shipped

from sdplip.derive.html import html
from sdplip.derive.mathml import mathml, plain
from sdplip.derive.report import markdown, text
from sdplip.derive.tex import name, tex, written
from sdplip.errors import InvalidInput

WRITERS = {"text": text, "markdown": markdown, "html": html}
MATH = "{http://www.w3.org/1998/Math/MathML}"
sll = shipped("sll")


def changed(**changes):
    """SLL with another name and these changes."""
    return replace(sll.derivation, name="changed", controls={}, **changes)


def too_long():
    return changed(ansatz=sll.derivation.ansatz | {"G": -sp.Rational(5, 2) * sll.W * sll.T.I})


@pytest.fixture(scope="module")
def proofs():
    """One of each kind: squares, two conditions, rows, a theorem; refuted and undecided."""
    names = ("lben", "nemon", "general")
    found = {name: shipped(name).derivation.prove(quick=True) for name in names}
    found["sll"] = sll.derivation.prove()
    found["refuted"] = too_long().prove()
    found["undecided"] = changed(argument=lambda s: s.simplify().conclude()).prove()
    return found


def page(*documents):
    return ElementTree.fromstring(html(*documents))


def letters(node):
    return "".join("".join(node.itertext()).split())


# --- what a report holds ---


@pytest.mark.parametrize("kind", ["sll", "lben", "nemon", "general", "refuted", "undecided"])
def test_every_step_and_formula_is_in_every_report(proofs, kind):
    document = proofs[kind].document
    formulas = [v for key in ("ansatz_tex", "definitions_tex") for v in document[key].values()]
    formulas += [s["before"] for s in document["steps"]]
    formulas += [s["after"] for s in document["steps"] if s["name"] != "conclude"]
    assert formulas or kind == "general"
    shown, marked, set_ = (writer(document) for writer in WRITERS.values())
    set_ = letters(ElementTree.fromstring(set_))
    for latex in filter(None, formulas):
        assert latex in marked
        assert letters(ElementTree.fromstring(mathml(latex))) in set_
        for part in latex.removeprefix(r"\left[\begin{matrix}").split(r"\\"):
            for entry in part.removesuffix(r"\end{matrix}\right]").split(" & "):
                first = plain(entry, 10**6)
                assert "".join(first.split()) in "".join(shown.split())
    for step in document["steps"]:
        assert step["name"] in shown and step["direction"] in shown
    for words in (document["claim"], document["source"], document["sha256"]):
        assert "".join(words.split()) in "".join(shown.split())
    for lemma in document["lemmas"]:
        assert "".join(lemma["proof"].split()) in "".join(shown.split())


def test_the_decomposition_is_one_formula(proofs):
    assert "M = [0   2T⁻¹]ᵀ(T − WᵀW)[0   2T⁻¹] ⪰ 0" in text(proofs["sll"])
    assert "by Lemma 1, diagonal dominance" in text(proofs["sll"])
    shown = " ".join(text(proofs["lben"]).split())
    assert "M = (1/γ²)[γ²I −γBᵀ[λ]]ᵀ[γ²I −γBᵀ[λ]] + 2γ[0 V]ᵀ[0 V] + 2εγ[0 I]ᵀ[0 I] ⪰ 0" in shown
    assert "N = (Bᵀ[λ])ᵀBᵀ[λ] + 2γVᵀV + 2εγI + CᵀC ≻ 0" in shown


def test_the_setting_says_what_is_free_and_for_which_units(proofs):
    shown = text(proofs["sll"])
    assert "W ∈ ℝ^(m×n)   any" in shown and "q ∈ ℝⁿ   positive; only ratios matter" in shown
    assert "σ has slopes in [0, 1]; both norms are ℓ₂." in shown
    assert "both norms are ℓ∞." in text(proofs["nemon"])
    assert "V, S ∈ ℝ^(n×n)   any" in text(proofs["lben"])


def test_rows_and_identities_are_shown(proofs):
    assert "|Tᵢᵢ|ηᵢ − Tᵢᵢηᵢ = 2Tᵢᵢ⁻ηᵢ ≥ 0" in text(proofs["nemon"])
    shown = " ".join(text(proofs["general"]).split())
    assert "(sv − av)(bv − sv) = w²rov²" in shown
    for sentence in proofs["general"].document["argument"]:
        assert sentence in shown


def test_a_notebook_shows_the_report_and_a_prompt_one_line_of_checks(proofs):
    assert proofs["sll"]._repr_markdown_() == markdown(proofs["sll"])
    assert "document" not in repr(proofs["sll"])


def test_each_check_is_marked_general_or_instances(proofs):
    root = page(proofs["sll"])
    rows = [[letters(cell) for cell in row] for row in root.iter("tr")][1:]
    expected = [
        [
            "✓" if c["holds"] else "✗",
            "".join(c["name"].split()),
            "everysize" if c["general"] else "instances",
        ]
        for c in proofs["sll"].document["checks"]
    ]
    assert [row[:3] for row in rows] == expected
    assert {row[2] for row in rows} == {"everysize", "instances"}


def test_a_counterexample_is_written_out_exactly(proofs):
    found = proofs["refuted"].counterexample
    assert found is not None and found.holds()
    ratio = found.ratio()
    shown = text(proofs["refuted"])
    assert f"= {ratio} > {found.claim}" in shown and f"{found.constant:.6g}" in shown
    assert rf"\frac{{{ratio.numerator}}}{{{ratio.denominator}}} > 1" in markdown(proofs["refuted"])
    for matrix in (found.B, found.C, [[x] for x in found.b]):
        entries = [number for row in matrix for number in row]
        for number in entries:
            sign = "- " if number < 0 else ""
            top, bottom = abs(number.numerator), number.denominator
            latex = f"{sign}{top}" if bottom == 1 else rf"{sign}\frac{{{top}}}{{{bottom}}}"
            assert latex in markdown(proofs["refuted"])
    assert "step 3" in shown and "Where it breaks" in shown


# --- what a status may say ---


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("kind", ["refuted", "undecided"])
def test_only_a_proof_reads_proved(proofs, writer, kind):
    assert proofs[kind].status == kind
    shown = re.sub(r"<style>.*?</style>", "", writer(proofs[kind]), flags=re.DOTALL).lower()
    assert kind in shown
    assert "proved" not in shown and "theorem." not in shown
    assert "proved" in writer(proofs["sll"]).lower() and "Theorem." in writer(proofs["sll"])


@pytest.mark.parametrize("edit", ["claim", "check", "status", "rehashed"])
def test_an_edited_document_does_not_read_proved(proofs, edit):
    document = copy.deepcopy(dict(proofs["refuted" if edit == "status" else "sll"].document))
    if edit == "claim":
        document["claim"] = "0.5-Lipschitz"
    elif edit == "status":
        document["status"] = "proved"
    else:
        document["checks"][0]["holds"] = False
    if edit == "rehashed":
        from sdplip.derive.proof import digest

        document["sha256"] = digest(document)
    root = page(document)
    assert [letters(x) for x in root.iter("span") if x.get("class") == "badge"] == ["altered"]
    assert text(document).splitlines()[0].endswith(": altered")
    assert "**ALTERED.**" in markdown(document)


@pytest.mark.parametrize("document", [{}, {"kind": "else"}, {"kind": "sdplip.derivation"}, [1]])
@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_anything_else_is_refused(writer, document):
    with pytest.raises(InvalidInput, match="proof object"):
        writer(document)


# --- the page ---


@pytest.mark.parametrize("kind", ["sll", "lben", "nemon", "general", "refuted", "undecided"])
def test_the_page_needs_nothing_else(proofs, kind):
    source = html(proofs[kind])
    root = ElementTree.fromstring(source)
    formulas = [node for node in root.iter(f"{MATH}math")]
    assert len(formulas) > 3
    for node in root.iter():
        assert node.tag.removeprefix(MATH) not in {"script", "link", "img", "iframe", "object"}
        assert not {"src", "href", "action"} & set(node.attrib)
        assert not any(key.startswith("on") for key in node.attrib)
    assert re.findall(r"https?://\S+?\"", source) == ['http://www.w3.org/1998/Math/MathML"'] * len(
        formulas
    )
    assert "@import" not in source and "url(" not in source
    assert "\\" not in "".join(root.itertext()), "raw LaTeX"
    assert not list(root.iter("code")), "LaTeX that was not understood"


def test_several_proofs_make_one_page(proofs):
    root = page(proofs["sll"], proofs["refuted"])
    assert len(list(root.iter("article"))) == 2
    assert [letters(x) for x in root.iter("span") if x.get("class") == "badge"] == [
        "proved",
        "refuted",
    ]


def test_nothing_in_a_document_becomes_markup(proofs):
    document = copy.deepcopy(dict(proofs["sll"].document))
    attack = "<script>alert(1)</script><img src=x onerror=alert(1)>&amp;"
    document |= {"title": attack, "claim": attack, "source": attack}
    document["ansatz_tex"] = {
        "H": rf"\text{{{attack}}}",
        "G": r"\href{http://example.org}{x}",
        "W": r"\style{background:url(http://example.org)}{x}",
        "D": attack,
        "C": r"\left[",
        "B": "&lt;script&gt;",
    }
    root = page(document)
    assert attack in "".join(root.itertext())
    tags = {node.tag for node in root.iter()}
    assert not tags & {"script", "img", f"{MATH}script", f"{MATH}img"}
    assert not any({"href", "src", "onerror"} & set(node.attrib) for node in root.iter())
    assert all("example.org" not in v for node in root.iter() for v in node.attrib.values())


# --- formulas ---


@pytest.mark.parametrize(
    "latex, shown",
    [
        (r"- 2 W T^{-1}", "−2WT⁻¹"),
        (r"\frac{1}{2 \gamma} \left(C^{\top} C + S\right)", "(1/(2γ))(CᵀC + S)"),
        (r"\frac{1}{2} T", "½T"),
        (r"c \eta - \left\lceil A \right\rceil \eta", "cη − ⌈A⌉η"),
        (r"c \eta - \left|B\right| \mathbf{1}", "cη − |B|1"),
        (r"T_{ii}^{-} \eta_{i}", "Tᵢᵢ⁻ηᵢ"),
        (r"\sum_{j \ne i} \left|T_{ij}\right|\,\eta_{j}", "Σ_{j ≠ i} |Tᵢⱼ| ηⱼ"),
        (r"\operatorname{diag}\bigl(\textstyle\sum_j |W|_{ij}\bigr)", "diag(Σ_j |W|ᵢⱼ)"),
        (r"\|W\|_2^2\, I", "‖W‖₂² I"),
        (r"\left[\begin{matrix}A & 0\\- B & 1\end{matrix}\right]", "⎡ A    0 ⎤\n⎣ −B   1 ⎦"),
        (r"\left[\begin{matrix}0 & V\end{matrix}\right]^{\top}", "[0   V]ᵀ"),
        ("{", "{"),
    ],
)  # fmt: skip
def test_formulas_in_unicode(latex, shown):
    assert plain(latex) == shown


def test_a_matrix_that_is_too_wide_is_listed(proofs):
    assert max(map(len, text(*proofs.values()).splitlines())) <= 100
    wide = r"\left[\begin{matrix}A + B & B\\C & D\end{matrix}\right]"
    assert plain(wide, 15).splitlines() == ["⎡ A + B   B ⎤", "⎣ C       D ⎦"]
    assert plain(wide, 12).splitlines() == [
        "(1, 1)  A +",
        "    B",
        "(1, 2)  B",
        "(2, 1)  C",
        "(2, 2)  D",
    ]


@pytest.mark.parametrize(
    "symbol, latex",
    [
        ("Lam", r"\Lambda"),
        ("eps", r"\varepsilon"),
        ("eta_i", r"\eta_{i}"),
        ("|T_ii|", r"\left|T_{ii}\right|"),
        ("T_ii⁺", "T_{ii}^{+}"),
        ("Σ|T_ij|·eta_j", r"\sum_{j \ne i} \left|T_{ij}\right|\,\eta_{j}"),
        ("W1", "W_{1}"),
    ],
)
def test_names_of_symbols(symbol, latex):
    assert name(symbol) == latex


def test_sympy_and_proof_objects_are_written_without_a_factor_one():
    n = sp.Symbol("n", integer=True, positive=True)
    T, W = sp.MatrixSymbol("T", n, n), sp.MatrixSymbol("W", n, n)
    q, gamma = sp.MatrixSymbol("q", n, 1), sp.Symbol("gamma", positive=True)
    assert tex(sp.MatMul(1, W, T.I)) == "W T^{-1}"
    assert tex(T - W.T * W) == r"T - W^{\top} W"
    assert tex(-gamma * (T - W) * sp.DiagMatrix(q)) == r"- \gamma \left(T - W\right) [q]"
    assert tex(sp.DiagMatrix(q).I) == "[q]^{-1}"
    assert written(["mul", ["num", "1"], ["sym", "W"]]) == "W"


LEAVES = "STW"


def random_tree(rng, depth):
    kind = rng.choice(["sym", "add", "mul", "mul", "t", "inv", "num"]) if depth else "sym"
    if kind == "sym":
        return ["sym", rng.choice(LEAVES)]
    if kind == "num":
        number = Fraction(rng.randint(-5, 5), rng.randint(1, 4))
        return ["mul", ["num", str(number)], random_tree(rng, depth - 1)]
    if kind in ("t", "inv"):
        inner = random_tree(rng, depth - 1)
        return [kind, inner if kind == "t" else ["sym", rng.choice(LEAVES)]]
    return [kind, *(random_tree(rng, depth - 1) for _ in range(rng.randint(2, 3)))]


def value(tree, at):
    match tree:
        case ["sym", symbol]:
            return at[symbol]
        case ["num", number]:
            return float(Fraction(number)) * np.eye(2)
        case ["t", inner]:
            return value(inner, at).T
        case ["inv", inner]:
            return np.linalg.inv(value(inner, at))
        case ["add", *parts]:
            return sum(value(part, at) for part in parts)
        case ["mul", *parts]:
            return np.linalg.multi_dot([np.eye(2), *(value(part, at) for part in parts)])


class Reader:
    """Reads LaTeX of matrices back as a reader would: powers, then products, then sums."""

    def __init__(self, latex, at):
        latex = latex.replace(r"\left(", "(").replace(r"\right)", ")")
        self.tokens = re.findall(r"\\frac\{\d+\}\{\d+\}|\^\{[^}]*\}|[A-Z]|\d+|[-+()]", latex)
        assert "".join(self.tokens) == latex.replace(" ", ""), latex
        self.at = at

    def sum(self):
        total, sign = 0.0, 1.0
        while self.tokens and self.tokens[0] != ")":
            if self.tokens[0] in "+-":
                sign = -1.0 if self.tokens.pop(0) == "-" else 1.0
            total = total + sign * self.product()
        return total

    def product(self):
        result = np.eye(2)
        while self.tokens and self.tokens[0] not in ("+", "-", ")"):
            result = result @ self.power()
        return result

    def power(self):
        token = self.tokens.pop(0)
        if token == "(":
            base = self.sum()
            assert self.tokens.pop(0) == ")"
        elif token.startswith(r"\frac"):
            top, bottom = map(int, re.findall(r"\d+", token))
            base = top / bottom * np.eye(2)
        else:
            base = self.at[token] if token.isalpha() else int(token) * np.eye(2)
        while self.tokens and self.tokens[0].startswith("^"):
            exponent = self.tokens.pop(0)[2:-1]
            base = base.T if exponent == r"\top" else np.linalg.matrix_power(base, int(exponent))
        return base


def test_what_is_written_means_the_tree(rng):
    """Signs, brackets and powers: read back as numbers, for random expressions."""
    random_ = random.Random(0)
    at = {name: rng.normal(size=(2, 2)) for name in LEAVES} | {"I": np.eye(2)}
    for _ in range(400):
        tree = random_tree(random_, 4)
        expected = value(tree, at)
        read = Reader(written(tree), at).sum()
        scale = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(read / scale, expected / scale, atol=1e-9)
