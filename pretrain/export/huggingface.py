"""Export of a checkpoint as a Hugging Face folder.

    config.json, generation_config.json                     architecture (`architectures.py`), ids of special tokens
    model.safetensors                                       fp32 masters, or rounded; vocabulary padded
    model-00001-of-0000N.safetensors, ...index.json         the same above 5 GB
    tokenizer.json, tokenizer_config.json, special_tokens_map.json, and chat_template.jinja: ChatML after training
                                                            on answers, else the tokenizer's, if any
    configuration_assay.py, modeling_assay.py               only where no architecture of transformers is exact
    README.md                                               model card: facts and digests

Logits equal Assay's to rounding (1e-5 in fp32 for models of a test's size), for texts that are one document. Price: one
pass over the weights, one file of at most 5 GB in memory at a time.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_pipeline.tokens.chat_template import CHATML, TEMPLATE_FILE
from governance.errors import CheckpointError, ConfigError
from governance.files import copy_beginning, write_json, write_text
from governance.manifest import Manifest
from pretrain.checkpoint.averaged_weights import averaged_expert_bias, averaged_weights
from pretrain.checkpoint.format import CheckpointIdentity, identity_of, read_checkpoint
from pretrain.checkpoint.safetensors_files import file_plan, write_rounded
from pretrain.config.model import ModelConfig, padded_vocabulary
from pretrain.data.tokenizer_check import refuse_foreign_tokenizer
from pretrain.export.architectures import classifier_of, family_of
from pretrain.export.exported_architecture import EXPERT_BIAS, ExportedTensor, Family, expert_bias_names
from pretrain.export.new_folder import new_folder

SHARD_BYTES = 5_000_000_000  # per file, as transformers does
INDEX = "model.safetensors.index.json"
REPLACED = (
    "model.safetensors", "model-*-of-*.safetensors", INDEX, TEMPLATE_FILE, "adapter_config.json",
    "adapter_model.safetensors",
)  # fmt: skip
"""Files that loaders prefer or add, and that an earlier export into the same repository may have left there."""
Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, tuple[str, int]] = {"fp32": ("float32", 4), "bf16": ("bfloat16", 2), "fp16": ("float16", 2)}
"""Form of the weights -> name in torch, bytes per element."""

Read = Callable[[str], Any]
"""Parameter's name -> fp32 tensor."""


@dataclass(frozen=True)
class ExportFacts:
    """Facts that the checkpoint does not hold."""

    sources: Sequence[tuple[str, str, str]] = ()
    """Name, licence and URL of each source of the corpus."""
    unverified: str = ""
    """Reason why the checkpoint's origin is not verified; "": it is, or nobody checked."""
    chat_template: str = ""
    """Template of the chats of its training; "": that of the tokenizer, if any."""
    labels: Sequence[str] = ()
    """Labels of a classifier, in the order of its head."""
    others: Sequence[Manifest] = ()
    """Verified checkpoints of its training whose weights are averaged with its own."""


@dataclass(frozen=True)
class ExportVocabulary:
    """Tokenizer file with its end and begin tokens."""

    path: Path
    end: int
    begin: int | None = None
    """Id that begins documents; None: documents have none."""
    chat_template: str = ""
    """Chat template; "": none."""


def export(
    checkpoint: Path,
    tokenizer: Manifest,
    target: Path,
    root: Path,
    dtype: Dtype = "fp32",
    facts: ExportFacts = ExportFacts(),
) -> tuple[Manifest, dict[str, str]]:
    """Write a checkpoint and its tokenizer into the new folder `target`.

    Where it is refused or interrupted, no file is left.

    Args:
        checkpoint: the checkpoint's folder; its files are verified first.
        tokenizer: the artifact of the tokenizer that it was trained with (`tokenizer_check.py`).
        target: a new or empty folder.
        root: the artifacts' root.
        dtype: type to which the weights are rounded, to nearest, ties to even.
        facts: for the card and the chat template.

    Returns:
        The checkpoint's manifest, and the SHA-256 of each file of weights as it was written.

    Raises:
        CheckpointError: the checkpoint is damaged, or was trained with another tokenizer.
        ManifestError: the tokenizer was altered.
        ConfigError: the target is not empty, or a weight is too large for fp16.
    """
    with new_folder(target):
        return _export(checkpoint, tokenizer, target, root, dtype, facts)


