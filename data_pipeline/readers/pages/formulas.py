"""Formulas of HTML pages as LaTeX.

An author's own LaTeX is taken where the page holds it: in MathJax's scripts, in an `annotation` or `alttext` of MathML
(KaTeX, Wikipedia, LaTeXML), or in the `alt` of a formula's image. Other MathML is converted: fractions, roots, scripts,
limits, fences, tables and text; an element without a rule gives its content.
"""

from __future__ import annotations

import html
import re
from xml.etree import ElementTree

_ANNOTATION = re.compile(r"<annotation\b([^<>]*)>([^<]*)<", re.IGNORECASE)
_ALT = re.compile(r"\balt(?:text)?\s*=\s*(?:\"([^\"]*)\"|'([^']*)')", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>")
_PREFIX = re.compile(r"<(/?)[a-z]+:", re.IGNORECASE)
_MARKUP = re.compile(r"&(?!(?:lt|gt|amp|quot|apos|#60|#62|#38);)([A-Za-z0-9]+|#[0-9]+|#x[0-9a-f]+);", re.IGNORECASE)
_NAMES = re.compile(r"\s[\w:.-]+\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'<>=]+)|\s[\w:.-]+(?=[\s/>])")
_DEPTH = 100  # nested elements; of a deeper formula the text is taken
_COMMANDS = {
    "−": "-", "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "≤": r"\le ", "≥": r"\ge ",
    "≠": r"\ne ", "≈": r"\approx ", "≡": r"\equiv ", "∼": r"\sim ", "∝": r"\propto ", "∞": r"\infty ", "∑": r"\sum ",
    "∏": r"\prod ", "∫": r"\int ", "∂": r"\partial ", "∇": r"\nabla ", "√": r"\surd ", "∈": r"\in ", "∉": r"\notin ",
    "⊂": r"\subset ", "⊆": r"\subseteq ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "∀": r"\forall ",
    "∃": r"\exists ", "¬": r"\neg ", "∧": r"\wedge ", "∨": r"\vee ", "→": r"\to ", "←": r"\leftarrow ",
    "⇒": r"\Rightarrow ", "⇔": r"\Leftrightarrow ", "↦": r"\mapsto ", "…": r"\ldots ", "⋯": r"\cdots ", "′": "'",
    "⟨": r"\langle ", "⟩": r"\rangle ", "‖": r"\| ", "ℝ": r"\mathbb{R}", "ℕ": r"\mathbb{N}", "ℤ": r"\mathbb{Z}",
    "ℂ": r"\mathbb{C}", "ℚ": r"\mathbb{Q}", "{": r"\{", "}": r"\}", "%": r"\%", "#": r"\#", "&": r"\&",
    "\u2061": "", "\u2062": "", "\u2063": "", "\u00a0": " ",
}  # fmt: skip
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma tau "
    "upsilon varphi chi psi omega"
)
_CAPITALS = "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
_COMMANDS |= {chr(0x3B1 + place): f"\\{name} " for place, name in enumerate(_GREEK.split())}
_COMMANDS |= {letter: f"\\{name} " for letter, name in zip("ΓΔΘΛΞΠΣΦΨΩ", _CAPITALS.split(), strict=True)}
_FUNCTIONS = frozenset(
    "arccos arcsin arctan cos cosh cot det exp inf lim ln log max min mod sin sinh sup tan tanh".split()  # noqa: SIM905
)
_ACCENTS = {"¯": "bar", "‾": "overline", "^": "hat", "ˆ": "hat", "~": "tilde", "˜": "tilde", r"\to": "vec", "˙": "dot"}

_WRITTEN = {
    ("mfrac", 2): r"\frac{{{0}}}{{{1}}}",
    ("mroot", 2): r"\sqrt[{1}]{{{0}}}",
    ("msub", 2): "{base}_{{{1}}}",
    ("munder", 2): "{base}_{{{1}}}",
    ("msup", 2): "{base}^{{{1}}}",
    ("mover", 2): "{base}^{{{1}}}",
    ("msubsup", 3): "{base}_{{{1}}}^{{{2}}}",
    ("munderover", 3): "{base}_{{{1}}}^{{{2}}}",
}
"""The LaTeX of an element, by its name and number of children."""
_JOINED = {
    "msqrt": (r"\sqrt{", "", "}"),
    "mfenced": ("(", ",", ")"),
    "mtable": (r"\begin{matrix}", r" \\ ", r"\end{matrix}"),
    "mtr": ("", " & ", ""),
}
"""Text before, between and after the children of an element."""


def in_dollars(latex: str, block: bool) -> str:
    """A formula between dollar signs; "" where it is empty."""
    latex = " ".join(latex.split())
    sign = "$$" if block else "$"
    return f"{sign}{latex}{sign}" if latex else ""


def latex_of_image(tag: str) -> str:
    """The `alt` of an image's tag."""
    found = _ALT.search(tag)
    return html.unescape(found[1] or found[2] or "").strip(" $") if found else ""


def latex_of_math(source: str) -> str:
    """The formula of a `math` element, from its source."""
    for attributes, latex in _ANNOTATION.findall(source):
        if "application/x-tex" in attributes.lower():
            return html.unescape(latex)
    own = latex_of_image(source[: source.find(">")])
    if own:
        return own
    clean = _MARKUP.sub(lambda found: html.unescape(found[0]), _PREFIX.sub(r"<\1", source))
    try:
        root = ElementTree.fromstring(_TAG.sub(lambda found: _NAMES.sub("", found[0]), clean))
        return _latex(root, 0)
    except (ElementTree.ParseError, RecursionError):
        return html.unescape(_TAG.sub(" ", source))


def _latex(element: ElementTree.Element, depth: int) -> str:
    name = element.tag.lower()
    if name in ("mi", "mo", "mn", "mtext", "ms") or depth > _DEPTH:
        return _leaf(name, " ".join("".join(element.itertext()).split()))
    if name in ("annotation", "annotation-xml", "mphantom"):
        return ""
    parts = [_latex(child, depth + 1) for child in element]
    if name == "mover" and len(parts) == 2 and parts[1].strip() in _ACCENTS:
        return rf"\{_ACCENTS[parts[1].strip()]}{{{parts[0]}}}"
    if name in _JOINED:
        begin, between, end = _JOINED[name]
        return begin + between.join(parts) + end
    written = _WRITTEN.get((name, len(parts)))
    if written is None:
        return (element.text or "").strip() + "".join(parts)
    return written.format(*parts, base=_base(parts[0]))


def _base(base: str) -> str:
    """The carrier of a script: one character or command, else a group."""
    return base if len(base) <= 1 or re.fullmatch(r"\\[A-Za-z]+ ?", base) else f"{{{base}}}"


def _leaf(name: str, text: str) -> str:
    if name in ("mtext", "ms"):
        return rf"\text{{{text}}}" if text else ""
    if text in _FUNCTIONS:
        return f"\\{text} "
    if name == "mi" and len(text) > 1 and text.isascii() and text.isalpha():
        return rf"\mathrm{{{text}}}"
    return "".join(_COMMANDS.get(letter, letter) for letter in text)
