"""Detections: types, families, placeholders, and boundaries of numbers.

Types that need an understanding of the sentence (postal addresses, dates of birth) are not among them; names and places
(`ENTITIES`) are those of an optional finder, and a rule of a file (`RULE`) makes a type of its own.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

FAMILIES: dict[str, tuple[str, ...]] = {
    "contact": ("email", "phone"),
    "network": ("ipv4", "ipv6", "mac"),
    "payment": ("iban", "card", "bitcoin"),
    "national_id": (
        "us_ssn", "us_driver_licence", "passport", "ca_sin", "mx_curp", "br_cpf", "uk_nino", "uk_nhs", "fr_nir",
        "de_steuer_id", "es_dni", "it_codice_fiscale", "nl_bsn", "be_rrn", "ch_ahv", "pl_pesel", "se_personnummer",
        "no_fodselsnummer", "fi_hetu", "dk_cpr", "tr_kimlik", "in_aadhaar", "in_pan", "cn_resident_id", "kr_rrn",
        "au_tfn", "za_id", "at_vsnr", "bg_egn", "hr_oib", "cz_rodne_cislo", "ee_isikukood", "gr_amka", "ie_pps",
        "lt_asmens_kodas", "pt_nif", "ro_cnp", "si_emso", "cy_tic", "hu_taj", "hu_adoazonosito", "hu_szemelyi",
        "lu_matricule", "lv_personas_kods", "mt_id",
    ),
    "secret": (
        "aws_key", "github_token", "slack_token", "google_key", "stripe_key", "service_token", "jwt", "private_key",
        "assigned_secret", "age_key", "atlassian_token", "azure_key", "databricks_token", "digitalocean_token",
        "discord_token", "docker_token", "doppler_token", "dropbox_token", "google_oauth_token", "grafana_token",
        "linear_key", "mailchimp_key", "mailgun_key", "new_relic_key", "postman_key", "rubygems_key", "shopify_token",
        "square_token", "telegram_token", "terraform_token", "twilio_key", "url_password", "vault_token",
        "webhook_url",
    ),
}  # fmt: skip
TYPES: tuple[str, ...] = tuple(kind for family in FAMILIES.values() for kind in family)
ENTITIES: tuple[str, ...] = ("name", "place")
RULE = "rule:"
"""Begins the types of a file of credential rules; the rule's id follows."""


class Detection(NamedTuple):
    """A stretch of text, in characters, `end` exclusive."""

    start: int
    end: int
    type: str


def placeholder(kind: str) -> str:
    """The text that replaces a detection of this type."""
    return "[SECRET]" if kind.startswith(RULE) else f"[{kind.upper()}]"


def expand(names: Iterable[str], others: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Types named by type or family.

    `others` are types without a family that may be named too.

    Raises:
        ValueError: a name is neither; the message suggests the nearest.
    """
    wanted: set[str] = set()
    for name in names:
        if name not in FAMILIES and name not in (*TYPES, *others):
            near = difflib.get_close_matches(name, [*FAMILIES, *TYPES, *others], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"{name!r} is not a type of personal data{hint} Families: {', '.join(FAMILIES)}")
        wanted.update(FAMILIES.get(name, (name,)))
    return tuple(kind for kind in (*TYPES, *others) if kind in wanted)


def entropy(text: str) -> float:
    """Shannon's entropy in bits per character."""
    size = len(text)
    return -sum(n / size * math.log2(n / size) for n in Counter(text).values())


# Letters that a number may not touch. Scripts without spaces between words (Chinese, Japanese, Thai) may touch it.
WORD = r"0-9A-Za-z_\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u052f"
SPACES = " \u00a0\u2007\u2009\u202f"
HYPHENS = "\\-\u2010\u2011\u2012\u2013\u2212"
# The separators between the groups of a run, one form for each kind.
PLAIN = str.maketrans({**dict.fromkeys(SPACES, " "), **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-")})

GROUP = re.compile("[0-9]+")
TOUCHES = re.compile(rf"[{WORD}]")
_GLUED_LEFT = re.compile(rf"(?:[{WORD}]|[0-9][.:]|[{WORD}][/{HYPHENS}])\Z")
_GLUED_RIGHT = re.compile(rf"[{WORD}%°]|[.:/][0-9]|[{HYPHENS}][{WORD}]")


def is_whole_token(text: str, start: int, end: int) -> bool:
    """Return whether the span is not part of a longer token."""
    return not _GLUED_LEFT.search(text[max(0, start - 2) : start]) and not _GLUED_RIGHT.match(text, end)


class DigitRun(NamedTuple):
    """A run of digit groups: their bounds and the separators between them."""

    starts: list[int]
    ends: list[int]
    between: list[str]

    def opens(self, group: int) -> bool:
        """Return whether a detection may start with this digit group."""
        return group == 0 or " " in self.between[group - 1]

    def closes(self, group: int) -> bool:
        """Return whether a detection may end with this digit group."""
        return group == len(self.ends) - 1 or " " in self.between[group] or ")" in self.between[group]


def run_of(text: str, start: int, end: int) -> DigitRun:
    """The groups of the run `text[start:end]`."""
    spans = [match.span() for match in GROUP.finditer(text, start, end)]
    starts, ends = [span[0] for span in spans], [span[1] for span in spans]
    between = [text[a:b].translate(PLAIN) for a, b in zip(ends, starts[1:], strict=False)]
    return DigitRun(starts, ends, between)
