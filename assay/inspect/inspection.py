"""`assay inspect`: the usual stages over any files.

Promise: the figures are those of the pipeline itself (`ingest`, `clean`, `dedup`, `redact` with the action "count"), in
a temporary root that is removed afterwards; none of the input is changed. Up to `sample_bytes` of text all of it is
read, more is sampled, and the result states that.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from assay.inspect.evaluation_overlap import find_sets, overlap_table
from assay.inspect.formats import (
    WITHOUT_FIELDS,
    InputFiles,
    by_text_field,
    fields_of,
    find_inputs,
    first_records,
    has_long_line,
    unpack_hint,
)
from assay.inspect.gate_outlook import closing_causes, outlook_table
from assay.inspect.inspection_page import ClosingCause, Inspection, InspectTable
from assay.inspect.proposed_run import KeptTexts, proposed_run, source_section
from assay.inspect.sampling import sample_files
from assay.run_file import CONFIGS
from data_pipeline.config import DataConfig
from data_pipeline.decontamination.decontaminate import decontaminate
from data_pipeline.decontamination.evaluation_sets import EvaluationSet, evaluation_sets
from data_pipeline.dedup.dedup import dedup
from data_pipeline.filters.clean import CleanConfig, clean
from data_pipeline.ingest import ingest
from data_pipeline.pii.detect import replace_all
from data_pipeline.pii.redact import redact
from data_pipeline.readers.streams import MAX_RECORD_BYTES
from data_pipeline.tokens.megatron import open_indexed
from governance.checks.bias.bias import BiasConfig, bias_audit
from governance.config import validate
from governance.errors import ConfigError, PipelineError, StorageError
from governance.gate.policy import Policy, load_policy
from governance.manifest import Manifest
from governance.parallel import close_pool
from governance.reports.html.markup import visible
from governance.stage import Runtime

SAMPLE_BYTES = 500_000_000
_TOLERANCE = 0.05
"""Excess over the sample's bytes up to which everything is read."""
_SHARD_BYTES = 16 << 20
_EXAMPLES = 8
_EXAMPLE_CHARACTERS = 160
_LONG_LINE = f"the first line is longer than {MAX_RECORD_BYTES >> 20} MiB, the most that a record may have"
_OPT_OUT = "searched in web pages; other files may state it in a field (opt_out_field)"


def inspect_path(
    path: Path,
    sample_bytes: int = SAMPLE_BYTES,
    workers: int = 1,
    eval_sets: Sequence[Path] = (),
    policy: Path = CONFIGS / "policy.toml",
) -> Inspection:
    """Inspect the files at or below a path.

    `eval_sets` are files or folders of evaluation items that the documents are searched for; `policy` is the file whose
    gates the documents would meet.

    Raises:
        MissingInput: there is no file of a known format, or no such evaluation set.
        ConfigError: no field holds text, or the policy is wrong.
        StorageError: there is no room for temporary files.
    """
    gates = load_policy(policy)
    sets = find_sets(eval_sets)
    inputs, others = find_inputs(path)
    inputs = [part for group in inputs for part in by_text_field(group)]
    readable = [group for group in inputs if group.kind != "megatron"]
    fields = [fields_of(group) for group in readable]
    tables = [_formats(inputs, others, readable, fields)]
    tables += [_megatron(group) for group in inputs if group.kind == "megatron"]
    if not readable:
        return Inspection(path, "", tuple(tables), "")
    usable = [
        (group, chosen)
        for group, chosen in zip(readable, fields, strict=True)
        if _has_text(chosen) or group.kind in WITHOUT_FIELDS
    ]
    if not usable:
        raise ConfigError(f"{path}: {_no_text(readable)}")
    total = sum(group.text_bytes for group, _ in usable)  # the other files are in no sample
    fraction = 1.0 if total <= sample_bytes * (1 + _TOLERANCE) else sample_bytes / total
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sample, sources = _take_sample(usable, fraction, root / "sample")
        try:
            stage_tables, kept, causes = _stages(sources, sets, gates, Runtime(root / "root", workers=workers))
        except StorageError as error:  # the root is not one that a user chose
            raise StorageError(
                f"{tempfile.gettempdir()}: the inspection cannot write its temporary files there "
                f"({error.__cause__ or error}). Set TMPDIR to a folder with room, or read less with --sample-mb N."
            ) from error
        tables += stage_tables
        # Parquet's footers say how much text the copies hold: count while the copies are there.
        size = sum(group.text_bytes for group, _ in sample)
    sampled = ""
    if any(partly for _, partly in sample):
        sampled = f"A sample of about {size / 1e6:,.0f} MB of {total / 1e6:,.0f} MB of text was read."
        scale = total / size if size else 1.0
        kept = KeptTexts(*(int(count * scale) for count in (kept.documents, kept.bytes, kept.short)))
    left_out = _left_out(inputs, [group for group, _ in usable], others)
    proposal = proposed_run(path, usable, sets, kept, [cause.line for cause in causes], left_out)
    return Inspection(path, sampled, tuple(tables), proposal, tuple(causes))


