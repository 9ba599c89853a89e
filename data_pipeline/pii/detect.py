"""`find`: all detections in a text, disjoint and in order.

The kernel names the places that could hold something (`kernels.pii_candidates`); each kind of place has its rule. Of
findings that overlap, the type named first in `_RANKS` keeps its place.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from data_pipeline.kernels import pii_candidates as candidates
from data_pipeline.kernels.pii_candidates import Candidates
from data_pipeline.pii.credentials import assigned_at, key_at, private_key_at, url_password_at, word_token_at
from data_pipeline.pii.detections import FAMILIES, TYPES, Detection, placeholder, run_of
from data_pipeline.pii.internet_addresses import email_at, ipv4_at, ipv6_at, mac_at, spelt_email_at
from data_pipeline.pii.national_ids import number_at, slice_shapes, word_at
from data_pipeline.pii.payment_numbers import VOID, bitcoin_at, card_at, iban_at
from data_pipeline.pii.phones import phone_at

_FIRST = (
    "private_key", "jwt",
    *(kind for kind in FAMILIES["secret"] if kind not in ("private_key", "jwt", "assigned_secret")),
    "assigned_secret", "email", "iban", VOID, "bitcoin", "card",
)  # fmt: skip
_RANKS = {kind: rank for rank, kind in enumerate([*_FIRST, *(kind for kind in TYPES if kind not in _FIRST)])}
_RANKS["phone"] = len(_RANKS)
_BLOCK = 4096
_STRONGER_THAN_A_CARD = ("13", "18")  # a resident's number has date, place and check digit; "ID card" says card too


def find(text: str, types: Sequence[str] = TYPES) -> list[Detection]:
    """Detections of the exact rules, disjoint, in text order."""
    # An array that may be written, as a column's buffer may be: for a read-only one the kernel is compiled again.
    data = np.frombuffer(bytearray(text, "utf-8", "surrogatepass"), np.uint8)
    return find_among(text, candidates.scan(data, np.array([0, len(data)], np.int64))[:, 1:], types)


def find_among(text: str, places: Candidates, types: Sequence[str] = TYPES) -> list[Detection]:
    """The detections of `find` among the candidates of this text.

    The candidates are rows of (kind, start, end).
    """
    ranked: list[Detection] = []
    for block in range(0, len(places), _BLOCK):  # a text of nothing but "@" must not become a list of lists at once
        for kind, start, end in places[block : block + _BLOCK].tolist():
            ranked += _RULES[kind](text, start, end)
    if not ranked:
        return ranked
    found: list[Detection] = []
    # By place; where two overlap, the one of the better rank keeps the place, and at equal rank the earlier.
    for finding in sorted(ranked):
        while found and finding.start < found[-1].end:
            if _RANKS[finding.type] >= _RANKS[found[-1].type]:
                break
            found.pop()
        else:
            found.append(finding)
    return [finding for finding in found if finding.type in types]


def replace(text: str, findings: Sequence[Detection]) -> str:
    """The text with each finding replaced by its placeholder.

    `findings` are those that `find` gives.
    """
    return splice(text, findings, [placeholder(finding.type) for finding in findings])


def replace_all(text: str) -> str:
    """The text as people may be shown it.

    Every detection of every type is replaced, whatever a run configures.
    """
    return replace(text, find(text))


def joined(exact: Sequence[Detection], others: Sequence[Detection], text: str) -> list[Detection]:
    """The detections of two finders, disjoint and in order.

    Where they overlap the exact ones keep their place, and what else the others cover is still theirs.
    """
    pieces: list[Detection] = []
    starts, ends = [held.start for held in exact], [held.end for held in exact]
    for start, end, kind in others:
        at = start
        for mark in (*exact[bisect_right(ends, start) : bisect_left(starts, end)], Detection(end, end, "")):
            if any(map(str.isalnum, text[at : mark.start])):
                pieces.append(Detection(at, mark.start, kind))
            at = max(at, mark.end)
    return sorted([*exact, *pieces])


def splice(text: str, findings: Sequence[Detection], new: Sequence[str]) -> str:
    """The text with each finding replaced by its new text."""
    parts, at = [], 0
    for finding, value in zip(findings, new, strict=True):
        parts += [text[at : finding.start], value]
        at = finding.end
    return "".join([*parts, text[at:]])


def _numbers(text: str, start: int, end: int) -> Iterator[Detection]:
    """Detections in a run of digits: IP, card, national number, telephone."""
    run = run_of(text, start, end)
    group, groups = 0, len(run.ends)
    while group < groups:
        if (address := ipv4_at(text, run, group)) is not None:
            yield address
            group += 4
            continue
        if run.opens(group):
            shapes = slice_shapes(run, group)
            strong = number_at(text, run, group, shapes) if shapes[0] in _STRONGER_THAN_A_CARD else None
            if strong is None and (last := card_at(text, run, group, shapes)) is not None:
                yield Detection(run.starts[group], run.ends[last - 1], "card")
                group = last
                continue
            if (number := strong or number_at(text, run, group, shapes)) is not None:
                yield number[0]
                group = number[1]
                continue
            if (phone := phone_at(text, run, group)) is not None:
                yield Detection(phone[0], phone[1], "phone")
                group = phone[2]
                continue
        group += 1


def _words(text: str, start: int, end: int) -> Iterator[Detection]:
    if end - start <= 18:
        yield from word_at(text, start, end)
    else:
        yield from word_token_at(text, start, end)
        yield from bitcoin_at(text, start, end)


def _at_signs(text: str, at: int, end: int) -> Iterator[Detection]:
    yield from email_at(text, at)
    yield from url_password_at(text, at)


_RULES: dict[int, Callable[[str, int, int], Iterator[Detection]]] = {
    candidates.AT: _at_signs,
    candidates.SPELT: lambda text, start, end: spelt_email_at(text, start),
    candidates.DIGITS: _numbers,
    candidates.WORD: _words,
    candidates.ACCOUNT: lambda text, start, end: iban_at(text, start),
    candidates.HEX: ipv6_at,
    candidates.MAC: mac_at,
    candidates.KEY: lambda text, start, end: key_at(text, start),
    candidates.ASSIGNED: lambda text, start, end: assigned_at(text, start),
    candidates.PEM: lambda text, start, end: private_key_at(text, start),
}
