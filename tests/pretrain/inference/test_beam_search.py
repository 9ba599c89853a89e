"""Beam search equals a plain one without caches, and a search of every target where that is possible."""

from __future__ import annotations

import itertools

import pytest
import torch

from governance.errors import PipelineError
from pretrain.inference.beam_search import Beam, translate
from tests.pretrain.encoder_decoder.pair_models import END, by_torch, made, random_pairs, small

SIZE, CONTEXT = 12, 16


def log_chances(model, source, written):
    """By torch's own `nn.Transformer`, of each next token."""
    pair = (source[:-1], list(written))
    assert source[-1] == END
    return by_torch(model, pair)[:, :SIZE].double().log_softmax(-1)


def plain_search(model, source, beam, most):
    """Every hypothesis is computed from its start; written without a look at the other."""
    live, finished = [(0.0, ())], []
    for length in range(1, most + 1):
        grown = []
        for chance, written in live:
            following = log_chances(model, source, written)[-1]
            grown += [(chance + float(following[token]), (*written, token)) for token in range(SIZE)]
        best = sorted(grown, reverse=True)[: 2 * beam.width]
        penalty = ((5 + length) / 6) ** beam.alpha
        finished += [(chance / penalty, written[:-1]) for chance, written in best if written[-1] == END]
        live = [one for one in best if one[1][-1] != END][: beam.width]
    return max(finished) if finished else (live[0][0] / penalty, live[0][1])


@pytest.fixture(scope="module")
def model():
    found = made(small(encoder_layers=1, num_hidden_layers=2))
    with torch.no_grad():
        found.model.embed_tokens.weight.mul_(2.0)  # chances far from even
    return found


@pytest.mark.parametrize("beam", [Beam(1, 0.6), Beam(3, 0.6), Beam(4, 0.0), Beam(4, 1.0)])
def test_it_finds_what_a_plain_search_finds(model, beam):
    for source, _ in random_pairs(1, 4):
        ours = translate(model, [*source, END], END, len(source) + 6, SIZE, beam)
        score, written = plain_search(model, [*source, END], beam, 5)
        assert ours.ids == written
        assert ours.score == pytest.approx(score, abs=1e-4)


def test_a_wide_beam_finds_the_best_of_all_targets(model):
    source, most = [5, 7, END], 3
    targets = itertools.chain.from_iterable(itertools.product(range(1, SIZE), repeat=n) for n in range(most))
    scores = {}
    for written in targets:
        chances = log_chances(model, source, written)
        total = sum(float(chances[place, token]) for place, token in enumerate([*written, END]))
        scores[written] = total / ((5 + len(written) + 1) / 6) ** 0.6
    best = max(scores, key=scores.get)
    found = translate(model, source, END, len(source) + most, SIZE, Beam(SIZE**2, 0.6))
    assert found.ids == best
    assert found.score == pytest.approx(scores[best], abs=1e-4)


def test_a_source_that_fills_the_context_is_refused(model):
    with pytest.raises(PipelineError, match=r"16 tokens; the model's context is 16 .* by 1 or more"):
        translate(model, [3] * 15 + [END], END, CONTEXT, SIZE, Beam())
