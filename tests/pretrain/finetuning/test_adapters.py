"""Adapters and frozen parameters: gradients, checkpoints on a base, exact resume, PEFT's logits, and refusals."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from governance.errors import CheckpointError, ConfigError
from governance.manifest import FILE_NAME, read_manifest
from pretrain.checkpoint.format import identity_of, read_checkpoint, weights, whole_weights
from pretrain.config.optim import OptimConfig
from pretrain.config.training import AdapterConfig, EngineConfig, Settings, TrainConfig, TrainRecipe
from pretrain.evaluation.validation import load_decoder
from pretrain.export.peft_folder import _names, export_adapter
from pretrain.finetuning.adapters import freeze
from pretrain.finetuning.trained_parameters import adapted_matrices, trained_count, trained_shapes, training_flops
from pretrain.inference.loaded_model import load_model
from pretrain.model.decoder import Decoder
from pretrain.model.flops import flops_per_token, parameter_count, parameter_shapes
from pretrain.optim.optimizers import parameter_groups
from pretrain.preflight.compatibility import check_together
from pretrain.preflight.memory import estimate
from tests.pretrain.export.test_export import our_logits
from tests.pretrain.finetuning import frozen_gradients
from tests.pretrain.initial_weights.test_initial_weights import saved
from tests.pretrain.rank_runs import found_by_ranks
from tests.pretrain.small_models import VARIANTS, config, model_of

peft = pytest.importorskip("peft", reason="needs peft (compared with 0.21.2), from the extra `dev`")

ADAPTER = {"rank": 4, "alpha": 6.0, "dropout": 0.25, "rank_stabilised": True}
SIZES = {"vocab_size": 200, "num_hidden_layers": 2, "intermediate_size": 64}
IDS = torch.randint(1, 200, (2, 30), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_training):
    """A base, a root, and a run of adapters and a frozen one on it; the weights are a Llama's of `transformers`."""
    root = tmp_path_factory.mktemp("adapters")
    base = saved("llama", root / "base", **SIZES)
    common = {"initial_weights": str(root / "base"), "rms_norm_eps": 1e-6, "learning_rate": 3e-2}
    runs = {"adapter": {"adapter": ADAPTER}, "head": {"trained": ["lm_head", "norm"]}}
    return base, root, {name: run_training(root, **common, **run) for name, run in runs.items()}, common


def checkpoint_of(manifest, root: Path) -> Path:
    return (root / manifest.stats["checkpoint"]["path"]).parent


def test_the_gradients_of_what_learns_are_those_of_torch_alone():
    wrong(frozen_gradients.gradient_errors([("fp32", 3, "none"), ("bf16", 2, "full")]))


@pytest.mark.slow
def test_the_matrix_of_stages_and_precisions_has_them_on_two_ranks(tmp_path):
    errors = found_by_ranks(tmp_path, "finetuning.frozen_gradients", "gradient_errors()", 2)
    assert len(errors) == 7 * (len(frozen_gradients.TRAINED) - 2) + 5  # without dropout; five below stage 3
    wrong(errors)


def wrong(errors: dict[str, float]) -> None:
    """At stage 3 the parts of the stream's gradient are added in another order; a lost one is far larger."""
    assert {case: error for case, error in errors.items() if error > (1e-2 if "bf16 3" in case else 1e-4)} == {}


def test_a_checkpoint_holds_what_learns_and_the_base_is_stored_once(trained):
    base, root, runs, _ = trained
    assert len(list(root.glob("base_weights/*"))) == 1
    for name, manifest in runs.items():
        checkpoint = read_checkpoint(checkpoint_of(manifest, root), root)
        with weights(checkpoint, root) as own, whole_weights(checkpoint, root) as whole:
            names = own.names()
            embedding = whole.read("model.embed_tokens.weight")[:200]
        assert torch.equal(embedding, base.model.embed_tokens.weight)
        if name == "adapter":
            assert len(names) == 2 * 7 * 2
            assert all(".lora_" in one for one in names)
        else:
            assert {one for one in names if "norm" not in one} == {"lm_head.weight"}
        assert manifest.stats["base"] == checkpoint.stats["base"]
        assert manifest.stats["trained_parameters"] < manifest.stats["parameters"]


