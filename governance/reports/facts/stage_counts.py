"""Counts of each stage, as small tables.

Personal data by type and source, records that a reader skipped, answers of teacher models, text cut out of kept
documents, documents removed by classifiers, passages of evaluation sets, and copies by quality bucket. Read from
manifests alone. A stage without such counts has no table, and a table without a count above 0 is omitted, except for
personal data and evaluation sets, where zero is a result.

`corpus_counts` are the documents, bytes and tokens of a corpus, by stage and source.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from governance.manifest import Manifest
from governance.reports.html.markup import number, share, visible

_OF_ANSWERS = ("requests", "texts", "faults", "truncated", "tokens_in", "tokens_out")
_LICENCES_SHOWN = 5
_SOURCES_SHOWN = 4  # with a type of personal data, by count; the rest are summed
_ENTITIES, _RULE = ("name", "place"), "rule:"  # types of personal data: from a model, from a file
_ALL = "(all)"
COPIES_BY_QUALITY = "mix: copies by quality bucket"
PERSONAL_DATA = "redact: personal data"
SKIPPED = "ingest: records skipped"

Table = dict[str, Any]
"""`title`, `head`, `rows` (strings and integers, in the order of `head`), `note`."""


def licence_words(licences: Mapping[str, int]) -> str:
    """Licences of a source, the commonest first, with documents if several."""
    order = sorted(licences, key=lambda licence: (-licences[licence], licence))
    if len(order) == 1:
        return order[0]
    more = f" and {len(order) - _LICENCES_SHOWN} more" if len(order) > _LICENCES_SHOWN else ""
    return ", ".join(f"{licence} ({number(licences[licence])})" for licence in order[:_LICENCES_SHOWN]) + more


def source_outcome(row: Mapping[str, Any]) -> str:
    """Outcome of a source, even of one the policy refuses."""
    refused = row["fate"] != "kept" and row["documents_kept"]
    return "not allowed, but in the corpus" if refused else str(row["fate"])


def stage_tables(manifests: Sequence[Manifest]) -> list[Table]:
    """The tables, in the order of the stages."""
    tables = {
        "ingest": _reader_tables,
        "clean": _lines,
        "code": _code,
        "filter": _filters,
        "classify": _classifiers,
        "paragraphs": _cut,
        "substrings": _cut,
        "decontaminate": _evaluation_sets,
        "redact": _personal_data,
        "mix": _quality,
        "encode": _tokens_of_quality,
    }
    return [table for manifest in manifests if manifest.stage in tables for table in tables[manifest.stage](manifest)]


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> Table:
    return {"title": title, "head": list(head), "rows": [list(row) for row in rows], "note": note}


def by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Names with a count above 0, the most frequent first."""
    return sorted(((name, count) for name, count in counts.items() if count), key=lambda item: (-item[1], item[0]))


def removals(funnel: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str, int]]:
    """Stage's row, reason and documents of each removal."""
    for row in funnel:
        for reason, count in removed_in(row, funnel).items():
            yield row, reason, count


def removed_in(row: Mapping[str, Any], funnel: Sequence[Mapping[str, Any]], source: str = "") -> dict[str, int]:
    """Documents that a stage removed, by reason.

    Of all sources, or of one. `mix`, `encode` and `pack` all count the documents of which a plan has no copy, and
    `pack` passes on all counts of `encode`; only the first stage has them here.
    """
    counts = (row["by_source"][source] if source else row).get("removed", {})
    stages = {other["stage"] for other in funnel}
    if row["stage"] == "pack" and "encode" in stages:
        return {}
    twice = row["stage"] == "encode" and "mix" in stages
    return {reason: count for reason, count in counts.items() if not (twice and reason == "mix_quota")}


def came_in(row: Mapping[str, Any], funnel: Sequence[Mapping[str, Any]], source: str = "") -> tuple[int, int]:
    """Documents and bytes that the stage before had kept.

    Of all sources, or of one. `encode` and `pack` read the documents before a mixture, and count these.
    """
    counts = row["by_source"][source] if source else row
    removed = removed_in(row, funnel, source)
    if removed == counts.get("removed", {}):
        return counts["documents_in"], counts["bytes_in"]
    return counts["documents_kept"] + sum(removed.values()), counts["bytes_kept"]


