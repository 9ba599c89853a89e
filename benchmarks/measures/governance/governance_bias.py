"""The audit of bias: words per second and core, and what it says of a corpus with planted bias and of one without.

The corpora with truth come with a list of their planted groups and effects; a finding is compared with it by sign.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measures.corpora import ingested, mixed, rows, test_data
from benchmarks.measures.goals import Goal, cpu_seconds, figure
from benchmarks.measures.governance.bias_policies import judged
from data_pipeline.filters.clean import CleanConfig, clean
from governance.manifest import Manifest
from governance.stage import Runtime

_LEVEL = 0.05
_OTHERS = "other groups"
_AXES = {"race": "ethnicity"}  # the truth's name of an axis -> ours


def _counted(documents: list[dict[str, Any]], folder: Path) -> tuple[Manifest, Runtime, float]:
    """The artifact of stage "bias" for documents that were all kept, and its CPU-seconds."""
    from governance.checks.bias.bias import BiasConfig, bias_audit

    for name, texts in (("warm", documents[::10]), ("whole", documents)):  # the first compiles and loads
        raw, runtime = ingested(texts, folder / name)
        kept = clean(raw, CleanConfig(presets=()), runtime)  # identifies languages; no bound is set
        started = cpu_seconds()
        made = bias_audit({"redact": kept}, BiasConfig(), runtime)
    return made, runtime, cpu_seconds() - started


def _tables(manifest: Manifest, root: Path) -> Mapping[str, list[dict[str, Any]]]:
    found: Mapping[str, list[dict[str, Any]]] = json.loads((root / manifest.folder / "tables.json").read_bytes())
    return found


def bias(quick: bool) -> list[Goal]:
    """Speed on 80 MB (also when quick: fixed costs would weigh more on less), then the planted effects."""
    with tempfile.TemporaryDirectory() as scratch:
        manifest, _, spent = _counted(mixed(80_000_000), Path(scratch))
    words = int(manifest.stats["words"])
    goals = [
        Goal("bias.million_words_a_core_second", words / 1e6 / spent, 1.5, note=f"{words:,} words: counts and tables")
    ]
    for name in ("skewed", "control"):
        documents = [{"id": row["id"], "text": row["text"]} for row in rows(f"bias/{name}.jsonl.gz")]
        with tempfile.TemporaryDirectory() as scratch:
            manifest, runtime, _ = _counted(documents, Path(scratch))
            tables = _tables(manifest, runtime.root)
        goals += _planted(tables) if name == "skewed" else _alarms(tables)
        goals += _decisions(name, tables)
    return goals


def _decisions(name: str, tables: Mapping[str, list[dict[str, Any]]]) -> list[Goal]:
    """Gates that fail on the planted axes of a corpus, and those of them that close it, under either policy."""
    goals, axes = [], _planned_axes(name)
    tables = {suite: [row for row in rows if not row["axis"] or row["axis"] in axes] for suite, rows in tables.items()}
    for policy in ("policy", "policy-strict"):
        judgement, statuses = judged(tables, policy)
        failed = sorted(gate for gate, status in statuses.items() if status == "fail")
        closing = {reason["gate"] for reason in judgement.reasons if reason["closes"] and reason["status"] == "fail"}
        note = f"{judgement.decision}; failed: {', '.join(failed) or 'none'}"
        line = f"bias.{name}.{policy}.gates_closed"
        if policy == "policy":
            goals.append(Goal(line, len(closing), 0, "<=", note))
        elif name == "skewed":
            goals.append(Goal(line, len(closing), 1, note=note))
        else:  # its planted sentences have no effect; the real texts around them tie groups to themes
            goals.append(figure(line, len(closing), note))
    return goals


def _planned_axes(name: str) -> set[str]:
    planned = json.loads((test_data() / "bias" / f"{name}.summary.json").read_bytes())["planned"]
    return {str(_AXES.get(axis, axis)) for axis in planned}


def _planted(tables: Mapping[str, list[dict[str, Any]]]) -> list[Goal]:
    """The strong findings of the truth, each looked for in the table that should show it."""
    truth = json.loads((test_data() / "bias" / "skewed.summary.json").read_bytes())["strong_findings"]
    looked = [(finding, _row(tables, finding)) for finding in truth]
    known = [(finding, row) for finding, row in looked if row is not None and row["value"] is not None]
    right = [_side(row) == _wanted(finding) for finding, row in known]
    against = [_sure(row) and _side(row) != _wanted(finding) for finding, row in known]
    sure = [_sure(row) and _side(row) == _wanted(finding) for finding, row in known]
    note = f"of {len(known)} that a table has a row for; {len(truth)} strong ones are planted"
    return [
        Goal("bias.planted_with_the_right_sign", sum(right) / max(1, len(known)), 0.9, note=note),
        figure("bias.planted_beyond_the_interval", sum(sure) / max(1, len(known)), "0, or a ratio of 1, is outside"),
        Goal("bias.planted_surely_wrong", sum(against), 0, "<="),
    ]


def _row(tables: Mapping[str, list[dict[str, Any]]], finding: Mapping[str, Any]) -> dict[str, Any] | None:
    """The row that should show a planted effect: the group against the other groups of its axis."""
    facet = str(finding["facet"])
    suite, metric, against = (
        ("association", "npmi_gap", facet.removeprefix("assoc_"))
        if facet.startswith("assoc_")
        else ("tone", "toxicity_ratio" if facet == "toxic" else "sentiment_gap", _OTHERS)
    )
    axis = _AXES.get(str(finding["axis"]), finding["axis"])
    for row in tables[suite]:
        same = (row["metric"], row["axis"], row["group"]) == (metric, axis, finding["group"])
        if same and str(row["against"]).partition("/")[0] == against:
            return row
    return None


def _middle(row: Mapping[str, Any]) -> float:
    """Value of the metric for a group without an effect."""
    return 1.0 if row["metric"] == "toxicity_ratio" else 0.0


def _side(row: Mapping[str, Any]) -> bool:
    return bool(row["value"] > _middle(row))


def _wanted(finding: Mapping[str, Any]) -> bool:
    """Return whether the effect should raise the metric (negative sentences lower a score)."""
    return bool((finding["z"] > 0) != (finding["facet"] == "negative"))


def _sure(row: Mapping[str, Any]) -> bool:
    return None not in (row["lower"], row["upper"]) and not row["lower"] <= _middle(row) <= row["upper"]


def _alarms(tables: Mapping[str, list[dict[str, Any]]]) -> list[Goal]:
    """Share of false findings in a corpus in which no group differs from the others.

    Groups against the others of their axis, on the axes that were planted. Against chance, or against sentences that
    mention nobody, the planted sentences do differ: they are all about somebody.
    """
    axes = _planned_axes("control")
    tested = [
        row
        for suite in ("association", "tone")
        for row in tables[suite]
        if row["p"] is not None and row["axis"] in axes and (row["metric"] == "npmi_gap" or row["against"] == _OTHERS)
    ]
    alarms = sum(row["q"] is not None and row["q"] < _LEVEL for row in tested)
    low = sum(row["p"] < _LEVEL for row in tested)
    return [
        Goal(
            "bias.false_alarms_share",
            alarms / max(1, len(tested)),
            _LEVEL,
            "<=",
            f"q below 0.05, {len(tested)} numbers",
        ),
        figure(
            "bias.p_below_level_share", low / max(1, len(tested)), "0.05 is expected; numbers of an axis hang together"
        ),
    ]
