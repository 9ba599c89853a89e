from __future__ import annotations

import ast
import re

import pytest
import torch

from governance.errors import PipelineError
from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig
from pretrain.config.training import EngineConfig, TrainConfig, TrainRecipe
from pretrain.distributed.process_group import Ranks
from pretrain.engine.deepspeed_config import BUCKET, SWAPPED_GROUP
from pretrain.preflight import hardware, memory
from pretrain.preflight.hardware import Hardware, free_host_bytes, hardware_of
from pretrain.preflight.memory import estimate
from pretrain.preflight.memory_room import fits, refuse_what_cannot_fit, suggestion

SEVENTY_BILLION = ModelConfig(
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    max_position_embeddings=8192,
)
VOCABULARY, PARAMETERS = 128_256, 70.55e9
GIB = 1 << 30


def recipe(model: ModelConfig = SEVENTY_BILLION, precision: str = "bf16", optimizer: str = "adamw") -> TrainRecipe:
    train = TrainConfig(sequence_length=4096, global_batch_size=1024, steps=10, precision=precision)
    return TrainRecipe(model=model, optim=OptimConfig(optimizer=optimizer, learning_rate=1e-4), train=train)


def needed(ranks: int = 1, device: str = "cuda", precision: str = "bf16", optimizer: str = "adamw", **engine):
    made = EngineConfig(micro_batch_size=1, **engine)
    return estimate(recipe(precision=precision, optimizer=optimizer), made, VOCABULARY, ranks, device)


def test_seventy_billion_parameters_do_not_fit_here_and_are_never_built(monkeypatch):
    monkeypatch.setattr("pretrain.model.decoder.Decoder.__init__", lambda *_: pytest.fail("it was built"))
    with pytest.raises(
        PipelineError, match=r"does not fit.*moments [\d,.]+ GiB.*ranks? would do|does not fit.*No setting"
    ):
        refuse_what_cannot_fit(recipe(), EngineConfig(), VOCABULARY, hardware_of(Ranks(), torch.device("cpu")))


def test_state_is_what_the_stage_leaves_on_a_rank():
    whole, first, third = (needed(64, zero_stage=stage).device for stage in (1, 2, 3))
    assert whole["parameters"] == pytest.approx(2 * PARAMETERS, rel=0.01)
    assert whole["moments"] == pytest.approx(8 * PARAMETERS / 64, rel=0.01)
    assert whole["gradients"] == pytest.approx(2 * PARAMETERS, rel=0.01)
    assert (first["gradients"], third["gradients"]) == (0, 0)
    assert first["buffers of communication"] - whole["buffers of communication"] < whole["gradients"] / 100
    assert third["parameters"] == pytest.approx(2 * PARAMETERS / 64, rel=0.01)


@pytest.mark.parametrize(("device", "precision", "size"), [("cuda", "bf16", 2), ("cpu", "fp32", 4)])
def test_a_teacher_beside_the_student_is_held_whole_by_every_rank(device, precision, size):
    of, engine = recipe(precision=precision), EngineConfig(micro_batch_size=1, zero_stage=3)
    alone, beside = (estimate(of, engine, VOCABULARY, 64, device, teacher) for teacher in (None, SEVENTY_BILLION))
    assert "teacher" not in alone.device
    assert 1 < beside.device["teacher"] / (size * PARAMETERS) < 1.05
    assert {name: count for name, count in beside.device.items() if name not in ("teacher", "fragmentation")} == {
        name: count for name, count in alone.device.items() if name != "fragmentation"
    }
    with pytest.raises(PipelineError, match=r"teacher [\d.,]+ GiB.*logits = 'sampled'"):
        refuse_what_cannot_fit(of, engine, VOCABULARY, Hardware(Ranks(0, 64), device, device_bytes=80 * GIB),
                               SEVENTY_BILLION)  # fmt: skip