def _reader_tables(ingest: Manifest) -> Iterator[Table]:
    rows = [
        (source, reason, count)
        for source, counts in sorted(ingest.stats.get("by_source", {}).items())
        for reason, count in by_count(counts.get("passed_over", {}))
    ]
    if rows:
        note = "Records that are not documents: neither kept nor quarantined, and not in the funnel."
        yield _table(SKIPPED, ["source", "reason", "records"], rows, note)
    rows = [
        (source, ", ".join(one["answered_by"]), *(one[name] for name in _OF_ANSWERS))
        for source, one in sorted(ingest.stats.get("synthetic", {}).items())
    ]
    if rows:
        note = "Truncated texts reached max_tokens; they are kept. Tokens are those that the endpoint stated."
        head = ["source", "answered by", *(name.replace("_", " ") for name in _OF_ANSWERS)]
        yield _table("ingest: answers of teacher models", head, rows, note)


def _lines(clean: Manifest) -> Iterator[Table]:
    if rows := by_count(clean.stats.get("lines_removed", {})):
        yield _table("clean: lines removed from documents", ["reason", "lines"], rows)


def _code(code: Manifest) -> Iterator[Table]:
    for name, head in (("licences", "licence"), ("programming_languages", "programming language")):
        if rows := by_count(code.stats.get(name, {})):
            note = "Source files that the stage judged, whether they were kept or removed."
            yield _table(f"code: files by {head}", [head, "files"], rows, note)


def _filters(made: Manifest) -> Iterator[Table]:
    removed, rows = made.stats.get("removed", {}), []
    for name, source, rest in made.config.get("filters", ()):
        count = sum(removed.get(f"{kind}:{name}", 0) for kind in ("own", "column", "column_missing"))
        if source.startswith("column "):
            source = ", ".join([source, *(f"{key} = {value}" for key, value in json.loads(rest).items())])
        rows.append((name, source, count))
    note = "A document is counted under the first filter that removed it."
    yield _table("filter: removed by each filter", ["filter", "function or column", "documents"], rows, note)


def _classifiers(classify: Manifest) -> Iterator[Table]:
    stats, rows = classify.stats, []
    for name, (low, high) in sorted(classify.config.get("bounds", {}).items()):
        bounds = [f"{word} {bound:.15g}" for word, bound in (("from", low), ("to", high)) if bound is not None]
        removed = stats.get("removed", {}).get(f"classifier:{name}", 0)
        share_of_documents = share(removed / stats["documents_in"]) if stats.get("documents_in") else "–"
        rows.append((name, " ".join(bounds) or "all", removed, share_of_documents))
    note = "A document is counted under the first model whose bounds it violates."
    yield _table("classify: removed by classifiers", ["model", "kept scores", "removed", "share"], rows, note)


def _cut(manifest: Manifest) -> Iterator[Table]:
    cut = manifest.stats.get("cut", {})
    if rows := [(name, cut[name]) for name in ("paragraphs", "lines", "repeats", "gaps", "documents") if cut.get(name)]:
        named = {"documents": "documents affected"}
        renamed = [(named.get(name, name), count) for name, count in rows]
        note = ""
        if short := manifest.stats.get("windows_cut_short"):
            note = f"{number(short)} windows have more surroundings than are compared; repeats there may be left."
        yield _table(f"{manifest.stage}: repeated passages removed", ["unit", "count"], renamed, note)


def _evaluation_sets(decontaminate: Manifest) -> Iterator[Table]:
    stats = decontaminate.stats
    sought, hits, documents = (
        stats.get(name, {}) for name in ("items_sought_by_set", "hits_by_set", "documents_by_set")
    )
    rows = [(name, sought.get(name, 0), hits.get(name, 0), documents.get(name, 0)) for name in sorted({*sought, *hits})]
    cut = stats.get("documents_cut", 0)
    note = (
        f"Passages were removed from {number(cut)} documents ({number(stats.get('bytes_cut', 0))} bytes)."
        if cut
        else ""
    )
    head = ["evaluation set", "items searched for", "passages found", "documents affected"]
    yield _table("decontaminate: passages of evaluation sets", head, rows, note)


def _personal_data(redact: Manifest) -> Iterator[Table]:
    stats = redact.stats
    by_source = stats.get("findings_by_source", {})
    actions = redact.config.get("actions", {})
    rows = []
    for kind, count in by_count(stats.get("findings", {})):
        among = by_count({source: counts.get(kind, 0) for source, counts in by_source.items()})
        sources = [f"{source} {found:,}" for source, found in among[:_SOURCES_SHOWN]]
        rest = sum(found for _, found in among[_SOURCES_SHOWN:])
        sources += [f"{len(among) - _SOURCES_SHOWN} more {rest:,}"] * bool(rest)
        rows.append((kind, actions.get(kind, ""), count, ", ".join(sources)))
    having, all_of_them = (number(stats.get(name, 0)) for name in ("documents_with_findings", "documents_in"))
    note = f"Personal data was found in {having} of {all_of_them} documents. {_sought(redact)}"
    yield _table(PERSONAL_DATA, ["type", "action", "found", "sources"], rows, note)
    yield from _recall(stats.get("canaries", {}))


