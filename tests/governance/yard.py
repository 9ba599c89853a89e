"""A site's folder, a run with a corpus and its audit, and all keys: both doors of the gate in milliseconds."""

from __future__ import annotations

import datetime
import json

import pytest

from governance.errors import GateClosed
from governance.gate.chain import require_chain
from governance.gate.decision import CheckResult, decide
from governance.gate.policy import load_policy
from governance.gate.verdict import (
    GateContext,
    GovernanceConfig,
    Keyring,
    binding_sites,
    give_verdict,
    require_open,
    statements_in_effect,
)
from governance.lineage.attest import open_journal
from governance.manifest import Manifest, Output
from governance.signing.dsse import create_job_key, create_key, private_key

SITE_POLICY = """
name = "institute"
[owners]
data = ["ann"]
[people]
ann = "ann.pem.pub"
ben = "ben.pem.pub"
[licences]
allowed = ["MIT"]
[[gate]]
id = "a.hard"
suite = "sources"
expectation = "between"
column = "x"
max = 1
owner = "data"
why = "because it matters here"
"""
CHILD = 'name = "run"\nparent = "site/policy.toml"\ninherit = true\n'


class Yard:
    """A site's folder, a run's folder with an encoded corpus and its audit, and the keys of all people."""

    def __init__(self, root):
        self.root, self.site = root, root / "site"
        self.site.mkdir()
        for name in ("ann", "ben", "root"):
            create_key(self.site / f"{name}.pem")
        create_key(root / "stranger.pem")
        self.certify("audit", self.site / "root.pem")
        self.certify("gate", self.site / "root.pem")
        (self.site / "policy.toml").write_text(SITE_POLICY)
        (root / "policy.toml").write_text(CHILD)
        self.pin()
        fields = {"version": 1, "key": "0" * 64, "config": {}, "inputs": (), "stats": {}, "run": {}}
        shard = Output(path=f"encode/{'0' * 16}/train/00000.tokens", bytes=1, sha256="1" * 64)
        (root / shard.path).parent.mkdir(parents=True)
        (root / shard.path).write_bytes(b"1")
        self.tokens = Manifest(stage="encode", outputs=(shard,), **fields)
        self.audit = Manifest(stage="audit", outputs=(), **fields)

    def certify(self, name, root, days=30):
        create_job_key(self.root / f"{name}.pem", private_key(root), name, days)

    def pin(self, **changes):
        digest = load_policy(self.site / "policy.toml").digest
        pins = {"name": "Example Institute", "policy": digest, "trusted_keys": ["root.pem.pub"], **changes}
        (self.site / "site.toml").write_text("".join(f"{name} = {json.dumps(pins[name])}\n" for name in pins))

    def config(self, **changes):
        known = {"signing_key": "audit.pem", "trusted_keys": ("site/root.pem.pub",)}
        return GovernanceConfig(**{**known, **changes})

    def gate(self, config=None):
        keyring = Keyring(config or self.config(), self.root)
        return GateContext(keyring, self.root, open_journal(keyring, self.root))

    def judge(self, *, status="pass", **changes):
        """Sign as `assay governance check` does."""
        gate, policy = self.gate(self.config(**changes)), load_policy(self.root / "policy.toml")
        for manifest in (self.tokens, self.audit):
            gate.journal.state_artifact(manifest)
        results = [CheckResult(gate.id, "sources", status, 0.5, 9, 0, "x") for gate in policy.gate]
        binding_sites(policy, gate.keyring)
        require_chain((self.tokens,), self.root, gate.journal)
        statements = statements_in_effect(gate, policy, self.tokens.digest)
        today = datetime.datetime.now(datetime.UTC).date()
        judgement = decide(policy, results, self.tokens.digest, today, statements)
        return give_verdict(judgement, self.tokens, self.audit, policy, gate)

    def open(self, *, record=True, **changes):
        """Request training as `assay train` does."""
        policy = load_policy(self.root / "policy.toml")
        return require_open(self.tokens, policy, self.gate(self.config(**changes)), record=record)

    def refused(self, words, **changes):
        """Neither door opens, and both give the reason."""
        for door in (self.judge, self.open):
            with pytest.raises(GateClosed) as caught:
                door(**changes)
            assert words in str(caught.value)
            assert caught.value.exit_code == 77


def move_clock(monkeypatch, by):
    """Every later request for the time gets a time that is later by so much."""
    real = datetime.datetime

    class Moved(real):
        @classmethod
        def now(cls, tz=None):
            return real.now(tz) + by

    monkeypatch.setattr(datetime, "datetime", Moved)
