"""Validation of national ids: check digits, dates, assigned ranges.

Each check takes the number without separators, letters in upper case, of the right length, and says whether it can
have been issued. Most are python-stdnum's. A check is our own where the library's reads today's date (be, no, se, dk,
za: the same text must always give the same detections), refuses numbers that were issued (cn, the sex X of mx, eight
digits of au, the 0 before ca) or is missing (uk_nino, hu, lu, mt). The source named is the office's own
publication, or the law that sets the rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib import import_module

from stdnum import luhn, verhoeff

_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def by_library(name: str, shape: str = "") -> Callable[[str], bool]:
    """Make a check of a module of python-stdnum.

    `shape` is a regular expression that a number must match, too.

    Some of its modules raise KeyError or IndexError where a digit is out of their tables: such a number is not valid.
    """
    validate, narrowed = import_module(f"stdnum.{name}").validate, re.compile(shape)

    def passes(number: str) -> bool:
        if len(set(number)) == 1 or not narrowed.match(number):
            return False
        try:
            validate(number)
        except (ValueError, LookupError):  # the library's ValidationError is a ValueError
            return False
        return True

    return passes


us_ssn = by_library("us.ssn")
us_itin = by_library("us.itin")
br_cpf = by_library("br.cpf")
uk_nhs = by_library("gb.nhs")
# Sex, year, month (from 20 on: it was not known) and the key 97 - n mod 97 (INSEE).
fr_nir = by_library("fr.nir", "[1-478][0-9]{2}(?:0[1-9]|1[0-2]|[23][0-9]|4[0-2]|[5-9][0-9])")
de_steuer_id = by_library("de.idnr")
it_codice_fiscale = by_library("it.codicefiscale", "[A-Z]")
nl_bsn = by_library("nl.bsn")
ch_ahv = by_library("ch.ssn")
pl_pesel = by_library("pl.pesel", "[0-9]{2}[0-3]")  # born from 1900 to 2099
fi_hetu = by_library("fi.hetu")
tr_kimlik = by_library("tr.tckimlik")
in_aadhaar = by_library("in_.aadhaar")
in_pan = by_library("in_.pan")
kr_rrn = by_library("kr.rrn")
at_vsnr = by_library("at.vnr")
bg_egn = by_library("bg.egn")
cy_tic = by_library("cy.vat", "[09]")  # numbers of persons; companies have others
hr_oib = by_library("hr.oib")
cz_rodne_cislo = by_library("cz.rc")  # also for Slovakia, where the rule is the same
ee_isikukood = by_library("ee.ik", "[1-6]")
gr_amka = by_library("gr.amka")
ie_pps = by_library("ie.pps")
lt_asmens_kodas = by_library("lt.asmens", "[1-6]")
lv_personas_kods = by_library("lv.pvn", "32|[0-3][0-9][01][0-9]{3}[0-2]")  # since 2017 without a date of birth
pt_nif = by_library("pt.nif", "[123]|45")  # numbers of persons; companies have others
ro_cnp = by_library("ro.cnp")
si_emso = by_library("si.emso", "[0-9]{4}[09]")  # born from 1900 to 2099

_DNI, _NIE = by_library("es.dni"), by_library("es.nie")


def es_dni(number: str) -> bool:
    """DNI or NIE: the letter of the number modulo 23.

    The source is Real Decreto 1553/2005.
    """
    return _NIE(number) if number[0] in "XYZ" else _DNI(number)


def ca_sin(number: str) -> bool:
    """Luhn; 8 begins business numbers, 0 tax numbers of persons.

    The source is Employment and Social Development Canada.
    """
    return number[0] != "8" and number != "000000000" and luhn.is_valid(number)


def digit_sum(digits: str, weights: Sequence[int]) -> int:
    """The sum of the digits, each by its weight."""
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False))


def _is_day(month: int, day: int) -> bool:
    return 1 <= month <= 12 and 1 <= day <= _DAYS[month - 1]


_NINO = re.compile("(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z][0-9]{6}[A-D]")


def uk_nino(number: str) -> bool:
    """Prefixes and suffixes in use (HMRC, National Insurance Manual NIM39110)."""
    return _NINO.fullmatch(number) is not None


def be_rrn(number: str) -> bool:
    """Belgian national number: date and 97 - n mod 97.

    Months over 20 and 40 are of the bis register; a 2 is put in front from 2000 on (Rijksregister).
    """
    month, day = int(number[2:4]), int(number[4:6])
    if month % 20 > 12 or month > 52 or day > 31:
        return False
    head, check = int(number[:9]), int(number[9:])
    return check in (97 - head % 97, 97 - (2_000_000_000 + head) % 97)


def se_personnummer(number: str) -> bool:
    """Swedish personal number: date and Luhn over ten digits.

    Days over 60 mark a coordination number (Skatteverket, SKV 704).
    """
    if len(number) == 12 and number[:2] not in ("19", "20"):
        return False
    ten = number[-10:]
    return _is_day(int(ten[2:4]), (int(ten[4:6]) - 1) % 60 + 1) and luhn.is_valid(ten)


def no_fodselsnummer(number: str) -> bool:
    """Norwegian national number: date and two digits modulo 11.

    Days over 40 mark a D number (Skatteetaten).
    """
    if not _is_day(int(number[2:4]), (int(number[:2]) - 1) % 40 + 1):
        return False
    first = digit_sum(number, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1)) % 11
    return first == 0 and digit_sum(number, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0


def dk_cpr(number: str) -> bool:
    """Danish CPR number issued before 2007: date and weights modulo 11 (CPR-kontoret)."""
    return is_danish_day(number) and digit_sum(number, (4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0


def is_danish_day(number: str) -> bool:
    """Return whether the number begins with a date.

    That is the only proof of numbers issued since 2007.
    """
    return _is_day(int(number[2:4]), int(number[:2]))


def hu_taj(number: str) -> bool:
    """Hungarian social security number: weights 3 and 7 modulo 10.

    The source is Act LXXXIII of 1997.
    """
    return len(set(number)) > 1 and digit_sum(number[:8], (3, 7) * 4) % 10 == int(number[8])


def hu_adoazonosito(number: str) -> bool:
    """Hungarian tax number of a person: 8, days since 1867, modulo 11.

    The source is Act XX of 1996.
    """
    return number[0] == "8" and digit_sum(number[:9], range(1, 10)) % 11 == int(number[9])


def hu_szemelyi(number: str) -> bool:
    """Hungarian personal number: sex and century, date, modulo 11.

    The weights rise for those born until 1996 and fall for those born since (Act XX of 1996).
    """
    if number[0] not in "1234" or not _is_day(int(number[3:5]), int(number[5:7])):
        return False
    rises, falls = range(1, 11), range(10, 0, -1)
    weights = falls if number[0] in "34" or number[1:3] > "96" else rises
    return digit_sum(number[:10], weights) % 11 == int(number[10])


def lu_matricule(number: str) -> bool:
    """Luxembourg's number: date, Luhn of 12, Verhoeff of 11 digits.

    The source is the law of 19 June 2013.
    """
    if number[:2] not in ("18", "19", "20") or not _is_day(int(number[4:6]), int(number[6:8])):
        return False
    return luhn.is_valid(number[:12]) and verhoeff.is_valid(number[:11] + number[12])


_MALTESE = re.compile("[0-9]{1,7}[ABGHLMPZ]")


def mt_id(number: str) -> bool:
    """Maltese identity card: a serial, the year, a letter, no check.

    The source is Identity Malta.
    """
    return _MALTESE.fullmatch(number) is not None and len(set(number)) > 3


_PROVINCES = frozenset([*range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47), *range(50, 55),
                        *range(61, 66), 71, 81, 82, 83])  # fmt: skip


def cn_resident_id(number: str) -> bool:
    """A province, a date, and ISO 7064 MOD 11-2, X for ten.

    The source is GB 11643-1999.
    """
    if not number[:17].isdigit() or int(number[:2]) not in _PROVINCES or number[6:8] not in ("18", "19", "20"):
        return False
    weights = [pow(2, 17 - place, 11) for place in range(17)]
    proof = "10X98765432"[digit_sum(number[:17], weights) % 11]
    return _is_day(int(number[10:12]), int(number[12:14])) and proof == number[17]


def au_tfn(number: str) -> bool:
    """Weights modulo 11, for eight and nine digits (Australian Taxation Office)."""
    weights = (1, 4, 3, 7, 5, 8, 6, 9, 10) if len(number) == 9 else (10, 7, 8, 4, 6, 3, 5, 1)
    return len(set(number)) > 1 and digit_sum(number, weights) % 11 == 0


def za_id(number: str) -> bool:
    """A date, a digit of citizenship and Luhn (Department of Home Affairs)."""
    return _is_day(int(number[2:4]), int(number[4:6])) and number[10] in "012" and luhn.is_valid(number)


_CURP = re.compile(
    "[A-Z][AEIOUX][A-Z]{2}[0-9]{6}[HMX](?:AS|BC|BS|CC|CH|CL|CM|CS|DF|DG|GR|GT|HG|JC|MC|MN|MS|NE|NL|NT|OC|PL|QR|QT|SL"
    "|SP|SR|TC|TL|TS|VZ|YN|ZS)[B-DF-HJ-NP-TV-Z]{3}[0-9A-Z][0-9]"
)


def mx_curp(number: str) -> bool:
    """Mexican CURP: name letters, date, sex, state, digit modulo 10.

    The source is RENAPO.
    """
    if not _CURP.fullmatch(number) or not _is_day(int(number[6:8]), int(number[8:10])):
        return False
    total = sum(
        "0123456789ABCDEFGHIJKLMNÑOPQRSTUVWXYZ".index(letter) * (18 - at) for at, letter in enumerate(number[:17])
    )
    return (10 - total % 10) % 10 == int(number[17])
