"""Experts that ranks divide: the losses, norms and states of one rank, and checkpoints for any other layout.

Run as a script, this is one of four ranks.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from governance.files import read_lines
from pretrain.checkpoint.save import Saver
from pretrain.config.model import MoeConfig
from pretrain.config.training import EngineConfig
from pretrain.distributed.process_group import Ranks, join, read_ranks
from pretrain.engine.deepspeed_config import reduced_bytes
from pretrain.engine.engine import open_engine
from pretrain.engine.expert_groups import mark_experts, separated
from pretrain.model.decoder import Decoder
from pretrain.model.expert_parallel import ExpertParts, is_expert, split_experts
from pretrain.model.flops import active_parameter_count, expert_parameter_count, parameter_count
from pretrain.model.init import initial_weight
from pretrain.model.moe import Experts
from pretrain.preflight.forecast import Machine, forecast
from pretrain.preflight.hardware import Hardware
from pretrain.preflight.memory import estimate
from pretrain.preflight.memory_room import needed_memory, suggestion
from tests.pretrain.engine.test_deepspeed_config import recipe
from tests.pretrain.rank_runs import SHORT, load_conftest, run_ranks
from tests.pretrain.resume_layouts import VOCABULARY, job_in, read, write
from tests.pretrain.small_models import config

MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
ONE_EACH = {"num_local_experts": 8, "num_experts_per_tok": 1, "norm_topk_prob": False, "router_bias_update_rate": 0.001}
CLIPPED = {"gradient_clipping": 0.05, "micro_batch_size": 1}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"moe": MOE},
    "muon": {"moe": MOE, "optimizer": "muon"},
    "one": {"moe": ONE_EACH, "bias": True},
}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "stage 0": ("plain", {"expert_parallel_size": 2, "zero_stage": 0}),
    "stage 1": ("plain", {"expert_parallel_size": 4, "zero_stage": 1, "activation_checkpointing": "selective"}),
    "stage 2": ("plain", {"expert_parallel_size": 2, "zero_stage": 2, "activation_checkpointing": "full"}),
    "bf16": ("plain", {"expert_parallel_size": 2, "zero_stage": 1, "precision": "bf16"}),
    "host": ("plain", {"expert_parallel_size": 2, "zero_stage": 2, "offload_optimizer": "cpu"}),
    "muon": ("muon", {"expert_parallel_size": 2, "zero_stage": 2}),
    "one": ("one", {"expert_parallel_size": 2, "zero_stage": 2}),
    "undivided": ("one", {"zero_stage": 2}),
    "recomputed": ("plain", {"zero_stage": 3, "activation_checkpointing": "full"}),
    "partly recomputed": ("plain", {"zero_stage": 3, "activation_checkpointing": "selective"}),
}
"""Model and settings of each run; the last ones do not divide experts."""
NEAR = {"bf16": 1e-3, "muon": 5e-5}
LAYOUTS = {"0x2": (0, 2), "1x1": (1, 1), "2x4": (2, 4)}
"""Stage and expert ranks; those with a divided layer write, and all read."""
KILLED = {"steps": 8, "every_steps": 4, "validate_every_steps": 0, "micro_batch_size": 1}
SKEWS = {"even": 0.0, "skewed": 50.0}
"""Added to the logits of expert 0 and 1: with 50 the other ranks' experts get no token."""


class KilledError(Exception):
    pass


def killed_at_4(root: Path, **settings: Any) -> None:
    """Train until the checkpoint of step 4 is durable."""
    save = Saver.save

    def once(self: Saver, state: Any) -> None:
        save(self, state)
        self.wait()
        if state.step == 4:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Saver, "save", once)
        with pytest.raises(KilledError):
            load_conftest()._run_training(root, **KILLED, **settings)


