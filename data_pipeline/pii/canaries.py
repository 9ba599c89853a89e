"""PII canaries: planted values that measure the recall of each run.

Which passages, where in them, which values and which sentences around them follow from the seed and the documents'
digests alone. The copies live in memory; nothing of them is written but the counts `{type: {planted, found}}`. A
canary is found when a detection of its type covers exactly its characters. Each value is planted in a sentence that
people write around such a value; values without one are harder, and their recall is not measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data_pipeline.pii.canary_values import MAKERS
from data_pipeline.pii.detections import FAMILIES, Detection
from data_pipeline.pii.draws import Draw
from governance.files import sha256_bytes
from governance.splitmix64 import INCREMENT, finalise

_WINDOW = 600  # characters of the passage on either side: what rules read around a number is much less
HOSTS = 64  # documents of a shard's row group that lend passages

_SENTENCES = {
    "email": (
        "Please write to {} before Friday.", "Schreiben Sie bitte an {}.", "Vous pouvez m'écrire : {}, merci.",
        "Mi correo es {}.", "如有疑问请联系 {}。", "Contact: {}", "<{}> wrote:",
    ),
    "phone": (
        "You can call me at {} after six.", "Rufen Sie mich unter Tel. {} an.", "Appelez-moi au {}.",
        "Mi teléfono es {}.", "电话：{}", "Phone: {}", "Il mio telefono: {}.", "Telefone para contato: {}.",
    ),
    "ipv4": ("The request came from {} last night.", "Anmeldung von {} abgelehnt.", "client={} status=200"),
    "ipv6": ("The request came from {} last night.", "Die Adresse {} antwortet nicht.", "client=[{}] status=200"),
    "mac": ("The card's address is {} on that floor.", "Gerät {} gesperrt.", "ether {} txqueuelen 1000"),
    "iban": ("Please transfer it to {} today.", "IBAN: {}", "Überweisen Sie auf {}.", "Mon compte est {}."),
    "card": ("My card number is {}.", "Karte {} wurde belastet.", "Ma carte : {}.", "Tarjeta {} caducada."),
    "bitcoin": ("Send the coins to {} please.", "BTC: {}", "Spenden an {} sind willkommen."),
    "us_ssn": ("Her social security number is {}.", "SSN {} on file.", "Seguro social: {}.", "The number {} is on it."),
    "us_driver_licence": ("Driver's license no. {} was shown.", "Her driving licence is {}.", "Driver License: {}"),
    "passport": ("He travels on passport {} now.", "Reisepass Nr. {}", "Passeport n° {}.", "Pasaporte: {}."),
    "ca_sin": ("My SIN is {}.", "Social insurance number: {}", "Mon NAS est {}."),
    "br_cpf": ("CPF: {}", "O CPF dela é {}.", "Inscrito com o número {}."),
    "mx_curp": ("CURP: {}", "Su clave es {}.", "Registrado con {}."),
    "uk_nino": ("National Insurance number {} applies.", "NI No: {}", "Quote {} in your letter."),
    "uk_nhs": ("NHS number: {}", "The NHS no. is {}.", "Patient of the NHS, {}."),
    "fr_nir": ("Sécurité sociale : {}", "Mon numéro est le {}.", "Assurée sous le {}."),
    "de_steuer_id": ("Steuer-ID: {}", "Meine Identifikationsnummer lautet {}.", "Steuerliche IdNr. {}"),
    "es_dni": ("DNI: {}", "Con documento {} en vigor.", "La titular, {}, firma."),
    "it_codice_fiscale": ("Codice fiscale: {}", "C.F. {}", "Il suo codice è {}."),
    "nl_bsn": ("BSN: {}", "Mijn burgerservicenummer is {}.", "BSN van de aanvrager: {}."),
    "be_rrn": ("Rijksregisternummer: {}", "Numéro national {}.", "Ingeschreven onder {}."),
    "ch_ahv": ("AHV-Nr. {}", "Numéro AVS : {}.", "Versichert unter {}."),
    "pl_pesel": ("PESEL: {}", "Mój numer PESEL to {}.", "Numer {} w aktach."),
    "se_personnummer": ("Personnummer: {}", "Hennes personnummer är {}.", "Registrerad som {}."),
    "no_fodselsnummer": ("Fødselsnummer: {}", "Personnummeret er {}.", "Registrert som {}."),
    "fi_hetu": ("Henkilötunnus: {}", "Hetu {}", "Asiakas {} saapui."),
    "dk_cpr": ("CPR-nr. {}", "Mit CPR-nummer er {}.", "Hendes cpr: {}"),
    "tr_kimlik": ("T.C. Kimlik No: {}", "Kimlik numarası {}.", "Numaram {}."),
    "in_aadhaar": ("Aadhaar: {}", "My Aadhaar number is {}.", "आधार संख्या {}"),
    "in_pan": ("PAN: {}", "My PAN card is {}.", "Deducted under {}."),
    "cn_resident_id": ("身份证号：{}", "身份证{}已登记", "ID card {} was shown."),
    "kr_rrn": ("주민등록번호 {}", "주민번호: {}", "Registered as {}."),
    "au_tfn": ("TFN: {}", "My tax file number is {}.", "Tax File Number {} was given."),
    "za_id": ("ID number: {}", "Identity number {} applies.", "Identiteitsnommer: {}"),
    "at_vsnr": ("Sozialversicherungsnummer: {}", "SV-Nr. {} liegt vor.", "Versicherungsnummer {}."),
    "bg_egn": ("ЕГН: {}", "с ЕГН {} от София.", "EGN {}"),
    "hr_oib": ("OIB: {}", "Njezin OIB je {}.", "Osobni identifikacijski broj {}."),
    "cz_rodne_cislo": ("Rodné číslo: {}", "r. č. {}", "Žiadateľ, rodné číslo {}."),
    "ee_isikukood": ("Isikukood: {}", "Tema isikukood on {}.", "Registreeritud kui {}."),
    "gr_amka": ("ΑΜΚΑ: {}", "Ο ΑΜΚΑ μου είναι {}.", "Καταχωρήθηκε ως {}."),
    "ie_pps": ("PPS number: {}", "My PPSN is {}.", "Personal Public Service number {}."),
    "lt_asmens_kodas": ("Asmens kodas: {}", "Jos asmens kodas {} patvirtintas."),
    "pt_nif": ("NIF: {}", "Contribuinte n.º {}.", "O meu NIF é {}."),
    "ro_cnp": ("CNP: {}", "Codul numeric personal este {}.", "Înregistrată sub {}."),
    "si_emso": ("EMŠO: {}", "Njen EMŠO je {}.", "Vpisan pod {}."),
    "cy_tic": ("ΑΦΤ: {}", "Her TIC is {}.", "Tax identification code {}."),
    "hu_taj": ("TAJ: {}", "TAJ száma {}.", "TAJ-szám: {}"),
    "hu_adoazonosito": ("Adóazonosító jel: {}", "Az adóazonosítója {}.", "Adószám: {}"),
    "hu_szemelyi": ("Személyi azonosító: {}", "Személyi száma {}.", "személyi azonosítója {}"),
    "lu_matricule": ("Matricule : {}", "Sozialversicherungsnummer {}.", "Registered under {}."),
    "lv_personas_kods": ("Personas kods: {}", "personas kods {}", "Viņas personas kods ir {}."),
    "mt_id": ("Karta tal-Identità: {}", "Identity Card No. {} was shown.", "ID card {}"),
    "azure_key": ("AccountKey={}", "DefaultEndpointsProtocol=https;AccountName=store1;AccountKey={}",
                  "SharedAccessKey={}", 'account_key: "{}"'),
    "url_password": ("https://ines:{}@files.example.org/x", "postgres://app:{}@10.0.0.7:5432/main", "redis://:{}@cache:6379"),
    "webhook_url": ("https://{}", "Post to https://{} when done.", 'url = "https://{}"'),
    "assigned_secret": ('api_key = "{}"', "API_SECRET={}", '"access_token": "{}",', "client_secret: {}"),
}  # fmt: skip
_SECRET_SENTENCES = (
    "export KEY={}", "The key is {} for now.", "Mein Schlüssel: {}", '"credential": "{}"', "令牌：{}", "clé : {}",
)  # fmt: skip
SENTENCES = {kind: _SENTENCES.get(kind, _SECRET_SENTENCES) for family in FAMILIES.values() for kind in family}


class Canary(NamedTuple):
    """A passage copy with a planted value and its expected detection."""

    text: str
    expected: Detection


def hosts(digests: Sequence[str], seed: int) -> list[int]:
    """The documents (by place) that lend passages.

    They are those whose digest, mixed with the seed, is smallest.
    """
    words = np.array([(int(digest[:16], 16) ^ seed) & (1 << 64) - 1 for digest in digests], np.uint64)
    mixed = finalise(words + INCREMENT) % np.uint64(1 << 63)
    return [int(place) for place in np.argsort(mixed, kind="stable")[:HOSTS]]


def planted(
    types: Sequence[str],
    rounds: range,
    passages: Sequence[tuple[str, str]],
    seed: int,
    makers: Mapping[str, Callable[[Draw], str]] = MAKERS,
    sentences: Mapping[str, Sequence[str]] = SENTENCES,
) -> Iterator[Canary]:
    """One canary of each type for each round.

    Args:
        types: the types to plant.
        rounds: numbers that make the canaries of a shard differ from each other.
        passages: (digest, text) of the documents that lend passages; none gives no canary.
        seed: of the run.
        makers: the maker of each type's values.
        sentences: around them, with their place as `{}`.
    """
    place = 0
    for turn in rounds if passages else ():
        for kind in types:
            digest, text = passages[place % len(passages)]
            place += 1
            draw = Draw(int(sha256_bytes(f"{seed}/{kind}/{turn}/{digest}".encode())[:16], 16))
            yield _plant(kind, text, draw, makers[kind], sentences[kind])


def _plant(kind: str, text: str, draw: Draw, make: Callable[[Draw], str], sentences: Sequence[str]) -> Canary:
    """Insert a sentence with a made-up value into the passage."""
    at = draw.below(len(text) + 1)
    blank = text.find(" ", at, at + 200)
    value = make(draw)
    before, _, after = draw.one(*sentences).partition("{}")
    gap = draw.one(" ", "\n") if blank >= 0 else "\n"
    at = blank if blank >= 0 else at
    head = text[max(0, at - _WINDOW) : at] + gap + before
    return Canary(
        head + value + after + gap + text[at : at + _WINDOW], Detection(len(head), len(head) + len(value), kind)
    )


def measure(
    canaries: Iterable[Canary],
    types: Sequence[str],
    find: Callable[[Sequence[str]], Sequence[Sequence[Detection]]],
    is_found: Callable[[Canary, Sequence[Detection]], bool] = lambda canary, found: canary.expected in found,
) -> dict[str, dict[str, int]]:
    """Planted and found values by type.

    `find` takes the texts of all canaries at once.
    """
    planted_ones = list(canaries)
    counts = {kind: {"planted": 0, "found": 0} for kind in types}
    for canary, found in zip(planted_ones, find([canary.text for canary in planted_ones]), strict=True):
        counts[canary.expected.type]["planted"] += 1
        counts[canary.expected.type]["found"] += is_found(canary, found)
    return counts
