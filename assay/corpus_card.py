"""Card of a run's corpus for the Hugging Face hub."""

from __future__ import annotations

from dataclasses import replace

from assay.config import LoadedRun
from assay.corpus_gate import pass_gate
from assay.pipeline import corpus, report_run
from governance.errors import ConfigError, GateClosed
from governance.manifest import Manifest, verify
from governance.reports.documents.corpus_documents import dataset_card
from governance.reports.documents.evidence import Evidence
from governance.stage import Runtime


def corpus_card(run: LoadedRun, runtime: Runtime) -> tuple[str, Manifest]:
    """Card of an admitted corpus, and the artifact of its documents.

    Raises:
        GateClosed: the verdict does not admit the corpus, or a file of it is not what its manifest lists.
        ConfigError: documents are mixed, or hold columns of their rows, which are not redacted.
    """
    from governance.reports.documents.all_documents import read_report

    if run.config.data.mix is not None:
        raise ConfigError(
            "data.mix: the mixture repeats and omits documents, so the card's counts would not be those of what is "
            "sent. Push the corpus of a run without [data.mix]"
        )
    if any(source.fields.columns for source in run.config.data.sources):
        raise ConfigError(
            "columns of sources are kept and not redacted, so they are not sent. Push the corpus of a run without "
            "`columns`"
        )
    look = replace(runtime, make=False)
    pass_gate(run, corpus(run, look), look)
    artifacts, reported = report_run(run, runtime)
    evidence = Evidence(read_report(reported, runtime.root), artifacts, runtime.root)
    if problems := verify(evidence.corpus, runtime.root):
        raise GateClosed(f"the corpus was altered: {'; '.join(problems)}. Remove its folder, then prepare it again")
    return dataset_card(evidence), evidence.corpus