def as_a_rank(folder: Path) -> None:
    """The work of each of four ranks."""
    torch.set_num_threads(1)
    conftest, ranks = load_conftest(), read_ranks()
    device = join(ranks, 120.0)
    for skew in SKEWS.values():
        check_layer(skew)
    for name, (model, settings) in RUNS.items():
        conftest._run_training(folder / "runs" / name, **SHORT, **CLIPPED, **MODELS[model], **settings)
    conftest._run_training(folder / "from one", **KILLED, moe=MOE, zero_stage=2, expert_parallel_size=2)
    found = {}
    for act in ("write", "read"):
        for name, (stage, size) in LAYOUTS.items():
            for root in [folder / "state" / name] if act == "write" else sorted((folder / "state").iterdir()):
                job = divided_job(root, stage, size, ranks)

                def opened(weight: Any, job: Any = job) -> Any:
                    return open_engine(job.recipe, job.settings.engine, VOCABULARY, ranks, device, weight)

                if act == "read":
                    found[f"{root.name} to {name}"] = read(job, folder / "again" / root.name / name, opened)
                elif size > 1:
                    drawn = opened(lambda name, shape, job=job: initial_weight(name, shape, job.recipe.model, 0))
                    write(job, drawn, ranks.rank)
    if ranks.first:
        (folder / "found.json").write_text(json.dumps(found))
    killed_at_4(folder / "from four", moe=MOE, zero_stage=1, expert_parallel_size=2)


def divided_job(root: Path, stage: int, size: int, ranks: Ranks) -> Any:
    job = job_in(root, "fp32", stage, ranks)
    model = job.recipe.model.model_copy(update={"moe": MoeConfig(**MOE)})
    job.recipe = job.recipe.model_copy(update={"model": model})
    job.settings.engine = job.settings.engine.model_copy(update={"expert_parallel_size": size})
    return job


def check_layer(skew: float) -> None:
    """Outputs and gradients of one divided layer, against the whole one with the tokens of all ranks."""
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    moe = MoeConfig(num_local_experts=2 * ranks, num_experts_per_tok=2)
    generator = torch.Generator().manual_seed(0)

    def layer() -> Experts:
        made = Experts(config(moe=moe, bias=True), moe)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                values = initial_weight(name, parameter.shape, config(moe=moe), 0)
                parameter.copy_(30 * values if parameter.dim() > 1 else values)
        made.bias = torch.zeros(2 * ranks)
        made.bias[:2] = skew
        return made

    tokens = torch.randn(ranks, 2, 3, 32, generator=generator)
    whole, part = layer(), layer()
    model = nn.Module()
    model.model, block = nn.Module(), nn.Module()
    model.model.layers, block.mlp = [block], part
    split_experts(model, ExpertParts(ranks, rank, distributed.group.WORLD, None))
    every, own = tokens.clone().requires_grad_(), tokens[rank].clone().requires_grad_()
    expected, _ = whole(every.flatten(0, 1))
    output, _ = part(own)
    torch.testing.assert_close(output, expected.view(ranks, 2, -1, 32)[rank])
    expected.square().sum().backward()
    output.square().sum().backward()
    torch.testing.assert_close(own.grad, every.grad[rank])
    held = dict(part.named_parameters())
    assert len([name for name in held if name.startswith("experts.")]) == 2 * 6
    for name, parameter in whole.named_parameters():
        if name.startswith("experts.") and name in held:
            torch.testing.assert_close(held[name].grad, parameter.grad)
    idle = skew and rank > 0
    assert idle == (not any(held[name].grad.any() for name in held if name.startswith("experts.")))


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    killed_at_4(folder / "from one", moe=MoeConfig(**MOE), zero_stage=1)
    well, message = run_ranks(folder, [__file__, str(folder)], 4)
    assert well, message[-6000:]
    return folder


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory, run_training: Any) -> Path:
    """Each model, and the uninterrupted run, on one rank."""
    folder = tmp_path_factory.mktemp("one")
    for name, settings in MODELS.items():
        whole = {**settings, "moe": MoeConfig(**settings["moe"])}
        run_training(folder / name, **SHORT, **CLIPPED, **whole)
    run_training(folder / "whole", **KILLED, moe=MoeConfig(**MOE))
    return folder


def steps_of(root: Path) -> list[dict[str, Any]]:
    lines = read_lines(next(root.glob("train/*/metrics.jsonl")))
    return [line for line in lines if line["event"] == "step"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_ranks_whose_tokens_choose_other_experts_learn_what_one_does(four_ranks, one_rank, name):
    """Losses, and the gradient norms by group: experts count once, and the groups have the same names."""
    near = NEAR.get(name, 1e-6)
    found, expected = steps_of(four_ranks / "runs" / name), steps_of(one_rank / RUNS[name][0])
    assert len(found) == len(expected) == SHORT["steps"]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=near)
        assert ours["gradient_norms"] == pytest.approx(theirs["gradient_norms"], rel=max(1e-4, 20 * near))
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=max(1e-4, 20 * near))
        assert ours["grad_norm"] > CLIPPED["gradient_clipping"]
        choices = 0.0 if near == 1e-6 else 0.5  # other arithmetic chooses other experts where two are close
        assert ours["expert_load"] == pytest.approx(theirs["expert_load"], abs=choices)
    if RUNS[name][0] == "one":
        states = [next(root.glob("checkpoint/*/state.json")) for root in (four_ranks / "runs" / name, one_rank / "one")]
        biases = [json.loads(path.read_text())["expert_bias"] for path in states]
        assert biases[0] == biases[1] != [[0.0] * 8] * 2


