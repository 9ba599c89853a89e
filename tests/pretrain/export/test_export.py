"""An export of `assay export` is the same model for `transformers`: equal logits, an equal tokenizer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from data_pipeline.readers.file_types.chats import messages_text
from data_pipeline.tokens.chat_template import CHATML
from data_pipeline.tokens.tokenizer import load_encoder
from governance.errors import CheckpointError, ConfigError
from governance.files import write_json, write_text
from pretrain.checkpoint.format import CheckpointIdentity
from pretrain.config.optim import OptimConfig
from pretrain.config.training import TrainConfig, TrainRecipe
from pretrain.evaluation.loglikelihood import log_likelihoods
from pretrain.evaluation.scores import figures
from pretrain.evaluation.tasks import Question
from pretrain.evaluation.validation import nats_with
from pretrain.export import huggingface, peft_folder
from pretrain.export.architectures import family_of
from pretrain.export.exported_architecture import EXPERT_BIAS, ExportedTensor, Family
from pretrain.export.huggingface import INDEX, ExportVocabulary, expert_bias_tensors, export, use_of, write_folder
from pretrain.inference.generation import generate
from pretrain.inference.loaded_model import LoadedModel
from pretrain.initial_weights.folder import open_folder
from pretrain.initial_weights.model_settings import differences, read_model
from pretrain.initial_weights.start import InitialWeights
from pretrain.model.expert_bias import expert_bias_of
from tests.data_pipeline.tokenizer_kinds import KINDS
from tests.pretrain.encoder_decoder.pair_models import small as small_pairs
from tests.pretrain.small_models import VARIANTS, config, model_of

transformers = pytest.importorskip("transformers", reason="needs transformers, from the extra `dev`")

VOCABULARY = 300
TEXT = "The cat sat on the mat, and the dog did not. " * 3
GPT = {"norm": "layernorm", "bias": True, "feed_forward": "gelu", "num_key_value_heads": 4}
GEMMA_2 = {
    "norm_position": "sandwich", "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0, "sliding_window": 4,
    "full_attention_every": 2, "tie_word_embeddings": True, "feed_forward": "geglu", "head_dim": 12,
    "query_pre_attn_scalar": 9, "embedding_multiplier": 32**0.5,
}  # fmt: skip
MORE = {
    "biased": {"bias": True},
    "gpt2_heads": {**GPT, "position_embedding": "learned"},
    "gpt2_tied_relu2": {**GPT, "position_embedding": "learned", "feed_forward": "relu2", "tie_word_embeddings": True},
    "neox": GPT,
    "qwen3": {"qk_norm": True, "sliding_window": 4, "full_attention_every": 2, "tie_word_embeddings": True},
    "qwen3_moe": {"qk_norm": True, "moe": {"num_local_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": False}},
    "biased_experts": {"moe": {**VARIANTS["mixtral"]["moe"], "router_bias_update_rate": 0.001}},
    "gemma2": {"norm_position": "sandwich", "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0,
               "sliding_window": 4, "full_attention_every": 2, "tie_word_embeddings": True},
    "qwen3_wide": {"head_dim": 20, "qk_norm": True, "tie_word_embeddings": True},
    "llama_wide": {"head_dim": 20},
    "neox_partial": {**GPT, "partial_rotary_factor": 0.25, "head_dim": 8},
    "olmo2_heads": {"norm_position": "reordered", "qk_norm": True, "qk_norm_whole": True, "num_key_value_heads": 4},
    "gemma2_whole": {**GEMMA_2, "num_hidden_layers": 3},
    "gemma2_rescaled": {**GEMMA_2, "embedding_multiplier": 2.0},
    "gemma2_fraction": {**GEMMA_2, "query_pre_attn_scalar": 7.5},
    "gemma3_stretched": {**VARIANTS["gemma3"], "final_logit_softcapping": 8.0,
                         "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "local_base": {"sliding_window": 4, "full_attention_every": 2, "rope_local_base_freq": 100.0,
                   "embedding_multiplier": 3.0, "feed_forward": "geglu", "attn_logit_softcapping": 5.0},
    "windows": {"sliding_window": 3, "full_attention_every": 2},
    "mup_tied": {"initialisation": "mup", "mup_base_width": 8, "tie_word_embeddings": True},
    "mup_sinusoidal": {"initialisation": "mup", "mup_base_width": 16, "position_embedding": "sinusoidal"},
    "speedy_tied": {**VARIANTS["speedy"], "tie_word_embeddings": True},
}  # fmt: skip
ARCHITECTURES = {
    "llama": "LlamaForCausalLM", "mha": "LlamaForCausalLM", "mqa": "LlamaForCausalLM", "tied": "LlamaForCausalLM",
    "linear": "LlamaForCausalLM", "llama3": "LlamaForCausalLM", "yarn": "LlamaForCausalLM",
    "z_loss": "LlamaForCausalLM", "biased": "LlamaForCausalLM", "mup": "GraniteForCausalLM",
    "mup_tied": "GraniteForCausalLM",
    "mistral": "MistralForCausalLM", "qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM",
    "mixtral": "MixtralForCausalLM", "gpt2_heads": "GPT2LMHeadModel", "gpt2_tied_relu2": "GPT2LMHeadModel",
    "neox": "GPTNeoXForCausalLM", "gemma2": "Gemma2ForCausalLM", "wide_heads": "Qwen3ForCausalLM",
    "qwen3_wide": "Qwen3ForCausalLM", "llama_wide": "LlamaForCausalLM", "neox_partial": "GPTNeoXForCausalLM",
    "reordered": "Olmo2ForCausalLM", "olmo2_heads": "Olmo2ForCausalLM", "gemma2_whole": "Gemma2ForCausalLM",
    "gemma2_rescaled": "Gemma2ForCausalLM", "gemma3": "Gemma3ForCausalLM", "gemma3_stretched": "Gemma3ForCausalLM",
}  # fmt: skip
EVERY = {**VARIANTS, **MORE}
LARGE = Family(
    "LlamaForCausalLM",
    {},
    lambda names: [ExportedTensor("large", (names[0],), lambda parts: torch.full((2,), 7e4), lambda whole: [whole])],
)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    return write_tokenizer(path, VOCABULARY)


def write_tokenizer(path: Path, size: int, special: Sequence[str] = ("<|endoftext|>",)) -> Path:
    """A byte-level BPE as the stage trains it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([TEXT], trainer)
    made.save(str(path))
    return path


