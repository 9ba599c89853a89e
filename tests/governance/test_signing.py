"""Keys, certificates under an offline root, and envelopes that another library reads."""

import base64
import copy
import datetime
import json

import pytest

from assay.cli.main import main
from governance.config import canonical_json
from governance.errors import ConfigError, ManifestError
from governance.files import write_json
from governance.gate.verdict import GovernanceConfig, Keyring
from governance.signing.certificates import PREDICATE_TYPE, certificate_path, certificate_predicate
from governance.signing.dsse import (
    SigningKey,
    certified,
    create_job_key,
    create_key,
    key_id,
    open_envelope,
    private_key,
    public_key,
    public_path,
    sign,
    statement,
    trusted_key,
    verify_envelope,
)
from governance.signing.model_bundles import by_key


def said(moment="2026-06-15T12:00:00Z"):
    return statement({"thing": "a" * 64}, "urn:test:1", {"signed_at": moment})


def stamp(days):
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture
def keys(tmp_path):
    """A root key, and a job's key of ten days under it."""
    create_key(tmp_path / "root.pem")
    create_job_key(tmp_path / "job.pem", private_key(tmp_path / "root.pem"), "nightly", 10)
    return private_key(tmp_path / "root.pem"), private_key(tmp_path / "job.pem")


def test_a_job_is_believed_by_who_trusts_the_root_while_its_certificate_holds(keys, tmp_path):
    root, job = keys
    write_json(tmp_path / "in_time.json", sign(said(stamp(1)), job))
    content, signer = open_envelope(tmp_path / "in_time.json", [root.public_key()])
    assert content["predicateType"] == "urn:test:1"
    assert signer == key_id(job.public_key())
    for days in (-1, 11):
        with pytest.raises(ManifestError, match="the certificate of nightly holds from"):
            verify_envelope(sign(said(stamp(days)), job), [root.public_key()], "it")
    for moment in ("", "soon", "2026-06-15"):
        with pytest.raises(ManifestError, match="the certificate of nightly holds"):
            verify_envelope(sign(said(moment), job), [root.public_key()], "it")


def test_a_root_that_is_not_trusted_certifies_nobody(keys, tmp_path):
    _, job = keys
    create_key(tmp_path / "other.pem")
    with pytest.raises(ManifestError, match="not by a trusted key"):
        verify_envelope(sign(said(stamp(1)), job), [public_key(public_path(tmp_path / "other.pem"))], "it")
    assert verify_envelope(sign(said(stamp(90)), job), [job.public_key()], "it")  # trusted by itself


def test_a_certificate_certifies_no_further_one(keys, tmp_path):
    root, job = keys
    with pytest.raises(ConfigError, match="cannot certify"):
        create_job_key(tmp_path / "child.pem", job, "child", 1)
    create_key(tmp_path / "child.pem")
    child = private_key(tmp_path / "child.pem")
    now = datetime.datetime.now(datetime.UTC)
    predicate = certificate_predicate("child", child.public_key().public_bytes_raw(), 1, now)
    by_job = sign(statement({"child": key_id(child.public_key())}, PREDICATE_TYPE, predicate), job)
    with pytest.raises(ManifestError, match="not by a trusted key"):
        verify_envelope(sign(said(stamp(0)), SigningKey(child.private, by_job)), [root.public_key()], "it")


def test_a_job_that_is_trusted_by_itself_gets_a_jobs_role_and_no_more(keys, tmp_path):
    """The holder of the job's key certifies a key of their own, backdates it, and removes the certificate."""
    root, job = keys
    trusted = [trusted_key(public_path(tmp_path / "job.pem"))]
    assert verify_envelope(sign(said(stamp(1)), job), trusted, "it")[1] == key_id(job.public_key())
    assert job.trusted() == trusted[0]
    bare = SigningKey(job.private)
    for key in (job, bare):
        for days in (-1, 11):
            with pytest.raises(ManifestError, match="the certificate of nightly holds from"):
                verify_envelope(sign(said(stamp(days)), key), trusted, "it")
    create_job_key(tmp_path / "own.pem", bare, "gate", 1000)
    own = private_key(tmp_path / "own.pem")
    for keys_of_reader in (trusted, [*trusted, root.public_key()]):
        with pytest.raises(ManifestError, match="not by a trusted key"):
            verify_envelope(sign(said(stamp(1)), own), keys_of_reader, "it")
        assert certified(own.certificate, keys_of_reader) is None
    assert certified(own.certificate, [job.public_key()]) is not None  # who trusts the bare key makes it a root
    certificate_path(tmp_path / "job.pem").write_bytes(certificate_path(tmp_path / "own.pem").read_bytes())
    with pytest.raises(ConfigError, match="is not the certificate of the key"):
        trusted_key(public_path(tmp_path / "job.pem"))


