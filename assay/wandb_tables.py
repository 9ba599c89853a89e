"""Tables for W&B: corpus funnel, bias audit, energy of all attempts.

The numbers are those of report.json, by the same functions; None is unknown. Names of sources, stages and groups are
in it, and no document.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from governance.manifest import Manifest
from governance.reports.facts.energy_totals import energy_facts
from governance.reports.facts.report_facts import bias_of, funnel_of, in_order
from governance.reports.facts.stage_counts import removed_in
from governance.reports.sections.bias_sections import significant_rows
from pretrain.metrics.run_identity import MirrorTable

_COUNTS = ("documents_in", "documents_kept", "bytes_in", "bytes_kept")
_ALL = "(all)"


def mirror_tables(artifacts: Mapping[str, Manifest], root: Path) -> dict[str, MirrorTable | float | None]:
    """Tables and figures by "section/name".

    Energies are in joules, of all attempts in this root so far.

    data/funnel       stage, source ("(all)" first), documents and bytes in and kept
    data/removed      stage, source, reason, documents
    bias/<suite>      every row of the audit's interval tables
    bias/stands_out   those rows whose interval leaves out no difference, as the report's first table
    energy/stages     by stage, with bounds and method; what all its attempts took, and what of that was wasted
    energy/wasted     by cause; also as figures: energy/wasted_joules/<cause>

    Raises:
        ManifestError: the audit or the ledger cannot be read.
    """
    manifests = in_order(artifacts)
    funnel = funnel_of(manifests)
    energy = energy_facts(manifests, root)
    total, wasted = energy["total"], energy["wasted_by_cause"]
    shown: dict[str, MirrorTable | float | None] = {
        "data/funnel": MirrorTable(
            ("stage", "source", *_COUNTS),
            [(stage, source, *(entry[name] for name in _COUNTS)) for stage, source, entry in _entries(funnel)],
        ),
        "data/removed": MirrorTable(
            ("stage", "source", "reason", "documents"),
            [
                (row["stage"], source or _ALL, reason, count)
                for row in funnel
                for source in ("", *row["by_source"])
                for reason, count in removed_in(row, funnel, source).items()
            ],
        ),
        "energy/stages": _table([_stage(row) for row in energy["stages"]]),
        "energy/wasted": MirrorTable(("cause", "joules"), list(wasted.items())),
        "energy/total_joules": total["joules"],
        "energy/surviving_joules": total["surviving"],
        "energy/wasted_joules": total["wasted"],
        **{f"energy/wasted_joules/{cause}": joules for cause, joules in wasted.items()},
    }
    if tables := bias_of(artifacts, root):
        shown |= {f"bias/{suite}": _table(rows) for suite, rows in tables.items() if rows}
        out = [{"suite": suite, **row} for suite, rows in significant_rows(tables).items() for row in rows]
        shown["bias/stands_out"] = _table(out)
    return shown


def _entries(funnel: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Each stage's counts: all sources together, then one by one."""
    return [
        (stage["stage"], source, entry)
        for stage in funnel
        for source, entry in [(_ALL, stage), *stage["by_source"].items()]
    ]


def _stage(row: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's energy on one level; carbon needs the report's factors."""
    kwh = {f"kwh_{bound}": value for bound, value in row["kwh"].items()}
    return {name: value for name, value in row.items() if name not in ("kwh", "carbon")} | kwh


def _table(rows: Sequence[Mapping[str, Any]]) -> MirrorTable:
    """Rows of one shape; without any, a table without columns."""
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return MirrorTable(columns, [tuple(row.get(name) for name in columns) for row in rows])