def size_of(tokenizer: Path) -> int:
    return load_encoder(tokenizer.parent).vocabulary_size


def exported(name: str, tokenizer: Path, target: Path, begin: int | None = None, end: int = 0, **options):
    """A folder with the variant, and the variant itself."""
    settings, size = config(**EVERY[name]), size_of(tokenizer)
    model = model_of(settings, size)
    recipe = TrainRecipe(
        model=settings,
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=0, decay_steps=0),
        train=TrainConfig(sequence_length=32, global_batch_size=1, steps=1),
    )
    identity = CheckpointIdentity(train_key="k" * 64, step=1, vocabulary_size=size, recipe=recipe)
    held = dict(model.named_parameters())
    if model.expert_bias is not None:
        torch.nn.init.uniform_(model.expert_bias.values, -0.4, 0.4, generator=torch.Generator().manual_seed(0))
        held |= expert_bias_tensors(settings, expert_bias_of(model))
    template = tokenizer.with_name("chat_template.jinja")
    vocabulary = ExportVocabulary(tokenizer, end, begin, template.read_text() if template.exists() else "")
    family, _ = write_folder(lambda parameter: held[parameter].detach(), identity, vocabulary, target, **options)
    return family, model


def test_an_export_shares_no_file_with_the_run(tokenizer, tmp_path):
    """A tool that edits an exported file in place does not change the run's own file."""
    exported(next(iter(EVERY)), tokenizer, tmp_path / "out")
    copy = tmp_path / "out" / "tokenizer.json"
    assert copy.read_bytes() == tokenizer.read_bytes()
    assert not copy.samefile(tokenizer)


def our_logits(model, ids: torch.Tensor) -> torch.Tensor:
    from pretrain.model.decoder import Batch

    zeros = torch.zeros_like(ids, dtype=torch.int32)
    positions = torch.arange(ids.shape[1], dtype=torch.int32).expand(ids.shape)
    with torch.no_grad():
        return model.eval().logits(Batch(ids, zeros.long() - 100, zeros, positions))


