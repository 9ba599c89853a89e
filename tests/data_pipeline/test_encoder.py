"""The fast engine gives the ids of `tokenizers`, on any vocabulary, with any history, in bounded memory."""

import functools
import json
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.tokens import encoder as subject
from data_pipeline.tokens.encoder import fast_engine, library_engine
from data_pipeline.tokens.parity import awkward_strings, compare, every_character, once_each
from data_pipeline.tokens.tokenizer import TokenizerConfig, _engines, _train, open_reference
from data_pipeline.tokens.vocabulary import alphabet, definition_of_text, read_vocabulary
from tests.data_pipeline.tokenizer_kinds import KINDS

END = 0
WORDS = (
    "the quick brown fox isn't here and they'll come; we've seen I'm fine, he'd re-read o'clock "
    "Der schnelle Fuchs läuft über 12 Wiesen für größere Häuser; ça va très bien où êtes-vous "
    "быстрая коричневая лиса прыгает через ленивую собаку 敏捷的棕色狐狸跳过懒狗 素早い茶色の狐 "
    "الثعلب البني السريع สุนัขจิ้งจอกสีน้ำตาล तेज़ भूरी लोमड़ी def f(x):\n    return x + 1\n\n"
)
CORPORA = {
    "mixed": [WORDS * 3, WORDS.upper(), "aaaa aaa aa a" * 20, "    \n\n\t\t" * 9, "0123456789 " * 20],
    "runs": ["abab" * 50 + "aabb" * 30 + " " * 99 + "\n" * 50 + "bbbb" * 40, "e\u0301" * 40, "🙂🙃" * 30],
    "bytes": ["x"],
}


def engines_of(text):
    library = library_engine(open_reference(text), END)
    return fast_engine(definition_of_text(text), END, library), library


@functools.cache
def trained(corpus, size=700):
    return _train(map(str.encode, CORPORA[corpus]), TokenizerConfig(vocabulary_size=size))


def ids_of(engine, texts):
    ids, ends = engine(texts if isinstance(texts, pa.Array) else pa.array(texts, pa.large_string()))
    assert ends[-1] == len(ids)
    return [ids[first:last].tolist() for first, last in pairwise(ends)]


@pytest.fixture(scope="module", params=sorted(CORPORA))
def engines(request):
    return engines_of(trained(request.param))


PIECES = st.one_of(
    st.text(max_size=9),
    st.text(st.characters(max_codepoint=0x7F), max_size=9),
    st.sampled_from(WORDS.split(" ")),
    st.sampled_from(
        [" ", "  ", "\n", "\r\n", "\t", "\x0b", "\x1c", "\x1f", "\x85", "\xa0", "\u2028", "\u3000", "\u180e"]
    ),
    st.sampled_from(
        ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'", "''", " 's", "!'s", "’s", "'l", "'r", "'v"]
    ),
    st.sampled_from(
        ["🙂", "👩‍👩‍👧", "e\u0301", "½", "²", "٣", "Ⅷ", "\U000323ad", "\U0010ffff", "\x00", "\x7f", "\ufeff"]
    ),
    st.tuples(st.sampled_from(["a", "ab", " ", "\n", "1", "!", "中", "é", " a"]), st.integers(7, 90)).map(
        lambda run: run[0] * run[1]
    ),
    st.just("<|endoftext|>"),
)
TEXT = st.lists(PIECES, max_size=12).map("".join)


@settings(max_examples=200)
@given(texts=st.lists(TEXT, max_size=5))
def test_the_ids_are_those_of_the_library(engines, texts):
    fast, library = engines
    assert ids_of(fast, texts) == ids_of(library, texts)


@settings(max_examples=200)
@given(texts=st.lists(st.one_of(TEXT, st.text("ab \n\t\u3000", max_size=30)), min_size=1, max_size=5))
def test_stretches_encoded_once_have_the_same_ids(texts):
    library = library_engine(open_reference(trained("mixed")), END)
    once = once_each(library, read_vocabulary(trained("mixed")).pieces)
    assert ids_of(once, texts * 2) == ids_of(library, texts * 2)


@settings(max_examples=60)
@given(st.data())
def test_any_order_of_merges_is_followed(data):
    """Vocabularies that no training produces: random pairs of tokens, in a random order."""
    values = json.loads(trained("bytes", 257))
    ids = values["model"]["vocab"]
    names, merges = ["a", "b", "c", "Ġ"], []
    for _ in range(data.draw(st.integers(1, 12))):
        left, right = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(names))
        if left + right not in names and "Ġ" not in (left + right)[1:]:
            names.append(left + right)
            ids[left + right] = len(ids)
            merges.append([left, right])
    values["model"]["merges"] = merges
    text = json.dumps(values)
    texts = data.draw(st.lists(st.text("abc ", max_size=80), min_size=1, max_size=4))
    fast, library = engines_of(text)
    assert ids_of(fast, texts) == ids_of(library, texts)


