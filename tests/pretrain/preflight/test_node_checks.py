"""Checks of a node before training: each finds its planted fault, and names the node at fault."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.errors import ClusterError
from governance.files import touch
from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig
from pretrain.config.training import EngineConfig, TrainConfig, TrainRecipe
from pretrain.distributed.process_group import Ranks, rendezvous_name
from pretrain.preflight import node_checks
from pretrain.preflight.hardware import Hardware
from pretrain.preflight.node_checks import check_node, clock, disk, ecc, exchange, gpus, save_bytes
from tests.pretrain.rank_runs import ends_of_ranks

MODEL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def requested(gpus=0):
    return Hardware(Ranks(), gpus=gpus)


def engine(**settings):
    return EngineConfig(micro_batch_size=4, **settings)


def needed_bytes(world_size=1, optimizer="adamw", **model):
    recipe = TrainRecipe(
        model=ModelConfig(**MODEL, **model),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=1, decay_steps=1, optimizer=optimizer),
        train=TrainConfig(sequence_length=32, global_batch_size=8, steps=4),
    )
    return save_bytes(recipe, 200, world_size)


def test_gpus_that_are_not_seen(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert not gpus(requested(), engine(), "n1").bad
    assert "2 of 2 given" in gpus(requested(2), engine(device="cpu"), "n1").figures
    import torch

    monkeypatch.setattr(torch.version, "cuda", "12.8")
    for seen, bad in ((2, False), (1, True)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda seen=seen: seen)
        found = gpus(requested(2), engine(), "n1")
        assert (found.bad, found.nodes) == (bad, ("n1",) if bad else ())
        assert f"{seen} of 2 visible" in found.figures
    monkeypatch.setattr(torch.version, "cuda", None)
    assert gpus(requested(2), engine(), "n1").bad  # as on every node: none is left out
    assert gpus(requested(2), engine(), "n1").nodes == ()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "0,1")
    found = gpus(requested(2), engine(), "n1")
    assert (found.bad, found.figures) == (False, "2 of 2 visible to torch, 2 given by Slurm")


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("0, 0, No, No\n1, 0, No, No\n", ""),
        ("0, [N/A], [N/A], [N/A]\n", ""),
        ("0, 0, No, No\n1, 2, No, No\n", "GPU 1: 2 uncorrected errors"),
        ("0, 0, Yes, No\n", "GPU 0: 1 retired pages pending"),
        ("0, 0, No, Yes\n", "GPU 0: 1 rows to remap pending"),
    ],
)
def test_memory_errors(answer, fault):
    found = ecc(requested(2), "n1", lambda: answer)
    assert found.bad == bool(fault)
    assert found.nodes == (("n1",) if fault else ())
    assert fault in found.figures


def test_a_driver_that_hangs_does_not_hang_the_check(monkeypatch):
    """A process within a driver cannot be killed, so nothing may wait for its end."""

    class Hung:
        def __init__(self, *words, **options):
            self.killed = False

        def communicate(self, timeout):
            raise subprocess.TimeoutExpired("nvidia-smi", timeout)

        def kill(self):
            self.killed = True

    monkeypatch.setattr(subprocess, "Popen", Hung)
    found = ecc(requested(2), "n1", node_checks._nvidia_smi)
    assert (found.nodes, found.figures) == (("n1",), "nvidia-smi did not answer for 60 s")


def test_without_a_tool_to_query_nothing_is_claimed():
    assert "unknown" in ecc(requested(2), "n1", lambda: None).figures


def test_a_driver_that_hangs_names_its_node():
    def hangs():
        raise subprocess.TimeoutExpired("nvidia-smi", 60)

    assert ecc(requested(2), "n1", hangs).nodes == ("n1",)


@pytest.mark.parametrize(
    ("ahead", "off"),
    [
        ([0, 0.2, -0.1], set()),
        ([0, 60, 0.1], {1}),
        ([0, 60, 60.1], {0}),  # the first node's clock is at fault
        ([0, 60], {0, 1}),  # it is not known which
        ([0, 60, -60, 0.1, 0], {1, 2}),
        ([0, -4.5, 4.5], set()),
    ],
)
def test_a_clock_that_most_nodes_do_not_share_names_its_node(ahead, off):
    names = [f"n{rank}" for rank in range(len(ahead))]
    offsets = [(float(seconds), 0.01) for seconds in ahead]
    found = [clock(offsets, Ranks(rank, len(ahead), 0, 1), names) for rank in range(len(ahead))]
    assert {rank for rank, finding in enumerate(found) if finding.bad} == off
    assert [finding.nodes for finding in found] == [(names[rank],) if rank in off else () for rank in range(len(ahead))]


def test_a_slow_network_is_no_wrong_clock():
    found = clock([(0.0, 0.0), (8.0, 4.0)], Ranks(1, 2, 0, 1), ["n0", "n1"])
    assert not found.bad
    assert "+8.000 s (within 4.000 s) from n0's, 2 of 2" in found.figures


@given(ahead=st.floats(-1e3, 1e3), trips=st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), min_size=5, max_size=5))
def test_the_error_of_an_exchange_is_within_its_bound(ahead, trips):
    """A clock that is `ahead`, with questions and answers of any duration: the law of the method."""
    moment = [1e6]  # of true time
    after = iter(trips)

    class Store:
        def __init__(self):
            self.values = {}

        def set(self, key, value):
            self.values[key] = value

        def get(self, key):
            if key.startswith("time-"):
                there, back = next(after)
                moment[0] += there
                answer = repr(moment[0])  # the first node's clock is right
                moment[0] += back
                return answer
            return json.dumps([[0.0, 0.0], json.loads(self.values["ahead-1"])])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node_checks.time, "time", lambda: moment[0] + ahead)
        patch.setattr(node_checks.time, "monotonic", lambda: moment[0])
        _, (found, bound) = exchange(Store(), Ranks(1, 2, 0, 1))
    assert bound == pytest.approx(min(sum(trip) for trip in trips) / 2, abs=1e-6)
    assert abs(found - ahead) <= bound + 1e-6


def test_room_for_a_checkpoint(tmp_path, monkeypatch, finished):
    root, run = finished
    one = needed_bytes()
    assert one == written(root, run)  # the formula against a checkpoint of the same model
    assert needed_bytes(2) == 2 * one
    assert needed_bytes(optimizer="lion") == one * 2 / 3
    assert not disk(one, tmp_path / "not" / "made" / "yet").bad
    usage = type("Usage", (), {"free": one - 1})
    monkeypatch.setattr(node_checks.shutil, "disk_usage", lambda folder: usage)
    found = disk(one, tmp_path)
    assert found.bad
    assert found.nodes == ()  # every node would have this fault


def written(root, run):
    """Bytes of the tensors of a run's last checkpoint, without the headers of their files."""
    files = [path.read_bytes() for path in (root / run.stats["checkpoint"]["path"]).parent.rglob("*.safetensors")]
    return sum(len(file) - 8 - int.from_bytes(file[:8], "little") for file in files)


