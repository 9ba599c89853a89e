"""Verification of OpenSSF model signatures, whoever made them: `assay governance verify-model`.

A bundle (`model.sig`) is read as its reference, the package model-signing 1.1, reads it: statements of format v1.0 and
of the trial format v0.2, files whole or in shards, and the encoding that signers before v1.0 signed by mistake. Who
must have signed is given in one of three ways:

    by_key             an elliptic-curve key (P-256, P-384, P-521)
    by_certificate     a certificate under one of these authorities, valid when it began to be
    by_identity        a Sigstore identity; package `sigstore` verifies it, by the trusted root that it ships with

Promises: nothing is opened but the bundle, keys and the files below the folder; no network is used; every file that
differs, is missing or was never signed is named.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.errors import ConfigError, ManifestError, MissingInput, read_errors
from governance.files import piece_digest, sha256_bytes
from governance.regular_files import read_whole
from governance.signing.dsse import PAYLOAD_TYPE, PUBLIC_FIX, key_bytes, pre_authentication, public_pem
from governance.signing.openssf import BUNDLE_TYPE, GIT_PATHS, PREDICATE_TYPE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.x509 import Certificate

TRIAL_TYPE = "https://model_signing/Digests/v0.1"
_MAX_NAMED = 10
_FIX = "Give the signature that came with the model: --signature FILE"

Authenticate = Callable[[bytes, str], bytes]
"""(bundle, place) -> the statement that the trusted signer signed; raises `ManifestError`."""


@dataclass(frozen=True)
class SignedModel:
    """Content of a statement whose signature holds."""

    name: str
    files: Mapping[str, str]
    """Name of each file, or `name:begin:end` of each shard -> digest."""
    algorithm: str
    shard_bytes: int | None
    """None: files are hashed whole."""
    symlinks: bool
    ignored: tuple[str, ...]
    """Relative to the model, as the signer stated."""


def verify_model(
    folder: Path, signature: Path, authenticate: Authenticate, ignored: Sequence[Path] = ()
) -> SignedModel:
    """Compare a model, a folder or a file, with its signature.

    Args:
        folder: the model.
        signature: its bundle.
        authenticate: who must have signed.
        ignored: further files and folders that the signature need not cover.

    Raises:
        MissingInput: there is no such model or signature.
        ManifestError: another signer, an altered bundle, or files that are not as they were signed.
    """
    if not folder.exists():
        raise MissingInput(f"{folder}: no such file or folder. Name the model that was signed")
    if not signature.exists():
        raise MissingInput(f"{signature}: no such file. {_FIX}")
    with read_errors(signature, fix=_FIX):
        data = read_whole(signature)
    try:
        signed = _statement(json.loads(authenticate(data, str(signature))), str(signature))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        fault = f"is not a model signature ({type(error).__name__}: {str(error)[:200]})"
        raise ManifestError(f"{signature}: {fault}. {_FIX}") from error
    left_out = {path.absolute() for path in (signature, *ignored)}
    left_out |= {(folder / name).absolute() for name in (*GIT_PATHS, *signed.ignored)}
    found = dict(_digests(folder, signed, left_out))
    differ = sorted(name for name, digest in found.items() if signed.files.get(name, digest) != digest)
    faults = [
        *(f"{name}: is not as it was signed" for name in differ),
        *(f"{name}: was signed and is missing" for name in sorted(set(signed.files) - set(found))),
        *(f"{name}: was not signed" for name in sorted(set(found) - set(signed.files))),
    ]
    if faults:
        more = f"; and {len(faults) - _MAX_NAMED} more" if len(faults) > _MAX_NAMED else ""
        raise ManifestError(f"{folder}: {'; '.join(faults[:_MAX_NAMED])}{more}. Get the model again from its signer")
    return signed


def _statement(payload: Any, place: str) -> SignedModel:
    """The statement's files and the way in which they were hashed."""
    kind = payload["predicateType"]
    if kind == TRIAL_TYPE:
        files = {subject["name"]: subject["digest"]["sha256"] for subject in payload["subject"]}
        return SignedModel("", files, "sha256", None, False, ())
    if kind != PREDICATE_TYPE:
        raise ManifestError(f"{place}: states {kind!r}, not {PREDICATE_TYPE!r}: it signs something else than a model")
    [subject] = payload["subject"]
    resources, way = payload["predicate"]["resources"], payload["predicate"]["serialization"]
    whole = sha256_bytes(b"".join(bytes.fromhex(item["digest"]) for item in resources))
    if whole != subject["digest"]["sha256"]:
        raise ManifestError(f"{place}: its digest of all files is not that of the files it lists")
    algorithms = {item["algorithm"] for item in resources} | {way["hash_type"]}
    algorithms = {name.partition("-sharded")[0] for name in algorithms}
    if way["method"] not in ("files", "shards") or len(algorithms) != 1 or not algorithms <= {"sha256", "blake2b"}:
        words = f"method {way['method']}, digests {', '.join(sorted(algorithms))}"
        raise ManifestError(f"{place}: {words}: not supported here. Verify it with the package model-signing")
    files = {item["name"]: item["digest"] for item in resources}
    if len(files) != len(resources):
        raise ManifestError(f"{place}: lists a file twice")
    shard = int(way["shard_size"]) if way["method"] == "shards" else None
    if shard is not None and shard < 1:
        raise ManifestError(f"{place}: shards of {shard} bytes. {_FIX}")
    ignored = tuple(way.get("ignore_paths", ()))
    return SignedModel(subject["name"], files, algorithms.pop(), shard, bool(way["allow_symlinks"]), ignored)