def test_the_printed_line_suits_the_folder(tmp_path, monkeypatch):
    """Own code asks for trust_remote_code; an encoder-decoder, which transformers has no class for, begins a run."""
    models = [*(config(**values) for values in EVERY.values()), small_pairs()]
    for family in (family_of(model) for model in models):
        write_json(tmp_path / "config.json", {"architectures": [family.architecture], **family.config})
        line, place = use_of(tmp_path)
        assert ("trust_remote_code=True" in line) == family.own_code
        assert place == ("a run's file" if family.architecture == "AssayEncoderDecoder" else "Python")
        assert str(tmp_path) in line
    monkeypatch.chdir(tmp_path.parent)  # the last one is for a run's file, which has its own folder
    assert str(tmp_path) in use_of(Path(tmp_path.name))[0]


def loaded(target: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(target, trust_remote_code=True).eval()


@pytest.fixture(autouse=True, scope="session")
def modules_of_their_own(tmp_path_factory):
    """transformers copies a folder's code to a cache once: not into the home of the user who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.mark.parametrize("name", sorted(EVERY))
def test_transformers_computes_the_same_logits(tmp_path, tokenizer, name):
    family, model = exported(name, tokenizer, tmp_path / f"model_{name}")
    assert family.architecture == ARCHITECTURES.get(name, "AssayForCausalLM")
    ids = torch.randint(0, size_of(tokenizer), (2, 30), generator=torch.Generator().manual_seed(0))
    theirs = loaded(tmp_path / f"model_{name}")
    with torch.no_grad():
        found = theirs(ids).logits
    expected = our_logits(model, ids)
    assert expected.abs().max() > 0.05
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


FAMILIES = {ARCHITECTURES.get(name, "AssayForCausalLM"): name for name in sorted(EVERY)}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_transformers_continues_prompts_with_the_same_tokens(tmp_path, tokenizer, family):
    """Greedy, with both caches, for a batch of prompts here and one prompt at a time there."""
    _, model = exported(FAMILIES[family], tokenizer, tmp_path / f"made_{family}")
    size, theirs = size_of(tokenizer), loaded(tmp_path / f"made_{family}")
    draw = torch.Generator().manual_seed(2)
    prompts = [torch.randint(1, size, (1, length), generator=draw) for length in (9, 4)]
    padding = list(range(size, model.lm_head.out_features))
    ours = generate(LoadedModel(model.eval(), 32, size), [ids[0].tolist() for ids in prompts], 0, 10)
    for ids, found in zip(prompts, ours, strict=True):
        options = {"do_sample": False, "eos_token_id": 0, "pad_token_id": 0, "suppress_tokens": padding}
        made = theirs.generate(ids, max_new_tokens=10, **options)[0, ids.shape[1] :].tolist()
        assert list(found.ids) == [token for token in made if token]
        assert found.finish == ("end" if 0 in made else "length")


@pytest.mark.parametrize("name", ["local_base", "partial", "speedy", "sinusoidal", "switch", "gpt2"])
def test_our_own_code_pads_and_continues(tmp_path, tokenizer, name):
    family, model = exported(name, tokenizer, tmp_path / f"own_{name}")
    assert family.own_code
    theirs = loaded(tmp_path / f"own_{name}")
    ids = torch.randint(1, size_of(tokenizer), (1, 12), generator=torch.Generator().manual_seed(1))
    expected = our_logits(model, ids)
    with torch.no_grad():
        first = theirs(ids[:, :7], use_cache=True)
        second = theirs(ids[:, 7:], past_key_values=first.past_key_values, use_cache=True)
        assert torch.allclose(torch.cat([first.logits, second.logits], 1), expected, atol=2e-5)
        for left in (True, False):
            pads = torch.zeros(1, 4, dtype=torch.long)
            padded = torch.cat([pads, ids] if left else [ids, pads], 1)
            mask = torch.cat([pads, torch.ones_like(ids)] if left else [torch.ones_like(ids), pads], 1)
            found = theirs(padded, attention_mask=mask).logits
            kept = found[:, 4:] if left else found[:, :12]
            assert torch.allclose(kept, expected, atol=2e-5)
        loss = theirs(ids, labels=ids).loss
    plain = torch.nn.functional.cross_entropy(expected[0, :-1], ids[0, 1:])
    assert float(loss) == pytest.approx(float(plain), abs=1e-5)
    # Greedy text: token by token from the whole model, and by `generate` with its cache.
    text = ids
    for _ in range(5):
        text = torch.cat([text, our_logits(model, text)[:, -1:].argmax(-1)], 1)
    made = theirs.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert made.tolist() == text.tolist()


@pytest.mark.parametrize("name", ["llama", "gemma2", "speedy"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_rounded_weights_are_the_nearest_and_load_in_their_own_arithmetic(tmp_path, tokenizer, name, dtype):
    from safetensors.torch import load_file

    exported(name, tokenizer, tmp_path / "fp32")
    exported(name, tokenizer, tmp_path / "rounded", shard_bytes=20_000, dtype=dtype)
    wanted = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    files = sorted((tmp_path / "rounded").glob("*.safetensors"))
    assert len(files) > 1
    assert all(path.stat().st_size < 25_000 or len(load_file(path)) == 1 for path in files)
    rounded = {key: value for path in files for key, value in load_file(path).items()}
    for key, value in load_file(tmp_path / "fp32" / "model.safetensors").items():
        assert torch.equal(rounded.pop(key), value.to(wanted)), key
    assert rounded == {}
    index = json.loads((tmp_path / "rounded" / INDEX).read_bytes())
    theirs, plain = loaded(tmp_path / "rounded"), loaded(tmp_path / "fp32")
    assert {value.dtype for value in theirs.parameters()} == {wanted}
    assert index["metadata"]["total_size"] == sum(2 * value.numel() for value in theirs.state_dict().values())
    ids = torch.randint(0, size_of(tokenizer), (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, exact = theirs(ids).logits.float(), plain(ids).logits
    assert (found - exact).norm() < 0.05 * exact.norm()


def test_a_selection_bias_stays_in_fp32_and_is_read_back(tmp_path, tokenizer):
    _, model = exported("biased_experts", tokenizer, tmp_path / "model", dtype="bf16")
    theirs = loaded(tmp_path / "model")
    assert {name.rpartition(".")[2] for name, held in theirs.named_parameters() if held.dtype == torch.float32} == {
        EXPERT_BIAS
    }
    folder = open_folder(tmp_path / "model")
    weights = InitialWeights(folder, read_model(folder.config))
    weights.check(size_of(tokenizer))
    assert weights.expert_bias() == expert_bias_of(model)
    assert differences(weights.model, model.config) == []
    assert (
        "router_bias_update_rate is 0, the folder needs a rate"
        in differences(weights.model, config(**VARIANTS["mixtral"]))[0]
    )
    assert differences(config(**VARIANTS["mixtral"]), weights.model) == []  # biases begin at zero


def test_a_weight_that_fp16_cannot_hold_is_refused(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("pretrain.export.huggingface.family_of", lambda model: LARGE)
    with pytest.raises(ConfigError, match=r"--dtype fp16: large has a weight of 70000"):
        exported("llama", tokenizer, tmp_path / "model", dtype="fp16")


def test_shards_have_an_index_and_load_as_one(tmp_path, tokenizer):
    exported("llama", tokenizer, tmp_path / "whole")
    exported("llama", tokenizer, tmp_path / "parts", shard_bytes=20_000)
    index = json.loads((tmp_path / "parts" / INDEX).read_bytes())
    files = sorted(path.name for path in (tmp_path / "parts").glob("*.safetensors"))
    assert len(files) > 2
    assert set(index["weight_map"].values()) == set(files)
    assert not (tmp_path / "whole" / INDEX).exists()
    whole, parts = loaded(tmp_path / "whole").state_dict(), loaded(tmp_path / "parts").state_dict()
    assert index["metadata"]["total_size"] == sum(4 * tensor.numel() for tensor in parts.values())
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(
    "name", ["llama", "mistral", "qwen3", "mixtral", "gpt2_heads", "neox", "gemma2", "mup", "speedy"]
)
def test_the_tokenizer_comes_back(tmp_path, tokenizer, name):
    exported(name, tokenizer, tmp_path / "model")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model", trust_remote_code=True)
    ours = load_encoder(tokenizer.parent)
    for text in ("The cat sat.", " and  the\n\ndog\t", "été 猫 \U0001f408 12345", ""):
        ids = theirs(text)["input_ids"]
        assert ids == ours.encode(text).tolist()
        assert theirs.decode(ids) == text
    assert theirs.eos_token_id == 0
    assert theirs.eos_token == "<|endoftext|>"
    assert theirs.model_max_length == 64
    assert len(theirs) == ours.vocabulary_size


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_of_any_kind_comes_back(tmp_path, kind):
    """The ids of training, without the tokens that the file's own post-processor would add."""
    build, end = KINDS[kind]
    path = tmp_path / "tokenizer.json"
    path.write_text(build().to_str(), encoding="utf-8")
    ours = load_encoder(path.parent)
    end_id = json.loads(path.read_text(encoding="utf-8"))
    end_id = next(token["id"] for token in end_id["added_tokens"] if token["content"] == end)
    exported("llama", path, tmp_path / "model", end=end_id)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in ("The Cat sat.", " and  the\n\ndog\t", "été 猫 \U0001f408 12345", "!\n\na"):
        assert theirs(text)["input_ids"] == ours.encode(text).tolist()
    assert (theirs.eos_token, theirs.eos_token_id, len(theirs)) == (end, end_id, ours.vocabulary_size)


@pytest.mark.parametrize("begin", [None, 1])
def test_chats_become_the_text_and_the_ids_of_training_on_answers(tmp_path, begin):
    markers = ["<|im_start|>", "<|im_end|>"] if begin is None else []
    path = write_tokenizer(tmp_path / "tokenizer.json", VOCABULARY, ["<|endoftext|>", "<|begin|>", *markers])
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    exported("llama", path, tmp_path / "model", begin=begin)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    said = [{"role": "user", "content": "A cat\n"}, {"role": "assistant", "content": " Sat."}]
    text, first = messages_text(said, "instructions"), [] if begin is None else [begin]
    assert theirs.apply_chat_template(said, return_dict=False) == [*first, *load_encoder(tmp_path).encode(text)]
    asked = theirs.apply_chat_template(said[:1], tokenize=False, add_generation_prompt=True)
    assert asked.removeprefix("<|begin|>") == text[: text.index(" Sat.")]


@pytest.mark.parametrize("name", ["llama", "speedy"])
def test_a_token_that_begins_documents_begins_texts_there_too(tmp_path, name):
    path = write_tokenizer(tmp_path / "tokenizer.json", VOCABULARY, ["<|endoftext|>", "<|begin|>", "<|user|>"])
    chat = "{{ bos_token }}{% for m in messages %}<|user|>{{ m.content }}{{ eos_token }}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(chat)
    exported(name, path, tmp_path / "model", begin=1)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model", trust_remote_code=True)
    said = [{"role": "user", "content": "A cat"}]
    assert theirs.apply_chat_template(said, tokenize=False) == "<|begin|><|user|>A cat<|endoftext|>"
    chatted = theirs.apply_chat_template(said, return_dict=False)
    assert (chatted[:2], chatted[-1]) == ([1, 2], 0), "special tokens keep their ids"
    assert theirs.decode(chatted, skip_special_tokens=True) == "A cat"
    ours = load_encoder(path.parent)
    for text in ("The cat sat.", "été 猫 \U0001f408 12345", ""):
        assert theirs(text)["input_ids"] == [1, *ours.encode(text).tolist()]
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text).tolist()
        assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == text
    assert (theirs.bos_token, theirs.bos_token_id, theirs.eos_token_id) == ("<|begin|>", 1, 0)
    model = loaded(tmp_path / "model")
    assert model.config.bos_token_id == model.generation_config.bos_token_id == 1
    with pytest.raises(CheckpointError, match="none of id 7"):
        exported(name, path, tmp_path / "other", begin=7)


