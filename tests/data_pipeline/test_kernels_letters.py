"""Letters: equal to `str.casefold` and the removal of ASCII white space, on every character and on any text.

Marked characters: found where a plain search finds one.
"""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.kernels.content_hash_text import folded_letters
from data_pipeline.kernels.marked_characters import holding
from governance.kernels.buffers import text_buffers

WHITE_SPACE = b" \t\n\r\x0b\x0c"


def plain(text):
    return text.casefold().encode().translate(None, WHITE_SPACE)


def letters_of(texts):
    letters, ends = folded_letters(*text_buffers(pa.array(texts, pa.large_string())))
    assert ends[0] == 0
    assert ends[-1] == len(letters)
    return [part.tobytes() for part in np.split(letters, ends[1:-1])]


def test_every_character_is_folded_as_python_folds_it():
    """All of the planes with assigned characters, and samples of the others."""
    points = (*range(0xD800), *range(0xE000, 0x33400), *range(0xE0000, 0xE0200), *range(0x33400, 0x110000, 97))
    characters = [chr(point) for point in points]
    for first in range(0, len(characters), 1 << 16):
        part = characters[first : first + (1 << 16)]
        assert letters_of(part) == [plain(character) for character in part]


@settings(max_examples=300)
@given(
    st.lists(
        st.text(st.one_of(st.characters(exclude_categories=("Cs",)), st.sampled_from(" \tẞſŉΐİK̇ǰﬃᾷA\x85\u3000"))),
        min_size=1,
    )
)
def test_any_texts(texts):
    assert letters_of(texts) == [plain(text) for text in texts]


def test_a_slice_keeps_its_own_window():
    texts = pa.array(["Eins", "ZWEI drei", "ẞ"], pa.large_string()).slice(1, 2)
    letters, ends = folded_letters(*text_buffers(texts))
    assert letters.tobytes() == b"zweidreiss"
    assert ends.tolist() == [0, 8, 10]


def test_no_text_at_all():
    letters, ends = folded_letters(*text_buffers(pa.array([], pa.large_string())))
    assert len(letters) == 0
    assert ends.tolist() == [0]


@settings(max_examples=200)
@given(
    st.lists(st.text(st.sampled_from("a \x7f\x80éßЖ中\uffff\U0001f600\U0010ffff"), max_size=30), max_size=8),
    st.sets(st.sampled_from("\x80éß中\U0001f600\U0010ffff")),
)
def test_marked_characters_are_found_wherever_they_are(texts, characters):
    marked = np.zeros(0x110000, np.bool_)
    marked[[ord(character) for character in characters]] = True
    found = holding(pa.array(texts, pa.large_string()), marked)
    assert found.tolist() == [not characters.isdisjoint(text) for text in texts]