def test_room_for_experts_and_for_what_muon_leaves_to_adamw(tmp_path, run_training):
    moe = {"num_local_experts": 4, "num_experts_per_tok": 2}
    run = run_training(tmp_path, steps=4, validate_every_steps=0, decay_steps=1, optimizer="muon", moe=moe)
    assert needed_bytes(optimizer="muon", moe=moe) == pytest.approx(written(tmp_path, run), rel=0.002)


def test_a_node_alone_is_checked_without_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    output = []

    def keep(text, findings):
        assert [finding.line("n7") in text for finding in findings] == [True] * len(findings) != []
        output.append(text)

    check_node(engine(), requested(), needed_bytes(), tmp_path, Ranks(), "12-0", keep)
    assert "preflight n7: root: 1 of 1 nodes see" in output[0]
    assert "bad-node" not in output[0]
    monkeypatch.setattr(node_checks.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1}))
    with pytest.raises(ClusterError, match=r"n7: disk: .*Another node would have the same fault") as error:
        check_node(engine(), requested(), needed_bytes(), tmp_path, Ranks(), "12-1", keep)
    assert error.value.exit_code == 69


def test_no_two_starts_meet_in_one_folder():
    one = {"SLURM_JOB_ID": "12", "SLURM_CLUSTER_NAME": "big", "SLURM_STEP_ID": "0"}
    others = [
        {**one, "SLURM_RESTART_COUNT": "1"}, {**one, "SLURM_STEP_ID": "1"}, {**one, "SLURM_JOB_ID": "13"},
        {**one, "SLURM_CLUSTER_NAME": "small"}, {}, {"WORLD_SIZE": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "7"},
        {"WORLD_SIZE": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "8"},
    ]  # fmt: skip
    assert len({rendezvous_name(values) for values in [one, *others]}) == 1 + len(others)
    assert all("/" not in rendezvous_name(values) for values in [one, *others])
    assert rendezvous_name({**one, "SLURM_PROCID": "3", "SLURMD_NODENAME": "n3"}) == rendezvous_name(one)


