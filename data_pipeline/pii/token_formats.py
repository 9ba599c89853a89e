"""Token formats of providers: marks and grammars.

The sources are the providers' documentation of their token formats and RFC 7519 (JWT). A mark is what
`kernels.pii_candidates` looks for; tokens that begin otherwise are found from the mark inside them (`TOKENS_BEHIND`)
or from the name before them (`ASSIGNED_FORMATS`).
"""

from __future__ import annotations

import re

LONGEST = 16_384  # characters of a private key's block (RSA of 16384 bits has 12 700), or of a token
_END, _END_DASHED = r"(?![A-Za-z0-9_])", r"(?![0-9A-Za-z_\-])"

_FORMATS: tuple[tuple[str, str], ...] = (
    ("aws_key", rf"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{{16}}{_END}"),
    ("github_token", rf"gh[opsur]_[A-Za-z0-9]{{36,255}}{_END}"),
    ("github_token", rf"github_pat_[A-Za-z0-9]{{22}}_[A-Za-z0-9]{{59}}{_END}"),
    ("slack_token", rf"xox[abeoprs]-(?:[0-9A-Za-z.]{{1,80}}-){{1,6}}[0-9A-Za-z]{{10,180}}{_END}"),
    ("slack_token", rf"xapp-[0-9]-[A-Z0-9]{{8,16}}-[0-9]{{8,16}}-[0-9a-f]{{32,128}}{_END}"),
    ("google_key", rf"AIza[0-9A-Za-z_\-]{{35}}{_END_DASHED}"),
    ("google_oauth_token", rf"GOCSPX-[0-9A-Za-z_\-]{{28}}{_END_DASHED}"),
    ("google_oauth_token", rf"ya29\.[0-9A-Za-z_\-]{{30,2000}}{_END_DASHED}"),
    ("stripe_key", rf"[sr]k_(?:live|test)_[0-9A-Za-z]{{16,247}}{_END}"),
    ("stripe_key", rf"whsec_[0-9A-Za-z+/]{{24,128}}={{0,2}}{_END}"),
    ("jwt", rf"eyJ[A-Za-z0-9_\-]{{8,2000}}+\.[A-Za-z0-9_\-]{{8,{LONGEST}}}+\.[A-Za-z0-9_\-]{{0,2000}}+"),
    ("age_key", rf"AGE-SECRET-KEY-1[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{{58}}{_END}"),
    ("atlassian_token", rf"AT[AC]TT3[A-Za-z0-9_\-=]{{150,250}}{_END_DASHED}"),
    ("atlassian_token", rf"ATBB[A-Za-z0-9]{{32}}{_END}"),
    ("databricks_token", rf"dapi[0-9a-f]{{32}}(?:-[0-9])?{_END_DASHED}"),
    ("digitalocean_token", rf"do[opr]_v1_[0-9a-f]{{64}}{_END}"),
    ("docker_token", rf"dckr_[op]at_[0-9A-Za-z_\-]{{27,32}}{_END_DASHED}"),
    ("doppler_token", rf"dp\.(?:pt|st|ct|sa|scim|audit)\.(?:[a-z0-9_\-]{{2,35}}\.)?[0-9A-Za-z]{{40,44}}{_END}"),
    ("dropbox_token", rf"sl\.(?:u\.)?[0-9A-Za-z_\-]{{130,1500}}{_END_DASHED}"),
    ("grafana_token", rf"glsa_[0-9A-Za-z]{{32}}_[0-9A-Fa-f]{{8}}{_END}"),
    ("grafana_token", rf"glc_eyJ[0-9A-Za-z+/]{{60,400}}={{0,2}}{_END}"),
    ("linear_key", rf"lin_(?:api|oauth)_[0-9A-Za-z]{{40,64}}{_END}"),
    ("mailgun_key", rf"key-[0-9a-f]{{32}}{_END_DASHED}"),
    ("new_relic_key", rf"NRAK-[0-9A-Z]{{27}}{_END}"),
    ("new_relic_key", rf"NRII-[0-9A-Za-z_\-]{{32}}{_END_DASHED}"),
    ("postman_key", rf"PMAK-[0-9a-f]{{24}}-[0-9a-f]{{34}}{_END}"),
    ("rubygems_key", rf"rubygems_[0-9a-f]{{48}}{_END}"),
    ("shopify_token", rf"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{{32}}{_END}"),
    ("square_token", rf"sq0(?:atp|csp|idp)-[0-9A-Za-z_\-]{{22,43}}{_END_DASHED}"),
    ("square_token", rf"EAAA[0-9A-Za-z_\-]{{60}}{_END_DASHED}"),
    ("twilio_key", rf"SK[0-9a-f]{{32}}{_END}"),
    ("vault_token", rf"hv[sbr]\.[0-9A-Za-z_\-]{{24,300}}{_END_DASHED}"),
    ("webhook_url", rf"hooks\.slack\.com/(?:services|workflows|triggers)/[0-9A-Za-z+/]{{40,70}}{_END}"),
    ("webhook_url", rf"discord(?:app)?\.com/api/webhooks/[0-9]{{17,20}}/[0-9A-Za-z_\-]{{60,72}}{_END_DASHED}"),
    ("service_token", rf"gl(?:pat|ptt|dt|rt|soat|agent)-[0-9A-Za-z_\-]{{20,64}}{_END}"),
    ("service_token", rf"npm_[0-9A-Za-z]{{36}}{_END}"),
    ("service_token", r"pypi-AgE[0-9A-Za-z_\-]{50,1000}"),
    ("service_token", rf"hf_[A-Za-z0-9]{{30,64}}{_END}"),
    ("service_token", rf"SG\.[0-9A-Za-z_\-]{{16,32}}\.[0-9A-Za-z_\-]{{16,64}}{_END}"),
    ("service_token", rf"sk-(?:(?:proj|svcacct|admin|ant)-)[0-9A-Za-z_\-]{{32,250}}{_END}"),
    ("service_token", rf"sk-[0-9A-Za-z]{{48}}{_END_DASHED}"),
    ("service_token", rf"pscale_(?:tkn|pw|oauth)_[0-9A-Za-z_.=\-]{{32,64}}{_END_DASHED}"),
    ("service_token", rf"pul-[0-9a-f]{{40}}{_END}"),
    ("service_token", rf"ntn_[0-9]{{11}}[0-9A-Za-z]{{35}}{_END}"),
    ("service_token", rf"sntrys_eyJ[0-9A-Za-z_+/=\-]{{60,400}}{_END_DASHED}"),
    ("service_token", rf"sntryu_[0-9a-f]{{64}}{_END}"),
    ("service_token", rf"sbp_[0-9a-f]{{40}}{_END}"),
    ("service_token", rf"gsk_[0-9A-Za-z]{{52}}{_END}"),
    ("service_token", rf"pplx-[0-9A-Za-z]{{48}}{_END}"),
    ("service_token", rf"xkeysib-[0-9a-f]{{64}}-[0-9A-Za-z]{{16}}{_END}"),
    ("service_token", rf"EZ[AT]K[0-9A-Za-z]{{54}}{_END}"),
)
# Discord's begins with the digits of an account in Base64: "M", "N" or "O", then one of four letters.
_DISCORD = rf"[MNO][DTjz][0-9A-Za-z]{{21,26}}\.[0-9A-Za-z_\-]{{6}}\.[0-9A-Za-z_\-]{{27,40}}{_END_DASHED}"


