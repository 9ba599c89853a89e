"""Keys and tokens: each provider's grammar, and values that only their name makes secret.

The values are put together here from parts, so that no scanner of source code takes this file for a leak.
"""

import base64
import itertools
import json

import pytest

from data_pipeline.pii.detect import find, replace

MIXED = "q7Zr2LmX9vKb4TnW8cJp5HdF1gSy6AeU3oRi0BwQ"
HEX = "4f9a0c7be1d25386" * 4
FORMS = {
    "aws_key": ["AKIA" + "IOSFODNN7EXAMPLE", "ASIA" + "2345ABCDEFGHIJKL"],
    "github_token": ["ghp_" + MIXED[:36], "ghs_" + MIXED[:36], "github_pat_" + MIXED[:22] + "_" + (MIXED * 2)[:59]],
    "slack_token": [
        "xoxb-" + "123456789012-123456789012-" + MIXED[:24],
        "xoxp-" + "1234567890-1234567890-" + MIXED[:32],
    ],
    "google_key": ["AIza" + "Sy" + MIXED[:33]],
    "stripe_key": ["sk_live_" + MIXED[:24], "rk_test_" + MIXED[:30]],
    "age_key": ["AGE-SECRET-" + "KEY-1" + "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L"[:29] * 2],
    "atlassian_token": ["ATBB" + MIXED[:32]],
    "databricks_token": ["dapi" + HEX[:32], "dapi" + HEX[:32] + "-2"],
    "digitalocean_token": ["dop_v1_" + HEX],
    "discord_token": ["MTA1MjM0NTY3ODkwMTIzNDU2Nw" + ".GaBcDe." + MIXED[:38]],
    "docker_token": ["dckr_" + "pat_" + MIXED[:27]],
    "doppler_token": ["dp.pt." + (MIXED * 2)[:43]],
    "dropbox_token": ["sl." + (MIXED * 4)[:135]],
    "google_oauth_token": ["GOCSPX-" + MIXED[:28], "ya29." + MIXED],
    "grafana_token": ["glsa_" + MIXED[:32] + "_" + HEX[:8]],
    "linear_key": ["lin_api_" + MIXED],
    "mailchimp_key": [HEX[:32] + "-us14"],
    "mailgun_key": ["key-" + HEX[:32]],
    "new_relic_key": ["NRAK-" + (MIXED * 2).upper()[:27]],
    "postman_key": ["PMAK-" + HEX[:24] + "-" + HEX[:34]],
    "rubygems_key": ["rubygems_" + HEX[:48]],
    "shopify_token": ["shpat_" + HEX[:32], "shppa_" + HEX[:32]],
    "square_token": ["sq0atp-" + MIXED[:22]],
    "telegram_token": ["123456789" + ":AA" + MIXED[:33]],
    "terraform_token": [MIXED[:14] + ".atlasv1." + (MIXED * 2)[:67]],
    "twilio_key": ["SK" + HEX[:32]],
    "vault_token": ["hvs." + (MIXED * 3)[:95]],
    "webhook_url": ["hooks.slack.com/services/" + "T0123456789/B0123456789/" + MIXED[:24]],
    "service_token": ["glpat-" + MIXED[:20], "npm_" + MIXED[:36], "hf_" + MIXED[:34], "sk-proj-" + MIXED],
}


@pytest.mark.parametrize("kind", FORMS)
def test_each_form_is_found_whole(kind):
    frames = ("{}", "use {} now", 'KEY="{}"', "token: {}", "https://x.example/?k={}", "密钥{}。")
    for value, frame in itertools.product(FORMS[kind], frames):
        text = frame.format(value)
        assert [(found.type, text[found.start : found.end]) for found in find(text)] == [(kind, value)], text


