"""Programming language of a file, by name, first line or content.

Names of languages and patterns of file names are those of Pygments, plus R, which Pygments knows as S, Svelte, and more
names of Docker's files. A name that several languages share is decided by content: `.h` and `.m` by the constructs
below, those whose languages Pygments does not name by a sign of each, others by Pygments' own estimate.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from pathlib import PurePosixPath

_NOT_CODE = frozenset({"Text only", "Text output", "World of Warcraft TOC"})
_DIALECTS = frozenset({"cplint", "SQL+Jinja", "GAP session", "Octave", "Lean", "TASM"})
"""Languages whose files Pygments cannot tell from those of their main language."""
_SHOWN = {"S": "R", "verilog": "Verilog"}
_FIRST = {
    ".as": "ActionScript 3", ".asm": "NASM", ".cl": "Common Lisp", ".fs": "F#", ".g": "ANTLR", ".gd": "GDScript",
    ".hh": "C++", ".i": "SWIG", ".inc": "PHP", ".inf": "INI", ".lean": "Lean4", ".mm": "Objective-C++", ".pl": "Perl",
    ".pm": "Perl", ".pro": "Prolog", ".s": "GAS", ".sql": "SQL", ".t": "Perl", ".toc": "TeX", ".ttl": "Turtle",
    ".v": "verilog", ".xsl": "XSLT", ".xslt": "XSLT",
}  # fmt: skip
"""The language of an ending that several share, where the content does not decide."""
_INTERPRETERS = {
    "ash": "Bash", "dash": "Bash", "node": "JavaScript", "nodejs": "JavaScript", "deno": "TypeScript",
    "bun": "TypeScript", "rscript": "S", "tclsh": "Tcl", "wish": "Tcl", "mawk": "Awk", "nawk": "Awk",
}  # fmt: skip
"""Interpreters that are not an alias of their language in Pygments."""
_SIGNS: dict[str, tuple[tuple[str, str], ...]] = {
    ".bas": (("VB.net", r"^Attribute VB_"),),
    ".cl": (("C", r"\b__(?:kernel|global|local)\b|^[ \t]*kernel[ \t]+void\b"),),
    ".cls": (
        (
            "TeX",
            r"^[ \t]*\\(?:NeedsTeXFormat|Provides(?:Class|ExplClass|File)|LoadClass|DeclareOption|(?:re)?newcommand)\b",
        ),
        ("VB.net", r"\AVERSION [0-9.]+ CLASS\b|^Attribute VB_"),
        ("OpenEdge ABL", r"(?i:^[ \t]*(?:END[ \t]+CLASS[ \t]*\.|(?:CLASS|USING|ROUTINE-LEVEL)\b[^;{\n]*[:.][ \t]*$))"),
        ("", ""),
    ),
    ".fs": (("GLSL", r"^[ \t]*#version\b|\bgl_(?:Position|FragColor|FragCoord)\b"),),
    ".inc": (
        ("PHP", r"<\?(?:php|=|\s)"),
        ("POVRay", r"^[ \t]*#(?:declare|macro)\b"),
        ("Pawn", r"^[ \t]*(?:native|forward|stock)[ \t]"),
        ("", ""),
    ),
    ".r": (("REBOL", r"\A\s*(?:REBOL|Red)\s*\["), ("S", "")),
    ".ts": (("XML", r"\A\s*<(?:\?xml|!DOCTYPE TS|TS\b)"),),
}
"""Languages of an ending, each with its sign; the first found counts. An empty sign is always found."""
_MORE_ENDINGS = {".svelte": "Svelte", ".dockerfile": "Docker", ".containerfile": "Docker"}
_DOCKER = re.compile(r"(?:Docker|Container)file(?:\..+)?")
"""A name with an ending that states no language, such as Dockerfile.dev."""
_OTHER_FILES = frozenset(("go.mod", "go.work"))  # of no language; the ending is Modula-2's
_OBJECTIVE_C = re.compile(r"^[ \t]*(@(interface|implementation|protocol|property|class|end|import)\b|#import\b)", re.M)
_CPP = re.compile(
    r"^[ \t]*(class\s+\w+[^;()]{0,500}[{:]|class\s+\w+\s*;|namespace\b|template\s*<|using\s+\w"
    r"|(public|private|protected)\s*:|#\s*include\s*<\w+>\s*$)|\bstd::|\bconstexpr\b|\bvirtual\s+[\w~]",
    re.M,
)
_ESTIMATED_CHARACTERS = 20_000  # characters of a text that Pygments' estimate reads
_FIRST_LINE_CHARACTERS = 200


def programming_language(file: str, text: str) -> str:
    """The language of a source file.

    The result is "" for plain text and for a file of no known language.
    """
    name = PurePosixPath(file).name
    found = () if name in _OTHER_FILES else _by_name(name)
    if found and (signed := _by_sign(PurePosixPath(name).suffix.lower(), text)) is not None:
        found = (signed,)
    if not found:
        found = _by_interpreter(text)
    elif len(found) > 1:
        found = (_by_content(PurePosixPath(name).suffix.lower(), found, text),)
    language = found[0] if found else ""
    return "" if language in _NOT_CODE else _SHOWN.get(language, language)


def known_language(name: str) -> str:
    """The language that a name or alias means to Pygments.

    Case, blanks, hyphens and underscores do not count. The result is "" for plain text and for an unknown name.
    """
    language = _names().get(_folded(name), "")
    return "" if language in _NOT_CODE else _SHOWN.get(language, language)


@functools.cache
def _names() -> dict[str, str]:
    languages = _aliases().values()
    more = {_folded(name): name for name in _MORE_ENDINGS.values()}
    return (
        more
        | {_folded(alias): name for alias, name in _aliases().items()}
        | {_folded(name): name for name in languages}
    )


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()


@functools.cache
def _patterns() -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]], list[tuple[str, str]]]:
    """Languages by whole name and by ending, and patterns of other kinds."""
    from pygments.lexers._mapping import LEXERS

    names: dict[str, tuple[str, ...]] = {}
    endings: dict[str, tuple[str, ...]] = {}
    others: list[tuple[str, str]] = []
    for _, language, _, patterns, _ in LEXERS.values():
        for pattern in patterns if language not in _DIALECTS else ():
            ending = pattern[1:]
            if pattern.startswith("*.") and not set(ending) & set("*?["):
                endings[ending] = (*endings.get(ending, ()), language)
            elif set(pattern) & set("*?["):
                others.append((pattern, language))
            else:
                names[pattern] = (*names.get(pattern, ()), language)
    return names, endings, others


@functools.lru_cache(maxsize=4096)
def _by_name(name: str) -> tuple[str, ...]:
    """The languages of a file name, by its longest known ending."""
    names, endings, others = _patterns()
    if found := names.get(name):
        return found
    if found := tuple(dict.fromkeys(language for glob, language in others if fnmatch.fnmatchcase(name, glob))):
        return found
    parts = name.lstrip(".").split(".")
    for first in range(1, len(parts)):
        ending = "." + ".".join(parts[first:])
        if found := endings.get(ending) or endings.get(ending.lower()):
            return found
        if more := _MORE_ENDINGS.get(ending.lower()):
            return (more,)
    return ("Docker",) if _DOCKER.fullmatch(name) else ()


def _by_interpreter(text: str) -> tuple[str, ...]:
    """The language of the program in a script's first line."""
    if not text.startswith("#!"):
        return ()
    words = text[2:_FIRST_LINE_CHARACTERS].split("\n", 1)[0].split()
    programs = [PurePosixPath(word).name.lower() for word in words if not word.startswith("-") and "=" not in word]
    programs = [program for program in programs if program != "env"]
    if not programs:
        return ()
    program = programs[0]
    known = _aliases()
    for alias in (program, program.rstrip("0123456789.")):
        if language := _INTERPRETERS.get(alias) or known.get(alias):
            return (language,)
    return ()


