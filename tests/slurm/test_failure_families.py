"""The verdict on families of messages of known software, and on the same words where they mean nothing."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.attempt.restart_verdict import verdict_of

KNOWN = tomllib.loads((Path(__file__).parent / "failure_families.toml").read_text(encoding="utf-8"))
FAMILIES = KNOWN["family"]
QUIET = [
    "2026-11-29 07:00:01 INFO note: {}",
    "2026-11-29 07:00:01,000 - WARNING - trying again after: {}",
    "[rank0]:[W1129 07:00:01.000 x.cpp:12] Warning: {}",
    "/opt/env/lib/x.py:31: UserWarning: {}",
    "{'on_error': '%s', 'retries': 3}".replace("%s", "{}"),
    '    message = "{}"',
    "  # {}",
    "> {}",
    "it 40/900 | loss 2.31 | tried again after {}",
]
"""Lines in which the words of an error are none: a report, a warning, a setting, a comment, a quotation, progress."""


def lines(family: dict) -> Iterator[tuple[str, str]]:
    """Label and log of each message in each of its forms."""
    labels = {of: messages for of, messages in family.items() if ", " in of}
    for form in family["forms"]:
        context, _, form = form.removeprefix("@").partition(" ") if form.startswith("@") else ("", "", form)
        for label, messages in labels.items():
            for message in messages:
                first, _, second = message.partition("|")
                said = form.replace("{}", message).replace("{0}", first).replace("{1}", second)
                yield label, KNOWN["contexts"].get(context, "") + said


def judged(text: str) -> str:
    found = verdict_of(text, 1)
    return f"{found.cause}, {found.action}" if found else ""


@pytest.mark.parametrize("family", FAMILIES, ids=[family["name"] for family in FAMILIES])
def test_every_message_of_a_family_means_what_it_says(family):
    wrong = {text: judged(text) for label, text in lines(family) if judged(text) != label}
    assert not wrong


@pytest.mark.parametrize("quiet", QUIET)
def test_the_same_words_decide_nothing_where_they_are_no_error(quiet):
    """Every fourth message, in each of nine kinds of line."""
    said = [quiet.replace("{}", text.splitlines()[-1]) for family in FAMILIES for _, text in list(lines(family))[::4]]
    assert [line for line in said if judged(line)] == []
