r"""Telephone numbers in running text: which groups of digits are one, and which only look like one.

A *run* is a maximal sequence of digit groups with at most three separators between two of them. A number is a slice of
whole groups of a run. Its shape decides:

- certain shapes count by themselves: international (E.164: `+`, an assigned country code, at most 15 digits), the North
  American plan (NPA-NXX-XXXX), a trunk prefix 0 with nine to twelve digits in groups, an area code in parentheses;
- vague shapes (seven to twelve digits that no calendar, address or serial explains) count only beside a word that
  says so ("call", "Tel.", "móvil", ...), for most such digits are not telephone numbers.

Not found on purpose: digits glued to letters, decimals, dates, ranges of years, IP addresses, version numbers, ISBNs.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

# Letters that a number may not touch. Scripts without spaces between words (Chinese, Japanese, Thai) may touch it.
WORD = r"0-9A-Za-z_\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u052f"
SPACES = " \u00a0\u2009\u202f"
HYPHENS = "\\-\u2010\u2011\u2013"

RUN = re.compile(rf"[0-9]+(?:[{SPACES}{HYPHENS}()./]{{1,3}}[0-9]+){{0,100}}")
GROUP = re.compile("[0-9]+")
_TOUCHES = re.compile(rf"[{WORD}]")
_EXTENSION = re.compile(
    rf"(?:[{SPACES},]{{0,2}}(?:x|ext\.?|extension|poste|anexo|Durchwahl)[{SPACES}]?[0-9]{{1,6}})(?![{WORD}])", re.I
)

_SAYS_PHONE = re.compile(
    r"(?:(?:phone|\btel\b|\bcall|dial|mobile\b|mobil\b|\bcell\b|\bfax|whatsapp|\bsms\b|hotline|contact|handy|telefon|anruf"
    r"|durchwahl|\bllam[ae]|móvil|teléfono|appelez|appeler|portable|joindre|téléphone|celular|\bligue|contato|cellulare"
    r"|chiama|\bbellen|тел|звон|电话|手机|電話|携帯|전화|هاتف|טלפון)[^0-9]{0,24}"
    r"|(?:(?:my|her|his|our|your|their|mein|meine|seine|ihre|mon|son|notre|mi|su|meu|seu|mio) (?:new |old |neue )?"
    r"(?:number|nummer|numéro|número|numero)|office|desk|home|work|ruf|fijo|reach (?:me|us|him|her|them))"
    r"(?:\s(?:is|at|on|ist|es|est|è|é))?[\s:.\-]{0,3})\Z",
    re.I,
)
_LABELLED = re.compile(
    r"[\s,;(\-–\\]{0,4}(?:office|fax|mobile|cell|home|work|desk|tel|phone|mobil|handy|portable)\b", re.I
)
_SAYS_OTHER = re.compile(
    r"(?:isbn|issn|\bdoi|order|invoice|ticket|serial|sku|uuid|\bean\b|account|\bref|\bid\b|[#$€£¥])[^0-9\n]{0,12}\Z",
    re.I,
)

# National digits at most, by country code (ITU-T E.164 and its operational bulletins); others: what 15 leaves.
_NATIONAL_DIGITS = {
    "1": 10, "7": 10, "20": 10, "27": 9, "30": 10, "31": 9, "32": 9, "33": 9, "34": 9, "36": 9, "39": 11, "40": 9,
    "41": 9, "43": 13, "44": 10, "45": 8, "46": 9, "47": 8, "48": 9, "49": 11, "51": 9, "52": 11, "54": 11, "55": 11,
    "56": 9, "57": 10, "58": 10, "60": 10, "61": 9, "62": 12, "63": 10, "64": 10, "65": 8, "66": 9, "81": 10,
    "82": 10, "84": 10, "86": 11, "90": 10, "91": 10, "92": 10, "93": 9, "94": 9, "95": 10, "98": 10, "53": 8,
    "351": 9, "352": 9, "353": 9, "354": 9, "356": 8, "357": 8, "358": 11, "359": 9, "370": 8, "371": 8, "372": 8,
    "380": 9, "385": 9, "386": 8, "420": 9, "421": 9, "852": 8, "886": 9, "971": 9, "972": 9,
}  # fmt: skip
_THREE_DIGIT_CODES = re.compile("2[1-69]|35|37|38|42|50|59|67|68|69|80|85|87|88|96|97|99")

_SOCIAL_SECURITY = [3, 2, 4]  # the digit groups of a US social security number


class Slice(NamedTuple):
    """Groups i..j of a run: what the shapes are judged by."""

    groups: tuple[str, ...]
    between: tuple[str, ...]
    prefix: str
    """ "+", "(" or "(+" directly before the first group, else ""."""


def phone_at(text: str, groups: Sequence[re.Match[str]], first: int) -> tuple[int, int, int] | None:
    """The longest telephone number that begins with group `first`: its start, its end, the next group to look at."""
    begin = groups[first].start()
    prefix = _prefix(text, begin)
    start = begin - len(prefix)
    digits = [0, *itertools.accumulate(group.end() - group.start() for group in groups[first : first + 7])]
    if digits[-1] < 7 or not _open(text, groups, first, start):
        return None
    for last in range(first + len(digits) - 1, first, -1):
        end = groups[last - 1].end()
        if not 7 <= digits[last - first] <= 17:  # 15 of E.164, and "00" before them
            continue
        extension = _EXTENSION.match(text, end) if text[end : end + 1] in _EXTENDS else None
        if extension is None and not _closed(text, groups, last, end):
            continue
        between = tuple(text[a.end() : b.start()] for a, b in itertools.pairwise(groups[first:last]))
        part = Slice(tuple(group.group() for group in groups[first:last]), between, prefix)
        named_otherwise = not prefix and _SAYS_OTHER.search(text[max(0, start - 24) : start])
        certain = _is_certain(part) and not named_otherwise
        if certain or (
            _is_vague(part) and (_beside_a_word(text, start, end) or _fills_a_field(text, start, end, part))
        ):
            brackets = [letter for piece in between for letter in piece if letter in "()"]
            unclosed = prefix.startswith("(") and brackets[:1] != [")"]
            return start + unclosed, extension.end() if extension else end, last
    return None


_EXTENDS = frozenset("xXeEpPaAdD," + SPACES)


def _prefix(text: str, begin: int) -> str:
    for prefix in ("(+", "+", "("):
        if text.startswith(prefix, begin - len(prefix)) and begin >= len(prefix):
            return prefix
    return ""


def _open(text: str, groups: Sequence[re.Match[str]], first: int, start: int) -> bool:
    """Whether a number may start here: after no letter, and not inside a decimal, a date, a path or a code."""
    before = text[max(0, start - 2) : start]
    if before and _TOUCHES.match(before[-1]):
        return False
    if len(before) == 2 and before[-1] in ".-/:–" and before[0].isdigit():
        return False
    if len(before) == 2 and before[-1] == "/" and _TOUCHES.match(before[0]):
        return False
    return first == 0 or any(space in text[groups[first - 1].end() : groups[first].start()] for space in SPACES)


def _closed(text: str, groups: Sequence[re.Match[str]], last: int, end: int) -> bool:
    after = text[end : end + 2]
    if after and (_TOUCHES.match(after[0]) or after[0] in "%°@"):
        return False
    if len(after) == 2 and after[0] in ".,-/:–" and after[1].isdigit():
        return after[0] == ","
    return last == len(groups) or text[end] in SPACES + ")"


def _fills_a_field(text: str, start: int, end: int, part: Slice) -> bool:
    """Three groups of three that begin with 6, 7 or 9 (Spain, Portugal) and are all of a table's cell or a line."""
    if (
        [len(group) for group in part.groups] != [3, 3, 3]
        or part.groups[0][0] not in "679"
        or set(part.between) != {" "}
    ):
        return False
    return text[start - 1 : start] in _DELIMITERS and text[end : end + 1] in _DELIMITERS