NODE = """
import os, sys; from pathlib import Path
from governance.errors import PipelineError
from pretrain.preflight import node_checks
from pretrain.distributed.process_group import Ranks
import time; from torch import distributed
node_checks._MEET_SECONDS, node_checks._CONNECT_SECONDS, node_checks._ARRIVE_SECONDS = {seconds}
root, rank, world = Path({root!r}), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
sys.path.insert(0, {folder!r})
from test_node_checks import engine, needed_bytes, requested
{plant}
up = [Path({root!r}) / ("up-%d" % other) for other in range(world)]
up[rank].touch()
while not all(path.exists() for path in up):  # how long the imports take is the machine's
    time.sleep(0.02)
try:
    run = (engine(), requested(), needed_bytes(), root)
    node_checks.check_node(*run, Ranks(rank, world, 0, 1), "1-0", lambda text, _: node_checks.say_at_once(text))
except PipelineError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def nodes(root: Path, world: int, plant: str = "", seconds=(120.0, 60.0, 60.0)) -> list[tuple[int, str]]:
    code = NODE.format(folder=str(Path(__file__).parent), plant=plant, seconds=seconds, root=str(root))
    own = [{"RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo", "SLURMD_NODENAME": f"n{rank}"} for rank in range(world)]
    return ends_of_ranks(root / "logs", ["-c", code], own)


def test_two_nodes_meet_and_add_up(tmp_path):
    for rank, (status, text) in enumerate(nodes(tmp_path, 2)):
        assert status == 0, text
        assert f"preflight n{rank}: root: 2 of 2 nodes see" in text
        assert "sums over 2 nodes are right" in text
        assert re.search(rf"n{rank}: clock: [+-]\d\.\d\d\d s \(within \d\.\d\d\d s\) from n0's, 2 of 2", text), text
    made = sorted(path.name for path in (tmp_path / "slurm" / "preflight" / "1-0").iterdir())
    assert made == ["00000.n0", "00001.n1", "nodes.json"]


@pytest.mark.parametrize("arrives", [30.0, 1000.0])
def test_the_first_node_lists_the_others_once_a_second_and_opens_none_of_their_files(arrives, tmp_path, monkeypatch):
    """512 nodes, of which the last arrives later, or too late: a metadata server serves all of them."""
    folder, now, listed, opened, written = tmp_path / "slurm" / "preflight" / "1-0", [0.0], [], [], []
    for rank in range(1, 511):
        touch(folder / f"{rank:05d}.n{rank}.site")

    def listdir(path, plain=os.listdir):
        listed.append(now[0])
        return plain(path) + ["00511.n511.site"] * (now[0] >= arrives)

    def wait(seconds):
        now[0] += seconds

    monkeypatch.setattr(node_checks, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=wait))
    monkeypatch.setattr(os, "listdir", listdir)
    monkeypatch.setattr(node_checks, "write_text", lambda path, text: written.append((path, json.loads(text))))

    def opening(path, *given, plain=open, **named):
        if str(path).startswith(str(tmp_path)):  # other threads of the process read files of theirs
            opened.append(path)
        return plain(path, *given, **named)

    for name in ("builtins.open", "io.open"):  # the second is pathlib's
        monkeypatch.setattr(name, opening)
    [found], names = node_checks.shared_root(folder, Ranks(0, 512, 0, 1), "n0.site")
    monkeypatch.undo()
    assert (found.bad, found.nodes) == (arrives > 120, ())
    assert names == (None if found.bad else [f"n{rank}.site" for rank in range(512)])
    assert min(late - early for early, late in itertools.pairwise(listed)) >= 1.0
    assert len(listed) <= 122
    assert not opened
    assert written == ([] if found.bad else [(folder / "nodes.json", names)])


@pytest.mark.parametrize("text", ["", "{", "[]", '["n0"]', '["n0", "n1", "n2"]', '["n0", 1]', '{"0": "n0", "1": "n1"}'])
def test_a_file_of_names_that_is_not_the_first_nodes_is_waited_over(text, tmp_path):
    path = tmp_path / "nodes.json"
    path.write_text(text)
    assert node_checks._nodes_written(path, 2) == {}
    path.write_text('["n0", "n1"]')
    assert node_checks._nodes_written(path, 2) == {0: "n0", 1: "n1"}


@pytest.mark.parametrize("arrives", [30.0, 1000.0])
def test_another_node_waits_for_the_first_ones_file_without_listing(arrives, tmp_path, monkeypatch):
    folder, now, listed = tmp_path / "slurm" / "preflight" / "1-0", [0.0], []
    names = [f"n{rank}.site" for rank in range(512)]

    def wait(seconds):
        now[0] += seconds
        if now[0] >= arrives:
            (folder / "nodes.json").write_text(json.dumps(names))

    monkeypatch.setattr(node_checks, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=wait))
    monkeypatch.setattr(os, "listdir", lambda path, plain=os.listdir: listed.append(now[0]) or plain(path))
    [found], seen = node_checks.shared_root(folder, Ranks(7, 512, 0, 1), "n7.site")
    assert (found.bad, found.nodes) == ((True, ("n7.site",)) if arrives > 120 else (False, ()))  # it sees itself alone
    assert (seen, len(listed)) == ((None, 1) if found.bad else (names, 0))


@pytest.mark.slow
def test_a_node_that_does_not_come_is_named_by_the_first(tmp_path):
    plant = "if rank == 1: node_checks.network = lambda *_: []"
    found = nodes(tmp_path, 3, plant, (120.0, 15.0, 10.0))
    assert [status for status, _ in found] == [69, 0, 69]
    assert "bad-node=n1;" in found[0][1]
    assert "no connection from n1" in found[0][1]
    assert all("bad-node=n0" not in text and "bad-node=n2" not in text for _, text in found)


@pytest.mark.slow
def test_a_wrong_sum_names_its_node(tmp_path):
    plant = """