@functools.cache
def _aliases() -> dict[str, str]:
    from pygments.lexers._mapping import LEXERS

    return {alias: language for _, language, aliases, _, _ in LEXERS.values() for alias in aliases}


def _by_sign(ending: str, text: str) -> str | None:
    """The language whose sign a text has; None leaves the decision."""
    text = text[:_ESTIMATED_CHARACTERS]
    return next((language for language, sign in _SIGNS.get(ending, ()) if re.search(sign, text, re.M)), None)


def _by_content(ending: str, languages: tuple[str, ...], text: str) -> str:
    text = text[:_ESTIMATED_CHARACTERS]
    if ending in (".h", ".m"):
        if _OBJECTIVE_C.search(text):
            return "Objective-C"
        return "Matlab" if ending == ".m" else "C++" if _CPP.search(text) else "C"
    if ending == ".g" and languages[0].startswith("ANTLR"):
        return "GAP" if re.search(r":=|\bInstallMethod\b", text) else "ANTLR"
    from pygments.lexers import find_lexer_class

    first = _FIRST.get(ending, min(languages))
    estimates = {language: _estimate(find_lexer_class(language), text) for language in languages}
    return max(languages, key=lambda language: (estimates[language], language == first, language))


def _estimate(lexer: type | None, text: str) -> float:
    """Pygments' estimate, 0 to 1, that a text is in a language."""
    return float(lexer.analyse_text(text)) if lexer is not None else 0.0  # type: ignore[attr-defined]