def _export(
    checkpoint: Path, tokenizer: Manifest, target: Path, root: Path, dtype: Dtype, facts: ExportFacts
) -> tuple[Manifest, dict[str, str]]:
    manifest = read_checkpoint(checkpoint, root)
    identity = identity_of(manifest)
    refuse_foreign_tokenizer(manifest, tokenizer, root)
    stats = tokenizer.stats
    templates = (root / out.path for out in tokenizer.outputs if out.path.endswith(f"/{TEMPLATE_FILE}"))
    vocabulary = ExportVocabulary(
        root / tokenizer.folder / "tokenizer.json",
        int(stats["end_of_document"]),
        stats.get("begin_of_document"),
        facts.chat_template or next((path.read_text(encoding="utf-8") for path in templates), ""),
    )
    averaged = (manifest, *facts.others)
    biases = expert_bias_tensors(identity.recipe.model, averaged_expert_bias(averaged, root))
    with averaged_weights(averaged, root) as weight:

        def read(name: str) -> Any:
            return biases[name] if name in biases else weight(name, None)

        family, digests = write_folder(read, identity, vocabulary, target, dtype=dtype, labels=facts.labels)
    card = _card(manifest, identity, family, dtype, vocabulary.begin, facts)
    write_text(target / "README.md", card)
    return manifest, digests


def use_of(folder: Path) -> tuple[str, str]:
    """The line that uses an exported folder, and the place for it."""
    config = json.loads((folder / "config.json").read_bytes())
    if config["architectures"] == ["AssayEncoderDecoder"]:  # transformers has no such class
        # relative to that file, which may be anywhere
        return f'train.initial_weights = "{folder.absolute()}"', "a run's file"
    classifies = config["architectures"][0].endswith("SequenceClassification")
    auto = f"AutoModelFor{'SequenceClassification' if classifies else 'CausalLM'}"
    trust = ", trust_remote_code=True" if "auto_map" in config else ""
    return f'transformers.{auto}.from_pretrained("{folder}"{trust})', "Python"


def expert_bias_tensors(model: ModelConfig, values: Sequence[Sequence[float]] | None) -> dict[str, Any]:
    """Selection biases of a checkpoint's `state.json`, by exported name."""
    import torch

    return {name: torch.tensor(row) for name, row in zip(expert_bias_names(model), values or (), strict=True)}


def write_folder(
    read: Read,
    identity: CheckpointIdentity,
    tokenizer: ExportVocabulary,
    target: Path,
    shard_bytes: int = SHARD_BYTES,
    dtype: Dtype = "fp32",
    labels: Sequence[str] = (),
) -> tuple[Family, dict[str, str]]:
    """Write the folder without its card; `read` returns a parameter by name.

    Returns the architecture, and the SHA-256 of each file of weights as it was written.

    Raises:
        CheckpointError: the tokenizer has another vocabulary.
        ConfigError: a weight is too large for fp16.
    """
    special = _special_tokens(tokenizer, identity)
    model = identity.recipe.model
    family = classifier_of(model, labels) if model.num_labels else family_of(model)
    digests = _write_weights(read, family, identity, target, shard_bytes, dtype)
    if family.own_code:
        for name in ("configuration_assay.py", "modeling_assay.py"):
            source = importlib.resources.files(__package__).joinpath("remote_code", name)
            write_text(target / name, source.read_text(encoding="utf-8"))
    held = json.loads(tokenizer.path.read_bytes())
    adds = (held.get("post_processor") or {}).get("type", "ByteLevel") != "ByteLevel"
    if tokenizer.begin is None and not adds and not held.get("truncation") and not held.get("padding"):
        # A copy, not a second name: a tool may edit the exported file in place.
        copy_beginning(tokenizer.path, target / "tokenizer.json", tokenizer.path.stat().st_size)
    else:
        # The tokens that training put around a text, and no others: a Llama file, say, adds one of its own.
        begins = None if tokenizer.begin is None else _begin_processor(special["bos"], tokenizer.begin)
        plain = {"post_processor": begins, "truncation": None, "padding": None}
        write_json(target / "tokenizer.json", {**held, **plain})
    if tokenizer.chat_template:
        write_text(target / TEMPLATE_FILE, tokenizer.chat_template)
    _write_settings(target, family, identity, (tokenizer, special), dtype)
    return family, digests


