"""`assay slurm status`: jobs, shards, training, energy, next step.

It reports what is known while a part of Slurm is down, and names that part. Progress is read from what the run itself
leaves behind: the shards' records, and the training's metrics.jsonl.

In the table the arrays and joins of one stage (`clean`, `clean-join`) are folded into a row under the stage's name: its
tasks, and the state of what is not done. A wait for another job is shown only where its row has nothing more
informative.
"""

from __future__ import annotations

import datetime
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governance.errors import BudgetReached, GateClosed
from governance.files import read_lines
from slurm.accounting import Energy, in_words
from slurm.commands import NOT_ON_PATH
from slurm.job_states import JobRow, UnitState, View

_RECORD = re.compile(r"[0-9a-f]{64}\.json")
_SHOWN_CAUSES = 8
_NEVER = re.compile(
    r"BadConstraints|PartitionTimeLimit|PartitionNodeLimit|AccountNotAllowed|QOSNotAllowed|InvalidAccount|InvalidQOS"
    r"|JobHoldMaxRequeue|DependencyNeverSatisfied|ReservationDeleted|MaxMemPerLimit|QOSMin\w+"
    r"|(QOS|Assoc)Max\w+Per(Node|Job|JobLimit)"
)
"""Reasons with which a job waits for a person."""
_USED_UP = re.compile(r"(QOS|Assoc)Grp((?!\w*Run)\w*Minutes(Limit)?|WallLimit)")
"""Reasons with which a job waits for more hours of its account or qos."""
_HELD = {
    "JobHeldUser": "it is held by hand, or a submission was interrupted",
    "job requeued in held state": "requeued with requeuehold",
    "job requeued in special exit state": "requeued in the state SPECIAL_EXIT",
    "launch failed requeued held": "Slurm holds it because it took a launch for failed",
}
"""Reasons with which a job waits until its owner releases it."""
_TAIL_BYTES = 1 << 18
"""Bytes of metrics.jsonl that are read from its end: a few hundred steps."""


@dataclass(frozen=True)
class Progress:
    """Progress of the run, as plain values."""

    config: str
    """CONFIG and its options, as the user typed them."""
    root: Path
    steps: tuple[str, ...] = ()
    """The data steps."""
    shards: int = 0
    """Shards of a step, as well as it can be known."""
    training: Path | None = None
    """The training's folder, once its tokens are made."""
    goal: int = 0
    """Steps of training."""


def describe(view: View, progress: Progress, energy: Energy | None) -> list[str]:
    """All of it, as lines."""
    lines = [f"{progress.root}: submission {view.submissions}, of {view.last}"]
    lines += [f"! {words.splitlines()[-1]}" for words in view.silent]
    lines += ["", *table(view.rows), ""]
    lines += _data(view, progress)
    lines += _training(view, progress)
    if energy is not None:
        lines += in_words(energy)
    lines += _attempts(view.rows)
    lines += _reasons(view.rows)
    return [*lines, f"next: {next_command(view, progress)}"]


def _data(view: View, progress: Progress) -> list[str]:
    """Shards made by each stage while its array exists."""
    if not progress.shards or view.row(progress.steps[0] if progress.steps else "") is None:
        return []
    steps = Counter(re.sub(r"-\d+$", "", step) for step in progress.steps)
    made_all = any(row.kind == "data" and row.done for row in view.rows)
    lines = []
    for stage, count in steps.items():
        made = _records(progress.root / stage / "records", view.first)
        rows = [row for row in view.rows if stage_of(row) == stage]
        if made and (made_all or all(row.done for row in rows)):
            lines.append(f"{stage} all {made:,}")
        elif made:
            lines.append(f"{stage} {made:,} of about {max(count * progress.shards, made):,}")
    return [f"shards made since the first submission: {', '.join(lines)}"] if lines else []


def _records(folder: Path, since: str) -> int:
    begun = datetime.datetime.fromisoformat(since).timestamp()
    try:
        return sum(
            _RECORD.fullmatch(path.name) is not None and path.stat().st_mtime >= begun for path in folder.iterdir()
        )
    except OSError:
        return 0


