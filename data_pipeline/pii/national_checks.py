"""Validation of national ids: check digits, dates, assigned ranges.

Each function takes the number without separators, letters in upper case, of the right length, and says whether it can
have been issued. The source named is the office's own publication, or the law that sets the rule.
"""

from __future__ import annotations

import re

from data_pipeline.pii.checksums import digit_sum, is_iso7064_11_10, is_luhn, is_verhoeff

_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def _is_day(month: int, day: int) -> bool:
    return 1 <= month <= 12 and 1 <= day <= _DAYS[month - 1]


def us_ssn(number: str) -> bool:
    """US SSN: valid area, group and serial, no advertised number."""
    area, group, serial = number[:3], number[3:5], number[5:]
    if area in ("000", "666") or area[0] == "9" or group == "00" or serial == "0000":
        return False
    return number not in ("078051120", "219099999")


def ca_sin(number: str) -> bool:
    """Luhn; 8 begins business numbers (Employment and Social Development Canada)."""
    return number[0] != "8" and number != "000000000" and is_luhn(number)


def br_cpf(number: str) -> bool:
    """Two digits modulo 11; ten equal digits are void (Receita Federal)."""
    if len(set(number)) == 1:
        return False
    first = digit_sum(number[:9], range(10, 1, -1)) * 10 % 11 % 10
    second = digit_sum(number[:10], range(11, 1, -1)) * 10 % 11 % 10
    return number[9:] == f"{first}{second}"


_NINO = re.compile("(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z][0-9]{6}[A-D]")


def uk_nino(number: str) -> bool:
    """Prefixes and suffixes in use (HMRC, National Insurance Manual NIM39110)."""
    return _NINO.fullmatch(number) is not None


def uk_nhs(number: str) -> bool:
    """The tenth digit modulo 11 (NHS Data Dictionary)."""
    return len(set(number)) > 1 and (11 - digit_sum(number[:9], range(10, 1, -1)) % 11) % 11 == int(number[9])


def fr_nir(number: str) -> bool:
    """Sex, year, month, department and the key 97 - n mod 97.

    Corsica's 2A and 2B count as 19 and 18 (INSEE).
    """
    plain = number.replace("2A", "19", 1) if number[5:7] == "2A" else number
    plain = plain.replace("2B", "18", 1) if number[5:7] == "2B" else plain
    if not plain.isdigit() or plain[0] not in "123478":
        return False
    month = int(plain[3:5])
    known = 1 <= month <= 12 or 20 <= month <= 42 or month >= 50  # from 20: the month was not known
    return known and 97 - int(plain[:13]) % 97 == int(plain[13:])


def de_steuer_id(number: str) -> bool:
    """German tax id: digit repetition rule and MOD 11,10 (BZSt)."""
    counts = sorted(number[:10].count(digit) for digit in set(number[:10]))
    return number[0] != "0" and counts[-1] in (2, 3) and counts[-2] == 1 and is_iso7064_11_10(number)


_DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"


def es_dni(number: str) -> bool:
    """DNI or NIE: the letter of the number modulo 23.

    X, Y, Z count as 0, 1, 2 (Real Decreto 1553/2005).
    """
    digits = number[:-1].translate(str.maketrans("XYZ", "012"))
    return digits.isdigit() and _DNI_LETTERS[int(digits) % 23] == number[-1]


_CODICE = re.compile("[A-Z]{6}[0-9L-NP-V]{2}[ABCDEHLMPRST][0-9L-NP-V]{2}[A-Z][0-9L-NP-V]{3}[A-Z]")
_CODICE_ODD = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)


def it_codice_fiscale(number: str) -> bool:
    """Italian codice fiscale: check letter modulo 26, omocodia included.

    Decreto ministeriale 23 December 1976.
    """
    if not _CODICE.fullmatch(number):
        return False
    places = [int(letter, 36) - (0 if letter.isdigit() else 10) for letter in number]
    total = sum(place if at % 2 else _CODICE_ODD[place] for at, place in enumerate(places[:15]))
    return total % 26 == places[15]


