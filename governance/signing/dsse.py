"""DSSE envelopes: sign and verify with Ed25519 keys.

A DSSE envelope (Dead Simple Signing Envelope, v1) signs the type together with the bytes, so that a signed text
cannot be passed off as another kind. Keys are PEM files: PKCS #8 for the private key, readable by its owner only,
SubjectPublicKeyInfo for the public one next to it (`<name>.pub`). A key's id is the SHA-256 of its raw 32 bytes.

A key with a certificate next to it (`<name>.cert`, see `certificates.py`) is a job's: its signatures carry the
certificate, and count for a reader who trusts the root, if they were made during its validity. Only the job's key is
on the machine that works; the root's is not.

Roles. A root's key signs anything at any time, and certifies jobs. A job's key signs what a run states (verdicts, too,
and by its name in `verdict_by` only one side of one), within its certificate; it certifies nobody. A person's key, by
`[people]`, signs waivers, refusals and approvals. A reader who trusts a job's key by itself (`trusted_key`) gives it a
job's role and no more.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from governance.config import canonical_json
from governance.errors import ConfigError, ManifestError, near_path
from governance.files import sha256_bytes, write_bytes, write_json, write_private
from governance.log import get_logger
from governance.regular_files import read_whole
from governance.signing.certificates import PREDICATE_TYPE as CERTIFICATE
from governance.signing.certificates import Certificate, certificate_path, certificate_predicate, read_certificate

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PublicKey: TypeAlias = "Ed25519PublicKey | JobPublicKey"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PUBLIC_FIX = " `assay governance keygen` writes a public key beside the private one: PATH.pub"


@dataclass(frozen=True)
class SigningKey:
    """A private key and its certificate."""

    private: Ed25519PrivateKey
    certificate: Mapping[str, Any] | None = None
    """The root's envelope; None: readers must trust this key itself."""

    def public_key(self) -> Ed25519PublicKey:
        """Its public half."""
        return self.private.public_key()

    def trusted(self) -> PublicKey:
        """Its public half, as a reader trusts it who knows no root."""
        return _in_its_role(self.public_key(), self.certificate)


@dataclass(frozen=True)
class JobPublicKey:
    """The trusted public key of a job: it certifies nobody."""

    key: Ed25519PublicKey
    certificate: Certificate
    """The time within which its signatures count."""

    def public_bytes_raw(self) -> bytes:
        """The 32 bytes of the key."""
        return self.key.public_bytes_raw()

    def verify(self, signature: bytes, data: bytes) -> None:
        """Raise `InvalidSignature` unless the key signed these bytes."""
        self.key.verify(signature, data)


def _in_its_role(key: Ed25519PublicKey, envelope: Mapping[str, Any] | None) -> PublicKey:
    if envelope is None:
        return key
    found = read_certificate(json.loads(base64.b64decode(envelope["payload"])))
    return key if found is None else JobPublicKey(key, found)


def default_key_path() -> Path:
    """Default path of the signing key: the user's configuration folder."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "assay" / "signing-key.pem"


def create_key(path: Path) -> None:
    """Make a key pair at `path` and `path`.pub.

    An existing key is never overwritten.

    Raises:
        ConfigError: a key exists already.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    write_key_pair(path, Ed25519PrivateKey.generate())


def write_key_pair(path: Path, key: Ed25519PrivateKey | EllipticCurvePrivateKey) -> None:
    """Write a private key at `path` and its public half at `path`.pub.

    Raises:
        ConfigError: a key exists already.
    """
    from cryptography.hazmat.primitives import serialization

    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    if path.exists() or not write_private(path, private):
        raise ConfigError(f"{path}: a key exists already. Choose another path, or move it away first.")
    write_bytes(public_path(path), public_pem(key.public_key()))


def public_path(path: Path) -> Path:
    """The public half's file."""
    return path.with_name(path.name + ".pub")


def create_job_key(path: Path, root: SigningKey, name: str, days: int) -> None:
    """Create a job's key pair and certificate at `path`.

    Raises:
        ConfigError: a key exists already, the name is empty, or `root` is a job's key itself.
    """
    if root.certificate is not None:
        raise ConfigError("--root-key: is a job's key, which cannot certify. Give the root's own key.")
    now = datetime.datetime.now(datetime.UTC)
    certificate_predicate(name, b"", days, now)  # a name that is refused leaves no key behind
    create_key(path)
    public = public_key(public_path(path))
    predicate = certificate_predicate(name, public.public_bytes_raw(), days, now)
    write_json(certificate_path(path), sign(statement({name: key_id(public)}, CERTIFICATE, predicate), root))