def test_logits_are_those_of_peft_merged_and_unmerged(trained, tmp_path):
    """The adapter's file in PEFT, PEFT's own merge, ours, and a decoder with the adapter beside its matrices."""
    base, root, runs, _ = trained
    folder = checkpoint_of(runs["adapter"], root)
    export_adapter(folder, tmp_path / "adapter", root)
    theirs = peft.PeftModel.from_pretrained(
        type(base).from_pretrained(root / "base", attn_implementation="eager"), tmp_path / "adapter"
    ).eval()
    unmerged = torch_logits(theirs)
    merged = torch_logits(theirs.merge_and_unload())
    manifest = read_checkpoint(folder, root)
    ours = our_logits(load_decoder(manifest, root), IDS)[..., :200]
    scale = float(unmerged.abs().max())
    assert float((unmerged - torch_logits(base)).abs().max()) > 0.1 * scale  # it learned something
    assert float((merged - unmerged).abs().max()) <= 1e-6 * scale
    assert float((ours - merged).abs().max()) <= 1e-6 * scale
    beside = beside_decoder(manifest, root)
    assert float((our_logits(beside, IDS)[..., :200] - unmerged).abs().max()) <= 1e-6 * scale
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (written["r"], written["use_rslora"], written["lora_alpha"]) == (4, True, 6)
    assert load_model(manifest, EngineConfig(threads=1), root).context == 32


def torch_logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def beside_decoder(manifest, root: Path) -> Decoder:
    recipe = TrainRecipe.model_validate(manifest.config["recipe"])
    made = Decoder(recipe.model, 200)
    freeze(made, recipe, 200)
    with weights(manifest, root) as own, torch.no_grad():
        plain = read_manifest(root / manifest.stats["base"]["path"])
        with weights(plain, root) as base:
            for name, parameter in made.named_parameters():
                parameter.copy_((own if name in own else base).read(name, parameter.shape))
    return made.eval()


@pytest.mark.parametrize("tied", [True, False])
def test_the_embeddings_adapter_is_part_of_the_table_that_a_checkpoint_gives(tmp_path, run_training, tied):
    base = saved("llama", tmp_path / "base", **SIZES, tie_word_embeddings=tied)
    made = run_training(
        tmp_path, initial_weights=str(tmp_path / "base"), rms_norm_eps=1e-6, learning_rate=3e-2, steps=6,
        tie_word_embeddings=tied, adapter={"rank": 2, "embedding_rank": 3}, trained=["norm"],
    )  # fmt: skip
    manifest = read_checkpoint(checkpoint_of(made, tmp_path), tmp_path)
    with weights(manifest, tmp_path) as own, whole_weights(manifest, tmp_path) as whole:
        names = [name for name in own.names() if "embed" in name]
        up, down = (own.read(f"model.embed_tokens.lora_{one}.weight") for one in "BA")
        table = whole.read("model.embed_tokens.weight")
    assert len(names) == 2
    start = base.model.embed_tokens.weight.detach()
    assert float((up @ down).abs().max()) > 1e-3
    assert torch.allclose(table[:200], start + AdapterConfig(rank=2).scale * (up @ down)[:200], atol=1e-6)
    with torch.no_grad():
        ours, beside = (
            our_logits(one, IDS) for one in (load_decoder(manifest, tmp_path), beside_decoder(manifest, tmp_path))
        )
    # One product more in fp32, whose order differs between processors.
    assert float((ours - beside).abs().max()) <= 2e-6 * float(beside.abs().max())
    with pytest.raises(ConfigError, match="the adapter of the embedding"):
        export_adapter(checkpoint_of(made, tmp_path), tmp_path / "adapter", tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_is_killed_resumes_exactly_with_its_dropout(tmp_path, trained, run_training, kill_at, precision):
    _, _, _, common = trained
    given = {**common, "adapter": ADAPTER, "precision": precision, "zero_stage": 2}
    whole = run_training(tmp_path / "whole", **given)

    kill_at(7, tmp_path / "killed", **given)
    resumed = run_training(tmp_path / "killed", **given)
    assert resumed.digest == whole.digest


@pytest.mark.slow
def test_two_ranks_resume_exactly_from_their_shards(tmp_path):
    found = found_by_ranks(tmp_path, "finetuning.adapter_ranks", f"digests({str(tmp_path)!r})", 2)
    assert len(found) == 2
    for name, (whole, resumed) in found.items():
        assert whole == resumed, name


def test_a_base_that_is_gone_or_altered_is_refused_and_stored_again(tmp_path, trained, run_training):
    _, origin, runs, common = trained
    root = tmp_path / "root"
    shutil.copytree(origin, root)
    folder, train = checkpoint_of(runs["adapter"], root), root / runs["adapter"].folder
    [base] = root.glob("base_weights/*")
    [file] = base.glob("weights/*")
    held = file.read_bytes()
    file.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="its base is damaged"):
        read_checkpoint(folder, root)
    manifest = json.loads((base / FILE_NAME).read_text())
    shutil.rmtree(base)
    with pytest.raises(CheckpointError, match=r"its base is gone.*stores the base again"):
        read_checkpoint(folder, root)
    (train / FILE_NAME).unlink()  # the mend that the message names
    again = run_training(root, **common, adapter=ADAPTER)
    assert again.digest == runs["adapter"].digest
    assert file.read_bytes() == held
    assert json.loads((base / FILE_NAME).read_text())["outputs"] == manifest["outputs"]
    read_checkpoint(folder, root)


