"""What is looked at on a node before training: each check finds the fault that is planted, and names whose it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from governance.errors import ClusterError
from governance.files import write_json
from pretrain import node_checks
from pretrain.config import EngineConfig, TrainConfig, TrainRecipe
from pretrain.distributed import Ranks
from pretrain.launch import _free_port
from pretrain.model_config import ModelConfig
from pretrain.node_checks import Asked, check_node, checkpoint_bytes, disk, ecc, gpus, shared_root
from pretrain.optim_config import OptimConfig

MODEL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def asked(gpus=0, optimizer="adamw", native=True, processes=1, **engine):
    recipe = TrainRecipe(
        model=ModelConfig(**MODEL),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=1, decay_steps=1, optimizer=optimizer),
        train=TrainConfig(sequence_length=32, global_batch_size=8, steps=4),
    )
    return Asked(gpus, recipe, EngineConfig(micro_batch_size=4, **engine), native, 200, processes)


def test_gpus_that_are_not_seen(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert not gpus(asked(), "n1").bad
    assert "2 of 2 given" in gpus(asked(2, device="cpu"), "n1").figures
    import torch

    monkeypatch.setattr(torch.version, "cuda", "12.8")
    for seen, bad in ((2, False), (1, True)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda seen=seen: seen)
        found = gpus(asked(2), "n1")
        assert (found.bad, found.nodes) == (bad, ("n1",) if bad else ())
        assert f"{seen} of 2 visible" in found.figures
    monkeypatch.setattr(torch.version, "cuda", None)
    assert gpus(asked(2), "n1").bad  # as it would be on every node: none is left out
    assert gpus(asked(2), "n1").nodes == ()


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
    found = ecc(asked(2), "n1", lambda: answer)
    assert found.bad == bool(fault)
    assert found.nodes == (("n1",) if fault else ())
    assert fault in found.figures


def test_without_a_tool_to_ask_nothing_is_claimed():
    assert "unknown" in ecc(asked(2), "n1", lambda: None).figures


def test_a_driver_that_hangs_names_its_node():
    def hangs():
        raise subprocess.TimeoutExpired("nvidia-smi", 60)

    assert ecc(asked(2), "n1", hangs).nodes == ("n1",)


@pytest.mark.parametrize(("theirs", "ours", "bad"), [(0, 0, False), (60, 0, False), (-4.5, 1, True), (60, 30, True)])
def test_a_first_node_whose_clock_is_off_is_not_held_against_the_others(tmp_path, monkeypatch, theirs, ours, bad):
    real = node_checks.time.time
    monkeypatch.setattr(node_checks.time, "time", lambda: real() + ours)
    write_json(tmp_path / "00000.json", {"node": "n0", "ahead": theirs})
    found, names = shared_root(tmp_path, Ranks(1, 2, 0, 1), "n1")
    assert names == ["n0", "n1"]
    assert [finding.bad for finding in found] == [False, bad]


def test_room_for_a_checkpoint(tmp_path, monkeypatch, finished):
    root, run = finished
    [folder] = [root / row["path"] for row in [run.stats["checkpoint"]]]
    files = sum(path.stat().st_size for path in folder.parent.rglob("*.safetensors"))
    one = checkpoint_bytes(asked(), 1)
    assert one == pytest.approx(files, rel=0.05)  # the formula against a checkpoint of the same model
    assert checkpoint_bytes(asked(), 2) == 2 * one
    assert checkpoint_bytes(asked(native=False), 2) == one
    assert checkpoint_bytes(asked(optimizer="lion"), 1) == one * 2 / 3
    assert not disk(asked(), 1, tmp_path / "not" / "made" / "yet").bad
    usage = type("Usage", (), {"free": one - 1})
    monkeypatch.setattr(node_checks.shutil, "disk_usage", lambda folder: usage)
    found = disk(asked(), 1, tmp_path)
    assert found.bad
    assert found.nodes == ()  # every node would find it so


def test_a_clock_that_is_off_names_its_node(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    told = []
    check_node(asked(), tmp_path, Ranks(), "12-0", told.append)
    assert "preflight n7: root: 1 of 1 nodes see" in told[0]
    assert "bad-node" not in told[0]
    real = node_checks.time.time
    monkeypatch.setattr(node_checks.time, "time", lambda: real() + 60)
    with pytest.raises(ClusterError, match=r"n7: clock: \+(60|59)\.\d+ s.*Leave out n7") as error:
        check_node(asked(), tmp_path, Ranks(), "12-1", told.append)
    assert error.value.exit_code == 69
    assert told[1].endswith("preflight bad-node=n7;")


NODE = """
import sys; from pathlib import Path
from governance.errors import PipelineError
from pretrain import node_checks
from pretrain.distributed import Ranks
node_checks._MEET_SECONDS, node_checks._CONNECT_SECONDS = 20.0, 12.0
root, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
sys.path.insert(0, {folder!r})
from test_node_checks import asked
{plant}
try:
    node_checks.check_node(asked(), root, Ranks(rank, world, 0, 1), "1-0", node_checks.say_at_once)
except PipelineError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def nodes(root: Path, world: int, plant: str = "") -> list[tuple[int, str]]:
    code = NODE.format(folder=str(Path(__file__).parent), plant=plant)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    environment = {**os.environ, **meeting, "PYTHONPATH": str(Path(__file__).parents[2])}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(root), str(rank), str(world)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**environment, "SLURMD_NODENAME": f"n{rank}"},
        )
        for rank in range(world)
    ]  # fmt: skip
    told = [process.communicate(timeout=120)[0] for process in started]
    return [(process.returncode, text) for process, text in zip(started, told, strict=True)]


def test_two_nodes_meet_and_add_up(tmp_path):
    for rank, (status, text) in enumerate(nodes(tmp_path, 2)):
        assert status == 0, text
        assert f"preflight n{rank}: root: 2 of 2 nodes see" in text
        assert "sums over 2 nodes are right" in text
    written = sorted((tmp_path / "slurm" / "preflight" / "1-0").iterdir())
    assert [json.loads(path.read_text())["node"] for path in written] == ["n0", "n1"]


@pytest.mark.slow
def test_a_node_that_does_not_come_is_named_by_the_first(tmp_path):
    plant = "if rank == 1: node_checks.network = lambda *_: []"
    found = nodes(tmp_path, 3, plant)
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
    plant = "node_checks._MEET_SECONDS = 8.0\nif rank == 2: root = root / 'local'"
    found = nodes(tmp_path, 3, plant)
    assert [status for status, _ in found] == [69, 69, 69]
    assert "1 of 3 nodes see" in found[2][1]
    assert "bad-node=n2;" in found[2][1]
    assert "bad-node" not in found[0][1] + found[1][1]