def _has_text(chosen: Mapping[str, str]) -> bool:
    return bool(chosen["text"]) or "messages" in chosen


def _take_sample(
    usable: Sequence[tuple[InputFiles, dict[str, str]]], fraction: float, folder: Path
) -> tuple[list[tuple[InputFiles, bool]], list[dict[str, Any]]]:
    """The files to read of each group, and their sources' sections.

    Each group comes with whether its files are only a part, whose copies are written below `folder`.
    """
    sample, sources = [], []
    for number, (group, chosen) in enumerate(usable):
        taken, partly = sample_files(group, fraction, folder / str(number))
        sample.append((taken, partly))
        paths = [escape(str(file.absolute())) for file in taken.files]
        sources.append(source_section(number, taken, chosen, paths) | {"follow_links": True})
    return sample, sources


def _no_text(readable: Sequence[InputFiles]) -> str:
    """The reason why none of these files has a text."""
    kinds = ", ".join(f"{len(group.files):,} {group.kind} ({group.ending})" for group in readable)
    if not any(group.bytes for group in readable):
        return f"its files are empty, 0 bytes each: {kinds}. Give the path of your documents."
    names = sorted({str(name) for group in readable for record in first_records(group) for name in record})
    if not names and any(map(has_long_line, readable)):
        return f"{_LONG_LINE}: {kinds}. Write one record a line, or split the text into documents."
    if not names:
        return (
            f"no record with named values at the beginning of its files: {kinds}. They are damaged, or their format is "
            "not the one that their names end in."
        )
    return (
        f"no field holds text; the fields are: {', '.join(names)}. Name your text's field in a run's file "
        "(text_field, docs/data/ingest.md)."
    )


def _formats(
    inputs: Sequence[InputFiles],
    others: Mapping[str, int],
    readable: Sequence[InputFiles],
    fields: Sequence[Mapping[str, str]],
) -> InspectTable:
    found = {id(group): chosen for group, chosen in zip(readable, fields, strict=True)}
    rows: list[tuple[str | int, ...]] = []
    for group in inputs:
        chosen = found.get(id(group), {})
        form = {name: repr(value) for name, value in group.form.items()}
        named = ", ".join(f"{role}: {name}" for role, name in {**chosen, **form}.items() if name)
        if group.kind in WITHOUT_FIELDS:
            named = WITHOUT_FIELDS[group.kind]
        elif group.kind != "megatron" and not _has_text(chosen):
            long = has_long_line(group)
            named = f"{_LONG_LINE if long else 'no field of text'}: not inspected"
        rows.append((f"{group.kind} ({group.ending})", len(group.files), f"{group.bytes / 1e6:,.1f} MB", named or "-"))
    note = f"Not read: {_endings(others)}.{unpack_hint(others)}" if others else ""
    return InspectTable("Formats and fields", ("format", "files", "size", "fields"), tuple(rows), note)


