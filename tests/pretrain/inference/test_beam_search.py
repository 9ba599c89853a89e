"""Beam search equals a plain one without caches, a search of every target, and itself in batches of any size."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.errors import PipelineError
from pretrain.inference.beam_search import Beam, Limits, _batches, _continuations, translate
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
    sources = [[*source, END] for source, _ in random_pairs(1, 4)]
    limits = Limits(CONTEXT, SIZE)
    for source, ours in zip(sources, translate(model, sources, END, limits, beam), strict=True):
        score, written = plain_search(model, source, beam, limits.most(source))
        assert ours.ids == written
        assert ours.score == pytest.approx(score, abs=1e-4)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    lengths=st.lists(st.integers(0, 11), min_size=1, max_size=9),
    beam=st.builds(Beam, st.integers(1, 5), st.sampled_from([0.0, 0.6, 1.0])),
    tokens=st.integers(1, 1500),
)
def test_a_translation_does_not_depend_on_its_batch(seed, lengths, beam, tokens):
    model = made(small(encoder_layers=1 + seed % 2), seed).double()  # so that no rounding decides
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1.0 + seed % 3)
    sources = [[*torch.randint(1, 96, (n,), generator=generator).tolist(), END] for n in lengths]
    limits, done = Limits(CONTEXT, SIZE, tokens), []
    together = list(translate(model, sources, END, limits, beam, done.append))
    alone = [one for source in sources for one in translate(model, [source], END, limits, beam)]
    assert [one.ids for one in together] == [one.ids for one in alone]
    assert [one.score for one in together] == pytest.approx([one.score for one in alone], abs=1e-9)
    assert sum(done) == len(sources)


@given(lengths=st.lists(st.integers(1, 15), max_size=40), width=st.integers(1, 5), tokens=st.integers(1, 1500))
def test_a_batch_holds_no_more_tokens_than_allowed(lengths, width, tokens):
    limits, sources = Limits(CONTEXT, SIZE, tokens), [[3] * length for length in lengths]
    batches = list(_batches(sources, limits, Beam(width)))
    order = [number for batch in batches for number in batch]
    assert order == sorted(range(len(sources)), key=lambda number: (-lengths[number], number))
    for batch in batches:
        group = [sources[number] for number in batch]
        held = len(batch) * (max(map(len, group)) + width * max(map(limits.most, group)))
        assert held <= tokens or len(batch) == 1


@given(
    scores=st.lists(st.lists(st.integers(-3, 0), min_size=1, max_size=3), min_size=1, max_size=4),
    size=st.integers(2, 9),
    count=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
def test_equal_chances_go_by_rank_and_id(scores, size, count, seed):
    """One order of few values holds the chances, so most are equal."""
    owners = torch.tensor([source for source, own in enumerate(scores) for _ in own])
    so_far = torch.tensor([float(score) for own in scores for score in own], dtype=torch.float64)
    drawn = torch.randint(0, 3, (size,), generator=torch.Generator().manual_seed(seed)).float()
    found = list(_continuations(drawn.expand(len(owners), size), so_far, owners, count))
    chances = (so_far[:, None] + drawn.double().log_softmax(-1)).tolist()
    plain = []
    for source in range(len(scores)):
        rows = [row for row, owner in enumerate(owners.tolist()) if owner == source]
        every = [(-round(chances[row][token], 9), row, token) for row in rows for token in range(size)]
        plain += sorted(every)[:count]
    assert [one[1:] for one in found] == [one[1:] for one in plain]
    assert [one[0] for one in found] == pytest.approx([-one[0] for one in plain], abs=1e-6)


def test_a_wide_beam_finds_the_best_of_all_targets(model):
    source, most = [5, 7, END], 3
    targets = itertools.chain.from_iterable(itertools.product(range(1, SIZE), repeat=n) for n in range(most))
    scores = {}
    for written in targets:
        chances = log_chances(model, source, written)
        total = sum(float(chances[place, token]) for place, token in enumerate([*written, END]))
        scores[written] = total / ((5 + len(written) + 1) / 6) ** 0.6
    best = max(scores, key=scores.get)
    [found] = translate(model, [source], END, Limits(len(source) + most, SIZE), Beam(SIZE**2, 0.6))
    assert found.ids == best
    assert found.score == pytest.approx(scores[best], abs=1e-4)


def test_a_source_that_fills_the_context_is_refused(model):
    with pytest.raises(PipelineError, match=r"source 2: has 16 tokens; .* context is 16 .* by 1 or more"):
        list(translate(model, [[3, END], [3] * 15 + [END]], END, Limits(CONTEXT, SIZE), Beam()))


def test_a_diverged_model_is_refused():
    broken = made(small())
    with torch.no_grad():
        broken.model.embed_tokens.weight[5] = float("nan")
    with pytest.raises(PipelineError, match="its training has diverged"):
        list(translate(broken, [[3, END], [4, 5, END]], END, Limits(CONTEXT, SIZE), Beam()))