def test_the_history_of_an_engine_never_changes_an_id(monkeypatch):
    """The same texts with fresh, used and restarted caches, and from four threads at once."""
    text = trained("mixed")
    draw = random.Random(7)
    words = [word * draw.randint(1, 4) for word in WORDS.split(" ")]
    texts = [" ".join(draw.choices(words, k=200)) for _ in range(50)]
    used, library = engines_of(text)
    expected = ids_of(library, texts)
    assert ids_of(used, texts) == ids_of(used, texts) == expected
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ids_of, [used] * 8, [texts] * 8)) == [expected] * 8
    monkeypatch.setattr(subject, "_CACHED_BYTES", 1)
    restarting, _ = engines_of(text)
    assert [ids_of(restarting, [one])[0] for one in texts] == expected


def test_windows_chunks_and_empty_texts_are_encoded():
    engine, _ = engines_of(trained("mixed"))
    whole = pa.array([f"text number {i} über" for i in range(20)], pa.large_string())
    expected = ids_of(engine, whole.to_pylist())
    assert ids_of(engine, whole[5:9]) == expected[5:9]
    ids, ends = engine(pa.chunked_array([whole[:3], whole[3:3], whole[3:]]))
    assert ids[: ends[4]].tolist() == [index for part in expected[:4] for index in part]
    assert ids_of(engine, pa.array(["é", ""], pa.string()))[1] == [END]
    for empty in (pa.array([], pa.large_string()), pa.chunked_array([], pa.large_string())):
        ids, ends = engine(empty)
        assert (ids.tolist(), ends.tolist()) == ([], [0])


@pytest.mark.parametrize("unit", ["a", "ab", " ", "\n", "中", "1", "!", "é"])
def test_long_runs_have_the_ids_of_the_library(unit):
    text = trained("runs")
    texts = [unit * count + "x" for count in (49, 1024, 65_536)]
    fast, library = engines_of(text)
    assert ids_of(fast, texts) == ids_of(library, texts)


def test_texts_with_characters_younger_than_the_library_have_its_ids():
    """A merge of a letter and the first byte of another: gigatoken applies it to U+088F, to the library no letter."""
    text = _train(["a\u0905 ".encode()] * 50, TokenizerConfig(vocabulary_size=300))
    assert b"a\xe0" in read_vocabulary(text).pieces
    library, fast = _engines(text, END)
    assert not compare(library, fast, [*awkward_strings(), *every_character()]).unequal
    texts = ["a\u088f ab", "a\u0905 ab", "", "\U00010940a"]
    assert ids_of(fast, texts) == ids_of(library, texts)


def bordered(build):
    """A tokenizer that merges what its pre-tokenizer leaves together, so that ids show each border."""
    values = json.loads(build().to_str())
    letter_of = {byte: letter for letter, byte in alphabet().items()}
    edges = [letter_of[ord(each)] for each in "aA1! "]
    merges = [(edge, letter_of[byte]) for edge in edges for byte in range(0xC2, 0xF5)]
    merges += [(letter_of[byte], edge) for byte in range(0x80, 0xC0) for edge in edges]
    names = [*map(letter_of.__getitem__, range(256)), *("".join(pair) for pair in merges)]
    values["model"] |= {"vocab": {name: place for place, name in enumerate(names)}, "merges": merges}
    return json.dumps(values | {"added_tokens": [], "normalizer": None, "post_processor": None})


@pytest.mark.parametrize(
    "kind", ["gpt2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("llama3", "gpt4o"))]
)
def test_the_engines_class_every_other_character_alike(kind):
    """Between letters, digits, marks and spaces, each character that the library knows has the same borders."""
    fast, library = engines_of(bordered(KINDS[kind][0]))
    assert compare(library, fast, ["a\u088fa"]).unequal, "the versions differ on it"
    known = "".join(every_character())
    sides = ["aa"] if kind == "gpt2" else ["aa", "AA", "11"]
    texts = [
        "\n".join(f"{left}{each}{right}" for each in known[start : start + 4096])
        for left, right in sides
        for start in range(0x80, len(known), 4096)
    ]
    assert not compare(library, fast, texts).unequal


def test_a_text_that_the_fast_engine_fails_on_is_encoded_by_the_library(monkeypatch):
    class Failing:
        def encode_batch(self, texts, parallel):
            raise RuntimeError("fails on any text")

    library = library_engine(open_reference(trained("mixed")), END)
    monkeypatch.setattr("gigatoken.gigatoken_rs.load_hf_json", lambda definition: Failing())
    assert ids_of(fast_engine("{}", END, library), ["a b", "é"]) == ids_of(library, ["a b", "é"])
