"""docs/monitoring.md against the written events: neither names an event or a field that the other lacks."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from governance.errors import BudgetReached, Preempted
from governance.files import read_lines
from pretrain import loop
from pretrain.config.training import (
    CallbackConfig,
    EvaluationConfig,
    MixtureConfig,
    ProfileConfig,
    SkipConfig,
    TaskConfig,
)
from pretrain.distributed.process_group import Ranks
from pretrain.distributed.stragglers import WINDOWS, StragglerMonitor
from pretrain.evaluation.scores import encode_tasks
from pretrain.evaluation.tasks import open_tasks, pin
from pretrain.loss_spikes import Diverged
from tests.pretrain import budget_ranks
from tests.pretrain.evaluation.test_task_scores import encode

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "monitoring.md"
ALWAYS = "Every event"


def documented(text: str | None = None) -> dict[str, dict[str, bool]]:
    """Fields by event, including those of every event, and whether a line may lack one.

    For a table without a column of events, the heading names them; "where there are several" marks those that may be
    missing, and so does "only where there are callbacks".
    """
    found: dict[str, dict[str, bool]] = {}
    heading = ""
    for line in (text or PAGE.read_text(encoding="utf-8")).splitlines():
        if line.startswith("#"):
            heading = line.strip("# ")
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        field = next((place for place in (0, 1) if re.fullmatch(r"`\w+`", cells[min(place, len(cells) - 1)])), None)
        if not line.startswith("|") or field is None:
            continue
        names = re.findall(r'"(\w+)"', cells[0] if field else heading) or [ALWAYS]
        for name in names:
            fields = found.setdefault(name, {})
            assert cells[field].strip("`") not in fields, f"{name}: {cells[field]} twice"
            fields[cells[field].strip("`")] = "where there are " in line
    shared = found.pop(ALWAYS)
    return {name: {**shared, **fields} for name, fields in found.items()}


def differences(lines: list[dict]) -> list[str]:
    """Fields of these lines of a record that the page does not mention, and the reverse."""
    page, output = documented(), []
    for line in lines:
        fields = page.get(line["event"], {})
        output += [f"{line['event']}: {name} is not described" for name in sorted(line.keys() - fields.keys())]
        lacks = [name for name, may_lack in fields.items() if name not in line and not may_lack]
        output += [f"{line['event']}: {name} is described and not there" for name in lacks]
    return list(dict.fromkeys(output))


def recorded_names() -> set[str]:
    """The events that the trainer's code records: `record("name", step, ...)`, each with its name in place."""
    names = set()
    for path in (ROOT / "pretrain").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = node.func if isinstance(node, ast.Call) and node.args else None  # CUDA's own events have no text
            if isinstance(called, ast.Attribute) and called.attr.lstrip("_") == "record":
                assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno}: the event has no name here"
                names.add(node.args[0].value)
    return names


def test_the_page_has_the_events_that_the_code_records():
    [row] = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `event` |")]
    assert set(re.findall(r'"(\w+)"', row)) == set(documented()) == recorded_names()


@pytest.fixture(scope="module")
def written(tmp_path_factory, run_training):
    """Lines of real runs: with a task, a new mixture, a signal and a divergence; with a budget; with patience."""
    root, folder, stalled = (tmp_path_factory.mktemp(name) for name in ("page", "budget", "stalled"))
    run_training(
        stalled, steps=20, warmup_steps=0, decay_steps=0, learning_rate=3.0, validate_every_steps=2, patience=1
    )
    (root / "pairs.jsonl").write_text(
        "".join(
            json.dumps({"good": f"ab{n}cd ef", "bad": f"ef cd{n}ab", "paradigm": f"p{n % 2}"}) + "\n" for n in range(6)
        )
    )
    task = TaskConfig(name="pairs", format="blimp", path="pairs.jsonl")
    asked = pin(EvaluationConfig(tasks=(task,), every_steps=4), root)
    (root / "seen.py").write_text("def nothing(line):\n    pass\n")
    settings = {
        "folder": root, "callbacks": (CallbackConfig(function="seen:nothing"),),
        "evaluation": asked, "suite": lambda: encode_tasks(open_tasks(asked, root), encode, 32), "steps": 60,
        "mixture": (MixtureConfig(from_step=2, weights={"web": 1.0, "books": 2.0}),), "learning_rate": 1e-9,
        "profile": ProfileConfig(from_step=2, steps=1),
        "warmup_steps": 0, "decay_steps": 0, "skip": SkipConfig(z_score=1e-9, window=8, warmup_steps=8, most_skips=2),
    }  # fmt: skip
    plain = loop.rate_factor

    def request_stop(step, *others):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(step, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "rate_factor", request_stop)
        with pytest.raises(Preempted):
            run_training(root, **settings)
    with pytest.raises(Diverged):
        run_training(root, **settings)
    with pytest.MonkeyPatch.context() as patch:
        runtime = folder / "runtime"
        runtime.mkdir()
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        budget_ranks.plant(patch)
        with pytest.raises(BudgetReached):
            run_training(folder, **budget_ranks.options(folder, 2500), **budget_ranks.SETTINGS)
    return [
        line
        for path in (root, folder, stalled)
        for found in path.glob("train/*/metrics.jsonl")
        for line in read_lines(found)
    ]


def of_two_ranks():
    """Clocks of ranks as they record them, with rank 1 slow."""
    lines = []
    job = SimpleNamespace(
        settings=SimpleNamespace(engine=SimpleNamespace(straggler_window_steps=1)),
        ranks=Ranks(0, 2, 0, 2),
        device=SimpleNamespace(type="cpu"),
        record=lambda event, step, **values: lines.append({"event": event, "step": step, "attempt": 1, **values}),
    )
    pace = StragglerMonitor(job.settings.engine.straggler_window_steps, job.ranks, job.device, job.record)
    for step in range(1, WINDOWS + 2):
        pace.report(step, [1_000_000, 2_000_000] if pace.slots(step) else [])
    return lines


def of_a_hang():
    """The watchdog's callback records this, in a thread of its own."""
    lines, recorded = [], threading.Event()

    def record(event, step, **values):
        lines.append({"event": event, "step": step, "attempt": 1, **values})
        recorded.set()

    loop._report_hang(SimpleNamespace(energy={"step": 7}, record=record), 300.5)
    assert recorded.wait(300)
    return lines


def test_every_event_has_the_fields_of_the_page(written):
    lines = [*written, *of_two_ranks(), *of_a_hang()]
    assert {line["event"] for line in lines} == set(documented())
    assert differences(lines) == []


@pytest.mark.parametrize("event", sorted(documented()))
def test_a_field_that_is_dropped_or_added_on_either_side_would_be_found(written, event):
    [line, *_] = [line for line in [*written, *of_two_ranks(), *of_a_hang()] if line["event"] == event]
    need = [name for name, may_lack in documented()[event].items() if not may_lack]
    assert differences([{**line, "new": 1}]) == [f"{event}: new is not described"]
    for name in need:
        if name != "event":
            assert differences([{key: value for key, value in line.items() if key != name}]) == [
                f"{event}: {name} is described and not there"
            ]
