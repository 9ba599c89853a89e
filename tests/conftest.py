"""Fixtures of several test files: a small corpus, and a run file for it."""

import contextlib
import gc
import json
import os
import pickle
import random
import subprocess
import unittest.mock
from pathlib import Path

import hypothesis
import pytest

from assay.cli.surface import parser
from benchmarks.measures.small_run import SMALL_RUN as CONFIG  # noqa: F401
from benchmarks.measures.small_run import tale, write_run, write_tales  # noqa: F401
from governance.parallel import close_pool
from pretrain.metrics import peak_flops
from tests.governance.upload_server import TOKEN, running_hub
from tests.hub_server import HubRepository, HubServer

hypothesis.settings.register_profile("assay", deadline=None)  # tests check truth, not speed
hypothesis.settings.load_profile("assay")

# torch.compile else builds and loads four programs with each empty cache, half a CPU-minute, to learn that this
# processor can run what its compiler writes. Ranks and commands inherit it.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
# Its programs are of this checkout and shared by the tests' processes; other programs of this machine add none.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "inductor"))

# Files that take a minute or more, most first: started first, no process ends long after the others. On a new machine
# `test_every_stage.py` compiles the kernels (75 CPU-seconds). No file before it needs any, so that a cluster which is
# tested at the same time has compiled them, and none between it and the whole way, so that none is compiled twice.
LONGEST = (
    "test_compiled.py", "test_layouts.py", "test_random_runs.py", "test_resuming.py", "test_faults.py",
    "test_engine_state.py", "test_expert_parallel.py", "test_offload_files.py", "test_wandb_server.py", "test_hangs.py",
    "test_every_stage.py", "test_docs.py", "test_train.py", "test_own_training_code.py", "test_whole_way.py",
    "test_quickstart.py", "test_no_network.py", "test_pages.py", "test_soak.py", "test_ray_cluster.py",
    "test_release.py", "test_gathering.py", "test_training_memory.py", "test_bias_coverage.py", "test_trajectories.py",
    "test_width_transfer.py", "test_compile_signal.py", "test_prepare_shares.py", "test_bias_stage.py",
    "test_impact.py", "test_checks_shards.py",
    "test_whole_run.py", "test_limits.py", "test_arrays.py",
)  # fmt: skip


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Import without collecting garbage, and keep what was imported out of later collections.

    Test modules and their libraries are millions of objects: each full collection would walk them, for half a second.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, the cluster's last; `-n` hands them out in this order (`--no-loadscope-reorder`)."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (item.path.parent.name == "cluster", place.get(item.path.name, len(LONGEST))))


@pytest.fixture
def small_disk(request, tmp_path: Path):
    """A real file system of the size that the test gives, such as "96k"."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(autouse=True, scope="session")
def own_keys(tmp_path_factory: pytest.TempPathFactory):
    """Keys that a command makes on first use, and the lock of the node's meter, are in folders of this process.

    A training begins without its second of matrix products, which tests of processes and of the meter measure.
    Nothing that a test writes must outlast a power cut, so this process does not wait for the disk either: 7 ms a file.
    Commands that name no number of workers start none: a worker costs as much as a command in a process of its own. A
    training has one thread: models are small, and a second thread, where other tests use its core, spins and waits.
    Tests with two workers leave theirs to the next ones, since a start costs four CPU-seconds.
    A preflight asks torch and DeepSpeed in this process, and not in one that imports them for each question.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(os, "cpu_count", lambda: 1)
        patch.setattr(os, "sched_getaffinity", lambda process: {0})
        parser.cache_clear()  # test files that were collected have built it with the number of cores
        patch.setitem(peak_flops._SIZES, "cpu", (64,))
        patch.setattr(peak_flops, "_SECONDS_PER_SIZE", 0.0)
        patch.setattr(peak_flops, "_SAMPLED", (64,))
        patch.setattr(peak_flops, "_SECONDS_PER_SAMPLE", 0.0)
        patch.setattr("assay.start_preflight._apart", as_if_apart)
        patch.setattr(gc, "unfreeze", lambda: None)  # a command's end would undo what `pytest_collection` does
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        patch.delenv("ASSAY_SITE_POLICY", raising=False)
        yield
        close_pool()


