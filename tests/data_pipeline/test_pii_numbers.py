"""National numbers: the published examples pass, one wrong digit does not, weak checks need a word next to them."""

import inspect
import itertools
import random
import re
import sys
from types import SimpleNamespace

import pytest

from data_pipeline.pii import national_checks
from data_pipeline.pii.canary_values import MAKERS
from data_pipeline.pii.detect import find
from data_pipeline.pii.detections import FAMILIES, TYPES, expand, is_whole_token
from data_pipeline.pii.draws import Draw
from data_pipeline.pii.payment_numbers import is_bech32

# From the offices' own publications, the acts that define the numbers, or worked out by hand from them.
ALONE = {
    "us_ssn": ["123-45-6788", "899-12-3456"],
    "mx_curp": ["BOXW310820HNERXN09"],
    "br_cpf": ["529.982.247-25", "52998224725"],
    "uk_nino": ["AB123456C", "AB 12 34 56 C", "JG 103759 A"],
    "fr_nir": ["255081416802538", "2 55 08 14 168 025 38", "2 55 08 14 168 025-38"],
    "de_steuer_id": ["86095742719", "86 095 742 719"],
    "es_dni": ["12345678Z", "12345678-Z", "12.345.678-Z", "X1234567L", "X-1234567-L"],
    "it_codice_fiscale": ["RSSMRA85T10A562S"],
    "be_rrn": ["85.07.30-033.28", "85073003328"],
    "ch_ahv": ["756.9217.0769.85", "7569217076985"],
    "pl_pesel": ["44051401359"],
    "se_personnummer": ["811218-9876", "19811218-9876", "198112189876"],
    "no_fodselsnummer": ["15108695088", "151086 95088"],
    "fi_hetu": ["131052-308T", "131052A308T"],
    "dk_cpr": ["211062-5629"],
    "tr_kimlik": ["10000000146"],
    "in_pan": ["AFZPK7190K"],
    "cn_resident_id": ["11010519491231002X"],
    "za_id": ["8001015009087"],
    "ee_isikukood": ["37605030299"],
    "gr_amka": ["01013099997"],
    "ro_cnp": ["1630615123457"],
    "si_emso": ["0101006500006"],
    "lu_matricule": ["1893120105732", "18931201 057 32"],
    "lv_personas_kods": ["161175-19997", "328673-00679"],
    "hu_szemelyi": ["1-800101-0016"],
}
NAMED = {
    "us_ssn": ["SSN {}", ["123456788", "123 45 6788"]],
    "ca_sin": ["My SIN is {}", ["130692544", "130 692 544", "046-454-286"]],
    "uk_nhs": ["NHS number: {}", ["943 476 5919", "9434765919"]],
    "nl_bsn": ["BSN: {}", ["111222333"]],
    "in_aadhaar": ["Aadhaar {}", ["2341 2341 2346", "234123412346"]],
    "au_tfn": ["Tax file number {}", ["123 456 782", "123456782"]],
    "se_personnummer": ["personnummer {}", ["8112189876"]],
    "dk_cpr": ["CPR {}", ["2110625629", "311299-1234"]],  # the latter without the old proof, as issued since 2007
    "at_vsnr": ["SVNR {}", ["1237 010180", "1237010180"]],
    "bg_egn": ["ЕГН {}", ["7523169263"]],
    "hr_oib": ["OIB {}", ["33392005961"]],
    "cz_rodne_cislo": ["Rodné číslo {}", ["710319/2745", "7103192745"]],
    "ie_pps": ["PPS No {}", ["6433435F", "6433435OA"]],
    "lt_asmens_kodas": ["asmens kodas {}", ["33309240064"]],
    "pt_nif": ["NIF {}", ["123456789", "245 123 458"]],
    "cy_tic": ["TIC {}", ["00123123T", "99000000H"]],
    "hu_taj": ["TAJ: {}", ["111 111 110", "123456788"]],
    "hu_adoazonosito": ["Adóazonosító jel: {}", ["8071592153"]],
    "hu_szemelyi": ["Személyi szám: {}", ["1 800101 0016", "18001010016"]],
    "lv_personas_kods": ["personas kods {}", ["16117519997"]],
    "mt_id": ["Identity Card {}", ["0123456M", "123456M"]],
    "passport": ["passport no. {}", ["C01X00T47", "J05084266", "340007237"]],
    "us_driver_licence": ["Driver's license {}", ["D1234567", "F162823540116"]],
    "it_codice_fiscale": ["codice fiscale {}", ["rssmra85t10a562s"]],
}


@pytest.mark.parametrize("kind", ALONE)
def test_a_strong_check_suffices(kind):
    frames = ("{}", "It is {}.", "({})", "x: {}, y", "号{}号", 'a\n"{}"\nb', "a,{},b")
    for value, frame in itertools.product(ALONE[kind], frames):
        text = frame.format(value)
        assert [(found.type, text[found.start : found.end]) for found in find(text)] == [(kind, value)], text


@pytest.mark.parametrize(
    ("kind", "frame", "value"), [(kind, frame, value) for kind, (frame, values) in NAMED.items() for value in values]
)
def test_a_weak_check_needs_a_word(kind, frame, value):
    text = frame.format(value)
    assert [(found.type, text[found.start : found.end]) for found in find(text)] == [(kind, value)]
    assert all(found.type != kind for found in find(f"The lot {value} was sold."))


