"""Weights of a Hugging Face folder: the logits of `transformers`, lineage and terms, and clear refusals."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from governance.errors import CheckpointError, ConfigError, MissingInput
from governance.manifest import Input, read_manifest
from governance.stage import Runtime
from pretrain.config.optim import OptimConfig
from pretrain.config.training import TrainConfig, TrainRecipe
from pretrain.evaluation.validation import nats_with
from pretrain.export.architectures import family_of, tensors_of
from pretrain.export.exported_architecture import layer_types
from pretrain.initial_weights.folder import open_folder
from pretrain.initial_weights.model_settings import FAMILIES, differences, read_model
from pretrain.initial_weights.start import InitialWeights, initial_weights_of, open_weights, parameter_shapes
from pretrain.model.decoder import Batch, Decoder, single_documents
from tests.manifests import manifest_of
from tests.pretrain.conftest import VOCABULARY
from tests.pretrain.encoder_decoder.pair_models import small as small_pairs
from tests.pretrain.export.test_export import EVERY, our_logits
from tests.pretrain.small_models import config as small_config

transformers = pytest.importorskip("transformers", reason="needs transformers, from the extra `dev`")

SIZES = {
    "vocab_size": 201, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16, "rope_theta": 500.0,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", GROUPED),
    "llama3": ("LlamaForCausalLM", {**GROUPED, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama_attention_bias": ("LlamaForCausalLM", {**GROUPED, "attention_bias": True}),
    "qwen2": ("Qwen2ForCausalLM", GROUPED),
    "qwen3": ("Qwen3ForCausalLM", {**GROUPED, "head_dim": 20, "tie_word_embeddings": True}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {
        **GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8,
        "norm_topk_prob": True}),
    "mistral": ("MistralForCausalLM", {**GROUPED, "sliding_window": 5}),
    "mixtral": ("MixtralForCausalLM", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "neox": ("GPTNeoXForCausalLM", {**SIZES, "use_parallel_residual": False, "hidden_act": "gelu"}),
    "gpt2": ("GPT2LMHeadModel", {
        "vocab_size": 201, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "activation_function": "relu"}),
    "olmo2": ("Olmo2ForCausalLM", GROUPED),
    "granite": ("GraniteForCausalLM", {**GROUPED, "attention_multiplier": 1.0, "logits_scaling": 2.0}),
    "gemma2": ("Gemma2ForCausalLM", {**GROUPED, "head_dim": 12, "query_pre_attn_scalar": 9, "sliding_window": 5}),
    "gemma3": ("Gemma3ForCausalLM", {**GROUPED, "head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 5}),
}  # fmt: skip


def saved(name: str, target: Path, shard: str = "5GB", **changes: Any) -> Any:
    """A folder of random weights of this family, and the `transformers` model of them."""
    kind, settings = CASES[name]
    model = getattr(transformers, kind)
    torch.manual_seed(0)
    made = model(model.config_class(**{**settings, **changes}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))  # norms and biases, too
    made.config._attn_implementation = "eager"
    made.save_pretrained(target, max_shard_size=shard)
    (target / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {}, "merges": ["a b"]}, "added_tokens": []}))
    return made.eval()


def opened(target: Path) -> InitialWeights:
    folder = open_folder(target)
    return InitialWeights(folder, read_model(folder.config))


def decoder_of(weights: InitialWeights, vocabulary: int) -> Decoder:
    weights.check(vocabulary)
    model = Decoder(weights.model, vocabulary)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.weight(name, parameter.shape))
    return model


def test_every_family_that_is_read_has_a_case():
    kinds = {getattr(transformers, kind).config_class.model_type for kind, _ in CASES.values()}
    assert kinds == set(FAMILIES) - {"assay"}


@pytest.mark.parametrize("name", sorted(CASES))
def test_logits_are_those_of_transformers(tmp_path, name):
    theirs = saved(name, tmp_path / "folder")
    ids = torch.randint(0, 201, (2, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids).logits
    found = our_logits(decoder_of(opened(tmp_path / "folder"), 201), ids)[..., :201]
    assert expected.abs().max() > 0.5
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("name", sorted(EVERY))
def test_what_export_writes_is_read_back(name):
    """Settings and tensors of every variant, without a file."""
    ours = small_config(**EVERY[name])
    family = family_of(ours)
    theirs = read_model({**family.config, "vocab_size": 256})
    separate = family.architecture.startswith("Gemma") and ours.tie_word_embeddings and not theirs.tie_word_embeddings
    rescaled = family.architecture.startswith("Gemma") and theirs.embedding_multiplier != ours.embedding_multiplier
    if not separate and not rescaled:
        assert differences(theirs, ours) == []
    shapes = parameter_shapes(ours, 200)
    whole = {name: torch.randn(shape) for name, shape in shapes.items()}
    kind = str(family.config["model_type"])
    for tensor in tensors_of(kind, ours, list(shapes)):
        parts = tensor.invert(tensor.make([whole[source] for source in tensor.sources]))
        for source, part in zip(tensor.sources, parts, strict=True):
            assert torch.allclose(part, whole[source], atol=1e-6), source
    written = {tensor.name for tensor in family.tensors(list(shapes))}
    assert {tensor.name for tensor in tensors_of(kind, ours, list(shapes))} <= written


def test_models_of_any_two_forms_are_compared_and_not_only_alike_ones():
    """Learned positions against rotary ones, a decoder against an encoder-decoder."""
    models = [small_config(**values) for values in EVERY.values()]
    models.append(small_pairs())
    for theirs, ours in itertools.product(models, repeat=2):
        unlike = differences(theirs, ours)
        assert not (theirs == ours and unlike)
        for name in ("position_embedding", "encoder_layers", "norm"):
            there, here = getattr(theirs, name), getattr(ours, name)
            assert (f"model.{name} is {here!r}, the folder needs {there!r}" in unlike) == (there != here)


def test_shards_are_read_by_their_index_and_in_bf16(tmp_path):
    saved("llama", tmp_path / "whole")
    theirs = saved("llama", tmp_path / "folder", shard="20KB")
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "half", max_shard_size="20KB")
    shutil.copy(tmp_path / "folder" / "tokenizer.json", tmp_path / "half")
    whole, shards, half = (opened(tmp_path / name) for name in ("whole", "folder", "half"))
    assert len(shards.folder.files) > 5
    for name, shape in parameter_shapes(whole.model, 201).items():
        expected = whole.weight(name, torch.Size(shape))
        assert torch.equal(shards.weight(name, torch.Size(shape)), expected)
        assert torch.equal(half.weight(name, torch.Size(shape))[:201], expected[:201].bfloat16().float())
    assert len({part.folder.digest for part in (whole, shards, half)}) == 3


def test_of_a_single_file_and_shards_the_single_file_is_read(tmp_path):
    """`transformers` chooses the single file, too."""
    saved("llama", tmp_path / "folder", shard="20KB")
    theirs = saved("llama", tmp_path / "whole", initializer_range=0.3)
    shutil.copy(tmp_path / "whole" / "model.safetensors", tmp_path / "folder")
    found = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "folder")
    ours = opened(tmp_path / "folder").weight("lm_head.weight", theirs.lm_head.weight.shape)
    assert torch.equal(found.lm_head.weight, theirs.lm_head.weight)
    assert torch.equal(ours, theirs.lm_head.weight)


def test_weights_that_are_exchanged_after_their_digest_was_taken_are_refused(tmp_path):
    saved("llama", tmp_path / "folder")
    weights, other = opened(tmp_path / "folder"), saved("llama", tmp_path / "other", initializer_range=0.3)
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "folder")
    with pytest.raises(CheckpointError, match="was changed since its digest was taken"):
        weights.weight("lm_head.weight", other.lm_head.weight.shape)


def test_weights_that_got_a_second_name_are_read(tmp_path):
    """A backup by hard links gives such a name. Bytes altered under the same time of modification are refused."""
    theirs = saved("llama", tmp_path / "folder").lm_head.weight
    weights, path = opened(tmp_path / "folder"), tmp_path / "folder" / "model.safetensors"
    (tmp_path / "backup").hardlink_to(path)
    path.chmod(0o600)
    assert torch.equal(weights.weight("lm_head.weight", theirs.shape), theirs)
    state, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(CheckpointError, match="was changed since its digest was taken"):
        weights.weight("lm_head.weight", theirs.shape)


@pytest.mark.parametrize("place", ["rope_parameters", "rope_scaling", ""])
def test_a_part_of_a_head_that_turns_is_refused(place):
    """Some versions of `transformers` turn the whole head, others the part; it was ignored."""
    fields = {"model_type": "llama", **GROUPED}
    read_model({**fields, "partial_rotary_factor": 1.0})
    part = {"partial_rotary_factor": 0.5}
    scaled = {**part, "rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    with pytest.raises(ConfigError, match=r"partial_rotary_factor = 0\.5"):
        read_model(fields | ({place: scaled} if place else part))


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _torn(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-100])


def _lost(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[1].unlink()


def _pickled(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")


def _other_shapes(folder: Path) -> None:
    _edit(folder / "config.json", intermediate_size=64)


def _fewer_layers(folder: Path) -> None:
    _edit(folder / "config.json", num_hidden_layers=2)


def _more_layers(folder: Path) -> None:
    _edit(folder / "config.json", num_hidden_layers=4)


FAULTS = [
    (
        lambda folder: _edit(folder / "config.json", model_type="t5"),
        ConfigError,
        "model_type is 't5'; known are assay,",
    ),
    (
        lambda folder: _edit(folder / "config.json", hidden_act="gelu"),
        ConfigError,
        "hidden_act = 'gelu' has no counter",
    ),
    (lambda folder: _edit(folder / "config.json", rope_scaling={"rope_type": "dynamic"}), ConfigError, "'dynamic'"),
    (lambda folder: (folder / "config.json").write_text("{"), CheckpointError, "config.json: cannot be read"),
    (lambda folder: (folder / "tokenizer.json").unlink(), MissingInput, "lacks tokenizer.json"),
    (_torn, CheckpointError, "is truncated or damaged"),
    (_lost, MissingInput, "lacks model-00002-of"),
    (_pickled, ConfigError, "not in the safetensors format"),
    (_other_shapes, CheckpointError, r"has shape \[48, 32\], its config.json needs \[64, 32\]"),
    (_fewer_layers, CheckpointError, "a tensor that its config.json does not name: model.layers.2"),
    (_more_layers, CheckpointError, "has no tensor model.layers.3"),
    (shutil.rmtree, MissingInput, "there is no folder"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Llama in several shards, with a card and terms."""
    path = tmp_path_factory.mktemp("weights") / "llama"
    saved("llama", path, shard="20KB", vocab_size=VOCABULARY)
    card = "---\nlicense: other\nlicense_name: llama-like\nlanguage:\n- de\nbase_model: a/b\nprivate: 1\n---\n# Card\n"
    (path / "README.md").write_text(card)
    (path / "LICENSE.txt").write_text("Terms.")
    return path


