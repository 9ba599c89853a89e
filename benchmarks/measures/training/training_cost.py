"""Costs of a training step outside its arithmetic: instruments, DeepSpeed, stalls by saves."""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.measures.goals import Goal, figure
from benchmarks.measures.training.in_turn import ours, ratio, runners, take_turns
from benchmarks.measures.training.training_setting import prepare
from benchmarks.measures.training.training_speed import GPT
from governance.files import read_lines

PARTS = ("rest", "threads", "children")


def instruments(quick: bool) -> list[Goal]:
    """Processor time of a step outside of forward, backward and update: loader, digest, guard, record, mirror, energy.

    Exact where a difference of two runs would drown in the machine's noise: each thread's own clock.
    """
    rounds = 15 if quick else 60
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = prepare(folder, GPT, 3_000_000)
        with runners({"ours": ours("train", str(path), "--root", str(folder / "root"))}, folder) as started:
            take_turns(started, rounds)
            answers = started["ours"].answers
    arithmetic = statistics.median(answer["arithmetic"] for answer in answers)
    # Clocks of other threads and processes tick every 10 ms, so their means count, not medians.
    parts = {name: statistics.mean(answer[name] for answer in answers) for name in PARTS}
    goals = [Goal("training_instruments_share", sum(parts.values()) / arithmetic, 0.01, "<=")]
    return goals + [figure(f"training_{name}_ms_a_step", 1000 * value) for name, value in parts.items()]


def saves(quick: bool) -> list[Goal]:
    """Time that the loop waits for a save of the whole state, as a share of a step."""
    steps = 12 if quick else 40
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = prepare(folder, GPT, 3_000_000)
        words = ["--set", f"train.steps={steps}", "--set", "checkpoint.every_steps=4"]
        from benchmarks.measures.training.training_setting import assay

        assay("train", path, "--root", folder / "root", *words)
        [lines] = [read_lines(found) for found in (folder / "root").glob("train/*/metrics.jsonl")]
    seconds = [line["seconds"] for line in lines if line["event"] == "step"][2:]
    stalls = [line["seconds"] for line in lines if line["event"] == "save"]
    share = statistics.median(stalls[:-1]) / statistics.median(seconds)
    return [
        Goal("training_save_stall_share", share, 0.05, "<="),
        figure("training_save_stall_ms", 1000 * statistics.median(stalls[:-1])),
    ]


def engine_tax(quick: bool) -> list[Goal]:
    """A whole run at ZeRO stages 1 and 3 against the bare loop (`bare_loop.py`), on this CPU and in turn.

    Told only: the goal is a card's (`training_gpu.py`), and here a step is long and its launches cost nothing. A second
    bare loop takes turns too: what it "costs" is the noise.
    """
    rounds = 10 if quick else 40
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = prepare(folder, GPT, 3_000_000)
        bare = [sys.executable, str(Path(__file__).with_name("bare_in_turn.py")), str(path)]
        commands = {"bare": bare}
        for stage in (1, 3):
            root = folder / f"root-{stage}"  # a copy each: both have one key, and two runs of one key are refused
            shutil.copytree(folder / "root", root)
            words = ("train", str(path), "--root", str(root), "--set", f"engine.zero_stage={stage}")
            commands[f"zero_{stage}"] = ours(*words)
        with runners({**commands, "bare_again": bare}, folder) as started:
            take_turns(started, rounds)
            found = {name: {"wall": runner.seconds, "cpu": runner.cpu_seconds} for name, runner in started.items()}
    return [
        figure(f"training_engine_tax_{name}_{clock}", ratio(taken[clock], found["bare"][clock]) - 1)
        for name, taken in found.items()
        if name != "bare"
        for clock in ("wall", "cpu")
    ]


def blocks(quick: bool) -> list[Goal]:
    """A model so small that overhead dominates, at stage 3: compiled blocks against none, in turn.

    The goal is processor time. Where arithmetic is all, our own kernels for CPUs are faster than compiled ones.
    """
    rounds = 10 if quick else 40
    small = GPT.replace("hidden_size = 384", "hidden_size = 96").replace(
        "intermediate_size = 1536", "intermediate_size = 192"
    )
    small = small.replace("sequence_length = 256", "sequence_length = 64")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = prepare(folder, small, 1_000_000)
        commands = {}
        for name in ("plain", "compiled"):
            root = folder / f"root-{name}"  # a copy each: both have one key, and two runs of one key are refused
            shutil.copytree(folder / "root", root)
            words = ("--set", "engine.zero_stage=3", "--set", f"engine.compile={str(name == 'compiled').lower()}")
            commands[name] = ours("train", str(path), "--root", str(root), *words)
        with runners(commands, folder) as started:
            take_turns(started, rounds)
            cpu, wall = (
                ratio(getattr(started["compiled"], clock), getattr(started["plain"], clock))
                for clock in ("cpu_seconds", "seconds")
            )
    return [Goal("training_stage_3_compiled_cpu", cpu, 1.0, "<="), figure("training_stage_3_compiled_wall", wall)]