_DELIMITERS = frozenset(("", ",", ";", "|", "\t", "\n", '"'))


def _is_certain(part: Slice) -> bool:
    if "+" in part.prefix:
        return _is_international("".join(part.groups), part)
    first = part.groups[0]
    if first.startswith("00") and len(part.groups) > 2:
        return _is_international("".join(part.groups)[2:], part)
    return _is_north_american(part) or _is_trunk(part) or _is_area_in_parentheses(part)


def _is_international(digits: str, part: Slice) -> bool:
    code = _country_code(digits)
    if code is None or (len(part.groups) == 2 and part.between[0] == "." and len(part.groups[0]) < 2):
        return False
    national = len(digits) - len(code) - ("(0)" in "".join(_interleave(part)))
    return 7 <= national <= _NATIONAL_DIGITS.get(code, 15 - len(code)) and (code != "1" or national == 10)


def _interleave(part: Slice) -> list[str]:
    return [piece for pair in zip(part.groups, (*part.between, ""), strict=True) for piece in pair]


def _country_code(digits: str) -> str | None:
    if digits[0] in "17":
        return digits[0]
    if digits[:2] in _NATIONAL_DIGITS:
        return digits[:2]
    return digits[:3] if _THREE_DIGIT_CODES.match(digits) else None


def _is_north_american(part: Slice) -> bool:
    groups, between = part.groups, part.between
    if len(groups) == 4 and groups[0] == "1":
        groups, between = groups[1:], between[1:]
    if [len(group) for group in groups] != [3, 3, 4] or groups[0][0] in "01":
        return False
    area, line = between
    in_parentheses = area in (")", ") ", ")-", ")\u00a0") and line in ("-", " ", ".")
    return in_parentheses or (area == line and area in ("-", ".", " ", "\u00a0", "\u2011") and groups[1][0] != "0")


