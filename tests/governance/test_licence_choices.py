"""Licence expressions against allowed names: a tree's own value, and text that is no expression."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.gate.licence_choices import widened

ALLOWED = ("MIT", "CC0-1.0", "GPL-2.0-only WITH Classpath-exception-2.0")
NAMES = st.sampled_from(["MIT", "CC0-1.0", "GPL-2.0-only", "Apache-2.0", "MIT WITH LLVM-exception", ALLOWED[2]])


def is_met(text):
    return text in widened(ALLOWED, [text])


def _join(parts):
    (left, left_met), operator, (right, right_met) = parts
    return f"({left} {operator} {right})", (left_met or right_met) if operator == "OR" else (left_met and right_met)


TREES = st.recursive(
    NAMES.map(lambda name: (name, name in ALLOWED or name.split(" WITH ")[0] in ALLOWED)),
    lambda below: st.tuples(below, st.sampled_from(["OR", "AND"]), below).map(_join),
    max_leaves=8,
)


@given(TREES)
def test_an_expression_has_the_value_of_its_tree(tree):
    text, met = tree
    assert is_met(text) == met
    assert is_met(text.strip("()")) == met or text.count("(") > 1


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("GPL-3.0-only OR MIT AND Apache-2.0", False),  # AND binds first
        ("GPL-3.0-only AND Apache-2.0 OR MIT", True),
        ("MIT OR LicenseRef-own", True),
        ("LicenseRef-MIT-Bootstrap OR GPL-3.0-only", False),  # the parser takes it for MIT
        *((f"MIT WITH {word}", False) for word in ("Commons-Clause", "LicenseRef-NonCommercial", "GPL-3.0-only", "NC")),
        ("MIT WITH NC OR Apache-2.0", False),
        ("MIT or GPL-3.0-only", False),  # operators are upper case
        *(
            (text, False)
            for text in (
                "",
                "mit",
                " MIT",
                "MIT MIT",
                "MIT OR",
                "OR MIT",
                "(MIT",
                "MIT)",
                "MIT, or anything",
                "MIT WITH",
            )
        ),
        ("MIT OR " * 1000 + "MIT", False),
        ("(" * 5000 + "MIT" + ")" * 5000, False),
    ],
)
def test_text_that_is_no_expression_is_one_name(text, met):
    assert is_met(text) is met
    assert text in widened((*ALLOWED, text), [text])


def test_only_expressions_that_are_met_are_added():
    found = ["MIT OR Apache-2.0", "NOASSERTION", "MIT", "MIT OR Apache-2.0"]
    assert widened(("MIT",), found) == ("MIT", "MIT OR Apache-2.0")
    assert widened((), found) == ()
