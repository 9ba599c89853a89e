"""Growth of cost: the chain from JSONL to packed rows on 0.1, 1 and 10 GB of text, in time and in memory.

    ASSAY_TEST_DATA=... python benchmarks/scale.py [--quick] [--plot docs/scale.svg] corpus
    python benchmarks/scale.py [--quick] ranks
    python benchmarks/scale.py [--quick] nodes
    python benchmarks/scale.py [--quick] shards
    python benchmarks/scale.py [--quick] [--plot docs/plan.svg] planning
    python benchmarks/scale.py verdict
    python benchmarks/scale.py [--quick] scaling
    python benchmarks/scale.py [--quick] mixture

Groups, all where none is named: `corpus`, the chain; `ranks`, what a rank of 8, 64 and 512 does with files when it
saves, loads and looks at the run's holders; `nodes`, `assay slurm status`, the checks of a submission and a plan on up
to 10,000 nodes; `shards`, manifests and verification of up to 10^6 shards, and what a shard and a key file cost;
`planning`, `assay plan` against published speeds and against runs on this machine, and how long an answer takes;
`verdict`, the restart verdict on the labelled logs of tests/slurm: those from which its rules and weights were made,
and those held back; `scaling`, planted scaling laws and the coverage of their intervals; `mixture`, planted best
mixtures. `--plot` draws one group.

The text is that of the test corpora, repeated with a salt in every fourth word, so that no copy is a duplicate of
another. `--quick` stops at 0.2 GB. Time is CPU time; memory is the peak of a worker process
without pages of files, which the system drops on demand, and, for information, that of the process that runs the stages
(it trains the tokenizer and decides over the whole corpus), with them. Goals: time per byte on
the largest corpus is at most 1.3 times that on the smallest, and a worker's memory does not grow by more than a
tenth from the second size on.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measures.corpora import mixed
from benchmarks.measures.data import shard_counts
from benchmarks.measures.data.data_sameness import CONFIG, prepare_words
from benchmarks.measures.goals import Goal, figure, run, status_mb
from benchmarks.measures.training import (
    mixture_planted,
    plan_published,
    plan_runs,
    scale_nodes,
    scale_ranks,
    scaling_coverage,
)
from slurm.attempt.restart_verdict import verdict_of

HERE = Path(__file__).resolve().parents[1]
FILE_BYTES = 64_000_000
SIZES = (100_000_000, 1_000_000_000, 10_000_000_000)
QUICK_SIZES = (25_000_000, 100_000_000, 200_000_000)
Figures = dict[str, float]


def salted(text: str, salt: str) -> str:
    """The text with a salt on every fourth word: no five words in a row are those of another salt."""
    words = text.split(" ")
    words[::4] = [word + salt for word in words[::4]]
    return " ".join(words)


def _rows() -> Iterator[dict[str, str]]:
    """Documents of the test corpora again and again, each time with another salt."""
    documents = mixed(80_000_000)
    for copy in itertools.count():
        salt = "".join(chr(97 + int(digit)) for digit in str(copy)) if copy else ""
        for row in documents:
            yield {"id": f"{copy}/{row['id']}", "text": salted(row["text"], salt) if salt else row["text"]}


def write_corpus(folder: Path, size_bytes: int) -> int:
    """Write JSON Lines files of 64 MB; return the bytes of text."""
    folder.mkdir(parents=True)
    rows, written = _rows(), 0
    for number in itertools.count():
        if written >= size_bytes:
            break
        end = min(written + FILE_BYTES, size_bytes)
        with (folder / f"{number:05d}.jsonl").open("w", encoding="utf-8") as file:
            while written < end:
                row = next(rows)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                written += len(row["text"].encode("utf-8"))
    return written


def measure(size_bytes: int) -> Figures:
    """Run `assay data prepare` on so much text with one worker process per core."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        size = write_corpus(folder / "raw", size_bytes)
        config = CONFIG.replace("shard_bytes = 1000000", f"shard_bytes = {64 << 20}")
        (folder / "run.toml").write_text(config.replace("4096", "32000"), encoding="utf-8")
        (folder / "policy.toml").write_bytes((HERE / "configs" / "policy.toml").read_bytes())
        words = [sys.executable, __file__, "--child", str(folder)]
        started = time.monotonic()
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        cpu, peak, worker = (float(word) for word in done.stdout.split())
        figures = {"cpu_seconds": cpu, "peak_mb": peak, "worker_peak_mb": worker}
        return {"bytes": size, **figures, "wall_seconds": time.monotonic() - started}


