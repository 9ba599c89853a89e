"""Generator of valid made-up personal data, independent of the detector.

Each maker draws the free digits and letters and *computes* what proves them, where the finder *tests* it by other
formulae and tables: a mistake on either side shows as a canary that was not found. Nothing made here was issued to
anybody on purpose; that a drawn number is somebody's cannot be ruled out, so none is ever written down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data_pipeline.pii.canary_secrets import SECRET_MAKERS, UPPER
from data_pipeline.pii.draws import Draw
from governance.files import sha256_bytes


def _luhn(head: str) -> str:
    doubled = "0246813579"
    places = [int(doubled[int(d)]) if at % 2 == 0 else int(d) for at, d in enumerate(reversed(head))]
    return head + str(-sum(places) % 10)


def _weighed(head: str, weights: Sequence[int]) -> int:
    return sum(weight * int(digit) for weight, digit in zip(weights, head, strict=True))


def _modulo_eleven(head: Callable[[], str], weights: Sequence[int]) -> str:
    """The digits that `head` draws, and their check digit.

    It is the sum of the weighed digits modulo 11; where that is ten no number is issued, and others are drawn.
    """
    while (check := _weighed(digits := head(), weights) % 11) == 10:
        pass
    return f"{digits}{check}"


def _verhoeff(head: str) -> str:
    """Verhoeff's check digit."""
    total = 0
    for at, digit in enumerate(reversed(head)):
        total = int(_D5[total][int(_POWERS[(at + 1) % 8][int(digit)])])
    return "0432156789"[total]


# The printed tables of the group D5, of the permutation's powers and (above) of inverses.
_D5 = ("0123456789", "1234067895", "2340178956", "3401289567", "4012395678", "5987604321", "6598710432", "7659821043",
       "8765932104", "9876543210")  # fmt: skip
_POWERS = ("0123456789", "1576283094", "5803796142", "8916043527", "9453126870", "4286573901", "2793806415",
           "7046913258")  # fmt: skip


def _form(pattern: str, digits: str) -> str:
    """The pattern with the digits in place of "#"."""
    left = iter(digits)
    return "".join(next(left) if letter == "#" else letter for letter in pattern)


def _positive(draw: Draw, length: int) -> str:
    return draw.text(1, "123456789") + draw.text(length - 1)


def _email(draw: Draw) -> str:
    name = draw.one("ines", "m.okafor", "jan-willem", "li_na", "sofia.rossi", "t.nguyen", "oluwaseun", "brigitte")
    host = draw.one("quillmail", "nordpost", "casa-azul", "greyharbour", "studio7", "alma.uni-sued")
    return f"{name}{draw.one('', draw.text(2), '+shop')}@{host}.{draw.one('com', 'org', 'net', 'de', 'co.uk', 'fr')}"


def _phone(draw: Draw) -> str:
    return draw.filled(
        "+1 415-55#-#1##", "(212) 55#-#2##", "617-45#-#3##", "+44 20 79## ####", "020 79## ####", "+33 6 1# ## ## ##",
        "01 4# ## ## ##", "+49 30 23##3##", "0151/845####", "+34 612 3## ###", "+39 347 12#####", "+31 6 123#####",
        "+55 11 91###-####", "(11) 93###-####", "+91 98### #####", "+86 138 1### ####", "+81 90-12##-####",
        "+7 912 3##-##-##", "+61 412 3## ###", "+48 601 ### ###", "+46 70-12# ## ##", "+27 82 123 ####",
        "+372 5### ###", "+376 3## ###", "+298 2# ## ##", "+685 2####", "+597 4##-###", "+47 22 ## ## ##",
    )  # fmt: skip


def _ipv4(draw: Draw) -> str:
    return ".".join([draw.one("24", "46", "62", "81", "93", "151", "178", "212"),
                     *(str(1 + draw.below(254)) for _ in range(3))])  # fmt: skip