from torch import distributed
plain = distributed.all_reduce
def wrong(values):
    plain(values)
    if values.ndim:
        values[5] += rank == 1
distributed.all_reduce = wrong
"""
    found = nodes(tmp_path, 2, plant)
    assert [status for status, _ in found] == [0, 69]
    assert "wrong in 4 elements" in found[1][1]
    assert "bad-node=n1;" in found[1][1]


@pytest.mark.slow
def test_a_root_of_its_own_names_the_node_that_has_it(tmp_path):
    found = nodes(tmp_path, 3, "if rank == 2: root = root / 'local'", (8.0, 60.0, 60.0))
    assert [status for status, _ in found] == [69, 69, 69]
    assert "1 of 3 nodes see" in found[2][1]
    assert "bad-node=n2;" in found[2][1]
    assert "bad-node" not in found[0][1] + found[1][1]


@pytest.mark.slow
def test_a_clock_that_is_off_is_found_by_the_exchange(tmp_path):
    plant = """
real = node_checks.time.time
node_checks.time.time = lambda: real() + 60 * (rank == 0)
"""
    found = nodes(tmp_path, 3, plant)
    assert [status for status, _ in found] == [69, 0, 0]
    assert "bad-node=n0;" in found[0][1]
    assert "clock: BAD: +0.000 s" in found[0][1]
    assert "clock: -60.0" in found[1][1]
    assert "2 of 3 nodes agree" in found[1][1]
