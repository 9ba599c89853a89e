r"""Telephone numbers in running text.

A *run* is a maximal sequence of digit groups with at most three separators between two of them. A number is a slice of
whole groups of a run. Its shape decides:

- certain shapes count by themselves: international (E.164, written as in E.123 or RFC 3966: `+`, or an exit code 00
  or 011, an assigned country code, at most 15 digits, at least seven or as few as the country's plan has), the North
  American plan (NPA-NXX-XXXX), a trunk prefix 0 with nine to twelve digits in groups, an area code in parentheses,
  mobile numbers whose plan fixes first digits and groups, and what a link to WhatsApp names;
- vague shapes (seven to twelve digits that no calendar, address or serial explains) count only next to a word that
  says so ("call", "Tel.", "móvil", ...), for most such digits are not telephone numbers.

Not found on purpose: digits glued to letters, decimals, dates, ranges of years, IP addresses, version numbers, ISBNs.
"""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

from data_pipeline.pii.detections import SPACES, TOUCHES, WORD, DigitRun

_EXTENSION = re.compile(
    rf"(?:[{SPACES},;]{{0,2}}(?:x|extn?\.?|extension|poste|anexo|Durchwahl|ramal|int(?:erno)?\.|доб\.?)"
    rf"[{SPACES}:=]?[0-9]{{1,6}})(?![{WORD}])",
    re.I,
)

# A noun may precede the number by some words; a verb, which has other uses, only with nothing technical between.
_SAYS_PHONE = re.compile(
    r"(?:(?:phone|\bt[eé]l\b|\b(?:tlf|telf|tfno)\b|mobile\b|mobil\b|(?<!\.)\bcell\b"
    r"|\bfax|whatsapp|\bsms\b|hotline|helpline|contact|handy|voice ?mail"
    r"|\bpager|toll.?free|viber|telegram|telefon|anruf|rückruf|durchwahl|erreichbar|móvil|teléfono|portable|téléphone"
    r"|celular|contato|telemóvel|cellulare|telefoon|mobiel|komórk|puhelin|\bτηλ|\bтел(?:ефон|\b)|звон[иоя]"
    r"|\bмоб(?:ильн|\b)|\bκιν(?:ητ|\b)|\bcep (?:tel|no|num)|\bsđt\b|\bpuh\b|\bmobilnr|\bcelu\b|\bmob\.? ?n[ro]\b"
    r"|电话|手机|联系|致电|拨打|微信(?!支付)|電話|携帯"
    r"|전화|연락|फ़ोन|फोन|मोबाइल|कॉल|هاتف|جوال|موبايل|اتصل|טלפון|נייד|โทร|điện thoại|\btelp\b|\bhp\b)[^0-9]{0,24}"
    r"|(?:\bcall|\bdial(?:s|ed|l?ing)?\b|answer(?:s|ed|ing)? (?:at|on)|messag(?:es?|ing) (?:to|at|on|from)"
    r"|\bring(?:ing)?\b|\brang\b|\btext(?:s|ed|ing)? (?:me|us|him|her|them|to|at|on)\b"
    r"|\bll[aá]m[ae]|mensajes? al?\b|\bm[aá]r(?:ca al?|(?:c(?:ame|ar|ando)|quen?) (?:al?|el))\b"
    r"|\bescr[ií]b[ae](?:me|nos)\b"
    r"|appel(?:ez|er|le-(?:moi|nous))|joindre|\bligue|\bliga(?:r|-me|-nos| (?:para|pra|no)\b)|chiama|scriv(?:imi|ici)"
    r"|\bbellen|\bbel\b|\bapp (?:me|ons)\b|\bruf(?:e|t|en)? (?:mich|uns|sie|ihn|bitte)\b"
    r"|\bmelde(?:n sie sich|t euch| dich)\b"
    r"|ringa|\bsoit(?:a|taa|akaa|telkaa)\b|\b(?:za)?dzwoń|\b(?:za)?vol(?:ej|aj)(?:te|me)?\b|\bh[ií]vj(?:on|a|anak)?\b"
    r"|\bsun(?:ați|aţi|ati|ă)(?:-m[ăa]|-ne| la)\b|\bобад[иеѝ]|телефонуй|\bκαλ[έε]στε|\b(?:beni|bizi) ara|\baray[ıa]"
    r"|התקשר|\bgọi\b|\bhubungi|\bnipigie)[^0-9=(<>|.\n\"]{0,24}"
    r"|(?:(?:my|her|his|our|your|their|mein|meine|seine|ihre|mon|son|notre|mi|su|meu|seu|mio|this|the|mijn|mitt|m[oó]j"
    r"|m[uů]j|мой|мій|моят) (?:\w{1,12} )?(?:number|nummer|numéro|número|numero|numer|číslo|broj|номер)"
    r"|nummeret mitt|numeroni|numărul (?:meu|nostru)|رقم(?:ي|نا)|मेरा नंबर|我的号码|nomor saya"
    r")(?:\s(?:is|at|on|ist|es|est|è|é|är|er|to|je|este|e))?[\s:.是\-]{0,3}"
    r"|(?:\b(?:mob|ph|cel|cep|kom(?=\.))\b|office|desk|home|work|ruf|fijo|reach (?:me|us|him|her|them))"
    r"(?:\s(?:is|at|on|ist|es|est|è|é))?[\s:.\-]{0,3})\Z",
    re.I,
)
_POSTAL_CODE = re.compile(r"\bcep\b[^0-9]{0,12}\Z", re.I)
_POSTAL_DIGITS = 8  # of a Brazilian CEP; a Turkish "cep" number has ten or more
_LABELLED = re.compile(
    r"[\s,;(\-–\\]{0,4}(?:office|fax|mobile|cell|home|work|desk|tel|phone|mobil|handy|portable)\b", re.I
)
_SAYS_OTHER = re.compile(
    r"(?:isbn|issn|\bdoi|order|invoice|ticket|serial|sku|uuid|\bean\b|account|\bref|\bid\b|[#$€£¥])[^0-9\n]{0,12}\Z",
    re.I,
)