def _ipv6(draw: Draw) -> str:
    groups = [f"{0x100 + draw.below(0xFF00 - 0x100):x}" for _ in range(6)]
    return draw.one("2a02:", "2003:", "2600:") + draw.one(f"{draw.below(65536):x}:", "0:") + ":".join(groups)


def _mac(draw: Draw) -> str:
    pairs = [f"{4 * draw.below(64):02x}", *(f"{1 + draw.below(255):02x}" for _ in range(5))]
    return draw.one(":", "-").join(pairs)


def _iban(draw: Draw) -> str:
    country, plan = draw.one("DE 18", "GB a14", "FR 23", "ES 20", "NL a10", "NO 11", "PL 24", "CH 17", "BE 12").split()
    account = draw.text(4, UPPER) + draw.text(int(plan[1:])) if plan[0] == "a" else draw.text(int(plan))
    digits = "".join(str(ord(x) - 55) if x.isalpha() else x for x in account + country + "00")
    whole = f"{country}{98 - int(digits) % 97:02d}{account}"
    return draw.one(whole, " ".join(whole[at : at + 4] for at in range(0, len(whole), 4)))


def _card(draw: Draw) -> str:
    if draw.below(4) == 0:
        number = _luhn(draw.one("34", "37") + draw.text(12))
        return draw.one(number, f"{number[:4]} {number[4:10]} {number[10:]}")
    number = _luhn(draw.one("4", "51", "55", "6011")[:4].ljust(4, "7") + draw.text(11))
    return draw.one(number, *(sign.join(number[at : at + 4] for at in (0, 4, 8, 12)) for sign in " -"))


def _bitcoin(draw: Draw) -> str:
    raw = bytes([0] + [1 + draw.below(255) for _ in range(20)])
    value = int.from_bytes(raw + bytes.fromhex(sha256_bytes(bytes.fromhex(sha256_bytes(raw))))[:4], "big")
    letters = ""
    while value:
        value, place = divmod(value, 58)
        letters = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"[place] + letters
    return "1" + letters


def _curp(draw: Draw) -> str:
    head = (
        draw.text(1, UPPER) + draw.text(1, "AEIOU") + draw.text(2, UPPER) + _yymmdd(draw) + draw.one("H", "M")
        + draw.one("DF", "JC", "NL", "OC") + draw.text(3, "BCDFGLMNPRST") + draw.text(1)
    )  # fmt: skip
    values = {letter: at for at, letter in enumerate("0123456789ABCDEFGHIJKLMNÑOPQRSTUVWXYZ")}
    return head + str(-sum(values[letter] * (18 - at) for at, letter in enumerate(head)) % 10)


def _yymmdd(draw: Draw) -> str:
    return draw.number(40, 99) + draw.number(1, 12) + draw.number(1, 28)


def _ddmmyy(draw: Draw) -> str:
    return draw.number(1, 28) + draw.number(1, 12) + draw.number(40, 99)


def _cpf(draw: Draw) -> str:
    digits = draw.text(8) + draw.one("3", "7")
    for size in (9, 10):
        digits += str(-_weighed(digits, range(size + 1, 1, -1)) % 11 % 10)
    return _form("###.###.###-##", digits)


def _nino(draw: Draw) -> str:
    whole = draw.filled("AB ## ## ## ", "CE ## ## ## ", "HT ## ## ## ", "PW ## ## ## ") + draw.one("A", "B", "C", "D")
    return draw.one(whole, whole.replace(" ", ""))


def _nir(draw: Draw) -> str:
    head = draw.one("1", "2") + draw.number(40, 99) + draw.number(1, 12) + draw.number(1, 95) + draw.text(6)
    key = 97 - int(head) % 97
    return _form("# ## ## ## ### ### ##", f"{head}{key:02d}")


def _mod_11_10(digits: str) -> str:
    """The digits and their check digit by ISO 7064 MOD 11,10."""
    rest = 10
    for digit in digits:
        rest = (int(digit) + rest) % 10
        rest = (rest or 10) * 2 % 11
    return digits + str((11 - rest) % 10)