def key_bytes(path: Path, fix: str) -> bytes:
    """The bytes of a key's file.

    Raises:
        ConfigError: it cannot be read; `fix` says what to do where no file has a similar name.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file.{near_path(path) or fix}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).{fix}") from error


def read_pem(path: Path, kind: str, command: str) -> object:
    """The private key in a PEM file, of any type.

    Raises:
        ConfigError: the file cannot be read or is not an unencrypted key; `command` makes one of this `kind`.
    """
    from cryptography.hazmat.primitives import serialization

    try:
        return serialization.load_pem_private_key(key_bytes(path, f" Make one: {command}"), password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: is not a readable {kind} in PEM ({error}). Make one: {command}") from error


def private_key(path: Path, *, make: bool = True) -> SigningKey:
    """The signing key at `path` with its certificate.

    It is made on first use, with a log line, unless `make` is False.

    Raises:
        ConfigError: the file is not an unencrypted Ed25519 key in PEM, or the certificate next to it is another key's.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not path.exists() and make:
        with contextlib.suppress(ConfigError):  # another process was first: all use its key
            create_key(path)
            get_logger(__name__).info("made a signing key at %s; others verify with %s", path, public_path(path))
    key = read_pem(path, "private key", "assay governance keygen")
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path}: is not an Ed25519 key. Make one: assay governance keygen")
    return SigningKey(key, _certificate_beside(path, key.public_key()))