_LINK = re.compile(r"(?:\bwa\.me/|\bwhatsapp(?:\.com/|://)send/?\?phone=)\Z", re.I)
_SAYS_LOTTERY = re.compile(
    r"\blott[oe]|\bloter[ií]|jackpot|powerball|\bdrawn?\b|\bdraws\b|\bkeno|tirage|ziehung|gewinnzahl|sorteo|sorteio|estrazion",
    re.I,
)
_LINE_OF_PAIRS = re.compile(r"[^\n]*?(?<![0-9])([0-9]{2}(?:[ \-][0-9]{2}){4,})(?![0-9])")

# National digits at most, by country code (ITU-T E.164 and its operational bulletins); others: what 15 leaves.
_NATIONAL_DIGITS = {
    "1": 10, "7": 10, "20": 10, "27": 9, "30": 10, "31": 9, "32": 9, "33": 9, "34": 9, "36": 9, "39": 11, "40": 9,
    "41": 9, "43": 13, "44": 10, "45": 8, "46": 9, "47": 8, "48": 9, "49": 11, "51": 9, "52": 11, "54": 11, "55": 11,
    "56": 9, "57": 10, "58": 10, "60": 10, "61": 9, "62": 12, "63": 10, "64": 10, "65": 8, "66": 9, "81": 10,
    "82": 10, "84": 10, "86": 11, "90": 10, "91": 10, "92": 10, "93": 9, "94": 9, "95": 10, "98": 10, "53": 8,
    "351": 9, "352": 9, "353": 9, "354": 9, "356": 8, "357": 8, "358": 11, "359": 9, "370": 8, "371": 8, "372": 8,
    "380": 9, "385": 9, "386": 8, "420": 9, "421": 9, "852": 8, "886": 9, "971": 9, "972": 9,
}  # fmt: skip
# The shortest national numbers where they have fewer than seven digits (ITU-T E.164, national numbering plans).
_SHORT_NATIONAL_DIGITS = {
    "247": 5, "290": 4, "298": 6, "299": 6, "352": 6, "376": 6, "500": 5, "508": 6, "597": 6, "672": 5, "676": 5,
    "677": 5, "678": 5, "681": 6, "682": 5, "683": 4, "685": 5, "686": 5, "687": 6, "688": 5, "690": 4,
}  # fmt: skip
_THREE_DIGIT_CODES = re.compile("2[1-69]|35|37|38|42|50|59|67|68|69|80|85|87|88|96|97|99")

_SOCIAL_SECURITY = [3, 2, 4]  # the digit groups of a US social security number


class Slice(NamedTuple):
    """Groups i..j of a run, by which shapes are judged."""

    groups: tuple[str, ...]
    between: tuple[str, ...]
    prefix: str
    """ "+", "(" or "(+" directly before the first group, else ""."""

    @property
    def sizes(self) -> list[int]:
        """Number of digits in each group."""
        return [len(group) for group in self.groups]