@pytest.mark.parametrize(("fault", "error", "message"), FAULTS)
def test_a_faulty_folder_is_refused_by_name(tmp_path, folder, fault, error, message):
    shutil.copytree(folder, tmp_path / "llama")
    fault(tmp_path / "llama")
    with pytest.raises(error, match=message):
        opened(tmp_path / "llama").check(VOCABULARY)


def test_a_tied_folder_with_an_output_projection_of_its_own_is_refused(tmp_path):
    """`transformers` computes with that projection; one that is a copy of the table is read."""
    theirs = saved("llama", tmp_path, tie_word_embeddings=False)
    _edit(tmp_path / "config.json", tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"and lm_head\.weight differs from model\.embed_tokens\.weight"):
        opened(tmp_path).check(201)
    with torch.no_grad():
        theirs.lm_head.weight.copy_(theirs.model.embed_tokens.weight)
    theirs.save_pretrained(tmp_path)
    _edit(tmp_path / "config.json", tie_word_embeddings=True)
    opened(tmp_path).check(201)


@pytest.mark.parametrize(("name", "map_"), [("qwen2", "q_proj"), ("llama_attention_bias", "o_proj")])
def test_a_bias_of_the_family_that_is_missing_is_refused(tmp_path, name, map_):
    from safetensors.torch import load_file, save_file

    saved(name, tmp_path)
    opened(tmp_path).check(201)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = f"model.layers.1.self_attn.{map_}.bias"
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"has no tensor {lost}"):
        opened(tmp_path).check(201)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("mistral", "sliding_window"),
        ("gemma2", "sliding_window"),
        ("gemma3", "sliding_window"),
        ("mixtral", "rope_theta"),
        ("gemma3", "rope_theta"),
    ],
)
def test_an_absent_field_with_a_default_of_the_familys_own_is_refused(name, field):
    kind, settings = CASES[name]
    config = getattr(transformers, kind).config_class(**settings).to_dict()
    read_model(config)
    del config["rope_parameters" if field == "rope_theta" else field]
    with pytest.raises(ConfigError, match=f"config.json has no field '{field}'. Add the value"):
        read_model(config)