def test_a_trusted_jobs_key_that_the_root_certified_again_counts_in_both_times(keys, tmp_path):
    """The reader keeps the first certificate; the second one travels with the envelope."""
    root, job = keys
    first, raw = trusted_key(public_path(tmp_path / "job.pem")), job.public_key().public_bytes_raw()
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=20)
    predicate = certificate_predicate("nightly", raw, 10, later)
    again = SigningKey(
        job.private, sign(statement({"nightly": key_id(job.public_key())}, PREDICATE_TYPE, predicate), root)
    )
    both = [first, root.public_key()]
    for key, days in ((job, 1), (again, 1), (again, 25)):
        assert verify_envelope(sign(said(stamp(days)), key), both, "it")[1] == key_id(job.public_key())
    for trusted, days in ((both, 15), (both, 35), ([first], 25)):
        with pytest.raises(ManifestError, match="the certificate of nightly holds from"):
            verify_envelope(sign(said(stamp(days)), again), trusted, "it")


def test_another_jobs_certificate_and_an_altered_one_do_not_count(keys, tmp_path):
    root, job = keys
    create_job_key(tmp_path / "second.pem", root, "second", 10)
    second = private_key(tmp_path / "second.pem")
    with pytest.raises(ManifestError, match="did not sign this"):
        verify_envelope(sign(said(stamp(1)), SigningKey(job.private, second.certificate)), [root.public_key()], "it")
    longer = copy.deepcopy(dict(job.certificate))
    content = json.loads(base64.b64decode(longer["payload"]))
    content["predicate"]["not_after"] = stamp(1000)
    longer["payload"] = base64.b64encode(canonical_json(content)).decode()
    with pytest.raises(ManifestError, match="was altered"):
        verify_envelope(sign(said(stamp(100)), SigningKey(job.private, longer)), [root.public_key()], "it")
    certificate_path(tmp_path / "job.pem").write_bytes(certificate_path(tmp_path / "second.pem").read_bytes())
    with pytest.raises(ConfigError, match="is not the certificate of the key"):
        private_key(tmp_path / "job.pem")


def test_securesystemslib_verifies_our_envelopes_and_refuses_an_altered_one(keys):
    dsse = pytest.importorskip("securesystemslib.dsse", reason="the dev extra is not installed")
    signer = pytest.importorskip("securesystemslib.signer")
    for key in keys:
        envelope = sign(said(stamp(1)), key)
        public = signer.SSlibKey.from_crypto(key.public_key(), key_id(key.public_key()))
        assert dsse.Envelope.from_dict(copy.deepcopy(envelope)).verify([public], 1)
        altered = {**envelope, "payload": base64.b64encode(canonical_json(said(stamp(2)))).decode()}
        with pytest.raises(Exception, match="signature"):
            dsse.Envelope.from_dict(copy.deepcopy(altered)).verify([public], 1)


def test_keygen_makes_private_keys_that_only_their_owner_reads(tmp_path, capsys):
    root, job, model = (tmp_path / name for name in ("root.pem", "job.pem", "model.pem"))
    assert main(["governance", "keygen", "--root", str(root)]) == 0
    assert "offline" in capsys.readouterr().out
    words = ["governance", "keygen", "--job", str(job), "--root-key", str(root), "--days", "3", "--name", "nightly"]
    assert main(words) == 0
    assert main(["governance", "keygen", "--model", str(model)]) == 0
    for path in (root, job, model):
        assert path.stat().st_mode & 0o777 == 0o600
        assert public_path(path).exists()
    assert certificate_path(job).exists()
    assert private_key(job).certificate is not None
    assert main(words) == 78  # never overwritten
    assert main(["governance", "keygen", "--job", str(tmp_path / "x.pem")]) == 78
    assert main(["governance", "keygen", "--root-key", str(root)]) == 78
    assert main([*words[:3], str(tmp_path / "y.pem"), "--root-key", str(tmp_path / "none.pem")]) == 78
    assert not (tmp_path / "none.pem").exists()
    assert not (tmp_path / "y.pem").exists()


@pytest.mark.parametrize("read", [public_key, by_key])
def test_a_public_key_that_is_not_there_is_named_with_the_nearest(read, tmp_path):
    (tmp_path / "model.pem.pub").touch()
    with pytest.raises(ConfigError, match=r"modl\.pem\.pub: no such file\. Did you mean .*/model\.pem\.pub\?"):
        read(tmp_path / "modl.pem.pub")
    for key in (read, lambda path: Keyring(GovernanceConfig(signing_key=path.name), path.parent).trusted()):
        with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
            key(tmp_path)
