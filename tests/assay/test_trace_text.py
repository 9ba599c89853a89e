"""Tracing of a text: what it reads is the same from its first digest to the answer."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.config import load_run
from assay.pipeline import corpus
from assay.trace_text import traced_text
from assay.trace_text.trace_page import trace_lines, trace_page
from assay.trace_text.traced_text import SpanSource, TracedSpan, TracedText
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
    given = ("a text of nobody, which has fifty characters and more", None, root / tokens.folder, run.keyring, 40, 5)
    assert traced_text.trace_text(*given).spans == ()
    search = traced_text.find_spans

    def search_and_change(*arguments):
        for output in made.outputs:
            os.utime(root / output.path, (0, 0))
        return search(*arguments)

    monkeypatch.setattr(traced_text, "find_spans", search_and_change)
    with pytest.raises(AlteredFile, match="was changed while it was read"):
        traced_text.trace_text(*given)


ADDRESS = "maria.oberhauser@kanzlei-am-see.example"
WORDS = f"Please write to {ADDRESS} before Friday"


@given(st.tuples(*[st.integers(0, len(WORDS))] * 2).filter(lambda ends: ends[0] < ends[1]).map(sorted))
def test_a_span_that_cuts_an_address_shows_no_part_of_it(ends):
    """Half an address is not an address any more, so a mask of the span alone leaves it."""
    start, end = ends
    source = SpanSource("s/a#1", "s", "", "CC0-1.0", 1, 0, 1, None, "")
    span = TracedSpan(start, end, WORDS[start:end], 1, 1, (source,))
    traced = TracedText(WORDS, 1, (span,), "1" * 64, "2" * 64, 1, "", None)
    begin = WORDS.index(ADDRESS)
    meets = start < begin + len(ADDRESS) and end > begin
    quoted = trace_page(traced).partition("<q>")[2].partition("</q>")[0]
    excerpt = next(line for line in trace_lines(traced) if line.startswith("\n1.")).split("\n")[2]
    for shown in (quoted, excerpt):
        assert ("[EMAIL]" in shown) == meets
        assert not any(part in shown for part in ("maria", "ober", "hauser", "kanz", "lei", "see"))
        kept = WORDS[start : max(start, min(end, begin))], WORDS[min(end, max(start, begin + len(ADDRESS))) : end]
        assert all(part in shown for part in kept)