def nl_bsn(number: str) -> bool:
    """The eleven test (Wet algemene bepalingen burgerservicenummer)."""
    return number != "000000000" and digit_sum(number, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0


def be_rrn(number: str) -> bool:
    """Belgian national number: date and 97 - n mod 97.

    Months over 20 and 40: the bis register; a 2 in front from 2000 on (Rijksregister).
    """
    month, day = int(number[2:4]), int(number[4:6])
    if month % 20 > 12 or month > 52 or day > 31:
        return False
    head, check = int(number[:9]), int(number[9:])
    return check in (97 - head % 97, 97 - (2_000_000_000 + head) % 97)


def ch_ahv(number: str) -> bool:
    """The country 756 and the check digit of EAN-13 (Zentrale Ausgleichsstelle)."""
    return number.startswith("756") and digit_sum(number, (1, 3) * 6 + (1,)) % 10 == 0


def pl_pesel(number: str) -> bool:
    """Polish PESEL: date with century, weights 1, 3, 7, 9.

    Ustawa o ewidencji ludności.
    """
    month = int(number[2:4])
    in_use = 1 <= month <= 12 or 21 <= month <= 32  # born from 1900 to 2099
    weights = (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)
    return in_use and _is_day(month % 20, int(number[4:6])) and digit_sum(number, weights) % 10 == 0


def se_personnummer(number: str) -> bool:
    """Swedish personal number: date and Luhn over ten digits.

    Days over 60: a coordination number (Skatteverket, SKV 704).
    """
    if len(number) == 12 and number[:2] not in ("19", "20"):
        return False
    ten = number[-10:]
    return _is_day(int(ten[2:4]), (int(ten[4:6]) - 1) % 60 + 1) and is_luhn(ten)


def no_fodselsnummer(number: str) -> bool:
    """Norwegian national number: date and two digits modulo 11.

    Days over 40: a D number (Skatteetaten).
    """
    if not _is_day(int(number[2:4]), (int(number[:2]) - 1) % 40 + 1):
        return False
    first = digit_sum(number, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1)) % 11
    return first == 0 and digit_sum(number, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0


def fi_hetu(number: str) -> bool:
    """Finnish HETU: date, century sign, letter modulo 31.

    Digi- ja väestötietovirasto.
    """
    digits = number[:6] + number[7:10]
    if not digits.isdigit() or number[6] not in "+-ABCDEFYXWVU" or not _is_day(int(number[2:4]), int(number[:2])):
        return False
    return "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(digits) % 31] == number[10]


def dk_cpr(number: str) -> bool:
    """A date and the weights modulo 11 (CPR-kontoret).

    Numbers issued since 2007 need not pass the latter.
    """
    return is_danish_day(number) and digit_sum(number, (4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0


def is_danish_day(number: str) -> bool:
    """Return whether a date begins it.

    What is left of the proof since 2007.
    """
    return _is_day(int(number[2:4]), int(number[:2]))


def tr_kimlik(number: str) -> bool:
    """The tenth and eleventh digit from the sums of the others.

    Nüfus ve Vatandaşlık İşleri.
    """
    odd, even = sum(map(int, number[0:9:2])), sum(map(int, number[1:8:2]))
    return (
        number[0] != "0"
        and (7 * odd - even) % 10 == int(number[9])
        and (odd + even + int(number[9])) % 10 == int(number[10])
    )


def in_aadhaar(number: str) -> bool:
    """Verhoeff; the first digit is 2 to 9 (UIDAI)."""
    return number[0] not in "01" and is_verhoeff(number)


_PAN = re.compile("[A-Z]{3}[ABCFGHJLPT][A-Z][0-9]{4}[A-Z]")


def in_pan(number: str) -> bool:
    """Five letters, the fourth a kind of holder.

    Four digits; a letter (Income Tax Department).
    """
    return _PAN.fullmatch(number) is not None


_PROVINCES = frozenset([*range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47), *range(50, 55),
                        *range(61, 66), 71, 81, 82, 83])  # fmt: skip


def cn_resident_id(number: str) -> bool:
    """A province, a date, and ISO 7064 MOD 11-2, X for ten.

    GB 11643-1999.
    """
    if not number[:17].isdigit() or int(number[:2]) not in _PROVINCES or number[6:8] not in ("18", "19", "20"):
        return False
    weights = [pow(2, 17 - place, 11) for place in range(17)]
    proof = "10X98765432"[digit_sum(number[:17], weights) % 11]
    return _is_day(int(number[10:12]), int(number[12:14])) and proof == number[17]


def kr_rrn(number: str) -> bool:
    """Korean RRN: date, sex and century digit, digit modulo 11.

    Ministry of the Interior and Safety.
    """
    check = (11 - digit_sum(number[:12], (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)) % 11) % 10
    return number[6] in "12345678" and _is_day(int(number[2:4]), int(number[4:6])) and check == int(number[12])


def au_tfn(number: str) -> bool:
    """Weights modulo 11, for eight and nine digits (Australian Taxation Office)."""
    weights = (1, 4, 3, 7, 5, 8, 6, 9, 10) if len(number) == 9 else (10, 7, 8, 4, 6, 3, 5, 1)
    return len(set(number)) > 1 and digit_sum(number, weights) % 11 == 0


def za_id(number: str) -> bool:
    """A date, a digit of citizenship and Luhn (Department of Home Affairs)."""
    return _is_day(int(number[2:4]), int(number[4:6])) and number[10] in "012" and is_luhn(number)


_CURP = re.compile(
    "[A-Z][AEIOUX][A-Z]{2}[0-9]{6}[HMX](?:AS|BC|BS|CC|CH|CL|CM|CS|DF|DG|GR|GT|HG|JC|MC|MN|MS|NE|NL|NT|OC|PL|QR|QT|SL"
    "|SP|SR|TC|TL|TS|VZ|YN|ZS)[B-DF-HJ-NP-TV-Z]{3}[0-9A-Z][0-9]"
)


def mx_curp(number: str) -> bool:
    """Mexican CURP: name letters, date, sex, state, digit modulo 10.

    RENAPO.
    """
    if not _CURP.fullmatch(number) or not _is_day(int(number[6:8]), int(number[8:10])):
        return False
    total = sum(
        "0123456789ABCDEFGHIJKLMNÑOPQRSTUVWXYZ".index(letter) * (18 - at) for at, letter in enumerate(number[:17])
    )
    return (10 - total % 10) % 10 == int(number[17])