def _special_tokens(tokenizer: ExportVocabulary, identity: CheckpointIdentity) -> dict[str, str]:
    """Texts of the end ("eos") and begin ("bos") tokens.

    Raises:
        CheckpointError: the tokenizer has another number of tokens than the model, or lacks a special token.
    """
    held = json.loads(tokenizer.path.read_bytes())
    added = {token["id"]: token["content"] for token in held["added_tokens"]}
    special = {token["id"]: token["content"] for token in held["added_tokens"] if token["special"]}
    vocabulary = held["model"]["vocab"]  # for a Unigram model, a list in the order of the ids
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    size = max(*ids, *added) + 1
    wanted = {"eos": tokenizer.end, **({} if tokenizer.begin is None else {"bos": tokenizer.begin})}
    absent = [index for index in wanted.values() if index not in special]
    if size != identity.vocabulary_size or absent:
        raise CheckpointError(
            f"{tokenizer.path}: has {size} tokens{f', none of id {absent[0]}' if absent else ''}; "
            f"the checkpoint has a vocabulary of {identity.vocabulary_size}. Give the configuration of its training."
        )
    return {name: str(special[index]) for name, index in wanted.items()}


def _begin_processor(text: str, index: int) -> dict[str, Any]:
    """Post-processor that puts a token before each text."""
    token = {"SpecialToken": {"id": text, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B"))
    return {
        "type": "TemplateProcessing",
        "single": [token, first],
        "pair": [token, first, second],
        "special_tokens": {text: {"id": text, "ids": [index], "tokens": [text]}},
    }


def _write_weights(
    read: Read, family: Family, identity: CheckpointIdentity, target: Path, shard_bytes: int, dtype: Dtype
) -> dict[str, str]:
    """Write the weights in one file, or in several with an index.

    `shard_bytes` is the most bytes of a file. Returns the SHA-256 of what was written, by file.
    """
    sizes = _parameter_sizes(identity)
    pieces = {piece.name: piece for piece in family.tensors(list(sizes))}
    elements = [(name, sum(sizes[source] for source in piece.sources)) for name, piece in pieces.items()]
    width = DTYPES[dtype][1]
    # `file_plan` counts 4 bytes per element
    plan = file_plan([(name, (count,)) for name, count in elements], shard_bytes * 4 // width)
    found: dict[str, str] = {}
    digests: dict[str, str] = {}
    for number, names in enumerate(plan, 1):
        file = "model.safetensors" if len(plan) == 1 else f"model-{number:05d}-of-{len(plan):05d}.safetensors"
        tensors = {name: _rounded_tensor(read, pieces[name], dtype) for name in names}
        digests[file] = write_rounded(target / file, tensors)
        found |= dict.fromkeys(names, file)
    if len(plan) > 1:
        total = width * sum(count for _, count in elements)
        write_json(target / INDEX, {"metadata": {"total_size": total}, "weight_map": found})
    return digests


def _rounded_tensor(read: Read, piece: ExportedTensor, dtype: Dtype) -> Any:
    import torch

    whole = piece.make([read(source) for source in piece.sources])
    if piece.name.endswith(EXPERT_BIAS):
        return whole
    rounded = whole.to(getattr(torch, DTYPES[dtype][0]))
    if bool((whole.isfinite() & ~rounded.isfinite()).any()):
        raise ConfigError(
            f"--dtype {dtype}: {piece.name} has a weight of {float(whole.abs().max()):g}, which {dtype} cannot hold; "
            f"give --dtype bf16 or fp32"
        )
    return rounded


def _parameter_sizes(identity: CheckpointIdentity) -> dict[str, int]:
    """Elements of each parameter, in the model's order; allocates no weights."""
    import torch

    from pretrain.encoder_decoder.model_of_pairs import make_model

    with torch.device("meta"):
        model = make_model(identity.recipe.model, identity.vocabulary_size)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    moe = identity.recipe.model.moe
    return (
        sizes if moe is None else sizes | dict.fromkeys(expert_bias_names(identity.recipe.model), moe.num_local_experts)
    )


def _write_settings(
    target: Path,
    family: Family,
    identity: CheckpointIdentity,
    ends: tuple[ExportVocabulary, dict[str, str]],
    dtype: Dtype,
) -> None:
    (tokenizer, texts) = ends
    ids = {"bos_token_id": tokenizer.begin, "eos_token_id": tokenizer.end, "pad_token_id": tokenizer.end}
    config = {"architectures": [family.architecture], **family.config, **ids}
    size, name = padded_vocabulary(identity.vocabulary_size), DTYPES[dtype][0]
    write_json(target / "config.json", {**config, "vocab_size": size, "dtype": name, "torch_dtype": name})
    write_json(target / "generation_config.json", ids)
    begins = {"bos_token": texts["bos"]} if "bos" in texts else {}
    special = {**begins, "eos_token": texts["eos"], "pad_token": texts["eos"]}
    # The markers were trained as ordinary text; a begin token in the template must keep its id.
    markers_are_text = tokenizer.chat_template == CHATML and not begins
    write_json(target / "special_tokens_map.json", special)
    write_json(
        target / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": identity.recipe.model.max_position_embeddings,
            "clean_up_tokenization_spaces": False,
            "add_bos_token": bool(begins),
            **({"split_special_tokens": True} if markers_are_text else {}),
            **special,
        },
    )


def _card(
    manifest: Manifest,
    identity: CheckpointIdentity,
    family: Family,
    dtype: Dtype,
    begin: int | None,
    facts: ExportFacts,
) -> str:
    """Model card of the folder; `begin` is the id that begins documents."""
    source = manifest.stats.get("initial_weights", {})
    pairs = identity.recipe.model.encoder_layers > 0
    lines: Sequence[str] = (
        "---",
        f"library_name: {'assay' if pairs else 'transformers'}",
        f"pipeline_tag: text{'2text-generation' if pairs else '-classification' if facts.labels else '-generation'}",
        *(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in sorted(source.get("card", {}).items())),
        "---",
        "",
        f"# {family.architecture} of training run {identity.train_key[:16]}",
        "",
        "| | |",
        "|---|---|",
        f"| architecture | {family.architecture}{', its code in this folder' if family.own_code else ''} |",
        f"| optimizer steps | {identity.step:,} |",
        f"| tokens predicted in training | {manifest.stats['tokens']:,} |",
        f"| vocabulary | {identity.vocabulary_size:,}, padded to {padded_vocabulary(identity.vocabulary_size):,} for "
        "matrix units; no text has the ids of the padding |",
        f"| longest row in training | {identity.recipe.train.sequence_length:,} tokens |",
        f"| weights | {dtype}{', rounded from fp32' if dtype != 'fp32' else ''} |",
        *_expert_bias_rows(identity),
        f"| checkpoint, digest | {manifest.digest} |",
        *(f"| averaged with step {identity_of(one).step:,}, digest | {one.digest} |" for one in facts.others),
        f"| training run, key | {identity.train_key} |",
        *(f"| made from {item.stage}, digest | {item.digest} |" for item in manifest.inputs),
        *([f"| origin of the weights | not verified: {facts.unverified} |"] if facts.unverified else []),
        *_start_rows(source),
        *(f"| text of {name} | {licence}{f', {url}' if url else ''} |" for name, licence, url in facts.sources),
        *([] if source else ["| licence of the weights | not stated; add `license` above before you publish them |"]),
        "",
        *(_USE_OF_PAIRS if pairs else _use(family, begin, facts)),
        "",
    )
    return "\n".join(lines)


_USE_OF_PAIRS = (
    "```toml", "[train]", 'initial_weights = "."  # a training of Assay that begins with this folder', "```",
)  # fmt: skip


def _use(family: Family, begin: int | None, facts: ExportFacts) -> Sequence[str]:
    """Card's lines about how to load the folder."""
    before = (
        "no token stood before its first" if begin is None else f"token {begin}, which the tokenizer adds, began it"
    )
    trust = ", trust_remote_code=True" if family.own_code else ""
    auto = "AutoModelForSequenceClassification" if facts.labels else "AutoModelForCausalLM"
    return (
        "```python",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'model = {auto}.from_pretrained("."{trust})',
        f'tokenizer = AutoTokenizer.from_pretrained("."{trust})',
        "```",
        "",
        f"In training a document saw nothing of others, and {before}: give a text as it is.",
    )


def _expert_bias_rows(identity: CheckpointIdentity) -> list[str]:
    """Card's row about experts that are chosen with a bias, if any."""
    if not expert_bias_names(identity.recipe.model):
        return []
    return [f"| selection of experts | probability plus a bias of each expert (`{EXPERT_BIAS}`, fp32) |"]


def _start_rows(source: Mapping[str, Any]) -> list[str]:
    """Card's rows about the weights that training began from, if any."""
    if not source:
        return []
    licence = source["card"].get("license_name") or source["card"].get("license") or "not stated in their card"
    terms = "".join(f"; {name} (sha256 {digest}) applies" for name, digest in source.get("terms", {}).items())
    return [
        f"| weights at the start | {source['name']} ({source['model_type']}), digest {source['digest']} |",
        f"| licence of these weights | {licence}{terms} |",
    ]