def as_if_apart(function, *arguments):
    """Call a function on what a separate process would receive and return, in an environment of its own."""
    function, arguments = pickle.loads(pickle.dumps((function, arguments)))
    with unittest.mock.patch.dict(os.environ):
        try:
            return pickle.loads(pickle.dumps(function(*arguments)))
        except Exception as error:
            raise pickle.loads(pickle.dumps(error)) from error


def write_project(folder: Path) -> Path:
    """A folder with a run's file, a policy and two files of documents."""
    folder.mkdir()
    write_run(folder)
    (folder / "policy.toml").write_bytes((Path(__file__).parents[1] / "configs" / "policy.toml").read_bytes())
    write_tales(folder / "a.jsonl", range(60))
    write_tales(folder / "b.jsonl", range(60, 120))
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The small project in a folder of the test."""
    return write_project(tmp_path / "project")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    """A hub to upload to."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the fake stores large files by Git LFS
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


@pytest.fixture
def serve_hub(monkeypatch: pytest.MonkeyPatch):
    """`serve_hub(name, files)`: a hub that has one repository, to fetch from."""
    monkeypatch.setattr("governance.hub_client._WAITS", (0.01, 0.01))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with contextlib.ExitStack() as stack:

        def serve(name: str, files: dict[str, bytes]) -> HubServer:
            running = stack.enter_context(HubServer({name: HubRepository(dict(files))}))
            monkeypatch.setenv("HF_ENDPOINT", running.url)
            return running

        yield serve


@pytest.fixture
def tales():
    """`write(path, seeds)`: one JSONL file of tales."""
    return write_tales


SECTIONS = """
[data.lists]
domains = ["blocked.txt"]
words = { en = ["words.txt"] }

[data.clean]
presets = ["gopher", "fineweb_paper"]
min_stop_words = 1
max_listed_words = 0

[[data.classifiers]]
name = "quality"
paths = ["more/labelled.jsonl"]
positive = ["good"]
held_out_share = 0.4
min_score = 0.01

[data.paragraphs]

[data.substrings]
min_bytes = 90

[data.decontaminate]
[[data.decontaminate.sets]]
name = "quiz"
paths = ["more/quiz.jsonl"]
fields = ["question"]
answer_fields = ["answer"]

[data.mix]
weights = { tales = 1.0 }

[data.pack]
sequence_length = 64
"""


def with_every_stage(project: Path) -> Path:
    """The small project with every stage, and a document for each to remove."""
    text = (project / "run.toml").read_text()
    text = text.replace("[data.tokenizer]", SECTIONS + "\n[data.tokenizer]").replace(
        'licence = "CC0-1.0"', 'licence = "CC0-1.0"\nurl_field = "url"'
    )
    (project / "run.toml").write_text(text)
    rows = [json.loads(line) for line in (project / "a.jsonl").read_text().splitlines()]
    question = "Which of the four gentle soldiers carried the broken mirror across the frozen harbour that morning?"
    rows[0]["text"] += f"\n\n{question}\n\n" + rows[0]["text"][:60]
    rows[1]["url"] = "https://www.blocked.example/page"
    rows[2]["text"] += " Frobnicate."
    shared = "The council of the harbour met in the evening and read the letter that the captain had written in winter."
    for row in rows[3:5]:
        row["text"] += "\n\n" + shared
    for number, row in enumerate(rows[5:7]):
        row["text"] += f" On the evening of the day number {number + 1} {shared}"
    (project / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (project / "more").mkdir()
    (project / "blocked.txt").write_text("0.0.0.0 blocked.example\n")
    (project / "words.txt").write_text("frobnicate\n")
    (project / "more" / "quiz.jsonl").write_text(json.dumps({"question": question, "answer": "the second"}) + "\n")
    chance = random.Random(2)
    good = [(" ".join(chance.choice(("river", "garden", "music")) for _ in range(20)), "good") for _ in range(40)]
    bad = [(" ".join(chance.choice(("spam", "viagra", "casino")) for _ in range(20)), "bad") for _ in range(40)]
    lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in good + bad)
    (project / "more" / "labelled.jsonl").write_text("".join(lines))
    return project


@pytest.fixture
def everything(project: Path) -> Path:
    """The project of `with_every_stage` in a folder of the test."""
    return with_every_stage(project)
