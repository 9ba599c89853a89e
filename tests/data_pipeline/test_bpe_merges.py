"""Training gives the library's tokenizer to the byte, whatever the texts, the vocabulary and the special tokens."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data_pipeline.kernels import bpe_merges
from data_pipeline.tokens import tokenizer as subject
from data_pipeline.tokens import word_counts
from data_pipeline.tokens.unknown_characters import all_characters
from data_pipeline.tokens.vocabulary import alphabet

TEXT = st.one_of(
    st.text("ab", max_size=40),
    st.text("a", max_size=40),
    st.text("abc ", max_size=80),
    st.text("ab \n'1é中", max_size=60),
    st.text("a1! \u088f\U00010940é", max_size=40),  # two letters that are younger than the library's Unicode
    st.text(max_size=20),
    st.sampled_from(["<|endoftext|>x <|endoftext|>", "we're they've", "aab" * 30]),
)


def of_library(texts, config):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary_size,
        special_tokens=list(config.special_tokens),
        initial_alphabet=sorted(alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


@settings(max_examples=150)
@given(
    st.lists(TEXT, max_size=6),
    st.sampled_from([260, 300, 700, 2000]),
    st.sampled_from([("<|endoftext|>",), ("<|endoftext|>", "ab", "aa"), ("the end", "Ġa")]),
    st.integers(1, 300),
    st.sampled_from([32, 1e-2, 1e-4]),
)
def test_training_equals_the_library(texts, size, special, batch_bytes, share):
    """Also where pairs are followed at first that are more frequent than any, so that the bound has to sink."""
    config = subject.TokenizerConfig(vocabulary_size=size, special_tokens=special)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_counts, "_BATCH_BYTES", batch_bytes)
        patch.setattr(bpe_merges, "_SHARE", share)
        assert subject._train((text.encode() for text in texts), config) == of_library(texts, config)


def test_a_letter_younger_than_the_library_trains_its_merges():
    """Unicode 17 has U+088F as a letter, the library has it as none."""
    config = subject.TokenizerConfig(vocabulary_size=300)
    texts = ["a\u088f "] * 50 + ["ab ab"] * 60
    assert subject._train((text.encode() for text in texts), config) == of_library(texts, config)


@settings(max_examples=200)
@given(st.lists(TEXT, max_size=8), st.integers(1, 200))
def test_counted_words_are_those_of_the_library(texts, batch_bytes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_counts, "_BATCH_BYTES", batch_bytes)
        assert counts(texts) == words_of_library(texts)


def test_words_with_characters_of_every_class_are_those_of_the_library():
    characters = all_characters()
    texts = [f"a{character}1!{character}" for character in characters[:0x3400] + characters[0x3400::7]]
    rows = ["".join(texts[start : start + 1000]) for start in range(0, len(texts), 1000)]
    assert counts(rows) == words_of_library(rows)


def test_many_and_long_words_are_counted():
    """More words and letters than the tables begin with, in sizes around 8 bytes."""
    letters = str.maketrans("0123456789", "ghijklmnop")
    texts = [f"{'x' * (number % 19)}{number:x}é".translate(letters) for number in range(30_000)] * 2
    texts += ["y" * 300_000, "y" * 300_001, "\0", "\0\0"]
    found = counts(texts)
    assert found == words_of_library(texts)
    assert len(found) > 30_000


def counts(texts):
    words = word_counts.count_words(text.encode() for text in texts)
    ends = np.cumsum(words.sizes).tolist()
    names = [words.letters[last - size : last] for last, size in zip(ends, words.sizes.tolist(), strict=True)]
    assert len(set(names)) == len(names)
    return dict(zip(names, words.counts.tolist(), strict=True))


def words_of_library(texts):
    cutter, byte_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True), alphabet().__getitem__
    words = (word for text in texts for word, _ in cutter.pre_tokenize_str(text))
    return Counter(bytes(map(byte_of, word)) for word in words)
