"""Model facts: one line for page one, details for engineers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from governance.reports.facts.training_facts import classifies
from governance.reports.html.markup import UNKNOWN, Child, compact, digest, number, with_unit

MODEL_FACTS = ("/training/stats", "/training/config", "/training/execution", "/training/attempts")
"""Places in report.json of these facts."""
_BLOCKS = {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm", "swiglu": "SwiGLU", "gelu": "GELU", "rope": "RoPE"}


def loss_unit(training: Mapping[str, Any]) -> str:
    """Unit of a training's losses; a classifier predicts labels."""
    return f"nats per {'label' if classifies(training['config']) else 'token'}"


def model_line(facts: Mapping[str, Any]) -> str:
    """Family, parameters, tokens, loss and bits per byte; "" without a training."""
    run = facts["training"]
    if run is None:
        return ""
    stats, summary = run["stats"], facts["summary"]
    parts = [
        f"{family(run['config'])}, {parameters(stats.get('parameters'))}{trained_share(stats)}",
        f"{number(summary['tokens_trained'])} tokens in {number(summary['steps'])} steps",
        f"training loss {number(summary['final_loss'])}, "
        f"validation loss {number(summary['validation_loss'])} {loss_unit(run)}",
    ]
    if summary["bits_per_byte"] is not None:
        parts.append(f"{number(summary['bits_per_byte'])} bits per byte")
    return "; ".join(parts)


def unverified_origin(facts: Mapping[str, Any]) -> str:
    """Weights of unknown origin that a training started from; "" without."""
    origin = (facts["training"] or {}).get("origin")
    return f"{origin['from']}, {origin['why']}" if origin and not origin["verified"] else ""


def family(config: Mapping[str, Any]) -> str:
    """The kind of model."""
    model = config.get("model") or {}
    kind = "Transformer encoder-decoder" if model.get("encoder_layers") else "Transformer decoder"
    head = f" with a head of {model['num_labels']} labels" if model.get("num_labels") else ""
    return f"{'Mixture-of-experts ' if model.get('moe') else ''}{kind}{head}"


def parameters(count: int | None) -> str:
    """2.36 M parameters."""
    if count is None:
        return "unknown parameters"
    return f"{count:,} parameters" if count < 10**6 else f"{with_unit(count / 1e6, ('M', 'B'))} parameters"


def trained_share(stats: Mapping[str, Any]) -> str:
    """Parameters that learned, where others were frozen; else ""."""
    trained = stats.get("trained_parameters")
    if trained is None:
        return ""
    return f", of which {number(trained)} learned ({number(100 * trained / stats['parameters'])} %)"


def model_facts(facts: Mapping[str, Any]) -> list[tuple[str, Child]]:
    """Shape of the model, its training and its hardware."""
    run = facts["training"]
    stats, config, execution = run["stats"], run["config"], run["execution"]
    pairs: list[tuple[str, Child]] = [
        ("Model", f"{family(config)}, {number(stats.get('parameters'))} parameters{trained_share(stats)}"),
        *_shape(config.get("model") or {}),
        *_recipe(config),
        ("Trained", f"{number(stats.get('steps'))} steps, {number(stats.get('tokens'))} tokens{_before(stats)}"),
        *_teacher(stats, config.get("train") or {}),
        ("Attempts", number(run["attempts"])),
        (
            "Execution",
            ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in sorted(execution.items())) or UNKNOWN,
        ),
        ("Peak for MFU", run["peak_source"] or UNKNOWN),
        ("Measured matmul", run["gemm_source"] or UNKNOWN),
        ("Artifact", [digest(run["digest"]), f" {run['path']}"]),
        *_recomputed(run.get("audit")),
    ]
    return pairs


def _recomputed(audit: Mapping[str, Any] | None) -> list[tuple[str, Child]]:
    """The newest audit that repeated stretches of the training."""
    if audit is None:
        return []
    chance = f"; a fault in one stretch is found with probability {number(audit['chance_of_one'])}"
    words = (
        f"{number(audit['amount'])} of {number(audit['checkpoints'])} stretches, draw {number(audit['draws'])}{chance}"
    )
    return [("Recomputed", f"{words}: {audit['verdict']}")]


def _teacher(stats: Mapping[str, Any], train: Mapping[str, Any]) -> list[tuple[str, Child]]:
    """The teacher of a distilled model, and how its loss compares."""
    of, section = stats.get("distillation"), train.get("distillation") or {}
    if not of:
        return []
    teacher = of["teacher"]
    line = f" {teacher['path']}, {number(teacher['parameters'])} parameters"
    how = f"{section.get('logits')}, weight {section.get('weight')}, temperature {section.get('temperature')}"
    pairs: list[tuple[str, Child]] = [("Teacher", [digest(teacher["digest"]), line]), ("Distillation", how)]
    if of.get("teacher_loss") is not None:
        losses = f"{number(stats.get('validation_loss'))}, the teacher's {number(of['teacher_loss'])} nats per token"
        pairs.append(("Validation loss", losses))
    return pairs


def _before(stats: Mapping[str, Any]) -> str:
    if "continued" not in stats:
        return ""
    return f", {number(stats['continued']['tokens'])} of them in the parent run"


def _shape(model: Mapping[str, Any]) -> list[tuple[str, Child]]:
    if not model.get("num_hidden_layers"):
        return []
    heads, groups = model.get("num_attention_heads"), model.get("num_key_value_heads")
    attention = f"{heads} heads" if heads == groups or not groups else f"{heads} heads, {groups} key-value heads"
    blocks = [
        _BLOCKS.get(str(model.get(name)), str(model.get(name)))
        for name in ("norm", "feed_forward", "position_embedding")
    ]
    layers = model["num_hidden_layers"]
    width = f"{number(layers)} layer{'s' * (layers > 1)}, width {number(model.get('hidden_size'))}"
    inner = f", inner width {number(model['intermediate_size'])}" if model.get("intermediate_size") else ""
    return [("Shape", f"{width}{inner}, {attention}"), ("Blocks", ", ".join(blocks))]


def _recipe(config: Mapping[str, Any]) -> list[tuple[str, Child]]:
    train, optim = config.get("train") or {}, config.get("optim") or {}
    if not train or not optim:
        return []
    batch = f"{number(train.get('global_batch_size'))} rows of {number(train.get('sequence_length'))} tokens"
    schedule = (
        f"{optim.get('optimizer')}, {optim.get('schedule')}, peak learning rate {compact(optim.get('learning_rate'))}"
    )
    removed = train.get("removed_documents") or ()
    taken_down: list[tuple[str, Child]] = [("Removed by takedown", f"{number(len(removed))} document(s)")]
    return [
        ("Batch", f"{batch}, {train.get('precision')}"), ("Optimizer", schedule), *(taken_down if removed else [])
    ]  # fmt: skip