def _sought(redact: Manifest) -> str:
    """A sentence on the types that were searched for."""
    structured = [kind for kind in redact.stats.get("findings", {}) if kind not in _ENTITIES and _RULE not in kind]
    rules = sum(kind.startswith(_RULE) for kind in redact.config.get("actions", {}))
    listed = f" and {rules} rules of a file" if rules else ""
    entities = "names and places are not sought."
    if finder := redact.config.get("finder"):
        counts = {kind: redact.stats.get("canaries", {}).get(kind) for kind in _ENTITIES}
        recall = " and ".join(
            f"{count['found']} of {count['planted']} planted {kind}s" for kind, count in counts.items() if count
        )
        entities = f"a model ({finder['kind']}) found {recall}."
    return f"The detector covers {len(structured)} structured types{listed}; {entities}"


def _recall(canaries: Mapping[str, Mapping[str, int]]) -> Iterator[Table]:
    """Planted values that were missed, by type; a note without any."""
    planted = {kind: count for kind, count in canaries.items() if count["planted"]}
    whole = [count["planted"] for count in planted.values() if count["found"] == count["planted"]]
    rows = [
        (kind, count["planted"], count["found"], f"{count['found'] / count['planted']:.3f}")
        for kind, count in sorted(planted.items())
        if count["found"] < count["planted"]
    ]
    if planted:
        note = f"All {number(sum(whole))} planted values of {len(whole)} of {len(planted)} types were found."
        yield _table("redact: planted values that were missed", ["type", "planted", "found", "recall"], rows, note)


def _quality(mix: Manifest) -> Iterator[Table]:
    rows = [
        (bucket, counts["documents"], counts["bytes_in"], f"{counts['bytes_got'] / max(1, counts['bytes_in']):.3f}",
         counts["bytes_got"])
        for bucket, counts in sorted(mix.stats.get("mix_by_bucket", {}).items())
    ]  # fmt: skip
    if rows:
        quality = mix.config["quality"]
        note = f"Buckets are ranks by {quality['score']}, in percent of the bytes of a source, language and topic."
        head = ["bucket", "documents", "bytes", "repeats", "bytes mixed"]
        yield _table(COPIES_BY_QUALITY, head, rows, note)


def _tokens_of_quality(encode: Manifest) -> Iterator[Table]:
    if rows := sorted(encode.stats.get("tokens_by_bucket", {}).items()):
        yield _table("encode: tokens by quality bucket", ["bucket", "tokens"], rows, "Copies are counted.")


def corpus_counts(manifests: Sequence[Manifest]) -> list[dict[str, Any]]:
    """One row per stage and source, "(all)" first.

    Its columns are `stage`, `source`, `documents`, `bytes` (None where a stage does not count them) and `tokens` (None
    before `encode`). The tokens of a mixture count each copy of a document, `documents` and `bytes` count it once.
    """
    return [row for manifest in manifests for row in _counts_of_stage(manifest)]


def _counts_of_stage(manifest: Manifest) -> Iterator[dict[str, Any]]:
    stats, tokens = manifest.stats, {}
    if manifest.stage == "encode":
        by_source = stats.get("tokens_by_source", {})
        tokens = {**by_source, _ALL: sum(by_source.values())}
    elif "documents_kept" not in stats or manifest.stage == "pack":  # pack passes the counts of encode on
        return
    entries: dict[str, Mapping[str, Any]] = {_ALL: stats, **dict(sorted(stats.get("by_source", {}).items()))}
    for source, counts in entries.items():
        kept, size = counts.get("documents_kept"), counts.get("bytes_kept")
        yield {
            "stage": manifest.stage, "source": source, "documents": kept, "bytes": size, "tokens": tokens.get(source)
        }  # fmt: skip


def count_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows as a table for a terminal; notes mixtures."""
    lines = [f"{'stage':<13} {'source':<24} {'documents':>14} {'bytes':>18} {'tokens':>18}"]
    for row in rows:
        figures = ["" if row[name] is None else f"{row[name]:,}" for name in ("documents", "bytes", "tokens")]
        named = f"{row['stage']:<13} {visible(row['source']):<24}"
        lines.append(f"{named} {figures[0]:>14} {figures[1]:>18} {figures[2]:>18}".rstrip())
    if any(row["stage"] == "mix" for row in rows):
        lines.append("A mixture's documents and bytes count once, its tokens in each copy.")
    return lines
