"""The kernel's ids are those of `tokenizers`, and its pre-tokens those of a plain reading of the regular expression."""

import json
import random
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from data_pipeline.kernels.bpe import build_merges, encode_texts, new_cache
from data_pipeline.kernels.pretokens import LETTER, NUMBER, SPACE, pretoken_end
from data_pipeline.tokens.tokenizer import TokenizerConfig, _train, code_point_classes, open_reference
from data_pipeline.tokens.vocabulary import read_vocabulary
from governance.kernels.buffers import text_buffers

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


def vocabulary_of(corpus, size=700):
    text = _train(CORPORA[corpus], TokenizerConfig(vocabulary_size=size))
    return read_vocabulary(text), open_reference(text)


@pytest.fixture(scope="module", params=sorted(CORPORA))
def engines(request):
    """(texts -> list of ids by the kernel, texts -> list of ids by the library)."""
    vocabulary, reference = vocabulary_of(request.param)
    merges, cache = build_merges(vocabulary.letters, vocabulary.merges), new_cache(256)  # small: it overflows
    return kernel(merges, cache), lambda texts: [reference.encode(text).ids for text in texts]


def kernel(merges, cache):
    def run(texts):
        data, offsets = text_buffers(pa.array(texts, pa.large_string()))
        ids, ends = encode_texts(data, offsets, code_point_classes(), merges, cache, END)
        assert ends[-1] == len(ids)
        parts = [ids[ends[i] : ends[i + 1]].tolist() for i in range(len(texts))]
        assert all(part[-1] == END for part in parts)
        return [part[:-1] for part in parts]

    return run


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
)
TEXT = st.lists(PIECES, max_size=12).map("".join)


@settings(max_examples=300)
@given(texts=st.lists(TEXT, max_size=5))
def test_the_ids_are_those_of_the_library(engines, texts):
    ours, theirs = engines
    assert ours(texts) == theirs(texts)


def class_of(character):
    return code_point_classes()[ord(character)]