def _training(view: View, progress: Progress) -> list[str]:
    """Step, loss, speed, energy and expected end of the newest attempt."""
    if progress.training is None:
        return []
    read = read_lines(progress.training / "metrics.jsonl", last_bytes=_TAIL_BYTES)
    lines = [line for line in read if isinstance(line, dict)]
    steps = [line for line in lines if line.get("event") == "step"]
    if not steps:
        return []
    last, begun = steps[-1], max((place for place, line in enumerate(lines) if line.get("event") == "start"), default=0)
    saved = max((int(line["step"]) for line in lines if line.get("event") == "checkpoint"), default=0)
    found = f"training: step {last['step']:,} of {progress.goal:,} (attempt {last['attempt']})"
    found += f", loss {_number(last['loss'], 4)}, {_number(last.get('tokens_per_second'), 0)} tokens/s"
    if isinstance(last.get("joules"), int | float):
        found += f", {last['joules'] / 3.6e6:.4g} kWh on the first node in this attempt"
    if saved:
        found += f"; saved at step {saved:,}"
    begun_at, ago = _running_since(view), _seconds_since(progress.training / "metrics.jsonl")
    if begun_at is not None and (left := progress.goal - int(last["step"])) > 0:
        if time.time() - ago < begun_at:
            found += f"; no step yet since its newest start, {clock(int(time.time() - begun_at))} ago"
            return [found, *_verdicts(lines[begun:])]
        found += f"; last step {ago:,.0f} s ago"
        recent = [float(line["seconds"]) for line in steps[-50:] if isinstance(line.get("seconds"), int | float)]
        if recent:
            end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=left * sum(recent) / len(recent))
            found += f"; expected end {end:%Y-%m-%d %H:%M} UTC"
    return [found, *_verdicts(lines[begun:])]


def _running_since(view: View) -> float | None:
    """Start of the training's current attempt, epoch seconds.

    Returns 0 if the start is unknown, and None if no attempt runs.
    """
    running = [part for row in view.rows if row.kind == "train" for part in row.parts if part.kind == "running"]
    if not running:
        return None
    last = running[-1].attempts[-1:]
    since = last[0].started if last and not last[0].ended else ""
    return datetime.datetime.fromisoformat(since).timestamp() if since else 0.0


def _seconds_since(path: Path) -> float:
    """Seconds since a file was written."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return 0.0


def _verdicts(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    return [_diverged(line) for line in lines if line.get("event") == "diverged"]


def _diverged(line: Mapping[str, Any]) -> str:
    """The verdict with which the newest attempt stopped."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in (line.get("by_reason") or {}).items())
    return (
        f"! training stopped with a verdict at step {line['step']:,} (attempt {line.get('attempt')}): "
        f"{line.get('skipped')} of the last {line.get('window')} steps were left out ({reasons}); its log names them "
        "and what to do"
    )


def _number(value: Any, digits: int) -> str:
    return f"{value:,.{digits}f}" if isinstance(value, int | float) else str(value)


def _attempts(rows: Sequence[JobRow]) -> Iterator[str]:
    """Causes of earlier attempts' ends, most frequent first."""
    for row in rows:
        causes: Counter[str] = Counter()
        for part in row.parts:
            decided = part.kind in ("failed", "lost")  # its last attempt decided, which `_reasons` names
            attempts = part.attempts[:-1] if decided else part.attempts
            causes.update(attempt.cause for attempt in attempts if attempt.outcome not in ("", "done"))
        for cause, count in causes.most_common(_SHOWN_CAUSES):
            yield f"{row.name}: begun again{f' {count} times' if count > 1 else ''}: {cause}"


def _reasons(rows: Sequence[JobRow]) -> Iterator[str]:
    """Failures in full."""
    for row in rows:
        for part in [part for part in row.parts if part.kind in ("failed", "lost") and part.cause][:_SHOWN_CAUSES]:
            if not part.cause.startswith("because "):
                name = row.name if part.number is None else f"{row.name}[{part.number}]"
                yield f"{name} ({part.state}): {ended(part)}"


_EXPLAINED = (2, 65, 66, 76, 78)
"""Exit statuses whose cause and fix the table shows in full."""


