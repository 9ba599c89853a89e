"""Licence expressions of SPDX that a set of allowed licences meets.

One side of an OR is enough, an AND needs all, and an exception (WITH) only adds to what its licence permits.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from typing import Any

_MAX_CHARACTERS = 1000
_MAX_BRACKETS = 50  # the parser calls itself for each


@functools.cache
def licensing() -> Any:
    """The parser of expressions, with the licences of SPDX."""
    import license_expression

    return license_expression.get_spdx_licensing()


@functools.lru_cache(maxsize=4096)
def parsed(expression: str) -> Any:
    """A parsed expression, or None if it is malformed or too large."""
    import license_expression

    if len(expression) > _MAX_CHARACTERS or expression.count("(") > _MAX_BRACKETS:
        return None
    try:
        return licensing().parse(expression)
    # The library's own two, and what its parser lets through, for example of "()" and of "(OR".
    except (license_expression.ExpressionError, license_expression.ParseError, IndexError, AssertionError):
        return None


def permits(expression: str, allowed: Collection[str], denied: Collection[str] = ()) -> bool:
    """Return whether an expression can be met with allowed licences only.

    No `allowed` means all. Text that is not an expression counts as one name. The names of `allowed` and `denied` are
    spelt as SPDX does.
    """

    def met(part: Any) -> bool:
        if getattr(part, "args", ()):
            return (any if part.operator.strip().upper() == "OR" else all)(map(met, part.args))
        names = {str(part), str(getattr(part, "license_symbol", part))}
        return not names & set(denied) and (not allowed or bool(names & set(allowed)))

    tree = parsed(expression)
    return met(expression if tree is None else tree)


def widened(allowed: Collection[str], found: Iterable[str]) -> tuple[str, ...]:
    """The allowed names, then the expressions of `found` that they meet."""
    several = {text for text in found if " " in text and text not in allowed}
    met = [text for text in sorted(several) if allowed and _is_compound(text) and permits(text, allowed)]
    return (*allowed, *met)


def _is_compound(text: str) -> bool:
    """Return whether a text is an expression of several names.

    All are spelt as SPDX does: the parser also knows other spellings, such as "mit or zlib", and takes some LicenseRefs
    for the licence they vary.
    """
    tree = parsed(text)
    if not getattr(tree, "args", ()) and not hasattr(tree, "license_symbol"):
        return False
    if not all(_adds_only(name) for name in tree.get_symbols()):
        return False
    return _words(str(tree)) == _words(text)


def _adds_only(name: Any) -> bool:
    """Return whether an exception of SPDX follows WITH, if anything.

    Other words there may restrict.
    """
    exception = getattr(name, "exception_symbol", None)
    return exception is None or bool(exception.is_exception)


def _words(expression: str) -> list[str]:
    return expression.replace("(", " ").replace(")", " ").split()
