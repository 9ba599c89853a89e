"""Comparison of two runs: verdict, data, loss, speed, energy, settings."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governance.errors import MissingInput
from governance.manifest import Manifest, read_manifest
from governance.reports.documents.all_documents import read_report
from governance.reports.html.markup import (
    UNKNOWN,
    Html,
    compact,
    energy,
    foreign,
    number,
    share,
    size,
    table,
    tag,
    visible,
)
from governance.reports.html.svg_figures import Curve, chart
from governance.reports.sections.page import runs_page
from governance.reports.terminal import aligned

_LONGEST = 60  # characters of a setting's value


@dataclass(frozen=True)
class Side:
    """One run: content of its report, settings of its stages."""

    name: str
    digest: str
    found: Mapping[str, Any]
    settings: Mapping[str, Any]
    """"stage.section.field" -> value."""


def side_of(report: Manifest, root: Path, name: str) -> Side:
    """Read a run from its report and the manifests that remain.

    Raises:
        ManifestError: report.json cannot be read.
    """
    settings: dict[str, Any] = {}
    for item in report.inputs:
        try:
            manifest = read_manifest(root / item.path)
        except MissingInput:
            continue
        settings[f"{item.stage}.(version)"] = manifest.version
        settings |= {f"{item.stage}.{key}": value for key, value in _flat(manifest.config) if key}
    return Side(name, report.digest, read_report(report, root), settings)


def _flat(value: Any, place: str = "") -> list[tuple[str, Any]]:
    """The leaves of nested settings by their dotted names.

    A list is a leaf unless it holds tables.
    """
    if isinstance(value, Mapping) and value:
        return [leaf for name in value for leaf in _flat(value[name], f"{place}.{name}" if place else name)]
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return [leaf for index, item in enumerate(value) for leaf in _flat(item, f"{place}[{_named(item, index)}]")]
    return [(place, value)]


def _named(item: Any, index: int) -> str:
    """List entries keyed by name or id, for stable comparison."""
    known = item.get("name", item.get("id")) if isinstance(item, Mapping) else None
    return known if isinstance(known, str) else str(index)


def comparison(ours: Side, theirs: Side) -> dict[str, Any]:
    """Sections of rows (name, A, B, difference), and both loss curves."""
    sides = (ours, theirs)
    summaries = [side.found["summary"] for side in sides]

    def row(name: str, key: str, write: Any) -> list[str]:
        return _line(name, [summary[key] for summary in summaries], write)

    stages = list(dict.fromkeys(line["stage"] for side in sides for line in side.found["funnel"]))
    kept = [{line["stage"]: line for line in side.found["funnel"]} for side in sides]
    funnel = [
        _line(f"{stage}: {word}", [lines.get(stage, {}).get(field) for lines in kept], write)
        for stage in stages
        for word, field, write in (("documents kept", "documents_kept", number), ("text kept", "bytes_kept", size))
    ]
    rates = [_median(side.found, "tokens_per_second") for side in sides]
    use = [_median(side.found, "mfu") for side in sides]
    per_token = [_median(side.found, "joules_per_token") for side in sides]
    lasting = [_of_last_checkpoint(side.found) for side in sides]
    bounded = ", at least" if any(partly for _, partly in lasting) else ""
    firsts = [str((side.found.get("first") or [{"what": "none"}])[0]["what"]) for side in sides]
    waivers = [len(side.found["verdict"].get("waivers", [])) for side in sides]
    return {
        "names": [side.name for side in sides],
        "digests": [side.digest for side in sides],
        "sections": {
            "Verdict": [row("verdict", "verdict", str), _line("waivers", waivers, number),
                        _line("main finding", firsts, str)],
            "Data": [row("documents read", "documents_in", number), *funnel,
                     row("training tokens", "train_tokens", number)],
            "Loss": [row("steps", "steps", number), row("tokens trained", "tokens_trained", number),
                     row("training loss, nats per token", "final_loss", compact),
                     row("validation loss, nats per token", "validation_loss", compact),
                     row("validation, bits per byte", "bits_per_byte", compact)],
            "Throughput": [_line("tokens per second, median", rates, compact), _line("MFU, median", use, share),
                           _line("joules per token, median", per_token, compact)],
            "Energy": [
                _line(f"last checkpoint and its inputs{bounded}", [joules for joules, _ in lasting], energy),
                row("everything under the root", "energy_joules", energy),
                row("everything, at least", "energy_low_joules", energy),
                row("everything, at most", "energy_high_joules", energy),
                row("of that wasted", "energy_wasted_joules", energy),
            ],
        },
        "changed": _changed(ours.settings, theirs.settings),
        "curves": [(side.found["training"] or {}).get("curves", {}).get("loss", []) for side in sides],
    }  # fmt: skip


def _of_last_checkpoint(found: Mapping[str, Any]) -> tuple[float | None, bool]:
    """Joules of the last checkpoint with those of its inputs.

    The second value states that a part had no meter. Runs that share a root share the total of that root, so only this
    differs between them.
    """
    last = ((found.get("energy") or {}).get("checkpoints") or [{}])[-1]
    joules: float | None = last.get("with_ancestors")
    return joules, joules is not None and last.get("with_ancestors_high", joules) is None


def _line(name: str, values: Sequence[Any], write: Any) -> list[str]:
    ours, theirs = values
    cells = [UNKNOWN if value is None else write(value) for value in (ours, theirs)]
    return [name, *cells, _difference(ours, theirs, write)]


def _difference(ours: Any, theirs: Any, write: Any) -> str:
    """B minus A, also as a share of A."""
    if ours is None and theirs is None:
        return UNKNOWN
    if ours == theirs:
        return "equal"
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in (ours, theirs)):
        return "differs"
    apart = theirs - ours
    part = f" ({apart / ours:+.2%})" if ours else ""
    return f"{'+' if apart > 0 else '-'}{write(abs(apart))}{part}"


def _median(facts: Mapping[str, Any], name: str) -> float | None:
    """The median of a curve, as thinned in report.json."""
    values = [value for _, value in ((facts["training"] or {}).get("curves") or {}).get(name, [])]
    return statistics.median(values) if values else None


def _changed(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[list[str]]:
    """Differing settings: name, A, B; an en dash for a missing one."""

    def cell(settings: Mapping[str, Any], name: str) -> str:
        if name not in settings:
            return "–"
        text = json.dumps(settings[name], ensure_ascii=False)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"

    return [
        [name, cell(ours, name), cell(theirs, name)]
        for name in sorted({*ours, *theirs})
        if name not in ours or name not in theirs or ours[name] != theirs[name]
    ]


def comparison_lines(facts: Mapping[str, Any]) -> list[str]:
    """Both runs on a terminal."""
    lines = [
        f"A  {facts['names'][0]}  {facts['digests'][0][:16]}",
        f"B  {facts['names'][1]}  {facts['digests'][1][:16]}",
    ]
    for title, rows in facts["sections"].items():
        lines += ["", *aligned([[title, "A", "B", "B - A"], *rows])]
    lines += ["", f"Settings that differ: {len(facts['changed'])}"]
    return [visible(line) for line in [*lines, *aligned([["setting", "A", "B"], *facts["changed"]])]]


def comparison_page(facts: Mapping[str, Any]) -> str:
    """Both runs as a page that needs no network and no script."""
    names = [tag("p", tag("b", letter), " ", foreign(name), " ", tag("code", digest[:16], title=digest), class_="note")
             for letter, name, digest in zip("AB", facts["names"], facts["digests"], strict=True)]  # fmt: skip
    body: list[Html] = [*names]
    for title, rows in facts["sections"].items():
        body.append(
            table(title, ["figure", "A", "B", "B - A"], [list(map(foreign, row)) for row in rows], numeric=(1, 2, 3))
        )
        curves = [Curve(letter, curve, style) for letter, curve, style in zip("AB", facts["curves"], "ab", strict=True)]
        present = [curve for curve in curves if curve.points]
        if title == "Loss" and present:
            body.append(chart("Training loss", present, "step", "nats per token"))
    rows = [list(map(foreign, row)) for row in facts["changed"]]
    body.append(table("Settings that differ", ["setting", "A", "B"], rows))
    return runs_page("Comparison of two runs", body)