def _is_trunk(part: Slice) -> bool:
    """A national number with its trunk prefix 0: 020 7946 0958, 01 23 45 67 89, 0151/84645522, 08-928 571 38."""
    sizes = [len(group) for group in part.groups]
    first = part.groups[0]
    if first[0] != "0" or first[1:2] in ("", "0") or not 9 <= sum(sizes) <= 12 or min(sizes) < 2:
        return False
    if part.groups[1:2] and part.groups[1].startswith("00"):  # the number of a file: 062/000261
        return False
    if len(set(part.between[1:])) > 1 or _is_date(part.groups[:3]) or sizes == _SOCIAL_SECURITY:
        return False
    if part.between and part.between[0] == "." and len(sizes) < 3:
        return False
    if set(sizes) == {2}:
        return len(sizes) == 5
    return 2 <= len(sizes) <= 5 and sizes[0] <= 5 and (len(sizes) > 2 or sizes[1] >= 5)


def _is_area_in_parentheses(part: Slice) -> bool:
    sizes = [len(group) for group in part.groups]
    return (
        part.prefix == "("
        and part.between[:1] in ((")",), (") ",), (")-",))
        and 2 <= sizes[0] <= 5
        and 9 <= sum(sizes) <= 12
        and len(sizes) <= 4
        and min(sizes[1:]) >= 2
    )


def _is_date(groups: tuple[str, ...]) -> bool:
    if len(groups) < 3:
        return False
    sizes = [len(group) for group in groups]
    year = next((int(group) for group in groups if len(group) == 4), 0)
    return sorted(sizes) in ([1, 1, 4], [1, 2, 4], [2, 2, 4]) and 1000 <= year <= 2100


def _is_vague(part: Slice) -> bool:
    sizes = [len(group) for group in part.groups]
    if not 7 <= sum(sizes) <= 12 or len(sizes) > 5 or min(sizes) < 2 or len({*part.between} - {" ", ") "}) > 1:
        return False
    if any(len(separator) > 1 and separator != ") " for separator in part.between) or _is_date(part.groups):
        return False
    if sizes == _SOCIAL_SECURITY or (len(sizes) == 4 and part.between[0] == "." and max(sizes) <= 3):  # an IP address
        return False
    years = all(1000 <= int(group) <= 2100 for group in part.groups) and len(sizes) == 2
    round_number = set(sizes[1:]) == {3} and "".join(part.groups[1:]).strip("0") == ""
    return not years and not round_number


def _beside_a_word(text: str, start: int, end: int) -> bool:
    before = text[max(0, start - 40) : start]
    if _SAYS_OTHER.search(before):
        return False
    return bool(_SAYS_PHONE.search(before) or _LABELLED.match(text, end))
