"""The same bytes, however it is run; and memory, whatever the corpus."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

from benchmarks.measures.corpora import mixed, write_jsonl
from benchmarks.measures.data import join
from benchmarks.measures.goals import Goal, figure

CONFIG = """
[[data.sources]]
type = "jsonl"
name = "mixed"
paths = ["raw/*.jsonl"]
licence = "CC0-1.0"
id_field = "id"
[data.ingest]
shard_bytes = 1000000
[data.paragraphs]
[data.tokenizer]
vocabulary_size = 4096
[data.mix]
[data.pack]
sequence_length = 512
[model]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
max_position_embeddings = 512
[optim]
learning_rate = 1e-3
warmup_steps = 1
decay_steps = 1
[train]
sequence_length = 512
global_batch_size = 1
steps = 2
[governance]
policy = "policy.toml"
[engine]
micro_batch_size = 1
"""

MORE_SOURCES = """
[[data.sources]]
type = "code"
name = "code"
paths = ["code/**/*"]
licence = "BSD-3-Clause"
[[data.sources]]
type = "synthetic"
name = "retold"
licence = "Apache-2.0"
terms = "https://example.org/terms"
endpoint = "ENDPOINT"
model = "teacher"
prompts = ["prompts.jsonl"]
template = "template.txt"
budget_requests = 10000
budget_tokens = 100_000_000
[[data.classifiers]]
name = "quality"
paths = ["labelled.jsonl"]
positive = ["speeches"]
[data.substrings]
[data.code]
"""
QUALITY = """[data.mix]
max_epochs = 3
[data.mix.quality]
score = "quality"
"""


def _add_sources(folder: Path, size_bytes: int, endpoint: str) -> None:
    """Code, prompts for a teacher, labelled texts, and repeats, next to the mixed documents."""
    documents = mixed(1 << 40)
    for row in [row for row in documents if row["id"].endswith(".py")][: size_bytes // 50_000]:
        path = folder / "code" / row["id"].partition("/")[2].replace(":", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(row["text"], encoding="utf-8")
    write_jsonl(folder / "prompts.jsonl", [{"text": row["text"][:600]} for row in documents[:60]])
    (folder / "template.txt").write_text("Retell:\n{{text}}", encoding="utf-8")
    labelled = [{"text": row["text"][:2000], "label": row["id"].partition(".")[0]} for row in documents]
    kinds = [[row for row in labelled if row["label"] == kind][:200] for kind in ("speeches", "news")]
    write_jsonl(folder / "labelled.jsonl", [row for rows in kinds for row in rows])
    passage = next(row["text"] for row in documents if len(row["text"]) > 20_000)[:1000]
    repeats = [{"id": f"r{i}", "text": f"{row['text']}\n{passage}"} for i, row in enumerate(documents[:20])]
    write_jsonl(folder / "raw" / "repeats.jsonl", repeats)
    text = (folder / "run.toml").read_text(encoding="utf-8").replace("[data.mix]\n", QUALITY)
    text = text.replace("[data.tokenizer]", MORE_SOURCES.replace("ENDPOINT", endpoint) + "[data.tokenizer]")
    (folder / "run.toml").write_text(text, encoding="utf-8")


def _folder(scratch: str, size_bytes: int) -> Path:
    folder = Path(scratch)
    documents = mixed(size_bytes)
    for part in range(4):
        write_jsonl(folder / "raw" / f"{part}.jsonl", documents[part::4])
    (folder / "run.toml").write_text(CONFIG, encoding="utf-8")
    here = Path(__file__).resolve().parents[3]
    shutil.copy(here / "configs" / "policy.toml", folder / "policy.toml")
    return folder


def prepare_words(folder: Path, root: str, *more: str) -> list[str]:
    """The command that makes the corpus of the folder's run.toml below a root in it."""
    assay = [
        sys.executable,
        "-m",
        "pretrain",
        "data",
        "prepare",
        str(folder / "run.toml"),
        "--root",
        str(folder / root),
    ]
    return [*assay, *more]


def _digest(folder: Path, root: str) -> str:
    words = prepare_words(folder, root, "--data-workers", "1")
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    stages = itertools.takewhile(str.strip, done.stdout.splitlines())  # a blank line parts them from the table
    return " ".join(line.split()[1] for line in stages)


def same_digest(quick: bool) -> list[Goal]:
    """1, 2 and 3 processes; an array of 3; Ray for the joins, and for all; killed at random points; a moved root.

    Sources are documents, code, and answers of a teacher on this machine; copies follow quality.
    """
    from tests.data_pipeline.teacher_server import teacher

    size = 3_000_000 if quick else 12_000_000
    with tempfile.TemporaryDirectory() as scratch, teacher() as server:
        folder = _folder(scratch, size)
        _add_sources(folder, size, server.url)
        expected = _digest(folder, "one")
        ways: dict[str, str] = {}
        for workers in (2, 3):
            subprocess.run(prepare_words(folder, f"w{workers}", "--data-workers", str(workers)), check=True, **_QUIET)
            ways[f"{workers}_processes"] = _digest(folder, f"w{workers}")
        words = [prepare_words(folder, "array", "--data-workers", "1", "--wait", "--task", f"{i}/3") for i in range(3)]
        array = [subprocess.Popen(task, **_QUIET) for task in words]
        if any(process.wait() for process in array):
            raise RuntimeError("a worker of the array failed")
        ways["array_of_3"] = _digest(folder, "array")
        subprocess.run(prepare_words(folder, "daft", "--data-workers", "1", "--engine", "daft"), check=True, **_QUIET)
        ways["daft"] = _digest(folder, "daft")
        if not quick:
            ways |= _on_ray(folder)
        if shutil.which("sbatch") and "SLURM_CONF" in os.environ:
            ways["slurm_array_of_3"] = _on_slurm(folder)
        shutil.move(folder / "one", folder / "moved")
        ways["moved_root"] = _digest(folder, "moved")
        goals = [Goal(f"same_digest.{name}", float(found == expected), 1) for name, found in ways.items()]
        goals.append(_killed(folder, expected, 5 if quick else 20))
    return goals


_QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def _on_slurm(folder: Path) -> str:
    """A job array on the Slurm cluster that SLURM_CONF names; its nodes must see the folder."""
    words = " ".join(prepare_words(folder, "slurm", "--data-workers", "1"))
    here = Path(__file__).resolve().parents[3]
    command = f"cd {here} && {words} --wait --task $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
    wanted = ["sbatch", "--wait", "--array=0-2", f"--output={folder}/slurm-%a.log", f"--wrap={command}"]
    subprocess.run(wanted, check=True, **_QUIET)
    return _digest(folder, "slurm")


def _on_ray(folder: Path) -> dict[str, str]:
    """Digests with the joins on a Ray cluster of this machine, and with all shards there."""
    ray = Path(sys.executable).with_name("ray")
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    environment = {**os.environ, **access, "RAY_ADDRESS": "127.0.0.1:6399"}
    start = [str(ray), "start", "--head", "--num-cpus", "2", "--port", "6399", "--disable-usage-stats"]
    subprocess.run(start, check=True, env={**os.environ, **access}, **_QUIET)
    try:
        ways = {}
        for name, engine in (("ray", "daft"), ("shards_on_ray", "ray")):
            words = prepare_words(folder, name, "--data-workers", "1", "--engine", engine)
            subprocess.run(words, check=True, env=environment, **_QUIET)
            ways[name] = _digest(folder, name)
        return ways
    finally:
        subprocess.run([str(ray), "stop"], check=False, **_QUIET)


def _killed(folder: Path, expected: str, times: int) -> Goal:
    """SIGKILL after a random while, again and again, then the same command once more."""
    chance = random.Random(11)
    kills = 0
    while kills < times:
        words = prepare_words(folder, "killed", "--data-workers", "2")
        process = subprocess.Popen(words, start_new_session=True, **_QUIET)
        try:
            process.wait(timeout=chance.uniform(0.5, 14))
            shutil.rmtree(folder / "killed")  # it finished first: begin anew, and kill sooner
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    return Goal("same_digest.after_kills", float(_digest(folder, "killed") == expected), 1, note=f"{kills} kills")


def _write_long_lines(path: Path) -> None:
    """A line of 200 MB, which is refused, one of 60 MB, and a short one."""
    with path.open("wb") as file:
        for name, size in (("huge", 200_000_000), ("long", 60_000_000), ("short", 100)):
            file.write(b'{"id": "%s", "text": "' % name.encode())
            for _ in range(size // 100):
                file.write(b"All of it is one line, however long. " * 2 + b"It goes on and on and on. ")
            file.write(b'"}\n')


def memory(quick: bool) -> list[Goal]:
    """The most that a process holds in each stage on shards of 64 MiB, and in the global join of many keys."""
    probe = [sys.executable, str(Path(__file__).with_name("memory_probe.py"))]
    here = Path(__file__).resolve().parents[3]
    environment = {**os.environ, "PYTHONPATH": str(here)}
    goals = []

    def lines(*words: str) -> list[list[str]]:
        done = subprocess.run(
            [*probe, *words], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        return [line.split() for line in done.stdout.splitlines()]

    with tempfile.TemporaryDirectory() as scratch:
        folder = _folder(scratch, 80_000_000)
        one_file = b"".join(path.read_bytes() for path in sorted((folder / "raw").iterdir()))
        shutil.rmtree(folder / "raw")
        (folder / "raw").mkdir()
        (folder / "raw" / "all.jsonl").write_bytes(one_file)
        config = CONFIG.replace("shard_bytes = 1000000", "shard_bytes = 67108864")
        (folder / "run.toml").write_text(config, encoding="utf-8")
        for stage, peak in lines("stages", str(folder / "run.toml"), str(folder / "root")):
            if stage == "tokenizer":  # no map worker: one process trains, whatever the corpus
                goals.append(figure("memory.tokenizer_mb", float(peak), "training, in one process"))
            else:
                goals.append(Goal(f"memory.{stage}_mb", float(peak), 600, "<=", "shards of 64 MiB"))
        _write_long_lines(folder / "raw" / "all.jsonl")
        [[_, peak]] = lines("stage", str(folder / "run.toml"), str(folder / "long"), "0")
        goals.append(Goal("memory.line_of_200_mb_mb", float(peak), 600, "<=", "ingest; lines of 200 and 60 MB"))
    rows, limit = (10_000_000, 256) if quick else (168_000_000, 1024)
    joined = join.measure(rows, limit)
    share = joined["peak_mib"] / limit
    goals.append(Goal("memory.join_share_of_limit", share, 1.2, "<=", f"{rows:,} keys within {limit} MiB"))
    goals.append(figure("memory.join_cpu_seconds", joined["cpu_seconds"]))
    return goals