@pytest.mark.parametrize("name", ["llama", "speedy_tied"])
def test_generation_ends_with_the_document(tmp_path, tokenizer, name):
    exported(name, tokenizer, tmp_path / "model")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model", trust_remote_code=True)
    model = loaded(tmp_path / "model")
    with torch.no_grad():  # a model to which all tokens are equal gives the first, which is the end
        (model.get_output_embeddings() or model.get_input_embeddings()).weight.zero_()
    made = model.generate(**theirs("The cat", return_tensors="pt"), max_new_tokens=9, do_sample=False)
    assert made[0, -1] == model.generation_config.eos_token_id == 0
    assert made.shape[1] == len(theirs("The cat")["input_ids"]) + 1


def test_a_clean_process_loads_our_code_and_nothing_of_ours(tmp_path, tokenizer):
    exported("speedy", tokenizer, tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "elsewhere")
    code = (
        "import sys, torch, transformers\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "print(type(model).__name__, sum(p.numel() for p in model.parameters()))\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('pretrain', 'governance', 'data_pipeline')))"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "elsewhere"],
        capture_output=True, text=True, check=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    size = sum(p.numel() for p in model_of(config(**EVERY["speedy"]), size_of(tokenizer)).parameters())
    assert done.stdout.splitlines() == [f"AssayForCausalLM {size}", "[]"]


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path, tokenizer):
    other = write_tokenizer(tmp_path / "tokenizer.json", 257)
    settings = config()
    recipe = TrainRecipe(
        model=settings, optim=OptimConfig(learning_rate=1e-3, warmup_steps=0, decay_steps=0),
        train=TrainConfig(sequence_length=32, global_batch_size=1, steps=1),
    )  # fmt: skip
    identity = CheckpointIdentity(train_key="k", step=1, vocabulary_size=size_of(tokenizer), recipe=recipe)
    with pytest.raises(CheckpointError, match="has 257 tokens; the checkpoint has a vocabulary"):
        write_folder(lambda name: None, identity, ExportVocabulary(other, 0), tmp_path / "out")
    with pytest.raises(CheckpointError, match="none of id 7"):
        write_folder(lambda name: None, identity, ExportVocabulary(tokenizer, 7), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path, make_tokens):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="never overwrites"):
        export(tmp_path, make_tokens(tmp_path), tmp_path / "full", tmp_path)


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("adapter", [False, True])
def test_an_export_that_is_refused_halfway_leaves_nothing(tmp_path, monkeypatch, existed, adapter):
    """Here --dtype fp16 is refused at the second file, whose weights are too large."""
    target = tmp_path / "model"
    if existed:
        target.mkdir()

    def refused(*_):
        write_text(target / "model-00001-of-00002.safetensors", "written before")
        raise ConfigError("--dtype fp16")

    monkeypatch.setattr(peft_folder if adapter else huggingface, "read_checkpoint", refused)
    given = (peft_folder.export_adapter, tmp_path) if adapter else (export, tmp_path, None)
    with pytest.raises(ConfigError, match="fp16"):
        given[0](*given[1:], target, tmp_path)
    assert target.exists() == existed
    assert not list(target.glob("*"))