@pytest.mark.parametrize("first", [{}, {"max_window_layers": 0}, {"max_window_layers": 3}])
@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_windows_of_a_file_without_layer_types_begin_where_they_do_in_transformers(name, first):
    kind, settings = CASES[name]
    given = {**settings, "use_sliding_window": True, "sliding_window": 5, **first}
    theirs = getattr(transformers, kind).config_class(**given)
    derived = {"layer_types", "max_window_layers"} - first.keys()
    config = {field: value for field, value in theirs.to_dict().items() if field not in derived}
    assert layer_types(read_model(config)) == theirs.layer_types


def test_a_card_that_is_not_yaml_is_a_warning(tmp_path, folder, caplog):
    shutil.copytree(folder, tmp_path / "llama")
    (tmp_path / "llama" / "README.md").write_text("---\nlicense: [\n---\n")
    assert opened(tmp_path / "llama").folder.facts()["card"] == {}
    assert "its metadata cannot be read" in caplog.text


def test_too_few_rows_for_the_tokenizer_are_refused_and_others_fit(folder):
    weights = opened(folder)
    with pytest.raises(CheckpointError, match="has 200 rows, the tokenizer of the token shards has 300 tokens"):
        weights.check(300)
    weights.check(100)
    table = "model.embed_tokens.weight"
    few, many = (weights.weight(table, torch.Size((rows, 32))) for rows in (128, 256))
    assert torch.equal(many[:128], few)
    assert torch.allclose(many[VOCABULARY:], many[:VOCABULARY].mean(0), atol=1e-6)


