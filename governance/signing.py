"""Signatures: Ed25519 (RFC 8032) over in-toto statements in DSSE envelopes.

A DSSE envelope (Dead Simple Signing Envelope, v1) signs the type together with the bytes, so that a signed text
cannot be passed off as another kind. Keys are PEM files: PKCS #8 for the private key, readable by its owner only,
SubjectPublicKeyInfo for the public one beside it (`<name>.pub`). A key's id is the SHA-256 of its raw 32 bytes.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.config import canonical_json
from governance.errors import ConfigError, ManifestError
from governance.files import sha256_bytes, write_bytes, write_private
from governance.log import get_logger

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"


def default_key_path() -> Path:
    """Where the signing key lies unless the configuration names another: the user's own configuration folder."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "assay" / "signing-key.pem"


def create_key(path: Path) -> None:
    """Make a key pair at `path` and `path`.pub; an existing key is never overwritten.

    Raises:
        ConfigError: there is a key already.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    if path.exists() or not write_private(path, private):
        raise ConfigError(f"{path}: there is a key already. Choose another path, or move it away first.")
    write_bytes(public_path(path), _public_pem(key.public_key()))


def public_path(path: Path) -> Path:
    """The public half's file."""
    return path.with_name(path.name + ".pub")


def private_key(path: Path) -> Ed25519PrivateKey:
    """The signing key at `path`, made on first use (said aloud).

    Raises:
        ConfigError: the file is no unencrypted Ed25519 key in PEM.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not path.exists():
        create_key(path)
        get_logger(__name__).info("made a signing key at %s; others verify with %s", path, public_path(path))
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}: is no readable private key in PEM ({error}). Make one: assay governance keygen"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: is no Ed25519 key. Make one: assay governance keygen")
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """A public key file in PEM.

    Raises:
        ConfigError: the file is not there or is no Ed25519 public key.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: is no readable public key in PEM ({error}).") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path}: is no Ed25519 public key.")
    return key


def public_key_of(raw: bytes) -> Ed25519PublicKey:
    """A public key from its 32 raw bytes.

    Raises:
        ConfigError: they are not 32.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if len(raw) != 32:
        raise ConfigError(f"{raw.hex()[:16]}…: has {len(raw)} bytes; an Ed25519 public key has 32.")
    return Ed25519PublicKey.from_public_bytes(raw)


def key_id(key: Ed25519PublicKey) -> str:
    """The SHA-256 of the raw public key."""
    return sha256_bytes(key.public_bytes_raw())


def statement(subjects: dict[str, str], predicate_type: str, predicate: dict[str, Any]) -> dict[str, Any]:
    """An in-toto statement (v1) that says `predicate` of `subjects` (name -> SHA-256)."""
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(subjects.items())],
        "predicateType": predicate_type,
        "predicate": predicate,
    }


def sign(payload: dict[str, Any], key: Ed25519PrivateKey) -> dict[str, Any]:
    """A DSSE envelope around the canonical JSON of `payload`."""
    body = canonical_json(payload)
    signature = key.sign(_pre_authentication(body))
    return {
        "payloadType": PAYLOAD_TYPE,
        "payload": base64.b64encode(body).decode("ascii"),
        "signatures": [
            {"keyid": key_id(key.public_key()), "sig": base64.b64encode(signature).decode("ascii")},
        ],
    }


def open_envelope(path: Path, trusted: Iterable[Ed25519PublicKey]) -> tuple[dict[str, Any], str]:
    """Verify the envelope at `path` against the trusted keys; return its statement and the signer's key id.

    Raises:
        ManifestError: it cannot be read, was altered, or no trusted key signed it.
    """
    from cryptography.exceptions import InvalidSignature

    try:
        envelope = json.loads(path.read_bytes())
        body = base64.b64decode(envelope["payload"], validate=True)
        kind = envelope["payloadType"]
        signatures = [(base64.b64decode(item["sig"], validate=True), item["keyid"]) for item in envelope["signatures"]]
    except (OSError, ValueError, KeyError, TypeError, binascii.Error) as error:
        raise ManifestError(f"{path}: is no signed envelope ({type(error).__name__}: {error})") from error
    if kind != PAYLOAD_TYPE:
        raise ManifestError(f"{path}: holds {kind!r}, not {PAYLOAD_TYPE!r}")
    for key in trusted:
        for signature, claimed in signatures:
            if claimed != key_id(key):
                continue
            try:
                key.verify(signature, _pre_authentication(body))
            except InvalidSignature:
                continue
            payload: dict[str, Any] = json.loads(body)
            return payload, key_id(key)
    raise ManifestError(
        f"{path}: no trusted key signed this content: it was altered, or its signer is not in trusted_keys"
    )


def _pre_authentication(body: bytes) -> bytes:
    """DSSE's pre-authentication encoding: type and body with their lengths, so that neither can run into the other."""
    kind = PAYLOAD_TYPE.encode("ascii")
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(body), body)


def _public_pem(key: Ed25519PublicKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
