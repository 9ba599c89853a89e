"""The instrument check: a planted identity term is flagged, a clean instrument is not."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from governance.checks.bias.bias import _terms
from governance.checks.bias.instrument_check import (
    NOT_APPLICABLE,
    biased_instruments,
    instrument_rows,
    lexicon_scorers,
    load_templates,
    paired,
)
from governance.checks.bias.word_lists.lexicons import load_lexicons
from governance.checks.bias.word_lists.lists_config import WordListsConfig
from governance.errors import ConfigError

TEMPLATES = load_templates()
PRAISE = {"good": 1.0, "nice": 1.0, "bad": -1.0, "awful": -1.0, "very bad": -1.0}


TERMS = _terms(load_lexicons(WordListsConfig()))
FEW = {"en": {("x", "a"): ["ann", "anna"], ("x", "b"): ["bob", "ben"]}}


def scorer_of(weights, identity=()):
    return lexicon_scorers({"": weights}, identity)[""]


def test_each_language_of_the_term_lists_has_templates():
    assert set(TERMS) <= set(TEMPLATES.languages)
    for language, sentences in TEMPLATES.languages.items():
        assert len(set(sentences)) == len(sentences) >= 12, language


def test_templates_are_neutral_and_name_nobody():
    """A template that held an identity term would mention a group whatever was filled in."""
    for language, groups in TERMS.items():
        words = {term for terms in groups.values() for term in terms if " " not in term}
        for sentence in TEMPLATES.languages[language]:
            if language in ("ja", "zh"):
                assert not [term for term in words if term in sentence], sentence
            else:
                assert words.isdisjoint(sentence.replace("{term}", "").casefold().replace(".", "").split()), sentence


@pytest.mark.parametrize("language", ["en", "de", "es", "nl"])
def test_a_planted_identity_term_is_flagged_and_the_clean_lexicon_is_not(language):
    clean = scorer_of(PRAISE)
    assert biased_instruments(instrument_rows({language: {"sentiment": clean}}, TERMS, TEMPLATES)) == set()
    for (axis, group), terms in sorted(TERMS[language].items())[::3]:
        if len([one for one in TERMS[language] if one[0] == axis]) < 2:
            continue
        groups = {key: of for key, of in TERMS[language].items() if key[0] == axis}
        planted = scorer_of({**PRAISE, terms[0]: -1.0})
        rows = instrument_rows({language: {"sentiment": planted, "clean": clean}}, {language: groups}, TEMPLATES)
        assert biased_instruments(rows) == {("sentiment", language)}, (axis, group, terms[0])
        found = [
            one for one in rows if one["instrument"] == "sentiment" and one["group"] == group and one["axis"] == axis
        ]
        assert found[0]["value"] < 0
        assert re.match(rf'biased: furthest term "[^"]*{re.escape(terms[0])}[^"]*"', found[0]["note"])


def test_a_list_without_identity_terms_is_reported_to_be_beyond_the_check():
    """It scores all neutral sentences 0, which is not evidence of fairness."""
    (found,) = instrument_rows({"en": {"sentiment": scorer_of(PRAISE)}}, TERMS, TEMPLATES)
    assert (found["note"], found["value"], found["n"], found["group"]) == (NOT_APPLICABLE, None, None, None)


def test_an_english_list_put_to_german_is_caught():
    """English "kind" is praise, German "Kind" a child."""
    rows = instrument_rows({"de": {"sentiment": scorer_of({**PRAISE, "kind": 1.0})}}, TERMS, TEMPLATES)
    assert any(one["note"].startswith('biased: furthest term "kind" +0.9') for one in rows)


def test_a_lexicon_counts_words_and_phrases():
    score = scorer_of({"good": 1.0, "not good": -2.0, "Straße": 3.0})
    assert score(["Good, good", "it is not good", "STRASSE", "goodness", ""]) == [2.0, -1.0, 3.0, 0.0, 0.0]


def test_words_that_an_identity_term_uses_up_are_not_scored_as_in_the_counts():
    score = scorer_of({"blind": -1.0, "man is": 2.0, "to blind": 4.0}, {("blind", "man"): (0,), ("man",): (1,)})
    assert score(["The blind man is here", "Love is blind", "The man is here", "to blind man"]) == [0.0, -1.0, 0.0, 4.0]


def test_a_classifier_with_a_lean_is_flagged_and_noise_is_not():
    def leaning(lean):
        def score(texts):
            return [random.Random(text).gauss(0.5 + lean * ("ann" in text), 0.01) for text in texts]

        return score

    rows = instrument_rows({"en": {"toxicity": leaning(0.06), "noise": leaning(0.0)}}, FEW, TEMPLATES)
    assert biased_instruments(rows) == {("toxicity", "en")}
    found = {(one["instrument"], one["group"]): one for one in rows}
    assert found["toxicity", "a"]["lower"] < 0.06 < found["toxicity", "a"]["upper"]
    assert found["toxicity", "a"]["value"] == pytest.approx(-found["toxicity", "b"]["value"])
    assert found["toxicity", "a"]["n"] == 24
    assert found["noise", "a"]["note"].startswith("not biased")


def test_a_certain_but_small_difference_is_no_bias():
    rows = instrument_rows({"en": {"tiny": lambda texts: [0.01 * ("ann" in text) for text in texts]}}, FEW, TEMPLATES)
    assert rows[0]["lower"] > 0
    assert biased_instruments(rows) == set()


def test_an_instrument_without_a_score_for_each_text_is_a_defect():
    for wrong in (lambda texts: [0.0], lambda texts: [float("nan")] * len(texts)):
        with pytest.raises(ValueError, match="scores"):
            instrument_rows({"en": {"wrong": wrong}}, FEW, TEMPLATES)


def test_paired_differences_have_students_interval():
    mean, lower, upper, p = paired(np.array([1.0, 2.0, 3.0]))
    assert (mean, lower, upper) == pytest.approx((2.0, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-5)
    assert p == pytest.approx(0.0741799, abs=1e-6)


@pytest.mark.parametrize(
    "text", ["", "version = 1\nen = ['{term}']", "version = 1\nen = ['a {term}', 'b']", "version = 1\nen = 3", "="]
)
def test_templates_that_are_none_are_reported(tmp_path, text):
    path = tmp_path / "templates.toml"
    path.write_text(text, encoding="utf-8")
    if text:
        with pytest.raises(ConfigError, match="templates"):
            load_templates(path)
    else:
        with pytest.raises(ConfigError, match="version"):
            load_templates(path)
