"""Training gives the library's tokenizer to the byte, whatever the texts, the vocabulary and the special tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from data_pipeline.tokens import tokenizer as subject
from data_pipeline.tokens import word_counts
from data_pipeline.tokens.unknown_characters import unknown_characters
from data_pipeline.tokens.vocabulary import alphabet
from data_pipeline.tokens.word_counts import batches, counted
from governance.errors import PipelineError

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
)
def test_training_equals_the_library(texts, size, special, batch_bytes):
    config = subject.TokenizerConfig(vocabulary_size=size, special_tokens=special)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "count_words", lambda texts: counted(unknown_characters(), batches(texts)))
        patch.setattr(word_counts, "_BATCH_BYTES", batch_bytes)
        assert subject._train(texts, config) == of_library(texts, config)


def test_a_letter_younger_than_the_library_trains_its_merges():
    """gigatoken takes U+088F for a letter, the library for none; both stay apart in a batch."""
    config = subject.TokenizerConfig(vocabulary_size=300)
    texts = ["a\u088f "] * 50 + ["ab ab"] * 60
    assert subject._train(texts, config) == of_library(texts, config)


@pytest.mark.parametrize(
    ("child", "reason"),
    [
        ("import no_such_package", r"\(exit code 1\): ModuleNotFoundError: No module named 'no_such_package'"),
        ("raise MemoryError", "lack of memory"),
        ("import os; os.kill(os.getpid(), 9)", "lack of memory"),
    ],
)
def test_a_failed_count_states_its_reason(monkeypatch, child, reason):
    monkeypatch.setattr(word_counts, "_CHILD", child)
    with pytest.raises(PipelineError, match=reason):
        word_counts.count_words(["a b"])


def test_a_killed_count_is_an_error_that_names_the_setting(monkeypatch):
    monkeypatch.setattr(word_counts, "_CHILD", "import sys; sys.exit(1)")
    with pytest.raises(PipelineError, match="sample_bytes"):
        word_counts.count_words(["a b"])