def phone_at(text: str, run: DigitRun, first: int) -> tuple[int, int, int] | None:
    """The longest telephone number that begins with group `first`.

    The result is its start, its end, and the next group to look at.
    """
    begin = run.starts[first]
    prefix = _prefix(text, begin)
    start = begin - len(prefix)
    stop = min(first + 7, len(run.ends))
    if not _may_begin(text, run, first, stop, prefix):
        return None
    digits = 0
    totals = [digits := digits + run.ends[group] - run.starts[group] for group in range(first, stop)]
    linked = first == 0 and _LINK.search(text[max(0, start - _LINE) : start]) is not None
    if digits < 7 or not (linked or _opens(text, run, first, start)):
        return None
    groups = [text[run.starts[group] : run.ends[group]] for group in range(first, stop)]
    # Inside a run only separators and digits precede a number, so no word names it there.
    before = text[max(0, start - 40) : start] if first == 0 else ""
    otherwise = bool(before) and not prefix and _SAYS_OTHER.search(before[-24:]) is not None
    for count in range(stop - first, 0, -1):
        if not 7 <= totals[count - 1] <= 18:  # 15 of E.164, and the exit code before them
            continue
        last = first + count - 1
        end = run.ends[last]
        ends_run = last == len(run.ends) - 1
        extension = _EXTENSION.match(text, end) if ends_run and text[end : end + 1] in _EXTENDS else None
        second = _has_second_line(text, run, last)
        if extension is None and not second and not _closes(text, run, last, end):
            continue
        part = Slice(tuple(groups[:count]), tuple(run.between[first:last]), prefix)
        named = (before or ends_run) and _is_named(text, start, end, part)
        if (
            named
            or (linked and count == 1 and _is_international(part.groups[0], part))
            or (not otherwise and _is_certain(part) and not _is_in_a_list(text, run, first, part))
        ):
            end = extension.end() if extension else run.ends[last + second]
            return start + _opens_unclosed(part), end, first + count + second
    return None


def _has_second_line(text: str, run: DigitRun, last: int) -> bool:
    """Return whether the last digits of a second line follow: 555-2671/72."""
    return (
        last == len(run.ends) - 2
        and run.between[last].strip() == "/"
        and run.ends[last + 1] - run.starts[last + 1] == 2
        and _closes(text, run, last + 1, run.ends[last + 1])
    )


def _is_in_a_list(text: str, run: DigitRun, first: int, part: Slice) -> bool:
    """Return whether the groups are of a list, not of a number.

    They count up by one, are some of a longer list of pairs of digits, or drawn numbers: five pairs in ascending order,
    next to a line of such pairs or a word for a lottery.
    """
    numbers = [int(group) for group in part.groups]
    if len(numbers) > 2 and all(after - before == 1 for before, after in itertools.pairwise(numbers)):
        return True
    if set(part.sizes) != {2} or len(part.groups) != 5 or part.prefix:
        return False
    sizes = {end - start for start, end in zip(run.starts, run.ends, strict=True)}
    if sizes == {2} and len(run.ends) % 5 > 0:
        return True
    if not _ascends(numbers):
        return False
    if (
        sizes == {2}
        and len(run.ends) > 5
        and _ascends([int(text[a:b]) for a, b in zip(run.starts, run.ends, strict=True)])
    ):
        return True
    begin, end = run.starts[first], run.ends[first + 4]
    line, after = text.rfind("\n", max(0, begin - _LINE), begin), text.find("\n", end, end + _LINE)
    lines = [text[max(0, line - _LINE) : line].rpartition("\n")[2]] if line >= 0 else []
    lines += [text[after + 1 : after + 1 + _LINE]] if after >= 0 else []
    rows = [found[1] for found in map(_LINE_OF_PAIRS.match, lines) if found]
    pairs = [[int(pair) for pair in re.split("[ -]", row)] for row in rows]
    if any(_ascends(row[place : place + 5]) for row in pairs for place in range(len(row) - 4)):
        return True
    return _SAYS_LOTTERY.search(text[max(0, begin - _LINE) : begin]) is not None


_LINE = 80  # characters of a line that are looked at


def _ascends(numbers: list[int]) -> bool:
    return all(before < after for before, after in itertools.pairwise(numbers))


def _opens_unclosed(part: Slice) -> bool:
    """Return whether the bracket before the number is not closed within it."""
    brackets = [letter for piece in part.between for letter in piece if letter in "()"]
    return part.prefix.startswith("(") and brackets[:1] != [")"]