def _digests(folder: Path, signed: SignedModel, left_out: set[Path]) -> Iterator[tuple[str, str]]:
    """Name and digest of each file or shard to be signed."""
    algorithm = signed.algorithm
    for path in [folder] if folder.is_file() else sorted(folder.rglob("*")):
        if left_out & {path.absolute(), *path.absolute().parents}:
            continue
        if path.is_symlink() and not signed.symlinks:
            raise ManifestError(f"{path}: is a link, and the signer allowed none. Put the file itself there")
        if path.is_dir():
            continue
        if not path.is_file():
            raise ManifestError(f"{path}: is neither a file nor a folder. Remove it")
        name = "." if path == folder else path.relative_to(folder).as_posix()
        if signed.shard_bytes is None:
            yield name, piece_digest(path, algorithm)
            continue
        size = path.stat().st_size
        for begin in range(0, size, signed.shard_bytes):
            end = min(begin + signed.shard_bytes, size)
            yield f"{name}:{begin}:{end}", piece_digest(path, algorithm, begin, end - begin)


def by_key(path: Path) -> Authenticate:
    """Accept what one elliptic-curve key signed.

    Raises:
        ConfigError: the file is not such a public key.
    """
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_pem_public_key(key_bytes(path, PUBLIC_FIX))
        _digest_of(key)
    except (ValueError, TypeError, AttributeError) as error:
        words = "is not a public key on P-256, P-384 or P-521 in PEM"
        raise ConfigError(f"{path}: {words} ({error}). Give the signer's: --key PUBLIC_KEY") from error
    known: Any = key
    pem = public_pem(known)

    def authenticate(data: bytes, place: str) -> bytes:
        material, envelope = _parts(data)
        hint = material.get("publicKey", {}).get("hint")
        if hint and hint != sha256_bytes(pem):
            raise ManifestError(f"{place}: names another key than {path} as its signer's")
        return _signed_payload(known, envelope, f"{place}: the key {path} did not sign it, or it was altered")

    return authenticate