def test_every_preset_of_the_table_names_its_architecture():
    assert {name: family_of(config(**EVERY[name])).architecture for name in ARCHITECTURES} == ARCHITECTURES


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_scores_are_those_of_a_plain_computation_by_transformers(tmp_path, tokenizer, name):
    _, model = exported(name, tokenizer, tmp_path / f"scored_{name}")
    theirs = loaded(tmp_path / f"scored_{name}")
    encode_text = transformers.AutoTokenizer.from_pretrained(tmp_path / f"scored_{name}", trust_remote_code=True)
    questions = tuple(
        Question(
            f"Question: {number} cats and {number} dogs make\nAnswer:", (" more", f" {2 * number} animals", " été"), 1
        )
        for number in range(12)
    )
    texts = [(question.context, choice) for question in questions for choice in question.choices]
    found = log_likelihoods(nats_with(model.eval()), load_encoder(tokenizer.parent).encode, texts, 64)
    right = 0
    for number, question in enumerate(questions):
        plain = []
        for choice in question.choices:
            ids = torch.tensor([encode_text(question.context + choice)["input_ids"]])
            first = len(encode_text(question.context)["input_ids"])
            with torch.no_grad():
                chances = theirs(ids).logits[0].double().log_softmax(-1)
            plain.append(sum(float(chances[place - 1, ids[0, place]]) for place in range(first, ids.shape[1])))
        assert [scored.nats for scored in found[3 * number : 3 * number + 3]] == pytest.approx(plain, abs=1e-4)
        right += plain[1] == max(plain)
    assert figures(questions, found)["acc"] == pytest.approx(right / len(questions))