def test_an_adapter_over_another_base_is_refused(tmp_path, trained, run_training):
    _, origin, runs, _ = trained
    root = tmp_path / "root"
    shutil.copytree(origin, root)
    saved("llama", tmp_path / "other", **SIZES, initializer_range=0.5)
    tuned = {"rms_norm_eps": 1e-6, "adapter": ADAPTER, "steps": 1, "warmup_steps": 0, "decay_steps": 0}
    other = run_training(root, initial_weights=str(tmp_path / "other"), **tuned)
    assert other.stats["base"]["digest"] != runs["adapter"].stats["base"]["digest"]
    place = (root / runs["adapter"].stats["base"]["path"]).parent
    shutil.rmtree(place)
    shutil.copytree((root / other.stats["base"]["path"]).parent, place)
    with pytest.raises(CheckpointError, match="was trained on the base of digest"):
        read_checkpoint(checkpoint_of(runs["adapter"], root), root)


def recipe(train=None, engine=None, **model) -> tuple[TrainRecipe, Settings]:
    sizes = {"sequence_length": 32, "global_batch_size": 8, "steps": 2, "initial_weights": "there"}
    optim = OptimConfig(learning_rate=1e-3, optimizer="muon")
    made = TrainRecipe(model=config(**model), optim=optim, train=TrainConfig(**{**sizes, **(train or {})}))
    return made, Settings(engine=EngineConfig(**(engine or {})))


