"""Likelihoods of continuations equal plain sums over one sequence at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.errors import PipelineError
from governance.manifest import read_manifest
from pretrain.evaluation.loglikelihood import LEAD, Passes, encode_texts, log_likelihoods
from pretrain.evaluation.validation import load_decoder, nats_with


def encode(text: str) -> np.ndarray:
    """A pair of equal letters is one token, so that a boundary can fall within a token."""
    ids, place = [], 0
    while place < len(text):
        pair = text[place : place + 2]
        double = len(pair) == 2 and pair[0] == pair[1]
        ids.append(100 + ord(pair[0]) % 90 if double else ord(pair[0]) % 90)
        place += 1 + double
    return np.array(ids, np.uint16)


def plain(model, ids: list[int], first: int) -> float:
    tokens = torch.tensor([ids])
    zeros, places = torch.zeros_like(tokens, dtype=torch.int32), torch.arange(len(ids), dtype=torch.int32)[None]
    with torch.no_grad():
        hidden, _ = model.model(tokens, zeros, places)
        chances = torch.log_softmax(model.lm_head(hidden).float(), -1)[0]
    return sum(float(chances[place - 1, ids[place]]) for place in range(first, len(ids)))


@pytest.fixture(scope="module")
def model(finished):
    root, run = finished
    return load_decoder(read_manifest(root / run.stats["checkpoint"]["path"]), root)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.text("abc ", max_size=12), st.text("abc ", min_size=1, max_size=20)), max_size=9))
def test_a_batch_scores_each_text_as_if_it_were_alone(model, texts):
    texts = [(context or "x", text) for context, text in texts]
    texts = [(context, text) for context, text in texts if len(encode(context + text)) > 1]
    found = log_likelihoods(nats_with(model), encode, texts, 64, Passes(batch_tokens=150))
    assert len(found) == len(texts)
    for (context, text), scored in zip(texts, found, strict=True):
        ids, before = encode(context + text).tolist(), encode(context).tolist()
        first = 0
        while first < min(len(ids), len(before)) and ids[first] == before[first]:
            first += 1
        first = max(1, first)
        if first < len(ids):
            assert scored.tokens == len(ids) - first
            assert scored.nats == pytest.approx(plain(model, ids, first), abs=1e-4)


def test_behind_a_token_that_begins_documents_all_of_a_text_is_scored(model):
    def begun(text):
        return np.append(np.uint16(199), encode(text)).astype(np.uint16)

    first, second, [third] = (
        log_likelihoods(nats_with(model), begun, [pair], 64) for pair in (("", "a"), ("", "abc"), ("ab", "cab"))
    )
    assert [scored.tokens for scored in (*first, *second, third)] == [1, 3, 3]
    assert first[0].nats == pytest.approx(plain(model, begun("a").tolist(), 1), abs=1e-4)
    assert second[0].nats == pytest.approx(plain(model, begun("abc").tolist(), 1), abs=1e-4)
    assert third.nats == pytest.approx(plain(model, begun("abcab").tolist(), 3), abs=1e-4)
    texts = encode_texts(begun, [(LEAD, "abc"), (f"{LEAD}a", "bc"), (LEAD, "a")], 64)
    assert [(text.ids.tolist(), text.first) for text in texts] == [
        (begun("abc").tolist(), 1), (begun("abc").tolist(), 2), (begun("a").tolist(), 1)
    ]  # fmt: skip


def test_passes_that_are_alike_have_one_shape_a_length_and_the_same_scores(model):
    texts = [("x", "abc" * (1 + number % 13)) for number in range(40)]
    plain, shapes = nats_with(model), []

    def nats_of(batch):
        shapes.append(tuple(batch.tokens.shape))
        return plain(batch)

    expected = log_likelihoods(plain, encode, texts, 32, Passes(batch_tokens=320))
    assert log_likelihoods(nats_of, encode, texts, 32, Passes(batch_tokens=320, alike=True)) == [
        scored.__class__(pytest.approx(scored.nats, abs=1e-4), scored.tokens) for scored in expected
    ]
    assert set(shapes) == {(10, 32)}
    assert len(shapes) > 1


def test_the_probabilities_of_all_next_tokens_add_up_to_one(model):
    # The vocabulary of the scores is the padded one: the padding has little probability, all together have 1.
    symbols = {chr(code): code for code in range(256)}
    scored = log_likelihoods(
        nats_with(model),
        lambda text: np.array([symbols[c] for c in text], np.int64),
        [("a", chr(code)) for code in range(256)],
        64,
    )
    assert sum(np.exp(s.nats) for s in scored) == pytest.approx(1.0, abs=1e-4)


def test_what_is_longer_than_the_window_loses_its_beginning(model):
    context, text = "abcabcab" * 10, "cab"
    [scored] = log_likelihoods(nats_with(model), encode, [(context, text)], 16)
    ids = encode(context + text).tolist()[-16:]
    assert scored.tokens == 3
    assert scored.nats == pytest.approx(plain(model, ids, 13), abs=1e-4)


def test_a_text_without_a_token_to_score_is_refused(model):
    with pytest.raises(PipelineError, match="no token"):
        log_likelihoods(nats_with(model), encode, [("", "a")], 64)