def _left_out(inputs: Sequence[InputFiles], usable: Sequence[InputFiles], others: Mapping[str, int]) -> list[str]:
    """Files that the proposed run does not read, with the reason."""
    lines = []
    for group in inputs:
        if any(group is one for one in usable):
            continue
        why = "no field holds text; name it (text_field) in a source of your own"
        if group.kind == "megatron":
            why = "token files; import them with: assay data import PREFIX"
        elif has_long_line(group):
            why = _LONG_LINE
        more = f" and {len(group.files) - 1:,} more" if len(group.files) > 1 else ""
        lines.append(f"{visible(str(group.files[0]))}{more} ({group.kind}): {why}".replace("\n", "\\n"))
    if others:
        lines.append(f"of no known format, or unreadable: {_endings(others)}.{unpack_hint(others)}".rstrip("."))
    return lines


def _endings(others: Mapping[str, int]) -> str:
    """Most frequent endings of unread files, with their counts."""
    return ", ".join(f"{visible(ending)} {count:,}" for ending, count in Counter(others).most_common(8))


def _megatron(group: InputFiles) -> InspectTable:
    rows: list[tuple[str | int, ...]] = []
    for file in group.files:
        try:
            indexed = open_indexed(file.with_suffix(""))
            rows.append((file.name, len(indexed.documents) - 1, len(indexed.tokens), str(indexed.tokens.dtype)))
        except PipelineError as error:
            rows.append((file.name, "-", "-", str(error)))
    note = "Tokens hold no text to inspect; import them with: assay data import PREFIX."
    return InspectTable("Token files (Megatron)", ("file", "documents", "tokens", "type"), tuple(rows), note)


def _stages(
    sources: Sequence[Mapping[str, Any]], sets: Sequence[EvaluationSet], policy: Policy, runtime: Runtime
) -> tuple[list[InspectTable], KeptTexts, list[ClosingCause]]:
    """Run the stages and draw their tables."""
    values = {
        "sources": sources,
        "ingest": {"shard_bytes": _SHARD_BYTES},
        "clean": {"refuse_licences": []},
        "pii": {"action": "count", "canary_bytes": 0},
    }
    if sets:
        values["decontaminate"] = {"sets": [one.model_dump() for one in sets]}
    config = validate(values, DataConfig, "assay inspect")
    try:
        documents = ingest(config.sources, config.ingest, Path(), runtime)
        cleaned = clean(documents, config.clean, runtime)
        unique = dedup(cleaned, config.dedup, runtime)
        made = [documents, cleaned, unique]
        if config.decontaminate:
            items = evaluation_sets(sets, Path(), runtime)
            made.append(decontaminate(unique, items, config.decontaminate, runtime))
        redacted = redact(made[-1], config.pii, runtime)
        counted = bias_audit({"redact": redacted}, BiasConfig(intersections=()), runtime)
        kept, causes = _kept(made), closing_causes(policy, made, redacted, counted, runtime.root)
        if kept.short:  # they stay in the proposed run
            uncut = clean(documents, CleanConfig(presets=(), refuse_licences=()), runtime)
            all_kept = [documents, uncut, dedup(uncut, config.dedup, runtime)]
            stay = redact(all_kept[-1], config.pii, runtime)
            of_all = bias_audit({"redact": stay}, BiasConfig(intersections=()), runtime)
            causes = closing_causes(policy, all_kept, stay, of_all, runtime.root)
    finally:
        close_pool()
    root = runtime.root
    languages, licences = "identified; und: undetermined", "NOASSERTION: no record states one"
    found = tuple((kind, count) for kind, count in Counter(redacted.stats["findings"]).most_common() if count)
    hit, total = redacted.stats["documents_with_findings"], redacted.stats["documents_in"]
    note = f"In {hit:,} of the {total:,} documents that stay."
    tables = [
        _funnel(made),
        _reasons(made),
        _counts("Languages", cleaned, root, "features", "language", languages),
        _counts("Licences", documents, root, "documents", "licence", licences),
        _counts("Opt-out signals", documents, root, "documents", "opt_out", _OPT_OUT, "not searched"),
        InspectTable("Personal data and secrets", ("type", "found"), found, note),
        *([overlap_table(sets, made[-1])] if sets else []),
        _groups(counted, root),
        _examples(cleaned, root),
        outlook_table(causes),
    ]
    return tables, kept, causes


