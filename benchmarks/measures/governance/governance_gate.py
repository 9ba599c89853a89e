"""Cost of the gate's verification, as a share of the pipeline from the sources to the verdict.

Both sides cover the same work: all that `assay data prepare` and `assay governance check` run, the tokenizer's training
included. Counted is all that is done for it alone, in one process: the hashes of shards as they are read, by stages and
checks; the signing and reading of records; the journal's lines; and the doors of the check, the training and the
report, each with a journal that nobody read before.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from benchmarks.measures.corpora import mixed, text_bytes
from benchmarks.measures.goals import Goal, cpu_seconds, figure
from benchmarks.measures.governance.governance_corpus import prepared
from governance import verified_files
from governance.gate.chain import require_chain
from governance.gate.policy import load_policy
from governance.gate.verdict import GovernanceConfig, Keyring
from governance.hooks import Hooks
from governance.lineage.attest import KeySigner, attest_with, open_journal
from governance.manifest import verify
from governance.signing.dsse import create_key
from governance.signing.journal import Journal
from governance.stage import Runtime


@contextmanager
def _timed(places: list[tuple[Any, str, str]], spent: Counter[str]) -> Iterator[None]:
    """While the context lasts, the CPU-seconds of these functions are added up, by name."""
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in places]

    def counted(work: Callable[..., Any], kind: str) -> Callable[..., Any]:
        @wraps(work)
        def run(*words: Any, **more: Any) -> Any:
            started = time.process_time()
            try:
                return work(*words, **more)
            finally:
                spent[kind] += time.process_time() - started  # type: ignore[assignment]

        return run

    for (owner, name, work), (_, _, kind) in zip(kept, places, strict=True):
        setattr(owner, name, counted(work, kind))
    try:
        yield
    finally:
        for owner, name, work in kept:
            setattr(owner, name, work)


def verified(quick: bool) -> list[Goal]:
    """The added CPU-seconds by kind, and their share of the pipeline's."""
    from governance.checks.audit import AuditConfig, audit
    from governance.checks.bias.bias import BiasConfig, bias_audit
    from governance.checks.expectations import quiet_context

    quiet_context()  # imports Great Expectations: not counted
    documents = mixed(10_000_000 if quick else 80_000_000)
    spent: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder, config = Path(scratch), GovernanceConfig(signing_key="key.pem")
        os.environ["XDG_STATE_HOME"] = str(folder / "state")
        create_key(folder / "key.pem")

        def runtime_of(root: Path) -> Runtime:
            attest = attest_with(open_journal(Keyring(config, folder), root), Keyring(config, folder), root)
            return Runtime(root, hooks=Hooks(attest=attest, signer=KeySigner(Keyring(config, folder))))

        places = [
            (verified_files, "_compare", "hashes"), (verified_files, "file_state", "hashes"),
            (KeySigner, "sign", "records"), (KeySigner, "open", "records"), (Journal, "_append", "journal"),
        ]  # fmt: skip
        artifacts, runtime, readers, stages = prepared(documents, folder, runtime_of, lambda: _timed(places, spent))
        of_prepare = sum(spent.values())
        started = cpu_seconds()
        with _timed(places, spent):
            artifacts["bias"] = bias_audit(artifacts, BiasConfig(), runtime)
            policy = load_policy(Path(__file__).parents[3] / "configs" / "policy.toml")
            checked = audit(artifacts, policy, AuditConfig(), runtime, readers)
        checks = cpu_seconds() - started
        for ends in ((artifacts["encode"],), (artifacts["encode"], checked), (artifacts["encode"], checked)):
            started = time.process_time()
            require_chain(ends, runtime.root, open_journal(Keyring(config, folder), runtime.root))
            faults = verify(checked, runtime.root)
            spent["doors"] += time.process_time() - started  # type: ignore[assignment]
    corpus, added = sum(stages.values()), sum(spent.values())
    note = f"{text_bytes(documents) / 1e6:.0f} MB of text, {len(faults)} faults"
    return [
        Goal("verified.share_of_pipeline", added / (corpus + checks), 0.02, "<=", note),
        figure("verified.share_of_prepare", of_prepare / corpus, "what the stages verify, of their own time"),
        *(figure(f"verified.{kind}_seconds", seconds) for kind, seconds in sorted(spent.items())),
        figure("verified.corpus_seconds", corpus, "ingest to encode, the tokenizer's training included"),
        figure("verified.checks_seconds", checks, "bias and audit"),
    ]
