"""Generator of made-up keys and tokens of each type.

As in `canary_values`, a maker spells a token from its provider's description; the finder's grammars are not read.
"""

from __future__ import annotations

import base64
from collections.abc import Callable

from data_pipeline.pii.draws import Draw

UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MIXED = UPPER + UPPER.lower() + "0123456789"
_HEX = "0123456789abcdef"
_URL_SAFE = MIXED + "_-"


def _jwt(draw: Draw) -> str:
    header = '{"alg":"HS256","typ":"JWT"}'
    body = f'{{"sub":"{draw.text(10)}","iat":17{draw.text(8)}}}'
    parts = [base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in (header, body)]
    return ".".join([*parts, draw.text(43, MIXED)])


def _private_key(draw: Draw) -> str:
    kind = draw.one("", "RSA ", "EC ", "OPENSSH ")
    lines = "\n".join(draw.text(64, MIXED + "+/") for _ in range(4))
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{lines}\n-----END {kind}PRIVATE KEY-----"


def _service_token(draw: Draw) -> str:
    return draw.one(
        "glpat-" + draw.text(20, MIXED), "npm_" + draw.text(36, MIXED), "hf_" + draw.text(34, MIXED),
        "gsk_" + draw.text(52, MIXED), "pul-" + draw.text(40, _HEX), "sntryu_" + draw.text(64, _HEX),
        "sbp_" + draw.text(40, _HEX), "pplx-" + draw.text(48, MIXED), "EZAK" + draw.text(54, MIXED),
        f"xkeysib-{draw.text(64, _HEX)}-{draw.text(16, MIXED)}", f"ntn_{draw.text(11)}{draw.text(35, MIXED)}",
        "pscale_tkn_" + draw.text(43, MIXED), "sk-" + draw.text(48, MIXED),
    )  # fmt: skip


def _github(draw: Draw) -> str:
    fine = f"github_pat_{draw.text(22, MIXED)}_{draw.text(59, MIXED)}"
    return draw.one("ghp_" + draw.text(36, MIXED), "gho_" + draw.text(36, MIXED), fine)


def _assembled(*parts: str) -> Callable[[Draw], str]:
    """A maker of the parts in turn.

    A part is text, or `*` with a letter for the alphabet (h: hexadecimal, d: digits, u: capitals and digits, l: small
    letters and digits, m: letters and digits, s: these with "_" and "-") and a length.
    """
    alphabets = {
        "h": _HEX, "d": "0123456789", "u": UPPER + "0123456789", "l": UPPER.lower() + "0123456789", "m": MIXED,
        "s": _URL_SAFE,
    }  # fmt: skip

    def make(draw: Draw) -> str:
        return "".join(draw.text(int(part[2:]), alphabets[part[1]]) if part.startswith("*") else part for part in parts)

    return make


def _either(*makers: Callable[[Draw], str]) -> Callable[[Draw], str]:
    return lambda draw: makers[draw.below(len(makers))](draw)


def _azure(draw: Draw) -> str:
    size = draw.one("64", "32")
    raw = bytes(draw.below(256) for _ in range(int(size)))
    return base64.b64encode(raw).decode()


def _discord(draw: Draw) -> str:
    account = base64.b64encode(f"{draw.number(10**17, 10**18 - 1, 18)}".encode()).decode().rstrip("=")
    return f"{account}.{draw.text(6, _URL_SAFE)}.{draw.text(37, _URL_SAFE)}{draw.text(1, MIXED)}"


def _password(draw: Draw) -> str:
    return draw.text(1, UPPER) + draw.text(4, UPPER.lower()) + draw.one("!", "-", ".", "_") + draw.text(4, MIXED)


SECRET_MAKERS: dict[str, Callable[[Draw], str]] = {
    "aws_key": lambda draw: draw.one("AKIA", "ASIA") + draw.text(16, UPPER + "234567"), "github_token": _github,
    "slack_token": lambda draw: f"xoxb-{draw.text(12)}-{draw.text(12)}-{draw.text(24, MIXED)}",
    "google_key": lambda draw: "AIza" + draw.text(35, MIXED),
    "stripe_key": lambda draw: draw.one("sk_live_", "rk_live_", "sk_test_") + draw.text(24, MIXED),
    "service_token": _service_token, "jwt": _jwt, "private_key": _private_key,
    "assigned_secret": lambda draw: draw.text(8, UPPER) + draw.text(10) + draw.text(14, MIXED),
    "age_key": lambda draw: "AGE-SECRET-KEY-1" + draw.text(58, "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L"),
    "atlassian_token": _either(_assembled("ATATT3", "*s179", "=", "*u8"), _assembled("ATBB", "*m32")),
    "azure_key": _azure,
    "databricks_token": _assembled("dapi", "*h32"),
    "digitalocean_token": _either(*(_assembled(f"do{kind}_v1_", "*h64") for kind in "opr")),
    "discord_token": _discord,
    "docker_token": _assembled("dckr_pat_", "*s26", "*m1"),
    "doppler_token": _either(_assembled("dp.pt.", "*m43"), _assembled("dp.st.", "*l8", ".", "*m43")),
    "dropbox_token": _assembled("sl.", "*s135", "*m1"),
    "google_oauth_token": _either(_assembled("GOCSPX-", "*s27", "*m1"), _assembled("ya29.", "*s60", "*m1")),
    "grafana_token": _assembled("glsa_", "*m32", "_", "*h8"),
    "linear_key": _assembled("lin_api_", "*m40"),
    "mailchimp_key": _assembled("*h32", "-us", "*d2"),
    "mailgun_key": _assembled("key-", "*h32"),
    "new_relic_key": _assembled("NRAK-", "*u27"),
    "postman_key": _assembled("PMAK-", "*h24", "-", "*h34"),
    "rubygems_key": _assembled("rubygems_", "*h48"),
    "shopify_token": _either(*(_assembled(f"shp{kind}_", "*h32") for kind in ("at", "ca", "pa", "ss"))),
    "square_token": _either(_assembled("sq0atp-", "*s21", "*m1"), _assembled("EAAA", "*s59", "*m1")),
    "telegram_token": _assembled("*d9", ":AA", "*s32", "*m1"),
    "terraform_token": _assembled("*m14", ".atlasv1.", "*s66", "*m1"),
    "twilio_key": _assembled("SK", "*h32"),
    "url_password": _password,
    "vault_token": _assembled("hvs.", "*s94", "*m1"),
    "webhook_url": _either(
        _assembled("hooks.slack.com/services/T", "*u10", "/B", "*u10", "/", "*m24"),
        _assembled("discord.com/api/webhooks/", "*d18", "/", "*s67", "*m1"),
    ),
}  # fmt: skip
"""Type -> maker of one key or token."""