def _by_letter() -> dict[str, tuple[tuple[str, re.Pattern[str]], ...]]:
    """The formats by the letters that their marks may begin with."""
    listed: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for kind, pattern in (*_FORMATS, ("discord_token", _DISCORD)):
        first = re.match(r"\((?:\?:)([A-Za-z])|\[([A-Za-z]+)\]|([A-Za-z])", pattern)
        if first:
            for letter in set(first.group(1) or first.group(2) or first.group(3)):
                listed.setdefault(letter, []).append((kind, re.compile(pattern)))
    return {letter: tuple(formats) for letter, formats in listed.items()}


FORMATS = _by_letter()
"""First letter -> (type, grammar) of the tokens that may begin with it."""

TOKENS_BEHIND: tuple[tuple[str, str, re.Pattern[str], re.Pattern[str]], ...] = tuple(
    (kind, mark, re.compile(before), re.compile(after))
    for kind, mark, before, after in (
        ("telegram_token", "AA", r"(?<![0-9A-Za-z])[0-9]{8,10}:\Z", rf"[0-9A-Za-z_\-]{{35}}{_END_DASHED}"),
        ("terraform_token", "atlasv1", r"(?<![0-9A-Za-z])[0-9A-Za-z]{14}\.\Z",
         rf"atlasv1\.[0-9A-Za-z_\-]{{60,70}}{_END_DASHED}"),
    )
)  # fmt: skip
"""Type, mark inside the token, grammar before it and from it on."""

_AZURE_NAME = r"(?:account|access|primary|secondary|storage)[_\- ]?key"
ASSIGNED_FORMATS: tuple[tuple[str, re.Pattern[str], re.Pattern[str]], ...] = tuple(
    (kind, re.compile(rf"{name}[\"'`\]]{{0,2}}\s?[:=]\s?[\"'`]?\Z", re.I), re.compile(value))
    for kind, name, value in (
        ("azure_key", _AZURE_NAME, r"[0-9A-Za-z+/]{86}==(?![0-9A-Za-z+/=])"),
        ("azure_key", _AZURE_NAME, r"[0-9A-Za-z+/]{43}=(?![0-9A-Za-z+/=])"),
        (
            "azure_key",
            "(?:secret|password|key)",
            rf"[0-9A-Za-z_~.\-]{{3}}[0-9]Q~[0-9A-Za-z_~.\-]{{31,34}}{_END_DASHED}",
        ),
    )
)
"""Type, name before the value, and grammar; no mark is in front."""

MAILCHIMP = re.compile(rf"[0-9a-f]{{32}}-us[0-9]{{1,2}}{_END_DASHED}")