@pytest.mark.parametrize(
    "text",
    [
        "AKIA" + "IOSFODNN7EXAMPL", "XAKIA" + "IOSFODNN7EXAMPLE", "AKIA" + "iosfodnn7example", "ghp_" + MIXED[:35],
        "ghx_" + MIXED[:36], "xoxb-short", "AIza" + MIXED[:34], "sk_live_short", "sk-learn-something", "npm_install",
        "hf_hub_download", "github_party_of_the_year", "eyJhbGciOi.not.json", "sk_test_" + "x" * 10,
        "dapi" + HEX[:31], "MTHello0aBcDeFgHiJkLmNoPqR" + ".GaBcDe." + MIXED[:38], HEX[:32] + "-use1", "sl.example.org",
        "key-" + HEX[:31], "SKU" + HEX[:32], "SK" + HEX[:33], "123:AA" + MIXED[:33], "hvs.", "EAAA", "AGE-OLD-1",
        "discord.com/api/webhooks", "hooks.slack.com/services/x", "lin_alg_norm", "dp.dtype.float32", "AAAAAAAAAAAA",
    ],
)  # fmt: skip
def test_what_only_begins_like_one_stays(text):
    assert find(text) == []


@pytest.mark.parametrize(
    "text",
    ["https://ines:{}@files.example.org/x", "postgres://app:{}@10.0.0.7:5432/main", "redis://:{}@cache:6379",
     'url = "amqp://svc:{}@[2001:db8::1]/q"', "见 https://ines:{}@x.example。"],
)  # fmt: skip
def test_the_password_of_an_address_goes_and_the_rest_stays(text):
    secret = "tr0ub4dor.Zq"
    whole = text.format(secret)
    assert replace(whole, find(whole)) == text.format("[URL_PASSWORD]")


def test_azure_keys_count_after_their_names():
    for size, name in ((86, "AccountKey="), (43, "SharedAccessKey="), (43, 'primary_key: "')):
        value = (MIXED * 3)[:size] + ("==" if size == 86 else "=")
        text = f"Endpoint=sb://x;{name}{value}"
        assert [(found.type, text[found.start : found.end]) for found in find(text)] == [("azure_key", value)]
        for first in "+/":  # as one Base64 text in 32 begins
            text = f'{name}{first}{value[1:]}"'
            assert [text[found.start : found.end] for found in find(text)] == [first + value[1:]]
    secret = "abc8Q~" + MIXED[:34]
    assert [found.type for found in find(f"client_secret={secret}")] == ["azure_key"]


def jwt(header, body="{}"):
    parts = [base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in (header, body)]
    return ".".join([*parts, MIXED])


def test_a_jwt_names_its_algorithm():
    token = jwt(json.dumps({"alg": "RS256"}), json.dumps({"sub": "1", "name": "x"}))
    assert [(found.type, found.end) for found in find(token)] == [("jwt", len(token))]
    assert find(jwt('{"kid": "1"}', json.dumps({"sub": "1"}))) == []


@pytest.mark.parametrize("kind", ["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "])
def test_a_private_key_goes_from_its_first_line_to_its_last(kind):
    block = f"-----BEGIN {kind}PRIVATE KEY-----\n{MIXED}\n{MIXED}\n-----END {kind}PRIVATE KEY-----"
    assert replace(f"a\n{block}\nb", find(f"a\n{block}\nb")) == "a\n[PRIVATE_KEY]\nb"
    assert find(block.replace("PRIVATE", "PUBLIC")) == []
    assert find(block.partition("-----END")[0]) == []


VALUE = "Xk29fLq0ZpW7rTy3mNb8"


@pytest.mark.parametrize(
    "frame",
    ['password = "{}"', "API_KEY={}", "apiKey: '{}'", '"client_secret": "{}"', "access_token => {}", "secret_key={}",
     "Authorization: Bearer {}", "aws_secret_access_key = {}", "DB_PASSWD={}"],
)  # fmt: skip
def test_a_random_value_whose_name_says_secret(frame):
    text = frame.format(VALUE)
    assert [(found.type, text[found.start : found.end]) for found in find(text)] == [("assigned_secret", VALUE)]


@pytest.mark.parametrize(
    "text",
    [
        f'title = "{VALUE}"', f"commit: {VALUE}", "sha256: " + "e3b0c44298fc1c149afbf4c8996fb924", "password: hunter2",
        "password = getpass.getpass(prompt1)", "token = self.tokenizer.encode2(text)",
        "api_key = your_api_key_goes_here_1",
        "secret = aaaaaaaaaaaaaaaa1111", "key: /usr/share/keys/apt/archive1", "token: example-token-value-123",
        'password = "correct horse battery staple"', "api_key = os.environ[OPENAI_KEY_1]",
    ],
)  # fmt: skip
def test_other_values_stay(text):
    assert find(text) == []
