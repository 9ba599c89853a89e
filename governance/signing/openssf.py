"""OpenSSF model signatures (v1.0) of checkpoints.

The bundle (`model.sig` in the checkpoint's folder, no output of its manifest) is a sigstore bundle v0.3 with a DSSE
envelope around an in-toto statement that names each file with its SHA-256. Its receiver verifies the folder with

    model_signing verify key <folder> --signature <folder>/model.sig --public_key <key>.pub

Promise: the digests are those of the manifest, so no file is read again, and signing costs milliseconds whatever the
model's size. The bundle is written before the manifest is, as everything of an artifact. Keys are EC P-256, because
the format takes no Ed25519 key. It is written here, not by the package, whose way to hand in known digests is private
and which would bring sigstore's and TUF's clients, with their network, into every run; a test has the stock package
verify it.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.config import canonical_json
from governance.errors import ConfigError
from governance.files import sha256_bytes, sha256_file, write_json
from governance.log import get_logger
from governance.manifest import FILE_NAME as MANIFEST_NAME
from governance.manifest import Manifest, manifest_text
from governance.signing.dsse import (
    PAYLOAD_TYPE,
    default_key_path,
    pre_authentication,
    public_path,
    public_pem,
    read_pem,
    statement,
    write_key_pair,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

FILE_NAME = "model.sig"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
GIT_PATHS = (".git", ".gitattributes", ".github", ".gitignore")


def default_model_key_path() -> Path:
    """Default path of the model key."""
    return default_key_path().with_name("model-key.pem")


def create_model_key(path: Path) -> None:
    """Make an EC P-256 key pair at `path` and `path`.pub.

    An existing key is never overwritten.

    Raises:
        ConfigError: a key exists already.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    write_key_pair(path, ec.generate_private_key(ec.SECP256R1()))


def model_key(path: Path) -> EllipticCurvePrivateKey:
    """The model key at `path`, made and logged on first use.

    Raises:
        ConfigError: the file is not an unencrypted EC P-256 key in PEM.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    if not path.exists():
        create_model_key(path)
        get_logger(__name__).info("made a model key at %s; others verify with %s", path, public_path(path))
    key = read_pem(path, "model key", "assay governance keygen --model PATH")
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise ConfigError(f"{path}: is not an EC P-256 key. Make one: assay governance keygen --model PATH")
    return key


def sign_model(manifest: Manifest, key: EllipticCurvePrivateKey, root: Path) -> tuple[str, str]:
    """Write the bundle of a checkpoint whose files are there.

    Return its path below the root and its SHA-256.

    The manifest may be still to be written: its bytes follow from its values.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = root / manifest.folder
    body = canonical_json(_statement(manifest, sha256_bytes(manifest_text(manifest).encode("utf-8"))))
    signature = key.sign(pre_authentication(body), ec.ECDSA(hashes.SHA256()))
    bundle = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": sha256_bytes(public_pem(key.public_key()))}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(body).decode("ascii"),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode("ascii"), "keyid": ""}],
        },
    }
    write_json(folder / FILE_NAME, bundle)
    return f"{manifest.folder}/{FILE_NAME}", sha256_file(folder / FILE_NAME)


def _statement(manifest: Manifest, manifest_sha256: str) -> dict[str, Any]:
    """The format's statement.

    It has the files in the order of their names, and a digest over their digests.
    """
    files = _files(manifest) | {MANIFEST_NAME: manifest_sha256}
    resources = [{"name": name, "algorithm": "sha256", "digest": files[name]} for name in sorted(files)]
    whole = sha256_bytes(b"".join(bytes.fromhex(item["digest"]) for item in resources))
    serialization = {
        "method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [FILE_NAME, *GIT_PATHS],
    }  # fmt: skip
    return statement(
        {manifest.folder.rpartition("/")[2]: whole},
        PREDICATE_TYPE,
        {"serialization": serialization, "resources": resources},
    )


def _files(manifest: Manifest) -> dict[str, str]:
    prefix = f"{manifest.folder}/"
    return {output.path.removeprefix(prefix): output.sha256 for output in manifest.outputs}


def signature_faults(manifest: Manifest, root: Path) -> list[str]:
    """Differences between a checkpoint's bundle and manifest, signature unchecked.

    The files' own bytes are compared by `governance.manifest.verify`.
    """
    path = root / manifest.folder / FILE_NAME
    if not path.exists():
        return []
    name = f"{manifest.folder}/{FILE_NAME}"
    try:
        payload = json.loads(base64.b64decode(json.loads(path.read_bytes())["dsseEnvelope"]["payload"]))
        signed = {item["name"]: item["digest"] for item in payload["predicate"]["resources"]}
    except (ValueError, KeyError, TypeError) as error:
        return [f"{name}: is not a model signature ({error})"]
    expected = _files(manifest) | {MANIFEST_NAME: sha256_file(root / manifest.path)}
    return [
        f"{name}: signs {file} with another digest than the manifest's"
        for file in sorted(set(signed) | set(expected))
        if signed.get(file) != expected.get(file)
    ]
