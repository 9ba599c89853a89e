"""Traced text as an HTML page and as terminal lines.

The page is in the report's style: one file without scripts or external resources. A click on a span leads to its
documents; a pointer that rests on it shows the first. Personal data is masked as the report masks it. Text, ids and
URLs are untrusted and pass through the report's escaping.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from assay.trace_text.traced_text import SpanSource, TracedSpan, TracedText
from data_pipeline.pii.detect import find, replace_all
from data_pipeline.pii.detections import Detection, placeholder
from governance.reports.html.markup import Child, Html, digest, number, share, table, tag, visible
from governance.reports.sections.page import runs_page

_SHOWN = 12  # steps
_EXCERPT = 100
_STYLE = """
.traced{white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.8;max-width:46rem}
.traced a{color:inherit;text-decoration:none;border-radius:.2rem;box-shadow:inset 0 -2px 0 var(--a);
background:color-mix(in srgb,var(--a) 22%,transparent)}
.traced a:hover,.traced a:focus{background:color-mix(in srgb,var(--a) 45%,transparent)}
section.span{scroll-margin-top:1rem}
section.span:target{outline:2px solid var(--a);outline-offset:.5rem}
@media print{.traced a{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""


def trace_lines(traced: TracedText) -> Iterator[str]:
    """Lines for a terminal."""
    yield _summary(traced)
    masked = find(traced.text)
    for place, span in enumerate(traced.spans, 1):
        text = visible(_quoted(span, traced, masked)).replace("\n", "↵")
        more = f"{text[:_EXCERPT]}…" if len(text) > _EXCERPT else text
        yield f"\n{place}. characters {span.start} to {span.end}: {_counts(span)}\n   {more}"
        for one in span.sources:
            facts = [one.source, one.licence, *filter(None, [one.url]), *_words(one, traced)]
            yield f"   {visible(replace_all(one.id))}: {visible(replace_all('; '.join(facts)))}"
        if span.documents > len(span.sources):
            yield f"   and {span.documents - len(span.sources):,} more documents"


def trace_page(traced: TracedText) -> str:
    """The whole page."""
    facts = [("corpus", digest(traced.corpus)), ("documents of the corpus", number(traced.corpus_documents))]
    if traced.step is not None:
        facts = [("checkpoint", digest(traced.checkpoint)), ("step", number(traced.step)), *facts]
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts]
    masked = find(traced.text)
    body: list[Child] = [
        tag("dl", rows, class_="facts"),
        tag("p", _summary(traced), class_="note"),
        tag("p", list(_marked(traced, masked)), class_="traced"),
        *(_span(place, span, traced, masked) for place, span in enumerate(traced.spans, 1)),
    ]
    foot = (
        "Made by assay trace-text; the page loads no external resources. A span is marked where the corpus holds it "
        "letter for letter. Paraphrases, translations and shorter passages are not marked."
    )
    return runs_page("From words back to sources", body, foot, _STYLE)


def _summary(traced: TracedText) -> str:
    found = (
        f"{traced.covered:,} of {len(traced.text):,} characters ({share(traced.covered / len(traced.text))}) are in "
        f"{len(traced.spans):,} verbatim span(s) of at least {traced.least} characters"
    )
    read = "" if traced.step is None else f"; steps are those of the checkpoint of step {traced.step:,}"
    return f"{found}, of a corpus of {traced.corpus_documents:,} documents{read}."


def _counts(span: TracedSpan) -> str:
    return f"{span.occurrences:,} time(s) in {span.documents:,} document(s)"


def _words(one: SpanSource, traced: TracedText) -> list[str]:
    """The use of a document in training, in phrases."""
    phrases = [] if one.occurrences == 1 else [f"{one.occurrences:,} times in it"]
    if one.held_out:
        phrases.append(f"held out for validation {one.held_out:,} time(s), which trains nothing")
    if one.copies > 1:
        phrases.append(f"{one.copies:,} copies for training")
    if one.steps is not None:
        phrases.append(_steps(one.steps, traced))
    return [*phrases, *filter(None, [one.taken_down])]


def _steps(steps: Sequence[int], traced: TracedText) -> str:
    if not steps:
        return f"not read up to step {traced.step:,}"
    more = f" and {len(steps) - _SHOWN:,} more" if len(steps) > _SHOWN else ""
    return f"read {len(steps):,} time(s), at step(s) {', '.join(map(str, steps[:_SHOWN]))}{more}"


def _marked(traced: TracedText, masked: Sequence[Detection]) -> Iterator[Child]:
    """The text, personal data masked, each span a link to its documents."""
    borders = {0, len(traced.text), *(at for span in traced.spans for at in (span.start, span.end))}
    for start, end in pairwise(sorted(borders)):
        over = [place for place, span in enumerate(traced.spans, 1) if span.start <= start and end <= span.end]
        shown = "".join(_shown(traced.text, start, end, masked))
        if not over:
            yield shown
            continue
        spans = [traced.spans[place - 1] for place in over]
        sources = [f"{place}: {replace_all(span.sources[0].id)}" for place, span in zip(over, spans, strict=True)]
        yield tag("a", shown, href=f"#span-{over[0]}", title="; ".join(sources))


def _shown(text: str, start: int, end: int, masked: Sequence[Detection]) -> Iterator[str]:
    """A stretch of the text, masked values written where they begin."""
    for one in masked:
        if one.end > start and one.start < end:
            yield text[start : max(start, one.start)]
            if one.start >= start:
                yield placeholder(one.type)
            start = min(one.end, end)
    yield text[start:end]


def _quoted(span: TracedSpan, traced: TracedText, masked: Sequence[Detection]) -> str:
    """A span's text, with the personal data of the whole text masked.

    A span may cut an address, and half of one is not recognised. A span that begins within it begins with its
    placeholder. What is recognised in the span alone is masked too.
    """
    cut = next((one for one in masked if one.start < span.start < one.end), None)
    begin = placeholder(cut.type) if cut is not None else ""
    start = span.start if cut is None else min(cut.end, span.end)
    return begin + replace_all("".join(_shown(traced.text, start, span.end, masked)))


def _span(place: int, span: TracedSpan, traced: TracedText, masked: Sequence[Detection]) -> Html:
    title = tag("h2", f"Span {place}", tag("small", _counts(span)))
    rows = [
        [tag("bdi", replace_all(one.id)), one.source, one.licence, tag("bdi", replace_all(one.url)) if one.url else "–",
         "; ".join(_words(one, traced)) or "–"]
        for one in span.sources
    ]  # fmt: skip
    more = span.documents - len(span.sources)
    note = tag("p", f"{more:,} more documents hold it.", class_="note") if more else None
    quoted = tag("p", tag("q", tag("bdi", _quoted(span, traced, masked))))
    listed = table("Documents", ["id", "source", "licence", "URL", "in training"], rows)
    return tag("section", title, quoted, listed, note, id=f"span-{place}", class_="reader span")
