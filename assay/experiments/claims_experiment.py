"""Experiment on the Transformer's claims, behind the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from assay.config import LoadedRun
from assay.corpus_gate import pass_gate, require_corpus, require_signed
from governance.gate.chain import require_chain
from governance.manifest import Manifest
from governance.stage import Runtime
from pretrain.distributed.process_group import Ranks, threads_of
from pretrain.experiments.claims_config import ClaimsConfig


def run_claims(run: LoadedRun, artifacts: Mapping[str, Manifest], config: ClaimsConfig, runtime: Runtime) -> Manifest:
    """Make or find the experiment, on a corpus that the verdict admits.

    Raises:
        GateClosed: the verdict does not let this corpus through, or a shard, a training or the report differs from its
            statement.
    """
    from pretrain.experiments.claims import claims

    pass_gate(run, artifacts, runtime)
    require_corpus(run, artifacts, runtime, "train", "validation")
    threads = threads_of(Ranks(), run.config.engine.threads)

    def check(made: Sequence[Manifest]) -> None:
        require_chain(made, runtime.root, run.journal(runtime.root))

    made = claims(artifacts["encode"], config, threads, runtime, check)
    require_signed(made, runtime.root, run.journal(runtime.root))
    return made