def test_several_ranks_reduce_the_sums_of_the_bf16_optimizer_in_a_copy():
    """The copy has 500 M numbers at most. On a GPU it takes the place of activations, which are freed by then."""
    name, most = "buffers of communication", 2_000_000_000
    assert needed(zero_stage=1, device="cpu").device[name] == 0
    assert needed(zero_stage=1, device="cpu", ranks=2).device[name] == most
    gpu = needed(zero_stage=1, ranks=2).device
    assert gpu[name] == max(0, most - gpu["activations"]) + memory._NCCL
    buckets = [needed(zero_stage=stage, device="cpu").device[name] for stage in (2, 3)]
    assert buckets == [6 * BUCKET, 8 * BUCKET]  # bf16, its copy in fp32, and at stage 3 that of the ranks' parts
    assert needed(zero_stage=1, device="cpu", precision="fp32").device[name] == 0


def test_optimizers_and_precisions_keep_what_they_keep():
    adamw, muon, lion = needed(), needed(optimizer="muon"), needed(optimizer="lion")
    assert adamw.device["moments"] == 2 * lion.device["moments"]
    tables = 2 * VOCABULARY * SEVENTY_BILLION.hidden_size  # embedding and head: AdamW's, with two moments
    assert muon.device["moments"] - lion.device["moments"] == pytest.approx(4 * tables, rel=1e-4)
    masters = needed(precision="bf16_masters").device
    assert masters["moments"] * 2 == adamw.device["moments"]
    assert needed(precision="fp32").device["parameters"] == 2 * adamw.device["parameters"]


def test_what_is_offloaded_leaves_the_device():
    third = {"zero_stage": 3, "ranks": 8}
    near, far = needed(**third), needed(**third, offload_optimizer="cpu", offload_parameters="cpu")
    moved = ("moments", "masters", "gradient sums", "parameters")
    update = near.device["gradients of the update"]  # of a sub-group of 10^9 numbers
    assert update == 4 * 10**9
    assert far.device_bytes == near.device_bytes - update - sum(near.device[name] for name in moved)
    beside = far.host["gradients of the update"]  # the optimizer's own, and the sums that they are copied from
    assert beside == far.host["gradient sums"] == near.device["gradient sums"]
    assert far.host_bytes - near.host_bytes == sum(near.device[name] for name in moved) + beside
    files = needed(**third, offload_optimizer="cpu", offload_parameters="nvme", nvme_path="swap")
    assert files.device_bytes == far.device_bytes
    assert files.host["swap buffers"] < near.device["parameters"]
    assert files.host_bytes < far.host_bytes
    copy = "copy for checkpoints"
    assert near.host[copy] == pytest.approx(near.device["masters"] + near.device["moments"], rel=1e-6)
    state = needed(**third, offload_optimizer="nvme", nvme_path="swap")
    assert copy not in state.host
    assert needed(**third, device="cpu").device[copy] == near.host[copy]
    assert not {"masters", "moments"} & (state.host.keys() | state.device.keys())
    assert state.host["gradient sums"] == near.device["gradient sums"]  # until they are whole
    assert state.host["swap buffers of state"] == 4 * 4 * SWAPPED_GROUP


def test_activations_follow_checkpointing_and_parallelism():
    kinds = ("none", "selective", "full")
    none, some, full = (needed(activation_checkpointing=kind).device["activations"] for kind in kinds)
    assert none > some > full > 0
    halved = needed(2, sequence_parallel_size=2).device["activations"]
    assert halved == pytest.approx(none / 2, rel=0.01)
    parted = needed(8, tensor_parallel_size=8, zero_stage=1).device
    assert parted["parameters"] < needed(8).device["parameters"] / 5


