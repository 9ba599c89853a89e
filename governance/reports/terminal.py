"""The corpus on a terminal: its funnel by stage and source, and what was removed and why. Reads manifests alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from governance.manifest import Manifest

_ALL = "(all)"


def show_corpus(manifests: Sequence[Manifest]) -> str:
    """A table of (stage, source), then the reasons of removal, then the digest that a waiver would name."""
    lines = [f"{'stage':<10} {'source':<24} {'documents':>12} {'kept':>12} {'bytes kept':>16} {'removed':>8}"]
    for manifest in manifests:
        stats = manifest.stats
        if "documents_in" in stats:
            rows = {_ALL: stats, **dict(sorted(stats.get("by_source", {}).items()))}
            lines += [_row(manifest.stage, source, counts) for source, counts in rows.items()]
    lines += ["", *_reasons(manifests)]
    last = manifests[-1]
    lines += ["", f"{last.stage}: {last.digest}"]
    return "\n".join(lines)


def _row(stage: str, source: str, counts: Mapping[str, Any]) -> str:
    removed = counts["documents_in"] - counts["documents_kept"]
    share = f"{removed / counts['documents_in']:.1%}" if counts["documents_in"] else "-"
    return (
        f"{stage:<10} {source:<24} {counts['documents_in']:>12,} {counts['documents_kept']:>12,} "
        f"{counts['bytes_kept']:>16,} {share:>8}"
    )


def _reasons(manifests: Sequence[Manifest]) -> list[str]:
    return [
        f"{manifest.stage:<10} removed {number:>10,}  {reason}"
        for manifest in manifests
        for reason, number in sorted(manifest.stats.get("removed", {}).items(), key=lambda item: (-item[1], item[0]))
    ]