REFUSED = {
    "no base": ({"train": {"adapter": {}, "initial_weights": ""}}, r"train\.initial_weights"),
    "continued": ({"train": {"adapter": {}, "continue_from": "x"}}, r"without train\.continue_from"),
    "no target": ({"train": {"adapter": {"targets": ["qkv_proj"]}}}, "'qkv_proj' is the end of no matrix's name"),
    "no gate": ({"train": {"adapter": {"targets": ["gate_proj"]}}, "feed_forward": "gelu"}, "'gate_proj'"),
    "rank": ({"train": {"adapter": {"rank": 17}}}, r"rank = 17 is above 16, the smaller side of .*k_proj \[16, 32\]"),
    "pattern": ({"train": {"trained": ["layer.9"]}}, r"'layer\.9' matches no parameter; the nearest names"),
    "tied head": ({"train": {"trained": ["lm_head"]}, "tie_word_embeddings": True}, "embed_tokens, and both learn"),
    "experts": (
        {"train": {"adapter": {"targets": ["up_proj"]}}, "moe": {"num_local_experts": 4, "num_experts_per_tok": 2}},
        "experts take no adapters",
    ),
    "layout": ({"train": {"adapter": {}}, "engine": {"tensor_parallel_size": 2}}, r"tensor_parallel_size = 2 .* 1"),
    "embedding": (
        {"train": {"adapter": {"embedding_rank": 33}}},
        r"embedding_rank = 33 is above 32, .* train\.trained = \['embed_tokens'\]",
    ),
    "stage 3": ({"train": {"adapter": {"embedding_rank": 2}}, "engine": {"zero_stage": 3}}, "zero_stage = 3 .* to 2"),
    "compiled": ({"train": {"adapter": {"dropout": 0.1}}, "engine": {"compile": True}}, r"engine\.compile = True"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_learn_is_refused_with_the_mend(name):
    given, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        check_together(*recipe(**given))


@pytest.mark.parametrize("values", [{"rank": 0}, {"dropout": 1.0}, {"alpha": 0.0}])
def test_a_section_out_of_range_is_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        AdapterConfig(**values)


def test_an_export_of_an_adapter_that_is_none_is_refused(trained, tmp_path):
    _, root, runs, _ = trained
    with pytest.raises(ConfigError, match="has no adapter"):
        export_adapter(checkpoint_of(runs["head"], root), tmp_path / "x", root)
    identity = identity_of(read_manifest(checkpoint_of(runs["adapter"], root) / FILE_NAME))
    with pytest.raises(ConfigError, match="in another form"):
        _names(identity, AdapterConfig(), "gpt_neox")


CLOSED = {**VARIANTS, "classifier": {"num_labels": 3, "tie_word_embeddings": True}}


@pytest.mark.parametrize("name", sorted(CLOSED))
def test_closed_forms_count_what_the_model_has(name):
    """Names, shapes and order of all parameters, and of those that learn."""
    made, _ = recipe(
        train={"adapter": {"rank": 2, "embedding_rank": 3}, "trained": ["norm|embed_tokens"]}, **CLOSED[name]
    )
    plain = {key: tuple(value.shape) for key, value in model_of(made.model).named_parameters()}
    assert list(parameter_shapes(made.model, 100).items()) == list(plain.items())
    assert sum(map(math.prod, plain.values())) == parameter_count(made.model, 100)
    decoder = Decoder(made.model, 100)
    freeze(decoder, made, 100)
    learning = {key: tuple(value.shape) for key, value in decoder.named_parameters() if value.requires_grad}
    assert learning == trained_shapes(made.model, made.train, 100)
    assert sum(map(math.prod, learning.values())) == trained_count(made, 100)
    groups = parameter_groups([(key, value) for key, value in decoder.named_parameters() if key in learning],
                              made.optim, lambda parameter: parameter.shape)  # fmt: skip
    kinds = {group["label"].partition(" ")[0]: group["kind"] for group in groups}
    assert kinds["adapters"] == "adamw"  # under Muon too
    assert ("lm_head.weight" in learning) == (name == "classifier")  # whose head is new
    every, _ = recipe(train={"trained": ["."]}, **CLOSED[name])
    assert training_flops(every, 100) == flops_per_token(every.model, 100, 32)


def test_flops_and_memory_count_what_learns():
    whole, _ = recipe()
    few, settings = recipe(train={"adapter": {"rank": 1, "targets": ["layers.1.self_attn.q_proj"]}})
    head, _ = recipe(train={"trained": ["lm_head"]})
    forward = flops_per_token(whole.model, 100, 32) // 3
    assert training_flops(head, 100) == forward + 2 * 128 * 32  # the head's gradient alone
    # The backward pass through the norms, the head and the last block, and its attention.
    passed = 2 * (32 + 128 * 32 + 2 * 32 + 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48) + 8 * 32 * 32
    assert training_flops(few, 100) == forward + passed + 6 * 64
    [all_learn, one_learns] = [estimate(one, settings.engine, 100, 1, "cpu").device for one in (whole, few)]
    assert one_learns["masters"] == 4 * 64
    assert one_learns["moments"] == 4 * 2 * 64
    assert all_learn["parameters"] == one_learns["parameters"]
    assert sum(map(math.prod, adapted_matrices(few.model, few.train.adapter).values())) == 32 * 32