def _kept(made: Sequence[Manifest]) -> KeptTexts:
    """Sampled texts that the proposed run would keep."""
    ingested, cleaned, last = made[0].stats, made[1].stats, made[-1].stats
    short = int(cleaned["removed"].get("too_few_words", 0))
    if 2 * short > ingested["documents_kept"]:
        return KeptTexts(ingested["documents_kept"], ingested["bytes_kept"], short)
    return KeptTexts(last["documents_kept"], last["bytes_kept"])


def _funnel(made: Sequence[Manifest]) -> InspectTable:
    rows = tuple(
        (m.stage, m.stats["documents_in"], m.stats["documents_kept"], f"{m.stats['bytes_kept'] / 1e6:,.1f} MB")
        for m in made
    )
    return InspectTable("Funnel under the usual rules", ("stage", "documents in", "kept", "text kept"), rows)


def _reasons(made: Sequence[Manifest]) -> InspectTable:
    rows = tuple(
        (m.stage, reason, count, f"{100 * count / max(1, m.stats['documents_in']):.1f} %")
        for m in made
        for reason, count in Counter(m.stats["removed"]).most_common()
    )
    return InspectTable("Removed, by reason", ("stage", "reason", "documents", "of those that came in"), rows)


def _counts(
    title: str, manifest: Manifest, root: Path, role: str, column: str, note: str, empty: str = "none"
) -> InspectTable:
    counts: Counter[str] = Counter()
    for file in manifest.files(role, root):
        for value in pc.value_counts(pq.read_table(file, columns=[column], partitioning=None)[column]).to_pylist():
            counts[str(value["values"]) or empty] += value["counts"]
    total = max(1, counts.total())
    rows = tuple((value, count, f"{100 * count / total:.1f} %") for value, count in counts.most_common(20))
    return InspectTable(title, (column.replace("_", " "), "documents", "share"), rows, note)


def _groups(counted: Manifest, root: Path) -> InspectTable:
    """Groups of people that the documents name, by axis."""
    [groups], [documents] = (
        [pq.read_table(file) for file in counted.files("counts", root) if file.stem == name]
        for name in ("groups", "documents")
    )
    totals = groups.group_by(["axis", "group"]).aggregate([("documents", "sum"), ("mentions", "sum")])
    total = max(1, sum(documents["documents"].to_pylist()))
    rows = [
        (
            row["axis"],
            row["group"],
            row["documents_sum"],
            f"{100 * row['documents_sum'] / total:.1f} %",
            row["mentions_sum"],
        )
        for row in sorted(totals.to_pylist(), key=lambda row: (row["axis"], -row["documents_sum"], row["group"]))
        if row["documents_sum"]
    ]
    without = sum(counted.stats["documents_without_terms"].values())
    note = f"Counted by word lists; {without:,} documents are in languages without one." if without else ""
    return InspectTable(
        "Groups of people named", ("axis", "group", "documents", "share", "mentions"), tuple(rows), note
    )


def _examples(cleaned: Manifest, root: Path) -> InspectTable:
    """A removed document for each reason, personal data replaced."""
    rows: dict[str, tuple[str | int, ...]] = {}
    for file in cleaned.files("removed", root):
        table = pq.read_table(file, columns=["id", "text", "reason", "evidence"], partitioning=None)
        for batch in table.to_batches(256):
            for row in batch.to_pylist():
                if row["reason"] not in rows and len(rows) < _EXAMPLES:
                    text = " ".join(replace_all(row["text"][:2000])[:_EXAMPLE_CHARACTERS].split())
                    rows[row["reason"]] = (row["reason"], replace_all(row["id"]), replace_all(row["evidence"]), text)
    head = ("reason", "document", "evidence", "beginning")
    return InspectTable(
        "Worst documents: one for each reason", head, tuple(rows.values()), "Personal data is replaced."
    )
