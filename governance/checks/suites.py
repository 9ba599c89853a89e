"""Tables of the suites, built from manifests and shards.

    documents       the kept rows of each feature shard of `clean`, without texts; one table per shard
    sources         one row for each source at each stage, and the source "(all)"
    licences        one row for each (source, licence) of the kept documents
    tokens          one row: the counts of `encode`
    synthetic       a row for each synthetic source, and "(all)": `governance.checks.synthetic_share`
    representation, association, tone, impact, shares, privacy, parity, instruments: `governance.checks.bias.tables`

Promise: a table that cannot be judged carries its problem, so that each of its gates gets a result. A shard that cannot
be read raises: nothing is then known and nothing is committed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from governance.config import flat
from governance.errors import ManifestError, read_errors
from governance.manifest import Manifest
from governance.stage_order import STAGES
from governance.verified_files import intact

if TYPE_CHECKING:
    import pandas as pd

FUNNEL = tuple(row.name for row in STAGES if row.documents)
"""The stages that pass documents, in their order."""
ALL = "(all)"
_NO_TEXT = ("quarantine:no_text", "quarantine:page_needs_ocr")
_UNREADABLE = "cannot be read as Parquet"
_RECORDS = 3  # records of a source that a message names
_NO_LANGUAGE = ("und",)  # an unknown language is a missing value, not a string


@dataclass(frozen=True)
class SuiteTable:
    """A table to judge, with its subject."""

    subject: str
    frame: pd.DataFrame
    problem: str = ""
    """Reason why it cannot be judged; "" if it can."""
    unmeasured: str = ""
    """Reason why it has no row, where that is a setting's choice."""


def frame_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> pd.DataFrame:
    """Frame of rows with equal keys; `columns` if there are none."""
    import pandas as pd

    return pd.DataFrame(list(rows)) if rows else pd.DataFrame(columns=list(columns))


def document_table(path: Path, subject: str) -> tuple[SuiteTable, int]:
    """Kept rows of a feature shard, without text, and the total.

    Raises:
        ManifestError: the shard cannot be read.
    """
    table = read_without_text(path)
    if table.column_names.count("kept") != 1 or not pa.types.is_boolean(table.schema.field("kept").type):
        words = "has no column `kept` of true and false, so its kept rows are not known"
        return SuiteTable(subject, frame_of([]), words), table.num_rows
    kept = table.filter(table["kept"])
    return SuiteTable(subject, without_empty_text(kept, {"language": _NO_LANGUAGE}).to_pandas()), table.num_rows


def disagreement(clean: Manifest, rows: int, kept: int) -> str:
    """Difference between feature shards and manifest counts; "" if none."""
    stated = (clean.stats.get("documents_in"), clean.stats.get("documents_kept"))
    if (rows, kept) == stated:
        return ""
    return f"the feature shards have {rows} rows, {kept} kept; the manifest states {stated[0]} and {stated[1]}"


def read_without_text(path: Path) -> pa.Table:
    """Read all columns of a shard except `text`.

    Raises:
        ManifestError: it cannot be read.
    """
    with read_errors(path, _UNREADABLE):
        names = [name for name in pq.read_schema(path).names if name != "text"]
    return _read(path, names)


def _read(path: Path, columns: list[str] | None) -> pa.Table:
    with read_errors(path, _UNREADABLE):
        table = pq.read_table(path, columns=columns, partitioning=None)
    if columns is not None and (absent := sorted(set(columns) - set(table.column_names))):
        raise ManifestError(f"{path}: lacks the columns {absent}. Remove its folder and make it again.")
    return table


def without_empty_text(table: pa.Table, absent: Mapping[str, Sequence[str]]) -> pa.Table:
    """Turn empty strings into missing values.

    `absent` maps a column to further strings that mean missing.
    """
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            column = table.column(place)
            missing = pc.is_in(column, pa.array(["", *absent.get(field.name, ())], field.type))
            if pc.any(missing).as_py():
                table = table.set_column(place, field.name, pc.if_else(missing, None, column))
    return table


def source_rows(artifacts: Mapping[str, Manifest]) -> list[dict[str, Any]]:
    """Source x stage table, stages in order, "(all)" first.

    Columns: `stage, source, documents_in, documents_kept, bytes_in, bytes_kept`, `removed_share` (removed / in; None
    for nothing in), `earlier_share` (at `dedup`, duplicates of an earlier corpus / in), `duplicate_share` (at `dedup`,
    the other duplicates / in without those of an earlier corpus: of what is new, what is there twice), `no_text_share`
    (at `ingest`, pages that were read and hold no text / in), `quarantined_share` (at `ingest`, the other quarantined
    records / in), `torn_files` (at `ingest`), `unaccounted` (in - kept - removed; 0 by law), `lost` (kept by the stage
    before - in; 0 by law). What belongs to one stage is 0 at the others.

    A source without remaining documents has no row at later stages.
    """
    rows: list[dict[str, Any]] = []
    before: dict[str, int] = {}
    for stage in FUNNEL:
        if stage not in artifacts:
            continue
        stats = artifacts[stage].stats
        entries = {ALL: stats, **stats.get("by_source", {})}
        for source in [ALL, *sorted(({*entries, *before}) - {ALL})]:
            row = _source_row(stage, source, entries.get(source, {}), before.get(source))
            if source == ALL or row["documents_in"] or row["lost"] or not before:
                rows.append(row)
        before = {source: int(entry.get("documents_kept", 0)) for source, entry in entries.items()}
    return rows


