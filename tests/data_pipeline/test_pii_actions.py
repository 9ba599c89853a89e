"""Mask, replace, pseudonymise, count: the text in place of a detection, and places where the key may not appear."""

import hmac
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import read_table
from data_pipeline.pii.detections import TYPES
from data_pipeline.pii.pii_actions import fingerprint, masked, new_text, plain_form, pseudonym, read_key
from data_pipeline.pii.redact import PiiConfig, redact
from governance.config import validate
from governance.errors import ConfigError
from governance.manifest import write_manifest
from governance.stage import Runtime
from tests.data_pipeline.document_artifacts import documents_of

KEY = bytes(range(32))


def test_the_examples_of_the_module():
    assert new_text("email", "jane@example.org", "replace", KEY) == "[EMAIL]"
    assert new_text("email", "jane@example.org", "mask", KEY) == "j***@*******.org"
    assert new_text("email", "jane@example.org", "count", KEY) == "jane@example.org"
    expected = hmac.digest(KEY, b"email\0jane@example.org", "sha256").hex()[:16]
    assert new_text("email", "jane@example.org", "pseudonymise", KEY) == f"[EMAIL:{expected}]"


@pytest.mark.parametrize(
    ("kind", "value", "mask"),
    [
        ("phone", "+44 (0)20 7946 0958", "+** (*)** **** ****"), ("iban", "GB82 WEST 1234", "GB** **** ****"),
        ("card", "4111-1111-1111-1111", "****-****-****-****"),
        ("email", "jörg@bücher.example.de", "j***@******.*******.de"),
        ("ipv6", "2a00:1450::e", "****:****::*"),
    ],
)  # fmt: skip
def test_a_mask_keeps_length_and_separators(kind, value, mask):
    assert masked(kind, value) == mask


@settings(max_examples=200)
@given(st.sampled_from(TYPES), st.text(min_size=3, max_size=40))
def test_a_mask_is_as_long_and_leaves_no_digit_of_a_number(kind, value):
    assert len(masked(kind, value)) == len(value)
    if kind not in ("email", "iban"):
        assert not re.search(r"[^\W_]", masked(kind, value))


@pytest.mark.parametrize(
    ("kind", "writings"),
    [
        ("email", ["Jane.Doe@Example.org", "jane.doe [at] example [dot] org", "jane dot doe AT example dot org"]),
        (
            "phone",
            [
                "+44 20 7946 0958",
                "+44 (0)20 7946 0958",
                "0044 20 7946 0958",
                "+442079460958 ext. 12",
                "+44\u201320\u20137946\u20130958",
            ],
        ),
        ("iban", ["GB82 WEST 1234 5698 7654 32", "gb82west12345698765432"]),
        ("card", ["4111 1111 1111 1111", "4111-1111-1111-1111"]),
        ("ipv6", ["2A00:1450:4001:081B::200E", "2a00:1450:4001:81b:0:0:0:200e"]),
        ("br_cpf", ["529.982.247-25", "52998224725"]),
        ("es_dni", ["12.345.678-Z", "12345678Z"]),
    ],
)
def test_the_same_person_has_the_same_pseudonym_however_written(kind, writings):
    assert len({pseudonym(kind, value, KEY) for value in writings}) == 1
    assert pseudonym(kind, writings[0], KEY) != pseudonym(kind, writings[0], KEY[::-1])
    assert plain_form("aws_key", "AKIAx") != plain_form("aws_key", "AKIAX")  # a secret's case is part of it


def documents(root, texts=("Write to jane@example.org.", "JANE@EXAMPLE.ORG, +44 20 7946 0958")):
    shards = {f"{number:05}": [{"text": text, "sha256": f"{number:064x}"}] for number, text in enumerate(texts)}
    manifest = documents_of(root, "dedup", shards)
    write_manifest(manifest, root)
    return manifest


def settings_of(**values):
    return validate(values, PiiConfig, "run.toml")


def test_pseudonyms_join_documents_across_shards_and_the_key_stays_in_its_file(tmp_path):
    (tmp_path / "secret").write_bytes(KEY)
    root = tmp_path / "root"
    config = settings_of(action="pseudonymise", actions={"phone": "mask"}, key_file="secret")
    made = redact(documents(root), config, Runtime(root), tmp_path)
    texts = [read_table(path)["text"][0].as_py() for path in made.files("documents", root)]
    token = f"[EMAIL:{pseudonym('email', 'jane@example.org', KEY)}]"
    assert texts == [f"Write to {token}.", f"{token}, +** ** **** ****"]
    assert made.config["key_fingerprint"] == fingerprint(KEY)
    for path in (file for file in root.rglob("*") if file.is_file()):
        data = path.read_bytes()
        assert KEY not in data
        assert KEY.hex().encode() not in data
        assert b"key_file" not in data


def test_the_key_decides_the_artifact_and_its_path_does_not(tmp_path, monkeypatch):
    root = tmp_path / "root"
    input_, config = documents(root), settings_of(action="pseudonymise")
    keys = []
    for name, key in (("a", KEY), ("b", KEY), ("c", KEY[::-1])):
        (tmp_path / name).write_bytes(key)
        monkeypatch.setenv("ASSAY_PII_KEY_FILE", str(tmp_path / name))
        keys.append(redact(input_, config, Runtime(root)).key)
    assert keys[0] == keys[1] != keys[2]


def test_a_missing_or_short_key_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.delenv("ASSAY_PII_KEY_FILE", raising=False)
    (tmp_path / "short").write_bytes(b"x" * 31)
    input_ = documents(tmp_path)
    with pytest.raises(ConfigError, match="needs a key"):
        redact(input_, settings_of(action="pseudonymise"), Runtime(tmp_path))
    with pytest.raises(ConfigError, match=r"key_file = 'none'.*No such file"):
        redact(input_, settings_of(actions={"email": "pseudonymise"}, key_file="none"), Runtime(tmp_path), tmp_path)
    with pytest.raises(ConfigError, match="31 bytes, needs at least 32"):
        read_key("short", tmp_path)
    redact(input_, settings_of(types=["card"], actions={"email": "pseudonymise"}), Runtime(tmp_path))  # none is made
