"""Tracing of a text: what it reads is the same from its first digest to the answer."""

import os

import pytest

from assay.config import load_run
from assay.pipeline import corpus
from assay.trace_text import traced_text
from data_pipeline.text_index.index_stage import TextIndexConfig
from governance.errors import AlteredFile
from governance.hooks import Hooks
from governance.lineage.attest import attest_with
from governance.stage import Runtime


def test_an_index_that_changes_while_it_is_searched_gives_no_answer(project, monkeypatch):
    root, run = project / "root", load_run(project / "run.toml", [])
    runtime = Runtime(root, hooks=Hooks(attest=attest_with(run.journal(root), run.keyring, root)))
    tokens = corpus(run, runtime)["encode"]
    made = traced_text.make_index(tokens, TextIndexConfig(), runtime)
    given = ("a text of nobody, which has fifty characters and more", None, root / tokens.folder, run.keyring, (40, 5))
    assert traced_text.trace_text(*given).spans == ()
    search = traced_text.find_spans

    def search_and_change(*arguments):
        for output in made.outputs:
            os.utime(root / output.path, (0, 0))
        return search(*arguments)

    monkeypatch.setattr(traced_text, "find_spans", search_and_change)
    with pytest.raises(AlteredFile, match="was changed while it was read"):
        traced_text.trace_text(*given)
