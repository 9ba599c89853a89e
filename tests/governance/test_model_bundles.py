"""Model signatures of others are verified as their reference (model-signing 1.1.1) verifies them."""

import base64
import datetime
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from assay.cli.main import main
from governance.errors import ConfigError, ManifestError, MissingInput
from governance.signing.model_bundles import by_certificate, by_identity, by_key, verify_model
from tests.altered_files import flip

CURVES = {"256": ec.SECP256R1(), "384": ec.SECP384R1(), "521": ec.SECP521R1()}
PUBLISHED = os.environ.get("ASSAY_MODEL_BUNDLES", "")
WHY = "ASSAY_MODEL_BUNDLES does not name scripts/tests of sigstore/model-transparency"


def pem(path, key):
    """A private key at `path` and its public half at `path`.pub."""
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain))
    public = key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)


def certificate(path, name, key, issuer=None, by=None, authority=False):
    """A certificate for `key`, signed by the key `by` of `issuer`."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer, now = by or key, datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=900))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    use = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
         "decipher_only"), False,
    )  # fmt: skip
    made = made.add_extension(
        x509.KeyUsage(digital_signature=False, key_cert_sign=authority, crl_sign=authority, **use), critical=True
    )
    if not authority and name != "useless":
        made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
    signed = made.sign(signer, hashes.SHA256())
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return signed


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    """A model with bundles that the reference made: by keys, under certificates, in shards, with another hash."""
    pytest.importorskip("model_signing", reason="the dev extra is not installed")
    from model_signing import hashing, signing

    folder = tmp_path_factory.mktemp("signed")
    model = folder / "model"
    (model / "parts").mkdir(parents=True)
    (model / "weights.bin").write_bytes(bytes(range(256)) * 40)
    (model / "parts" / "empty").touch()
    (model / "parts" / "config.json").write_text("{}")
    shapes = {
        "whole": lambda: hashing.Config().use_file_serialization(),
        "blake": lambda: hashing.Config().use_file_serialization(hashing_algorithm="blake2"),
        "shards": lambda: hashing.Config().use_shard_serialization(shard_size=1000),
    }
    for bits, curve in CURVES.items():
        pem(folder / f"{bits}.pem", ec.generate_private_key(curve))
    for name, bits, shape in (("k256", "256", "whole"), ("k384", "384", "blake"), ("k521", "521", "shards")):
        config = signing.Config().use_elliptic_key_signer(private_key=folder / f"{bits}.pem")
        config.set_hashing_config(shapes[shape]()).sign(model, folder / f"{name}.sig")
    keys = {name: ec.generate_private_key(ec.SECP384R1()) for name in ("root", "other", "middle", "leaf", "useless")}
    root = certificate(folder / "root.crt", "root", keys["root"], authority=True)
    certificate(folder / "other.crt", "other", keys["other"], authority=True)
    middle = certificate(folder / "middle.crt", "middle", keys["middle"], root, keys["root"], authority=True)
    for name in ("leaf", "useless"):
        pem(folder / f"{name}.pem", keys[name])
        certificate(folder / f"{name}.crt", name, keys[name], middle, keys["middle"])
        signing.Config().use_certificate_signer(
            private_key=folder / f"{name}.pem", signing_certificate=folder / f"{name}.crt",
            certificate_chain=[folder / "middle.crt"],
        ).set_hashing_config(shapes["whole"]()).sign(model, folder / f"{name}.sig")  # fmt: skip
    return folder


def trusted(folder, name):
    return by_certificate([folder / "root.crt"]) if name == "leaf" else by_key(folder / f"{name[1:]}.pub")


@pytest.mark.parametrize("name", ["k256", "k384", "k521", "leaf"])
def test_what_the_reference_signed_verifies_and_each_change_is_named(signed, tmp_path, name):
    bundle, trust = signed / f"{name}.sig", trusted(signed, name)
    assert verify_model(signed / "model", bundle, trust).name == "model"
    copy = tmp_path / "model"
    shutil.copytree(signed / "model", copy)
    flip(copy / "weights.bin", 1500)
    place = "weights.bin:1000:2000" if name == "k521" else "weights.bin"
    with pytest.raises(ManifestError, match=f"{place}: is not as it was signed"):
        verify_model(copy, bundle, trust)
    flip(copy / "weights.bin", 1500)
    (copy / "parts" / "config.json").rename(copy / "more.json")
    fault = "parts/config.json.*: was signed and is missing; more.json.*: was not signed"
    with pytest.raises(ManifestError, match=fault):
        verify_model(copy, bundle, trust)
    (copy / "more.json").rename(copy / "parts" / "config.json")
    (copy / ".git").mkdir()
    (copy / ".git" / "HEAD").write_text("x")
    (copy / "notes").write_text("mine")
    with pytest.raises(ManifestError, match=r"notes.*: was not signed"):
        verify_model(copy, bundle, trust)
    verify_model(copy, bundle, trust, [copy / "notes"])
    (copy / "link").symlink_to("weights.bin")
    with pytest.raises(ManifestError, match="link: is a link"):
        verify_model(copy, bundle, trust, [copy / "notes"])


def test_another_signer_is_refused(signed):
    model = signed / "model"
    with pytest.raises(ManifestError, match="names another key"):
        verify_model(model, signed / "k256.sig", by_key(signed / "384.pub"))
    text = json.loads((signed / "k256.sig").read_bytes())
    text["verificationMaterial"]["publicKey"] = {}
    (signed / "nameless.sig").write_text(json.dumps(text))
    verify_model(model, signed / "nameless.sig", by_key(signed / "256.pub"))
    with pytest.raises(ManifestError, match=r"did not sign it, or it was altered\. Ask"):
        verify_model(model, signed / "nameless.sig", by_key(signed / "384.pub"))
    with pytest.raises(ManifestError, match="not by the given authorities"):
        verify_model(model, signed / "leaf.sig", by_certificate([signed / "other.crt"]))
    with pytest.raises(ManifestError, match="is not for signing"):
        verify_model(model, signed / "useless.sig", by_certificate([signed / "root.crt"]))
    with pytest.raises(ManifestError, match="holds no certificate"):
        verify_model(model, signed / "k256.sig", by_certificate([signed / "root.crt"]))


@given(st.data())
def test_no_changed_bundle_says_anything_else(signed, data):
    """Law: whatever bytes of a bundle are changed, it is refused or states the same files."""
    original = (signed / "leaf.sig").read_bytes()
    was = verify_model(signed / "model", signed / "leaf.sig", trusted(signed, "leaf"))
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    (signed / "changed.sig").write_bytes(changed)
    try:
        found = verify_model(signed / "model", signed / "changed.sig", trusted(signed, "leaf"))
    except ManifestError:
        return
    assert found == was


def test_bad_input(signed, tmp_path, monkeypatch):
    model, bundle, trust = signed / "model", tmp_path / "b.sig", trusted(signed, "k256")
    for text in ("", "[]", "{}", '{"mediaType": "x"}', "\x00", "1" * 5000, "[" * 100_000):
        bundle.write_text(text)
        with pytest.raises(ManifestError, match="is not a model signature"):
            verify_model(model, bundle, trust)
    with pytest.raises(MissingInput, match="no such file or folder"):
        verify_model(tmp_path / "none", bundle, trust)
    with pytest.raises(MissingInput, match="--signature FILE"):
        verify_model(model, tmp_path / "none.sig", trust)
    pem(tmp_path / "rsa.pem", rsa.generate_private_key(65537, 2048))
    for path in (tmp_path / "rsa.pub", bundle):
        with pytest.raises(ConfigError, match="is not a public key"):
            by_key(path)
    with pytest.raises(ConfigError, match=r"none\.pub: no such file\."):
        by_key(tmp_path / "none.pub")
    with pytest.raises(ConfigError, match="no certificates"):
        by_certificate([bundle])
    monkeypatch.setitem(sys.modules, "sigstore.errors", None)
    with pytest.raises(ConfigError, match="sigstore is not installed"):
        by_identity("me", "https://issuer")


def test_the_command(signed, capsys):
    words = ["governance", "verify-model", str(signed / "model"), "--signature", str(signed / "k256.sig")]
    assert main([*words, "--key", str(signed / "256.pub"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 3
    assert main([*words, "--key", str(signed / "384.pub")]) == 65
    assert main([*words, "--identity", "me"]) == 78
    assert "--issuer URL" in capsys.readouterr().err


def statement_of(folder):
    bundle = json.loads((folder / "model.sig").read_bytes())
    return json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))


@pytest.mark.skipif(not PUBLISHED, reason=WHY)
def test_each_published_bundle_verifies_and_no_altered_model(tmp_path):
    """All bundles of the format's own repository: versions 0.2.0 to 1.1.0, by key, certificate and identity."""
    pytest.importorskip("sigstore", reason="the dev extra is not installed")
    folders = sorted(path.parent for path in Path(PUBLISHED).glob("v*/model.sig"))
    assert len(folders) >= 13
    keys = Path(PUBLISHED) / "keys" / "certificate"
    for folder in folders:
        kind = folder.name.partition("-")[2]
        trust = {
            "certificate": lambda: by_certificate([keys / "ca-cert.pem"]),
            "elliptic-key": lambda: by_key(keys / "signing-key-pub.pem"),
            "sigstore": lambda: by_identity("stefanb@us.ibm.com", "https://sigstore.verify.ibm.com/oauth2"),
        }[kind]()
        names = [item["name"] for item in statement_of(folder)["predicate"].get("resources", [])]
        model = folder / "signme-1" if names == ["."] else folder  # a single file was signed
        assert verify_model(model, folder / "model.sig", trust, [folder / "ignore-me"]).files
        copy = tmp_path / folder.name
        shutil.copytree(folder, copy)
        (copy / "signme-1").write_text("altered")
        with pytest.raises(ManifestError, match="is not as it was signed"):
            verify_model(copy / model.relative_to(folder), copy / "model.sig", trust, [copy / "ignore-me"])
