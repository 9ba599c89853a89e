"""A vocabulary that two ranks share: losses and gradients of one rank, and no exchange of the logits' size.

Run as a script, this is one of the ranks.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import distributed, nn
from torch.utils._python_dispatch import TorchDispatchMode

from governance.errors import ConfigError
from pretrain.config.training import EngineConfig
from pretrain.distributed.process_group import Ranks, join, read_ranks
from pretrain.model.loss import Head, Logits
from pretrain.model.vocabulary_part import VocabularyPart, split_vocabulary
from pretrain.preflight.hardware import Hardware
from pretrain.preflight.memory import estimate
from pretrain.preflight.memory_room import refuse_what_cannot_fit
from tests.pretrain.preflight.test_memory import VOCABULARY, recipe
from tests.pretrain.rank_runs import run_ranks

TOKENS, WIDTH, ROWS = 20, 8, 256
RULES = (Logits(), Logits(z_loss=0.01), Logits(0.5, 3.0, 0.02))
KINDS = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 4e-3}


@pytest.mark.slow
def test_two_ranks_that_split_the_vocabulary_compute_what_one_does(tmp_path):
    well, output = run_ranks(tmp_path, [__file__], 2)
    assert well, output


def check_rank() -> None:
    """Losses, slopes, embeddings and collectives of a rank, against whole tables."""
    ranks = read_ranks()
    join(ranks, 60.0)
    for rule, kind, tied in itertools.product(RULES, KINDS, (False, True)):
        _check(VocabularyPart(2, ranks.rank), rule, kind, tied)


def _check(part: VocabularyPart, rule: Logits, kind: torch.dtype, tied: bool) -> None:
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(kind)

    embedding, head = nn.Embedding(ROWS, WIDTH, dtype=kind), Head(WIDTH, ROWS, rule).to(kind)
    with torch.no_grad():
        embedding.weight.copy_(drawn(ROWS, WIDTH))
        head.weight.copy_(drawn(ROWS, WIDTH))
    if tied:
        head.weight = embedding.weight
    tokens = torch.randint(0, ROWS, (2, TOKENS // 2), generator=generator)
    targets = torch.randint(0, ROWS, tokens.shape, generator=generator)
    targets[0, 3:5] = -100
    weights = [embedding.weight] if tied else [embedding.weight, head.weight]
    whole = head(embedding(tokens), targets)
    slopes = torch.autograd.grad(whole[0] / TOKENS, weights)

    split_vocabulary(embedding, head, part)
    own = [embedding.weight] if tied else [embedding.weight, head.weight]
    assert all(weight.shape == (ROWS // 2, WIDTH) for weight in own)
    with _Sizes() as seen:
        split = head(embedding(tokens), targets)
        ours = torch.autograd.grad(split[0] / TOKENS, own)
    # embedding, largest logit, sum with the target's logit, gradient of the hidden states
    assert sorted(seen.exchanged) == sorted([TOKENS * WIDTH, TOKENS, 2 * TOKENS, TOKENS * WIDTH])
    assert seen.widest == ROWS // 2
    near = {"atol": KINDS[kind], "rtol": KINDS[kind]}
    for found, expected in zip(split, whole, strict=True):
        torch.testing.assert_close(found, expected, **near)
    for found, expected in zip(ours, slopes, strict=True):
        torch.testing.assert_close(found, expected.chunk(2)[part.rank], **near)


class _Sizes(TorchDispatchMode):
    """Last axis of the widest result of the vocabulary's order, and numbers that are reduced over the ranks."""

    def __enter__(self):
        self.widest, self.exchanged, self._real = 0, [], distributed.all_reduce
        distributed.all_reduce = lambda values, *given, **named: (
            self.exchanged.append(values.numel()),
            self._real(values, *given, **named),
        )
        return super().__enter__()

    def __exit__(self, *error):
        distributed.all_reduce = self._real
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dim() > 1:
            self.widest = max(self.widest, out.shape[-1], out.shape[0])
        return out


def test_memory_of_tables_and_logits_falls_by_the_ranks():
    whole, split = (
        estimate(recipe(), EngineConfig(zero_stage=1, tensor_parallel_size=size), VOCABULARY, 8, "cuda")
        for size in (1, 8)
    )
    assert whole.device["loss"] / split.device["loss"] > 3
    assert whole.device["parameters"] / split.device["parameters"] == pytest.approx(8, rel=0.01)
    assert whole.host == split.host  # each rank builds the whole model, and cuts it afterwards


def test_a_vocabulary_that_ranks_do_not_divide_is_refused():
    engine, hardware = EngineConfig(tensor_parallel_size=5), Hardware(Ranks(0, 5, 0, 5), "cpu")
    with pytest.raises(ConfigError, match="tensor_parallel_size = 5 does not divide the 128256 rows"):
        refuse_what_cannot_fit(recipe(), engine, VOCABULARY - 100, hardware)


if __name__ == "__main__":
    check_rank()