def _steuer_id(draw: Draw) -> str:
    deck = list("123456789")
    digits = [deck.pop(draw.below(len(deck))) for _ in range(9)]
    digits.insert(1 + draw.below(8), digits[0])
    whole = _mod_11_10("".join(digits))
    return draw.one(whole, _form("## ### ### ###", whole))


def _dni(draw: Draw) -> str:
    letters = "TRWAGMYFPDXBNJZSQVHLCKE"
    if draw.below(3) == 0:
        first, digits = draw.below(3), draw.text(7)
        return "XYZ"[first] + digits + letters[int(f"{first}{digits}") % 23]
    digits = draw.text(8)
    return digits + draw.one("", "-") + letters[int(digits) % 23]


_ODD_PLACES = {**dict(zip("0123456789", (1, 0, 5, 7, 9, 13, 15, 17, 19, 21), strict=True)),
               **dict(zip(UPPER, (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22,
                                   25, 24, 23), strict=True))}  # fmt: skip


def _codice_fiscale(draw: Draw) -> str:
    head = draw.text(6, "BCDFGLMNPRSTV") + draw.text(2) + draw.text(1, "ABCDEHLMPRST") + draw.number(1, 28)
    head += draw.text(1, "ABCDEFGHL") + draw.text(3)
    total = sum(_ODD_PLACES[letter] for letter in head[::2])
    total += sum(int(letter) if letter.isdigit() else UPPER.index(letter) for letter in head[1::2])
    return head + UPPER[total % 26]


def _rijksregister(draw: Draw) -> str:
    head = _yymmdd(draw) + draw.number(1, 997, 3)
    return _form("##.##.##-###.##", f"{head}{97 - int(head) % 97:02d}")


def _ahv(draw: Draw) -> str:
    head = "756" + draw.text(9)
    total = sum(int(digit) for digit in head[::2]) + 3 * sum(int(digit) for digit in head[1::2])
    return _form("###.####.####.##", f"{head}{-total % 10}")


def _pesel(draw: Draw) -> str:
    head = _yymmdd(draw) + draw.text(4)
    return head + str(-_weighed(head, [1, 3, 7, 9, 1, 3, 7, 9, 1, 3]) % 10)


def _personnummer(draw: Draw) -> str:
    ten = _luhn(_yymmdd(draw) + draw.text(3))
    return draw.one("", "19") + f"{ten[:6]}-{ten[6:]}"


def _fodselsnummer(draw: Draw) -> str:
    whole = _modulo_eleven(
        lambda: _modulo_eleven(lambda: _ddmmyy(draw) + draw.text(3), (-3, -7, -6, -1, -8, -9, -4, -5, -2)),
        (-5, -4, -3, -2, -7, -6, -5, -4, -3, -2),
    )
    return draw.one(whole, _form("###### #####", whole))


def _danish(draw: Draw) -> str:
    weights = (-4, -3, -2, -7, -6, -5, -4, -3, -2)
    return _form("######-####", _modulo_eleven(lambda: _ddmmyy(draw) + draw.text(3), weights))


def _hetu(draw: Draw) -> str:
    date, serial = _ddmmyy(draw), draw.number(2, 899, 3)
    return f"{date}-{serial}{'0123456789ABCDEFHJKLMNPRSTUVWXY'[int(date + serial) % 31]}"


def _kimlik(draw: Draw) -> str:
    head = _positive(draw, 9)
    tenth = (sum(map(int, head[::2])) * 7 - sum(map(int, head[1::2]))) % 10
    return f"{head}{tenth}{(sum(map(int, head)) + tenth) % 10}"


def _aadhaar(draw: Draw) -> str:
    head = draw.text(1, "23456789") + draw.text(10)
    return _form("#### #### ####", head + _verhoeff(head))


