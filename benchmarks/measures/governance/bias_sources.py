"""A raw difference of sources and what is left of it within them: the documents of a quick start that name the French.

Reads the finished counts of the quick start below `runs/quickstart`, or `ASSAY_QUICKSTART_ROOT`. Its plays speak of the
French and are long, its parliaments are short documents, and refused news and tweets lie between: with all sources as
one stratum the filters seem to keep fewer than half of the documents that they keep of others.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measures.goals import Goal, figure

FOUR_FIFTHS = 0.8


def _row(fates: pa.Table) -> dict[str, Any]:
    from governance.checks.bias.adverse_impact import impact_rows

    wanted = {"metric": "keep_ratio_adjusted", "group": "french", "language": "(all)", "stage": "clean"}
    [row] = (row for row in impact_rows(fates) if all(row[key] == value for key, value in wanted.items()))
    return row


def sources(quick: bool) -> list[Goal]:
    """The keep ratio of `clean` for the French, within sources and without them."""
    root = Path(os.environ.get("ASSAY_QUICKSTART_ROOT", "runs/quickstart"))
    tables = sorted(root.glob("bias/*/counts/fates.parquet"), key=lambda path: path.stat().st_mtime)
    if not tables:
        return [figure("bias_sources.french", -1, f"not run: no counts below {root}; make quickstart")]
    fates = pq.read_table(tables[-1], partitioning=None)
    within, pooled = _row(fates), fates
    for name in ("source", "site"):
        place = pooled.column_names.index(name)
        pooled = pooled.set_column(place, name, pa.array(["one"] * len(pooled)))
    raw = _row(pooled)
    notes = [
        f"{row['n']} documents, {row['lower']:.3f} to {row['upper']:.3f}, p {row['p']:.2g}" for row in (within, raw)
    ]
    return [
        Goal("bias_sources.french.within_sources", within["value"], FOUR_FIFTHS, note=notes[0]),
        Goal("bias_sources.french.p_within_sources", within["p"], 0.05, note="no finding"),
        figure("bias_sources.french.sources_pooled", raw["value"], notes[1]),
    ]