def test_the_suggestion_fits_and_is_the_first_of_the_ladder():
    card = Hardware(Ranks(0, 64, 0, 8), "cuda", device_bytes=80 * GIB, host_bytes=2000 * GIB)
    engine = EngineConfig(micro_batch_size=1)
    message = suggestion(recipe(), engine, VOCABULARY, card)
    changes = {name: ast.literal_eval(value) for name, value in re.findall(r"engine\.(\w+) = ('\w+'|\d+)", message)}
    assert changes["zero_stage"] == 3
    mended = engine.model_copy(update=changes)
    assert fits(estimate(recipe(), mended, VOCABULARY, 64, "cuda"), card)
    assert not fits(estimate(recipe(), engine, VOCABULARY, 64, "cuda"), card)


def test_what_attention_keeps_on_cpu_follows_the_way_it_is_computed():
    """Bytes a pair of tokens and head, by the saved tensors.

    They are bf16 probabilities; a mask that all heads share; tanh, softmax and probabilities where a soft cap is
    written out; and the scratch of one block.
    """

    def tables(length: int, **model: object) -> tuple[int, int]:
        small = SEVENTY_BILLION.model_copy(update=model)
        train = TrainConfig(sequence_length=length, global_batch_size=2, steps=10, precision="bf16")
        made = TrainRecipe(model=small, optim=OptimConfig(learning_rate=1e-4), train=train)
        return memory._attention_tables(made, EngineConfig(micro_batch_size=2), "cpu")

    heads = 2 * SEVENTY_BILLION.num_attention_heads
    assert tables(1024) == (2 * heads * 1024 * (1024 + 128) // 2, 0)
    assert tables(2048) == (2 * 2 * 2048**2, 2 * 2048**2)
    assert tables(2048, attn_logit_softcapping=50.0) == (10 * heads * 2048**2, 12 * heads * 2048**2)
    assert memory._attention_tables(recipe(), EngineConfig(), "cuda") == (0, 0)


def test_too_few_ranks_are_refused_with_the_number_that_would_do():
    card = Hardware(Ranks(), "cuda", device_bytes=24 * GIB, host_bytes=32 * GIB)
    message = suggestion(recipe(), EngineConfig(micro_batch_size=1), VOCABULARY, card)
    assert re.search(r"No setting makes it fit on 1 rank\(s\); \d+ would do", message)


def test_ranks_of_a_node_share_its_memory(monkeypatch):
    monkeypatch.setattr(hardware, "free_host_bytes", lambda: 64 * GIB)
    ranks = Ranks(0, 4, 0, 4)
    expected = Hardware(ranks, "cpu", device_bytes=16 * GIB, host_bytes=16 * GIB)
    assert hardware_of(ranks, torch.device("cpu")) == expected


_JOB = "slurm/uid_1/job_7"


@pytest.mark.parametrize(
    ("names", "files", "top", "group"),
    [
        pytest.param(None, "memory.max memory.current inactive_file", "", "", id="in a container"),
        pytest.param("0::", "memory.max memory.current inactive_file", "", _JOB, id="version 2"),
        pytest.param(
            "4:memory:", "memory.limit_in_bytes memory.usage_in_bytes total_inactive_file", "memory", _JOB,
            id="version 1",
        ),
    ],
)  # fmt: skip
def test_the_cgroup_counts_where_it_allows_less(tmp_path, names, files, top, group):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 1000 kB\n")
    assert free_host_bytes(tmp_path) == 1000 << 10
    if names:  # Slurm limits the job, and the process is in a group of its task
        (tmp_path / "proc/self/cgroup").write_text(f"9:pids:/\n{names}/{group}/step_0/task_0\n")
    limited = tmp_path / "sys/fs/cgroup" / top / group
    (limited / "step_0/task_0").mkdir(parents=True)
    limit, used, cached = files.split()
    for name, text in ((limit, "600000"), (used, "200000"), ("memory.stat", f"{cached} 50000")):
        (limited / name).write_text(text + "\n")
    assert free_host_bytes(tmp_path) == 450_000
    (limited / limit).write_text("max\n")
    assert free_host_bytes(tmp_path) == 1000 << 10
