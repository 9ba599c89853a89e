"""Shapes of national ids, and the words that must be near.

The rule: a number whose check a random number of its shape passes less than once in a hundred is detected by itself.
With a weaker check (nine digits and one check digit), or without separators and as long as a time stamp (nine or ten
digits), a word that names it must be near. A number that fails its check is never detected.

A *shape* is written with the number of digits of each group, the separators between, and `L` for a letter:
"3-2-4", "11", "6-3L".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from data_pipeline.pii import national_checks as checks
from data_pipeline.pii.detections import TOUCHES, Detection, DigitRun, is_whole_token
from data_pipeline.pii.payment_numbers import CARD_SHAPES
from data_pipeline.pii.phones import near_phone_word
from governance.files import shipped_table

_NEAR = 48  # characters before a number that are searched for its name
_AFTER = 24  # characters after the number


_WORDS = {kind: re.compile(words, re.I) for kind, words in shipped_table(__package__, "national_id_words.toml").items()}
_SAYS_OTHER = re.compile(
    r"(?:isbn|issn|\bdoi|order|invoice|ticket|serial|\bsku|uuid|\bean\b|\bgtin\b|barcode|tracking|bestell|facture"
    r"|pedido|[#$€£¥])[^0-9\n]{0,12}\Z",
    re.I,
)


class _Rule(NamedTuple):
    kind: str
    passes: Callable[[str], bool]
    bare: bool
    """True if it is detected without a word that names it."""


def _any_document(number: str) -> bool:
    """Return whether it may be a passport or a licence.

    These have no check: only the word next to them counts.
    """
    return len(set(number)) > 2


_TABLE: tuple[tuple[str, Callable[[str], bool], str, str], ...] = (
    # type, check, shapes detected by themselves, shapes that need a word; the stronger check first
    ("cn_resident_id", checks.cn_resident_id, "18, 17L", ""),
    ("fr_nir", checks.fr_nir, "15, 13 2, 13-2, 1 2 2 2 3 3 2, 1-2-2-2-3-3-2, 1.2.2.2.3.3.2, 1 2 2 2 3 3-2", ""),
    ("lu_matricule", checks.lu_matricule, "13, 8 3 2, 8-3-2, 8 5, 4 4 3 2, 4 2 2 3 2, 4 2 2 5", ""),
    ("ch_ahv", checks.ch_ahv, "13, 3.4.4.2, 3 4 4 2, 3-4-4-2", ""),
    ("no_fodselsnummer", checks.no_fodselsnummer, "11, 6 5, 6-5", ""),
    ("za_id", checks.za_id, "13, 6 4 3, 6 4 2 1", ""),
    ("fi_hetu", lambda number: checks.fi_hetu(f"{number[:6]}-{number[6:]}"), "6-4, 6-3L", ""),
    ("be_rrn", checks.be_rrn, "11, 2.2.2-3.2, 2.2.2-3-2, 2.2.2 3 2, 2 2 2 3 2, 6-3-2, 6-3.2, 6 3 2", ""),
    ("kr_rrn", checks.kr_rrn, "6-7", "13"),
    ("dk_cpr", checks.dk_cpr, "6-4", ""),
    ("se_personnummer", checks.se_personnummer, "12, 8-4, 6-4", "10, 6 4, 8 4"),
    ("de_steuer_id", checks.de_steuer_id, "11, 2 3 3 3, 3 3 3 2, 2-3-3-3", ""),
    ("pl_pesel", checks.pl_pesel, "11", "6 5, 6-5"),
    ("tr_kimlik", checks.tr_kimlik, "11", "3 3 3 2"),
    ("br_cpf", checks.br_cpf, "3.3.3-2, 11, 3-3-3-2", "3 3 3 2, 3.3.3.2, 9-2"),
    ("ro_cnp", checks.ro_cnp, "13", ""),
    ("si_emso", checks.si_emso, "13", ""),
    ("ee_isikukood", checks.ee_isikukood, "11", ""),
    ("gr_amka", checks.gr_amka, "11", "6 5, 6-5"),
    ("lv_personas_kods", checks.lv_personas_kods, "6-5", "11, 6 5"),
    ("hu_szemelyi", checks.hu_szemelyi, "1-6-4", "11, 1 6 4"),
    ("us_ssn", checks.us_ssn, "3-2-4", "9, 3 2 4, 3.2.4"),
    ("us_ssn", checks.us_itin, "", "3-2-4, 9, 3 2 4"),  # the tax number of persons who have none
    ("dk_cpr", checks.is_danish_day, "", "10, 6-4, 6 4"),
    ("in_aadhaar", checks.in_aadhaar, "", "12, 4 4 4, 4-4-4"),
    ("uk_nhs", checks.uk_nhs, "", "10, 3 3 4, 3-3-4"),
    ("nl_bsn", checks.nl_bsn, "", "9, 3 3 3, 4 2 3, 4.2.3, 3.3.3, 2 3 4, 4.3.2"),
    ("ca_sin", checks.ca_sin, "", "9, 3 3 3, 3-3-3"),
    ("au_tfn", checks.au_tfn, "", "9, 8, 3 3 3, 3-3-3, 2 3 3"),
    ("hu_taj", checks.hu_taj, "", "9, 3 3 3, 3-3-3"),
    ("hu_adoazonosito", checks.hu_adoazonosito, "", "10"),
    ("hr_oib", checks.hr_oib, "", "11"),
    ("lt_asmens_kodas", checks.lt_asmens_kodas, "", "11"),
    ("at_vsnr", checks.at_vsnr, "", "10, 4 6, 4-6"),
    ("bg_egn", checks.bg_egn, "", "10"),
    ("cz_rodne_cislo", checks.cz_rodne_cislo, "", "6/4, 6/3, 10, 6 4"),
    ("pt_nif", checks.pt_nif, "", "9, 3 3 3"),
    ("passport", _any_document, "", "9, 8, 7"),
    ("us_driver_licence", _any_document, "", "7, 8, 9, 10, 12, 4-2-4, 3-3-3, 3 3 3, 3-2-4, 2-3-3, 2 3 3"),
    ("es_dni", checks.es_dni, "8-L, 8 L, 2.3.3-L, 2.3.3L, 2.3.3 L, 2-3-3-L", ""),
)


def _by_shape() -> dict[str, tuple[_Rule, ...]]:
    rules: dict[str, list[_Rule]] = {}
    for kind, passes, alone, named in _TABLE:
        for shapes, bare in ((alone, True), (named, False)):
            for shape in filter(None, shapes.split(", ")):
                rules.setdefault(shape, []).append(_Rule(kind, passes, bare))
    return {shape: tuple(listed) for shape, listed in rules.items()}


_RULES = _by_shape()
_LETTERED = frozenset(shape.rstrip("L").rstrip("- ") for shape in _RULES if shape.endswith("L"))
_NINO_SHAPES = frozenset(("2 2 2", "6", "2-2-2"))
# Every beginning of a shape that means something here or to a card: any other need not be read on.
_BEGINNINGS = frozenset(
    shape[:end]
    for shape in (*_RULES, *_LETTERED, *_NINO_SHAPES, *CARD_SHAPES)
    for end in range(1, len(shape) + 1)
    if not shape[end : end + 1].isdigit()
)


def slice_shapes(run: DigitRun, first: int) -> list[str]:
    """Group shapes from here that begin a shape with a rule."""
    shape = str(run.ends[first] - run.starts[first])
    shapes = [shape]
    for group in range(first + 1, len(run.ends)):
        separator = run.between[group - 1]
        if len(separator) != 1:
            break
        shape += f"{separator}{run.ends[group] - run.starts[group]}"
        if shape not in _BEGINNINGS:
            break
        shapes.append(shape)
    return shapes


def number_at(text: str, run: DigitRun, first: int, shapes: list[str]) -> tuple[Detection, int] | None:
    """Longest national number from this group, and the next group."""
    for count in range(len(shapes), 0, -1):
        shape = shapes[count - 1]
        known = shape in _RULES or shape in _LETTERED or shape in _NINO_SHAPES
        if not known or not run.closes(first + count - 1):
            continue
        start, end = run.starts[first], run.ends[first + count - 1]
        digits = "".join(
            text[a:b] for a, b in zip(run.starts[first : first + count], run.ends[first : first + count], strict=True)
        )
        # Words are outside the run, so the part of the neighbourhood inside it is not searched.
        before = text[max(0, start - _NEAR) : run.starts[0]]
        after = text[run.ends[-1] : end + _AFTER]
        found = _plain(text, Detection(start, end, shape), digits, before, after)
        if found is None and first + count == len(run.ends):
            found = _lettered(text, start, end, shape, digits)
        if found:
            return found, first + count
    return None


def _plain(text: str, place: Detection, number: str, before: str, after: str) -> Detection | None:
    """The number in this place whose type follows from its shape."""
    start, end, shape = place
    rules = _RULES.get(shape, ())
    if not before and not after:
        rules = tuple(rule for rule in rules if rule.bare)
    passed = [rule for rule in rules if rule.passes(number)]
    if not passed or not is_whole_token(text, start, end):
        return None
    named = next((rule for rule in passed if _is_named(rule.kind, before, after)), None)
    if named is None and (named := next((rule for rule in passed if rule.bare), None)) is not None:
        if len(set(number)) < 3:
            return None  # 00000000000 and the like pass many checks
        if text.startswith("+", start - 1) or _SAYS_OTHER.search(before):
            return None
        if shape.isdigit() and len(number) <= 12 and near_phone_word(text, start, end):
            return None  # digits without separators next to "call": a telephone number that happens to pass
    return Detection(start, end, named.kind) if named else None


def _is_named(kind: str, before: str, after: str) -> bool:
    words = _WORDS.get(kind)
    return words is not None and bool(words.search(before) or words.search(after))


def _lettered(text: str, start: int, end: int, shape: str, digits: str) -> Detection | None:
    """A national number with a letter after or before.

    Examples are 131052-308T, 12345678-Z, X-1234567-L and AB 12 34 56 C.
    """
    if shape in _NINO_SHAPES:
        return _nino(text, start, end, digits)
    for gap, mark in ((0, "L"), (1, text[end : end + 1] + "L")):
        last = text[end + gap : end + gap + 1]
        rules = _RULES.get(shape + mark, ())
        if rules and last.isascii() and last.isupper() and is_whole_token(text, start, end + gap + 1):
            rule = rules[0]
            if rule.passes(digits + last):
                return Detection(start, end + gap + 1, rule.kind)
    if shape == "7" and start > 1 and text[start - 2 : start - 1] in tuple("XYZ") and text[start - 1] in "- ":
        last = text[end + 1 : end + 2] if text[end : end + 1] in ("-", " ") else text[end : end + 1]
        stop = end + (text[end : end + 1] in ("-", " ")) + 1
        if last.isascii() and last.isupper() and checks.es_dni(text[start - 2] + digits + last):
            return Detection(start - 2, stop, "es_dni") if is_whole_token(text, start - 2, stop) else None
    return None


def _nino(text: str, start: int, end: int, digits: str) -> Detection | None:
    gap = text[start - 1 : start] in (" ", "-")
    first = start - 2 - gap
    tail = text[end : end + 1] in (" ", "-")
    if first < 0 or len(digits) != 6:
        return None
    prefix, last = text[first : first + 2], text[end + tail : end + tail + 1]
    if prefix.isupper() and checks.uk_nino(prefix + digits + last) and is_whole_token(text, first, end + tail + 1):
        return Detection(first, end + tail + 1, "uk_nino")
    return None


_WORD_TYPES: dict[int, tuple[tuple[str, Callable[[str], bool]], ...]] = {
    9: (("es_dni", checks.es_dni), ("uk_nino", checks.uk_nino)),
    10: (("in_pan", checks.in_pan),),
    11: (("fi_hetu", checks.fi_hetu),),
    15: (("fr_nir", checks.fr_nir),),
    16: (("it_codice_fiscale", checks.it_codice_fiscale),),
    18: (("mx_curp", checks.mx_curp), ("cn_resident_id", checks.cn_resident_id)),
}
_SHAPES_OF_WORDS = re.compile(
    r"[0-9]{8}[A-Z]|[XYZ][0-9]{7}[A-Z]|[A-Z]{2}[0-9]{6}[A-D]|[A-Z]{5}[0-9]{4}[A-Z]|[0-9]{6}[A-FU-Y][0-9]{3}[0-9A-Z]"
    r"|[0-9]{6}2[AB][0-9]{8}|[0-9]{5}2[AB][0-9]{8}|[A-Z]{6}[0-9A-Z]{10}|[A-Z]{4}[0-9]{6}[A-Z]{6}[0-9A-Z][0-9]"
    r"|[0-9]{17}X"
)
_DOCUMENT = re.compile(r"[A-Z]{1,3}[0-9]{5,12}|[0-9]{2}[A-Z]{2}[0-9]{5}|[CFGHJKLMNPRTVWXYZ][0-9A-Z]{8}")
_LOWER_SHAPES = re.compile(
    r"[a-z]{6}[0-9]{2}[a-z][0-9]{2}[a-z][0-9]{3}[a-z]|[0-9]{17}x|[0-9]{8}[a-z]|[xyz][0-9]{7}[a-z]"
)
_LICENCE = re.compile(
    r"[A-Z]{1,2}[0-9]{5,14}|[0-9]{4,12}[A-Z]{1,2}|[A-Z]{2,5}[0-9]{6}[A-Z0-9]{2,6}|[A-Z][0-9]{3}[A-Z0-9]{4,10}"
)
_CYPRIOT = re.compile("[09][0-9]{7}[A-Z]")
_PAN_SHAPE = re.compile("[A-Z]{5}[0-9]{4}[A-Z]")
_PPS_SHAPE = re.compile("[0-9]{7}[A-W][ABHWTX]?")
_SAYS_BIRTH = re.compile(
    r"[^\w]{1,4}(?:date of birth|d\.?o\.?b\b|born|geb|née?\b|nacid|nato|nata|nascid|geboren)", re.I
)
_SAYS_DNI = re.compile(r"\bdni\b|\bnie\b|\bnif\b|codice fiscale|\bc\.?f\.?\b|身份证", re.I)


def word_at(text: str, start: int, end: int) -> Iterator[Detection]:
    """The national number that is this word of letters and digits.

    Lower case counts only next to its name.
    """
    word = text[start:end]
    upper = word.upper()
    if word != upper and not _LOWER_SHAPES.fullmatch(word):
        return
    if (start and TOUCHES.match(text, start - 1)) or not is_whole_token(text, start, end):
        return
    if word != upper and not _SAYS_DNI.search(text[max(0, start - _NEAR) : start]):
        return
    cypriot = len(word) == 9 and _CYPRIOT.fullmatch(upper) and checks.cy_tic(upper)
    if cypriot and _is_named("cy_tic", text[max(0, start - _NEAR) : start], text[end : end + _AFTER]):
        yield Detection(start, end, "cy_tic")
        return
    if _SHAPES_OF_WORDS.fullmatch(upper):
        for kind, passes in _WORD_TYPES.get(len(word), ()):
            if passes(upper):
                yield Detection(start, end, kind)
                return
    yield from _document(text, start, end)


def _document(text: str, start: int, end: int) -> Iterator[Detection]:
    """A passport or licence number, which has no check digit.

    Its name must come before it, or a date of birth after it, as in a record.
    """
    word, before = text[start:end], text[max(0, start - _NEAR) : start]
    if len(word) in (7, 8) and checks.mt_id(word) and _is_named("mt_id", before, ""):
        yield Detection(start, end, "mt_id")
    elif len(word) == 10 and _PAN_SHAPE.fullmatch(word) and _is_named("in_pan", before, ""):
        yield Detection(start, end, "in_pan")
    elif len(word) in (8, 9) and _PPS_SHAPE.fullmatch(word) and _is_named("ie_pps", before, "") and checks.ie_pps(word):
        yield Detection(start, end, "ie_pps")
    elif sum(map(str.isdigit, word)) < 4:
        return
    elif (
        7 <= len(word) <= 10
        and _DOCUMENT.fullmatch(word)
        and (_is_named("passport", before, "") or _SAYS_BIRTH.match(text[end : end + _AFTER]))
    ):
        yield Detection(start, end, "passport")
    elif _LICENCE.fullmatch(word) and _is_named("us_driver_licence", before, ""):
        yield Detection(start, end, "us_driver_licence")