def next_command(view: View, progress: Progress) -> str:
    """Next command for the user."""
    config, rows = progress.config, view.rows
    if not view.queue_answers and any(NOT_ON_PATH in answer for answer in view.silent[:1]):
        return f"on a login node, or with Slurm's module loaded (module load slurm): assay slurm status {config}"
    if not view.queue_answers:
        return f"wait until the controller answers (scontrol ping), then: assay slurm status {config}"
    failed = {part.status for row in rows for part in row.parts if part.kind == "failed"}
    if GateClosed.exit_code in failed:
        return (
            "the gate is closed: read the report; correct the corpus, or let an owner decide (assay governance review "
            f"{config} --key KEY); then: assay slurm retry {config}"
        )
    if BudgetReached.exit_code in failed:
        return (
            "the energy budget is exhausted; the checkpoint is saved. With another policy ([energy_budget]), judge "
            f"the corpus again (assay governance check {config}), then: assay slurm retry {config}"
        )
    if broken := [row for row in rows if row.over]:
        return _after_failure(broken, config)
    if all(row.done or row.superseded for row in rows):
        reports = sorted((progress.root / "report").glob("*/report.html"), key=lambda path: path.stat().st_mtime)
        return f"all is done; open {reports[-1]}" if reports else "all is done"
    if words := _waits_for_somebody(view, config):
        return words
    if running := [row.name for row in rows if row.count("running")]:
        return f"assay slurm logs {config} --job {running[0]} --follow"
    return f"assay slurm status {config} --watch"


def _after_failure(broken: Sequence[JobRow], config: str) -> str:
    """Command after jobs ended without success.

    The first job that failed by itself decides: those after it only ended because of it.
    """
    first = next((row for row in broken if not all(p.cause.startswith("because ") for p in row.parts)), broken[0])
    ended = [part for part in first.parts if part.kind in ("failed", "lost")]
    if all(part.state.startswith("CANCELLED") and part.status in (None, 0, 75) for part in ended):
        return f"{first.name} was cancelled; continue with: assay slurm retry {config}"
    explained = any(part.status in _EXPLAINED for part in first.parts if part.kind == "failed")
    fix = "fix that" if explained else f"read: assay slurm logs {config} --job {first.name}"
    return f"{first.name} did not succeed; {fix}, then: assay slurm retry {config}"


def _waits_for_somebody(view: View, config: str) -> str:
    """Action that a waiting job needs from a person; "" if none."""
    waiting = [(row.name, part) for row in view.rows for part in row.parts if part.kind == "waiting"]
    if held := [(name, part) for name, part in waiting if part.reason in _HELD]:
        units = ",".join(dict.fromkeys(part.unit for _, part in held))
        return (
            f"{held[0][0]} is held ({held[0][1].reason}: {_HELD[held[0][1].reason]}): scontrol release {units}; or end "
            f"the run: assay slurm cancel {config}"
        )
    if any(part.reason == "JobHeldAdmin" for _, part in waiting):
        name = next(name for name, part in waiting if part.reason == "JobHeldAdmin")
        return f"{name} is held by an administrator, who must release it; then: assay slurm status {config} --watch"
    if never := [(name, part.reason) for name, part in waiting if _NEVER.fullmatch(part.reason)]:
        name, reason = never[0]
        return (
            f"{name} will never start ({reason}; details: scontrol show job); assay slurm cancel {config}, "
            f"correct [slurm], then: assay slurm retry {config}"
        )
    if used := [(name, part.reason) for name, part in waiting if _USED_UP.fullmatch(part.reason)]:
        name, reason = used[0]
        return (
            f"{name} waits until the account or qos has hours again ({reason}; see sshare, sacctmgr show qos); to "
            f"charge another: assay slurm cancel {config}, set slurm.account or qos, then: assay slurm retry {config}"
        )
    return ""


def settled(view: View) -> bool:
    """Return whether nothing more will happen by itself."""
    return view.queue_answers and not any(row.live for row in view.rows)


_HEAD = ("job", "id", "state", "tasks", "elapsed", "nodes", "excluded", "cause", "why")
_ACTIONS = {
    "go on": "tried again", "elsewhere": "tried again without its node", "later": "tried again later",
    "stop": "not tried again",
}  # fmt: skip
_ORDER = ("failed", "lost", "running", "unknown", "waiting", "done")
_IDS_SHOWN = 24


