"""Selection biases of experts: choice, balance, checkpoints."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.errors import CheckpointError
from governance.files import read_lines
from governance.manifest import read_manifest
from pretrain.checkpoint import averaged_weights
from pretrain.checkpoint.averaged_weights import averaged_expert_bias, last_checkpoints
from pretrain.checkpoint.format import identity_of, read_state
from pretrain.config.model import MoeConfig
from pretrain.distributed.process_group import Ranks, join
from pretrain.evaluation.validation import load_decoder, placed
from pretrain.export import huggingface
from pretrain.export.architectures import family_of
from pretrain.export.exported_architecture import expert_bias_names
from pretrain.export.huggingface import ExportFacts, _card
from pretrain.inference import loaded_model
from pretrain.model import expert_bias
from pretrain.model.expert_bias import expert_bias_of, on_device, restore_expert_bias
from pretrain.model.moe import balance_losses, select_experts
from tests.pretrain.small_models import config, model_of, rows

MOE = MoeConfig(num_local_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.0, router_bias_update_rate=0.001)
UNTOUCHED, SKIPPED = torch.zeros(()), torch.ones(())


@settings(max_examples=100)
@given(st.integers(0, 1000), st.integers(1, 4))
def test_the_bias_decides_who_is_chosen_and_enters_no_weight(seed, used):
    generator = torch.Generator().manual_seed(seed)
    logits, bias = torch.randn(5, 4, generator=generator), torch.randn(4, generator=generator) / 4
    weights, chosen = select_experts(logits, used, bias)
    for token, probabilities in enumerate(logits.softmax(-1)):
        best = sorted(range(4), key=lambda expert: -float(probabilities[expert] + bias[expert]))[:used]
        assert set(chosen[token].tolist()) == set(best)
        assert torch.equal(weights[token], probabilities[chosen[token]])
    plain, unbiased = select_experts(logits, used, None), select_experts(logits, used, torch.zeros(4))
    assert all(torch.equal(one, other) for one, other in zip(plain, unbiased, strict=True))


def planted(rate: float):
    """A model whose tokens all prefer the first two experts of each layer, and a batch."""
    moe = MOE.model_copy(update={"router_bias_update_rate": rate})
    model, batch = model_of(config(moe=moe), factor=1.0), rows([[30, 20], [14, 36]])
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, 0.3, generator=generator).add_(1.0)
        for layer in model.model.layers:
            gate = layer.mlp.gate.weight.normal_(0, 0.15, generator=generator)
            gate.sub_(gate.mean(1, keepdim=True))[:2] += 0.04
    return model, (batch.tokens, batch.targets, batch.segments, batch.positions)


def test_a_planted_skew_becomes_balanced():
    """Only the biases move; loads count tokens that predict, in passes that learn, and a skipped update moves none."""
    join(Ranks(), 60.0)
    model, batch = planted(rate := 0.004)
    balance, shares = model.expert_bias, []
    with torch.no_grad():
        model(*batch)
    assert not balance.loads.any()
    model(*batch)
    assert balance.loads.sum(-1).tolist() == [2 * 98] * 2  # two choices of each token but the last of a row
    balance.move(SKIPPED)
    assert not balance.values.any()
    assert not balance.loads.any()
    for _ in range(60):
        model(*batch)
        shares.append(float((balance.loads.max(-1).values / balance.loads.double().mean(-1)).max()))
        balance.move(UNTOUCHED)
        assert float(balance.greatest) == pytest.approx(shares[-1])
    assert shares[0] > 1.9  # of at most 2: all tokens chose the same two
    assert max(shares[-10:]) < 1.2
    steps = balance.values / rate
    assert torch.allclose(steps, steps.round(), atol=1e-3)


def test_the_auxiliary_loss_counts_the_experts_that_are_used():
    moe = MOE.model_copy(update={"router_aux_loss_coef": 1.0, "router_z_loss_coef": 0.0})
    logits, targets = torch.zeros(1, 6, 4), torch.zeros(1, 6, dtype=torch.int64)
    logits[..., 2:] = 1.0
    towards = torch.tensor([1.0, 1.0, 0.0, 0.0])
    probability = logits[0, 0].softmax(-1)
    for bias, used in ((None, probability[2:]), (towards, probability[:2])):
        assert balance_losses(logits, targets, moe, bias).item() == pytest.approx(6 * 2 * float(used.sum()))


def biases_in(root: Path, step: int) -> list[list[float]]:
    states = [json.loads(path.read_text()) for path in root.glob("checkpoint/*/state.json")]
    return next(state["expert_bias"] for state in states if state["step"] == step)


def test_a_resumed_run_has_the_biases_of_an_uninterrupted_one(tmp_path, run_training, losses_of, kill_at, monkeypatch):
    """At stage 3, too, where experts learn the same bits as at stage 1."""

    whole = run_training(tmp_path / "whole", moe=MOE)
    kill_at(7, tmp_path / "cut", moe=MOE)
    shutil.copytree(tmp_path / "cut", tmp_path / "forgetful")
    assert run_training(tmp_path / "cut", moe=MOE, zero_stage=3).digest == whole.digest
    losses, last = losses_of(whole, tmp_path / "whole"), biases_in(tmp_path / "whole", 10)
    assert losses[-1] < losses[0] - 0.3
    lines = read_lines(tmp_path / "whole" / whole.folder / "metrics.jsonl")
    loads = [line["expert_load"] for line in lines if line["event"] == "step"]
    assert all(1 <= load <= 2 for load in loads)  # of four experts each token uses two
    assert len(set(loads)) > 1
    assert biases_in(tmp_path / "forgetful", 4) != last != [[0.0] * 4] * 2
    manifest = read_manifest(tmp_path / "whole" / whole.stats["checkpoint"]["path"])
    assert expert_bias_of(load_decoder(manifest, tmp_path / "whole")) == last
    identity = identity_of(manifest)
    card = _card(manifest, identity, family_of(identity.recipe.model), "fp32", None, ExportFacts())
    assert "| selection of experts | probability plus a bias of each expert" in card
    monkeypatch.setattr(expert_bias, "restore_expert_bias", lambda model, values: None)
    assert run_training(tmp_path / "forgetful", moe=MOE).digest != whole.digest


def test_the_mean_of_checkpoints_has_the_mean_of_their_biases(tmp_path, run_training, monkeypatch):
    made = run_training(tmp_path, moe=MOE)
    newest = read_manifest(tmp_path / made.stats["checkpoint"]["path"])
    last = last_checkpoints(newest, 2, tmp_path)
    held = [torch.tensor(biases_in(tmp_path, identity_of(one).step), dtype=torch.float64) for one in last]
    assert not torch.equal(held[0], held[1])
    mean = ((held[0] + held[1]) / 2).float()
    assert torch.equal(torch.tensor(expert_bias_of(load_decoder(last[0], tmp_path, last[1:]))), mean)
    assert torch.equal(torch.tensor(averaged_expert_bias(last[::-1], tmp_path)), mean)
    assert averaged_expert_bias(last[:1], tmp_path) == biases_in(tmp_path, identity_of(newest).step)
    written = []

    def write_folder(read, identity, *given, **form):
        written.extend(read(name) for name in expert_bias_names(identity.recipe.model))
        return family_of(identity.recipe.model), {}

    monkeypatch.setattr(huggingface, "refuse_foreign_tokenizer", lambda *given: None)
    monkeypatch.setattr(huggingface, "write_folder", write_folder)
    (tmp_path / "out").mkdir()
    tokenizer = SimpleNamespace(stats={"end_of_document": 0}, outputs=(), folder="")
    facts = ExportFacts(others=last[1:])
    huggingface.export(tmp_path / newest.folder, tokenizer, tmp_path / "out", tmp_path, facts=facts)
    assert torch.equal(torch.stack(written), mean)
    cut = read_state(last[1], tmp_path).expert_bias[:1]
    states = iter([read_state(last[0], tmp_path), replace(read_state(last[1], tmp_path), expert_bias=cut)])
    monkeypatch.setattr(averaged_weights, "read_state", lambda *given: next(states))
    with pytest.raises(CheckpointError, match=r"layers of \[4\] experts"):
        averaged_expert_bias(last, tmp_path)


def test_biases_follow_the_weights_to_their_device(monkeypatch):
    """They are no buffers, so `to` leaves them on the host, where no token of another device can choose by them."""
    model, device = model_of(config(moe=MOE)), torch.device("meta")
    model.expert_bias.values.copy_(torch.arange(8).view(2, 4))
    monkeypatch.setattr(loaded_model, "load_decoder", lambda *given: copy.deepcopy(model))
    monkeypatch.setattr(loaded_model, "lone_device", lambda engine: device)
    recipe = SimpleNamespace(train=SimpleNamespace(sequence_length=8))
    monkeypatch.setattr(loaded_model, "identity_of", lambda manifest: SimpleNamespace(recipe=recipe, vocabulary_size=9))
    for moved in (loaded_model.load_classifier(None, None, None).decoder, placed(copy.deepcopy(model), "bf16", device)):
        held = moved.expert_bias
        parts = (held.values, held.loads, held.greatest, *(layer.mlp.bias for layer in moved.model.layers))
        assert {part.device for part in parts} == {moved.device} == {device}
        assert moved.model.layers[1].mlp.bias.dtype == torch.float32
    here = on_device(model, "cpu")
    assert here.model.layers[1].mlp.bias.tolist() == [4, 5, 6, 7]


def test_biases_of_another_shape_are_refused():
    model = model_of(config(moe=MOE))
    for values, shape in ((None, r"\[\]"), ([[0.0] * 3] * 2, r"\[2, 3\]")):
        with pytest.raises(CheckpointError, match=rf"expert_bias in state.json has shape {shape}"):
            restore_expert_bias(model, values)


def test_without_a_rate_loads_are_counted_and_no_bias_is_there():
    moe = MoeConfig(num_local_experts=4, num_experts_per_tok=2)
    model, batch = model_of(config(moe=moe)), rows([[30, 20], [14, 36]])
    assert expert_bias_of(model) is None
    join(Ranks(), 60.0)
    model(batch.tokens, batch.targets, batch.segments, batch.positions)
    loads = model.expert_bias.loads.clone()
    assert loads.sum(-1).tolist() == [2 * 98] * 2  # two choices of each token but the last of a row
    model.expert_bias.move(UNTOUCHED)
    assert float(model.expert_bias.greatest) == pytest.approx(float(loads.max()) / (2 * 98 / 4))
    assert not model.expert_bias.values.any()
    assert {layer.mlp.bias for layer in model.model.layers} == {None}
    assert "router_bias_update_rate" not in config(moe=moe).model_dump(mode="json")["moe"]