def _resident_id(draw: Draw) -> str:
    head = draw.one("110105", "310101", "440106", "510104") + "19" + _yymmdd(draw) + draw.text(3)
    rest = 0
    for digit in head + "0":
        rest = (rest * 2 + int(digit)) % 11
    check = (1 - rest) % 11
    return head + ("X" if check == 10 else str(check))


def _jumin(draw: Draw) -> str:
    head = _yymmdd(draw) + draw.one("1", "2") + draw.number(0, 95) + draw.text(3)
    check = (11 - _weighed(head, [2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5]) % 11) % 10
    return f"{head[:6]}-{head[6:]}{check}"


def _vsnr(draw: Draw) -> str:
    digits = _modulo_eleven(lambda: draw.number(100, 999) + _ddmmyy(draw), (3, 7, 9, 5, 8, 4, 2, 1, 6))
    whole = f"{digits[:3]}{digits[9]} {digits[3:9]}"
    return draw.one(whole, whole.replace(" ", ""))


def _egn(draw: Draw) -> str:
    head = _yymmdd(draw) + draw.text(3)
    return head + str(_weighed(head, [2, 4, 8, 5, 10, 9, 7, 3, 6]) % 11)[-1]


def _rodne_cislo(draw: Draw) -> str:
    """A number since 1954: ten digits, a multiple of eleven.

    Women have 50 added to the month.
    """

    def head() -> str:
        month = draw.number(1, 12) if draw.below(2) else draw.number(51, 62)
        return draw.number(54, 99) + month + draw.number(1, 28) + draw.text(3)

    return _form("######/####", _modulo_eleven(head, (1, -1, 1, -1, 1, -1, 1, -1, 1)))


def _baltic(draw: Draw) -> str:
    """Estonia's and Lithuania's number, with two rows of weights.

    The second row counts where the first leaves ten.
    """
    head = draw.one("3", "4") + _yymmdd(draw) + draw.text(3)
    check = _weighed(head, [1, 2, 3, 4, 5, 6, 7, 8, 9, 1]) % 11
    if check == 10:
        check = _weighed(head, [3, 4, 5, 6, 7, 8, 9, 1, 2, 3]) % 11 % 10
    return head + str(check)


def _pps(draw: Draw) -> str:
    digits, second = draw.text(7), draw.one("", "A", "B", "H")
    total = _weighed(digits, [8, 7, 6, 5, 4, 3, 2]) + 9 * " ABCDEFGH".find(second or " ")
    return digits + "WABCDEFGHIJKLMNOPQRSTUV"[total % 23] + second


def _nif(draw: Draw) -> str:
    head = draw.one("1", "2") + draw.text(7)
    return head + str(-_weighed(head, range(9, 1, -1)) % 11 % 10)


def _cnp(draw: Draw) -> str:
    head = draw.one("1", "2") + _yymmdd(draw) + draw.number(1, 40) + draw.number(1, 999, 3)
    rest = _weighed(head, [2, 7, 9, 1, 4, 6, 3, 5, 8, 2, 7, 9]) % 11
    return head + str(1 if rest == 10 else rest)


def _emso(draw: Draw) -> str:
    def head() -> str:
        date = _ddmmyy(draw)
        return f"{date[:4]}9{date[4:]}50{draw.text(3)}"

    return _modulo_eleven(head, (-7, -6, -5, -4, -3, -2, -7, -6, -5, -4, -3, -2))


def _tic(draw: Draw) -> str:
    head = draw.one("0", "9") + draw.text(7)
    return head + UPPER[(sum(_ODD_PLACES[digit] for digit in head[::2]) + sum(map(int, head[1::2]))) % 26]


def _taj(draw: Draw) -> str:
    head = _positive(draw, 8)
    whole = head + str(_weighed(head, (3, 7) * 4) % 10)
    return draw.one(whole, _form("### ### ###", whole))


def _szemelyi(draw: Draw) -> str:
    def head() -> str:
        return draw.one("1", "2") + draw.number(40, 96) + draw.number(1, 12) + draw.number(1, 28) + draw.text(3)

    whole = _form("#-######-####", _modulo_eleven(head, range(1, 11)))
    return draw.one(whole, whole.replace("-", " "))