def child(folder: Path) -> None:
    """Run the command; print its CPU-seconds, the peak of its own process, and a worker's without files, in MB."""
    running = subprocess.Popen(
        prepare_words(folder, "root"), cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    own = 0.0
    workers: dict[str, tuple[float, float]] = {}
    while running.poll() is None:
        own = max(own, _peak_mb(str(running.pid)))
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        with contextlib.suppress(OSError, ValueError):
            for pid in children.read_text().split():
                peak, alone = workers.get(pid, (0.0, 0.0))
                if (now := _peak_mb(pid)) > peak:  # the kernel keeps the peak of all pages
                    workers[pid] = now, max(alone, now - status_mb("RssFile", pid))
        time.sleep(0.1)
    if running.returncode:
        raise SystemExit(running.returncode)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(spent.ru_utime + spent.ru_stime, own, max((alone for _, alone in workers.values()), default=0.0))


def _peak_mb(pid: str) -> float:
    """Peak memory of a process, 0 if it is over; it only rises, so polling misses at most the last moment."""
    with contextlib.suppress(OSError, ValueError):
        return status_mb("VmHWM", pid)
    return 0.0


def verdicts() -> list[Goal]:
    """Shares of right verdicts: logs that rules and weights are from, and others."""
    goals: list[Goal] = []
    paths = sorted((HERE / "tests" / "slurm").glob("failure_logs*.toml"))
    for name, held_back in (("fitted", False), ("held_back", True)):
        chosen = [path for path in paths if path.stem.endswith("held_back") == held_back]
        logs = [log for path in chosen for log in tomllib.loads(path.read_text(encoding="utf-8"))["log"]]
        found = [verdict_of(log["text"], log.get("status"), log.get("state", "")) for log in logs]
        judged = [(one.cause, one.action) if one else ("", "") for one in found]
        causes = sum(cause == log["cause"] for (cause, _), log in zip(judged, logs, strict=True))
        both = sum(pair == (log["cause"], log["action"]) for pair, log in zip(judged, logs, strict=True))
        actions = [(action, log["action"]) for (_, action), log in zip(judged, logs, strict=True)]
        goals += [
            figure(f"restart_verdict.{name}.logs", len(logs)),
            figure(f"restart_verdict.{name}.cause", causes / len(logs)),
            Goal(f"restart_verdict.{name}.cause_and_action", both / len(logs), 0.95, ">=" if held_back else "info"),
            figure(f"restart_verdict.{name}.wrong_stops", sum(action == "stop" != of for action, of in actions)),
            figure(f"restart_verdict.{name}.wrong_retries", sum(action != "stop" == of for action, of in actions)),
        ]
    return goals


def plot(found: list[Figures]) -> str:
    """Time and memory over bytes, both scaled by the first size, as one SVG on logarithmic axes."""
    width, height, left, bottom = 640, 360, 70, 40
    largest = max(row["bytes"] for row in found)
    smallest = min(row["bytes"] for row in found)
    top = max(row["cpu_seconds"] for row in found)
    low = min(min(row["cpu_seconds"] for row in found), 10.0)
    high = max(top, max(row["peak_mb"] for row in found)) * 1.5

    def x(value: float) -> float:
        return left + (width - left - 20) * math.log(value / smallest) / math.log(largest / smallest)

    def y(value: float) -> float:
        return height - bottom - (height - bottom - 20) * math.log(value / low) / math.log(high / low)

    head = f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {head}>']
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')

    def text(at: float, up: float, words: str, anchor: str, colour: str = "#222") -> None:
        parts.append(f'<text x="{at:.1f}" y="{up:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>')

    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        if low <= 10**power <= high:
            parts.append(f'<path d="M{left} {y(10**power):.1f}H{width - 20}" stroke="#ddd"/>')
            text(left - 8, y(10**power) + 4, f"{10**power:g}", "end")
    last = found[-1]
    curves = (
        ("cpu_seconds", "CPU-seconds", "#17637f"),
        ("peak_mb", "MB, the process that runs the stages", "#b1540d"),
        ("worker_peak_mb", "MB, a worker", "#5a8a00"),
    )
    for name, unit, colour in curves:
        points = " ".join(f"{x(row['bytes']):.1f},{y(row[name]):.1f}" for row in found)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        text(x(last["bytes"]) - 4, y(last[name]) - 8, unit, "end", colour)
    for row in found:
        text(x(row["bytes"]), height - 15, f"{row['bytes'] / 1e9:.2g} GB", "middle")
    return "\n".join([*parts, "</svg>", ""])


def main() -> int:
    """Measure each size and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller samples; at most 5 minutes a group")
    parser.add_argument(
        "groups",
        nargs="*",
        metavar="GROUP",
        help="only these: corpus, ranks, nodes, shards, planning, verdict, scaling, mixture",
    )
    parser.add_argument("--sizes", type=int, nargs="+", metavar="BYTES", help="other sizes, rising")
    parser.add_argument("--plot", type=Path, help="write the plot to this SVG file")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child)
        return 0

    def grow() -> list[Goal]:
        found, goals = [], []
        for size in arguments.sizes or (QUICK_SIZES if arguments.quick else SIZES):
            found.append(measure(size))
            print(f"# {found[-1]}", flush=True)
        for row in found:
            label = f"{row['bytes'] / 1e9:g}gb"
            goals.append(figure(f"scale.{label}.mb_a_core_second", row["bytes"] / 1e6 / row["cpu_seconds"]))
            goals.append(figure(f"scale.{label}.worker_peak_mb", row["worker_peak_mb"]))
            goals.append(figure(f"scale.{label}.peak_mb", row["peak_mb"], f"{row['wall_seconds']:.0f} s of wall time"))
        dearest = found[-1]["cpu_seconds"] / found[-1]["bytes"]
        goals.append(
            Goal("scale.time_a_byte_last_to_first", dearest * found[0]["bytes"] / found[0]["cpu_seconds"], 1.3, "<=")
        )
        grown = found[-1]["worker_peak_mb"] / found[min(1, len(found) - 1)]["worker_peak_mb"]
        goals.append(Goal("scale.worker_memory_last_to_second", grown, 1.1, "<="))
        if arguments.plot:
            arguments.plot.write_text(plot(found), encoding="utf-8")
        return goals

    def plans() -> Iterator[Goal]:
        yield from plan_published.goals()
        yield from plan_runs.goals(arguments.quick)
        yield from plan_runs.answer()
        if arguments.plot:
            arguments.plot.write_text(plan_published.plot(), encoding="utf-8")

    known = {
        "corpus": grow,
        "ranks": lambda: scale_ranks.goals(arguments.quick),
        "nodes": lambda: list(scale_nodes.goals(arguments.quick)),
        "shards": lambda: list(shard_counts.goals(arguments.quick)),
        "planning": plans,
        "verdict": verdicts,
        "scaling": lambda: list(scaling_coverage.scaling_laws(arguments.quick)),
        "mixture": lambda: list(mixture_planted.mixtures(arguments.quick)),
    }
    if unknown := sorted(set(arguments.groups) - set(known)):
        parser.error(f"no group {', '.join(unknown)}; there are {', '.join(known)}")
    groups = arguments.groups or list(known)
    if arguments.plot and len(groups) != 1:
        parser.error("--plot draws one group; name it: corpus or planning")
    return run([(name, measure) for name, measure in known.items() if name in groups])


if __name__ == "__main__":
    raise SystemExit(main())