def table(rows: Sequence[JobRow]) -> list[str]:
    """The lines of the table.

    A column that is empty in all rows is omitted.
    """
    cells = [_HEAD, *(_cells(name, of_stage) for name, of_stage in folded(rows).items())]
    shown = [column for column in range(len(_HEAD)) if any(line[column] for line in cells[1:])]
    widths = {column: max(len(line[column]) for line in cells) for column in shown}
    return ["  ".join(line[column].ljust(widths[column]) for column in shown).rstrip() for line in cells]


def folded(rows: Sequence[JobRow]) -> dict[str, list[JobRow]]:
    """Name of a stage or job -> its rows, in order.

    Rows that no longer matter are kept only where nothing took their place.
    """
    folds: dict[str, list[JobRow]] = {}
    for row in rows:
        folds.setdefault(stage_of(row), []).append(row)
    return folds


def stage_of(row: JobRow) -> str:
    """Data stage of a share or join, else the job's name."""
    if row.kind not in ("share", "join"):
        return row.name
    return re.sub(r"-\d+$", "", row.name.removesuffix("-join"))


def _cells(name: str, rows: Sequence[JobRow]) -> tuple[str, ...]:
    parts = [part for row in rows for part in row.parts]
    tasks = [part for part in parts if part.number is not None]
    jobs = list(dict.fromkeys(part.unit.split("_")[0] for part in parts))
    nodes = list(dict.fromkeys(part.nodes for part in parts if part.nodes and (part.kind != "done" or len(parts) == 1)))
    left_out = list(dict.fromkeys(part.excluded for part in parts if part.excluded and part.kind != "done"))
    done = sum(part.kind == "done" for part in tasks)
    return (
        name,
        _short(",".join(jobs), _IDS_SHOWN),
        _state(rows, parts),
        f"{done}/{len(tasks)}" if tasks else "",
        clock(max(part.elapsed for part in parts)),
        _short(",".join(nodes), 30),
        _short(",".join(left_out), 30),
        _short(_causes(parts), 60),
        _short(_wait_or_failure(parts), 100),
    )


def _state(rows: Sequence[JobRow], parts: Sequence[UnitState]) -> str:
    """States of unfinished parts, the worst first.

    A stage that has not begun or is done has one word.
    """
    if all(row.superseded for row in rows) and not all(part.kind == "done" for part in parts):
        return "superseded"
    left = [part for part in parts if part.kind != "done"] or list(parts)
    if any(part.kind not in ("done", "waiting") for part in parts):  # parts that only wait for these are omitted
        left = [part for part in left if part.reason != "Dependency"] or left
    states = Counter(part.state for part in sorted(left, key=lambda part: _ORDER.index(part.kind)))
    if len(states) == 1:
        return next(iter(states))
    return ", ".join(f"{count} {state}" for state, count in states.items())


def _causes(parts: Sequence[UnitState]) -> str:
    """Verdicts on the last failures, and the actions that follow."""
    causes: dict[str, None] = {}
    for part in (part for part in parts if part.means and part.kind != "done"):
        over = part.kind in ("failed", "lost") and part.action != "stop"
        causes[f"{part.means}: {'no try is left' if over else _ACTIONS.get(part.action, part.action)}"] = None
    return "; ".join(causes)


def _wait_or_failure(parts: Sequence[UnitState]) -> str:
    """Reason why a job waits or failed."""
    failed = [part for part in parts if part.kind in ("failed", "lost")]
    if failed:
        causes = list(dict.fromkeys(ended(part) for part in failed))
        named = [cause for cause in causes if not cause.startswith("because ")]
        return "; ".join(named or causes)
    waiting = [part for part in parts if part.kind == "waiting"]
    reasons = list(dict.fromkeys(part.reason for part in waiting if part.reason))
    others = [reason for reason in reasons if reason != "Dependency"]
    if not waiting or (not others and any(part.kind == "running" for part in parts)):
        return ""
    begins = min((part.starts for part in waiting if part.starts), default="")
    return ", ".join(others or reasons) + (f"; expected {begins}" if begins else "")


def ended(part: UnitState) -> str:
    """End of a job in words: exit status and cause."""
    status = f"exit {part.status}: " if part.status else ""
    return f"{status}{part.cause}" if part.cause else f"{status}Slurm says {part.state}"


def clock(seconds: int) -> str:
    """Seconds as "1-02:03:04"."""
    days, rest = divmod(seconds, 86_400)
    return (f"{days}-" if days else "") + f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
