"""The model alone, forward and backward on one core of this CPU, against the same model by torch's own operations.

Processor time of one computing thread, both models in turn with bare matrix products in one process: shares
and ratios are medians over rounds. `docs/models.md` lists them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import torch
import torch.nn.functional as F

from benchmarks.measures.goals import Goal, figure, peak_mb
from pretrain.config.model import ModelConfig
from pretrain.metrics.peak_flops import measured_product
from pretrain.model.attention import AttentionRule, allowed_pairs, block_attention, masked_attention
from pretrain.model.decoder import Batch, Decoder
from pretrain.model.flops import flops_per_token
from pretrain.model.init import initial_weight
from pretrain.model.loss import Head, Logits, cross_entropy

VOCABULARY, ROWS, LENGTH, WIDTH = 256, 16, 256, 384
Work = Callable[[], object]


def kernels(quick: bool) -> list[Goal]:
    """All measurements of the kernels."""
    torch.set_num_threads(1)
    rounds = 7 if quick else 25
    goals = []
    for documents in (1, 4):
        goals += _shares(documents, rounds)
    for vocabulary in (50_304, 4_096):
        goals += _head(vocabulary, 2_048, rounds)
    for name in ("ours", "torch"):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            goals.append(
                figure(f"kernels_head_memory_mb_{name}", pool.submit(_head_memory, name, 50_304, 4_096).result())
            )
    return goals + [goal for documents in (1, 4) for goal in _errors(documents)]


def _shares(documents: int, rounds: int) -> list[Goal]:
    """Shares of the bf16 products in a whole model, ours and torch's, and the ratio of their times."""
    model, batch = _model(), _batch(documents)
    work = flops_per_token(model.config, VOCABULARY, LENGTH) * ROWS * LENGTH

    def ours() -> None:
        objective, _ = model(batch.tokens, batch.targets, batch.segments, batch.positions)
        objective.backward()
        model.zero_grad()

    def theirs() -> None:
        with torch_s_own():
            ours()

    found: dict[str, list[float]] = {"ours": [], "torch": []}
    peaks = []
    ours(), theirs()
    for _ in range(rounds):
        peaks.append(measured_product(torch.device("cpu"), "bf16").flops_per_second or 0.0)
        found["ours"].append(_seconds(ours))
        found["torch"].append(_seconds(theirs))
    goals = [
        figure(
            f"kernels_share_{name}_{documents}",
            statistics.median(work / spent / peak for spent, peak in zip(seconds, peaks, strict=True)),
            note=f"{1000 * statistics.median(seconds):.0f} ms, {documents} document(s) per row",
        )
        for name, seconds in found.items()
    ]
    return [*goals, figure(f"kernels_times_torch_{documents}", _ratio(found["torch"], found["ours"]))]


def _head(vocabulary: int, tokens: int, rounds: int) -> list[Goal]:
    """The output projection with its loss, forward and backward: CPU-seconds."""
    hidden, weight, targets = _head_of(vocabulary, tokens)
    works = {"ours": lambda: _pieces(hidden, weight, targets), "torch": lambda: _whole(hidden, weight, targets)}
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            spent = _seconds(work)
            if number:
                found[name].append(spent)
    goals = [
        figure(f"kernels_head_seconds_{name}_{vocabulary}", statistics.median(seconds))
        for name, seconds in found.items()
    ]
    return [*goals, figure(f"kernels_head_times_torch_{vocabulary}", _ratio(found["torch"], found["ours"]))]


def _head_memory(name: str, vocabulary: int, tokens: int) -> float:
    """By how many MB of 10^6 bytes the peak of resident memory rises; called in a fresh process."""
    torch.set_num_threads(1)
    given = _head_of(vocabulary, tokens)
    _small = _head_of(512, 64)
    work = _pieces if name == "ours" else _whole
    work(*_small)  # compiles and loads what there is to load
    before = peak_mb()
    work(*given)
    return peak_mb() - before


def _errors(documents: int) -> list[Goal]:
    """Attention in bf16: its RMS error, for the same bf16 inputs, over what rounding the inputs to bf16 costs."""
    generator = torch.Generator().manual_seed(0)
    exact_inputs = [torch.randn(ROWS, 6, LENGTH, 64, generator=generator) for _ in range(3)]
    inputs = [x.bfloat16() for x in exact_inputs]
    segments = _batch(documents).segments
    rule, pairs = AttentionRule(64**-0.5), allowed_pairs(segments)

    def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        logits = (q.double() @ k.double().transpose(-1, -2)) * rule.scale
        return logits.masked_fill(~pairs, -torch.inf).softmax(-1) @ v.double()

    right = exact(*inputs)
    rounding = _rms(right - exact(*exact_inputs))
    ways = {"ours": block_attention(segments, rule), "torch": masked_attention(segments, rule)}
    goals = [
        figure(f"kernels_attention_error_{name}_{documents}", _rms(attend(*inputs) - right) / rounding)
        for name, attend in ways.items()
    ]
    written = _rms(right.bfloat16() - right) / rounding
    return [*goals, figure(f"kernels_attention_error_of_writing_bf16_{documents}", written)]


@contextlib.contextmanager
def torch_s_own() -> Iterator[None]:
    """Torch's operations for ours: a mask's table with SDPA, `rms_norm`, `silu`, and whole logits with `cross_entropy`.

    Without a GPU and outside torch.compile our operations would be taken; where it says that it compiles, they are not.
    """

    def whole(head: Head, x: torch.Tensor, targets: torch.Tensor, soft: None) -> tuple[torch.Tensor, torch.Tensor]:
        nats = F.cross_entropy(F.linear(x, head.weight).flatten(0, 1).float(), targets.flatten(), reduction="none")
        return nats.sum(), nats.detach().view(targets.shape)

    with mock.patch("torch.compiler.is_compiling", return_value=True), mock.patch.object(Head, "forward", whole):
        yield


def _model() -> Decoder:
    config = ModelConfig(
        hidden_size=WIDTH,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=LENGTH,
    )
    model = Decoder(config, VOCABULARY)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(initial_weight(name, parameter.shape, config, 0))
    return model.bfloat16()


def _batch(documents: int) -> Batch:
    """Rows of so many documents of equal length."""
    tokens = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    size = LENGTH // documents
    places = torch.arange(LENGTH, dtype=torch.int32).expand(ROWS, -1)
    return Batch(tokens, tokens.roll(-1, 1), (places // size).contiguous(), (places % size).contiguous())


def _head_of(vocabulary: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=generator).bfloat16().requires_grad_()
    weight = (0.02 * torch.randn(vocabulary, WIDTH, generator=generator)).bfloat16().requires_grad_()
    return hidden, weight, torch.randint(0, vocabulary, (tokens,), generator=generator)


def _pieces(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> None:
    cross_entropy(hidden, weight, targets, Logits())[0].backward()
    hidden.grad = weight.grad = None


def _whole(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> None:
    F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum").backward()
    hidden.grad = weight.grad = None


def _seconds(work: Work) -> float:
    """Processor time of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def _ratio(slow: list[float], fast: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def _rms(x: torch.Tensor) -> float:
    return x.double().square().mean().sqrt().item()