def _may_begin(text: str, run: DigitRun, first: int, stop: int, prefix: str) -> bool:
    """Return False if no telephone shape can begin here.

    A word may name the first group of a run from before and the last from behind; all between must begin a certain
    shape: with a sign, a 0, or groups as wide as a plan has them.
    """
    if first == 0 or prefix or stop == len(run.ends) or text[run.starts[first]] == "0":
        return True
    sizes = [run.ends[group] - run.starts[group] for group in range(first, min(first + 3, stop))]
    if sizes[:2] == [2, 2]:
        return run.between[first] == "-"
    return sizes in ([3, 3, 4], [3, 4, 4]) or sizes[:2] in ([2, 5], [1, 3])


_EXTENDS = frozenset("xXeEpPaAdDrRiIдД,;" + SPACES)


def _prefix(text: str, begin: int) -> str:
    for prefix in ("(+", "+", "("):
        if text.startswith(prefix, begin - len(prefix)) and begin >= len(prefix):
            return prefix
    return ""


def _opens(text: str, run: DigitRun, first: int, start: int) -> bool:
    """Return whether a number may start here.

    It may not start after a letter, nor inside a decimal, a date, a path or code.
    """
    before = text[max(0, start - 2) : start]
    if before and TOUCHES.match(before[-1]):
        return False
    if len(before) == 2 and before[-1] in ".-/:–" and before[0].isdigit():
        return False
    if len(before) == 2 and before[-1] == "/" and TOUCHES.match(before[0]):
        return False
    return run.opens(first)


def _closes(text: str, run: DigitRun, last: int, end: int) -> bool:
    after = text[end : end + 2]
    if after and (TOUCHES.match(after[0]) or after[0] in "%°@"):
        return False
    if len(after) == 2 and after[0] in ".,-/:–" and after[1].isdigit():
        return after[0] == ","
    return run.closes(last)


def _is_named(text: str, start: int, end: int, part: Slice) -> bool:
    if not _is_vague(part):
        return False
    return near_phone_word(text, start, end) or _fills_a_field(text, start, end, part)


def _fills_a_field(text: str, start: int, end: int, part: Slice) -> bool:
    """Return whether three groups fill a table cell or line.

    They are three groups of three that begin with 6, 7 or 9 (Spain, Portugal).
    """
    if part.sizes != [3, 3, 3] or part.groups[0][0] not in "679" or set(part.between) != {" "}:
        return False
    return text[start - 1 : start] in _DELIMITERS and text[end : end + 1] in _DELIMITERS


_DELIMITERS = frozenset(("", ",", ";", "|", "\t", "\n", '"'))


def _is_certain(part: Slice) -> bool:
    if "+" in part.prefix:
        return _is_international("".join(part.groups), part)
    first = part.groups[0]
    if not part.prefix and first[0] not in "018" and (len(part.groups) < 3 or len(first) > 3):
        return False  # the shapes below begin with 0, 1, 8 or a bracket, or have three groups
    if first.startswith("00") and len(part.groups) > 2:
        return _is_international("".join(part.groups)[2:], part)
    if first == "011" and len(part.groups) > 3:
        return _is_international("".join(part.groups)[3:], part)
    return _is_north_american(part) or _is_trunk(part) or _is_area_in_parentheses(part) or _is_mobile(part)


def _is_international(digits: str, part: Slice) -> bool:
    code = _country_code(digits)
    if code is None or (len(part.groups) == 2 and part.between[0] == "." and len(part.groups[0]) < 2):
        return False
    if any(". " in piece for piece in part.between):  # the sentence ends with the number
        return False
    national = len(digits) - len(code) - ("(0)" in "".join(_interleave(part)))
    if national < 7:
        return _is_short_international(code, national, part)
    return national <= _NATIONAL_DIGITS.get(code, 15 - len(code)) and (code != "1" or national == 10)


def _is_short_international(code: str, national: int, part: Slice) -> bool:
    """Return whether it is a small country's number.

    Its country code is a group of its own after a "+" (+376 712 345): +376712345 may as well be an amount.
    """
    return (
        "+" in part.prefix
        and part.groups[0] == code
        and all(len(piece) == 1 for piece in part.between)
        and national >= _SHORT_NATIONAL_DIGITS.get(code, 7)
    )


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
    in_parentheses = area in (")", ") ", ")-") and line in ("-", " ", ".")
    alike = (area == line and area in ("-", ".", " ")) or (area in " /" and line == "-")
    return in_parentheses or (alike and groups[1][0] != "0")


