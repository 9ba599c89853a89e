"""Terminal view of a corpus: funnel, removals, distributions, examples."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from governance.manifest import Manifest
from governance.reports.facts.distributions import distributions, write_edge
from governance.reports.facts.samples import Mask, kept_samples, mask, quarantine_samples, removed_samples
from governance.reports.facts.stage_counts import came_in, removed_in, stage_tables
from governance.reports.html.markup import visible

_ALL = "(all)"
_BAR = 40  # characters of the longest bar
_WIDTH = 110  # characters of an example


def show_corpus(manifests: Sequence[Manifest], root: Path, rules: Mask = mask) -> str:
    """Print funnel, reasons, counts, histograms, masked examples, waiver digest."""
    lines = [f"{'stage':<13} {'source':<24} {'documents':>12} {'kept':>12} {'bytes kept':>16} {'removed':>8}"]
    funnel = [
        {"by_source": {}, **made.stats, "stage": made.stage} for made in manifests if "documents_in" in made.stats
    ]
    for row in funnel:
        if row["stage"] != "pack":  # passes the counts of encode on
            lines += [_row(row, funnel, source) for source in ("", *sorted(row["by_source"]))]
    lines += ["", *_reasons(funnel)]
    lines += [line for table in stage_tables(manifests) for line in ("", *_table(table))]
    for manifest in manifests:
        for histogram in distributions(manifest, root):
            lines += ["", *_histogram(histogram)]
    for manifest in manifests:
        for reason, examples in _removed(manifest, root, rules).items():
            lines += ["", f"{manifest.stage}: examples removed for {reason}"]
            for row in examples[:2]:
                lines += [f"  {row['id']}  {row['evidence']}".rstrip(), f"    {row['text'][:_WIDTH]}"]
    with_documents = [manifest for manifest in manifests if manifest.files("documents", root)]
    if with_documents:
        lines += ["", f"{with_documents[-1].stage}: examples of kept documents"]
        for row in kept_samples(with_documents[-1], root, rules):
            lines += [f"  {row['id']}", f"    {row['text'][:_WIDTH]}"]
    last = next((manifest for manifest in manifests if manifest.stage == "encode"), manifests[-1])
    lines += ["", f"{last.stage}: {last.digest}"]
    return "\n".join(visible(line).replace("\n", " ") for line in lines)


def _removed(manifest: Manifest, root: Path, rules: Mask) -> dict[str, list[dict[str, str]]]:
    """Examples of removed documents and unreadable records, by reason."""
    removed = removed_samples(manifest, root, rules) if manifest.files("removed", root) else {}
    unread = quarantine_samples(manifest, root, rules) if manifest.files("quarantine", root) else {}
    return removed | {f"quarantine:{reason}": examples for reason, examples in unread.items()}


def _row(row: Mapping[str, Any], funnel: Sequence[Mapping[str, Any]], source: str) -> str:
    counts, (number, _) = row["by_source"][source] if source else row, came_in(row, funnel, source)
    share = f"{(number - counts['documents_kept']) / number:.1%}" if number else "-"
    return (
        f"{row['stage']:<13} {source or _ALL:<24} {number:>12,} {counts['documents_kept']:>12,} "
        f"{counts['bytes_kept']:>16,} {share:>8}"
    )


def _reasons(funnel: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{row['stage']:<13} removed {number:>10,}  {reason}"
        for row in funnel
        for reason, number in sorted(removed_in(row, funnel).items(), key=lambda item: (-item[1], item[0]))
    ]


def _table(table: Mapping[str, Any]) -> list[str]:
    """A table with columns as wide as their cells; numbers align right."""
    rows = [[f"{cell:,}" if isinstance(cell, int) else visible(cell) for cell in row] for row in table["rows"]]
    right = {place for row in table["rows"] for place, cell in enumerate(row) if isinstance(cell, int)}
    lines = [f"  {line}" for line in aligned([table["head"], *rows], right)] if rows else []
    return [table["title"], *(lines or ["  none"]), *([f"  {table['note']}"] if table["note"] else [])]


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Rows in columns as wide as their cells; `right` align right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([cell.rjust(width) if place in right else cell.ljust(width)
              for place, (cell, width) in enumerate(zip(row, widths, strict=True))] for row in rows)  # fmt: skip
    return ["  ".join(row).rstrip() for row in cells]


def _histogram(histogram: Mapping[str, Any]) -> list[str]:
    """One line per bin: # kept, . removed, on one scale."""
    kept, removed, edges = histogram["kept"], histogram["removed"], histogram["edges"]
    most = max(a + b for a, b in zip(kept, removed, strict=True))
    lines = [f"{histogram['stage']}: {histogram['name']} (documents; # kept, . removed)"]
    for place, (stayed, went) in enumerate(zip(kept, removed, strict=True)):
        whole = -(-_BAR * (stayed + went) // most) if stayed + went else 0
        marks = round(whole * stayed / (stayed + went)) if whole else 0
        bar = "#" * marks + "." * (whole - marks)
        lines.append(f"  {write_edge(edges[place]):>12} {bar:<{_BAR}} {stayed:>10,} {went:>10,}")
    return lines