@pytest.mark.slow
def test_any_layout_goes_on_exactly_from_divided_experts(four_ranks, tmp_path):
    """The state that is saved again has the same bytes, and a batch that nobody trained on has the same loss."""
    ranks = Ranks()
    device = join(ranks, 60.0)
    found = json.loads((four_ranks / "found.json").read_text())
    written = [name for name, (_, size) in LAYOUTS.items() if size > 1]
    for name in written:
        job = divided_job(shutil.copytree(four_ranks / "state" / name, tmp_path / name), 1, 1, ranks)

        def opened(weight: Any, job: Any = job) -> Any:
            return open_engine(job.recipe, job.settings.engine, VOCABULARY, ranks, device, weight)

        found[f"{name} to one rank"] = read(job, tmp_path / "again" / name, opened)
    assert len(found) == len(written) * (len(LAYOUTS) + 1)
    for name, values in found.items():
        assert values["digest"] == values["first"], name
        assert not values["native"], name
        assert values["loss"] == pytest.approx(values["learned"], rel=1e-6), name


@pytest.mark.slow
def test_killed_and_resumed_with_experts_divided_otherwise_the_losses_are_the_same(four_ranks, one_rank, run_training):
    """Four ranks go on from one rank's checkpoint, and one rank from theirs."""
    expected = [line["loss"] for line in steps_of(one_rank / "whole")]
    run_training(four_ranks / "from four", **KILLED, moe=MoeConfig(**MOE), zero_stage=2)
    for name in ("from one", "from four"):
        lines = steps_of(four_ranks / name)
        assert {line["attempt"] for line in lines} == {1, 2}
        assert [line["loss"] for line in lines] == pytest.approx(expected, abs=1e-6), name


def test_each_rank_keeps_whole_experts_and_together_they_have_all():
    """Groups of the optimizer hold each parameter once, and experts alone are reduced by replicas alone."""
    settings = config(moe=MoeConfig(**MOE))
    seen: set[str] = set()
    for rank in range(2):
        model, parts = Decoder(settings, 200), ExpertParts(2, rank)
        shapes = split_experts(model, parts)
        named = dict(model.named_parameters())
        mark_experts(named.items(), parts)
        assert [name for name, _ in shapes] == [name for name, _ in Decoder(settings, 200).named_parameters()]
        assert not {name for name in named if is_expert(name)} & seen
        seen |= {name for name in named if is_expert(name)}
        group = {"params": list(named.values()), "name": "matrices", "label": "matrices", "kind": "adamw"}
        plain, experts = separated([group], parts)
        assert (plain["name"], experts["label"], experts["moe"]) == ("matrices", "matrices", True)
        names = {parameter: name for name, parameter in named.items()}
        assert {names[parameter] for parameter in experts["params"]} == {name for name in named if is_expert(name)}
        assert len(plain["params"]) + len(experts["params"]) == len(named)
    assert seen == {name for name, _ in shapes if is_expert(name)}
    elements = sum(shape.numel() for name, shape in shapes if is_expert(name))
    assert elements == expert_parameter_count(settings)