def test_rows_that_fill_the_vocabulary_up_cost_no_more_than_their_share(tmp_path):
    """Logits that are all low leave the loss of `transformers` as it is; rows of zeros would get all probability."""
    theirs = saved("neox", tmp_path)
    norm, ids = theirs.gpt_neox.final_layer_norm, torch.randint(0, 201, (2, 30))
    with torch.no_grad():
        norm.weight[0], norm.bias[0], theirs.get_output_embeddings().weight[:, 0] = 0.0, 1.0, -30.0
        expected = float(theirs(ids, labels=ids).loss)
    theirs.save_pretrained(tmp_path)
    ours = nats_with(decoder_of(opened(tmp_path), 201))
    segments, positions = single_documents(ids)
    targets = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    with torch.no_grad():
        found = float(ours(Batch(ids, targets, segments, positions)).sum()) / 58
    assert expected < found < expected + math.log(256 / 201)


MODEL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
}  # fmt: skip
SHORT = {"steps": 3, "validate_every_steps": 0, "every_steps": 2, "warmup_steps": 1, "decay_steps": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, folder, run_training):
    """A run that begins from the folder."""
    root = tmp_path_factory.mktemp("trained")
    return root, run_training(root, initial_weights=str(folder), **MODEL, **SHORT)


def test_a_run_begins_from_the_weights_and_names_them(trained, folder, run_training, losses_of, tmp_path):
    from pretrain.checkpoint.format import identity_of
    from pretrain.data.dataset import open_rows
    from pretrain.data.sampler import sampler_of

    root, run = trained
    checkpoint = read_manifest(root / run.stats["checkpoint"]["path"])
    recipe = identity_of(checkpoint).recipe
    tokens = read_manifest(root / "encode" / ("e" * 16) / "manifest.json")
    rows = open_rows(tokens, "train", root, recipe.train.sequence_length)
    batch = rows.batch(sampler_of(rows, recipe.train).rows(1))
    with torch.no_grad():
        objective, _ = decoder_of(opened(folder), VOCABULARY)(
            *(batch.tokens, batch.targets, batch.segments, batch.positions)
        )
    assert losses_of(run, root)[0] == pytest.approx(float(objective) / int((batch.targets >= 0).sum()), rel=1e-5)
    source = Input(stage="file", digest=open_folder(folder).digest, path="llama")
    assert source in run.inputs
    assert source in checkpoint.inputs
    assert run.stats["initial_weights"]["card"]["license_name"] == "llama-like"
    assert "initial_weights" not in recipe.model_dump(mode="json")["train"]
    # Found again from a copy elsewhere, and another run without them.
    shutil.copytree(folder, tmp_path / "llama")
    again = run_training(root, make=False, initial_weights=str(tmp_path / "llama"), **MODEL, **SHORT)
    assert again.key == run.key
    with pytest.raises(MissingInput, match="not made yet"):
        run_training(root, make=False, **MODEL, **SHORT)