def _certificate_beside(path: Path, public: Ed25519PublicKey) -> Mapping[str, Any] | None:
    beside = certificate_path(path)
    if not beside.exists():
        return None
    try:
        envelope: dict[str, Any] = json.loads(beside.read_bytes())
        found = read_certificate(json.loads(base64.b64decode(envelope["payload"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{beside}: is not a certificate ({error}). Make the job's key again.") from error
    if found is None or found.public_key != public.public_bytes_raw():
        raise ConfigError(f"{beside}: is not the certificate of the key at {path}. Move one of them away.")
    return envelope


def public_key(path: Path) -> Ed25519PublicKey:
    """A public key file in PEM.

    Raises:
        ConfigError: the file is missing or is not an Ed25519 public key.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = serialization.load_pem_public_key(key_bytes(path, PUBLIC_FIX))
    except ValueError as error:
        raise ConfigError(f"{path}: is not a readable public key in PEM ({error}).") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path}: is not an Ed25519 public key.")
    return key


def trusted_key(path: Path) -> PublicKey:
    """A public key file that a reader trusts, in its role.

    With a certificate next to it, it is a job's. Whoever signed that, it only narrows the trust.

    Raises:
        ConfigError: as `public_key`; or the certificate is another key's, or cannot be read.
    """
    key = public_key(path)
    return _in_its_role(key, _certificate_beside(path.with_name(path.name.removesuffix(".pub")), key))


def public_key_of(raw: bytes) -> Ed25519PublicKey:
    """A public key from its 32 raw bytes.

    Raises:
        ConfigError: they are not 32.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if len(raw) != 32:
        raise ConfigError(f"{raw.hex()[:16]}…: has {len(raw)} bytes; an Ed25519 public key has 32.")
    return Ed25519PublicKey.from_public_bytes(raw)


def key_id(key: PublicKey) -> str:
    """The SHA-256 of the raw public key."""
    return sha256_bytes(key.public_bytes_raw())


def statement(subjects: dict[str, str], predicate_type: str, predicate: dict[str, Any]) -> dict[str, Any]:
    """An in-toto statement (v1): `predicate` about `subjects` (name -> SHA-256)."""
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(subjects.items())],
        "predicateType": predicate_type,
        "predicate": predicate,
    }


def sign(payload: dict[str, Any], key: SigningKey) -> dict[str, Any]:
    """DSSE envelope of `payload`, with the key's certificate."""
    body = canonical_json(payload)
    signature: dict[str, Any] = {
        "keyid": key_id(key.public_key()),
        "sig": base64.b64encode(key.private.sign(pre_authentication(body))).decode("ascii"),
    }
    if key.certificate is not None:
        signature["certificate"] = key.certificate
    return {"payloadType": PAYLOAD_TYPE, "payload": base64.b64encode(body).decode("ascii"), "signatures": [signature]}


def refuse_expired(key: SigningKey, moment: str) -> None:
    """Raise if the key's certificate does not hold at `moment`.

    The signature would count only here, where the key itself is known; a journal keeps it.

    Raises:
        ConfigError: names the certificate's time.
    """
    if key.certificate is None:
        return
    found = read_certificate(json.loads(base64.b64decode(key.certificate["payload"])))
    if found is not None and not found.covers(moment):
        raise ConfigError(
            f"the certificate of the key {found.name!r} holds {found.validity}."
            " Make another: assay governance keygen --job"
        )


def open_envelope(path: Path, trusted: Iterable[PublicKey]) -> tuple[dict[str, Any], str]:
    """Verify the envelope at `path` as `verify_envelope` does.

    Return its statement and the signer's key id.

    Raises:
        ManifestError: it cannot be read, was altered, or has no trusted signature.
    """
    return verify_envelope(read_envelope(path)[0], trusted, str(path))


def read_envelope(path: Path) -> tuple[Any, str]:
    """The JSON at `path`, not yet verified, and its file's SHA-256.

    Both are of the same bytes, whatever happens to the file meanwhile.

    Raises:
        ManifestError: it cannot be read, or is not JSON.
    """
    try:
        data = read_whole(path)
        return json.loads(data), sha256_bytes(data)
    except (OSError, ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: is not a signed envelope ({type(error).__name__}: {error})") from error


def verify_envelope(envelope: Any, trusted: Iterable[PublicKey], place: str) -> tuple[dict[str, Any], str]:
    """Statement of an envelope, and the trusted key's id.

    A certified key counts if its certificate covers the time that the statement gives (`signing_time`).

    Raises:
        ManifestError: it is not an envelope, was altered, has no trusted signature, or the certificate had run out;
            begins with `place`.
    """
    body, signatures = _parts(envelope, place)
    keys = {key_id(key): key for key in trusted}
    payload: dict[str, Any] = json.loads(body)
    why = "no trusted key signed this content: it was altered, or its signer is not in trusted_keys"
    for signature, claimed, certificate in signatures:
        if claimed in keys and holds(keys[claimed], signature, body):
            why = _outside(keys[claimed], payload)
            if not why:
                return payload, claimed
        if certificate is not None:  # a trusted job's key may have been certified again since
            fault = _certified(certificate, keys, (signature, claimed, body), payload)
            if not fault:
                return payload, claimed
            why = why if claimed in keys else fault
    raise ManifestError(f"{place}: {why}")


def signing_time(payload: Mapping[str, Any]) -> str:
    """Signing time of a statement; "" if unstated."""
    predicate = payload.get("predicate")
    if not isinstance(predicate, Mapping):
        return ""
    entry = predicate.get("journal")
    return str(entry["time"] if isinstance(entry, Mapping) and "time" in entry else predicate.get("signed_at", ""))


Signature = tuple[bytes, str, Any]


def _parts(envelope: Any, place: str) -> tuple[bytes, list[Signature]]:
    """Signed bytes, and each signature with key id and certificate."""
    try:
        body = _decode(envelope["payload"])
        kind = envelope["payloadType"]
        signatures = [
            (_decode(item["sig"]), str(item["keyid"]), item.get("certificate")) for item in envelope["signatures"]
        ]
        json.loads(body)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ManifestError(f"{place}: is not a signed envelope ({type(error).__name__}: {error})") from error
    if kind != PAYLOAD_TYPE:
        raise ManifestError(f"{place}: holds {kind!r}, not {PAYLOAD_TYPE!r}")
    return body, signatures


def _decode(text: str) -> bytes:
    """Decode canonical base64.

    Any other form is refused, else a flipped bit could go unseen.
    """
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode("ascii") != text:
        raise ValueError("its base64 is not canonical")
    return data


def draw_key() -> SigningKey:
    """A new key that only this process knows."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return SigningKey(Ed25519PrivateKey.generate())


def holds(key: PublicKey, signature: bytes, body: bytes) -> bool:
    """Return whether a key signed these bytes, as DSSE encodes them."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, pre_authentication(body))
    except InvalidSignature:
        return False
    return True


def _certified(
    envelope: Any, roots: Mapping[str, PublicKey], signed: tuple[bytes, str, bytes], payload: Mapping[str, Any]
) -> str:
    """Reason why a certified signature does not count; "" if it does."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    signature, claimed, body = signed
    certificate = _by_root(envelope, roots)
    if certificate is None:
        return "its signer's certificate is not by a trusted key, or was altered"
    try:
        key = Ed25519PublicKey.from_public_bytes(certificate.public_key)
    except ValueError:
        return "its signer's certificate holds no Ed25519 key"
    if claimed != key_id(key) or not holds(key, signature, body):
        return f"the key of {certificate.name} did not sign this content: it was altered"
    return _outside(JobPublicKey(key, certificate), payload)


def _outside(key: PublicKey, payload: Mapping[str, Any]) -> str:
    """Fault of a job's signature outside its certificate's time; "" for none."""
    if not isinstance(key, JobPublicKey):
        return ""
    moment = signing_time(payload)
    if key.certificate.covers(moment):
        return ""
    when = moment or "at no stated time"
    return f"signed {when}; the certificate of {key.certificate.name} holds {key.certificate.validity}"


def _by_root(envelope: Any, keys: Mapping[str, PublicKey]) -> Certificate | None:
    content, signatures = _parts(envelope, "its certificate")
    roots = {name: key for name, key in keys.items() if not isinstance(key, JobPublicKey)}
    if any(name in roots and holds(roots[name], item, content) for item, name, _ in signatures):
        return read_certificate(json.loads(content))
    return None


def certified(envelope: Any, roots: Iterable[PublicKey]) -> Certificate | None:
    """Certificate of an envelope signed by one of these keys."""
    try:
        return _by_root(envelope, {key_id(key): key for key in roots})
    except ManifestError:
        return None


def pre_authentication(body: bytes) -> bytes:
    """DSSE's pre-authentication encoding.

    Type and body are written with their lengths, so that neither can run into the other.
    """
    kind = PAYLOAD_TYPE.encode("ascii")
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(body), body)


def public_pem(key: Ed25519PublicKey | EllipticCurvePublicKey) -> bytes:
    """Text of a public key's file."""
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