def test_estimates_count_the_experts_of_a_rank():
    plain = recipe(precision="fp32")
    model = plain.model.model_copy(update={"moe": MoeConfig(**MOE), "intermediate_size": 2048})
    divided = plain.model_copy(update={"model": model})
    experts, every = expert_parameter_count(model), parameter_count(model, VOCABULARY)
    assert every - active_parameter_count(model, VOCABULARY) == experts // 2
    sizes = (1, 2, 4)
    engines = [EngineConfig(expert_parallel_size=size, micro_batch_size=1) for size in sizes]
    parts = [estimate(divided, engine, VOCABULARY, 4, "cpu").device for engine in engines]
    for size, part in zip(sizes, parts, strict=True):
        assert part["parameters"] == 4 * (every - experts + experts // size)
        assert part["masters"] == pytest.approx(4 * every / 4, abs=8)  # ZeRO partitions all experts over all ranks
        assert part["moments"] == pytest.approx(8 * every / 4, abs=16)
    sent = [reduced_bytes(divided, engine, VOCABULARY, 4) for engine in engines]
    assert sent[0] == 2 * 4 * every * 3 // 4
    assert sent[1] == 2 * 4 * ((every - experts) * 3 // 4 + experts // 2 // 2)
    assert sent[2] == 2 * 4 * (every - experts) * 3 // 4  # each expert is on one rank: nothing is reduced
    steps = [forecast(divided, engine, VOCABULARY, Ranks(0, 4, 0, 4)).seconds for engine in engines]
    assert steps[0]["waits"] == 0.0 < steps[1]["waits"] == steps[2]["waits"]  # the host waits for numbers of tokens
    assert steps[0]["update"] > steps[1]["update"] > steps[2]["update"]


class Live(TorchDispatchMode):
    """Bytes of the storages that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if type(made) is torch.Tensor and made.untyped_storage()._cdata not in self.sizes:  # not a handle of one
                storage = made.untyped_storage()
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage._cdata)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return result


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_exchange_needs_no_memory_beyond_that_of_an_undivided_layer(precision):
    """At a balanced load, which a group of one rank has: forward, and both passes together."""
    join(Ranks(), 60.0)
    moe, peaks = MoeConfig(num_local_experts=8, num_experts_per_tok=2), []
    for divided in (False, True):
        layer = Experts(config(moe=moe, hidden_size=64), moe).to(precision)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
        layer.group = distributed.group.WORLD if divided else None
        if divided:
            layer.experts = nn.ModuleDict({str(number): expert for number, expert in enumerate(layer.experts)})
        tokens = torch.randn(8, 64, 64, dtype=precision, requires_grad=True)
        with Live() as live:
            output = layer(tokens)[0]
            forward = live.peak
            output.backward(torch.ones_like(output))
        peaks.append((forward, live.peak))
    buffer = 8 * 64 * 2 * 64 * precision.itemsize
    for whole, part in zip(*peaks, strict=True):
        assert part - whole < 0.25 * buffer  # numbers of rows and their order, and no copy of the rows


def test_replicas_on_two_nodes_reduce_over_the_network():
    plain = recipe(precision="bf16")
    model = plain.model.model_copy(update={"moe": MoeConfig(**MOE), "intermediate_size": 2048})
    divided = plain.model_copy(update={"model": model})
    engine = EngineConfig(expert_parallel_size=4, zero_stage=1, micro_batch_size=1)
    slow, fast = (
        forecast(divided, engine, VOCABULARY, Ranks(0, 8, 0, 4), Machine(network=speed)) for speed in (25e9, 50e9)
    )
    experts = 2 * expert_parameter_count(model) / 4  # bytes of a rank's; its replica is on the other node
    # Four such pairs share the network of a node: each sum is sent twice, and the weights come back once.
    least = 4 * (1 / 2) * experts * 3
    saved = slow.seconds["communication"] - fast.seconds["communication"]
    assert saved >= least * (1 / 25e9 - 1 / 50e9)
    recomputed = engine.model_copy(update={"activation_checkpointing": "selective"})
    again = forecast(divided, recomputed, VOCABULARY, Ranks(0, 8, 0, 4), Machine(network=25e9)).seconds
    assert again["communication"] > slow.seconds["communication"]
    assert again["waits"] == 2 * slow.seconds["waits"]


def test_what_does_not_fit_is_answered_by_a_setting_that_divided_experts_have():
    plain = recipe(precision="bf16")
    model = plain.model.model_copy(update={"moe": MoeConfig(**MOE), "num_hidden_layers": 24, "hidden_size": 2048})
    divided = plain.model_copy(update={"model": model})
    engine = EngineConfig(expert_parallel_size=2, zero_stage=2, micro_batch_size=64)
    there = Hardware(Ranks(0, 4), "cuda", device_bytes=1)
    needed = needed_memory(divided, engine.model_copy(update={"micro_batch_size": 1}), VOCABULARY, there)
    room = dataclasses.replace(there, device_bytes=int(needed.device_bytes * 1.2))
    assert suggestion(divided, engine, VOCABULARY, room).startswith("It would fit with engine.")


if __name__ == "__main__":
    as_a_rank(Path(sys.argv[1]))