def test_a_killed_run_goes_on_and_its_child_keeps_the_terms(trained, folder, run_training, kill_at, tmp_path):
    root, run = trained
    kill_at(3, tmp_path, initial_weights=str(folder), **MODEL, **SHORT)
    assert run_training(tmp_path, initial_weights=str(folder), **MODEL, **SHORT).digest == run.digest
    parent = str((root / run.stats["checkpoint"]["path"]).parent)
    child = run_training(tmp_path, continue_from=parent, **MODEL, **{**SHORT, "steps": 4})
    assert child.stats["initial_weights"] == run.stats["initial_weights"]


@pytest.mark.slow
def test_two_ranks_at_stage_3_begin_from_the_same_weights(folder, run_training, losses_of, tmp_path):
    from tests.pretrain import rank_runs

    settings = {"initial_weights": str(folder), "zero_stage": 3, **MODEL}
    runs: rank_runs.Runs = {"two": settings}
    found = rank_runs.losses_of_runs(tmp_path / "ranks", runs, ranks=2)
    alone = run_training(tmp_path / "alone", **rank_runs.SHORT, **settings)
    assert found["two"] == pytest.approx(losses_of(alone, tmp_path / "alone"), abs=1e-5)


def test_the_exported_card_states_the_licence(trained):
    from pretrain.checkpoint.format import identity_of
    from pretrain.export.huggingface import ExportFacts, _card

    root, run = trained
    checkpoint = read_manifest(root / run.stats["checkpoint"]["path"])
    identity = identity_of(checkpoint)
    card = _card(checkpoint, identity, family_of(identity.recipe.model), "fp32", None, ExportFacts())
    assert 'base_model: "a/b"\nlanguage: ["de"]\nlicense: "other"\nlicense_name: "llama-like"\n---' in card
    assert "private" not in card
    assert "| licence of these weights | llama-like; LICENSE.txt (sha256 " in card