def by_certificate(authorities: Iterable[Path]) -> Authenticate:
    """Accept signatures under a certificate of one of these authorities.

    The time is that at which the certificate began to be valid: a bundle states no other.

    Raises:
        ConfigError: a file holds no certificates.
    """
    from cryptography import x509

    roots: list[Certificate] = []
    for path in authorities:
        try:
            roots += x509.load_pem_x509_certificates(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: holds no certificates in PEM ({error}). Give the authority's") from error

    def authenticate(data: bytes, place: str) -> bytes:
        material, envelope = _parts(data)
        chain = [
            x509.load_der_x509_certificate(_decoded(item["rawBytes"]))
            for item in material.get("x509CertificateChain", {}).get("certificates", ())
        ]
        if not chain:
            raise ManifestError(f"{place}: holds no certificate. Was it signed with a key? --key PUBLIC_KEY")
        _verify_chain(chain, roots, place)
        key: Any = chain[0].public_key()
        return _signed_payload(key, envelope, f"{place}: its certificate's key did not sign it, or it was altered")

    return authenticate


def _verify_chain(chain: Sequence[Certificate], roots: list[Certificate], place: str) -> None:
    from cryptography import x509
    from cryptography.x509 import verification
    from cryptography.x509.oid import ExtendedKeyUsageOID

    policies = verification.ExtensionPolicy
    builder = verification.PolicyBuilder().store(verification.Store(roots)).time(chain[0].not_valid_before_utc)
    rules = builder.extension_policies(ca_policy=policies.webpki_defaults_ca(), ee_policy=policies.permit_all())
    try:
        rules.build_client_verifier().verify(chain[0], list(chain[1:]))
    except verification.VerificationError as error:
        raise ManifestError(f"{place}: its certificate is not by the given authorities ({error})") from error
    uses = {type(one.value): one.value for one in chain[0].extensions}
    use: Any = uses.get(x509.KeyUsage)
    extended: Any = uses.get(x509.ExtendedKeyUsage, ())
    if not (use and use.digital_signature) and ExtendedKeyUsageOID.CODE_SIGNING not in extended:
        raise ManifestError(f"{place}: its certificate is not for signing")


def by_identity(identity: str, issuer: str) -> Authenticate:
    """Accept signatures of a Sigstore identity.

    The trusted root is that which package `sigstore` ships with.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        from sigstore.errors import Error
        from sigstore.models import Bundle
        from sigstore.verify import Verifier, policy
    except ImportError as error:
        needed = 'pip install "assay-pretrain[sigstore]"'
        raise ConfigError(f"--identity: package sigstore is not installed. {needed}") from error

    def authenticate(data: bytes, place: str) -> bytes:
        try:
            wanted = policy.Identity(identity=identity, issuer=issuer)
            kind, payload = Verifier.production(offline=True).verify_dsse(Bundle.from_json(data), wanted)
        except Error as error:
            raise ManifestError(
                f"{place}: is not signed by {identity} of {issuer}, or was altered ({error})"
            ) from error
        if kind != PAYLOAD_TYPE:
            raise ManifestError(f"{place}: holds {kind!r}, not {PAYLOAD_TYPE!r}")
        return bytes(payload)

    return authenticate


def _parts(data: bytes) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Verification material and envelope of a bundle."""
    bundle = json.loads(data)
    if not isinstance(bundle, dict) or bundle.get("mediaType") != BUNDLE_TYPE:
        raise ValueError(f"it is not of the type {BUNDLE_TYPE}")
    material, envelope = bundle["verificationMaterial"], bundle["dsseEnvelope"]
    if not isinstance(material, dict) or envelope["payloadType"] != PAYLOAD_TYPE:
        raise ValueError(f"its payload is not of the type {PAYLOAD_TYPE}")
    return material, envelope


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError) as error:
        raise ValueError(f"base64: {error}") from error


def _signed_payload(key: EllipticCurvePublicKey, envelope: Mapping[str, Any], fault: str) -> bytes:
    """The envelope's payload, which the key must have signed."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    payload, signature = _decoded(envelope["payload"]), _decoded(envelope["signatures"][0]["sig"])
    # signers before v1.0 put Python's text of the bytes into the encoding, and v0.2 always hashed with SHA-256
    trial = f"DSSEV1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(payload)} {payload!r}".encode()
    for body, digest in (
        (pre_authentication(payload), _digest_of(key)),
        (trial, _digest_of(key)),
        (trial, hashes.SHA256()),
    ):
        try:
            key.verify(signature, body, ec.ECDSA(digest))
        except InvalidSignature:
            continue
        return payload
    raise ManifestError(f"{fault}. Ask the signer for the model and its key")


def _digest_of(key: Any) -> Any:
    """The hash that the format pairs with a key's curve.

    Raises:
        ValueError: it is not a key on those curves.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    kinds: dict[str, Any] = {"secp256r1": hashes.SHA256, "secp384r1": hashes.SHA384, "secp521r1": hashes.SHA512}
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in kinds:
        raise ValueError("the key is of another kind")
    return kinds[key.curve.name]()
