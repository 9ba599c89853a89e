from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from pretrain.model import flops as counting
from pretrain.model import loss
from pretrain.model.loss import Head, Logits, cross_entropy

RULES = [Logits(), Logits(0.5), Logits(softcap=3.0), Logits(z_loss=0.1), Logits(0.5, 2.0, 0.1)]


def inputs(count: int = 50, width: int = 8, vocabulary: int = 30) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(count, width, generator=generator), torch.randn(vocabulary, width, generator=generator)
    targets = torch.randint(0, vocabulary, (count,), generator=generator)
    targets[::7] = -100
    return hidden, weight, targets


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, rule: Logits):
    """The definition, by autograd on the logits of all tokens."""
    logits = (hidden @ weight.T) * rule.scale
    if rule.softcap:
        logits = rule.softcap * torch.tanh(logits / rule.softcap)
    nats = F.cross_entropy(logits, targets, reduction="none")
    return nats.sum() + rule.z_loss * logits.logsumexp(-1)[targets >= 0].square().sum(), nats


@pytest.mark.parametrize("tokens", [1024, 16], ids=["one piece", "pieces"])
@pytest.mark.parametrize("run", [1 << 17, 90], ids=["one run", "runs"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_losses_and_gradients_are_those_of_the_definition(rule, run, tokens, monkeypatch):
    monkeypatch.setattr(counting, "_PIECE_TOKENS", tokens)
    monkeypatch.setattr(counting, "_PIECE_LOGITS", {"cpu": 1})
    monkeypatch.setattr(loss, "_RUN_LOGITS", run)
    messages = []
    for function in (cross_entropy, plain, loss._by_autograd):
        hidden, weight, targets = inputs()
        hidden.requires_grad_()
        weight.requires_grad_()
        objective, nats = function(hidden, weight, targets, rule)
        (objective * 0.37).backward()
        messages.append((objective, nats, hidden.grad, weight.grad))
    for other in (1, 2):
        for ours, expected in zip(messages[0], messages[other], strict=True):
            torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_kernel_computes_what_runs_of_rows_compute(rule, learns):
    hidden, weight, targets = inputs()
    ours, plain = hidden @ weight.T, hidden @ weight.T
    nats, extras = loss._kernel(ours, targets, rule, learns)
    expected = loss._softmax_losses_in_runs(plain, targets, rule, learns)
    torch.testing.assert_close(nats, expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(extras.sum() if rule.z_loss else torch.zeros(()), expected[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours, plain, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_compiled_kernel_is_one_and_writes_no_chances(deterministic, monkeypatch):
    from torch._inductor.utils import run_and_get_code

    monkeypatch.setattr(loss, "_compiled", lambda: torch.compile(loss._kernel, fullgraph=True))
    torch._dynamo.reset()
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        products = torch.randn(70, 900).bfloat16()
        targets = torch.arange(70) - 5
        expected = loss._kernel(again := products.clone(), targets, Logits(), True)[0]
        (nats, _), codes = run_and_get_code(loss._softmax_losses_fused, products, targets, Logits(), True)
    finally:
        torch.use_deterministic_algorithms(was)
    torch.testing.assert_close(nats, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(products.float(), again.float(), atol=1e-2, rtol=1e-2)
    [code] = codes
    call = code.split("def call(")[1].split("\nrunner = ")[0]
    assert len(re.findall(r"^ +cpp_fused\w*\(", call, re.MULTILINE)) == 1
    assert "aten." not in call
    assert "scatter" not in call
    made = re.findall(r"empty_strided_cpu\(\((.*?)\), \(", call)
    assert made  # maxima and sums of rows
    assert all("900" not in shape for shape in made)


def test_pieces_of_any_size_share_one_compilation(monkeypatch):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(loss._kernel, fullgraph=True, backend=count)
    monkeypatch.setattr(loss, "_compiled", lambda: compiled)
    monkeypatch.setattr(loss, "_softmax_losses_on", lambda device, part: loss._softmax_losses_fused)
    monkeypatch.setattr(counting, "_PIECE_TOKENS", 16)
    monkeypatch.setattr(counting, "_PIECE_LOGITS", {"cpu": 1})
    for length in (50, 37, 20):
        hidden, weight, targets = inputs(length)
        objective, _ = cross_entropy(hidden.requires_grad_(), weight, targets, Logits())
        torch.testing.assert_close(objective, plain(hidden, weight, targets, Logits())[0], atol=2e-5, rtol=1e-5)
    assert len(graphs) == 1


@pytest.mark.parametrize("vocabulary", [50_304, 128_256])
def test_a_gpu_computes_few_pieces(vocabulary):
    """Each piece adds a gradient of the projection's size, in fp32."""
    assert 0.99 * 2**29 < counting.piece_tokens(vocabulary, "cuda") * vocabulary <= 2**29


def test_nothing_is_kept_where_nothing_learns():
    hidden, weight, targets = inputs()
    objective, nats = cross_entropy(hidden, weight, targets, Logits())
    assert not objective.requires_grad
    with torch.no_grad():
        again = cross_entropy(hidden.requires_grad_(), weight, targets, Logits())
    assert torch.equal(nats, again[1])


def test_a_batch_without_targets_costs_nothing():
    hidden, weight, targets = inputs()
    objective, nats = cross_entropy(hidden.requires_grad_(), weight, targets.fill_(-100), Logits(z_loss=0.1))
    objective.backward()
    assert objective.item() == 0
    assert not nats.any()
    assert not hidden.grad.any()


def test_bf16_sums_over_pieces_in_fp32(monkeypatch):
    monkeypatch.setattr(counting, "_PIECE_TOKENS", 8)
    monkeypatch.setattr(counting, "_PIECE_LOGITS", {"cpu": 1})
    hidden, weight, targets = (x.bfloat16() if x.is_floating_point() else x for x in inputs(4096))
    messages = []
    for cast in (torch.Tensor.bfloat16, torch.Tensor.double):
        leaf = cast(weight.clone()).requires_grad_()
        objective, _ = (plain if leaf.dtype == torch.float64 else cross_entropy)(cast(hidden), leaf, targets, Logits())
        objective.backward()
        messages.append((objective.double(), leaf.grad.double()))
    assert messages[0][0].item() == pytest.approx(messages[1][0].item(), rel=2e-3)
    off = (messages[0][1] - messages[1][1]).norm() / messages[1][1].norm()
    assert off < 4e-3  # one rounding to bf16; 512 sums in bf16 would be ten times that


def test_the_head_gives_logits_or_losses():
    head = Head(8, 30, Logits(0.5, 4.0))
    hidden, weight, targets = inputs()
    with torch.no_grad():
        head.weight.copy_(weight)
        logits = head(hidden.view(5, 10, 8))
        _, nats = head(hidden.view(5, 10, 8), targets.view(5, 10))
    expected = F.cross_entropy(logits.flatten(0, 1), targets, reduction="none").view(5, 10)
    torch.testing.assert_close(nats, expected, atol=1e-5, rtol=1e-5)