def test_another_model_and_two_beginnings_are_refused(folder, run_training, tmp_path):
    with pytest.raises(ConfigError, match=r"model.num_hidden_layers is 2, the folder needs 3\n .*Set these"):
        run_training(tmp_path, initial_weights=str(folder), **{**MODEL, "num_hidden_layers": 2}, **SHORT)
    with pytest.raises(ConfigError, match="a run starts from one of them"):
        run_training(tmp_path, initial_weights=str(folder), continue_from="x", **MODEL, **SHORT)


def test_unchanged_weights_are_hashed_once(folder, tmp_path, monkeypatch):
    from governance import file_digests

    hashed: list[str] = []
    plain = file_digests.sha256_file
    monkeypatch.setattr(file_digests, "sha256_file", lambda path: hashed.append(path.name) or plain(path))
    monkeypatch.setattr(file_digests, "_SETTLED_NANOSECONDS", -1)  # the copy is new
    copy = shutil.copytree(folder, tmp_path / "llama")
    recipe = _recipe(copy)
    first = open_weights(recipe, Runtime(tmp_path / "root"))
    assert sorted(hashed) == sorted(first.folder.files)
    hashed.clear()
    assert open_weights(recipe, Runtime(tmp_path / "root")).folder.digest == first.folder.digest
    assert hashed == []
    (copy / "README.md").write_text("# Another card\n")
    assert open_weights(recipe, Runtime(tmp_path / "root")).folder.digest != first.folder.digest
    assert hashed == ["README.md"]


def _recipe(folder: Path) -> TrainRecipe:
    train = TrainConfig(sequence_length=8, global_batch_size=1, steps=1, initial_weights=str(folder))
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=0, decay_steps=0)
    return TrainRecipe(model=opened(folder).model, optim=optim, train=train)


def test_the_tokenizer_of_the_shards_must_be_the_folders(folder, tmp_path):
    source = Input(stage="tokenizer", digest="t" * 64, path="tokenizer/t/manifest.json")
    tokens = manifest_of("encode", key="e", inputs=(source,))
    held = tmp_path / "tokenizer" / "t" / "tokenizer.json"
    held.parent.mkdir(parents=True)
    recipe = _recipe(folder)
    ours = {
        "model": {"vocab": {}, "dropout": None, "merges": [["a", "b"]]},
        "added_tokens": [],
        "post_processor": {"type": "TemplateProcessing"},
    }
    held.write_text(json.dumps(ours))
    assert initial_weights_of(recipe, tokens, Runtime(tmp_path)) is not None  # a begin token changes no id of a text
    token = {"id": 0, "content": "<end>", "lstrip": True, "normalized": False}
    for other in ({"model": {"vocab": {"a": 0}}}, {"added_tokens": [token]}):
        held.write_text(json.dumps({**ours, **other}))
        with pytest.raises(CheckpointError, match="another tokenizer than that of the token shards"):
            initial_weights_of(recipe, tokens, Runtime(tmp_path))
    copy = shutil.copytree(folder, tmp_path / "copy")
    _edit(copy / "tokenizer.json", added_tokens=[{**token, "lstrip": False}])
    recipe = _recipe(copy)
    with pytest.raises(CheckpointError, match="another tokenizer than that of the token shards"):
        initial_weights_of(recipe, tokens, Runtime(tmp_path))  # it strips blanks in front of a token
    _edit(copy / "tokenizer.json", added_tokens=[token])
    assert initial_weights_of(recipe, tokens, Runtime(tmp_path)) is not None
