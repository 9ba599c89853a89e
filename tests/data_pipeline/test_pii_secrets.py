"""Keys and tokens: each provider's grammar, and values that only their name makes secret.

The values are put together here from parts, so that no scanner of source code takes this file for a leak.
"""

import base64
import json

import pytest

from data_pipeline.pii.redact import find, replace

MIXED = "q7Zr2LmX9vKb4TnW8cJp5HdF1gSy6AeU3oRi0BwQ"
FORMS = {
    "aws_key": ["AKIA" + "IOSFODNN7EXAMPLE", "ASIA" + "2345ABCDEFGHIJKL"],
    "github_token": ["ghp_" + MIXED[:36], "ghs_" + MIXED[:36], "github_pat_" + MIXED[:22] + "_" + (MIXED * 2)[:59]],
    "slack_token": [
        "xoxb-" + "123456789012-123456789012-" + MIXED[:24],
        "xoxp-" + "1234567890-1234567890-" + MIXED[:32],
    ],
    "google_key": ["AIza" + "Sy" + MIXED[:33]],
    "stripe_key": ["sk_live_" + MIXED[:24], "rk_test_" + MIXED[:30]],
    "service_token": ["glpat-" + MIXED[:20], "npm_" + MIXED[:36], "hf_" + MIXED[:34], "sk-proj-" + MIXED],
}


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in FORMS.items() for value in values])
@pytest.mark.parametrize("frame", ["{}", "use {} now", 'KEY="{}"', "token: {}", "https://x.example/?k={}", "密钥{}。"])
def test_each_form_is_found_whole(kind, value, frame):
    text = frame.format(value)
    assert [(found.type, text[found.start : found.end]) for found in find(text)] == [(kind, value)]


@pytest.mark.parametrize(
    "text",
    [
        "AKIA" + "IOSFODNN7EXAMPL", "XAKIA" + "IOSFODNN7EXAMPLE", "AKIA" + "iosfodnn7example", "ghp_" + MIXED[:35],
        "ghx_" + MIXED[:36], "xoxb-short", "AIza" + MIXED[:34], "sk_live_short", "sk-learn-something", "npm_install",
        "hf_hub_download", "github_party_of_the_year", "eyJhbGciOi.not.json", "sk_test_" + "x" * 10,
    ],
)  # fmt: skip
def test_what_only_begins_like_one_stays(text):
    assert find(text) == []


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
