"""Cluster facts: causes of ended attempts, the scheduler's accounting.

They are read from the jobs' files below the root (`slurm/jobs.jsonl`, `slurm/attempts/`, `slurm/accounting.jsonl`, its
last line), and are None where the run was not submitted to a cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from governance.files import read_lines
from governance.reports.facts.citations import cite
from governance.reports.html.markup import UNKNOWN, Html, energy, foreign, join, number, table, tag

_UNSIGNED = (
    "Attempts and the scheduler's accounting are on the word of the jobs and of whoever asked Slurm: the journal "
    "states these lines as they grow, and no line is signed by itself. No energy or verdict rests on them."
)
_KILLED = "killed without a record of its end, most often with its node"


def cluster_facts(root: Path) -> dict[str, Any] | None:
    """Attempts, causes of bad ends, and Slurm's accounting against ours."""
    folder = root / "slurm"
    names = {str(line["job"]): str(line["name"]) for line in read_lines(folder / "jobs.jsonl")}
    if not names:
        return None
    causes: Counter[tuple[str, str]] = Counter()
    begun = 0
    for path in sorted((folder / "attempts").glob("*.jsonl")):
        job = names.get(path.stem.partition("_")[0])
        if job is None:
            continue
        lines = [line for line in read_lines(path) if isinstance(line, dict)]
        starts = [line.get("started") for line in lines if line.get("event") == "started"]
        ends = {line.get("started"): line for line in lines if line.get("event") == "ended"}
        begun += len(starts)
        for start in starts[:-1]:  # the last one may still run: the report's own job does
            if start not in ends:
                causes[job, _KILLED] += 1
        for line in ends.values():
            if line.get("outcome") != "done":
                causes[job, str(line.get("cause", ""))] += 1
    accounting = [line for line in read_lines(folder / "accounting.jsonl") if isinstance(line, dict)]
    return {
        "jobs": len(names),
        "attempts": begun,
        "causes": [{"job": job, "cause": cause, "count": count} for (job, cause), count in sorted(causes.items())],
        "accounting": accounting[-1] if accounting else None,
        "submitted": _submitted(folder),
    }


def _submitted(folder: Path) -> dict[str, Any] | None:
    """Files and program last submitted, and edits that jobs took."""
    lines = [line for line in read_lines(folder / "submitted.jsonl") if isinstance(line, dict)]
    if not lines:
        return None
    last = lines[-1]
    taken = {(str(line["name"]), str(line["sha256"])) for line in read_lines(folder / "taken.jsonl")}
    return {
        "submission": last["submission"],
        "time": last["time"],
        "edits": last["edits"],
        "version": last["code"]["version"],
        "code_sha256": last["code"].get("sha256"),
        "files": [{"name": Path(name).name, "sha256": was["sha256"]} for name, was in sorted(last["files"].items())],
        "taken": [{"name": Path(name).name, "sha256": digest} for name, digest in sorted(taken)],
    }


def cluster(facts: Mapping[str, Any]) -> Html:
    """Section on the cluster's jobs."""
    data = facts["cluster"]
    if data is None:
        return tag("p", "This run was not submitted to a cluster.", class_="note")
    lines = [[row["job"], foreign(row["cause"]), number(row["count"])] for row in data["causes"]]
    totals = f"{data['jobs']:,} jobs; {data['attempts']:,} attempts of jobs and array tasks. {_UNSIGNED}"
    return join([
        tag("p", totals, class_="note"),
        table("Attempts that failed", ["job", "cause", "count"], lines, numeric=(2,),
              citation=cite(facts, "/cluster")),
        _meters(data["accounting"], cite(facts, "/cluster")),
        _frozen(data["submitted"], cite(facts, "/cluster")),
    ])  # fmt: skip


def _frozen(data: Mapping[str, Any] | None, citation: Html) -> Html:
    """Submitted files, and later edits that jobs used."""
    if data is None:
        return tag("p", "The submission is not on record.", class_="note")
    rows = [[foreign(file["name"]), file["sha256"][:16], "submitted"] for file in data["files"]]
    code = (data["code_sha256"] or "in the image")[:16]
    rows.append([f"assay {data['version']}", code, "submitted"])
    rows += [[foreign(file["name"]), file["sha256"][:16], "edited after submission"] for file in data["taken"]]
    note = f"Submission {data['submission']}, {data['time']}; edits made later: {data['edits']} when a job starts."
    return join([
        table("Files that the jobs used", ["file", "SHA-256", "as"], rows, citation=citation),
        tag("p", note, class_="note"),
    ])  # fmt: skip


def _meters(accounting: Mapping[str, Any] | None, citation: Html) -> Html:
    """The scheduler's accounting next to our meters, differences unresolved."""
    if accounting is None:
        return tag("p", "The scheduler's accounting was not read, or has no record.", class_="note")
    slurm, ours = accounting.get("slurm"), accounting.get("ours")
    apart = f"{slurm / ours - 1:+.0%} of our meters" if slurm is not None and ours else UNKNOWN
    lines = [["scheduler's accounting", energy(slurm)], ["our meters", energy(ours)], ["difference", apart]]
    hours = (
        f"Read {accounting.get('asked')}; {number(accounting.get('core_seconds', 0) / 3600, 2)} core hours until then."
    )
    return join([
        table("Energy of the same nodes by two meters", ["meter", "energy"], lines, numeric=(1,), citation=citation),
        tag("p", hours, class_="note"),
    ])  # fmt: skip