def _source_row(stage: str, source: str, entry: Mapping[str, Any], before: int | None) -> dict[str, Any]:
    counts = {name: int(entry.get(name, 0)) for name in ("documents_in", "documents_kept", "bytes_in", "bytes_kept")}
    removed = sum(entry.get("removed", {}).values())
    raw = stage == "ingest"
    refused = entry.get("quarantined") if raw else 0  # None where not counted: unknown is not zero
    without_text = sum(entry.get("removed", {}).get(reason, 0) for reason in _NO_TEXT) if raw else 0
    earlier = entry.get("removed", {}).get("duplicate_of_earlier", 0) if stage == "dedup" else 0
    entered, new = counts["documents_in"], counts["documents_in"] - earlier
    repeated = removed - earlier if stage == "dedup" else 0
    return {
        "stage": stage,
        "source": source,
        **counts,
        "removed_share": _share(removed, counts["documents_in"]),
        "earlier_share": _share(earlier, entered) if stage == "dedup" else 0.0,
        "duplicate_share": _share(repeated, new) if stage == "dedup" and (new or not entered) else 0.0,
        "no_text_share": _share(None if refused is None else without_text, entered) if raw else 0.0,
        "quarantined_share": _share(None if refused is None else refused - without_text, entered) if raw else 0.0,
        "torn_files": entry.get("torn_files") if raw else 0,
        "unaccounted": counts["documents_in"] - counts["documents_kept"] - removed,
        "lost": 0 if before is None and raw else (before or 0) - counts["documents_in"],
    }


def quarantined_records(ingest: Manifest, root: Path) -> dict[str, str]:
    """The first unreadable records of each source and of "(all)", as text.

    Pages without text are not among them.

    Raises:
        ManifestError: a shard cannot be read.
    """
    counts = {ALL: ingest.stats, **ingest.stats.get("by_source", {})}
    left = {name for name, entry in counts.items() if set(entry.get("removed", {})) - {*_NO_TEXT}}
    first: dict[str, list[str]] = {name: [] for name in left}
    for output in ingest.listed("quarantine"):
        if not any(len(records) < _RECORDS for records in first.values()):
            break
        with intact(output, root) as path:
            rows = _read(path, ["source", "file", "position", "reason"]).to_pylist()
        for row in rows:
            if f"quarantine:{row['reason']}" not in _NO_TEXT:
                for name in left & {ALL, row["source"]}:
                    first[name].append(f"{row['file']}#{row['position']} {row['reason']}")
    words = {}
    for name, records in first.items():
        number = sum(count for reason, count in counts[name]["removed"].items() if reason not in _NO_TEXT)
        more = f" and {number - _RECORDS:,} more" if number > _RECORDS else ""
        words[name] = ", ".join(records[:_RECORDS]) + more
    return words


def _share(part: int | None, whole: int) -> float | None:
    return part / whole if whole and part is not None else None


def licence_rows(final: Manifest, root: Path) -> list[dict[str, Any]]:
    """Licences of the kept documents: `source, licence, documents`, sorted.

    Raises:
        ManifestError: a shard cannot be read.
    """
    found: Counter[tuple[str, str]] = Counter()
    for output in final.listed("documents"):
        with intact(output, root) as path:
            table = _read(path, ["source", "licence"])
        counted = table.group_by(["source", "licence"]).aggregate([([], "count_all")]).to_pylist()
        for row in counted:
            found[str(row["source"]), str(row["licence"])] += row["count_all"]
    return [
        {"source": source, "licence": licence, "documents": number}
        for (source, licence), number in sorted(found.items())
    ]


def pii_rows(redact: Manifest) -> list[dict[str, Any]]:
    """One row per type of personal data.

    The columns are `type, planted, found, canary_recall`. Canaries are strings that the stage planted into copies of
    documents and searched for with its own rules; the recall is None where none was planted.
    """
    return [
        {"type": kind, **counts, "canary_recall": _share(counts["found"], counts["planted"])}
        for kind, counts in sorted(redact.stats.get("canaries", {}).items())
    ]


def token_rows(encode: Manifest) -> list[dict[str, Any]]:
    """One row of the counts of `encode`.

    A nested count is named by its path: `{"train": {"tokens": 5}}` gives `train_tokens`. The `sources` table has the
    funnel by source and reason.
    """
    counts = flat({name: value for name, value in encode.stats.items() if name not in ("by_source", "removed")})
    row = {name.replace(".", "_"): value for name, value in counts if isinstance(value, (int, float))}
    return [dict(sorted(row.items()))] if row else []