def _is_trunk(part: Slice) -> bool:
    """Return whether it is a national number with its trunk prefix 0.

    Examples are 020 7946 0958, 01 23 45 67 89, 0151/84645522, 08-928 571 38 and 030 12345-0.
    """
    sizes = _sizes_with_switchboard(part)
    first = part.groups[0]
    if first[0] != "0" or first[1:2] in ("", "0") or not 9 <= sum(sizes) <= 12 or min(sizes) < 2:
        return False
    if part.groups[1:2] and part.groups[1].startswith("00"):  # the number of a file: 062/000261
        return False
    if (
        len(set(part.between[1:])) > 1
        or any("  " in piece for piece in part.between)
        or _is_date(part.groups[:3])
        or sizes == _SOCIAL_SECURITY
    ):
        return False
    if part.between and part.between[0] == "." and len(sizes) < 3:
        return False
    if set(sizes) == {2}:
        return len(sizes) == 5
    return 2 <= len(sizes) <= 5 and sizes[0] <= 5 and (len(sizes) > 2 or sizes[1] >= 5)


def _sizes_with_switchboard(part: Slice) -> list[int]:
    """Group sizes, a last "-0" being part of the one before.

    It reaches an organisation's switchboard (DIN 5008).
    """
    sizes = part.sizes
    if len(sizes) > 2 and part.between[-1] == "-" and part.groups[-1] == "0":
        return [*sizes[:-2], sizes[-2] + 1]
    return sizes


def _is_area_in_parentheses(part: Slice) -> bool:
    """Return whether it is a number with its area code in parentheses.

    Examples are (030) 901820, (11) 91234-5678 and (37) 788-063, and with a trunk 8 before, 8 (495) 123-45-67.
    """
    prefix, groups, between = part.prefix, part.groups, part.between
    if groups[0] == "8" and between[:1] in ((" (",), ("(",), ("-(",)):
        prefix, groups, between = "(", groups[1:], between[1:]
    sizes = _sizes_with_switchboard(Slice(groups, between, prefix))
    year = len(groups[0]) == 4 and groups[0][:2] in ("18", "19", "20")
    return (
        prefix == "("
        and between[:1] in ((")",), (") ",), (")-",))
        and set(between[1:]) <= {" ", "-", "."}
        and not year
        and 2 <= sizes[0] <= 5
        and (9 if len(sizes) == 2 else 8) <= sum(sizes) <= 12
        and len(sizes) <= 5
        and min(sizes[1:]) >= 2
    )


def _is_mobile(part: Slice) -> bool:
    """Return whether it fits a plan that fixes first digits and groups.

    Examples are China's 138-0013-8000, Brazil's 11 91234-5678, Denmark's 60-56-85-91 and Russia's 8 916 123-45-67.
    """
    shape = "".join(_interleave(Slice(tuple(str(size) for size in part.sizes), part.between, "")))
    first = part.groups[0]
    if shape in ("3-4-4", "3 4 4"):
        return first[0] == "1" and first[1] in "3456789"
    if first == "8" and shape in ("1-3-3-2-2", "1 3 3 2 2", "1 3 3-2-2"):  # Russia's trunk prefix
        return part.groups[1][0] in "3489"
    if shape == "2 5-4":
        return part.groups[1][0] == "9" and first[0] != "0"
    return shape == "2-2-2-2" and len(set(part.groups)) > 1


def _is_date(groups: tuple[str, ...]) -> bool:
    if len(groups) < 3:
        return False
    sizes = [len(group) for group in groups]
    year = next((int(group) for group in groups if len(group) == 4), 0)
    return sorted(sizes) in ([1, 1, 4], [1, 2, 4], [2, 2, 4]) and 1000 <= year <= 2100


def _is_vague(part: Slice) -> bool:
    sizes = part.sizes
    if len(sizes) == 1 and part.groups[0].startswith("00") and 11 <= sizes[0] <= 17:
        return _is_international(part.groups[0][2:], part)
    if not 7 <= sum(sizes) <= 12 or len(sizes) > 5 or min(sizes) < 2 or len({*part.between} - {" ", ") "}) > 1:
        return False
    if any(len(separator) > 1 and separator != ") " for separator in part.between) or _is_date(part.groups):
        return False
    if sizes == _SOCIAL_SECURITY or (len(sizes) == 4 and part.between[0] == "." and max(sizes) <= 3):  # an IP address
        return False
    years = all(1000 <= int(group) <= 2100 for group in part.groups) and len(sizes) == 2
    round_number = set(sizes[1:]) == {3} and "".join(part.groups[1:]).strip("0") == ""
    return not years and not round_number


def near_phone_word(text: str, start: int, end: int) -> bool:
    """Return whether a nearby word indicates a telephone number."""
    before = text[max(0, start - 40) : start]
    if _SAYS_OTHER.search(before):
        return False
    if sum(map(str.isdigit, text[start:end])) == _POSTAL_DIGITS and _POSTAL_CODE.search(before):
        return False
    return bool(_SAYS_PHONE.search(before) or _LABELLED.match(text, end))