def changed(value):
    """The value with one of its digits increased by one, for each digit."""
    for place, letter in enumerate(value):
        if letter.isdigit():
            yield value[:place] + str((int(letter) + 1) % 10) + value[place + 1 :]


PROVED = [kind for kind in ALONE if kind not in ("us_ssn", "uk_nino", "in_pan")]


@pytest.mark.parametrize("kind", PROVED)
def test_a_wrong_digit_fails(kind):
    """A changed digit fails, with two exceptions.

    One place of a CURP proves nothing by design (its weight is 10 modulo 10), nor may an Estonian check digit, which
    has two rows of weights.
    """
    outcomes = [any(found.type == kind for found in find(wrong)) for value in ALONE[kind] for wrong in changed(value)]
    assert sum(outcomes) <= (kind in ("mx_curp", "ee_isikukood"))


@pytest.mark.parametrize("kind", ["ca_sin", "uk_nhs", "nl_bsn", "in_aadhaar", "au_tfn"])
def test_a_wrong_digit_next_to_its_word_fails(kind):
    frame, values = NAMED[kind]
    assert not [wrong for value in values for wrong in changed(value) if find(frame.format(wrong))
                and find(frame.format(wrong))[0].type == kind]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "000-12-3456", "666-12-3456", "900-12-3456", "123-00-4567", "123-45-0000", "078-05-1120", "12345678A",
        "QQ123456C", "AB123456E", "529.982.247-26", "11111111111", "00000000000", "44051401358", "131052-308S",
        "131352-308T", "RSSMRA85T10A562T", "11010519491231003X", "99010519491231002X", "order 44051401359",
        "ISBN 86095742719", "860957427190", "44051401359x", "x/44051401359", "A-44051401359", "0.44051401359",
        "ABCDE1234F", "2341 2341 2346", "BOXW410820HNERXN09",
    ],
)  # fmt: skip
def test_decoys_stay(text):
    assert [found for found in find(text) if found.type in FAMILIES["national_id"]] == []


def test_a_random_number_seldom_passes_a_strong_check():
    """The rule of the module: less than one in a hundred, for each type whose bare digits are detected."""
    draw = random.Random(7)
    tests = {"br_cpf": 11, "de_steuer_id": 11, "be_rrn": 11, "pl_pesel": 11, "no_fodselsnummer": 11, "tr_kimlik": 11,
             "fr_nir": 15, "za_id": 13, "ch_ahv": 13, "se_personnummer": 12}  # fmt: skip
    for kind, size in tests.items():
        passes = getattr(national_checks, kind)
        passed = sum(passes("".join(draw.choices("0123456789", k=size))) for _ in range(20_000))
        assert passed < 0.012 * 20_000, kind


@pytest.mark.parametrize("kind", sorted(set(FAMILIES["national_id"]) - {"passport", "us_driver_licence"}))
def test_the_library_agrees_with_the_formulae_of_the_canaries(kind):
    """Two implementations: each number computed by ours is valid; at most one in twelve with a changed digit is."""
    draw, check = Draw(5), getattr(national_checks, kind)
    plain = [re.sub(r"[ ./]", "", MAKERS[kind](draw)) for _ in range(300)]
    values = plain if kind == "fi_hetu" else [value.replace("-", "") for value in plain]
    assert all(map(check, values))
    if kind not in ("us_ssn", "uk_nino", "in_pan", "mt_id"):  # these have no check digit
        wrong = [other for value in values[:40] for other in changed(value)]
        assert sum(map(check, wrong)) <= len(wrong) / 12


def test_no_check_reads_the_clock():
    """The same text must always give the same detections; the library's checks of some countries compare dates."""
    modules = set(re.findall(r'by_library\("([a-z_.]+)"', inspect.getsource(national_checks)))
    assert len(modules) > 20
    modules.discard("kr.rrn")  # reads it only with allow_future=False
    for name in modules:
        assert not re.search(r"\.(?:to|)day\(|\.now\(", inspect.getsource(sys.modules[f"stdnum.{name}"])), name


def test_a_defect_of_the_library_is_an_invalid_number(monkeypatch):
    def broken(number):
        raise KeyError(number)

    monkeypatch.setitem(sys.modules, "stdnum.broken", SimpleNamespace(validate=broken))
    assert not national_checks.by_library("broken")("123456")
    monkeypatch.setitem(sys.modules, "stdnum.broken", SimpleNamespace(validate=lambda number: 1 // 0))
    with pytest.raises(ZeroDivisionError):
        national_checks.by_library("broken")("123456")


def test_bech32_of_taproot():
    assert is_bech32("bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0")  # BIP 350
    assert not is_bech32("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t5")
    assert not is_bech32("BC1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4")


def test_names_of_types_and_families():
    assert expand(["contact", "iban"]) == ("email", "phone", "iban")
    assert set(expand(FAMILIES)) == set(TYPES)
    assert len(TYPES) == len(set(TYPES))
    with pytest.raises(ValueError, match="did you mean 'email'"):
        expand(["emial"])


@pytest.mark.parametrize(
    ("text", "alone"),
    [("a 12 b", True), ("x12", False), ("12x", False), ("3.12", False), ("12.5", False), ("12.", True), ("a/12", False),
     ("12%", False), ("中12中", True)],
)  # fmt: skip
def test_where_a_number_is_whole_token(text, alone):
    start = text.index("12")
    assert is_whole_token(text, start, start + 2) is alone