def _matricule(draw: Draw) -> str:
    """Luxembourg's number: Luhn over twelve digits.

    The thirteenth is Verhoeff's of the first eleven.
    """
    head = "19" + _yymmdd(draw) + draw.text(3)
    return _luhn(head) + _verhoeff(head)


def _personas_kods(draw: Draw) -> str:
    head = draw.one("32" + draw.text(4), _ddmmyy(draw)) + draw.one("1", "2") + draw.text(3)
    check = (1101 - _weighed(head, [1, 6, 3, 7, 9, 10, 5, 8, 4, 2])) % 11 % 10
    return f"{head[:6]}-{head[6:]}{check}"


MAKERS: dict[str, Callable[[Draw], str]] = {
    "email": _email, "phone": _phone, "ipv4": _ipv4, "ipv6": _ipv6, "mac": _mac, "iban": _iban, "card": _card,
    "bitcoin": _bitcoin, "mx_curp": _curp, "br_cpf": _cpf, "uk_nino": _nino, "fr_nir": _nir, "dk_cpr": _danish,
    "us_ssn": lambda draw: f"{draw.number(1, 665, 3)}-{draw.number(1, 99)}-{draw.number(1, 9999, 4)}",
    "us_driver_licence": lambda draw: draw.text(1, UPPER) + draw.text(7),
    "passport": lambda draw: draw.text(1, "CFGHJKLMNP") + draw.text(8),
    "ca_sin": lambda draw: _luhn(draw.text(1, "1234567") + draw.text(7)),
    "uk_nhs": lambda draw: _form("### ### ####", _modulo_eleven(lambda: _positive(draw, 9), range(-10, -1))),
    "nl_bsn": lambda draw: _modulo_eleven(lambda: _positive(draw, 8), range(9, 1, -1)),
    "au_tfn": lambda draw: _form("### ### ###", _modulo_eleven(lambda: _positive(draw, 8), (1, 4, 3, 7, 5, 8, 6, 9))),
    "de_steuer_id": _steuer_id, "es_dni": _dni, "it_codice_fiscale": _codice_fiscale, "be_rrn": _rijksregister,
    "ch_ahv": _ahv, "pl_pesel": _pesel, "se_personnummer": _personnummer, "no_fodselsnummer": _fodselsnummer,
    "fi_hetu": _hetu, "tr_kimlik": _kimlik, "in_aadhaar": _aadhaar, "cn_resident_id": _resident_id, "kr_rrn": _jumin,
    "in_pan": lambda draw: draw.text(3, UPPER) + "P" + draw.text(1, UPPER) + draw.text(4) + draw.text(1, UPPER),
    "za_id": lambda draw: _luhn(_yymmdd(draw) + draw.text(4) + draw.one("0", "1") + "8"),
    "at_vsnr": _vsnr, "bg_egn": _egn, "cz_rodne_cislo": _rodne_cislo, "ee_isikukood": _baltic,
    "lt_asmens_kodas": _baltic, "ie_pps": _pps, "pt_nif": _nif, "ro_cnp": _cnp, "si_emso": _emso,
    "hr_oib": lambda draw: _mod_11_10(draw.text(10)), "gr_amka": lambda draw: _luhn(_ddmmyy(draw) + draw.text(4)),
    "cy_tic": _tic, "hu_taj": _taj, "hu_szemelyi": _szemelyi, "lu_matricule": _matricule,
    "hu_adoazonosito": lambda draw: _modulo_eleven(lambda: "8" + draw.text(8), range(1, 10)),
    "lv_personas_kods": _personas_kods,
    "mt_id": lambda draw: draw.number(1, 99999, 5) + draw.number(40, 99) + draw.one("M", "G", "L"), **SECRET_MAKERS,
}  # fmt: skip
"""Type -> maker of one value; the same draws make the same value."""