def plain_pretokens(text):
    """The alternatives of the expression, tried in their order, a character at a time."""
    found, i = [], 0
    while i < len(text):
        stop = next((i + len(c) for c in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d") if text.startswith(c, i)), i)
        if stop == i:
            start = i + (text[i] == " " and i + 1 < len(text) and class_of(text[i + 1]) != SPACE)
            kind, stop = class_of(text[start]), start
            while stop < len(text) and class_of(text[stop]) == kind:
                stop += 1
            if kind == SPACE and stop < len(text) and stop - i > 1:
                stop -= 1
        found.append(text[i:stop])
        i = stop
    return found


@njit
def stops_of(data, eights, start, end, classes):
    stops = []
    while start < end:
        start = pretoken_end(data, eights, start, end, classes)
        stops.append(start)
    return stops


@settings(max_examples=300)
@given(text=TEXT.filter(bool))
def test_the_pretokens_are_those_of_the_expression(text):
    from tokenizers import pre_tokenizers

    data, offsets = text_buffers(pa.array([text], pa.large_string()))
    eights = np.ndarray((max(0, len(data) - 7),), np.dtype("<u8"), data, strides=(1,))
    stops = stops_of(data, eights, offsets[0], offsets[1], code_point_classes())
    found = [data[i:stop].tobytes().decode() for i, stop in pairwise([int(offsets[0]), *stops])]
    cutter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs = [text[first:last] for _, (first, last) in cutter.pre_tokenize_str(text)]
    assert found == plain_pretokens(text) == theirs


def test_every_code_point_has_the_class_that_the_library_gives_it():
    """c is a letter where `aca` is one pre-token, a number where `1c1` is, a sign where `!c!` is, else white space."""
    from tokenizers import pre_tokenizers

    cutter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    points = [p for p in range(0x40000) if not 0xD800 <= p < 0xE000] + list(range(0xE0000, 0xE0200))
    signs = {LETTER: "a", NUMBER: "1", SPACE: " ", 0: "!"}
    for start in range(0, len(points), 8192):
        part = points[start : start + 8192]
        kinds = [int(code_point_classes()[point]) for point in part]
        # With its own kind on both sides each is one pre-token; the \n between them parts them, and stands alone.
        text = "".join(
            f"{signs[kind]}{chr(point)}{signs[kind]}\n"
            for kind, point in zip(kinds, part, strict=True)
            if kind != SPACE
        )
        assert len(cutter.pre_tokenize_str(text)) == 2 * sum(kind != SPACE for kind in kinds)
        for point in (point for kind, point in zip(kinds, part, strict=True) if kind == SPACE):
            assert [piece[1] for piece in cutter.pre_tokenize_str(f"a{chr(point)}")] == [(0, 1), (1, 2)]
            assert len(cutter.pre_tokenize_str(f"!{chr(point)}!")) == 3 - (point == 32)


@pytest.mark.parametrize("unit", ["a", "ab", " ", "\n", "中", "1", "!", "é"])
def test_long_runs_have_the_ids_of_the_library(unit):
    vocabulary, reference = vocabulary_of("runs")
    run = kernel(build_merges(vocabulary.letters, vocabulary.merges), new_cache())
    for count in (47, 48, 49, 50, 1023, 1024, 1025, 65_536):
        text = unit * count + "x"
        assert run([text]) == [reference.encode(text).ids]


def test_random_words_have_the_ids_of_the_library():
    vocabulary, reference = vocabulary_of("mixed")
    run = kernel(build_merges(vocabulary.letters, vocabulary.merges), new_cache())
    draw = random.Random(5)
    letters = "abcdefghijklmnopqrstuvwxyzäöü" * 3 + "жщ中"
    texts = [" ".join("".join(draw.choices(letters, k=draw.randint(1, 90))) for _ in range(400)) for _ in range(20)]
    assert run(texts) == [reference.encode(text).ids for text in texts]


def test_a_word_beyond_the_bound_comes_back():
    vocabulary, _ = vocabulary_of("runs")
    run = kernel(build_merges(vocabulary.letters, vocabulary.merges), new_cache())
    text = "中ab" * 500_000
    [ids] = run([text])
    assert b"".join(vocabulary.pieces[index] for index in ids).decode() == text


def test_the_cache_never_changes_an_id():
    """The same texts through a fresh, a used, a tiny and a full cache."""
    vocabulary, _ = vocabulary_of("mixed")
    merges = build_merges(vocabulary.letters, vocabulary.merges)
    draw = random.Random(7)
    words = [word * draw.randint(1, 4) for word in WORDS.split(" ")]
    texts = [" ".join(draw.choices(words, k=200)) for _ in range(50)]
    used = new_cache()
    runs = [kernel(merges, cache)(texts) for cache in (new_cache(), used, used, new_cache(4), new_cache(64))]
    assert all(run == runs[0] for run in runs)
    full = new_cache()
    full.used[1] = len(full.arena)
    full.used[2] = len(full.spill)
    assert kernel(merges, full)(texts) == runs[0]
    assert full.used[1] < len(full.arena)


def test_equal_hashes_are_told_apart_by_their_bytes():
    """An entry whose key is made to equal another word's: the bytes differ, so it is not taken."""
    vocabulary, _ = vocabulary_of("mixed")
    merges, cache = build_merges(vocabulary.letters, vocabulary.merges), new_cache(4)
    first, other = "a" * 20, "b" * 20
    run = kernel(merges, cache)
    [right] = kernel(merges, new_cache(4))([other])
    run([first])
    (place,) = np.flatnonzero(cache.table[:, 1])
    probe = new_cache(4)
    kernel(merges, probe)([other])
    (theirs,) = np.flatnonzero(probe.table[:, 1])
    cache.table[place, 0] = probe.table[theirs, 0]
    assert run([other]) == [right]


def test_a_window_of_an_array_is_encoded_as_it_is():
    vocabulary, _ = vocabulary_of("mixed")
    merges = build_merges(vocabulary.letters, vocabulary.merges)
    whole = pa.array([f"text number {i} über" for i in range(20)], pa.large_string())
    data, offsets = text_buffers(whole[5:9])
    ids, ends = encode_texts(data, offsets, code_point_classes(), merges, new_cache(), END)
    expected = kernel(merges, new_cache())(whole[5:9].to_pylist())
    assert [ids[ends[i] : ends[i + 1] - 1].tolist() for i in range(4)] == expected


@pytest.mark.parametrize("texts", [[], [""], ["", "", "a", ""]])
def test_empty_texts_are_only_closed(texts):
    vocabulary, _ = vocabulary_of("bytes")
    run = kernel(build_merges(vocabulary.letters, vocabulary.merges), new_cache())
    assert run(texts) == [[vocabulary.letters[byte] for byte in text.encode()] for text in texts]


@settings(max_examples=60)
@given(st.data())
def test_any_order_of_merges_is_followed(data):
    """Vocabularies that no training gives: random pairs of tokens, in a random order."""
    base = read_vocabulary(_train(["x"], TokenizerConfig(vocabulary_size=257)))
    pieces = {base.letters[ord(letter)]: letter.encode() for letter in "abc "}
    names, merges = dict(pieces), {}
    for _ in range(data.draw(st.integers(1, 12))):
        left, right = data.draw(st.sampled_from(sorted(names))), data.draw(st.sampled_from(sorted(names)))
        joined = names[left] + names[right]
        if joined in names.values() or b" " in joined[1:]:
            continue
        names[257 + len(merges)] = joined
        merges[left, right] = (len(merges), 257 + len(merges))
    shown = {index: piece.decode().replace(" ", "Ġ") for index, piece in names.items()}
    values = json.loads(_train(["x"], TokenizerConfig(vocabulary_size=257)))
    values["model"]["vocab"] |= {shown[index]: index for index in shown if index > 256}
    values["model"]["merges"] = [[shown[a], shown[b]] for a, b in merges]
    text = json.dumps(values)
    vocabulary, reference = read_vocabulary(text), open_reference(text)
    run = kernel(build_merges(vocabulary.letters, vocabulary.merges), new_cache())
    texts = data.draw(st.lists(st.text("abc ", max_size=80), min_size=1, max_size=4))
    assert run(texts) == [reference.encode(text).ids for text in texts]
